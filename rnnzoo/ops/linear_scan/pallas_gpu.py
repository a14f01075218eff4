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

import functools
from typing import NamedTuple

import jax
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu
from jax.extend import core
import jax.numpy as jnp
from rnnzoo.ops.linear_scan import backend
from rnnzoo.ops.linear_scan import gates

GROUP = 8  # Steps whose loads are issued together.
LANES = 128  # Channels of a program: a warpgroup, one thread for each.
PROCESSORS = 132  # Multiprocessors of an H100 or H200.
SHARED_MEMORY = 227 * 1024  # Bytes of it that a program may use.

# Per device kind the least number of elements `B * T * D` from which all
# variants were measured to beat `associative`, with the measurement beside it.
# Empty until these kernels have run on a GPU.
MEASURED: dict[str, int] = {}

_PROGRAM = 'linear_scan_program'  # No mesh axis has this name.

# Whether kernels are interpreted on CPU: for tests and dry runs, very slow.
interpret = jax.make_user_context(False)


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
  # A gate of very many inputs has the memory for itself.
  for share, rows in ((2, 32), (2, 16), (2, 8), (1, 8)):
    free = SHARED_MEMORY // share - 1024 - 2 * rows * LANES * written
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
      return f'input {i} {u.shape} is shared by all channels but not in time.'
  if h0.dtype not in (jnp.float32, jnp.complex64):
    return f'states are {h0.dtype}; the kernel accumulates in float32.'
  # The copy engine steps through memory in units of 16 bytes.
  if features % 8:
    return f'D = {features} is no multiple of 8.'
  return None


def scan(inputs, h0, reset, mask, *, gate, reverse, decay_after):
  """Returns `(last, h)`; `__init__.py` has the contract."""
  rule = _forward_rule(gate, len(inputs), reset, decay_after)

  def step(now, values, state):
    (carry,), (a, x) = state, rule(now, values)
    if decay_after:
      h = _add(carry, x)
      carry = now.clear(_times(a, h))
    else:
      carry = h = _add(now.clear(_times(a, carry)), x)
    return (carry,), (h,)

  x = inputs[-1]
  flags = dict(reset=reset, mask=mask, reverse=reverse)
  cut = _plan(x.shape, inputs, (x.dtype,))
  entering = None
  if cut.chunks > 1:
    entering = _summaries(inputs, x.shape, h0.dtype, gate, decay_after, **flags)
  (h,), (last,) = _sweep(
      step, cut, x.shape, inputs, (h0,), (x.dtype,), entering, **flags
  )
  return _ends(last, reverse), h


def summary(inputs, reset, mask, *, gate, reverse, decay_after):
  """Returns `(product, last)`; `__init__.py` has the contract."""
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
  """Returns `(dinputs, dh0)`; `__init__.py` has the contract."""
  linear = gate is gates.linear
  inputs = inputs[:1] if linear else inputs  # dx needs no look at x.
  rule = _backward_rule(gate, len(inputs), reset)
  first = h.shape[1] - 1 if reverse else 0
  wanted = (*inputs, dh) if linear else inputs
  # The gradient of what does not vary in time is summed on chip.
  constant = [_is_constant(u, h.shape) for u in wanted]

  def step(now, values, state):
    *values, before, dh, start = values
    carry, *sums = state
    lam = _add(carry, dh)
    before = _select(now.time == first, start, before)
    a, dinputs = rule(now, values, now.clear(_times(before, lam)), lam)
    dinputs = [
        # A real input has a real gradient.
        now.or_else(du[: len(_plane_dtypes(u.dtype))], 0)
        for u, du in zip(wanted, dinputs)
    ]
    carry = now.clear(_times(now.or_else(a, 1), lam))
    added = [du for du, on_chip in zip(dinputs, constant) if on_chip]
    written = [du for du, on_chip in zip(dinputs, constant) if not on_chip]
    return (carry, *map(_add, sums, added)), tuple(written)

  outs, sums = [], []
  for u, on_chip in zip(wanted, constant):
    dtype = jnp.promote_types(u.dtype, jnp.float32)
    if on_chip:
      sums.append(jnp.zeros((1, h.shape[2]), dtype))
    else:  # Rounded once: later, if the caller has yet to sum over the batch.
      outs.append(u.dtype if u.shape[0] == h.shape[0] else dtype)
  flags = dict(reset=reset, mask=mask, reverse=not reverse)
  cut = _plan(h.shape, (*inputs, h, dh), outs)
  entering = None
  if cut.chunks > 1:
    adjoint = gate if linear else gates.adjoint(gate)
    entering = _summaries(
        (*inputs, dh), h.shape, h0.dtype, adjoint, True, **flags
    )
  written, (dh0, *sums) = _sweep(
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

  It leaves as `product * state + last`, with 0 for `state` where `cleared`.

  Returns:
    `(product, last, cleared)`: `[B, N, D]` twice, and booleans `[B, N]` or
    None.
  """
  rule = _forward_rule(gate, len(inputs), reset, decay_after)

  def step(now, values, state):
    (carry, product), (a, x) = state, rule(now, values)
    if decay_after:
      carry = now.clear(_times(a, _add(carry, x)))
    else:
      carry = _add(now.clear(_times(a, carry)), x)
    return (carry, now.clear(_times(a, product))), ()

  cut = _plan(shape, inputs, ())
  identity = jnp.zeros((1, shape[2]), dtype), jnp.ones((1, shape[2]), dtype)
  _, (last, product) = _sweep(
      step, cut, shape, inputs, identity, (), None,
      reset=reset, mask=mask, reverse=reverse,
  )
  if reset is not None:
    reset = reset if mask is None else reset & mask
    reset = _blocks(reset, cut.chunks, cut.rows * cut.blocks).any(-1)
  return product, last, reset


class _Now(NamedTuple):
  """The step that is run; both flags are scalars, or None where always so."""

  time: jax.Array
  start: jax.Array | None  # Whether a sequence starts.
  present: jax.Array | None  # Whether there is such a step, and not masked.

  def start_vector(self):
    return None if self.start is None else _vector(self.start)

  def clear(self, value):
    """Replaces a value by 0 where a sequence starts: 0 * NaN would leak."""
    return value if self.start is None else _select(self.start, 0, value)

  def or_else(self, value, otherwise):
    """Replaces a value by a real constant where there is no step."""
    if self.present is None:
      return value
    return _select(self.present, value, otherwise)


def _sweep(
    step, cut, shape, operands, state, outs, entering,
    *, reset, mask, reverse, ahead=None,
):
  """Runs a recurrence, a program for each row, chunk and 128 channels.

  Args:
    step: A function `(now, values, state) -> (state, outs)` of one step. Values
      are tuples of vectors: one if real, two, real and imaginary, if complex.
    cut: The `Plan`.
    shape: `(B, T, D)`.
    operands: Arrays `[B|1, T|1, D|1]`, the values of a step.
    state: Arrays `[B|1, D]`, before the first step.
    outs: dtypes of the values that `step` returns beside the state.
    entering: What the chunks do to `state[0]`, as `_summaries` returns it, or
      None if there is only one.
    reset: Booleans `[B, T]` or None.
    mask: Booleans `[B, T]` or None.
    reverse: Whether time runs backwards.
    ahead: The number of an operand of which `step` sees what comes one step
      later in the direction of travel (and anything, where nothing comes).

  Returns:
    Arrays `[B, T, D]`, and the states `[B, N, D]` at the end of each chunk.
  """
  batch, time, features = shape
  rows, stages, blocks, chunks = cut
  tiles = pl.cdiv(features, LANES)
  group = 2 if interpret.value else GROUP  # It compiles all that is unrolled.
  constant = [_is_constant(u, shape) for u in operands]
  # Operands in planes, real arrays, and which of them are ahead.
  streams, shifted, constants = [], [], []
  for i, u in enumerate(operands):
    for plane in _planes(u):
      if constant[i]:
        constants.append(_whole_tiles(plane, features))
      else:
        streams.append(plane)
        shifted.append(i == ahead)
  out_planes = [dtype for out in outs for dtype in _plane_dtypes(out)]
  small = lambda *us: [
      _whole_tiles(plane, features) for u in us for plane in _planes(u)
  ]
  product, last, cleared = entering or (None, None, None)
  reset = reset & mask if reset is not None and mask is not None else reset
  reads = dict(
      streams=streams,
      constants=constants,
      state=small(*state),
      product=[] if entering is None else small(product),
      last=[] if entering is None else small(last),
      cleared=[] if cleared is None else [cleared.astype(jnp.int32)],
      words=[
          _words(flags, blocks * chunks, rows)
          for flags in (reset, mask)
          if flags is not None
      ],
  )
  # Flags beyond T are False, so that a mask covers the ragged edge as well.
  ragged = mask is None and time % (rows * blocks) > 0
  out_shape = shape
  if interpret.value and jax.__version_info__ < (0, 12):
    # This interpreter does not clip copies as the hardware does.
    out_shape = batch, (blocks * chunks + 1) * rows, tiles * LANES
    edges = [(0, n - m) for n, m in zip(out_shape, shape)]
    reads['streams'] = [jnp.pad(u, [(0, 0), *edges[1:]]) for u in streams]
  shared = jax.tree.map(lambda u: u.shape[0] < batch, reads)

  def recurrence(reads, writes, ends, buffers, out_buffers, barrier):
    program = lax.axis_index(_PROGRAM)
    channels = pl.ds(lax.rem(program, tiles) * LANES, LANES)
    b, n = program // (tiles * chunks), lax.rem(program // tiles, chunks)

    def read(name, *index):
      return [
          ref[(0 if alone else b, *index)]
          for ref, alone in zip(reads[name], shared[name])
      ]

    def number(i):
      return n * blocks + (blocks - 1 - i if reverse else i)

    def fetch(i):
      slot, t = lax.rem(i, stages), number(i) * rows
      t_ahead = jnp.maximum(t - 1, 0) if reverse else t + 1
      for ref, alone, buffer, is_ahead in zip(
          reads['streams'], shared['streams'], buffers, shifted
      ):
        steps = pl.ds(t_ahead if is_ahead else t, rows)
        plgpu.copy_gmem_to_smem(
            ref.at[0 if alone else b, steps, channels],
            buffer.at[slot],
            barrier.at[slot],
        )

    fixed = [u.astype(jnp.float32) for u in read('constants', 0, channels)]

    def load(slot, j, t):
      """Returns the values of step `t`, which is row `j` of its block."""
      # The first block of all cannot be copied from one step before it.
      j_ahead = jnp.where(t == j, jnp.maximum(j - 1, 0), j) if reverse else j
      planes = [
          buffer[slot, j_ahead if is_ahead else j].astype(jnp.float32)
          for buffer, is_ahead in zip(buffers, shifted)
      ]
      planes, others = iter(planes), iter(fixed)
      return [
          _next(others if is_constant else planes, u.dtype)
          for u, is_constant in zip(operands, constant)
      ]

    def run_group(g, state, slot, out_slot, t0, words):
      js = [g * group + i for i in range(group)]
      js = [rows - 1 - j for j in js] if reverse else js
      # All loads, then all stores: the compiler may not exchange them.
      values = [load(slot, j, t0 + j) for j in js]
      results = []
      for j, value in zip(js, values):
        flags = [(word >> j) & 1 != 0 for word in words]
        now = _Now(
            time=t0 + j,
            start=None if reset is None else flags[0],
            present=(
                flags[-1] if mask is not None
                else t0 + j < time if ragged
                else None
            ),
        )
        state, out = step(now, value, state)
        results.append(jax.tree.leaves(out))
      for j, planes in zip(js, results):
        for buffer, plane in zip(out_buffers, planes):
          buffer[out_slot, j] = plane.astype(buffer.dtype)
      return state

    def run_block(i, carry):
      state, words = carry
      # Read a block ahead, so that nobody waits for them.
      following = read('words', number(jnp.minimum(i + 1, blocks - 1)))
      slot, out_slot, t0 = lax.rem(i, stages), lax.rem(i, 2), number(i) * rows
      plgpu.barrier_wait(barrier.at[slot])
      if out_buffers:  # The block before last has left this one.
        plgpu.wait_smem_to_gmem(1, wait_read_only=True)
      state = lax.fori_loop(
          0, rows // group,
          lambda g, state: run_group(g, state, slot, out_slot, t0, words),
          state,
      )
      plgpu.commit_smem()  # From here on no thread reads the block either.
      for ref, buffer in zip(writes, out_buffers):
        plgpu.copy_smem_to_gmem(
            buffer.at[out_slot],
            ref.at[b, pl.ds(t0, rows), channels],
            commit_group=buffer is out_buffers[-1],
        )

      @pl.when(i + stages < blocks)
      def _():
        fetch(i + stages)

      return state, following

    def enter(carry):
      """Takes the state through the chunks before the `n`th."""
      before = chunks - 1 - n if reverse else n

      def run_chunks(g, carry):
        ks = [g * group + i for i in range(group)]
        loaded = []
        for k in ks:
          k = jnp.minimum(k, chunks - 1)
          k = chunks - 1 - k if reverse else k
          loaded.append((
              tuple(read('product', k, channels)),
              tuple(read('last', k, channels)),
              read('cleared', k),
          ))
        for k, (product, last, cleared) in zip(ks, loaded):
          moved = _times(product, carry)
          for flag in cleared:
            moved = _select(flag != 0, 0, moved)
          carry = _select(k < before, _add(moved, last), carry)
        return carry

      return lax.fori_loop(0, pl.cdiv(before, group), run_chunks, carry)

    for i in range(stages):
      fetch(i)
    # Inside `jax.shard_map` what is read is typed as varying over the mesh, and
    # what is computed from it is not, as the carry of a loop must be.
    planes = iter([1 * plane for plane in read('state', channels)])
    carry, *rest = (_next(planes, u.dtype) for u in state)
    if entering is not None:
      carry = enter(carry)
    end, _ = lax.fori_loop(
        0, blocks, run_block, ((carry, *rest), read('words', number(0)))
    )
    for ref, plane in zip(ends, jax.tree.leaves(end)):
      ref[b, n, channels] = plane
    if out_buffers:
      plgpu.wait_smem_to_gmem(0)

  # Inside `jax.shard_map` results vary wherever an operand does.
  struct = functools.partial(
      jax.ShapeDtypeStruct, manual_axis_type=jax.typeof(streams[-1]).mat
  )
  kernel = plgpu.kernel(
      recurrence,
      out_type=(
          [struct(out_shape, dtype) for dtype in out_planes],
          [
              struct((batch, chunks, tiles * LANES), plane.dtype)
              for plane in reads['state']
          ],
      ),
      scratch_types=(
          [plgpu.SMEM((stages, rows, LANES), u.dtype) for u in streams],
          [plgpu.SMEM((2, rows, LANES), dtype) for dtype in out_planes],
          plgpu.Barrier(num_arrivals=len(streams), num_barriers=stages),
      ),
      # One axis: CUDA limits the others to 65535.
      grid=(batch * chunks * tiles,),
      grid_names=(_PROGRAM,),
      compiler_params=plgpu.CompilerParams(
          # Shared memory is either read or written, and by one thread only.
          unsafe_no_auto_barriers=True,
          # The same code as with layouts inferred, compiled 20 times faster.
          lowering_semantics=plgpu.LoweringSemantics.Lane,
      ),
      interpret=_interpreter(),
  )
  with jax.enable_x64(False):  # Indices are of 32 bits.
    written, ends = kernel(reads)
  written = iter([u[:, :time, :features] for u in written])
  ends = iter([u[:, :, :features] for u in ends])
  return (
      [_joined(_next(written, dtype)) for dtype in outs],
      [_joined(_next(ends, u.dtype)) for u in state],
  )


def _interpreter():
  if not interpret.value:
    return None
  if hasattr(plgpu, 'InterpretGPUParams'):
    params = plgpu
  else:  # Not public in older versions of JAX.
    from jax._src.pallas.mosaic_gpu.interpret import params
  return params.InterpretGPUParams(detect_races=True)


def _plan(shape, reads, outs):
  size = lambda dtypes: sum(jnp.dtype(dtype).itemsize for dtype in dtypes)
  streams = [u.dtype for u in reads if not _is_constant(u, shape)]
  return plan(*shape, size(streams), size(outs))


def _is_constant(u, shape):
  return u.shape[1] == 1 and u.shape != shape


def _ends(u, reverse):
  """Of `[B, N, D]` at the end of each chunk, that of the last one."""
  return u[:, 0 if reverse else -1]


def _blocks(flags, count, size):
  """Splits flags `[B, T]` into blocks `[B, count, size]`, False beyond T."""
  flags = jnp.pad(flags, ((0, 0), (0, count * size - flags.shape[1])))
  return flags.reshape(flags.shape[0], count, size)


def _words(flags, count, size):
  """Packs flags `[B, T]` into integers `[B, count]` of `size` bits."""
  bits = _blocks(flags, count, size).astype(jnp.int32) << jnp.arange(size)
  return bits.sum(-1, dtype=jnp.int32)


def _whole_tiles(u, features):
  """Fills the last axis up to whole programs; for small arrays only."""
  u = jnp.broadcast_to(u, (*u.shape[:-1], features))
  return jnp.pad(u, [(0, 0)] * (u.ndim - 1) + [(0, -features % LANES)])


# Values: a tuple of one plane if real, or of two if complex.


def _plane_dtypes(dtype):
  if not jnp.issubdtype(dtype, jnp.complexfloating):
    return (dtype,)
  return (jnp.finfo(dtype).dtype,) * 2


def _planes(u):
  return (u,) if len(_plane_dtypes(u.dtype)) == 1 else (u.real, u.imag)


def _next(planes, dtype):
  return tuple(next(planes) for _ in _plane_dtypes(dtype))


def _joined(value):
  return value[0] if len(value) == 1 else lax.complex(*value)


def _vector(flag):
  return jnp.broadcast_to(flag, (LANES,))


def _select(flag, u, v):
  """Selects between values, or a value and a real number."""
  flag = _vector(flag)
  width = max(len(w) for w in (u, v) if isinstance(w, tuple))
  u, v = (
      w if isinstance(w, tuple) else (float(w),) + (0.0,) * (width - 1)
      for w in (u, v)
  )
  return tuple(jnp.where(flag, p, q) for p, q in zip(u, v))


def _add(u, v):
  return tuple(p + q for p, q in zip(u, v))


def _times(u, v):
  if len(u) == len(v) == 2:
    return u[0] * v[0] - u[1] * v[1], u[0] * v[1] + u[1] * v[0]
  return tuple(p * q for p in u for q in v)


# Gates inside a kernel.


def _forward_rule(gate, count, reset, decay_after):
  """Returns the function `(now, values) -> (a, x)` of a step."""
  vector = jax.ShapeDtypeStruct((LANES,), jnp.float32)
  if gate is not gates.linear:
    run = _lowered(gate, _start_like(reset), *(vector,) * count)

  def rule(now, values):
    if gate is gates.linear:
      a, x = values
    else:
      a, x = ((u,) for u in run(now.start_vector(), *(u for (u,) in values)))
    # A masked step hands a cotangent on; one beyond T was filled with zeros.
    return now.or_else(a, 1), x if decay_after else now.or_else(x, 0)

  return rule


def _backward_rule(gate, count, reset):
  """Returns the function `(now, values, da, dx) -> (a, dinputs)` of a step."""
  vector = jax.ShapeDtypeStruct((LANES,), jnp.float32)

  def pull_back(start, values, cotangents):
    (a, _), vjp = jax.vjp(functools.partial(gate, start), *values)
    return a, vjp(cotangents)

  if gate is not gates.linear:
    run = _lowered(
        pull_back, _start_like(reset), (vector,) * count, (vector,) * 2
    )

  def rule(now, values, da, dx):
    if gate is gates.linear:
      return values[0], (da, dx)
    values, cotangents = (tuple(u for (u,) in v) for v in (values, (da, dx)))
    a, dinputs = run(now.start_vector(), values, cotangents)
    return (a,), [(u,) for u in dinputs]

  return rule


def _start_like(reset):
  return None if reset is None else jax.ShapeDtypeStruct((LANES,), bool)


def _lowered(fn, *like):
  """Returns `fn` in operations that Mosaic GPU has."""
  jaxpr, out = jax.make_jaxpr(fn, return_shape=True)(*like)
  tree = jax.tree.structure(out)
  return lambda *arguments: tree.unflatten(
      _evaluate(jaxpr, jax.tree.leaves(arguments))
  )


def _evaluate(closed, arguments):
  jaxpr = closed.jaxpr
  values = dict(zip(jaxpr.constvars, closed.consts))
  values.update(zip(jaxpr.invars, arguments))
  for equation in jaxpr.eqns:
    operands = [
        u.val if isinstance(u, core.Literal) else values[u]
        for u in equation.invars
    ]
    name, params = equation.primitive.name, equation.params
    inner = params.get('jaxpr', params.get('call_jaxpr'))
    if inner is not None:
      results = _evaluate(inner, operands)
    elif name in _REPLACEMENTS:
      results = [_REPLACEMENTS[name](*operands, **params)]
    else:
      results = equation.primitive.bind(*operands, **params)
      if not equation.primitive.multiple_results:
        results = [results]
    values.update(zip(equation.outvars, results))
  return [
      u.val if isinstance(u, core.Literal) else values[u] for u in jaxpr.outvars
  ]


def _log1p(u, **_):
  # The rounding error of 1 + u is in both factors, and cancels.
  v = 1 + u
  return jnp.where(v == 1, u, jnp.log(v) * (u / jnp.where(v == 1, 1, v - 1)))


def _expm1(u, **_):
  v = jnp.exp(u)
  quotient = u / jnp.where(v == 1, 1, jnp.log(v))
  return jnp.where(v == 1, u, jnp.where(u < -20, -1, (v - 1) * quotient))


# By name, those that some version of Mosaic GPU lacks.
_REPLACEMENTS = dict(
    add_any=lambda u, v: u + v,
    expm1=_expm1,
    integer_pow=lambda u, y: u**y if y >= 0 else 1 / u**-y,
    log1p=_log1p,
    sqrt=lambda u, **_: jnp.where(u == 0, 0, u * lax.rsqrt(u)),
    stop_gradient=lambda u, **_: u,
)


BACKEND = backend.Backend(scan, summary, gradient, supports, is_fastest)
