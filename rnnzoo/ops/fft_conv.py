"""Causal convolution with kernels as long as the sequence, by FFT."""

import jax
import jax.numpy as jnp
from rnnzoo import mesh
from rnnzoo.ops import checking
from rnnzoo.ops import exact

# The layouts of `x` and `kernel` (see `rnnzoo/mesh.py`). Every device needs all
# of the time axis.
_LAYOUTS = ('bkd', 'kd')


def fft_conv(x: jax.Array, kernel: jax.Array) -> jax.Array:
  """Computes `y_t = sum_s kernel_s * x_{t-s}`, with zeros before the beginning.

  It costs `T log T` a channel for any kernel; a recurrence costs `T` times its
  state. Rounding errors of a Fourier transform spread over all of time. So they
  are relative to the largest output of a row and channel, and a single NaN
  makes all outputs of its row and channel NaN.

  Under `jax.set_mesh`, every device convolves its own rows and channels. Time
  is gathered.

  >>> import jax.numpy as jnp
  >>> x = jnp.arange(1., 5.)[None, :, None]
  >>> fft_conv(x, jnp.array([1., 1., 0., 0.])[:, None])[0, :, 0].round(4)
  Array([1., 3., 5., 7.], dtype=float32)

  Args:
    x: Inputs `[B, T, D]`, or `[B, T, 1]` for one input that all channels share;
      real, T >= 0.
    kernel: Weights `[T, D]`, real; the first one multiplies the current token.

  Returns:
    Outputs `[B, T, D]` in the dtype of `x`, computed in `promote_types(float32,
    ...)` of both arguments.

  Raises:
    ValueError: If shapes or dtypes disagree.
  """
  x, kernel = jnp.asarray(x), jnp.asarray(kernel)
  checking.has_axes('x', x, 'BTD')
  if (
      kernel.ndim != 2
      or kernel.shape[0] != x.shape[1]
      or x.shape[2] not in (1, kernel.shape[1])
  ):
    raise ValueError(
        f'`kernel` must be [T, D] for `x` {x.shape}, got {kernel.shape}.'
    )
  checking.are_floating(x=x, kernel=kernel)
  return mesh.run_per_device(
      _convolve, x, (x, kernel), _LAYOUTS, ('bkd',)
  )[0]


def fft_length(time: int) -> int:
  """The length of the transforms: at least `2 T`, with small prime factors."""
  up = lambda m: m * 2 ** max(0, (-(-2 * time // m) - 1).bit_length())
  return min(up(m) for m in (1, 3, 5, 9, 15))


def _convolve(x, kernel, *, segments):
  del segments  # Every device has all of the time axis.
  (batch, time, _), features = x.shape, kernel.shape[1]
  if not batch * time * features:
    return (jnp.zeros_like(x, shape=(batch, time, features)),)
  dtype = exact.accumulation_dtype(x, kernel)
  length = fft_length(time)
  by_time = lambda u: jnp.fft.rfft(u.astype(dtype).swapaxes(-1, -2), length)
  y = jnp.fft.irfft(by_time(x) * by_time(kernel), length)[..., :time]
  return (y.swapaxes(-1, -2).astype(x.dtype),)
