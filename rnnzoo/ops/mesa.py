"""The memory of MesaNet: a ridge regression of values on keys at each token."""

import functools
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
from rnnzoo import mesh
from rnnzoo.ops import checking
from rnnzoo.ops import chunkwise
from rnnzoo.ops import decays
from rnnzoo.ops import exact
from rnnzoo.ops import linear_attention_chunk as chunk_lib
from rnnzoo.ops import rank_one

Solver = Literal['cg', 'exact']
SOLVERS = ('cg', 'exact')

# The layouts of `q, k, v, beta, log_decay`, `ridge`, the state, `reset` and
# `mask`, and of the results (see `rnnzoo/mesh.py`).
_STATE_LAYOUTS = ('bdkk', 'bdkk')
_LAYOUTS = (
    ('btdk',) * 3 + ('btd',) * 2 + ('dk',) + _STATE_LAYOUTS + ('bt',) * 2
)


class MesaState(NamedTuple):
  """The state after some tokens, in float32 at least.

  Attributes:
    G: The weighted sum of `k k^T`, `[B, H, K, K]`: symmetric, and no eigenvalue
      is negative.
    M: The weighted sum of `k v^T`, `[B, H, K, V]`.
  """

  G: jax.Array
  M: jax.Array


def mesa_scan(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    beta: jax.Array,
    ridge: jax.Array,
    state: MesaState | None = None,
    *,
    log_decay: jax.Array,
    solver: Solver = 'cg',
    num_iterations: int = 30,
    reset: jax.Array | None = None,
    mask: jax.Array | None = None,
    chunk_size: int | None = None,
) -> tuple[MesaState, jax.Array]:
  r"""Answers each query with the best linear map from past keys to values.

  .. math::
      G_t &= e^{g_t} G_{t-1} + \beta_t k_t k_t^\top, \quad
      M_t = e^{g_t} M_{t-1} + \beta_t k_t v_t^\top \\
      y_t &= M_t^\top (G_t + \mathrm{diag}(\lambda))^{-1} q_t

  This is the recurrence of MesaNet (https://arxiv.org/abs/2506.05233). Both
  sums are linear attention, in chunks of `Q` tokens. There are two ways to
  solve the equations of a token. `cg` takes steps of conjugate gradients from
  zero for all tokens of a chunk together. A product with the matrices of all
  tokens is linear attention too, so none of them is built: `(2 Q + K) K`
  multiplications a token, head and step. `exact` builds the `Q` matrices of a
  chunk and factorises them: `K^3 / 6` multiplications a token and head.

  In exact arithmetic `K` steps of `cg` suffice. Fewer steps are a
  regularisation of their own. The gradient is that of the exact solution: it
  solves the same equations once more, in the same way.

  Under `jax.set_mesh`, every device computes its own rows, heads and segment of
  time. Devices along time exchange the state that their tokens leave.

  >>> import jax.numpy as jnp
  >>> k = jnp.array([1., 2.]).reshape(1, 2, 1, 1)       # [B, T, H, K]
  >>> one = jnp.ones((1, 2, 1))
  >>> state, y = mesa_scan(
  ...     jnp.ones_like(k), k, 3 * k, one, jnp.ones((1, 1)), log_decay=0 * one
  ... )
  >>> y.ravel(), state.G.ravel()                        # 3/2, 15/6
  (Array([1.5, 2.5], dtype=float32), Array([5.], dtype=float32))

  Args:
    q: Queries `[B, T, H, K]`, T >= 0.
    k: Keys `[B, T, H, K]`.
    v: Values `[B, T, H, V]`.
    beta: Weights of the tokens in the sums `[B, T, H]`, not negative.
    ridge: :math:`\lambda`, positive, `[H, K]`.
    state: The state after earlier tokens; zeros if `None`.
    log_decay: Logarithms `g` of the decays `[B, T, H]`, at most 0, and minus
      infinity is allowed.
    solver: `cg` or `exact`.
    num_iterations: Steps of conjugate gradients.
    reset: Booleans `[B, T]`, `True` where a new sequence starts. Nothing before
      it reaches anything after it, not even a NaN.
    mask: Booleans `[B, T]`, `False` where a token is absent: its output is 0,
      and the state does not change.
    chunk_size: `Q`, a power of two. If `None`, it is 64, or 16 for `exact`.

  Returns:
    `(state, y)`: the state, in `promote_types(float32, ...)` of the operands,
    and outputs `[B, T, H, V]` in the dtype of `v`.

  Raises:
    ValueError: If shapes or dtypes disagree, or an option is unknown.
  """
  operands, state = _checked(
      'BT', q, k, v, beta, ridge, log_decay, state
  )
  check_solver(solver, num_iterations)
  reset, mask = checking.flags(reset, mask, operands['v'].shape)
  if chunk_size is None:
    chunk_size = 16 if solver == 'exact' else 64

  def run(q, k, v, beta, g, ridge, G, M, reset, mask, *, segments):

    def body(state, chunk, visible):
      state, y = _one_chunk(
          state, chunk, visible, ridge, solver, num_iterations
      )
      return state, y.astype(v.dtype)

    inputs = q, k, v, beta, g
    state = chunkwise.entering_state(
        segments, _summary, chunk_lib.combine, MesaState(G, M), inputs,
        reset, mask,
    )
    state, y = chunkwise.scan_chunks(
        body, state, inputs, reset, mask, chunk_size
    )
    return *chunkwise.leaving_state(segments, state), y

  G, M, y = mesh.run_per_device(
      run, operands['v'], (*operands.values(), *state, reset, mask), _LAYOUTS,
      (*_STATE_LAYOUTS, 'btdk'),
  )
  return MesaState(G, M), y


def mesa_step(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    beta: jax.Array,
    ridge: jax.Array,
    state: MesaState | None = None,
    *,
    log_decay: jax.Array,
    solver: Solver = 'cg',
    num_iterations: int = 30,
) -> tuple[MesaState, jax.Array]:
  """Runs `mesa_scan` for one token; its operands have no axis T.

  Returns:
    `(state, y)`: the next state, and the output `[B, H, V]` in the dtype of
    `v`.

  Raises:
    ValueError: If shapes or dtypes disagree, or an option is unknown.
  """
  operands, (G, M) = _checked('B', q, k, v, beta, ridge, log_decay, state)
  check_solver(solver, num_iterations)
  out_dtype = operands['v'].dtype
  q, k, v, beta, g, ridge = (u.astype(G.dtype) for u in operands.values())
  kept, written = jnp.exp(g)[..., None, None], beta[..., None] * k
  G = kept * G + rank_one.outer(written, k)
  M = kept * M + rank_one.outer(written, v)

  def product(p):
    return exact.einsum('bhij,bhj->bhi', G, p) + ridge * p

  x = _solve(product, lambda: G, q, ridge, solver, num_iterations)
  return MesaState(G, M), rank_one.read(x, M).astype(out_dtype)


def empty_mesa_state(
    batch_size: int,
    num_heads: int,
    key_features: int,
    value_features: int,
    dtype=jnp.float32,
) -> MesaState:
  """Returns the state of no tokens: zeros.

  >>> empty_mesa_state(2, 4, 3, 5).M.shape
  (2, 4, 3, 5)
  """
  keys = batch_size, num_heads, key_features
  return MesaState(
      G=jnp.zeros((*keys, key_features), dtype),
      M=jnp.zeros((*keys, value_features), dtype),
  )


def check_solver(solver: str, num_iterations: int) -> None:
  """Raises `ValueError` if there is no such solver or no iteration."""
  if solver not in SOLVERS:
    raise ValueError(
        f'`solver` must be one of {", ".join(SOLVERS)}, got {solver!r}.'
    )
  if num_iterations < 1:
    raise ValueError(
        f'`num_iterations` must be at least 1, got {num_iterations}.'
    )


def _one_chunk(state, chunk, visible, ridge, solver, num_iterations):
  """Runs one chunk `[B, H, Q, ...]`: solves, reads, and sums up."""
  G, M = state
  q, k, v, beta, g = (u.astype(G.dtype) for u in chunk)
  ridge = ridge.astype(G.dtype)[:, None]
  written, weights = beta[..., None] * k, chunk_lib.changing(g)
  attend = functools.partial(
      chunk_lib.per_head, k=written, weights=weights, bonus=None,
      visible=visible,
  )
  rows = jnp.swapaxes(G, -1, -2)  # `attend` multiplies by the transpose.

  def product(p):
    return attend(rows, p, v=k)[1] + ridge * p

  def matrices():  # [B, H, Q, K, K]
    pairs = jnp.where(visible.pairs, weights.pairs, 0)
    entering = jnp.where(visible.state, weights.state, 0)[..., None, None]
    new = exact.einsum('bhij,bhjkl->bhikl', pairs, rank_one.outer(written, k))
    return entering * G[:, :, None] + new

  x = _solve(product, matrices, q, ridge, solver, num_iterations)
  M, y = attend(M, x, v=v)
  return MesaState(attend(G, q, v=k)[0], M), y


def _solve(product, matrices, q, ridge, solver, num_iterations):
  """Solves `(G + diag(ridge)) x = q` for all queries `[..., K]`.

  Args:
    product: Maps `p` `[..., K]` to `(G + diag(ridge)) p`.
    matrices: Returns `G` `[..., K, K]`.
    q: `[..., K]`.
    ridge: Broadcast to `q`.
    solver: `cg` or `exact`.
    num_iterations: Of `cg`.
  """

  def solve(product, q):
    if solver == 'cg':
      return _conjugate_gradients(product, q, num_iterations)
    eye = jnp.eye(q.shape[-1], dtype=q.dtype)
    factor = jnp.linalg.cholesky(matrices() + ridge[..., None] * eye)
    return jax.scipy.linalg.cho_solve((factor, True), q[..., None])[..., 0]

  return jax.lax.custom_linear_solve(product, q, solve, symmetric=True)


def _conjugate_gradients(product, q, num_iterations):
  """Takes a number of steps from zero. After the solution, steps are zero."""

  def step(_, carry):
    x, residual, p, square = carry
    Ap = product(p)
    size = _ratio(square, _dot(p, Ap))
    x, residual = x + size * p, residual - size * Ap
    after = _dot(residual, residual)
    return x, residual, residual + _ratio(after, square) * p, after

  zero, q = mesh.same_varying(jnp.zeros_like(q), q)
  start = zero, q, q, _dot(q, q)
  return jax.lax.fori_loop(0, num_iterations, step, start)[0]


def _dot(u, v):
  return (u * v).sum(-1, keepdims=True)


def _ratio(above, below):
  """`above / below`, or 0 where nothing is left to be solved."""
  some = below > 0
  return jnp.where(some, above / jnp.where(some, below, 1), 0)


def _summary(inputs, reset):
  """See `linear_attention_chunk.summary`; both sums are linear attention."""
  _, k, v, beta, g = inputs
  k = k.astype(g.dtype)
  tokens = dict(k=beta[..., None] * k, g=g)
  kept, G = chunk_lib.summary(tokens | dict(v=k), g, reset, g.dtype)
  _, M = chunk_lib.summary(tokens | dict(v=v), g, reset, g.dtype)
  return kept, MesaState(G, M)


def _checked(axes, q, k, v, beta, ridge, log_decay, state):
  """Returns operands by name, the state in its dtype, or raises."""
  q, k, v, beta, g, ridge = operands = tuple(
      map(jnp.asarray, (q, k, v, beta, log_decay, ridge))
  )
  names = ('q', 'k', 'v', 'beta', 'log_decay', 'ridge')
  checking.has_axes('q', q, axes + 'HK')
  checking.has_shape('k', k, axes + 'HK', q.shape)
  if v.ndim != q.ndim or v.shape[:-1] != q.shape[:-1]:
    raise ValueError(
        f'`v` must be {checking.brackets(axes + "HV")}, {q.shape[:-1]} and V, '
        f'got {v.shape}.'
    )
  checking.has_shape('beta', beta, axes + 'H', q.shape[:-1])
  checking.has_shape('log_decay', g, axes + 'H', q.shape[:-1])
  checking.has_shape('ridge', ridge, 'HK', q.shape[-2:])
  checking.are_floating(**dict(zip(names, operands)))
  dtype = exact.accumulation_dtype(*operands)
  empty = empty_mesa_state(
      q.shape[0], q.shape[-2], q.shape[-1], v.shape[-1], dtype
  )
  g = decays.finite(g, dtype)
  return (
      dict(q=q, k=k, v=v, beta=beta, log_decay=g, ridge=ridge),
      checking.state_tuple(state, empty),
  )
