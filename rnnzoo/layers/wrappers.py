"""What goes around a layer: directions, adapters, and helpers for batches.

`Reverse` and `Bidirectional` are layers of the same contract (`base.py`) but
not causal. `as_rnn_cell` and `time_major` present a layer to Flax's `nnx.RNN`
and to reinforcement learning. The rest makes the flags `reset` and `mask`, and
packs sequences into rows.
"""

from collections.abc import Callable, Sequence
import math
from typing import NamedTuple

from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np
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
    inputs = base.as_array('inputs', inputs, required=True)
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
  """Makes a layer a cell of Flax: `nnx.RNN(cell)` gives its numbers.

  Any number of batch axes is accepted. Flax scans the cell token by token, so a
  layer that is parallel over time is faster called directly.

  >>> from flax import nnx
  >>> import jax.numpy as jnp
  >>> from rnnzoo.layers import min_gru
  >>> cell = as_rnn_cell(min_gru.MinGRU(16, rngs=nnx.Rngs(0)))
  >>> nnx.RNN(cell)(jnp.ones((2, 10, 16))).shape
  (2, 10, 16)

  Args:
    layer: A causal layer.
    dtype: Dtype of the inputs, which Flax does not tell a cell before the first
      token; the layer's own, or else float32, if `None`.

  Returns:
    A cell that holds `layer` as its submodule.

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
  """Presents a layer as agents of reinforcement learning want it.

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
    an episode starts: the `done` of the step before (`reset_from_done`).
  """

  def apply(carry, inputs):
    x, resets = inputs
    x, resets = base.as_array('x', x), base.as_array('resets', resets)
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


def reset_from_segment_ids(
    segment_ids: jax.Array, *, first: bool | jax.Array = True
) -> jax.Array:
  """Marks the tokens where the segment number changes.

  >>> reset_from_segment_ids(jnp.array([[1, 1, 2, 2, 2]]))
  Array([[ True, False,  True, False, False]], dtype=bool)

  Args:
    segment_ids: Integers `[B, T]`, constant over each sequence.
    first: Whether position 0 starts a sequence. `False`, or `[B]` booleans like
      `segment_ids[:, 0] != last_ids`, for a window that may go on with the
      sequence of the one before it.

  Returns:
    `reset` `[B, T]`.

  Raises:
    ValueError: If `segment_ids` are not integers `[B, T]`.
  """
  segment_ids = jnp.asarray(segment_ids)
  if segment_ids.ndim != 2 or not _is_integer(segment_ids):
    raise ValueError(
        '`segment_ids` must be integers [B, T], got '
        f'{segment_ids.dtype} {segment_ids.shape}.'
    )
  change = segment_ids[:, 1:] != segment_ids[:, :-1]
  return _shifted(change, first, segment_ids.shape)


def reset_from_done(
    done: jax.Array, last_done: jax.Array | None = None
) -> jax.Array:
  """Marks the first token of each episode from the ends of those before.

  >>> reset_from_done(jnp.array([[False, True, False, False]]))
  Array([[False, False,  True, False]], dtype=bool)

  Args:
    done: `[B, T]`, true, or not zero, on the last step of an episode.
    last_done: `done` `[B]` of the step before the first, from the window
      before; nothing ended there if `None`.

  Returns:
    `reset` `[B, T]`.

  Raises:
    ValueError: If the shapes disagree.
  """
  done = jnp.asarray(done) != 0
  last_done = False if last_done is None else jnp.asarray(last_done) != 0
  if done.ndim != 2 or jnp.shape(last_done) not in ((), done.shape[:1]):
    raise ValueError(
        '`done` must be [B, T] and `last_done` [B], got '
        f'{done.shape} and {jnp.shape(last_done)}.'
    )
  return _shifted(done[:, :-1], last_done, done.shape)


def mask_from_lengths(lengths: jax.Array, time: int) -> jax.Array:
  """Marks the first `lengths[b]` of `time` tokens: right padding.

  >>> mask_from_lengths(jnp.array([1, 3]), 3)
  Array([[ True, False, False],
         [ True,  True,  True]], dtype=bool)

  Args:
    lengths: Integers `[B]`.
    time: `T`.

  Returns:
    `mask` `[B, T]`.

  Raises:
    ValueError: If `lengths` are not integers `[B]`.
  """
  lengths = jnp.asarray(lengths)
  if lengths.ndim != 1 or not _is_integer(lengths):
    raise ValueError(
        f'`lengths` must be integers [B], got {lengths.dtype} {lengths.shape}.'
    )
  return jnp.arange(time) < lengths[:, None]


def pack(sequences: Sequence[np.ndarray], length: int) -> dict[str, np.ndarray]:
  """Puts sequences of many lengths into few rows of one length, in NumPy.

  Each goes into the first row that has room for it; the rest of a row is
  padding. A layer that is given both flags treats every sequence as if it were
  alone.

  >>> batch = pack([np.array([1, 2]), np.array([3, 4, 5]), np.array([6])], 4)
  >>> batch['inputs']
  array([[1, 2, 6, 0],
         [3, 4, 5, 0]])
  >>> batch['reset'].astype(int)
  array([[1, 0, 1, 0],
         [1, 0, 0, 0]])

  Args:
    sequences: Arrays `[n]` or `[n, D]`, alike but for `n`, which is at least 1.
    length: `T`, the length of a row.

  Returns:
    `inputs` `[B, T]` or `[B, T, D]`, 0 in the padding, in the dtype of the
    sequences; `reset` `[B, T]`, `True` where each starts; `mask` `[B, T]`,
    `False` in the padding. `B` is as large as needed.

  Raises:
    ValueError: If there is no sequence, or one is empty or does not fit.
  """
  sequences = [np.asarray(s) for s in sequences]
  if not sequences:
    raise ValueError('`sequences` must not be empty.')
  like = sequences[0]
  rows = []  # Of each row, the sequences in it.
  # A tree over rows, the one of all at 1: of each node the most room below it.
  leaves = 1 << (len(sequences) - 1).bit_length()
  room = [length] * (2 * leaves)
  for i, s in enumerate(sequences):
    if not s.ndim or s.shape[1:] != like.shape[1:] or s.dtype != like.dtype:
      raise ValueError(
          f'`sequences[{i}]` must be {like.dtype} [n, *{like.shape[1:]}], got '
          f'{s.dtype} {s.shape}.'
      )
    if not 1 <= len(s) <= length:
      raise ValueError(
          f'`sequences[{i}]` must have 1 to {length} tokens, got {len(s)}.'
      )
    node = 1
    while node < leaves:
      node = 2 * node if room[2 * node] >= len(s) else 2 * node + 1
    if node - leaves == len(rows):
      rows.append([])
    rows[node - leaves].append(s)
    room[node] -= len(s)
    while node := node // 2:
      room[node] = max(room[2 * node], room[2 * node + 1])
  shape = (len(rows), length)
  inputs = np.zeros(shape + like.shape[1:], like.dtype)
  reset, mask = np.zeros(shape, bool), np.zeros(shape, bool)
  for b, row in enumerate(rows):
    start = 0
    for s in row:
      here = slice(start, start + len(s))
      inputs[b, here], mask[b, here], reset[b, start] = s, True, True
      start += len(s)
  return dict(inputs=inputs, reset=reset, mask=mask)


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


def _shifted(flags, first, shape):
  """`flags` `[B, T-1]` one token later, `first` in the gap; T may be 0."""
  first = jnp.broadcast_to(jnp.asarray(first, bool)[..., None], (shape[0], 1))
  return jnp.concatenate([first, flags], axis=1)[:, : shape[1]]


def _reshape_batch(carry, axes, batch):
  """Replaces the leading `axes` axes of every leaf by `batch`."""
  return jax.tree.map(
      lambda u: u.reshape(tuple(batch) + u.shape[axes:]), carry
  )


def _is_integer(u):
  return jnp.issubdtype(u.dtype, jnp.integer)
