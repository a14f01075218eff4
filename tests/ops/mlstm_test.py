"""`mlstm`: against a loop in float64, gates of any size, NaN, a mesh."""

from absl.testing import parameterized
import jax
import jax.numpy as jnp
from jax.sharding import AxisType
import numpy as np
from rnnzoo import ops
from tests import collectives
from tests import tolerance

_HEADS, _KEYS, _VALUES = 2, 3, 4


def loop(q, k, v, i, f, state, reset, mask, *, scale, eps, exponential=False):
  """The definition, token by token, without a stabiliser."""
  C, n, m = state
  C, n = C * jnp.exp(m)[..., None, None], n * jnp.exp(m)[..., None]

  def step(carry, token):
    q, k, v, i, f, reset, mask = token
    fresh = lambda u: reset.reshape((-1,) + (1,) * (u.ndim - 1))
    entering = [jnp.where(fresh(u), 0, u) for u in carry]
    C, n, m = entering
    g = f if exponential else -jnp.log(1 + jnp.exp(-f))
    m = jnp.maximum(g + m, i)
    new = jnp.exp(i)[..., None] * k
    n = jnp.exp(g)[..., None] * n + new
    C = jnp.exp(g)[..., None, None] * C + new[..., None] * v[..., None, :]
    divisor = jnp.maximum(jnp.abs((n * q).sum(-1) * scale), 1)
    divisor = divisor + eps * jnp.exp(m)
    h = (C * q[..., None]).sum(-2) * scale / divisor[..., None]
    there = lambda u: mask.reshape((-1,) + (1,) * (u.ndim - 1))
    carry = [
        jnp.where(there(u), u, old) for u, old in zip((C, n, m), carry)
    ]
    return carry, jnp.where(there(h), h, 0)

  by_time = lambda u: jnp.moveaxis(u, 1, 0)
  (C, n, m), h = jax.lax.scan(
      step, [C, n, m], jax.tree.map(by_time, (q, k, v, i, f, reset, mask))
  )
  C, n = C * jnp.exp(-m)[..., None, None], n * jnp.exp(-m)[..., None]
  return ops.MLSTMState(C, n, m), jnp.moveaxis(h, 0, 1)


def operands(batch, time, dtype=np.float64):
  random = np.random.default_rng(0)
  normal = lambda *shape: random.standard_normal(shape).astype(dtype)
  heads = batch, time, _HEADS
  state = ops.MLSTMState(
      C=normal(batch, _HEADS, _KEYS, _VALUES),
      n=normal(batch, _HEADS, _KEYS),
      m=normal(batch, _HEADS),
  )
  sequences = (
      normal(*heads, _KEYS), 3 * normal(*heads, _KEYS),
      normal(*heads, _VALUES), 2 * normal(*heads), 2 * normal(*heads),
  )
  reset = random.random((batch, time)) < 0.3
  mask = random.random((batch, time)) < 0.7
  return sequences, state, reset, mask


def loss(run, *arguments):
  """Returns a number that depends on all results, and the results."""
  state, h = run(*arguments)
  value = jnp.sin(h).sum() + sum(jnp.cos(u).sum() for u in state)
  return value, (state, h)


def differentiated(run, **options):
  """Results, and gradients of sequences and state."""
  return jax.jit(
      jax.grad(lambda *u: loss(run, *u), (0, 1), has_aux=True), **options
  )


class MLSTMTest(parameterized.TestCase):

  @parameterized.parameters((11, False, 4), (11, True, 4), (1, True, 64))
  def test_matches_loop(self, time, flagged, chunk_size):
    sequences, state, reset, mask = operands(2, time)
    flags = dict(reset=reset, mask=mask) if flagged else {}
    if not flagged:
      reset, mask = np.zeros_like(reset), np.ones_like(mask)
    # An eps that would be noticed, in gradients too.
    options = dict(scale=0.7, eps=0.1)
    with jax.enable_x64(True):
      got = differentiated(lambda u, state: ops.mlstm(
          *u, state, chunk_size=chunk_size, **flags, **options
      ))(sequences, state)
      want = differentiated(
          lambda u, state: loop(*u, state, reset, mask, **options)
      )(sequences, state)
    tolerance.assert_close(got, want)

  def test_step_matches_loop(self):
    sequences, state, reset, _ = operands(2, 1)
    flags = np.zeros_like(reset), np.ones_like(reset)
    options = dict(scale=_KEYS**-0.5, eps=1e-6, exponential=True)
    with jax.enable_x64(True):
      got = differentiated(lambda u, state: ops.mlstm_step(
          *(v[:, 0] for v in u), state, forget_gate='exponential'
      ))(sequences, state)
      want = differentiated(
          lambda u, state: loop(*u, state, *flags, **options)
      )(sequences, state)
    d_want, (last, h) = want
    tolerance.assert_close(got, (d_want, (last, h[:, 0])))

  def test_no_tokens(self):
    sequences, state, _, _ = operands(2, 0, np.float32)
    got, h = ops.mlstm(*sequences, state)
    self.assertEqual(h.shape, (2, 0, _HEADS, _VALUES))
    tolerance.assert_close(got, state)

  @parameterized.parameters('sigmoid', 'exponential')
  def test_very_large_gates(self, forget_gate):
    # One feature; exponentials of these are no float32.
    i = np.array([300, -300, 200, -np.inf, 500, -400], np.float32)
    f = np.array([0, 500, -400, 300, -np.inf, -600], np.float32)
    if forget_gate == 'exponential':
      f = np.array([0, 0, -400, 0, -np.inf, -600], np.float32)
    shaped = lambda u, *shape: np.float32(u).reshape(1, 6, 1, *shape)
    ones, v = shaped(np.ones(6), 1), shaped(np.arange(1, 7), 1)

    def run(k, v, i, f):
      state, h = ops.mlstm(
          ones, k, v, i, f, eps=0.0, chunk_size=4, forget_gate=forget_gate
      )
      return h.sum() + sum(u.sum() for u in state), (state, h)

    gradients, (state, h) = jax.jit(
        jax.grad(run, range(4), has_aux=True)
    )(ones, v, shaped(i), shaped(f))
    # Only the latest large write is read; of the last token even the memory is
    # far below 1, and what divides it is 1.
    np.testing.assert_allclose(h.ravel(), [1, 1, 3, 3, 5, 0], atol=1e-30)
    np.testing.assert_allclose(np.ravel(state.m), [-100])
    np.testing.assert_allclose(np.ravel(state.C), [5], rtol=1e-6)
    for gradient in gradients:
      self.assertTrue(np.isfinite(gradient).all(), gradient)

  def test_nan_before_a_reset_or_in_padding_is_contained(self):
    sequences, state, _, _ = operands(1, 8, np.float32)
    reset, mask = np.arange(8)[None] == 5, np.arange(8)[None] != 6
    run = lambda u, state: ops.mlstm(
        *u, state, reset=reset, mask=mask, chunk_size=4
    )

    def late(u, state):
      last, h = run(u, state)
      return last, jnp.where(np.arange(8)[:, None, None] >= 5, h, 0)

    step = differentiated(late, compiler_options=collectives.QUICKLY)
    (d_want, _), want = step(sequences, state)
    kept = np.arange(8) >= 5
    kept[6] = False
    spoil = lambda u: np.where(
        kept.reshape(-1, *(1,) * (u.ndim - 2)), u, np.nan
    )
    nan = jax.tree.map(lambda u: np.full_like(u, np.nan), state)
    (d_got, _), got = step(jax.tree.map(spoil, sequences), nan)
    tolerance.assert_close(got, want)
    tail = lambda tree: [u[:, 5:] for u in tree]
    tolerance.assert_close(tail(d_got), tail(d_want))

  def test_on_a_mesh(self):
    if len(jax.devices()) < 8:
      self.skipTest('needs 8 devices')
    sequences, state, reset, mask = operands(4, 8, np.float32)
    run = lambda u, state: ops.mlstm(
        *u, state, reset=reset, mask=mask, chunk_size=4
    )
    step = lambda: differentiated(
        lambda *u: run(*u), compiler_options=collectives.QUICKLY
    )
    want = step()(sequences, state)
    mesh = jax.make_mesh((4, 2), ('data', 'model'), (AxisType.Auto,) * 2)
    with jax.set_mesh(mesh):
      compiled = step().lower(sequences, state).compile()
      tolerance.assert_close(compiled(sequences, state), want, np.float32)
    kinds = {kind for kind, _ in collectives.sizes(compiled.as_text())}
    self.assertNotIn('all-gather', kinds)

  @parameterized.parameters(
      (0, np.zeros((2, 4, 2), np.float32), '`q` and `k` must be .B, T, H, K.'),
      (1, np.zeros((2, 4, 2, 5), np.float32), r'and \(2, 4, 2, 5\)'),
      (2, np.zeros((2, 4, 1, 4), np.float32), '`v` must be .B, T, H, V.'),
      (2, np.zeros((2, 4, 2, 4), np.int32), '`v` must be floating'),
      (3, np.zeros((2, 4), np.float32), '`i` must be .B, T, H.'),
      (5, ops.MLSTMState(*np.zeros((3, 2, 2), np.float32)), '`state.C` must'),
  )
  def test_bad_input_names_the_argument(self, index, value, message):
    sequences, state, _, _ = operands(2, 4, np.float32)
    arguments = [*sequences, state]
    arguments[index] = value
    with self.assertRaisesRegex(ValueError, message):
      ops.mlstm(*arguments)

  def test_options_are_checked(self):
    sequences, state, _, _ = operands(2, 4, np.float32)
    with self.assertRaisesRegex(ValueError, "`forget_gate` must.*got 'tanh'"):
      ops.mlstm(*sequences, state, forget_gate='tanh')
    with self.assertRaisesRegex(ValueError, '`chunk_size` must.*got 3'):
      ops.mlstm(*sequences, state, chunk_size=3)
