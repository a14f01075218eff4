"""`load`: from the name in a config to a data set."""

import os
from typing import Any

from rnnzoo import errors
from rnnzoo import fields
from rnnzoo.data import mqar
from rnnzoo.data import pipeline
from rnnzoo.data import selective_copying
from rnnzoo.data import settings
from rnnzoo.data import text
from rnnzoo.data import vocabulary as vocabularies

LOADERS = {
    'mqar': mqar.load,
    'python_docs': text.load,
    'selective_copying': selective_copying.load,
    'text_file': text.load,
    'tiny_shakespeare': text.load,
}
# Of the part `data` of a config; no loader needs all of them.
FIELDS = dict(
    name=fields.Field(str),  # See `load`.
    data_dir=fields.Field(str),
    allow_changed=fields.Field(bool),  # See `training.starting`.
    path=fields.Field(str),
    level=fields.Field(str, choices=vocabularies.LEVELS),
    sequence_length=fields.Field(int, low=1),
    contiguous=fields.Field(bool),
    variant=fields.Field(str, choices=selective_copying.VARIANTS),
    num_tokens=fields.Field(int, low=1),
    vocab_size=fields.Field(int, low=1),
    num_pairs=fields.Field(int, low=1),
    power=fields.Field(float, low=-10, high=10),
    random_non_queries=fields.Field(bool),
    eval_examples=fields.Field(int, low=1),
)


def load(
    config: Any,
    *,
    batch_size: int,
    seed: int,
    process_index: int | tuple[int, ...] = 0,
    process_count: int = 1,
) -> pipeline.Dataset:
  """Returns the data set that `config` describes.

  Args:
    config: The `data` part of a config, as a mapping or an object: `name`,
      `data_dir` (see `settings.data_directory`), `sequence_length`, and the
      fields of the task, listed where they are loaded: `text.load`,
      `selective_copying.load`, `mqar.load`.
    batch_size: Rows of the global batch, over all processes.
    seed: Fixes the training batches; evaluation text does not depend on it.
    process_index: Which rows of each batch to give, see `pipeline.Shard`.
    process_count: Number of processes that share a batch.

  Raises:
    UserValueError: For an unknown name or a bad field; `UserFileNotFoundError`
      for data that is not there, saying how to get it; `UserError` for data
      that cannot be read.
  """
  for name, field in FIELDS.items():
    value = settings.field(config, name)
    if isinstance(value, os.PathLike):
      value = os.fspath(value)
    if value is not None:
      fields.check(f'data.{name}', value, field)
  name = settings.field(config, 'name', '')
  if name not in LOADERS:
    raise errors.UserValueError(
        f'There is no data set {name!r}; data.name must be one of '
        f'{", ".join(LOADERS)}.' + errors.suggest(str(name), LOADERS)
    )
  shard = pipeline.Shard(batch_size, process_index, process_count)
  return LOADERS[name](config, shard, seed)
