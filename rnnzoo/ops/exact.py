"""Products that keep all their digits: states must not be rounded to what the
matrix units of accelerators like.
"""

import functools

import jax
import jax.numpy as jnp

einsum = functools.partial(jnp.einsum, precision=jax.lax.Precision.HIGHEST)
