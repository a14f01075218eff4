"""Cuts the tokens of a text into rows: windows, streams and evaluation."""

import grain
import numpy as np
from rnnzoo import errors
from rnnzoo.data import pipeline


def pairs(tokens: np.ndarray, positions: np.ndarray) -> pipeline.Batch:
  """Returns the tokens at `positions` `[b, T]` and the next tokens, int32."""
  return {
      'inputs': tokens[positions].astype(np.int32),
      'targets': tokens[positions + 1].astype(np.int32),
  }


def document_flags(
    starts: np.ndarray | None, positions: np.ndarray
) -> pipeline.Batch:
  """Returns `reset` and `mask` of windows, if there are documents.

  Args:
    starts: Where documents start, bool `[N]`; `None` for a text that is one.
    positions: Of the inputs, `[b, T]`.
  """
  if starts is None:
    return {}
  return dict(reset=starts[positions], mask=~starts[positions + 1])


def window_batches(
    tokens: np.ndarray,
    starts: np.ndarray | None,
    length: int,
    shard: pipeline.Shard,
    seed: int,
) -> grain.MapDataset:
  """Returns endless batches of windows at shuffled offsets."""

  def batch(offsets):
    positions = offsets[:, None] + np.arange(length)
    return pairs(tokens, positions) | document_flags(starts, positions)

  return shard.shuffled(len(tokens) - length, seed).map(batch)


def stream_batches(
    tokens: np.ndarray,
    starts: np.ndarray | None,
    length: int,
    shard: pipeline.Shard,
    seed: int,
) -> grain.MapDataset:
  """Returns endless batches whose rows continue those of the step before.

  The text is cut into `B` streams of equal length, one for each row. A stream
  holds `K` windows and up to `length - 1` spare tokens. Each epoch skips a
  random number of the spare tokens at the start of the stream and the rest at
  its end. Steps 1, K + 1, 2 K + 1, ... start the streams anew.

  Raises:
    UserValueError: If a stream is shorter than a window.
  """
  pipeline.check_seed(seed)
  stream = (len(tokens) - 1) // shard.batch_size
  windows = stream // length
  if not windows:
    raise errors.UserValueError(
        f'The text is too short for data.contiguous: {len(tokens)} tokens in '
        f'batch_size={shard.batch_size} streams leave {stream} for each, and '
        f'data.sequence_length={length} needs {length} or more.'
    )
  spare = stream - windows * length

  def batch(numbers):
    steps, rows = np.divmod(numbers, shard.batch_size)
    epoch, window = divmod(int(steps[0]), windows)
    skipped = np.random.default_rng([seed, epoch]).integers(spare + 1)
    begin = rows * stream + skipped + window * length
    positions = begin[:, None] + np.arange(length)
    none = dict(reset=np.zeros(positions.shape, bool))
    flags = none | document_flags(starts, positions)
    if window == 0:
      flags['reset'][:, 0] = True
    return pairs(tokens, positions) | flags

  return shard.train().map(batch)


def eval_batches(
    tokens: np.ndarray,
    starts: np.ndarray | None,
    length: int,
    shard: pipeline.Shard,
) -> grain.MapDataset:
  """Returns the batches that predict `tokens[1:]` once, window by window."""

  def batch(numbers):
    positions = numbers[:, None] * length + np.arange(length)
    exists = positions + 1 < len(tokens)
    positions = np.where(exists, positions, 0)
    arrays = pairs(tokens, positions) | document_flags(starts, positions)
    none = lambda u: np.zeros((), u.dtype)
    padded = {k: np.where(exists, u, none(u)) for k, u in arrays.items()}
    return dict(mask=exists) | padded

  return shard.evaluate(-(-(len(tokens) - 1) // length)).map(batch)
