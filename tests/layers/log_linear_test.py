"""Layers with levels: their equations in float64 NumPy, memory, lengths."""

from absl.testing import parameterized
from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np
from rnnzoo import layers
from tests.layers import modules
from tests.layers import transcription
from tests.layers.transcription import sigmoid

_LEVELS = 5  # For 16 tokens; one of the rows gets more.


def silu(u):
  return u * sigmoid(u)


def softplus(u):
  return np.logaddexp(0, u)


def weigh(p, u):
  """The scale of each level `[B, H, E]`."""
  return softplus(p['L'] * (
      np.einsum('bd,dhe->bhe', u, p['level_proj/kernel'])
      + p.get('level_proj/bias', 0)
  ))


def fenwick(levels, new, count):
  """Guo et al. (2025), equation 9, after a token is read.

  Before the next token, all levels below that of the lowest bit of its position
  merge into it. The last level has no successor, and takes all.
  """
  levels = np.concatenate([new[:, :, None], levels], axis=2)
  for row, position in enumerate(count + 1):
    lowest = 0
    while position >> lowest & 1 == 0:
      lowest += 1
    into = min(lowest + 1, _LEVELS - 1)
    levels[row, :, into] += levels[row, :, :into].sum(1)
    levels[row, :, :into] = 0
  return levels[:, :, 1:]


def mamba2(p, x, carry):
  """Log-linear Mamba-2, in the layout of flash-linear-attention."""
  tail, tail_bc, (levels, count) = carry
  levels, count, ys = np.array(levels), np.array(count), []
  groups, heads, (n, size) = 2, levels.shape[1], levels.shape[3:]
  inner = heads * size
  tail = np.concatenate([tail, tail_bc], axis=2)
  for u in x:
    z, into = (
        u @ p['in_proj/kernel'][:, i] + p['in_proj/bias'][i] for i in (0, 1)
    )
    bc = u @ p['bc_proj/kernel'] + p['bc_proj/bias']
    window = np.concatenate(
        [tail, np.concatenate([into, bc], axis=1)[:, None]], axis=1
    )
    tail = window[:, 1:]
    kernel = np.concatenate([p['conv'], p['conv_bc']], axis=1)
    x_t, b, c = np.split(
        silu((window * kernel).sum(1)), [inner, inner + groups * n], axis=1
    )
    of_heads = lambda v: np.repeat(
        v.reshape(-1, groups, n), heads // groups, axis=1
    )
    x_t, b, c = x_t.reshape(-1, heads, size), of_heads(b), of_heads(c)
    dt = softplus(u @ p['dt_proj/kernel'] + p['dt_bias'])
    scales = weigh(p, u)
    levels = levels * np.exp(-np.exp(p['A_log']) * dt)[..., None, None, None]
    new = np.einsum('bhn,bhp,bh->bhnp', b, x_t, dt)
    y = np.einsum('bhn,bhnp->bhp', c, new) * scales[..., :1]
    y += np.einsum('bhe,bhn,bhenp->bhp', scales[..., 1:], c, levels)
    y = (y + p['D'][:, None] * x_t).reshape(len(u), inner) * silu(z)
    y = y / np.sqrt((y**2).mean(-1, keepdims=True) + 1e-5)
    ys.append(
        (y * p['norm/scale'][0]) @ p['out_proj/kernel'] + p['out_proj/bias']
    )
    levels, count = fenwick(levels, new, count), count + 1
  return (tail[..., :inner], tail[..., inner:], (levels, count)), ys


def gated_delta_net(p, x, carry):
  """Its delta rule, with a transition matrix for all levels of a head."""
  tail, (levels, count) = carry
  levels, count, ys = np.array(levels), np.array(count), []
  heads, (keys, values) = levels.shape[1], levels.shape[3:]
  unit = lambda v: v / np.sqrt((v**2).sum(-1, keepdims=True) + 1e-6)
  for u in x:
    window = np.concatenate([tail, (u @ p['qkv/kernel'])[:, None]], axis=1)
    tail = window[:, 1:]
    q, k, v = np.split(
        silu((window * p['conv']).sum(1)), [keys, 2 * keys], axis=1
    )
    q, k = (unit(s)[:, None].repeat(heads, axis=1) for s in (q, k))
    v = v.reshape(-1, heads, values)
    beta = sigmoid(u @ p['beta/kernel'])[..., None]
    g = -np.exp(p['A_log']) * softplus(u @ p['decay/kernel'] + p['dt_bias'])
    move = np.exp(g)[..., None, None] * (
        np.eye(keys) - (beta * k)[..., None] * k[:, :, None]
    )
    levels = np.einsum('bhij,bhejv->bheiv', move, levels)
    new, scales = k[..., None] * (beta * v)[:, :, None], weigh(p, u)
    states = np.concatenate([new[:, :, None], levels], axis=2)
    y = np.einsum('bhe,bhk,bhekv->bhv', scales, q, states) / np.sqrt(keys)
    y = y / np.sqrt((y**2).mean(-1, keepdims=True) + 1e-5) * p['norm/scale']
    y = y.reshape(len(u), -1) * silu(u @ p['gate/kernel'])
    ys.append(y @ p['output/kernel'])
    levels, count = fenwick(levels, new, count), count + 1
  return (tail, (levels, count)), ys


_MAMBA2 = dict(state_features=5, head_features=3, num_groups=2)
_BOTH = layers.LogLinearMamba2, layers.LogLinearGatedDeltaNet


class LogLinearTest(parameterized.TestCase):

  @parameterized.named_parameters(
      ('mamba2', mamba2, layers.LogLinearMamba2, _MAMBA2),
      ('gated_delta_net', gated_delta_net, layers.LogLinearGatedDeltaNet,
       dict(num_heads=1, num_value_heads=2)),
  )
  def test_equals_the_equations_in_numpy(self, equations, cls, options):
    random = np.random.default_rng(1)

    def carry_of(initial):
      return jax.tree.map(
          lambda u: np.array([2, 12], np.int32) if u.dtype == np.int32
          else random.standard_normal(u.shape), initial
      )

    transcription.check(
        equations,
        lambda rngs: cls(
            6, num_levels=_LEVELS, chunk_size=4, **options, rngs=rngs
        ),
        carry_of=carry_of,
    )

  def test_initial_values(self):
    layer = layers.LogLinearMamba2(
        8, head_features=2, num_layers=4, param_dtype=jnp.bfloat16,
        rngs=nnx.Rngs(0),
    )
    np.testing.assert_allclose(
        np.exp(layer.A_log[...]), np.arange(1, 9), rtol=1e-6
    )
    np.testing.assert_array_equal(layer.L[...], np.ones((8, 15)))
    self.assertIsNone(layer.conv_bias)
    for parameter in (layer.A_log, layer.L):
      self.assertEqual(parameter[...].dtype, jnp.float32)
      self.assertTrue(parameter.get_metadata('recurrent'))
    # The published sizes: rows for the gate, x, B, C, steps and levels.
    large = nnx.eval_shape(
        lambda: layers.LogLinearMamba2(2048, rngs=nnx.Rngs(0))
    )
    maps = large.in_proj, large.bc_proj, large.dt_proj, large.level_proj
    rows = sum(u.kernel.size // 2048 for u in maps)
    self.assertEqual(rows, 2 * 4096 + 2 * 128 + 64 * 16)

  @parameterized.parameters(*_BOTH)
  def test_a_training_step_does_not_store_all_states(self, cls):
    time, features = 4096, 64
    layer = cls(features, num_levels=13, chunk_size=32, rngs=nnx.Rngs(0))
    temporaries = modules.training_memory(layer, time)
    states = max(u.size for u in jax.tree.leaves(layer.initialize_carry(1)))
    self.assertLess(temporaries, 0.25 * 4 * time * states)

  @parameterized.parameters(*_BOTH)
  def test_long_sequences_raise_where_their_length_is_known(self, cls):
    layer = cls(4, num_levels=3, rngs=nnx.Rngs(0))
    message = '3 levels hold sequences of at most 4 tokens, got 5; take 4'
    x = jnp.ones((2, 5, 4))
    with self.assertRaisesRegex(ValueError, message):
      layer(x)
    carry, _ = layer(x[:, :4])
    with self.assertRaisesRegex(ValueError, message):
      layer.step(carry, x[:, 0])
    # A full row may be absent, and a new sequence may start in it.
    flags = jnp.array([True, False])
    step, _ = layer.step(carry, x[:, 0], reset=flags, mask=flags)
    self.assertEqual([int(u) for u in step[-1].count], [1, 4])
    # Nothing is known under jit: the last level takes what is older.
    _, y = jax.jit(layer.step)(carry, x[:, 0])
    self.assertTrue(np.isfinite(y).all())

  @parameterized.parameters(*_BOTH)
  def test_invalid_numbers_of_levels_raise(self, cls):
    for number in (1, 26):
      with self.assertRaisesRegex(
          ValueError, f'`num_levels` must be from 2 to 25, got {number}'
      ):
        cls(4, num_levels=number, rngs=nnx.Rngs(0))
