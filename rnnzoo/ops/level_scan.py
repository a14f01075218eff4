"""What recurrences with levels share: a scan over chunks on every device.

A token multiplies all states by the same transition, and adds to level 0 only
(`fenwick.py` has the levels). So levels may merge after any number of tokens.
"""

from collections.abc import Callable
import functools

import jax
import jax.numpy as jnp
from rnnzoo import mesh
from rnnzoo.ops import attention_cache
from rnnzoo.ops import checking
from rnnzoo.ops import chunkwise
from rnnzoo.ops import fenwick


def run(
    body: Callable[..., tuple[jax.Array, jax.Array, jax.Array | None]],
    product: Callable[[jax.Array, jax.Array], jax.Array],
    identity: Callable[[jax.Array], jax.Array],
    tokens: dict[str, jax.Array],
    state: fenwick.LevelState,
    like: jax.Array,
    reset: jax.Array | None,
    mask: jax.Array | None,
    chunk_size: int,
) -> tuple[fenwick.LevelState, jax.Array]:
  """Runs a recurrence with levels, split over the devices of a mesh.

  Args:
    body: `body(S, chunk, visible, places)` gets the state that enters a chunk,
      the tokens of the chunk `[B, H, Q, ...]` in the dtype of states, the
      `chunkwise.Visibility` and the `fenwick.Places`. It returns the transition
      of the whole chunk, what its tokens add to the state that leaves, and the
      outputs `[B, H, Q, V]`; `None` for these if the chunk has no `q`.
    product: `product(transition, S)` applies a transition to states, or to an
      earlier transition.
    identity: Makes the transition that changes nothing, `[B, H, 1, ., .]`, for
      states `S`.
    tokens: Arrays `[B, T, H, ...]`; `q` and `level_scales` serve outputs only,
      and outputs are like `v`.
    state: The state before the first token.
    like: The array that decides how to split, `[B, T, H, ...]`.
    reset: Booleans `[B, T]` or `None`.
    mask: Booleans `[B, T]` or `None`.
    chunk_size: `Q`.

  Returns:
    `(state, y)`: the state after the last token, and `[B, T, H, V]`.
  """
  v, levels = tokens['v'], state.levels.shape[2] + 1
  reset, mask = checking.flags(reset, mask, v.shape)
  time = v.shape[1]
  chunkwise.chunk_length(time, chunk_size)  # Raises unless it is a power of 2.
  if not time:
    return state, jnp.zeros_like(v)
  fenwick.check_length(state.count, levels, time, reset, mask)
  starts = fenwick.starts(state.count, time, levels, reset, mask)
  S, y = mesh.run_per_device(
      functools.partial(
          _run, body, product, identity, tuple(tokens), chunk_size
      ),
      like,
      (*tokens.values(), state.levels, starts, reset, mask),
      tuple('btdk'[: u.ndim] for u in tokens.values())
      + ('bdkkk', 'bt', 'bt', 'bt'),
      ('bdkkk', 'btdk'),
  )
  count = attention_cache.count_after(state.count, time, reset, mask)
  return fenwick.LevelState(S, count), y


def _run(body, product, identity, names, chunk_size, *operands, segments):
  """Runs what one device holds, one chunk after the other."""
  *tokens, S, starts, reset, mask = operands
  tokens = dict(zip(names, tokens))
  v, count, levels = tokens['v'], starts[:, 0].astype(S.dtype), S.shape[2] + 1
  tokens['present'] = jnp.ones_like(S, shape=v.shape[:2] + (1,))

  def one_chunk(state, chunk, visible):
    S, count, *passed = state
    chunk = {name: u.astype(S.dtype) for name, u in chunk.items()}
    places = fenwick.places(count, chunk.pop('present'), visible, levels)
    transition, new, y = body(S, chunk, visible, places)
    S = fenwick.merge(product(transition, S), places.merged) + new
    passed = [product(transition, u) for u in passed]
    return (S, places.count, *passed), None if y is None else y.astype(v.dtype)

  def summary(tokens, reset):
    """How the segment changes a state, and the state that its tokens leave."""
    kept = {
        name: u for name, u in tokens.items()
        if name not in ('q', 'level_scales')
    }
    (own, _, passed), _ = chunkwise.scan_chunks(
        one_chunk, (jnp.zeros_like(S), count, identity(S)), kept, reset, None,
        chunk_size,
    )
    last, through = chunkwise.visible_at_end(reset, v)
    number = jnp.where(last, tokens['present'][..., 0], 0).sum(1)
    start, number = count.astype(jnp.int32), number.astype(jnp.int32)
    end = jnp.where(through, start, 0) + number
    merged = fenwick.merged(start, end, levels)
    return (passed, merged[:, None].astype(S.dtype)), own

  def combine(earlier, later):
    """Merges the summaries of two adjacent segments of time."""
    (before, first), S = earlier
    (passed, merged), own = later
    S = fenwick.merge(product(passed, S), merged)
    return (product(passed, before), jnp.maximum(first, merged)), S + own

  S = chunkwise.entering_state(
      segments, summary, combine, S, tokens, reset, mask
  )
  (S, _), y = chunkwise.scan_chunks(
      one_chunk, (S, count), tokens, reset, mask, chunk_size
  )
  return chunkwise.leaving_state(segments, S), y
