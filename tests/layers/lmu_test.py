"""LMU, ParallelLMU: their papers' equations, and what they start from."""

import math

from absl.testing import parameterized
from flax import nnx
import jax.numpy as jnp
import numpy as np
from rnnzoo import layers
from rnnzoo.layers import legendre
from tests.layers import transcription


def matrices(order, theta):
  """Voelker et al. (2019), equations 1, 2 and their zero-order hold.

  With the exact solution over one token, by eigenvectors: fine if small.
  """
  a = np.zeros((order, order))
  for i in range(order):
    for j in range(order):
      a[i, j] = (2 * i + 1) * (-1 if i < j else (-1) ** (i - j + 1)) / theta
  b = np.array([(2 * i + 1) * (-1) ** i / theta for i in range(order)])
  values, vectors = np.linalg.eig(a)
  a_bar = (vectors * np.exp(values)) @ np.linalg.inv(vectors)
  assert np.abs(a_bar.imag).max() < 1e-12
  return a_bar.real, np.linalg.solve(a, (a_bar.real - np.eye(order)) @ b)


def lmu(p, x, carry):
  """Voelker et al. (2019), equations 4, 6, 7."""
  (h, m), ys = carry, []
  a, b = matrices(4, 11.0)
  for x_t in x:
    u = x_t @ p['e_x'].T + h @ p['e_h'].T + m @ p['e_m'].T
    m = m @ a.T + u * b
    h = np.tanh(x_t @ p['W_x'].T + h @ p['W_h'].T + m @ p['W_m'].T)
    ys.append(h)
  return (h, m), ys


def parallel_lmu(p, x, m):
  """Chilkuri, Eliasmith (2021), arXiv 2102.11417; each channel by itself."""
  relu, ys = lambda v: np.maximum(v, 0), []
  a, b = matrices(4, 11.0)
  m = np.array(m)
  for x_t in x:
    u = relu(x_t @ p['W_u'].T + p['b_u'])
    for i in range(u.shape[1]):
      m[:, i] = m[:, i] @ a.T + u[:, i : i + 1] * b
    flat = m.reshape(len(m), -1)
    ys.append(relu(flat @ p['W_m'].T + x_t @ p['W_x'].T + p['b_h']))
  return m, ys


class TranscriptionTest(parameterized.TestCase):

  def test_lmu(self):
    transcription.check(
        lmu, lambda rngs: layers.LMU(3, 5, order=4, theta=11.0, rngs=rngs)
    )

  def test_parallel_lmu(self):
    transcription.check(
        parallel_lmu,
        lambda rngs: layers.ParallelLMU(
            3, 5, memory_features=2, order=4, theta=11.0, rngs=rngs
        ),
    )


class MemoryTest(parameterized.TestCase):

  @parameterized.parameters((1, 5.0), (6, 20.0), (9, 3.0))
  def test_zero_order_hold_equals_the_matrix_exponential(self, order, theta):
    for got, want in zip(
        legendre.legendre_memory(order, theta), matrices(order, theta)
    ):
      self.assertEqual(got.dtype, np.float64)
      np.testing.assert_allclose(got, want, rtol=0, atol=1e-11)

  def test_large_orders_are_stable(self):
    # Eigenvectors of this one have a condition number beyond float64.
    a, b = legendre.legendre_memory(256, 784.0)
    self.assertLess(np.abs(np.linalg.eigvals(a)).max(), 0.98)
    # Of an input of 1 for ever the window is 1: only the mean is not zero.
    np.testing.assert_allclose(
        np.linalg.solve(np.eye(256) - a, b), np.eye(256)[0], atol=1e-9
    )

  def test_euler_discretisation(self):
    a, b = legendre.legendre_memory(3, 20.0, 'euler')
    want = [[-1, -1, -1], [3, -3, -3], [-5, 5, -5]]
    np.testing.assert_allclose(a, np.eye(3) + np.array(want) / 20)
    np.testing.assert_allclose(b, np.array([1, -3, 5]) / 20)

  def test_memory_reconstructs_the_window(self):
    # Legendre polynomials of the memory give back a smooth input of the past.
    order, theta = 8, 100.0
    a, b = legendre.legendre_memory(order, theta)
    signal = lambda t: np.sin(2 * np.pi * t / 90)
    m = np.zeros(order)
    for t in range(300):
      m = a @ m + b * signal(t)
    for ago in (10, 50, 90):
      basis = np.polynomial.legendre.legval(2 * ago / theta - 1, np.eye(order))
      self.assertAlmostEqual(basis @ m, signal(299.5 - ago), delta=0.03)

  @parameterized.named_parameters(
      ('order', dict(order=0), '`order` must be at least 1, got 0'),
      ('theta', dict(theta=0.0), '`theta` must be positive, got 0'),
      ('method', dict(discretization='bilinear'), "zoh.*'bilinear'"),
      ('euler', dict(order=8, theta=32.0, discretization='euler'), 'abo.* 32'),
  )
  def test_invalid_options_raise(self, options, message):
    for layer in (layers.LMU, layers.ParallelLMU):
      with self.assertRaisesRegex(ValueError, message):
        layer(4, **options, rngs=nnx.Rngs(0))

  def test_channels_are_positive(self):
    with self.assertRaisesRegex(ValueError, '`memory_features` must be.*0'):
      layers.ParallelLMU(4, memory_features=0, rngs=nnx.Rngs(0))


class InitializationTest(parameterized.TestCase):

  def assert_uniform(self, sample, bound):
    sample = np.asarray(sample)
    self.assertBetween(np.abs(sample).max(), 0.97 * bound, bound)
    self.assertAlmostEqual(sample.std() / bound, 1 / math.sqrt(3), delta=0.05)

  def test_lmu(self):
    layer = layers.LMU(600, 400, order=200, theta=784, rngs=nnx.Rngs(0))
    self.assert_uniform(layer.e_x[...], math.sqrt(3 / 600))
    self.assert_uniform(layer.e_h[...], math.sqrt(3 / 400))
    self.assertFalse(np.any(layer.e_m[...]))
    for name, fans in dict(W_x=1000, W_h=800, W_m=600).items():
      kernel = np.asarray(getattr(layer, name)[...])
      self.assertAlmostEqual(kernel.std() * math.sqrt(fans / 2), 1, delta=0.02)
      self.assertGreater(np.abs(kernel).max(), 1.9 * kernel.std())  # Normal.

  def test_parallel_lmu(self):
    layer = layers.ParallelLMU(600, 400, order=200, rngs=nnx.Rngs(0))
    self.assert_uniform(layer.W_u[...], math.sqrt(6 / 601))
    for kernel in (layer.W_m, layer.W_x):  # One map of both.
      self.assert_uniform(kernel[...], math.sqrt(6 / 1200))
    for bias in (layer.b_u, layer.b_h):
      self.assertFalse(np.any(bias[...]))

  @parameterized.parameters(layers.LMU, layers.ParallelLMU)
  def test_matrices_are_parameters_only_if_trainable(self, make):
    for trainable in (False, True):
      layer = make(
          4, theta=9.0, trainable=trainable, param_dtype=jnp.bfloat16,
          rngs=nnx.Rngs(0),
      )
      self.assertEqual('A' in nnx.state(layer, nnx.Param), trainable)
      for name, want in zip('AB', legendre.legendre_memory(4, 9.0)):
        value = getattr(layer, name)[...]
        np.testing.assert_allclose(value, want, atol=1e-6 if trainable else 0)
        self.assertIn(value.dtype, (np.float32, np.float64))
