"""Complex arithmetic for kernels, which have real numbers only.

A value is a tuple of its parts: one array if it is real, the real and the
imaginary one if it is complex.
"""

from collections.abc import Iterator

import jax
from jax import lax
import jax.numpy as jnp

Parts = tuple[jax.Array, ...]


def dtypes(dtype) -> tuple[jnp.dtype, ...]:
  """The dtypes of the parts of an array of this dtype."""
  if not jnp.issubdtype(dtype, jnp.complexfloating):
    return (dtype,)
  return (jnp.finfo(dtype).dtype,) * 2


def split(u: jax.Array) -> Parts:
  """The parts of an array."""
  return (u.real, u.imag) if jnp.iscomplexobj(u) else (u,)


def join(parts: Parts) -> jax.Array:
  """The array of these parts."""
  return lax.complex(*parts) if len(parts) == 2 else parts[0]


def take(parts: Iterator[jax.Array], dtype) -> Parts:
  """Takes the parts of the next value of this dtype."""
  return tuple(next(parts) for _ in dtypes(dtype))


def add(u: Parts, v: Parts) -> Parts:
  """The sum of two values that are both real or both complex."""
  return tuple(p + q for p, q in zip(u, v))


def multiply(u: Parts, v: Parts) -> Parts:
  """The product of two values, each of them real or complex."""
  if len(u) == len(v) == 2:
    return u[0] * v[0] - u[1] * v[1], u[0] * v[1] + u[1] * v[0]
  return tuple(p * q for p in u for q in v)
