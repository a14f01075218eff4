"""The keys and values of the last tokens of a sequence, in a ring."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from rnnzoo import mesh


class AttentionCache(NamedTuple):
  """The last W tokens of a sequence; the token at position p is in slot p % W.

  Attributes:
    key: `[B, W, G, K]`.
    value: `[B, W, G, V]`.
    count: The number of tokens of the sequence so far `[B]`, int32. Slots from
      this number on are empty. Beyond `2**31`, its bits are those of an
      unsigned integer. After `2**32` tokens, the sequence starts again.
  """

  key: jax.Array
  value: jax.Array
  count: jax.Array


def empty_attention_cache(
    batch: int, window: int, groups: int, features: int, dtype=jnp.float32,
    *, value_features: int | None = None,
) -> AttentionCache:
  """Returns the cache of no tokens: zeros.

  Args:
    batch: `B`.
    window: `W`.
    groups: `G`.
    features: Size `K` of a key.
    dtype: That of keys and values.
    value_features: Size `V` of a value; `K` if `None`.
  """
  # Two arrays, because one buffer cannot be donated for two leaves.
  key, value = (
      jnp.zeros((batch, window, groups, size), dtype)
      for size in (features, value_features or features)
  )
  return AttentionCache(key, value, jnp.zeros((batch,), jnp.int32))


def sequence_positions(
    count: jax.Array,
    time: int,
    *,
    reset: jax.Array | None = None,
    mask: jax.Array | None = None,
) -> jax.Array:
  """Returns how many tokens of its own sequence come before each token.

  >>> import jax.numpy as jnp
  >>> reset = jnp.array([[False, False, True, False]])
  >>> sequence_positions(jnp.array([7]), 4, reset=reset)
  Array([[7, 8, 0, 1]], dtype=int32)

  Args:
    count: The number of earlier tokens of the sequence that continues `[B]`,
      int32. Its bits, and those of the result, are those of an unsigned
      integer.
    time: `T`.
    reset: Booleans `[B, T]`, `True` where a new sequence starts.
    mask: Booleans `[B, T]`, `False` where a token is absent.

  Returns:
    `[B, T]`, int32; the values of absent tokens have no meaning.
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


def entering(segments: mesh.Segments | None, cache, k, v, reset, number):
  """Returns the cache that enters the segment of time of this device.

  Args:
    segments: From `mesh.run_per_device`. If `None`, time is not split, and
      `cache` is returned.
    cache: The cache before the first segment.
    k: Keys `[B, T, G, K]` of this segment; tokens that are present come first.
    v: Values `[B, T, G, V]`, likewise.
    reset: `[B, T]` or `None`, likewise.
    number: How many of the T tokens are present `[B]`.
  """
  if segments is None:
    return cache
  window, dtype = cache.key.shape[1], k.dtype
  width = min(window, k.shape[1])
  latest = jnp.maximum(number[:, None] - width + jnp.arange(width), 0)
  # Devices sum the gradients, in float32 at least.
  wide = jnp.promote_types(jnp.float32, dtype)
  tails = [take(u, latest).astype(wide) for u in (k, v)]
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
  # The index, among all tokens before this segment, of the token in each slot.
  numbers = jnp.where(jnp.arange(segments.size)[:, None] < here, numbers, 0)
  ends = jnp.cumsum(numbers, axis=0)
  position, back = _latest(count, window)
  index = ends[-1][:, None] - 1 - back
  new = (position >= 0) & (index >= 0)
  segment = (ends[..., None] <= index).sum(0)
  segment = jnp.minimum(segment, segments.size - 1)
  end = jnp.take_along_axis(ends.T, segment, axis=1)
  place = segment * width + width - (end - index)

  def ring(old, tail):
    old = jnp.where(begun[:, None, None, None], 0, old)
    tail = jnp.moveaxis(tail, 0, 1)
    tail = tail.reshape(old.shape[0], -1, *old.shape[2:])
    tail = take(tail.astype(dtype), jnp.maximum(place, 0))
    return jnp.where(new[..., None, None], tail, old)

  key, value = map(ring, cache[:2], tails)
  return AttentionCache(key, value, count)


def rings_after(cache, k, v, reset, number):
  """Returns the keys and values of the cache after some tokens.

  Args:
    cache: The cache before them.
    k: Keys `[B, T, G, K]`; tokens that are present come first.
    v: Values `[B, T, G, V]`, likewise.
    reset: `[B, T]` or `None`.
    number: How many of the T tokens are present `[B]`.

  Returns:
    Two arrays, `[B, W, G, K]` and `[B, W, G, V]`.
  """
  since, started = _since_reset(reset, number)
  count = jnp.where(started, since, cache.count + number)
  position, back = _latest(count, cache.key.shape[1])
  index = number[:, None] - 1 - back
  new = (position >= 0) & (index >= 0)
  index = jnp.clip(index, 0, k.shape[1] - 1)

  def ring(old, tokens):
    old = jnp.where(started[:, None, None, None], 0, old)
    return jnp.where(new[..., None, None], take(tokens, index), old)

  return ring(cache.key, k), ring(cache.value, v)


def _latest(count, window):
  """Returns the latest position in each slot `[B, W]`, and its distance."""
  last = count[:, None] - 1
  back = (last - jnp.arange(window)) % window
  return last - back, back


def _since_reset(reset, number):
  """Returns the number of tokens since a reset `[B]`, and if there is one."""
  if reset is None:
    return number, jnp.zeros_like(number, bool)
  start = jnp.where(reset, jnp.arange(reset.shape[1]), 0).max(1)
  return number - start.astype(number.dtype), reset.any(1)


def small_count(cache: AttentionCache) -> jax.Array:
  """Returns a count `[B]` below `2 W` that leaves the ring as it is."""
  window = cache.key.shape[1]
  whole = cache.count.astype(jnp.uint32)
  small = jnp.where(whole < window, whole, window + whole % window)
  return small.astype(cache.count.dtype)


def count_after(count, time, reset, mask):
  """Returns `cache.count` `[B]` after T tokens."""
  if mask is None:
    mask = jnp.ones((count.shape[0], time), bool)
  if reset is None:
    return count + mask.sum(1, dtype=count.dtype)
  reset, index = reset & mask, jnp.arange(time)
  start = jnp.where(reset, index, 0).max(1, keepdims=True)
  since = (mask & (index >= start)).sum(1, dtype=count.dtype)
  return jnp.where(reset.any(1), since, count + since)


def take(u, index):
  """Returns `u` `[B, T, ...]` at `index` `[B, S]` of its time axis."""
  index = index.reshape(index.shape + (1,) * (u.ndim - 2))
  return jnp.take_along_axis(u, index, axis=1)
