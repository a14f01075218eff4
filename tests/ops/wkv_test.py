"""`wkv`: against a loop in float64, keys that overflow, NaN, a mesh."""

from absl.testing import parameterized
import jax
import jax.numpy as jnp
from jax.sharding import AxisType
import numpy as np
from rnnzoo import ops
from tests import collectives
from tests import tolerance

f32, f64 = jnp.float32, jnp.float64


def loop(k, v, time_decay, time_first, state, reset, mask):
  """The definition without stabiliser, one token of one row after the other."""
  aa, bb, pp = state
  a, b, pp = aa * np.exp(pp), bb * np.exp(pp), pp.copy()
  w, y = -np.exp(time_decay), np.zeros_like(v)
  for i, t in np.ndindex(*k.shape[:2]):
    if not mask[i, t]:
      continue
    if reset[i, t]:
      a[i], b[i], pp[i] = 0, 0, -np.inf
    now = np.exp(time_first + k[i, t])
    y[i, t] = (a[i] + now * v[i, t]) / (b[i] + now)
    a[i] = np.exp(w) * a[i] + np.exp(k[i, t]) * v[i, t]
    b[i] = np.exp(w) * b[i] + np.exp(k[i, t])
    pp[i] = np.maximum(pp[i] + w, k[i, t])
  return (a * np.exp(-pp), b * np.exp(-pp), pp), y


def operands(batch, time, features=3):
  random = np.random.default_rng(0)
  normal = lambda *shape: random.standard_normal(shape)
  state = ops.WKVState(
      aa=normal(batch, features),
      bb=np.exp(normal(batch, features)),
      pp=normal(batch, features),
  )
  flags = dict(
      reset=random.random((batch, time)) < 0.3,
      mask=random.random((batch, time)) < 0.7,
  )
  sequences = normal(batch, time, features), normal(batch, time, features)
  return (*sequences, normal(features), normal(features), state), flags


class WKVTest(parameterized.TestCase):

  @parameterized.product(time=(0, 1, 11), flagged=(False, True))
  def test_matches_loop(self, time, flagged):
    arguments, flags = operands(2, time)
    if not flagged:
      flags = dict(
          reset=np.zeros_like(flags['reset']), mask=np.ones_like(flags['mask'])
      )
    want = loop(*arguments, **flags)
    with jax.enable_x64(True):
      got = jax.jit(
          lambda *u: ops.wkv(*u, **(flags if flagged else {}))
      )(*arguments)
    tolerance.assert_close((tuple(got[0]), got[1]), want)

  def test_very_large_keys(self):
    # So far apart that every average is one of its values.
    k = np.array([0, 300, -300, 1e4, -1e4, 290], f32)[None, :, None]
    v = np.arange(6, dtype=f32)[None, :, None]
    state, y = ops.wkv(k, v, np.full(1, -np.inf, f32), np.zeros(1, f32))
    np.testing.assert_array_equal(y[0, :, 0], [0, 1, 1, 3, 3, 3])
    np.testing.assert_array_equal(jnp.stack(state).ravel(), [3, 1, 1e4])

  def test_nan_before_a_reset_or_in_padding_is_contained(self):
    arguments, _ = operands(1, 8)
    arguments = jax.tree.map(f32, arguments)
    flags = dict(
        reset=np.arange(8)[None] == 4, mask=np.arange(8)[None] != 6
    )
    behind = np.arange(8) >= 4

    def loss(k, v, *rest):
      state, y = ops.wkv(k, v, *rest, **flags)
      value = jnp.where(behind[:, None], y, 0).sum() + sum(state).sum()
      return value, (state, y[:, 4:])

    run = jax.jit(
        jax.value_and_grad(loss, (0, 1), has_aux=True),
        compiler_options=collectives.QUICKLY,
    )
    (_, want), d_want = run(*arguments)
    k, v, d, u, state = arguments
    spoil = lambda x: np.where((behind & flags['mask'][0])[:, None], x, np.nan)
    nan = jax.tree.map(lambda s: np.full_like(s, np.nan), state)
    (_, got), d_got = run(f32(spoil(k)), f32(spoil(v)), d, u, nan)
    for g, w in zip(jax.tree.leaves(got), jax.tree.leaves(want)):
      np.testing.assert_array_equal(g, w)
    for g, w in zip(d_got, d_want):
      np.testing.assert_array_equal(g[:, 4:], w[:, 4:])

  def test_on_a_mesh_with_time_split(self):
    if len(jax.devices()) < 8:
      self.skipTest('needs 8 devices')
    arguments, flags = operands(4, 16)
    arguments = jax.tree.map(f32, arguments)

    def loss(*arguments):
      state, y = ops.wkv(*arguments, **flags)
      return jnp.sin(y).sum() + sum(jnp.sin(u).sum() for u in state)

    step = lambda: jax.jit(
        jax.value_and_grad(loss, range(5)), compiler_options=collectives.QUICKLY
    )
    want = step()(*arguments)
    mesh = jax.make_mesh((2, 4), ('data', 'sequence'), (AxisType.Auto,) * 2)
    with jax.set_mesh(mesh):
      tolerance.assert_close(step()(*arguments), want, f32)

  @parameterized.parameters(
      (0, np.zeros((2, 3), f32), r'`k` and `v` must be \[B, T, D\]'),
      (1, np.zeros((2, 4, 1), f32), r'got shapes \(2, 4, 3\) and \(2, 4, 1\)'),
      (1, np.zeros((2, 4, 3), np.int32), '`v` must be floating'),
      (2, np.zeros(2, f32), r'`time_decay` must be \[D\] = \(3,\), got \(2,\)'),
      (4, ops.WKVState(*np.zeros((3, 1, 3), f32)), '`state.aa` must be'),
  )
  def test_bad_input_names_the_argument(self, index, value, message):
    arguments = list(operands(2, 4)[0])
    arguments[index] = value
    with self.assertRaisesRegex(ValueError, message):
      ops.wkv(*arguments)
