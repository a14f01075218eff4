"""What is not the architecture: projections, norms, positions."""

from flax import nnx
import jax
import jax.numpy as jnp
from rnnzoo import ops


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
  y = product(x, kernel, dtype)
  return y if bias is None else add_bias(y, bias)


def add_bias(y: jax.Array, bias: jax.Array) -> jax.Array:
  """`y + bias` in `y.dtype`, added in float32 at least.

  Added in bfloat16, the gradient of the bias is a sum over all tokens in
  bfloat16, which XLA:CPU stops at a few thousand.
  """
  wide = jnp.promote_types(jnp.float32, y.dtype)
  return (y.astype(wide) + bias.astype(wide)).astype(y.dtype)


def scaled(x: jax.Array, factor: jax.Array) -> jax.Array:
  """`factor * x` in `x.dtype`, multiplied in float32, see `add_bias`."""
  wide = jnp.promote_types(jnp.float32, x.dtype)
  return (factor.astype(wide) * x.astype(wide)).astype(x.dtype)


def product(x: jax.Array, kernel: jax.Array, dtype=None) -> jax.Array:
  """`x @ kernel`, for `[..., D]` and `[D, ...]`, in `x.dtype`.

  Args:
    x: `[..., D]`.
    kernel: `[D, ...]`.
    dtype: Dtype of the result, in which products are also summed; `x.dtype` if
      `None`.

  Returns:
    `[..., *kernel.shape[1:]]`.
  """
  if x.ndim > 2 and not ops.spans_devices(x):
    # As one matrix of all tokens: where a gradient sums over several axes,
    # XLA:CPU computes what comes in a second time, across the grain of memory.
    # On a mesh axes stay what they are, since each may be split.
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
  """A linear map of each of G equal parts of the features, by itself.

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
  # Widened first: XLA:CPU has no batched product of bfloat16 summed in float32.
  # In this order a block's features stay together in memory, which they do not
  # in that of an einsum: half the time on CPU.
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
  """The token before each token, in its own sequence; 0 before the first.

  Args:
    x: `[B, T, D]`, or `[B, D]` for a step.
    previous: The token before the first one `[B, D]`.
    reset: Booleans like `x` without its features, where sequences start.
    mask: Likewise; where `False` there is no token, and it is looked past.

  Returns:
    `(last, shifted)`: the last token, in the dtype of `previous`, and an array
    like `x`.
  """
  # A filter that sees nothing but the token before.
  kernel = jnp.zeros((2, x.shape[-1]), x.dtype).at[0].set(1)
  shift = ops.causal_conv1d if x.ndim == 3 else ops.causal_conv1d_step
  tail, shifted = shift(
      x, kernel, None, previous[:, None].astype(x.dtype), reset=reset, mask=mask
  )
  return tail[:, 0].astype(previous.dtype), shifted


def check_depth(layer_index: int, num_layers: int) -> None:
  """Raises `ValueError` unless there is such a layer among so many."""
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


class HeadNorm(nnx.Module):
  """A norm of each head's features by themselves, in float32 at least.

  Takes `[..., H, V]` and gives the same in the dtype of its input. As `rms` it
  divides by the root of the mean square; as `layer` it takes off the mean
  first, and is then what is elsewhere called a group norm with a group a head.

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
      param_dtype=jnp.float32,
      rngs=None,
  ):
    """Creates the norm.

    Args:
      num_heads: `H`.
      head_features: `V`.
      kind: `rms` or `layer`.
      epsilon: Added to what the root is taken of.
      use_scale: Whether what comes out is multiplied by a parameter `scale`.
      use_bias: Whether a parameter `bias` is added.
      share: Whether scale and bias are `[V]`, the same for all heads; `[H, V]`
        if not.
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
    param = lambda u: nnx.Param(u, axes=axes)
    self.scale = param(jnp.ones(shape, param_dtype)) if use_scale else None
    self.bias = param(jnp.zeros(shape, param_dtype)) if use_bias else None

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
