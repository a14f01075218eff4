"""The recurrence as kernels for Hopper GPUs (Pallas, Mosaic GPU).

A program owns one batch row, 128 neighbouring channels (one thread each) and a
chunk of time. It walks over the chunk in blocks of a few steps. The copy engine
(TMA) brings the blocks into shared memory, several of them ahead, while the
state stays in a register. The copy engine also writes the states back, and
clips both at the edges of the arrays.

If batch and channels alone fill the GPU, there is one chunk, which is the whole
of time ("streaming"). Otherwise time is cut into chunks, and there are two
passes. The first finds what each chunk does to a state: a product and an
addend. The second takes the state through all earlier chunks and then runs over
its own.

`gpu_sweep.py` launches a sweep over time, `gpu_program.py` is what one program
of it does, and `gpu_gates.py` lowers gates.

None of this has run on a GPU yet: see `MEASURED`.
"""

import functools
from typing import Any

import jax
from jax import lax
from jax.experimental import pallas as pl
import jax.numpy as jnp
from rnnzoo.ops.linear_scan import backend
from rnnzoo.ops.linear_scan import complex_parts
from rnnzoo.ops.linear_scan import gates
from rnnzoo.ops.linear_scan import gpu_gates
from rnnzoo.ops.linear_scan import gpu_program
from rnnzoo.ops.linear_scan import gpu_sweep

LANES = gpu_program.LANES
PROCESSORS = 132  # Multiprocessors of an H100 or H200.
SHARED_MEMORY = 227 * 1024  # Bytes of it that a program may use.

# For each kind of device, the smallest number of elements `B * T * D` from
# which all variants were measured to beat `associative`, with the measurement
# beside it. Empty until these kernels have run on a GPU.
MEASURED: dict[str, int] = {}

interpret = gpu_program.interpret

_add, _multiply = complex_parts.add, complex_parts.multiply


def wins(device_kind: str, batch: int, time: int, features: int) -> bool:
  """Whether the kernel was measured to be the fastest form of such a scan."""
  least = MEASURED.get(device_kind)
  return least is not None and batch * time * features >= least


def is_fastest(shape) -> bool:
  """Whether the kernel is the fastest form on the GPU of this machine."""
  kind = _gpu_kind()
  return kind is not None and wins(kind, *shape)


@functools.cache
def _gpu_kind():
  if jax.default_backend() != 'gpu':
    return None
  return jax.devices()[0].device_kind


def plan(
    batch: int, time: int, features: int, read: int, written: int
) -> gpu_program.Plan:
  """Chooses between streaming and chunks, and the sizes of blocks.

  A bandwidth of 4.8 TB/s at a latency of 0.8 microseconds needs 3.8 MB in
  flight, or 29 KB for each multiprocessor; two thirds of these are reads. Half
  of shared memory, so that two programs fit, has room for 40 to 80 KB of reads
  in flight and two blocks of results. So one program is enough for its
  multiprocessor.

  Streaming moves an array 3 times and needs many programs. Each moves 1.5 KB
  (float32) in the about 35 cycles of a step, which is 77 GB/s at 1.76 GHz, so
  about 56 programs saturate the memory. Chunks move an array 5 times and reach
  at best 3 / 5 of that speed, which streaming reaches with 36 programs. The
  number of chunks gives two programs to each multiprocessor, but a chunk has at
  least 64 steps.

  Args:
    batch: B.
    time: T.
    features: D.
    read: Bytes read per step and channel.
    written: Bytes written per step and channel.

  Returns:
    The plan.
  """
  # A gate with very many inputs gets all of the memory.
  for share, rows in ((2, 32), (2, 16), (2, 8), (1, 8)):
    free = SHARED_MEMORY // share - 1024 - 2 * rows * LANES * written
    stages = free // (rows * LANES * read)
    if stages >= 3:
      break
  programs = batch * pl.cdiv(features, LANES)
  chunk = time
  if programs < 36 and time >= 128:
    chunk = max(64, pl.cdiv(time, 2 * PROCESSORS // programs))
    # Whole blocks of any size, so that both passes agree.
    chunk = 32 * pl.cdiv(chunk, 32)
  blocks = pl.cdiv(chunk, rows)
  return gpu_program.Plan(
      rows, min(stages, 8, blocks), blocks, pl.cdiv(time, chunk)
  )


def supports(inputs, h0, reset, mask, *, gate, decay_after) -> str | None:
  """Returns why the kernel cannot take these inputs, or None if it can."""
  del reset, mask, decay_after
  features = h0.shape[1]
  if len(inputs) > 12:
    return f'{len(inputs)} inputs do not fit into shared memory.'
  for i, u in enumerate(inputs):
    if u.dtype not in (jnp.float32, jnp.bfloat16, jnp.complex64):
      return (
          f'input {i} is {u.dtype}; the kernel takes float32, bfloat16 and '
          'complex64.'
      )
    if u.dtype == jnp.complex64 and gate is not gates.linear:
      return f'input {i} is complex64; the kernel takes complex `a` and `x`.'
    if u.shape[2] == 1 and u.shape[1] > 1:
      return (
          f'input {i} {u.shape} is the same for all channels, but not at all '
          'times.'
      )
  if h0.dtype not in (jnp.float32, jnp.complex64):
    return f'states are {h0.dtype}; the kernel accumulates in float32.'
  # The copy engine steps through memory in units of 16 bytes.
  if features % 8:
    return f'D = {features} is not a multiple of 8.'
  return None


def scan(inputs, h0, reset, mask, *, gate, reverse, decay_after):
  """Returns `(last, h)`; see `backend.py`."""
  rule = gpu_gates.forward_rule(gate, len(inputs), LANES, reset, decay_after)

  def step(now, values, state):
    (carry,), (a, x) = state, rule(now, values)
    if decay_after:
      h = _add(carry, x)
      carry = now.clear(_multiply(a, h))
    else:
      carry = h = _add(now.clear(_multiply(a, carry)), x)
    return (carry,), (h,)

  x = inputs[-1]
  flags = dict(reset=reset, mask=mask, reverse=reverse)
  cut = _plan(x.shape, inputs, (x.dtype,))
  entering = None
  if cut.chunks > 1:
    entering = _summaries(inputs, x.shape, h0.dtype, gate, decay_after, **flags)
  (h,), (last,) = gpu_sweep.sweep(
      step, cut, x.shape, inputs, (h0,), (x.dtype,), entering, **flags
  )
  return _ends(last, reverse), h


def summary(inputs, reset, mask, *, gate, reverse, decay_after):
  """Returns `(product, last)`; see `backend.py`."""
  dtype = jnp.result_type(jnp.float32, *inputs)
  product, last, cleared = _summaries(
      inputs, inputs[-1].shape, dtype, gate, decay_after,
      reset=reset, mask=mask, reverse=reverse,
  )

  def join(first, second):
    (p, h, already), (a, x, cleared) = first, second
    p, h = (jnp.where(cleared, 0, u) for u in (p, h))
    return a * p, a * h + x, already | cleared

  cleared = False if cleared is None else cleared[..., None]
  cleared = jnp.broadcast_to(cleared, product.shape)
  product, last, _ = lax.associative_scan(
      join, (product, last, cleared), axis=1, reverse=reverse
  )
  return _ends(product, reverse), _ends(last, reverse)


def gradient(inputs, h, h0, reset, mask, dlast, dh, *, gate, reverse):
  """Returns `(dinputs, dh0)`; see `backend.py`."""
  linear = gate is gates.linear
  inputs = inputs[:1] if linear else inputs  # dx does not depend on x.
  rule = gpu_gates.backward_rule(gate, len(inputs), LANES, reset)
  first = h.shape[1] - 1 if reverse else 0
  wanted = (*inputs, dh) if linear else inputs
  # The gradient of an input that is constant in time is summed on chip.
  constant = [gpu_sweep.is_constant(u, h.shape) for u in wanted]

  def step(now, values, state):
    *values, before, dh, start = values
    carry, *sums = state
    lam = _add(carry, dh)
    before = gpu_program.select(now.time == first, start, before)
    a, dinputs = rule(now, values, now.clear(_multiply(before, lam)), lam)
    dinputs = [
        # A real input has a real gradient.
        now.or_else(du[: len(complex_parts.dtypes(u.dtype))], 0)
        for u, du in zip(wanted, dinputs)
    ]
    carry = now.clear(_multiply(now.or_else(a, 1), lam))
    added = [du for du, on_chip in zip(dinputs, constant) if on_chip]
    written = [du for du, on_chip in zip(dinputs, constant) if not on_chip]
    return (carry, *map(_add, sums, added)), tuple(written)

  outs, sums = [], []
  for u, on_chip in zip(wanted, constant):
    dtype = jnp.promote_types(u.dtype, jnp.float32)
    if on_chip:
      sums.append(jnp.zeros((1, h.shape[2]), dtype))
    else:  # Rounded once: later, if the caller still sums over the batch.
      outs.append(u.dtype if u.shape[0] == h.shape[0] else dtype)
  flags: dict[str, Any] = dict(reset=reset, mask=mask, reverse=not reverse)
  cut = _plan(h.shape, (*inputs, h, dh), outs)
  entering = None
  if cut.chunks > 1:
    adjoint = gate if linear else gates.adjoint(gate)
    entering = _summaries(
        (*inputs, dh), h.shape, h0.dtype, adjoint, True, **flags
    )
  written, (dh0, *sums) = gpu_sweep.sweep(
      step, cut, h.shape, (*inputs, h, dh, h0[:, None]), (dlast, *sums), outs,
      entering, ahead=len(inputs), **flags,
  )
  written, sums = iter(written), iter(sums)
  dinputs = tuple(next(sums if on_chip else written) for on_chip in constant)
  return dinputs, _ends(dh0, not reverse)


def _summaries(
    inputs, shape, dtype, gate, decay_after, *, reset, mask, reverse
):
  """Returns what each chunk does to the state that enters it.

  The state that leaves is `product * state + last`, where `cleared` replaces
  `state` by 0.

  Returns:
    `(product, last, cleared)`: `[B, N, D]` twice, and booleans `[B, N]` or
    None.
  """
  rule = gpu_gates.forward_rule(gate, len(inputs), LANES, reset, decay_after)

  def step(now, values, state):
    (carry, product), (a, x) = state, rule(now, values)
    if decay_after:
      carry = now.clear(_multiply(a, _add(carry, x)))
    else:
      carry = _add(now.clear(_multiply(a, carry)), x)
    return (carry, now.clear(_multiply(a, product))), ()

  cut = _plan(shape, inputs, ())
  identity = jnp.zeros((1, shape[2]), dtype), jnp.ones((1, shape[2]), dtype)
  _, (last, product) = gpu_sweep.sweep(
      step, cut, shape, inputs, identity, (), None,
      reset=reset, mask=mask, reverse=reverse,
  )
  if reset is not None:
    reset = reset if mask is None else reset & mask
    chunk = cut.rows * cut.blocks
    reset = gpu_sweep.in_blocks(reset, cut.chunks, chunk).any(-1)
  return product, last, reset


def _plan(shape, reads, outs):
  size = lambda dtypes: sum(jnp.dtype(dtype).itemsize for dtype in dtypes)
  streams = [u.dtype for u in reads if not gpu_sweep.is_constant(u, shape)]
  batch, time, features = shape
  return plan(batch, time, features, size(streams), size(outs))


def _ends(u, reverse):
  """Selects the last chunk in the direction of travel from `[B, N, D]`."""
  return u[:, 0 if reverse else -1]


BACKEND = backend.Backend(scan, summary, gradient, supports, is_fastest)
