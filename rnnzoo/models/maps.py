"""Linear maps with the initial values of PyTorch, and MLPs made of them."""

from typing import Any

from flax import nnx
import jax
import jax.numpy as jnp
from rnnzoo.layers import common
from rnnzoo.layers import initializers


def relu2(x: jax.Array) -> jax.Array:
  """Returns `max(x, 0)^2` (So et al., 2021), https://arxiv.org/abs/2109.08668.

  >>> relu2(jnp.array([-2., 3.]))
  Array([0., 9.], dtype=float32)
  """
  return jnp.square(jax.nn.relu(x))


# The nonlinearity of each kind of MLP, see `ModelConfig.mlp`.
NONLINEARITIES = dict(
    gelu=jax.nn.gelu, geglu=jax.nn.gelu, swiglu=jax.nn.silu, relu2=relu2
)
GATED = ('geglu', 'swiglu')  # Those that multiply two maps of their input.


def linear(
    n: int, m: int, param_dtype: Any, rngs: nnx.Rngs, *, use_bias: bool = True,
    out_of: str | None = 'embed', into: str | None = 'hidden',
) -> nnx.Linear:
  """Makes a linear map `[n] -> [m]`.

  >>> linear(3, 5, jnp.float32, nnx.Rngs(0)).kernel.shape
  (3, 5)

  Args:
    n: The number of inputs.
    m: The number of outputs.
    param_dtype: Dtype of the parameters.
    rngs: Source of the initial parameters.
    use_bias: Whether there is a bias.
    out_of: The logical axis of the inputs, see `training.sharding.RULES`.
    into: That of the outputs.
  """
  init = initializers.uniform_fan_in(n)
  return nnx.Linear(
      n,
      m,
      use_bias=use_bias,
      kernel_init=init,
      bias_init=init,
      kernel_metadata=dict(axes=(out_of, into)),
      bias_metadata=dict(axes=(into,)),
      param_dtype=param_dtype,
      rngs=rngs,
  )


def mlp(
    kind: str, inner: nnx.Linear, gate: nnx.Linear | None, outer: nnx.Linear,
    x: jax.Array, gate_scale: float = 1.0,
) -> jax.Array:
  """Runs an MLP.

  Args:
    kind: See `ModelConfig.mlp`.
    inner: The map `[D] -> [F]` to the hidden features.
    gate: A second one, if the kind is in `GATED`; otherwise `None`.
    outer: The map `[F] -> [D]`.
    x: `[..., D]`.
    gate_scale: What the output of `gate` is multiplied by.

  Returns:
    `[..., D]`.
  """
  y = common.project(inner, x)
  if gate is None:
    y = NONLINEARITIES[kind](y)
  else:
    scaled = common.project(gate, x) * jnp.asarray(gate_scale, x.dtype)
    y = y * NONLINEARITIES[kind](scaled)
  return common.project(outer, y)
