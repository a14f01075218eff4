"""The delta rule's descendants: equations in float64 NumPy, start, memory."""

from absl.testing import parameterized
from flax import nnx
import jax.numpy as jnp
import numpy as np
from rnnzoo import layers
from tests.layers import modules
from tests.layers import transcription
from tests.layers.transcription import sigmoid


def silu(u):
  return u * sigmoid(u)


def unit(u):
  return u / np.sqrt((u**2).sum(-1, keepdims=True) + 1e-6)


def softplus(u):
  return np.logaddexp(0, u)


def read(k, S):
  return np.einsum('bhk,bhkv->bhv', k, S)


def spread(u, heads):
  return np.repeat(u, heads // u.shape[1], axis=1)


def tokens(p, x_t, tail, heads, keys, writes=1):
  """The convolution of one token: queries, keys and values before norms."""
  window = np.concatenate([tail, (x_t @ p['qkv/kernel'])[:, None]], axis=1)
  u = silu((window * p['conv']).sum(1))
  size = heads * keys
  q, k, v = np.split(u, [size, (1 + writes) * size], axis=1)
  q, k = q.reshape(-1, heads, keys), k.reshape(-1, writes, heads, keys)
  v = v.reshape(len(v), writes, -1, p['norm/scale'].size)
  return window[:, 1:], q, k, v


def output(p, y, keys, gate):
  """The norm of the heads, the gate and the last map."""
  y = y / np.sqrt(keys)
  y = y / np.sqrt((y**2).mean(-1, keepdims=True) + 1e-5) * p['norm/scale']
  return (y * gate.reshape(y.shape)).reshape(len(y), -1) @ p['output/kernel']


def per_feature(p, x_t, name):
  """A map of two parts, to the features of heads."""
  y = x_t @ p[f'{name}_in/kernel']
  y = np.einsum('br,rhk->bhk', y, p[f'{name}_out/kernel'])
  return y + p.get(f'{name}_out/bias', 0)


def kda(p, x, carry, heads=1):
  """Kimi Team (2025), arXiv 2510.26692, equation 1 and section 4."""
  (tail, S), ys = carry, []
  _, values, keys, _ = S.shape
  for x_t in x:
    tail, q, k, v = tokens(p, x_t, tail, heads, keys)
    q, k, v = spread(unit(q), values), spread(unit(k[:, 0]), values), v[:, 0]
    dt = softplus(per_feature(p, x_t, 'decay') + p['dt_bias'])
    S = S * np.exp(-np.exp(p['A_log'])[:, None] * dt)[..., None]
    beta = sigmoid(x_t @ p['beta/kernel'])[..., None]
    S = S + k[..., None] * (beta * (v - read(k, S)))[:, :, None]
    gate = sigmoid(per_feature(p, x_t, 'gate'))
    ys.append(output(p, read(q, S), keys, gate))
  return (tail, S), ys


def kda_safe(p, x, carry):
  """The same, with the bounded decay and rates up to 2 of published code."""
  (tail, S), ys = carry, []
  _, heads, keys, _ = S.shape
  for x_t in x:
    tail, q, k, v = tokens(p, x_t, tail, heads, keys)
    q, k, v = unit(q), unit(k[:, 0]), v[:, 0]
    raw = per_feature(p, x_t, 'decay') + p['dt_bias']
    S = S * np.exp(-5 * sigmoid(np.exp(p['A_log'])[:, None] * raw))[..., None]
    beta = 2 * sigmoid(x_t @ p['beta/kernel'])[..., None]
    S = S + k[..., None] * (beta * (v - read(k, S)))[:, :, None]
    gate = sigmoid(per_feature(p, x_t, 'gate'))
    ys.append(output(p, read(q, S), keys, gate))
  return (tail, S), ys


def gated_delta_net2(p, x, carry, heads=1):
  """Hatamizadeh et al. (2026), arXiv 2605.22791."""
  (tail, S), ys = carry, []
  _, values, keys, _ = S.shape
  for x_t in x:
    tail, q, k, v = tokens(p, x_t, tail, heads, keys)
    q, k, v = unit(q), unit(k[:, 0]), v[:, 0]
    dt = softplus(per_feature(p, x_t, 'decay') + p['dt_bias'])
    decay = np.exp(-np.exp(p['A_log'])[:, None] * dt)
    erase = 2 * sigmoid(np.einsum('bd,dhk->bhk', x_t, p['erase/kernel']))
    write = sigmoid(np.einsum('bd,dhv->bhv', x_t, p['write/kernel']))
    q, k, decay, erase = (spread(u, values) for u in (q, k, decay, erase))
    # I - k (b k)^T, a matrix for each head.
    transition = np.eye(keys) - k[..., None] * (erase * k)[..., None, :]
    S = transition @ (decay[..., None] * S)
    S = S + k[..., None] * (write * v)[:, :, None]
    gate = sigmoid(per_feature(p, x_t, 'gate'))
    ys.append(output(p, read(q, S), keys, gate))
  return (tail, S), ys


def head_decay(p, x_t):
  dt = softplus(x_t @ p['decay/kernel'] + p['dt_bias'])
  return np.exp(-np.exp(p['A_log']) * dt)[..., None, None]


def gated_delta_product(p, x, carry, writes=3, gated=True):
  """Siems et al. (2025), arXiv 2502.10297: a product of Householders."""
  (tail, S), ys = carry, []
  _, heads, keys, _ = S.shape
  for x_t in x:
    tail, q, k, v = tokens(p, x_t, tail, heads, keys, writes)
    q, k = unit(q), unit(k)
    beta = 2 * sigmoid(x_t @ p['beta/kernel']).reshape(-1, writes, heads, 1)
    if gated:
      S = head_decay(p, x_t) * S
    for j in range(writes):
      error = beta[:, j] * (v[:, j] - read(k[:, j], S))
      S = S + k[:, j][..., None] * error[:, :, None]
    gate = silu(x_t @ p['gate/kernel']) if gated else np.ones_like(v[:, 0])
    ys.append(output(p, read(q, S), keys, gate))
  return (tail, S), ys


def delta_product(p, x, carry):
  """The same without decay and gate."""
  return gated_delta_product(p, x, carry, writes=2, gated=False)


def comba(p, x, carry):
  """Hu et al. (2025), arXiv 2506.02475, as published code has it."""
  (tail, S), ys = carry, []
  _, heads, keys, _ = S.shape
  for x_t in x:
    tail, q, k, v = tokens(p, x_t, tail, heads, keys)
    k, v = k[:, 0], v[:, 0]
    back = sigmoid(p['feedback'])[:, None] * k
    q = unit(q - p['feedthrough'][:, None] * back)
    beta = sigmoid(x_t @ p['beta/kernel'])[..., None]
    error = v - read(unit(back), S)  # Of the state before the decay.
    S = head_decay(p, x_t) * S
    S = S + unit(k)[..., None] * (beta * error)[:, :, None]
    gate = sigmoid(x_t @ p['gate/kernel'])
    ys.append(output(p, read(q, S), keys, gate))
  return (tail, S), ys


def grouped(p, x, carry):
  """`GatedDeltaNet` where two heads of values share a head of keys."""
  (tail, S), ys = carry, []
  _, values, keys, _ = S.shape
  for x_t in x:
    tail, q, k, v = tokens(p, x_t, tail, 2, keys)
    q, k, v = spread(unit(q), values), spread(unit(k[:, 0]), values), v[:, 0]
    S = head_decay(p, x_t) * S
    beta = sigmoid(x_t @ p['beta/kernel'])[..., None]
    S = S + k[..., None] * (beta * (v - read(k, S)))[:, :, None]
    gate = silu(x_t @ p['gate/kernel'])
    ys.append(output(p, read(q, S), keys, gate))
  return (tail, S), ys


_NEW = (
    layers.KDA, layers.GatedDeltaNet2, layers.GatedDeltaProduct, layers.Comba
)


class DeltaMemoryTest(parameterized.TestCase):

  @parameterized.named_parameters(
      ('kda', kda, layers.KDA,
       dict(num_heads=1, num_value_heads=2, value_features=3)),
      ('kda_safe', kda_safe, layers.KDA,
       dict(num_heads=2, lower_bound=-5.0, allow_negative_eigenvalues=True,
            use_gate_bias=True)),
      ('gated_delta_net2', gated_delta_net2, layers.GatedDeltaNet2,
       dict(num_heads=1, num_value_heads=2, value_features=3,
            allow_negative_eigenvalues=True)),
      ('gated_delta_product', gated_delta_product, layers.GatedDeltaProduct,
       dict(num_householder=3, num_heads=1)),
      ('delta_product', delta_product, layers.GatedDeltaProduct,
       dict(use_decay=False, use_output_gate=False, conv_kernel=2)),
      ('comba', comba, layers.Comba, dict(key_features=2, num_heads=2)),
      ('gated_delta_net_grouped', grouped, layers.GatedDeltaNet,
       dict(num_heads=2, num_value_heads=4, key_features=2)),
  )
  def test_equals_the_equations_in_numpy(self, equations, layer, options):
    transcription.check(
        equations, lambda rngs: layer(4, chunk_size=4, **options, rngs=rngs)
    )

  @parameterized.parameters(
      # Kimi Linear, the published 1.3B models, Qwen3-Next.
      (layers.KDA, 2304, dict(num_heads=32, key_features=128), 32, 128, 128),
      (layers.KDA, 2048, {}, 16, 128, 128),
      (layers.GatedDeltaNet2, 2048, {}, 16, 128, 128),
      (layers.GatedDeltaProduct, 2048, {}, 6, 256, 512),
      (layers.Comba, 2048, {}, 6, 256, 512),
      (layers.GatedDeltaNet, 2048,
       dict(num_heads=16, num_value_heads=32, key_features=128), 32, 128, 128),
  )
  def test_default_sizes(self, cls, features, options, heads, keys, values):
    layer = nnx.eval_shape(lambda: cls(features, **options, rngs=nnx.Rngs(0)))
    self.assertEqual(
        layer.state_shape.S, (heads, keys, values), layer.state_shape
    )
    if 'KDA' in cls.__name__:
      self.assertEqual(layer.gate_out.kernel.shape, (values, heads, values))

  def test_initial_values(self):
    many = dict(num_heads=4000, key_features=1, value_features=1)
    make = lambda cls, **more: cls(4, **many, **more, rngs=nnx.Rngs(0))
    for layer, low, high in (
        (make(layers.KDA), 1, 16), (make(layers.GatedDeltaNet2), 1, 16),
        (make(layers.Comba), 0, 16), (make(layers.GatedDeltaProduct), 0, 16),
    ):
      rates = np.exp(np.float64(layer.A_log[...]))
      dt = np.log(softplus(np.float64(layer.dt_bias[...]).ravel()))
      for sample in (rates - low) / (high - low), (dt + np.log(1e3)) / np.log(
          100
      ):  # Uniform; Kolmogorov's test, 1 of 1000.
        gap = np.abs(np.sort(sample) - np.arange(4000) / 4000).max()
        self.assertLess(gap, 1.95 / 4000**0.5)
    safe = layers.KDA(4, lower_bound=-5.0, rngs=nnx.Rngs(0))
    np.testing.assert_array_equal(safe.A_log[...], 0)
    self.assertIsNone(safe.gate_out.bias)
    comba = layers.Comba(4, initial_feedthrough=0.02, rngs=nnx.Rngs(0))
    np.testing.assert_array_equal(comba.feedback[...], 1)
    np.testing.assert_allclose(comba.feedthrough[...], 0.02)

  @parameterized.parameters(*_NEW)
  def test_decays_are_never_stored_below_float32(self, cls):
    layer = nnx.eval_shape(
        lambda: cls(4, param_dtype=jnp.bfloat16, rngs=nnx.Rngs(0))
    )
    for u in (layer.A_log, layer.dt_bias):
      self.assertEqual(u.dtype, jnp.float32)
      self.assertTrue(u.get_metadata('recurrent'))
    self.assertEqual(layer.qkv.kernel.dtype, jnp.bfloat16)

  @parameterized.parameters(
      layers.KDA, layers.GatedDeltaNet2, layers.GatedDeltaProduct, layers.Comba
  )
  def test_a_training_step_does_not_store_all_states(self, cls):
    time, features = 4096, 128
    layer = cls(features, num_heads=1, rngs=nnx.Rngs(0))
    temporaries = modules.training_memory(layer, time)
    states = 4 * time * layer.initialize_carry(1).S.size
    self.assertLess(temporaries, 0.5 * states)

  @parameterized.parameters(
      (layers.KDA, dict(num_heads=3), '`num_heads` must divide 4, got 3'),
      (layers.KDA, dict(num_heads=0), '`num_heads` must divide 4, got 0'),
      (layers.KDA, dict(num_heads=2, num_value_heads=3),
       'num_value_heads.* a multiple of `num_heads` = 2, got 3'),
      (layers.KDA, dict(num_heads=2, num_value_heads=1), 'of.* 2, got 1'),
      (layers.KDA, dict(lower_bound=0.0), 'lower_bound.*negative, got 0'),
      (layers.KDA, dict(value_features=0), 'value_features.*got 0'),
      (layers.KDA, dict(dt_min=0.2), 'in order, got 0.2, 0.1'),
      (layers.GatedDeltaNet2, dict(num_heads=3), 'num_heads.*4, got 3'),
      (layers.GatedDeltaNet2, dict(num_heads=2, num_value_heads=5),
       'a multiple of `num_heads` = 2, got 5'),
      (layers.GatedDeltaProduct, dict(num_householder=0),
       '`num_householder` must be at least 1, got 0'),
      (layers.GatedDeltaProduct, dict(num_heads=2), 'divide 3, got 2'),
      (layers.GatedDeltaProduct, dict(activation='tanh'), "got 'tanh'"),
      (layers.Comba, dict(num_heads=2), '`num_heads` must divide 3, got 2'),
      (layers.Comba, dict(conv_kernel=0), 'conv_kernel.*got 0'),
      (layers.GatedDeltaNet,
       dict(num_heads=2, key_features=2, num_value_heads=3),
       'num_value_heads.* a multiple of `num_heads` = 2, got 3'),
      (layers.GatedDeltaNet,
       dict(num_heads=1, key_features=2, num_value_heads=3),
       'must divide the 4 features of values, got 3; or give'),
  )
  def test_invalid_options_raise(self, cls, options, message):
    with self.assertRaisesRegex(ValueError, message) as caught:
      cls(4, **options, rngs=nnx.Rngs(0))
    self.assertNotIn('\n', str(caught.exception))
