"""Log-linear attention: linear attention that weighs its past in levels."""

import functools

import jax
import jax.numpy as jnp
from rnnzoo.ops import checking
from rnnzoo.ops import exact
from rnnzoo.ops import fenwick
from rnnzoo.ops import head_groups
from rnnzoo.ops import level_scan
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
  tokens = dict(q=q, k=k, v=v, level_scales=scales)
  if g is not None:
    tokens['log_decay'] = g
  return level_scan.run(
      functools.partial(_one_chunk, scale=scale),
      jnp.multiply,
      lambda S: jnp.ones_like(S, shape=S.shape[:2] + (1, 1, 1)),
      tokens,
      state,
      # A group stays on one device, unless it is the only one.
      v if q.shape[2] == 1 else q,
      reset,
      mask,
      64 if chunk_size is None else chunk_size,
  )


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


def _one_chunk(S, chunk, visible, places, *, scale):
  """Runs one chunk `[B, H, Q, ...]`, see `level_scan.run`."""
  k, v, g = chunk['k'], chunk['v'], chunk.get('log_decay')
  weights = None if g is None else chunk_lib.changing(g)
  y = None
  if 'q' in chunk:
    y = _outputs(
        S, chunk['q'] * scale, k, v, chunk['level_scales'], weights, visible,
        places,
    )
  through = jnp.ones_like(S, shape=S.shape[:2])
  if weights is not None:
    through = weights.through
    v = v * weights.last[..., None]
  through = jnp.where(visible.through, through, 0)
  v = jnp.where(visible.last[..., None], v, 0)
  v = fenwick.into_levels(v, places.left, S.shape[2] + 1)
  v = head_groups.by_group(k.shape[1], v)
  new = exact.einsum('bgjk,bgrnjv->bgrnkv', k, v).reshape(S.shape)
  return through[..., None, None, None], new, y


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


def _checked(q, k, v, scales, state, g, leading):
  """Returns the operands as arrays, and the state, or raises."""
  if g is not None:
    checking.has_axes('log_decay', jnp.asarray(g), leading + ('H',))
  q, k, v, S, g, _ = head_groups.checked(q, k, v, None, g, None, leading)
  scales, state = fenwick.checked(scales, state, v, S, leading + ('H',))
  g = None if g is None else g.astype(state.levels.dtype)
  return q, k, v, scales, state, g
