"""Depthwise causal convolution: each channel reads its own last K tokens."""

import jax
import jax.numpy as jnp
from rnnzoo import mesh
from rnnzoo.ops import checking

# The layouts of `x`, `kernel`, `bias`, `tail`, `reset` and `mask` (see
# `rnnzoo/mesh.py`).
_LAYOUTS = ('btd', 'kd', 'd', 'bkd', 'bt', 'bt')


def causal_conv1d(
    x: jax.Array,
    kernel: jax.Array,
    bias: jax.Array | None = None,
    tail: jax.Array | None = None,
    *,
    reset: jax.Array | None = None,
    mask: jax.Array | None = None,
) -> tuple[jax.Array, jax.Array]:
  """Computes `y_t = bias + sum_s kernel[K-1-s] * x_{t-s}`, within a sequence.

  The last K - 1 inputs, `tail`, are the whole state. So a sequence may be cut
  anywhere, even into chunks that are shorter than the kernel.

  >>> import jax.numpy as jnp
  >>> x = jnp.arange(1., 5.)[None, :, None]
  >>> tail, y = causal_conv1d(x, jnp.ones((2, 1)))
  >>> y[0, :, 0], tail[0, :, 0]
  (Array([1., 3., 5., 7.], dtype=float32), Array([4.], dtype=float32))

  Args:
    x: Inputs `[B, T, D]`, T >= 0.
    kernel: Weights `[K, D]`; the last one multiplies the current token.
    bias: Added to every output `[D]`.
    tail: The K - 1 inputs before the first one, oldest first `[B, K-1, D]`;
      zeros if `None`, as before the beginning.
    reset: Booleans `[B, T]`, `True` where a new sequence starts. Inputs before
      it count as zeros, even if there is a NaN among them.
    mask: Booleans `[B, T]`, `False` where a step is absent. Its output is 0,
      and later steps read the inputs before it.

  Returns:
    `(tail, y)`: the last K - 1 inputs, with zeros for those of earlier
    sequences, and the outputs `[B, T, D]`, both in the dtype of `x`. Sums are
    accumulated in `promote_types(float32, x.dtype)`.

  Raises:
    ValueError: If shapes or dtypes disagree.
  """
  x, kernel, bias, tail = _checked(x, 'BTD', kernel, bias, tail)
  reset, mask = checking.flags(reset, mask, x.shape)
  operands = (x, kernel, bias, tail, reset, mask)
  # XLA's partitioner splits rows and channels well, but not time, and Explicit
  # axes need specs. JAX cannot lower the gradient of a shard_map inside another
  # one.
  split = mesh.splits_time(x) and not mesh.is_partly_manual()
  if not split and not mesh.is_explicit(x):
    return _convolve_present(*operands)
  operands = mesh.align(x, operands, _LAYOUTS)
  return mesh.run_aligned(
      _convolve_segment, x, operands, _LAYOUTS, ('bkd', 'btd')
  )


def causal_conv1d_step(
    x: jax.Array,
    kernel: jax.Array,
    bias: jax.Array | None = None,
    tail: jax.Array | None = None,
    *,
    reset: jax.Array | None = None,
    mask: jax.Array | None = None,
) -> tuple[jax.Array, jax.Array]:
  """Runs `causal_conv1d` for one token: `x` `[B, D]`, flags `[B]`.

  Returns:
    `(tail, y)`: `[B, K-1, D]` and `[B, D]`, in the dtype of `x`.

  Raises:
    ValueError: If shapes or dtypes disagree.
  """
  x, kernel, bias, tail = _checked(x, 'BD', kernel, bias, tail)
  reset, mask = checking.flags(reset, mask, x.shape[:1])
  if tail is None:
    tail = jnp.zeros_like(x)[:, None].repeat(kernel.shape[0] - 1, axis=1)
  if mask is not None:
    x = jnp.where(mask[:, None], x, 0)
  window = tail if reset is None else jnp.where(reset[:, None, None], 0, tail)
  window = jnp.concatenate([window, x[:, None]], axis=1)
  dtype = jnp.promote_types(x.dtype, jnp.float32)
  y = (window.astype(dtype) * kernel.astype(dtype)).sum(1)
  y = _plus_bias(y, bias).astype(x.dtype)
  if mask is None:
    return window[:, 1:], y
  return (
      jnp.where(mask[:, None, None], window[:, 1:], tail),
      jnp.where(mask[:, None], y, 0),
  )


def _convolve_segment(x, kernel, bias, tail, reset, mask, *, segments):
  """Convolves the segment of one device; other devices send its tail."""
  if segments is None:
    return _convolve_present(x, kernel, bias, tail, reset, mask)
  if tail is None:
    tail = _zeros_before(x, kernel)
  own, _ = _convolve_present(x, kernel, bias, None, reset, mask)
  if tail.size == 0:
    pass
  elif mask is None and x.shape[1] >= tail.shape[1]:
    tail = segments.from_neighbor(own, tail)
  else:  # It may take several segments to fill a tail.
    count = jnp.full(x.shape[:1], x.shape[1]) if mask is None else mask.sum(1)
    if reset is not None:  # All inputs before a reset are known: zeros.
      started = (reset if mask is None else reset & mask).any(1)
      count = jnp.where(started, tail.shape[1], count)
    missing = tail.shape[1] - count[:, None, None]
    known = jnp.arange(tail.shape[1])[:, None] >= missing
    first = jnp.ones_like(known), tail
    tail = segments.combine_earlier(_one_tail, (known, own), first)[1]
  tail, y = _convolve_present(x, kernel, bias, tail, reset, mask)
  return segments.from_last(tail), y


def _one_tail(earlier, later):
  """Merges the tails of two adjacent segments of time.

  Args:
    earlier: Which inputs of the tail are known `[B, K-1, 1]`, always the last
      ones, and the tail `[B, K-1, D]`.
    later: Likewise.

  Returns:
    Likewise.
  """
  known, tail = later
  steps = jnp.arange(tail.shape[1]) + known.sum(1)
  pushed = [_take(u, jnp.minimum(steps, tail.shape[1] - 1)) for u in earlier]
  return known | pushed[0], jnp.where(known, tail, pushed[1])


def _zeros_before(x, kernel):
  """The tail before the beginning, split over a mesh like `x`."""
  return jnp.zeros_like(x, shape=(x.shape[0], len(kernel) - 1, x.shape[-1]))


def _convolve_present(x, kernel, bias, tail, reset, mask):
  """Convolves the steps that are present."""
  if tail is None:
    tail = _zeros_before(x, kernel)
  if mask is None:
    y, padded, sequence = _convolve(x, kernel, bias, tail, reset)
    recent = lambda u: u[:, u.shape[1] - tail.shape[1] :]
  else:
    # They move to the front, keeping their order, and back afterwards. The
    # absent steps are then last, where their flags have no effect.
    order = jnp.argsort(~mask, axis=1, stable=True)
    x = _take(jnp.where(mask[..., None], x, 0), order)
    if reset is not None:
      reset = _take(reset, order)
    y, padded, sequence = _convolve(x, kernel, bias, tail, reset)
    y = jnp.where(mask[..., None], _take(y, jnp.argsort(order, axis=1)), 0)
    # The tail is in front of them, so the last K - 1 start at their number.
    steps = mask.sum(1)[:, None] + jnp.arange(tail.shape[1])
    recent = lambda u: _take(u, steps)
  tail = recent(padded)
  if sequence is not None and tail.shape[1]:
    sequence = recent(sequence)
    tail = jnp.where((sequence == sequence[:, -1:])[..., None], tail, 0)
  return tail, y


def _convolve(x, kernel, bias, tail, reset):
  """Returns the sum over taps, the padded inputs, and their sequences."""
  taps, time = kernel.shape[0], x.shape[1]
  dtype = jnp.promote_types(x.dtype, jnp.float32)
  padded = jnp.concatenate([tail, x], axis=1)
  sequence = None
  if reset is not None:
    sequence = jnp.cumsum(reset, axis=1, dtype=jnp.int32)
    before = jnp.zeros_like(tail[..., 0], jnp.int32)
    sequence = jnp.concatenate([before, sequence], axis=1)
  y = jnp.zeros_like(x, dtype)
  for k in range(taps):  # K shifted products: one fused loop over the output.
    x_k = padded[:, k : k + time]
    if sequence is not None:
      same = sequence[:, k : k + time] == sequence[:, taps - 1 :]
      x_k = jnp.where(same[..., None], x_k, 0)
    y = y + x_k.astype(dtype) * kernel[k].astype(dtype)
  return _plus_bias(y, bias).astype(x.dtype), padded, sequence


def _plus_bias(y, bias):
  return y if bias is None else y + bias.astype(y.dtype)


def _take(u, steps):
  """`u` `[B, T]` or `[B, T, D]` at `steps` `[B, N]` of its time axis."""
  return jnp.take_along_axis(u, steps[..., None] if u.ndim == 3 else steps, 1)


def _checked(x, axes, kernel, bias, tail):
  """Returns the operands as arrays, or raises."""
  x, kernel = jnp.asarray(x), jnp.asarray(kernel)
  checking.has_axes('x', x, axes)
  features = x.shape[-1]
  if kernel.ndim != 2 or not kernel.shape[0] or kernel.shape[1] != features:
    raise ValueError(f'`kernel` must be [K, {features}], got {kernel.shape}.')
  want = (x.shape[0], kernel.shape[0] - 1, features)
  if bias is not None:
    bias = jnp.asarray(bias)
    if bias.shape != (features,):
      raise ValueError(f'`bias` must be [{features}], got {bias.shape}.')
  if tail is not None:
    tail = jnp.asarray(tail)
    checking.has_shape('tail', tail, ('B', 'K-1', 'D'), want)
  checking.are_inexact(x=x)
  for name, u in (('kernel', kernel), ('bias', bias), ('tail', tail)):
    if (
        u is not None
        and jnp.issubdtype(u.dtype, jnp.complexfloating)
        and not jnp.issubdtype(x.dtype, jnp.complexfloating)
    ):
      raise ValueError(f'`{name}` is {u.dtype}, but `x` is {x.dtype}.')
  return x, kernel, bias, None if tail is None else tail.astype(x.dtype)
