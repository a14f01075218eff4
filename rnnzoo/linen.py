"""Every layer and model for Flax Linen: the same parameters and numbers.

A class here has the name and the arguments of a layer in `rnnzoo.layers` or a
model in `rnnzoo.models`, without `rngs`, and is a `flax.linen.Module`:

>>> import jax
>>> import jax.numpy as jnp
>>> layer = MinGRU(16)
>>> x = jnp.ones((2, 10, 16))
>>> variables = layer.init(jax.random.key(0), x)
>>> jax.tree.map(jnp.shape, variables)['params']['gates']
{'bias': (2, 16), 'kernel': (16, 2, 16)}
>>> carry, y = layer.apply(variables, x)
>>> carry, y = layer.apply(variables, x, carry, mask=jnp.ones((2, 10), bool))
>>> carry, y_t = layer.apply(variables, carry, x[:, 0], method='step')
>>> y_t.shape
(2, 16)

It works inside other modules, with `setup` or `nn.compact`, and with
`nn.remat`, `nn.scan` and other transformations:

>>> from flax import linen as nn
>>> class Tagger(nn.Module):
...   @nn.compact
...   def __call__(self, x):
...     _, x = MinGRU(16)(x)
...     return nn.Dense(3)(x)
>>> sorted(Tagger().init(jax.random.key(0), x)['params'])
['Dense_0', 'MinGRU_0']

Variables are plain arrays in nested dictionaries, with the names of the
attributes of the nnx module: parameters in `params`, running statistics of
batch norms in `batch_stats`. Boxes such as `nn.Partitioned` are unboxed.
`to_linen_variables` and `from_linen_variables` convert variables, so a model
that was trained with one library runs with the other:

>>> from flax import nnx
>>> from rnnzoo import layers
>>> module = layers.MinGRU(16, rngs=nnx.Rngs(0))
>>> carry, y = layer.apply(to_linen_variables(module), x)
>>> bool((y == module(x)[1]).all())
True
>>> module = from_linen_variables(module, variables)
"""

from collections.abc import Mapping
import functools
import inspect
import operator
from typing import Any

from flax import linen as nn
from flax import nnx
from flax import traverse_util
import jax
import jax.numpy as jnp
import numpy as np
from rnnzoo import layers
from rnnzoo import models
from rnnzoo.layers import base
from rnnzoo.training import state as state_lib

_COLLECTIONS = ('params', 'batch_stats')
_SHOWN = 4  # How many wrong variables a message names.


class _Blueprint:
  """An nnx class and the arguments of its constructor, without `rngs`."""

  def __init__(self, nnx_class, args, keywords):
    signature = inspect.signature(nnx_class.__init__)
    self._rngs = ('rngs',) if 'rngs' in signature.parameters else ()
    bound = signature.bind(
        None, *args, **dict.fromkeys(self._rngs), **keywords
    )
    self._class = nnx_class
    self._args = bound.args[1:]
    self._keywords = {k: v for k, v in bound.kwargs.items() if k != 'rngs'}
    self._carries = {}

  # `Any`, because a layer and a model share no class that has their methods.
  def build(self, rngs: nnx.Rngs) -> Any:
    """Makes the nnx module and its submodules."""
    made = lambda v: v.blueprint.build(rngs) if isinstance(v, Twin) else v
    return self._class(
        *map(made, self._args),
        **{name: made(value) for name, value in self._keywords.items()},
        **dict.fromkeys(self._rngs, rngs),
    )

  @functools.cached_property
  def functional(self) -> state_lib.Functional[Any]:
    """The module without its values, which is made once."""
    return state_lib.Functional(self.build)

  def initial_carry(self, batch_size: int, dtype) -> base.Carry:
    """The initial carry, NaN where it depends on parameters."""
    if (batch_size, dtype) not in self._carries:

      def make():
        unknown = lambda s: jnp.full(s.shape, jnp.nan, s.dtype)
        module = self.functional.merge(
            jax.tree.map(unknown, self.functional.params),
            jax.tree.map(unknown, self.functional.batch_stats),
        )
        return module.initialize_carry(batch_size, dtype)

      # Compiled, so that it returns arrays inside the trace of a user, too.
      compiled = jax.jit(make).lower().compile()
      self._carries[batch_size, dtype] = compiled
    return self._carries[batch_size, dtype]()

  def __repr__(self):
    named = (f'{name}={value!r}' for name, value in self._keywords.items())
    return ', '.join((*map(repr, self._args), *named))

  def __reduce__(self):  # Without the cached properties.
    return _Blueprint, (self._class, self._args, self._keywords)

  # Modules with equal arguments are equal, as `nn.jit` expects.
  def __eq__(self, other):
    if not isinstance(other, _Blueprint):
      return False
    return self.__reduce__() == other.__reduce__()

  def __hash__(self):
    return hash((self._class, *self._keywords))


class Twin(nn.Module):
  """An nnx module as a Linen module; `to_linen_class` makes subclasses.

  Attributes:
    blueprint: The nnx class and its arguments.
  """

  blueprint: _Blueprint
  nnx_class = None

  def __init_subclass__(cls, **options):
    super().__init_subclass__(**options)
    # Linen generates a constructor that takes the fields above, for this class
    # and for those that `nn.remat` and other transformations derive.
    take_fields = cls.__init__

    def __init__(self, *args, blueprint=None, **keywords):
      place = {k: keywords.pop(k) for k in ('name', 'parent') if k in keywords}
      if blueprint is None:  # Linen passes it to make a copy.
        blueprint = _Blueprint(cls.nnx_class, args, keywords)
      take_fields(self, blueprint, **place)

    cls.__init__ = __init__

  @property
  def abstract(self) -> Any:
    """The nnx module with shapes as variables, for `abstract.out_features`."""
    functional = self.blueprint.functional
    return functional.merge(functional.params, functional.batch_stats)

  @nn.nowrap
  def initialize_carry(self, batch_size: int, dtype=None) -> base.Carry:
    """Returns the carry before the first token, without variables.

    Args:
      batch_size: `B`.
      dtype: The compute dtype; that of the layer, or else float32, if `None`.

    Returns:
      A pytree of arrays.

    Raises:
      ValueError: If the initial state is a parameter. Use
        `layer.apply(variables, batch_size, method='initialize_carry')` then.
    """
    if self.scope is not None:
      return self.to_nnx().initialize_carry(batch_size, dtype)
    carry = self.blueprint.initial_carry(batch_size, dtype)
    if any((u != u).any() for u in map(np.asarray, jax.tree.leaves(carry))):
      raise ValueError(
          f'The initial state of {type(self).__name__} is a parameter: '
          "apply(variables, batch_size, method='initialize_carry') gives it."
      )
    return carry

  @nn.nowrap
  def to_nnx(self) -> Any:
    """Returns the nnx module with the variables of this bound module.

    Raises:
      ValueError: If the variables do not fit this module.
    """
    functional = self.blueprint.functional
    if self.is_initializing() and not self.variables:
      new = functional.initialize(self.make_rng('params'))
      for collection, tree in zip(_COLLECTIONS, new):
        for name, value in tree.items():
          self.put_variable(collection, name, value)
    wanted = dict(zip(
        _COLLECTIONS, (functional.params, functional.batch_stats)
    ))
    return functional.merge(
        *_fitting(type(self).__name__, wanted, self.variables)
    )

  @nn.nowrap
  def _run(self, name, args, keywords):
    """Calls a method of the nnx module."""
    module = self.to_nnx()
    before = to_linen_variables(module).get('batch_stats', {})
    method = getattr(module, name)
    if 'key' in inspect.signature(method).parameters:
      if keywords.get('key') is None and self.has_rng('dropout'):
        keywords = dict(keywords, key=self.make_rng('dropout'))
    out = method(*args, **keywords)
    after = to_linen_variables(module).get('batch_stats', {})
    moved = jax.tree.map(operator.is_not, after, before)
    if any(jax.tree.leaves(moved)) and not self.is_initializing():
      for name, value in after.items():
        self.put_variable('batch_stats', name, value)
    return out


def to_linen_class(nnx_class: type[nnx.Module]) -> type[Twin]:
  """Makes a Linen class for a layer of your own.

  >>> class Slow(layers.MinGRU):
  ...   pass
  >>> to_linen_class(Slow)(8, use_bias=False)
  Slow(
      # attributes
      blueprint = 8, use_bias=False
  )

  Args:
    nnx_class: A layer or model whose variables are `nnx.Param` and
      `nnx.BatchStat`. It may take `rngs` for its parameters.

  Returns:
    A class that takes the arguments of `nnx_class` without `rngs`, and `name`
    and `parent` of Linen. It has the methods of `nnx_class`. Arguments that are
    modules, as in `Bidirectional`, must be Linen modules of this file too. The
    key for dropout is `key`, or comes from the stream `dropout`.
  """

  def method(name, function):

    @functools.wraps(function)
    def run(self, *args, **keywords):
      return self._run(name, args, keywords)

    return run

  methods = {
      name: method(name, function)
      for name, function in inspect.getmembers(nnx_class, inspect.isfunction)
      if name == '__call__' or not (
          name.startswith('_') or hasattr(Twin, name)
          or hasattr(nnx.Module, name)
      )
  }
  doc = f'`{nnx_class.__module__}.{nnx_class.__name__}` as a Linen module.'
  return type(
      nnx_class.__name__, (Twin,),
      dict(methods, nnx_class=nnx_class, __doc__=doc),
  )


def to_linen_variables(module: nnx.Module) -> dict[str, Any]:
  """Returns the variables of an nnx module in the form of Linen.

  Args:
    module: A layer or a model, which may be abstract.

  Returns:
    Nested dictionaries of arrays: `params`, and `batch_stats` if there are any.
  """
  _, *states, _ = nnx.split(module, nnx.Param, nnx.BatchStat, ...)
  variables = {
      collection: traverse_util.unflatten_dict({
          tuple(map(str, path)): variable.get_value()
          for path, variable in nnx.to_flat_state(state)
      })
      for collection, state in zip(_COLLECTIONS, states)
  }
  return {collection: tree for collection, tree in variables.items() if tree}


def from_linen_variables(
    module: nnx.Module, variables: Mapping[str, Any]
) -> nnx.Module:
  """Returns an nnx module with the variables of a Linen module.

  Args:
    module: A layer or a model with the same arguments. It is not changed.
    variables: Variables of the Linen module, as from `init`.

  Returns:
    A module like `module`.

  Raises:
    ValueError: If a variable is missing, unknown or of another shape.
  """
  trees = _fitting(
      type(module).__name__, to_linen_variables(module), variables
  )
  graphdef, *states, rest = nnx.split(module, nnx.Param, nnx.BatchStat, ...)
  filled = []
  for state, tree in zip(states, trees):
    flat = state_lib.by_path(tree)
    filled.append(nnx.from_flat_state({
        path: variable.replace(flat[tuple(map(str, path))])
        for path, variable in nnx.to_flat_state(state)
    }))
  return nnx.merge(graphdef, *filled, rest)


class _RNNCell(nn.RNNCellBase):
  """See `as_rnn_cell`."""

  layer: Twin
  dtype: Any = None

  @nn.nowrap
  def initialize_carry(self, rng, input_shape):
    """Returns the carry for inputs `[B, D]`; `rng` is not needed."""
    del rng
    return self.layer.initialize_carry(input_shape[0], self.dtype)

  def __call__(self, carry, inputs):
    """Maps a carry and `[B, D]` to a carry and `[B, D_out]`."""
    return self.layer.step(carry, inputs)

  @property
  def num_feature_axes(self):
    return len(base.input_shape(self.layer.abstract))


def as_rnn_cell(layer: Twin, dtype=None) -> nn.RNNCellBase:
  """Makes a layer a cell of Linen: `nn.RNN(cell)` gives the same numbers.

  >>> rnn = nn.RNN(as_rnn_cell(MinGRU(16)))
  >>> y, _ = rnn.init_with_output(jax.random.key(0), jnp.ones((2, 10, 16)))
  >>> y.shape
  (2, 10, 16)

  Args:
    layer: A causal layer.
    dtype: Dtype of the inputs; the layer's own, or else float32, if `None`.

  Returns:
    A cell with the variables of `layer` under the name `layer`.
  """
  return _RNNCell(layer, dtype)


def _fitting(name, wanted, variables):
  """Returns the collections of `variables`, unboxed and checked."""
  trees, problems = [], []
  for collection in _COLLECTIONS:
    want, got = (
        state_lib.by_path(nn.meta.unbox(tree.get(collection, {})))
        for tree in (wanted, variables)
    )
    for path in (*want, *(path for path in got if path not in want)):
      leaf = '/'.join((collection, *path))
      if path not in got:
        problems.append(f'{leaf} is missing')
      elif path not in want:
        problems.append(f'{leaf} is unknown')
      elif np.shape(got[path]) != want[path].shape:
        problems.append(
            f'{leaf} must be {want[path].shape}, got {np.shape(got[path])}'
        )
    trees.append(
        traverse_util.unflatten_dict(jax.tree.map(jnp.asarray, got))
    )
  if problems:
    more = len(problems) - _SHOWN
    raise ValueError(
        f'`variables` must be those of {name}: {"; ".join(problems[:_SHOWN])}'
        + (f'; and {more} more.' if more > 0 else '.')
    )
  return trees


# A class for each layer and model, under the name of its nnx class.
globals().update({
    nnx_class.__name__: to_linen_class(nnx_class)
    for nnx_class in (
        *layers.LAYERS.values(), layers.Bidirectional, layers.Reverse,
        models.LanguageModel, models.SequenceClassifier,
        models.SequenceRegressor,
    )
})
