"""The vocabularies of text: its characters, the 256 bytes, learned tokens."""

import dataclasses
from typing import Any

import numpy as np
from rnnzoo import errors
from rnnzoo.data import bpe

LEVELS = ('char', 'byte', 'bpe')


def code_points(text: str) -> np.ndarray:
  """Returns the Unicode code points of `text`, uint32 `[N]`."""
  # Lone surrogates (from undecodable command lines) must get through to the
  # place that says which characters are unknown.
  return np.frombuffer(text.encode('utf-32-le', 'surrogatepass'), '<u4')


@dataclasses.dataclass(frozen=True)
class Vocabulary:
  """Maps text to token ids and back.

  Example::

    >>> vocabulary = Vocabulary.of_text('hello')
    >>> vocabulary.encode('hole')
    array([1, 3, 2, 0], dtype=int32)
    >>> vocabulary.decode([1, 0])
    'he'

  Attributes:
    level: `'char'`; or `'byte'`: the 256 values of UTF-8 bytes; or `'bpe'`:
      sequences of bytes or characters, see `rnnzoo.data.bpe`.
    symbols: At the character level, the characters in the order of their ids,
      which is the order of their code points; empty at the byte level; for BPE
      the text of a `tokenizer.json`.
  """

  level: str
  symbols: str = ''

  def __post_init__(self):
    if self.level not in LEVELS:
      raise errors.UserValueError(
          f'The level of a vocabulary must be one of {LEVELS}, got '
          f'{self.level!r}.'
      )
    if self.level == 'bpe':  # Read when it is used: `tokenizers` is an extra.
      return
    expected = ''.join(sorted(set(self.symbols)))
    if self.symbols != expected or (self.level == 'byte' and self.symbols):
      raise errors.UserValueError(
          'The symbols of a vocabulary must be sorted, distinct characters, '
          f'and none at the byte level, got {self.symbols!r}.'
      )

  @classmethod
  def of_text(cls, text: str) -> 'Vocabulary':
    """Returns the character vocabulary of everything that `text` contains."""
    return cls('char', ''.join(sorted(set(text))))

  @classmethod
  def from_json(cls, fields: dict[str, Any]) -> 'Vocabulary':
    """Returns the vocabulary that `to_json` described."""
    try:
      return cls(level=fields['level'], symbols=fields['symbols'])
    except (KeyError, TypeError) as error:
      raise errors.UserValueError(
          'A vocabulary is a dictionary with "level" and "symbols", got '
          f'{fields!r}.'
      ) from error

  def to_json(self) -> dict[str, Any]:
    """Returns a dictionary of plain strings that `json.dumps` takes."""
    return {'level': self.level, 'symbols': self.symbols}

  def __len__(self) -> int:
    if self.level == 'bpe':
      return bpe.size(self.symbols)
    return 256 if self.level == 'byte' else len(self.symbols)

  def encode(self, text: str) -> np.ndarray:
    """Returns the ids of `text`, int32 `[N]`.

    Raises:
      UserValueError: For characters that the vocabulary lacks, naming up to
        ten of them.
    """
    if self.level == 'byte':
      return np.frombuffer(bpe.to_bytes(text), np.uint8).astype(np.int32)
    if self.level == 'bpe':
      return bpe.encode(self.symbols, text)
    points = code_points(text)
    known = code_points(self.symbols)
    # One entry for each code point up to the last known one, and one more.
    end = int(known[-1]) + 1 if len(known) else 0
    table = np.full(end + 1, -1, np.int32)
    table[known] = np.arange(len(known))
    ids = table[np.minimum(points, end)]
    lacking = ids < 0
    if lacking.any():
      unknown = [repr(chr(p)) for p in dict.fromkeys(points[lacking].tolist())]
      more = f' and {len(unknown) - 10} more' if len(unknown) > 10 else ''
      raise errors.UserValueError(
          f'The vocabulary of {len(self)} characters lacks '
          f'{", ".join(unknown[:10])}{more}.'
      )
    return ids

  def decode(self, ids) -> str:
    """Returns the text of `ids` `[N]`; broken UTF-8 becomes U+FFFD.

    Raises:
      ValueError: If an id is not in `[0, len(self))`.
    """
    ids = np.asarray(ids, np.int64).reshape(-1)
    if len(ids) and not (ids.min() >= 0 and ids.max() < len(self)):
      raise ValueError(
          f'ids must be in [0, {len(self)}), got values from {ids.min()} to '
          f'{ids.max()}.'
      )
    if self.level == 'byte':
      return ids.astype(np.uint8).tobytes().decode('utf-8', 'replace')
    if self.level == 'bpe':
      return bpe.decode(self.symbols, ids)
    points = code_points(self.symbols)[ids]
    return points.tobytes().decode('utf-32-le', 'surrogatepass')
