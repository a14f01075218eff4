"""What layers start from: distributions that papers and official code give."""

import math

from absl.testing import parameterized
from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np
from rnnzoo import layers
from rnnzoo.layers import initializers
from rnnzoo.layers import min_gru

_MANY = 4000


def largest_gap(sample):
  """Kolmogorov's distance of a sample from the uniform law on [0, 1]."""
  sample = np.sort(sample)
  steps = np.arange(sample.size + 1) / sample.size
  return max(
      np.abs(sample - steps[1:]).max(), np.abs(sample - steps[:-1]).max()
  )


class InitializationTest(parameterized.TestCase):

  def assert_uniform(self, sample, low, high):
    sample = np.asarray(sample, np.float64).ravel()
    # Passed by 999 of 1000 uniform samples.
    self.assertLess(
        largest_gap((sample - low) / (high - low)), 1.95 / sample.size**0.5
    )

  @parameterized.parameters((0.0, 1.0, 2 * math.pi), (0.9, 0.999, math.pi / 10))
  def test_lru_eigenvalues_are_uniform_over_the_ring(self, r_min, r_max, phase):
    layer = layers.LRU(
        2, _MANY, r_min=r_min, r_max=r_max, max_phase=phase, rngs=nnx.Rngs(0)
    )
    radius = np.exp(-np.exp(np.float64(layer.nu_log[...])))
    self.assert_uniform(radius**2, r_min**2, r_max**2)
    self.assert_uniform(np.exp(np.float64(layer.theta_log[...])), 0, phase)
    for value in (layer.nu_log, layer.theta_log, layer.gamma_log):
      self.assertTrue(np.isfinite(value[...]).all())  # Off the ends.
    np.testing.assert_allclose(
        np.exp(np.float64(layer.gamma_log[...])),
        np.sqrt(1 - radius**2),
        rtol=1e-3,
    )

  def test_lru_starts_from_one_spectrum_in_all_parametrizations(self):
    make = lambda name: layers.LRU(
        2, 50, r_min=0.4, r_max=0.9, parametrization=name, rngs=nnx.Rngs(0)
    )
    stable, polar, cartesian = map(make, ('stable', 'polar', 'cartesian'))
    want = np.exp(
        -np.exp(stable.nu_log[...]) + 1j * np.exp(stable.theta_log[...])
    )
    found = np.exp(-polar.nu[...] + 1j * polar.theta[...])
    np.testing.assert_allclose(found, want, atol=1e-5)
    found = cartesian.Lambda_re[...] + 1j * cartesian.Lambda_im[...]
    np.testing.assert_allclose(found, want, atol=1e-5)
    for layer in (polar, cartesian):
      for name in ('gamma_log', 'B_re', 'B_im', 'C_re', 'C_im', 'D'):
        np.testing.assert_array_equal(
            getattr(layer, name)[...], getattr(stable, name)[...]
        )
    with self.assertRaisesRegex(ValueError, "'cartesian'.*got 'log'"):
      make('log')

  def test_the_dense_rnn_starts_on_the_unit_disk(self):
    layer = layers.Elman(
        256, 256, hidden_init='glorot_normal', use_bias=False,
        use_projection=True, rngs=nnx.Rngs(0),
    )
    # The circular law: a Gaussian matrix of variance 1 / H.
    radius = np.abs(np.linalg.eigvals(layer.hidden.kernel[...][:, 0]))
    self.assertBetween(radius.max(), 0.9, 1.1)
    # A quarter of the eigenvalues lies within half of the radius.
    self.assertAlmostEqual(np.mean(radius < 0.5), 0.25, delta=0.05)
    self.assertIsNone(layer.input.bias)
    self.assertAlmostEqual(float(layer.C[...].var()) * 256, 1, delta=0.05)
    with self.assertRaisesRegex(ValueError, "'relu'.*got 'gelu'"):
      layers.Elman(2, activation='gelu', rngs=nnx.Rngs(0))

  def test_lru_gamma_keeps_the_variance(self):
    # Proposition 3: without gamma the state would have 24 times this energy.
    layer = layers.LRU(2, _MANY, r_min=0.9, r_max=0.999, rngs=nnx.Rngs(0))
    x = np.random.default_rng(0).standard_normal((2, 1500, 2))
    carry, _ = jax.jit(lambda x: layer(x))(np.float32(x))
    self.assertBetween(float(jnp.mean(jnp.abs(carry) ** 2)), 0.7, 1.4)

  def test_lru_matrices(self):
    layer = layers.LRU(64, 400, rngs=nnx.Rngs(0))
    for name, variance in dict(
        B_re=1 / 128, B_im=1 / 128, C_re=1 / 400, C_im=1 / 400, D=1
    ).items():
      value = np.asarray(getattr(layer, name)[...])
      self.assertAlmostEqual(value.var() / variance, 1, delta=0.4)
      self.assertBetween(value.mean() / variance**0.5, -0.3, 0.3)

  def test_lru_decays_are_never_stored_below_float32(self):
    layer = layers.LRU(4, param_dtype=jnp.bfloat16, rngs=nnx.Rngs(0))
    for name in ('nu_log', 'theta_log', 'gamma_log'):
      self.assertEqual(getattr(layer, name)[...].dtype, jnp.float32)
    self.assertEqual(layer.B_re[...].dtype, jnp.bfloat16)

  @parameterized.parameters((-0.1, 1.0), (0.5, 0.5), (0.5, 1.1))
  def test_ring_with_radii_out_of_order_raises(self, r_min, r_max):
    with self.assertRaisesRegex(ValueError, f'got {r_min}, {r_max}'):
      initializers.ring(r_min, r_max)

  @parameterized.parameters(0, -1.0)
  def test_lru_with_a_phase_of_zero_raises(self, max_phase):
    with self.assertRaisesRegex(ValueError, 'max_phase'):
      layers.LRU(4, max_phase=max_phase, rngs=nnx.Rngs(0))

  @parameterized.parameters(layers.MinGRU, layers.MinLSTM)
  def test_min_linear_maps_are_those_of_pytorch(self, cls):
    layer = cls(64, expansion_factor=4, rngs=nnx.Rngs(0))
    bound, out = 1 / 8, 1 / 16
    self.assert_uniform(layer.gates.kernel[...], -bound, bound)
    self.assert_uniform(layer.gates.bias[...][-1], -bound, bound)
    self.assert_uniform(layer.output.kernel[...], -out, out)
    self.assert_uniform(layer.output.bias[...], -out, out)
    self.assertEqual(layer.gates.bias[...].shape[1], 256)

  @parameterized.parameters(
      (layers.MinLSTM, 'forget_bias', 3.0), (layers.MinLSTM, 'forget_bias', -1),
      (layers.MinGRU, 'update_bias', -5.0),
  )
  def test_the_bias_of_the_first_gate_is_shifted(self, cls, option, shift):
    layer = cls(64, expansion_factor=4, **{option: shift}, rngs=nnx.Rngs(0))
    first, *others = layer.gates.bias[...]
    self.assert_uniform(first - shift, -1 / 8, 1 / 8)
    for other in others:
      self.assert_uniform(other, -1 / 8, 1 / 8)

  @parameterized.parameters(min_gru.positive, min_gru.identity)
  def test_learned_initial_state_is_g_of_a_normal_vector(self, g):
    layer = layers.MinGRU(
        _MANY, learn_initial_state=True, activation_fn=g, rngs=nnx.Rngs(0)
    )
    s = layer.initial_state[...]
    self.assertBetween(float(s.std()), 0.95, 1.05)
    self.assertBetween(float(s.mean()), -0.05, 0.05)
    carry = layer.initialize_carry(3)
    self.assertEqual(carry.dtype, jnp.float32)
    np.testing.assert_allclose(carry, jnp.stack([g(s)] * 3), rtol=1e-6)

  def test_learned_initial_state_has_a_gradient(self):
    layer = layers.MinGRU(4, learn_initial_state=True, rngs=nnx.Rngs(0))
    graph, state = nnx.split(layer)
    loss = lambda state: nnx.merge(graph, state)(jnp.ones((2, 3, 4)))[1].sum()
    gradient = jax.jit(jax.grad(loss))(state)
    self.assertTrue((gradient.initial_state[...] != 0).all())

  def test_positive_is_continuous_and_positive(self):
    u = jnp.linspace(-30, 30, 1001)
    self.assertTrue((min_gru.positive(u) > 0).all())
    np.testing.assert_allclose(min_gru.positive(jnp.float32([-1e-6, 0])), 0.5,
                               atol=1e-6)

  @parameterized.parameters(layers.Elman, layers.GRU, layers.LSTM)
  def test_cells_have_orthogonal_recurrent_maps_gate_by_gate(self, cls):
    layer = cls(3, 16, rngs=nnx.Rngs(0))
    kernel = np.asarray(layer.hidden.kernel[...])
    for gate in range(kernel.shape[1]):
      u = kernel[:, gate]
      np.testing.assert_allclose(u @ u.T, np.eye(16), atol=1e-5)
    limit = math.sqrt(6 / (3 + 16))  # Glorot's, of one gate, not of all.
    largest = np.abs(layer.input.kernel[...]).max()
    self.assertBetween(largest, 0.9 * limit, limit)

  def test_lstm_forget_bias(self):
    layer = layers.LSTM(3, 4, forget_bias=2.0, rngs=nnx.Rngs(0))
    np.testing.assert_array_equal(
        layer.input.bias[...], np.float32([0, 2, 0, 0])[:, None].repeat(4, 1)
    )

  def test_projection_only_where_sizes_differ_by_default(self):
    make = lambda **options: nnx.eval_shape(
        lambda: layers.MinGRU(6, **options, rngs=nnx.Rngs(0))
    )
    for options, size in (
        (dict(), 6),
        (dict(expansion_factor=2), 6),
        (dict(expansion_factor=2, use_projection=False), 12),
    ):
      layer = make(**options)
      self.assertEqual(layer.out_features, size)
      projected = layer.out_features != layer.hidden_features
      self.assertEqual(layer.output is not None, projected)
