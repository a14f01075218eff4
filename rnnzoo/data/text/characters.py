"""Documents as rows of character tokens, as in the Long Range Arena."""

import dataclasses
import functools

import numpy as np
from rnnzoo import errors
from rnnzoo import fields
from rnnzoo.data import examples
from rnnzoo.data import pipeline
from rnnzoo.data import vocabulary as vocabularies

PADDING, UNKNOWN, END = range(3)



def data_fields(
    length: int, min_frequency: int, longest: int | None = None
) -> dict[str, fields.Field]:
  """Returns the fields of a data set of documents.

  Args:
    length: The default of `sequence_length`.
    min_frequency: The default of `min_frequency`.
    longest: The largest `sequence_length`; any if `None`.
  """
  return dict(
      sequence_length=fields.Field(
          int, low=2, high=longest, default=length,
          help='The length of the rows. Longer documents are cut.',
      ),
      min_frequency=fields.Field(
          int, low=1, default=min_frequency,
          help='A character that the training documents have less often is '
          'read as the token of unknown characters.',
      ),
      append_eos=fields.Field(
          bool, default=True,
          help='End every document with a token of its own. It takes the place '
          'of the last character of a document that fills its row.',
      ),
      buckets=examples.BUCKETS,
  )


@dataclasses.dataclass(frozen=True)
class Characters:
  """The tokens of documents.

  Token 0 is padding, 1 an unknown character and, with `end`, 2 the end of a
  document. The characters follow, in the order of their code points.

  >>> characters = Characters.of_chunks([(b'abba', [[4]])], 2, length=5)
  >>> characters.symbols, len(characters)
  ('ab', 5)
  >>> tokens, lengths = characters.encode(b'abcba', [[2], [3]], length=5)
  >>> tokens.tolist(), lengths.tolist()
  ([[[3, 4, 2, 0, 0]], [[1, 4, 3, 2, 0]]], [[3], [4]])

  Attributes:
    symbols: The characters.
    end: Whether documents end with token 2.
  """

  symbols: str
  end: bool = True

  @classmethod
  def of_chunks(cls, chunks, min_frequency, length, end=True) -> 'Characters':
    """Returns the tokens for documents in which characters are counted.

    Args:
      chunks: See `builders.documents.Documents`.
      min_frequency: How often the documents have a character that is a token.
      length: The largest number of tokens of a document. Characters that are
        cut off do not count.
      end: Whether documents end with token 2.

    Raises:
      UserValueError: If there are more than 65,536 tokens.
    """
    counts = np.zeros(0x110000, np.int64)
    for text, sizes in chunks:
      points, _ = _cut(text, sizes, length - end)
      found = np.bincount(points)
      counts[: len(found)] += found
    known = np.flatnonzero(counts >= min_frequency)
    found = cls(''.join(map(chr, known)), end)
    if len(found) > 2**16:
      raise errors.UserValueError(
          f'The documents have {len(known):,} different characters; at most '
          '65,000 can be tokens. Raise data.min_frequency.'
      )
    return found

  @property
  def first(self) -> int:
    """The token of the first character."""
    return END + self.end

  def __len__(self) -> int:
    return self.first + len(self.symbols)

  @property
  def dtype(self) -> type[np.unsignedinteger]:
    """The smallest dtype that holds all tokens."""
    return np.uint8 if len(self) <= 2**8 else np.uint16

  def encode(self, text, sizes, length) -> tuple[np.ndarray, np.ndarray]:
    """Returns the tokens of the documents of some examples.

    Args:
      text: The documents, one after another, in UTF-8.
      sizes: The number of characters of each, `[n, K]`.
      length: The largest number of tokens of a document, `T`.

    Returns:
      Tokens `[n, K, T]` of `dtype`, and the number of tokens `[n, K]` int32.
    """
    sizes = np.asarray(sizes)
    points, counts = _cut(text, sizes, length - self.end)
    known = vocabularies.code_points(self.symbols)
    size = int(points.max(initial=0)) + 1
    table = np.full(size, UNKNOWN, self.dtype)
    reached = known < size
    table[known[reached]] = self.first + np.flatnonzero(reached)
    tokens = np.full((len(counts), length), PADDING, self.dtype)
    tokens[np.arange(length) < counts[:, None]] = table[points]
    if self.end:
      tokens[np.arange(len(counts)), counts] = END
      counts = counts + 1
    shape = sizes.shape
    return tokens.reshape(*shape, length), counts.reshape(shape)


def examples_of(documents, characters, length) -> examples.Examples:
  """Returns the tokens of all examples.

  Args:
    documents: The `Documents` of `N` examples.
    characters: The tokens.
    length: `T`.

  Returns:
    `Examples` with tokens `[N, T]` and lengths `[N]`; with `[N, T, K]` and
    `[N, K]` if an example has `K > 1` documents.
  """
  count, width = len(documents), documents.chunks[0][1].shape[1]
  tokens = np.empty((count, length, width), characters.dtype)
  lengths = np.empty((count, width), np.int32)
  start = 0
  for text, sizes in documents.chunks:
    part = slice(start, start + len(sizes))
    found, lengths[part] = characters.encode(text, sizes, length)
    tokens[part] = np.moveaxis(found, 1, 2)
    start = part.stop
  if width == 1:
    tokens, lengths = tokens[..., 0], lengths[:, 0]
  return examples.Examples(tokens, documents.labels, lengths)


def dataset(splits, characters, shard, seed, **attributes) -> pipeline.Dataset:
  """Returns rows of tokens and their labels as a data set.

  The baseline is `majority_accuracy`, see `examples.label_baselines`. The
  characters are in `source`, which checkpoints record.

  Args:
    splits: What `examples_of` returned, by split.
    characters: The tokens.
    shard: The rows of this process.
    seed: Fixes the order of the training examples.
    **attributes: More attributes of the `Dataset`.
  """
  found = examples.dataset(
      splits, shard, seed,
      unit='characters',
      sequence_length=splits['train'].inputs.shape[1],
      vocab_size=len(characters),
      num_classes=len(attributes['class_names']),
      baselines=functools.partial(examples.label_baselines, splits),
      **attributes,
  )
  source = dict(found.source, characters=characters.symbols)
  return dataclasses.replace(found, source=source)


def _cut(text, sizes, length):
  """Returns what is left of documents that are cut to `length` characters.

  Returns:
    The code points of all documents, and the number of them in each, `[n K]`.
  """
  points = vocabularies.code_points(text.decode('utf-8'))
  sizes = np.asarray(sizes).reshape(-1)
  places = np.arange(len(points)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
  counts = np.minimum(sizes, length).astype(np.int32)
  return points[places < length], counts
