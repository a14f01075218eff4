"""How well a model predicts a text of any length, in constant memory."""

from collections.abc import Iterator
import math
import pathlib
import sys
from typing import Any

import jax
import numpy as np
from rnnzoo import errors
from rnnzoo.data import bpe
from rnnzoo.training import losses
from rnnzoo.training import memory
import tqdm

# So many characters of a file are read at once, and then up to the end of the
# line, if that is not as far away again.
_AT_ONCE = 2**16


def measure(run, path, chunk: int) -> dict[str, Any]:
  """Reads a text once, from its start to its end, and predicts each token.

  The text is read in chunks, with the carry kept. Where attention has no room
  for all of it, the carry starts anew each time that it is full.

  Args:
    run: From `restoring.restore_run`, or of a pretrained model.
    path: A file of UTF-8 text.
    chunk: The number of tokens that are read at once.

  Returns:
    `tokens` and `bytes`, which are predicted: all of the text but its first
    token, which is predicted too where the tokenizer puts one before it;
    `loss` in nats for each token, `perplexity`, `bits_per_token`,
    `bits_per_byte`, `accuracy`; and `starts`, how often the carry was new.

  Raises:
    UserError: If the file cannot be read, or has too few tokens.
  """
  model, path = run.model, pathlib.Path(path)
  room = getattr(model, 'context', None)
  if room is not None:
    chunk = min(chunk, room)
  text = _Tokens(run.vocabulary, path)
  totals, starts, held, carry = {}, 0, 0, None
  for inputs, targets, mask, counts in text.chunks(chunk):
    if carry is None or room is not None and held + chunk > room:
      carry, held, starts = _first_carry(model), 0, starts + 1
    _check_ids(path, model, inputs, targets)
    carry, sums = _score(model, carry, inputs, targets, mask, counts)
    held += chunk
    # In Python's float64: float32 cannot count the tokens of a long text.
    for name, value in memory.fetch(sums).items():
      totals[name] = totals.get(name, 0.0) + float(value)
  if not totals.get('weight'):
    raise errors.UserValueError(
        f'{path} (--text) must have at least two tokens.'
    )
  count = totals['weight']
  nats, bits = totals['loss'] / count, totals['loss'] / math.log(2)
  return dict(
      tokens=int(count), bytes=text.bytes, loss=nats,
      perplexity=math.inf if nats > 700 else math.exp(nats),
      bits_per_token=bits / count, bits_per_byte=bits / max(1, text.bytes),
      accuracy=totals['correct'] / count, starts=starts,
  )


class _Tokens:
  """The tokens of a file, and how many bytes are to be predicted.

  Attributes:
    bytes: Of what has been read, without the first token if that is given.
  """

  def __init__(self, vocabulary, path):
    self._vocabulary, self._path, self.bytes = vocabulary, path, 0

  def chunks(self, size: int) -> Iterator[tuple[np.ndarray, ...]]:
    """Yields inputs, targets, mask and whether targets count, `[1, size]`.

    The last chunk is padded.
    """
    pieces = self._pieces()
    waiting = next(pieces)
    given = len(waiting)  # Tokens before the text are read, not predicted.
    for ids in pieces:
      waiting = np.concatenate([waiting, ids])
      while len(waiting) > size:
        yield _chunk(waiting[: size + 1], size, given)
        waiting, given = waiting[size:], max(0, given - size)
    if len(waiting) > 1:
      yield _chunk(waiting, size, given)

  def _pieces(self):
    """Yields the tokens that come before the text, then those of its parts."""
    vocabulary = self._vocabulary
    is_bpe = vocabulary.level == 'bpe'
    start = start_of(vocabulary) if is_bpe else np.zeros(0, np.int32)
    yield start
    is_given = not len(start)
    for piece in read(self._path):
      self.bytes += len(piece.encode('utf-8'))
      # Without the tokens that come before a text, which came already.
      ids = (
          bpe.encode(vocabulary.symbols, piece) if is_bpe
          else vocabulary.encode(piece)
      )
      if is_given and len(ids):
        self.bytes -= (
            bpe.size_in_bytes(vocabulary.symbols, ids[0]) if is_bpe
            else len(vocabulary.decode(ids[:1]).encode('utf-8'))
            if vocabulary.level == 'char' else 1
        )
        is_given = False
      yield ids


def read(path: pathlib.Path) -> Iterator[str]:
  """Yields a text of UTF-8 in pieces that end with lines, if lines are short.

  Raises:
    UserError: If it cannot be read, or is no UTF-8.
  """
  try:
    with (
        path.open(encoding='utf-8-sig', newline='') as file,
        tqdm.tqdm(
            total=path.stat().st_size, unit='B', unit_scale=True,
            file=sys.stderr, leave=False, disable=None,
        ) as bar,
    ):
      while piece := file.read(_AT_ONCE):
        piece += file.readline(_AT_ONCE)
        yield piece
        bar.update(len(piece.encode('utf-8')))
  except FileNotFoundError as error:
    raise errors.UserFileNotFoundError(
        f'There is no file {path} (--text).'
    ) from error
  except UnicodeDecodeError as error:
    raise errors.UserValueError(
        f'{path} (--text) is not UTF-8 text: {error.reason}.'
    ) from error


def start_of(vocabulary) -> np.ndarray:
  """Returns the tokens that a tokenizer puts before each text, int32 `[N]`."""
  plain = bpe.encode(vocabulary.symbols, 'a')
  whole = vocabulary.encode('a')
  for start in range(len(whole) - len(plain) + 1):
    if np.array_equal(whole[start : start + len(plain)], plain):
      return whole[:start]
  return np.zeros(0, np.int32)


def _check_ids(path, model, *ids):
  """Raises unless the model has all ids: a compiled program does not."""
  size, largest = model.config.vocab_size, max(int(u.max()) for u in ids)
  if largest >= size:
    raise errors.UserValueError(
        f'{path} (--text) has the token {largest} of the tokenizer, and the '
        f'model has only those from 0 to {size - 1}.'
    )


def _chunk(ids, size, given):
  padded = np.zeros(size + 1, np.int32)
  padded[: len(ids)] = ids
  place = np.arange(1, size + 1)
  mask = place < len(ids)
  return padded[None, :-1], padded[None, 1:], mask[None], place[None] >= given


@jax.jit
def _first_carry(model):
  return model.initialize_carry(1)


@jax.jit(donate_argnames='carry')
def _score(model, carry, inputs, targets, mask, counts):
  """Reads a chunk; returns the carry and sums over targets that count."""
  carry, features = model.features(inputs, carry, mask=mask)
  last = model.output_map()
  return carry, losses.chunked_cross_entropy(
      features, last.kernel, targets, mask & counts, vocab_axis=last.vocab_axis,
      bias=last.bias, soft_cap=last.soft_cap,
  )
