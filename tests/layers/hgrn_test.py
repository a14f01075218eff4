"""HGRN: the equations of two implementations, and what it starts from."""

from absl.testing import parameterized
from flax import nnx
import jax.numpy as jnp
import numpy as np
from rnnzoo import layers
from tests.layers import transcription
from tests.layers.transcription import sigmoid


def silu(u):
  return u * sigmoid(u)


def published(p, x, h):
  """As flash-linear-attention writes the layer (`fla/layers/hgrn.py`)."""
  w_f, w_i = np.moveaxis(p['gates/kernel'], 1, 0)
  bound = sigmoid(p['bound_logit'])
  ys = []
  for x_t in x:
    # The log of the forget gate, above the bound.
    f = -np.logaddexp(0, -(x_t @ w_f))
    f = np.logaddexp(np.log(bound), np.log1p(-bound) + f)
    h = np.exp(f) * h + silu(x_t @ w_i) * (1 - np.exp(f))
    o = h / np.sqrt((h**2).mean(-1, keepdims=True) + 1e-5) * p['norm/scale']
    o = o * silu(x_t @ p['output_gate/kernel'])
    ys.append(o @ p['output/kernel'])
  return h, ys


def authors_complex(p, x, h):
  """The first author's (`hgru/hgru1d.py`), the halves of the input apart."""
  dense = lambda name, u: u @ p[f'{name}/kernel'] + p[f'{name}/bias']
  w, b = np.moveaxis(p['gates/kernel'], 1, 0), p['gates/bias']
  bound = sigmoid(p['bound_logit']) if 'bound_logit' in p else 0.0
  ys = []
  for x_t in x:
    forget, real, imaginary = (x_t @ u + v for u, v in zip(w, b))
    lambda_ = bound + (1 - bound) * sigmoid(forget)
    c = silu(real) + 1j * silu(imaginary)
    h = lambda_ * np.exp(1j * p['theta']) * h + (1 - lambda_) * c
    o = np.concatenate([h.real, h.imag], axis=-1)
    o = o - o.mean(-1, keepdims=True)
    o = o / np.sqrt((o**2).mean(-1, keepdims=True) + 1e-5)
    o = o * p['norm/scale'] + p['norm/bias']
    ys.append(dense('output', o * silu(dense('output_gate', x_t))))
  return h, ys


class HGRNTest(parameterized.TestCase):

  @parameterized.named_parameters(
      ('published', published, dict(lower_bound=0.4)),
      ('complex', authors_complex,
       dict(complex_state=True, norm='layer', use_bias=True)),
      ('complex_bounded', authors_complex,
       dict(complex_state=True, norm='layer', use_bias=True, lower_bound=0.2)),
  )
  def test_equals_the_published_equations(self, equations, options):
    make = lambda rngs: layers.HGRN(
        5, expansion_factor=1.4, **options, rngs=rngs
    )
    transcription.check(equations, make)

  def test_decay_stays_above_the_bound(self):
    layer = layers.HGRN(4, lower_bound=0.75, rngs=nnx.Rngs(0))
    x = 100 * np.random.default_rng(0).standard_normal((50, 4))
    a, _ = layer.recurrence(jnp.float32(x))
    self.assertBetween(float(a.min()), 0.749999, 0.76)
    self.assertBetween(float(a.max()), 0.99, 1)

  def test_without_bound_it_equals_a_min_gru_with_negated_gate(self):
    layer = layers.HGRN(4, use_bias=True, rngs=nnx.Rngs(0))
    gru = layers.MinGRU(4, activation_fn=lambda u: u / (1 + jnp.exp(-u)),
                        rngs=nnx.Rngs(0))
    gru.gates.kernel[...] = layer.gates.kernel[...] * jnp.float32([[-1], [1]])
    gru.gates.bias[...] = layer.gates.bias[...] * jnp.float32([[-1], [1]])
    x = np.random.default_rng(0).standard_normal((2, 9, 4)).astype('float32')
    np.testing.assert_allclose(layer(x)[0], gru(x)[0], rtol=1e-5, atol=1e-6)

  def test_initial_values(self):
    layer = layers.HGRN(
        64, expansion_factor=2, lower_bound=0.25, complex_state=True,
        param_dtype=jnp.bfloat16, rngs=nnx.Rngs(0),
    )
    bound = layer.bound_logit[...]
    np.testing.assert_allclose(sigmoid(np.float64(bound)), 0.25, rtol=1e-6)
    theta = layer.theta[...]
    np.testing.assert_allclose(
        theta, 10_000 ** (-np.arange(128) / 64), rtol=1e-5
    )
    for decay in (bound, theta):
      self.assertEqual(decay.dtype, jnp.float32)
    for linear, fan_in in (
        (layer.gates, 64), (layer.output_gate, 64), (layer.output, 256)
    ):
      self.assertEqual(linear.kernel[...].dtype, jnp.bfloat16)
      kernel = np.abs(np.float32(linear.kernel[...])) * fan_in**0.5
      self.assertBetween(kernel.max(), 0.98, 1)
      self.assertAlmostEqual(kernel.mean(), 0.5, delta=0.02)
    self.assertIsNone(layers.HGRN(4, rngs=nnx.Rngs(0)).bound_logit)

  def test_invalid_options_raise(self):
    for bound in (-0.1, 1.0):
      with self.assertRaisesRegex(ValueError, rf'\[0, 1\), got {bound}'):
        layers.HGRN(4, lower_bound=bound, rngs=nnx.Rngs(0))
    with self.assertRaisesRegex(ValueError, "'layer', got 'batch'"):
      layers.HGRN(4, norm='batch', rngs=nnx.Rngs(0))
