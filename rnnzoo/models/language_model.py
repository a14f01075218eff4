"""The language model: tokens in, logits of the next token out."""

from typing import Any, NamedTuple

from flax import nnx
import jax
import jax.numpy as jnp
from rnnzoo import errors
from rnnzoo import ops
from rnnzoo.layers import base
from rnnzoo.layers import checking
from rnnzoo.layers import common
from rnnzoo.models import blocks
from rnnzoo.models import inputs
from rnnzoo.models.backbone import Backbone
from rnnzoo.models.building import Layers
from rnnzoo.models.config import ModelConfig


class OutputMap(NamedTuple):
  """The map from features `[..., D]` to logits `[..., V]`, as arrays.

  The arrays are cast to the dtype of the features before they are used.
  """

  kernel: jax.Array  # `[D, V]`, or `[V, D]` if it is the embedding.
  vocab_axis: int  # The axis `V` of the kernel.
  bias: jax.Array | None  # `[V]`.
  soft_cap: float  # See `ModelConfig`.


class LanguageModel(nnx.Module):
  """Predicts the next token of a sequence.

  A call runs whole sequences, in parallel over time where the layers can.
  `step` runs one token, for sampling. Both give the same numbers.

  >>> from flax import nnx
  >>> import jax.numpy as jnp
  >>> model = LanguageModel(ModelConfig.tiny(), rngs=nnx.Rngs(0))
  >>> tokens = jnp.ones((2, 5), jnp.int32)                 # [B, T]
  >>> carry, logits = model(tokens)                        # [B, T, V]
  >>> carry, logits = model.step(carry, tokens[:, 0])      # [B, V]
  >>> logits.shape
  (2, 16)

  Attributes:
    config: The `ModelConfig`.
    embed: The token embeddings, an `nnx.Embed`.
    embed_norm: The norm after the embedding, or `None`.
    backbone: The blocks.
    norm: The norm after the blocks.
    head: The map to logits, or `None` if it is the embedding.
  """

  def __init__(
      self, config: ModelConfig, layers: Layers | None = None, *,
      rngs: nnx.Rngs,
  ):
    """Creates the model.

    Args:
      config: What to build. `vocab_size` must be set.
      layers: More layers by name, in addition to those of the zoo.
      rngs: The source of the initial parameters.

    Raises:
      UserValueError: If no language model can be built from the config.
    """
    config.check_dtypes()
    if not config.vocab_size:
      raise errors.UserValueError('model.vocab_size must be set.')
    if config.bidirectional:
      raise errors.UserValueError(
          'model.bidirectional is for classifiers and regressors: a language '
          'model that sees the next token has nothing to predict.'
      )
    self.config = config
    self.embed = inputs.make_embedding(config, rngs)
    self.embed_norm = (
        blocks.make_norm(config, rngs) if config.embed_norm else None
    )
    self.backbone = Backbone(config, layers, rngs=rngs)
    for stack in self.backbone.stacks:
      if not stack.causal:
        raise errors.UserValueError(
            'model.layer must be causal in a language model: '
            f'{type(stack.layer).__name__} with these layer_options sees the '
            'next token.'
        )
    self.norm = blocks.make_final_norm(config, rngs)
    self.head = None if config.tie_embeddings else blocks.make_head(
        config, config.vocab_size, rngs, use_bias=False
    )

  @property
  def context(self) -> int | None:
    """How many tokens a sequence may have, see `Backbone`."""
    return self.backbone.context

  def initialize_carry(self, batch_size: int, dtype: Any = None) -> base.Carry:
    """Returns the carry before the first token, see `Backbone`."""
    return self.backbone.initialize_carry(batch_size, dtype)

  def __call__(
      self,
      tokens: Any,
      carry: base.Carry = None,
      *,
      reset: Any = None,
      mask: Any = None,
      train: bool = False,
      key: jax.Array | None = None,
  ) -> tuple[base.Carry, jax.Array]:
    """Runs whole sequences.

    Outside of `jax.jit`, an id that is not in the vocabulary is an error;
    masked-out ids are not checked. The check copies the ids to the host and
    waits for the device, so use `jax.jit` in loops. Inside of `jax.jit` nothing
    is checked, and JAX's rule for indices holds: an id past the end means the
    last token, and a negative id counts from the end.

    Args:
      tokens: Token ids `[B, T]`, from 0 to `vocab_size - 1`.
      carry: The state after earlier tokens; `initialize_carry` if `None`.
      reset: Booleans `[B, T]`, `True` on the first token of each sequence.
      mask: Booleans `[B, T]`, `False` on tokens to skip.
      train: Whether batch norms use and update the statistics of the batch.
      key: The PRNG key of dropout; `None` means no dropout.

    Returns:
      `(carry, logits)`: logits `[B, T, vocab_size]`, float32 or wider, 0 on
      tokens that are skipped.

    Raises:
      ValueError: If a shape or a dtype is wrong, or an id is not a token.
    """
    mask = checking.as_array('mask', mask)
    carry, x = self.features(
        tokens, carry, reset=reset, mask=mask, train=train, key=key
    )
    return carry, base.masked(self.logits(x), mask)

  def features(
      self,
      tokens: Any,
      carry: base.Carry = None,
      *,
      reset: Any = None,
      mask: Any = None,
      train: bool = False,
      key: jax.Array | None = None,
  ) -> tuple[base.Carry, jax.Array]:
    """Runs whole sequences, without the last map to logits.

    A loss over a large vocabulary needs this if the logits of all tokens
    together do not fit in memory: `output_map` maps these features to logits.

    Args:
      tokens: See `__call__`, as for all the other arguments.
      carry: The state after earlier tokens.
      reset: Where sequences start.
      mask: Which tokens exist.
      train: Whether batch norms use and update the statistics of the batch.
      key: The PRNG key of dropout.

    Returns:
      `(carry, features)`: features `[B, T, D]` of `config.dtype`.

    Raises:
      ValueError: If a shape or a dtype is wrong, or an id is not a token.
    """
    config = self.config
    tokens, reset, mask = inputs.check_tokens(
        tokens, reset, mask, vocab_size=config.vocab_size, axes=2
    )
    key, embed_key = (None, None) if key is None else jax.random.split(key)
    x = inputs.embed(config, self.embed, tokens)
    x = inputs.prepare(
        config, x, self.embed_norm, mask, train=train, key=embed_key
    )
    carry, x = self.backbone(
        x, carry, reset=reset, mask=mask, train=train, key=key
    )
    return carry, self._finish(x, mask, train)

  def step(
      self,
      carry: base.Carry,
      tokens: Any,
      *,
      reset: Any = None,
      mask: Any = None,
  ) -> tuple[base.Carry, jax.Array]:
    """Runs one token.

    Args:
      carry: The state after earlier tokens; `initialize_carry` if `None`.
      tokens: Token ids `[B]`.
      reset: Booleans `[B]`, `True` where the token starts a new sequence.
      mask: Booleans `[B]`, `False` on tokens to skip.

    Returns:
      `(carry, logits)`: logits `[B, vocab_size]`, as of `__call__`.

    Raises:
      ValueError: If a shape or a dtype is wrong, or an id is not a token.
    """
    config = self.config
    tokens, reset, mask = inputs.check_tokens(
        tokens, reset, mask, vocab_size=config.vocab_size, axes=1
    )
    x = inputs.embed(config, self.embed, tokens)
    x = inputs.prepare(config, x, self.embed_norm, mask)
    carry, x = self.backbone.step(carry, x, reset=reset, mask=mask)
    x = self._finish(x, mask)
    return carry, base.masked(self.logits(x), mask)

  def output_map(self) -> OutputMap:
    """Returns the map from `features` to logits."""
    cap = self.config.soft_cap
    if self.head is None:
      return OutputMap(self.embed.embedding[...], 0, None, cap)
    bias = None if self.head.bias is None else self.head.bias[...]
    return OutputMap(self.head.kernel[...], 1, bias, cap)

  def _finish(self, x, mask, train=False):
    """Normalises features, and scales them for `logit_scale`."""
    x = self.norm(base.masked(x, mask), mask=mask, train=train)
    scale = self.config.logit_scale
    return ops.spread_rows(x if scale == 1 else x * jnp.asarray(scale, x.dtype))

  def logits(self, features: jax.Array) -> jax.Array:
    """Maps what `features` returns, `[..., D]`, to logits `[..., V]`.

    Args:
      features: `[..., D]`, floating.

    Returns:
      Logits `[..., vocab_size]`, float32 or wider.
    """
    x = features
    dtype = base.state_dtype(x.dtype)
    if self.head is None:
      table = self.embed.embedding[...].astype(x.dtype)
      logits = jnp.einsum(
          '...d,vd->...v', x, table, preferred_element_type=dtype
      )
    else:
      logits = common.project(self.head, x, dtype)
    cap = self.config.soft_cap
    return cap * jnp.tanh(logits / cap) if cap > 0 else logits
