"""The GPU kernels' values, by JAX's interpreter of such kernels, on a CPU.

It runs every copy and every row, looks for races between them, and starts all
memory with NaN. It is slow: shapes are small, and each case tests several
things. What the kernels compile to is in `tests/aot/gpu_test.py`.
"""

import contextlib
import functools
from unittest import mock

from absl.testing import parameterized
import jax
import jax.numpy as jnp
import numpy as np
from rnnzoo import ops
from rnnzoo.layers import min_gru
from rnnzoo.layers import min_lstm
from rnnzoo.layers import rg_lru
from rnnzoo.ops.linear_scan import gates
from rnnzoo.ops.linear_scan import gpu_program
from rnnzoo.ops.linear_scan import pallas_gpu
from tests import tolerance
from tests.ops import oracle

f32, bf16, c64 = jnp.float32, jnp.bfloat16, jnp.complex64

# [B, T, D], shape of `a`, dtypes of `a` and `x`, reverse, flags: `r` resets,
# `m` a mask, `c` in chunks, `p` as `plan` says, not in the smallest of blocks.
_CASES = {
    'planned': ((1, 20, 128), (1, 20, 128), (f32, f32), False, 'p'),
    'ragged': ((2, 19, 136), (2, 19, 136), (f32, f32), True, 'rm'),
    'chunks': ((1, 35, 128), (1, 1, 128), (f32, f32), False, 'rc'),
    'chunks_reverse': ((1, 35, 8), (1, 35, 8), (bf16, bf16), True, 'rmc'),
    'one_step': ((2, 1, 8), (1, 1, 1), (f32, f32), False, ''),
    'shared': ((2, 7, 128), (1, 7, 128), (f32, bf16), False, 'm'),
    'complex': ((1, 7, 128), (1, 7, 128), (c64, c64), True, 'r'),
    'real_a': ((1, 19, 8), (1, 1, 8), (f32, c64), False, 'c'),
}

# The gate, the shapes of its inputs before the last one, reverse, flags.
_FULL = 1, 7, 8
_GATES = {
    'min_gru': (min_gru.min_gru_gate(), [(1, 19, 8)], True, 'rmc'),
    'min_lstm': (min_lstm.min_lstm_gate(), [(1, 4, 8), (2, 4, 8)], False, ''),
    'rg_lru': (rg_lru.rg_lru_gate, [(1, 1, 8), _FULL, _FULL], False, 'rm'),
}

# Compiling is most of the time that a test takes.
_jit = functools.partial(
    jax.jit, compiler_options={'xla_backend_optimization_level': 0}
)


def _other_primitives(start, u, v):
  """A gate of the primitives that the kernel replaces for Mosaic GPU."""
  del start
  a = jnp.sqrt(-jnp.expm1(-jax.nn.softplus(u)))
  return a, v / (1 + u**2) * jax.nn.silu(jax.nn.log_sigmoid(v))


_GATES['other_primitives'] = _other_primitives, [(1, 3, 8)], True, ''


def _normal(rng, shape, dtype=f32):
  value = rng.standard_normal(shape)
  if jnp.issubdtype(dtype, jnp.complexfloating):
    value = value + 1j * rng.standard_normal(shape)
  return value.astype(dtype)


def _flags(rng, shape, flags):
  reset = rng.random(shape) < 0.15 if 'r' in flags else None
  mask = rng.random(shape) < 0.8 if 'm' in flags else None
  return reset, mask


def _cut(flags):
  """Plans small blocks, one copied at a time, so that memory is reused."""

  def plan(batch, time, features, read, written):
    del batch, features, read, written
    blocks = -(-time // 8)
    if 'c' not in flags:
      return gpu_program.Plan(8, min(2, blocks), blocks, 1)
    return gpu_program.Plan(8, 2, 2, -(-blocks // 2))

  if 'p' in flags:
    return contextlib.nullcontext()
  return mock.patch.object(pallas_gpu, 'plan', plan)


def _wide(u):
  return np.asarray(u).astype(np.result_type(np.float64, u.dtype))


def _summed(shape, u):
  """Sums a gradient `[B, n, D]` over the axes where its input has size 1."""
  u = np.asarray(u)
  over = tuple(i for i in range(3) if shape[i] != u.shape[i])
  return u.sum(over, keepdims=True)


@functools.partial(_jit, static_argnames='reverse')
def _linear(inputs, h0, reset, mask, dlast, dh, reverse):
  """The scan, and the gradient of its results."""
  way = dict(gate=gates.linear, reverse=reverse)
  last, h = pallas_gpu.scan(inputs, h0, reset, mask, decay_after=False, **way)
  dinputs, dh0 = pallas_gpu.gradient(
      inputs, h, h0, reset, mask, dlast, dh, **way
  )
  return (last, h), (*dinputs, dh0)


class PallasGpuTest(parameterized.TestCase):

  def setUp(self):
    super().setUp()
    self.enter_context(pallas_gpu.interpret(True))

  @parameterized.named_parameters((k, *v) for k, v in _CASES.items())
  def test_linear_matches_loop(self, shape, a_shape, dtypes, reverse, flags):
    self.enter_context(_cut(flags))
    rng = np.random.default_rng(0)
    a = _normal(rng, a_shape, dtypes[0])
    a = (a / (1 + np.abs(a))).astype(dtypes[0])
    x, dh = (_normal(rng, shape, dtypes[1]) for _ in range(2))
    wide = jnp.promote_types(f32, jnp.result_type(a, x))
    h0, dlast = (_normal(rng, shape[::2], wide) for _ in range(2))
    reset, mask = _flags(rng, shape[:2], flags)
    self.assertIsNone(
        pallas_gpu.supports(
            (a, x), h0, reset, mask, gate=gates.linear, decay_after=False
        )
    )
    values, (da, dx, dh0) = _linear(
        (a, x), h0, reset, mask, dlast, dh, reverse
    )

    present = np.ones(shape[:2], bool) if mask is None else mask
    reset = None if reset is None else reset & present
    present = present[..., None]
    at = np.where(present, _wide(a), 1), np.where(present, _wide(x), 0)
    want = oracle.linear_scan(*at, _wide(h0), reset, reverse)
    tolerance.assert_close(values, want)
    *want, want_dh0 = oracle.linear_scan_vjp(
        *at, _wide(h0), _wide(dlast), _wide(dh), reset, reverse
    )
    want = [np.where(present, u, 0) for u in want]
    self.assertEqual(dx.dtype, x.dtype)
    # The states come from memory, and have been rounded there.
    least = bf16 if bf16 in dtypes else da.dtype
    tolerance.assert_close(dh0, want_dh0)
    tolerance.assert_close(dx, want[1])
    tolerance.assert_close(
        _summed(a_shape, da), _summed(a_shape, want[0]), least
    )

  def test_nan_stays_in_its_sequence_or_masked_steps(self):
    rng = np.random.default_rng(0)
    a, x, dh = (_normal(rng, (1, 8, 8)) for _ in range(3))
    h0, dlast = np.full((1, 8), np.nan, np.float32), np.ones((1, 8), 'f')
    x[:, 2], a[:, 3] = np.nan, np.nan  # Before the reset, ...
    x[:, 6] = a[:, 6] = np.nan  # ... and masked.
    reset, mask = np.arange(8)[None] == 5, np.arange(8)[None] != 6
    (last, h), (da, dx, _) = _linear((a, x), h0, reset, mask, dlast, dh, False)
    self.assertTrue(np.isnan(h[:, :5]).all())
    for u in last, h[:, 5:], da[:, 5:], dx[:, 3:]:
      self.assertTrue(np.isfinite(u).all())
    for u in da, dx:
      np.testing.assert_array_equal(u[:, 6], 0)

  @parameterized.named_parameters((k, *v) for k, v in _GATES.items())
  def test_gates_match_loop(self, gate, shapes, reverse, flags):
    self.enter_context(_cut(flags))
    rng = np.random.default_rng(0)
    inputs = [_normal(rng, shape) for shape in (*shapes, shapes[-1])]
    if len(inputs) == 4:
      inputs[0] = np.abs(inputs[0]) + 0.1  # A rate.
    shape = inputs[-1].shape
    h0, dlast = (_normal(rng, shape[::2]) for _ in range(2))
    dh = _normal(rng, shape)
    reset, mask = _flags(rng, shape[:2], flags)

    @functools.partial(_jit, static_argnums=0)
    def run(name, inputs, h0, dlast, dh):
      with ops.implementation(name):
        value, vjp = jax.vjp(
            lambda inputs, h0: ops.gated_scan(
                gate, inputs, h0, reverse=reverse, reset=reset, mask=mask
            ),
            inputs, h0,
        )
        return value, vjp((dlast, dh))

    got = run('pallas_gpu', inputs, h0, dlast, dh)
    with jax.enable_x64(True):
      wide = jax.tree.map(_wide, (inputs, h0, dlast, dh))
      want = run('reference', *wide)
      tolerance.assert_close(got, want, f32)

  def test_adjoint_and_summary(self):
    self.enter_context(_cut('c'))
    rng = np.random.default_rng(0)
    a, x = (_normal(rng, (1, 35, 8)) for _ in range(2))
    a, h0 = np.tanh(a), _normal(rng, (1, 8))
    reset = np.arange(35)[None] == 12
    mask = (rng.random((1, 35)) < 0.9) | reset
    way = dict(gate=gates.linear, reverse=True, decay_after=True)

    @_jit
    def run(a, x, h0):
      scanned = pallas_gpu.scan((a, x), h0, reset, mask, **way)
      whole = pallas_gpu.summary((a, x), reset, mask, **way)
      part = pallas_gpu.summary((a[:, 20:], x[:, 20:]), None, None, **way)
      return scanned, whole, part

    (last, h), (product, entered), (part, _) = run(a, x, h0)
    # The adjoint of a scan that runs the other way: `dx`, and `dh0`.
    _, want, want_last = oracle.linear_scan_vjp(
        np.where(mask[..., None], a, 1), x, h0, h0, x, reset
    )
    tolerance.assert_close((last, h), (want_last, want))
    np.testing.assert_array_equal(product, 0)
    tolerance.assert_close(entered, want_last)  # The reset forgets `h0`.
    tolerance.assert_close(part, a[:, 20:].astype(np.float64).prod(1))

  def test_vmap(self):
    rng = np.random.default_rng(0)
    a, h0 = np.tanh(_normal(rng, (1, 7, 8))), _normal(rng, (3, 1, 8))
    x = _normal(rng, (3, 1, 7, 8))
    scan = functools.partial(
        pallas_gpu.scan, reset=None, mask=None,
        gate=gates.linear, reverse=False, decay_after=False,
    )
    last, h = jax.jit(jax.vmap(lambda x, h0: scan((a, x), h0)))(x, h0)
    want = oracle.linear_scan(np.repeat(a, 3, 0), x[:, 0], h0[:, 0])
    tolerance.assert_close((last[:, 0], h[:, 0]), want)


class PlanTest(parameterized.TestCase):

  @parameterized.parameters(
      # B, T, D, bytes read and written, chunks.
      (16, 2048, 2048, 8, 4, 1),
      (32, 1024, 512, 4, 2, 1),
      (8, 4096, 256, 8, 4, 16),
      (1, 65536, 64, 8, 4, 256),
      (1, 100, 64, 20, 12, 1),
      (1, 1, 8, 24, 16, 1),
  )
  def test_plan(self, batch, time, features, read, written, chunks):
    plan = pallas_gpu.plan(batch, time, features, read, written)
    self.assertEqual(plan.chunks, chunks)
    length = plan.rows * plan.blocks
    self.assertGreaterEqual(length * chunks, time)
    self.assertLess(length * (chunks - 1), time)
    memory = plan.rows * pallas_gpu.LANES * (plan.stages * read + 2 * written)
    # The hardware keeps 1 KB for itself; two programs fit.
    self.assertLessEqual(2 * (memory + 1024 + 8 * plan.stages), 228 * 1024)
    self.assertLessEqual(plan.stages, plan.blocks)

  def test_shared_memory_fits_twelve_inputs(self):
    read, written = 4 * 14, 4 * 12  # Of a gradient: `h` and `dh` as well.
    plan = pallas_gpu.plan(16, 2048, 2048, read, written)
    memory = plan.rows * pallas_gpu.LANES * (plan.stages * read + 2 * written)
    self.assertLess(memory + 1024, pallas_gpu.SHARED_MEMORY)
    self.assertGreaterEqual(plan.stages, 2)

  def test_unsupported_inputs_have_a_reason(self):
    def refusal(*inputs, gate=gates.linear, h0=f32):
      inputs = [jnp.zeros(shape, dtype) for shape, dtype in inputs]
      h0 = jnp.zeros((2, inputs[-1].shape[2]), h0)
      return pallas_gpu.supports(
          inputs, h0, None, None, gate=gate, decay_after=False
      )

    full = (2, 5, 16), f32
    self.assertIsNone(refusal(full, full))
    self.assertIn('13 inputs', refusal(*[full] * 13, gate=rg_lru.rg_lru_gate))
    self.assertIn('D = 12', refusal(*[((2, 5, 12), f32)] * 2))
    self.assertIn('float16', refusal(full, ((2, 5, 16), jnp.float16)))
    self.assertIn('channels', refusal(((2, 5, 1), f32), full))
    self.assertIn(
        'complex64', refusal(full, ((2, 5, 16), c64), gate=rg_lru.rg_lru_gate)
    )

  def test_chosen_only_where_measured(self):
    self.assertFalse(pallas_gpu.wins('not measured', 16, 64, 64))
    with mock.patch.dict(pallas_gpu.MEASURED, here=1000):
      self.assertTrue(pallas_gpu.wins('here', 10, 10, 10))
      self.assertFalse(pallas_gpu.wins('here', 10, 10, 9))
