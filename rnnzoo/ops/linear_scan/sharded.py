"""Ops on a mesh: every device works on the rows and channels it holds.

XLA's partitioner does not see that a loop over a sharded batch is independent
per row, and all-gathers it; a Pallas kernel it cannot partition at all. So each
scan runs inside `jax.shard_map`. The mesh is the one the caller set with
`jax.set_mesh`, or else, under `jit`, the one that `x` is known to live on;
where there is none, or none of its axes fits, nothing is wrapped.

A layout names the axes of an operand, a letter each: `b` batch, `d` features,
and any other letter (`t` time, `k` taps) for an axis that is never split.
"""

from collections.abc import Callable, Sequence
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

# Mesh axes by the array axis they split, in the order they are taken.
BATCH_AXES = ('data', 'fsdp')
FEATURE_AXES = ('model',)
TIME_AXES = ('sequence',)


def aligned(
    x: jax.Array,
    operands: Sequence[jax.Array | None],
    layouts: Sequence[str],
) -> tuple[jax.Array | None, ...]:
  """Returns the operands laid out as `over_mesh` wants them.

  Explicit mesh axes: sharded like `x`. Manual ones, inside a `jax.shard_map` of
  the user's: marked as varying wherever any of them varies.

  Args:
    x: The operand that decides, `[B, T, D]`.
    operands: All operands, with `None` where an optional one is missing.
    layouts: One for each of them.

  Raises:
    ValueError: If `x` is sharded over time by an Explicit mesh axis.
  """
  operands = same_varying(*operands)
  axes = _axes(x)
  if axes is None or not axes.explicit:
    return operands

  def reshard(u, layout):
    # Only Explicit axes may be named here; shard_map splits along the others.
    spec = axes.only_explicit().spec(layout, u.shape)
    return jax.sharding.reshard(u, jax.NamedSharding(axes.mesh, spec))

  return tuple(
      None if u is None else reshard(u, layout)
      for u, layout in zip(operands, layouts)
  )


def over_mesh(
    fn: Callable,
    x: jax.Array,
    operands: Sequence[jax.Array | None],
    layouts: Sequence[str],
    out_layouts: Sequence[str],
    *,
    time: bool = True,
) -> tuple[jax.Array, ...]:
  """Runs `fn(*operands)` on the parts of its operands that each device holds.

  Args:
    fn: A function independent per row and channel, with a keyword `shards`:
      the `Shards` that time is split into, or `None`.
    x: The operand that decides how to split, `[B, T, D]`.
    operands: As in `aligned`. Where one has a size of 1 it is not split.
    layouts: One for each of them.
    out_layouts: One for each result of `fn`.
    time: Whether time may be split.

  Returns:
    What `fn` returns.
  """
  axes = _axes(x, time)
  if axes is None:
    return fn(*operands, shards=None)
  shards = None
  if axes.time:
    sizes = tuple(axes.mesh.shape[n] for n in axes.time)
    shards = Shards(axes.time, math.prod(sizes))
  return jax.shard_map(
      lambda *local: fn(*same_varying(*local), shards=shards),
      mesh=axes.mesh,
      in_specs=tuple(
          P() if u is None else axes.spec(layout, u.shape)
          for u, layout in zip(operands, layouts)
      ),
      out_specs=tuple(axes.spec(layout) for layout in out_layouts),
      axis_names=axes.names,
  )(*operands)


def is_explicit(x: jax.Array) -> bool:
  """Whether `x` `[B, T, D]` lives on a mesh with Explicit axes."""
  axes = _axes(x)
  return axes is not None and bool(axes.explicit)


def is_partly_manual() -> bool:
  """Whether this is inside a `jax.shard_map` over some of the mesh axes."""
  kinds = set(jax.sharding.get_abstract_mesh().axis_types)
  return AxisType.Manual in kinds and len(kinds) > 1


class _Axes(NamedTuple):
  """Which mesh axes split the batch and the features of one op."""

  mesh: jax.sharding.AbstractMesh
  batch: tuple[str, ...]
  time: tuple[str, ...]
  features: tuple[str, ...]
  names: frozenset[str]  # Every axis of the mesh that is not Manual already.
  explicit: frozenset[str]  # Those of them that are Explicit.

  def spec(self, layout: str, shape: tuple[int, ...] | None = None) -> P:
    split = dict(b=self.batch, t=self.time, d=self.features)
    return P(*(
        None if shape and shape[i] == 1 else split.get(letter) or None
        for i, letter in enumerate(layout)
    ))

  def only_explicit(self) -> '_Axes':
    keep = lambda names: tuple(n for n in names if n in self.explicit)
    return self._replace(
        batch=keep(self.batch),
        time=keep(self.time),
        features=keep(self.features),
    )


def _axes(x, split_time=True):
  """Returns the `_Axes` for `x` `[B, T, D]`, or `None` for no wrapping."""
  mesh = jax.sharding.get_abstract_mesh()
  mesh = jax.typeof(x).sharding.mesh if mesh.empty else mesh
  types = dict(zip(mesh.axis_names, mesh.axis_types))
  names = frozenset(n for n, kind in types.items() if kind != AxisType.Manual)
  explicit = frozenset(n for n in names if types[n] == AxisType.Explicit)
  batch = time = features = ()
  if explicit:
    spec = tuple(jax.typeof(x).sharding.spec) + (None,) * 3
    batch, time, features = (
        (n,) if isinstance(n, str) else n or () for n in spec[:3]
    )
  if time and not split_time:
    raise ValueError(
        f'`x` {jax.typeof(x)} is sharded over time by the Explicit mesh axes '
        f'{time}; the op needs whole sequences: jax.sharding.reshard `x`, or '
        'make the axes Auto.'
    )
  auto = names - explicit
  batch = batch or _dividing(BATCH_AXES, auto, mesh.shape, x.shape[0])
  features = features or _dividing(FEATURE_AXES, auto, mesh.shape, x.shape[2])
  if split_time:
    time = time or _dividing(TIME_AXES, auto, mesh.shape, x.shape[1])
  if not explicit and not batch and not time and not features:
    return None
  return _Axes(mesh, batch, time, features, names, explicit)


class Shards(NamedTuple):
  """The stretches of time that the devices along some mesh axes hold.

  A stretch is an affine map of the state that enters it; all that devices tell
  each other are those maps, `[B, D]` numbers each.
  """

  axes: tuple[str, ...]
  size: int

  def enter(self, product, last, reset, h0, reverse):
    """Returns the state that enters this stretch.

    Args:
      product: Of all decays of this stretch `[B, D]`, 0 if there is a reset.
      last: What its scan comes to from zero `[B, D]`.
      reset: Booleans `[B, T]` or None.
      h0: The state that enters the first stretch.
      reverse: Whether that is the one of the last device.
    """
    forget = jnp.zeros(last.shape[:1], bool)
    if reset is not None:
      forget = reset.any(axis=1)
    (forget,) = same_varying(forget, last)[:1]
    stretches = jax.lax.all_gather((forget[:, None], product, last), self.axes)
    index = jax.lax.axis_index(self.axes)
    order = range(self.size)
    entering = state = h0
    for i in reversed(order) if reverse else order:
      entering = jnp.where(index == i, state, entering)
      forget, product, last = jax.tree.map(lambda u: u[i], stretches)
      # By selection: 0 * NaN would cross into another sequence.
      state = jnp.where(forget, 0, product * state) + last
    return entering

  def leave(self, last, reverse):
    """Returns the state that leaves the last stretch, on every device."""
    final = 0 if reverse else self.size - 1
    here = jax.lax.axis_index(self.axes) == final
    return jax.lax.psum(jnp.where(here, last, 0), self.axes)

  def before(self, h, h0, reverse):
    """Returns the state before this stretch, from its states `h` `[B, T, D]`.

    That of the neighbour, or `h0` before the first one.
    """
    edge = h[:, 0 if reverse else -1].astype(h0.dtype)
    step = -1 if reverse else 1
    pairs = [(i, i + step) for i in range(self.size)]
    pairs = [p for p in pairs if 0 <= p[1] < self.size]
    neighbour = jax.lax.ppermute(edge, self.axes, pairs)
    first = self.size - 1 if reverse else 0
    here = jax.lax.axis_index(self.axes) == first
    return jnp.where(here, h0, neighbour)


def same_varying(*operands):
  """Marks all operands as varying over the manual mesh axes any of them has.

  Loop carries must not change their type on the way, and the state of a scan
  varies wherever any operand does. Outside `jax.shard_map` this is free.
  """
  varying = [
      frozenset() if u is None else jax.typeof(u).mat.varying for u in operands
  ]
  union = frozenset().union(*varying)
  return tuple(
      jax.lax.pcast(u, tuple(union - v), to='varying')
      if u is not None and union - v
      else u
      for u, v in zip(operands, varying)
  )


def _dividing(names, available, sizes, length):
  """The longest prefix of `names` whose mesh sizes together divide `length`."""
  chosen = tuple(n for n in names if n in available and sizes[n] > 1)
  while chosen and length % math.prod(sizes[n] for n in chosen):
    chosen = chosen[:-1]
  return chosen
