"""Softmax attention of each token to itself and to those shortly before it."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from rnnzoo import mesh
from rnnzoo.ops import checking


class AttentionCache(NamedTuple):
  """The last tokens of a sequence, in a ring: that at `p` is in slot `p % W`.

  Attributes:
    key: `[B, W, G, K]`.
    value: `[B, W, G, K]`.
    count: Tokens of the sequence so far `[B]`, int32: slots from there on are
      empty. Beyond `2**31` its bits are those of an unsigned integer; at
      `2**32` tokens the sequence starts anew.
  """

  key: jax.Array
  value: jax.Array
  count: jax.Array


def empty_attention_cache(
    batch: int, window: int, groups: int, features: int, dtype=jnp.float32
) -> AttentionCache:
  """Returns the cache of no tokens: zeros."""
  # An array each: one buffer cannot be donated for two leaves.
  key, value = (
      jnp.zeros((batch, window, groups, features), dtype) for _ in range(2)
  )
  return AttentionCache(key, value, jnp.zeros((batch,), jnp.int32))


def sequence_positions(
    count: jax.Array,
    time: int,
    *,
    reset: jax.Array | None = None,
    mask: jax.Array | None = None,
) -> jax.Array:
  """How many tokens of its own sequence came before each token.

  >>> import jax.numpy as jnp
  >>> reset = jnp.array([[False, False, True, False]])
  >>> sequence_positions(jnp.array([7]), 4, reset=reset)
  Array([[7, 8, 0, 1]], dtype=int32)

  Args:
    count: Tokens of the sequence that goes on `[B]`, int32; the bits of an
      unsigned integer, as those of the result are.
    time: `T`.
    reset: Booleans `[B, T]`, `True` where a new sequence starts.
    mask: Booleans `[B, T]`; a `False` token is absent.

  Returns:
    `[B, T]`, int32; of absent tokens meaningless.
  """
  index = jnp.arange(time, dtype=jnp.int32)[None]
  if mask is not None:
    index = jnp.cumsum(mask, axis=1, dtype=jnp.int32) - 1
    reset = None if reset is None else reset & mask
  going_on = index + count[:, None]
  if reset is None:
    return going_on
  start = jax.lax.cummax(jnp.where(reset, index, -1), axis=1)
  return jnp.where(start < 0, going_on, index - start)


def local_attention(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    cache: AttentionCache,
    *,
    reset: jax.Array | None = None,
    mask: jax.Array | None = None,
    chunk_size: int = 256,
) -> tuple[AttentionCache, jax.Array]:
  r"""Averages the values of the last `W` tokens of each token's sequence.

  .. math::
      y_t = \frac{\sum_{t - W < j \le t} e^{\langle q_t, k_j \rangle / \sqrt K}
                  v_j}{\sum_{t - W < j \le t} e^{\langle q_t, k_j \rangle /
                  \sqrt K}}

  Queries go in chunks; each looks at its own tokens and at `W - 1` before, so
  that costs grow as `T (W + chunk_size)`. The weights of one chunk at a time
  are in memory, in the backward pass too, and no tokens are there twice.

  Under `jax.set_mesh` every device computes its own rows, groups and stretch of
  time; devices along time tell each other the last `W` keys and values of
  theirs.

  A token that sees a key or a value that is not finite, or whose own query is
  not, has a NaN for its output, and no other token has.

  >>> import jax.numpy as jnp
  >>> cache = empty_attention_cache(1, 2, 1, 1)            # W = 2
  >>> q, v = jnp.zeros((1, 4, 1, 1)), jnp.arange(4.).reshape(1, 4, 1, 1)
  >>> cache, y = local_attention(q, q, v, cache)
  >>> y[0, :, 0, 0]
  Array([0. , 0.5, 1.5, 2.5], dtype=float32)

  Args:
    q: Queries `[B, T, H, K]`.
    k: Keys `[B, T, G, K]`, `G` dividing `H`: groups of heads share them.
    v: Values `[B, T, G, K]`.
    cache: What earlier tokens left, in the dtype of `k`.
    reset: Booleans `[B, T]`, `True` where a new sequence starts: it sees no
      token before, not even through a NaN.
    mask: Booleans `[B, T]`; a `False` token is absent: its output is 0, and it
      takes no place in anyone's window.
    chunk_size: Queries in a chunk.

  Returns:
    `(cache, y)`: the cache with the new tokens, and `[B, T, H, K]`, in the
    dtype of `q`; weights are float32 at least.

  Raises:
    ValueError: If sizes or dtypes disagree.
  """
  _check(q, k, v, cache, chunk_size)
  reset, mask = checking.flags(reset, mask, q.shape)
  if not q.shape[0] * q.shape[1]:
    return cache, jnp.zeros_like(q)
  count = _count_after(cache.count, q.shape[1], reset, mask)
  cache = cache._replace(count=_small(cache.count, cache.key.shape[1]))
  tokens, ring = 'btdk', 'bkdk'
  key, value, y = mesh.run_per_device(
      functools.partial(_run, chunk_size=chunk_size),
      k,  # Heads can be split where their keys can.
      (q, k, v, *cache, reset, mask),
      (tokens,) * 3 + (ring,) * 2 + ('b', 'bt', 'bt'),
      (ring, ring, tokens),
  )
  return AttentionCache(key, value, count), y


def local_attention_step(
    q: jax.Array, k: jax.Array, v: jax.Array, cache: AttentionCache
) -> tuple[AttentionCache, jax.Array]:
  """`local_attention` for one token: operands without the axis `T`."""
  _check(q[:, None], k[:, None], v[:, None], cache, 1)
  cache = AttentionCache(*map(jnp.asarray, cache))
  window = cache.key.shape[1]
  rows, count = jnp.arange(q.shape[0]), _small(cache.count, window)
  slot = count % window
  cache = AttentionCache(
      cache.key.at[rows, slot].set(k),
      cache.value.at[rows, slot].set(v),
      cache.count + 1,
  )
  seen = jnp.arange(window) <= count[:, None]
  keys, values, bad = _finite(cache.key, cache.value)
  y = _attend(q[:, None], keys, values, seen[:, None], bad)
  return cache, y[:, 0]


def _run(
    q, k, v, past_k, past_v, past_count, reset, mask, *, segments, chunk_size
):
  if mask is not None:
    # The tokens that are there move to the front, keeping their order.
    order = jnp.argsort(~mask, axis=1, stable=True)
    q, k, v = (
        _take(jnp.where(mask[..., None, None], u, 0), order) for u in (q, k, v)
    )
    reset = None if reset is None else _take(reset & mask, order)
  cache = AttentionCache(past_k, past_v, past_count)
  number = jnp.full_like(past_count, q.shape[1])
  if mask is not None:
    number = mask.sum(1, dtype=number.dtype)
  cache = _entering(segments, cache, k, v, reset, number)
  y = _by_chunks(q, k, v, cache, reset, chunk_size)
  if mask is not None:
    y = _take(y, jnp.argsort(order, axis=1))
    y = jnp.where(mask[..., None, None], y, 0)
  rings = _rings(cache, k, v, reset, number)
  if segments is not None:
    wide = jnp.promote_types(jnp.float32, k.dtype)
    rings = (
        segments.from_last(u.astype(wide)).astype(u.dtype) for u in rings
    )
  return *rings, y


def _entering(segments, cache, k, v, reset, number):
  """Returns the cache that enters the stretch of time of this device.

  Args:
    segments: From `mesh.run_per_device`; if `None`, it is the given one.
    cache: The one before all of them.
    k: Keys `[B, T, G, K]` of this stretch, those that are there in front.
    v: Values, likewise.
    reset: `[B, T]` or `None`, likewise.
    number: How many of the T tokens there are `[B]`.
  """
  if segments is None:
    return cache
  window, dtype = cache.key.shape[1], k.dtype
  width = min(window, k.shape[1])
  latest = jnp.maximum(number[:, None] - width + jnp.arange(width), 0)
  # Gradients are added up on the way back: not in less than float32.
  wide = jnp.promote_types(jnp.float32, dtype)
  tails = [_take(u, latest).astype(wide) for u in (k, v)]
  tails, numbers, (sinces, starts) = segments.gather(
      (tails, number, _since_reset(reset, number))
  )
  here = segments.position()
  count, begun = cache.count, jnp.zeros_like(starts[0])
  for i in range(segments.size):
    earlier = i < here
    after = jnp.where(starts[i], sinces[i], count + numbers[i])
    count = jnp.where(earlier, after, count)
    begun |= earlier & starts[i]
  # Among all tokens before this stretch, which of them a slot is to have.
  numbers = jnp.where(jnp.arange(segments.size)[:, None] < here, numbers, 0)
  ends = jnp.cumsum(numbers, axis=0)
  position, back = _latest(count, window)
  index = ends[-1][:, None] - 1 - back
  new = (position >= 0) & (index >= 0)
  stretch = (ends[..., None] <= index).sum(0)
  stretch = jnp.minimum(stretch, segments.size - 1)
  end = jnp.take_along_axis(ends.T, stretch, axis=1)
  place = stretch * width + width - (end - index)

  def ring(old, tail):
    old = jnp.where(begun[:, None, None, None], 0, old)
    tail = jnp.moveaxis(tail, 0, 1)
    tail = tail.reshape(old.shape[0], -1, *old.shape[2:])
    tail = _take(tail.astype(dtype), jnp.maximum(place, 0))
    return jnp.where(new[..., None, None], tail, old)

  return AttentionCache(*map(ring, cache[:2], tails), count)


def _by_chunks(q, k, v, cache, reset, chunk_size):
  """The outputs `[B, T, H, K]`."""
  (batch, time), window = q.shape[:2], cache.key.shape[1]
  length = min(chunk_size, time)
  # Chunks between two looks at the cache: tokens of about one window.
  chunks = -(-min(window, time) // length)
  stretches = -(-time // (chunks * length))
  padding = stretches * chunks * length - time

  # Zeros in most programs, which XLA would look through, one by one, for what
  # is not finite, while it compiles.
  cache = AttentionCache(*jax.lax.optimization_barrier(tuple(cache)))
  # The oldest token in the ring is in nobody's window any more.
  ago = jnp.arange(1, window)
  slots = (cache.count[:, None] + ago) % window
  before = jnp.where(ago >= window - cache.count[:, None], 0, -1)
  sequence = jnp.zeros_like(before, shape=(batch, time))
  if reset is not None:
    sequence = jnp.cumsum(reset, axis=1, dtype=sequence.dtype)
  past = (*_finite(_take(cache.key, slots), _take(cache.value, slots)), before)
  new = (*_finite(k, v), sequence)

  def split(u):  # [B, T, ...] -> [stretches, B, chunks * Q, ...]
    u = jnp.pad(u, ((0, 0), (0, padding)) + ((0, 0),) * (u.ndim - 2))
    u = u.reshape(batch, stretches, -1, *u.shape[2:])
    return jnp.moveaxis(u, 1, 0)

  gap = window - 1 + jnp.arange(length)[:, None] - jnp.arange(
      window - 1 + length
  )
  near = (gap >= 0) & (gap < window)

  def one_stretch(past, inputs):
    q, new = inputs
    tokens = jax.tree.map(lambda *u: jnp.concatenate(u, 1), past, new)

    def one_chunk(_, start):
      cut = lambda u, size: jax.lax.dynamic_slice_in_dim(u, start, size, 1)
      k, v, bad, sequence = jax.tree.map(
          lambda u: cut(u, window - 1 + length), tokens
      )
      own = sequence[:, window - 1 :, None]
      seen = near & (own == sequence[:, None])
      return None, _attend(cut(q, length), k, v, seen, bad)

    _, y = jax.lax.scan(
        jax.checkpoint(one_chunk, prevent_cse=False),
        None,
        jnp.arange(chunks) * length,
    )
    last = jax.tree.map(lambda u: u[:, chunks * length :], tokens)
    return last, y

  leaves, structure = jax.tree.flatten((past, jax.tree.map(split, (q, new))))
  _, y = jax.lax.scan(
      jax.checkpoint(one_stretch, prevent_cse=False),
      *jax.tree.unflatten(structure, mesh.same_varying(*leaves)),
  )
  # [stretches, chunks, B, Q, H, K]
  y = jnp.moveaxis(y, 2, 0).reshape(batch, -1, *q.shape[2:])
  return y[:, :time]


def _attend(q, k, v, seen, bad):
  """What queries `[B, Q, H, K]` see of `[B, S, G, K]`: `seen` `[B, Q, S]`."""
  good = jnp.isfinite(q)
  spoilt = (seen & bad[:, None]).any(-1) | ~good.all((-1, -2))
  q = jnp.where(good, q, 0)
  if q.dtype == jnp.float64:
    y = _in_float64(q, k, v, seen)
  elif q.dtype == jnp.float16:  # XLA:CPU cannot sum its products in float32.
    wide = (u.astype(jnp.float32) for u in (q, k, v))
    y = jax.nn.dot_product_attention(*wide, mask=seen[:, None])
    y = y.astype(q.dtype)
  else:
    y = jax.nn.dot_product_attention(q, k, v, mask=seen[:, None])
  return jnp.where(spoilt[..., None, None], jnp.nan, y)


def _in_float64(q, k, v, seen):
  # `jax.nn.dot_product_attention` takes its softmax in float32, whatever its
  # operands are.
  shape, groups = q.shape, k.shape[2]
  q = q.reshape(*shape[:2], groups, -1, shape[3])
  scores = jnp.einsum('bqgrk,bsgk->bgrqs', q, k) / shape[3] ** 0.5
  scores = jnp.where(seen[:, None, None], scores, jnp.finfo(q.dtype).min)
  weights = jax.nn.softmax(scores, axis=-1)
  return jnp.einsum('bgrqs,bsgk->bqgrk', weights, v).reshape(shape)


def _rings(cache, k, v, reset, number):
  """Keys and values of the cache after the tokens.

  Args:
    cache: That before them.
    k: `[B, T, G, K]`.
    v: Likewise.
    reset: `[B, T]` or `None`.
    number: How many of the T tokens there are `[B]`.

  Returns:
    Two arrays `[B, W, G, K]`.
  """
  since, started = _since_reset(reset, number)
  count = jnp.where(started, since, cache.count + number)
  position, back = _latest(count, cache.key.shape[1])
  index = number[:, None] - 1 - back
  new = (position >= 0) & (index >= 0)
  index = jnp.clip(index, 0, k.shape[1] - 1)

  def ring(old, tokens):
    old = jnp.where(started[:, None, None, None], 0, old)
    return jnp.where(new[..., None, None], _take(tokens, index), old)

  return ring(cache.key, k), ring(cache.value, v)


def _latest(count, window):
  """Of each slot the latest position there `[B, W]`, and how far back it is."""
  last = count[:, None] - 1
  back = (last - jnp.arange(window)) % window
  return last - back, back


def _since_reset(reset, number):
  """Of `number` tokens those since a reset `[B]`, and whether there is one."""
  if reset is None:
    return number, jnp.zeros_like(number, bool)
  start = jnp.where(reset, jnp.arange(reset.shape[1]), 0).max(1)
  return number - start.astype(number.dtype), reset.any(1)


def _small(count, window):
  """A count `[B]` below `2 W` whose ring is that of `count`."""
  whole = count.astype(jnp.uint32)
  small = jnp.where(whole < window, whole, window + whole % window)
  return small.astype(count.dtype)


def _count_after(count, time, reset, mask):
  """`cache.count` `[B]` after T tokens."""
  if mask is None:
    mask = jnp.ones((count.shape[0], time), bool)
  if reset is None:
    return count + mask.sum(1, dtype=count.dtype)
  reset, index = reset & mask, jnp.arange(time)
  start = jnp.where(reset, index, 0).max(1, keepdims=True)
  since = (mask & (index >= start)).sum(1, dtype=count.dtype)
  return jnp.where(reset.any(1), since, count + since)


def _finite(k, v):
  """Keys and values with 0 for what is not finite, and where that was."""
  good = [jnp.isfinite(u) for u in (k, v)]
  bad = ~(good[0] & good[1]).all((-1, -2))
  return jnp.where(good[0], k, 0), jnp.where(good[1], v, 0), bad


def _take(u, index):
  """`u` `[B, T, ...]` at `index` `[B, S]`: `[B, S, ...]`."""
  index = index.reshape(index.shape + (1,) * (u.ndim - 2))
  return jnp.take_along_axis(u, index, axis=1)


def _check(q, k, v, cache, chunk_size):
  if chunk_size < 1:
    raise ValueError(f'`chunk_size` must be at least 1, got {chunk_size}.')
  if q.ndim != 4 or k.ndim != 4 or k.shape[2] < 1 or q.shape[2] % k.shape[2]:
    raise ValueError(
        '`q` must be [B, T, H, K] and `k` [B, T, G, K] with G dividing H, got '
        f'{q.shape} and {k.shape}.'
    )
  if k.shape[:2] + k.shape[3:] != q.shape[:2] + q.shape[3:]:
    raise ValueError(f'`k` must fit `q` {q.shape}, got {k.shape}.')
  if v.shape != k.shape:
    raise ValueError(f'`v` must be like `k`, {k.shape}, got {v.shape}.')
  ring = (k.shape[0], cache.key.shape[1] or 1, *k.shape[2:])
  for name, u in (('key', cache.key), ('value', cache.value)):
    if u.shape != ring or u.dtype != k.dtype:
      raise ValueError(
          f'`cache.{name}` must be {k.dtype} {ring}, got {u.dtype} {u.shape}.'
      )
