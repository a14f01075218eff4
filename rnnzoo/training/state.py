"""A model as functions of dictionaries: what `jax.jit`, optax and Orbax like.

`nnx` modules are for reading and for building; a training step on dictionaries
dispatches ten times faster. `Functional` is the bridge, crossed only while
tracing.

A training state holds its parameters, their average and their gradients in
float32 at least. A model with `param_dtype=bfloat16` gets them rounded, by
`Functional.merge`, each time it is called: an update of less than 1/256 of a
parameter would else be lost, as nearly all are.
"""

from collections.abc import Callable, Mapping
from typing import Any, Generic, TypeVar

from flax import nnx
from flax import traverse_util
import jax
import jax.numpy as jnp

Tree = Mapping[str, Any]  # Nested dictionaries with string keys.
Module = TypeVar('Module', bound=nnx.Module)


class Functional(Generic[Module]):
  """The pure form of a module: shapes of its variables, and the way back.

  Attributes:
    params: Abstract parameters (`jax.ShapeDtypeStruct`), nested dictionaries.
    batch_stats: Likewise, running statistics of batch norms.
    axes: Logical axis names of every parameter, a tuple per leaf.
    recurrent: Whether a parameter sets the recurrence, a bool per leaf.
  """

  def __init__(self, build: Callable[[nnx.Rngs], Module]):
    """Examines the module that `build` makes, without computing anything.

    Args:
      build: Maps `nnx.Rngs` to a module.
    """
    self._build = build
    abstract = nnx.eval_shape(lambda: build(nnx.Rngs(0)))
    self._graphdef, params, stats, rest = nnx.split(
        abstract, nnx.Param, nnx.BatchStat, ...
    )
    self._params, self._stats = _flat(params), _flat(stats)
    if jax.tree.leaves(rest):
      # Constants such as an LMU's matrices: rebuilt, never saved.
      constants = lambda: nnx.split(
          build(nnx.Rngs(0)), nnx.Param, nnx.BatchStat, ...
      )[3]
      # Compiled ahead of time: in the midst of a trace, too, they are arrays.
      rest = jax.jit(constants).lower().compile()()
    self._rest = rest
    self.params, self.batch_stats = _nested(self._params), _nested(self._stats)
    self.axes = _nested(self._params, lambda v: _metadata(v, 'axes', ()))
    self.recurrent = _nested(
        self._params, lambda v: bool(_metadata(v, 'recurrent', False))
    )

  def initialize(self, seed) -> tuple[Tree, Tree]:
    """Returns new parameters and batch statistics; may be jitted."""
    return self.variables(self._build(nnx.Rngs(seed)))

  def merge(
      self, params: Tree, batch_stats: Tree, *, rounded: bool = True
  ) -> Module:
    """Returns a module that holds these values.

    Args:
      params: Parameters.
      batch_stats: Batch statistics.
      rounded: Whether they get the dtypes that the module has by itself.
    """
    fill = lambda abstract, tree: nnx.from_flat_state({
        path: variable.replace(
            _rounded(_at(tree, path), variable.get_value().dtype)
            if rounded else _at(tree, path)
        )
        for path, variable in abstract.items()
    })
    return nnx.merge(
        self._graphdef,
        fill(self._params, params),
        fill(self._stats, batch_stats),
        self._rest,
    )

  def variables(self, module: nnx.Module) -> tuple[Tree, Tree]:
    """Returns the parameters and batch statistics that a module holds."""
    _, params, stats, _ = nnx.split(module, nnx.Param, nnx.BatchStat, ...)
    return _nested(_flat(params)), _nested(_flat(stats))


def count_parameters(params: Tree) -> int:
  """Returns the number of scalars in `params`."""
  return sum(leaf.size for leaf in jax.tree.leaves(params))


def by_path(params: Tree) -> dict[tuple[str, ...], Any]:
  """Returns the leaves of `params`; Flax's `unflatten_dict` is the inverse."""
  return traverse_util.flatten_dict(params)


def at_least_float32(tree):
  """Returns `tree` with floating-point arrays of less widened to float32."""
  return jax.tree.map(
      lambda u: u.astype(jnp.promote_types(u.dtype, jnp.float32))
      if jnp.issubdtype(u.dtype, jnp.floating) else u,
      tree,
  )


def _flat(state):
  return dict(nnx.to_flat_state(state))


def _metadata(variable, name, default):
  if variable.has_metadata(name):
    return variable.get_metadata(name)
  return default


def _nested(flat, value=lambda variable: variable.get_value()):
  tree = {}
  for path, variable in flat.items():
    *parents, last = (str(key) for key in path)
    node = tree
    for key in parents:
      node = node.setdefault(key, {})
    node[last] = value(variable)
  return tree


def _rounded(leaf, dtype):
  # What is abstract has no `astype`, and in all of our uses this dtype.
  return leaf if leaf.dtype == dtype else leaf.astype(dtype)


def _at(tree, path):
  for key in path:
    tree = tree[str(key)]
  return tree
