"""ETTh1 and ETTh2: the temperature of two electricity transformers, hourly.

The files are those of https://github.com/zhouhaoyi/ETDataset (Zhou et al. 2021,
https://arxiv.org/abs/2012.07436): `ETTh1.csv` and `ETTh2.csv`, 17,420 hours of
seven columns. The protocol of the field is the default: 12, 4 and 4 months of
30 days for training, validation and test, all columns standardised by the train
part and forecast together; the errors are means over all windows, columns and
steps of the standardised values. What follows the 20 months is not used.
"""

import dataclasses
import pathlib
from typing import Any

from rnnzoo import errors
from rnnzoo import fields
from rnnzoo import filenames
from rnnzoo.data import definition
from rnnzoo.data import pipeline
from rnnzoo.data import settings
from rnnzoo.data.series import csv_file

NAME = 'ett'
FILES = ('ETTh1', 'ETTh2')
COLUMNS = ('HUFL', 'HULL', 'MUFL', 'MULL', 'LUFL', 'LULL', 'OT')
ROWS = 17_420
MONTH = 30 * 24


def load(config: Any, shard: pipeline.Shard, seed: int) -> pipeline.Dataset:
  """Returns the windows of `config.file`, see `windows.dataset`."""
  return csv_file.read(find(config), config, shard, seed, NAME)


def find(config: Any) -> pathlib.Path:
  """Returns the file of a config.

  Raises:
    UserFileNotFoundError: If it is neither `config.path` nor in that folder,
      or else in the data directory or its folder `ett`.
  """
  name = f'{config.file}.csv'
  places = []
  if config.path:
    path = pathlib.Path(filenames.absolute(config.path))
    places += [path, path / name]
  if not config.path or settings.is_fixture(config):
    directory = settings.data_directory(config)
    places += [directory / name, directory / NAME / name]
  for place in places:
    if place.is_file():
      return place
  raise errors.UserFileNotFoundError(
      f'There is no file {places[-1]}. https://github.com/zhouhaoyi/ETDataset '
      f'has {name}; data.path is the file or its folder.'
  )


def write_fixture(directory: pathlib.Path, config: Any):
  """Writes tables of the same size, see `Definition.write_fixture`."""
  del config
  settings.mark_fixture(directory)
  for name in FILES:
    csv_file.write_waves(directory / NAME / f'{name}.csv', COLUMNS, ROWS)


DEFINITION = definition.Definition(
    task='forecasting',
    fields=dict(
        csv_file.FIELDS,
        path=dataclasses.replace(
            csv_file.FIELDS['path'],
            help='The file, or its folder. If empty, it is in the data '
            'directory or in its folder ett.',
        ),
        file=fields.Field(
            str, choices=FILES, default='ETTh1', help='Which of the files.'
        ),
        parts=dataclasses.replace(
            csv_file.FIELDS['parts'],
            default=(12 * MONTH, 4 * MONTH, 4 * MONTH),
        ),
    ),
    load=load,
    write_fixture=write_fixture,
)
