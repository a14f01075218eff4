"""The convolution of S4: a diagonal plus rank one system by FFT.

States and vectors `[.., M]` with M = N / 2 stand for real ones of size N: the
real parts, followed by the imaginary parts. `P^*` sums over both numbers of
each pair of conjugates, so it is twice a real part, and `A` is linear over the
real numbers only.
"""

import jax
import jax.numpy as jnp
import numpy as np
from rnnzoo import ops
from rnnzoo.ops import exact

# How many columns of the Cauchy matrix `[D, N / 2, T / 2]`, one for each
# frequency, are in memory at a time.
_FREQUENCIES = 256


def advance(lambda_, p, step, h, inputs=0):
  """Computes `(1 - step/2 A)^-1 ((1 + step/2 A) h + inputs)` in O(N).

  Args:
    lambda_: `[D, M]`.
    p: `[D, M]`.
    step: `[D, 1]`.
    h: `[..., D, M]`.
    inputs: `[..., D, M]`.

  Returns:
    `[..., D, M]`.
  """
  half = 0.5 * step
  project = lambda u: 2 * (p.conj() * u).sum(-1, keepdims=True).real
  right = (1 + half * lambda_) * h - half * p * project(h) + inputs
  # Woodbury: the inverse of a diagonal matrix plus one of rank one.
  inverse = 1 / (1 - half * lambda_)
  solved, turned = inverse * right, inverse * p
  return solved - half * turned * project(solved) / (1 + half * project(turned))


def convolution(lambda_, p, b, c, step, x, h0=None):
  """Runs `h_t = advance(h_{t-1}, step b x_t)`, `s_t = 2 Re(c h_t)`.

  Args:
    lambda_: `[D, M]`.
    p: `[D, M]`.
    b: `[D, M]`.
    c: `[D, M]`.
    step: `[D, 1]`.
    x: Inputs `[B, T, D]`, T >= 1, in the dtype of states.
    h0: State before the first step `[B, D, M]`; zeros if `None`.

  Returns:
    `(h_last, s)`: `[B, D, M]` and `[B, T, D]`.
  """
  time = x.shape[1]
  squares = repeated_squares(dense(lambda_, p, step), time)
  weights = to_real(2 * c.conj())  # `s` is their real product with states.
  after = _apply_power(squares, time, weights, transpose=True)
  kernel = _kernel(
      lambda_, p, step * b, to_complex(weights + after).conj() / 2, step, time
  )
  s = ops.fft_conv(x, kernel.T)
  size = 2 ** ((time.bit_length() + 1) // 2)  # About the root of T.
  count = time // size + 1
  into = to_real(advance(lambda_, p, step, jnp.zeros_like(b), step * b))
  # The last state is computed in rows of `size` steps. Zeros fill the first.
  padding = (0, 0), (count * size - time, 0), (0, 0)
  rows = jnp.pad(x, padding).reshape(x.shape[0], count, size, x.shape[2])
  impulses = _orbit(squares, 0, into, size)[..., ::-1]  # [D, N, size]
  ends = exact.einsum('bijd,dnj->bidn', rows, impulses)
  level = size.bit_length() - 1
  last = _combine(squares[level:], ends)
  if h0 is not None:
    h0 = to_real(h0)
    last += _apply_power(squares, time, h0)
    # Row i starts from the state after `i size` steps.
    starts = _orbit(squares, level, jnp.moveaxis(h0, 0, -1), count)
    first = _apply_power(squares, 1, weights, transpose=True)
    reads = _orbit(squares, 0, first, size, transpose=True)
    trace = exact.einsum('dnib,dnj->bijd', starts, reads)
    s += trace.reshape(x.shape[0], count * size, x.shape[2])[:, :time]
  return to_complex(last), s


def _kernel(lambda_, p, b, c, step, time):
  """`2 Re(c A^l (1 - step/2 A)^-1 b)` for l < T, by its Fourier transform.

  `A` is the discrete matrix, and `c` is already multiplied by `1 + A^T`.

  The transform at `z = exp(-2 i phi)` is the resolvent `(1 - z - step/2 (1 + z)
  A)^-1` between c and b. It equals `exp(i phi) / 2` times the inverse of `i sin
  - k A`, with `k = step/2 cos`. In this form no factor is infinite; a division
  by `1 + z` would make some infinite.

  Returns:
    `[D, T]`.
  """
  pairs = (c * b, c * p, p.conj() * b, p.conj() * p)
  rows = jnp.stack(
      [u.real for u in pairs] + [(u * lambda_.conj()).real for u in pairs],
      axis=1,
  )  # [D, 8, M]

  def spectrum(phi):
    sin, k = jnp.sin(phi), 0.5 * step * jnp.cos(phi)  # [F], [D, F]
    # For each pair, `i sin - k lambda` times the same with its conjugate.
    alpha, beta = (
        u[..., None] * k[:, None] for u in (-lambda_.real, lambda_.imag)
    )
    real = alpha * alpha - (sin - beta) * (sin + beta)
    imag = 2 * alpha * sin
    scale = 1 / (real * real + imag * imag)
    sums = jax.lax.complex(
        exact.einsum('dkm,dmf->kdf', rows, real * scale),
        -exact.einsum('dkm,dmf->kdf', rows, imag * scale),
    )
    # Half the sums over both numbers of each pair.
    cb, cp, pb, pp = 1j * sin * sums[:4] - k * sums[4:]
    return cb - 2 * k * cp * pb / (1 + 2 * k * pp)

  count = (time + 1) // 2  # The other values are conjugates of these.
  blocks = -(-count // _FREQUENCIES)
  width = -(-count // blocks)
  order = np.minimum(np.arange(blocks * width), count - 1)
  phi = np.pi * (2 * order + 1) / (2 * time)
  found = jax.lax.map(
      jax.checkpoint(spectrum),
      jnp.asarray(phi, step.dtype).reshape(blocks, width),
  )
  found = jnp.moveaxis(found, 0, 1).reshape(len(step), -1)[:, :count]
  # Two phases in one: of the resolvent, and of the roots of -1 instead of 1.
  turn = lambda n: jnp.asarray(np.exp(1j * np.pi * n / time), found.dtype)
  found *= turn(np.arange(count) + 0.5)
  both = jnp.concatenate(
      [found, found[:, : time // 2].conj()[:, ::-1]], axis=1
  )
  return (jnp.fft.ifft(both) * turn(np.arange(time))).real


def dense(lambda_, p, step):
  """Returns the real matrices `[D, N, N]` of `advance`."""
  m = lambda_.shape[1]
  basis = np.concatenate([np.eye(m), 1j * np.eye(m)])[:, None]
  images = advance(lambda_, p, step, jnp.asarray(basis, lambda_.dtype))
  return jnp.moveaxis(to_real(images), 0, 2)


def repeated_squares(matrix, time):
  """Returns `A^1, A^2, A^4, ...`, one for each binary digit of `time`."""
  squares = [matrix]
  while len(squares) < time.bit_length():
    last = squares[-1]
    squares.append(exact.einsum('dnm,dmk->dnk', last, last))
  return squares


def _apply_power(squares, exponent, u, *, transpose=False):
  """Computes `A^exponent u` for `[..., D, N]`, with `A` or its transpose."""
  matrix = 'dmn' if transpose else 'dnm'
  for i, square in enumerate(squares):
    if exponent >> i & 1:
      u = exact.einsum(f'{matrix},...dm->...dn', square, u)
  return u


def _orbit(squares, level, start, count, *, transpose=False):
  """Computes `A^(j 2^level) u` for j < count: `[D, N, count, ...]`."""
  matrix, table = 'dmn' if transpose else 'dnm', start[:, :, None]
  while table.shape[2] < count:
    moved = exact.einsum(f'{matrix},dm...->dn...', squares[level], table)
    table = jnp.concatenate([table, moved], axis=2)
    level += 1
  return table[:, :, :count]


def _combine(squares, ends):
  """Sums `A^(I-1-i) u_i` over i, for vectors `[B, I, D, N]`, in pairs."""
  for square in squares:
    if ends.shape[1] == 1:
      break
    if ends.shape[1] % 2:
      ends = jnp.pad(ends, ((0, 0), (1, 0), (0, 0), (0, 0)))
    earlier, later = ends[:, ::2], ends[:, 1::2]
    ends = exact.einsum('dnm,bidm->bidn', square, earlier) + later
  return ends[:, 0]


def to_real(u):
  """Stacks real and imaginary parts: `[..., M]` to `[..., N]`."""
  return jnp.concatenate([u.real, u.imag], axis=-1)


def to_complex(u):
  """The inverse of `to_real`."""
  return jax.lax.complex(*jnp.split(u, 2, axis=-1))
