"""Any text as a data set for language models, by characters or bytes."""

from collections.abc import Mapping
import functools
import gzip
import hashlib
from typing import Any
import zlib

from absl import logging
import grain
import numpy as np
from rnnzoo import errors
from rnnzoo import fields
from rnnzoo.data import pipeline
from rnnzoo.data import vocabulary as vocabularies

SPLITS = ('train', 'validation', 'test')
UNITS = dict(char='characters', byte='bytes')
FIELDS = dict(
    level=fields.Field(
        str, choices=vocabularies.LEVELS, default='char',
        help='What a token is: a character or a byte.',
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


def split_text(text: str) -> dict[str, str]:
  """Cuts a text into 90 % train, 5 % validation, 5 % test, in this order."""
  first = int(len(text) * 0.9)
  second = first + int((len(text) - first) * 0.5)
  pieces = text[:first], text[first:second], text[second:]
  return dict(zip(SPLITS, pieces, strict=True))


def fixture_text() -> str:
  """Returns 20,000 characters of made-up words, always the same."""
  rng = np.random.default_rng(0)
  letters = np.array(list('etaoinshrdlu'))
  words = [''.join(rng.choice(letters, rng.integers(1, 8))) for _ in range(99)]
  lines = (' '.join(rng.choice(words, 10)) for _ in range(1000))
  return '\n'.join(lines)[:20_000]


def load(
    name: str,
    texts: Mapping[str, str],
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

  The characters of the vocabulary are those of the whole text, held-out parts
  included, as in nanoGPT: 65 for Tiny Shakespeare.

  Args:
    name: The name of the data set.
    texts: The text of each split.
    config: Has the fields in `FIELDS`.
    shard: The rows of this process.
    seed: Fixes the order of the training windows.
    joined: More evaluation splits, each a list of splits to put together.

  Raises:
    UserValueError: If the text is too short.
  """
  length = config.sequence_length
  if config.level == 'byte':
    vocabulary = vocabularies.Vocabulary('byte')
  else:
    vocabulary = vocabularies.Vocabulary.of_text(''.join(texts.values()))
  # Kept as small as possible: one byte a token up to 256 symbols.
  small = np.min_scalar_type(max(0, len(vocabulary) - 1))
  tokens = {
      split: vocabulary.encode(text).astype(small)
      for split, text in texts.items()
  }
  check_lengths(name, tokens, length)
  warn_of_little(name, tokens, length, shard.batch_size)

  evaluated = {split: tokens[split] for split in ('validation', 'test')}
  for split, parts in (joined or {}).items():
    evaluated[split] = np.concatenate([tokens[part] for part in parts])
  make_batches = stream_batches if config.contiguous else window_batches
  return pipeline.Dataset(
      name=name,
      task='language_modelling',
      unit=UNITS[config.level],
      batch_size=shard.batch_size,
      sequence_length=length,
      vocab_size=len(vocabulary),
      vocabulary=vocabulary,
      per_step=True,
      forecast=True,
      contiguous=config.contiguous,
      train=make_batches(tokens['train'], length, shard, seed),
      evaluation={
          split: eval_batches(ids, length, shard)
          for split, ids in evaluated.items()
      },
      baselines=functools.partial(measure_baselines, texts, vocabulary),
      source=dict(
          characters={split: len(text) for split, text in texts.items()},
          sha256=hashlib.sha256(''.join(texts.values()).encode()).hexdigest(),
      ),
  )


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


def pairs(tokens: np.ndarray, positions: np.ndarray) -> pipeline.Batch:
  """Returns the tokens at `positions` `[b, T]` and the next tokens, int32."""
  return {
      'inputs': tokens[positions].astype(np.int32),
      'targets': tokens[positions + 1].astype(np.int32),
  }


def window_batches(
    tokens: np.ndarray, length: int, shard: pipeline.Shard, seed: int
) -> grain.MapDataset:
  """Returns endless batches of windows at shuffled offsets."""

  def batch(offsets):
    return pairs(tokens, offsets[:, None] + np.arange(length))

  return shard.shuffled(len(tokens) - length, seed).map(batch)


def stream_batches(
    tokens: np.ndarray, length: int, shard: pipeline.Shard, seed: int
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
    starts = rows * stream + skipped + window * length
    reset = np.zeros((len(rows), length), bool)
    reset[:, 0] = window == 0
    positions = starts[:, None] + np.arange(length)
    return pairs(tokens, positions) | {'reset': reset}

  return shard.train().map(batch)


def eval_batches(
    tokens: np.ndarray, length: int, shard: pipeline.Shard
) -> grain.MapDataset:
  """Returns the batches that predict `tokens[1:]` once, window by window."""

  def batch(numbers):
    positions = numbers[:, None] * length + np.arange(length)
    mask = positions + 1 < len(tokens)
    arrays = pairs(tokens, np.where(mask, positions, 0))
    padded = {key: np.where(mask, ids, 0) for key, ids in arrays.items()}
    return padded | {'mask': mask}

  return shard.evaluate(-(-(len(tokens) - 1) // length)).map(batch)


def measure_baselines(
    texts: Mapping[str, str], vocabulary: vocabularies.Vocabulary
) -> dict[str, float]:
  """Returns what simple predictors reach on the test split, in bits per token.

  `unigram_bits`: the cross-entropy of the train split's token frequencies, with
  one added to each count.

  `gzip_bits`: `8 * bytes / tokens` of `gzip -9` on the UTF-8 text, the smaller
  of two: the test split by itself, and the test split where gzip knows the last
  32 KiB of the train split, which is as far as it can look back.
  """
  train = vocabulary.encode(texts['train'])
  test = vocabulary.encode(texts['test'])
  counts = np.bincount(train, minlength=len(vocabulary)) + 1
  bits = -np.log2(counts / counts.sum())

  text = texts['test'].encode()
  before = texts['train'].encode()[-(2**15) :]
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
