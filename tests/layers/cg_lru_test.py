"""CG-LRU: its equations, and what it starts from."""

import math

from absl.testing import parameterized
from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np
from rnnzoo import layers
from rnnzoo import testing
from tests.layers import initialization_test
from tests.layers import transcription
from tests.layers.transcription import sigmoid

_MANY = 4096


def block_diagonal(x, w, b):
  parts = np.split(x, len(w), axis=-1)
  return np.concatenate([u @ v + c for u, v, c in zip(parts, w, b)], axis=-1)


def equations(p, x, carry):
  """De et al. (2024), arXiv 2402.19427, appendix B; first token as RG-LRU's."""
  h, fresh = np.array(carry.h), np.array(carry.fresh)[:, None]
  a = sigmoid(-p['a_param']) * np.exp(1j * p['theta'])
  ys = []
  for x_t in x:
    r = sigmoid(block_diagonal(x_t, p['W_a'], p['b_a']))
    i = sigmoid(block_diagonal(x_t, p['W_x'], p['b_x']))
    z_t = x_t[:, : h.shape[1]] + 1j * x_t[:, h.shape[1] :]
    a_t = a ** (8 * r)
    later = a_t * h + np.sqrt(1 - np.abs(a_t) ** 2) * (i * z_t)
    h = np.where(fresh, i * z_t, later)
    fresh = np.zeros_like(fresh)
    ys.append(np.concatenate([h.real, h.imag], axis=1))
  return (h, fresh[:, 0]), ys


def some_fresh(initial):
  """A carry whose first row is before its first token; `h` holds numbers."""
  random = np.random.default_rng(3)
  h = random.standard_normal(initial.h.shape + (2,)) @ [1, 1j]
  return initial._replace(h=h, fresh=np.array([True, False]))


class CGLRUTest(parameterized.TestCase):

  def test_equals_the_equations_of_the_paper(self):
    make = lambda rngs: layers.CGLRU(8, num_heads=2, rngs=rngs)
    transcription.check(equations, make, carry_of=some_fresh)

  def test_without_rotation_the_halves_are_two_rg_lrus(self):
    layer = layers.CGLRU(6, num_heads=1, max_phase=0.0, rngs=nnx.Rngs(0))
    real = layers.RGLRU(3, num_heads=1, rngs=nnx.Rngs(0))
    # Gates that look at nothing but their biases, which are the same.
    for u in (layer.W_a, layer.W_x, real.W_a, real.W_x):
      u[...] = jnp.zeros_like(u[...])
    real.a_param[...] = layer.a_param[...]
    x = np.random.default_rng(0).standard_normal((2, 7, 6)).astype('float32')
    halves = [real(u)[1] for u in np.split(x, 2, axis=-1)]
    testing.assert_close(layer(x)[1], jnp.concatenate(halves, axis=-1))

  def test_initial_values(self):
    layer = layers.CGLRU(2 * _MANY, num_heads=_MANY, rngs=nnx.Rngs(0))
    bound = 1.95 / _MANY**0.5
    phase = 8 * np.float64(layer.theta[...])
    gap = initialization_test.largest_gap(phase / (math.pi / 10))
    self.assertLess(gap, bound)
    a = sigmoid(-np.float64(layer.a_param[...]))
    gap = initialization_test.largest_gap((a**8 - 0.9) / 0.099)
    self.assertLess(gap, bound)
    self.assertEqual(layer.W_a[...].shape, (_MANY, 2, 1))
    self.assertAlmostEqual(float(layer.W_a[...].var()), 1 / 2, delta=0.05)

  def test_decays_are_never_stored_below_float32(self):
    layer = layers.CGLRU(4, param_dtype=jnp.bfloat16, rngs=nnx.Rngs(0))
    self.assertEqual(layer.theta[...].dtype, jnp.float32)
    self.assertEqual(layer.a_param[...].dtype, jnp.float32)

  def test_a_closed_gate_has_finite_gradients(self):
    layer = layers.CGLRU(4, rngs=nnx.Rngs(0))
    layer.b_a[...] = jnp.full_like(layer.b_a[...], -200)  # So that a_t is 1.
    graph, state = nnx.split(layer)
    x = jnp.ones((2, 5, 4))
    loss = lambda state, x: nnx.merge(graph, state)(x)[1].sum()
    for gradient in jax.tree.leaves(jax.grad(loss, (0, 1))(state, x)):
      self.assertTrue(np.isfinite(gradient).all())

  def test_invalid_options_raise(self):
    make = lambda *a, **k: layers.CGLRU(*a, **k, rngs=nnx.Rngs(0))
    with self.assertRaisesRegex(ValueError, 'even, got 7'):
      make(7)
    with self.assertRaisesRegex(ValueError, 'divide 6, got 4'):
      make(12, num_heads=4)
    with self.assertRaisesRegex(ValueError, 'negative, got -1'):
      make(4, max_phase=-1)
