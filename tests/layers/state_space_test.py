"""HiPPO, its spectrum, and discretisation, against published numbers."""

from absl.testing import parameterized
import jax
import jax.numpy as jnp
import numpy as np
from rnnzoo.layers import state_space
import scipy.linalg


class StateSpaceTest(parameterized.TestCase):

  def test_legs_equals_its_definition(self):
    a, b = state_space.legs(5)
    for n in range(5):
      for k in range(5):
        want = -np.sqrt((2 * n + 1) * (2 * k + 1)) if n > k else 0
        self.assertAlmostEqual(a[n, k], want if n != k else -(n + 1))
      self.assertAlmostEqual(b[n], np.sqrt(2 * n + 1))

  def test_spectrum_of_the_normal_part(self):
    lambda_, v, p = state_space.normal_legs(8)
    a, _ = state_space.legs(8)
    np.testing.assert_allclose(
        v @ np.diag(lambda_) @ v.conj().T - np.outer(p, p), a, atol=1e-12
    )
    np.testing.assert_allclose(v @ v.conj().T, np.eye(8), atol=1e-12)
    np.testing.assert_array_equal(lambda_.real, -0.5)
    np.testing.assert_allclose(
        lambda_.imag[4:], [0.4275, 1.9578, 5.3542, 19.857], atol=5e-5 * 20
    )
    np.testing.assert_allclose(lambda_.imag[:4], -lambda_.imag[:3:-1])
    lambda_, _, _ = state_space.normal_legs(64)
    self.assertAlmostEqual(lambda_.imag.max(), 1303.3, delta=0.05)

  def test_step_sizes_are_uniform_in_their_logarithm(self):
    init = state_space.log_uniform(0.001, 0.1)
    sample = np.sort(init(jax.random.key(0), (4000,)))
    uniform = (sample - np.log(0.001)) / np.log(100)
    gap = np.abs(uniform - (np.arange(4000) + 0.5) / 4000).max()
    self.assertLess(gap, 1.95 / 4000**0.5)  # Passed by 999 of 1000.

  @parameterized.parameters((0.0, 0.1), (0.2, 0.1))
  def test_step_sizes_out_of_order_raise(self, low, high):
    with self.assertRaisesRegex(ValueError, f'dt_min.*got {low}, {high}'):
      state_space.log_uniform(low, high)

  def test_zero_order_hold_equals_the_matrix_exponential(self):
    lambda_, step = np.array([-0.5 + 3j, -2.0, -1e-3, 0.0]), 0.3
    with jax.enable_x64(True):
      a, b = state_space.zero_order_hold(jnp.asarray(lambda_), step)
    for i, value in enumerate(lambda_):
      system = np.array([[value, 1], [0, 0]])  # The input is a state, too.
      want = scipy.linalg.expm(step * system)
      np.testing.assert_allclose([a[i], b[i]], want[0], rtol=1e-13)

  def test_bilinear_equals_the_trapezoid_rule(self):
    # (I - A s/2) h' = (I + A s/2) h + s x.
    lambda_, step, h, x = -0.5 + 3j, 0.3, 0.7 - 0.2j, 1.3
    a, b = state_space.bilinear(lambda_, step)
    new = a * h + b * x
    self.assertAlmostEqual(
        new, h + step * (lambda_ * (h + new) / 2 + x), delta=1e-12
    )

  def test_zero_order_hold_is_accurate_near_zero(self):
    # Also in its slopes; 1e-3 is a usual step.
    z = np.complex64(np.array([1e-3 + 1e-3j, 1e-6, 0.4j, -0.6 + 1j]))

    def run(z):
      value, slope = jax.jvp(
          lambda z: state_space.zero_order_hold(z, 1.0)[1], (z,), (z * 0 + 1,)
      )
      return np.array([value, slope])

    with jax.enable_x64(True):
      want = run(np.complex128(z))
    np.testing.assert_allclose(run(z), want, rtol=2e-6)
    exact = (np.exp(np.complex128(z)) - 1) / z
    np.testing.assert_allclose(want[0], exact, rtol=1e-9)
