"""Presents a layer to `nnx.RNN` of Flax, and to reinforcement learning."""

from collections.abc import Callable
import math

from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np
from rnnzoo.layers import base
from rnnzoo.layers import checking


class _RNNCell(nnx.RNNCellBase):
  """See `as_rnn_cell`."""

  def __init__(self, layer, dtype):
    self.layer = layer
    self.dtype = dtype

  def initialize_carry(self, input_shape, rngs=None, carry_init=None):
    """Returns the carry for inputs `[*batch, D]`; no randomness is needed."""
    if carry_init is not None:
      raise ValueError('`carry_init` must be None: the layer has its own.')
    batch = tuple(input_shape[: -self.num_feature_axes])
    carry = self.layer.initialize_carry(math.prod(batch), self.dtype)
    return _reshape_batch(carry, 1, batch)

  def __call__(self, carry, inputs):
    """Maps a carry and `[*batch, D]` to a carry and `[*batch, D_out]`."""
    inputs = checking.as_array('inputs', inputs, required=True)
    axes = jnp.ndim(inputs) - self.num_feature_axes
    batch = inputs.shape[:max(axes, 0)]
    for path, u in jax.tree_util.tree_flatten_with_path(carry)[0]:
      if axes < 0 or np.shape(u)[:axes] != batch:
        raise ValueError(
            f'`carry{jax.tree_util.keystr(path)}` must start with the batch '
            f'shape {batch} of `inputs` {inputs.shape}, got shape '
            f'{np.shape(u)}.'
        )
    carry, y = self.layer.step(
        _reshape_batch(carry, axes, (-1,)),
        inputs.reshape((-1,) + inputs.shape[axes:]),
    )
    return _reshape_batch(carry, 1, batch), y.reshape(batch + y.shape[1:])

  @property
  def num_feature_axes(self):
    return len(base.input_shape(self.layer))


def as_rnn_cell(layer: base.RecurrentLayer, dtype=None) -> nnx.RNNCellBase:
  """Makes a layer a cell of Flax: `nnx.RNN(cell)` gives the same numbers.

  Inputs may have any number of batch axes. Flax scans the cell token by token;
  if a layer is parallel over time, calling it directly is faster.

  >>> from flax import nnx
  >>> import jax.numpy as jnp
  >>> from rnnzoo.layers import min_gru
  >>> cell = as_rnn_cell(min_gru.MinGRU(16, rngs=nnx.Rngs(0)))
  >>> nnx.RNN(cell)(jnp.ones((2, 10, 16))).shape
  (2, 10, 16)

  Args:
    layer: A causal layer.
    dtype: Dtype of the inputs, which a cell does not know before the first
      token. If `None`, it is the dtype of the layer, or else float32.

  Returns:
    A cell with the submodule `layer`.

  Raises:
    ValueError: If the layer is not causal.
  """
  if not layer.causal:
    raise ValueError(
        f'`layer` must be causal, {type(layer).__name__} has no `step`; '
        'nnx.Bidirectional takes two cells.'
    )
  return _RNNCell(layer, dtype)


def time_major(layer: base.RecurrentLayer) -> Callable:
  """Presents a layer in the form of reinforcement learning, time first.

  >>> from flax import nnx
  >>> import jax.numpy as jnp
  >>> from rnnzoo.layers import min_gru
  >>> layer = min_gru.MinGRU(16, rngs=nnx.Rngs(0))
  >>> x, resets = jnp.ones((10, 2, 16)), jnp.zeros((10, 2), bool)
  >>> carry, y = time_major(layer)(layer.initialize_carry(2), (x, resets))
  >>> y.shape
  (10, 2, 16)

  Args:
    layer: Any layer.

  Returns:
    A function `(carry, (x, resets)) -> (carry, y)` with `x` `[T, B, D]`,
    `resets` `[T, B]`, `y` `[T, B, D_out]`. `resets` is true, or not zero, where
    an episode starts, which is the `done` of the previous step
    (`reset_from_done`).
  """

  def apply(carry, inputs):
    x, resets = inputs
    x, resets = checking.as_array('x', x), checking.as_array('resets', resets)
    token = base.input_shape(layer)
    sizes = {np.shape(u)[:1] for u in jax.tree.leaves(carry) if np.ndim(u)}
    shape = jnp.shape(x) if x is not None else ()
    if (
        len(shape) != 2 + len(token)
        or shape[2:] != token
        or sizes - {shape[1:2]}
    ):
      of = sorted(size[0] for size in sizes)
      raise ValueError(
          f'`x` must be [T, B, {", ".join(map(str, token))}], time first'
          + (f', with B = {of[0]} as in `carry`' if of else '')
          + f', got {shape}.'
      )
    if resets is None or resets.shape != shape[:2]:
      raise ValueError(
          f'`resets` must be [T, B] = {shape[:2]}, got '
          f'{None if resets is None else resets.shape}.'
      )
    swap = lambda u: jnp.swapaxes(u, 0, 1)
    carry, y = layer(swap(x), carry, reset=swap(resets != 0))
    return carry, swap(y)

  return apply


def _reshape_batch(carry, axes, batch):
  """Replaces the leading `axes` axes of every leaf by `batch`."""
  return jax.tree.map(
      lambda u: u.reshape(tuple(batch) + u.shape[axes:]), carry
  )
