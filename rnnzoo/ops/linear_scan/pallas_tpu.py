"""The recurrence on TPU: each array is read or written once.

A Pallas (Mosaic) kernel walks over time in blocks, one row of the batch and one
block of features at a time. The state stays on chip. Inside a block it goes
from one native tile of the chip to the next, 8 steps by 128 lanes (16 steps
where an array is bfloat16). The steps of a tile lie on the sublanes of vector
registers, so 3 (or 4) shifted multiply-adds compose them, each with all those
before it, and a last one brings in the state:

    h = A * state + X,     A = a_1 ... a_t,     X = the scan of x from 0

All arithmetic is float32. A complex array is two real ones, split and joined
outside the kernel. Flags travel as the bits of one integer per tile, in scalar
memory: as `[B, T, 1]` arrays they would be padded to as many bytes as `x`.
Rows beyond T, in the last block of a length that does not fit, hold anything;
they become `a = 1, x = 0` by selection, as masked steps do. Lanes beyond D meet
no others. So no operand is ever padded or copied.

Blocks. Features: up to 4 tiles of 128 lanes, as many as leave the fewest lanes
beyond D. Time: as many rows as fit `_BLOCK_BYTES` for all operands, all of them
twice because the next block is on its way while one is computed; then evened
out over the blocks. Three float32 arrays of 512 features: 680 rows, 4 MiB a
step, 5 microseconds at the 819 GB/s of a v5e, whose kernels may use 16 MiB.

Why it should be bound by memory (from the compiled code; no TPU has run it): a
float32 tile of 8 by 512 takes 36 instruction bundles forward and 51 backward on
a v5e, while its arrays need some 90 and 150 cycles to arrive; bfloat16 tiles of
16 by 512, as large, take 73 and 101. Only bfloat16 with flags and fused gates
computes for longer (minGRU with both: 179 and 242).
"""

from collections.abc import Callable
import functools
import math
from typing import NamedTuple

import jax
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
import jax.numpy as jnp
from rnnzoo.ops.linear_scan import backend
from rnnzoo.ops.linear_scan import gates

_LANES = 128
_MAX_FEATURE_TILES = 4
_BLOCK_BYTES = 8 * 2**20
_DTYPES = (jnp.float32, jnp.bfloat16, jnp.complex64)

# What a gate and its derivative may be made of: all of these compile on
# the oldest and the newest jax. (Not among them: expm1, sign, erf, cbrt.)
_PRIMITIVES = frozenset("""
    abs add add_any and broadcast_in_dim clamp convert_element_type cos
    custom_jvp_call custom_vjp_call div eq exp exp2 ge gt integer_pow is_finite
    jit le log log1p logistic lt max min mul ne neg not one_minus_square or pow
    rsqrt select_n sin sqrt square stop_gradient sub tanh xor
""".split())

# Runs kernels traced inside `with interpreted(True):` without a TPU, for tests.
interpreted = jax.make_user_context(False)


def scan(inputs, h0, reset, mask, *, gate, reverse, decay_after):
  """Returns `(last, h)`; see `__init__.py` for the contract."""
  sweep = _sweep(inputs, inputs[-1:], reset, mask, gate, backwards=reverse)
  operands = _operands(sweep, inputs, reset, mask, h0=h0)
  x = _parts(inputs[-1])
  results = dict(
      last=sweep.rows_of_batch(len(x)),
      h=tuple(_Operand(sweep.wide(), _like(u)) for u in x),
  )
  kernel = functools.partial(_scan_kernel, sweep, decay_after)
  out = _launch(kernel, sweep, operands, results, scratch=len(x), name='scan')
  return _row(out['last']), _joined(out['h'])


def summary(inputs, reset, mask, *, gate, reverse, decay_after):
  """Returns `(product, last)`, what a stretch of time does to a state."""
  sweep = _sweep(inputs, (), reset, mask, gate, backwards=reverse)
  operands = _operands(sweep, inputs, reset, mask)
  n = len(_parts(inputs[-1]))
  complex_a = gate is gates.linear and len(_parts(inputs[0])) == 2
  m = 2 if complex_a else 1
  results = dict(
      product=sweep.rows_of_batch(m), last=sweep.rows_of_batch(n)
  )
  kernel = functools.partial(_summary_kernel, sweep, decay_after)
  out = _launch(kernel, sweep, operands, results, scratch=m + n, name='summary')
  product = _row(out['product'])
  last = _row(out['last'])
  return product.astype(last.dtype), last


def gradient(inputs, h, h0, reset, mask, dlast, dh, *, gate, reverse):
  """Returns `(dinputs, dh0)` in one pass, against the direction of `scan`.

  `dinputs` of the full size have the dtype of their input. Those constant in
  time come back as `[B, 1, D]`, those with one feature as `[B, T, n]`, a sum
  for each block of features, both in float32.
  """
  sweep = _sweep(
      inputs, (h, dh, *inputs), reset, mask, gate, backwards=not reverse
  )
  operands = _operands(sweep, inputs, reset, mask, h0=h0, dlast=dlast)
  wide = sweep.wide()
  for name, u in (('h', h), ('dh', dh)):
    operands[name] = tuple(_Operand(wide, v) for v in _parts(u))
  operands['beside'] = tuple(
      _Operand(sweep.beside(), v) for v in _parts(h)
  )
  results = dict(
      dinputs=tuple(
          tuple(sweep.gradient_of(kind, v) for v in _parts(u))
          for kind, u in zip(sweep.kinds, inputs)
      ),
      dh0=sweep.rows_of_batch(len(_parts(h0))),
  )
  kernel = functools.partial(_gradient_kernel, sweep)
  out = _launch(
      kernel, sweep, operands, results, scratch=len(_parts(h0)), name='gradient'
  )
  dinputs = tuple(
      sweep.columns(_joined(u)) if kind == 'column' else _joined(u)
      for kind, u in zip(sweep.kinds, out['dinputs'])
  )
  return dinputs, _row(out['dh0'])


def supports(inputs, h0, reset, mask, *, gate, decay_after) -> str | None:
  """Returns why the kernels cannot take these inputs, or None if they can."""
  del h0, reset, mask, decay_after
  for i, u in enumerate(inputs):
    if u.dtype not in _DTYPES:
      return (
          f'input {i} is {u.dtype}; the TPU kernel takes float32, bfloat16 and '
          'complex64.'
      )
  if any(jnp.iscomplexobj(u) for u in inputs):
    if gate is not gates.linear:
      return 'the TPU kernel takes complex inputs only without a fused gate.'
    if not jnp.iscomplexobj(inputs[-1]):
      return 'the TPU kernel takes complex `a` only with complex `x`.'
  unknown = _primitives(gate, len(inputs)) - _PRIMITIVES
  if unknown:
    return f'the TPU kernel cannot compute {sorted(unknown)} inside the gate.'
  return None


@functools.lru_cache(maxsize=256)
def _primitives(gate, n):
  """The names of the primitives in a gate and in its derivative."""
  one = jax.ShapeDtypeStruct((8, _LANES), jnp.float32)
  flag = jax.ShapeDtypeStruct((8, _LANES), jnp.bool_)

  def both(start, *inputs):
    out, vjp = jax.vjp(functools.partial(gate, start), *inputs)
    return out, vjp(out)

  traced = jax.make_jaxpr(both)(flag, *(one,) * n)
  names = {'a captured array'} if traced.consts else set()
  unread = [traced.jaxpr]
  while unread:
    for equation in unread.pop().eqns:
      names.add(equation.primitive.name)
      unread += [u for u in equation.params.values() if hasattr(u, 'eqns')]
  return names


def bytes_moved(grid, operands) -> int:
  """Counts what a launch moves between HBM and the chip.

  A block is moved again only when its index differs from that of the step
  before. Pallas visits the last axis of the grid first, so that is as often as
  the axes up to the last one that the index depends on have steps. Blocks are
  counted whole, beyond the edges of their arrays too.

  Args:
    grid: The sizes of the grid.
    operands: Pairs `(BlockSpec, array)`, results included.
  """
  total = 0
  for spec, array in operands:
    origin = spec.index_map(*(0 for _ in grid))
    visits = 1
    for axis, size in enumerate(grid):
      step = spec.index_map(*(int(i == axis) for i in range(len(grid))))
      if size > 1 and step != origin:
        visits = math.prod(grid[: axis + 1])
    block = math.prod(n or 1 for n in spec.block_shape)
    total += visits * block * jnp.dtype(array.dtype).itemsize
  return total


# --- How arrays are cut into blocks -----------------------------------------


class _Operand(NamedTuple):
  """An array, or for a result its shape and dtype, and how it is cut."""

  spec: pl.BlockSpec
  array: jax.Array | jax.ShapeDtypeStruct


class _Sweep(NamedTuple):
  """One walk over time: sizes, direction, and what is static of the inputs.

  An input is `wide` `[B|1, T, D]`, a `row` `[B|1, 1, D]` or a `column`
  `[B|1, T, 1]`.
  """

  batch: int
  time: int
  features: int
  tile: int  # Steps in a tile.
  block_time: int
  block_features: int
  backwards: bool
  gate: Callable
  kinds: tuple[str, ...]
  reset: bool
  mask: bool

  @property
  def grid(self):
    return self.batch, self.feature_blocks, self.time_blocks

  @property
  def time_blocks(self):
    return pl.cdiv(self.time, self.block_time)

  @property
  def feature_blocks(self):
    return pl.cdiv(self.features, self.block_features)

  @property
  def tiles(self):
    return self.block_time // self.tile

  @property
  def ragged(self):
    return self.time % self.block_time != 0

  @property
  def column_lanes(self):
    """Lanes that hold the steps of a time block, in whole tiles."""
    return _round_up(self.block_time, _LANES)

  def block(self, t):
    """The time block visited in step `t` of the grid."""
    return self.time_blocks - 1 - t if self.backwards else t

  def wide(self, batch=None):
    shared = batch == 1
    return pl.BlockSpec(
        (None, self.block_time, self.block_features),
        lambda b, d, t: (0 if shared else b, self.block(t), d),
    )

  def row(self, batch=None):
    shared = batch == 1
    return pl.BlockSpec(
        (None, 1, self.block_features),
        lambda b, d, t: (0 if shared else b, 0, d),
    )

  def column(self, batch):
    shared = batch == 1
    return pl.BlockSpec(
        (None, None, 1, self.column_lanes),
        lambda b, d, t: (0 if shared else b, self.block(t), 0, 0),
    )

  def beside(self):
    """The tile of `h` next to a block, where the state enters it."""
    # `t > 0` rather than a maximum, so that the map takes plain integers too.
    def index(b, d, t):
      i = self.block(t)
      if self.backwards:  # Of the forward scan: the state comes from the left.
        return b, i * self.tiles - (i > 0), d
      return b, (i + (i < self.time_blocks - 1)) * self.tiles, d

    return pl.BlockSpec((None, self.tile, self.block_features), index)

  def flags(self):
    return pl.BlockSpec(
        (None, None, 1, self.tiles),
        lambda b, d, t: (b, self.block(t), 0, 0),
        memory_space=pltpu.SMEM,
    )

  def rows_of_batch(self, parts):
    """`parts` float32 results `[B, 1, D]`."""
    shape = jax.ShapeDtypeStruct((self.batch, 1, self.features), jnp.float32)
    return (_Operand(self.row(), shape),) * parts

  def gradient_of(self, kind, u):
    """The result for the gradient of the input `u`."""
    if kind == 'row':
      return self.rows_of_batch(1)[0]
    if kind == 'wide':
      shape = (self.batch, self.time, self.features)
      dtype = jnp.float32 if u.shape[0] != self.batch else u.dtype
      return _Operand(self.wide(), jax.ShapeDtypeStruct(shape, dtype))
    shape = (*self.grid, 1, self.column_lanes)
    return _Operand(
        pl.BlockSpec(
            (None, None, None, 1, self.column_lanes),
            lambda b, d, t: (b, d, self.block(t), 0, 0),
        ),
        jax.ShapeDtypeStruct(shape, jnp.float32),
    )

  def as_columns(self, u):
    """Turns `[B, T, 1]` into rows of lanes, one for each time block."""
    by_block = self._by_block(u[..., 0])
    lanes = self.column_lanes - self.block_time
    return jnp.pad(by_block, ((0, 0), (0, 0), (0, lanes)))[:, :, None]

  def columns(self, u):
    """The reverse of `as_columns` for `gradient_of`: `[B, T, n]`."""
    u = u[..., 0, : self.block_time]
    u = u.reshape(self.batch, self.feature_blocks, -1)[..., : self.time]
    return jnp.moveaxis(u, 1, 2)

  def packed(self, reset, mask):
    """The flags of a tile as an integer: its steps' resets, then its masks."""
    flags = 0
    if reset is not None:
      flags |= (reset if mask is None else reset & mask).astype(jnp.uint32)
    if mask is not None:
      flags |= mask.astype(jnp.uint32) << jnp.uint32(self.tile)
    flags = self._by_block(flags)
    flags = flags.reshape(*flags.shape[:-1], self.tiles, self.tile)
    flags <<= jnp.arange(self.tile, dtype=jnp.uint32)
    words = flags.sum(-1, dtype=jnp.uint32)  # No two have a bit in common.
    return lax.bitcast_convert_type(words, jnp.int32)[:, :, None]

  def _by_block(self, u):
    """Cuts the last axis, time, into blocks, filled up with zeros."""
    missing = self.time_blocks * self.block_time - self.time
    if missing:
      u = jnp.pad(u, ((0, 0),) * (u.ndim - 1) + ((0, missing),))
    return u.reshape(*u.shape[:-1], self.time_blocks, self.block_time)


def _sweep(inputs, more, reset, mask, gate, backwards):
  """Chooses the blocks; `more` are full arrays beside the inputs."""
  batch, time, features = inputs[-1].shape
  kinds = tuple(
      'wide' if u.shape[1:] == (time, features)
      else 'row' if u.shape[1] == 1
      else 'column'
      for u in inputs
  )
  wide = [
      part
      for u in (*inputs, *more)
      if u.shape[1:] == (time, features)
      for part in _parts(u)
  ]
  itemsizes = [part.dtype.itemsize for part in wide]
  tile = 32 // min(itemsizes)

  lane_tiles = pl.cdiv(features, _LANES)
  block_features = _LANES * min(
      range(1, _MAX_FEATURE_TILES + 1),
      key=lambda n: (_round_up(lane_tiles, n), -n),
  )
  fitting = _BLOCK_BYTES // (2 * block_features * sum(itemsizes))
  fitting = max(tile, fitting // tile * tile)
  least = pl.cdiv(time, fitting)
  blocks = next(
      (n for n in range(least, 2 * least) if time % (n * tile) == 0), least
  )
  block_time = _round_up(pl.cdiv(time, blocks), tile)
  return _Sweep(
      batch, time, features, tile, block_time, block_features, backwards, gate,
      kinds, reset is not None, mask is not None,
  )


def _operands(sweep, inputs, reset, mask, **states):
  """Returns the operands that all kernels share, by name."""

  def of(kind, u):
    if kind == 'wide':
      return _Operand(sweep.wide(u.shape[0]), u)
    u = u.astype(jnp.float32)
    if kind == 'column':
      return _Operand(sweep.column(u.shape[0]), sweep.as_columns(u))
    u = jnp.broadcast_to(u, (u.shape[0], 1, sweep.features))
    return _Operand(sweep.row(u.shape[0]), u)

  operands = dict(
      inputs=tuple(
          tuple(of(kind, part) for part in _parts(u))
          for kind, u in zip(sweep.kinds, inputs)
      )
  )
  for name, u in states.items():
    operands[name] = tuple(
        _Operand(sweep.row(), part[:, None]) for part in _parts(u)
    )
  if sweep.reset or sweep.mask:
    operands['flags'] = _Operand(sweep.flags(), sweep.packed(reset, mask))
  return operands


def _launch(kernel, sweep, operands, results, scratch, name):
  """Runs a kernel over the grid of a sweep."""
  is_operand = lambda u: isinstance(u, _Operand)
  each = lambda fn, tree: jax.tree.map(fn, tree, is_leaf=is_operand)
  arrays = each(lambda u: u.array, operands)
  # Inside `jax.shard_map` results vary wherever an operand does.
  mat = jax.typeof(jax.tree.leaves(arrays['inputs'])[-1]).mat
  out_shape = each(
      lambda u: jax.ShapeDtypeStruct(
          u.array.shape, u.array.dtype, manual_axis_type=mat
      ),
      results,
  )
  moved = jax.tree.leaves((operands, results), is_leaf=is_operand)
  call = pl.pallas_call(
      kernel,
      grid=sweep.grid,
      in_specs=(each(lambda u: u.spec, operands),),
      out_specs=each(lambda u: u.spec, results),
      out_shape=out_shape,
      scratch_shapes=[
          pltpu.VMEM((1, sweep.block_features), jnp.float32)
      ] * scratch,
      compiler_params=pltpu.CompilerParams(
          dimension_semantics=('parallel', 'parallel', 'arbitrary')
      ),
      cost_estimate=_cost(sweep, bytes_moved(sweep.grid, moved)),
      name=f'rnnzoo_{name}',
      interpret=interpreted.value,
  )
  with jax.enable_x64(False):  # Mosaic knows no 64-bit integers.
    return call(arrays)


def _cost(sweep, moved):
  """For each element a gate, and a composition at each doubling of a tile."""
  elements = sweep.batch * sweep.time * sweep.features
  flops = 3 * sweep.tile.bit_length()
  one = jax.ShapeDtypeStruct((1, 1), jnp.float32)
  start = jax.ShapeDtypeStruct((1, 1), jnp.bool_) if sweep.reset else None
  gate = pl.estimate_cost(sweep.gate, start, *(one for _ in sweep.kinds))
  return pl.CostEstimate(
      flops=elements * (flops + gate.flops),
      transcendentals=elements * gate.transcendentals,
      bytes_accessed=moved,
  )


# --- Inside the kernels ------------------------------------------------------


def _scan_kernel(sweep, decay_after, refs, out, *carry):
  t = pl.program_id(2)

  @pl.when(t == 0)
  def _():
    _store(carry, _load(refs['h0']))

  block = _Block(sweep, refs, t)

  def step(i, state):
    tile = block.tile(i)
    a, x = _elements(sweep, tile, decay_after)
    if decay_after:
      state, h = _decayed_after(sweep, tile, a, x, state)
    else:
      product, x = _composed(sweep, tile, a, x)
      h = _entered(tile, product, x, state)
      state = _final(sweep, h)
    _store(out['h'], h, tile.rows)
    return state

  state = _for_each_tile(sweep, step, _load(carry))
  _store(carry, state)

  @pl.when(t == sweep.time_blocks - 1)
  def _():
    _store(out['last'], state)


def _summary_kernel(sweep, decay_after, refs, out, *carry):
  t = pl.program_id(2)
  m = len(out['product'])

  @pl.when(t == 0)
  def _():
    for i, ref in enumerate(carry):
      ref[...] = jnp.full_like(ref, 1 if i == 0 else 0)

  block = _Block(sweep, refs, t)

  def step(i, state):
    before, last = state
    tile = block.tile(i)
    a, x = _elements(sweep, tile, decay_after)
    if decay_after:
      x = _zero_where(tile.start, _mul(a, x))
    product, x = _composed(sweep, tile, a, x)
    last = _final(sweep, _entered(tile, product, x, last))
    zero = tuple(jnp.zeros_like(u) for u in product)
    return _final(sweep, _entered(tile, product, zero, before)), last

  state = _load(carry)
  state = _for_each_tile(sweep, step, (state[:m], state[m:]))
  _store(carry, sum(state, ()))

  @pl.when(t == sweep.time_blocks - 1)
  def _():
    _store(out['product'], state[0])
    _store(out['last'], state[1])


def _gradient_kernel(sweep, refs, out, *carry):
  t = pl.program_id(2)
  dinputs = out['dinputs']

  @pl.when(t == 0)
  def _():
    _store(carry, _load(refs['dlast']))
    for kind, parts in zip(sweep.kinds, dinputs):
      if kind == 'row':
        _store(parts, tuple(jnp.zeros_like(ref) for ref in parts))

  for kind, parts in zip(sweep.kinds, dinputs):
    if kind == 'column':
      _store(parts, tuple(jnp.zeros_like(ref) for ref in parts))

  block = _Block(sweep, refs, t)
  h0 = _load(refs['h0'])

  def step(i, state):
    state, sums = state
    tile = block.tile(i)
    # What lies beyond T may be anything, and is added to what comes before.
    dh = _zero_unless(tile.inside, _load(refs['dh'], tile.rows))
    a, pull_back = _linearized(sweep, tile)
    state, dx = _decayed_after(sweep, tile, a, dh, state)
    da = _zero_where(tile.start, _mul(dx, block.before(tile, h0)))
    new = []
    for kind, parts, ref, total in zip(
        sweep.kinds, pull_back(da, dx), dinputs, sums
    ):
      parts = _zero_unless(tile.live, parts)
      if kind == 'wide':
        _store(ref, parts, tile.rows)
      elif kind == 'row':
        total = _add(total, parts)
      else:
        for column, part in zip(ref, parts):
          block.add_to_column(column, tile, part)
      new.append(total)
    return state, tuple(new)

  zero = jnp.zeros((sweep.tile, sweep.block_features), jnp.float32)
  sums = tuple(
      (zero,) * len(parts) if kind == 'row' else ()
      for kind, parts in zip(sweep.kinds, dinputs)
  )
  state, sums = _for_each_tile(sweep, step, (_load(carry), sums))
  _store(carry, state)
  for total, parts in zip(sums, dinputs):
    for u, ref in zip(total, parts):
      ref[...] += u.sum(0, keepdims=True)

  @pl.when(t == sweep.time_blocks - 1)
  def _():
    _store(out['dh0'], state)


class _Tile(NamedTuple):
  """A tile of a block: where it is, and its flags, `None` where all agree."""

  index: jax.Array
  rows: pl.Slice
  inputs: tuple[tuple[jax.Array, ...], ...]  # The parts of each, float32.
  inside: jax.Array | None  # Steps before T.
  live: jax.Array | None  # Steps that are neither masked nor beyond T.
  start: jax.Array | None  # Steps that reset.
  resets: jax.Array | None  # The same as bits of a scalar.
  free: jax.Array | None  # Steps with no reset up to them.


class _Block:
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
        wide=lambda refs, _: _load(refs, rows),
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
    return _Tile(index, rows, inputs, inside, live, start, resets, free)

  def before(self, tile, h0):
    """The states that enter the steps of a tile, in the scan's direction."""
    s = self._sweep
    j = tile.index
    h = _load(self._refs['h'], tile.rows)
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
      if s.ragged:  # Beyond T lies the initial state, and then anything.
        h = _where(tile.inside, h, h0)
    near = pl.ds(pl.multiple_of(near * s.tile, s.tile), s.tile)
    outside = _load(self._refs['beside'], slice(None))
    beside = _load(self._refs['h'], near)
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
    """Adds up the features of a tile, into the lanes of its steps."""
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
    """The lanes that hold a tile's steps, and where each step is in them."""
    n = self._sweep.tile
    first = pl.multiple_of((index * n) & -_LANES, _LANES)
    shape = (n, _LANES)
    lane = lax.broadcasted_iota(jnp.int32, shape, 1)
    row = lax.broadcasted_iota(jnp.int32, shape, 0)
    return pl.ds(first, _LANES), lane == row + ((index * n) & (_LANES - 1))


def _elements(sweep, tile, decay_after):
  """Returns `(a, x)` of a tile, with the identity where nothing happens."""
  if sweep.gate is gates.linear:
    a, x = tile.inputs
  else:
    a, x = ((u,) for u in sweep.gate(tile.start, *(u for u, in tile.inputs)))
  # With the decay after it, `x` is a cotangent: a masked step hands it on.
  exists = tile.inside if decay_after else tile.live
  return _decay(tile, a), _zero_unless(exists, x)


def _linearized(sweep, tile):
  """Returns `a` and the map of its gradient and that of `x` to the inputs'."""
  if sweep.gate is gates.linear:
    a, _ = tile.inputs
    pull_back = lambda da, dx: (da[: len(a)], dx)  # A real `a`: the real part.
  else:
    (a, _), vjp = jax.vjp(
        functools.partial(sweep.gate, tile.start), *(u for u, in tile.inputs)
    )
    a = (a,)
    pull_back = lambda da, dx: tuple(
        (u,)
        for u in vjp(tuple(_zero_unless(tile.live, v)[0] for v in (da, dx)))
    )
  return _decay(tile, a), pull_back


def _decay(tile, a):
  """`a`, but 1 where a step is masked and 0 where it resets."""
  one = tuple(float(i == 0) for i in range(len(a)))
  a = a if tile.live is None else tuple(
      jnp.where(tile.live, u, v) for u, v in zip(a, one)
  )
  return _zero_where(tile.start, a)


def _composed(sweep, tile, a, x):
  """Composes `h -> a h + x` of each step with those before it in the tile."""
  n = sweep.tile
  row = _row_index(sweep)
  shift = 1
  while shift < n:
    back = n - shift if sweep.backwards else shift
    behind = lambda u: _rolled(u, back)
    if tile.resets is None:
      joins = row < n - shift if sweep.backwards else row >= shift
    else:  # A step joins what is behind it unless there is a reset between.
      edge = (2**shift - 1) << (n - shift if sweep.backwards else 0)
      word = _spread(sweep, tile.resets, shift) | edge
      joins = (word & (1 << row)) == 0
    # By selection: 0 * NaN would carry a NaN over a reset.
    x, a = (
        _where(joins, _add(_mul(a, behind(x)), x), x),
        _where(joins, _mul(a, behind(a)), a),
    )
    shift *= 2
  return a, x


def _spread(sweep, resets, length):
  """The bits of the steps with a reset among the last `length` up to them."""
  shift = 1
  while shift < length:
    resets |= resets >> shift if sweep.backwards else resets << shift
    shift *= 2
  return resets


def _entered(tile, product, x, state):
  """Lets the state enter a tile."""
  return _where(tile.free, _add(_mul(product, state), x), x)


def _decayed_after(sweep, tile, a, x, state):
  """`h_t = c_{t-1} + x_t, c_t = a_t h_t`: returns the final `c`, and `h`."""
  product, c = _composed(sweep, tile, a, _zero_where(tile.start, _mul(a, x)))
  c = _entered(tile, product, c, state)
  n = sweep.tile
  first, back = (n - 1, n - 1) if sweep.backwards else (0, 1)
  behind = _where(_row_index(sweep) == first, state, _rolled(c, back))
  return _final(sweep, c), _add(x, behind)


def _final(sweep, h):
  """The last step of a tile in the direction of the sweep."""
  return tuple(u[:1] if sweep.backwards else u[sweep.tile - 1 :] for u in h)


def _for_each_tile(sweep, step, state):
  index = lambda i: sweep.tiles - 1 - i if sweep.backwards else i
  body = lambda i, state: step(index(i), state)
  return lax.fori_loop(0, sweep.tiles, body, state)


def _row_index(sweep):
  shape = (sweep.tile, sweep.block_features)
  return lax.broadcasted_iota(jnp.int32, shape, 0)


# --- Real and complex numbers as tuples of one or two arrays -----------------


def _parts(u):
  return (u.real, u.imag) if jnp.iscomplexobj(u) else (u,)


def _joined(parts):
  return lax.complex(*parts) if len(parts) == 2 else parts[0]


def _row(parts):
  """`[B, 1, D]` parts as one array `[B, D]`."""
  return _joined(parts)[:, 0]


def _like(u):
  return jax.ShapeDtypeStruct(u.shape, u.dtype)


def _add(u, v):
  return tuple(p + q for p, q in zip(u, v))


def _mul(u, v):
  if len(u) == 1:
    return tuple(u[0] * q for q in v)
  if len(v) == 1:
    return _mul(v, u)
  return u[0] * v[0] - u[1] * v[1], u[0] * v[1] + u[1] * v[0]


def _where(flag, u, v):
  """`jnp.where` by parts; `u` where there is no flag."""
  if flag is None:
    return u
  return tuple(jnp.where(flag, p, q) for p, q in zip(u, v))


def _rolled(u, by):
  """Moves the steps of a tile down, the last ones to the top."""
  return tuple(pltpu.roll(p, by, 0) for p in u)


def _zero_where(flag, u):
  return u if flag is None else tuple(jnp.where(flag, 0, p) for p in u)


def _zero_unless(flag, u):
  return u if flag is None else tuple(jnp.where(flag, p, 0) for p in u)


def _load(refs, rows=Ellipsis):
  """The parts of an array, in float32."""
  return tuple(ref[rows].astype(jnp.float32) for ref in refs)


def _store(refs, parts, rows=Ellipsis):
  for ref, part in zip(refs, parts):
    ref[rows] = part.astype(ref.dtype)


def _round_up(n, to):
  return pl.cdiv(n, to) * to


BACKEND = backend.Backend(scan, summary, gradient, supports)
