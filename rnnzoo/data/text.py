"""Language modelling on plain text, by characters or bytes."""

from collections.abc import Mapping
import functools
import gzip
import hashlib
import pathlib
from typing import Any
import zlib

from absl import logging
import grain
import numpy as np
from rnnzoo import errors
from rnnzoo import filenames
from rnnzoo.data import pipeline
from rnnzoo.data import settings
from rnnzoo.data import vocabulary as vocabularies

SPLITS = ('train', 'validation', 'test')


def split_text(text: str) -> dict[str, str]:
  """Cuts a text into 90 % train, 5 % validation, 5 % test, in this order."""
  first = int(len(text) * 0.9)
  second = first + int((len(text) - first) * 0.5)
  pieces = text[:first], text[first:second], text[second:]
  return dict(zip(SPLITS, pieces, strict=True))


def read_python_docs(config: Any) -> dict[str, str]:
  """Returns the language reference that `help()` shows, topics in order.

  Paragraphs that come again are left out: topics repeat each other's sections
  (a fifth of all), and the held out text would in part be training text.
  The text differs a little from one Python version to the next.
  """
  del config
  try:
    from pydoc_data import topics  # Some minimal Pythons leave it out.
  except ImportError as error:
    raise errors.UserFileNotFoundError(
        'python_docs is the text of the standard module pydoc_data.topics, '
        'which this Python lacks; use data.name=text_file with a text of '
        'your own.'
    ) from error
  text = '\n\n'.join(topics.topics[name] for name in sorted(topics.topics))
  return split_text('\n\n'.join(dict.fromkeys(text.split('\n\n'))))


def read_tiny_shakespeare(config: Any) -> dict[str, str]:
  """Returns the three splits of TFDS's `tiny_shakespeare` 1.0.0."""
  # TFDS is slow to load, and nothing else here needs it.
  from rnnzoo.data.builders import tiny_shakespeare

  return tiny_shakespeare.read(settings.data_directory(config))


def read_text_file(config: Any) -> dict[str, str]:
  """Returns the UTF-8 text in the file `config.path`, cut in three."""
  name = settings.field(config, 'path', '')
  if not name:
    raise errors.UserValueError(
        'data.name=text_file needs data.path, the name of a UTF-8 text file.'
    )
  path = pathlib.Path(filenames.absolute(name))
  try:
    return split_text(path.read_bytes().decode('utf-8-sig'))
  except FileNotFoundError as error:
    raise errors.UserFileNotFoundError(
        f'There is no file {path} (data.path).'
    ) from error
  except UnicodeDecodeError as error:
    raise errors.UserValueError(
        f'{path} (data.path) is not UTF-8 text: {error.reason} at byte '
        f'{error.start}.'
    ) from error
  except OSError as error:
    raise errors.UserError(
        f'{path} (data.path) cannot be read: {error.strerror}.'
    ) from error


READERS = {
    'python_docs': read_python_docs,
    'text_file': read_text_file,
    'tiny_shakespeare': read_tiny_shakespeare,
}


def load(config: Any, shard: pipeline.Shard, seed: int) -> pipeline.Dataset:
  """Returns a text as a `Dataset`.

  Training rows are windows of `sequence_length + 1` tokens at all offsets of
  the train split: each epoch takes every offset once, in an order of its own.
  With `contiguous`, row r reads on where row r of the step before stopped (for
  a carry kept across steps), and `reset` marks where it starts anew.

  Evaluation rows are windows side by side, so each token of a split but its
  first is a target once.

  Args:
    config: `name` (a key of `READERS`), `sequence_length` (256), `level`
      (`'char'` or `'byte'`), `contiguous` (False), `data_dir`, and for
      `text_file` the `path`. The characters are those of the whole text, held
      out parts included, as in nanoGPT: 65 for `tiny_shakespeare`. A byte order
      mark at the start of a file is dropped.
    shard: The rows of this process.
    seed: Fixes the order of the training windows.

  Raises:
    UserError: See `loading.load`.
  """
  name = settings.field(config, 'name')
  length = settings.field(config, 'sequence_length', 256)
  level = settings.field(config, 'level', 'char')
  texts = READERS[name](config)
  if level == 'byte':
    vocabulary = vocabularies.Vocabulary('byte')
  else:
    vocabulary = vocabularies.Vocabulary.of_text(''.join(texts.values()))
  # Kept as small as may be: a byte a token up to 256 symbols.
  small = np.min_scalar_type(max(0, len(vocabulary) - 1))
  tokens = {
      split: vocabulary.encode(text).astype(small)
      for split, text in texts.items()
  }
  check_lengths(name, tokens, length)
  warn_of_little(name, tokens, length, shard.batch_size)

  evaluated = {split: tokens[split] for split in ('validation', 'test')}
  if name == 'tiny_shakespeare':
    # nanoGPT's held out tenth, which TFDS cuts in two.
    evaluated['nanogpt_validation'] = np.concatenate(list(evaluated.values()))
  if settings.field(config, 'contiguous', False):
    train = stream_batches(tokens['train'], length, shard, seed)
  else:
    train = window_batches(tokens['train'], length, shard, seed)
  return pipeline.Dataset(
      name=name,
      task='language_modelling',
      vocab_size=len(vocabulary),
      sequence_length=length,
      vocabulary=vocabulary,
      train=train,
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
  """Raises `UserValueError` if a split holds too little to be used."""
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
  """Returns the tokens at `positions` `[b, T]` and those after them, int32."""
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

  The text is cut into `B` streams of equal length, one a row. A stream holds
  `K` windows and up to `length - 1` tokens too many; each epoch leaves out
  others of these, at its ends. Steps 1, K + 1, 2 K + 1, ... start it anew.

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
  # gzip's algorithm without gzip's header, since the header of the train split
  # would serve both.
  deflate = zlib.compressobj(9, wbits=-15, zdict=before)
  added = len(deflate.compress(text) + deflate.flush())
  return {
      'unigram_bits': float(bits[test].mean()),
      'gzip_bits': 8 * min(gzip_size(text), added) / len(test),
  }


def gzip_size(text: bytes) -> int:
  """Returns the size of `gzip -9` of `text` in bytes."""
  return len(gzip.compress(text, compresslevel=9, mtime=0))
