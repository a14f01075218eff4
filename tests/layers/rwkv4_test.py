"""RWKV-4: its equations in float64 NumPy, its initialisation, its stack."""

import math

from absl.testing import parameterized
from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np
from rnnzoo import layers
from rnnzoo import models
from rnnzoo import testing
from tests.layers import transcription
from tests.layers.transcription import sigmoid


def time_mix(p, x, carry):
  """Peng et al. (2023), with keys that need no stabilising."""
  previous, aa, bb, pp = carry
  a, b = aa * np.exp(pp), bb * np.exp(pp)
  w, ys = -np.exp(p['time_decay']), []
  for x_t in x:
    mix = lambda mu: mu * x_t + (1 - mu) * previous
    r = mix(p['mu_r']) @ p['receptance/kernel']
    k = mix(p['mu_k']) @ p['key/kernel']
    v = mix(p['mu_v']) @ p['value/kernel']
    now = np.exp(p['time_first'] + k)
    out = sigmoid(r) * (a + now * v) / (b + now)
    ys.append(out @ p['output/kernel'])
    a, b = np.exp(w) * a + np.exp(k) * v, np.exp(w) * b + np.exp(k)
    pp = np.maximum(pp + w, k)
    previous = x_t
  return (previous, a * np.exp(-pp), b * np.exp(-pp), pp), ys


def channel_mix(p, x, previous):
  """Peng et al. (2023)."""
  ys = []
  for x_t in x:
    mix = lambda mu: mu * x_t + (1 - mu) * previous
    k = np.maximum(mix(p['mu_k']) @ p['key/kernel'], 0) ** 2
    r = mix(p['mu_r']) @ p['receptance/kernel']
    ys.append(sigmoid(r) * (k @ p['value/kernel']))
    previous = x_t
  return previous, ys


def positive_sums(carry):
  """A state that some tokens may have left: `bb` and `pp` are what they are."""
  random = np.random.default_rng(0)
  normal = [random.standard_normal(u.shape) for u in carry]
  return layers.RWKV4Carry(*normal)._replace(bb=np.exp(normal[2]))


class RWKV4Test(parameterized.TestCase):

  @parameterized.parameters(positive_sums, lambda carry: carry)
  def test_time_mix_equals_its_equations(self, carry_of):
    transcription.check(
        time_mix,
        lambda rngs: layers.RWKV4(
            5, layer_index=1, num_layers=3, zero_init=False, rngs=rngs
        ),
        carry_of=carry_of,
    )

  def test_channel_mix_equals_its_equations(self):
    transcription.check(
        channel_mix,
        lambda rngs: layers.RWKV4ChannelMix(5, zero_init=False, rngs=rngs),
    )

  def test_large_keys_do_not_overflow(self):
    layer = layers.RWKV4(8, zero_init=False, rngs=nnx.Rngs(0))
    layer.key.kernel[...] *= 1e4
    x = np.random.default_rng(0).standard_normal((2, 40, 8))
    carry, y = layer(x.astype(np.float32))
    self.assertTrue(np.isfinite(y).all())
    self.assertGreater(np.abs(carry.pp).min(), 100)  # Its exponential is not.

  @parameterized.parameters((0, 1), (0, 12), (5, 12), (11, 12))
  def test_initial_decays_and_shifts(self, index, depth):
    d = 64
    layer = layers.RWKV4(
        d, layer_index=index, num_layers=depth, rngs=nnx.Rngs(0)
    )
    r01, r10 = index / (depth - 1) if index else 0, 1 - index / depth
    for h in range(d):  # As the official loops are.
      near = lambda u, want, h=h: self.assertAlmostEqual(
          float(u[...][h]), want, delta=1e-5
      )
      near(layer.time_decay, -5 + 8 * (h / (d - 1)) ** (0.7 + 1.3 * r01))
      near(layer.time_first, math.log(0.3) + 0.5 * ((h + 1) % 3 - 1))
      near(layer.mu_k, (h / d) ** r10)
      near(layer.mu_v, (h / d) ** r10 + 0.3 * r01)
      near(layer.mu_r, (h / d) ** (0.5 * r10))
    mix = layers.RWKV4ChannelMix(
        d, layer_index=index, num_layers=depth, rngs=nnx.Rngs(0)
    )
    for mu in (mix.mu_k, mix.mu_r):
      np.testing.assert_array_equal(mu[...], layer.mu_k[...])

  def test_initial_maps(self):
    layer = layers.RWKV4(16, rngs=nnx.Rngs(0))
    for linear in (layer.key, layer.receptance, layer.output):
      np.testing.assert_array_equal(linear.kernel[...], 0)
    value = np.asarray(layer.value.kernel[...])
    np.testing.assert_allclose(value @ value.T, np.eye(16), atol=1e-5)
    mix = layers.RWKV4ChannelMix(16, rngs=nnx.Rngs(0))
    for linear in (mix.value, mix.receptance):
      np.testing.assert_array_equal(linear.kernel[...], 0)
    key = np.asarray(mix.key.kernel[...])  # [16, 64], gain 2.
    np.testing.assert_allclose(key @ key.T, 4 * np.eye(16), atol=1e-4)

  def test_decays_are_never_stored_below_float32(self):
    layer = layers.RWKV4(4, param_dtype=jnp.bfloat16, rngs=nnx.Rngs(0))
    for parameter in (layer.time_decay, layer.time_first):
      self.assertEqual(parameter[...].dtype, jnp.float32)
    self.assertEqual(layer.key.kernel[...].dtype, jnp.bfloat16)

  @parameterized.product(
      cls=(layers.RWKV4, layers.RWKV4ChannelMix), index=(-1, 3)
  )
  def test_a_layer_index_beyond_the_depth_raises(self, cls, index):
    with self.assertRaisesRegex(ValueError, f'layer_index.*got {index}'):
      cls(4, layer_index=index, num_layers=3, rngs=nnx.Rngs(0))

  def test_a_model_in_parallel_equals_its_steps(self):
    config = models.ModelConfig.tiny().replace(
        layer='rwkv4,rwkv4_channel_mix', num_layers=4, norm='layer',
        mlp='none', layer_options=dict(num_layers=2, zero_init=False),
    )
    model = models.LanguageModel(config, rngs=nnx.Rngs(0))
    tokens = np.random.default_rng(0).integers(0, 16, (2, 5))
    want_carry, want = jax.jit(lambda u: model(u))(tokens)
    carry, step = model.initialize_carry(2), jax.jit(lambda *u: model.step(*u))
    for t in range(5):
      carry, logits = step(carry, tokens[:, t])
      testing.assert_close(logits, want[:, t])
    testing.assert_close(carry, want_carry)

  def test_the_small_preset_has_the_published_number_of_parameters(self):
    config = models.PRESETS['rwkv4_169m'].replace(vocab_size=50277)
    model = nnx.eval_shape(
        lambda: models.LanguageModel(config, rngs=nnx.Rngs(0))
    )
    sizes = [u.size for u in jax.tree.leaves(nnx.state(model, nnx.Param))]
    self.assertEqual(sum(sizes), 169_342_464)
