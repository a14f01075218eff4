"""How a TPU kernel cuts its arrays into blocks, and how it is launched.

Blocks. Features: up to 4 tiles of 128 lanes, as many as leave the fewest lanes
beyond D. Time: as many rows as fit `BLOCK_BYTES` for all operands. Each operand
counts twice, because the next block is copied while one is computed. The rows
are then divided evenly over the blocks. Example: three float32 arrays of 512
features give 680 rows, 4 MiB a step, which take 5 microseconds at the 819 GB/s
of a v5e, whose kernels may use 16 MiB.
"""

from collections.abc import Callable
import math
from typing import Any, NamedTuple

import jax
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
import jax.numpy as jnp
from rnnzoo.ops.linear_scan import complex_parts

LANES = 128
MAX_FEATURE_TILES = 4
BLOCK_BYTES = 8 * 2**20

# Runs kernels traced inside `with interpreted(True):` without a TPU, for tests.
interpreted = jax.make_user_context(False)


def bytes_moved(grid, operands) -> int:
  """Returns the bytes that a launch moves between HBM and the chip.

  A block is moved again only if its index differs from that of the step before.
  Pallas runs through the last axis of the grid first. So the number of moves is
  the product of the sizes of all axes up to the last one that the index depends
  on. Blocks count as a whole, even beyond the edges of their arrays.

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


class Operand(NamedTuple):
  """An array (or the shape and dtype of a result), and how it is cut."""

  spec: pl.BlockSpec
  array: jax.Array | jax.ShapeDtypeStruct


class Sweep(NamedTuple):
  """One walk over time: its sizes, its direction, and the kinds of inputs.

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
    return _round_up(self.block_time, LANES)

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
    """The tile of `h` next to a block, on the side where the state enters."""
    # Comparisons instead of a maximum: the index map takes plain integers too.
    def index(b, d, t):
      i = self.block(t)
      if self.backwards:  # The forward scan goes right.
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
    """Describes this many float32 results `[B, 1, D]`."""
    shape = jax.ShapeDtypeStruct((self.batch, 1, self.features), jnp.float32)
    return (Operand(self.row(), shape),) * parts

  def gradient_of(self, kind, u):
    """Describes the result that is the gradient of the input `u`."""
    if kind == 'row':
      return self.rows_of_batch(1)[0]
    if kind == 'wide':
      shape = (self.batch, self.time, self.features)
      dtype = jnp.float32 if u.shape[0] != self.batch else u.dtype
      return Operand(self.wide(), jax.ShapeDtypeStruct(shape, dtype))
    shape = (*self.grid, 1, self.column_lanes)
    return Operand(
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
    """The inverse of `as_columns` for `gradient_of`: `[B, T, n]`."""
    u = u[..., 0, : self.block_time]
    u = u.reshape(self.batch, self.feature_blocks, -1)[..., : self.time]
    return jnp.moveaxis(u, 1, 2)

  def packed(self, reset, mask):
    """Packs the resets, then the masks, of each tile into an integer."""
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
    """Cuts the last axis, time, into blocks, padded with zeros."""
    missing = self.time_blocks * self.block_time - self.time
    if missing:
      u = jnp.pad(u, ((0, 0),) * (u.ndim - 1) + ((0, missing),))
    return u.reshape(*u.shape[:-1], self.time_blocks, self.block_time)


def plan_sweep(inputs, more, reset, mask, gate, backwards):
  """Chooses the blocks of a sweep over the inputs and `more` full arrays."""
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
      for part in complex_parts.split(u)
  ]
  itemsizes = [part.dtype.itemsize for part in wide]
  tile = 32 // min(itemsizes)

  lane_tiles = pl.cdiv(features, LANES)
  block_features = LANES * min(
      range(1, MAX_FEATURE_TILES + 1),
      key=lambda n: (_round_up(lane_tiles, n), -n),
  )
  fitting = BLOCK_BYTES // (2 * block_features * sum(itemsizes))
  fitting = max(tile, fitting // tile * tile)
  least = pl.cdiv(time, fitting)
  blocks = next(
      (n for n in range(least, 2 * least) if time % (n * tile) == 0), least
  )
  block_time = _round_up(pl.cdiv(time, blocks), tile)
  return Sweep(
      batch, time, features, tile, block_time, block_features, backwards, gate,
      kinds, reset is not None, mask is not None,
  )


def shared_operands(sweep, inputs, reset, mask, **states):
  """Returns the operands that all kernels share, by name."""

  def of(kind, u):
    if kind == 'wide':
      return Operand(sweep.wide(u.shape[0]), u)
    u = u.astype(jnp.float32)
    if kind == 'column':
      return Operand(sweep.column(u.shape[0]), sweep.as_columns(u))
    u = jnp.broadcast_to(u, (u.shape[0], 1, sweep.features))
    return Operand(sweep.row(u.shape[0]), u)

  operands: dict[str, Any] = dict(
      inputs=tuple(
          tuple(of(kind, part) for part in complex_parts.split(u))
          for kind, u in zip(sweep.kinds, inputs)
      )
  )
  for name, u in states.items():
    operands[name] = tuple(
        Operand(sweep.row(), part[:, None]) for part in complex_parts.split(u)
    )
  if sweep.reset or sweep.mask:
    operands['flags'] = Operand(sweep.flags(), sweep.packed(reset, mask))
  return operands


def launch(kernel, sweep, operands, results, scratch, name):
  """Runs a kernel over the grid of a sweep."""
  is_operand = lambda u: isinstance(u, Operand)
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
  with jax.enable_x64(False):  # Mosaic has no 64-bit integers.
    return call(arrays)


def _cost(sweep, moved):
  """Estimates one gate and log2(tile) compositions for each element."""
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


def _round_up(n, to):
  return pl.cdiv(n, to) * to
