"""The memory of mLSTM: a matrix with exponential gates."""

from collections.abc import Callable
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
from rnnzoo import mesh
from rnnzoo.ops import checking
from rnnzoo.ops import chunkwise
from rnnzoo.ops import decays
from rnnzoo.ops import exact

_LOG_FORGET: dict[str, Callable[[jax.Array], jax.Array]] = dict(
    sigmoid=jax.nn.log_sigmoid, exponential=lambda f: f
)

# The layouts of `q, k, v, i, f`, the state, `reset` and `mask`, and of the
# results (see `rnnzoo/mesh.py`).
_STATE_LAYOUTS = ('bdkk', 'bdk', 'bd')
_LAYOUTS = ('btdk',) * 3 + ('btd',) * 2 + _STATE_LAYOUTS + ('bt',) * 2


class MLSTMState(NamedTuple):
  """The state after some tokens, in float32 at least.

  Attributes:
    C: The memory times `exp(-m)`, `[B, H, K, V]`.
    n: The normaliser times `exp(-m)`, `[B, H, K]`.
    m: The logarithm of the scale that keeps both in range, `[B, H]`.
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
  r"""Writes values under their keys into a memory that decays, and reads it.

  .. math::
      C_t &= \sigma(f_t) C_{t-1} + e^{i_t} k_t v_t^T, \quad
      n_t = \sigma(f_t) n_{t-1} + e^{i_t} k_t \\
      h_t &= \frac{C_t^T q_t}{\max(|n_t^T q_t|, 1) + \epsilon e^{m_t}}

  where :math:`q_t` is scaled. C and n are stored times :math:`e^{-m_t}`,

  .. math::
      m_t = \max(\log \sigma(f_t) + m_{t-1}, i_t), \quad m_0 = 0.

  The result depends on m only through the weight of :math:`\epsilon`, which is
  a part of the official code. No exponential is larger than 1, whatever the
  gates are, so nothing overflows. The sequence is computed in chunks of `Q`
  tokens, with the results of `mlstm_step`. The cost per token and head is about
  `(Q + 2 K) (K + V)` multiplications, all in products of matrices, and `2 Q`
  exponentials. Only the states between chunks are computed one after the other.

  Under `jax.set_mesh`, every device computes its own rows, heads and segment of
  time. Devices along time exchange the state that their tokens leave.

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
    state: The state after earlier tokens; `empty_mlstm_state` if `None`.
    scale: A factor of the queries; `1 / sqrt(K)` if `None`.
    eps: Added to the divisor after it is multiplied by `exp(-m)`.
    forget_gate: `sigmoid` or `exponential`.
    reset: Booleans `[B, T]`, `True` where a new sequence starts. Nothing before
      it reaches anything after it, not even a NaN.
    mask: Booleans `[B, T]`, `False` where a token is absent: its output is 0,
      and nothing decays.
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
    if mask is not None:  # So that no gradient flows, even if there is a NaN.
      f = jnp.where(mask[..., None], f, 0)
    i = decays.finite(i, C.dtype)
    g = decays.finite(log_forget(f.astype(C.dtype)), C.dtype)
    # Inputs of absent steps are 0, but an `i` of 0 has a weight. So this input
    # says which steps are present.
    present = jnp.ones_like(i, shape=i.shape[:2] + (1,))

    def body(state, chunk, visible):
      state, h = _one_chunk(state, chunk, visible, scale, eps)
      return state, h.astype(v.dtype)

    inputs = q, k, v, i, g, present
    state = chunkwise.entering_state(
        segments, _summary, _combine, MLSTMState(C, n, m), inputs, reset, mask
    )
    state, h = chunkwise.scan_chunks(
        body, state, inputs, reset, mask, chunk_size
    )
    return *chunkwise.leaving_state(segments, state), h

  C, n, m, h = mesh.run_per_device(
      run, v, (q, k, v, i, f, *state, reset, mask), _LAYOUTS,
      (*_STATE_LAYOUTS, 'btdk'),
  )
  return MLSTMState(C, n, m), h


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
  """Runs `mlstm` for one token: `[B, H, K]`, `[B, H, V]` and `[B, H]`.

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
  i = decays.finite(i, dtype)
  g = decays.finite(_log_forget(forget_gate)(f.astype(dtype)), dtype)
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


def _one_chunk(state, chunk, visible, scale, eps):
  """Runs one chunk `[B, H, Q, ...]`.

  The steps are those of the chunkwise form of mLSTM (Beck et al. 2024,
  https://arxiv.org/abs/2405.04517, and 2025, https://arxiv.org/abs/2503.14376):

    1. the gate matrix D within the chunk, and the gates b from the state that
       enters, both as logarithms
    2. m, the row maximum of both
    3. h: the numerator from within the chunk and from the entering state,
       divided by the normaliser
    4. the state C, n, m that leaves the chunk
  """
  C, n, m_entering = state
  q, k, v, i, g, present = chunk
  q, k, v = (u.astype(C.dtype) for u in (q, k, v))
  q, g_earlier = q * scale, g[..., None, :]

  # 1. `entering` also has the sum of the forget gates since the start of a
  # sequence in the chunk, where the m that enters is 0.
  tokens = jnp.where(
      visible.pairs & (present[..., None, :] > 0),
      decays.between(g) + i[..., None, :],
      -jnp.inf,
  )
  entering = jnp.where(visible.pairs, g_earlier, 0).sum(-1)
  entering = entering + jnp.where(visible.state, m_entering[..., None], 0)
  # 2.
  m = jnp.maximum(entering, tokens.max(-1))
  r = _in_range(m)

  # 3.
  weights = exact.einsum('bhik,bhjk->bhij', q, k)
  weights = weights * jnp.exp(tokens - r[..., None])
  from_state = jnp.exp(jnp.where(visible.state, entering - r, -jnp.inf))
  h = _average(
      exact.einsum('bhij,bhjv->bhiv', weights, v)
      + exact.einsum('bhik,bhkv->bhiv', q, C) * from_state[..., None],
      weights.sum(-1) + exact.einsum('bhik,bhk->bhi', q, n) * from_state,
      m, r, eps,
  )

  # 4. Tokens have the weights in the state that they have for the last token.
  m = m[..., -1]
  new = jnp.exp(tokens[..., -1, :] - m[..., None])[..., None] * k
  kept = jnp.where(visible.through, entering[..., -1] - m, -jnp.inf)
  kept = jnp.exp(kept)[..., None]
  C = kept[..., None] * C + exact.einsum('bhjk,bhjv->bhkv', new, v)
  return MLSTMState(C, kept * n + new.sum(-2), m), h


def _summary(chunk, reset):
  """How a segment of time changes a state, and the state that it leaves.

  Returns:
    The logarithm of the factor of a state that enters `[B, H]`; and the state
    that the tokens leave, whose m is that of these tokens only.
  """
  _, k, v, i, g, present = chunk
  k, v = k.astype(g.dtype), v.astype(g.dtype)
  last, through = (u[..., None] for u in chunkwise.visible_at_end(reset, g))
  seen = last & (present > 0)
  tokens = jnp.where(seen, decays.after(g, 1) + i, decays.NEVER)
  kept = jnp.where(last, g, 0).sum(1)
  # Where a sequence starts, m is 0.
  start = jnp.where(through, decays.NEVER, kept)
  m = jnp.maximum(tokens.max(1), start)
  new = jnp.where(seen, jnp.exp(tokens - m[:, None]), 0)[..., None] * k
  state = MLSTMState(exact.einsum('bthk,bthv->bhkv', new, v), new.sum(1), m)
  return jnp.where(through, kept, decays.NEVER), state


def _combine(earlier, later):
  """Merges the summaries of two adjacent segments of time."""
  kept_before, before = earlier
  kept, left = later
  m = jnp.maximum(kept + before.m, left.m)
  of_before = jnp.exp(kept + before.m - m)[..., None]
  of_left = jnp.exp(left.m - m)[..., None]
  n = of_before * before.n + of_left * left.n
  C = of_before[..., None] * before.C + of_left[..., None] * left.C
  return kept_before + kept, MLSTMState(C, n, m)


def _in_range(m):
  """Returns r; outputs are computed with a factor `exp(-r)`, which cancels.

  It is not `m`, because for gates that are almost closed, `m` is far below 0,
  and then `exp(-m)`, the 1 in the divisor times this factor, overflows.
  """
  return jax.lax.stop_gradient(jnp.maximum(m, 0))


def _average(numerator, divisor, m, r, eps):
  """Returns `h` from numerator and divisor, both times `exp(-r)`."""
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
