"""The TPU kernels, interpreted on CPU, against loops in float64.

That they compile for TPUs is checked in `tests/aot/tpu_test.py`.
"""

from unittest import mock

from absl.testing import parameterized
import jax
from jax.experimental.pallas import tpu as pltpu
import jax.numpy as jnp
import numpy as np
from rnnzoo.layers import min_gru
from rnnzoo.layers import min_lstm
from rnnzoo.layers import rg_lru
from rnnzoo.ops.linear_scan import gates
from rnnzoo.ops.linear_scan import pallas_tpu
from rnnzoo.ops.linear_scan import tpu_blocks
from tests import tolerance
from tests.ops import oracle

f32, bf16, c64 = jnp.float32, jnp.bfloat16, jnp.complex64

# [B, T, D], shape of `a`, dtypes of `a` and `x`, reverse, flags. `t` cuts time
# into blocks of one tile; these shapes would otherwise need but one. `s` runs
# the other two kernels too: `summary`, and `scan` with the decay after a step.
_CASES = {
    'one_step': ((1, 1, 3), (1, 1, 3), (f32, f32), False, 'rs'),
    'narrow': ((3, 7, 3), (3, 7, 3), (f32, f32), True, 'rm'),
    'ragged': ((1, 100, 200), (1, 100, 200), (f32, f32), False, 'rmts'),
    'ragged_back': ((3, 63, 200), (3, 63, 200), (f32, f32), True, 'ts'),
    'bfloat16': ((3, 63, 3), (3, 63, 3), (bf16, bf16), True, 'mt'),
    'half_bfloat16': ((1, 100, 128), (1, 100, 128), (f32, bf16), False, 'rm'),
    'complex': ((1, 63, 3), (1, 63, 3), (c64, c64), False, 'rmts'),
    'real_a': ((3, 8, 3), (3, 8, 3), (f32, c64), True, 'r'),
    'constant': ((3, 63, 200), (1, 1, 200), (f32, f32), True, 'mt'),
    'complex_constant': ((3, 8, 128), (1, 1, 128), (c64, c64), False, ''),
    'per_row': ((3, 7, 128), (3, 1, 1), (f32, bf16), False, 'r'),
    'one_feature': ((3, 100, 200), (3, 100, 1), (f32, f32), True, 'rt'),
    'shared_feature': ((3, 7, 3), (1, 7, 1), (bf16, bf16), False, 'm'),
    'shared': ((3, 24, 128), (1, 24, 128), (f32, f32), True, 'rt'),
}


# The gate, the shapes of its inputs but for the last one, reverse, flags.
_GATES = {
    'min_gru': (min_gru.min_gru_gate(), [(2, 20, 3)], False, 'rm'),
    'min_lstm': (min_lstm.min_lstm_gate(), [(2, 20, 3)] * 2, True, 'rt'),
    'rg_lru': (
        rg_lru.rg_lru_gate, [(1, 1, 3), (2, 20, 3), (2, 20, 1)], False, 'rmt',
    ),
}


def _normal(rng, shape, dtype=f32):
  value = rng.standard_normal(shape)
  if jnp.issubdtype(dtype, jnp.complexfloating):
    value = value + 1j * rng.standard_normal(shape)
  return np.asarray(value, dtype)


def _flags(rng, shape, flags):
  reset = rng.random(shape) < 0.15
  reset[0, 0] = reset[-1, -1] = True  # First and last.
  mask = rng.random(shape) < 0.8
  return reset if 'r' in flags else None, mask if 'm' in flags else None


def _operands(shape, a_shape, dtypes, flags):
  """Returns `(a, x)`, `h0`, `reset`, `mask`, `dlast`, `dh`."""
  rng = np.random.default_rng(0)
  wide = np.promote_types(f32, jnp.promote_types(*dtypes))
  a = _normal(rng, a_shape, dtypes[0]).astype(wide)
  a = np.tanh(np.abs(a)) * a / (np.abs(a) + 0.1)
  a = (a if jnp.issubdtype(dtypes[0], jnp.complexfloating) else a.real).astype(
      dtypes[0]
  )
  x, dh = (_normal(rng, shape, dtypes[1]) for _ in range(2))
  h0, dlast = (_normal(rng, (shape[0], shape[2]), wide) for _ in range(2))
  return (a, x), h0, *_flags(rng, shape[:2], flags), dlast, dh


def _effective(a, x, reset, mask):
  """Applies the mask: the full `a`, `x` and `reset` that have its effect."""
  wide = np.complex128 if np.iscomplexobj(x) else np.float64
  a, x = np.broadcast_to(a, x.shape).astype(wide), x.astype(wide)
  if mask is not None:
    a, x = (np.where(mask[..., None], u, v) for u, v in ((a, 1), (x, 0)))
    reset = None if reset is None else reset & mask
  return a, x, np.zeros(x.shape[:2], bool) if reset is None else reset


def _decayed_after(a, x, c, reset, reverse):
  h = np.zeros_like(x)
  steps = range(x.shape[1])
  for t in steps[::-1] if reverse else steps:
    h[:, t] = c + x[:, t]
    c = np.where(reset[:, t, None], 0, a[:, t] * h[:, t])
  return c, h


def _summed_like(gradient, u):
  over = tuple(i for i in range(3) if u.shape[i] != gradient.shape[i])
  gradient = gradient.sum(over, keepdims=True)
  return gradient if np.iscomplexobj(u) else gradient.real


def _run(gate, reverse, flags, inputs, h0, reset, mask, dlast, dh, h):
  """The kernels; `h` is what `scan` has returned."""
  way = dict(gate=gate, reverse=reverse)
  scan = pallas_tpu.scan(inputs, h0, reset, mask, decay_after=False, **way)
  dinputs, dh0 = pallas_tpu.gradient(
      inputs, h, h0, reset, mask, dlast, dh, **way
  )
  dinputs = tuple(_summed_like(d, u) for d, u in zip(dinputs, inputs))
  if 's' not in flags:
    return scan, (dinputs, dh0)
  summary = pallas_tpu.summary(inputs, reset, mask, decay_after=False, **way)
  after = pallas_tpu.scan(inputs, h0, reset, mask, decay_after=True, **way)
  return scan, (dinputs, dh0), summary, after


def _interpreted(gate, reverse, flags, *operands, params=True):
  block_bytes = 1 if 't' in flags else tpu_blocks.BLOCK_BYTES
  with (
      mock.patch.object(tpu_blocks, 'BLOCK_BYTES', block_bytes),
      mock.patch.object(tpu_blocks, 'MAX_FEATURE_TILES', 1),
      pallas_tpu.interpreted(params),
  ):
    # A function of its own each time: the limits are no part of a cache key.
    run = jax.jit(
        lambda *u: _run(gate, reverse, flags, *u),
        compiler_options={'xla_backend_optimization_level': 0},
    )
    return run(*operands)


def _want(inputs, h0, reset, mask, dlast, dh, reverse):
  a, x, starts = _effective(*inputs, reset, mask)
  scan = oracle.linear_scan(a, x, h0, starts, reverse)
  da, dx, dh0 = oracle.linear_scan_vjp(a, x, h0, dlast, dh, starts, reverse)
  if mask is not None:
    da, dx = (np.where(mask[..., None], u, 0) for u in (da, dx))
  dinputs = tuple(_summed_like(d, u) for d, u in zip((da, dx), inputs))
  product = np.where(starts.any(1)[:, None], 0, a.prod(1))
  last, _ = oracle.linear_scan(a, x, np.zeros_like(x[:, 0]), starts, reverse)
  # The cotangent of a masked step is handed on.
  after = _decayed_after(a, inputs[-1].astype(x.dtype), h0, starts, reverse)
  return scan, (dinputs, dh0), (product, last), after


class LinearTest(parameterized.TestCase):

  @parameterized.named_parameters((k, *v) for k, v in _CASES.items())
  def test_linear_matches_loop(self, shape, a_shape, dtypes, reverse, flags):
    operands = _operands(shape, a_shape, dtypes, flags)
    want = _want(*operands, reverse)
    h = want[0][1].astype(dtypes[1])
    got = _interpreted(gates.linear, reverse, flags, *operands, h)
    self.assertEqual(got[0][1].dtype, dtypes[1])
    self.assertEqual(got[0][0].dtype, operands[1].dtype)
    rough = bf16 if bf16 in dtypes else c64 if c64 in dtypes else f32
    # `last` is float32 whatever the arrays are.
    tolerance.assert_close(got[0][0], want[0][0])
    tolerance.assert_close((got[0][1], got[1]), (want[0][1], want[1]), rough)
    if 's' in flags:
      tolerance.assert_close((got[2], got[3][0]), (want[2], want[3][0]))
      tolerance.assert_close(got[3][1], want[3][1], rough)

  def test_nan_stays_in_its_sequence_or_masked_steps(self):
    shape = (2, 40, 3)
    for reverse in (False, True):
      operands = _operands(shape, shape, (f32, f32), '')
      (a, x), h0, _, _, dlast, dh = operands
      reset, mask = np.zeros(shape[:2], bool), np.ones(shape[:2], bool)
      reset[:, [13, 22]] = True
      a[0, 11] = x[0, 17] = dh[0, 19] = x[1, 3] = h0[1] = np.nan
      mask[:, [5, 30]] = False
      a[:, 5] = x[:, 30] = a[:, 30] = np.nan
      operands = (a, x), h0, reset, mask, dlast, dh
      # Whatever the direction, NaN enters on one side of a reset only.
      want = _want(*operands, reverse)
      h = want[0][1].astype(f32)
      self.assertTrue(np.isfinite(h).any(1).all())
      got = _interpreted(gates.linear, reverse, 't', *operands, h)
      tolerance.assert_close(got, want[:2])

  def test_no_reads_of_unwritten_memory(self):
    shape, flags = (1, 20, 3), 'rmt'
    operands = _operands(shape, shape, (f32, f32), flags)
    want = _want(*operands, False)
    h = want[0][1].astype(f32)
    # The simulator fills unwritten memory with NaN and reports reads beyond the
    # edges.
    got = _interpreted(
        gates.linear, False, flags, *operands, h, params=pltpu.InterpretParams()
    )
    tolerance.assert_close(got, want[:2])

  def test_vmap(self):
    (a, x), h0, reset, mask, dlast, dh = _operands(
        (4, 9, 3), (4, 9, 3), (f32, f32), 'rm'
    )
    operands = a, x, h0, reset, mask, dlast, dh, x

    def run(a, x, *more):
      return _run(gates.linear, False, '', (a, x), *more)

    with pallas_tpu.interpreted(True):
      want = jax.jit(run)(*operands)
      pairs = [u.reshape(2, 2, *u.shape[1:]) for u in operands]
      got = jax.jit(jax.vmap(run))(*pairs)
    jax.tree.map(
        lambda u, v: np.testing.assert_array_equal(u.reshape(v.shape), v),
        got,
        want,
    )


class GatedTest(parameterized.TestCase):

  @parameterized.named_parameters((k, *v) for k, v in _GATES.items())
  def test_equals_gates_before_the_scan(self, gate, shapes, reverse, flags):
    rng = np.random.default_rng(0)
    shape = (2, 20, 3)
    inputs = tuple(_normal(rng, s) for s in (*shapes, shape))
    if gate is rg_lru.rg_lru_gate:
      inputs = (np.abs(inputs[0]) + 0.1, *inputs[1:])
    reset, mask = _flags(rng, shape[:2], flags)
    if mask is not None:  # NaN there passes through no derivative.
      inputs[-1][~mask] = np.nan
      reset &= mask
    h0, dlast = (_normal(rng, (2, 3)) for _ in range(2))
    dh = _normal(rng, shape)

    arrays = tuple(map(jnp.asarray, inputs))
    a, x = gates.evaluate(gate, arrays, f32, reset, mask)
    want = _want((a, np.asarray(x)), h0, reset, None, dlast, dh, reverse)
    (da, dx), dh0 = want[1]
    clean = tuple(np.nan_to_num(u) for u in inputs)
    da, dx = jnp.asarray(da, f32), jnp.asarray(dx, f32)
    dinputs = gates.pull_back(gate, clean, da, dx, reset, mask)
    dinputs = tuple(_summed_like(d, u) for d, u in zip(dinputs, inputs))
    want = want[0], (dinputs, dh0)
    h = want[0][1].astype(f32)
    operands = inputs, h0, reset, mask, dlast, dh, h
    got = _interpreted(gate, reverse, flags, *operands)
    tolerance.assert_close(got, want)


class SupportsTest(parameterized.TestCase):

  def _why_not(self, *dtypes, gate=gates.linear):
    inputs = tuple(jax.ShapeDtypeStruct((2, 5, 3), dtype) for dtype in dtypes)
    return pallas_tpu.supports(
        inputs, None, None, None, gate=gate, decay_after=False
    )

  def test_supported_inputs(self):
    for dtypes in ((f32, f32), (f32, bf16), (f32, c64), (c64, c64)):
      self.assertIsNone(self._why_not(*dtypes))
    self.assertIsNone(self._why_not(f32, f32, gate=min_gru.min_gru_gate()))
    self.assertIsNone(
        self._why_not(bf16, bf16, bf16, gate=min_lstm.min_lstm_gate())
    )
    self.assertIsNone(
        self._why_not(f32, f32, f32, f32, gate=rg_lru.rg_lru_gate)
    )

  def test_unsupported_inputs_have_a_reason(self):
    self.assertIn('input 1 is float16', self._why_not(f32, jnp.float16))
    self.assertIn('complex', self._why_not(c64, f32))
    self.assertIn(
        'fused gate', self._why_not(c64, c64, gate=min_gru.min_gru_gate())
    )
    gate = lambda start, a, x: (a, jnp.cbrt(x))
    self.assertIn("['cbrt']", self._why_not(f32, f32, gate=gate))
    ones = jnp.ones(1)
    gate = lambda start, a, x: (a, x * ones)
    self.assertIn('captured', self._why_not(f32, f32, gate=gate))
