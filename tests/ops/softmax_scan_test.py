"""`max_plus_scan` and `softmax_scan` against loops in float64."""

from unittest import mock

from absl.testing import parameterized
import jax
import jax.numpy as jnp
from jax.sharding import AxisType
import numpy as np
from rnnzoo import ops
from tests import collectives
from tests import tolerance

f32, f64 = jnp.float32, jnp.float64


def flags_of(names, batch, time):
  random = np.random.default_rng(1)
  chances = dict(reset=0.3, mask=0.6)
  return {n: random.random((batch, time)) < chances[n] for n in names.split()}


def maxima(x, w, m, reset=None, mask=None):
  """Returns the last maximum and those that enter and leave each step."""
  m, before, after = m.copy(), np.zeros_like(x), np.zeros_like(x)
  for b, t in np.ndindex(*x.shape[:2]):
    start = reset is not None and reset[b, t]
    absent = mask is not None and not mask[b, t]
    before[b, t] = -1e9 if start and not absent else m[b]
    if not absent:
      m[b] = np.maximum(before[b, t] + w, x[b, t])
    after[b, t] = m[b]
  return m, before, after


def averages(s, v, m, u, w, reset=None, mask=None):
  """Softmax over the tokens of each sequence so far, one by one."""
  total, summed = u * np.exp(m), w * np.exp(m)[..., None]
  largest, o = m.copy(), np.zeros_like(v)
  for b, t in np.ndindex(*s.shape[:2]):
    if mask is not None and not mask[b, t]:
      continue
    if reset is not None and reset[b, t]:
      total[b] = summed[b] = 0
      largest[b] = -np.inf
    largest[b] = np.maximum(largest[b], s[b, t])
    total[b] += np.exp(s[b, t])
    summed[b] += np.exp(s[b, t])[:, None] * v[b, t]
    o[b, t] = summed[b] / total[b][:, None]
  scale = np.exp(-largest)
  return (largest, total * scale, summed * scale[..., None]), o


def operands(batch, time, heads=2, features=3):
  random = np.random.default_rng(0)
  normal = lambda *shape: random.standard_normal((batch, *shape))
  state = ops.SoftmaxState(
      normal(heads), np.exp(normal(heads)), normal(heads, features)
  )
  return normal(time, heads), normal(time, heads, features), state


class MaxPlusScanTest(parameterized.TestCase):

  @parameterized.product(
      form=('cpu', 'default'), names=('', 'reset', 'mask', 'reset mask')
  )
  def test_matches_loop(self, form, names):
    random = np.random.default_rng(0)
    normal = random.standard_normal
    x, m0 = 3 * normal((2, 9, 3)), normal((2, 3))
    w, flags = -np.exp(random.standard_normal(3)), flags_of(names, 2, 9)
    want = maxima(x, w, m0, **flags)
    choose = lambda *operands, **forms: forms[form](*operands)
    with jax.enable_x64(True), mock.patch.object(
        jax.lax, 'platform_dependent', choose
    ):
      got = jax.jit(
          lambda *u: ops.max_plus_scan(*u, initial=-1e9, **flags)
      )(x, w, m0)
    if 'mask' in names:  # What would enter a step that is absent is all one.
      there = flags['mask'][..., None]
      got, want = (
          (last, np.where(there, before, 0), after)
          for last, before, after in (got, want)
      )
    tolerance.assert_close(got, want, f64)

  def test_nan_before_a_reset_stays_in_its_sequence(self):
    x = np.array([1, np.nan, 0, 5, np.nan], f32)[None, :, None]
    reset = np.array([[False, False, True, False, False]])
    mask = np.array([[True, True, True, True, False]])
    for call in (ops.max_plus_scan, jax.jit(ops.max_plus_scan)):
      last, before, m = call(x, -1.0, reset=reset, mask=mask)
      np.testing.assert_array_equal(m[0, 2:, 0], [0, 5, 5])
      np.testing.assert_array_equal(before[0, 2:4, 0], [-np.inf, 0])
      np.testing.assert_array_equal(last, [[5]])

  @parameterized.parameters(
      (dict(x=np.zeros((2, 3), f32)), r'`x` must be real \[B, T, D\]'),
      (dict(x=np.zeros((2, 3, 4), np.int32)), 'got int32'),
      (dict(w=np.zeros((2, 1, 4), f32)), '`w` must broadcast'),
      (dict(m0=np.zeros((2, 3), f32)), r'\[B, D\] = \(2, 4\)'),
      (dict(mask=np.zeros((2, 4), bool)), '`mask` must be bool'),
  )
  def test_bad_input_names_the_argument(self, changes, message):
    arguments = dict(x=np.zeros((2, 3, 4), f32)) | changes
    with self.assertRaisesRegex(ValueError, message):
      ops.max_plus_scan(**arguments)


class SoftmaxScanTest(parameterized.TestCase):

  @parameterized.parameters(
      (9, ''), (9, 'reset'), (9, 'mask'), (9, 'reset mask'), (1, 'reset mask'),
      (0, 'reset mask'),
  )
  def test_matches_loop(self, time, names):
    s, v, state = operands(2, time)
    flags = flags_of(names, 2, time)
    want = averages(s, v, *state, **flags)
    with jax.enable_x64(True):
      got = jax.jit(lambda *u: ops.softmax_scan(*u, **flags))(s, v, state)
      last = jax.jit(lambda *u: ops.softmax_last(*u, **flags))(s, v, state)
    tolerance.assert_close((tuple(got[0]), got[1]), want)
    tolerance.assert_close(tuple(last[0]), want[0])
    if time and not names:
      tolerance.assert_close(last[1], want[1][:, -1])

  def test_gradients_with_left_padding_are_finite(self):
    s, v = np.zeros((1, 3, 1), f32), np.ones((1, 3, 1, 1), f32)
    s[:, :2] = v[:, :2] = np.nan
    s, v, mask = map(jnp.asarray, (s, v, np.array([[False, False, True]])))
    with jax.debug_nans(True):
      for scan in (ops.softmax_scan, ops.softmax_last):
        _, o = scan(s, v, mask=mask)
        np.testing.assert_array_equal(o.reshape(-1)[-1], 1)

  def test_starts_from_the_empty_state(self):
    s, v, _ = operands(2, 5)
    want = np.exp(s)[..., None] * v
    want = want.cumsum(1) / np.exp(s).cumsum(1)[..., None]
    with jax.enable_x64(True):
      state, o = ops.softmax_scan(s, v)
      tolerance.assert_close(o, want)
      tolerance.assert_close(
          state.log_u, np.log(np.exp(s).sum(1))
      )

  def test_on_a_mesh_with_time_split(self):
    if len(jax.devices()) < 8:
      self.skipTest('needs 8 devices')
    s, v, state = jax.tree.map(f32, operands(4, 16))
    flags = flags_of('reset mask', 4, 16)

    def loss(s, v, state):
      state, o = ops.softmax_scan(s, v, state, **flags)
      return jnp.sin(o).sum() + sum(jnp.sin(u).sum() for u in state)

    step = lambda: jax.jit(
        jax.value_and_grad(loss, (0, 1, 2)),
        compiler_options=collectives.QUICKLY,
    )
    want = step()(s, v, state)
    mesh = jax.make_mesh((2, 4), ('data', 'sequence'), (AxisType.Auto,) * 2)
    with jax.set_mesh(mesh):
      tolerance.assert_close(step()(s, v, state), want, f32)

  def test_bad_input_names_the_argument(self):
    s, v, state = operands(2, 4)
    call = ops.softmax_scan
    with self.assertRaisesRegex(ValueError, r'`s` and `v`.*\(2, 4, 1\)'):
      call(s[..., :1], v)
    with self.assertRaisesRegex(ValueError, '`v` must be floating'):
      call(s, v.astype(int))
    with self.assertRaisesRegex(ValueError, '`state.u` must be'):
      call(s, v, state._replace(u=state.m[:1]))
    with self.assertRaisesRegex(ValueError, '`reset` must be bool'):
      call(s, v, reset=np.zeros((2, 4)))
