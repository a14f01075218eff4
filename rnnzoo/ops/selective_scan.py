"""The scan of Mamba (S6): a state `[D, N]` whose decays depend on the token."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from rnnzoo import mesh
from rnnzoo.ops import checking
from rnnzoo.ops import exact
from rnnzoo.ops import split_time
from rnnzoo.ops.linear_scan import api

# The number of tokens whose `[D, N]` are in memory at once. On CPU they should
# fit into a cache: with `D N` = 8192, a training step takes 1.1 times as long
# with 16 tokens, 1.5 times with 64 and 1.8 times with 128.
_CHUNK = 32

# The layouts of `A`, `h0`, `x`, `delta`, `B`, `C` and `reset` (see
# `rnnzoo/mesh.py`).
_LAYOUTS = ('dk', 'bdk', 'btd', 'btd', 'btk', 'btk', 'bt')


def selective_scan(
    x: jax.Array,
    delta: jax.Array,
    A: jax.Array,
    B: jax.Array,
    C: jax.Array,
    h0: jax.Array | None = None,
    *,
    D: jax.Array | None = None,
    z: jax.Array | None = None,
    delta_bias: jax.Array | None = None,
    delta_softplus: bool = False,
    reset: jax.Array | None = None,
    mask: jax.Array | None = None,
    chunk_size: int = _CHUNK,
) -> tuple[jax.Array, jax.Array]:
  r"""Runs a diagonal state space model whose step sizes, B and C are inputs.

  .. math::
      h_t[d, n] &= e^{\Delta_t[d] A[d, n]} h_{t-1}[d, n]
                   + \Delta_t[d] B_t[n] x_t[d] \\
      y_t[d] &= \bigl(\sum_n C_t[n] h_t[d, n] + D[d] x_t[d]\bigr)
                \,\mathrm{silu}(z_t[d])

  The arrays `[B, T, D, N]` never exist. Time is cut into chunks, which run one
  after the other. The backward pass recomputes each chunk from the state that
  entered it. Memory grows as `T D + (T / chunk) D N`, plus `chunk D N`. Inside
  a chunk this is a `linear_scan`, with its platforms and gradients.

  Under `jax.set_mesh`, every device computes its own rows, channels and segment
  of time. If time is split, each device first computes the state that its
  tokens leave, which is as much work again, and then the devices exchange them.

  >>> import jax.numpy as jnp
  >>> x, b = jnp.ones((1, 3, 2)), jnp.ones((1, 3, 4))
  >>> h_last, y = selective_scan(x, x, -jnp.ones((2, 4)), b, b)
  >>> h_last.shape, y.shape
  ((1, 2, 4), (1, 3, 2))

  Args:
    x: Inputs `[B, T, D]`, T >= 0.
    delta: Step sizes `[B, T, D]`, positive; or their logits, see
      `delta_softplus`.
    A: Rates `[D, N]`, negative.
    B: Input weights `[B, T, N]`.
    C: Output weights `[B, T, N]`.
    h0: State before the first step `[B, D, N]`; zeros if `None`.
    D: Weights `[D]` of the skip connection from `x`; none if `None`.
    z: If given, `[B, T, D]`, outputs are multiplied by `silu(z)`.
    delta_bias: Added to `delta`, `[D]`, if given.
    delta_softplus: Whether the step sizes are `softplus(delta + delta_bias)`.
    reset: Booleans `[B, T]`, `True` where a new sequence starts: zero replaces
      the state that enters, even if it is NaN.
    mask: Booleans `[B, T]`, `False` where a step is absent: the state does not
      change, the output is 0, and no gradient flows.
    chunk_size: The number of steps in memory at a time. It changes results by
      rounding only.

  Returns:
    `(h_last, y)`: the state after the last step `[B, D, N]`, in
    `promote_types(float32, ...)` of the operands, which is also the dtype of
    the computation; and outputs `[B, T, D]` in the dtype of `x`.

  Raises:
    ValueError: If shapes or dtypes disagree.
  """
  operands = _checked(dict(
      x=x, delta=delta, A=A, B=B, C=C, h0=h0, D=D, z=z, delta_bias=delta_bias
  ))
  x, delta, A, B, C, h0, D, z, delta_bias = operands.values()
  reset, mask = checking.flags(reset, mask, x.shape)
  if chunk_size < 1:
    raise ValueError(f'`chunk_size` must be positive, got {chunk_size}.')
  given = [u for u in operands.values() if u is not None]
  dtype = exact.accumulation_dtype(*given)
  if mask is not None:
    # An absent step neither decays nor adds anything, whatever its values are.
    present = mask[..., None]
    x, delta, B, C = (jnp.where(present, u, 0) for u in (x, delta, B, C))
    z = None if z is None else jnp.where(present, z, 0)
    reset = None if reset is None else reset & mask
  delta = delta.astype(dtype)
  if delta_bias is not None:
    delta = delta + delta_bias.astype(dtype)
  if delta_softplus:
    delta = jax.nn.softplus(delta)
  if mask is not None:
    delta = jnp.where(present, delta, 0)
  if h0 is None:
    h0 = jnp.zeros_like(x, dtype, shape=(x.shape[0], *A.shape))
  # Devices sum the gradients of operands that they all have, in float32 at
  # least.
  A, h0, B, C = (u.astype(dtype) for u in (A, h0, B, C))
  h_last, y = mesh.run_per_device(
      functools.partial(_run, chunk_size=chunk_size),
      x, (A, h0, x, delta, B, C, reset), _LAYOUTS, ('bdk', 'btd'),
  )
  if D is not None:
    y = y + D.astype(dtype) * x.astype(dtype)
  if z is not None:
    y = y * jax.nn.silu(z.astype(dtype))
  y = y.astype(x.dtype)
  return h_last, y if mask is None else jnp.where(present, y, 0)


def _run(A, h0, x, delta, B, C, reset, *, segments, chunk_size):
  """Scans what one device holds; other devices send the state that enters."""
  inputs = x, delta, B, C
  if segments is None:
    return _in_chunks(A, h0, inputs, reset, chunk_size)
  last = _in_chunks(A, jnp.zeros_like(h0), inputs, reset, chunk_size, True)[0]
  product = jnp.exp(exact.einsum('bd,dn->bdn', delta.sum(1), A))
  if reset is not None:
    product = jnp.where(reset.any(1)[:, None, None], 0, product)
  h0 = split_time.entering_state(segments, product, last, reset, h0)
  h_last, y = _in_chunks(A, h0, inputs, reset, chunk_size)
  return segments.from_last(h_last), y


def _in_chunks(
    A, h0, inputs, reset, chunk_size, only_state=False
) -> tuple[jax.Array, Any]:
  """Scans `inputs` `[B, T, ...]` in chunks; outputs have the dtype of `h0`.

  If `only_state`, the outputs are `None` where there are several chunks.
  """
  batch, time, features = inputs[0].shape
  if not time:
    return h0, jnp.zeros_like(inputs[0], h0.dtype)
  count = -(-time // chunk_size)
  if count == 1:
    return _chunk(A, h0, inputs, reset)
  # All chunks have one length, so they compile once. The steps of the padding
  # have a step size of 0, so they change nothing.
  length = -(-time // count)
  extra = count * length - time

  def split(u):
    u = jnp.pad(u, ((0, 0), (0, extra)) + ((0, 0),) * (u.ndim - 2))
    return jnp.moveaxis(u.reshape(batch, count, length, *u.shape[2:]), 1, 0)

  def body(h, chunk):
    h, y = _chunk(A, h, *chunk)
    return h, None if only_state else y

  h_last, y = jax.lax.scan(
      jax.checkpoint(body, prevent_cse=False),
      h0,
      jax.tree.map(split, (inputs, reset)),
  )
  if only_state:
    return h_last, None
  y = jnp.moveaxis(y, 0, 1).reshape(batch, count * length, features)
  return h_last, y[:, :time]


def _chunk(A, h0, inputs, reset):
  """Runs one chunk, with the `[D, N]` of all its steps in memory."""
  x, delta, B, C = (u.astype(h0.dtype) for u in inputs)
  # As products of matrices, as are their gradients: five times faster on CPU
  # than elementwise products and sums. No product spans several steps.
  a = jnp.exp(exact.einsum('btd,dn->btdn', delta, A))
  u = exact.einsum('btd,btn->btdn', delta * x, B)
  flat = lambda u: u.reshape(*u.shape[:-2], A.size)
  h_last, h = api.linear_scan(flat(a), flat(u), flat(h0), reset=reset)
  y = exact.einsum('btdn,btn->btd', h.reshape(a.shape), C)
  return h_last.reshape(h0.shape), y


# The axes of each operand; a letter is one size throughout.
_AXES = dict(
    x='BTD', delta='BTD', A='DN', B='BTN', C='BTN', h0='BDN', D='D', z='BTD',
    delta_bias='D',
)


def _checked(operands: dict[str, Any]) -> dict[str, Any]:
  """Returns the operands as arrays, or raises."""
  given = {
      name: jnp.asarray(u) for name, u in operands.items() if u is not None
  }
  x, A = given['x'], given['A']
  checking.has_axes('x', x, _AXES['x'])
  checking.has_axes('A', A, _AXES['A'])
  sizes = dict(zip('BTDN', (*x.shape, A.shape[1])))
  for name, u in given.items():
    axes = _AXES[name]
    checking.has_shape(name, u, axes, [sizes[letter] for letter in axes])
  checking.are_floating(**given)
  return {name: given.get(name) for name in operands}
