"""RWKV-7: its equations in float64 NumPy, its values, its initialisation."""

import math

from absl.testing import parameterized
from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np
from rnnzoo import layers
from rnnzoo import testing
from rnnzoo.layers import base
from rnnzoo.layers import rwkv7
from tests import collectives
from tests.layers import transcription
from tests.layers.transcription import sigmoid

_RANKS = dict(decay_rank=2, rate_rank=3, value_rank=2, gate_rank=4)


def time_mix(p, x, carry, first_of=None):
  """Peng et al. (2025); with `first_of`, what is `v_first` for a token."""
  previous, S = carry
  heads, features = p['r_k'].shape
  split = lambda u: u.reshape(-1, heads, features)
  ys = []
  for x_t in x:
    mix = lambda name: x_t + p[f'mu_{name}'] * (previous - x_t)
    low = lambda name, f=lambda u: u: (
        f(mix(name) @ p[f'{name}1']) @ p[f'{name}2']
    )
    r = mix('r') @ p['receptance/kernel']
    k = mix('k') @ p['key/kernel']
    v = mix('v') @ p['value/kernel']
    if first_of is not None:
      v = v + (first_of(x_t) - v) * sigmoid(p['v0'] + low('v'))
    w = np.exp(-np.exp(-0.5) * sigmoid(p['w0'] + low('w', np.tanh)))
    a = sigmoid(p['a0'] + low('a'))
    g = low('g', sigmoid)
    kk = split(k * p['k_k'])
    kk = kk / np.linalg.norm(kk, axis=-1, keepdims=True)
    r, k, v, w, a = map(split, (r, k * (1 + (a - 1) * p['k_a']), v, w, a))
    found = np.einsum('bhkv,bhk->bhv', S, kk)
    S = w[..., None] * S - (kk * a)[..., None] * found[:, :, None]
    S = S + k[..., None] * v[:, :, None]
    y = np.einsum('bhkv,bhk->bhv', S, r)
    y = y - y.mean(-1, keepdims=True)
    y = y / np.sqrt((y**2).mean(-1, keepdims=True) + 64e-5)
    y = y * p['norm/scale'] + p['norm/bias']
    y = y + (r * k * p['r_k']).sum(-1, keepdims=True) * v
    ys.append((y.reshape(g.shape) * g) @ p['output/kernel'])
    previous = x_t
  return (previous, S), ys


def channel_mix(p, x, previous):
  """Peng et al. (2025)."""
  ys = []
  for x_t in x:
    k = (x_t + p['mu_k'] * (previous - x_t)) @ p['key/kernel']
    ys.append(np.maximum(k, 0) ** 2 @ p['value/kernel'])
    previous = x_t
  return previous, ys


class _Later(layers.RWKV7):
  """One that is given values."""

  def __call__(self, x, carry, **flags):
    return super().__call__(x, carry, v_first=x[..., ::-1], **flags)

  def step(self, carry, x, **flags):
    return super().step(carry, x, v_first=x[..., ::-1], **flags)


def make(cls, rngs, features=6, **options):
  return cls(
      features, head_features=3, zero_init=False, chunk_size=4, rngs=rngs,
      **_RANKS, **options,
  )


class RWKV7Test(parameterized.TestCase):

  def test_equals_the_equations_in_numpy(self):
    transcription.check(time_mix, lambda rngs: make(layers.RWKV7, rngs))

  def test_equals_the_equations_with_first_values(self):
    transcription.check(
        lambda *u: time_mix(*u, first_of=lambda x_t: x_t[..., ::-1]),
        lambda rngs: make(_Later, rngs),
    )

  def test_channel_mix_equals_its_equations(self):
    transcription.check(
        channel_mix,
        lambda rngs: layers.RWKV7ChannelMix(5, zero_init=False, rngs=rngs),
    )

  def test_first_values_in_steps_and_with_flags(self):
    layer = make(_Later, nnx.Rngs(0))
    random = np.random.default_rng(0)
    x = random.standard_normal((2, 7, 6)).astype(np.float32)
    reset, mask = random.random((2, 2, 7)) < np.array([0.3, 0.7])[:, None, None]
    x = np.where(mask[..., None], x, np.float32(np.nan))
    flags = dict(reset=reset, mask=mask)

    def run(forward, x):
      def loss(x):
        carry, y = forward(x)
        return jnp.sin(y).sum() + jnp.sin(carry.S).sum(), (carry, y)
      return jax.jit(
          jax.value_and_grad(loss, has_aux=True),
          compiler_options=collectives.QUICKLY,
      )(x)

    got = run(lambda x: layer(x, None, **flags), x)
    want = run(lambda x: base.scan_steps(layer, None, x, **flags), x)
    testing.assert_close(got, want)
    self.assertTrue(np.isfinite(got[1]).all())

  def test_own_first_values_change_nothing(self):
    layer = make(layers.RWKV7, nnx.Rngs(0))
    random = np.random.default_rng(0)
    x = random.standard_normal((2, 5, 6)).astype(np.float32)
    reset = np.arange(5)[None].repeat(2, axis=0) == 2
    carry = layers.RWKV7Carry(
        x[:, 0] + 1, jnp.ones((2, 2, 3, 3), jnp.float32)
    )

    @jax.jit
    def both(x, carry):
      first = layer.first_value(x, carry, reset=reset)
      step = layer.first_value(x[:, 0], carry)
      return first, step, [
          layer(x, carry, reset=reset, v_first=u) for u in (None, first)
      ]

    first, step, (alone, given) = both(x, carry)
    testing.assert_close(given, alone)
    testing.assert_close(step, first[:, 0])
    with self.assertRaisesRegex(ValueError, r'`v_first` must be floating'):
      layer(x, v_first=first[:, :3])

  def test_a_key_of_zeros_has_a_finite_gradient(self):
    gradient = jax.grad(lambda u: rwkv7._unit(u)[..., 0].sum())
    np.testing.assert_array_equal(gradient(jnp.zeros((2, 3))), 0)
    np.testing.assert_allclose(
        gradient(jnp.array([[0.0, 4.0]])), [[0.25, 0]], rtol=1e-6
    )

  @parameterized.parameters((0, 1), (0, 12), (5, 12), (11, 12))
  def test_initial_decays_and_shifts(self, index, depth):
    d, size = 64, 16
    layer = layers.RWKV7(
        d, head_features=size, layer_index=index, num_layers=depth,
        rngs=nnx.Rngs(0),
    )
    r01, r10 = index / (depth - 1) if index else 0, 1 - index / depth
    for n in range(d):  # As the official loops are.
      near = lambda u, want, n=n: self.assertAlmostEqual(
          float(u[...][n]), want, delta=1e-5
      )
      for u, power in (
          (layer.mu_r, 0.2), (layer.mu_w, 0.9), (layer.mu_k, 0.7),
          (layer.mu_v, 0.7), (layer.mu_a, 0.9), (layer.mu_g, 0.2),
      ):
        near(u, 1 - (n / d) ** (power * r10))
      linear = n / (d - 1) - 0.5
      zigzag = ((n % size) - ((size - 1) / 2)) / ((size - 1) / 2)
      zigzag = zigzag * abs(zigzag)
      decay = -6 + 6 * (n / (d - 1)) ** (1 + r01**0.3)
      near(layer.w0, decay + 0.5 + zigzag * 2.5)
      near(layer.a0, -0.19 + zigzag * 0.3 + linear * 0.4)
      near(layer.v0, 0.73 - linear * 0.4)
      near(layer.k_k, 0.71 - linear * 0.1)
      near(layer.k_a, 1.02)
    np.testing.assert_array_equal(layer.r_k[...], np.full((4, 16), -0.04, 'f'))
    mix = layers.RWKV7ChannelMix(
        d, layer_index=index, num_layers=depth, rngs=nnx.Rngs(0)
    )
    np.testing.assert_allclose(
        mix.mu_k[...], 1 - (np.arange(d) / d) ** (r10**4), atol=1e-6
    )

  def test_initial_maps(self):
    layer = layers.RWKV7(64, gate_rank=128, rngs=nnx.Rngs(0))
    for u in (layer.output.kernel, layer.w1, layer.a1, layer.v1, layer.g1):
      np.testing.assert_array_equal(u[...], 0)
    for u, gain in (
        (layer.w2, 0.1), (layer.a2, 0.1), (layer.v2, 0.1),
        (layer.g2, 0.1 * math.sqrt(2)),  # Its output is the smaller side.
    ):
      u = np.asarray(u[...])
      gram = u @ u.T if len(u) <= 64 else u.T @ u
      np.testing.assert_allclose(gram, gain**2 * np.eye(len(gram)), atol=1e-6)
    mix = layers.RWKV7ChannelMix(64, rngs=nnx.Rngs(0))
    np.testing.assert_array_equal(mix.value.kernel[...], 0)
    for linear, gain in (
        (layer.receptance, 0.5), (layer.key, 0.05), (layer.value, 0.5),
        (mix.key, 0.5),
    ):
      bound = gain / 8
      kernel = np.asarray(linear.kernel[...])
      self.assertLess(np.abs(kernel).max(), bound)
      # Uniform: 64^2 samples know the deviation to 1 %.
      self.assertAlmostEqual(kernel.std() / bound, 3**-0.5, delta=0.02)

  @parameterized.parameters(
      (64, 32, 32, 32, 32), (768, 64, 64, 32, 128), (2048, 128, 128, 64, 224),
  )
  def test_published_ranks(self, features, *ranks):
    layer = nnx.eval_shape(lambda: layers.RWKV7(features, rngs=nnx.Rngs(0)))
    self.assertEqual(layer.head_features, 64)
    got = [u.shape[1] for u in (layer.w1, layer.a1, layer.v1, layer.g1)]
    self.assertEqual(got, list(ranks))

  def test_decays_are_never_stored_below_float32(self):
    layer = make(layers.RWKV7, nnx.Rngs(0), param_dtype=jnp.bfloat16)
    self.assertEqual(layer.w0[...].dtype, jnp.float32)
    self.assertTrue(layer.w0.get_metadata('recurrent'))
    self.assertEqual(layer.w2[...].dtype, jnp.bfloat16)

  @parameterized.product(
      cls=(layers.RWKV7, layers.RWKV7ChannelMix), index=(-1, 3)
  )
  def test_a_layer_index_beyond_the_depth_raises(self, cls, index):
    with self.assertRaisesRegex(ValueError, f'layer_index.*got {index}'):
      cls(4, layer_index=index, num_layers=3, rngs=nnx.Rngs(0))

  @parameterized.parameters(
      (dict(head_features=3), 'head_features.*divide.*4, got 3'),
      (dict(head_features=0), 'head_features.*got 0'),
      (dict(gate_rank=0), 'gate_rank.*got 0'),
  )
  def test_invalid_sizes_raise(self, options, message):
    with self.assertRaisesRegex(ValueError, message):
      layers.RWKV7(4, **options, rngs=nnx.Rngs(0))
