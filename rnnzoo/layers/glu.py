"""The output map of S4 and S4D: GELU, a linear map, and a gated linear unit."""

import math

from flax import nnx
import jax
import jax.numpy as jnp
from rnnzoo.layers import common
from rnnzoo.layers import initializers

OUTPUT_MAPS = 'glu', 'none'


def output_glu(features, param_dtype, rngs):
  """Makes the linear part of the output map: `[D] -> [2 D]`."""
  init = initializers.uniform_fan_in(features)
  return nnx.Linear(
      features,
      2 * features,
      kernel_init=init,
      bias_init=init,
      kernel_metadata=dict(axes=('hidden', 'embed')),
      bias_metadata=dict(axes=('embed',)),
      param_dtype=param_dtype,
      rngs=rngs,
  )


def glu(linear, s):
  """Applies the output map, `[..., D]` to `[..., D]`."""
  s = common.project(linear, s * _normal_cdf(s))  # Exact GELU.
  value, gate = jnp.split(s, 2, axis=-1)
  return value * jax.nn.sigmoid(gate)


# With JAX 0.12.0 the gradient of `erf` does not pass a `jax.shard_map`.
@jax.custom_jvp
def _normal_cdf(x):
  return 0.5 * jax.lax.erfc(-math.sqrt(0.5) * x)


@_normal_cdf.defjvp
def _normal_cdf_jvp(primals, tangents):
  (x,), (dx,) = primals, tangents
  density = math.sqrt(0.5 / math.pi) * jnp.exp(-0.5 * x * x)
  return _normal_cdf(x), density * dx
