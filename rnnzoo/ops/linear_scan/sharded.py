"""Ops on a mesh: every device works on the rows and channels it holds.

XLA's partitioner does not see that a loop over a sharded batch is independent
per row, and all-gathers it; a Pallas kernel it cannot partition at all. So each
scan runs inside `jax.shard_map`. The mesh is the one the caller set with
`jax.set_mesh`, or else, under `jit`, the one that `x` is known to live on;
where there is none, or none of its axes fits, nothing is wrapped.

A layout names the axes of an operand, a letter each: `b` batch, `t` time, `d`
features, and any other letter (`k` taps) for an axis that is never split.

Where time is split each device has a stretch of it, a map from the state that
enters to the one that leaves. The devices tell each other those maps, a few
numbers per row and channel, and never a sequence (`Shards`).
"""

from collections.abc import Callable, Sequence
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P
import numpy as np

# Mesh axes by the array axis they split, in the order they are taken.
BATCH_AXES = ('data', 'fsdp')
FEATURE_AXES = ('model',)
TIME_AXES = ('sequence',)

# Up to so many stretches of time are told to everybody at once: one exchange of
# n maps. More take 1 + log2(n) exchanges of one map each.
GATHER_UP_TO = 16


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

  Returns:
    A tuple like `operands`.
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
) -> tuple[jax.Array, ...]:
  """Runs `fn(*operands)` on the parts of its operands that each device holds.

  Args:
    fn: A function independent per row and channel, with a keyword `shards`:
      the `Shards` that time is split into, or `None`. It gives the same on all
      of them where the layout of a result has no `t`.
    x: The operand that decides how to split, `[B, T, D]`.
    operands: As in `aligned`. Where one has a size of 1 it is not split.
    layouts: One for each of them.
    out_layouts: One for each result of `fn`.

  Returns:
    What `fn` returns.
  """
  axes = _axes(x)
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


def aligned_over_mesh(fn, x, operands, layouts, out_layouts):
  """Aligns the operands and runs `over_mesh`, where that can be.

  Inside a `jax.shard_map` over some of the mesh axes it is left to XLA's
  partitioner: JAX cannot lower the gradient of a shard_map inside another one.
  """
  operands = aligned(x, operands, layouts)
  if is_partly_manual():
    return fn(*operands, shards=None)
  return over_mesh(fn, x, operands, layouts, out_layouts)


def spread_rows(x: jax.Array) -> jax.Array:
  """Keeps rows spread over `data` and `fsdp`, time over `sequence`, no more.

  Where a weight lies in parts over `fsdp` XLA's partitioner would else spread
  features likewise, and every device would compute all of the rows.

  Args:
    x: `[B, T, D]`, or `[B, D]` of one step.

  Returns:
    `x`; it and its gradient lie so. Sizes that do not divide stay whole.
  """
  mesh = jax.sharding.get_abstract_mesh()
  ours = set(BATCH_AXES + TIME_AXES) & set(mesh.axis_names)
  if set(mesh.axis_types) != {AxisType.Auto} or not ours:
    return x
  split = lambda names, size: _dividing(
      names, mesh.axis_names, mesh.shape, size
  )
  spec = [split(BATCH_AXES, x.shape[0])]
  if x.ndim == 3:
    spec.append(split(TIME_AXES, x.shape[1]))
  return jax.lax.with_sharding_constraint(x, P(*spec))


def whole_rows(table: jax.Array) -> jax.Array:
  """Gathers the features of a table `[V, D]`, of which rows are to be read.

  Rows may go on lying on different devices. XLA's partitioner would else read
  parts of rows, for all of the batch, and then send activations around.
  """
  mesh = jax.sharding.get_abstract_mesh()
  if set(mesh.axis_types) != {AxisType.Auto} or 'fsdp' not in mesh.axis_names:
    return table
  return jax.lax.with_sharding_constraint(table, P(P.UNCONSTRAINED, None))


def over_rows(
    fn: Callable[[Any, Any], Any],
    whole: Any,
    rows: Any,
    *,
    stretches: bool = False,
) -> Any:
  """Runs `fn(whole, rows)` on the rows that each device holds.

  Loops over time that look at weights are not for XLA's partitioner: it gathers
  weights, and adds up what devices know of their gradients, in every step of
  the loop. Here both are done once. Features stay its business.

  Args:
    fn: A function of two trees, independent per row.
    whole: A tree of arrays that every device needs.
    rows: A tree of arrays `[B, ...]`, or `None`.
    stretches: Whether `fn` is independent per token, too: of `rows` `[B, T,
      ...]` it then has the stretch of time that the device holds.

  Returns:
    What `fn` returns, a tree of arrays like `rows`.
  """
  mesh = jax.sharding.get_abstract_mesh()
  if set(mesh.axis_types) != {AxisType.Auto}:
    return fn(whole, rows)
  shape = jax.tree.leaves(rows)[0].shape
  split = lambda names, size: _dividing(
      names, mesh.axis_names, mesh.shape, size
  )
  lies = P(split(BATCH_AXES, shape[0]))
  if stretches:
    lies = P(*lies, split(TIME_AXES, shape[1]))
  # Else time is gathered before the loop, too.
  names = split(BATCH_AXES, shape[0]) + tuple(
      n for n in TIME_AXES if mesh.shape.get(n, 1) > 1
  )
  if not names:
    return fn(whole, rows)

  # Devices add up gradients in float32: in bfloat16 digits are lost, and
  # XLA:CPU of JAX 0.10.2 crashes.
  dtypes = jax.tree.map(lambda u: u.dtype, whole)
  wide = lambda u: (
      u.astype(jnp.promote_types(jnp.float32, u.dtype))
      if jnp.issubdtype(u.dtype, jnp.floating) else u
  )

  def local(whole, rows):
    leaves, structure = jax.tree.flatten((whole, rows))
    whole, rows = structure.unflatten(same_varying(*leaves))
    return fn(jax.tree.map(lambda u, d: u.astype(d), whole, dtypes), rows)

  return jax.shard_map(
      local, mesh=mesh, in_specs=(P(), lies), out_specs=lies,
      axis_names=set(names),
  )(jax.tree.map(wide, whole), rows)


def beside(u: jax.Array, edge: jax.Array, from_the_left: bool) -> jax.Array:
  """Returns `u_{t-1}`, or else `u_{t+1}`, where time may be split.

  Args:
    u: `[B, T, D]`.
    edge: What fills the gap `[B, D]`.
    from_the_left: Whether that is at the first step.
  """

  def local(u, edge, *, shards):
    if shards is not None:
      own = u[:, -1 if from_the_left else 0]
      edge = shards.before(own, edge, not from_the_left)
    if from_the_left:
      return (jnp.concatenate([edge[:, None], u[:, :-1]], axis=1),)
    return (jnp.concatenate([u[:, 1:], edge[:, None]], axis=1),)

  # JAX cannot lower the gradient of a shard_map inside another one.
  if not splits_time(u) or is_partly_manual():
    return local(u, edge, shards=None)[0]
  layouts = 'btd', 'bd'
  operands = aligned(u, (u, edge), layouts)
  return over_mesh(local, u, operands, layouts, ('btd',))[0]


def is_explicit(x: jax.Array) -> bool:
  """Whether `x` `[B, T, D]` lives on a mesh with Explicit axes."""
  axes = _axes(x)
  return axes is not None and bool(axes.explicit)


def splits_time(x: jax.Array) -> bool:
  """Whether `over_mesh` gives each device a stretch of `x` `[B, T, D]`."""
  axes = _axes(x)
  return axes is not None and bool(axes.time)


def is_on_a_mesh(x: jax.Array) -> bool:
  """Whether several devices may hold parts of `x`."""
  mesh = jax.sharding.get_abstract_mesh()
  mesh = jax.typeof(x).sharding.mesh if mesh.empty else mesh
  return not mesh.empty and mesh.size > 1


def is_partly_manual() -> bool:
  """Whether this is inside a `jax.shard_map` over some of the mesh axes."""
  kinds = set(jax.sharding.get_abstract_mesh().axis_types)
  return AxisType.Manual in kinds and len(kinds) > 1


class _Axes(NamedTuple):
  """Which mesh axes split the batch, the time and the features of one op."""

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


def _axes(x):
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
  auto = names - explicit
  batch = batch or _dividing(BATCH_AXES, auto, mesh.shape, x.shape[0])
  features = features or _dividing(FEATURE_AXES, auto, mesh.shape, x.shape[2])
  time = time or _dividing(TIME_AXES, auto, mesh.shape, x.shape[1])
  if not explicit and not batch and not time and not features:
    return None
  return _Axes(mesh, batch, time, features, names, explicit)


class Shards(NamedTuple):
  """The stretches of time that the devices along some mesh axes hold.

  Its methods are called inside the `jax.shard_map` over those axes. Time runs
  from the first device to the last, or, if `reverse`, from the last to the
  first.
  """

  axes: tuple[str, ...]
  size: int

  def entering(
      self,
      combine: Callable[[Any, Any], Any],
      stretch: Any,
      first: Any,
      reverse: bool,
  ) -> Any:
    """Returns what has become of the state before this device's stretch.

    Args:
      combine: `combine(earlier, later)` of two adjacent stretches, each a tree
        of arrays `[B, ...]`, is that of both together; associative.
      stretch: That of this device.
      first: One that comes before all of them, and forgets what it is given.
      reverse: Whether time runs from the last device to the first.

    Returns:
      All earlier stretches combined, `first` included.
    """
    here = self.place(reverse)
    where = lambda flag, *trees: jax.tree.map(
        lambda u, v: jnp.where(flag, u, v), *trees
    )
    if self.size <= GATHER_UP_TO:
      everybody = self.everybody(stretch)
      order = range(self.size)
      entering = before = first
      for n, i in enumerate(reversed(order) if reverse else order):
        entering = where(here == n, before, entering)
        before = combine(before, jax.tree.map(lambda u: u[i], everybody))
      return entering
    # Each device starts from its neighbour's stretch, and the first one from
    # `first`, and so from one that forgets: doubling leaves no other.
    before = where(here < 1, first, self._earlier(stretch, 1, reverse))
    distance = 1
    while distance < self.size:
      earlier = self._earlier(before, distance, reverse)
      before = where(here < distance, before, combine(earlier, before))
      distance *= 2
    return before

  def enter(self, product, last, reset, h0, reverse):
    """Returns the state of a linear recurrence that enters this stretch.

    Args:
      product: Of all decays of this stretch `[B, ...]`, 0 if there is a reset.
      last: What its scan comes to from zero `[B, ...]`.
      reset: Booleans `[B, T]` or None.
      h0: The state that enters the first stretch `[B, ...]`.
      reverse: Whether that is the one of the last device.
    """

    def combine(earlier, later):
      forgets, product, last = later
      # By selection: 0 * NaN would cross into another sequence.
      kept = [jnp.where(forgets, 0, u) for u in earlier[1:]]
      return (
          earlier[0] | forgets, product * kept[0], product * kept[1] + last
      )

    forgets = _forgets(last, reset)
    first = jnp.ones_like(forgets), jnp.zeros_like(h0), h0
    stretch = forgets, product, last
    return self.entering(combine, stretch, first, reverse)[2]

  def enter_steadily(self, advance, last, time, reset, mask, h0):
    """`enter` where what a step does to a state is the same for all of them.

    Args:
      advance: `advance(i, h)` is a state `2^i` steps later.
      last: What this stretch comes to from zero `[B, ...]`.
      time: Tokens in this stretch.
      reset: Booleans `[B, T]` or None.
      mask: Booleans `[B, T]` or None, `False` where a step is absent.
      h0: The state that enters the first stretch `[B, ...]`.
    """
    axes = (1,) * (last.ndim - 1)
    steps = jnp.full_like(last, time, jnp.int32, shape=(last.shape[0], *axes))
    if mask is not None:
      reset = None if reset is None else reset & mask
      steps = mask.sum(1, dtype=jnp.int32).reshape(steps.shape)

    def combine(earlier, later):
      forgets, steps, last = later
      h = jnp.where(forgets, 0, earlier[2])
      for i in range((self.size * time).bit_length()):
        h = jnp.where((steps >> i & 1) > 0, advance(i, h), h)
      return earlier[0] | forgets, earlier[1] + steps, h + last

    forgets = _forgets(last, reset)
    first = jnp.ones_like(forgets), jnp.zeros_like(steps), h0
    return self.entering(combine, (forgets, steps, last), first, False)[2]

  def before(self, edge, first, reverse):
    """Returns `edge` of the device one stretch earlier, or else `first`."""
    earlier = self._earlier(edge, 1, reverse)
    return jnp.where(self.place(reverse) == 0, first, earlier)

  def leave(self, last, reverse):
    """Returns what leaves the last stretch, on every device."""
    here = self.place(reverse) == self.size - 1
    return jax.lax.psum(jnp.where(here, last, 0), self.axes)

  def everybody(self, tree):
    """Returns `[n, B, ...]` for each array `[B, ...]`, in the order of time."""
    return _in_one_array(lambda u: jax.lax.all_gather(u, self.axes), tree)

  def place(self, reverse=False):
    """The number of stretches before this device's."""
    index = jax.lax.axis_index(self.axes)
    return self.size - 1 - index if reverse else index

  def _earlier(self, tree, distance, reverse):
    """The tree of the device so many stretches earlier; zeros if none is."""
    pairs = [(i, i + distance) for i in range(self.size - distance)]
    if reverse:
      pairs = [(j, i) for i, j in pairs]
    send = lambda u: jax.lax.ppermute(u, self.axes, pairs)
    return _in_one_array(send, tree)


def _forgets(last, reset):
  """Whether there is a reset in a stretch, with the axes of `last`."""
  shape = last.shape[:1] + (1,) * (last.ndim - 1)
  if reset is None:
    return jnp.zeros_like(last, bool, shape=shape)
  return reset.any(axis=1).reshape(shape)


def _in_one_array(send, tree):
  """`send` of every leaf `[B, ...]` of a tree, as one array: one exchange."""
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


def _dividing(names, available, sizes, length) -> tuple[str, ...]:
  """The longest prefix of `names` whose mesh sizes together divide `length`.

  Args:
    names: Of mesh axes; those of size 1 are left out.
    available: Those of them that may be used.
    sizes: Maps each to its size.
    length: Of the array axis to split.
  """
  if not length:
    return ()
  chosen = tuple(n for n in names if n in available and sizes[n] > 1)
  while chosen and length % math.prod(sizes[n] for n in chosen):
    chosen = chosen[:-1]
  return chosen
