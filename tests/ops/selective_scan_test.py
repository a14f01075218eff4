"""`selective_scan`: against a loop in float64, and how much memory it takes."""

from absl.testing import parameterized
import jax
import jax.numpy as jnp
import numpy as np
from rnnzoo import ops
from tests import collectives
from tests import tolerance

f32, f64, bf16 = jnp.float32, jnp.float64, jnp.bfloat16
_NAMES = ('x', 'delta', 'A', 'B', 'C', 'h0', 'D', 'z', 'delta_bias')


def loop(x, delta, A, B, C, h, D, z, delta_bias, reset, mask):
  """The definition, one token of one row after the other."""
  delta = np.log1p(np.exp(delta + delta_bias))
  h, y = h.copy(), np.zeros_like(x)
  for b, t in np.ndindex(*x.shape[:2]):
    if mask is not None and not mask[b, t]:
      continue
    if reset is not None and reset[b, t]:
      h[b] = 0
    h[b] = np.exp(delta[b, t][:, None] * A) * h[b]
    h[b] += (delta[b, t] * x[b, t])[:, None] * B[b, t]
    gate = z[b, t] / (1 + np.exp(-z[b, t]))
    y[b, t] = (h[b] @ C[b, t] + D * x[b, t]) * gate
  return h, y


def operands(batch, time, features=3, state=2, dtype=f64):
  random = np.random.default_rng(0)
  sizes = dict(B=batch, T=time, D=features, N=state)
  shapes = dict(
      x='BTD', delta='BTD', A='DN', B='BTN', C='BTN', h0='BDN', D='D', z='BTD',
      delta_bias='D',
  )
  values = {
      name: random.standard_normal([sizes[s] for s in axes]).astype(dtype)
      for name, axes in shapes.items()
  }
  values['A'] = -np.exp(values['A'])
  return values


def run(values, flags, chunk_size=64):
  return ops.selective_scan(
      **values, **flags, delta_softplus=True, chunk_size=chunk_size
  )


class SelectiveScanTest(parameterized.TestCase):

  @parameterized.parameters(
      (2, 11, 64, ''),
      (2, 11, 4, ''),
      (2, 11, 4, 'reset mask'),  # 3 chunks of 4, one step too many.
      (2, 12, 1, 'mask'),
      (1, 5, 3, 'reset'),
      (2, 1, 4, 'reset mask'),
      (2, 0, 4, 'reset mask'),
  )
  def test_matches_loop(self, batch, time, chunk_size, names):
    values = operands(batch, time)
    random = np.random.default_rng(1)
    chances = dict(reset=0.3, mask=0.6)
    flags = {
        name: random.random((batch, time)) < chances[name]
        for name in names.split()
    }
    want = loop(*values.values(), flags.get('reset'), flags.get('mask'))
    with jax.enable_x64(True):
      call = jax.jit(lambda values: run(values, flags, chunk_size))
      got = call(values)
      tolerance.assert_close(got, want)
      self.assertEqual(got[1].shape, (batch, time, 3))

  def test_gradients_equal_those_of_steps(self):
    values = operands(2, 11)
    random = np.random.default_rng(1)
    reset, mask = random.random((2, 2, 11)) < [[[0.3]], [[0.7]]]
    weights = random.standard_normal((2, 11, 3))

    def one_by_one(values):
      h, ys = values['h0'], []
      for t in range(11):
        of_step = lambda u: u[:, t : t + 1]
        token = {
            k: of_step(u) if k in ('x', 'delta', 'B', 'C', 'z') else u
            for k, u in values.items()
        }
        flags = dict(reset=of_step(reset), mask=of_step(mask))
        h, y = run(token | dict(h0=h), flags)
        ys.append(y)
      return h, jnp.concatenate(ys, axis=1)

    def loss(function):
      def value(values):
        h, y = function(values)
        return (y * weights).sum() + jnp.sin(h).sum()

      return jax.jit(jax.grad(value), compiler_options=collectives.QUICKLY)

    in_chunks = lambda values: run(
        values, dict(reset=reset, mask=mask), chunk_size=4
    )
    with jax.enable_x64(True):
      want = loss(one_by_one)(values)
      tolerance.assert_close(loss(in_chunks)(values), want)
    for name, gradient in want.items():
      self.assertGreater(np.abs(gradient).max(), 1e-3, name)

  def test_nan_before_a_reset_or_in_padding_is_contained(self):
    values = operands(1, 9, dtype=f32)
    reset = np.arange(9)[None] == 5
    mask = np.arange(9)[None] != 7
    behind = np.arange(9) >= 5

    def loss(values):
      h, y = run(values, dict(reset=reset, mask=mask), chunk_size=2)
      return jnp.where(behind[:, None], y, 0).sum() + h.sum(), (h, y)

    compiled = jax.jit(
        jax.value_and_grad(loss, has_aux=True),
        compiler_options=collectives.QUICKLY,
    )
    (_, want), d_want = compiled(values)
    poisoned = dict(values, h0=np.full_like(values['h0'], np.nan))
    for name in ('x', 'delta', 'B', 'C', 'z'):
      poisoned[name] = values[name].copy()
      poisoned[name][:, :5] = poisoned[name][:, 7] = np.nan
    (_, got), d_got = compiled(poisoned)
    np.testing.assert_array_equal(got[0], want[0])
    np.testing.assert_array_equal(got[1][:, 5:], want[1][:, 5:])
    np.testing.assert_array_equal(got[1][:, 7], 0)
    for name in ('x', 'delta', 'B', 'C', 'z'):
      np.testing.assert_array_equal(d_got[name][:, 5:], d_want[name][:, 5:])

  def test_temporaries_do_not_hold_all_states(self):
    features, state = 32, 16

    def temporaries(time, chunk_size):
      values = operands(1, time, features, state, f32)
      loss = lambda values: sum(u.sum() for u in run(values, {}, chunk_size))
      step = jax.jit(jax.grad(loss)).lower(values).compile()
      return step.memory_analysis().temp_size_in_bytes / (4 * features)

    # In floats a channel: that is T (a few), T / chunk * N and chunk * N.
    short, long_, fine = (
        temporaries(1024, 32), temporaries(4096, 32), temporaries(4096, 8)
    )
    self.assertLess(long_, 4096 * state)  # Not even one array of [T, D, N].
    self.assertLess((long_ - short) / 3072, 12 + state / 32)
    # Four times the states between chunks, all else equal or smaller.
    self.assertLess(fine - long_, 4096 * state / 8)

  def test_dtypes(self):
    values = operands(2, 5, dtype=bf16)
    values['A'] = values['A'].astype(f32)
    h, y = jax.eval_shape(lambda values: run(values, {}, 2), values)
    self.assertEqual((h.dtype, y.dtype), (f32, bf16))

  @parameterized.parameters(
      ('x', (2, 3), r'`x` must be \[B, T, D\], got shape \(2, 3\)'),
      ('A', (3,), r'`A` must be \[D, N\]'),
      ('delta', (2, 5, 1), r'`delta` must be \[B, T, D\] = \(2, 5, 3\)'),
      ('C', (2, 5, 3), r'`C` must be \[B, T, N\] = \(2, 5, 2\)'),
      ('h0', (2, 2, 3), r'`h0` must be \[B, D, N\] = \(2, 3, 2\)'),
      ('delta_bias', (1,), r'`delta_bias` must be \[D\]'),
  )
  def test_bad_shape_names_the_argument(self, name, shape, message):
    values = operands(2, 5, dtype=f32) | {name: np.zeros(shape, f32)}
    with self.assertRaisesRegex(ValueError, message):
      run(values, {})

  def test_bad_input_names_the_argument(self):
    values = operands(2, 5, dtype=f32)
    with self.assertRaisesRegex(ValueError, '`B` must be floating, got int32'):
      run(values | dict(B=np.zeros((2, 5, 2), np.int32)), {})
    with self.assertRaisesRegex(ValueError, '`chunk_size`.*got 0'):
      run(values, {}, 0)
    with self.assertRaisesRegex(ValueError, '`mask` must be bool'):
      run(values, dict(mask=np.ones((2, 5), f32)))
