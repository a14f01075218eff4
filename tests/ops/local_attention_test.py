"""`local_attention`: against a loop in float64, its window, and its memory."""

import functools

from absl.testing import parameterized
import jax
import jax.numpy as jnp
import numpy as np
from rnnzoo import ops
from tests import collectives
from tests import tolerance

_HEADS, _GROUPS, _SIZE, _VALUES = 4, 2, 3, 5


def loop(q, k, v, cache, reset, mask, scale=None):
  """The definition, one token of one row after the other."""
  keys, values, counts = (np.array(u) for u in cache)
  window, y = keys.shape[1], np.zeros((*q.shape[:3], v.shape[3]))
  scale = scale or q.shape[3] ** -0.5
  for b, t in np.ndindex(*q.shape[:2]):
    if not mask[b, t]:
      continue
    if reset[b, t]:
      keys[b], values[b], counts[b] = 0, 0, 0
    slot = counts[b] % window
    keys[b, slot], values[b, slot] = k[b, t], v[b, t]
    counts[b] += 1
    filled = min(counts[b], window)
    for h in range(q.shape[2]):
      group = h // (q.shape[2] // k.shape[2])
      scores = scale * keys[b, :filled, group] @ q[b, t, h]
      weights = np.exp(scores - scores.max())
      y[b, t, h] = weights @ values[b, :filled, group] / weights.sum()
  return (keys, values, counts), y


def operands(
    batch, time, window, dtype=np.float64, filled=(2, 9, 0), values=_SIZE
):
  """Queries, keys, values, and the cache of `filled` tokens."""
  random = np.random.default_rng(0)
  draw = lambda *shape: random.standard_normal(shape).astype(dtype)
  q = draw(batch, time, _HEADS, _SIZE)
  k, v = (draw(batch, time, _GROUPS, size) for size in (_SIZE, values))
  ring = (draw(batch, window, _GROUPS, size) for size in (_SIZE, values))
  return q, k, v, ops.AttentionCache(*ring, np.array(filled[:batch], np.int32))


def flags(batch, time):
  random = np.random.default_rng(1)
  return dict(
      reset=random.random((batch, time)) < 0.2,
      mask=random.random((batch, time)) < 0.7,
  )


def step_by_step(q, k, v, cache, reset, mask, scale=None):
  def body(cache, token):
    q, k, v, reset, mask = token
    pick = lambda flag, a, b: jax.tree.map(
        lambda u, w: jnp.where(flag.reshape((-1,) + (1,) * (u.ndim - 1)), u, w),
        a, b,
    )
    old = pick(reset & mask, jax.tree.map(jnp.zeros_like, cache), cache)
    new, y = ops.local_attention_step(q, k, v, old, scale=scale)
    return pick(mask, new, cache), jnp.where(mask[:, None, None], y, 0)

  by_time = lambda u: jnp.moveaxis(u, 1, 0)
  cache, y = jax.lax.scan(
      body, cache, tuple(map(by_time, (q, k, v, reset, mask)))
  )
  return cache, jnp.moveaxis(y, 0, 1)


class LocalAttentionTest(parameterized.TestCase):

  @parameterized.parameters(
      (13, 4, 3),  # 5 chunks of 3, in 3 blocks of 2; the ring wraps round.
      (5, 8, 2),  # Shorter than the window.
      (6, 1, 4),  # A token sees itself.
      (1, 4, 4),
      (0, 4, 4),
  )
  def test_matches_loop(self, time, window, chunk_size):
    inputs, given = operands(3, time, window), flags(3, time)
    absent = ~given['mask'][..., None, None]
    with_nan = [np.where(absent, np.nan, u) for u in inputs[:3]]
    want = loop(*inputs, **given)
    with jax.enable_x64(True):
      for form in (
          functools.partial(ops.local_attention, chunk_size=chunk_size),
          step_by_step,
      ):
        cache, y = jax.jit(form)(*with_nan, inputs[3], **given)
        tolerance.assert_close((tuple(cache), y), want)

  def test_values_of_another_size_and_a_scale(self):
    # Here in float32: larger types have the same program for all sizes.
    inputs, given = operands(3, 13, 4, values=_VALUES), flags(3, 13)
    want = loop(*inputs, **given, scale=0.7)
    q, k, v, cache = jax.tree.map(
        lambda u: u if u.dtype == np.int32 else u.astype(np.float32), inputs
    )
    for form in (
        functools.partial(ops.local_attention, chunk_size=3, scale=0.7),
        functools.partial(step_by_step, scale=0.7),
    ):
      got, y = jax.jit(form)(q, k, v, cache, **given)
      tolerance.assert_close((tuple(got), y), want)
    cache = jax.jit(ops.extended_cache)(k, v, cache, **given)
    tolerance.assert_close(tuple(cache), want[0])

  def test_gradients_equal_those_of_steps(self):
    inputs, given = operands(3, 13, 4), flags(3, 13)
    random = np.random.default_rng(2)
    weights = random.standard_normal(inputs[0].shape)

    def gradients(form):
      def loss(q, k, v, key, value):
        cache = inputs[3]._replace(key=key, value=value)
        cache, y = form(q, k, v, cache, **given)
        return (y * weights).sum() + sum(jnp.sin(u).sum() for u in cache[:2])

      run = jax.jit(
          jax.grad(loss, argnums=range(5)),
          compiler_options=collectives.QUICKLY,
      )
      return run(*inputs[:3], *inputs[3][:2])

    with jax.enable_x64(True):
      want = gradients(step_by_step)
      got = gradients(functools.partial(ops.local_attention, chunk_size=3))
      tolerance.assert_close(got, want)
    for gradient in want:
      self.assertGreater(np.abs(gradient).max(), 1e-3)

  @parameterized.parameters(jnp.float32, jnp.bfloat16)
  def test_matches_jax_attention(self, dtype):
    @jax.jit
    def both(q, k, v):
      cache = ops.empty_attention_cache(2, 6, _GROUPS, _SIZE, dtype)
      return ops.local_attention(
          q, k, v, cache, chunk_size=4
      )[1], jax.nn.dot_product_attention(
          q, k, v, is_causal=True, local_window_size=(5, 0)
      )

    got, want = both(*operands(2, 20, 6, dtype)[:3])
    self.assertEqual(got.dtype, dtype)
    tolerance.assert_close(got, want)

  def test_a_nan_reaches_its_window_only(self):
    *inputs, cache = operands(1, 12, 3, np.float32)
    at = np.arange(12)
    reset, mask = at[None] == 8, np.ones((1, 12), bool)
    forms = dict(
        steps=jax.jit(step_by_step),
        chunks=jax.jit(functools.partial(ops.local_attention, chunk_size=2)),
    )
    for which, place, want in (
        (0, 4, at == 4),  # A query belongs to one token.
        (1, 4, (at >= 4) & (at < 7)),
        (2, 7, at == 7),  # The next token starts a sequence.
    ):
      given = [u.copy() for u in inputs]
      given[which][0, place, 0, 0] = np.nan if which else np.inf
      for name, form in forms.items():
        _, y = form(*given, cache, reset=reset, mask=mask)
        np.testing.assert_array_equal(
            np.isnan(y).any((0, 2, 3)), want, f'{name}, {which}'
        )

  def test_memory_grows_with_the_window_only(self):
    window, chunk = 64, 32

    def temporaries(time):
      q, k, v, cache = jax.tree.map(
          lambda u: jax.ShapeDtypeStruct(u.shape, u.dtype),
          operands(1, time, window, np.float32),
      )

      def run(q, k, v, cache, d_y):
        form = lambda *tokens: ops.local_attention(
            *tokens, cache, chunk_size=chunk
        )[1]
        return jax.vjp(form, q, k, v)[1](d_y)

      program = jax.jit(run).lower(q, k, v, cache, q).compile()
      return program.memory_analysis().temp_size_in_bytes

    short, long = temporaries(1024), temporaries(4096)
    self.assertLess(long, 4.2 * short)
    self.assertLess(long, 4 * _HEADS * 4096 * window)  # All weights at once.

  def test_positions(self):
    reset = np.array([[0, 0, 1, 0, 1, 0], [0, 0, 0, 0, 0, 0]], bool)
    mask = np.array([[1, 0, 1, 1, 0, 1], [0, 1, 1, 0, 1, 1]], bool)
    got = ops.sequence_positions(
        jnp.array([5, 2]), 6, reset=reset, mask=mask
    )
    np.testing.assert_array_equal(
        np.where(mask, got, -1), [[5, -1, 0, 1, -1, 2], [-1, 2, 3, -1, 4, 5]]
    )

  def test_bad_input_names_the_argument(self):
    q, k, v, cache = operands(2, 3, 4, np.float32)
    for message, args, options in (
        ('`q` must be', (q[:, :, :3], k, v, cache), {}),
        ('`k` must fit', (q, k[:, 1:], v[:, 1:], cache), {}),
        ('`v` must be', (q, k, v[:, 1:], cache), {}),
        ('`cache.value` must', (q, k, v[..., 1:], cache), {}),
        (
            'cache.key` must be', (q, k, v, cache._replace(key=q)), {},
        ),
        ('`chunk_size` must be', (q, k, v, cache), dict(chunk_size=0)),
        ('`reset` must be', (q, k, v, cache), dict(reset=np.ones((2, 3)))),
    ):
      with self.assertRaisesRegex(ValueError, message):
        ops.local_attention(*args, **options)
