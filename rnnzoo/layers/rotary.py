"""Rotary positions (Su et al., 2021), https://arxiv.org/abs/2104.09864."""

import jax
import jax.numpy as jnp
import numpy as np


def rotary(
    u: jax.Array,
    positions: jax.Array,
    features: int,
    max_wavelength: float = 10_000.0,
) -> jax.Array:
  """Rotates pairs of features by `2 pi position / wavelength`.

  Feature `i` of the first half of the rotated features is paired with feature
  `i` of the second half. Angles are reduced to one turn in integer arithmetic,
  before they are converted to floating point. So products of queries and keys
  depend on distances only, at any position.

  Args:
    u: `[..., H, K]`.
    positions: `[...]`, int32 or uint32. A negative position counts modulo
      `2**32`.
    features: How many of the `K` features are rotated, from the first; even.
    max_wavelength: Pair `i` of `n` has the wavelength `max_wavelength**(i/n)`
      times 2 pi.

  Returns:
    An array like `u`.
  """
  dtype, half = jnp.promote_types(jnp.float32, u.dtype), features // 2
  turns = max_wavelength ** -(np.arange(half) / half) / (2 * np.pi)
  angles = _angles(positions[..., None, None], turns, dtype)
  cos, sin = jnp.cos(angles), jnp.sin(angles)
  first, second = (
      part.astype(dtype) for part in jnp.split(u[..., :features], 2, axis=-1)
  )
  rotated = [first * cos - second * sin, second * cos + first * sin]
  return jnp.concatenate(
      [*(part.astype(u.dtype) for part in rotated), u[..., features:]], axis=-1
  )


def _angles(positions, turns, dtype):
  """`2 pi turns positions`, less whole turns, in `[-pi, pi]`.

  Differences of angles depend on distances only. `turns` has the precision of
  float64, which is an error of 5e-7 at position `2**32`.

  Args:
    positions: Integers of 32 bits, taken as unsigned.
    turns: `[N]`, NumPy's float64.
    dtype: Dtype of the result.
  """
  fractions = np.rint(np.ldexp(turns % 1, 64)).astype(np.uint64)
  positions = positions.astype(jnp.uint32)
  # In fixed point, whole turns overflow and so disappear.
  if dtype == jnp.float64:
    phase = positions.astype(jnp.uint64) * fractions
  else:
    # The upper half of 64 bits, up to two units in the last place.
    a, b, c = (
        ((fractions >> shift) & mask).astype(np.uint32)
        for shift, mask in ((32, 2**32 - 1), (16, 2**16 - 1), (0, 2**16 - 1))
    )
    high, low = positions >> 16, positions & 0xFFFF
    phase = positions * a + high * b + ((high * c) >> 16) + ((low * b) >> 16)
  bits = phase.dtype.itemsize * 8
  signed = phase.astype(f'int{bits}').astype(dtype)
  return signed * (2 * np.pi / 2.0**bits)
