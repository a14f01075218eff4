"""Linear attention with decays: its state is a matrix."""

import functools

import jax
import jax.numpy as jnp
from rnnzoo import mesh
from rnnzoo.ops import checking
from rnnzoo.ops import chunkwise
from rnnzoo.ops import decays
from rnnzoo.ops import exact
from rnnzoo.ops import head_groups
from rnnzoo.ops import linear_attention_chunk as chunk_lib


def linear_attention(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    S0: jax.Array | None = None,
    *,
    log_decay: jax.Array | None = None,
    bonus: jax.Array | None = None,
    scale: float = 1.0,
    reset: jax.Array | None = None,
    mask: jax.Array | None = None,
    chunk_size: int | None = None,
) -> tuple[jax.Array, jax.Array]:
  r"""Computes `S_t = diag(e^{g_t}) S_{t-1} + k_t v_t^T`, read by `S_t^T q_t`.

  The `log_decay` :math:`g` is given per head or per key feature. Time is cut
  into chunks of `Q` tokens. Tokens of a chunk read each other through a matrix
  of weights `[Q, Q]`, and earlier chunks through a product with one state. Only
  the states between chunks are computed one after the other. Nothing is divided
  by a decay, so decays may be arbitrarily strong. The cost per token and head
  is about `(Q + 2 K) V + Q K` multiplications in products of matrices, and `Q`
  exponentials if there are decays. A step of the recurrence takes `3 K V`
  multiplications, but none in a product of two matrices.

  Heads may share queries and keys, as in Mamba-2. Their products are computed
  once for all heads of a group. With a `bonus` :math:`u`, a token reads the
  state before it, and itself with that weight (RWKV-6):

  .. math::
      y_t = (S_{t-1} + \mathrm{diag}(u) k_t v_t^T)^T q_t

  Under `jax.set_mesh`, every device computes its own rows, heads and segment of
  time. Devices along time exchange the state that their tokens leave.

  >>> import jax.numpy as jnp
  >>> ones, v = jnp.ones((1, 4, 1, 1)), jnp.arange(4.).reshape(1, 4, 1, 1)
  >>> S, y = linear_attention(ones, ones, v, log_decay=jnp.log(jnp.array([.5])))
  >>> y.ravel()
  Array([0.  , 1.  , 2.5 , 4.25], dtype=float32)

  Args:
    q: Queries `[B, T, G, K]`, `G` groups of heads; T >= 0.
    k: Keys `[B, T, G, K]`.
    v: Values `[B, T, H, V]`, `H` a multiple of `G`; the first `H / G` heads are
      the first group.
    S0: State before the first token `[B, H, K, V]`; zeros if `None`.
    log_decay: `None` for no decay; `[H]`, the same at all times; `[B, T, H]`;
      or `[B, T, H, K]`, which needs `G = H`. At most 0; minus infinity forgets
      everything.
    bonus: `[H, K]`, or `None`.
    scale: A factor of the queries.
    reset: Booleans `[B, T]`, `True` where a new sequence starts. Nothing before
      it reaches anything after it, not even a NaN.
    mask: Booleans `[B, T]`, `False` where a token is absent: its output is 0,
      and nothing decays.
    chunk_size: `Q`, a power of two. If `None`, it is 64, or 32 for decays per
      key feature.

  Returns:
    `(S, y)`: the state after the last token `[B, H, K, V]`, in
    `promote_types(float32, ...)` of the operands, and `[B, T, H, V]` in the
    dtype of `v`.

  Raises:
    ValueError: If shapes or dtypes disagree.
  """
  q, k, v, S0, g, bonus = head_groups.checked(
      q, k, v, S0, log_decay, bonus, ('B', 'T')
  )
  reset, mask = checking.flags(reset, mask, v.shape)
  if chunk_size is None:
    chunk_size = 32 if g is not None and g.ndim == 4 else 64
  decay_layout = '' if g is None else {1: 'd', 3: 'btd', 4: 'btdk'}[g.ndim]
  return mesh.run_per_device(
      functools.partial(_run, scale=scale, chunk_size=chunk_size),
      # A group stays on one device, unless it is the only one.
      v if q.shape[2] == 1 else q,
      (q, k, v, S0, g, bonus, reset, mask),
      ('btdk',) * 3 + ('bdkk', decay_layout, 'dk', 'bt', 'bt'),
      ('bdkk', 'btdk'),
  )


def linear_attention_step(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    S: jax.Array,
    *,
    log_decay: jax.Array | None = None,
    bonus: jax.Array | None = None,
    scale: float = 1.0,
) -> tuple[jax.Array, jax.Array]:
  """Runs `linear_attention` for one token.

  >>> import jax.numpy as jnp
  >>> one, S = jnp.ones((1, 1, 1)), jnp.full((1, 1, 1, 1), 4.)
  >>> linear_attention_step(one, one, one, S, log_decay=jnp.log(one[0, 0] / 2))
  (Array([[[[3.]]]], dtype=float32), Array([[[3.]]], dtype=float32))

  Args:
    q: `[B, G, K]`.
    k: `[B, G, K]`.
    v: `[B, H, V]`.
    S: `[B, H, K, V]`.
    log_decay: `None`, `[H]`, `[B, H]` or `[B, H, K]`.
    bonus: `[H, K]`, or `None`.
    scale: A factor of the queries.

  Returns:
    `(S, y)`: the next state, and `[B, H, V]` in the dtype of `v`.

  Raises:
    ValueError: If shapes or dtypes disagree.
  """
  q, k, v, S, g, bonus = head_groups.checked(
      q, k, v, S, log_decay, bonus, ('B',)
  )
  out_dtype = v.dtype
  q, k, v = (u.astype(S.dtype) for u in (q * scale, k, v))
  heads = v.shape[1] // q.shape[1]
  q, k = (jnp.repeat(u, heads, axis=1) for u in (q, k))
  new = k[..., None] * v[..., None, :]
  before = S
  if g is not None:
    g = g if g.ndim == 3 else g[..., None]
    S = jnp.exp(g)[..., None] * S
  S = S + new
  if bonus is None:
    read = S
  else:
    read = before + bonus[..., None] * new
  return S, (q[..., None] * read).sum(-2).astype(out_dtype)


def _run(q, k, v, S0, g, bonus, reset, mask, *, segments, scale, chunk_size):
  """Runs what one device holds, one chunk after the other."""
  tokens, same_always = dict(q=q, k=k, v=v), None
  if g is not None and g.ndim == 1:
    # Counts the tokens that are present. If all are, the decays between tokens
    # are the same in every chunk.
    tokens['count'] = jnp.ones_like(S0, shape=v.shape[:2] + (1,))
    if mask is None:
      length = chunkwise.chunk_length(v.shape[1], chunk_size)
      number = jnp.arange(length, dtype=g.dtype)
      same_always = chunk_lib.constant_between(g, number)
  elif g is not None:
    tokens['g'] = g

  def one_chunk(S, chunk, visible):
    chunk = {name: u.astype(S.dtype) for name, u in chunk.items()}
    q, k, v = chunk['q'] * scale, chunk['k'], chunk['v']
    if g is not None and g.ndim == 4:
      S, y = chunk_lib.per_feature(S, q, k, v, chunk['g'], bonus, visible)
    elif g is None:
      S, y = chunk_lib.per_head(S, q, k, v, None, bonus, visible)
    elif g.ndim == 3:
      weights = chunk_lib.changing(chunk['g'])
      S, y = chunk_lib.per_head(S, q, k, v, weights, bonus, visible)
    else:
      number = jnp.cumsum(chunk['count'], axis=-1)
      weights = chunk_lib.constant(g, number, same_always)
      S, y = chunk_lib.per_head(S, q, k, v, weights, bonus, visible)
    return S, y.astype(tokens['v'].dtype)

  summary = lambda tokens, reset: _summary(tokens, g, reset, S0.dtype)
  S0 = chunkwise.entering_state(
      segments, summary, _combine, S0, tokens, reset, mask
  )
  S, y = chunkwise.scan_chunks(one_chunk, S0, tokens, reset, mask, chunk_size)
  return chunkwise.leaving_state(segments, S), y


def _summary(tokens, g, reset, dtype):
  """How a segment of time changes a state, and the state that it leaves.

  Args:
    tokens: See `_run`.
    g: Log decays. If they depend on the token, those in `tokens` are used.
    reset: `[B, T]` or `None`.
    dtype: The dtype of states.

  Returns:
    The factor of a state that enters, `[B, H, K, 1]` or with sizes of 1 for `H`
    and `K`; and the state `[B, H, K, V]`.
  """
  k, v = tokens['k'].astype(dtype), tokens['v'].astype(dtype)
  groups = k.shape[2]
  last, through = chunkwise.visible_at_end(reset, v)
  if g is None:
    total = jnp.zeros_like(v, shape=(v.shape[0], 1, 1))
  elif g.ndim == 1:
    number = jnp.cumsum(tokens['count'], axis=1)
    v = v * jnp.exp(g * (number[:, -1:] - number))[..., None]
    total = (g * number[:, -1])[..., None]
  elif g.ndim == 3:
    v = v * jnp.exp(decays.after(tokens['g'], 1))[..., None]
    total = tokens['g'].sum(1)[..., None]
  else:
    k = k * jnp.exp(decays.after(tokens['g'], 1))
    total = tokens['g'].sum(1)
  v = jnp.where(last[..., None, None], v, 0)
  v = v.reshape(*v.shape[:2], groups, v.shape[2] // groups, v.shape[-1])
  S = exact.einsum('btgk,btgrv->bgrkv', k, v)
  kept = jnp.where(through[:, None, None], jnp.exp(total), 0)
  S = S.reshape(S.shape[0], S.shape[1] * S.shape[2], *S.shape[3:])
  return kept[..., None], S


def _combine(earlier, later):
  """Merges the summaries of two adjacent segments of time."""
  kept, S = later
  return kept * earlier[0], kept * earlier[1] + S
