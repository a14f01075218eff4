"""Any text as a data set for language models: characters, bytes or BPE."""

from collections.abc import Mapping, Sequence
import functools
import gzip
import hashlib
import itertools
import pathlib
from typing import Any
import zlib

from absl import logging
import numpy as np
from rnnzoo import errors
from rnnzoo import fields
from rnnzoo import filenames
from rnnzoo.data import bpe
from rnnzoo.data import pipeline
from rnnzoo.data import vocabulary as vocabularies
from rnnzoo.data.text import windows

SPLITS = ('train', 'validation', 'test')
UNITS = dict(char='characters', byte='bytes', bpe='tokens')


def level_field(default: str) -> fields.Field:
  """Returns the field `level`."""
  return fields.Field(
      str, choices=vocabularies.LEVELS, default=default,
      help='What a token is: a character, a byte, or a sequence of bytes that '
      'is frequent (byte-pair encoding).',
  )


FIELDS = dict(
    level=level_field('char'),
    bpe_size=fields.Field(
        int, low=256, default=4096,
        help='The number of tokens that data.level=bpe learns from the '
        'training part.',
    ),
    tokenizer=fields.Field(
        str, default='',
        help='For data.level=bpe, the file tokenizer.json of a finished '
        'tokenizer. If empty, one is learned.',
    ),
    vocab_size=fields.Field(
        int, low=0, default=0,
        help='The number of token ids of the model, which may be more than the '
        'text can have: published models round it up. 0 means those of the '
        'vocabulary.',
    ),
    sequence_length=fields.Field(
        int, low=1, default=256, help='The number of tokens in a window.'
    ),
    contiguous=fields.Field(
        bool, default=False,
        help='Whether each row of a batch continues the same row of the batch '
        'before.',
    ),
)


def cuts(length: int) -> tuple[int, int]:
  """Returns where validation and test start: at 90 % and 95 % of a text."""
  first = int(length * 0.9)
  return first, first + int((length - first) * 0.5)


def split_text(text: str) -> dict[str, str]:
  """Cuts a text into 90 % train, 5 % validation, 5 % test, in this order."""
  first, second = cuts(len(text))
  pieces = text[:first], text[first:second], text[second:]
  return dict(zip(SPLITS, pieces, strict=True))


def fixture_text() -> str:
  """Returns 20,000 characters of made-up words, always the same."""
  rng = np.random.default_rng(0)
  letters = np.array(list('etaoinshrdlu'))
  words = [''.join(rng.choice(letters, rng.integers(1, 8))) for _ in range(99)]
  lines = (' '.join(rng.choice(words, 10)) for _ in range(1000))
  return '\n'.join(lines)[:20_000]


def split_documents(documents: Sequence[str]) -> dict[str, list[str]]:
  """Deals documents to train, validation and test, in this order.

  The cuts are near those of `split_text`: a document belongs to the split in
  which its first character lies.

  >>> split_documents(['a' * 18, 'b', 'c'])
  {'train': ['aaaaaaaaaaaaaaaaaa'], 'validation': ['b'], 'test': ['c']}
  """
  *starts, total = itertools.accumulate(map(len, documents), initial=0)
  found = {split: [] for split in SPLITS}
  for start, document in zip(starts, documents):
    number = sum(start >= cut for cut in cuts(total))
    found[SPLITS[number]].append(document)
  return found


def load(
    name: str,
    texts: Mapping[str, str | Sequence[str]],
    config: Any,
    shard: pipeline.Shard,
    seed: int,
    joined: Mapping[str, tuple[str, ...]] | None = None,
) -> pipeline.Dataset:
  """Returns a text as a `Dataset`.

  Training rows are windows of `sequence_length + 1` tokens at all offsets of
  the train split: each epoch takes every offset once, in a shuffled order of
  its own. With `contiguous`, row r goes on where row r of the step before
  stopped (for a carry that is kept across steps), and `reset` marks where it
  starts anew.

  Evaluation rows are windows side by side, so each token of a split but its
  first is a target once.

  A split that is a list of documents is one text too, without gaps: a row may
  hold several documents. `reset` marks their first tokens, so that nothing
  passes from one document to the next, and these tokens are no targets.

  The characters of the vocabulary are those of the whole text, held-out parts
  included, as in nanoGPT: 65 for Tiny Shakespeare.

  Args:
    name: The name of the data set.
    texts: The text of each split, or its documents.
    config: Has the fields in `FIELDS`.
    shard: The rows of this process.
    seed: Fixes the order of the training windows.
    joined: More evaluation splits, each a list of splits to put together.

  Raises:
    UserValueError: If the text is too short, or has more tokens than
      `vocab_size`.
  """
  length = config.sequence_length
  documents = {
      split: [text] if isinstance(text, str) else list(text)
      for split, text in texts.items()
  }
  flat = {split: ''.join(pieces) for split, pieces in documents.items()}
  vocabulary = make_vocabulary(config, documents)
  vocab_size = config.vocab_size or len(vocabulary)
  if vocab_size < len(vocabulary):
    raise errors.UserValueError(
        f'data.vocab_size={vocab_size} is less than the {len(vocabulary)} '
        'tokens of the vocabulary.'
    )
  tokens, starts = {}, {}
  for split, pieces in documents.items():
    tokens[split], starts[split] = encode(vocabulary, pieces)
  check_lengths(name, tokens, length)
  warn_of_little(name, tokens, length, shard.batch_size)

  splits = {split: (tokens[split], starts[split]) for split in SPLITS}
  for split, parts in (joined or {}).items():
    splits[split] = (
        np.concatenate([tokens[part] for part in parts]),
        np.concatenate([starts[part] for part in parts]),
    )
  source = dict(
      characters={split: len(text) for split, text in flat.items()},
      sha256=hashlib.sha256(to_bytes(''.join(flat.values()))).hexdigest(),
  )
  if all(isinstance(text, str) for text in texts.values()):
    splits = {split: (ids, None) for split, (ids, _) in splits.items()}
  else:
    source['documents'] = {name: len(u) for name, u in documents.items()}
  make_batches = (
      windows.stream_batches if config.contiguous else windows.window_batches
  )
  return pipeline.Dataset(
      name=name,
      task='language_modelling',
      unit=UNITS[config.level],
      batch_size=shard.batch_size,
      sequence_length=length,
      vocab_size=vocab_size,
      vocabulary=vocabulary,
      per_step=True,
      forecast=True,
      contiguous=config.contiguous,
      train=make_batches(*splits.pop('train'), length, shard, seed),
      evaluation={
          split: windows.eval_batches(*arrays, length, shard)
          for split, arrays in splits.items()
      },
      baselines=functools.partial(
          measure_baselines, flat, tokens, len(vocabulary)
      ),
      bytes_per_token=bytes_per_token(
          flat['test'], tokens['test'], starts['test'], vocabulary
      ),
      source=source,
  )


def to_bytes(text: str) -> bytes:
  """Returns a text as UTF-8; its surrogates are bytes, see `wikipedia`."""
  return text.encode('utf-8', 'surrogateescape')


def make_vocabulary(
    config: Any, documents: Mapping[str, Sequence[str]]
) -> vocabularies.Vocabulary:
  """Returns the vocabulary that `config` asks for.

  Args:
    config: Has the fields in `FIELDS`.
    documents: The documents of each split.

  Raises:
    UserError: If there is no tokenizer, or no library to read it.
    UserValueError: If `data.tokenizer` is given without `data.level=bpe`.
  """
  if config.level != 'bpe':
    if config.tokenizer:
      raise errors.UserValueError(
          f'data.tokenizer={config.tokenizer} needs data.level=bpe, got '
          f'data.level={config.level}.'
      )
    if config.level == 'byte':
      return vocabularies.Vocabulary('byte')
    known = set().union(*itertools.chain(*documents.values()))
    return vocabularies.Vocabulary('char', ''.join(sorted(known)))
  if config.tokenizer:
    path = pathlib.Path(filenames.absolute(config.tokenizer))
    return vocabularies.Vocabulary('bpe', bpe.read(path))
  learned = bpe.train(documents['train'], config.bpe_size)
  return vocabularies.Vocabulary('bpe', learned)


def encode(
    vocabulary: vocabularies.Vocabulary, documents: Sequence[str]
) -> tuple[np.ndarray, np.ndarray]:
  """Returns the tokens `[N]` of documents, and where each starts, bool `[N]`.

  Tokens are kept as small as possible: one byte each up to 256 symbols.
  """
  small = np.min_scalar_type(max(0, len(vocabulary) - 1))
  found = [vocabulary.encode(text).astype(small) for text in documents]
  tokens = np.concatenate([np.zeros(0, small), *found])
  starts = np.zeros(len(tokens), bool)
  first = np.cumsum([0, *map(len, found)])[:-1]
  starts[first[first < len(tokens)]] = True
  return tokens, starts


def bytes_per_token(
    text: str,
    tokens: np.ndarray,
    starts: np.ndarray,
    vocabulary: vocabularies.Vocabulary,
) -> float:
  """Returns how many bytes of UTF-8 a target stands for, on average.

  Args:
    text: A split.
    tokens: Its tokens `[N]`.
    starts: Where its documents start `[N]`: these tokens are no targets.
    vocabulary: How it was encoded.
  """
  if vocabulary.level == 'byte':
    return 1.0
  if vocabulary.level == 'bpe':
    size = functools.partial(bpe.size_in_bytes, vocabulary.symbols)
  else:
    size = lambda token: len(to_bytes(vocabulary.decode([token])))
  first = [size(token) for token in tokens[starts]]
  targets = len(tokens) - len(first)
  return (len(to_bytes(text)) - sum(first)) / max(1, targets)


def check_lengths(name: str, tokens: Mapping[str, np.ndarray], length: int):
  """Raises `UserValueError` if a split is too short."""
  found = ', '.join(f'{split} {len(ids)}' for split, ids in tokens.items())
  if len(tokens['train']) < length + 1:
    raise errors.UserValueError(
        f'The text of {name} is too short: data.sequence_length={length} needs '
        f'at least {length + 1} tokens to train on; the splits have {found}.'
    )
  if min(len(tokens['validation']), len(tokens['test'])) < 2:
    raise errors.UserValueError(
        f'The text of {name} is too short: validation and test need at least '
        f'2 tokens each; the splits have {found}.'
    )


def warn_of_little(name, tokens, length: int, batch_size: int):
  """Warns if a batch has more tokens than there are to train on."""
  count, batch = len(tokens['train']), batch_size * length
  if count < batch:
    logging.warning(
        '%s has only %d tokens to train on, but a batch has %d (batch_size %d '
        'x data.sequence_length %d), so each step sees the text more than '
        'once. The model will overfit, and the losses on validation (%d '
        'tokens) and test (%d tokens) mean little.',
        name, count, batch, batch_size, length,
        len(tokens['validation']), len(tokens['test']),
    )


def measure_baselines(
    texts: Mapping[str, str], tokens: Mapping[str, np.ndarray], vocab_size: int
) -> dict[str, float]:
  """Returns what simple predictors reach on the test split, in bits per token.

  `unigram_bits`: the cross-entropy of the train split's token frequencies, with
  one added to each count.

  `gzip_bits`: `8 * bytes / tokens` of `gzip -9` on the UTF-8 text, the smaller
  of two: the test split by itself, and the test split where gzip knows the last
  32 KiB of the train split, which is as far as it can look back.

  Args:
    texts: The text of each split.
    tokens: The tokens of each split `[N]`.
    vocab_size: The number of tokens that there are.
  """
  train, test = tokens['train'], tokens['test']
  counts = np.bincount(train, minlength=vocab_size) + 1
  bits = -np.log2(counts / counts.sum())

  text = to_bytes(texts['test'])
  before = to_bytes(texts['train'])[-(2**15) :]
  # Deflate is gzip without its header, which the train split would already
  # have paid for.
  deflate = zlib.compressobj(9, wbits=-15, zdict=before)
  added = len(deflate.compress(text) + deflate.flush())
  return {
      'unigram_bits': float(bits[test].mean()),
      'gzip_bits': 8 * min(gzip_size(text), added) / len(test),
  }


def gzip_size(text: bytes) -> int:
  """Returns the size of `gzip -9` of `text` in bytes."""
  return len(gzip.compress(text, compresslevel=9, mtime=0))
