"""How a token weighs the levels of `ops.log_linear_attention`."""

from flax import nnx
import jax
import jax.numpy as jnp
from rnnzoo import ops
from rnnzoo.layers import base
from rnnzoo.layers import common
from rnnzoo.layers import initializers


def make(
    in_features, num_heads, num_levels, *, use_bias, param_dtype, rngs
) -> tuple[nnx.LinearGeneral, nnx.Param]:
  """Makes a map `[D] -> [H, E]` and the parameter `L` `[H, E]`, ones.

  `L` is float32 at least, and has no weight decay.
  """
  if not 2 <= num_levels <= ops.MOST_LEVELS:
    raise ValueError(
        f'`num_levels` must be from 2 to {ops.MOST_LEVELS}, got {num_levels}.'
    )
  init = initializers.uniform_fan_in(in_features)
  linear = nnx.LinearGeneral(
      in_features,
      (num_heads, num_levels),
      use_bias=use_bias,
      kernel_init=init,
      bias_init=init,
      kernel_metadata=dict(axes=('embed', 'heads', None)),
      bias_metadata=dict(axes=('heads', None)),
      param_dtype=param_dtype,
      rngs=rngs,
  )
  ones = jnp.ones((num_heads, num_levels), base.state_dtype(param_dtype))
  return linear, nnx.Param(ones, axes=('heads', None), recurrent=True)


def of(linear: nnx.LinearGeneral, L: nnx.Param, x: jax.Array) -> jax.Array:
  """Returns `softplus(L * linear(x))`, `[..., H, E]`, float32 at least."""
  dtype = base.state_dtype(x.dtype)
  raw = common.project(linear, x, dtype)
  return jax.nn.softplus(L[...].astype(dtype) * raw)
