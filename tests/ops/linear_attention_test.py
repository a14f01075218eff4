"""`linear_attention`: against loops in float64, strong decays, NaN, a mesh."""

import functools

from absl.testing import parameterized
import jax
from jax import export
from jax.extend import core
import jax.numpy as jnp
from jax.sharding import AxisType
import numpy as np
from rnnzoo import ops
from rnnzoo.layers import base
from tests import collectives
from tests import tolerance

f32, f64 = np.float32, np.float64
_HEADS, _KEYS, _VALUES = 4, 3, 2


def operands(kind, groups, bonus=False, batch=2, time=11):
  """Random `q, k, v, S0, log_decay, bonus`, float64, and flags."""
  random = np.random.default_rng(0)
  normal = lambda *shape: random.standard_normal(shape)
  shape = (batch, time)
  decays = {
      'none': None, 'constant': (), 'head': shape, 'feature': shape
  }[kind]
  g = None
  if decays is not None:
    features = (_KEYS,) if kind == 'feature' else ()
    g = -np.exp(normal(*decays, _HEADS, *features))
  flags = dict(
      reset=random.random(shape) < 0.3, mask=random.random(shape) < 0.7
  )
  arguments = (
      normal(*shape, groups, _KEYS),
      normal(*shape, groups, _KEYS),
      normal(*shape, _HEADS, _VALUES),
      normal(batch, _HEADS, _KEYS, _VALUES),
      g,
      normal(_HEADS, _KEYS) if bonus else None,
  )
  return arguments, flags


def loop(q, k, v, S, g, bonus, reset=None, mask=None, scale=1.0):
  """The definition, one token of one head of one row after the other."""
  S, y = S.copy(), np.zeros(v.shape)
  shared = v.shape[2] // q.shape[2]
  if g is not None:
    g = np.broadcast_to(g[..., None] if g.ndim < 4 else g, S.shape[:1]
                        + v.shape[1:3] + S.shape[2:3])
  for i, t, h in np.ndindex(*v.shape[:3]):
    if mask is not None and not mask[i, t]:
      continue
    if reset is not None and reset[i, t]:
      S[i, h] = 0
    before = S[i, h].copy()
    if g is not None:
      S[i, h] *= np.exp(g[i, t, h])[:, None]
    new = np.outer(k[i, t, h // shared], v[i, t, h])
    S[i, h] += new
    read = S[i, h] if bonus is None else before + bonus[h][:, None] * new
    y[i, t, h] = scale * q[i, t, h // shared] @ read
  return S, y


def scanned(q, k, v, S, g, bonus, reset=None, mask=None, scale=1.0):
  """`linear_attention_step`, one token after the other."""
  constant = g is None or g.ndim == 1

  def body(S, token):
    q, k, v, g_t, reset, mask = token
    old = S if reset is None else base.select(reset, jnp.zeros_like(S), S)
    new, y = ops.linear_attention_step(
        q, k, v, old, log_decay=g if constant else g_t, bonus=bonus,
        scale=scale,
    )
    if mask is None:
      return new, y
    return base.select(mask, new, S), base.masked(y, mask)

  if reset is not None and mask is not None:
    reset = reset & mask
  by_time = lambda u: jnp.moveaxis(u, 1, 0)
  tokens = q, k, v, None if constant else g, reset, mask
  S, y = jax.lax.scan(body, S, jax.tree.map(by_time, tokens))
  return S, jnp.moveaxis(y, 0, 1)


def chunked(q, k, v, S, g, bonus, chunk_size=4, **options):
  return ops.linear_attention(
      q, k, v, S, log_decay=g, bonus=bonus, chunk_size=chunk_size, **options
  )


def with_gradients(function, arguments, **options):
  """Values, and the gradients of their sum in every given operand."""

  def loss(arguments):
    S, y = function(*arguments, **options)
    return jnp.sin(S).sum() + jnp.sin(y).sum(), (S, y)

  (_, results), gradients = jax.jit(
      jax.value_and_grad(loss, has_aux=True),
      compiler_options=collectives.QUICKLY,
  )(arguments)
  return results, gradients


_KINDS = (
    ('constant', 2, True), ('head', 1, False), ('feature', 4, True)
)


class LinearAttentionTest(parameterized.TestCase):

  @parameterized.parameters(
      ('none', 2, False, True),
      ('constant', 2, True, True),
      ('constant', 2, False, False),
      ('head', 1, False, True),
      ('head', 4, True, False),
      ('feature', 4, False, False),
      ('feature', 4, True, True),
  )
  def test_matches_loops(self, kind, groups, bonus, flagged):
    arguments, flags = operands(kind, groups, bonus)
    options = dict(scale=0.5, **(flags if flagged else {}))
    with jax.enable_x64(True):
      got = with_gradients(chunked, arguments, **options)
      want = with_gradients(scanned, arguments, **options)
    tolerance.assert_close(got, want)
    tolerance.assert_close(got[0], loop(*arguments, **options))

  @parameterized.product(kind=('none', 'constant', 'feature'), time=(0, 1))
  def test_short_sequences(self, kind, time):
    arguments, _ = operands(kind, _HEADS, time=time)
    with jax.enable_x64(True):
      tolerance.assert_close(chunked(*arguments), loop(*arguments))

  @parameterized.parameters(*_KINDS)
  def test_very_strong_decays(self, kind, groups, bonus):
    (q, k, v, S, g, u), _ = operands(kind, groups, bonus)
    random = np.random.default_rng(1)
    g = random.choice([0, -1e-7, -1, -30, -1e4, -1e30, -np.inf], g.shape)
    arguments = q, k, v, S, g, u
    results, gradients = with_gradients(chunked, jax.tree.map(f32, arguments))
    tolerance.assert_close(results, loop(*arguments), f32)
    for gradient in jax.tree.leaves(gradients):
      self.assertTrue(np.isfinite(gradient).all())

  @parameterized.parameters(*_KINDS)
  def test_nan_before_a_reset_or_in_padding_is_contained(
      self, kind, groups, bonus
  ):
    arguments, _ = operands(kind, groups, bonus, batch=1)
    arguments = jax.tree.map(f32, arguments)
    place = np.arange(11)
    flags = dict(reset=place[None] == 6, mask=place[None] != 8)
    behind = place >= 6

    @jax.jit
    @functools.partial(jax.value_and_grad, has_aux=True)
    def run(arguments):
      S, y = chunked(*arguments, **flags)
      return S.sum() + y[:, 6:].sum(), (S, y)

    def spoil(u):
      if u.shape[:2] == (1, 11):  # A sequence.
        there = (behind & flags['mask'][0]).reshape((-1,) + (1,) * (u.ndim - 2))
        return f32(np.where(there, u, np.nan))
      return np.full_like(u, np.nan) if u.ndim == 4 else u

    (_, want), d_want = run(arguments)
    (_, got), d_got = run(jax.tree.map(spoil, arguments))
    np.testing.assert_array_equal(got[0], want[0])
    np.testing.assert_array_equal(got[1][:, 6:], want[1][:, 6:])
    self.assertTrue(np.isnan(got[1][:, :6]).all())
    for d, w in zip(d_got[:3], d_want[:3]):
      np.testing.assert_array_equal(d[:, 6:], w[:, 6:])
      np.testing.assert_array_equal(d[:, 8], 0)

  def test_states_are_float32_at_least(self):
    arguments, _ = operands('head', 2, time=4)
    half = [u if u is None else jnp.bfloat16(u) for u in arguments]
    S, y = chunked(*half)
    self.assertEqual((S.dtype, y.dtype), (jnp.float32, jnp.bfloat16))
    wide = [u if u is None else f64(u) for u in half]
    tolerance.assert_close((S, y), loop(*wide), jnp.bfloat16)
    S, y = ops.linear_attention_step(
        *(u[:, 0] for u in half[:3]), S, log_decay=half[4][:, 0]
    )
    self.assertEqual((S.dtype, y.dtype), (jnp.float32, jnp.bfloat16))

  def test_shared_keys_are_not_repeated_in_memory(self):
    features, heads, chunk = 64, 8, 4
    shared = np.ones((1, 16, 1, features), f32)
    v = np.ones((1, 16, heads, 1), f32)
    run = lambda q, k, v, g: ops.linear_attention(
        q, k, v, log_decay=g, chunk_size=chunk
    )
    jaxpr = jax.make_jaxpr(run)(shared, shared, v, v[..., 0])
    largest = max(_sizes(jaxpr.jaxpr))
    self.assertLess(largest, chunk * heads * features)

  def test_no_exponentials_without_decays(self):
    arguments, flags = operands('none', 2)
    self.assertNotIn(
        ' exp ', str(jax.make_jaxpr(lambda: chunked(*arguments, **flags))())
    )

  @parameterized.named_parameters(
      ('constant', 'constant', 4, (2, 2, 2)),
      ('shared_by_all', 'head', 1, (2, 4, 1)),
      ('more_devices_than_groups', 'head', 2, (2, 4, 1)),
      ('features', 'feature', 4, (2, 2, 2)),
  )
  def test_on_a_mesh(self, kind, groups, sizes):
    if len(jax.devices()) < 8:
      self.skipTest('needs 8 devices')
    arguments, flags = operands(kind, groups, time=8)
    arguments = jax.tree.map(f32, arguments)
    want = with_gradients(chunked, arguments, **flags)
    names = 'data', 'model', 'sequence'
    mesh = jax.make_mesh(sizes, names, (AxisType.Auto,) * 3)
    with jax.set_mesh(mesh):
      got = with_gradients(chunked, arguments, **flags)
    tolerance.assert_close(got, want, f32)
    y = got[0][1]
    rows, _, heads, _ = y.sharding.shard_shape(y.shape)
    split = sizes[1] if groups in (1, _HEADS) else 1
    self.assertEqual((rows, heads), (2 // sizes[0], _HEADS // split))

  @parameterized.parameters(
      (0, np.zeros((2, 11, 3, 3), f32), r'G a divisor of 4, got \(2, 11, 3,'),
      (0, np.zeros((2, 10, 4, 3), f32), r'`q` must be \[B, T, G, K\]'),
      (1, np.zeros((2, 11, 4, 2), f32), '`k` must have the shape of `q`'),
      (2, np.zeros((2, 11, 4), f32), r'`v` must be \[B, T, H, V\]'),
      (2, np.zeros((2, 11, 4, 2), np.int32), '`v` must be floating'),
      (3, np.zeros((2, 4, 2, 3), f32), r'`S0` must be \[B, H, K, V\]'),
      (4, np.zeros((2, 11), f32), r'`log_decay` must be \(4,\), \(2, 11, 4\)'),
      (5, np.zeros((3, 4), f32), r'`bonus` must be \[H, K\] = \(4, 3\), got'),
  )
  def test_bad_input_names_the_argument(self, index, value, message):
    arguments = list(operands('head', 4)[0])
    arguments[index] = value
    with self.assertRaisesRegex(ValueError, message):
      chunked(*arguments)

  def test_decays_per_feature_need_keys_per_head(self):
    (q, k, v, S, _, _), _ = operands('none', 2)
    *_, g, _ = operands('feature', 4)[0]
    with self.assertRaisesRegex(ValueError, '`q` must have all heads'):
      chunked(q, k, v, S, g, None)

  def test_export_with_symbolic_batch_size(self):
    (q, k, v, S, g, _), flags = operands('head', 2, batch=3)
    run = jax.jit(lambda *u, **flags: chunked(*u, None, **flags))
    arguments = [u.astype(f32) for u in (q, k, v, S, g)]
    batch, = export.symbolic_shape('batch')
    spec = lambda u: jax.ShapeDtypeStruct((batch, *u.shape[1:]), u.dtype)
    program = export.export(run)(
        *map(spec, arguments), **jax.tree.map(spec, flags)
    )
    tolerance.assert_close(
        program.call(*arguments, **flags), run(*arguments, **flags)
    )

  def test_chunk_size_must_be_a_power_of_two(self):
    with self.assertRaisesRegex(ValueError, '`chunk_size` must be a power of'):
      chunked(*operands('none', 2)[0], chunk_size=6)


def _sizes(jaxpr):
  """The sizes of all intermediate arrays, in loops as well."""
  for equation in jaxpr.eqns:
    for u in equation.outvars:
      yield u.aval.size
    for inner in core.jaxprs_in_params(equation.params):
      yield from _sizes(inner)
