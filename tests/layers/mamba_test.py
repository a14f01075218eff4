"""Mamba: its equations in float64 NumPy, its initialisation, its presets."""

import functools

from absl.testing import parameterized
from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np
from rnnzoo import layers
from rnnzoo import models
from tests.layers import transcription
from tests.layers.transcription import sigmoid


def mamba(p, x, carry, epsilon=None):
  """Gu & Dao (2023), the whole block; with norms if there is an epsilon."""
  silu = lambda u: u * sigmoid(u)
  rank, n = p['dt_proj/kernel'].shape[0], p['A_log'].shape[1]
  tail, h = carry
  ys = []
  for u in x:
    x_t, z = (u @ p['in_proj/kernel'][:, i] for i in range(2))
    window = np.concatenate([tail, x_t[:, None]], axis=1)
    tail = window[:, 1:]
    x_t = silu((window * p['conv']).sum(1) + p['conv_bias'])
    low, b, c = np.split(x_t @ p['x_proj/kernel'], [rank, rank + n], axis=1)
    if epsilon is not None:
      low, b, c = (
          v / np.sqrt((v**2).mean(1, keepdims=True) + epsilon)
          * p.get(f'selection_norms/{i}/scale', 1)
          for i, v in enumerate((low, b, c))
      )
    dt = np.logaddexp(0, low @ p['dt_proj/kernel'] + p['dt_bias'])
    a = np.exp(dt[..., None] * -np.exp(p['A_log']))
    h = a * h + (dt * x_t)[..., None] * b[:, None]
    y = (h * c[:, None]).sum(-1) + p['D'] * x_t
    ys.append((y * silu(z)) @ p['out_proj/kernel'])
  return (tail, h), ys


class MambaTest(parameterized.TestCase):

  def test_equals_the_equations_in_numpy(self):
    transcription.check(
        mamba, lambda rngs: layers.Mamba(5, state_features=3, rngs=rngs)
    )

  @parameterized.parameters('plain', 'scaled')
  def test_norms_of_ranks_and_of_b_and_c(self, norm):
    transcription.check(
        functools.partial(mamba, epsilon=0.1),
        lambda rngs: layers.Mamba(
            5, state_features=3, dt_rank=2, selection_norm=norm,
            selection_norm_epsilon=0.1, rngs=rngs,
        ),
    )

  def assert_uniform(self, sample, low, high):
    """Kolmogorov's test, passed by 999 of 1000 uniform samples."""
    sample = np.sort(np.asarray(sample, np.float64).ravel() - low)
    sample /= high - low
    steps = np.arange(sample.size + 1) / sample.size
    gap = max(np.abs(sample - steps[1:]).max(), (sample - steps[:-1]).max())
    self.assertLess(gap, 1.95 / sample.size**0.5)

  def test_initial_state_space(self):
    layer = layers.Mamba(8, expansion_factor=500, rngs=nnx.Rngs(0))
    np.testing.assert_allclose(
        -np.exp(layer.A_log[...]), -np.tile(np.arange(1, 17), (4000, 1)),
        rtol=1e-6,
    )
    np.testing.assert_array_equal(layer.D[...], 1)
    # Step sizes are log-uniform, through the inverse of the softplus.
    dt = np.logaddexp(0, np.float64(layer.dt_bias[...]))
    self.assert_uniform(np.log(dt), np.log(1e-3), np.log(0.1))

  def test_initial_step_sizes_have_a_floor(self):
    layer = layers.Mamba(
        8, expansion_factor=500, dt_min=1e-6, dt_max=0.1, rngs=nnx.Rngs(0)
    )
    dt = np.logaddexp(0, np.float64(layer.dt_bias[...]))
    self.assertAlmostEqual(dt.min(), 1e-4, delta=1e-7)
    # Two of the five decades are below it.
    self.assertAlmostEqual(np.mean(dt < 1.0001e-4), 0.4, delta=0.03)

  def test_initial_maps_are_those_of_pytorch(self):
    layer = layers.Mamba(64, num_layers=4, rngs=nnx.Rngs(0))
    self.assertEqual(layer.dt_rank, 4)
    for parameter, bound in (
        (layer.in_proj.kernel, 64**-0.5),
        (layer.conv, 4**-0.5),
        (layer.conv_bias, 4**-0.5),
        (layer.x_proj.kernel, 128**-0.5),
        (layer.dt_proj.kernel, 4**-0.5),
        (layer.out_proj.kernel, 128**-0.5 / 2),  # By the root of the depth.
    ):
      self.assert_uniform(parameter[...], -bound, bound)

  def test_decays_are_never_stored_below_float32(self):
    layer = layers.Mamba(4, param_dtype=jnp.bfloat16, rngs=nnx.Rngs(0))
    for parameter in (layer.A_log, layer.D, layer.dt_bias):
      self.assertEqual(parameter[...].dtype, jnp.float32)
      self.assertTrue(parameter.get_metadata('recurrent'))
    self.assertEqual(layer.x_proj.kernel[...].dtype, jnp.bfloat16)

  def test_the_small_preset_has_the_published_number_of_parameters(self):
    config = models.PRESETS['mamba_130m'].replace(vocab_size=50280)
    model = nnx.eval_shape(
        lambda: models.LanguageModel(config, rngs=nnx.Rngs(0))
    )
    sizes = [u.size for u in jax.tree.leaves(nnx.state(model, nnx.Param))]
    self.assertEqual(sum(sizes), 129_135_360)

  @parameterized.parameters(
      (dict(state_features=0), 'state_features.*got 0'),
      (dict(conv_kernel=0), 'conv_kernel.*got 0'),
      (dict(dt_rank=0), 'dt_rank.*got 0'),
      (dict(num_layers=0), 'num_layers.*got 0'),
      (dict(dt_min=0.2), 'in order, got 0.2, 0.1'),
      (dict(dt_floor=0.0), 'dt_floor'),
      (dict(selection_norm='rms'), "must be one of .*'scaled'.*got 'rms'"),
  )
  def test_invalid_options_raise(self, options, message):
    with self.assertRaisesRegex(ValueError, message):
      layers.Mamba(4, **options, rngs=nnx.Rngs(0))
