"""Log-linear attention: linear attention that weighs its past in levels."""

import functools

import jax
import jax.numpy as jnp
from rnnzoo import mesh
from rnnzoo.ops import attention_cache
from rnnzoo.ops import checking
from rnnzoo.ops import chunkwise
from rnnzoo.ops import exact
from rnnzoo.ops import fenwick
from rnnzoo.ops import head_groups
from rnnzoo.ops import linear_attention_chunk as chunk_lib


def log_linear_attention(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    level_scales: jax.Array,
    state: fenwick.LevelState | None = None,
    *,
    log_decay: jax.Array | None = None,
    scale: float = 1.0,
    reset: jax.Array | None = None,
    mask: jax.Array | None = None,
    chunk_size: int | None = None,
) -> tuple[fenwick.LevelState, jax.Array]:
  r"""Reads a past that is kept in about `log2(T)` states of growing length.

  .. math::
      y_t = \sum_{s \le t} \lambda_t^{(\ell(t, s))}
            e^{g_{s+1} + \dots + g_t} \langle q_t, k_s \rangle v_s

  The level :math:`\ell(t, s)` is 0 for the token itself. Levels 1, 2, 3, ...
  hold 1, 2, 4, ... tokens, as in a Fenwick tree: level l, if bit l - 1 of t is
  set, holds the :math:`2^{l-1}` tokens in front of the lower bits of t (Guo et
  al. 2025, https://arxiv.org/abs/2506.04761). Positions count from the last
  reset. If all scales are 1, this is `linear_attention`.

  `L` levels hold :math:`2^{L-1}` tokens. A longer sequence is an error where it
  is known: outside `jax.jit`, and from shapes alone. A state that is carried on
  under `jax.jit` cannot be checked. There, the last level also holds all tokens
  that are older, as if all levels above it had its scale.

  The cost per token and head is about `2 (L - 1) K V + Q (K + V + L)`
  multiplications in products of matrices. The backward pass keeps the states
  `[L - 1, K, V]` between chunks of `Q` tokens, and computes all else again.

  Under `jax.set_mesh`, every device computes its own rows, heads and segment of
  time. Devices along time exchange the states that their tokens leave, and
  compute these in a first pass.

  >>> import jax.numpy as jnp
  >>> ones, v = jnp.ones((1, 4, 1, 1)), jnp.arange(4.).reshape(1, 4, 1, 1)
  >>> scales = jnp.broadcast_to(jnp.array([1., 10., 100.]), (1, 4, 1, 3))
  >>> state, y = log_linear_attention(ones, ones, v, scales)
  >>> y.ravel()
  Array([  0.,   1., 102., 123.], dtype=float32)

  Args:
    q: Queries `[B, T, G, K]`, `G` groups of heads; T >= 0.
    k: Keys `[B, T, G, K]`.
    v: Values `[B, T, H, V]`, `H` a multiple of `G`; the first `H / G` heads are
      the first group.
    level_scales: The scale of each level `[B, T, H, L]`, 2 to 25 levels.
    state: The state before the first token; zeros if `None`.
    log_decay: Logarithms `g` of the decays `[B, T, H]`, at most 0, and minus
      infinity is allowed; no decay if `None`.
    scale: A factor of the queries.
    reset: Booleans `[B, T]`, `True` where a new sequence starts. Nothing before
      it reaches anything after it, not even a NaN.
    mask: Booleans `[B, T]`, `False` where a token is absent: its output is 0,
      nothing decays, and the position stays.
    chunk_size: `Q`, a power of two. If `None`, it is 64.

  Returns:
    `(state, y)`: the state after the last token, in `promote_types(float32,
    ...)` of the operands, and `[B, T, H, V]` in the dtype of `v`.

  Raises:
    ValueError: If shapes or dtypes disagree, or a sequence is known to be too
      long.
  """
  q, k, v, scales, state, g = _checked(
      q, k, v, level_scales, state, log_decay, ('B', 'T')
  )
  reset, mask = checking.flags(reset, mask, v.shape)
  time, levels = v.shape[1], scales.shape[-1]
  if not time:
    return state, jnp.zeros_like(v)
  fenwick.check_length(state.count, levels, time, reset, mask)
  S, y = mesh.run_per_device(
      functools.partial(_run, scale=scale, chunk_size=chunk_size or 64),
      # A group stays on one device, unless it is the only one.
      v if q.shape[2] == 1 else q,
      (q, k, v, scales, state.levels, g,
       fenwick.starts(state.count, time, levels, reset, mask), reset, mask),
      ('btdk',) * 4 + ('bdkkk', 'btd', 'bt', 'bt', 'bt'),
      ('bdkkk', 'btdk'),
  )
  count = attention_cache.count_after(state.count, time, reset, mask)
  return fenwick.LevelState(S, count), y


def log_linear_attention_step(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    level_scales: jax.Array,
    state: fenwick.LevelState,
    *,
    log_decay: jax.Array | None = None,
    scale: float = 1.0,
    mask: jax.Array | None = None,
) -> tuple[fenwick.LevelState, jax.Array]:
  """Runs `log_linear_attention` for one token; operands have no axis T.

  It costs `(2 L + 1) K V` multiplications per head. Where `mask` `[B]` is
  `False`, the state stays and the output is 0, and the levels may be full.

  Returns:
    `(state, y)`: the next state, and `[B, H, V]` in the dtype of `v`.

  Raises:
    ValueError: If shapes or dtypes disagree, or the levels are known to be
      full.
  """
  q, k, v, scales, state, g = _checked(
      q, k, v, level_scales, state, log_decay, ('B',)
  )
  _, mask = checking.flags(None, mask, v.shape[:1])
  fenwick.check_length_of_step(state.count, scales.shape[-1], mask)
  S, out_dtype = state.levels, v.dtype
  q, k, v, scales = (u.astype(S.dtype) for u in (q * scale, k, v, scales))
  heads = v.shape[1] // q.shape[1]
  q, k = (jnp.repeat(u, heads, axis=1) for u in (q, k))
  if g is not None:
    S = jnp.exp(g)[..., None, None, None] * S
  weights = scales[..., 1:, None] * q[:, :, None]
  y = exact.einsum('bhnk,bhnkv->bhv', weights, S)
  y = y + scales[..., :1] * (q * k).sum(-1, keepdims=True) * v
  new = k[..., None] * v[..., None, :]
  return fenwick.after_step(state, S, new, y.astype(out_dtype), mask)


def _run(
    q, k, v, scales, S, g, starts, reset, mask, *, segments, scale, chunk_size
):
  """Runs what one device holds, one chunk after the other."""
  tokens = dict(q=q, k=k, v=v, scales=scales)
  tokens['present'] = jnp.ones_like(S, shape=v.shape[:2] + (1,))
  if g is not None:
    tokens['g'] = g
  count = starts[:, 0].astype(S.dtype)

  def one_chunk(state, chunk, visible):
    (S, count), out_dtype = state, chunk['v'].dtype
    chunk = {name: u.astype(S.dtype) for name, u in chunk.items()}
    places = fenwick.places(count, chunk['present'], visible, S.shape[2] + 1)
    weights = None if g is None else chunk_lib.changing(chunk['g'])
    y = None
    if 'q' in chunk:
      y = _outputs(
          S, chunk['q'] * scale, chunk['k'], chunk['v'], chunk['scales'],
          weights, visible, places,
      ).astype(out_dtype)
    S = _next(S, chunk['k'], chunk['v'], weights, visible, places)
    return (S, places.count), y

  def summary(tokens, reset):
    """How the segment changes a state, and the state that its tokens leave."""
    left = {n: u for n, u in tokens.items() if n not in ('q', 'scales')}
    (own, _), _ = chunkwise.scan_chunks(
        one_chunk, (jnp.zeros_like(S), count), left, reset, None, chunk_size
    )
    last, through = chunkwise.visible_at_end(reset, v)
    number = jnp.where(last, tokens['present'][..., 0], 0).sum(1)
    merged = fenwick.merged(
        count, jnp.where(through, count, 0) + number, S.shape[2] + 1
    )
    kept = jnp.zeros_like(S, shape=S.shape[:2])
    kept = kept if g is None else kept + tokens['g'].sum(1)
    kept = jnp.where(through[:, None], jnp.exp(kept), 0)
    return (kept, merged.astype(S.dtype)), own

  S = chunkwise.entering_state(
      segments, summary, _combine, S, tokens, reset, mask
  )
  (S, _), y = chunkwise.scan_chunks(
      one_chunk, (S, count), tokens, reset, mask, chunk_size
  )
  return chunkwise.leaving_state(segments, S), y


def _outputs(S, q, k, v, scales, weights, visible, places):
  """Returns the outputs of a chunk `[B, H, Q, V]`.

  Args:
    S: The state that enters `[B, H, N, K, V]`.
    q: `[B, G, Q, K]`.
    k: `[B, G, Q, K]`.
    v: `[B, H, Q, V]`.
    scales: `[B, H, Q, L]`.
    weights: `linear_attention_chunk.Decays` or `None`.
    visible: `chunkwise.Visibility`.
    places: `fenwick.Places`.
  """
  by_group = functools.partial(head_groups.by_group, q.shape[1])
  pairs = fenwick.scales_of_pairs(scales, places)
  states = fenwick.scales_of_states(scales, places)
  if weights is not None:
    pairs = pairs * weights.pairs
    states = states * weights.state[..., None]
  pairs = jnp.where(visible.pairs, pairs, 0)
  states = jnp.where(visible.state[..., None], states, 0)
  products = exact.einsum('bgik,bgjk->bgij', q, k)[:, :, None]
  products = products * by_group(pairs)
  y = exact.einsum('bgrij,bgrjv->bgriv', products, by_group(v))
  read = exact.einsum('bgik,bgrnkv->bgrniv', q, by_group(S))
  y = y + exact.einsum('bgrin,bgrniv->bgriv', by_group(states), read)
  return y.reshape(v.shape)


def _next(S, k, v, weights, visible, places):
  """Returns the state that leaves a chunk; arguments as of `_outputs`."""
  if weights is not None:
    S = S * weights.through[..., None, None, None]
    v = v * weights.last[..., None]
  S = jnp.where(visible.through[..., None, None, None], S, 0)
  v = jnp.where(visible.last[..., None], v, 0)
  v = fenwick.into_levels(v, places.left, S.shape[2] + 1)
  v = head_groups.by_group(k.shape[1], v)
  new = exact.einsum('bgjk,bgrnjv->bgrnkv', k, v)
  return fenwick.merge(S, places.merged) + new.reshape(S.shape)


def _combine(earlier, later):
  """Merges the summaries of two adjacent segments of time."""
  (before, first), S = earlier
  (kept, merged), own = later
  S = fenwick.merge(kept[..., None, None, None] * S, merged[:, None])
  return (kept * before, jnp.maximum(first, merged)), S + own


def _checked(q, k, v, scales, state, g, leading):
  """Returns the operands as arrays, and the state, or raises."""
  if g is not None:
    checking.has_axes('log_decay', jnp.asarray(g), leading + ('H',))
  q, k, v, S, g, _ = head_groups.checked(q, k, v, None, g, None, leading)
  scales = jnp.asarray(scales)
  if scales.ndim != v.ndim or scales.shape[:-1] != v.shape[:-1]:
    raise ValueError(
        f'`level_scales` must be {checking.brackets(leading + ("H", "L"))}, '
        f'{v.shape[:-1]} and L, got {scales.shape}.'
    )
  checking.are_floating(level_scales=scales)
  dtype = jnp.promote_types(S.dtype, scales.dtype)
  rows, heads, features, values = S.shape
  state = fenwick.checked_state(
      state, rows, heads, scales.shape[-1], features, values, dtype
  )
  return q, k, v, scales, state, None if g is None else g.astype(dtype)
