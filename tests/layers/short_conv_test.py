"""LFM2's short convolution: its equations in float64 NumPy, initial values."""

from absl.testing import parameterized
from flax import nnx
import numpy as np
from rnnzoo import layers
from tests.layers import transcription


def short_conv(p, x, carry):
  """Three products: into the convolution, with its filter, out of it."""
  (tail,), ys = carry, []
  for x_t in x:
    b, g, u = np.moveaxis(
        np.einsum('bd,dgh->bgh', x_t, p['input/kernel'])
        + p.get('input/bias', 0), 1, 0,
    )
    window = np.concatenate([tail, (b * u)[:, None]], axis=1)
    c = (window * p['conv']).sum(1) + p.get('conv_bias', 0)
    ys.append((g * c) @ p['output/kernel'] + p.get('output/bias', 0))
    tail = window[:, 1:]
  return (tail,), ys


class ShortConvTest(parameterized.TestCase):

  @parameterized.parameters({}, dict(conv_kernel=4, use_bias=True))
  def test_equals_a_loop_in_numpy(self, **options):
    transcription.check(
        short_conv, lambda rngs: layers.ShortConv(5, **options, rngs=rngs)
    )

  def test_initial_values(self):
    layer = layers.ShortConv(64, use_bias=True, rngs=nnx.Rngs(0))
    for u, fan_in in (
        (layer.input.kernel, 64), (layer.input.bias, 64), (layer.conv, 3),
        (layer.conv_bias, 3), (layer.output.kernel, 64),
        (layer.output.bias, 64),
    ):
      largest = np.abs(u[...]).max() * fan_in**0.5
      self.assertBetween(largest, 0.9, 1)

  def test_an_invalid_kernel_raises(self):
    with self.assertRaisesRegex(ValueError, '`conv_kernel`.*least 1, got 0'):
      layers.ShortConv(4, conv_kernel=0, rngs=nnx.Rngs(0))
