"""DeltaNet and Gated DeltaNet: equations in float64 NumPy, start, sizes."""

import functools

from absl.testing import parameterized
from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np
from rnnzoo import layers
from rnnzoo import models
from tests.layers import transcription
from tests.layers.transcription import sigmoid


def silu(u):
  return u * sigmoid(u)


def equations(p, x, carry, *, gated=False, largest_beta=1, activation=silu):
  """Yang et al. (2024), and Yang et al. (2024) with decays and a gate."""
  tail, S = carry
  _, heads, keys, values = S.shape
  size = heads * keys
  ys = []
  for x_t in x:
    window = np.concatenate([tail, (x_t @ p['qkv/kernel'])[:, None]], axis=1)
    tail = window[:, 1:]
    u = (window * p['conv']).sum(1)
    q, k, v = u[:, :size], u[:, size : 2 * size], u[:, 2 * size :]
    q, k = (activation(u).reshape(-1, heads, keys) for u in (q, k))
    q, k = (
        u / np.sqrt((u**2).sum(-1, keepdims=True) + 1e-6) for u in (q, k)
    )
    v = silu(v).reshape(-1, heads, values)
    beta = largest_beta * sigmoid(x_t @ p['beta/kernel'])
    if gated:
      dt = np.logaddexp(0, x_t @ p['decay/kernel'] + p['dt_bias'])
      S = S * np.exp(-np.exp(p['A_log']) * dt)[..., None, None]
    error = v - np.einsum('bhkv,bhk->bhv', S, k)
    S = S + k[..., None] * (beta[..., None] * error)[:, :, None]
    y = np.einsum('bhkv,bhk->bhv', S, q) / np.sqrt(keys)
    y = y / np.sqrt((y**2).mean(-1, keepdims=True) + 1e-5) * p['norm/scale']
    y = y.reshape(len(y), -1)
    if gated:
      y = y * silu(x_t @ p['gate/kernel'])
    ys.append(y @ p['output/kernel'])
  return (tail, S), ys


class DeltaNetTest(parameterized.TestCase):

  def test_equals_the_equations_in_numpy(self):
    transcription.check(
        equations,
        lambda rngs: layers.DeltaNet(6, num_heads=2, chunk_size=4, rngs=rngs),
    )

  def test_equals_the_equations_with_negative_eigenvalues(self):
    relu = lambda u: np.maximum(u, 0)
    transcription.check(
        functools.partial(equations, largest_beta=2, activation=relu),
        lambda rngs: layers.DeltaNet(
            4, key_features=2, value_features=3, conv_kernel=2,
            activation='relu', allow_negative_eigenvalues=True, chunk_size=4,
            rngs=rngs,
        ),
    )

  def test_gated_delta_net_equals_its_equations(self):
    transcription.check(
        functools.partial(equations, gated=True),
        lambda rngs: layers.GatedDeltaNet(
            8, num_heads=2, chunk_size=4, rngs=rngs
        ),
    )

  def test_each_activation(self):
    u = np.linspace(-2, 2, 9, dtype=np.float32)
    want = dict(
        silu=silu(u), relu=np.maximum(u, 0), identity=u,
        elu=np.where(u > 0, u + 1, np.exp(u)),
    )
    self.assertSameElements(want, layers.delta_net.ACTIVATIONS)
    for name, fn in layers.delta_net.ACTIVATIONS.items():
      np.testing.assert_allclose(fn(u), want[name], rtol=1e-5, err_msg=name)

  @parameterized.parameters(
      # The published models of 1.3B parameters, and whatever fits.
      (layers.DeltaNet, 2048, {}, 16, 128, 128),
      (layers.GatedDeltaNet, 2048, {}, 6, 256, 512),
      (layers.GatedDeltaNet, 2304, dict(num_heads=9), 9, 192, 384),
      (layers.DeltaNet, 24, {}, 3, 8, 8),
      (layers.DeltaNet, 24, dict(key_features=12), 2, 12, 12),
      (layers.DeltaNet, 24, dict(num_heads=5, key_features=7), 5, 7, 7),
      (layers.GatedDeltaNet, 16, dict(value_features=5), 3, 4, 5),
  )
  def test_default_sizes(self, cls, features, options, heads, keys, values):
    layer = nnx.eval_shape(lambda: cls(features, **options, rngs=nnx.Rngs(0)))
    carry = jax.eval_shape(lambda: layer.initialize_carry(2))
    self.assertEqual(carry.S.shape, (2, heads, keys, values))
    self.assertEqual(carry.conv.shape, (2, 3, heads * (2 * keys + values)))

  def test_gated_delta_net_has_the_size_of_a_mamba2_block(self):
    d = 2048
    layer = nnx.eval_shape(lambda: layers.GatedDeltaNet(d, rngs=nnx.Rngs(0)))
    sizes = [u.size for u in jax.tree.leaves(nnx.state(layer, nnx.Param))]
    self.assertAlmostEqual(sum(sizes) / d**2, 6, delta=0.02)

  def test_initial_maps_are_those_of_pytorch(self):
    layer = layers.GatedDeltaNet(64, rngs=nnx.Rngs(0))
    for u, fan_in in (
        (layer.qkv.kernel, 64), (layer.gate.kernel, 64),
        (layer.beta.kernel, 64), (layer.decay.kernel, 64),
        (layer.output.kernel, 96), (layer.conv, 4),
    ):
      u = np.asarray(u[...]) * fan_in**0.5
      self.assertLessEqual(np.abs(u).max(), 1)
      self.assertGreater(np.abs(u).max(), 0.95)
      self.assertAlmostEqual(u.std(), 3**-0.5, delta=1.5 / u.size**0.5)

  def test_initial_decays(self):
    layer = layers.GatedDeltaNet(
        4, num_heads=4000, key_features=1, rngs=nnx.Rngs(0)
    )
    rates = np.exp(np.float64(layer.A_log[...])) / 16
    dt = np.log(np.logaddexp(0, np.float64(layer.dt_bias[...])))
    dt = (dt - np.log(1e-3)) / np.log(100)
    for sample in rates, dt:  # Uniform; Kolmogorov's test, 1 of 1000.
      gap = np.abs(np.sort(sample) - np.arange(4000) / 4000).max()
      self.assertLess(gap, 1.95 / 4000**0.5)

  def test_decays_are_never_stored_below_float32(self):
    layer = layers.GatedDeltaNet(
        4, param_dtype=jnp.bfloat16, rngs=nnx.Rngs(0)
    )
    for u in (layer.A_log, layer.dt_bias):
      self.assertEqual(u[...].dtype, jnp.float32)
      self.assertTrue(u.get_metadata('recurrent'))
    self.assertEqual(layer.qkv.kernel[...].dtype, jnp.bfloat16)

  @parameterized.parameters(
      (layers.DeltaNet, dict(num_heads=3), '`num_heads` must divide 4, got 3'),
      (layers.DeltaNet, dict(key_features=0), 'key_features.* got 0'),
      (layers.GatedDeltaNet, dict(key_features=2), 'key_features.*divide 3'),
      (layers.DeltaNet, dict(value_features=0), 'value_features.*got 0'),
      (layers.DeltaNet, dict(conv_kernel=0), 'conv_kernel.*got 0'),
      (layers.DeltaNet, dict(activation='tanh'), "silu, relu.*got 'tanh'"),
      (layers.GatedDeltaNet, dict(dt_min=0.2), 'in order, got 0.2, 0.1'),
  )
  def test_invalid_options_raise(self, cls, options, message):
    with self.assertRaisesRegex(ValueError, message):
      cls(4, **options, rngs=nnx.Rngs(0))

  @parameterized.parameters('delta_net', 'gated_delta_net')
  def test_runs_in_a_model(self, name):
    config = models.ModelConfig.tiny().replace(layer=name)
    model = models.LanguageModel(config, rngs=nnx.Rngs(0))
    tokens = np.random.default_rng(0).integers(0, 16, (2, 3))
    carry, logits = jax.eval_shape(lambda u: model(u), tokens)
    step = lambda *u: model.step(*u)
    next_carry, next_logits = jax.eval_shape(step, carry, tokens[:, 0])
    self.assertEqual(next_carry, carry)
    self.assertEqual(next_logits.shape, (2, logits.shape[-1]))
