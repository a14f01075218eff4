"""What is not the architecture: projections, norms."""

from flax import nnx
import jax
import jax.numpy as jnp


def project(
    linear: nnx.Linear | nnx.LinearGeneral, x: jax.Array, dtype=None
) -> jax.Array:
  """Applies a linear layer in `x.dtype`, giving `[..., *kernel.shape[1:]]`.

  Flax promotes bfloat16 inputs to the dtype of the parameters unless each
  module is told otherwise; here the parameters follow the activations.

  Args:
    linear: Holds `kernel` `[D, ...]` and perhaps `bias` `[...]`.
    x: `[..., D]`.
    dtype: Dtype of the result, in which products are also summed; `x.dtype` if
      `None`. Gates ask for float32.

  Returns:
    `x @ kernel + bias`.
  """
  bias = None if linear.bias is None else linear.bias[...]
  return _affine(x, linear.kernel[...], bias, dtype or x.dtype)


def project_each(
    linear: nnx.LinearGeneral, x: jax.Array, dtype=None
) -> tuple[jax.Array, ...]:
  """`project` for a map `[D] -> [G, H]`: a tuple of G arrays `[..., H]`.

  One matmul each, so that no result has to be taken apart.
  """
  kernel = linear.kernel[...]
  biases = [None] * kernel.shape[1]
  if linear.bias is not None:
    biases = list(linear.bias[...])
  return tuple(
      _affine(x, kernel[:, i], bias, dtype or x.dtype)
      for i, bias in enumerate(biases)
  )


def _affine(x, kernel, bias, dtype):
  y = jax.lax.dot_general(
      x,
      kernel.astype(x.dtype),
      (((x.ndim - 1,), (0,)), ((), ())),
      preferred_element_type=dtype,
  )
  return y if bias is None else y + bias.astype(dtype)


def cell_input(
    gates, in_features, hidden_features, param_dtype, rngs, bias=None
):
  """The map `[D] -> [G, H]` from input to the gates of a cell.

  Args:
    gates: `G`.
    in_features: `D`.
    hidden_features: `H`.
    param_dtype: Dtype of the parameters.
    rngs: Source of the initial parameters.
    bias: Initial bias of each gate; zeros if `None`.

  Returns:
    An `nnx.LinearGeneral`, Glorot uniform.
  """
  values = jnp.repeat(jnp.asarray(bias or (0.0,) * gates), hidden_features)
  return nnx.LinearGeneral(
      in_features,
      (gates, hidden_features),
      kernel_init=_per_gate(nnx.initializers.glorot_uniform(), gates),
      bias_init=lambda key, shape, dtype: values.astype(dtype).reshape(shape),
      kernel_metadata=dict(axes=('embed', None, 'hidden')),
      bias_metadata=dict(axes=(None, 'hidden')),
      param_dtype=param_dtype,
      rngs=rngs,
  )


def cell_hidden(gates, hidden_features, use_bias, param_dtype, rngs):
  """The map `[H] -> [G, H]` from state to gates, orthogonal for each gate."""
  return nnx.LinearGeneral(
      hidden_features,
      (gates, hidden_features),
      use_bias=use_bias,
      kernel_init=_per_gate(nnx.initializers.orthogonal(), gates),
      kernel_metadata=dict(axes=(None, None, 'hidden'), recurrent=True),
      bias_metadata=dict(axes=(None, 'hidden'), recurrent=True),
      param_dtype=param_dtype,
      rngs=rngs,
  )


def _per_gate(init, gates):
  """Draws each gate's matrix on its own: fused, their fans would be wrong."""

  def fused(key, shape, dtype):  # Flax asks for [in, G * H].
    keys = jax.random.split(key, gates)
    shape = (shape[0], shape[1] // gates)
    return jnp.concatenate([init(k, shape, dtype) for k in keys], axis=1)

  return fused


class RMSNorm(nnx.Module):
  """`x / sqrt(mean(x^2) + eps) * scale`, in float32, given in `x.dtype`."""

  def __init__(
      self, features: int, *, epsilon=1e-6, param_dtype=jnp.float32, rngs=None
  ):
    self.epsilon = epsilon
    self.scale = nnx.Param(jnp.ones((features,), param_dtype), axes=(None,))

  def __call__(self, x, *, mask=None, train=False):
    f32 = x.astype(jnp.promote_types(jnp.float32, x.dtype))
    mean_square = jnp.square(f32).mean(-1, keepdims=True)
    f32 = f32 * jax.lax.rsqrt(mean_square + self.epsilon)
    return (f32 * self.scale[...]).astype(x.dtype)


class LayerNorm(nnx.Module):
  """`(x - mean) / sqrt(var + eps) * scale + bias` over features, in float32."""

  def __init__(
      self, features: int, *, epsilon=1e-6, param_dtype=jnp.float32, rngs=None
  ):
    self.epsilon = epsilon
    self.scale = nnx.Param(jnp.ones((features,), param_dtype), axes=(None,))
    self.bias = nnx.Param(jnp.zeros((features,), param_dtype), axes=(None,))

  def __call__(self, x, *, mask=None, train=False):
    f32 = x.astype(jnp.promote_types(jnp.float32, x.dtype))
    f32 = f32 - f32.mean(-1, keepdims=True)
    variance = jnp.square(f32).mean(-1, keepdims=True)
    f32 = f32 * jax.lax.rsqrt(variance + self.epsilon)
    return (f32 * self.scale[...] + self.bias[...]).astype(x.dtype)


class BatchNorm(nnx.Module):
  """Normalises each feature over the batch and time axes, padding excluded.

  With `train=True` the statistics are those of the batch, and the running ones
  move towards them by `1 - momentum`; otherwise the running ones are used.
  """

  def __init__(
      self,
      features: int,
      *,
      epsilon=1e-5,
      momentum=0.9,
      param_dtype=jnp.float32,
      rngs=None,
  ):
    self.epsilon, self.momentum = epsilon, momentum
    self.scale = nnx.Param(jnp.ones((features,), param_dtype), axes=(None,))
    self.bias = nnx.Param(jnp.zeros((features,), param_dtype), axes=(None,))
    self.mean = nnx.BatchStat(jnp.zeros((features,), jnp.float32), axes=(None,))
    self.var = nnx.BatchStat(jnp.ones((features,), jnp.float32), axes=(None,))

  def __call__(self, x, *, mask=None, train=False):
    f32 = x.astype(jnp.promote_types(jnp.float32, x.dtype))
    if train and x.size:
      axes = tuple(range(x.ndim - 1))
      where = None if mask is None else mask[..., None]
      # Without a single valid step there is nothing to learn from: keep.
      some = True if mask is None else mask.any()
      mean = f32.mean(axes, where=where)
      var = jnp.square(f32 - mean).mean(axes, where=where)
      mean = jnp.where(some, mean, self.mean[...])
      var = jnp.where(some, var, self.var[...])
      stay = self.momentum
      self.mean[...] = stay * self.mean[...] + (1 - stay) * mean
      self.var[...] = stay * self.var[...] + (1 - stay) * var
    else:
      mean, var = self.mean[...], self.var[...]
    f32 = (f32 - mean) * jax.lax.rsqrt(var + self.epsilon)
    return (f32 * self.scale[...] + self.bias[...]).astype(x.dtype)


NORMS = dict(rms=RMSNorm, layer=LayerNorm, batch=BatchNorm)
