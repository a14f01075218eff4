"""The delta rule with a past in levels: log-linear Gated DeltaNet."""

import functools

import jax
import jax.numpy as jnp
from rnnzoo.ops import checking
from rnnzoo.ops import exact
from rnnzoo.ops import fenwick
from rnnzoo.ops import level_scan
from rnnzoo.ops import rank_one


def log_linear_delta_rule(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    beta: jax.Array,
    level_scales: jax.Array,
    state: fenwick.LevelState | None = None,
    *,
    log_decay: jax.Array | None = None,
    scale: float = 1.0,
    reset: jax.Array | None = None,
    mask: jax.Array | None = None,
    chunk_size: int | None = None,
) -> tuple[fenwick.LevelState, jax.Array]:
  r"""Runs `delta_rule`, but weighs what it wrote by the age of the tokens.

  The state of `delta_rule` is a sum over tokens: what a token wrote, times all
  later transitions. So it splits into the levels of `log_linear_attention`:

  .. math::
      M_t &= e^{g_t} (I - \beta_t k_t k_t^\top) \\
      y_t &= \mathrm{scale} \sum_{s \le t} \lambda_t^{(\ell(t, s))}
             q_t^\top M_t M_{t-1} \dots M_{s+1} k_s \beta_s v_s^\top

  If all scales are 1, this is `delta_rule`. It is section 3.4 of Guo et al.
  (2025, https://arxiv.org/abs/2506.04761) as this project reads it; no numbers
  of the authors were at hand to compare with. Levels, lengths and meshes are as
  in `log_linear_attention`.

  The cost per token and head is that of `delta_rule` and about `(L - 1) K (2 V
  + K V / Q)` multiplications for the levels.

  >>> import jax.numpy as jnp
  >>> k = jnp.array([1., 0.])[None, None, None].repeat(2, axis=1)
  >>> v = jnp.array([[2.], [5.]])[None, :, None]
  >>> scales = jnp.ones((1, 2, 1, 2))
  >>> state, y = log_linear_delta_rule(k, k, v, jnp.ones((1, 2, 1)), scales)
  >>> y[0, :, 0, 0], state.count
  (Array([2., 5.], dtype=float32), Array([2], dtype=int32))

  Args:
    q: Queries `[B, T, H, K]`, T >= 0.
    k: Keys `[B, T, H, K]`, as in `delta_rule`.
    v: Values `[B, T, H, V]`.
    beta: The part of the error that is corrected `[B, T, H]`.
    level_scales: The scale of each level `[B, T, H, L]`, 2 to 25 levels.
    state: The state before the first token; zeros if `None`.
    log_decay: Logarithms `g` of the decays `[B, T, H]`, at most 0, and minus
      infinity is allowed; no decay if `None`.
    scale: A factor of the outputs.
    reset: Booleans `[B, T]`, `True` where a new sequence starts. Nothing before
      it reaches anything after it, not even a NaN.
    mask: Booleans `[B, T]`, `False` where a token is absent: its output is 0,
      the state does not change, and the position stays.
    chunk_size: `Q`, a power of two. If `None`, it is 64.

  Returns:
    `(state, y)`: the state after the last token, in `promote_types(float32,
    ...)` of the operands, and `[B, T, H, V]` in the dtype of `v`.

  Raises:
    ValueError: If shapes or dtypes disagree, or a sequence is known to be too
      long.
  """
  tokens, state = _checked(
      q, k, v, beta, level_scales, state, log_decay, 'BTH'
  )
  return level_scan.run(
      functools.partial(_one_chunk, scale=scale), rank_one.matmul, _identity,
      tokens, state, tokens['v'], reset, mask,
      64 if chunk_size is None else chunk_size,
  )


def log_linear_delta_rule_step(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    beta: jax.Array,
    level_scales: jax.Array,
    state: fenwick.LevelState,
    *,
    log_decay: jax.Array | None = None,
    scale: float = 1.0,
    mask: jax.Array | None = None,
) -> tuple[fenwick.LevelState, jax.Array]:
  """Runs `log_linear_delta_rule` for one token; operands have no axis T.

  Where `mask` `[B]` is `False`, the state stays and the output is 0, and the
  levels may be full.

  Returns:
    `(state, y)`: the next state, and `[B, H, V]` in the dtype of `v`.

  Raises:
    ValueError: If shapes or dtypes disagree, or the levels are known to be
      full.
  """
  tokens, state = _checked(q, k, v, beta, level_scales, state, log_decay, 'BH')
  out_dtype = tokens['v'].dtype
  _, mask = checking.flags(None, mask, tokens['v'].shape[:1])
  S, levels = state.levels, tokens['level_scales'].shape[-1]
  fenwick.check_length_of_step(state.count, levels, mask)
  tokens = {name: u.astype(S.dtype) for name, u in tokens.items()}
  q, k, v, beta = (tokens[name] for name in ('q', 'k', 'v', 'beta'))
  scales = scale * tokens['level_scales']
  if 'log_decay' in tokens:
    S = jnp.exp(tokens['log_decay'])[..., None, None, None] * S
  key = k[:, :, None]
  S = S - rank_one.outer(key, beta[..., None, None] * rank_one.read(key, S))
  new = rank_one.outer(k, beta[..., None] * v)
  y = scales[..., :1] * rank_one.read(q, new)
  y = y + (scales[..., 1:, None] * rank_one.read(q[:, :, None], S)).sum(2)
  return fenwick.after_step(state, S, new, y.astype(out_dtype), mask)


def _identity(S):
  size = S.shape[3]
  return jnp.zeros_like(
      S, shape=(*S.shape[:2], 1, size, size)
  ) + jnp.eye(size, dtype=S.dtype)


def _one_chunk(S, chunk, visible, places, *, scale):
  """Runs one chunk `[B, H, Q, ...]`, see `level_scan.run`.

  In the notation of `delta_rule`, with `W = T gamma K`:

    1. transition: gamma_Q I - (gamma_Q / gamma K)^T W
    2. added: the columns of (gamma_Q / gamma K)^T T, times values
    3. outputs: (Lambda * ((Gamma * M * Q K^T) T)) V, and for each level
       lambda (gamma Q - (Gamma * M * Q K^T) W) S
  """
  k, v, beta = chunk['k'], chunk['v'], chunk['beta']
  system = rank_one.delta_system(k, beta, chunk.get('log_decay'), visible)
  solve = system.solve * beta[..., None, :]
  state_read = rank_one.matmul(solve, system.state * k)  # W
  kept = system.last * k
  # 1. The transition.
  eye = jnp.eye(k.shape[-1], dtype=k.dtype)
  transition = system.through * eye - rank_one.outer_sum(kept, state_read)
  # 2. What the tokens add to the state.
  keys = exact.einsum('...ij,...ik->...jk', solve, kept)
  values = fenwick.into_levels(v, places.left, S.shape[2] + 1)
  new = exact.einsum('bhjk,bhnjv->bhnkv', keys, values)
  # 3. The outputs.
  y = None
  if 'q' in chunk:
    q, scales = chunk['q'], scale * chunk['level_scales']
    products = system.products(q, k, visible.pairs)
    query = system.state * q - rank_one.matmul(products, state_read)
    pairs = fenwick.scales_of_pairs(scales, places)
    y = rank_one.matmul(pairs * rank_one.matmul(products, solve), v)
    read = rank_one.matmul(query[:, :, None], S)
    states = fenwick.scales_of_states(scales, places)
    y = y + exact.einsum('bhin,bhniv->bhiv', states, read)
  return transition[:, :, None], new, y


def _checked(q, k, v, beta, scales, state, g, axes):
  """Returns the operands by name as arrays, and the state, or raises."""
  operands = dict(q=q, k=k, v=v, beta=beta, log_decay=g, S0=None)
  operands, _, _ = rank_one.checked(operands, axes, None, None)
  S = operands.pop('S0')
  operands['level_scales'], state = fenwick.checked(
      scales, state, operands['v'], S, axes
  )
  return {n: u for n, u in operands.items() if u is not None}, state
