"""Linear attention and its descendants: equations, initial values, options."""

import functools
import math

from absl.testing import parameterized
from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np
from rnnzoo import layers
from rnnzoo import models
from rnnzoo import testing
from rnnzoo.layers import lightning_attention as lightning_lib
from tests.layers import modules
from tests.layers import transcription
from tests.layers.transcription import sigmoid


def heads(x_t, p, name):
  """`W x` of each head, `[B, H, ...]`."""
  y = np.einsum('bd,dhk->bhk', x_t, p[f'{name}/kernel'])
  return y + p[f'{name}/bias'] if f'{name}/bias' in p else y


def normed(y, kind, epsilon):
  if kind == 'layer':
    y = y - y.mean(-1, keepdims=True)
  return y / np.sqrt((y**2).mean(-1, keepdims=True) + epsilon)


def output(y, p):
  return y.reshape(len(y), -1) @ p['output/kernel']


def outer(k, v):
  return k[..., :, None] * v[..., None, :]


def read(S, q):
  return (S * q[..., None]).sum(-2)


def linear_attention(p, x, carry):
  """Katharopoulos et al. (2020): a numerator and a normaliser."""
  S, z = carry[..., :-1], carry[..., -1]
  phi, ys = lambda u: np.where(u > 0, u, np.expm1(np.minimum(u, 0))) + 1, []
  for x_t in x:
    q, k = (phi(heads(x_t, p, name)) for name in ('query', 'key'))
    S = S + outer(k, heads(x_t, p, 'value'))
    z = z + k
    y = read(S, q) / ((z * q).sum(-1, keepdims=True) + 1e-6)
    ys.append(output(y, p) + p['output/bias'])
  return np.concatenate([S, z[..., None]], axis=-1), ys


def linear_attention_norm(p, x, S):
  """The same without the normaliser, and a norm of each head."""
  ys = []
  for x_t in x:
    q, k, v = (heads(x_t, p, name) for name in ('query', 'key', 'value'))
    S = S + outer(k, v)
    y = normed(read(S, q / math.sqrt(q.shape[-1])), 'rms', 1e-5)
    ys.append(output(y * p['norm/scale'], p))
  return S, ys


def ret_net(p, x, carry, *, norm='layer'):
  """Sun et al. (2023), rotated by complex numbers."""
  S, position = carry
  count, features = S.shape[1:3]
  gamma = 1 - 2.0 ** (-5 - np.arange(count))
  theta = 10_000 ** -np.linspace(0, 1, features // 2)
  ys = []

  def rotated(u):
    if position is None:
      return u
    first, second = np.split(u, 2, axis=-1)
    u = (first + 1j * second) * np.exp(1j * theta * position[:, None, None])
    return np.concatenate([u.real, u.imag], axis=-1)

  for x_t in x:
    q, k = (rotated(heads(x_t, p, name)) for name in ('query', 'key'))
    S = gamma[:, None, None] * S + outer(k, heads(x_t, p, 'value'))
    y = normed(read(S, q / math.sqrt(features)), norm, 1e-6)
    gate = heads(x_t, p, 'gate')
    ys.append(output(gate * sigmoid(gate) * y * p.get('norm/scale', 1), p))
    position = None if position is None else position + 1
  return layers.RetNetCarry(S, position), ys


def gla(p, x, S, *, norm='layer'):
  """Yang et al. (2023)."""
  ys = []
  for x_t in x:
    q, k, v = (heads(x_t, p, name) for name in ('query', 'key', 'value'))
    low = x_t @ p['decay_in/kernel']
    alpha = sigmoid(heads(low, p, 'decay_out') + p['decay_bias']) ** (1 / 16)
    S = alpha[..., None] * S + outer(k, v)
    y = normed(read(S, q / math.sqrt(q.shape[-1])), norm, 1e-5)
    gate = heads(x_t, p, 'gate')
    ys.append(output(gate * sigmoid(gate) * y * p.get('norm/scale', 1), p))
  return S, ys


def hgrn2(p, x, S):
  """Qin et al. (2024), arXiv 2404.07904, as published code has it."""
  bound, ys = sigmoid(p['bound_logit']) if 'bound_logit' in p else 0.0, []
  for x_t in x:
    q, v = heads(x_t, p, 'query'), heads(x_t, p, 'value')
    f = bound + (1 - bound) * sigmoid(heads(x_t, p, 'forget'))
    S = f[..., None] * S + outer(1 - f, v)
    y = read(S, q * sigmoid(q)) / math.sqrt(q.shape[-1])
    y = normed(y.reshape(len(y), -1), 'rms', 1e-5) * p['norm/scale']
    ys.append(output(y, p))
  return S, ys


def lightning_attention(p, x, S):
  """MiniMax (2025), arXiv 2501.08313; block 2 of 5."""
  count = S.shape[1]
  rates = 2.0 ** (-8 / count * (1 + np.arange(count)))
  decay, ys = np.exp(-rates * (1 - 2 / (4 + 1e-5) + 1e-5)), []
  for x_t in x:
    q, k, v = (
        u * sigmoid(u)
        for u in (heads(x_t, p, name) for name in ('query', 'key', 'value'))
    )
    S = decay[:, None, None] * S + outer(k, v)
    y = normed(read(S, q).reshape(len(q), -1), 'rms', 1e-6) * p['norm/scale']
    gate = sigmoid(heads(x_t, p, 'gate')).reshape(y.shape)
    ys.append(output(gate * y, p))
  return S, ys


def positive(S):
  """A state that some tokens may have left: sums of weights are positive."""
  return np.abs(np.random.default_rng(0).standard_normal(S.shape))


def later(carry):
  """A state in the middle of sequences, each at another place."""
  S = np.random.default_rng(0).standard_normal(carry.S.shape)
  return layers.RetNetCarry(S, jnp.array([3, 1000], jnp.int32))


class EquationsTest(parameterized.TestCase):

  def test_linear_attention(self):
    transcription.check(
        linear_attention,
        lambda rngs: layers.LinearAttention(
            6, num_heads=2, key_features=4, chunk_size=4, rngs=rngs
        ),
        carry_of=positive,
    )

  def test_linear_attention_with_a_norm(self):
    transcription.check(
        linear_attention_norm,
        lambda rngs: layers.LinearAttention(
            6, num_heads=2, feature_map='identity', use_normalizer=False,
            norm='rms', use_bias=False, chunk_size=4, rngs=rngs,
        ),
    )

  def test_ret_net(self):
    transcription.check(
        ret_net,
        lambda rngs: layers.RetNet(
            6, num_heads=2, key_features=6, chunk_size=4, rngs=rngs
        ),
        carry_of=later,
    )

  def test_ret_net_without_rotation(self):
    transcription.check(
        functools.partial(ret_net, norm='rms'),
        lambda rngs: layers.RetNet(
            6, num_heads=2, use_rotation=False, norm='rms',
            use_norm_scale=True, chunk_size=4, rngs=rngs,
        ),
    )

  def test_gla(self):
    transcription.check(
        gla,
        lambda rngs: layers.GLA(
            8, num_heads=2, decay_rank=3, chunk_size=4, rngs=rngs
        ),
    )

  def test_gla_with_the_options_of_the_library(self):
    transcription.check(
        functools.partial(gla, norm='rms'),
        lambda rngs: layers.GLA(
            8, num_heads=2, norm='rms', use_norm_scale=True,
            use_gate_bias=False, chunk_size=4, rngs=rngs,
        ),
    )


  @parameterized.parameters(0.0, 0.4)
  def test_hgrn2(self, lower_bound):
    transcription.check(
        hgrn2,
        lambda rngs: layers.HGRN2(
            6, num_heads=2, value_features=4, lower_bound=lower_bound,
            chunk_size=4, rngs=rngs,
        ),
    )

  def test_lightning_attention(self):
    transcription.check(
        lightning_attention,
        lambda rngs: layers.LightningAttention(
            6, num_heads=3, head_features=4, block_index=2, num_blocks=5,
            chunk_size=4, rngs=rngs,
        ),
    )


def bound(kernel):
  """The bound of a uniform distribution, found by its largest number."""
  kernel = np.asarray(kernel[...])
  largest = np.abs(kernel).max()
  # Of uniform numbers about 1; of normal ones it would be less than half.
  ratio = kernel.std() * math.sqrt(3) / largest
  assert 0.95 < ratio < 1.05, ratio
  return largest


class InitializationTest(parameterized.TestCase):

  def near(self, got, want):
    self.assertBetween(got, 0.94 * want, want)

  def test_linear_attention(self):
    layer = layers.LinearAttention(64, value_features=32, rngs=nnx.Rngs(0))
    for linear in (layer.query, layer.key, layer.value):
      self.near(bound(linear.kernel), 1 / 8)
      self.near(np.abs(linear.bias[...]).max(), 1 / 8)
    self.near(bound(layer.output.kernel), 1 / math.sqrt(128))
    self.assertEqual(layer.initialize_carry(3).shape, (3, 4, 16, 33))

  def test_ret_net(self):
    layer = layers.RetNet(64, rngs=nnx.Rngs(0))
    small = lambda n, m: 2**-2.5 * math.sqrt(6 / (n + m))
    for linear in (layer.query, layer.key):
      self.assertEqual(linear.kernel.shape, (64, 4, 16))
      self.near(bound(linear.kernel), small(64, 64))
    for linear in (layer.value, layer.gate):
      self.assertEqual(linear.kernel.shape, (64, 4, 32))
      self.near(bound(linear.kernel), small(64, 128))
    self.near(bound(layer.output.kernel), math.sqrt(6 / (128 + 64)))
    self.assertIsNone(layer.norm.scale)

  def test_gla(self):
    layer = layers.GLA(64, rngs=nnx.Rngs(0))
    small = lambda n, m: 2**-2.5 * math.sqrt(6 / (n + m))
    self.assertEqual(layer.query.kernel.shape, (64, 4, 8))
    self.assertEqual(layer.value.kernel.shape, (64, 4, 16))
    self.near(bound(layer.query.kernel), small(64, 32))
    self.near(bound(layer.key.kernel), small(64, 32))
    self.near(bound(layer.decay_in.kernel), small(64, 16))
    self.near(bound(layer.decay_out.kernel), small(16, 32))
    for kernel in (layer.value.kernel, layer.gate.kernel):
      self.near(bound(kernel), 1 / 8)
    self.near(np.abs(layer.gate.bias[...]).max(), 1 / 8)
    self.assertLessEqual(np.abs(layer.decay_bias[...]).max(), 1 / 4)
    # At first half of what is remembered is gone after 16 tokens.
    x = np.random.default_rng(0).standard_normal((1000, 64)).astype(np.float32)
    decays = np.exp(layer._log_decay(x))
    self.assertAlmostEqual(float(decays.mean()), 2 ** (-1 / 16), delta=5e-3)

  def test_hgrn2(self):
    layer = layers.HGRN2(
        64, lower_bound=0.25, param_dtype=jnp.bfloat16, rngs=nnx.Rngs(0)
    )
    logit = layer.bound_logit[...]
    self.assertEqual((logit.shape, logit.dtype), ((4, 16), jnp.float32))
    np.testing.assert_allclose(sigmoid(np.float64(logit)), 0.25, rtol=1e-6)
    self.assertTrue(layer.bound_logit.get_metadata('recurrent'))
    for linear in (layer.query, layer.forget, layer.value, layer.output):
      self.assertEqual(linear.kernel[...].dtype, jnp.bfloat16)
      self.near(np.abs(np.float32(linear.kernel[...])).max(), 1 / 8)
    self.assertIsNone(layers.HGRN2(4, rngs=nnx.Rngs(0)).bound_logit)

  def test_lightning_attention(self):
    layer = layers.LightningAttention(64, num_heads=8, rngs=nnx.Rngs(0))
    np.testing.assert_allclose(
        layer.rates, 1.00001 * 0.5 ** np.arange(1, 9), rtol=1e-6
    )
    for linear in (
        layer.query, layer.key, layer.value, layer.gate, layer.output
    ):
      self.near(bound(linear.kernel), 1 / 8)

  def test_decays_are_never_stored_below_float32(self):
    layer = layers.GLA(8, param_dtype=jnp.bfloat16, rngs=nnx.Rngs(0))
    self.assertEqual(layer.decay_bias[...].dtype, jnp.float32)
    self.assertEqual(layer.decay_out.kernel[...].dtype, jnp.bfloat16)


class OptionsTest(parameterized.TestCase):

  def test_a_model_in_parallel_equals_its_steps(self):
    config = models.ModelConfig.tiny().replace(
        layer='lightning_attention,gla,hgrn2,linear_attention,ret_net',
        num_layers=6,
        layer_options=dict(chunk_size=4),
    )
    model = models.LanguageModel(config, rngs=nnx.Rngs(0))
    tokens = np.random.default_rng(0).integers(0, 16, (2, 5))
    want_carry, want = jax.jit(lambda u: model(u))(tokens)
    carry, step = model.initialize_carry(2), jax.jit(lambda *u: model.step(*u))
    for t in range(5):
      carry, logits = step(carry, tokens[:, t])
      testing.assert_close(logits, want[:, t])
    testing.assert_close(carry, want_carry)
    # Both blocks of lightning attention have rates of their own, among all.
    np.testing.assert_allclose(
        model.backbone.stacks[0].layer.rates,
        [lightning_lib.decay_rates(4, block, 6) for block in (0, 5)], rtol=1e-6,
    )

  @parameterized.parameters(layers.HGRN2, layers.LightningAttention)
  def test_a_training_step_does_not_store_all_states(self, cls):
    time, features = 4096, 128
    layer = cls(features, num_heads=1, rngs=nnx.Rngs(0))
    temporaries = modules.training_memory(layer, time)
    states = 4 * time * layer.initialize_carry(1).size
    self.assertLess(temporaries, 0.25 * states)

  def test_retention_depends_on_distances_only(self):
    layer = layers.RetNet(8, num_heads=2, chunk_size=4, rngs=nnx.Rngs(0))
    x = np.random.default_rng(0).standard_normal((1, 6, 8)).astype(np.float32)
    carry = layer.initialize_carry(1)
    run = jax.jit(lambda *u: layer(*u)[1])
    want = run(x, carry)
    # Past 2**31 a position has the bits of an unsigned integer.
    for at in (50, 10**6, 10**7, 2**24, 2**30, 2**31 - 3):
      got = run(x, carry._replace(position=jnp.array([at], jnp.int32)))
      np.testing.assert_allclose(got, want, atol=1e-5)
    # And does depend on them.
    got = jax.jit(lambda u: layer(u[:, ::-1])[1][:, ::-1])(x)
    self.assertGreater(np.abs(got - want)[:, -1].max(), 1e-2)

  def test_the_last_pair_has_the_longest_wavelength(self):
    layer = layers.RetNet(4, num_heads=1, rngs=nnx.Rngs(0))
    x = np.random.default_rng(0).standard_normal((1, 2, 4)).astype(np.float32)
    turned = lambda at: layer._tokens(x, jnp.full((1, 2), at))[0]
    # By a whole turn of the slowest of two pairs, 10000 times 2 pi tokens.
    tokens = round(2 * math.pi * 10_000)
    for feature in (1, 3):
      np.testing.assert_allclose(
          turned(tokens)[..., feature], turned(0)[..., feature], atol=1e-3
      )

  @parameterized.parameters(
      (dict(num_heads=3), '`num_heads` must divide 8, got 3; or give'),
      (dict(num_heads=0), '`num_heads` must be at least 1, got 0'),
      (dict(value_features=0), '`value_features` must be at least 1, got 0'),
  )
  def test_invalid_sizes_raise(self, options, message):
    for cls, features in (
        (layers.LinearAttention, 8), (layers.RetNet, 8), (layers.GLA, 16),
        (layers.HGRN2, 8),
    ):
      with self.assertRaisesRegex(ValueError, message):
        cls(features, **options, rngs=nnx.Rngs(0))

  @parameterized.parameters(
      (layers.LinearAttention, dict(feature_map='cosine'), 'of elu, relu, id'),
      (layers.LinearAttention, dict(feature_map='identity'), 'may be zero'),
      (layers.LinearAttention, dict(norm='batch'), "`kind` must be 'rms' or"),
      (layers.RetNet, dict(key_features=3), 'must be even to be rotated,'),
      (layers.RetNet, dict(max_wavelength=0), '`max_wavelength` must be posit'),
      (layers.GLA, dict(decay_rank=0), '`decay_rank` must be positive, got 0'),
      (layers.GLA, dict(decay_temperature=0), '`decay_temperature` must be po'),
      (layers.HGRN2, dict(lower_bound=1.0), r'must be in \[0, 1\), got 1.0'),
      (layers.HGRN2, dict(lower_bound=-0.1), r'must be in \[0, 1\), got -0.1'),
      (layers.LightningAttention, dict(num_heads=3), 'divide 8, got 3; or'),
      (layers.LightningAttention, dict(head_features=0), 'least 1, got 0'),
      (layers.LightningAttention, dict(block_index=1), r'in \[0, 1\), got 1'),
  )
  def test_invalid_options_raise(self, cls, options, message):
    with self.assertRaisesRegex(ValueError, message):
      cls(8, **options, rngs=nnx.Rngs(0))
