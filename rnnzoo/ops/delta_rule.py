"""Matrix states that are corrected: the delta rule and its generalisation.

What a token writes depends on what it reads in the state that the tokens before
it leave. Within a chunk that is a triangular system, the same for all columns
of the state; see `chunkwise.py` for the rest.
"""

import functools

import jax
import jax.numpy as jnp
from rnnzoo import mesh
from rnnzoo.ops import checking
from rnnzoo.ops import chunkwise
from rnnzoo.ops import exact

# Of results; see `rnnzoo/mesh.py`.
_OUT_LAYOUTS = ('bdkk', 'btdk')

_matmul = functools.partial(exact.einsum, '...ij,...jk->...ik')


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
  r"""A state that maps keys to values, corrected where it is wrong.

  .. math::
      S'_t &= e^{g_t} S_{t-1} \\
      S_t &= S'_t + k_t \beta_t (v_t - S_t'^\top k_t)^\top \\
      y_t &= \mathrm{scale} \cdot S_t^\top q_t

  With a key of length 1 and a `beta` of 1 the state gives exactly `v_t` for
  `k_t` from then on, whatever it gave before. In chunks of `Q` tokens (Yang et
  al. 2024, https://arxiv.org/abs/2406.06484; with decays
  https://arxiv.org/abs/2412.06464) what the tokens write is the solution of one
  triangular system; all is products of matrices, about `3 K V + 2 Q (K + V) +
  Q^2 / 3` multiplications a token and head.

  Under `jax.set_mesh` every device computes its own rows, heads and stretch of
  time. Devices along time tell each other what their tokens leave, and what
  becomes of a state on the way past them, a matrix `[K, K]`; to find that out
  is as much work again, with `V + K` for `V`.

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
    beta: How much of the error is put right `[B, T, H]`.
    S0: State before the first step `[B, H, K, V]`; zeros if `None`.
    log_decay: Logarithms `g` of the decays, at most 0, minus infinity included,
      `[B, T, H]`; no decay if `None`.
    scale: Of the outputs.
    reset: Booleans `[B, T]`, `True` where a new sequence starts: by selection,
      so that a NaN before it reaches nothing after it.
    mask: Booleans `[B, T]`; a `False` token is absent: its output is 0, and the
      state stays.
    chunk_size: `Q`, a power of two; if `None` 32, or 64 for keys of more than
      64 features.

  Returns:
    `(S_last, y)`: the state after the last step, in `promote_types(float32,
    ...)` of the operands, in which all is computed; and outputs `[B, T, H, V]`
    in the dtype of `v`.

  Raises:
    ValueError: If shapes or dtypes disagree.
  """
  operands = dict(q=q, k=k, v=v, beta=beta, log_decay=log_decay, S0=S0)
  operands, reset, mask = _checked(operands, 'BTH', reset, mask)
  if chunk_size is None:  # Large states are kept less often.
    chunk_size = 32 if q.shape[-1] <= 64 else 64
  body = functools.partial(_chunk_of_delta_rule, scale=scale)
  return _run(body, operands, reset, mask, chunk_size)


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
  """`delta_rule` of one token: all but the state `S` without T.

  Returns:
    `(S, y)`: the next state, and outputs `[B, H, V]`.

  Raises:
    ValueError: If shapes or dtypes disagree.
  """
  operands = dict(q=q, k=k, v=v, beta=beta, log_decay=log_decay, S0=S)
  operands, _, _ = _checked(operands, 'BH', None, None)
  q, k, v, beta, g, S = operands.values()
  dtype, out_dtype = S.dtype, v.dtype
  q, k, v, beta = (u.astype(dtype) for u in (q, k, v, beta))
  if g is not None:
    S = S * jnp.exp(g)[..., None, None]
  error = v - _read(k, S)
  S = S + _outer(k, beta[..., None] * error)
  return S, (scale * _read(q, S)).astype(out_dtype)


def dplr_scan(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    a: jax.Array,
    b: jax.Array,
    S0: jax.Array | None = None,
    *,
    log_decay: jax.Array,
    scale: float = 1.0,
    reset: jax.Array | None = None,
    mask: jax.Array | None = None,
    chunk_size: int | None = None,
) -> tuple[jax.Array, jax.Array]:
  r"""A state whose transitions are diagonal plus a matrix of rank one.

  .. math::
      S_t &= \mathrm{diag}(e^{g_t}) S_{t-1}
             + b_t (S_{t-1}^\top a_t)^\top + k_t v_t^\top \\
      y_t &= \mathrm{scale} \cdot S_t^\top q_t

  The heart of RWKV-7 (https://arxiv.org/abs/2503.14456). It is `delta_rule`
  with a decay of its own for every feature of a key, and where what is taken
  away (`b`) is not tied to what is written; `a` reads the state *before* the
  decay. Nothing is divided by decays, so they may be as strong as they like.

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
    a: What is read in the state that enters a step `[B, T, H, K]`.
    b: Where it is added `[B, T, H, K]`.
    S0: State before the first step `[B, H, K, V]`; zeros if `None`.
    log_decay: Logarithms `g` of the decays, at most 0, minus infinity included,
      `[B, T, H, K]`.
    scale: Of the outputs.
    reset: Booleans `[B, T]`, `True` where a new sequence starts: by selection,
      so that a NaN before it reaches nothing after it.
    mask: Booleans `[B, T]`; a `False` token is absent: its output is 0, and the
      state stays.
    chunk_size: A power of two; 16 if `None`.

  Returns:
    `(S_last, y)`: the state after the last step, in `promote_types(float32,
    ...)` of the operands, in which all is computed; and outputs `[B, T, H, V]`
    in the dtype of `v`.

  Raises:
    ValueError: If shapes or dtypes disagree.
  """
  operands = dict(q=q, k=k, v=v, a=a, b=b, log_decay=log_decay, S0=S0)
  operands, reset, mask = _checked(operands, 'BTH', reset, mask)
  chunk_size = 16 if chunk_size is None else chunk_size
  body = functools.partial(_chunk_of_dplr, scale=scale)
  return _run(body, operands, reset, mask, chunk_size)


def dplr_step(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    a: jax.Array,
    b: jax.Array,
    S: jax.Array,
    *,
    log_decay: jax.Array,
    scale: float = 1.0,
) -> tuple[jax.Array, jax.Array]:
  """`dplr_scan` of one token: all but the state `S` without T.

  Returns:
    `(S, y)`: the next state, and outputs `[B, H, V]`.

  Raises:
    ValueError: If shapes or dtypes disagree.
  """
  operands = dict(q=q, k=k, v=v, a=a, b=b, log_decay=log_decay, S0=S)
  operands, _, _ = _checked(operands, 'BH', None, None)
  q, k, v, a, b, g, S = operands.values()
  dtype, out_dtype = S.dtype, v.dtype
  q, k, v, a, b = (u.astype(dtype) for u in (q, k, v, a, b))
  found = _read(a, S)
  S = S * jnp.exp(g)[..., None] + _outer(b, found) + _outer(k, v)
  return S, (scale * _read(q, S)).astype(out_dtype)


def _chunk_of_delta_rule(S, inputs, sight, *, scale):
  """A chunk `[B, H, Q, ...]`; without queries it has no outputs."""
  q, k, v, beta, g = inputs
  out_dtype, dtype = v.dtype, S.dtype
  k, v, beta = (u.astype(dtype) for u in (k, v, beta))
  earlier = sight.pairs & _below_diagonal(k.shape[-2])
  weight = state = last = through = jnp.ones((), dtype)
  if g is not None:
    weight = jnp.exp(jnp.where(sight.pairs, chunkwise.pairs(g), -jnp.inf))
    state = jnp.exp(chunkwise.up_to(g, -1))
    last = jnp.exp(chunkwise.after(g, -1))
    through = state[..., -1]
  state = jnp.where(sight.state, state, 0)[..., None]
  last = jnp.where(sight.last, last, 0)[..., None]
  through = jnp.where(sight.through, through, 0)[..., None, None]
  of_pairs = lambda u, visible: jnp.where(
      visible, exact.einsum('...ik,...jk->...ij', u, k) * weight, 0
  )
  # What is written, `beta` times the error, is what the state that entered
  # lets expect, less what the tokens before have put right of it.
  error = v - state * _matmul(k, S)
  beta = beta[..., None]
  solve = unit_lower_inverse(-beta * of_pairs(k, earlier))
  written = _matmul(solve, beta * error)
  y = None
  if q is not None:
    q = q.astype(dtype)
    y = state * _matmul(q, S)
    y = y + _matmul(of_pairs(q, sight.pairs), written)
    y = (scale * y).astype(out_dtype)
  return through * S + _outer_sum(last * k, written), y


def _chunk_of_dplr(S, inputs, sight, *, scale):
  """A chunk `[B, H, Q, ...]`; without queries it has no outputs."""
  q, k, v, a, b, g = inputs
  out_dtype, dtype = v.dtype, S.dtype
  k, v, a, b = (u.astype(dtype) for u in (k, v, a, b))
  # `a` reads what the token before it left. In the place of that one it sees
  # what a query there would, so it goes there and its products come back.
  queries = () if q is None else (q.astype(dtype),)
  *of_q, of_a = chunkwise.all_scores((*queries, _later(a)), (k, b), g)
  earlier = sight.pairs & _below_diagonal(k.shape[-2])
  ak, ab = (jnp.where(earlier, chunkwise.delayed(u, -2), 0) for u in of_a)
  state = jnp.exp(chunkwise.up_to(g, -2))
  last = jnp.where(
      sight.last[..., None], jnp.exp(chunkwise.after(g, -2)), 0
  )
  of_state = lambda u, decay: _matmul(
      jnp.where(sight.state[..., None], u * decay, 0), S
  )
  found = of_state(a, chunkwise.delayed(state, -2, first=1)) + _matmul(ak, v)
  found = _matmul(unit_lower_inverse(ab), found)
  y = None
  if q is not None:
    qk, qb = (jnp.where(sight.pairs, u, 0) for u in of_q[0])
    y = of_state(*queries, state) + _matmul(qk, v) + _matmul(qb, found)
    y = (scale * y).astype(out_dtype)
  through = jnp.where(sight.through[..., None], state[..., -1, :], 0)
  S = through[..., None] * S
  return S + _outer_sum(last * k, v) + _outer_sum(last * b, found), y


@jax.custom_jvp
def unit_lower_inverse(m: jax.Array) -> jax.Array:
  """The inverse of `1 - m` where `m` `[..., Q, Q]` is strictly lower.

  By halves, `Q` a power of two; powers of `m` would cancel.
  """
  size = m.shape[-1]
  if size == 1:
    return jnp.ones_like(m)
  half = size // 2
  first, second = m[..., :half, :half], m[..., half:, half:]
  inverses = unit_lower_inverse(jnp.stack([first, second]))
  across = _matmul(
      _matmul(inverses[1], m[..., half:, :half]), inverses[0]
  )
  above = jnp.concatenate([inverses[0], jnp.zeros_like(across)], axis=-1)
  below = jnp.concatenate([across, inverses[1]], axis=-1)
  return jnp.concatenate([above, below], axis=-2)


@unit_lower_inverse.defjvp
def _differentiate_inverse(primals, tangents):
  inverse = unit_lower_inverse(*primals)
  return inverse, _matmul(_matmul(inverse, tangents[0]), inverse)


def _below_diagonal(length):
  return jnp.tri(length, k=-1, dtype=bool)


def _later(u):
  """`[..., Q, K]`: each token gets what the next one has; the last one 0."""
  padding = [(0, 0)] * (u.ndim - 2) + [(0, 1), (0, 0)]
  return jnp.pad(u[..., 1:, :], padding)


def _read(q, S):
  return exact.einsum('...k,...kv->...v', q, S)


def _outer(k, v):
  return k[..., None] * v[..., None, :]


def _outer_sum(k, v):
  return exact.einsum('...jk,...jv->...kv', k, v)


def _run(body, operands, reset, mask, chunk_size):
  """Runs a recurrence on what each device holds.

  Args:
    body: See `chunkwise.scan_chunks`.
    operands: By name, from `_checked`: queries, keys, values and others, the
      state last of all.
    reset: `[B, T]` or `None`.
    mask: `[B, T]` or `None`.
    chunk_size: A power of two.
  """

  def run(*operands, segments):
    *inputs, S0, reset, mask = operands
    by_itself = lambda inputs, reset: _by_itself(
        body, inputs, reset, chunk_size, S0.dtype
    )
    S0 = chunkwise.entering(
        segments, by_itself, _both, S0, tuple(inputs), reset, mask
    )
    S, y = chunkwise.scan_chunks(
        body, S0, tuple(inputs), reset, mask, chunk_size
    )
    return chunkwise.leaving(segments, S), y

  layouts = {
      name: 'bdkk' if name == 'S0' else 'btdk'[: u.ndim]
      for name, u in operands.items()
      if u is not None
  }
  return mesh.run_per_device(
      run,
      operands['v'],
      (*operands.values(), reset, mask),
      tuple(layouts.get(name, '') for name in operands) + ('bt', 'bt'),
      _OUT_LAYOUTS,
  )


def _by_itself(body, inputs, reset, chunk_size, dtype):
  """What a stretch of time does to a state, and what it leaves by itself.

  A state is multiplied by a matrix `[B, H, K, K]`. That is what becomes of the
  identity where nothing is written, and both are found in one scan, beside each
  other as values are.
  """
  _, k, v, *others = inputs
  before = jnp.eye(k.shape[-1], k.shape[-1] + v.shape[-1], dtype=dtype)
  before = jnp.broadcast_to(before, (k.shape[0], k.shape[2], *before.shape))
  before, _ = mesh.same_varying(before, k)
  nothing = jnp.zeros_like(v, shape=k.shape)
  values = jnp.concatenate([nothing, v], axis=-1)
  S, _ = chunkwise.scan_chunks(
      body, before, (None, k, values, *others), reset, None, chunk_size
  )
  return S[..., : k.shape[-1]], S[..., k.shape[-1] :]


def _both(earlier, later):
  """Of two stretches of time after each other what `_by_itself` is of one."""
  through, S = later
  return _matmul(through, earlier[0]), _matmul(through, earlier[1]) + S


def _checked(operands, axes, reset, mask):
  """Returns arrays, the decay and state in the dtype of states, or raises.

  Args:
    operands: By name, in the order in which they are returned; `None` for one
      that is missing.
    axes: Letters of the axes in front of the features: `BTH` or `BH`.
    reset: As given.
    mask: As given.

  Returns:
    `(operands, reset, mask)`.
  """
  operands = {
      name: None if u is None else jnp.asarray(u)
      for name, u in operands.items()
  }
  q, v = operands['q'], operands['v']
  names = ', '.join(axes)
  checking.has_axes('q', q, axes + 'K')
  if v.ndim != q.ndim or v.shape[:-1] != q.shape[:-1]:
    raise ValueError(
        f'`v` must be [{names}, V], {q.shape[:-1]} and V, got {v.shape}.'
    )
  rows, heads, features = q.shape[0], q.shape[-2], q.shape[-1]
  vector, number = (axes + 'K', q.shape), (axes, q.shape[:-1])
  wanted = dict(
      k=vector, a=vector, b=vector, beta=number,
      log_decay=vector if 'a' in operands else number,
      S0=('BHKV', (rows, heads, features, v.shape[-1])),
  )
  given = {name: u for name, u in operands.items() if u is not None}
  for name, u in given.items():
    if name in wanted:
      checking.has_shape(name, u, *wanted[name])
  checking.are_floating(**given)
  dtype = exact.accumulation_dtype(*given.values())
  if operands['log_decay'] is not None:
    operands['log_decay'] = chunkwise.log_decay(operands['log_decay'], dtype)
  if operands['S0'] is None:
    shape = wanted['S0'][1]
    operands['S0'] = jnp.zeros_like(q, dtype, shape=shape)
  operands['S0'] = operands['S0'].astype(dtype)
  if 'T' in axes:
    reset, mask = checking.flags(reset, mask, q.shape)
  return operands, reset, mask
