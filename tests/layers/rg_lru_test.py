"""RG-LRU: its equations, how it starts, what it starts from."""

from absl.testing import parameterized
from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np
from rnnzoo import layers
from rnnzoo import testing
from rnnzoo.layers import common
from rnnzoo.layers import rg_lru
from tests.layers import initialization_test
from tests.layers import transcription
from tests.layers.transcription import sigmoid

_MANY = 4096


def block_diagonal(x, w, b):
  parts = np.split(x, len(w), axis=-1)
  return np.concatenate([u @ v + c for u, v, c in zip(parts, w, b)], axis=-1)


def equations(p, x, carry):
  """De et al. (2024), arXiv 2402.19427, section 2.4; first token as published.
  """
  h, fresh = np.array(carry.h), np.array(carry.fresh)[:, None]
  a = sigmoid(-p['a_param'])  # The paper's Lambda is -a_param.
  ys = []
  for x_t in x:
    r = sigmoid(block_diagonal(x_t, p['W_a'], p['b_a']))
    i = sigmoid(block_diagonal(x_t, p['W_x'], p['b_x']))
    a_t = a ** (8 * r)
    later = a_t * h + np.sqrt(1 - a_t**2) * (i * x_t)
    h = np.where(fresh, i * x_t, later)
    fresh = np.zeros_like(fresh)
    ys.append(h)
  return (h, fresh[:, 0]), ys


def some_fresh(initial):
  """A carry whose first row is before its first token; `h` holds numbers."""
  h = np.random.default_rng(3).standard_normal(initial.h.shape)
  return initial._replace(h=h, fresh=np.array([True, False]))


class RGLRUTest(parameterized.TestCase):

  @parameterized.parameters('paper', 'recurrentgemma')
  def test_equals_the_equations_of_the_paper(self, initialization):
    make = lambda rngs: layers.RGLRU(
        6, num_heads=2, initialization=initialization, rngs=rngs
    )
    transcription.check(equations, make, carry_of=some_fresh)

  def test_the_first_present_token_is_not_normalized(self):
    layer = layers.RGLRU(4, rngs=nnx.Rngs(0))
    x = np.random.default_rng(0).standard_normal((1, 6, 4)).astype('float32')
    mask = np.array([[False, False, True, True, False, True]])
    carry, y = layer(x, mask=mask)
    i = jax.nn.sigmoid(common.block_diagonal(
        x[:, 2], layer.W_x[...], layer.b_x[...]
    ))
    testing.assert_close(y[:, 2], i * x[:, 2])
    # Wherever it is cut, also in the padding and before the first token.
    for cut in (0, 1, 2, 3):
      first, second = (slice(None), slice(cut)), (slice(None), slice(cut, None))
      half, _ = layer(x[first], mask=mask[first])
      self.assertEqual(bool(half.fresh[0]), cut < 3)
      testing.assert_close(
          layer(x[second], half, mask=mask[second]), (carry, y[second])
      )
    # Without a mask, the one at the beginning.
    testing.assert_close(layer(x[:, mask[0]]), (carry, y[:, mask[0]]))

  def test_a_fresh_carry_ignores_its_state(self):
    layer = layers.RGLRU(4, rngs=nnx.Rngs(0))
    x = np.random.default_rng(0).standard_normal((2, 3, 4)).astype('float32')
    initial = layer.initialize_carry(2)

    def run(h):
      carry = initial._replace(h=h)
      return layer(x, carry)[1], layer.step(carry, x[:, 0])[1]

    want = run(initial.h)
    nan = jnp.full_like(initial.h, jnp.nan)
    got, pull = jax.vjp(run, nan)
    testing.assert_close(got, want)
    np.testing.assert_array_equal(pull(got)[0], 0)

  def test_a_closed_gate_keeps_the_state_and_finite_gradients(self):
    layer = layers.RGLRU(4, dtype=jnp.bfloat16, rngs=nnx.Rngs(0))
    layer.b_a[...] = jnp.full_like(layer.b_a[...], -200)  # So that a_t is 1.
    graph, state = nnx.split(layer)
    h = jnp.arange(8.0).reshape(2, 4)
    carry = layers.RGLRUCarry(h, jnp.zeros(2, bool))
    x = jnp.ones((2, 5, 4))
    final, _ = layer(x, carry)
    np.testing.assert_array_equal(final.h, h)
    loss = lambda state, x: nnx.merge(graph, state)(x, carry)[1].sum()
    for gradient in jax.tree.leaves(jax.grad(loss, (0, 1))(state, x)):
      self.assertTrue(np.isfinite(gradient.astype(jnp.float32)).all())

  def assert_uniform(self, sample, low, high):
    sample = (np.float64(sample) - low) / (high - low)
    gap = initialization_test.largest_gap(sample.ravel())
    self.assertLess(gap, 1.95 / sample.size**0.5)

  def test_initial_decays_of_the_paper(self):
    layer = layers.RGLRU(_MANY, num_heads=_MANY, rngs=nnx.Rngs(0))
    a = sigmoid(-np.float64(layer.a_param[...]))
    self.assert_uniform(a**8, 0.9, 0.999)

  def test_initial_decays_of_the_published_code(self):
    layer = layers.RGLRU(
        _MANY, num_heads=_MANY, initialization='recurrentgemma',
        rngs=nnx.Rngs(0),
    )
    a = sigmoid(-np.float64(layer.a_param[...]))
    self.assert_uniform(a**2, 0.9**2, 0.999**2)
    p = layer.a_param[...]
    self.assertBetween(float(p.min()), -6.92, -6.5)
    self.assertBetween(float(p.max()), -2.3, -2.19)

  @parameterized.parameters(('paper', 1 / 64), ('recurrentgemma', 1 / 512))
  def test_initial_gates(self, initialization, variance):
    layer = layers.RGLRU(
        512, num_heads=8, initialization=initialization, rngs=nnx.Rngs(0)
    )
    for w, b in ((layer.W_a, layer.b_a), (layer.W_x, layer.b_x)):
      self.assertEqual(w[...].shape, (8, 64, 64))
      self.assertAlmostEqual(float(w[...].var()) / variance, 1, delta=0.05)
      np.testing.assert_array_equal(b[...], np.zeros((8, 64)))
    # Flax's initialiser, called as it is there, counts blocks as inputs.
    lecun = jax.nn.initializers.variance_scaling(1.0, 'fan_in', 'normal')
    published = float(lecun(jax.random.key(0), (8, 64, 64)).var())
    self.assertAlmostEqual(published * 512, 1, delta=0.05)

  def test_decays_are_never_stored_below_float32(self):
    layer = layers.RGLRU(4, param_dtype=jnp.bfloat16, rngs=nnx.Rngs(0))
    self.assertEqual(layer.a_param[...].dtype, jnp.float32)
    self.assertEqual(layer.W_a[...].dtype, jnp.bfloat16)
    self.assertEqual(layer(jnp.ones((1, 2, 4)))[0].h.dtype, jnp.float32)

  @parameterized.parameters((64, 16), (24, 8), (7, 1))
  def test_default_number_of_blocks(self, features, num_heads):
    layer = layers.RGLRU(features, rngs=nnx.Rngs(0))
    self.assertEqual(layer.num_heads, num_heads)

  def test_invalid_options_raise(self):
    for num_heads in (0, 4):
      with self.assertRaisesRegex(ValueError, f'divide 6, got {num_heads}'):
        layers.RGLRU(6, num_heads=num_heads, rngs=nnx.Rngs(0))
    with self.assertRaisesRegex(ValueError, "recurrentgemma.*'griffin'"):
      rg_lru.decay_initializer('griffin')
