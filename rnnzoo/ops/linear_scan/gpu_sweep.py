"""One sweep over time on a GPU: its operands, its launch and its results.

`sweep` prepares the operands and launches one program for each row, chunk of
time and group of channels. `gpu_program.py` has the program.
"""

from collections.abc import Callable, Sequence
import functools
from typing import Any

import jax
from jax.experimental.pallas import mosaic_gpu as plgpu
import jax.numpy as jnp
from rnnzoo.ops.linear_scan import complex_parts
from rnnzoo.ops.linear_scan import gpu_program

LANES = gpu_program.LANES


def is_constant(u: jax.Array, shape) -> bool:
  """Whether an operand of a sweep over `[B, T, D]` is the same at all times."""
  return u.shape[1] == 1 and u.shape != shape


def in_blocks(flags: jax.Array, count: int, size: int) -> jax.Array:
  """Splits flags `[B, T]` into blocks `[B, count, size]`, False beyond T."""
  flags = jnp.pad(flags, ((0, 0), (0, count * size - flags.shape[1])))
  return flags.reshape(flags.shape[0], count, size)


def sweep(
    step: Callable,
    cut: gpu_program.Plan,
    shape: tuple[int, int, int],
    operands: Sequence[jax.Array],
    state: Sequence[jax.Array],
    outs: Sequence[Any],
    entering: tuple[jax.Array, jax.Array, jax.Array | None] | None,
    *,
    reset: jax.Array | None,
    mask: jax.Array | None,
    reverse: bool,
    ahead: int | None = None,
) -> tuple[list[jax.Array], list[jax.Array]]:
  """Runs a recurrence, a program for each row, chunk and 128 channels.

  Args:
    step: A function `(now, values, state) -> (state, outs)` of one step. Values
      are tuples of vectors, see `complex_parts.py`.
    cut: The `Plan`.
    shape: `(B, T, D)`.
    operands: Arrays `[B|1, T|1, D|1]`, the values of a step.
    state: Arrays `[B|1, D]`, before the first step.
    outs: dtypes of the values that `step` returns beside the state.
    entering: What each chunk does to `state[0]`: a product and an addend
      `[B, N, D]`, and booleans `[B, N]` or None, see `pallas_gpu._summaries`.
      None if there is only one chunk.
    reset: Booleans `[B, T]` or None.
    mask: Booleans `[B, T]` or None.
    reverse: Whether time runs backwards.
    ahead: The index of an operand of which `step` gets the value one step later
      in the direction of travel, or any value where there is no such step.

  Returns:
    Arrays `[B, T, D]`, and the states `[B, N, D]` at the end of each chunk.
  """
  batch, time, features = shape
  layout = _layout(cut, shape, operands, state, reset, mask, reverse, ahead)
  reads = _reads(layout, operands, state, entering, reset, mask)
  out_shape = shape
  if gpu_program.interpret.value and jax.__version_info__ < (0, 12):
    # This interpreter does not clip copies as the hardware does.
    steps = (cut.blocks * cut.chunks + 1) * cut.rows
    out_shape = batch, steps, layout.tiles * LANES
    edges = [(0, n - m) for n, m in zip(out_shape, shape)]
    reads['streams'] = [
        jnp.pad(u, [(0, 0), *edges[1:]]) for u in reads['streams']
    ]
  written, ends = _launch(layout, step, reads, out_shape, outs)
  written = iter([u[:, :time, :features] for u in written])
  ends = iter([u[:, :, :features] for u in ends])
  take = lambda parts, dtype: complex_parts.join(
      complex_parts.take(parts, dtype)
  )
  return (
      [take(written, dtype) for dtype in outs],
      [take(ends, u.dtype) for u in state],
  )


def _layout(cut, shape, operands, state, reset, mask, reverse, ahead):
  constant = tuple(is_constant(u, shape) for u in operands)
  shifted = tuple(
      i == ahead
      for i, u in enumerate(operands) if not constant[i]
      for _ in complex_parts.dtypes(u.dtype)
  )
  batch, time, features = shape
  return gpu_program.Layout(
      cut, batch, time, features, tuple(u.dtype for u in operands), constant,
      shifted, tuple(u.dtype for u in state), reset is not None,
      mask is not None, reverse,
  )


def _reads(layout, operands, state, entering, reset, mask):
  """Returns the real arrays that programs read, by name."""
  whole = lambda *us: [
      _whole_tiles(part, layout.features)
      for u in us for part in complex_parts.split(u)
  ]
  streams, constants = [], []
  for u, is_fixed in zip(operands, layout.constant):
    if is_fixed:
      constants += whole(u)
    else:
      streams += complex_parts.split(u)
  cut = layout.cut
  product, last, cleared = entering or (None, None, None)
  if reset is not None and mask is not None:
    reset = reset & mask
  return dict(
      streams=streams,
      constants=constants,
      state=whole(*state),
      product=[] if entering is None else whole(product),
      last=[] if entering is None else whole(last),
      cleared=[] if cleared is None else [cleared.astype(jnp.int32)],
      words=[
          _words(flags, cut.blocks * cut.chunks, cut.rows)
          for flags in (reset, mask)
          if flags is not None
      ],
  )


def _words(flags, count, size):
  """Packs flags `[B, T]` into integers `[B, count]` of `size` bits."""
  bits = in_blocks(flags, count, size).astype(jnp.int32) << jnp.arange(size)
  return bits.sum(-1, dtype=jnp.int32)


def _whole_tiles(u, features):
  """Pads the last axis to whole programs; for small arrays only."""
  u = jnp.broadcast_to(u, (*u.shape[:-1], features))
  return jnp.pad(u, [(0, 0)] * (u.ndim - 1) + [(0, -features % LANES)])


def _launch(layout, step, reads, out_shape, outs):
  """Runs the programs: the parts of `outs`, and those of the last states."""
  cut, batch, tiles = layout.cut, layout.batch, layout.tiles
  shared = jax.tree.map(lambda u: u.shape[0] < batch, reads)
  streams = reads['streams']
  out_dtypes = [part for out in outs for part in complex_parts.dtypes(out)]

  def recurrence(reads, writes, ends, buffers, out_buffers, barrier):
    program = gpu_program.Program(
        layout, step, reads, shared, writes, buffers, out_buffers, barrier
    )
    program.run(ends)

  # Inside `jax.shard_map` results vary wherever an operand does.
  struct = functools.partial(
      jax.ShapeDtypeStruct, manual_axis_type=jax.typeof(streams[-1]).mat
  )
  kernel = plgpu.kernel(
      recurrence,
      out_type=(
          [struct(out_shape, dtype) for dtype in out_dtypes],
          [
              struct((batch, cut.chunks, tiles * LANES), part.dtype)
              for part in reads['state']
          ],
      ),
      scratch_types=(
          [plgpu.SMEM((cut.stages, cut.rows, LANES), u.dtype) for u in streams],
          [plgpu.SMEM((2, cut.rows, LANES), dtype) for dtype in out_dtypes],
          plgpu.Barrier(num_arrivals=len(streams), num_barriers=cut.stages),
      ),
      # One axis: CUDA limits the others to 65535.
      grid=(batch * cut.chunks * tiles,),
      grid_names=(gpu_program.GRID_AXIS,),
      compiler_params=plgpu.CompilerParams(
          # Shared memory is either read or written, and by one thread only.
          unsafe_no_auto_barriers=True,
          # The same code as with layouts inferred, compiled 20 times faster.
          lowering_semantics=plgpu.LoweringSemantics.Lane,
      ),
      interpret=_interpreter(),
  )
  with jax.enable_x64(False):  # Indices are of 32 bits.
    return kernel(reads)


def _interpreter():
  if not gpu_program.interpret.value:
    return None
  interpreter = getattr(plgpu, 'InterpretGPUParams', None)
  if interpreter is None:  # Not public in older versions of JAX.
    from jax._src.pallas.mosaic_gpu.interpret import params
    interpreter = params.InterpretGPUParams
  return interpreter(detect_races=True)
