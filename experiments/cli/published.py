"""The numbers that others have published, as config files state them.

A config file may define `PUBLISHED`, a list of dictionaries:

  PUBLISHED = [
      dict(layer='min_gru', split='test', metric='loss', value=1.548,
           error=None, source='https://arxiv.org/abs/2410.01201, table 3'),
  ]

`layer` is the argument of the config file, `FILE:min_gru`. It is the layer of
the model where the run was started without an argument.

`error` is what the source gives beside its value, `None` if it gives nothing.
An accuracy is a fraction, at most 1.

`where` holds the fields of the data or the model that differ from the config
file, such as `{'data.horizon': 192}`; none if it is missing.
"""

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from experiments.cli import config_flag
from rnnzoo import errors
from rnnzoo import fields

_FIELDS = dict(
    layer=fields.Field(str),
    metric=fields.Field(str),
    value=fields.Field(float),
    error=fields.Field(float, low=0, optional=True),
    split=fields.Field(str),
    source=fields.Field(str),
    where=fields.Field(dict),
)

# Fields of the model and of the data that do not make them others.
_SAME_NUMBERS = (
    'data.data_dir', 'data.path', 'model.dtype', 'model.remat',
    'model.scan_layers',
)


class Number(NamedTuple):
  """A published number.

  Attributes:
    layer: The argument of the config file; or else the layer of the model.
    metric: Such as `loss` or `accuracy`, in the units of the task.
    value: The number.
    error: Its error as published, or `None`.
    split: The part of the data, such as `test`.
    source: Where it was published.
    where: Pairs of a field that differs from the config file, and its value as
      text.
  """

  layer: str
  metric: str
  value: float
  error: float | None
  split: str
  source: str
  where: tuple[tuple[str, str], ...] = ()


def of_file(path: str) -> list[Number]:
  """Returns the published numbers of a config file; none if it has none.

  Raises:
    UserError: If the file cannot be run, or its `PUBLISHED` is wrong.
  """
  rows = getattr(config_flag.load_module(path), 'PUBLISHED', ())
  if not isinstance(rows, list | tuple):
    raise errors.UserValueError(
        f'PUBLISHED of {path} must be a list of dictionaries, got '
        f'{fields.shown(rows)}.'
    )
  return [_number(row, f'PUBLISHED[{i}] of {path}') for i, row in
          enumerate(rows)]


def _number(row: Any, name: str) -> Number:
  fields.check(name, row, fields.Field(dict))
  row = dict(error=None, where={}) | row
  if row.keys() != _FIELDS.keys():
    wrong = sorted(row.keys() ^ _FIELDS.keys())
    raise errors.UserValueError(
        f'{name} must have the fields {", ".join(_FIELDS)}, and no others: '
        f'see {", ".join(wrong)}.'
    )
  for field, description in _FIELDS.items():
    fields.check(f'{name}: {field}', row[field], description)
  if row['metric'] == 'accuracy':
    fields.check(f'{name}: value', row['value'], fields.Field(float, 0, 1))
  where = sorted((name, text(value)) for name, value in row['where'].items())
  return Number(**row | dict(where=tuple(where)))


def text(value: Any) -> str:
  """Returns the value of a field as results record it.

  >>> text(192), text('ETTh2')
  ('192', 'ETTh2')
  """
  return value if isinstance(value, str) else repr(value)


def name_of(
    argument: str, layer: str, overrides: Iterable[str]
) -> str:
  """Returns what numbers and reports call the model of a run.

  >>> name_of('lru_ring', 'lru', {}), name_of('', 'lru', {})
  ('lru_ring', 'lru')
  >>> name_of('lru_ring', 'gru', {'model.layer': 'gru'})
  'gru'

  Args:
    argument: That of the config file, '' for none.
    layer: The layer of the model.
    overrides: The fields that the command line set.
  """
  chosen = not {'model.layer', 'preset'}.isdisjoint(overrides)
  return layer if chosen or not argument else argument


def find(
    numbers: Iterable[Number],
    layer: str,
    overrides: Mapping[str, str],
    values: Mapping[str, Mapping[str, float]],
) -> list[Number]:
  """Returns the published numbers that a run stands beside.

  They are about the model and the data of the config file, changed by `where`:
  there are none for a run that changes these otherwise, beyond how they are
  computed, or that trains for another number of steps. `--config.model.layer`
  changes the model, as it leaves out what `FILE:LAYER` sets beside the layer.

  Args:
    numbers: The numbers of the run's config file.
    layer: What `name_of` returns.
    overrides: The fields that the run changes, and their values as text.
    values: What the run has measured, by split and metric.
  """
  changes = {
      name: value for name, value in overrides.items()
      if name.startswith(('model.', 'data.')) and name not in _SAME_NUMBERS
      or name in ('preset', 'task', 'total_steps', 'init_from', 'smoke')
  }
  return [
      number for number in numbers
      if number.layer == layer and dict(number.where) == changes
      and number.metric in values.get(number.split, {})
  ]
