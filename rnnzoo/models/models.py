"""Whole models: what goes before and after the backbone."""

from typing import Any, NamedTuple

from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np
from rnnzoo import errors
from rnnzoo import ops
from rnnzoo.layers import base
from rnnzoo.layers import common
from rnnzoo.layers import initializers
from rnnzoo.models import blocks
from rnnzoo.models.backbone import Backbone
from rnnzoo.models.config import ModelConfig


class OutputMap(NamedTuple):
  """What makes logits of features `[..., D]`, cast to the features' dtype."""

  kernel: jax.Array  # [D, V]; or [V, D], where it is the embedding.
  vocab_axis: int  # Of the kernel.
  bias: jax.Array | None  # [V].
  soft_cap: float  # See `ModelConfig`.


class LanguageModel(nnx.Module):
  """Predicts the next token, for sequences in parallel or one token at a time.

  >>> from flax import nnx
  >>> import jax.numpy as jnp
  >>> model = LanguageModel(ModelConfig.tiny(), rngs=nnx.Rngs(0))
  >>> tokens = jnp.ones((2, 5), jnp.int32)
  >>> carry, logits = model(tokens)                  # [B, T, vocab_size]
  >>> carry, logits = model.step(carry, tokens[:, 0])      # [B, vocab_size]
  >>> logits.shape
  (2, 16)
  """

  def __init__(self, config: ModelConfig, layers=None, *, rngs: nnx.Rngs):
    """Creates the model.

    Args:
      config: What to build; `vocab_size` must be set.
      layers: Layers by name, beside those of the zoo.
      rngs: Source of the initial parameters.

    Raises:
      UserValueError: If the config makes no language model.
    """
    config.check_dtypes()
    if not config.vocab_size:
      raise errors.UserValueError('model.vocab_size must be set.')
    if config.bidirectional:
      raise errors.UserValueError(
          'model.bidirectional is for classifiers: a language model that sees '
          'the next token has nothing to predict.'
      )
    self.config = config
    self.embed = _embedding(config, rngs)
    if config.embed_norm:
      self.embed_norm = blocks.make_norm(config, rngs)
    self.backbone = Backbone(config, layers, rngs=rngs)
    for stack in self.backbone.stacks:
      if not stack.layer.causal:
        raise errors.UserValueError(
            'model.layer must be causal in a language model: '
            f'{type(stack.layer).__name__} with these layer_options sees the '
            'next token.'
        )
    self.norm = blocks.make_norm(config, rngs)
    if not config.tie_embeddings:
      self.head = _head(config, config.vocab_size, False, rngs)

  def initialize_carry(self, batch_size: int, dtype=None):
    """Returns the carry before the first token, see `Backbone`."""
    return self.backbone.initialize_carry(batch_size, dtype)

  def __call__(
      self, tokens, carry=None, *, reset=None, mask=None, train=False, key=None
  ):
    """Runs whole sequences.

    Outside `jax.jit`, ids outside the vocabulary are an error; masked-out ids
    are not checked. The check copies the ids to the host, which waits for the
    device: use `jax.jit` in loops. Inside `jax.jit` nothing is checked, and
    JAX's rule for indices holds: an id past the end is the last token; a
    negative one counts from the end.

    Args:
      tokens: Token ids `[B, T]`, from 0 to `vocab_size - 1`.
      carry: State left by earlier tokens; `initialize_carry` if `None`.
      reset: Booleans `[B, T]`, `True` on the first token of each sequence.
      mask: Booleans `[B, T]`, `False` on tokens to be skipped.
      train: Whether batch norms use and update the batch's statistics.
      key: For dropout; `None` means none.

    Returns:
      `(carry, logits)`: logits `[B, T, vocab_size]`, float32 at least.

    Raises:
      ValueError: If shapes or dtypes disagree, or an id is no token.
    """
    mask = base.as_array('mask', mask)
    carry, x = self.features(
        tokens, carry, reset=reset, mask=mask, train=train, key=key
    )
    return carry, base.masked(self._logits(x), mask)

  def features(
      self, tokens, carry=None, *, reset=None, mask=None, train=False, key=None
  ):
    """Runs whole sequences, but for the map to logits.

    For losses over vocabularies so large that all logits at once are too many.
    The logits are `output_map` of these features.

    Args:
      tokens: See `__call__`, like all the others.
      carry: State left by earlier tokens.
      reset: Where sequences start.
      mask: Which tokens count.
      train: Whether batch norms use and update the batch's statistics.
      key: For dropout.

    Returns:
      `(carry, features)`: features `[B, T, features]` of `config.dtype`.

    Raises:
      ValueError: If shapes or dtypes disagree, or an id is no token.
    """
    tokens, reset, mask = _checked_tokens(self, tokens, reset, mask, 2)
    if carry is None:
      carry = self.initialize_carry(tokens.shape[0])
    embed_key = None
    if key is not None:
      key, embed_key = jax.random.split(key)
    x = _embed(self, tokens, mask, train)
    x = blocks.dropout(
        x, self.config.dropout, embed_key,
        over_time=self.config.dropout_over_time,
    )
    carry, x = self.backbone(
        x, carry, reset=reset, mask=mask, train=train, key=key
    )
    x = self.norm(base.masked(x, mask), mask=mask, train=train)
    return carry, ops.spread_rows(x)

  def output_map(self) -> OutputMap:
    """Returns the map from features to logits, as arrays."""
    cap = self.config.soft_cap
    if self.config.tie_embeddings:
      return OutputMap(self.embed.embedding[...], 0, None, cap)
    bias = None if self.head.bias is None else self.head.bias[...]
    return OutputMap(self.head.kernel[...], 1, bias, cap)

  def step(self, carry, tokens, *, reset=None, mask=None):
    """Runs one token `[B]`: the next carry, and logits `[B, vocab_size]`."""
    tokens, reset, mask = _checked_tokens(self, tokens, reset, mask, 1)
    x = _embed(self, tokens, mask)
    carry, x = self.backbone.step(carry, x, reset=reset, mask=mask)
    x = self.norm(base.masked(x, mask), mask=mask)
    return carry, base.masked(self._logits(x), mask)

  def _logits(self, x):
    dtype = base.state_dtype(x.dtype)
    if self.config.tie_embeddings:
      table = self.embed.embedding[...].astype(x.dtype)
      logits = jnp.einsum(
          '...d,vd->...v', x, table, preferred_element_type=dtype
      )
    else:
      logits = common.project(self.head, x, dtype)
    cap = self.config.soft_cap
    return cap * jnp.tanh(logits / cap) if cap > 0 else logits


class ClassifierCarry(NamedTuple):
  """State of a classifier: its backbone's, and what has been pooled so far."""

  layers: Any
  pooled: jax.Array  # [B, D], float32 at least.
  count: jax.Array  # [B], int32: steps pooled.


class SequenceClassifier(nnx.Module):
  """Reads a sequence of tokens or vectors and gives one row of logits.

  The pooled features are part of the carry, so a long sequence may come in
  chunks: the logits are always those of all steps since the last reset.

  >>> from flax import nnx
  >>> import jax.numpy as jnp
  >>> config = ModelConfig.tiny().replace(num_classes=3)
  >>> model = SequenceClassifier(config, rngs=nnx.Rngs(0))
  >>> carry, logits = model(jnp.ones((2, 5), jnp.int32))
  >>> logits.shape
  (2, 3)
  """

  def __init__(self, config: ModelConfig, layers=None, *, rngs: nnx.Rngs):
    """Creates the model.

    Args:
      config: What to build; `num_classes` and one of `vocab_size` and
        `in_features` must be set.
      layers: Layers by name, beside those of the zoo.
      rngs: Source of the initial parameters.

    Raises:
      UserValueError: If the config makes no classifier.
    """
    config.check_dtypes()
    if not config.num_classes:
      raise errors.UserValueError('model.num_classes must be set.')
    if bool(config.vocab_size) == bool(config.in_features):
      raise errors.UserValueError(
          'One of model.vocab_size (tokens) and model.in_features (vectors) '
          f'must be set, got {config.vocab_size} and {config.in_features}.'
      )
    self.config = config
    if config.vocab_size:
      self.embed = _embedding(config, rngs)
    else:
      self.encoder = nnx.Linear(
          config.in_features, config.features,
          kernel_metadata=dict(axes=(None, 'embed')),
          bias_metadata=dict(axes=(None,)),
          param_dtype=jnp.dtype(config.param_dtype), rngs=rngs,
      )
    if config.embed_norm:
      self.embed_norm = blocks.make_norm(config, rngs)
    self.backbone = Backbone(config, layers, rngs=rngs)
    if config.norm_position == 'pre':
      self.norm = blocks.make_norm(config, rngs)
    self.head = _head(config, config.num_classes, True, rngs)

  def initialize_carry(self, batch_size: int, dtype=None) -> ClassifierCarry:
    """Returns the carry before the first step."""
    pooled_dtype = base.state_dtype(dtype or jnp.dtype(self.config.dtype))
    return ClassifierCarry(
        self.backbone.initialize_carry(batch_size, dtype),
        jnp.zeros((batch_size, self.config.features), pooled_dtype),
        jnp.zeros((batch_size,), jnp.int32),
    )

  def __call__(
      self, inputs, carry=None, *, reset=None, mask=None, train=False, key=None
  ):
    """Runs whole sequences.

    Args:
      inputs: Tokens `[B, T]`, or vectors `[B, T, in_features]`.
      carry: State left by earlier steps; `initialize_carry` if `None`.
      reset: Booleans `[B, T]`, `True` on the first step of each sequence.
      mask: Booleans `[B, T]`, `False` on steps to be skipped.
      train: Whether batch norms use and update the batch's statistics.
      key: For dropout; `None` means none.

    Returns:
      `(carry, logits)`: logits `[B, num_classes]` of the steps since the last
      reset, float32 at least.

    Raises:
      ValueError: If shapes or dtypes disagree.
    """
    x, reset, mask = self._encode(inputs, reset, mask, 2, train)
    carry = self._checked_carry(carry, x.shape[0])
    embed_key = None
    if key is not None:
      key, embed_key = jax.random.split(key)
    x = blocks.dropout(
        x, self.config.dropout, embed_key,
        over_time=self.config.dropout_over_time,
    )
    layers, x = self.backbone(
        x, carry.layers, reset=reset, mask=mask, train=train, key=key
    )
    if self.config.norm_position == 'pre':
      x = self.norm(base.masked(x, mask), mask=mask, train=train)
    carry = _pool(
        self.config.pooling, x, carry._replace(layers=layers), reset, mask
    )
    return carry, self._logits(carry.pooled, x.dtype)

  def step(self, carry, inputs, *, reset=None, mask=None):
    """Runs one step, `[B]` or `[B, in_features]`; logits so far `[B, C]`."""
    x, reset, mask = self._encode(inputs, reset, mask, 1)
    carry = self._checked_carry(carry, x.shape[0])
    layers, x = self.backbone.step(carry.layers, x, reset=reset, mask=mask)
    if self.config.norm_position == 'pre':
      x = self.norm(base.masked(x, mask), mask=mask)
    wide = lambda u: None if u is None else u[:, None]
    carry = _pool(
        self.config.pooling, x[:, None], carry._replace(layers=layers),
        wide(reset), wide(mask),
    )
    return carry, self._logits(carry.pooled, x.dtype)

  def _checked_carry(self, carry, batch_size):
    """The carry, all but that of the backbone checked."""
    if carry is None:
      return self.initialize_carry(batch_size)
    dtype = base.state_dtype(jnp.dtype(self.config.dtype))
    like = ClassifierCarry(
        None,
        jax.ShapeDtypeStruct((batch_size, self.config.features), dtype),
        jax.ShapeDtypeStruct((batch_size,), jnp.int32),
    )
    own = isinstance(carry, ClassifierCarry)
    base.check_carry(carry._replace(layers=None) if own else carry, like)
    return carry

  def _encode(self, inputs, reset, mask, axes, train=False):
    """What the first block reads, and the flags, checked."""
    if self.config.vocab_size:
      inputs, reset, mask = _checked_tokens(self, inputs, reset, mask, axes)
      return _embed(self, inputs, mask, train), reset, mask
    inputs = base.as_array('inputs', inputs, required=True)
    if inputs.ndim != axes + 1 or inputs.shape[-1] != self.config.in_features:
      raise ValueError(
          f'`inputs` must have {axes + 1} axes, the last of size '
          f'{self.config.in_features}, got {inputs.shape}.'
      )
    reset, mask = _checked_flags(reset, mask, inputs.shape[:-1])
    x = base.masked(inputs.astype(self.config.dtype), mask)
    x = _normed(self, common.project(self.encoder, x), mask, train)
    return x, reset, mask

  def _logits(self, pooled, dtype):
    return common.project(self.head, pooled.astype(dtype), pooled.dtype)


def _pool(pooling, x, carry, reset, mask):
  """Adds the steps of `x` `[B, T, D]` since the last reset to the pool."""
  batch, time, _ = x.shape
  valid = jnp.ones((batch, time), bool) if mask is None else mask
  pooled, count = carry.pooled, carry.count
  if reset is not None:
    starts = reset & valid
    # Steps with no start after them.
    valid &= jnp.flip(jnp.cumsum(jnp.flip(starts, 1), 1), 1) - starts == 0
    fresh = starts.any(1)
    pooled = jnp.where(fresh[:, None], 0, pooled)
    count = jnp.where(fresh, 0, count)
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
  return carry._replace(pooled=pooled, count=count + number)


def _embedding(config, rngs):
  # As in the minRNN code; where the table is the head too, logits start near 1.
  scale = config.features**-0.5 if config.tie_embeddings else 1.0
  scale = config.embed_std or scale
  return nnx.Embed(
      config.vocab_size, config.features,
      embedding_init=nnx.initializers.normal(scale),
      embedding_metadata=dict(axes=('vocab', 'embed')),
      param_dtype=jnp.dtype(config.param_dtype), rngs=rngs,
  )


def _head(config, outputs, use_bias, rngs):
  init = initializers.uniform_fan_in(config.features)
  return nnx.Linear(
      config.features, outputs, use_bias=use_bias,
      kernel_init=init, bias_init=init,
      kernel_metadata=dict(axes=('embed', 'vocab')),
      bias_metadata=dict(axes=('vocab',)),
      param_dtype=jnp.dtype(config.param_dtype), rngs=rngs,
  )


def _embed(model, tokens, mask, train=False):
  """Maps tokens `[...]` to what the first block reads, `[..., D]`."""
  config = model.config
  table = ops.whole_rows(model.embed.embedding[...].astype(config.dtype))
  # JAX puts the size of the table into the tokens' dtype.
  if jnp.iinfo(tokens.dtype).bits < 32:
    tokens = tokens.astype(jnp.int32)
  # Widened, so that the gradients of a token that comes often are added up in
  # float32: in bfloat16 a sum of ones ends at 256.
  rows = table.astype(base.state_dtype(table.dtype))[tokens]
  x = ops.spread_rows(rows.astype(table.dtype))
  if config.scale_embeddings:
    x = x * jnp.asarray(config.features**0.5, x.dtype)
  return _normed(model, base.masked(x, mask), mask, train)


def _normed(model, x, mask, train):
  if model.config.embed_norm:
    x = base.masked(model.embed_norm(x, mask=mask, train=train), mask)
  return x


def _checked_tokens(model, tokens, reset, mask, axes):
  """Returns token ids with `axes` axes and their flags as arrays, or raises."""
  if tokens is None or isinstance(tokens, jax.Array):
    tokens = base.as_array('tokens', tokens, required=True)
  else:  # In NumPy first, which keeps ids that int32 cannot hold.
    is_list = isinstance(tokens, (list, tuple))
    try:
      tokens = np.asarray(tokens)
    except ValueError as error:
      raise ValueError(
          '`tokens` must be rows of one length, got rows of several.'
      ) from error
    if is_list and not tokens.size:
      tokens = tokens.astype(np.int32)  # An empty list has no integers.
  if tokens.ndim != axes or not jnp.issubdtype(tokens.dtype, jnp.integer):
    raise ValueError(
        f'`tokens` must be integers with {axes} axes, got {tokens.dtype} '
        f'{tokens.shape}.'
    )
  reset, mask = _checked_flags(reset, mask, tokens.shape)
  if _is_known(tokens) and _is_known(mask):
    present = tokens if mask is None else np.where(mask, tokens, 0)
    errors.check_token_ids('tokens', present, model.config.vocab_size)
  return jnp.asarray(tokens), reset, mask


def _checked_flags(reset, mask, shape):
  reset, mask = base.as_array('reset', reset), base.as_array('mask', mask)
  base.check_flags(shape, reset=reset, mask=mask)
  return reset, mask


def _is_known(u):
  """Whether the values of an array can be looked at, here and now."""
  if isinstance(u, jax.core.Tracer):
    return False
  return not isinstance(u, jax.Array) or u.is_fully_addressable
