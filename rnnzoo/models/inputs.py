"""What a model reads: tokens, vectors or images, as features.

All models share these functions. Axes: `B` batch, `T` time, `D` features.
"""

import math
from typing import Any

from flax import nnx
import jax
from jax import core
import jax.numpy as jnp
import numpy as np
from rnnzoo import errors
from rnnzoo import ops
from rnnzoo.layers import base
from rnnzoo.layers import checking
from rnnzoo.layers import common
from rnnzoo.models import blocks
from rnnzoo.models.config import ModelConfig

Flags = tuple[jax.Array | None, jax.Array | None]  # `reset` and `mask`.


def make_embedding(config: ModelConfig, rngs: nnx.Rngs) -> nnx.Embed:
  """Returns the table of token embeddings, `[vocab_size, D]`."""
  std = config.embed_std
  if not std:
    # With a tied head, this makes the first logits about as large as 1.
    std = config.features**-0.5 if config.tie_embeddings else 1.0
  return nnx.Embed(
      config.vocab_size, config.features,
      embedding_init=nnx.initializers.normal(std),
      embedding_metadata=dict(axes=('vocab', 'embed')),
      param_dtype=jnp.dtype(config.param_dtype), rngs=rngs,
  )


def make_encoder(config: ModelConfig, rngs: nnx.Rngs) -> nnx.Linear:
  """Returns the linear map of input vectors or of flat images to `[D]`.

  An image is one patch of a vision transformer: all its numbers, in the order
  of its axes `[H, W, C]`, are a vector.
  """
  return nnx.Linear(
      math.prod(token_shape(config)), config.features,
      kernel_metadata=dict(axes=(None, 'embed')),
      bias_metadata=dict(axes=(None,)),
      param_dtype=jnp.dtype(config.param_dtype), rngs=rngs,
  )


def token_shape(config: ModelConfig) -> tuple[int, ...]:
  """Returns the sizes of a step: `(in_features,)`, or those of an image."""
  return config.image_shape or (config.in_features,)


def check_tokens(
    tokens: Any, reset: Any, mask: Any, *, vocab_size: int, axes: int
) -> tuple[jax.Array, *Flags]:
  """Returns tokens and their flags as arrays.

  Args:
    tokens: Integers with `axes` axes.
    reset: Booleans of the same shape, or `None`.
    mask: Booleans of the same shape, or `None`.
    vocab_size: The number of tokens. The ids are checked where their values are
      known, which is outside of `jax.jit`. Masked-out ids are not checked.
    axes: 2 for `[B, T]`, 1 for one step `[B]`.

  Returns:
    `(tokens, reset, mask)`.

  Raises:
    ValueError: If a shape or a dtype is wrong, or an id is not a token.
  """
  if tokens is None or isinstance(tokens, jax.Array):
    tokens = checking.as_array('tokens', tokens, required=True)
  else:  # NumPy keeps an id that int32 cannot hold, so the message can show it.
    is_list = isinstance(tokens, (list, tuple))
    try:
      tokens = np.asarray(tokens)
    except ValueError as error:
      raise ValueError(
          '`tokens` must be rows of one length, got rows of several.'
      ) from error
    if is_list and not tokens.size:
      tokens = tokens.astype(np.int32)  # NumPy makes an empty list float64.
  if tokens.ndim != axes or not jnp.issubdtype(tokens.dtype, jnp.integer):
    raise ValueError(
        f'`tokens` must be integers with {axes} axes, got {tokens.dtype} '
        f'{tokens.shape}.'
    )
  reset, mask = _check_flags(reset, mask, tokens.shape)
  if _is_known(tokens) and _is_known(mask):
    present = tokens if mask is None else np.where(mask, tokens, 0)
    errors.check_token_ids('tokens', present, vocab_size)
  return jnp.asarray(tokens), reset, mask


def check_numbers(
    inputs: Any, reset: Any, mask: Any, *, shape: tuple[int, ...], axes: int
) -> tuple[jax.Array, *Flags]:
  """Returns input vectors or images and their flags as arrays.

  Args:
    inputs: Real numbers, `axes` axes and then those of `shape`.
    reset: Booleans with the first `axes` axes, or `None`.
    mask: Booleans with the first `axes` axes, or `None`.
    shape: The sizes of a vector, `(D,)`, or of an image, `(H, W, C)`.
    axes: 2 for `[B, T, ...]`, 1 for one step `[B, ...]`.

  Returns:
    `(inputs, reset, mask)`.

  Raises:
    ValueError: If a shape or a dtype is wrong.
  """
  inputs = checking.as_array('inputs', inputs, required=True)
  if inputs.ndim != axes + len(shape) or inputs.shape[axes:] != shape:
    names = ', '.join([*'BT'[:axes], *map(str, shape)])
    raise ValueError(f'`inputs` must be [{names}], got {inputs.shape}.')
  if jnp.issubdtype(inputs.dtype, jnp.complexfloating):
    raise ValueError(f'`inputs` must be real numbers, got {inputs.dtype}.')
  return inputs, *_check_flags(reset, mask, inputs.shape[:axes])


def encode(
    config: ModelConfig, encoder: nnx.Linear, inputs: jax.Array, mask: Any
) -> jax.Array:
  """Maps vectors or images `[..., *shape]` to `[..., D]` of `config.dtype`.

  Args:
    config: The model's config.
    encoder: See `make_encoder`.
    inputs: See `check_numbers`. Integers are normalised, see `normalize`.
    mask: Booleans `[...]`, or `None`.
  """
  # Padding may be NaN, so it is removed before the matmul.
  x = base.masked(normalize(config, inputs).astype(config.dtype), mask)
  if config.image_shape:
    x = x.reshape(*x.shape[:-3], math.prod(config.image_shape))
  return common.project(encoder, x)


def normalize(config: ModelConfig, inputs: jax.Array) -> jax.Array:
  """Returns integers as `(inputs - offset) / scale`, and floats as they are.

  So the device gets what a data set stores, such as a byte for a pixel, and a
  model takes both: what is stored, and what is normalised already.

  >>> config = ModelConfig(in_features=2, input_scale=(255.0,))
  >>> normalize(config, jnp.array([[255, 0]], jnp.uint8))
  Array([[1., 0.]], dtype=float32)
  >>> normalize(config, jnp.array([[1.0, 0.0]]))
  Array([[1., 0.]], dtype=float32)

  Args:
    config: The model's config: `input_offset` and `input_scale`.
    inputs: Vectors or images, the channels last.

  Returns:
    An array of the same shape, floating: float32 or wider where `inputs` are
    integers.
  """
  if jnp.issubdtype(inputs.dtype, jnp.floating):
    return inputs
  offset, scale = config.input_offset, config.input_scale
  if not scale and config.image_shape and inputs.dtype == jnp.uint8:
    scale = (255.0,)
  dtype = base.state_dtype(jnp.dtype(config.dtype))
  x = inputs.astype(dtype)
  if offset:
    x = x - jnp.asarray(offset, dtype)
  return x / jnp.asarray(scale, dtype) if scale else x


def embed(config: ModelConfig, table: nnx.Embed, tokens) -> jax.Array:
  """Maps tokens `[...]` to embeddings `[..., D]` of `config.dtype`."""
  rows = ops.whole_rows(table.embedding[...].astype(config.dtype))
  # JAX converts the size of the table to the dtype of the tokens. A small dtype
  # would overflow.
  if jnp.iinfo(tokens.dtype).bits < 32:
    tokens = tokens.astype(jnp.int32)
  # Read in float32, so that gradients of a frequent token are summed in
  # float32. In bfloat16 a sum of ones ends at 256.
  x = rows.astype(base.state_dtype(rows.dtype))[tokens]
  x = ops.spread_rows(x.astype(rows.dtype))
  if config.scale_embeddings:
    x = x * jnp.asarray(config.features**0.5, x.dtype)
  if config.embed_scale != 1:
    x = x * jnp.asarray(config.embed_scale, x.dtype)
  return x


def prepare(
    config: ModelConfig,
    x: jax.Array,
    norm: Any,
    mask: jax.Array | None,
    *,
    train: bool = False,
    key: jax.Array | None = None,
) -> jax.Array:
  """Applies the mask, the norm and the dropout that precede the first block.

  Args:
    config: The model's config.
    x: Embedded tokens, or encoded vectors or images, `[..., D]`.
    norm: The norm of `config.embed_norm`, or `None`.
    mask: Booleans `[...]`, or `None`.
    train: Whether a batch norm uses and updates the statistics of the batch.
    key: The PRNG key of dropout; `None` means no dropout.

  Returns:
    An array like `x`, 0 where `mask` is `False`.
  """
  x = base.masked(x, mask)
  if norm is not None:
    x = base.masked(norm(x, mask=mask, train=train), mask)
  return blocks.dropout(
      x, config.dropout, key, over_time=config.dropout_over_time
  )


def _check_flags(reset, mask, shape) -> Flags:
  reset = checking.as_array('reset', reset)
  mask = checking.as_array('mask', mask)
  checking.check_flags(shape, reset=reset, mask=mask)
  return reset, mask


def _is_known(u) -> bool:
  """Whether this process can read the values of an array now."""
  if isinstance(u, core.Tracer):
    return False
  return not isinstance(u, jax.Array) or u.is_fully_addressable
