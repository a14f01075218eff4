"""`block_scan` against a loop in NumPy and float64."""

import sys

from absl.testing import parameterized
import jax
import jax.numpy as jnp
from jax.sharding import AxisType
import numpy as np
from rnnzoo import ops
from tests import tolerance

# The name in `ops` is that of the function.
_MODULE = sys.modules['rnnzoo.ops.block_scan']
_B, _T, _K, _D = 4, 8, 2, 3


def _loop(a, x, h0, reset=None, reverse=False):
  a = np.broadcast_to(a, (*x.shape[:2], *a.shape[2:4], x.shape[3]))
  h, states = h0, np.zeros_like(x)
  for t in range(_T)[:: -1 if reverse else 1]:
    if reset is not None:
      h = np.where(reset[:, t, None, None], 0, h)
    h = np.einsum('bijd,bjd->bid', a[:, t], h) + x[:, t]
    states[:, t] = h
  return h, states


def _operands(a_shape=(_B, _T, _K, _K, _D), imaginary=False):
  rng = np.random.default_rng(0)

  def normal(*shape):
    u = rng.standard_normal(shape)
    return u + 1j * rng.standard_normal(shape) if imaginary else u

  a = 0.6 * normal(*a_shape)
  x, h0 = normal(_B, _T, _K, _D), normal(_B, _K, _D)
  return a, x, h0, rng.random((_B, _T)) < 0.3


class BlockScanTest(parameterized.TestCase):

  @parameterized.parameters(
      dict(a_shape=(_B, _T, _K, _K, _D), reverse=False, imaginary=False),
      dict(a_shape=(_B, _T, _K, _K, _D), reverse=True, imaginary=True),
      dict(a_shape=(1, 1, _K, _K, 1), reverse=True, imaginary=False),
      dict(a_shape=(1, 1, _K, _K, _D), reverse=False, imaginary=True),
  )
  def test_both_forms_match_the_loop(self, a_shape, reverse, imaginary):
    a, x, h0, reset = _operands(a_shape, imaginary)

    def ours(a, x, h0):
      return ops.block_scan(a, x, h0, reset=reset, reverse=reverse)

    def theirs(a, x, h0):
      return _MODULE._associative(a, x, h0, jnp.asarray(reset), reverse)

    def results(scan, *operands):
      def loss(*operands):
        last, h = scan(*operands)
        return jnp.sum(jnp.abs(last) ** 2) + jnp.sum(jnp.sin(h.real))

      def slopes(h0):  # Through the gradient of the gradient, too.
        grads = jax.grad(loss, (0, 1))(*operands[:2], h0)
        return jnp.sum(jnp.abs(grads[0]) ** 2)

      return (
          scan(*operands), jax.grad(loss, (0, 1, 2))(*operands),
          jax.grad(slopes)(operands[2]),
      )

    with jax.enable_x64(True):
      got, other = jax.jit(
          lambda *u: [results(scan, *u) for scan in (ours, theirs)]
      )(a, x, h0)
      plain = ops.block_scan(a, x, reverse=reverse)
    tolerance.assert_close(
        got[0], _loop(a, x, h0, reset, reverse), np.float64
    )
    tolerance.assert_close(got, other, np.float64)
    tolerance.assert_close(
        plain, _loop(a, x, np.zeros_like(h0), None, reverse), np.float64
    )

  def test_nan_stays_in_its_sequence(self):
    a, x, h0, _ = _operands()
    reset = np.zeros((_B, _T), bool)
    reset[:, 4] = True
    broken = x.copy()
    broken[:, 2] = np.nan

    def later(x):
      last, h = ops.block_scan(a, x, h0, reset=reset)
      return jnp.sum(last) + jnp.sum(h[:, 4:])

    with jax.enable_x64(True):
      got, grad = jax.value_and_grad(later)(broken)
      want, want_grad = jax.value_and_grad(later)(x)
    np.testing.assert_array_equal(got, want)
    np.testing.assert_array_equal(grad[:, 4:], want_grad[:, 4:])

  def test_devices_hold_rows_channels_and_time(self):
    a, x, h0, reset = (np.float32(u) for u in _operands())
    reset = reset > 0

    def loss(a, x, h0):
      last, h = ops.block_scan(a, x, h0, reset=reset)
      return jnp.sum(last**2) + jnp.sum(h**2)

    run = lambda: jax.jit(jax.value_and_grad(loss, (0, 1, 2)))(a, x, h0)
    want = run()
    mesh = jax.make_mesh(
        (2, 4), ('data', 'sequence'), axis_types=(AxisType.Auto,) * 2
    )
    with jax.set_mesh(mesh):
      tolerance.assert_close(run(), want, np.float32)

  def test_bad_arguments(self):
    a, x, h0, _ = _operands()
    with self.assertRaisesRegex(ValueError, r'`x` must be \[B, T, K, D\]'):
      ops.block_scan(a, x[0], h0)
    with self.assertRaisesRegex(ValueError, r'`a` must be \[B, T, K, K, D\]'):
      ops.block_scan(a[..., :2], x, h0)
    with self.assertRaisesRegex(ValueError, r'`h0` must be \[B, K, D\]'):
      ops.block_scan(a, x, h0[:1])
    last, h = ops.block_scan(a[:, :0], x[:, :0], h0)
    np.testing.assert_allclose(last, h0, rtol=1e-6)
    self.assertEqual(h.shape, (_B, 0, _K, _D))
