"""Makes the flags `reset` and `mask`, and packs sequences into rows."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np


def reset_from_segment_ids(
    segment_ids: jax.Array, *, first: bool | jax.Array = True
) -> jax.Array:
  """Marks the tokens where the segment number changes.

  >>> reset_from_segment_ids(jnp.array([[1, 1, 2, 2, 2]]))
  Array([[ True, False,  True, False, False]], dtype=bool)

  Args:
    segment_ids: Integers `[B, T]`, constant over each sequence.
    first: Whether position 0 starts a sequence. For a window that may continue
      the sequence of the window before it, pass `False`, or booleans `[B]` such
      as `segment_ids[:, 0] != last_ids`.

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
  """Marks the first token of each episode, from the ends of episodes.

  >>> reset_from_done(jnp.array([[False, True, False, False]]))
  Array([[False, False,  True, False]], dtype=bool)

  Args:
    done: `[B, T]`, true, or not zero, on the last step of an episode.
    last_done: `done` `[B]` of the step before the first one, in the window
      before. `None` means that no episode ended there.

  Returns:
    `reset` `[B, T]`.

  Raises:
    ValueError: If the shapes disagree.
  """
  done = jnp.asarray(done) != 0
  last = False if last_done is None else jnp.asarray(last_done) != 0
  if done.ndim != 2 or jnp.shape(last) not in ((), done.shape[:1]):
    raise ValueError(
        '`done` must be [B, T] and `last_done` [B], got '
        f'{done.shape} and {jnp.shape(last)}.'
    )
  return _shifted(done[:, :-1], last, done.shape)


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
  """Packs sequences of many lengths into a few rows of one length.

  A sequence goes into the first row with enough room. The rest of a row is
  padding. With both flags, a layer treats every sequence as if it were alone in
  a row.

  >>> batch = pack([np.array([1, 2]), np.array([3, 4, 5]), np.array([6])], 4)
  >>> batch['inputs']
  array([[1, 2, 6, 0],
         [3, 4, 5, 0]])
  >>> batch['reset'].astype(int)
  array([[1, 0, 1, 0],
         [1, 0, 0, 0]])

  Args:
    sequences: NumPy arrays `[n]` or `[n, D]`, where only `n` may differ, `n >=
      1`.
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
  rows = []  # A list of sequences for each row.
  # A binary tree over the rows, its root at 1. A node holds the most room of
  # any row below it.
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


def _shifted(flags, first, shape):
  """Shifts `flags` `[B, T-1]` by one token, after `first`; T may be 0."""
  first = jnp.broadcast_to(jnp.asarray(first, bool)[..., None], (shape[0], 1))
  return jnp.concatenate([first, flags], axis=1)[:, : shape[1]]


def _is_integer(u):
  return jnp.issubdtype(u.dtype, jnp.integer)
