"""mLSTM, its block, that of xLSTM-7B: equations and initial values."""

import math

from absl.testing import parameterized
from flax import nnx
import jax.numpy as jnp
import numpy as np
from rnnzoo import layers
from rnnzoo import ops
from tests.layers import transcription
from tests.layers.transcription import sigmoid


def silu(u):
  return u * sigmoid(u)


def norm_heads(h, scale, epsilon, kind='layer'):
  """Of `[B, heads, d]`, each head by itself; gives `[B, H]`."""
  if kind == 'layer':
    h = h - h.mean(-1, keepdims=True)
  h = h / np.sqrt((h**2).mean(-1, keepdims=True) + epsilon)
  return (scale * h).reshape(len(h), -1)


def memory(tokens, state, *, exponential=False, eps=1e-6):
  """Equations 19 to 21 of the paper; nothing is stabilised.

  Args:
    tokens: T of q, k `[B, heads, K]`, v `[B, heads, V]` and i, f `[B, heads]`
      before their exponential and sigmoid.
    state: An `ops.MLSTMState`.
    exponential: Whether the forget gate is an exponential.
    eps: What the official code adds to the divisor, after dividing it.

  Returns:
    The last state, and T of `[B, heads, V]`.
  """
  C, n, m = state
  C, n = C * np.exp(m)[..., None, None], n * np.exp(m)[..., None]
  hs = []
  for q, k, v, i, f in tokens:
    k = k / math.sqrt(k.shape[-1])
    forget = np.exp(f) if exponential else sigmoid(f)
    m = np.maximum(np.log(forget) + m, i)
    n = forget[..., None] * n + np.exp(i)[..., None] * k
    C = forget[..., None, None] * C + np.einsum('bh,bhk,bhv->bhkv',
                                                np.exp(i), k, v)
    divisor = np.maximum(np.abs((n * q).sum(-1)), 1) + eps * np.exp(m)
    hs.append(np.einsum('bhkv,bhk->bhv', C, q) / divisor[..., None])
  # The layers keep k undivided, and divide q.
  size = math.sqrt(C.shape[-2])
  unit = np.exp(-m) * size
  state = ops.MLSTMState(C * unit[..., None, None], n * unit[..., None], m)
  return state, hs


def started(carry):
  """As `memory` has it: what the layers keep, with k divided."""
  size = math.sqrt(carry.C.shape[-2])
  return ops.MLSTMState(carry.C / size, carry.n / size, carry.m)


def split(u, heads):
  return u.reshape(len(u), heads, -1)


def mlstm(p, x, carry, heads=2, **options):
  """Beck et al. (2024), arXiv 2405.04517, equations 22 to 27."""
  maps = lambda name, x_t: x_t @ p[f'{name}/kernel'] + p[f'{name}/bias']
  tokens = []
  for x_t in x:
    gates = np.einsum('bd,dgh->bgh', x_t, p['gates/kernel']) + p['gates/bias']
    tokens.append((
        *(split(maps(name, x_t), heads) for name in ('query', 'key', 'value')),
        gates[:, 0], gates[:, 1],
    ))
  carry, hs = memory(tokens, started(carry), **options)
  ys = [
      sigmoid(maps('output_gate', x_t)) * h.reshape(len(h), -1)
      for x_t, h in zip(x, hs)
  ]
  return carry, ys


def mlstm_exponential(p, x, carry):
  return mlstm(p, x, carry, exponential=True)


def mlstm_large(p, x, carry, heads=2, kind='layer'):
  """Beck et al. (2025), arXiv 2503.13427, section 3."""
  cap = lambda u: 15 * np.tanh(u / 15)
  tokens = []
  for x_t in x:
    gates = np.einsum('bd,dgh->bgh', x_t, p['gates/kernel']) + p['gates/bias']
    tokens.append((
        *(split(x_t @ p[f'{name}/kernel'], heads)
          for name in ('query', 'key', 'value')),
        cap(gates[:, 0]), cap(gates[:, 1]),
    ))
  carry, hs = memory(tokens, started(carry))
  ys = []
  for x_t, h in zip(x, hs):
    h = norm_heads(h, p['norm/scale'], 1e-6, kind)
    h = sigmoid(x_t @ p['output_gate/kernel']) * h
    ys.append(h @ p['output/kernel'])
  return carry, ys


def mlstm_large_rms(p, x, carry):
  return mlstm_large(p, x, carry, kind='rms')


def mlstm_block(p, x, carry, heads=2, taps=4):
  """Beck et al. (2024), figure 11, without its norm."""
  tail, state = carry
  blockwise = lambda u, w: np.concatenate([
      part @ w_part for part, w_part in zip(np.split(u, len(w), axis=1), w)
  ], axis=1)
  tokens, rest = [], []
  for x_t in x:
    u, z = (x_t @ p['up/kernel'][:, g] for g in range(2))
    c = u
    if taps:
      tail = np.concatenate([tail, u[:, None]], axis=1)
      c = silu(
          sum(p['kernel'][j] * tail[:, j] for j in range(taps)) + p['bias']
      )
      tail = tail[:, 1:]
    q, k = blockwise(c, p['query']), blockwise(c, p['key'])
    v = blockwise(u, p['value'])
    gates = np.einsum(
        'bd,dgh->bgh', np.concatenate([q, k, v], axis=1), p['gates/kernel']
    ) + p['gates/bias']
    tokens.append((
        *(split(w, heads) for w in (q, k, v)), gates[:, 0], gates[:, 1]
    ))
    rest.append((c, z))
  state, hs = memory(tokens, started(state))
  ys = []
  for h, (c, z) in zip(hs, rest):
    h = norm_heads(h, p['norm/scale'], 1e-5)
    ys.append(((h + p['skip'] * c) * silu(z)) @ p['down/kernel'])
  return layers.MLSTMBlockCarry(tail, state), ys


def mlstm_block_without_convolution(p, x, carry):
  return mlstm_block(p, x, carry, taps=0)


class TranscriptionTest(parameterized.TestCase):

  @parameterized.named_parameters(
      ('mlstm', mlstm, layers.MLSTM, {}),
      ('exponential', mlstm_exponential, layers.MLSTM,
       dict(forget_gate='exponential')),
      ('large', mlstm_large, layers.MLSTMLarge, {}),
      ('large_rms', mlstm_large_rms, layers.MLSTMLarge, dict(norm='rms')),
      ('block', mlstm_block, layers.MLSTMBlock, {}),
      ('block_without_convolution', mlstm_block_without_convolution,
       layers.MLSTMBlock, dict(conv_kernel=0)),
  )
  def test_equals_a_loop_in_numpy(self, equations, layer, options):
    options = dict(options, num_heads=2, chunk_size=4)
    transcription.check(
        equations, lambda rngs: layer(8, **options, rngs=rngs)
    )


class SoftCapTest(parameterized.TestCase):

  @parameterized.parameters((15.0, 15.0), (None, 100.0))
  def test_gates_stay_within_bounds(self, cap, bound):
    layer = layers.MLSTMLarge(
        8, num_heads=2, gate_soft_cap=cap, input_gate_bias=100.0,
        rngs=nnx.Rngs(0),
    )
    carry, _ = layer.step(layer.initialize_carry(1), jnp.ones((1, 8)))
    np.testing.assert_allclose(carry.m, np.full((1, 2), bound), rtol=1e-4)


class InitializationTest(parameterized.TestCase):

  @parameterized.parameters(
      layers.MLSTM, layers.MLSTMBlock, layers.MLSTMLarge
  )
  def test_initial_gates(self, cls):
    layer = cls(800, num_heads=400, rngs=nnx.Rngs(0))
    np.testing.assert_array_equal(layer.gates.kernel[...], 0)
    i, f = np.asarray(layer.gates.bias[...])
    np.testing.assert_allclose(f, np.linspace(3, 6, 400), rtol=1e-6)
    if cls is layers.MLSTMLarge:
      np.testing.assert_array_equal(i, -10)
    else:
      self.assertAlmostEqual(i.std(), 0.1, delta=0.015)
      self.assertAlmostEqual(i.mean(), 0, delta=0.02)

  def assert_normal(self, param, deviation):
    sample = np.asarray(param[...], np.float64).ravel()
    # Both within four of their own deviations.
    error = 4 / sample.size**0.5
    self.assertAlmostEqual(sample.mean() / deviation, 0, delta=error)
    self.assertAlmostEqual(sample.std() / deviation, 1, delta=error)

  def test_initial_matrices(self):
    layer = layers.MLSTM(160, 64, rngs=nnx.Rngs(0))
    small = math.sqrt(2 / (5 * 160))
    for name in ('query', 'key', 'value', 'output_gate'):
      self.assert_normal(getattr(layer, name).kernel, small)
      np.testing.assert_array_equal(getattr(layer, name).bias[...], 0)

  def test_initial_matrices_of_the_block(self):
    layer = layers.MLSTMBlock(160, num_layers=3, rngs=nnx.Rngs(0))
    small = math.sqrt(2 / (5 * 160))
    for param in (layer.up.kernel, layer.query, layer.key, layer.value):
      self.assert_normal(param, small)
    self.assert_normal(layer.down.kernel, 2 / 3 / math.sqrt(160))
    np.testing.assert_array_equal(layer.skip[...], 1)
    for param in (layer.kernel, layer.bias):
      self.assertBetween(float(jnp.abs(param[...]).max()), 0.48, 0.5)

  def test_initial_matrices_of_the_large_layer(self):
    layer = layers.MLSTMLarge(160, num_layers=3, rngs=nnx.Rngs(0))
    small = math.sqrt(2 / (5 * 160))
    for name in ('query', 'key', 'value'):
      self.assert_normal(getattr(layer, name).kernel, small)
    np.testing.assert_array_equal(layer.output_gate.kernel[...], 0)
    self.assert_normal(layer.output.kernel, 2 / 3 / math.sqrt(160))
    self.assertEqual(layer.initialize_carry(1).C.shape, (1, 8, 10, 20))

  def test_gate_biases_are_never_stored_below_float32(self):
    layer = layers.MLSTMBlock(8, param_dtype=jnp.bfloat16, rngs=nnx.Rngs(0))
    self.assertEqual(layer.gates.bias[...].dtype, jnp.float32)
    self.assertEqual(layer.up.kernel[...].dtype, jnp.bfloat16)

  @parameterized.parameters(
      (layers.MLSTM, dict(num_heads=3)),
      (layers.MLSTM, dict(num_heads=0)),
      (layers.MLSTM, dict(forget_gate='tanh')),
      (layers.MLSTMBlock, dict(num_heads=16)),
      (layers.MLSTMBlock, dict(block_size=3)),
      (layers.MLSTMBlock, dict(conv_kernel=-1)),
      (layers.MLSTMBlock, dict(num_layers=0)),
      (layers.MLSTMBlock, dict(forget_gate='tanh')),
      (layers.MLSTMLarge, dict(num_heads=3)),
      (layers.MLSTMLarge, dict(gate_soft_cap=-1.0)),
      (layers.MLSTMLarge, dict(num_layers=0)),
  )
  def test_invalid_options_raise(self, cls, option):
    (name, value), = option.items()
    with self.assertRaisesRegex(ValueError, f'`{name}` must.*got.*{value}'):
      cls(8, **dict(dict(num_heads=2), **option), rngs=nnx.Rngs(0))
