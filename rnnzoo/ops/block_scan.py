"""The linear recurrence whose decays are small matrices, one a channel."""

import functools

import jax
from jax import lax
import jax.numpy as jnp
from rnnzoo import mesh
from rnnzoo.ops import checking
from rnnzoo.ops import exact
from rnnzoo.ops import split_time

# The layouts of `a`, `x`, `h0` and `reset` (see `rnnzoo/mesh.py`).
_LAYOUTS = ('btkkd', 'btkd', 'bkd', 'bt')
_OUT_LAYOUTS = ('bkd', 'btkd')


def block_scan(
    a: jax.Array,
    x: jax.Array,
    h0: jax.Array | None = None,
    *,
    reverse: bool = False,
    reset: jax.Array | None = None,
) -> tuple[jax.Array, jax.Array]:
  r"""Computes `h_t = A_t h_{t-1} + x_t`, with a matrix for each channel.

  It is `linear_scan` for states of K numbers a channel: an oscillator, or the
  cell and the output of an LSTM. It must move `(K^2 + 2 K) B T D` numbers. On
  CPU it is a loop over time. Elsewhere it is `jax.lax.associative_scan`, which
  multiplies the matrices too: for `K = 2` twelve multiplications for each of
  about `2 T` pairs, in `2 log2(T)` rounds.

  It is differentiable in `a`, `x` and `h0`, any number of times, in reverse
  mode. The gradient is a scan in the other direction.

  >>> import jax.numpy as jnp
  >>> turn = jnp.array([[0., -1.], [1., 0.]])[None, None, :, :, None]
  >>> x = jnp.zeros((1, 4, 2, 1))
  >>> h_last, h = block_scan(turn, x, jnp.array([[[1.], [0.]]]))
  >>> h[0, :, :, 0]
  Array([[ 0.,  1.],
         [-1.,  0.],
         [ 0., -1.],
         [ 1.,  0.]], dtype=float32)

  Args:
    a: Matrices `[B, T, K, K, D]`, real or complex. The first two axes and the
      last one may have size 1.
    x: Inputs `[B, T, K, D]`, real or complex.
    h0: State before the first step `[B, K, D]`; zeros if `None`.
    reverse: If `True`, time runs from `T - 1` down to `0`.
    reset: Booleans `[B, T]`. Where `True`, zero replaces the state that enters
      this step in the direction of travel. Not even a NaN before it reaches
      later values or their gradients.

  Returns:
    `(h_last, h)`: the state after the final step `[B, K, D]` (index 0 if
    `reverse`) and all states `[B, T, K, D]`, both in the dtype
    `promote_types(float32, ...)` of `a` and `x`.

  Raises:
    ValueError: If shapes or dtypes disagree.
    TypeError: On forward-mode differentiation.
  """
  a, x = jnp.asarray(a), jnp.asarray(x)
  checking.has_axes('x', x, 'BTKD')
  checking.are_inexact(a=a, x=x)
  size = x.shape[2]
  checking.has_axes('a', a, 'BTKKD')
  wanted = (*x.shape[:2], size, size, x.shape[3])
  may_be_one = (True, True, False, False, True)
  if any(
      n != m and not (n == 1 and optional)
      for n, m, optional in zip(a.shape, wanted, may_be_one)
  ):
    raise ValueError(
        f'`a` must be [B, T, K, K, D] = {wanted}, or 1 in place of B, T or D, '
        f'got {a.shape}.'
    )
  dtype = exact.accumulation_dtype(a, x)
  a, x = a.astype(dtype), x.astype(dtype)
  state_shape = x.shape[:1] + x.shape[2:]
  if h0 is None:
    h0 = jnp.zeros(state_shape, dtype)
  h0 = jnp.asarray(h0).astype(dtype)
  checking.has_shape('h0', h0, 'BKD', state_shape)
  reset = checking.flag('reset', reset, x.shape)
  if not x.size:
    return h0, x
  operands = mesh.align(x[:, :, 0], (a, x, h0, reset), _LAYOUTS)
  return _scan(reverse, *operands)


@lambda fn: jax.custom_vjp(fn, nondiff_argnums=(0,))
def _scan(reverse, a, x, h0, reset):

  def local(a, x, h0, reset, *, segments):
    if segments is not None:
      h0 = _entering_state(segments, a, x, h0, reset, reverse)
    last, h = _on_platform(a, x, h0, reset, reverse)
    if segments is not None:
      last = segments.from_last(last, reverse)
    return last, h

  return mesh.run_aligned(
      local, x[:, :, 0], (a, x, h0, reset), _LAYOUTS, _OUT_LAYOUTS
  )


def _forward(reverse, a, x, h0, reset):
  last, h = _scan(reverse, a, x, h0, reset)
  return (last, h), (a, h, h0, reset)


def _backward(reverse, residuals, cotangents):
  """Runs the adjoint `l_t = g_t + A_{t+1}^T l_{t+1}`, the other way."""
  a, h, h0, reset = residuals
  dlast, dh = cotangents

  def shift(u, layout, edge=None, *, later):
    """Moves `u` by one step of travel; `edge`, or 0, comes in."""
    edge = jnp.zeros_like(u[:, 0]) if edge is None else edge
    return split_time.shift(
        u, edge, later=later != reverse, layout=layout, like=h[:, :, 0]
    )

  transposed = jnp.swapaxes(a, 2, 3)
  if a.shape[1] > 1:
    transposed = shift(transposed, 'btkkd', later=False)
  starts = None if reset is None else shift(reset, 'bt', later=False)
  # `dlast` reaches the last step as it is. By selection, so that no device
  # needs the steps of others.
  steps = jnp.arange(h.shape[1]) == (0 if reverse else h.shape[1] - 1)
  dh += jnp.where(steps[:, None, None], dlast[:, None], 0)
  first_adjoint, adjoint = block_scan(
      transposed, dh, None, reverse=not reverse, reset=starts
  )
  before = shift(h, 'btkd', h0, later=True)
  if reset is not None:
    before = jnp.where(reset[:, :, None, None], 0, before)
  da = adjoint[:, :, :, None] * before[:, :, None]
  summed = tuple(i for i, n in enumerate(a.shape) if n == 1 < da.shape[i])
  first = -1 if reverse else 0
  dh0 = jnp.einsum('bijd,bid->bjd', a[:, first], first_adjoint)
  dh0 = jnp.broadcast_to(dh0, h0.shape)
  if reset is not None:
    dh0 = jnp.where(reset[:, first, None, None], 0, dh0)
  return da.sum(summed, keepdims=True), adjoint, dh0, None


_scan.defvjp(_forward, _backward)


def _entering_state(segments, a, x, h0, reset, reverse):
  """Returns the state that enters the segment of time of this device."""
  size, features = x.shape[2:]
  # One scan computes what becomes of the identity and of zero.
  eye = jnp.broadcast_to(
      jnp.eye(size, dtype=x.dtype)[..., None],
      (x.shape[0], size, size, features),
  )
  columns = [
      _on_platform(a, jnp.zeros_like(x), eye[:, :, k], reset, reverse)[0]
      for k in range(size)
  ]
  product = jnp.stack(columns, axis=2)
  last, _ = _on_platform(a, x, jnp.zeros_like(h0), reset, reverse)
  forgets = jnp.zeros_like(last[:, :1, :1], bool)
  if reset is not None:
    forgets = reset.any(1)[:, None, None]

  def combine(earlier, later):
    forgets, product, last = later
    # By selection: 0 * NaN would cross into another sequence.
    kept = jnp.where(forgets, 0, earlier[2])
    matrix = jnp.where(forgets[..., None], 0, earlier[1])
    return (
        earlier[0] | forgets,
        exact.einsum('bijd,bjkd->bikd', product, matrix),
        exact.einsum('bijd,bjd->bid', product, kept) + last,
    )

  first = jnp.ones_like(forgets), jnp.zeros_like(product), h0
  return segments.combine_earlier(
      combine, (forgets, product, last), first, reverse
  )[2]


def _on_platform(a, x, h0, reset, reverse):
  """Runs the form for the platform of lowering, as in `linear_scan`."""
  return lax.platform_dependent(
      a, x, h0, reset,
      cpu=functools.partial(_sequential, reverse=reverse),
      default=functools.partial(_associative, reverse=reverse),
  )


def _times(a, h):
  """`A h` for matrices `[..., K, K, D]` and states `[..., K, D]`.

  A sum of few products of whole rows: XLA would make K x K matmuls, one a
  channel, of an einsum.
  """
  return sum(a[..., k, :] * h[..., None, k, :] for k in range(h.shape[-2]))


def _sequential(a, x, h0, reset, reverse):
  """Runs a loop that reads and writes each row once."""
  steps = x.shape[1]

  def body(i, state):
    h, all_h = state
    t = steps - 1 - i if reverse else i
    row = lambda u: lax.dynamic_index_in_dim(
        u, t if u.shape[1] > 1 else 0, axis=1, keepdims=False
    )
    if reset is not None:
      h = jnp.where(row(reset)[:, None, None], 0, h)
    h = _times(row(a), h) + row(x)
    return h, lax.dynamic_update_index_in_dim(all_h, h, t, axis=1)

  h0, all_h = mesh.same_varying(h0, jnp.zeros_like(x), x, a)[:2]
  return lax.fori_loop(0, steps, body, (h0, all_h))


def _associative(a, x, h0, reset, reverse):
  """Runs `jax.lax.associative_scan` over pairs `(A, x)`."""
  first = -1 if reverse else 0
  if reset is not None:
    a = jnp.where(reset[:, :, None, None, None], 0, a)
    h0 = jnp.where(reset[:, first, None, None], 0, h0)
  x = x.at[:, first].add(_times(a[:, first], h0))
  shape = (*x.shape[:2], x.shape[2], *x.shape[2:])

  def combine(earlier, later):
    a, x = later
    columns = [
        _times(a, earlier[0][..., k, :]) for k in range(x.shape[-2])
    ]
    return jnp.stack(columns, axis=-2), _times(a, earlier[1]) + x

  def combine_with_reset(earlier, later):
    # By selection: 0 * NaN would cross into another sequence.
    forgets, a, x = later
    start = forgets[..., None, None]
    kept = (
        jnp.where(start[..., None], 0, earlier[1]),
        jnp.where(start, 0, earlier[2]),
    )
    return earlier[0] | forgets, *combine(kept, (a, x))

  a = jnp.broadcast_to(a, shape)
  if reset is None:
    _, h = lax.associative_scan(combine, (a, x), reverse=reverse, axis=1)
  else:
    _, _, h = lax.associative_scan(
        combine_with_reset, (reset, a, x), reverse=reverse, axis=1
    )
  return h[:, 0 if reverse else -1], h
