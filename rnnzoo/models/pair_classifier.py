"""The classifier of pairs: two sequences in, logits of one class out."""

from typing import Any

from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np
from rnnzoo import errors
from rnnzoo.layers import common
from rnnzoo.models import blocks
from rnnzoo.models.building import Layers
from rnnzoo.models.config import ModelConfig
from rnnzoo.models.sequence_model import SequenceCarry
from rnnzoo.models.sequence_model import SequenceModel


class PairClassifier(SequenceModel):
  """Gives logits of classes for two sequences, as for "does A cite B?".

  The same blocks read both sequences. If `u` and `v` are their pooled features,

      logits = W2 gelu(W1 [u, v, u - v, u * v])

  with biases. This is the head for pairs of S5 (Smith et al. 2022,
  https://arxiv.org/abs/2208.04933).

  >>> from flax import nnx
  >>> import jax.numpy as jnp
  >>> config = ModelConfig.tiny().replace(num_classes=2)
  >>> model = PairClassifier(config, rngs=nnx.Rngs(0))
  >>> tokens = jnp.ones((3, 5, 2), jnp.int32)              # [B, T, 2]
  >>> carry, logits = model(tokens)                        # [B, num_classes]
  >>> logits.shape
  (3, 2)
  >>> carry, logits = model.step(carry, tokens[:, 0])      # [B, num_classes]

  The carry has a row for each sequence, `2 B` in all: those of a pair are
  neighbours.

  Attributes:
    hidden: `W1`; `W2` is `head`.
  """

  def __init__(
      self, config: ModelConfig, layers: Layers | None = None, *,
      rngs: nnx.Rngs,
  ):
    """Creates the model.

    Args:
      config: What to build. `num_classes` must be set, one of `vocab_size`,
        `in_features` and `image_shape`, and a `pooling` that is not `none`.
      layers: More layers by name, in addition to those of the zoo.
      rngs: The source of the initial parameters.

    Raises:
      UserValueError: If no such classifier can be built from the config.
    """
    if not config.num_classes:
      raise errors.UserValueError('model.num_classes must be set.')
    if config.pooling == 'none':
      raise errors.UserValueError(
          'A pair of sequences has one class, so model.pooling must be mean, '
          "last or first, got 'none'."
      )
    super().__init__(config, config.num_classes, layers, rngs)
    self.hidden = blocks.make_linear(config, rngs, parts=4)

  def initialize_carry(
      self, batch_size: int, dtype: Any = None
  ) -> SequenceCarry:
    """Returns the carry before the first step of `batch_size` pairs.

    Args:
      batch_size: `B`; the carry has `2 B` rows.
      dtype: The compute dtype; `config.dtype` if `None`.
    """
    return super().initialize_carry(2 * batch_size, dtype)

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
      inputs: Token ids `[B, T, 2]`, vectors `[B, T, 2, in_features]` or images
        `[B, T, 2, *image_shape]`.
      carry: The state after earlier steps; `initialize_carry` if `None`.
      reset: Booleans `[B, T, 2]`, `True` on the first step of each sequence.
      mask: Booleans `[B, T, 2]`, `False` on steps to skip, such as padding:
        the sequences of a pair may differ in length.
      dt: The length of each step `[B, T, 2]`, if all layers take it.
      train: Whether batch norms use and update the statistics of the batch,
        which are those of all `2 B` sequences.
      key: The PRNG key of dropout; `None` means no dropout.

    Returns:
      `(carry, logits)`, logits `[B, num_classes]`, float32 or wider.

    Raises:
      ValueError: If a shape or a dtype is wrong, or an id is not a token.
    """
    inputs, carry, flags = self._rows(
        inputs, carry, 1, reset=reset, mask=mask, dt=dt
    )
    return super().__call__(inputs, carry, **flags, train=train, key=key)

  def step(
      self,
      carry: SequenceCarry | None,
      inputs: Any,
      *,
      reset: Any = None,
      mask: Any = None,
      dt: Any = None,
  ) -> tuple[SequenceCarry, jax.Array]:
    """Runs one step of both sequences.

    Args:
      carry: The state after earlier steps; `initialize_carry` if `None`.
      inputs: Token ids `[B, 2]`, vectors `[B, 2, in_features]` or images
        `[B, 2, *image_shape]`.
      reset: Booleans `[B, 2]`, `True` where the step starts a new sequence.
      mask: Booleans `[B, 2]`, `False` on steps to skip.
      dt: The length of the step `[B, 2]`; `None` means 1.

    Returns:
      `(carry, logits)`: the logits `[B, num_classes]` of the steps since the
      last reset.

    Raises:
      ValueError: If a shape or a dtype is wrong, an id is not a token, or the
        model is not causal.
    """
    inputs, carry, flags = self._rows(
        inputs, carry, 0, reset=reset, mask=mask, dt=dt
    )
    return super().step(carry, inputs, **flags)

  def _rows(self, inputs, carry, times, **flags):
    """Returns pairs as `2 B` rows: `[B, T, 2, ...]` becomes `[2 B, T, ...]`.

    Args:
      inputs: The inputs of the pairs.
      carry: See `__call__`.
      times: The number of axes of time, 0 or 1.
      **flags: Arrays `[B, T, 2]` by name, or `None`.
    """
    axis = 1 + times

    def rows(name, u):
      u = u if isinstance(u, jax.Array) else np.asarray(u)
      if u.ndim <= axis or u.shape[axis] != 2:
        form = ', '.join(['B', 'T'][:axis])
        raise ValueError(
            f'`{name}` must be pairs [{form}, 2, ...], got {u.shape}.'
        )
      if times:
        u = u.swapaxes(1, 2)
      return u.reshape(2 * u.shape[0], *u.shape[2:])

    inputs = rows('inputs', inputs)
    if carry is None:
      carry = self.initialize_carry(len(inputs) // 2)
    return inputs, carry, {
        name: None if u is None else rows(name, u) for name, u in flags.items()
    }

  def _finish(self, x, carry, reset, mask):
    """Returns the carry and the logits of features of `2 B` rows."""
    carry, pooled = self._pool(x, carry, reset, mask)
    u, v = jnp.moveaxis(pooled.reshape(-1, 2, pooled.shape[-1]), 1, 0)
    features = jnp.concatenate([u, v, u - v, u * v], axis=-1)
    y = common.project(self.hidden, features.astype(x.dtype))
    return carry, common.project(self.head, jax.nn.gelu(y), pooled.dtype)
