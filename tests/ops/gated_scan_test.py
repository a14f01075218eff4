"""`gated_scan` against gates in NumPy and the loop in float64."""

import contextlib
from unittest import mock

from absl.testing import parameterized
import jax
import jax.numpy as jnp
import numpy as np
from rnnzoo import ops
from rnnzoo.layers import min_gru
from rnnzoo.layers import min_lstm
from rnnzoo.layers import rg_lru
from rnnzoo.ops.linear_scan import dispatch
from tests import tolerance
from tests.ops import oracle

f32, f64, bf16 = jnp.float32, jnp.float64, jnp.bfloat16


def _pinned(name):
  return ops.implementation(name) if name else contextlib.nullcontext()


def _sigmoid(u):
  return 1 / (1 + np.exp(-u))


def _positive(u):
  return np.where(u >= 0, u + 0.5, _sigmoid(u))


def _min_gru(start, k, v):
  return 1 - _sigmoid(k), _sigmoid(k) * _positive(v)


def _min_lstm(start, f, i, v):
  f, i = _sigmoid(f), _sigmoid(i)
  return f / (f + i), i / (f + i) * _positive(v)


def _plain_min_lstm(start, f, i, v):
  return _sigmoid(f), _sigmoid(i) * v


def _rg_lru(start, rate, r, i, x):
  a = np.exp(-rate * _sigmoid(r))
  scale = np.sqrt(1 - a**2)
  if start is not None:
    scale = np.where(start, 1, scale)
  return a, scale * _sigmoid(i) * x


# The gate, its transcription, and the shapes of its inputs before the last one.
_FULL, _CONSTANT = (3, 9, 4), (1, 1, 4)
_GATES = {
    'min_gru': (min_gru.min_gru_gate(), _min_gru, [_FULL]),
    'min_gru_rows': (min_gru.min_gru_gate(), _min_gru, [(1, 9, 4)]),
    'min_lstm': (min_lstm.min_lstm_gate(), _min_lstm, [_FULL] * 2),
    'plain_min_lstm': (
        min_lstm.min_lstm_gate(min_gru.identity, False), _plain_min_lstm,
        [_FULL] * 2,
    ),
    'rg_lru': (rg_lru.rg_lru_gate, _rg_lru, [_CONSTANT, _FULL, _FULL]),
}


def _operands(name, flags, seed=0):
  """Returns inputs, `h0`, `reset` and `mask`, in float64."""
  rng = np.random.default_rng(seed)
  shapes = [*_GATES[name][2], _FULL]
  inputs = [rng.standard_normal(shape) for shape in shapes]
  if name == 'rg_lru':
    inputs[0] = np.abs(inputs[0]) + 0.1  # A rate.
  reset = rng.random(_FULL[:2]) < 0.2 if 'r' in flags else None
  mask = rng.random(_FULL[:2]) < 0.7 if 'm' in flags else None
  return tuple(inputs), rng.standard_normal((3, 4)), reset, mask


def _want(name, inputs, h0, reset, mask, reverse):
  if reset is not None and mask is not None:
    reset = reset & mask
  start = None if reset is None else reset[..., None]
  a, x = _GATES[name][1](start, *inputs)
  if mask is not None:
    a, x = np.where(mask[..., None], a, 1), np.where(mask[..., None], x, 0)
  return oracle.linear_scan(np.broadcast_to(a, _FULL), x, h0, reset, reverse)


def _slope(f, at, along):
  """The derivative by finite differences, to ten digits."""
  step = lambda s: f(*(u + s * d for u, d in zip(at, along)))
  near, far = (step(s) - step(-s) for s in (1e-4, 2e-4))
  return (8 * near - far) / 12e-4


class GatedScanTest(parameterized.TestCase):

  @parameterized.parameters(
      *((name, flags, None) for name in _GATES for flags in ('', 'rm')),
      ('min_gru', 'r', None),
      ('min_gru', 'm', None),
      ('rg_lru', 'rm', 'sequential'),
      *(
          (name, 'rm', pin)
          for name in ('min_gru', 'rg_lru')
          for pin in ('reference', 'associative')
      ),
  )
  def test_values_and_gradients(self, name, flags, pin):
    inputs, h0, reset, mask = _operands(name, flags)
    reverse = flags == 'm'
    rng = np.random.default_rng(1)
    w_last, w = rng.standard_normal((3, 4)), rng.standard_normal(_FULL)
    along = [rng.standard_normal(u.shape) for u in (*inputs, h0)]

    def want_loss(*at):
      last, h = _want(name, at[:-1], at[-1], reset, mask, reverse)
      return np.sum(last * w_last) + np.sum(h * w)

    @jax.jit
    def run(*at):
      scan = lambda *at: ops.gated_scan(
          _GATES[name][0], at[:-1], at[-1],
          reverse=reverse, reset=reset, mask=mask,
      )
      results, vjp = jax.vjp(scan, *at)
      return results, vjp((jnp.asarray(w_last), jnp.asarray(w)))

    with jax.enable_x64(True), _pinned(pin):
      got, grads = run(*inputs, h0)
    tolerance.assert_close(
        got, _want(name, inputs, h0, reset, mask, reverse), f64
    )
    for u, grad in zip((*inputs, h0), grads):
      self.assertEqual(grad.shape, u.shape)
    np.testing.assert_allclose(
        sum(np.sum(np.asarray(g) * d) for g, d in zip(grads, along)),
        _slope(want_loss, (*inputs, h0), along),
        rtol=1e-7,
    )

  @parameterized.product(name=('min_gru', 'rg_lru'), dtype=(f32, bf16))
  def test_dtypes(self, name, dtype):
    inputs, h0, reset, mask = _operands(name, 'rm')
    inputs = [jnp.asarray(u, dtype) for u in inputs]

    @jax.jit
    def run(inputs, h0):
      return jax.vjp(
          lambda *at: ops.gated_scan(
              _GATES[name][0], at[:-1], at[-1], reset=reset, mask=mask
          ),
          *inputs, h0,
      )

    h0 = jnp.asarray(h0, f32)
    (last, h), vjp = run(inputs, h0)
    self.assertEqual((last.dtype, h.dtype), (f32, dtype))
    grads = vjp((last, h))
    self.assertEqual(
        [g.dtype for g in grads], [u.dtype for u in (*inputs, h0)]
    )
    wide = [np.asarray(u, np.float64) for u in (*inputs, h0)]
    want = _want(name, wide[:-1], wide[-1], reset, mask, False)
    tolerance.assert_close((last, h), want)

  @parameterized.parameters(None, 'sequential', 'reference', 'associative')
  def test_nan_before_a_reset_or_under_a_mask_is_contained(self, pin):
    """It reaches neither values nor gradients of another sequence."""
    (k, v), h0, _, _ = _operands('min_gru', '')
    reset, mask = np.zeros((2, 3, 9), bool)
    reset[:, 4], mask[:] = True, True
    mask[:, 6] = False

    @jax.jit
    def run(k, v, h0):

      def loss(k, v, h0):
        last, h = ops.gated_scan(
            min_gru.min_gru_gate(), (k, v), h0, reset=reset, mask=mask
        )
        return jnp.sum(last**2) + jnp.sum(h[:, 4:] ** 2)

      value, (dk, dv, dh0) = jax.value_and_grad(loss, (0, 1, 2))(k, v, h0)
      return value, dk[:, 4:], dv[:, 4:]

    with _pinned(pin):
      want = run(k, v, h0)
      np.testing.assert_array_equal(want[1][:, 2], 0)  # Masked.
      for bad in (np.nan, np.inf):
        with_nan = [u.copy() for u in (k, v, h0)]
        with_nan[0][:, 2], with_nan[1][:, 3], with_nan[2][:] = bad, bad, bad
        with_nan[0][:, 6], with_nan[1][:, 6] = bad, bad
        tolerance.assert_close(run(*with_nan), want)

  def test_equals_gates_before_the_scan(self):
    """Up to the second derivative, and under vmap."""
    inputs, h0, reset, mask = _operands('rg_lru', 'r')

    def fused(*inputs):
      return ops.gated_scan(rg_lru.rg_lru_gate, inputs, h0, reset=reset)[1]

    def apart(*inputs):
      a, x = rg_lru.rg_lru_gate(reset[..., None], *inputs)
      return ops.linear_scan(a, x, h0, reset=reset)[1]

    def derivatives(form):
      loss = lambda *u: jnp.sum(form(*u) ** 2)
      grads = lambda *u: jax.grad(loss, (0, 1, 2, 3))(*u)
      norm = lambda *u: sum(jnp.sum(g**2) for g in grads(*u))
      return jax.jit(lambda *u: (grads(*u), jax.grad(norm, (0, 1, 2, 3))(*u)))

    with jax.enable_x64(True):
      got, want = derivatives(fused)(*inputs), derivatives(apart)(*inputs)
      tolerance.assert_close(got, want)
      several = [np.stack([u, 2 * u]) for u in inputs]
      got = jax.jit(jax.vmap(fused))(*several)
      tolerance.assert_close(got[1], fused(*(2 * u for u in inputs)))

  def test_user_defined_gate(self):
    gate = lambda start, x: (jnp.exp(-jnp.abs(x)), x)
    x = jnp.asarray(np.random.default_rng(0).standard_normal(_FULL), f32)
    tolerance.assert_close(
        ops.gated_scan(gate, [x]), ops.linear_scan(jnp.exp(-jnp.abs(x)), x)
    )

  def test_empty_arrays(self):
    k, h0 = jnp.ones((2, 0, 3)), jnp.ones((2, 3))
    last, h = ops.gated_scan(min_gru.min_gru_gate(), (k, k), h0)
    tolerance.assert_close((last, h), (h0, k))

  @parameterized.parameters(
      ((), r'last of `inputs` must be \[B, T, D\]'),
      ((np.ones((3, 4)),), r'last of `inputs` must be \[B, T, D\].*3, 4'),
      ((np.ones((2, 3, 4)), np.ones((1, 3, 4))), r'`inputs\[0\]` must broad'),
      ((np.ones((1, 3, 4), int), np.ones((1, 3, 4))), r'`inputs\[0\]` .*int'),
  )
  def test_bad_input_names_the_argument(self, inputs, message):
    with self.assertRaisesRegex(ValueError, message):
      ops.gated_scan(min_gru.min_gru_gate(), inputs)

  def test_forward_needs_no_temporaries(self):
    shape = (4, 512, 128)
    spec = jax.ShapeDtypeStruct(shape, f32)
    # A new function each time: JAX would reuse the program of the first.
    scan = lambda: lambda k, v: ops.gated_scan(min_gru.min_gru_gate(), (k, v))
    memory = lambda: jax.jit(scan()).lower(spec, spec).compile(
    ).memory_analysis().temp_size_in_bytes / (4 * np.prod(shape))
    with ops.implementation('sequential'):
      self.assertLess(memory(), 0.01)
    if jax.default_backend() == 'cpu':  # There gates go first: `a` is kept.
      self.assertBetween(memory(), 0.9, 1.1)

  def test_residuals_over_depth_are_stored_once(self):
    """A choice by platform stores the residuals of the gradient once."""
    depth, shape = 8, (2, 64, 64)
    spec = lambda *shape: jax.ShapeDtypeStruct(shape, f32)

    def memory():

      def loss(weights, x):
        def layer(x, w):
          inputs = w[0] * x, w[1] * x
          return ops.gated_scan(min_gru.min_gru_gate(), inputs)[1], ()

        return jnp.sum(jax.lax.scan(layer, x, weights)[0])

      return jax.jit(jax.grad(loss)).lower(
          spec(depth, 2, shape[-1]), spec(*shape)
      ).compile().memory_analysis().temp_size_in_bytes

    with ops.implementation('sequential'):
      limit = 1.05 * memory()
    self.assertLess(memory(), limit)


class GatesTest(parameterized.TestCase):

  def test_normalised_min_lstm_does_not_overflow(self):
    logits = np.array([-1e4, -90, -30, -1, 0, 1, 30, 90, 1e4], f32)
    f, i = (u.ravel() for u in np.meshgrid(logits, logits))
    gate = min_lstm.min_lstm_gate()
    loss = lambda f, i: sum(u.sum() for u in gate(None, f, i, jnp.ones_like(f)))
    a, x = gate(None, f, i, np.ones_like(f))
    log_sum = np.logaddexp
    log_f, log_i = (-log_sum(0, -u.astype(np.float64)) for u in (f, i))
    z = np.exp(log_i - log_sum(log_i, log_f))
    np.testing.assert_allclose(a, 1 - z, atol=1e-6)
    np.testing.assert_allclose(x, 1.5 * z, rtol=2e-6, atol=1e-30)
    grads = jax.grad(loss, (0, 1))(f, i)
    self.assertTrue(all(np.isfinite(g).all() for g in grads))

  def test_rg_lru_keeps_its_digits_near_one(self):
    rate = np.array([[[1e-9, 1e-6, 1e-4, 1e-2, 0.3, 0.7, 3, 50]]], f32)
    zero = np.zeros_like(rate)  # Whose sigmoid is a half.
    for dtype, tolerance_ in ((f32, 1e-6), (f64, 1e-14)):
      with jax.enable_x64(True):
        inputs = [jnp.asarray(u, dtype) for u in (rate, zero, zero + 20, zero)]
        inputs[3] += 1
        _, x = rg_lru.rg_lru_gate(None, *inputs)
      want = np.sqrt(-np.expm1(-np.asarray(inputs[0], f64)))
      want /= 1 + np.exp(-20.0)
      np.testing.assert_allclose(x, want, rtol=tolerance_)

  def test_rg_lru_gradient_is_bounded(self):
    slope = jax.grad(lambda r: rg_lru.rg_lru_gate(None, r, 0.0, 20.0, 1.0)[1])
    # d sqrt(1 - a^2) / d rate = a^2 / sqrt(1 - a^2) / 2 for sigmoid(0) = 1/2.
    np.testing.assert_allclose(slope(1e-2), np.exp(-1e-2) / 2 / np.sqrt(
        -np.expm1(-1e-2)), rtol=1e-5)
    np.testing.assert_allclose(slope(0.0), 1000, rtol=1e-5)


class BranchesTest(parameterized.TestCase):
  """A program holds the kernels of all platforms with a compiler here."""

  @parameterized.product(
      case=('rg_lru', 'constant', 'one_feature', 'complex'), dtype=(f32, bf16)
  )
  def test_gradients_of_all_backends_have_one_type(self, case, dtype):
    shape = _, _, features = 2, 16, 128
    x = jax.random.normal(jax.random.key(0), shape).astype(dtype)
    rate = jnp.linspace(0.1, 0.9, features).reshape(1, 1, features)
    if case == 'rg_lru':
      gate, inputs = rg_lru.rg_lru_gate, [rate, x, x, x]
    elif case == 'one_feature':
      gate, inputs = None, [jax.nn.sigmoid(x[..., :1]), x]
    elif case == 'constant':
      gate, inputs = None, [rate.astype(dtype), x]
    else:
      gate, inputs = None, [rate, jax.lax.complex(*[x.astype(f32)] * 2)]

    def loss(*inputs):
      scan = ops.linear_scan
      if gate is not None:
        scan = lambda *inputs: ops.gated_scan(gate, inputs)
      last, h = scan(*inputs)
      return jnp.abs(last).sum() + jnp.abs(h.astype(last.dtype)).sum()

    gradients = lambda: jax.grad(loss, range(len(inputs)))(*inputs)
    want = gradients()
    with mock.patch.object(dispatch, '_is_installed', lambda packages: True):
      jax.tree.map(np.testing.assert_array_equal, gradients(), want)
