"""S5: its equations, and what it starts from."""

from absl.testing import parameterized
from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np
from rnnzoo import errors
from rnnzoo import layers
from rnnzoo import models
from rnnzoo import testing
from rnnzoo.layers import state_space
import scipy.linalg
from tests.layers import transcription


def _states(p, x, h, method, clip):
  """Smith et al. (2022), arXiv 2208.04933, sections 2 and 3."""
  real = np.minimum(p['Lambda_re'], -1e-4) if clip else p['Lambda_re']
  lambda_, step = real + 1j * p['Lambda_im'], np.exp(p['log_step'])
  if method == 'zoh':
    a = np.exp(lambda_ * step)
    scale = (a - 1) / lambda_
  else:
    a = (1 + step * lambda_ / 2) / (1 - step * lambda_ / 2)
    scale = step / (1 - step * lambda_ / 2)
  b = scale[:, None] * (p['B_re'] + 1j * p['B_im'])
  hs = []
  for x_t in x:
    h = a * h + x_t @ b.T
    hs.append(h)
  return h, hs


def _matrix(p, name):
  return (p[name + '_re'] + 1j * p[name + '_im']).T


def s5(p, x, h, method='zoh', factor=2, clip=False):
  h, hs = _states(p, x, h, method, clip)
  c = _matrix(p, 'C')
  return h, [
      factor * (h_t @ c).real + p['D'] * x_t for h_t, x_t in zip(hs, x)
  ]


def all_states(p, x, h):
  return s5(p, x, h, 'bilinear', factor=1, clip=True)


def bidirectional(p, x, carry):
  forward, ys = s5(p, x, carry[0])
  backward, hs = _states(p, x[::-1], carry[1], 'zoh', False)
  c = _matrix(p, 'C2')
  return (forward, backward), [
      y + 2 * (h @ c).real for y, h in zip(ys, hs[::-1])
  ]


class S5Test(parameterized.TestCase):

  @parameterized.named_parameters(
      ('zoh', s5, {}),
      ('blocks', s5, dict(blocks=3, c_init='trunc_standard_normal')),
      ('all_states', all_states,
       dict(discretization='bilinear', conj_sym=False, clip_eigs=True)),
      ('bidirectional', bidirectional,
       dict(bidirectional=True, c_init='complex_normal')),
  )
  def test_equals_the_equations_in_numpy(self, equations, options):
    transcription.check(
        equations, lambda rngs: layers.S5(4, 6, **options, rngs=rngs)
    )

  @parameterized.parameters(True, False)
  def test_initial_system_is_real_in_other_coordinates(self, conj_sym):
    blocks, n, step = 2, 4, 0.05
    with jax.enable_x64(True):
      layer = layers.S5(
          3, blocks * n, blocks=blocks, conj_sym=conj_sym, dt_min=step,
          dt_max=step, param_dtype=jnp.float64, rngs=nnx.Rngs(0),
      )
      x = np.random.default_rng(0).standard_normal((1, 30, 3))
      _, got = jax.jit(lambda x: layer(x))(x)
      b = np.asarray(layer.B_re[...] + 1j * layer.B_im[...])
      c = np.asarray(layer.C_re[...] + 1j * layer.C_im[...])
      d = np.asarray(layer.D[...])
    lambda_, v, _ = state_space.normal_legs(n)
    a = np.kron(np.eye(blocks), (v * lambda_ @ v.conj().T).real)
    v = np.kron(np.eye(blocks), v[:, : n // 2] if conj_sym else v)
    factor = 2 if conj_sym else 1
    b, c = factor * (v @ b), factor * (c @ v.conj().T)
    if not conj_sym:
      np.testing.assert_allclose(b.imag, 0, atol=1e-12)
    # C is complex: its imaginary part is lost when half of the states are kept.
    b, c = b.real, c.real
    held = np.block([[a, b], [np.zeros((3, blocks * n + 3))]])
    held = scipy.linalg.expm(step * held)
    h, want = np.zeros(blocks * n), []
    for x_t in x[0]:
      h = held[: blocks * n] @ np.concatenate([h, x_t])
      want.append(c @ h + d * x_t)
    testing.assert_close(got[0], np.stack(want), tolerance=1e-10)

  def test_eigenvalues_in_blocks(self):
    layer = layers.S5(4, 16, blocks=2, rngs=nnx.Rngs(0))
    np.testing.assert_array_equal(layer.Lambda_re[...], -0.5)
    want = -np.array([19.857, 5.3542, 1.9578, 0.4275] * 2)
    np.testing.assert_allclose(layer.Lambda_im[...], want, atol=1e-3)

  @parameterized.parameters(
      ('lecun_normal', 1 / (64 * 128)), ('trunc_standard_normal', 1 / 128),
      ('complex_normal', 1 / 2),
  )
  def test_initial_matrices(self, c_init, variance):
    layer = layers.S5(64, 128, blocks=4, c_init=c_init, rngs=nnx.Rngs(0))
    for name, want in dict(B=1 / 128 / 2, C=variance).items():
      # Complex C keeps its variance when it is turned, real B has half a part.
      for part in ('_re', '_im'):
        value = np.asarray(getattr(layer, name + part)[...])
        self.assertAlmostEqual(value.var() / want, 1, delta=0.2)
    self.assertAlmostEqual(layer.D[...].var(), 1, delta=0.5)

  def test_bidirectional_equals_two_scans(self):
    # Reversed input and exchanged matrices give the reversed output.
    layer = layers.S5(4, 6, bidirectional=True, rngs=nnx.Rngs(0))
    x = np.float32(np.random.default_rng(0).standard_normal((2, 9, 4)))
    dt = np.float32(np.random.default_rng(1).uniform(0.5, 2, (2, 9)))
    _, y = layer(x, dt=dt)
    layer.C_re, layer.C2_re = layer.C2_re, layer.C_re
    layer.C_im, layer.C2_im = layer.C2_im, layer.C_im
    _, z = layer(x[:, ::-1], dt=dt[:, ::-1])
    testing.assert_close(z[:, ::-1], y)

  def test_decays_are_never_stored_below_float32(self):
    layer = layers.S5(4, 8, param_dtype=jnp.bfloat16, rngs=nnx.Rngs(0))
    for name in ('Lambda_re', 'Lambda_im', 'log_step'):
      self.assertEqual(getattr(layer, name)[...].dtype, jnp.float32)
    self.assertEqual(layer.B_re[...].dtype, jnp.bfloat16)

  @parameterized.named_parameters(
      ('blocks', dict(state_features=9, blocks=2), 'state_features.*9 and 2'),
      ('odd', dict(state_features=9, blocks=3), 'even.*9 and 3'),
      ('method', dict(discretization='euler'), 'discretization.*zoh'),
      ('c', dict(c_init='normal'), 'c_init.*lecun'),
      ('steps', dict(dt_max=1e-9), 'dt_max'),
  )
  def test_invalid_options_raise(self, options, message):
    with self.assertRaisesRegex(ValueError, message):
      layers.S5(4, rngs=nnx.Rngs(0), **options)

  def test_preset_has_the_published_sizes(self):
    config = models.PRESETS['s5_image']
    model = nnx.eval_shape(
        lambda: models.SequenceClassifier(config, rngs=nnx.Rngs(0))
    )
    count = sum(u.size for u in jax.tree.leaves(nnx.state(model, nnx.Param)))
    layer = 3 * 192 + 2 * 192 * 512 + 4 * 192 * 512 + 512
    block = layer + 513 * 512 + 2 * 512  # Gate and norm.
    self.assertEqual(count, 6 * block + 2 * 512 + 2 * 512 + 513 * 10)

  def test_a_language_model_cannot_be_bidirectional(self):
    config = models.ModelConfig.tiny().replace(
        layer='s5', layer_options=dict(bidirectional=True)
    )
    with self.assertRaisesRegex(errors.UserValueError, 'causal.*S5'):
      models.LanguageModel(config, rngs=nnx.Rngs(0))
