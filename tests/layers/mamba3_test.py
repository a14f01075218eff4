"""Mamba-3: its equations in float64 NumPy, its initialisation, its memory."""

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


def silu(u):
  return u * sigmoid(u)


def rms(u, scale):
  return u / np.sqrt((u**2).mean(-1, keepdims=True) + 1e-5) * scale


def recurrence(p, x, carry, *, pairs, rate, norm=None):
  """The two terms of the trapezoidal rule, one token after the other.

  Args:
    p: Parameters.
    x: Inputs, T of `[B, D]`.
    carry: As that of the layer.
    pairs: The two features of each pair that is rotated.
    rate: The rates of decay for their logits.
    norm: A function of outputs `[B, H, R, P]`, or `None`.
  """
  angle, state, k_before, x_before = carry
  _, heads, n, size = state.shape
  ranks = k_before.shape[2]
  ones = np.ones((heads, ranks, size))
  first, second = pairs

  def keys(u, kind):
    u = rms(u.reshape(-1, ranks, _GROUPS, n), p[f'{kind}_norm/scale'])
    u = np.repeat(u, heads // _GROUPS, axis=2).swapaxes(1, 2)
    u = u + p[f'{kind}_bias']
    turned = u.copy()
    cos, sin = np.cos(angle)[:, :, None], np.sin(angle)[:, :, None]
    turned[..., first] = u[..., first] * cos - u[..., second] * sin
    turned[..., second] = u[..., first] * sin + u[..., second] * cos
    return turned

  ys = []
  for u in x:
    z, v = np.moveaxis(
        np.einsum('bd,dgh->bgh', u, p['in_proj/kernel']), 1, 0
    )
    b, c = np.split(u @ p['bc_proj/kernel'], 2, axis=1)
    dt, a, tau = np.moveaxis(
        np.einsum('bd,dgh->bgh', u, p['rates_proj/kernel']), 1, 0
    )
    dt = np.logaddexp(0, dt + p['dt_bias'])
    decay = np.exp(-dt * np.maximum(rate(a), 1e-4))[..., None, None]
    turn = np.pi * np.tanh(u @ p['angle_proj/kernel'])
    angle = angle + turn[:, None] * dt[..., None]
    q, k = keys(c, 'C'), keys(b, 'B')
    per_rank = lambda u, factors: (
        u.reshape(-1, heads, 1, size) * p.get(factors, ones)
    )
    v = per_rank(v, 'mimo_x')
    now, dt = sigmoid(tau)[..., None, None], dt[..., None, None]
    outer = lambda k, x: np.einsum('bhrn,bhrp->bhnp', k, x)
    state = decay * state + now * dt * outer(k, v) + (
        (1 - now) * dt * decay * outer(k_before, x_before)
    )
    y = np.einsum('bhrn,bhnp->bhrp', q, state) + p['D'][:, None, None] * v
    y = y if norm is None else norm(y)
    y = y * silu(per_rank(z, 'mimo_z')) * p.get('mimo_o', ones)
    ys.append(y.sum(2).reshape(len(y), -1) @ p['out_proj/kernel'])
    k_before, x_before = k, v
  angle = (angle + np.pi) % (2 * np.pi) - np.pi
  return (angle, state, k_before, x_before), ys


def mamba3(p, x, carry):
  """One rank, the first two of five features rotated."""
  return recurrence(
      p, x, carry, pairs=([0], [1]),
      rate=lambda u: np.where(u >= 0, 1 + u, 1 / (1 + np.abs(u))),
  )


def mamba3_mimo(p, x, carry):
  """Two ranks, all four features rotated in halves, and a norm."""
  return recurrence(
      p, x, carry, pairs=([0, 1], [2, 3]), rate=lambda u: np.logaddexp(0, u),
      norm=lambda y: rms(y, p['norm/scale'][:, None]),
  )


class Mamba3Test(parameterized.TestCase):

  @parameterized.named_parameters(
      ('siso', mamba3, dict(state_features=5)),
      ('mimo', mamba3_mimo,
       dict(state_features=4, rank=2, rotary_fraction=1.0, rate='softplus',
            use_output_norm=True)),
  )
  def test_equals_the_equations_in_numpy(self, equations, options):
    transcription.check(equations, lambda rngs: layers.Mamba3(
        6, head_features=3, num_groups=_GROUPS, chunk_size=4, **options,
        rngs=rngs,
    ))

  def test_initial_values(self):
    layer = layers.Mamba3(
        8, expansion_factor=500, head_features=1, state_features=4, rank=4,
        num_layers=4, rngs=nnx.Rngs(0),
    )
    dt = np.log(np.logaddexp(0, np.float64(layer.dt_bias[...])))
    uniform = (np.sort(dt) - np.log(1e-3)) / np.log(100)
    gap = np.abs(uniform - np.arange(4000) / 4000).max()
    self.assertLess(gap, 1.95 / 4000**0.5)  # Kolmogorov's test, 1 of 1000.
    for name, value in dict(
        D=1, B_bias=1, C_bias=1, mimo_x=0.25, mimo_z=1, mimo_o=0.25
    ).items():
      np.testing.assert_array_equal(getattr(layer, name)[...], value)
    for parameter, bound in (
        (layer.in_proj.kernel, 8**-0.5), (layer.bc_proj.kernel, 8**-0.5),
        (layer.rates_proj.kernel, 8**-0.5),
        (layer.out_proj.kernel, 4000**-0.5 / 2),  # By the root of the depth.
    ):
      largest = np.abs(parameter[...]).max()
      self.assertBetween(largest, 0.97 * bound, bound)

  def test_published_sizes(self):
    make = lambda **options: nnx.eval_shape(
        lambda: layers.Mamba3(768, **options, rngs=nnx.Rngs(0))
    )
    size = lambda layer: sum(
        u.size for u in jax.tree.leaves(nnx.state(layer, nnx.Param))
    )
    # One input map to z, x, B, C, three numbers a head and the angles.
    maps = 768 * (2 * 1536 + 2 * 128 + 3 * 24 + 32) + 1536 * 768
    self.assertEqual(size(make()), maps + 2 * 24 + 2 * 128 + 2 * 24 * 128)
    mimo = make(rank=4, rotary_fraction=1.0, use_output_norm=True)
    more = 768 * (3 * 2 * 128 + 32) + 3 * 2 * 24 * 128 + 3 * 24 * 4 * 64 + 1536
    self.assertEqual(size(mimo), size(make()) + more)
    self.assertEqual((make().rotation, mimo.rotation), ('neighbors', 'halves'))
    self.assertEqual(mimo.state_shape.k, (24, 4, 128))

  def test_decays_are_never_stored_below_float32(self):
    layer = layers.Mamba3(
        4, state_features=4, param_dtype=jnp.bfloat16, rngs=nnx.Rngs(0)
    )
    for parameter in (layer.D, layer.dt_bias):
      self.assertEqual(parameter[...].dtype, jnp.float32)
      self.assertTrue(parameter.get_metadata('recurrent'))
    self.assertEqual(layer.bc_proj.kernel[...].dtype, jnp.bfloat16)

  @parameterized.parameters(1, 2)
  def test_a_training_step_does_not_store_all_states(self, rank):
    time, batch = 4096, 1
    layer = layers.Mamba3(
        64, head_features=128, rank=rank, chunk_size=16 * rank,
        rngs=nnx.Rngs(0),
    )
    temporaries = modules.training_memory(layer, time, batch)
    states = 4 * time * layer.initialize_carry(batch).ssm.size
    self.assertLess(temporaries, 0.7 * states)

  def test_angles_keep_their_digits(self):
    # Half a turn for each one among 2^16 bits: the parity is the sign.
    random = np.random.default_rng(0)
    turns = np.pi * random.integers(2, size=2**16)
    _, cos, _ = jax.jit(layers.mamba3.accumulate)(
        jnp.asarray(turns, jnp.float32).reshape(1, -1, 1, 1),
        jnp.zeros((1, 1, 1)),
    )
    parity = 1 - 2 * (np.cumsum(turns > 0) % 2)
    np.testing.assert_allclose(cos.ravel(), parity, atol=1e-3)

  @parameterized.parameters(
      (dict(state_features=0), 'state_features.*got 0'),
      (dict(state_features=3), 'state_features.*at least 4 with.* 0.5, got 3'),
      (dict(state_features=5, rank=2), "be even with `rotation='halves'.*t 5"),
      (dict(head_features=3), 'head_features.*divide the 8.*got 3'),
      (dict(head_features=2, num_groups=3), 'num_groups.*the 4 heads, got 3'),
      (dict(rank=0), '`rank` must be at least 1, got 0'),
      (dict(rotary_fraction=1.5), r'rotary_fraction.*\(0, 1\], got 1.5'),
      (dict(rotation='pairs'), "'neighbors' or 'halves', got 'pairs'"),
      (dict(rate='exp'), "`rate` must be 'rational' or 'softplus', got 'exp'"),
      (dict(a_floor=-1.0), 'a_floor.*negative, got -1'),
      (dict(dt_min=0.2), 'in order, got 0.2, 0.1'),
      (dict(num_layers=0), 'num_layers.*got 0'),
  )
  def test_invalid_options_raise(self, options, message):
    with self.assertRaisesRegex(ValueError, message) as caught:
      layers.Mamba3(4, **options, rngs=nnx.Rngs(0))
    self.assertNotIn('\n', str(caught.exception))
