"""Products and sums that keep their digits.

States must not be rounded to what the matrix units of accelerators prefer.
"""

import functools

import jax
import jax.numpy as jnp

einsum = functools.partial(jnp.einsum, precision=jax.lax.Precision.HIGHEST)


def accumulation_dtype(*operands: jax.Array) -> jnp.dtype:
  """Returns the dtype of states: float32 at least, complex if an operand is."""
  return jnp.promote_types(jnp.result_type(*operands), jnp.float32)
