"""One program of a GPU kernel: how it copies blocks and runs their steps.

`gpu_sweep.py` launches the programs.
"""

from typing import Any, NamedTuple

import jax
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu
import jax.numpy as jnp
from rnnzoo.ops.linear_scan import complex_parts

GROUP = 8  # Steps whose loads are issued together.
LANES = 128  # Channels of a program: a warpgroup, one thread for each.
GRID_AXIS = 'linear_scan_program'  # No mesh axis has this name.

# Whether kernels are interpreted on CPU: for tests and dry runs, very slow.
interpret = jax.make_user_context(False)


class Plan(NamedTuple):
  """How a sweep over `[B, T, D]` is cut."""

  rows: int  # Steps of a block, which is copied as one.
  stages: int  # Blocks of shared memory: one in use, the others being copied.
  blocks: int  # Blocks of a chunk.
  chunks: int  # Chunks of time, each of them a program.


class Layout(NamedTuple):
  """The static properties of a sweep.

  Attributes:
    cut: The `Plan`.
    batch: B.
    time: T.
    features: D.
    dtypes: The dtype of each operand.
    constant: Whether each operand is the same at all times.
    shifted: For each stream, a real array that is copied in blocks, whether it
      is copied from one step ahead.
    state_dtypes: The dtype of each state.
    reset: Whether there are resets.
    mask: Whether there is a mask.
    reverse: Whether time runs backwards.
  """

  cut: Plan
  batch: int
  time: int
  features: int
  dtypes: tuple[Any, ...]
  constant: tuple[bool, ...]
  shifted: tuple[bool, ...]
  state_dtypes: tuple[Any, ...]
  reset: bool
  mask: bool
  reverse: bool

  @property
  def tiles(self) -> int:
    """The number of groups of 128 channels."""
    return pl.cdiv(self.features, LANES)

  @property
  def ragged(self) -> bool:
    """Whether steps beyond T must be masked, and no mask does so already."""
    # Flags beyond T are False, so that a mask covers them as well.
    covered = self.cut.rows * self.cut.blocks
    return not self.mask and self.time % covered > 0


class Now(NamedTuple):
  """The step that runs; its flags are scalars, or None if there are none."""

  time: jax.Array
  start: jax.Array | None  # Whether a sequence starts.
  present: jax.Array | None  # Whether the step is neither masked nor beyond T.

  def start_vector(self):
    return None if self.start is None else _vector(self.start)

  def clear(self, value):
    """Replaces a value by 0 where a sequence starts: 0 * NaN would leak."""
    return value if self.start is None else select(self.start, 0, value)

  def or_else(self, value, otherwise):
    """Replaces a value by a real constant where the step is absent."""
    if self.present is None:
      return value
    return select(self.present, value, otherwise)


def select(flag, u, v):
  """Selects between two values, or between a value and a real number."""
  flag = _vector(flag)
  width = max(len(w) for w in (u, v) if isinstance(w, tuple))
  u, v = (
      w if isinstance(w, tuple) else (float(w),) + (0.0,) * (width - 1)
      for w in (u, v)
  )
  return tuple(jnp.where(flag, p, q) for p, q in zip(u, v))


def _vector(flag):
  return jnp.broadcast_to(flag, (LANES,))


class Program:
  """One program, inside the kernel: a row, a chunk and 128 channels."""

  def __init__(
      self, layout, step, reads, shared, writes, buffers, out_buffers, barrier
  ):
    self._layout, self._step = layout, step
    self._reads, self._shared, self._writes = reads, shared, writes
    self._buffers, self._out_buffers = buffers, out_buffers
    self._barrier = barrier
    # It compiles all that is unrolled.
    self._group = 2 if interpret.value else GROUP
    tiles, chunks = layout.tiles, layout.cut.chunks
    program = lax.axis_index(GRID_AXIS)
    self._channels = pl.ds(lax.rem(program, tiles) * LANES, LANES)
    self._row = program // (tiles * chunks)
    self._chunk = lax.rem(program // tiles, chunks)
    constants = self._read('constants', 0, self._channels)
    self._fixed = [u.astype(jnp.float32) for u in constants]

  def run(self, ends):
    """Runs all blocks of the chunk, and writes the states at its end."""
    layout = self._layout
    for i in range(layout.cut.stages):
      self._fetch(i)
    # Inside `jax.shard_map`, values that are read have a type that varies over
    # the mesh. Computed values have not, and the carry of a loop must not.
    parts = iter([1 * part for part in self._read('state', self._channels)])
    carry, *rest = (
        complex_parts.take(parts, dtype) for dtype in layout.state_dtypes
    )
    if self._reads['product']:
      carry = self._through_earlier_chunks(carry)
    first_words = self._read('words', self._block(0))
    end, _ = lax.fori_loop(
        0, layout.cut.blocks, self._run_block, ((carry, *rest), first_words)
    )
    for ref, part in zip(ends, jax.tree.leaves(end)):
      ref[self._row, self._chunk, self._channels] = part
    if self._out_buffers:
      plgpu.wait_smem_to_gmem(0)

  # --- Copies -----------------------------------------------------------------

  def _read(self, name, *index):
    """Reads `index` of this program's row of some small arrays."""
    return [
        ref[(0 if alone else self._row, *index)]
        for ref, alone in zip(self._reads[name], self._shared[name])
    ]

  def _block(self, i):
    """The index along time of the `i`th block of this chunk."""
    blocks = self._layout.cut.blocks
    first = self._chunk * blocks
    return first + (blocks - 1 - i if self._layout.reverse else i)

  def _fetch(self, i):
    """Starts to copy the `i`th block of this chunk into shared memory."""
    cut = self._layout.cut
    slot, t = lax.rem(i, cut.stages), self._block(i) * cut.rows
    t_ahead = jnp.maximum(t - 1, 0) if self._layout.reverse else t + 1
    for ref, alone, buffer, is_ahead in zip(
        self._reads['streams'], self._shared['streams'], self._buffers,
        self._layout.shifted,
    ):
      steps = pl.ds(t_ahead if is_ahead else t, cut.rows)
      plgpu.copy_gmem_to_smem(
          ref.at[0 if alone else self._row, steps, self._channels],
          buffer.at[slot],
          self._barrier.at[slot],
      )

  def _load(self, slot, j, t):
    """Returns the values of step `t`, which is row `j` of its block."""
    layout = self._layout
    # The first block of all cannot be copied from one step before it.
    j_ahead = (
        jnp.where(t == j, jnp.maximum(j - 1, 0), j) if layout.reverse else j
    )
    streams = iter([
        buffer[slot, j_ahead if is_ahead else j].astype(jnp.float32)
        for buffer, is_ahead in zip(self._buffers, layout.shifted)
    ])
    fixed = iter(self._fixed)
    return [
        complex_parts.take(fixed if is_fixed else streams, dtype)
        for dtype, is_fixed in zip(layout.dtypes, layout.constant)
    ]

  # --- Steps ------------------------------------------------------------------

  def _run_block(self, i, carry):
    state, words = carry
    cut = self._layout.cut
    # Read one block ahead, so that no thread waits for them.
    following = self._read(
        'words', self._block(jnp.minimum(i + 1, cut.blocks - 1))
    )
    slot, out_slot = lax.rem(i, cut.stages), lax.rem(i, 2)
    t0 = self._block(i) * cut.rows
    plgpu.barrier_wait(self._barrier.at[slot])
    if self._out_buffers:  # The block before last has left this one.
      plgpu.wait_smem_to_gmem(1, wait_read_only=True)
    state = lax.fori_loop(
        0, cut.rows // self._group,
        lambda g, state: self._run_group(g, state, slot, out_slot, t0, words),
        state,
    )
    plgpu.commit_smem()  # From here on no thread reads the block either.
    for ref, buffer in zip(self._writes, self._out_buffers):
      plgpu.copy_smem_to_gmem(
          buffer.at[out_slot],
          ref.at[self._row, pl.ds(t0, cut.rows), self._channels],
          commit_group=buffer is self._out_buffers[-1],
      )

    @pl.when(i + cut.stages < cut.blocks)
    def _():
      self._fetch(i + cut.stages)

    return state, following

  def _run_group(self, g, state, slot, out_slot, t0, words):
    """Runs a few steps of a block, unrolled."""
    js = [g * self._group + i for i in range(self._group)]
    if self._layout.reverse:
      js = [self._layout.cut.rows - 1 - j for j in js]
    # All loads, then all stores: the compiler may not exchange them.
    values = [self._load(slot, j, t0 + j) for j in js]
    results = []
    for j, value in zip(js, values):
      state, out = self._step(self._now(t0, j, words), value, state)
      results.append(jax.tree.leaves(out))
    for j, parts in zip(js, results):
      for buffer, part in zip(self._out_buffers, parts):
        buffer[out_slot, j] = part.astype(buffer.dtype)
    return state

  def _now(self, t0, j, words):
    """The `Now` of row `j` of a block with these flags."""
    layout = self._layout
    flags = [(word >> j) & 1 != 0 for word in words]
    return Now(
        time=t0 + j,
        start=flags[0] if layout.reset else None,
        present=(
            flags[-1] if layout.mask
            else t0 + j < layout.time if layout.ragged
            else None
        ),
    )

  def _through_earlier_chunks(self, carry):
    """Takes the state through the chunks before the one of this program."""
    chunks, reverse = self._layout.cut.chunks, self._layout.reverse
    before = chunks - 1 - self._chunk if reverse else self._chunk

    def run_chunks(g, carry):
      ks = [g * self._group + i for i in range(self._group)]
      loaded = []
      for k in ks:
        k = jnp.minimum(k, chunks - 1)
        k = chunks - 1 - k if reverse else k
        loaded.append((
            tuple(self._read('product', k, self._channels)),
            tuple(self._read('last', k, self._channels)),
            self._read('cleared', k),
        ))
      for k, (product, last, cleared) in zip(ks, loaded):
        moved = complex_parts.multiply(product, carry)
        for flag in cleared:
          moved = select(flag != 0, 0, moved)
        carry = select(k < before, complex_parts.add(moved, last), carry)
      return carry

    return lax.fori_loop(0, pl.cdiv(before, self._group), run_chunks, carry)
