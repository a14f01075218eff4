"""Which device holds what: the mesh axes, and functions run once per device.

XLA's partitioner does not see that a loop over a sharded batch is independent
per row, so it all-gathers the batch. It cannot partition a Pallas kernel at
all. Functions that need either run inside `jax.shard_map` instead. They use the
mesh that the caller set with `jax.set_mesh`. Without one, under `jit`, they use
the mesh that their input lives on. Where there is no mesh, or none of its axes
fits, nothing is wrapped.

A layout is a string with one letter for each axis of an operand: `b` batch, `t`
time, `d` features, and any other letter (`k` for the taps of a kernel) for an
axis that is never split.

Where the mesh splits time, each device holds one segment of it. A segment maps
the state that enters it to the state that leaves it. The devices exchange these
maps, a few numbers per row and channel, and never a sequence (`Segments`).
"""

from collections.abc import Callable, Sequence
import math
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P
import numpy as np

_Result = TypeVar('_Result')

# The mesh axes that split each kind of array axis, in the order of use.
BATCH_AXES = ('data', 'fsdp')
FEATURE_AXES = ('model',)
TIME_AXES = ('sequence',)
AXES = BATCH_AXES + FEATURE_AXES + TIME_AXES

# Up to this number of segments, one all-gather sends the maps of all segments
# to every device. More segments take 1 + log2(n) exchanges of one map each.
GATHER_UP_TO = 16


def run_per_device(
    fn: Callable[..., _Result],
    x: jax.Array,
    operands: Sequence[jax.Array | None],
    layouts: Sequence[str],
    out_layouts: Sequence[str],
) -> _Result:
  """Runs `fn(*operands)` on the parts of the operands that each device holds.

  Inside a user's `jax.shard_map` over some of the mesh axes, XLA's partitioner
  does the work instead, because JAX cannot lower the gradient of a nested
  `shard_map`.

  Args:
    fn: A function that is independent per row and channel. It has a keyword
      `segments`: the `Segments` that time is split into, or `None`. A result
      whose layout has no `t` must be the same on all of them.
    x: The operand that decides how to split, `[B, T, D]`.
    operands: All operands, with `None` for an optional one that is missing. An
      axis of size 1 is not split.
    layouts: One layout for each operand.
    out_layouts: One layout for each result of `fn`.

  Returns:
    What `fn` returns.
  """
  operands = align(x, operands, layouts)
  if is_partly_manual():
    return fn(*operands, segments=None)
  return run_aligned(fn, x, operands, layouts, out_layouts)


def align(
    x: jax.Array,
    operands: Sequence[jax.Array | None],
    layouts: Sequence[str],
) -> tuple[jax.Array | None, ...]:
  """Returns the operands in the form that `run_aligned` needs.

  On Explicit mesh axes, the operands are sharded like `x`. On Manual axes,
  inside a user's `jax.shard_map`, each is marked as varying over every axis
  that any of them varies over.

  Args:
    x: The operand that decides how to split, `[B, T, D]`.
    operands: All operands, with `None` for an optional one that is missing.
    layouts: One layout for each operand.
  """
  operands = same_varying(*operands)
  axes = _axes_for(x)
  if axes is None or not axes.explicit:
    return operands

  def reshard(u, layout):
    # Only Explicit axes may be named here; `shard_map` splits the others.
    spec = axes.only_explicit().spec(layout, u.shape)
    return jax.sharding.reshard(u, jax.NamedSharding(axes.mesh, spec))

  return tuple(
      None if u is None else reshard(u, layout)
      for u, layout in zip(operands, layouts)
  )


def run_aligned(
    fn: Callable[..., _Result],
    x: jax.Array,
    operands: Sequence[jax.Array | None],
    layouts: Sequence[str],
    out_layouts: Sequence[str],
) -> _Result:
  """`run_per_device` for operands that `align` has returned."""
  axes = _axes_for(x)
  if axes is None:
    return fn(*operands, segments=None)
  segments = None
  if axes.time:
    sizes = tuple(axes.mesh.shape[n] for n in axes.time)
    segments = Segments(axes.time, math.prod(sizes))
  return jax.shard_map(
      lambda *local: fn(*same_varying(*local), segments=segments),
      mesh=axes.mesh,
      in_specs=tuple(
          P() if u is None else axes.spec(layout, u.shape)
          for u, layout in zip(operands, layouts)
      ),
      out_specs=tuple(axes.spec(layout) for layout in out_layouts),
      axis_names=axes.names,
  )(*operands)


def all_auto() -> jax.sharding.AbstractMesh | None:
  """Returns the mesh set by `jax.set_mesh` if all of its axes are Auto."""
  mesh = jax.sharding.get_abstract_mesh()
  return mesh if set(mesh.axis_types) == {AxisType.Auto} else None


def auto_axes(mesh: jax.sharding.AbstractMesh) -> set[str]:
  """Returns the names of the Auto axes of a mesh."""
  kinds = zip(mesh.axis_names, mesh.axis_types)
  return {name for name, kind in kinds if kind == AxisType.Auto}


def dividing(
    mesh: jax.sharding.AbstractMesh, names: Sequence[str], length: int
) -> tuple[str, ...]:
  """Returns the mesh axes that can split an array axis of this length.

  Args:
    mesh: The mesh.
    names: Names of mesh axes in the order of use. Those that the mesh lacks,
      that are not Auto, or that have size 1 are left out.
    length: The size of the array axis.

  Returns:
    The longest prefix of `names` whose sizes together divide `length`.
  """
  if not length:
    return ()
  auto = auto_axes(mesh)
  chosen = tuple(n for n in names if n in auto and mesh.shape[n] > 1)
  while chosen and length % math.prod(mesh.shape[n] for n in chosen):
    chosen = chosen[:-1]
  return chosen


def same_varying(*operands: jax.Array | None) -> tuple[jax.Array | None, ...]:
  """Marks all operands as varying over each manual axis that any varies over.

  A loop carry must keep its type, and the state of a scan varies wherever any
  operand does. Outside `jax.shard_map` this changes nothing.
  """
  varying = [
      frozenset() if u is None else jax.typeof(u).mat.varying for u in operands
  ]
  union = frozenset().union(*varying)
  return tuple(
      None if u is None else varying_over(u, sorted(union)) for u in operands
  )


def varying_over(u: jax.Array, names: Sequence[str]) -> jax.Array:
  """Marks `u` as different on the devices along these manual mesh axes."""
  more = tuple(n for n in names if n not in jax.typeof(u).mat.varying)
  return jax.lax.pcast(u, more, to='varying') if more else u


def is_explicit(x: jax.Array) -> bool:
  """Whether `x` `[B, T, D]` lives on a mesh with Explicit axes."""
  axes = _axes_for(x)
  return axes is not None and bool(axes.explicit)


def splits_time(x: jax.Array) -> bool:
  """Whether `run_per_device` splits the time axis of `x` `[B, T, D]`."""
  axes = _axes_for(x)
  return axes is not None and bool(axes.time)


def spans_devices(x: jax.Array) -> bool:
  """Whether several devices may hold parts of `x`."""
  mesh = _mesh_of(x)
  return not mesh.empty and mesh.size > 1


def is_partly_manual() -> bool:
  """Whether this is inside a `jax.shard_map` over some of the mesh axes."""
  kinds = set(jax.sharding.get_abstract_mesh().axis_types)
  return AxisType.Manual in kinds and len(kinds) > 1


class _Axes(NamedTuple):
  """The mesh axes that split the batch, the time and the features of one op."""

  mesh: jax.sharding.AbstractMesh
  batch: tuple[str, ...]
  time: tuple[str, ...]
  features: tuple[str, ...]
  names: frozenset[str]  # All axes of the mesh that are not Manual.
  explicit: frozenset[str]  # Those of `names` that are Explicit.

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


def _mesh_of(x):
  """The mesh set by `jax.set_mesh`, or else the one that `x` lives on."""
  mesh = jax.sharding.get_abstract_mesh()
  return jax.typeof(x).sharding.mesh if mesh.empty else mesh


def _axes_for(x):
  """Returns the `_Axes` for `x` `[B, T, D]`, or `None` for no wrapping."""
  mesh = _mesh_of(x)
  types = dict(zip(mesh.axis_names, mesh.axis_types))
  names = frozenset(n for n, kind in types.items() if kind != AxisType.Manual)
  explicit = frozenset(n for n in names if types[n] == AxisType.Explicit)
  batch = time = features = ()
  if explicit:
    spec = tuple(jax.typeof(x).sharding.spec) + (None,) * 3
    batch, time, features = (
        (n,) if isinstance(n, str) else n or () for n in spec[:3]
    )
  batch = batch or dividing(mesh, BATCH_AXES, x.shape[0])
  features = features or dividing(mesh, FEATURE_AXES, x.shape[2])
  time = time or dividing(mesh, TIME_AXES, x.shape[1])
  if not explicit and not batch and not time and not features:
    return None
  return _Axes(mesh, batch, time, features, names, explicit)


class Segments(NamedTuple):
  """The segments of time that the devices along some mesh axes hold.

  Its methods are called inside the `jax.shard_map` over those axes. Time runs
  from the first device to the last, or from the last to the first if `reverse`.

  Attributes:
    axes: Names of the mesh axes that split time.
    size: The number of segments.
  """

  axes: tuple[str, ...]
  size: int

  def combine_earlier(
      self,
      combine: Callable[[Any, Any], Any],
      own: Any,
      first: Any,
      reverse: bool = False,
  ) -> Any:
    """Combines all segments before the one of this device.

    Args:
      combine: `combine(earlier, later)` merges two adjacent segments, each
        described by a tree of arrays `[B, ...]`. It must be associative.
      own: The tree that describes the segment of this device.
      first: The tree of a segment in front of all others. It must ignore what
        comes before it.
      reverse: Whether time runs from the last device to the first.

    Returns:
      The tree of all earlier segments together, `first` included.
    """
    here = self.position(reverse)
    where = lambda flag, *trees: jax.tree.map(
        lambda u, v: jnp.where(flag, u, v), *trees
    )
    if self.size <= GATHER_UP_TO:
      all_segments = self.gather(own)
      order = range(self.size)
      entering = before = first
      for n, i in enumerate(reversed(order) if reverse else order):
        entering = where(here == n, before, entering)
        before = combine(before, jax.tree.map(lambda u: u[i], all_segments))
      return entering
    # Each device starts from the segment of its neighbour, and the first one
    # from `first`. The distance doubles until every range reaches `first`.
    before = where(here < 1, first, self._earlier(own, 1, reverse))
    distance = 1
    while distance < self.size:
      earlier = self._earlier(before, distance, reverse)
      before = where(here < distance, before, combine(earlier, before))
      distance *= 2
    return before

  def from_neighbor(self, edge, first, reverse=False):
    """Returns `edge` of the segment before this one, or `first` if none is."""
    earlier = self._earlier(edge, 1, reverse)
    return jnp.where(self.position(reverse) == 0, first, earlier)

  def from_last(self, value, reverse=False):
    """Returns, on every device, `value` as the last segment has it."""
    here = self.position(reverse) == self.size - 1
    return jax.lax.psum(jnp.where(here, value, 0), self.axes)

  def gather(self, tree):
    """Returns `[n, B, ...]` for each array `[B, ...]`, in the order of time."""
    return _in_one_array(lambda u: jax.lax.all_gather(u, self.axes), tree)

  def position(self, reverse=False):
    """Returns the number of segments before the one of this device."""
    index = jax.lax.axis_index(self.axes)
    return self.size - 1 - index if reverse else index

  def _earlier(self, tree, distance, reverse):
    """The tree of the device this many segments earlier; zeros if none is."""
    pairs = [(i, i + distance) for i in range(self.size - distance)]
    if reverse:
      pairs = [(j, i) for i, j in pairs]
    send = lambda u: jax.lax.ppermute(u, self.axes, pairs)
    return _in_one_array(send, tree)


def _in_one_array(send, tree):
  """Sends all leaves `[B, ...]` of a tree as one array, in one exchange."""
  leaves, structure = jax.tree.flatten(tree)
  dtype = jnp.result_type(*leaves)
  flat = [
      u.astype(dtype).reshape(u.shape[0], math.prod(u.shape[1:]))
      for u in leaves
  ]
  ends = np.cumsum([u.shape[1] for u in flat])[:-1]
  sent = send(jnp.concatenate(flat, axis=1))
  parts = jnp.split(sent, ends, axis=-1)
  return structure.unflatten(
      u.astype(leaf.dtype).reshape(*sent.shape[:-1], *leaf.shape[1:])
      for u, leaf in zip(parts, leaves)
  )
