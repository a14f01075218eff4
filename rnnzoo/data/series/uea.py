"""Problems of the UEA archive (https://arxiv.org/abs/1811.00075).

A problem is read from one of two forms:

* `NAME_TRAIN.ts` and `NAME_TEST.ts`, the files of the archive, see ts_file.py.
  The test part is the official one; a fraction 0.15 / 0.85 of the official
  training part is for validation, always the same, with the same share of each
  class. BasicMotions and JapaneseVowels come with the package aeon; its files
  are found where it is installed, and it is not imported.
* `NAME.npz`, all series together with several random splits: `x` `[N, T, D]`,
  `y` `[N]`, and for each split `test_SEED` and `val_SEED`, the indices of these
  parts. The rest is for training. The papers on LinOSS and Log-NCDE use
  splits into 70, 15 and 15 % with the seeds 2345, 3456, 4567, 5678 and 6789. A
  file that lacks series gives a smaller training part than theirs.

The numbers are those of the archive: as in these papers, nothing is
standardised.
"""

from collections.abc import Mapping
import importlib.util
import pathlib
from typing import Any

import numpy as np
from rnnzoo import errors
from rnnzoo import fields
from rnnzoo import filenames
from rnnzoo.data import arrays
from rnnzoo.data import definition
from rnnzoo.data import npz_file
from rnnzoo.data import pipeline
from rnnzoo.data import settings
from rnnzoo.data.series import ts_file

NAME = 'uea'
SPLIT_SEEDS = (2345, 3456, 4567, 5678, 6789)
SHARES = (0.7, 0.15, 0.15)
IN_AEON = ('BasicMotions', 'JapaneseVowels')
# Channels and classes of the fixtures.
_NPZ_FIXTURES = {
    'EthanolConcentration': (2, 4),
    'SelfRegulationSCP1': (6, 2),
    'SelfRegulationSCP2': (7, 2),
}
_TS_FIXTURE = (3, 4)


def load(config: Any, shard: pipeline.Shard, seed: int) -> pipeline.Dataset:
  """Returns a problem as a data set, see `arrays.from_arrays`.

  Series of unequal lengths have an `input_mask`. With `config.time` the first
  channel of step t is `t / T`; `T` is the length of the longest series.

  Raises:
    UserError: If files are missing or damaged.
  """
  files = find(config)
  read = _published if files[0].suffix == '.npz' else _official
  x, y, class_names = read(files, config, seed)
  try:
    return arrays.from_arrays(
        with_time(x) if config.time else x,
        y,
        batch_size=shard.batch_size,
        seed=seed,
        splits=SHARES,
        task='classification',
        process_index=shard.process_index,
        process_count=shard.process_count,
        name=NAME,
        class_names=class_names,
    )
  except errors.UserValueError as error:
    raise errors.UserValueError(f'{files[0]}: {error}') from error


def find(config: Any) -> list[pathlib.Path]:
  """Returns the files of `config.problem`: one `.npz`, or two `.ts`.

  They are looked for in the folder `config.path`, or else in the folder `uea`
  of the data directory and in an installed aeon.

  Raises:
    UserFileNotFoundError: If they are not there.
    UserValueError: If `config.path` is a file of another problem.
  """
  problem = config.problem
  forms = [[f'{problem}.npz'], [f'{problem}_{u}.ts' for u in ('TRAIN', 'TEST')]]
  place = pathlib.Path(filenames.absolute(config.path or '.'))
  places = [place, place / problem] if config.path else []
  if config.path and place.is_file():
    forms = [form for form in forms if place.name in form]
    if not forms:
      raise errors.UserValueError(
          f'data.path is the file {place.name}, which is not of data.problem '
          f'{problem}: set both.'
      )
    places = [place.parent]
  if not config.path or settings.is_fixture(config):
    own = settings.data_directory(config) / NAME
    places += [own, own / problem]
  if not config.path:
    places += _aeon(problem)
  for place in places:
    for form in forms:
      files = [place / name for name in form]
      if all(file.is_file() for file in files):
        return files
  get = 'https://www.timeseriesclassification.com has the archive'
  if problem in IN_AEON:
    get = 'pip install --no-deps aeon brings them'
  raise errors.UserFileNotFoundError(
      f'There is no {problem}.npz and no {problem}_TRAIN.ts with '
      f'{problem}_TEST.ts in {places[0]}. {get}; data.path is their folder.'
  )


def _aeon(problem: str) -> list[pathlib.Path]:
  """Returns the folder of a problem in an installed aeon, without its import.

  The import takes seconds.
  """
  spec = importlib.util.find_spec('aeon')
  places = spec.submodule_search_locations if spec else None
  return [pathlib.Path(u, 'datasets', 'data', problem) for u in places or ()]


def _official(files, config, seed):
  """Returns the official parts of two `.ts` files, and the classes."""
  del seed  # The split is always the same.
  if config.split_seed:
    raise errors.UserValueError(
        f'data.split_seed chooses one of the splits of a .npz file; '
        f'{files[0].name} has the official split. Leave it at 0.'
    )
  train, test = map(ts_file.read, files)
  if train.class_names != test.class_names:
    raise errors.UserValueError(
        f'{files[0]} and {files[1].name} have different classes.'
    )
  return (
      dict(train=train.series, test=test.series),
      dict(train=train.labels, test=test.labels),
      train.class_names,
  )


def _published(files, config, seed):
  """Returns the parts of a split of a `.npz` file, and no classes."""
  [path] = files
  found = npz_file.read_arrays(path)
  seeds = sorted(
      int(name.removeprefix('test_')) for name in found
      if name.startswith('test_') and name[5:].isdecimal()
  )
  if not seeds or not {'x', 'y'} <= found.keys():
    raise errors.UserValueError(
        f'{path} must hold x, y, and test_SEED and val_SEED for each split; '
        f'it has {", ".join(found) or "no arrays"}.'
    )
  chosen = config.split_seed or seeds[seed % len(seeds)]
  if chosen not in seeds:
    raise errors.UserValueError(
        f'data.split_seed must be one of {", ".join(map(str, seeds))}, or 0, '
        f'got {chosen}.'
    )
  x, y = found['x'], found['y']
  if x.ndim != 3 or y.ndim != 1:
    raise errors.UserValueError(
        f'{path} must hold x [N, T, D] and y [N], got the shapes '
        f'{list(x.shape)} and {list(y.shape)}.'
    )
  index = {
      split: found.get(f'{name}_{chosen}', np.zeros(0))
      for split, name in (('validation', 'val'), ('test', 'test'))
  }
  together = np.concatenate([np.ravel(u) for u in index.values()])
  if (
      not all(
          u.size and u.ndim == 1 and u.dtype.kind in 'iu'
          for u in index.values()
      )
      or len(set(together.tolist())) < len(together)
      or not 0 <= together.min() <= together.max() < len(x) == len(y)
  ):
    raise errors.UserValueError(
        f'{path}: test_{chosen} and val_{chosen} must be different indices of '
        'x and y.'
    )
  index['train'] = np.setdiff1d(np.arange(len(x)), together)
  return (
      {split: x[u] for split, u in index.items()},
      {split: y[u] for split, u in index.items()},
      (),
  )


def with_time(x: Mapping[str, Any]) -> dict[str, list[np.ndarray]]:
  """Puts a channel of time before the others, from 0 to less than 1.

  >>> with_time(dict(train=[np.ones((2, 1)), np.ones((4, 1))]))['train'][0]
  array([[0.  , 1.  ],
         [0.25, 1.  ]])

  Args:
    x: By split, arrays `[T_n, D]`.

  Returns:
    By split, arrays `[T_n, 1 + D]`.
  """
  longest = max(len(u) for part in x.values() for u in part)
  time = np.arange(longest)[:, None] / longest
  return {
      split: [np.concatenate([time[: len(u)], u], axis=1) for u in part]
      for split, part in x.items()
  }


def write_fixture(directory: pathlib.Path, config: Any):
  """Writes small problems of both forms, see `Definition.write_fixture`."""
  settings.mark_fixture(directory)
  place = directory / NAME
  place.mkdir(parents=True, exist_ok=True)
  for problem, (channels, classes) in _NPZ_FIXTURES.items():
    _write_npz(place / f'{problem}.npz', channels, classes)
  asked = settings.field(config, 'problem', IN_AEON[0])
  for problem in {*IN_AEON, asked} - _NPZ_FIXTURES.keys():
    for part, count in (('TRAIN', 60), ('TEST', 40)):
      _write_ts(place / f'{problem}_{part}.ts', count)


def _write_npz(path, channels, classes):
  rng = np.random.default_rng(0)
  y = np.arange(100) % classes
  x = rng.normal(size=(100, 40, channels)) + y[:, None, None]
  splits = {}
  for seed in SPLIT_SEEDS:
    order = rng.permutation(100).astype(np.int32)
    splits |= {f'test_{seed}': order[:20], f'val_{seed}': order[20:40]}
  np.savez(
      path, x=x.astype(np.float32), y=y.astype(np.int32), **splits
  )


def _write_ts(path, count):
  rng = np.random.default_rng(count)
  channels, classes = _TS_FIXTURE
  lines = [
      '# Generated.', f'@problemName {path.stem.rpartition("_")[0]}',
      '@timeStamps false', '@missing true', '@univariate false',
      f'@dimensions {channels}', '@equalLength false',
      '@classLabel true ' + ' '.join(f'class{i}' for i in range(classes)),
      '@data',
  ]
  for number in range(count):
    label, length = number % classes, int(rng.integers(7, 21))
    values = rng.normal(size=(channels, length)) + label
    text = [[f'{u:.4f}' for u in row] for row in values]
    text[1][2] = '?'
    lines.append(':'.join([*map(','.join, text), f'class{label}']))
  path.write_text('\n'.join(lines) + '\n')


DEFINITION = definition.Definition(
    task='classification',
    fields=dict(
        problem=fields.Field(
            str, default='SelfRegulationSCP1',
            help='The name of the problem, as in the names of its files.',
        ),
        path=fields.Field(
            str, default='',
            help='The folder of NAME.npz or of NAME_TRAIN.ts and NAME_TEST.ts, '
            'or one of these files. If empty, it is uea in the data '
            'directory, or an installed aeon.',
        ),
        split_seed=fields.Field(
            int, low=0, default=0,
            help='The split of a .npz file, such as 2345. 0 means the one that '
            'goes with the seed of the run: the first for 0, and so on.',
        ),
        time=fields.Field(
            bool, default=True,
            help='Whether the first channel is the time, from 0 to 1.',
        ),
    ),
    load=load,
    write_fixture=write_fixture,
)
