"""What goes around a layer: directions, adapters, and helpers for batches.

`Reverse` and `Bidirectional` are layers of the same contract (`base.py`) but
not causal. `as_rnn_cell` and `time_major` present a layer to Flax's `nnx.RNN`
and to reinforcement learning. The rest makes the flags `reset` and `mask`, and
packs sequences into rows.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from rnnzoo.layers import base


class Reverse(base.RecurrentLayer):
  """Runs a layer from the last token to the first.

  Outputs are in the order of the inputs. The given carry enters at the last
  token that `mask` leaves, the final one comes out of the first. A sequence
  read backwards starts at its last token: `reset`, which marks the first ones,
  is turned into that.

  Example::

    >>> from flax import nnx
    >>> import jax.numpy as jnp
    >>> from rnnzoo.layers import min_gru
    >>> layer = Reverse(min_gru.MinGRU(16, rngs=nnx.Rngs(0)))
    >>> carry, y = layer(jnp.ones((2, 10, 16)))       # [B, H], [B, T, H]
    >>> carry.shape, y.shape
    ((2, 16), (2, 10, 16))

  Attributes:
    layer: The layer that is run.
    in_features: Its size of an input.
    out_features: Its size of an output.
  """

  causal = False

  def __init__(self, layer: base.RecurrentLayer):
    """Wraps `layer`."""
    self.layer = layer
    self.gathers_time = layer.gathers_time
    self.in_features = layer.in_features
    self.out_features = layer.out_features
    self.dtype = layer.dtype

  @property
  def input_shape(self) -> tuple[int, ...]:
    """Sizes of its input token."""
    return base.input_shape(self.layer)

  def initialize_carry(self, batch_size: int, dtype=None) -> base.Carry:
    """Returns the carry of the layer, before the last token."""
    return self.layer.initialize_carry(batch_size, dtype)

  def __call__(self, x, carry=None, *, reset=None, mask=None):
    x, carry, _, reset = base.prepare(self, x, carry, reset, mask)
    flip = lambda u: None if u is None else jnp.flip(u, axis=1)
    if reset is not None:
      reset = starts_of_reversed(reset, mask)
    carry, y = self.layer(flip(x), carry, reset=flip(reset), mask=flip(mask))
    return carry, flip(y)

  def step(self, carry, x, *, reset=None, mask=None):
    """Raises `ValueError`: the first output needs the last token."""
    raise ValueError('Reverse has no `step`: it starts from the last token.')


class BidirectionalCarry(NamedTuple):
  """The states of both directions."""

  forward: base.Carry
  backward: base.Carry


_MERGES = dict(
    concat=lambda forward, backward: jnp.concatenate([forward, backward], -1),
    sum=lambda forward, backward: forward + backward,
)


class Bidirectional(base.RecurrentLayer):
  """Two layers, one from each end, and their outputs together.

  The carry is a pair: the forward one enters at the first token and leaves the
  last, the backward one the other way about.

  Example::

    >>> from flax import nnx
    >>> import jax.numpy as jnp
    >>> from rnnzoo.layers import min_gru
    >>> rngs = nnx.Rngs(0)
    >>> layer = Bidirectional(
    ...     min_gru.MinGRU(16, rngs=rngs), min_gru.MinGRU(16, rngs=rngs)
    ... )
    >>> carry, y = layer(jnp.ones((2, 10, 16)))
    >>> carry.backward.shape, y.shape
    ((2, 16), (2, 10, 32))

  Attributes:
    forward: The layer that runs from the first token.
    backward: A `Reverse` of the layer that runs from the last.
    in_features: Size of an input of either.
    out_features: Their sizes of an output, together.
  """

  causal = False

  def __init__(
      self,
      forward: base.RecurrentLayer,
      backward: base.RecurrentLayer,
      *,
      merge: str = 'concat',
  ):
    """Wraps two layers.

    Args:
      forward: Runs from the first token.
      backward: Runs from the last; it is given as it is, not reversed.
      merge: `concat` puts the outputs side by side, `sum` adds them.

    Raises:
      ValueError: If the layers do not fit together, or `merge` is unknown.
    """
    if merge not in _MERGES:
      raise ValueError(
          f'`merge` must be one of {list(_MERGES)}, got {merge!r}.'
      )
    same = ('in_features', 'dtype') + ('out_features',) * (merge == 'sum')
    for name in same:
      of = [getattr(layer, name) for layer in (forward, backward)]
      if of[0] != of[1]:
        raise ValueError(
            f'`forward` and `backward` must have the same {name}, got {of[0]} '
            f'and {of[1]}.'
        )
    self.forward = forward
    self.backward = Reverse(backward)
    self.merge = merge
    self.gathers_time = forward.gathers_time or backward.gathers_time
    self.in_features = forward.in_features
    self.out_features = forward.out_features
    if merge == 'concat':
      self.out_features += backward.out_features
    self.dtype = forward.dtype

  @property
  def input_shape(self) -> tuple[int, ...]:
    """Sizes of an input token of either."""
    return base.input_shape(self.forward)

  def initialize_carry(self, batch_size: int, dtype=None) -> BidirectionalCarry:
    """Returns the carries of both layers."""
    return BidirectionalCarry(
        self.forward.initialize_carry(batch_size, dtype),
        self.backward.initialize_carry(batch_size, dtype),
    )

  def __call__(self, x, carry=None, *, reset=None, mask=None):
    x, carry, _, reset = base.prepare(self, x, carry, reset, mask)
    forward, y = self.forward(x, carry.forward, reset=reset, mask=mask)
    backward, z = self.backward(x, carry.backward, reset=reset, mask=mask)
    return BidirectionalCarry(forward, backward), _MERGES[self.merge](y, z)

  def step(self, carry, x, *, reset=None, mask=None):
    """Raises `ValueError`: half of the first output needs the last token."""
    raise ValueError('Bidirectional has no `step`: it needs whole sequences.')


def starts_of_reversed(
    reset: jax.Array, mask: jax.Array | None
) -> jax.Array:
  """Where sequences `[B, T]` start when time runs backwards, in forward order.

  A sequence read backwards starts at its last token: where a next token exists
  and belongs to another sequence. Past the last token of a row the sequence may
  go on, in the given carry, so that one is no start. `reset` is `False` already
  where `mask` is.
  """
  if mask is None:
    mask = jnp.ones_like(reset)
  segment = jnp.cumsum(reset, axis=1)
  none = reset.shape[1] + 1  # More than any segment number.
  following = jax.lax.cummin(
      jnp.where(mask, segment, none), axis=1, reverse=True
  )
  following = jnp.concatenate(
      [following[:, 1:], jnp.full_like(following[:, :1], none)], axis=1
  )
  return mask & (following != none) & (following != segment)
