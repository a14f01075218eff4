"""S4: against dense matrices in float64, and what it starts from."""

import math

from absl.testing import parameterized
from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np
from rnnzoo import layers
from rnnzoo import models
from rnnzoo import testing
from rnnzoo.layers import base
from rnnzoo.layers import state_space
from tests.layers import transcription
from tests.layers.transcription import sigmoid


def _bilinear(a, step):
  """`(1 - step/2 A)^-1` times `1 + step/2 A`, and times `step`."""
  one = np.eye(len(a))
  inverse = np.linalg.inv(one - step / 2 * a)
  return inverse @ (one + step / 2 * a), inverse * step


def s4(p, x, h):
  """Gu et al. (2021), arXiv 2111.00396, section 3, with all of each pair."""
  both = lambda u: np.concatenate([u, u.conj()], axis=-1)
  of = lambda name: both(p[name + '_re'] + 1j * p[name + '_im'])
  lambda_ = both(-np.exp(p['log_A_real']) + 1j * p['A_imag'])
  rank_one, b, c = of('P'), of('B'), of('C')
  discrete = []
  for channel in range(len(b)):
    outer = np.outer(rank_one[channel], rank_one[channel].conj())
    a_bar, scale = _bilinear(
        np.diag(lambda_[channel]) - outer, np.exp(p['log_dt'][channel])
    )
    discrete.append((a_bar, scale @ b[channel]))
  a_bar, b_bar = map(np.stack, zip(*discrete))
  h, ys = both(np.asarray(h)), []
  for x_t in x:
    h = np.einsum('dnm,bdm->bdn', a_bar, h) + b_bar * x_t[..., None]
    s = (c * h).sum(-1).real + p['D'] * x_t
    if 'output/kernel' in p:
      gelu = s * (1 + np.vectorize(math.erf)(s / math.sqrt(2))) / 2
      u = gelu @ p['output/kernel'] + p['output/bias']
      s = u[:, :4] * sigmoid(u[:, 4:])
    ys.append(s)
  return h[..., : h.shape[-1] // 2], ys


class S4Test(parameterized.TestCase):

  @parameterized.named_parameters(('map', 'glu'), ('no_map', 'none'))
  def test_equals_the_equations_in_numpy(self, output_map):
    transcription.check(
        s4, lambda rngs: layers.S4(4, 6, output_map=output_map, rngs=rngs)
    )

  def test_initial_system_is_hippo(self):
    n, time = 8, 50
    with jax.enable_x64(True):
      layer = layers.S4(
          3, n, output_map='none', param_dtype=jnp.float64, rngs=nnx.Rngs(0)
      )
      x = np.random.default_rng(0).standard_normal((1, time, 3))
      _, got = jax.jit(lambda x: layer(x))(x)
      c = np.asarray(layer.C_re[...] + 1j * layer.C_im[...])
      d, step = np.asarray(layer.D[...]), np.exp(layer.log_dt[...])
    a, b = state_space.legs(n)
    _, v, _ = state_space.normal_legs(n)
    want = np.zeros((time, 3))
    for channel in range(3):
      a_bar, scale = _bilinear(a, step[channel])
      c_real = 2 * (c[channel] @ v[:, n // 2 :].conj().T).real
      h = np.zeros(n)
      for t in range(time):
        h = a_bar @ h + scale @ b * x[0, t, channel]
        want[t, channel] = c_real @ h + d[channel] * x[0, t, channel]
    testing.assert_close(got[0], want, tolerance=1e-10)

  @parameterized.parameters(1, 2, 3, 6, 17, 600)
  def test_convolution_equals_steps_at_every_length(self, time):
    # 600 is more than one block of frequencies, and of steps.
    x = np.random.default_rng(0).standard_normal((2, time, 3))
    flag = np.zeros((2, time), bool)
    with jax.enable_x64(True):
      layer = layers.S4(3, 4, param_dtype=jnp.float64, rngs=nnx.Rngs(0))
      carry = layer.initialize_carry(2, jnp.float64) + (0.3 - 0.5j)
      state = nnx.split(layer)

      def gradients(state, x, carry, flag):
        def loss(state, x, carry):
          carry, y = nnx.merge(*state)(x, carry, reset=flag)
          return (y**2).sum() + (jnp.abs(carry) ** 2).sum(), (carry, y)

        return jax.grad(loss, (1, 2), has_aux=True)(state, x, carry)

      run = jax.jit(gradients)
      got, want = run(state, x, carry, None), run(state, x, carry, flag)
      testing.assert_close(got, want, tolerance=1e-10)

  def test_float32_kernel_is_accurate(self):
    layer = layers.S4(4, 64, output_map='none', rngs=nnx.Rngs(0))
    run = jax.jit(lambda x: layer(x))
    steps = jax.jit(lambda x: base.scan_steps(layer, None, x))
    for time in (12, 3000):
      x = np.random.default_rng(0).standard_normal((1, time, 4))
      _, got = run(np.float32(x))
      with jax.enable_x64(True):
        _, want = steps(x)
      testing.assert_close(got, np.asarray(want), 'float32')

  def test_states_of_all_steps_are_not_stored(self):
    time, features, n = 4096, 8, 32
    layer = layers.S4(features, n, output_map='none', rngs=nnx.Rngs(0))
    graph, state = nnx.split(layer)

    def loss(state, x, reset):
      _, y = nnx.merge(graph, state)(x, reset=reset)
      return (y**2).sum()

    x = np.ones((1, time, features), np.float32)
    for reset in (None, np.zeros((1, time), bool)):
      compiled = jax.jit(jax.grad(loss)).lower(state, x, reset).compile()
      states = time * features * n // 2 * 8
      temporaries = compiled.memory_analysis().temp_size_in_bytes
      self.assertLess(temporaries, 0.75 * states)

  def test_initial_weights(self):
    layer = layers.S4(200, 16, rngs=nnx.Rngs(0))
    c = np.asarray(layer.C_re[...] + 1j * layer.C_im[...])
    self.assertAlmostEqual((np.abs(c) ** 2).mean(), 1, delta=0.1)
    step = np.exp(layer.log_dt[...])
    self.assertBetween(step.min(), 0.001, 0.0015)
    self.assertBetween(step.max(), 0.08, 0.1)

  def test_decays_are_never_stored_below_float32(self):
    layer = layers.S4(4, 8, param_dtype=jnp.bfloat16, rngs=nnx.Rngs(0))
    for name in ('log_A_real', 'A_imag', 'P_re', 'P_im', 'log_dt'):
      self.assertEqual(getattr(layer, name)[...].dtype, jnp.float32)
    self.assertEqual(layer.C_re[...].dtype, jnp.bfloat16)

  @parameterized.named_parameters(
      ('map', dict(output_map='gelu'), 'output_map.*glu'),
      ('odd', dict(state_features=5), 'state_features.*even.*5'),
      ('steps', dict(dt_min=-1.0), 'dt_min'),
  )
  def test_invalid_options_raise(self, options, message):
    with self.assertRaisesRegex(ValueError, message):
      layers.S4(4, rngs=nnx.Rngs(0), **options)

  def test_preset_has_the_published_sizes(self):
    config = models.PRESETS['s4_image']
    model = nnx.eval_shape(
        lambda: models.SequenceClassifier(config, rngs=nnx.Rngs(0))
    )
    count = sum(u.size for u in jax.tree.leaves(nnx.state(model, nnx.Param)))
    layer = 8 * 512 * 32 + 512 + 512
    block = 2 * layer + 1025 * 512  # Both directions, put together.
    block += 2 * 513 * 512 + 2 * 512  # Gate and norm.
    self.assertEqual(count, 6 * block + 2 * 512 + 513 * 10)
