"""The memory of mLSTM: a matrix, and gates that know no bounds."""

from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
from rnnzoo import mesh
from rnnzoo.ops import checking
from rnnzoo.ops import chunkwise
from rnnzoo.ops import exact

_LOG_FORGET = dict(sigmoid=jax.nn.log_sigmoid, exponential=lambda f: f)

# Of `q, k, v, i, f`, the state, `reset` and `mask`, and of the results; see
# `mesh.run_per_device`.
_STATE_LAYOUTS = ('bdkk', 'bdk', 'bd')
_LAYOUTS = ('btdk',) * 3 + ('btd',) * 2 + _STATE_LAYOUTS + ('bt',) * 2


class MLSTMState(NamedTuple):
  """What is left of all tokens so far, float32 at least.

  Attributes:
    C: The memory, times `exp(-m)`, `[B, H, K, V]`.
    n: The normaliser, likewise, `[B, H, K]`.
    m: The logarithm that keeps both in range `[B, H]`.
  """

  C: jax.Array
  n: jax.Array
  m: jax.Array


def mlstm(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    i: jax.Array,
    f: jax.Array,
    state: MLSTMState | None = None,
    *,
    scale: float | None = None,
    eps: float = 1e-6,
    forget_gate: Literal['sigmoid', 'exponential'] = 'sigmoid',
    reset: jax.Array | None = None,
    mask: jax.Array | None = None,
    chunk_size: int = 64,
) -> tuple[MLSTMState, jax.Array]:
  r"""Writes values under their keys into a memory that fades, and reads it.

  .. math::
      C_t &= \sigma(f_t) C_{t-1} + e^{i_t} k_t v_t^T, \quad
      n_t = \sigma(f_t) n_{t-1} + e^{i_t} k_t \\
      h_t &= \frac{C_t^T q_t}{\max(|n_t^T q_t|, 1) + \epsilon e^{m_t}}

  with :math:`q_t` scaled. C and n are kept times :math:`e^{-m_t}`,

  .. math::
      m_t = \max(\log \sigma(f_t) + m_{t-1}, i_t), \quad m_0 = 0,

  on which nothing depends but the weight of :math:`\epsilon`, a part of the
  official code. Every exponential that is taken is at most 1, whatever the
  gates are, so nothing overflows: in chunks of `Q` tokens as in `mlstm_step`,
  whose results these are. Cost a token and head: about `(Q + 2 K) (K + V)`
  multiplications, all in products of matrices, and `2 Q` exponentials. Only
  states between chunks come one after the other.

  Under `jax.set_mesh` every device computes its own rows, heads and stretch of
  time; devices along time tell each other what their tokens leave, one state.

  >>> import jax.numpy as jnp
  >>> k = jnp.eye(2).reshape(1, 2, 1, 2)                # [B, T, H, K]
  >>> v = jnp.array([3., 5.]).reshape(1, 2, 1, 1)       # [B, T, H, V]
  >>> i, f = jnp.zeros((1, 2, 1)), jnp.full((1, 2, 1), 100.)
  >>> state, h = mlstm(jnp.ones_like(k), k, v, i, f, scale=1., eps=0.)
  >>> h.ravel(), state.C.ravel()
  (Array([3., 4.], dtype=float32), Array([3., 5.], dtype=float32))

  Args:
    q: Queries `[B, T, H, K]`, T >= 0.
    k: Keys `[B, T, H, K]`.
    v: Values `[B, T, H, V]`.
    i: Input gates before their exponential `[B, T, H]`.
    f: Forget gates before their sigmoid `[B, T, H]`.
    state: What earlier tokens left; that of no tokens if `None`.
    scale: Queries are multiplied by it; `1 / sqrt(K)` if `None`.
    eps: Added to the divisor, where that is times `exp(-m)`.
    forget_gate: `sigmoid` or `exponential`.
    reset: Booleans `[B, T]`, `True` where a new sequence starts: by selection,
      so that a NaN before it reaches nothing after it.
    mask: Booleans `[B, T]`; a `False` token is absent: its output is 0, and
      nothing fades.
    chunk_size: `Q`, a power of two.

  Returns:
    `(state, h)`: the state, in `promote_types(float32, ...)` of the operands,
    and outputs `[B, T, H, V]` in the dtype of `v`.

  Raises:
    ValueError: If shapes or dtypes disagree, or an option is unknown.
  """
  q, k, v, i, f, state = _checked(q, k, v, i, f, state, ('B', 'T'))
  reset, mask = checking.flags(reset, mask, v.shape)
  log_forget = _log_forget(forget_gate)
  scale = q.shape[-1] ** -0.5 if scale is None else scale

  def run(q, k, v, i, f, C, n, m, reset, mask, *, segments):
    if mask is not None:  # No gradient, even if there is a NaN.
      f = jnp.where(mask[..., None], f, 0)
    i = chunkwise.log_decay(i, C.dtype)
    g = chunkwise.log_decay(log_forget(f.astype(C.dtype)), C.dtype)
    # 0 where a step is absent, as everything is, and an `i` of 0 is something.
    present = jnp.ones_like(i, shape=i.shape[:2] + (1,))

    def body(state, chunk, sight):
      state, h = _one_chunk(state, chunk, sight, scale, eps)
      return state, h.astype(v.dtype)

    inputs = q, k, v, i, g, present
    state = chunkwise.entering(
        segments, _by_itself, _both, MLSTMState(C, n, m), inputs, reset, mask
    )
    state, h = chunkwise.scan_chunks(
        body, state, inputs, reset, mask, chunk_size
    )
    return *chunkwise.leaving(segments, state), h

  *state, h = mesh.run_per_device(
      run, v, (q, k, v, i, f, *state, reset, mask), _LAYOUTS,
      (*_STATE_LAYOUTS, 'btdk'),
  )
  return MLSTMState(*state), h


def mlstm_step(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    i: jax.Array,
    f: jax.Array,
    state: MLSTMState | None = None,
    *,
    scale: float | None = None,
    eps: float = 1e-6,
    forget_gate: Literal['sigmoid', 'exponential'] = 'sigmoid',
) -> tuple[MLSTMState, jax.Array]:
  """`mlstm` of one token: `[B, H, K]`, `[B, H, V]` and `[B, H]`, without T.

  Returns:
    `(state, h)`: the next state, and the output `[B, H, V]` in the dtype of
    `v`.

  Raises:
    ValueError: If shapes or dtypes disagree, or an option is unknown.
  """
  q, k, v, i, f, (C, n, m) = _checked(q, k, v, i, f, state, ('B',))
  out_dtype, dtype = v.dtype, C.dtype
  q, k, v = (u.astype(dtype) for u in (q, k, v))
  q = q * (q.shape[-1] ** -0.5 if scale is None else scale)
  i = chunkwise.log_decay(i, dtype)
  g = chunkwise.log_decay(_log_forget(forget_gate)(f.astype(dtype)), dtype)
  kept = g + m
  m = jnp.maximum(kept, i)
  kept, new = jnp.exp(kept - m)[..., None], jnp.exp(i - m)[..., None] * k
  C = kept[..., None] * C + new[..., None] * v[..., None, :]
  n = kept * n + new
  r = _in_range(m)
  unit = jnp.exp(m - r)
  h = _average(
      exact.einsum('bhk,bhkv->bhv', q, C) * unit[..., None],
      (q * n).sum(-1) * unit, m, r, eps,
  )
  return MLSTMState(C, n, m), h.astype(out_dtype)


def empty_mlstm_state(
    batch_size: int,
    num_heads: int,
    key_features: int,
    value_features: int,
    dtype=jnp.float32,
) -> MLSTMState:
  """Returns the state of no tokens: zeros.

  >>> empty_mlstm_state(2, 4, 3, 5).C.shape
  (2, 4, 3, 5)
  """
  heads = batch_size, num_heads
  return MLSTMState(
      C=jnp.zeros((*heads, key_features, value_features), dtype),
      n=jnp.zeros((*heads, key_features), dtype),
      m=jnp.zeros(heads, dtype),
  )


def _one_chunk(state, chunk, sight, scale, eps):
  C, n, m_entering = state
  q, k, v, i, g, present = chunk
  q, k, v = (u.astype(C.dtype) for u in (q, k, v))
  q, g_earlier = q * scale, g[..., None, :]

  # Logarithms of what tokens, and the state that entered, weigh for each token;
  # the latter also says what m is where a sequence starts, and its m is 0.
  tokens = jnp.where(
      sight.pairs & (present[..., None, :] > 0),
      chunkwise.pairs(g) + i[..., None, :],
      -jnp.inf,
  )
  entering = jnp.where(sight.pairs, g_earlier, 0).sum(-1)
  entering = entering + jnp.where(sight.state, m_entering[..., None], 0)
  m = jnp.maximum(entering, tokens.max(-1))
  r = _in_range(m)

  weights = exact.einsum('bhik,bhjk->bhij', q, k)
  weights = weights * jnp.exp(tokens - r[..., None])
  of_state = jnp.exp(jnp.where(sight.state, entering - r, -jnp.inf))
  h = _average(
      exact.einsum('bhij,bhjv->bhiv', weights, v)
      + exact.einsum('bhik,bhkv->bhiv', q, C) * of_state[..., None],
      weights.sum(-1) + exact.einsum('bhik,bhk->bhi', q, n) * of_state,
      m, r, eps,
  )

  # What they weigh for the last token, they weigh in the state that leaves.
  m = m[..., -1]
  new = jnp.exp(tokens[..., -1, :] - m[..., None])[..., None] * k
  kept = jnp.where(sight.through, entering[..., -1] - m, -jnp.inf)
  kept = jnp.exp(kept)[..., None]
  C = kept[..., None] * C + exact.einsum('bhjk,bhjv->bhkv', new, v)
  return MLSTMState(C, kept * n + new.sum(-2), m), h


def _by_itself(chunk, reset):
  """What a stretch of time does to a state, and what it leaves by itself.

  Returns:
    The logarithm of what is left of a state `[B, H]`; and the state that the
    tokens leave, whose m is that of them alone.
  """
  _, k, v, i, g, present = chunk
  k, v = k.astype(g.dtype), v.astype(g.dtype)
  last, through = (u[..., None] for u in chunkwise.seen_last(reset, g))
  seen = last & (present > 0)
  tokens = jnp.where(seen, chunkwise.after(g, 1) + i, chunkwise.NEVER)
  kept = jnp.where(last, g, 0).sum(1)
  # Where a sequence starts m is 0.
  start = jnp.where(through, chunkwise.NEVER, kept)
  m = jnp.maximum(tokens.max(1), start)
  new = jnp.where(seen, jnp.exp(tokens - m[:, None]), 0)[..., None] * k
  state = MLSTMState(exact.einsum('bthk,bthv->bhkv', new, v), new.sum(1), m)
  return jnp.where(through, kept, chunkwise.NEVER), state


def _both(earlier, later):
  """Of two stretches of time after each other what `_by_itself` is of one."""
  kept_before, before = earlier
  kept, left = later
  m = jnp.maximum(kept + before.m, left.m)
  of_before = jnp.exp(kept + before.m - m)[..., None]
  of_left = jnp.exp(left.m - m)[..., None]
  n = of_before * before.n + of_left * left.n
  C = of_before[..., None] * before.C + of_left[..., None] * left.C
  return kept_before + kept, MLSTMState(C, n, m)


def _in_range(m):
  """What outputs are computed times `exp(-r)` with: it cancels.

  Not `m` itself: that of gates all but closed is far below 0, and `exp(-m)`,
  what the 1 in the divisor comes to, overflows.
  """
  return jax.lax.stop_gradient(jnp.maximum(m, 0))


def _average(numerator, divisor, m, r, eps):
  """`h`, from two sums times `exp(-r)`."""
  divisor = jnp.maximum(jnp.abs(divisor), jnp.exp(-r)) + eps * jnp.exp(m - r)
  return numerator / divisor[..., None]


def _log_forget(forget_gate):
  if forget_gate not in _LOG_FORGET:
    raise ValueError(
        f'`forget_gate` must be one of {list(_LOG_FORGET)}, got '
        f'{forget_gate!r}.'
    )
  return _LOG_FORGET[forget_gate]


def _checked(q, k, v, i, f, state, leading):
  """Returns the operands as arrays, the state in its dtype, or raises."""
  operands = {
      name: jnp.asarray(u) for name, u in dict(q=q, k=k, v=v, i=i, f=f).items()
  }
  q, k, v, i, f = operands.values()
  axes = ', '.join(leading)
  if q.ndim != len(leading) + 2 or k.shape != q.shape:
    raise ValueError(
        f'`q` and `k` must be [{axes}, H, K], got shapes {q.shape} and '
        f'{k.shape}.'
    )
  if v.shape[:-1] != q.shape[:-1]:
    raise ValueError(
        f'`v` must be [{axes}, H, V] with {axes}, H = {q.shape[:-1]}, got '
        f'shape {v.shape}.'
    )
  for name, u in operands.items():
    if name in 'if':
      checking.has_shape(name, u, (*leading, 'H'), q.shape[:-1])
  checking.are_floating(**operands)
  dtype = exact.accumulation_dtype(*operands.values())
  empty = empty_mlstm_state(
      q.shape[0], q.shape[-2], q.shape[-1], v.shape[-1], dtype
  )
  return q, k, v, i, f, checking.state_tuple(state, empty)
