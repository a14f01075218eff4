"""`load`: from the name in a config to a data set."""

from collections.abc import Mapping
import dataclasses
from typing import Any

from rnnzoo import errors
from rnnzoo import fields
from rnnzoo.data import definition as definitions
from rnnzoo.data import npz_file
from rnnzoo.data import pipeline
from rnnzoo.data import settings
from rnnzoo.data.audio import speech_commands
from rnnzoo.data.control import d4rl
from rnnzoo.data.control import trajectories
from rnnzoo.data.events import events_csv
from rnnzoo.data.events import hawkes
from rnnzoo.data.images import cifar10
from rnnzoo.data.images import digits
from rnnzoo.data.images import moving_mnist
from rnnzoo.data.images import pathfinder
from rnnzoo.data.images import smnist
from rnnzoo.data.series import csv_file
from rnnzoo.data.series import ett
from rnnzoo.data.series import uea
from rnnzoo.data.synthetic import adding
from rnnzoo.data.synthetic import copying
from rnnzoo.data.synthetic import formal_language
from rnnzoo.data.synthetic import group_word
from rnnzoo.data.synthetic import induction_heads
from rnnzoo.data.synthetic import mad
from rnnzoo.data.synthetic import mqar
from rnnzoo.data.synthetic import needle
from rnnzoo.data.synthetic import passkey
from rnnzoo.data.synthetic import regbench
from rnnzoo.data.synthetic import selective_copying
from rnnzoo.data.text import aan
from rnnzoo.data.text import imdb
from rnnzoo.data.text import listops
from rnnzoo.data.text import python_docs
from rnnzoo.data.text import text_file
from rnnzoo.data.text import tiny_shakespeare
from rnnzoo.data.text import wikipedia

# A new data set is one file, and one line here.
DATASETS = {
    'aan': aan.DEFINITION,
    'adding': adding.DEFINITION,
    'cifar10': cifar10.DEFINITION,
    'copying': copying.DEFINITION,
    'csv_file': csv_file.DEFINITION,
    'd4rl': d4rl.DEFINITION,
    'digits': digits.DEFINITION,
    'enwik8': wikipedia.ENWIK8,
    'ett': ett.DEFINITION,
    'events_csv': events_csv.DEFINITION,
    'formal_language': formal_language.DEFINITION,
    'group_word': group_word.DEFINITION,
    'hawkes': hawkes.DEFINITION,
    'imdb': imdb.DEFINITION,
    'induction_heads': induction_heads.DEFINITION,
    'listops': listops.DEFINITION,
    'mad': mad.DEFINITION,
    'moving_mnist': moving_mnist.DEFINITION,
    'mqar': mqar.DEFINITION,
    'needle': needle.DEFINITION,
    'npz_file': npz_file.DEFINITION,
    'passkey': passkey.DEFINITION,
    'pathfinder': pathfinder.DEFINITION,
    'python_docs': python_docs.DEFINITION,
    'regbench': regbench.DEFINITION,
    'selective_copying': selective_copying.DEFINITION,
    'smnist': smnist.DEFINITION,
    'speech_commands': speech_commands.DEFINITION,
    'text8': wikipedia.TEXT8,
    'text_file': text_file.DEFINITION,
    'tiny_shakespeare': tiny_shakespeare.DEFINITION,
    'trajectories': trajectories.DEFINITION,
    'uea': uea.DEFINITION,
}


def find(
    name: str, datasets: Mapping[str, definitions.Definition] | None = None
) -> definitions.Definition:
  """Returns the definition of a data set.

  >>> find('mqar').task
  'language_modelling'

  Args:
    name: A key of `DATASETS` or of `datasets`.
    datasets: More definitions by name; they come before those of the zoo.

  Raises:
    UserValueError: If there is no such data set.
  """
  known = {**DATASETS, **(datasets or {})}
  fields.check('data.name', name, definitions.COMMON['name'])
  if name not in known:
    raise errors.UserValueError(
        f'There is no data set {name!r}; data.name must be one of '
        f'{", ".join(known)}.' + errors.suggest(name, known)
    )
  return known[name]


def load(
    config: Any,
    *,
    batch_size: int,
    seed: int,
    process_index: int | tuple[int, ...] = 0,
    process_count: int = 1,
    datasets: Mapping[str, definitions.Definition] | None = None,
) -> pipeline.Dataset:
  """Returns the data set that `config` describes.

  >>> config = dict(name='mqar', sequence_length=16, num_pairs=2)
  >>> load(config, batch_size=4, seed=0).train_batch(1)['inputs'].shape
  (4, 16)

  Args:
    config: The `data` part of a config, as a mapping or an object: `name`,
      `data_dir` (see `settings.data_directory`), and the fields of the data
      set. A field that is missing or `None` has its default.
    batch_size: Rows of the global batch, over all processes.
    seed: Fixes the training batches; evaluation batches of real data do not
      depend on it, but for the splits of `uea` that go with the seed.
    process_index: Which rows of each batch to give, see `pipeline.Shard`.
    process_count: Number of processes that share a batch.
    datasets: More definitions by name.

  Raises:
    UserValueError: For an unknown name, an unknown field or a bad value;
      `UserFileNotFoundError` for missing data, with the way to get it;
      `UserError` for data that cannot be read.
  """
  name = settings.field(config, 'name', '')
  definition = find(name, datasets)
  values = definition.checked(name, config)
  shard = pipeline.Shard(batch_size, process_index, process_count)
  dataset = definition.load(values, shard, pipeline.check_seed(seed))
  if not isinstance(dataset, pipeline.Dataset):
    raise errors.UserValueError(
        f'`load` of the data set {name} must return a rnnzoo.data.Dataset, got '
        f'{fields.shown(dataset)}.'
    )
  fixture = bool(definition.write_fixture) and settings.is_fixture(values)
  return dataclasses.replace(dataset, fixture=fixture, config=vars(values))
