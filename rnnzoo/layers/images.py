"""Tokens that are images: a convolution, and checks of sizes."""

from collections.abc import Sequence

import jax
from rnnzoo import ops


def convolve(x: jax.Array, kernel: jax.Array, dtype=None) -> jax.Array:
  """Convolves images, padded with zeros, so that their size stays the same.

  Args:
    x: `[..., H, W, C]`.
    kernel: `[K, K, C, F]`, not flipped; `K` is odd.
    dtype: Dtype of the result, in which products are also summed; `x.dtype` if
      `None`.

  Returns:
    `[..., H, W, F]`.
  """
  dtype = dtype or x.dtype

  def of_all(kernel, x):
    # Converted first: XLA:CPU has no bfloat16 convolution with float32 sums.
    y = jax.lax.conv_general_dilated(
        x.reshape((-1,) + x.shape[-3:]).astype(dtype),
        kernel.astype(x.dtype).astype(dtype),
        window_strides=(1, 1),
        padding='SAME',
        dimension_numbers=('NHWC', 'HWIO', 'NHWC'),
    )
    return y.reshape(x.shape[:-1] + y.shape[-1:])

  if x.ndim < 5:
    return of_all(kernel, x)
  # Where time is split over devices, the leading axes cannot be merged.
  return ops.map_rows(of_all, kernel, x, split_time=True)


def checked_input_shape(
    input_shape: Sequence[int],
) -> tuple[tuple[int, int], int]:
  """Returns `(H, W), C`, or raises `ValueError`."""
  shape = tuple(input_shape) if isinstance(input_shape, Sequence) else ()
  if len(shape) != 3 or min(shape) < 1:
    raise ValueError(
        f'`input_shape` must be (height, width, channels), got {input_shape}.'
    )
  return shape[:2], shape[2]


def check_kernel_size(name: str, size: int) -> None:
  """Raises `ValueError` unless the size of a kernel is odd."""
  if size < 1 or size % 2 == 0:
    raise ValueError(f'`{name}` must be odd, got {size}.')
