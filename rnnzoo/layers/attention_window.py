"""What softmax attention of every kind shares: a window, and its limits."""

from typing import Any, Literal

from jax import core
import jax.numpy as jnp
from rnnzoo import errors
from rnnzoo import ops
from rnnzoo.layers import base
from rnnzoo.layers import checking

ON_FULL = ('slide', 'error')


class WindowedAttention(base.RecurrentLayer):
  """Attention of each token to a window, whatever it compares and averages.

  A subclass sets the attributes, and says how the heads read the window, what
  a carry is at first, and how the outputs of the heads become that of the
  layer.

  Attributes:
    window: Tokens `W` that a token sees, itself included.
    on_full: What becomes of the tokens of a sequence after `W` of them.
  """

  window: int
  on_full: Literal['slide', 'error']

  @property
  def context(self) -> int | None:
    """How many tokens a sequence may have; `None` for any number."""
    return None if self.on_full == 'slide' else self.window

  def __call__(self, x, carry=None, *, reset=None, mask=None):
    x, carry, _, reset = base.prepare(self, x, carry, reset, mask)
    positions = ops.sequence_positions(
        carry.count, x.shape[1], reset=reset, mask=mask
    )
    self._check_positions(positions, mask)
    carry, y = self._attend(x, positions, carry, reset, mask)
    return carry, self._readout(self._bounded(y, positions, mask), x, mask)

  def step(self, carry, x, *, reset=None, mask=None):
    x, carry, initial, reset = base.prepare(
        self, x, carry, reset, mask, step=True
    )
    old = carry if reset is None else base.select(reset, initial, carry)
    self._check_positions(old.count, mask)
    new, y = self._attend_step(x, old)
    if mask is not None:
      new = base.select(mask, new, carry)
    y = self._bounded(y, old.count, mask)
    return new, self._readout(y, x, mask)

  def check_room(self, carry, shape, *, reset=None, mask=None):
    """Checks that the carry has room for more tokens, if it must not slide.

    Layers check this themselves when they are called. A model that runs them in
    a loop calls this before, because numbers inside of a loop are not known.

    Args:
      carry: That of the layer, or of a stack of equal layers with a leading
        axis. Another carry is not looked at.
      shape: Of a batch of tokens: `[B, T]`, or `[B]` for a step.
      reset: Booleans of this shape, or `None`.
      mask: Likewise.

    Raises:
      UserValueError: If it has no room.
    """
    if self.on_full == 'slide' or not isinstance(carry, ops.AttentionCache):
      return
    count = carry.count if carry.count.ndim == 1 else carry.count[0]
    if isinstance(count, core.Tracer):
      return
    step = len(shape) == 1
    reset, mask = (
        u[:, None] if step and u is not None else u for u in (reset, mask)
    )
    positions = ops.sequence_positions(
        count, 1 if step else shape[1], reset=reset, mask=mask
    )
    self._check_positions(positions, mask)

  def _check_positions(self, positions, mask):
    """Raises if a token has too many before it, unless this is in `jit`."""
    if self.on_full == 'slide':
      return
    past = self._is_past(positions, mask)
    # Arrays of several hosts are not looked at, either.
    if isinstance(past, core.Tracer) or not past.is_fully_addressable:
      return
    if past.any():
      raise errors.UserValueError(
          'Attention that sees every token has room for a context of '
          f'{self.window} tokens, and a sequence has more. Give a larger one: '
          '`context` of load_pretrained, or `window` of the layer.'
      )

  def _bounded(self, y, positions, mask):
    """Returns the output of the heads, NaN where tokens would be forgotten."""
    if self.on_full == 'slide':
      return y
    past = self._is_past(positions, mask)
    return jnp.where(past[..., None, None], jnp.nan, y)

  def _is_past(self, positions, mask):
    past = positions.astype(jnp.uint32) >= self.window
    return past if mask is None else past & mask

  def _attend(self, x, positions, carry, reset, mask) -> tuple[Any, Any]:
    """Runs the heads over whole sequences.

    Args:
      x: `[B, T, D]`.
      positions: Of each token in its own sequence `[B, T]`.
      carry: The carry before them.
      reset: `[B, T]` or `None`.
      mask: `[B, T]` or `None`.

    Returns:
      `(carry, y)`: the next carry, and what the heads read `[B, T, H, V]`.
    """
    raise TypeError(f'{type(self).__name__} does not define _attend.')

  def _attend_step(self, x, carry) -> tuple[Any, Any]:
    """Runs the heads for one token `[B, D]`: the carry and `[B, H, V]`."""
    raise TypeError(f'{type(self).__name__} does not define _attend_step.')

  def _readout(self, y, x, mask) -> Any:
    """Maps what the heads read `[..., H, V]`, and `x`, to `[..., D]`."""
    raise TypeError(f'{type(self).__name__} does not define _readout.')


def check(on_full: str, **sizes: int) -> None:
  """Raises `ValueError` unless sizes are positive and `on_full` is known.

  Args:
    on_full: The option of this name.
    **sizes: Sizes by their names.
  """
  checking.check_sizes(**sizes)
  if on_full not in ON_FULL:
    raise ValueError(
        f'`on_full` must be {" or ".join(map(repr, ON_FULL))}, got '
        f'{on_full!r}.'
    )
