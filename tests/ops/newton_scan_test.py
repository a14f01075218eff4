"""`newton_scan` against a loop over `step`, with gradients."""

import warnings

from absl.testing import parameterized
import jax
import jax.numpy as jnp
import numpy as np
from rnnzoo import ops
from tests import tolerance

_B, _T, _D = 2, 12, 3
_RNG = np.random.default_rng(0)
_X = _RNG.standard_normal((_B, _T, _D))
_RESET, _MASK = _RNG.random((2, _B, _T)) < np.array([0.2, 0.8])[:, None, None]
_DENSE = 0.8 * _RNG.standard_normal((_D, _D))
_SLOPES = _RNG.standard_normal(_D)
# `step(weights, h, x)` and the initial states of each form.
_STEPS = dict(
    diagonal=(
        lambda w, h, x: jnp.tanh(w * h + x), _SLOPES,
        _RNG.standard_normal((2, _B, _D)),
    ),
    blocks=(
        lambda w, h, x: jnp.stack(
            [jnp.tanh(w * h[:, 1] + x), jnp.sin(h[:, 0] * h[:, 1] + x)], 1
        ),
        _SLOPES, _RNG.standard_normal((2, _B, 2, _D)),
    ),
    dense=(
        lambda w, h, x: jnp.tanh(h @ w + x), _DENSE,
        _RNG.standard_normal((2, _B, _D)),
    ),
)


def _loop(step, x, h0, initial, reset, mask):
  h, states = h0, []
  for t in range(x.shape[1]):
    h = jnp.where(_like(reset[:, t] & mask[:, t], h), initial, h)
    h = jnp.where(_like(mask[:, t], h), step(h, x[:, t]), h)
    states.append(h)
  return h, jnp.stack(states, 1)


def _like(flag, h):
  return flag.reshape(-1, *(1,) * (h.ndim - 1))


def _diagonal_of(step, slopes):
  """A quasi-Newton form: the slopes of the tanh times those of the matrix."""

  def linearize(h, x):
    f = step(h, x)
    return f, (1 - f**2) * slopes

  return linearize


def _sequence(length):
  """A recurrence whose guesses are steeper than its solution."""
  x = np.random.default_rng(0).standard_normal((1, length, 4)) / 2
  return (
      lambda h, x: h - 0.15 * h**3 + x, np.float32(x),
      np.zeros((1, 4), np.float32),
  )


class NewtonScanTest(parameterized.TestCase):

  @parameterized.parameters('diagonal', 'blocks', 'dense')
  def test_matches_the_loop_with_gradients(self, name):
    step, weights, (h0, initial) = _STEPS[name]

    def newton(weights, x, h0, initial):
      run = lambda h, x: step(weights, h, x)
      linearize = None
      if name == 'dense':
        linearize = _diagonal_of(run, jnp.diagonal(weights))
      last, h, residual = ops.newton_scan(
          run, x, h0, initial=initial, reset=jnp.asarray(_RESET),
          mask=jnp.asarray(_MASK), linearize=linearize,
      )
      return (last, h), residual

    def loop(weights, x, h0, initial):
      run = lambda h, x: step(weights, h, x)
      return _loop(run, x, h0, initial, _RESET, _MASK), None

    def loss(scan, *operands):
      (last, h), residual = scan(*operands)
      return jnp.sum(last**2) + jnp.sum(jnp.sin(h)), ((last, h), residual)

    with jax.enable_x64(True):
      operands = tuple(map(jnp.asarray, (weights, _X, h0, initial)))
      got, want = (
          jax.jit(jax.value_and_grad(
              lambda *u, scan=scan: loss(scan, *u), (0, 1, 2, 3), has_aux=True
          ))(*operands)
          for scan in (newton, loop)
      )
    ((_, (states, residual)), grads), ((_, (wanted, _)), want_grads) = got, want
    self.assertLess(residual.max(), 1e-14)
    tolerance.assert_close(states, wanted, np.float64)
    tolerance.assert_close(grads, want_grads, np.float64)

  def test_second_derivatives(self):
    step, weights, (h0, _) = _STEPS['diagonal']

    def newton(weights, x):
      return ops.newton_scan(lambda h, x: step(weights, h, x), x, h0)[1]

    def loop(weights, x):
      flags = np.zeros((_B, _T), bool)
      run = lambda h, x: step(weights, h, x)
      return _loop(run, x, h0, h0, flags, ~flags)[1]

    def slope(scan):
      return lambda weights: jnp.sum(
          jax.grad(lambda x: jnp.sum(scan(weights, x) ** 2))(_X) ** 2
      )

    with jax.enable_x64(True):
      got, want = (
          jax.jit(jax.grad(slope(scan)))(weights) for scan in (newton, loop)
      )
    tolerance.assert_close(got, want, np.float64)

  def test_each_iteration_makes_one_more_state_exact(self):
    step, x, h0 = _sequence(16)
    want = ops.newton_scan(step, x, h0)[1]
    for n in (1, 3):
      with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        h = ops.newton_scan(step, x, h0, num_iterations=n)[1]
      np.testing.assert_allclose(h[:, : n + 1], want[:, : n + 1], rtol=1e-5)

  def test_the_damped_form_converges_where_plain_newton_does_not(self):
    step, x, h0 = _sequence(400)
    run = jax.jit(
        lambda max_slope: ops.newton_scan(
            step, x, h0, max_slope=max_slope, num_iterations=12
        )[2],
        static_argnums=0,
    )
    self.assertFalse(run(None)[0] < 0.01)
    self.assertLess(run(1.0)[0], 1e-6)
    # The clipped Jacobian is not that of the gradient.
    loss = lambda x, **options: jnp.sum(
        ops.newton_scan(step, x, h0, **options)[1] ** 2
    )
    x = x[:, :50]
    got = jax.grad(lambda x: loss(x, max_slope=0.5))(x)
    tolerance.assert_close(got, jax.grad(loss)(x), np.float32)

  def test_says_when_it_has_not_converged(self):
    step, x, h0 = _sequence(400)
    few = dict(num_iterations=1)
    with self.assertWarnsRegex(UserWarning, 'did not reach its tol'):
      residual = ops.newton_scan(step, x, h0, **few)[2]
    self.assertFalse(residual[0] < 0.01)
    with self.assertRaisesRegex(FloatingPointError, 'more iterations'):
      ops.newton_scan(step, x, h0, strict=True, **few)
    with self.assertRaisesRegex(FloatingPointError, 'nan'):
      ops.newton_scan(step, x * np.nan, h0, strict=True)

  def test_infinite_states_and_absent_tokens(self):
    # The logarithm of an empty sum, and padding of NaN before the sequence.
    mask = np.ones((1, 8), bool)
    mask[0, [0, 1, 2, 5]] = False
    x = np.where(mask[..., None], np.float32(_RNG.random((1, 8, 2))), np.nan)
    h0 = np.full((1, 2), -np.inf, np.float32)

    def total(scale, x):
      step = lambda h, x: jnp.logaddexp(0.5 * h, scale * x)
      h = ops.newton_scan(step, x, h0, mask=mask)[1]
      return jnp.sum(h[:, 3:]), h

    (_, h), grads = jax.jit(
        jax.value_and_grad(total, (0, 1), has_aux=True)
    )(2.0, x)
    step = lambda h, x: jnp.logaddexp(0.5 * h, 2 * x)
    want = _loop(step, np.nan_to_num(x), h0, h0, ~mask, mask)
    np.testing.assert_array_equal(h[:, :3], np.full((1, 3, 2), -np.inf))
    tolerance.assert_close(h[:, 3:], want[1][:, 3:], np.float32)
    self.assertTrue(np.isfinite(grads[0]))
    self.assertTrue(np.all(np.isfinite(grads[1])))
    # An infinite slope is as good as any other.
    x = np.array([0, 0, 1, 2], np.float32)[None, :, None]
    step = lambda h, x: jnp.sqrt(h) + x
    h = ops.newton_scan(step, x, np.zeros((1, 1), np.float32), strict=True)[1]
    self.assertAlmostEqual(float(h[0, -1, 0]), 3, places=5)

  def test_a_sequence_does_not_disturb_the_others(self):
    step, weights, _ = _STEPS['dense']
    weights = np.float32(weights / 2)
    x = np.float32(np.tile(_X[:1], (2, 20, 1)))
    h0 = np.zeros((2, _D), np.float32)
    calls = []

    def run(h, x):
      jax.debug.callback(lambda: calls.append(1))
      return step(weights, h, x)

    scan = lambda x: ops.newton_scan(
        run, x, h0,
        linearize=_diagonal_of(run, jnp.diagonal(weights)),
    )[1]
    x[0, 3] = np.nan
    h = jax.jit(scan)(x)
    jax.effects_barrier()
    self.assertLess(len(calls), x.shape[1] // 2)
    self.assertTrue(np.all(np.isnan(h[0, 3:])))
    # Gradients of 1 and of 1e-9.
    x[0] = x[1]
    scales = np.array([1, 1e-9], np.float32)[:, None, None]
    grad = jax.jit(jax.grad(lambda x: jnp.sum(scan(x) ** 2 * scales)))(x)
    np.testing.assert_allclose(
        grad[1] * 1e9, grad[0], rtol=1e-4, atol=1e-5
    )

  def test_reads_a_closed_over_array_again(self):
    scale = 1.0
    step, x = lambda h, x: scale * x, np.ones((1, 2, 1), np.float32)
    for scale in (1.0, 2.0):
      h = ops.newton_scan(step, x, np.zeros((1, 1), np.float32))[1]
      np.testing.assert_array_equal(h, scale * x)

  def test_bad_arguments(self):
    step, x, h0 = _sequence(4)
    scan = lambda x=x, h0=h0, **options: ops.newton_scan(
        step, x, h0, **options
    )
    for message, call in {
        '`h0` must be float32 or': lambda: scan(h0=np.float16(h0)),
        r'`h0` must be \[B, D\] or': lambda: scan(h0=h0[0]),
        r'`h0` must be \[B, D\] = \(1, 4\)': lambda: scan(h0=h0[[0, 0]]),
        r'`x` must be .* with B, T = 1, 4': lambda: scan(x=(x, x[:, :2])),
        '`num_iterations` must be at least 1': lambda: scan(num_iterations=0),
        '`max_slope` must be above 0': lambda: scan(max_slope=0.0),
        r'`initial` must be \[B, D\] =': lambda: scan(initial=h0[:, :2]),
        '`reset` must be bool': lambda: scan(reset=np.zeros((1, 4))),
        r'`step` must return float32 \(4, 4\) for 4 tokens': lambda: (
            ops.newton_scan(lambda h, x: jnp.bfloat16(h + x), x, h0)
        ),
        '`linearize` must return': lambda: scan(linearize=lambda h, x: (h, 1)),
    }.items():
      with self.assertRaisesRegex(ValueError, message):
        call()
    # No channels.
    h, residual = scan(x=x[..., :0], h0=h0[:, :0])[1:]
    self.assertEqual((h.shape, residual.shape), ((1, 4, 0), (1,)))
    last, h, residual = scan(x=x[:, :0])
    np.testing.assert_array_equal(last, h0)
    self.assertEqual((h.shape, residual.shape), ((1, 0, 4), (1,)))
