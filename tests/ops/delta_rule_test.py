"""The delta rule and its kin: against loops in float64, decays, NaN, a mesh."""

import functools

from absl.testing import parameterized
import jax
import jax.numpy as jnp
from jax.sharding import AxisType
import numpy as np
from rnnzoo import ops
from rnnzoo.ops import rank_one
from tests import collectives
from tests import tolerance

f32 = np.float32
_SCALE = 0.5
_jit = functools.partial(jax.jit, compiler_options=collectives.QUICKLY)


def loop(q, k, v, a, b, g, S, reset, mask):
  """The definition of the general recurrence, token by token."""

  def step(S, inputs):
    q, k, v, a, b, g, reset, mask = inputs
    beside = lambda flag, u: flag.reshape(flag.shape + (1,) * (u.ndim - 1))
    old = jnp.where(beside(reset & mask, S), 0, S)
    outer = lambda x, y: x[..., :, None] * y[..., None, :]
    found = jnp.einsum('bhkv,bhk->bhv', old, a)
    new = jnp.exp(g)[..., None] * old + outer(b, found) + outer(k, v)
    y = _SCALE * jnp.einsum('bhkv,bhk->bhv', new, q)
    return (
        jnp.where(beside(mask, S), new, S), jnp.where(beside(mask, y), y, 0)
    )

  by_time = lambda u: jnp.moveaxis(u, 1, 0)
  S, y = jax.lax.scan(
      step, S, jax.tree.map(by_time, (q, k, v, a, b, g, reset, mask))
  )
  return S, by_time(y)


def delta_loop(q, k, v, beta, g, S, reset, mask):
  """The delta rule as a special case: it reads the decayed state."""
  beta = beta[..., None]
  g = jnp.broadcast_to(0. if g is None else g[..., None], k.shape)
  a = -beta * jnp.exp(g) * k
  return loop(q, beta * k, v, a, k, g, S, reset, mask)


def delta_rule(q, k, v, beta, g, S, reset, mask):
  return ops.delta_rule(
      q, k, v, beta, S, log_decay=g, scale=_SCALE, reset=reset, mask=mask,
      chunk_size=4,
  )


def dplr_scan(q, k, v, a, b, g, S, reset, mask):
  return ops.dplr_scan(
      q, k, v, a, b, S, log_decay=g, scale=_SCALE, reset=reset, mask=mask,
      chunk_size=4,
  )


def delta_scan(q, k, v, a, g, S, reset, mask):
  """`dplr_scan` without `b`: what a token reads is what it corrects."""
  return dplr_scan(q, k, v, a, None, g, S, reset, mask)


def delta_scan_loop(q, k, v, a, g, S, reset, mask):
  return loop(q, k, v, a, -k, g, S, reset, mask)


_FORMS = dict(
    plain=(delta_rule, delta_loop),
    gated=(delta_rule, delta_loop),
    dplr=(dplr_scan, loop),
    correction=(delta_scan, delta_scan_loop),
)


def operands(name, batch, time, heads=2):
  """Returns the operands of a form in float64, and its flags."""
  random = np.random.default_rng(0)
  normal = lambda *shape: random.standard_normal(shape)
  shape, keys = (batch, time, heads), 4
  q, k, v = normal(*shape, keys), normal(*shape, keys), normal(*shape, 3)
  k /= np.linalg.norm(k, axis=-1, keepdims=True)
  S, g = normal(batch, heads, keys, 3), -np.abs(normal(*shape, keys))
  # Some that no inverse of has a place among the floating numbers.
  g[:, 2::5] *= 400
  g[-1, 1::4, :, :2] = -np.inf
  g[0, ::3] = 0
  if name in ('dplr', 'correction'):
    between = tuple(normal(*shape, keys) / 2 for _ in range(2)) + (g,)
    between = between[name == 'correction':]
  else:
    between = 2 * random.random(shape), None if name == 'plain' else g[..., 0]
  flags = random.random((2, batch, time)) < np.array([0.3, 0.7])[:, None, None]
  return (q, k, v, *between, S), tuple(flags)


def value_and_pullback(run, arguments, flags):
  """The results of `run`, and its gradients for fixed cotangents."""

  def both(arguments):
    given = [u for u in arguments if u is not None]

    def filled(*given):
      given = iter(given)
      return run(*(u if u is None else next(given) for u in arguments), *flags)

    out, pull = jax.vjp(filled, *given)
    return out, pull(jax.tree.map(jnp.cos, out))

  return _jit(both)(arguments)


class DeltaRuleTest(parameterized.TestCase):

  @parameterized.product(name=list(_FORMS), time=(1, 11))
  def test_matches_loop_with_all_gradients(self, name, time):
    run, definition = _FORMS[name]
    arguments, (reset, mask) = operands(name, 2, time)
    flags, given = (reset, mask), (reset, mask)
    if time == 1:
      flags, given = (np.zeros_like(reset), np.ones_like(mask)), (None, None)
    with jax.enable_x64(True):
      want = value_and_pullback(definition, arguments, flags)
      got = value_and_pullback(run, arguments, given)
    tolerance.assert_close(got, want)

  @parameterized.parameters('gated', 'dplr', 'correction')
  def test_steps_match_loop(self, name):
    (q, k, v, *between, g, S), _ = operands(name, 2, 1)
    step = ops.delta_rule_step if name == 'gated' else ops.dplr_step
    flags = np.zeros((2, 1), bool), np.ones((2, 1), bool)
    with jax.enable_x64(True):
      want, y = _FORMS[name][1](q, k, v, *between, g, S, *flags)
      q, k, v, *between, g = (u[:, 0] for u in (q, k, v, *between, g))
      if name == 'correction':
        between = *between, None
      got = step(q, k, v, *between, S, log_decay=g, scale=_SCALE)
      tolerance.assert_close(got, (want, y[:, 0]))

  def test_products_are_steps_of_the_delta_rule(self):
    """Golden numbers hold it to a definition; here, to its flags and a step."""
    arguments, (reset, mask) = operands('gated', 2, 6)
    q, k, v, beta, g, S = jax.tree.map(f32, arguments)
    pairs = lambda u: u.reshape(2, 3, 2, *u.shape[2:])
    k, v, beta, q, g = *map(pairs, (k, v, beta)), q[:, :3], g[:, :3]
    reset, mask = reset[:, :3], mask[:, :3]

    def both(q, k, v, beta, g, S):
      state, ys = S, []
      for t in range(3):
        here, old = mask[:, t, None, None, None], state
        state = jnp.where((reset & mask)[:, t, None, None, None], 0, state)
        state, y = ops.delta_product_step(
            q[:, t], k[:, t], v[:, t], beta[:, t], state, log_decay=g[:, t],
            scale=_SCALE,
        )
        state = jnp.where(here, state, old)
        ys.append(jnp.where(here[..., 0], y, 0))
      return (state, jnp.stack(ys, 1)), ops.delta_product(
          q, k, v, beta, S, log_decay=g, scale=_SCALE, reset=reset, mask=mask,
          chunk_size=4,
      )

    want, got = _jit(both)(q, k, v, beta, g, S)
    tolerance.assert_close(got, want)
    S, y = ops.delta_product(q[:, :0], k[:, :0], v[:, :0], beta[:, :0])
    self.assertEqual((S.shape, y.shape), ((2, 2, 4, 3), (2, 0, 2, 3)))

  @parameterized.parameters(
      (0, np.zeros((2, 3)), r'`q` must be \[B, T, H, K\]'),
      (1, np.zeros((2, 4, 0, 2, 4)), '`k` must be .* with N at least 1, got'),
      (1, np.zeros((2, 4, 2, 4)), r'`k` must be \[B, T, N, H, K\] with N'),
      (2, np.zeros((2, 4, 1, 2, 3)), r'`v` must be \[B, T, N, H, V\]'),
      (3, np.zeros((2, 4, 2)), r'`beta` must be \[B, T, N, H\]'),
  )
  def test_bad_input_of_products(self, index, value, message):
    arguments = [
        np.zeros(shape) for shape in (
            (2, 4, 2, 4), (2, 4, 2, 2, 4), (2, 4, 2, 2, 3), (2, 4, 2, 2)
        )
    ]
    arguments[index] = value
    with self.assertRaisesRegex(ValueError, message):
      ops.delta_product(*arguments)

  def test_no_tokens(self):
    for name, (run, _) in _FORMS.items():
      arguments, flags = operands(name, 2, 0)
      S, y = run(*arguments, *flags)
      np.testing.assert_array_equal(S, f32(arguments[-1]))
      self.assertEqual(y.shape, (2, 0, 2, 3))

  def test_repeated_keys_keep_precision(self):
    # Powers of the matrix of one chunk of these are as large as 1e12.
    time = 32
    k = jnp.ones((1, time, 1, 1))
    v = f32(np.random.default_rng(0).standard_normal((1, time, 1, 1)))
    S, y = _jit(functools.partial(ops.delta_rule, chunk_size=time))(
        k, k, v, 1.75 * k[..., 0]
    )
    want = [0.0]
    for u in np.float64(v).ravel():
      want.append(want[-1] + 1.75 * (u - want[-1]))
    tolerance.assert_close(jnp.append(y, S), np.array(want[1:] + want[-1:]))

  @parameterized.parameters('gated', 'dplr')
  def test_nan_before_a_reset_or_in_padding_is_contained(self, name):
    run, _ = _FORMS[name]
    arguments, _ = operands(name, 1, 8)
    arguments = jax.tree.map(f32, arguments)
    time = np.arange(8)
    flags = time[None] == 3, time[None] != 5
    behind = time >= 3

    def loss(*arguments):
      S, y = run(*arguments, *flags)
      y = y[:, 3:]
      return jnp.sin(y).sum() + jnp.sin(S).sum(), (S, y)

    step = _jit(
        jax.value_and_grad(loss, range(len(arguments)), has_aux=True)
    )
    (_, want), d_want = step(*arguments)
    good = (behind & flags[1][0]).reshape(8, 1, 1)
    spoil = lambda u: np.where(good if u.ndim == 4 else good[..., 0], u, np.nan)
    *sequences, S = arguments
    nan = np.full_like(S, np.nan)
    (_, got), d_got = step(*(f32(spoil(u)) for u in sequences), nan)
    tolerance.assert_close(got, want)
    for g, w in zip(d_got[:-1], d_want[:-1]):
      tolerance.assert_close(g[:, 3:], w[:, 3:])
    np.testing.assert_array_equal(d_got[-1], 0)

  def test_nan_reaches_the_rest_of_its_sequence_only(self):
    arguments, _ = operands('gated', 2, 8)
    q, *rest = jax.tree.map(f32, arguments)
    q[0, 3] = np.nan
    S, y = _jit(lambda *u: delta_rule(*u, None, None))(q, *rest)
    np.testing.assert_array_equal(
        np.isnan(y).all(axis=(2, 3)), [np.arange(8) >= 3, np.zeros(8, bool)]
    )
    self.assertTrue(np.isnan(S[0]).all() and np.isfinite(S[1]).all())

  def test_inverse_has_derivatives_of_any_order(self):
    m = np.tril(np.random.default_rng(0).standard_normal((3, 4, 4)), k=-1)
    direct = lambda m: jnp.linalg.inv(jnp.eye(4) - m)

    def derivatives(inverse, m):  # Up to the third along a line.
      line = lambda t: jnp.sin(inverse(m * jnp.exp(t))).sum()
      slope = jax.grad(line)
      return inverse(m), slope(0.1), jax.jacfwd(jax.grad(slope))(0.1)

    with jax.enable_x64(True):
      run = jax.jit(derivatives, static_argnums=0)
      got = run(rank_one.unit_lower_inverse, m)
      tolerance.assert_close(got, run(direct, m))

  def test_devices_exchange_no_rows_or_heads(self):
    if len(jax.devices()) < 8:
      self.skipTest('needs 8 devices')
    arguments, flags = operands('gated', 4, 8)
    arguments = jax.tree.map(f32, arguments)

    def loss(*arguments):
      S, y = delta_rule(*arguments, *flags)
      return jnp.sin(y).sum() + jnp.sin(S).sum()

    step = lambda: _jit(jax.value_and_grad(loss, range(6)))
    want = step()(*arguments)
    mesh = jax.make_mesh((4, 2), ('data', 'model'), (AxisType.Auto,) * 2)
    place = lambda *axes: jax.NamedSharding(
        mesh, jax.sharding.PartitionSpec(*axes)
    )
    split = [place('data', None, 'model')] * 5 + [place('data', 'model')]
    with jax.set_mesh(mesh):
      placed = jax.device_put(arguments, tuple(split))
      compiled = step().lower(*placed).compile()
      got = compiled(*placed)
    tolerance.assert_close(got, want)
    moved = collectives.sizes(compiled.as_text(), without=('all-reduce',))
    self.assertEqual(moved, [])

  @parameterized.parameters(
      ('gated', 0, np.zeros((2, 3)), r'`q` must be \[B, T, H, K\].*\(2, 3\)'),
      ('gated', 1, np.zeros((2, 4, 2, 3)), r'`k` must be \[B, T, H, K\] = \(2'),
      ('gated', 2, np.zeros((2, 4, 1, 3)), r'`v` must be \[B, T, H, V\]'),
      ('gated', 3, np.zeros((2, 4)), r'`beta` must be \[B, T, H\]'),
      ('gated', 3, np.zeros((2, 4, 2), int), '`beta` must be floating'),
      ('gated', 4, np.zeros((2, 4, 2, 4)), r'`log_decay` must be \[B, T, H\] '),
      ('gated', 5, np.zeros((2, 2, 3, 4)), r'`S0` must be \[B, H, K, V\] = '),
      ('dplr', 4, np.zeros((2, 4, 2)), r'`b` must be \[B, T, H, K\] = '),
      ('dplr', 5, np.zeros((2, 4, 2)), r'`log_decay` must be \[B, T, H, K\] '),
  )
  def test_bad_input_names_the_argument(self, name, index, value, message):
    arguments, flags = operands(name, 2, 4)
    arguments = list(arguments)
    arguments[index] = value
    with self.assertRaisesRegex(ValueError, message):
      _FORMS[name][0](*arguments, *flags)

  def test_flags_and_chunks_are_checked(self):
    arguments, (reset, _) = operands('gated', 2, 4)
    with self.assertRaisesRegex(ValueError, '`reset` must be bool'):
      delta_rule(*arguments, reset[:, :2], None)
    with self.assertRaisesRegex(ValueError, 'power of two, got 0'):
      ops.delta_rule(*arguments[:4], chunk_size=0)
