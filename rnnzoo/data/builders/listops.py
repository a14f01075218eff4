"""ListOps, generated: a TFDS builder that needs no TensorFlow, and its reader.

`listops_trees.py` draws the expressions. `listops_release.py` prepares those of
the Long Range Arena instead.
"""

from collections.abc import Iterator
import contextlib
import functools
import hashlib
import itertools
import json
import os
import pathlib
import shutil
import sys
from typing import Any

import numpy as np
from rnnzoo import errors
from rnnzoo.data.builders import chunks
from rnnzoo.data.builders import listops_trees
from rnnzoo.data.builders import records
import tensorflow_datasets as tfds
import tqdm

NAME = 'listops'
VERSION = '1.0.0'
SIZES = {'train': 96_000, 'validation': 2000, 'test': 2000}
# Raise it with every change of the expressions that a seed gives.
GENERATOR = 1
# Trees that are drawn for a chunk; about a thousand of them are kept.
TREES = 12_500
# Expressions in a record: a record for each would take seconds to read.
RECORD = 1000
# A worker takes seconds to start, and memory: by default there are no more.
MOST_WORKERS = 8
# Small trees, to try out programs.
FIXTURE_RULES = listops_trees.Rules(
    max_depth=3, max_args=4, above=4, below=25
)
FIXTURE_SIZES = {'train': 600, 'validation': 100, 'test': 100}


def features() -> tfds.features.FeaturesDict:
  """Returns the features of a record: expressions one after the other."""
  bytes_of = lambda dtype: tfds.features.Tensor(
      shape=(None,), dtype=dtype, encoding='bytes'
  )
  return tfds.features.FeaturesDict({
      'tokens': bytes_of(np.uint8),
      'lengths': bytes_of(np.int32),
      'labels': bytes_of(np.uint8),
  })


def to_records(
    rows: list[np.ndarray], labels: list[int]
) -> Iterator[tuple[int, dict[str, np.ndarray]]]:
  """Yields numbers and records of the tokens and the labels of a split."""
  for start in range(0, len(rows), RECORD):
    part = rows[start : start + RECORD]
    yield start, {
        'tokens': np.concatenate(part),
        'lengths': np.array([len(row) for row in part], np.int32),
        'labels': np.array(labels[start : start + RECORD], np.uint8),
    }


class ListOps(tfds.core.GeneratorBasedBuilder, skip_registration=True):
  """Records of up to 1,000 expressions, see `features`."""

  name = NAME
  VERSION = tfds.core.Version(VERSION)
  # What is generated, and with how many processes.
  seed = 0
  rules = listops_trees.Rules()
  sizes = SIZES
  trees = TREES
  workers = 1
  # Where chunks are kept until the data set is complete.
  chunk_dir = pathlib.Path('listops_chunks')

  def _info(self) -> tfds.core.DatasetInfo:
    return tfds.core.DatasetInfo(
        builder=self,
        description='Nested lists of operations on digits, and their values.',
        features=features(),
        homepage='https://arxiv.org/abs/2011.04006',
        disable_shuffling=True,  # They are in random order.
        metadata=tfds.core.MetadataDict(),
    )

  def _split_generators(self, dl_manager):
    del dl_manager
    rows, labels = self._draw()
    ends = list(itertools.accumulate(self.sizes.values(), initial=0))
    return {
        split: self._generate_examples(rows[start:end], labels[start:end])
        for split, (start, end) in zip(
            self.sizes, itertools.pairwise(ends), strict=True
        )
    }

  def _generate_examples(self, rows, labels):
    yield from to_records(rows, labels)

  def _draw(self):
    """Returns as many different expressions as needed, and their values."""
    wanted = sum(self.sizes.values())
    rows, labels, seen, drawn, kept = [], [], set(), 0, 0
    made = chunks.make(
        functools.partial(_chunk, self.seed, self.rules, self.trees),
        itertools.count(),
        self.chunk_dir,
        f'{GENERATOR} {self.seed} {self.rules} {self.trees}',
        self.workers,
    )
    bar = tqdm.tqdm(
        total=wanted, unit=' expressions', desc=NAME,
        mininterval=0.1 if sys.stderr.isatty() else 10,
    )
    with bar, contextlib.closing(made):
      for chunk in made:
        drawn, kept = drawn + self.trees, kept + len(chunk['labels'])
        parts = np.split(chunk['tokens'], np.cumsum(chunk['lengths']))[:-1]
        for row, label in zip(parts, chunk['labels'].tolist(), strict=True):
          digest = hashlib.blake2b(row.tobytes(), digest_size=16).digest()
          if digest not in seen:
            seen.add(digest)
            rows.append(row)
            labels.append(label)
        bar.update(min(len(rows), wanted) - bar.n)
        if len(rows) >= wanted:
          break
    metadata: Any = self.info.metadata
    metadata |= dict(
        seed=self.seed, generator=GENERATOR, trees_drawn=drawn, trees_kept=kept,
        different=len(rows),
    )
    return rows, labels


def _chunk(seed, rules, trees, number):
  """Returns the expressions of one chunk."""
  # Philox is a function of (key, counter), and the counter counts upwards from
  # its first word. So no two chunks share random numbers.
  counter = np.array([0, 0, 0, number], np.uint64)
  rng = np.random.Generator(np.random.Philox(
      key=np.array([seed, GENERATOR], np.uint64), counter=counter
  ))
  return listops_trees.sample(rng, trees, rules)._asdict()


def prepare(
    data_dir: pathlib.Path,
    manual_dir: pathlib.Path | None = None,
    *,
    seed: int = 0,
    workers: int = 0,
    builder_class: type[ListOps] = ListOps,
) -> pathlib.Path:
  """Generates the data set under `data_dir`, unless it is there already.

  After a stop, the same call goes on: chunks of about 1,000 expressions are
  kept beside the data set until it is complete.

  Args:
    data_dir: Where data sets lie; made if missing.
    manual_dir: Must be None: no files are read.
    seed: Decides all expressions.
    workers: The number of processes; 0 means one for each CPU core, up to 8.
    builder_class: The builder, which knows the rules.

  Returns:
    The directory of the data set.

  Raises:
    UserError: If it cannot be written, or is there with another seed.
  """
  if manual_dir is not None:
    raise errors.UserValueError(
        f'{NAME} is generated and takes no --manual_dir. The files of the Long '
        f'Range Arena make {NAME}_release.'
    )
  chunk_dir = data_dir / NAME / f'chunks_of_seed_{seed}'
  try:
    builder = builder_class(data_dir=data_dir, file_format='array_record')
    builder.seed = seed
    builder.workers = workers or min(os.cpu_count() or 1, MOST_WORKERS)
    builder.chunk_dir = chunk_dir
    directory = pathlib.Path(builder.data_dir)
    if (directory / 'metadata.json').exists():
      there = origin(data_dir).get('seed')
      if there != seed:
        raise errors.UserValueError(
            f'{directory} holds {NAME} of --seed={there}, not of '
            f'--seed={seed}. Move it away, or name another --data_dir.'
        )
    builder.download_and_prepare(
        download_config=tfds.download.DownloadConfig(
            num_shards=records.NUM_SHARDS
        )
    )
    shutil.rmtree(chunk_dir, ignore_errors=True)
  except OSError as error:
    raise errors.UserError(
        f'{NAME} could not be prepared in {data_dir}: '
        f'{records.first_line(error)}.'
    ) from error
  return directory


class _Fixture(ListOps, skip_registration=True):
  name = NAME
  rules = FIXTURE_RULES
  sizes = FIXTURE_SIZES
  trees = 8000


def prepare_fixture(data_dir: pathlib.Path):
  """Prepares expressions of 5 to 24 tokens."""
  with records.quiet():
    prepare(data_dir, workers=1, builder_class=_Fixture)


def joined(found: list[dict[str, Any]]) -> listops_trees.Expressions:
  """Returns the expressions of the records of a split."""
  return listops_trees.Expressions(*(
      np.concatenate([record[name] for record in found])
      for name in listops_trees.Expressions._fields
  ))


def read(data_dir: pathlib.Path) -> dict[str, listops_trees.Expressions]:
  """Returns the expressions of each split.

  Args:
    data_dir: Where data sets lie: the parent of `listops`.

  Raises:
    UserFileNotFoundError: If it was never prepared, saying how to.
    UserError: If its files cannot be read.
  """
  return records.read(
      data_dir, NAME, VERSION, SIZES, 'To generate it: {command}.',
      convert=joined,
  )


def origin(data_dir: pathlib.Path) -> dict[str, int]:
  """Returns the seed, and how many trees were drawn and kept.

  Raises:
    UserError: If the data set is not there, or damaged.
  """
  path = data_dir / NAME / VERSION / 'metadata.json'
  try:
    return json.loads(path.read_text())
  except (OSError, ValueError) as error:
    raise errors.UserError(
        f'{path} cannot be read: {records.first_line(error)}.'
    ) from error


def describe(data_dir: pathlib.Path) -> dict[str, str]:
  """Returns what each split holds, for people."""
  return summaries(read(data_dir))


def summaries(splits: dict[str, listops_trees.Expressions]) -> dict[str, str]:
  """Returns a line on the expressions of each split."""
  return {
      split: f'{len(found.labels):,} expressions of {found.lengths.min()} to '
      f'{found.lengths.max()} tokens'
      for split, found in splits.items()
  }
