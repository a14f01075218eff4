"""What a classifier and a regressor of sequences share.

They differ in the number of outputs and in what a task does with the outputs;
see `classifier.py` and `regressor.py`.
"""

from typing import Any, NamedTuple

from flax import nnx
import jax
import jax.numpy as jnp
from rnnzoo import errors
from rnnzoo.layers import base
from rnnzoo.layers import checking
from rnnzoo.layers import common
from rnnzoo.models import blocks
from rnnzoo.models import inputs as inputs_lib
from rnnzoo.models.backbone import Backbone
from rnnzoo.models.building import Layers
from rnnzoo.models.config import ModelConfig


class SequenceCarry(NamedTuple):
  """The state of the backbone, and the features that are pooled so far.

  With `pooling='none'` nothing is pooled: `pooled` and `count` are `None`.
  """

  layers: base.Carry
  pooled: jax.Array | None  # `[B, D]`, float32 or wider.
  count: jax.Array | None  # `[B]`, int32: the number of steps that are pooled.


class SequenceModel(nnx.Module):
  """Maps a sequence of tokens, vectors or images to outputs.

  There is one output for the whole sequence, computed from features that are
  pooled over time, or with `pooling='none'` one output at every step. The carry
  holds the pooled features, so a long sequence can come in chunks: the output
  is always that of all steps since the last reset.

  Attributes:
    config: The `ModelConfig`.
    embed: The token embeddings, if the inputs are tokens.
    encoder: The linear map of the inputs, if the inputs are vectors or images.
    embed_norm: The norm after `embed` or `encoder`, or `None`.
    backbone: The blocks.
    norm: The norm after the blocks, or `None` with `norm_position='post'`.
    head: The linear map to the outputs.
  """

  def __init__(
      self, config: ModelConfig, outputs: int, layers: Layers | None,
      rngs: nnx.Rngs,
  ):
    """Creates the model with `outputs` outputs; see the subclasses."""
    config.check_dtypes()
    sizes = config.vocab_size, config.in_features, config.image_shape
    if sum(map(bool, sizes)) != 1:
      raise errors.UserValueError(
          'One of model.vocab_size (tokens), model.in_features (vectors) and '
          'model.image_shape (images) must be set, got '
          f'{", ".join(map(str, sizes))}.'
      )
    self.config = config
    if config.vocab_size:
      self.embed = inputs_lib.make_embedding(config, rngs)
    else:
      self.encoder = inputs_lib.make_encoder(config, rngs)
    self.embed_norm = (
        blocks.make_norm(config, rngs) if config.embed_norm else None
    )
    self.backbone = Backbone(config, layers, rngs=rngs)
    self.norm = (
        blocks.make_final_norm(config, rngs)
        if config.norm_position != 'post' else None
    )
    self.head = blocks.make_head(config, outputs, rngs, use_bias=True)

  @property
  def takes_dt(self) -> bool:
    """Whether the steps may differ in length: all layers take `dt`."""
    return self.backbone.takes_dt

  @property
  def causal(self) -> bool:
    """Whether no output depends on a later input.

    If not, there is no `step`, and with `pooling='none'` the output at a step
    depends on later steps. That is right for labels of steps, and wrong for
    forecasts of the inputs to come.
    """
    return all(stack.causal for stack in self.backbone.stacks)

  def initialize_carry(
      self, batch_size: int, dtype: Any = None
  ) -> SequenceCarry:
    """Returns the carry before the first step.

    Args:
      batch_size: `B`.
      dtype: The compute dtype; `config.dtype` if `None`.

    Returns:
      A `SequenceCarry`.
    """
    layers = self.backbone.initialize_carry(batch_size, dtype)
    return SequenceCarry(layers, *self._empty_pool(batch_size, dtype))

  def __call__(
      self,
      inputs: Any,
      carry: SequenceCarry | None = None,
      *,
      reset: Any = None,
      mask: Any = None,
      dt: Any = None,
      train: bool = False,
      key: jax.Array | None = None,
  ) -> tuple[SequenceCarry, jax.Array]:
    """Runs whole sequences.

    Args:
      inputs: Token ids `[B, T]`, vectors `[B, T, in_features]` or images
        `[B, T, *image_shape]`. Integers of vectors and images are normalised,
        see `inputs.normalize`.
      carry: The state after earlier steps; `initialize_carry` if `None`.
      reset: Booleans `[B, T]`, `True` on the first step of each sequence.
      mask: Booleans `[B, T]`, `False` on steps to skip.
      dt: The length of each step `[B, T]`, floating, see
        `layers.TimedRecurrence`; `None` means 1.
      train: Whether batch norms use and update the statistics of the batch.
      key: The PRNG key of dropout; `None` means no dropout.

    Returns:
      `(carry, outputs)`, float32 or wider. The outputs are `[B, N]`, those of
      the steps since the last reset. With `pooling='none'` they are
      `[B, T, N]`, and 0 at steps that are skipped.

    Raises:
      ValueError: If a shape or a dtype is wrong, or an id is not a token.
    """
    x, reset, mask = self._encode(inputs, reset, mask, ('B', 'T'))
    carry = self._checked_carry(carry, x.shape[0])
    key, embed_key = (None, None) if key is None else jax.random.split(key)
    x = inputs_lib.prepare(
        self.config, x, self.embed_norm, mask, train=train, key=embed_key
    )
    layers, x = self.backbone(
        x, carry.layers, reset=reset, mask=mask, dt=dt, train=train, key=key
    )
    if self.norm is not None:
      x = self.norm(base.masked(x, mask), mask=mask, train=train)
    return self._finish(x, carry._replace(layers=layers), reset, mask)

  def step(
      self,
      carry: SequenceCarry | None,
      inputs: Any,
      *,
      reset: Any = None,
      mask: Any = None,
      dt: Any = None,
  ) -> tuple[SequenceCarry, jax.Array]:
    """Runs one step.

    Args:
      carry: The state after earlier steps; `initialize_carry` if `None`.
      inputs: Token ids `[B]`, vectors `[B, in_features]` or images
        `[B, *image_shape]`.
      reset: Booleans `[B]`, `True` where the step starts a new sequence.
      mask: Booleans `[B]`, `False` on steps to skip.
      dt: The length of the step `[B]`; `None` means 1.

    Returns:
      `(carry, outputs)`: the outputs `[B, N]` of the steps since the last
      reset, or with `pooling='none'` of this step, 0 if it is skipped.

    Raises:
      ValueError: If a shape or a dtype is wrong, an id is not a token, or the
        model is not causal.
    """
    x, reset, mask = self._encode(inputs, reset, mask, ('B',))
    carry = self._checked_carry(carry, x.shape[0])
    x = inputs_lib.prepare(self.config, x, self.embed_norm, mask)
    layers, x = self.backbone.step(
        carry.layers, x, reset=reset, mask=mask, dt=dt
    )
    if self.norm is not None:
      x = self.norm(base.masked(x, mask), mask=mask)
    return self._finish(x, carry._replace(layers=layers), reset, mask)

  def _encode(self, inputs, reset, mask, axes):
    """Returns features `[*axes, D]` of the inputs, and the flags, checked."""
    config = self.config
    if config.vocab_size:
      inputs, reset, mask = inputs_lib.check_tokens(
          inputs, reset, mask, vocab_size=config.vocab_size, axes=len(axes)
      )
      return inputs_lib.embed(config, self.embed, inputs), reset, mask
    inputs, reset, mask = inputs_lib.check_numbers(
        inputs, reset, mask, shape=inputs_lib.token_shape(config),
        axes=len(axes),
    )
    x = inputs_lib.encode(config, self.encoder, inputs, mask)
    return x, reset, mask

  def _empty_pool(self, batch_size, dtype=None):
    """Returns `pooled` and `count` before the first step."""
    if self.config.pooling == 'none':
      return None, None
    dtype = base.state_dtype(dtype or jnp.dtype(self.config.dtype))
    return (
        jnp.zeros((batch_size, self.config.features), dtype),
        jnp.zeros((batch_size,), jnp.int32),
    )

  def _checked_carry(self, carry, batch_size) -> SequenceCarry:
    """Returns the carry; the backbone checks its part by itself."""
    if carry is None:
      return self.initialize_carry(batch_size)
    like = SequenceCarry(
        None, *jax.eval_shape(lambda: self._empty_pool(batch_size))
    )
    own = isinstance(carry, SequenceCarry)
    checking.check_carry(carry._replace(layers=None) if own else carry, like)
    return carry

  def _finish(self, x, carry, reset, mask):
    """Pools features `[B, T, D]` or `[B, D]` and maps them to outputs."""
    if self.config.pooling == 'none':
      y = common.project(self.head, x, base.state_dtype(x.dtype))
      return carry, base.masked(y, mask)
    carry, pooled = self._pool(x, carry, reset, mask)
    y = common.project(self.head, pooled.astype(x.dtype), pooled.dtype)
    return carry, y

  def _pool(self, x, carry, reset, mask):
    """Returns the carry and the pooled features `[B, D]`."""
    if x.ndim == 2:  # One step is a sequence of length 1.
      x, reset, mask = jax.tree.map(lambda u: u[:, None], (x, reset, mask))
    pooled, count = pool(
        self.config.pooling, x, carry.pooled, carry.count, reset, mask
    )
    return carry._replace(pooled=pooled, count=count), pooled


def pool(
    pooling: str,
    x: jax.Array,
    pooled: jax.Array,
    count: jax.Array,
    reset: jax.Array | None,
    mask: jax.Array | None,
) -> tuple[jax.Array, jax.Array]:
  """Pools the steps since the last reset, those of earlier chunks included.

  Args:
    pooling: `mean`, `last` or `first`.
    x: Features `[B, T, D]`.
    pooled: The result of the earlier chunks `[B, D]`.
    count: How many steps `pooled` stands for, `[B]`, int32.
    reset: Booleans `[B, T]`, or `None`.
    mask: Booleans `[B, T]`, or `None`.

  Returns:
    The new `pooled` and the new `count`.
  """
  batch, time, _ = x.shape
  valid = jnp.ones((batch, time), bool) if mask is None else mask
  if reset is not None:
    starts = reset & valid
    # Only steps with no start after them are pooled.
    later_starts = jnp.flip(jnp.cumsum(jnp.flip(starts, 1), 1), 1) - starts
    valid &= later_starts == 0
    restarted = starts.any(1)
    pooled = jnp.where(restarted[:, None], 0, pooled)
    count = jnp.where(restarted, 0, count)
  number = valid.sum(1, dtype=jnp.int32)
  x = x.astype(pooled.dtype)
  if pooling == 'mean':
    total = pooled * count[:, None] + jnp.where(valid[..., None], x, 0).sum(1)
    pooled = total / jnp.maximum(count + number, 1)[:, None]
  elif time:
    last = time - 1 - jnp.argmax(jnp.flip(valid, 1), 1)
    index = last if pooling == 'last' else jnp.argmax(valid, 1)
    found = jnp.take_along_axis(x, index[:, None, None], axis=1)[:, 0]
    use = number > 0 if pooling == 'last' else (number > 0) & (count == 0)
    pooled = jnp.where(use[:, None], found, pooled)
  return pooled, count + number
