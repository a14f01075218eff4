"""Transitions that are diagonal plus low rank, the recurrence of RWKV-7."""

import functools

import jax
import jax.numpy as jnp
from rnnzoo.ops import decays
from rnnzoo.ops import rank_one


def dplr_scan(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    a: jax.Array,
    b: jax.Array | None,
    S0: jax.Array | None = None,
    *,
    log_decay: jax.Array,
    scale: float = 1.0,
    reset: jax.Array | None = None,
    mask: jax.Array | None = None,
    chunk_size: int | None = None,
) -> tuple[jax.Array, jax.Array]:
  r"""Runs a state whose transition is a diagonal plus a rank-one matrix.

  .. math::
      S_t &= \mathrm{diag}(e^{g_t}) S_{t-1}
             + b_t (S_{t-1}^\top a_t)^\top + k_t v_t^\top \\
      y_t &= \mathrm{scale} \cdot S_t^\top q_t

  This is the recurrence of RWKV-7 (https://arxiv.org/abs/2503.14456). It
  differs from `delta_rule` in two ways. Every feature of a key has its own
  decay, and what a token removes (`b`) does not depend on what it writes. `a`
  reads the state *before* the decay. Nothing is divided by decays, so they may
  be arbitrarily strong.

  Without `b`, which is then `-k`, a token writes its value minus what it reads:

  .. math::
      S_t = \mathrm{diag}(e^{g_t}) S_{t-1} + k_t (v_t - S_{t-1}^\top a_t)^\top

  With `a = decayed(key, log_decay)` and `k` a rate times that key, this is Kimi
  Delta Attention (https://arxiv.org/abs/2510.26692). It takes fewer products.

  >>> import jax.numpy as jnp
  >>> k = jnp.array([1., 0.])[None, None, None].repeat(2, axis=1)
  >>> v = jnp.array([[2.], [5.]])[None, :, None]
  >>> S, y = dplr_scan(k, k, v, -k, k, log_decay=jnp.zeros_like(k))
  >>> y[0, :, 0, 0], S[0, 0, :, 0]
  (Array([2., 5.], dtype=float32), Array([5., 0.], dtype=float32))

  Args:
    q: Queries `[B, T, H, K]`, T >= 0.
    k: Keys `[B, T, H, K]`.
    v: Values `[B, T, H, V]`.
    a: Queries that read the state that enters a step `[B, T, H, K]`.
    b: Keys under which the result is added to the state `[B, T, H, K]`; `-k`
      if `None`.
    S0: State before the first step `[B, H, K, V]`; zeros if `None`.
    log_decay: Logarithms `g` of the decays `[B, T, H, K]`, at most 0, and minus
      infinity is allowed.
    scale: A factor of the outputs.
    reset: Booleans `[B, T]`, `True` where a new sequence starts. Nothing before
      it reaches anything after it, not even a NaN.
    mask: Booleans `[B, T]`, `False` where a token is absent: its output is 0,
      and the state does not change.
    chunk_size: A power of two; 16 if `None`.

  Returns:
    `(S_last, y)`: the state after the last step, in `promote_types(float32,
    ...)` of the operands, which is also the dtype of the computation; and
    outputs `[B, T, H, V]` in the dtype of `v`.

  Raises:
    ValueError: If shapes or dtypes disagree.
  """
  operands = dict(q=q, k=k, v=v, a=a, b=b, log_decay=log_decay, S0=S0)
  operands, reset, mask = rank_one.checked(operands, 'BTH', reset, mask)
  chunk_size = 16 if chunk_size is None else chunk_size
  body = functools.partial(_one_chunk, scale=scale)
  return rank_one.run(body, operands, reset, mask, chunk_size)


def dplr_step(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    a: jax.Array,
    b: jax.Array | None,
    S: jax.Array,
    *,
    log_decay: jax.Array,
    scale: float = 1.0,
) -> tuple[jax.Array, jax.Array]:
  """Runs `dplr_scan` for one token; its operands have no axis T.

  Returns:
    `(S, y)`: the next state, and outputs `[B, H, V]`.

  Raises:
    ValueError: If shapes or dtypes disagree.
  """
  operands = dict(q=q, k=k, v=v, a=a, b=b, log_decay=log_decay, S0=S)
  operands, _, _ = rank_one.checked(operands, 'BH', None, None)
  q, k, v, a, b, g, S = operands.values()
  dtype, out_dtype = S.dtype, v.dtype
  q, k, v, a = (u.astype(dtype) for u in (q, k, v, a))
  found = rank_one.read(a, S)
  S = S * jnp.exp(g)[..., None]
  if b is None:
    v = v - found
  else:
    S = S + rank_one.outer(b.astype(dtype), found)
  S = S + rank_one.outer(k, v)
  return S, (scale * rank_one.read(q, S)).astype(out_dtype)


def decayed(u: jax.Array, log_decay: jax.Array) -> jax.Array:
  """Returns `e^g u`, the `a` that reads of a decayed state what `u` would.

  >>> import jax.numpy as jnp
  >>> decayed(jnp.array([2., 3.]), jnp.array([0., -jnp.inf]))
  Array([2., 0.], dtype=float32)

  Args:
    u: `[..., K]`.
    log_decay: `g` `[..., K]`.

  Returns:
    `[..., K]` in the dtype of `u`.
  """
  return (jnp.exp(log_decay) * u).astype(u.dtype)


def _one_chunk(S, inputs, visible, *, scale):
  """Runs one chunk `[B, H, Q, ...]`; without queries it has no outputs.

  With `u_t = S_{t-1}^T a_t`, which is added under `b_t`, and rows for tokens:

    1. A_uv, for u and v of (q, a) and (k, b): their products, decayed between
       the two tokens
    2. U = (I - A_ab)^-1 (gamma' A S + A_ak V)
    3. Y = gamma Q S + A_qk V + A_qb U
    4. S' = gamma_Q S + (gamma_Q / gamma K)^T V + (gamma_Q / gamma B)^T U

  If B is -K, its products are those of K, and V - U is written. Here gamma is
  the decay from the entering state to each token, gamma' the one to the token
  before it, gamma_Q the one of the whole chunk.
  """
  q, k, v, a, b, g = inputs
  out_dtype, dtype = v.dtype, S.dtype
  k, v, a = (u.astype(dtype) for u in (k, v, a))
  b = None if b is None else b.astype(dtype)

  # 1. `a` reads the state that the token before it left, as a query of that
  # token would. So `a` moves to that token, and its products move back.
  q = None if q is None else q.astype(dtype)
  queries = () if q is None else (q,)
  keys = (k,) if b is None else (k, b)
  *of_q, of_a = decays.all_scores((*queries, _advanced(a)), keys, g)
  earlier = visible.pairs & rank_one.below_diagonal(k.shape[-2])
  ak, *ab = (jnp.where(earlier, decays.delayed(u, -2), 0) for u in of_a)
  state = jnp.exp(decays.until(g, -2))
  last = jnp.where(
      visible.last[..., None], jnp.exp(decays.after(g, -2)), 0
  )
  read_state = lambda u, decay: rank_one.matmul(
      jnp.where(visible.state[..., None], u * decay, 0), S
  )
  # 2. What each token reads with `a`.
  found = read_state(a, decays.delayed(state, -2, first=1))
  found = found + rank_one.matmul(ak, v)
  solve = rank_one.unit_lower_inverse(-ak if b is None else ab[0])
  found = rank_one.matmul(solve, found)
  if b is None:
    v = v - found
  # 3. The outputs.
  y = None
  if q is not None:
    qk, *qb = (jnp.where(visible.pairs, u, 0) for u in of_q[0])
    y = read_state(q, state) + rank_one.matmul(qk, v)
    if b is not None:
      y = y + rank_one.matmul(qb[0], found)
    y = (scale * y).astype(out_dtype)
  # 4. The state that leaves the chunk.
  through = jnp.where(visible.through[..., None], state[..., -1, :], 0)
  S = through[..., None] * S
  S = S + rank_one.outer_sum(last * k, v)
  if b is not None:
    S = S + rank_one.outer_sum(last * b, found)
  return S, y


def _advanced(u):
  """Gives each token of `[..., Q, K]` what the next one has; 0 for the last."""
  padding = [(0, 0)] * (u.ndim - 2) + [(0, 1), (0, 0)]
  return jnp.pad(u[..., 1:, :], padding)
