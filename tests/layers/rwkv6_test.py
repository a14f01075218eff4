"""RWKV-6: its equations in float64 NumPy, its initialisation, its stack."""

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
  """Peng et al. (2024), section 4.2."""
  previous, state = carry
  batch, heads, n, _ = state.shape
  ys = []
  for x_t in x:
    lerp = lambda mu: x_t + (previous - x_t) * mu
    low = np.tanh(np.einsum('bd,dir->ibr', lerp(p['mu_x']), p['mix_A']))
    x_w, x_k, x_v, x_r, x_g = (
        lerp(p[f'mu_{name}'] + low[i] @ p['mix_B'][i])
        for i, name in enumerate('wkvrg')
    )
    split = lambda u: u.reshape(batch, heads, n)
    r = split(x_r @ p['receptance/kernel'])
    k = split(x_k @ p['key/kernel'])
    v = split(x_v @ p['value/kernel'])
    g = x_g @ p['gate/kernel']
    d = p['time_decay'] + np.tanh(x_w @ p['decay_A']) @ p['decay_B']
    w = split(np.exp(-np.exp(d)))
    new = np.einsum('bhi,bhj->bhij', k, v)
    out = np.einsum('bhij,bhi->bhj', state + p['bonus'][..., None] * new, r)
    state = w[..., None] * state + new
    out = out - out.mean(-1, keepdims=True)
    out = out / np.sqrt((out**2).mean(-1, keepdims=True) + 64e-5)
    out = out * p['norm/scale'] + p['norm/bias']
    ys.append((out.reshape(x_t.shape) * g * sigmoid(g)) @ p['output/kernel'])
    previous = x_t
  return (previous, state), ys


class RWKV6Test(parameterized.TestCase):

  def test_equals_the_equations_in_numpy(self):
    transcription.check(
        time_mix,
        lambda rngs: layers.RWKV6(
            6, head_features=3, mix_rank=2, decay_rank=4, layer_index=1,
            num_layers=3, zero_init=False, chunk_size=4, rngs=rngs,
        ),
    )

  @parameterized.parameters((0, 1), (0, 12), (5, 12), (11, 12))
  def test_initial_decays_shifts_and_norms(self, index, depth):
    d = 64
    layer = layers.RWKV6(
        d, head_features=16, layer_index=index, num_layers=depth,
        rngs=nnx.Rngs(0),
    )
    r01, r10 = index / (depth - 1) if index else 0, 1 - index / depth
    for h in range(d):  # As the official loops are.
      near = lambda u, want, h=h: self.assertAlmostEqual(
          float(u[...].ravel()[h]), want, delta=1e-5
      )
      near(layer.time_decay, -6 + 5 * (h / (d - 1)) ** (0.7 + 1.3 * r01))
      near(
          layer.bonus, r01 * (1 - h / (d - 1)) + 0.1 * ((h + 1) % 3 - 1)
      )
      near(layer.mu_x, 1 - (h / d) ** r10)
      near(layer.mu_w, 1 - (h / d) ** r10)
      near(layer.mu_k, 1 - (h / d) ** r10)
      near(layer.mu_v, 1 - ((h / d) ** r10 + 0.3 * r01))
      near(layer.mu_r, 1 - (h / d) ** (0.5 * r10))
      near(layer.mu_g, 1 - (h / d) ** (0.5 * r10))
      near(layer.norm.scale, ((1 + index) / depth) ** 0.7)
    np.testing.assert_array_equal(layer.norm.bias[...], 0)

  def test_initial_maps(self):
    layer = layers.RWKV6(64, rngs=nnx.Rngs(0))
    for parameter in (layer.output.kernel, layer.mix_A, layer.decay_A):
      np.testing.assert_array_equal(parameter[...], 0)
    for linear, gain in (
        (layer.receptance, 1), (layer.value, 1),
        (layer.key, 0.1), (layer.gate, 0.1),
    ):
      kernel = np.asarray(linear.kernel[...])
      np.testing.assert_allclose(
          kernel @ kernel.T, gain**2 * np.eye(64), atol=1e-5
      )
    for parameter in (layer.mix_B, layer.decay_B):
      value = np.asarray(parameter[...])
      self.assertLess(np.abs(value).max(), 0.01)
      # The moments of a uniform distribution, the second and the fourth.
      self.assertAlmostEqual(value.std() / 0.01, 3**-0.5, delta=0.02)
      self.assertAlmostEqual((value**4).mean() / 1e-8, 0.2, delta=0.02)

  def test_channel_mix_equals_that_of_rwkv4(self):
    mix = layers.RWKV4ChannelMix(
        16, expansion_factor=3.5, key_gain=1.0, layer_index=1, num_layers=4,
        rngs=nnx.Rngs(0),
    )
    for mu in (mix.mu_k, mix.mu_r):  # Of the current token, not the former.
      np.testing.assert_allclose(
          mu[...], (np.arange(16) / 16) ** 0.75, atol=1e-6
      )
    key = np.asarray(mix.key.kernel[...])  # [16, 56]
    np.testing.assert_allclose(key @ key.T, np.eye(16), atol=1e-5)

  def test_the_published_number_of_parameters(self):
    d, depth, vocabulary = 2048, 24, 65536

    def count(make):
      module = nnx.eval_shape(lambda: make(nnx.Rngs(0)))
      state = nnx.state(module, nnx.Param)
      return sum(u.size for u in jax.tree.leaves(state))

    block = 4 * d + count(lambda rngs: layers.RWKV6(d, rngs=rngs)) + count(
        lambda rngs: layers.RWKV4ChannelMix(d, expansion_factor=3.5, rngs=rngs)
    )
    self.assertEqual(block, 13 * d**2 + 464 * d)
    # The model of 1.6 billion: norms of the embedding and of what comes out.
    total = depth * block + 2 * vocabulary * d + 4 * d
    self.assertEqual(total, 1_599_873_024)

  def test_decays_are_never_stored_below_float32(self):
    layer = layers.RWKV6(4, param_dtype=jnp.bfloat16, rngs=nnx.Rngs(0))
    for parameter in (layer.time_decay, layer.bonus):
      self.assertEqual(parameter[...].dtype, jnp.float32)
      self.assertTrue(parameter.get_metadata('recurrent'))
    self.assertEqual(layer.key.kernel[...].dtype, jnp.bfloat16)

  @parameterized.parameters(
      (dict(layer_index=3, num_layers=3), r'layer_index.*\[0, 3\), got 3'),
      (dict(layer_index=-1), 'layer_index.*got -1'),
      (dict(head_features=0), 'head_features.*got 0'),
      (dict(head_features=3), 'head_features.*divide the 4.*got 3'),
      (dict(mix_rank=0), 'mix_rank.*got 0'),
      (dict(decay_rank=0), 'decay_rank.*got 0'),
  )
  def test_invalid_options_raise(self, options, message):
    with self.assertRaisesRegex(ValueError, message):
      layers.RWKV6(4, **options, rngs=nnx.Rngs(0))

  def test_a_model_in_parallel_equals_its_steps(self):
    config = models.ModelConfig.tiny().replace(
        layer='mamba2,rwkv6,rwkv4_channel_mix', num_layers=6, norm='layer',
        mlp='none', scan_layers=True,
        layer_options=dict(
            mamba2=dict(num_layers=2, state_features=4, chunk_size=2),
            rwkv6=dict(num_layers=2, zero_init=False, chunk_size=2),
        ),
    )
    model = models.LanguageModel(config, rngs=nnx.Rngs(0))
    random = np.random.default_rng(0)
    tokens, reset = random.integers(0, 16, (2, 5)), random.random((2, 5)) < 0.3
    want_carry, want = jax.jit(lambda u, r: model(u, reset=r))(tokens, reset)
    carry = model.initialize_carry(2)
    step = jax.jit(lambda c, u, r: model.step(c, u, reset=r))
    for t in range(5):
      carry, logits = step(carry, tokens[:, t], reset[:, t])
      testing.assert_close(logits, want[:, t])
    testing.assert_close(carry, want_carry)
