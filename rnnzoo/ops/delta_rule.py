"""The delta rule: a matrix state that is corrected by the error it makes."""

import functools

import jax
import jax.numpy as jnp
from rnnzoo.ops import rank_one


def delta_rule(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    beta: jax.Array,
    S0: jax.Array | None = None,
    *,
    log_decay: jax.Array | None = None,
    scale: float = 1.0,
    reset: jax.Array | None = None,
    mask: jax.Array | None = None,
    chunk_size: int | None = None,
) -> tuple[jax.Array, jax.Array]:
  r"""Runs a state that maps keys to values, and corrects it where it is wrong.

  .. math::
      S'_t &= e^{g_t} S_{t-1} \\
      S_t &= S'_t + k_t \beta_t (v_t - S_t'^\top k_t)^\top \\
      y_t &= \mathrm{scale} \cdot S_t^\top q_t

  With a key of length 1 and a `beta` of 1, the state maps `k_t` to exactly
  `v_t`, whatever it mapped it to before. In chunks of `Q` tokens (Yang et al.
  2024, https://arxiv.org/abs/2406.06484; with decays
  https://arxiv.org/abs/2412.06464), what the tokens write is the solution of a
  triangular system of equations. Everything is a product of matrices, about
  `3 K V + 2 Q (K + V) + Q^2 / 3` multiplications per token and head.

  Under `jax.set_mesh`, every device computes its own rows, heads and segment of
  time. Devices along time exchange the state that their tokens leave, and the
  matrix `[K, K]` that their tokens multiply a state by. Computing these costs
  as much again, with `V + K` in place of `V`.

  >>> import jax.numpy as jnp
  >>> k = jnp.array([1., 0.])[None, None, None].repeat(2, axis=1)
  >>> v = jnp.array([[2.], [5.]])[None, :, None]
  >>> S, y = delta_rule(k, k, v, jnp.ones((1, 2, 1)))
  >>> y[0, :, 0, 0], S[0, 0, :, 0]
  (Array([2., 5.], dtype=float32), Array([5., 0.], dtype=float32))

  Args:
    q: Queries `[B, T, H, K]`, T >= 0.
    k: Keys `[B, T, H, K]`. They are not normalised; the state stays bounded if
      `beta` times the square of their length is in [0, 2].
    v: Values `[B, T, H, V]`.
    beta: The part of the error that is corrected `[B, T, H]`.
    S0: State before the first step `[B, H, K, V]`; zeros if `None`.
    log_decay: Logarithms `g` of the decays `[B, T, H]`, at most 0, and minus
      infinity is allowed; no decay if `None`.
    scale: A factor of the outputs.
    reset: Booleans `[B, T]`, `True` where a new sequence starts. Nothing before
      it reaches anything after it, not even a NaN.
    mask: Booleans `[B, T]`, `False` where a token is absent: its output is 0,
      and the state does not change.
    chunk_size: `Q`, a power of two. If `None`, it is 32, or 64 for keys of more
      than 64 features.

  Returns:
    `(S_last, y)`: the state after the last step, in `promote_types(float32,
    ...)` of the operands, which is also the dtype of the computation; and
    outputs `[B, T, H, V]` in the dtype of `v`.

  Raises:
    ValueError: If shapes or dtypes disagree.
  """
  operands = dict(q=q, k=k, v=v, beta=beta, log_decay=log_decay, S0=S0)
  operands, reset, mask = rank_one.checked(operands, 'BTH', reset, mask)
  if chunk_size is None:  # Large states are saved less often.
    chunk_size = 32 if q.shape[-1] <= 64 else 64
  body = functools.partial(one_chunk, scale=scale)
  return rank_one.run(body, operands, reset, mask, chunk_size)


def delta_rule_step(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    beta: jax.Array,
    S: jax.Array,
    *,
    log_decay: jax.Array | None = None,
    scale: float = 1.0,
) -> tuple[jax.Array, jax.Array]:
  """Runs `delta_rule` for one token, so operands have no axis T.

  Returns:
    `(S, y)`: the next state, and outputs `[B, H, V]`.

  Raises:
    ValueError: If shapes or dtypes disagree.
  """
  operands = dict(q=q, k=k, v=v, beta=beta, log_decay=log_decay, S0=S)
  operands, _, _ = rank_one.checked(operands, 'BH', None, None)
  q, k, v, beta, g, S = operands.values()
  dtype, out_dtype = S.dtype, v.dtype
  q, k, v, beta = (u.astype(dtype) for u in (q, k, v, beta))
  if g is not None:
    S = S * jnp.exp(g)[..., None, None]
  error = v - rank_one.read(k, S)
  S = S + rank_one.outer(k, beta[..., None] * error)
  return S, (scale * rank_one.read(q, S)).astype(out_dtype)


def one_chunk(S, inputs, visible, *, scale):
  """Runs one chunk `[B, H, Q, ...]`; without queries it has no outputs.

  The steps are those of the chunkwise form in the papers. `M` masks what is not
  visible, `Gamma` holds the decays between two tokens, and rows are tokens:

    1. T = (I + tril(diag(beta) (Gamma * K K^T), -1))^-1 diag(beta)
    2. U - W S: what the tokens write, with `U = T V` and `W = T (gamma K)`
    3. O = gamma Q S + (Gamma * M * Q K^T) (U - W S)
    4. S' = gamma_Q S + (gamma_Q / gamma K)^T (U - W S)
  """
  q, k, v, beta, g = inputs
  out_dtype, dtype = v.dtype, S.dtype
  k, v, beta = (u.astype(dtype) for u in (k, v, beta))
  system = rank_one.delta_system(k, beta, g, visible)
  state, last, through = system.state, system.last, system.through

  # 1 and 2. A token writes `beta` times its error: its value minus what it
  # reads in the entering state and in what the tokens before it write. Both `T`
  # factors of `U - W S` are applied to the same right-hand side at once.
  error = v - state * rank_one.matmul(k, S)
  written = rank_one.matmul(system.solve, beta[..., None] * error)
  # 3. The outputs.
  y = None
  if q is not None:
    q = q.astype(dtype)
    y = state * rank_one.matmul(q, S)
    y = y + rank_one.matmul(system.products(q, k, visible.pairs), written)
    y = (scale * y).astype(out_dtype)
  # 4. The state that leaves the chunk.
  return through * S + rank_one.outer_sum(last * k, written), y
