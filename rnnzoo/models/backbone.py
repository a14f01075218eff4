"""A stack of blocks, whose parameters and carries are stacked over depth.

The layers of a pattern such as `rg_lru,rg_lru,attention` repeat. All blocks at
one position of the pattern are one module whose parameters have a leading axis
`layers`, and so do their carries (batch second). Whether depth is then a loop
in the compiled program or unrolled changes neither.
"""

from collections.abc import Callable, Mapping
import dataclasses
import functools
import inspect
from typing import Any

from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np
from rnnzoo import errors
from rnnzoo import fields
from rnnzoo import layers as zoo
from rnnzoo import ops
from rnnzoo.layers import base
from rnnzoo.models import blocks
from rnnzoo.models import config as config_lib
from rnnzoo.models.config import ModelConfig

# Layers by name: classes, or functions with the same arguments.
Layers = Mapping[str, Callable[..., Any]]

_REMAT_POLICIES = dict(
    full=None,
    dots=jax.checkpoint_policies.checkpoint_dots,
)


class Backbone(nnx.Module):
  """`config.num_layers` residual blocks, from `[B, T, D]` to `[B, T, D]`."""

  def __init__(self, config: ModelConfig, layers=None, *, rngs: nnx.Rngs):
    """Creates the blocks.

    Args:
      config: What to build.
      layers: Layers by name, beside those of the zoo.
      rngs: Source of the initial parameters.

    Raises:
      UserValueError: If a layer or one of its options does not exist, or an
        option or a dtype cannot be used.
    """
    config.check_dtypes()
    known = dict(zoo.LAYERS, **(layers or {}))
    period = min(config.layer.count(',') + 1, config.num_layers)
    self.config = config
    self.stacks = nnx.List([
        _make_stack(
            config, range(position, config.num_layers, period), known, rngs
        )
        for position in range(period)
    ])

  def initialize_carry(self, batch_size: int, dtype=None) -> tuple:
    """Returns a stacked carry `[layers, B, ...]` per pattern position."""

    def one(stack):
      graphdef, state = nnx.split(stack)
      make = lambda s: nnx.merge(graphdef, s).initialize_carry(
          batch_size, dtype
      )
      return jax.vmap(make)(state)

    return tuple(one(stack) for stack in self.stacks)

  def __call__(
      self, x, carry=None, *, reset=None, mask=None, train=False, key=None
  ):
    """Maps `[B, T, D]` to the next carry and `[B, T, D]`."""
    x, carry, reset, mask = self._checked(x, carry, reset, mask, 'BTD')

    def run(block, carry, x, v_first, depth):
      layer_key = None if key is None else jax.random.fold_in(key, depth)
      return block(
          x, carry, v_first, reset=reset, mask=mask, train=train, key=layer_key
      )

    return self._run(run, carry, x, train)

  def step(self, carry, x, *, reset=None, mask=None):
    """Maps `[B, D]` to the next carry and `[B, D]`."""
    x, carry, reset, mask = self._checked(x, carry, reset, mask, 'BD')
    run = lambda block, carry, x, v_first, _: block.step(
        carry, x, v_first, reset=reset, mask=mask
    )
    return self._run(run, carry, x)

  def _checked(self, x, carry, reset, mask, axes):
    """Returns the arguments of a call as arrays, or raises `ValueError`.

    Of a carry only its depth is checked: the rest each block sees for itself.
    """
    x = base.as_array('x', x, required=True)
    reset, mask = base.as_array('reset', reset), base.as_array('mask', mask)
    features = self.config.features
    shape = x.shape
    if len(shape) != len(axes) or shape[-1] != features:
      raise ValueError(
          f'`x` must be [{", ".join(axes)}] with D = {features}, got {shape}.'
      )
    base.check_flags(shape[:-1], reset=reset, mask=mask)
    if carry is None:
      return x, self.initialize_carry(x.shape[0]), reset, mask
    period, depth = len(self.stacks), self.config.num_layers
    counts = [len(range(i, depth, period)) for i in range(period)]
    same = isinstance(carry, tuple) and len(carry) == period and all(
        isinstance(one, blocks.BlockCarry)
        and all(np.shape(u)[:1] == (count,) for u in jax.tree.leaves(one))
        for one, count in zip(carry, counts)
    )
    if not same:
      raise ValueError(
          '`carry` must come from a model with the same number of layers: a '
          f'tuple of {period} BlockCarry with leading axes {counts}, got '
          f'{base.sketch(carry)}; '
          'initialize_carry(batch_size) of the same model makes one.'
      )
    return x, carry, reset, mask

  def _run(self, run, carry, x, train=False):
    """Runs the blocks in order of depth, in a loop or unrolled."""
    split = [nnx.split(s, nnx.BatchStat, ...) for s in self.stacks]
    graphdefs = [s[0] for s in split]
    stats, states = [s[1] for s in split], [s[2] for s in split]
    period, depth = len(split), self.config.num_layers

    def one_block(position, x, v_first, index, stats, state, carry):
      block = nnx.merge(graphdefs[position], stats, state)
      x = ops.spread_rows(x)
      carry, x, v_first = run(block, carry, x, v_first, index)
      return x, v_first, carry, nnx.state(block, nnx.BatchStat)

    if self.config.remat != 'none':
      one_block = jax.checkpoint(
          one_block,
          static_argnums=0,
          policy=_REMAT_POLICIES[self.config.remat],
      )

    def one_period(x, v_first, start, parts):
      outputs = []
      for position, part in enumerate(parts):
        x, v_first, *out = one_block(
            position, x, v_first, start + position, *part
        )
        outputs.append(tuple(out))
      return x, v_first, tuple(outputs)

    parts = tuple(zip(stats, states, carry))
    rounds, rest = divmod(depth, period)
    looped = range(0)
    if self.config.scan_layers:
      # Until the first of them has run there is nothing to tell the others.
      tells = any(hasattr(stack.layer, 'first_value') for stack in self.stacks)
      looped = range(1 if tells else 0, rounds)
    done = []

    def one_round(i, x, v_first):
      here = parts if i < rounds else parts[:rest]
      x, v_first, outputs = one_period(
          x, v_first, i * period, jax.tree.map(lambda u: u[i], here)
      )
      done.append(jax.tree.map(lambda u: u[None], outputs))
      return x, v_first

    v_first = None
    for i in range(looped.start):
      x, v_first = one_round(i, x, v_first)
    if looped:

      def body(x, inputs):
        x, _, outputs = one_period(x, v_first, *inputs)
        return x, outputs

      here = jax.tree.map(lambda u: u[looped.start : looped.stop], parts)
      x, outputs = jax.lax.scan(body, x, (jnp.asarray(looped) * period, here))
      done.append(outputs)
    for i in range(looped.stop, rounds + bool(rest)):
      x, v_first = one_round(i, x, v_first)

    new_carry = []
    for position, stack in enumerate(self.stacks):
      outs = [outputs[position] for outputs in done if position < len(outputs)]
      carry, new_stats = jax.tree.map(lambda *u: jnp.concatenate(u), *outs)
      if train:  # Otherwise a jitted closure over the model may be read only.
        nnx.update(stack, new_stats)
      new_carry.append(carry)
    return tuple(new_carry), x


def make_layer(config: ModelConfig, depth: int, known, rngs: nnx.Rngs):
  """Builds the layer of the block at `depth` with its options out of `config`.

  Raises:
    UserValueError: If the layer or an option does not exist, or the layer
      cannot be built with these options.
  """
  name = config.layer_names[depth]
  options = _layer_options(config, depth, known)
  build = functools.partial(_build, known[name], name, config, options, rngs)
  layer = build()
  if not config.bidirectional:
    return layer
  if hasattr(layer, 'first_value'):
    raise errors.UserValueError(
        f'model.bidirectional does not go with layer {name}, which looks at '
        'the values of the first of its kind.'
    )
  return zoo.Bidirectional(layer, build())


def _build(make, name, config, options, rngs):
  """Calls the class of a layer; raises `UserValueError` if that fails."""
  try:
    layer = make(
        config.features,
        param_dtype=jnp.dtype(config.param_dtype),
        dtype=jnp.dtype(config.dtype),
        rngs=rngs,
        **options,
    )
  except errors.UserError:
    raise
  except (
      ArithmeticError, LookupError, MemoryError, TypeError, ValueError
  ) as error:
    if name not in zoo.LAYERS:  # Its author wants to know where.
      raise
    raise errors.UserValueError(
        f'{_cannot_build(name, config)}: {type(error).__name__}: {error}'
    ) from error
  if not all(u.size for u in jax.tree.leaves(nnx.state(layer, nnx.Param))):
    raise errors.UserValueError(
        f'{_cannot_build(name, config)}: a parameter would have no elements.'
    )
  return layer


def _cannot_build(name, config):
  return (
      f'Layer {name} cannot be built of model.features {config.features} and '
      f'model.layer_options {fields.shown(dict(config.layer_options))}'
  )


def _layer_options(config, depth, known):
  """Returns the options of the layer at `depth`; raises `UserValueError`."""
  name = config.layer_names[depth]
  if name not in known:
    raise errors.UserValueError(
        f'There is no layer {name!r}.{errors.suggest(name, known)} The layers '
        f'are: {", ".join(sorted(known))}.'
    )
  make, options = known[name], dict(config.layer_options)
  for key in options.keys() & known:
    fields.check(f'model.layer_options.{key}', options[key], fields.Field(dict))
  own = options.get(name, {})
  options = {k: v for k, v in options.items() if k not in known} | dict(own)
  # Flax hides the signature of a module class behind its metaclass.
  signature = inspect.signature(
      make.__init__ if inspect.isclass(make) else make
  )
  if 'input_shape' in signature.parameters:
    raise errors.UserValueError(
        f'Layer {name} reads images [H, W, C]; the blocks of a model are made '
        'of vectors. Use it by itself.'
    )
  allowed = set(signature.parameters) - {
      'self', 'in_features', 'rngs', 'dtype', 'param_dtype',
  }
  for option, value in options.items():
    if option not in allowed:
      raise errors.UserValueError(
          f'Layer {name} has no option {option!r} (config field '
          f'model.layer_options).{errors.suggest(option, allowed)} Its options '
          f'are: {", ".join(sorted(allowed))}. If these options are of another '
          "layer, clear them with --config.model.layer_options='{}'."
      )
    field = fields.of_annotation(signature.parameters[option].annotation)
    if field and field.kind is int:  # They count something, all of them.
      field = dataclasses.replace(field, low=0)
    if option == 'conv_kernel':
      field = config_lib.FIELDS['conv_kernel']
    if field:
      fields.check(f'model.layer_options.{option}', value, field)
  # What some start from depends on which of their kind they are.
  index = config.layer_names[:depth].count(name)
  count = config.layer_names.count(name)
  place = dict(
      layer_index=index, num_layers=count,
      relative_depth=index / max(count - 1, 1),
  )
  return {k: v for k, v in place.items() if k in allowed} | options


def _make_stack(config, depths, known, rngs):
  """Makes the blocks at `depths` one module; see `_stacked`."""

  def block(depth, rngs):
    layer = make_layer(config, depth, known, rngs)
    return blocks.Block(config.at_depth(depth), layer, rngs=rngs)

  options = [_layer_options(config, depth, known) for depth in depths]
  if not config.scan_layers or options.count(options[0]) < len(options):
    made = [nnx.split(block(depth, rngs)) for depth in depths]
    states = jax.tree.map(lambda *u: jnp.stack(u), *(s for _, s in made))
    return _stacked(made[0][0], states)

  # All of them differ in nothing but their random numbers, which are drawn in
  # the same order: a program that makes many is as quick to compile as for one.
  streams, drawn = nnx.split(rngs)
  graphdef = None

  def one(drawn, _):
    nonlocal graphdef
    rngs = nnx.merge(streams, drawn)
    graphdef, state = nnx.split(block(depths[0], rngs))
    return nnx.state(rngs), state

  drawn, states = jax.lax.scan(one, drawn, length=len(depths))
  nnx.update(rngs, drawn)
  return _stacked(graphdef, states)


def _stacked(graphdef, states):
  """Makes one module of equal ones; its variables get an axis `layers`."""
  stacked = nnx.merge(graphdef, states)
  for _, variable in nnx.iter_graph(stacked):
    if isinstance(variable, nnx.Variable) and variable.has_metadata('axes'):
      variable.set_metadata(axes=('layers', *variable.get_metadata('axes')))
  return stacked
