"""Layers that read sequences from the end: `Reverse` and `Bidirectional`.

They keep the contract of `base.py`, but are not causal.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from rnnzoo.layers import base


class Reverse(base.RecurrentLayer):
  """Runs a layer from the last token to the first.

  Outputs are in the order of the inputs. The given carry enters at the last
  token that `mask` keeps, and the final carry leaves the first token. Read
  backwards, a sequence starts at its last token. `reset` still marks the first
  token of each sequence, and is converted.

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
    in_features: Size of an input of that layer.
    out_features: Size of an output of that layer.
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
    """Sizes of an input token."""
    return base.input_shape(self.layer)

  def initialize_carry(self, batch_size: int, dtype=None) -> base.Carry:
    """Returns the carry of the layer, before the last token."""
    return self.layer.initialize_carry(batch_size, dtype)

  def __call__(self, x, carry=None, *, reset=None, mask=None):
    x, carry, _, reset = base.prepare(self, x, carry, reset, mask)
    flip = lambda u: None if u is None else jnp.flip(u, axis=1)
    if reset is not None:
      reset = starts_of_reversed(reset, mask)
    carry, y = self.layer(
        jnp.flip(x, axis=1), carry, reset=flip(reset), mask=flip(mask)
    )
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
  """Two layers, one from each end, with their outputs combined.

  The carry is a pair. The forward carry enters at the first token and leaves
  the last, the backward carry enters at the last and leaves the first.

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
    out_features: Size of an output: the sum of both sizes for `concat`.
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
      backward: Runs from the last token. Pass the layer itself, not a `Reverse`
        of it.
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
    """Sizes of an input token of both layers."""
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
  """Marks where sequences `[B, T]` start if time runs backwards.

  Read backwards, a sequence starts at its last token: the next token exists and
  belongs to another sequence. The last token of a row is not a start, because
  its sequence may continue in the given carry. `reset` must be `False` where
  `mask` is. The result is in forward order.
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
