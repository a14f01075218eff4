"""The recurrence as kernels for Hopper GPUs (Pallas, Mosaic GPU).

A program owns one batch row, 128 neighbouring channels, one thread each, and a
stretch of time. It walks the stretch in blocks of a few steps, which the copy
engine (TMA) brings into shared memory several blocks ahead, with the state in a
register; the copy engine also writes the states back, and clips both at the
edges of the arrays. Where batch and channels are enough to fill the GPU the
stretch is all of time (streaming). Where they are not, time is cut into chunks,
in two passes: the first finds what each chunk does to a state (a product and an
addend), the second runs over the chunks before its own, and then its own.

None of this has run on a GPU yet: see `MEASURED`.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu
import jax.numpy as jnp
from rnnzoo.ops.linear_scan import gates

LANES = 128  # Channels of a program: a warpgroup, one thread for each.
PROCESSORS = 132  # Multiprocessors of an H100 or H200.
SHARED_MEMORY = 227 * 1024  # Bytes of it that a program may use.

# Per device kind the least number of elements `B * T * D` from which all
# variants were measured to beat `associative`, with the measurement beside it.
# Empty until these kernels have run on a GPU.
MEASURED: dict[str, int] = {}

# Whether kernels are interpreted on CPU: for tests and dry runs, very slow.
interpret = jax.make_user_context(False)


def wins(device_kind: str, batch: int, time: int, features: int) -> bool:
  """Whether the kernel was measured to be the fastest form of such a scan."""
  least = MEASURED.get(device_kind)
  return least is not None and batch * time * features >= least


class Plan(NamedTuple):
  """How a sweep over `[B, T, D]` is cut up."""

  rows: int  # Steps of a block, which is copied as one.
  stages: int  # Blocks of shared memory: one in use, the others on their way.
  blocks: int  # Blocks of a chunk.
  chunks: int  # Chunks of time, each of them a program.


def plan(
    batch: int, time: int, features: int, read: int, written: int
) -> Plan:
  """Chooses between streaming and chunks, and the sizes of blocks.

  4.8 TB/s at a latency of 0.8 microseconds is 3.8 MB under way, or 29 KB per
  multiprocessor, of which reads are two thirds. Half of shared memory, so that
  two programs fit, has room for 40 to 80 KB of reads under way and two blocks
  of results: a program alone reaches the multiprocessor's share.

  Streaming takes 3 moves of an array and needs many programs: each handles 1.5
  KB (float32) in the some 35 cycles that a step takes, 77 GB/s at 1.76 GHz, so
  that about 56 of them saturate the memory. Chunks take 5 moves, at best 3 / 5
  of that speed, which streaming reaches with 36 programs. Chunks are as many as
  make two programs for each multiprocessor, and not under 64 steps.

  Args:
    batch: B.
    time: T.
    features: D.
    read: Bytes read per step and channel.
    written: Bytes written per step and channel.

  Returns:
    The plan.
  """
  for rows in (32, 16, 8):
    free = SHARED_MEMORY // 2 - 1024 - 2 * rows * LANES * written
    stages = free // (rows * LANES * read)
    if stages >= 3:
      break
  programs = batch * pl.cdiv(features, LANES)
  chunk = time
  if programs < 36 and time >= 128:
    chunk = max(64, pl.cdiv(time, 2 * PROCESSORS // programs))
    # Of whole blocks, whichever their size, so that both passes agree.
    chunk = 32 * pl.cdiv(chunk, 32)
  blocks = pl.cdiv(chunk, rows)
  return Plan(rows, min(stages, 8, blocks), blocks, pl.cdiv(time, chunk))


def supports(inputs, h0, reset, mask, *, gate, decay_after) -> str | None:
  """Returns why the kernel cannot take these, in a sentence, or `None`."""
  del reset, mask, decay_after
  features = h0.shape[1]
  time = max(u.shape[1] for u in inputs)
  for i, u in enumerate(inputs):
    if u.dtype not in (jnp.float32, jnp.bfloat16, jnp.complex64):
      return (
          f'input {i} is {u.dtype}; the kernel takes float32, bfloat16 and '
          'complex64.'
      )
    if u.dtype == jnp.complex64 and gate is not gates.linear:
      return f'input {i} is complex64; the kernel takes complex `a` and `x`.'
    if u.shape[2] == 1 and u.shape[1] > 1:
      return f'input {i} {u.shape} is shared by all channels but not in time.'
  if h0.dtype not in (jnp.float32, jnp.complex64):
    return f'states are {h0.dtype}; the kernel accumulates in float32.'
  # The copy engine steps through memory in units of 16 bytes.
  if features % 8:
    return f'D = {features} is no multiple of 8.'
  if time >= 2**31:
    return f'T = {time} is too long.'
  return None


def scan(inputs, h0, reset, mask, *, gate, reverse, decay_after):
  """Returns `(last, h)`; `__init__.py` has the contract."""
  operands = _Operands(inputs, h0, reset, mask)
  dtype = inputs[-1].dtype
  complex_ = h0.dtype == jnp.complex64

  def step(now, values, state):
    carry = state[0]
    a, x = _gated(gate, now, values)
    if decay_after:
      h = _add(carry, x)
      carry = now.clear(_times(a, h))
    else:
      carry = h = _add(now.clear(_times(a, carry)), x)
    return (carry,), (h,)

  sweep = _Sweep(operands, (dtype,), complex_, reverse)
  entering = sweep.entering(gate, inputs, h0, decay_after)
  (h,), (last,) = sweep.run(step, entering)
  return last, h


def summary(inputs, reset, mask, *, gate, reverse, decay_after):
  """Returns `(product, last)`; `__init__.py` has the contract."""
