"""`log_linear_scan` against the logarithm of the direct recurrence."""

from absl.testing import parameterized
import jax
import jax.numpy as jnp
import numpy as np
from rnnzoo import ops
from tests import tolerance
from tests.ops import oracle

_SHAPE = (2, 9, 3)


def _operands(a_shape=_SHAPE, dtype=np.float32):
  rng = np.random.default_rng(0)
  uniform = lambda *shape: rng.uniform(0.1, 1, shape)
  operands = uniform(*a_shape), uniform(*_SHAPE), uniform(2, 3)
  # Of the logarithms as they are rounded, so that the oracle sees the same.
  logs = [np.log(u).astype(dtype) for u in operands]
  return [np.exp(u.astype(np.float64)) for u in logs], logs


class LogLinearScanTest(parameterized.TestCase):

  @parameterized.named_parameters(
      ('full', _SHAPE, np.float32),
      ('constant', (3,), np.float32),
      ('same_rows', (1, 9, 1), np.float32),
      ('bfloat16', _SHAPE, jnp.bfloat16),
      ('double', (1, 1, 3), np.float64),
  )
  def test_matches_loop(self, a_shape, dtype):
    operands, logs = _operands(a_shape, dtype)
    last, h = oracle.linear_scan(*operands)
    want = np.log(last), np.log(h)

    def exp(*logs):
      return jax.tree.map(jnp.exp, ops.log_linear_scan(*logs))

    @jax.jit
    def run(*logs):
      value, vjp = jax.vjp(exp, *logs)
      return ops.log_linear_scan(*logs), vjp(jax.tree.map(jnp.ones_like, value))

    with jax.enable_x64(dtype == np.float64):
      got, grads = run(*logs)
    self.assertEqual(got[0].dtype, jnp.promote_types(dtype, jnp.float32))
    self.assertEqual(got[1].dtype, dtype)
    # A logarithm is as close as its own size allows, or 1.
    and_one = lambda u: np.append(np.asarray(u, np.float64), 1)
    tolerance.assert_close(
        jax.tree.map(and_one, got), jax.tree.map(and_one, want), dtype
    )
    # d/d(log u) is u d/du.
    want_grads = oracle.linear_scan_vjp(
        *operands, np.ones_like(last), np.ones_like(h)
    )
    for grad, want, u in zip(grads, want_grads, operands):
      size = np.abs(want * u).max()
      np.testing.assert_allclose(
          np.asarray(grad, np.float64) / size,
          want * u / size,
          atol=10 * tolerance.TOLERANCE[jnp.dtype(dtype).name],
      )

  def test_minus_infinity_is_zero_without_nan_gradients(self):
    log_a = np.zeros((1, 5, 1), np.float32)
    log_x = np.array([-np.inf, -np.inf, 0, -np.inf, 0], np.float32)
    log_x = log_x.reshape(1, 5, 1)

    @jax.jit
    def run(log_a, log_x):
      loss = lambda *u: jnp.exp(ops.log_linear_scan(*u)[1]).sum()
      return ops.log_linear_scan(log_a, log_x), jax.grad(loss, (0, 1))(
          log_a, log_x
      )

    (last, h), (da, dx) = run(log_a, log_x)
    tolerance.assert_close(np.exp(h)[0, :, 0], np.array([0, 0, 1.0, 1, 2]))
    tolerance.assert_close(np.exp(last), np.array([[2.0]]))
    tolerance.assert_close(da[0, :, 0], np.array([0, 0, 0, 2.0, 1]))
    tolerance.assert_close(dx[0, :, 0], np.array([0, 0, 3.0, 0, 1]))

  def test_states_beyond_the_floating_point_range(self):
    log_x = np.zeros((1, 9, 1), np.float32)
    _, log_h = jax.jit(ops.log_linear_scan)(np.float32(100.0), log_x)
    tolerance.assert_close(log_h[0, :, 0], 100.0 * np.arange(9))

  def test_error_does_not_grow_with_length(self):
    """In Heinsen's form, which subtracts a `cumsum`, it grows."""
    log_half = np.log(np.full((1, 1, 1), 0.5, np.float32))
    _, log_h = jax.jit(ops.log_linear_scan)(
        log_half, np.zeros((1, 16384, 1), np.float32)
    )
    np.testing.assert_allclose(log_h[0, 100:], np.log(2), rtol=1e-6)

  def test_empty_arrays(self):
    for shape in ((2, 0, 3), (0, 4, 3)):
      log_x = jnp.zeros(shape, jnp.bfloat16)
      last, h = ops.log_linear_scan(0.0, log_x)
      tolerance.assert_close(last, np.full((shape[0], 3), -np.inf))
      self.assertEqual((h.shape, h.dtype), (shape, jnp.bfloat16))

  @parameterized.named_parameters(
      ('x_rank', 0.0, np.zeros((3, 3), 'f'), None, r'`log_x` .*\[B, T, D\]'),
      ('x_int', 0.0, np.zeros(_SHAPE, int), None, '`log_x` must be floating'),
      ('a_complex', 0j, np.zeros(_SHAPE, 'f'), None, '`log_a`.*floating'),
      ('a_shape', np.zeros(5, 'f'), np.zeros(_SHAPE, 'f'), None, '`log_a`.*5'),
      ('h0', 0.0, np.zeros(_SHAPE, 'f'), np.zeros((3, 2), 'f'), '`log_h0`.*3,'),
  )
  def test_bad_input_names_the_argument(self, log_a, log_x, log_h0, message):
    with self.assertRaisesRegex(ValueError, message):
      ops.log_linear_scan(log_a, log_x, log_h0)
