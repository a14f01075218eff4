"""What `delta_rule` and `dplr_scan` share: transitions with a rank-one part.

What a token writes depends on what it reads in the state that the tokens before
it leave. Inside a chunk this is a triangular system of equations, the same for
all columns of the state. `chunkwise.py` does the rest.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from rnnzoo import mesh
from rnnzoo.ops import checking
from rnnzoo.ops import chunkwise
from rnnzoo.ops import decays
from rnnzoo.ops import exact

# The layouts of the results (see `rnnzoo/mesh.py`).
_OUT_LAYOUTS = ('bdkk', 'btdk')

matmul = functools.partial(exact.einsum, '...ij,...jk->...ik')


def read(q: jax.Array, S: jax.Array) -> jax.Array:
  """`S^T q`, with `q` `[..., K]` and `S` `[..., K, V]`."""
  return exact.einsum('...k,...kv->...v', q, S)


def outer(k: jax.Array, v: jax.Array) -> jax.Array:
  """`k v^T`, with `k` `[..., K]` and `v` `[..., V]`."""
  return k[..., None] * v[..., None, :]


def outer_sum(k: jax.Array, v: jax.Array) -> jax.Array:
  """The sum of `k_j v_j^T` over the tokens of `[..., Q, K]`, `[..., Q, V]`."""
  return exact.einsum('...jk,...jv->...kv', k, v)


def below_diagonal(length: int) -> jax.Array:
  """Whether token j comes before token i, `[Q, Q]`."""
  return jnp.tri(length, k=-1, dtype=bool)


@jax.custom_jvp
def unit_lower_inverse(m: jax.Array) -> jax.Array:
  """Returns the inverse of `1 - m` for a strictly lower `m` `[..., Q, Q]`.

  It inverts both halves first, `Q` being a power of two. A sum of the powers of
  `m` would lose digits by cancellation.
  """
  size = m.shape[-1]
  if size == 1:
    return jnp.ones_like(m)
  half = size // 2
  first, second = m[..., :half, :half], m[..., half:, half:]
  inverses = unit_lower_inverse(jnp.stack([first, second]))
  across = matmul(matmul(inverses[1], m[..., half:, :half]), inverses[0])
  above = jnp.concatenate([inverses[0], jnp.zeros_like(across)], axis=-1)
  below = jnp.concatenate([across, inverses[1]], axis=-1)
  return jnp.concatenate([above, below], axis=-2)


@unit_lower_inverse.defjvp
def _differentiate_inverse(primals, tangents):
  inverse = unit_lower_inverse(*primals)
  return inverse, matmul(matmul(inverse, tangents[0]), inverse)


class DeltaSystem(NamedTuple):
  """What the tokens of a chunk of the delta rule do to each other.

  Attributes:
    weight: The decay between two tokens (Gamma), `[., ., Q, Q]` or 1.
    state: That from the state that enters to each token (gamma), `[., ., Q,
      1]`.
    last: That from each token to the state that leaves (gamma_Q / gamma),
      likewise.
    through: That from one state to the other (gamma_Q), `[., ., 1, 1]`.
    solve: `(I + tril(diag(beta) (Gamma * K K^T), -1))^-1`, `[., ., Q, Q]`.
  """

  weight: jax.Array
  state: jax.Array
  last: jax.Array
  through: jax.Array
  solve: jax.Array

  def products(self, u, k, seen):
    """Products of `u` with keys that are `seen`, decayed, `[., ., Q, Q]`."""
    return _decayed_products(u, k, seen, self.weight)


def delta_system(k, beta, g, visible) -> DeltaSystem:
  """Returns the `DeltaSystem` of a chunk.

  Args:
    k: `[B, H, Q, K]`.
    beta: `[B, H, Q]`.
    g: Log decays `[B, H, Q]` or `None`.
    visible: `chunkwise.Visibility`.
  """
  earlier = visible.pairs & below_diagonal(k.shape[-2])
  weight = state = last = through = jnp.ones((), k.dtype)
  if g is not None:
    weight = jnp.exp(jnp.where(visible.pairs, decays.between(g), -jnp.inf))
    state = jnp.exp(decays.until(g, -1))
    last = jnp.exp(decays.after(g, -1))
    through = state[..., -1]
  products = _decayed_products(k, k, earlier, weight)
  return DeltaSystem(
      weight,
      jnp.where(visible.state, state, 0)[..., None],
      jnp.where(visible.last, last, 0)[..., None],
      jnp.where(visible.through, through, 0)[..., None, None],
      unit_lower_inverse(-beta[..., None] * products),
  )


def _decayed_products(u, k, seen, weight):
  products = exact.einsum('...ik,...jk->...ij', u, k)
  return jnp.where(seen, products * weight, 0)


def run(
    body, operands, reset, mask, chunk_size,
    unfold=lambda *operands: operands, fold=lambda y: y,
):
  """Runs a recurrence on what each device holds.

  Args:
    body: See `chunkwise.scan_chunks`. Without queries it returns no outputs.
    operands: By name, from `checked`: queries, keys, values and others, the
      state last.
    reset: `[B, T]` or `None`.
    mask: `[B, T]` or `None`.
    chunk_size: A power of two.
    unfold: Maps the operands and flags of a device to those of the recurrence,
      if it has more steps than there are tokens.
    fold: Maps its outputs back.

  Returns:
    `(S_last, y)`: `[B, H, K, V]` and `[B, T, H, V]`.
  """

  def local(*operands, segments):
    *inputs, S0, reset, mask = unfold(*operands)
    summary = lambda inputs, reset: _summary(
        body, inputs, reset, chunk_size, S0.dtype
    )
    S0 = chunkwise.entering_state(
        segments, summary, _combine, S0, tuple(inputs), reset, mask
    )
    S, y = chunkwise.scan_chunks(
        body, S0, tuple(inputs), reset, mask, chunk_size
    )
    return chunkwise.leaving_state(segments, S), fold(y)

  layouts = {
      name: 'bdkk' if name == 'S0' else 'btdk'[: u.ndim]
      for name, u in operands.items()
      if u is not None
  }
  return mesh.run_per_device(
      local,
      operands['v'],
      (*operands.values(), reset, mask),
      tuple(layouts.get(name, '') for name in operands) + ('bt', 'bt'),
      _OUT_LAYOUTS,
  )


def _summary(body, inputs, reset, chunk_size, dtype):
  """How a segment of time changes a state, and the state that it leaves.

  The segment multiplies a state by a matrix `[B, H, K, K]`. This matrix is what
  becomes of the identity if nothing is written. One scan computes both: the
  columns of the identity stand beside those of the values.
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


def _combine(earlier, later):
  """Merges the summaries of two adjacent segments of time."""
  through, S = later
  return matmul(through, earlier[0]), matmul(through, earlier[1]) + S


def checked(
    operands: dict[str, Any], axes: str, reset: Any, mask: Any
) -> tuple[dict[str, Any], jax.Array | None, jax.Array | None]:
  """Returns arrays, the decay and the state in the dtype of states, or raises.

  Args:
    operands: By name, in the order in which they are returned; `None` for one
      that is missing.
    axes: The letters of the axes in front of the features: `BTH` or `BH`.
    reset: As given by the caller.
    mask: As given by the caller.

  Returns:
    `(operands, reset, mask)`.
  """
  given = {
      name: jnp.asarray(u) for name, u in operands.items() if u is not None
  }
  q, v = given['q'], given['v']
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
  for name, u in given.items():
    if name in wanted:
      checking.has_shape(name, u, *wanted[name])
  checking.are_floating(**given)
  dtype = exact.accumulation_dtype(*given.values())
  if 'log_decay' in given:
    given['log_decay'] = decays.finite(given['log_decay'], dtype)
  if 'S0' not in given:
    given['S0'] = jnp.zeros_like(q, dtype, shape=wanted['S0'][1])
  given['S0'] = given['S0'].astype(dtype)
  if 'T' in axes:
    reset, mask = checking.flags(reset, mask, q.shape)
  return {name: given.get(name) for name in operands}, reset, mask
