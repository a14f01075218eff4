"""Several steps of the delta rule for each token (DeltaProduct)."""

import functools
import math

import jax
import jax.numpy as jnp
from rnnzoo.ops import checking
from rnnzoo.ops import delta_rule as delta_rule_lib
from rnnzoo.ops import rank_one


def delta_product(
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
  r"""Runs `delta_rule` with `N` keys and values for each token.

  With :math:`S_{t,0} = e^{g_t} S_{t-1}`, and for `j = 1, ..., N`

  .. math::
      S_{t,j} &= S_{t,j-1}
          + k_{t,j} \beta_{t,j} (v_{t,j} - S_{t,j-1}^\top k_{t,j})^\top \\
      S_t &= S_{t,N}, \quad y_t = \mathrm{scale} \cdot S_t^\top q_t

  The transition of a token is a product of `N` generalised Householder matrices
  (https://arxiv.org/abs/2502.10297). With keys of length 1 and `beta` in (0, 2)
  it can be any rotation of a plane, if `N` is 2. This is one run of
  `delta_rule` over `N T` steps, and costs as much.

  >>> import jax.numpy as jnp
  >>> k = jnp.eye(2)[None, None, :, None]           # [B, T, N, H, K]
  >>> v = jnp.array([2., 5.])[None, None, :, None, None]
  >>> q = jnp.ones((1, 1, 1, 2))
  >>> S, y = delta_product(q, k, v, jnp.ones((1, 1, 2, 1)))
  >>> S[0, 0, :, 0], y[0, 0, 0]
  (Array([2., 5.], dtype=float32), Array([7.], dtype=float32))

  Args:
    q: Queries `[B, T, H, K]`, T >= 0.
    k: Keys `[B, T, N, H, K]`, not normalised here.
    v: Values `[B, T, N, H, V]`.
    beta: The parts of the errors that are corrected `[B, T, N, H]`.
    S0: State before the first step `[B, H, K, V]`; zeros if `None`.
    log_decay: Logarithms `g` of the decays `[B, T, H]`, once a token and before
      its first correction; no decay if `None`.
    scale: A factor of the outputs.
    reset: As in `delta_rule`, `[B, T]`.
    mask: Likewise.
    chunk_size: Steps in a chunk, not tokens; as in `delta_rule`.

  Returns:
    `(S_last, y)`, as `delta_rule`: `[B, H, K, V]` and `[B, T, H, V]`.

  Raises:
    ValueError: If shapes or dtypes disagree.
  """
  q, k, v, beta, log_decay = _checked('BT', q, k, v, beta, log_decay)
  count = k.shape[2]
  # The other steps of a token have the shapes and the dtypes of the first.
  operands, reset, mask = rank_one.checked(
      dict(q=q, k=k[:, :, 0], v=v[:, :, 0], beta=beta[:, :, 0],
           log_decay=log_decay, S0=S0),
      'BTH', reset, mask,
  )
  # Each device puts its own steps in line, so that no tokens move.
  beside = lambda u: jnp.moveaxis(u, 2, 3).reshape(
      *q.shape[:3], count * math.prod(u.shape[4:])
  )
  operands.update(k=beside(k), v=beside(v), beta=beside(beta))
  if chunk_size is None:
    chunk_size = 32 if q.shape[-1] <= 64 else 64
  body = functools.partial(delta_rule_lib.one_chunk, scale=scale)
  return rank_one.run(
      body, operands, reset, mask, chunk_size,
      functools.partial(_in_line, count), lambda y: _last(y, count),
  )


def _in_line(count, q, k, v, beta, log_decay, S0, reset, mask):
  """Gives each token `count` steps: the first decays, the last one reads."""
  line = lambda u: u.reshape(u.shape[0], u.shape[1] * count, *u.shape[3:])
  split = lambda u: line(jnp.moveaxis(
      u.reshape(*u.shape[:3], count, u.shape[3] // count), 3, 2
  ))
  first = lambda u: line(_padded(u, 0, count - 1))
  return (
      line(_padded(q, count - 1, 0)), split(k), split(v),
      split(beta)[..., 0],
      None if log_decay is None else first(log_decay), S0,
      None if reset is None else first(reset),
      None if mask is None else jnp.repeat(mask, count, axis=1),
  )


def _last(y, count):
  """The outputs of the last steps of the tokens."""
  time = y.shape[1] // count
  return y.reshape(y.shape[0], time, count, *y.shape[2:])[:, :, -1]


def delta_product_step(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    beta: jax.Array,
    S: jax.Array,
    *,
    log_decay: jax.Array | None = None,
    scale: float = 1.0,
) -> tuple[jax.Array, jax.Array]:
  """Runs `delta_product` for one token; its operands have no axis T.

  Returns:
    `(S, y)`: the next state, and outputs `[B, H, V]`.

  Raises:
    ValueError: If shapes or dtypes disagree.
  """
  q, k, v, beta, log_decay = _checked('B', q, k, v, beta, log_decay)
  y = None
  for j in range(k.shape[1]):
    S, y = delta_rule_lib.delta_rule_step(
        q, k[:, j], v[:, j], beta[:, j], S,
        log_decay=None if j else log_decay, scale=scale,
    )
  assert y is not None
  return S, y


def _padded(u, before, after):
  """Puts `u` `[B, T, ...]` among zeros along a new axis 2."""
  padding = [(0, 0)] * (u.ndim + 1)
  padding[2] = before, after
  return jnp.pad(u[:, :, None], padding)


def _checked(axes, q, k, v, beta, log_decay):
  """Returns arrays whose leading axes fit, or raises."""
  q, k, v, beta = map(jnp.asarray, (q, k, v, beta))
  checking.has_axes('q', q, axes + 'HK')
  place, (*lead, heads, features) = len(axes), q.shape
  if k.ndim != q.ndim + 1 or not k.shape[place]:
    raise ValueError(
        f'`k` must be {checking.brackets(axes + "NHK")} with N at least 1, got '
        f'{k.shape}.'
    )
  lead = (*lead, k.shape[place], heads)
  checking.has_shape('k', k, axes + 'NHK', (*lead, features))
  checking.has_shape('beta', beta, axes + 'NH', lead)
  if v.shape[:-1] != lead:
    raise ValueError(
        f'`v` must be {checking.brackets(axes + "NHV")}, {lead} and V, got '
        f'{v.shape}.'
    )
  if log_decay is not None:
    log_decay = jnp.asarray(log_decay)
    checking.has_shape('log_decay', log_decay, axes + 'H', q.shape[:-1])
  return q, k, v, beta, log_decay
