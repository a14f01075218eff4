"""The linear recurrence in NumPy and float64, too simple to be wrong."""

import numpy as np


def linear_scan(a, x, h0, reset=None, reverse=False):
  """Returns `(h_last, h)` of `h_t = a_t h_{t-1} + x_t`."""
  a, x, h, steps = _widened(a, x, h0, reverse)
  states = np.zeros_like(x)
  for t in steps:
    if reset is not None:
      h = np.where(reset[:, t, None], 0, h)
    h = a[:, t] * h + x[:, t]
    states[:, t] = h
  return h, states


def linear_scan_vjp(a, x, h0, dlast, dh, reset=None, reverse=False):
  """Returns the gradients `(da, dx, dh0)` of `sum(dlast h_last) + sum(dh h)`.

  As in JAX nothing is conjugated, and a real operand has a real gradient.
  """
  shape_a, real = np.shape(a), [not np.iscomplexobj(u) for u in (a, x, h0)]
  _, h = linear_scan(a, x, h0, reset, reverse)
  a, x, h0, steps = _widened(a, x, h0, reverse)
  da, dx, left = np.zeros_like(x), np.zeros_like(x), dlast.astype(x.dtype)
  for i, t in reversed(list(enumerate(steps))):
    dx[:, t] = left = left + dh[:, t]
    before = h[:, steps[i - 1]] if i else h0
    da[:, t], left = left * before, left * a[:, t]
    if reset is not None:
      da[:, t], left = (
          np.where(reset[:, t, None], 0, u) for u in (da[:, t], left)
      )
  da = da.sum(tuple(range(3 - len(shape_a))))
  da = da.sum(
      tuple(i for i in range(da.ndim) if shape_a[i] != da.shape[i]),
      keepdims=True,
  )
  return tuple(u.real if r else u for u, r in zip((da, dx, left), real))


def _widened(a, x, h0, reverse):
  dtype = np.result_type(
      np.float64, *(np.complex128 for u in (a, x, h0) if np.iscomplexobj(u))
  )
  a, x, h0 = (np.asarray(u).astype(dtype) for u in (a, x, h0))
  steps = range(x.shape[1])
  return np.broadcast_to(a, x.shape), x, h0, steps[::-1] if reverse else steps


def causal_conv1d(x, kernel, bias, tail, reset=None, mask=None):
  """Returns `(tail, y)`, one token of one row after the other."""
  wide = np.result_type(np.float64, np.complex128 if np.iscomplexobj(x) else 0)
  x, kernel, bias, tail = (
      np.asarray(u).astype(wide) for u in (x, kernel, bias, tail)
  )
  y, tails = np.zeros_like(x), tail.copy()
  for b, t in np.ndindex(*x.shape[:2]):
    if mask is not None and not mask[b, t]:
      continue
    if reset is not None and reset[b, t]:
      tails[b] = 0
    window = np.concatenate([tails[b], x[b, t : t + 1]])
    y[b, t] = (window * kernel).sum(0) + bias
    tails[b] = window[1:]
  return tails, y
