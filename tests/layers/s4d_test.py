"""S4D: its equations, and what it starts from."""

import math

from absl.testing import parameterized
from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np
from rnnzoo import layers
from rnnzoo import testing
from rnnzoo.layers import base
from tests.layers import transcription
from tests.layers.transcription import sigmoid


def s4d(p, x, h, method='zoh'):
  """Gu et al. (2022), arXiv 2206.11893, sections 2 and 4."""
  real = 'A_imag' not in p
  lambda_ = -np.exp(p['log_A_real'])
  c, b = p['C_re'], 1
  if not real:
    lambda_ = lambda_ + 1j * p['A_imag']
    c = c + 1j * p['C_im']
  if 'B_re' in p:
    b = p['B_re'] + 1j * p['B_im']
  step = np.exp(p['log_dt'])[:, None]
  if method == 'zoh':
    a_bar = np.exp(lambda_ * step)
    b_bar = (a_bar - 1) / lambda_ * b
  else:
    a_bar = (1 + step * lambda_ / 2) / (1 - step * lambda_ / 2)
    b_bar = step * b / (1 - step * lambda_ / 2)
  ys = []
  for x_t in x:
    h = a_bar * h + b_bar * x_t[..., None]
    s = (1 if real else 2) * (c * h).sum(-1).real + p['D'] * x_t
    if 'output/kernel' in p:
      gelu = s * (1 + np.vectorize(math.erf)(s / math.sqrt(2))) / 2
      u = gelu @ p['output/kernel'] + p['output/bias']
      s = u[:, :4] * sigmoid(u[:, 4:])
    ys.append(s)
  return h, ys


def bilinear(p, x, h):
  return s4d(p, x, h, 'bilinear')


class S4DTest(parameterized.TestCase):

  @parameterized.named_parameters(
      ('lin', s4d, {}),
      ('legs_without_map', s4d, dict(init='legs', output_map='none')),
      ('real', s4d, dict(init='real')),
      ('bilinear', bilinear, dict(init='inv', discretization='bilinear')),
  )
  def test_equals_the_equations_in_numpy(self, equations, options):
    transcription.check(
        equations, lambda rngs: layers.S4D(4, 6, **options, rngs=rngs)
    )

  @parameterized.named_parameters(
      ('lin', 'lin', [-0.5 + 1j * np.pi * n for n in range(4)]),
      ('inv', 'inv',
       [-0.5 + 8j / np.pi * (8 / (2 * n + 1) - 1) for n in range(4)]),
      ('legs', 'legs', [-0.5 + 1j * u for u in (0.4275, 1.9578, 5.3542,
                                                19.857)]),
      ('real', 'real', [-1.0 - n for n in range(8)]),
  )
  def test_initial_eigenvalues(self, init, want):
    layer = layers.S4D(3, 8, init=init, rngs=nnx.Rngs(0))
    got = -np.exp(np.float64(layer.log_A_real[...]))
    if layer.A_imag is not None:
      got = got + 1j * np.float64(layer.A_imag[...])
    np.testing.assert_allclose(
        got, np.broadcast_to(want, (3, len(want))), rtol=1e-4
    )

  def test_initial_weights(self):
    layer = layers.S4D(400, 64, init='legs', rngs=nnx.Rngs(0))
    c = np.asarray(layer.C_re[...] + 1j * layer.C_im[...])
    self.assertAlmostEqual((np.abs(c) ** 2).mean(), 1, delta=0.05)
    self.assertAlmostEqual(np.mean(c**2), 0, delta=0.05)
    self.assertAlmostEqual(layer.D[...].var(), 1, delta=0.3)
    self.assertLessEqual(np.abs(layer.B_im[...]).max(), 2)
    step = np.exp(layer.log_dt[...])
    self.assertBetween(step.min(), 0.001, 0.0012)
    self.assertBetween(step.max(), 0.085, 0.1)

  def test_decays_are_never_stored_below_float32(self):
    layer = layers.S4D(4, 8, param_dtype=jnp.bfloat16, rngs=nnx.Rngs(0))
    for name in ('log_A_real', 'A_imag', 'log_dt'):
      self.assertEqual(getattr(layer, name)[...].dtype, jnp.float32)
    self.assertEqual(layer.C_re[...].dtype, jnp.bfloat16)

  def test_float32_convolution_over_a_long_sequence_is_accurate(self):
    layer = layers.S4D(4, 16, init='legs', output_map='none', rngs=nnx.Rngs(0))
    x = np.float32(np.random.default_rng(0).standard_normal((1, 3000, 4)))
    carry = layer.initialize_carry(1)
    got = jax.jit(lambda x: layer(x))(x)
    want = jax.jit(lambda x: base.scan_steps(layer, carry, x))(x)
    testing.assert_close(got, want)

  @parameterized.named_parameters(
      ('init', dict(init='hippo'), 'init.*lin.*hippo'),
      ('map', dict(output_map='gelu'), 'output_map.*glu'),
      ('method', dict(discretization='euler'), 'discretization.*zoh'),
      ('odd', dict(state_features=5), 'state_features.*even.*5'),
      ('steps', dict(dt_min=1.0), 'dt_min'),
  )
  def test_invalid_options_raise(self, options, message):
    with self.assertRaisesRegex(ValueError, message):
      layers.S4D(4, rngs=nnx.Rngs(0), **options)
