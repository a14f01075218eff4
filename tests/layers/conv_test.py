"""ConvLSTM and ConvS5 against their papers' equations; layers of images."""

import math

from absl.testing import parameterized
from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np
from rnnzoo import layers
from rnnzoo import models
from rnnzoo.layers import base
from rnnzoo.layers import state_space
from tests.layers import transcription
from tests.layers.transcription import sigmoid


def convolve(x, kernel):
  """Sums over the neighbours of each pixel, `[B, H, W, C]`, by definition."""
  size, (_, height, width, _) = len(kernel), x.shape
  edge = size // 2
  x = np.pad(x, ((0, 0), (edge, edge), (edge, edge), (0, 0)))
  return sum(
      x[:, i : i + height, j : j + width] @ kernel[i, j]
      for i in range(size)
      for j in range(size)
  )


def conv_lstm(p, x, carry):
  """Shi et al. (2015), arXiv 1506.04214, equation 3."""
  (c, h), ys = carry, []
  w_x, w_h, b = (np.split(p[n], 4, axis=-1) for n in ('W_x', 'W_h', 'b'))
  w_ci, w_cf, w_co = p['W_c']
  for x_t in x:
    of = [
        convolve(x_t, w_x[k]) + convolve(h, w_h[k]) + b[k] for k in range(4)
    ]
    i = sigmoid(of[0] + w_ci * c)
    f = sigmoid(of[1] + w_cf * c)
    c = f * c + i * np.tanh(of[2])
    h = sigmoid(of[3] + w_co * c) * np.tanh(c)
    ys.append(h)
  return (c, h), ys


def conv_s5(p, x, h):
  """Smith et al. (2023), arXiv 2310.19694, with a zero-order hold."""
  lambda_ = np.minimum(p['Lambda_re'], -1e-4) + 1j * p['Lambda_im']
  a = np.exp(lambda_ * np.exp(p['log_step']))
  b = (p['B_re'] + 1j * p['B_im']) * (a - 1) / lambda_
  c, ys = p['C_re'] + 1j * p['C_im'], []
  for x_t in x:
    h = a * h + convolve(x_t, b)
    ys.append(2 * convolve(h, c).real + convolve(x_t, p['D']))
  return h, ys


class TranscriptionTest(parameterized.TestCase):

  def test_conv_lstm(self):
    transcription.check(
        conv_lstm,
        lambda rngs: layers.ConvLSTM((4, 3, 2), 3, rngs=rngs),
    )

  def test_conv_s5(self):
    transcription.check(
        conv_s5,
        lambda rngs: layers.ConvS5(
            (3, 5, 2), 4, c_kernel_size=5, rngs=rngs
        ),
    )


class InitializationTest(parameterized.TestCase):

  def test_conv_lstm(self):
    layer = layers.ConvLSTM((4, 5, 20), 30, rngs=nnx.Rngs(0))
    bound = math.sqrt(6 / (9 * (20 + 30)))
    kernel = np.asarray(layer.W_x[...])
    self.assertBetween(np.abs(kernel).max(), 0.99 * bound, bound)
    self.assertAlmostEqual(kernel.std() / bound, 3**-0.5, delta=0.02)
    for gate in np.split(np.asarray(layer.W_h[...]), 4, axis=-1):
      columns = gate.reshape(-1, 30)
      np.testing.assert_allclose(columns.T @ columns, np.eye(30), atol=1e-5)
    bias = np.asarray(layer.b[...]).reshape(4, 30)
    np.testing.assert_array_equal(bias, np.eye(4)[:, 1:2] + np.zeros((4, 30)))
    self.assertEqual(layer.W_c[...].shape, (3, 4, 5, 30))
    self.assertFalse(np.any(layer.W_c[...]))

  def test_conv_s5_kernels_are_in_the_eigenbasis(self):
    features, size, blocks = 24, 40, 2
    layer = layers.ConvS5(
        (4, 4, features), size, blocks=blocks, c_kernel_size=5,
        rngs=nnx.Rngs(0),
    )
    lambda_, v, _ = state_space.normal_legs(size // blocks)
    half = size // blocks // 2
    parts = dict(Lambda_re=lambda_.real, Lambda_im=lambda_.imag)
    for name, want in parts.items():
      got = np.asarray(getattr(layer, name)[...])
      np.testing.assert_allclose(got, np.tile(want[:half], blocks), rtol=1e-6)
    step = np.exp(np.asarray(layer.log_step[...]))
    self.assertTrue(np.all((step > 0.001) & (step < 0.1)))
    # Turned back, with their conjugates, they are real and He-normal.
    v = np.kron(np.eye(blocks), v[:, :half])
    part = lambda n: (
        np.asarray(getattr(layer, f'{n}_re')[...])
        + 1j * np.asarray(getattr(layer, f'{n}_im')[...])
    )
    b = 2 * np.einsum('hwcn,pn->hwcp', part('B'), v).real
    c = 2 * np.einsum('hwnc,pn->hwpc', part('C'), v.conj()).real
    for kernel, fan_in in ((b, 9 * features), (c, 25 * size)):
      scaled = kernel * math.sqrt(fan_in / 2)
      self.assertAlmostEqual(scaled.std(), 1, delta=0.03)
      self.assertLess(np.abs(scaled).max(), 2.3)  # Truncated.
    # A real kernel is all there is: what was left out is its conjugate.
    np.testing.assert_allclose(
        np.einsum('hwcp,pn->hwcn', b, v.conj()), part('B'), atol=1e-5
    )
    kernel = np.asarray(layer.D[...])
    self.assertAlmostEqual(
        kernel.std() * math.sqrt(9 * features / 2), 1, delta=0.03
    )

  def test_decays_are_not_stored_for_every_frame(self):
    # 256 frames of 8x8 pixels with 64 states: a copy of the decays is 8 MiB.
    layer = layers.ConvS5(
        (8, 8, 1), 128, b_kernel_size=1, c_kernel_size=1,
        d_kernel_size=0, rngs=nnx.Rngs(0),
    )
    x = jax.ShapeDtypeStruct((1, 256, 8, 8, 1), jnp.float32)
    compiled = jax.jit(lambda x: layer(x)[1]).lower(x).compile()
    states = 256 * 8 * 8 * 64 * 8
    self.assertLess(
        compiled.memory_analysis().temp_size_in_bytes, 2.5 * states
    )


class ImagesTest(parameterized.TestCase):

  @parameterized.parameters(layers.ConvLSTM, layers.ConvS5)
  def test_wrong_sizes_raise(self, make):
    layer = make((3, 4, 2), rngs=nnx.Rngs(0))
    self.assertEqual(base.input_shape(layer), (3, 4, 2))
    message = r'\[B, T, H, W, C\] with H, W, C = 3, 4, 2, got \(1, 5, 4, 3, 2\)'
    with self.assertRaisesRegex(ValueError, message):
      layer(jnp.ones((1, 5, 4, 3, 2)))
    message = r'`x` must be \[B, H, W, C\].*got \(1, 5, 3, 4, 2\)'
    with self.assertRaisesRegex(ValueError, message):
      layer.step(layer.initialize_carry(1), jnp.ones((1, 5, 3, 4, 2)))

  @parameterized.parameters(
      (dict(input_shape=(3, 4)), 'input_shape.*height, width, channels'),
      (dict(input_shape=(0, 3, 1)), 'input_shape.*height, width, channels'),
      (dict(input_shape=8), 'input_shape.*channels.*got 8'),
      (dict(kernel_size=2), '`kernel_size` must be odd, got 2'),
  )
  def test_invalid_options_of_conv_lstm_raise(self, options, message):
    with self.assertRaisesRegex(ValueError, message):
      layers.ConvLSTM(
          **(dict(input_shape=(3, 4, 2)) | options), rngs=nnx.Rngs(0)
      )

  @parameterized.parameters(
      (dict(input_shape=(3, 4)), 'input_shape.*height, width, channels'),
      (dict(c_kernel_size=4), '`c_kernel_size` must be odd, got 4'),
      (dict(d_kernel_size=4), '`d_kernel_size` must be odd, got 4'),
      (dict(state_features=3), 'state_features.*even, got 3 and 1'),
      (dict(blocks=0), 'state_features.*got 2 and 0'),
  )
  def test_invalid_options_of_conv_s5_raise(self, options, message):
    with self.assertRaisesRegex(ValueError, message):
      layers.ConvS5(
          **(dict(input_shape=(3, 4, 2)) | options), rngs=nnx.Rngs(0)
      )

  @parameterized.parameters('conv_lstm', 'conv_s5')
  def test_models_of_vectors_refuse_layers_of_images(self, name):
    config = models.ModelConfig.tiny().replace(layer=name)
    with self.assertRaisesRegex(ValueError, f'{name}.*images'):
      models.LanguageModel(config, rngs=nnx.Rngs(0))

  def test_wrappers_accept_layers_of_images(self):
    rngs = nnx.Rngs(0)
    make = lambda: layers.ConvLSTM((3, 4, 2), rngs=rngs)
    layer = layers.Bidirectional(make(), make())
    x = np.random.default_rng(0).standard_normal((2, 5, 3, 4, 2), np.float32)
    carry, y = jax.jit(lambda x: layer(x))(x)
    self.assertEqual(y.shape, (2, 5, 3, 4, 4))
    self.assertEqual(base.output_shape(layer), (3, 4, 4))
    want = jax.jit(lambda x: layer.backward.layer(x[:, ::-1]))(x)
    np.testing.assert_allclose(carry.backward.h, want[0].h, rtol=1e-5)
    np.testing.assert_allclose(y[..., 2:], want[1][:, ::-1], rtol=1e-5)
