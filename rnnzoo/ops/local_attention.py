"""Softmax attention of each token to itself and to a window before it."""

import functools

import jax
import jax.numpy as jnp
from rnnzoo import mesh
from rnnzoo.ops import attention_cache
from rnnzoo.ops import checking

AttentionCache = attention_cache.AttentionCache
_take = attention_cache.take
_TOKENS, _RING = 'btdk', 'bkdk'  # Layouts, see `mesh.run_per_device`.


def local_attention(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    cache: AttentionCache,
    *,
    reset: jax.Array | None = None,
    mask: jax.Array | None = None,
    chunk_size: int = 256,
    scale: float | None = None,
) -> tuple[AttentionCache, jax.Array]:
  r"""Averages the values of the last `W` tokens of each token's sequence.

  .. math::
      y_t = \frac{\sum_{t - W < j \le t} e^{s \langle q_t, k_j \rangle} v_j}
                 {\sum_{t - W < j \le t} e^{s \langle q_t, k_j \rangle}}

  Queries are computed in chunks. A chunk reads its own tokens and the `W - 1`
  tokens before it, so the cost grows as `T (W + chunk_size)`. The memory holds
  the weights of one chunk at a time, in the backward pass too, and no second
  copy of the tokens.

  Under `jax.set_mesh`, every device computes its own rows, groups and segment
  of time. Devices along time exchange their last `W` keys and values.

  The output of a token is NaN if its query, or a key or value that it sees, is
  not finite. No other output is NaN.

  >>> import jax.numpy as jnp
  >>> from rnnzoo import ops
  >>> cache = ops.empty_attention_cache(1, 2, 1, 1)        # W = 2
  >>> q, v = jnp.zeros((1, 4, 1, 1)), jnp.arange(4.).reshape(1, 4, 1, 1)
  >>> cache, y = local_attention(q, q, v, cache)
  >>> y[0, :, 0, 0]
  Array([0. , 0.5, 1.5, 2.5], dtype=float32)

  Args:
    q: Queries `[B, T, H, K]`.
    k: Keys `[B, T, G, K]`; `G` divides `H`, and groups of heads share keys.
    v: Values `[B, T, G, V]`.
    cache: The cache after earlier tokens, in the dtype of `k`.
    reset: Booleans `[B, T]`, `True` where a new sequence starts. It sees no
      token before it, and no NaN of one.
    mask: Booleans `[B, T]`, `False` where a token is absent. Its output is 0,
      and it is in no window.
    chunk_size: The number of queries in a chunk.
    scale: The factor `s` of products of queries and keys; `K**-0.5` if `None`.

  Returns:
    `(cache, y)`: the cache with the new tokens, and `[B, T, H, V]` in the dtype
    of `q`. Weights are float32 at least.

  Raises:
    ValueError: If sizes or dtypes disagree.
  """
  _check(q, k, v, cache, chunk_size)
  reset, mask = checking.flags(reset, mask, q.shape)
  if not q.shape[0] * q.shape[1]:
    return cache, jnp.zeros_like(q, shape=(*q.shape[:3], v.shape[3]))
  count = attention_cache.count_after(cache.count, q.shape[1], reset, mask)
  cache = cache._replace(count=attention_cache.small_count(cache))
  key, value, y = mesh.run_per_device(
      functools.partial(_run, chunk_size=chunk_size, scale=scale),
      k,  # Heads are split as their keys are.
      (q, k, v, *cache, reset, mask),
      (_TOKENS,) * 3 + (_RING,) * 2 + ('b', 'bt', 'bt'),
      (_RING, _RING, _TOKENS),
  )
  return AttentionCache(key, value, count), y


def extended_cache(
    k: jax.Array,
    v: jax.Array,
    cache: AttentionCache,
    *,
    reset: jax.Array | None = None,
    mask: jax.Array | None = None,
) -> AttentionCache:
  """Returns the cache of `local_attention`, without its outputs.

  It is for layers that keep something else than the keys and values that they
  compare and average: something from which these can be computed.

  >>> import jax.numpy as jnp
  >>> from rnnzoo import ops
  >>> cache = ops.empty_attention_cache(1, 2, 1, 1)        # W = 2
  >>> k = jnp.arange(3.).reshape(1, 3, 1, 1)
  >>> cache = extended_cache(k, -k, cache)
  >>> cache.key[0, :, 0, 0], cache.count
  (Array([2., 1.], dtype=float32), Array([3], dtype=int32))

  Args:
    k: Keys `[B, T, G, K]`.
    v: Values `[B, T, G, V]`.
    cache: The cache after earlier tokens, in the dtype of `k`.
    reset: Booleans `[B, T]`, `True` where a new sequence starts.
    mask: Booleans `[B, T]`, `False` where a token is absent.

  Raises:
    ValueError: If sizes or dtypes disagree.
  """
  _check(k, k, v, cache, 1)
  reset, mask = checking.flags(reset, mask, k.shape)
  if not k.shape[0] * k.shape[1]:
    return cache
  count = attention_cache.count_after(cache.count, k.shape[1], reset, mask)
  cache = cache._replace(count=attention_cache.small_count(cache))
  key, value = mesh.run_per_device(
      _extend, k, (k, v, *cache, reset, mask),
      (_TOKENS,) * 2 + (_RING,) * 2 + ('b', 'bt', 'bt'), (_RING, _RING),
  )
  return AttentionCache(key, value, count)


def local_attention_step(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    cache: AttentionCache,
    *,
    scale: float | None = None,
) -> tuple[AttentionCache, jax.Array]:
  """Runs `local_attention` for one token; its operands have no axis T."""
  _check(q[:, None], k[:, None], v[:, None], cache, 1)
  cache = AttentionCache(*map(jnp.asarray, cache))
  window = cache.key.shape[1]
  rows = jnp.arange(q.shape[0])
  count = attention_cache.small_count(cache)
  slot = count % window
  cache = AttentionCache(
      cache.key.at[rows, slot].set(k),
      cache.value.at[rows, slot].set(v),
      cache.count + 1,
  )
  seen = jnp.arange(window) <= count[:, None]
  keys, values, bad = _finite(cache.key, cache.value)
  y = _attend(q[:, None], keys, values, seen[:, None], bad, scale)
  return cache, y[:, 0]


def _run(
    q, k, v, past_k, past_v, past_count, reset, mask, *, segments, chunk_size,
    scale,
):
  order, (q, k, v), reset, number = _present_first(
      (q, k, v), past_count, reset, mask
  )
  cache = AttentionCache(past_k, past_v, past_count)
  cache = attention_cache.entering(segments, cache, k, v, reset, number)
  y = _by_chunks(q, k, v, cache, reset, chunk_size, scale)
  if order is not None and mask is not None:
    y = _take(y, jnp.argsort(order, axis=1))
    y = jnp.where(mask[..., None, None], y, 0)
  return *_leaving(segments, cache, k, v, reset, number), y


def _extend(k, v, past_k, past_v, past_count, reset, mask, *, segments):
  _, (k, v), reset, number = _present_first((k, v), past_count, reset, mask)
  cache = AttentionCache(past_k, past_v, past_count)
  cache = attention_cache.entering(segments, cache, k, v, reset, number)
  return _leaving(segments, cache, k, v, reset, number)


def _present_first(tokens, count, reset, mask):
  """Moves the tokens that are present to the front, keeping their order.

  Args:
    tokens: Arrays `[B, T, ...]`.
    count: The number of earlier tokens `[B]`.
    reset: `[B, T]` or `None`.
    mask: `[B, T]`, or `None` if all are present.

  Returns:
    `(order, tokens, reset, number)`: where each token was `[B, T]`, or `None`;
    tokens and `reset` in this order; and how many are present `[B]`.
  """
  if mask is None:
    number = jnp.full_like(count, tokens[0].shape[1])
    return None, tokens, reset, number
  order = jnp.argsort(~mask, axis=1, stable=True)
  tokens = tuple(
      _take(jnp.where(mask[..., None, None], u, 0), order) for u in tokens
  )
  reset = None if reset is None else _take(reset & mask, order)
  return order, tokens, reset, mask.sum(1, dtype=count.dtype)


def _leaving(segments, cache, k, v, reset, number):
  """Returns the keys and values of the cache after all segments."""
  rings = attention_cache.rings_after(cache, k, v, reset, number)
  if segments is None:
    return rings
  wide = jnp.promote_types(jnp.float32, k.dtype)
  return tuple(
      segments.from_last(u.astype(wide)).astype(u.dtype) for u in rings
  )


def _by_chunks(q, k, v, cache, reset, chunk_size, scale):
  """Returns the outputs `[B, T, H, V]`, chunk by chunk."""
  (batch, time), window = q.shape[:2], cache.key.shape[1]
  length = min(chunk_size, time)
  # A block of chunks has about as many tokens as a window. After each block,
  # the past is cut to one window again.
  chunks = -(-min(window, time) // length)
  blocks = -(-time // (chunks * length))
  padding = blocks * chunks * length - time

  # Otherwise XLA searches constant zeros for NaNs at compile time, for seconds.
  cache = AttentionCache(*jax.lax.optimization_barrier(tuple(cache)))
  # The oldest token in the ring is in no window any more.
  ago = jnp.arange(1, window)
  slots = (cache.count[:, None] + ago) % window
  before = jnp.where(ago >= window - cache.count[:, None], 0, -1)
  sequence = jnp.zeros_like(before, shape=(batch, time))
  if reset is not None:
    sequence = jnp.cumsum(reset, axis=1, dtype=sequence.dtype)
  past = (*_finite(_take(cache.key, slots), _take(cache.value, slots)), before)
  new = (*_finite(k, v), sequence)

  def split(u):  # [B, T, ...] -> [blocks, B, chunks * Q, ...]
    u = jnp.pad(u, ((0, 0), (0, padding)) + ((0, 0),) * (u.ndim - 2))
    u = u.reshape(batch, blocks, -1, *u.shape[2:])
    return jnp.moveaxis(u, 1, 0)

  gap = window - 1 + jnp.arange(length)[:, None] - jnp.arange(
      window - 1 + length
  )
  near = (gap >= 0) & (gap < window)

  def one_block(past, inputs):
    q, new = inputs
    tokens = jax.tree.map(lambda *u: jnp.concatenate(u, 1), past, new)

    def one_chunk(_, start):
      cut = lambda u, size: jax.lax.dynamic_slice_in_dim(u, start, size, 1)
      k, v, bad, sequence = jax.tree.map(
          lambda u: cut(u, window - 1 + length), tokens
      )
      own = sequence[:, window - 1 :, None]
      seen = near & (own == sequence[:, None])
      return None, _attend(cut(q, length), k, v, seen, bad, scale)

    _, y = jax.lax.scan(
        jax.checkpoint(one_chunk, prevent_cse=False),
        None,
        jnp.arange(chunks) * length,
    )
    last = jax.tree.map(lambda u: u[:, chunks * length :], tokens)
    return last, y

  leaves, structure = jax.tree.flatten((past, jax.tree.map(split, (q, new))))
  _, y = jax.lax.scan(
      jax.checkpoint(one_block, prevent_cse=False),
      *jax.tree.unflatten(structure, mesh.same_varying(*leaves)),
  )
  # [blocks, chunks, B, Q, H, V]
  y = jnp.moveaxis(y, 2, 0).reshape(batch, -1, q.shape[2], v.shape[3])
  return y[:, :time]


def _attend(q, k, v, seen, bad, scale):
  """Returns the outputs `[B, Q, H, V]` of some queries.

  Args:
    q: Queries `[B, Q, H, K]`.
    k: Keys `[B, S, G, K]`.
    v: Values `[B, S, G, V]`.
    seen: Which of them each query sees `[B, Q, S]`.
    bad: Which of them were not finite `[B, S]`.
    scale: The factor of products, or `None`.
  """
  good = jnp.isfinite(q)
  is_nan = (seen & bad[:, None]).any(-1) | ~good.all((-1, -2))
  q = jnp.where(good, q, 0)
  dtype = q.dtype
  if dtype == jnp.float16:  # XLA:CPU cannot sum its products in float32.
    q, k, v = (u.astype(jnp.float32) for u in (q, k, v))
  if dtype == jnp.float64 or v.shape != k.shape:
    y = _average(q, k, v, seen, scale)
  else:
    y = jax.nn.dot_product_attention(q, k, v, mask=seen[:, None], scale=scale)
  return jnp.where(is_nan[..., None, None], jnp.nan, y.astype(dtype))


def _average(q, k, v, seen, scale):
  # `jax.nn.dot_product_attention` computes its softmax in float32 only, and
  # wants values that are as large as keys.
  shape, groups = q.shape, k.shape[2]
  wide = jnp.promote_types(jnp.float32, q.dtype)
  q = q.reshape(*shape[:2], groups, shape[2] // groups, shape[3])
  scores = jnp.einsum('bqgrk,bsgk->bgrqs', q, k, preferred_element_type=wide)
  scores *= shape[3] ** -0.5 if scale is None else scale
  scores = jnp.where(seen[:, None, None], scores, jnp.finfo(wide).min)
  weights = jax.nn.softmax(scores, axis=-1).astype(v.dtype)
  y = jnp.einsum('bgrqs,bsgv->bqgrv', weights, v)
  return y.reshape(*shape[:3], v.shape[3])


def _finite(k, v):
  """Replaces keys and values that are not finite by 0, and says which were."""
  good = [jnp.isfinite(u) for u in (k, v)]
  bad = ~(good[0].all((-1, -2)) & good[1].all((-1, -2)))
  return jnp.where(good[0], k, 0), jnp.where(good[1], v, 0), bad


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
  if v.ndim != 4 or v.shape[:3] != k.shape[:3]:
    raise ValueError(
        f'`v` must be [B, T, G, V] with the axes of `k` {k.shape}, got '
        f'{v.shape}.'
    )
  window = cache.key.shape[1] or 1
  for name, u, tokens in (('key', cache.key, k), ('value', cache.value, v)):
    ring = (k.shape[0], window, *tokens.shape[2:])
    if u.shape != ring or u.dtype != k.dtype:
      raise ValueError(
          f'`cache.{name}` must be {k.dtype} {ring}, got {u.dtype} {u.shape}.'
      )
