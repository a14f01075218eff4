"""What a TPU kernel does with one native tile: 8 (or 16) steps by 128 lanes.

Arrays are tuples of parts, see `complex_parts.py`, all of them float32.
"""

import functools
import types
from typing import NamedTuple

import jax
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
import jax.numpy as jnp
from rnnzoo.ops.linear_scan import complex_parts
from rnnzoo.ops.linear_scan import gates
from rnnzoo.ops.linear_scan import tpu_blocks

Rows = slice | pl.Slice  # Of a block: what `pl.ds` returns.

_LANES = tpu_blocks.LANES
_add, _multiply = complex_parts.add, complex_parts.multiply


class Tile(NamedTuple):
  """A tile of a block: its place, its inputs, and its flags or None."""

  index: jax.Array
  rows: Rows
  inputs: tuple[tuple[jax.Array, ...], ...]  # Their parts, float32.
  inside: jax.Array | None  # Steps before T.
  live: jax.Array | None  # Steps that are neither masked nor beyond T.
  start: jax.Array | None  # Steps that reset.
  resets: jax.Array | None  # `start` as the bits of a scalar.
  free: jax.Array | None  # Steps without a reset up to them.


class Block:
  """Reads the tiles of the time block in step `t` of the grid."""

  def __init__(self, sweep, refs, t):
    self._sweep = sweep
    self._refs = refs
    self._start = sweep.block(t) * sweep.block_time
    self._lanes_left = (
        sweep.features - pl.program_id(1) * sweep.block_features
    )
    self._row = _row_index(sweep)
    self._bit = 1 << self._row
    shape = self._row.shape
    self._rows = tuple(
        tuple(jnp.broadcast_to(ref[...], shape) for ref in parts)
        if kind == 'row' else None
        for kind, parts in zip(sweep.kinds, refs['inputs'])
    )

  def tile(self, index):
    """Reads a tile, and the flags of its steps."""
    s = self._sweep
    rows = pl.ds(pl.multiple_of(index * s.tile, s.tile), s.tile)
    inside = live = start = resets = free = None
    if s.ragged:
      inside = live = self._row < s.time - self._start - index * s.tile
    if s.reset or s.mask:
      word = self._refs['flags'][0, index]
      if s.mask:
        live = ((word >> s.tile) & self._bit) != 0
      if s.reset:
        resets = word & (2**s.tile - 1)
        start = (resets & self._bit) != 0
        free = (_spread(s, resets, s.tile) & self._bit) == 0
    read = dict(
        row=lambda refs, constant: constant,
        wide=lambda refs, _: load(refs, rows),
        column=lambda refs, _: tuple(
            self._from_column(ref, index) for ref in refs
        ),
    )
    inputs = tuple(
        read[kind](refs, constant)
        for kind, refs, constant in zip(
            s.kinds, self._refs['inputs'], self._rows
        )
    )
    return Tile(index, rows, inputs, inside, live, start, resets, free)

  def before(self, tile, h0):
    """Returns the states that enter the steps of a tile in the forward scan."""
    s = self._sweep
    j = tile.index
    h = load(self._refs['h'], tile.rows)
    # The scan runs against this sweep.
    if s.backwards:
      near = jnp.maximum(j - 1, 0)
      at_edge, at_start = j == 0, self._start == 0
      edge, shift, row = s.tile - 1, 1, 0
    else:
      near = jnp.minimum(j + 1, s.tiles - 1)
      at_edge = j == s.tiles - 1
      at_start = self._start + (j + 1) * s.tile >= s.time
      edge, shift, row = 0, s.tile - 1, s.tile - 1
      if s.ragged:  # The state behind the last step is `h0`.
        h = _where(tile.inside, h, h0)
    near = pl.ds(pl.multiple_of(near * s.tile, s.tile), s.tile)
    outside = load(self._refs['beside'], slice(None))
    beside = load(self._refs['h'], near)
    pick = lambda u: u[edge : edge + 1]
    beside = tuple(
        jnp.where(at_edge, pick(u), pick(v)) for u, v in zip(outside, beside)
    )
    if s.backwards:
      at_start = at_start & at_edge
    beside = tuple(jnp.where(at_start, u, v) for u, v in zip(h0, beside))
    h = _rolled(h, shift)
    return _where(self._row == row, beside, h)

  def add_to_column(self, ref, tile, u):
    """Adds the sums over the features of a tile to the lanes of its steps."""
    s = self._sweep
    if s.features % s.block_features:
      lane = lax.broadcasted_iota(jnp.int32, u.shape, 1)
      u = jnp.where(lane < self._lanes_left, u, 0)
    lanes, mine = self._lanes(tile.index)
    u = jnp.where(mine, u.sum(1, keepdims=True), 0)
    ref[:, lanes] += u.sum(0, keepdims=True)

  def _from_column(self, ref, index):
    lanes, mine = self._lanes(index)
    u = jnp.where(mine, ref[:, lanes], 0).sum(1, keepdims=True)
    return jnp.broadcast_to(u, self._row.shape)

  def _lanes(self, index):
    """The lanes that hold the steps of a tile, and which lane each step has."""
    n = self._sweep.tile
    first = pl.multiple_of((index * n) & -_LANES, _LANES)
    shape = (n, _LANES)
    lane = lax.broadcasted_iota(jnp.int32, shape, 1)
    row = lax.broadcasted_iota(jnp.int32, shape, 0)
    return pl.ds(first, _LANES), lane == row + ((index * n) & (_LANES - 1))


def elements(sweep, tile, decay_after):
  """Returns `(a, x)` of a tile, `(1, 0)` where a step is absent."""
  if sweep.gate is gates.linear:
    a, x = tile.inputs
  else:
    a, x = ((u,) for u in sweep.gate(tile.start, *(u for u, in tile.inputs)))
  # If `decay_after`, `x` is a cotangent, which a masked step keeps.
  exists = tile.inside if decay_after else tile.live
  return _decay(tile, a), zero_unless(exists, x)


def linearized(sweep, tile):
  """Returns `a`, and a map from the gradients of `a, x` to the inputs'."""
  if sweep.gate is gates.linear:
    a, _ = tile.inputs
    pull_back = lambda da, dx: (da[: len(a)], dx)  # Real if `a` is.
  else:
    (a, _), vjp = jax.vjp(
        functools.partial(sweep.gate, tile.start), *(u for u, in tile.inputs)
    )
    a = (a,)
    pull_back = lambda da, dx: tuple(
        (u,)
        for u in vjp(tuple(zero_unless(tile.live, v)[0] for v in (da, dx)))
    )
  return _decay(tile, a), pull_back


def _decay(tile, a):
  """Returns `a`, with 1 where a step is absent and 0 where it resets."""
  one = tuple(float(i == 0) for i in range(len(a)))
  a = a if tile.live is None else tuple(
      jnp.where(tile.live, u, v) for u, v in zip(a, one)
  )
  return zero_where(tile.start, a)


def composed(sweep, tile, a, x):
  """Composes `h -> a h + x` of each step with all before it in the tile."""
  n = sweep.tile
  row = _row_index(sweep)
  shift = 1
  while shift < n:
    back = n - shift if sweep.backwards else shift
    behind = lambda u: _rolled(u, back)
    if tile.resets is None:
      joins = row < n - shift if sweep.backwards else row >= shift
    else:  # A step joins those before it unless there is a reset between.
      edge = (2**shift - 1) << (n - shift if sweep.backwards else 0)
      word = _spread(sweep, tile.resets, shift) | edge
      joins = (word & (1 << row)) == 0
    # By selection: 0 * NaN would carry a NaN over a reset.
    x, a = (
        _where(joins, _add(_multiply(a, behind(x)), x), x),
        _where(joins, _multiply(a, behind(a)), a),
    )
    shift *= 2
  return a, x


def _spread(sweep, resets, length):
  """Sets the bits of steps with a reset among the last `length` steps."""
  shift = 1
  while shift < length:
    resets |= resets >> shift if sweep.backwards else resets << shift
    shift *= 2
  return resets


def entered(tile, product, x, state):
  """Lets the state enter a tile."""
  return _where(tile.free, _add(_multiply(product, state), x), x)


def decayed_after(sweep, tile, a, x, state):
  """Runs `h_t = c_{t-1} + x_t, c_t = a_t h_t`; returns the last `c` and `h`."""
  moved = zero_where(tile.start, _multiply(a, x))
  product, c = composed(sweep, tile, a, moved)
  c = entered(tile, product, c, state)
  n = sweep.tile
  first, back = (n - 1, n - 1) if sweep.backwards else (0, 1)
  behind = _where(_row_index(sweep) == first, state, _rolled(c, back))
  return final(sweep, c), _add(x, behind)


def final(sweep, h):
  """Returns the last step of a tile in the direction of the sweep."""
  return tuple(u[:1] if sweep.backwards else u[sweep.tile - 1 :] for u in h)


def for_each_tile(sweep, step, state):
  index = lambda i: sweep.tiles - 1 - i if sweep.backwards else i
  body = lambda i, state: step(index(i), state)
  return lax.fori_loop(0, sweep.tiles, body, state)


def _row_index(sweep):
  shape = (sweep.tile, sweep.block_features)
  return lax.broadcasted_iota(jnp.int32, shape, 0)


def _where(flag, u, v):
  """Selects by parts; returns `u` if there is no flag."""
  if flag is None:
    return u
  return tuple(jnp.where(flag, p, q) for p, q in zip(u, v))


def _rolled(u, by):
  """Rotates the steps of a tile."""
  return tuple(pltpu.roll(p, by, 0) for p in u)


def zero_where(flag, u):
  return u if flag is None else tuple(jnp.where(flag, 0, p) for p in u)


def zero_unless(flag, u):
  return u if flag is None else tuple(jnp.where(flag, p, 0) for p in u)


def load(refs, rows: Rows | types.EllipsisType = ...):
  """Loads the parts of an array, in float32."""
  return tuple(ref[rows].astype(jnp.float32) for ref in refs)


def store(refs, parts, rows: Rows | types.EllipsisType = ...):
  for ref, part in zip(refs, parts):
    ref[rows] = part.astype(ref.dtype)
