"""Diagonal state space models: H systems, each with one input and N states.

    h_t = a h_{t-1} + b x_t,    y_t = Re(sum_n c_n h_t)

The states of all steps, `[B, T, H, N]`, would be N times as large as the
sequence, so no function here holds them. If the system is the same at all
times, use `diagonal_convolution`. Otherwise `diagonal_scan` runs over time in
chunks, and the backward pass recomputes their states.
"""

from collections.abc import Callable
import math
from typing import Any

import jax
import jax.numpy as jnp
from rnnzoo import mesh
from rnnzoo.ops import exact
from rnnzoo.ops import split_time
from rnnzoo.ops.fft_conv import fft_conv
from rnnzoo.ops.linear_scan import api

# The number of steps whose states are in memory at a time.
CHUNK = 64


def diagonal_convolution(
    a: jax.Array,
    b: jax.Array,
    c: jax.Array,
    x: jax.Array,
    h0: jax.Array | None = None,
) -> tuple[jax.Array, jax.Array]:
  """Runs the systems as one convolution with `Re(sum_n c_n b_n a_n^t)`.

  Powers `a^(i J + j)` are products of two small tables, so all sums over them
  are products of matrices. These take `T N` multiplications a channel for the
  kernel, `B T N` for the effect of `h0`, and `B T N` for the last state. The
  last two cost nothing under `jax.jit` if `h0` is `None` or the last state is
  not used. The rest is `fft_conv`.

  >>> import jax.numpy as jnp
  >>> one = jnp.ones((1, 1))
  >>> h, y = diagonal_convolution(one / 2, one, one, jnp.ones((1, 3, 1)))
  >>> h[0, 0], y[0, :, 0].round(4)
  (Array([1.75], dtype=float32), Array([1.  , 1.5 , 1.75], dtype=float32))

  Args:
    a: Decays `[H, N]`, real or complex.
    b: Weights of the input `[H, N]`.
    c: Weights of the output `[H, N]`.
    x: Inputs `[B, T, H]`, real, T >= 1, in the dtype of states.
    h0: State before the first step `[B, H, N]`; zeros if `None`.

  Returns:
    `(h_last, y)`: `[B, H, N]` and `[B, T, H]`, in the dtypes of `a` and `x`.
  """

  def local(a, b, c, x, h0, *, segments):
    if segments is None:
      return _convolve(a, b, c, x, h0)
    last, _ = _convolve(a, b, c, x, None)
    product = powers(a, x.shape[1] + 1)[..., -1]
    h0 = jnp.zeros_like(last) if h0 is None else h0
    product = jnp.broadcast_to(product, last.shape)
    h0 = split_time.entering_state(segments, product, last, None, h0)
    last, y = _convolve(a, b, c, x, h0)
    return segments.from_last(last), y

  return mesh.run_per_device(
      local, x, (a, b, c, x, h0), ('dk',) * 3 + ('btd', 'bdk'), ('bdk', 'btd')
  )


def _convolve(a, b, c, x, h0):
  time = x.shape[1]
  size = 2 ** ((time.bit_length() + 1) // 2)  # J, about the root of T.
  fine = powers(a, size)  # [H, N, J]
  coarse = powers(fine[..., -1] * a, time // size + 1)  # [H, N, I]
  # The real part of a product is a sum of two products, one negated: [.., 2 N].
  pairs = _pairs if jnp.iscomplexobj(a) else lambda u, sign: u
  fine_pairs = pairs(fine, 1)
  flat = lambda u: u.reshape(
      u.shape[:-2] + (u.shape[-2] * u.shape[-1],)
  )[..., :time]
  kernel = flat(exact.einsum(
      'hni,hnj->hij', pairs((c * b)[..., None] * coarse, -1), fine_pairs
  ))
  y = fft_conv(x, kernel.T)
  # The inputs from the last step backwards, in I rows of J.
  padding = (0, 0), (0, coarse.shape[-1] * size - time), (0, 0)
  rows = jnp.pad(x[:, ::-1], padding).reshape(
      x.shape[0], coarse.shape[-1], size, x.shape[2]
  )
  parts = exact.einsum('bijh,hnj->bihn', rows, fine_pairs)
  if jnp.iscomplexobj(a):
    parts = jax.lax.complex(*jnp.split(parts, 2, axis=-1))
  last = b * exact.einsum('bihn,hni->bhn', parts, coarse)
  if h0 is not None:
    last += fine[..., time % size] * coarse[..., time // size] * h0
    first = pairs((c * a * h0)[..., None] * coarse, -1)
    trace = flat(exact.einsum('bhni,hnj->bhij', first, fine_pairs))
    y += trace.swapaxes(1, 2)
  return last, y


def diagonal_scan(
    system: Callable[[Any, Any], tuple[jax.Array, jax.Array]],
    parameters: Any,
    c: jax.Array,
    x: jax.Array,
    h0: jax.Array,
    *,
    dt: jax.Array | None = None,
    reset: jax.Array | None = None,
    mask: jax.Array | None = None,
    chunk: int = CHUNK,
) -> tuple[jax.Array, jax.Array]:
  """Runs the systems by `linear_scan`, one chunk of time after the other.

  The memory holds the states of `chunk` steps, and one state per chunk.

  Args:
    system: A function `(parameters, dt) -> (a, b)`: `[H, N]` if `dt` is `None`,
      or `[B, L, H, N]` for step lengths `[B, L]`.
    parameters: A tree of arrays `[H, N]` or `[H, 1]`.
    c: Weights of the output `[H, N]`.
    x: Inputs `[B, T, H]`, real, T >= 0, in the dtype of states.
    h0: State before the first step `[B, H, N]`.
    dt: Lengths of steps `[B, T]`, or `None`.
    reset: Booleans `[B, T]`, as in `linear_scan`.
    mask: Booleans `[B, T]`; where `False` the state passes unchanged.
    chunk: Steps at a time.

  Returns:
    `(h_last, y)`: `[B, H, N]` and `[B, T, H]`, in the dtypes of `h0` and `x`.
  """

  leaves, structure = jax.tree.flatten(parameters)

  def local(c, x, h0, dt, reset, mask, *leaves, segments):
    parameters = structure.unflatten(leaves)

    def coefficients(x, dt, mask):
      a, b = system(parameters, dt)
      b = b * x[..., None]
      a = a.reshape((1,) * (4 - a.ndim) + a.shape)
      if mask is not None:
        here = mask[..., None, None]
        a, b = jnp.where(here, a, 1), jnp.where(here, b, 0)
      return a, b

    def run(h, inputs):
      x, dt, reset, mask = inputs
      a, b = coefficients(x, dt, mask)
      flat = lambda u: u.reshape(u.shape[:-2] + (math.prod(u.shape[-2:]),))
      last, states = api.linear_scan(flat(a), flat(b), flat(h), reset=reset)
      return last.reshape(h.shape), readout(c, states.reshape(b.shape))

    def run_from_zero(carry, inputs):
      product, h = carry
      x, dt, _, mask = inputs
      a, b = coefficients(x, dt, mask)
      a = jnp.broadcast_to(a, (*a.shape[:1], *b.shape[1:]))
      return (product * a.prod(1), run(h, inputs)[0]), None

    inputs = x, dt, reset, mask
    if segments is None:
      return scan_chunks(run, h0, inputs, chunk)
    nothing = jnp.ones_like(h0), jnp.zeros_like(h0)
    (product, last), _ = scan_chunks(run_from_zero, nothing, inputs, chunk)
    if reset is not None:
      product = jnp.where(reset.any(1)[:, None, None], 0, product)
    h0 = split_time.entering_state(segments, product, last, reset, h0)
    last, y = scan_chunks(run, h0, inputs, chunk)
    return segments.from_last(last), y

  return mesh.run_per_device(
      local, x, (c, x, h0, dt, reset, mask, *leaves),
      ('dk', 'btd', 'bdk', 'bt', 'bt', 'bt') + ('dk',) * len(leaves),
      ('bdk', 'btd'),
  )


def scan_chunks(
    run: Callable[[Any, Any], tuple[Any, Any]],
    h0: Any,
    inputs: Any,
    chunk: int = CHUNK,
) -> tuple[Any, Any]:
  """Runs a recurrence chunk by chunk; the backward pass runs each again.

  Args:
    run: A function `(h, inputs) -> (h, y)` for a part of time; `y` is an array
      `[B, T, ...]` or `None`.
    h0: The state before the first step, a tree.
    inputs: A tree of arrays `[B, T, ...]`.
    chunk: Steps at a time.

  Returns:
    `(h_last, y)`, like `run` for the whole of time.
  """
  batch, time = jax.tree.leaves(inputs)[0].shape[:2]
  chunks, rest = divmod(time, chunk)
  if chunks + bool(rest) <= 1:
    return run(h0, inputs)
  whole = chunks * chunk
  by_chunk = lambda u: jnp.moveaxis(
      u[:, :whole].reshape((batch, chunks, chunk) + u.shape[2:]), 1, 0
  )
  h, y = jax.lax.scan(
      jax.checkpoint(run), h0, jax.tree.map(by_chunk, inputs)
  )
  together = lambda u: jnp.moveaxis(u, 0, 1).reshape(
      (batch, whole) + u.shape[3:]
  )
  y = jax.tree.map(together, y)
  if rest:
    h, last = run(h, jax.tree.map(lambda u: u[:, whole:], inputs))
    y = jax.tree.map(lambda *u: jnp.concatenate(u, axis=1), y, last)
  return h, y


def readout(c: jax.Array, h: jax.Array) -> jax.Array:
  """Returns `Re(sum_n c_n h_n)` `[..., H]` of states `[..., H, N]`."""
  if not jnp.iscomplexobj(h):
    return (c * h).sum(-1)
  return (c.real * h.real - c.imag * h.imag).sum(-1)


def _pairs(u, sign):
  return jnp.concatenate([u.real, sign * u.imag], axis=-2)


def powers(a: jax.Array, count: int) -> jax.Array:
  """Returns `a^0` to `a^(count-1)` on a new last axis by repeated squaring."""
  table, step = jnp.ones_like(a)[..., None], a
  while table.shape[-1] < count:
    table = jnp.concatenate([table, table * step[..., None]], axis=-1)
    step = step * step
  return table[..., :count]
