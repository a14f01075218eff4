"""Mamba-2: its equations in float64 NumPy, its initialisation, its memory."""

import functools

from absl.testing import parameterized
from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np
from rnnzoo import layers
from tests.layers import modules
from tests.layers import transcription
from tests.layers.transcription import sigmoid

_GROUPS = 2  # Of two heads each.


def mamba2(
    p, x, carry, dt_low=0.0, dt_high=np.inf, output_norm='after_gate',
    projection_scales=(1, 1, 1, 1, 1),
):
  """Dao & Gu (2024), the whole block, in the layout of the published code."""
  silu = lambda u: u * sigmoid(u)
  tail, tail_bc, state = carry
  tail = np.concatenate([tail, tail_bc], axis=2)
  state = np.swapaxes(state, 2, 3).copy()  # [B, H, P, N]
  batch, heads, size, n = state.shape
  groups, inner = _GROUPS, heads * size
  w_in = np.concatenate(
      [*np.moveaxis(p['in_proj/kernel'], 1, 0), p['bc_proj/kernel'],
       p['dt_proj/kernel']],
      axis=1,
  )
  sizes = [inner, inner, groups * n, groups * n, heads]
  w_in = w_in * np.repeat(projection_scales, sizes)
  conv = np.concatenate([p['conv'], p['conv_bc']], axis=1)
  bias = np.concatenate([p['conv_bias'], p['conv_bc_bias']])
  ys = []
  for u in x:
    z, xbc, dt = np.split(u @ w_in, [inner, 2 * inner + 2 * groups * n], axis=1)
    window = np.concatenate([tail, xbc[:, None]], axis=1)
    tail = window[:, 1:]
    xbc = silu((window * conv).sum(1) + bias)
    x_t, b, c = np.split(xbc, [inner, inner + groups * n], axis=1)
    dt = np.clip(np.logaddexp(0, dt + p['dt_bias']), dt_low, dt_high)
    y = np.zeros((batch, heads, size))
    for h in range(heads):
      own = slice(h * size, (h + 1) * size)
      of_group = slice(h * groups // heads * n, (h * groups // heads + 1) * n)
      decay = np.exp(-np.exp(p['A_log'][h]) * dt[:, h])[:, None, None]
      new = np.einsum(
          'b,bp,bn->bpn', dt[:, h], x_t[:, own], b[:, of_group]
      )
      state[:, h] = decay * state[:, h] + new
      y[:, h] = np.einsum('bpn,bn->bp', state[:, h], c[:, of_group])
      y[:, h] += p['D'][h] * x_t[:, own]
    y = y.reshape(batch, inner)
    if output_norm != 'before_gate':
      y = y * silu(z)
    if output_norm != 'none':
      y = y.reshape(batch, groups, -1)
      y = y / np.sqrt((y**2).mean(-1, keepdims=True) + 1e-5)
      y = (y * p['norm/scale']).reshape(batch, inner)
    if output_norm == 'before_gate':
      y = y * silu(z)
    ys.append(y @ p['out_proj/kernel'])
  state = np.swapaxes(state, 2, 3)
  return (tail[..., :inner], tail[..., inner:], state), ys


class Mamba2Test(parameterized.TestCase):

  def test_equals_the_equations_in_numpy(self):
    transcription.check(
        mamba2,
        lambda rngs: layers.Mamba2(
            6, state_features=5, head_features=3, num_groups=_GROUPS,
            chunk_size=4, rngs=rngs,
        ),
    )

  @parameterized.parameters(
      dict(dt_low=0.04, dt_high=0.06, output_norm='none'),
      dict(
          output_norm='before_gate',
          projection_scales=(0.5, 2.0, 0.3, 1.5, 3.0),
      ),
  )
  def test_options(self, **options):
    transcription.check(
        functools.partial(mamba2, **options),
        lambda rngs: layers.Mamba2(
            6, state_features=5, head_features=3, num_groups=_GROUPS,
            chunk_size=4, **options, rngs=rngs,
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
    layer = layers.Mamba2(
        8, expansion_factor=500, head_features=1, rngs=nnx.Rngs(0)
    )
    self.assertEqual(layer.A_log[...].shape, (4000,))
    self.assert_uniform(np.exp(layer.A_log[...]), 1, 16)
    np.testing.assert_array_equal(layer.D[...], 1)
    np.testing.assert_array_equal(layer.norm.scale[...], 1)
    # Step sizes are log-uniform, through the inverse of the softplus.
    dt = np.logaddexp(0, np.float64(layer.dt_bias[...]))
    self.assert_uniform(np.log(dt), np.log(1e-3), np.log(0.1))

  def test_initial_rates_and_step_sizes_have_limits(self):
    layer = layers.Mamba2(
        8, expansion_factor=500, head_features=1, a_min=2, a_max=3,
        dt_min=1e-6, rngs=nnx.Rngs(0),
    )
    self.assert_uniform(np.exp(layer.A_log[...]), 2, 3)
    dt = np.logaddexp(0, np.float64(layer.dt_bias[...]))
    self.assertAlmostEqual(dt.min(), 1e-4, delta=1e-7)
    # Two of the five decades are below it.
    self.assertAlmostEqual(np.mean(dt < 1.0001e-4), 0.4, delta=0.03)

  def test_initial_maps_are_those_of_pytorch(self):
    layer = layers.Mamba2(64, num_layers=4, rngs=nnx.Rngs(0))
    self.assertEqual((layer.num_heads, layer.head_features), (2, 64))
    for parameter, bound in (
        (layer.in_proj.kernel, 64**-0.5),
        (layer.bc_proj.kernel, 64**-0.5),
        (layer.dt_proj.kernel, 64**-0.5),
        (layer.conv, 4**-0.5),
        (layer.conv_bc, 4**-0.5),
        (layer.conv_bias, 4**-0.5),
        (layer.conv_bc_bias, 4**-0.5),
        (layer.out_proj.kernel, 128**-0.5 / 2),  # By the root of the depth.
    ):
      self.assert_uniform(parameter[...], -bound, bound)

  def test_decays_are_never_stored_below_float32(self):
    layer = layers.Mamba2(4, param_dtype=jnp.bfloat16, rngs=nnx.Rngs(0))
    for parameter in (layer.A_log, layer.D, layer.dt_bias):
      self.assertEqual(parameter[...].dtype, jnp.float32)
      self.assertTrue(parameter.get_metadata('recurrent'))
    self.assertEqual(layer.bc_proj.kernel[...].dtype, jnp.bfloat16)

  def test_the_block_has_the_published_number_of_parameters(self):
    layer = nnx.eval_shape(lambda: layers.Mamba2(768, rngs=nnx.Rngs(0)))
    sizes = [u.size for u in jax.tree.leaves(nnx.state(layer, nnx.Param))]
    # 24 of them, each behind a norm, an embedding of 50288 and a norm.
    self.assertEqual(
        24 * (sum(sizes) + 768) + 50288 * 768 + 768, 128_989_632
    )

  def test_a_training_step_does_not_store_all_states(self):
    time, batch = 512, 2
    layer = layers.Mamba2(64, chunk_size=16, rngs=nnx.Rngs(0))
    temporaries = modules.training_memory(layer, time, batch)
    states = 4 * time * layer.initialize_carry(batch).ssm.size
    self.assertLess(temporaries, 0.5 * states)

  @parameterized.parameters(
      (dict(state_features=0), 'state_features.*got 0'),
      (dict(head_features=0), 'head_features.*got 0'),
      (dict(head_features=3), 'head_features.*divide the 8.*got 3'),
      (dict(num_groups=0), 'num_groups.*got 0'),
      (dict(head_features=2, num_groups=3), 'num_groups.*the 4 heads, got 3'),
      (dict(conv_kernel=0), 'conv_kernel.*got 0'),
      (dict(num_layers=0), 'num_layers.*got 0'),
      (dict(a_min=0.0), 'in order, got 0.0, 16'),
      (dict(a_min=17.0), 'in order, got 17.0, 16'),
      (dict(dt_min=0.2), 'in order, got 0.2, 0.1'),
      (dict(dt_floor=0.0), 'dt_floor'),
      (dict(dt_low=0.5, dt_high=0.1), 'dt_low <= dt_high, got 0.5, 0.1'),
  )
  def test_invalid_options_raise(self, options, message):
    with self.assertRaisesRegex(ValueError, message):
      layers.Mamba2(4, **options, rngs=nnx.Rngs(0))
