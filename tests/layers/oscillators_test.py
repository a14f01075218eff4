"""LinOSS and D-LinOSS: initial values, stability, and bad arguments."""

from absl.testing import parameterized
from flax import nnx
import jax.numpy as jnp
import numpy as np
from rnnzoo import layers


def _eigenvalues(layer):
  matrix, _ = layer.transition(jnp.float32)
  return np.linalg.eigvals(np.asarray(matrix, np.float64).transpose(2, 0, 1))


class OscillatorsTest(parameterized.TestCase):

  def test_eigenvalues_start_where_the_papers_put_them(self):
    layer = layers.DLinOSS(4, 200, r_min=0.8, theta_max=1.0, rngs=nnx.Rngs(0))
    found = _eigenvalues(layer)
    radius, angle = np.abs(found), np.abs(np.angle(found))
    # An area of uniform density between the radii.
    self.assertBetween(radius.min(), 0.79, 0.82)
    self.assertBetween(radius.max(), 0.99, 1.0005)
    self.assertAlmostEqual(np.mean(radius**2), (0.8**2 + 1) / 2, delta=0.03)
    self.assertLess(angle.max(), 1.01)
    self.assertAlmostEqual(angle.mean(), 0.5, delta=0.08)
    implicit = np.abs(_eigenvalues(layers.LinOSS(4, 50, rngs=nnx.Rngs(0))))
    self.assertLessEqual(implicit.max(), 1.0005)
    explicit = layers.LinOSS(
        4, 50, discretization='imex', rngs=nnx.Rngs(0)
    )
    np.testing.assert_allclose(np.abs(_eigenvalues(explicit)), 1, atol=1e-3)

  def test_no_parameters_make_a_state_grow(self):
    layer = layers.DLinOSS(4, 50, rngs=nnx.Rngs(0))
    for value in (-100.0, 0.0, 1e6):
      layer.A_diag[...] = jnp.full((50,), value)
      layer.G_diag[...] = jnp.linspace(-3, 3, 50)
      self.assertLessEqual(np.abs(_eigenvalues(layer)).max(), 1.01)

  def test_bad_arguments(self):
    for message, make in {
        '`state_features` must be at least 1': lambda rngs: layers.LinOSS(
            4, 0, rngs=rngs
        ),
        '`discretization` must be one of': lambda rngs: layers.LinOSS(
            4, discretization='euler', rngs=rngs
        ),
        '`r_min` must be in': lambda rngs: layers.DLinOSS(
            4, r_min=1.5, rngs=rngs
        ),
        '`theta_max` must be in': lambda rngs: layers.DLinOSS(
            4, theta_max=0.0, rngs=rngs
        ),
    }.items():
      with self.assertRaisesRegex(ValueError, message):
        make(nnx.Rngs(0))
