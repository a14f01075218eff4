"""Pieces that many layers share: matrix products, token shift, norms."""

from flax import nnx
import jax
import jax.numpy as jnp
from rnnzoo import ops


def project(
    linear: nnx.Linear | nnx.LinearGeneral, x: jax.Array, dtype=None
) -> jax.Array:
  """Applies a linear map in `x.dtype`; returns `[..., *kernel.shape[1:]]`.

  Flax modules promote bfloat16 inputs to the dtype of the parameters by
  default. Here the parameters are converted to the dtype of the inputs.

  Args:
    linear: The map, with `kernel` `[D, ...]` and `bias` `[...]` or `None`.
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
  """Applies a map `[D] -> [G, H]`; returns a tuple of G arrays `[..., H]`.

  Each array is a matmul of its own, so that no result has to be split.
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
  y = product(x, kernel, dtype)
  return y if bias is None else add_bias(y, bias)


def add_bias(y: jax.Array, bias: jax.Array) -> jax.Array:
  """Returns `y + bias` in `y.dtype`, added in float32 at least.

  The gradient of the bias is a sum over all tokens. If it were added in
  bfloat16, the sum would be bfloat16 too, and on XLA:CPU it stops growing after
  a few thousand tokens.
  """
  wide = jnp.promote_types(jnp.float32, y.dtype)
  return (y.astype(wide) + bias.astype(wide)).astype(y.dtype)


def scaled(x: jax.Array, factor: jax.Array) -> jax.Array:
  """Returns `factor * x` in `x.dtype`, in float32 as in `add_bias`."""
  wide = jnp.promote_types(jnp.float32, x.dtype)
  return (factor.astype(wide) * x.astype(wide)).astype(x.dtype)


def product(x: jax.Array, kernel: jax.Array, dtype=None) -> jax.Array:
  """Returns `x @ kernel` for `[..., D]` and `[D, ...]`.

  Args:
    x: `[..., D]`.
    kernel: `[D, ...]`.
    dtype: Dtype of the result, in which products are also summed; `x.dtype` if
      `None`.

  Returns:
    `[..., *kernel.shape[1:]]`.
  """
  if x.ndim > 2 and not ops.spans_devices(x):
    # All tokens form one matrix. A gradient that sums over several axes makes
    # XLA:CPU compute its inputs a second time, in an order that is slow in
    # memory. On several devices the axes are kept, since each of them may be
    # split.
    y = product(x.reshape(-1, x.shape[-1]), kernel, dtype)
    return y.reshape(x.shape[:-1] + kernel.shape[1:])
  return jax.lax.dot_general(
      x,
      kernel.astype(x.dtype),
      (((x.ndim - 1,), (0,)), ((), ())),
      preferred_element_type=dtype or x.dtype,
  )


def block_diagonal(
    x: jax.Array, kernel: jax.Array, bias: jax.Array | None = None, dtype=None
) -> jax.Array:
  """Applies a linear map to each of G equal parts of the features.

  Args:
    x: `[..., G * I]`.
    kernel: `[G, I, J]`.
    bias: `[G, J]`, or `None`.
    dtype: Dtype of the result, in which products are also summed; `x.dtype` if
      `None`. Gates ask for float32.

  Returns:
    `[..., G * J]`.
  """
  dtype = dtype or x.dtype
  blocks = jnp.moveaxis(x.reshape(x.shape[:-1] + kernel.shape[:2]), -2, 0)
  # Converted first: XLA:CPU has no batched product of bfloat16 with sums in
  # float32. With this order of axes the features of a block are contiguous in
  # memory, unlike in an einsum, which takes twice the time on CPU.
  y = jax.lax.dot_general(
      blocks.astype(dtype),
      kernel.astype(x.dtype).astype(dtype),
      (((blocks.ndim - 1,), (1,)), ((0,), (0,))),
  )
  y = jnp.moveaxis(y, 0, -2)
  y = y.reshape(x.shape[:-1] + (kernel.shape[0] * kernel.shape[2],))
  return y if bias is None else add_bias(y, bias.reshape(-1))


def token_shift(
    x: jax.Array,
    previous: jax.Array,
    *,
    reset: jax.Array | None = None,
    mask: jax.Array | None = None,
) -> tuple[jax.Array, jax.Array]:
  """Returns the previous token of each token, 0 at the start of a sequence.

  Args:
    x: `[B, T, D]`, or `[B, D]` for a step.
    previous: The token before the first token, `[B, D]`.
    reset: Booleans of the shape of `x` without features, `True` where a
      sequence starts.
    mask: Booleans of that shape; tokens where it is `False` are skipped.

  Returns:
    `(last, shifted)`: the last token, in the dtype of `previous`, and an array
    like `x`.
  """
  # A filter that passes the previous token only.
  kernel = jnp.zeros((2, x.shape[-1]), x.dtype).at[0].set(1)
  shift = ops.causal_conv1d if x.ndim == 3 else ops.causal_conv1d_step
  tail, shifted = shift(
      x, kernel, None, previous[:, None].astype(x.dtype), reset=reset, mask=mask
  )
  return tail[:, 0].astype(previous.dtype), shifted


def check_depth(layer_index: int, num_layers: int) -> None:
  """Raises `ValueError` unless `0 <= layer_index < num_layers`."""
  if not 0 <= layer_index < num_layers:
    raise ValueError(
        f'`layer_index` must be in [0, {num_layers}), got {layer_index}.'
    )


def positive(x: jax.Array) -> jax.Array:
  """A positive activation: `x + 0.5` where `x >= 0`, else `sigmoid(x)`.

  `g` of minGRU and minLSTM.
  """
  return jnp.where(x >= 0, x + 0.5, jax.nn.sigmoid(x))


def identity(x: jax.Array) -> jax.Array:
  """Returns `x`: `g` of the plain form of minGRU."""
  return x


class RMSNorm(nnx.Module):
  """`x / sqrt(mean(x^2) + eps) * scale`, in float32, returned in `x.dtype`."""

  def __init__(
      self, features: int, *, epsilon=1e-6, param_dtype=jnp.float32, rngs=None
  ):
    self.epsilon = epsilon
    self.scale = nnx.Param(jnp.ones((features,), param_dtype), axes=(None,))

  def __call__(self, x, *, mask=None, train=False):
    f32 = x.astype(jnp.promote_types(jnp.float32, x.dtype))
    mean_square = jnp.square(f32).mean(-1, keepdims=True)
    f32 = f32 * jax.lax.rsqrt(mean_square + self.epsilon)
    return (f32 * self._factor(f32.dtype)).astype(x.dtype)

  def _factor(self, dtype):
    del dtype
    return self.scale[...]


class OneRMSNorm(RMSNorm):
  """RMSNorm whose factor is `1 + scale`: `scale` starts at 0, as in Gemma.

  >>> import jax.numpy as jnp
  >>> OneRMSNorm(2, epsilon=0.)(jnp.array([1., 7.]))
  Array([0.2, 1.4], dtype=float32)
  """

  def __init__(
      self, features: int, *, epsilon=1e-6, param_dtype=jnp.float32, rngs=None
  ):
    self.epsilon = epsilon
    self.scale = nnx.Param(jnp.zeros((features,), param_dtype), axes=(None,))

  def _factor(self, dtype):
    return 1 + self.scale[...].astype(dtype)


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


class HeadNorm(nnx.Module):
  """A norm over the features of each head, in float32 at least.

  It maps `[..., H, V]` to the same shape and dtype. The kind `rms` divides by
  the root of the mean square. The kind `layer` subtracts the mean first; this
  is also called a group norm with one group a head.

  >>> import jax.numpy as jnp
  >>> norm = HeadNorm(2, 2, kind='layer', epsilon=0., use_bias=True)
  >>> norm(jnp.array([[1., 3.], [50., 10.]]))
  Array([[-1.,  1.],
         [ 1., -1.]], dtype=float32)
  """

  def __init__(
      self,
      num_heads: int,
      head_features: int,
      *,
      kind: str = 'rms',
      epsilon: float = 1e-5,
      use_scale: bool = True,
      use_bias: bool = False,
      share: bool = False,
      initial_scale: float = 1.0,
      param_dtype=jnp.float32,
      rngs=None,
  ):
    """Creates the norm.

    Args:
      num_heads: `H`.
      head_features: `V`.
      kind: `rms` or `layer`.
      epsilon: Added to the mean square before the root is taken.
      use_scale: Whether the result is multiplied by a parameter `scale`.
      use_bias: Whether a parameter `bias` is added.
      share: Whether scale and bias are `[V]`, the same for all heads; `[H, V]`
        if not.
      initial_scale: Initial value of the scale.
      param_dtype: Dtype of the parameters.
      rngs: Not used.

    Raises:
      ValueError: If `kind` is neither.
    """
    if kind not in ('rms', 'layer'):
      raise ValueError(f"`kind` must be 'rms' or 'layer', got {kind!r}.")
    self.kind, self.epsilon = kind, epsilon
    shape, axes = (num_heads, head_features), ('heads', None)
    if share:
      shape, axes = shape[1:], axes[1:]
    param = lambda value: nnx.Param(
        jnp.full(shape, value, param_dtype), axes=axes
    )
    self.scale = param(initial_scale) if use_scale else None
    self.bias = param(0) if use_bias else None

  def __call__(self, x):
    y = x.astype(jnp.promote_types(jnp.float32, x.dtype))
    if self.kind == 'layer':
      y = y - y.mean(-1, keepdims=True)
    y = y * jax.lax.rsqrt(
        jnp.square(y).mean(-1, keepdims=True) + self.epsilon
    )
    if self.scale is not None:
      y = y * self.scale[...]
    if self.bias is not None:
      y = y + self.bias[...]
    return y.astype(x.dtype)


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
      # If no step is valid, the statistics stay as they are.
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


NORMS = dict(rms=RMSNorm, rms1=OneRMSNorm, layer=LayerNorm, batch=BatchNorm)


def gates_by_head(
    x: jax.Array, kernel: jax.Array, bias: jax.Array, dtype
) -> jax.Array:
  """Maps the features of each head to the gates of its own units.

  Args:
    x: `[..., heads * I]`.
    kernel: `[heads, I, G, J]`.
    bias: `[G, heads * J]`.
    dtype: Dtype of the result, in which products are also summed.

  Returns:
    `[..., G, heads * J]`.
  """
  heads, size, gates, units = kernel.shape
  y = block_diagonal(
      x, kernel.reshape(heads, size, gates * units), dtype=dtype
  )
  y = y.reshape(*x.shape[:-1], heads, gates, units).swapaxes(-3, -2)
  y = y.reshape(*x.shape[:-1], gates * heads * units)
  y = add_bias(y, bias.reshape(-1))
  return y.reshape(*x.shape[:-1], gates, heads * units)
