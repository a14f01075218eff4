"""Reads the records in a workdir, any of which may be damaged or edited.

A bad disk, a crash or an editor can leave anything in a file. The functions
here check the types of each record, and their errors say what is wrong.
"""

import json
import pathlib
from typing import Any

from absl import logging
from rnnzoo import errors
from rnnzoo import fields

# More than any record of a run has, and far below Python's recursion limit.
_MAX_DEPTH = 50
# No step and no measurement is larger, but integers in JSON have no limit.
_MAX_STEP, _MAX_NUMBER = 2**63, 1e300

# What `meta` of a checkpoint of `experiments.train` may hold.
_META: dict[str, Any] = dict(
    config=dict, model=dict, vocabulary=(dict, type(None)), layers=dict,
    history=dict,
)
# Numbers in every summary, and in those of runs on data, unlike those of PPO.
_SUMMARY = ('best_step', 'parameters', 'seconds')
_SUMMARY_ON_DATA = ('best_eval_loss', 'test_loss')


def parse(data: bytes) -> Any:
  """Returns the value of a JSON text.

  Raises:
    ValueError: If it is not JSON, or nested too deeply; the message is short.
  """
  try:
    value = json.loads(data.decode())
  except UnicodeDecodeError as error:
    raise ValueError(
        f'not JSON: invalid UTF-8 at byte {error.start}'
    ) from error
  except json.JSONDecodeError as error:
    raise ValueError(
        f'not JSON: {error.msg} at line {error.lineno}, column {error.colno}'
    ) from error
  except ValueError as error:  # It has an integer of thousands of digits.
    raise ValueError(f'not JSON: {error}') from error
  except RecursionError as error:
    raise ValueError('nested too deeply') from error
  level = [value]
  for _ in range(_MAX_DEPTH):
    level = [child for parent in level for child in _children(parent)]
    if not level:
      return value
  raise ValueError('nested too deeply')


def check_tree(found: Any, like: dict[str, Any], name: str = '') -> None:
  """Raises `ValueError` unless `found` has dictionaries wherever `like` has.

  Args:
    found: The value that was read; it may lack fields.
    like: A record of the right form.
    name: The name of this field; '' for the whole record.
  """
  if not isinstance(found, dict):
    raise ValueError(
        f'damaged: {name or "it"} must be a dictionary, got '
        f'{fields.shown(found)}'
    )
  for key in like.keys() & found.keys():
    if isinstance(like[key], dict):
      check_tree(found[key], like[key], f'{name}.{key}'.lstrip('.'))


def read_config(path: pathlib.Path, like: dict[str, Any]) -> dict[str, Any]:
  """Reads `config.json`.

  Args:
    path: The file, which exists.
    like: The config of the run that continues.

  Raises:
    UserValueError: If the file is damaged; the message says that the run does
      not need it.
  """
  try:
    config = parse(path.read_bytes())
    check_tree(config, like)
  except ValueError as error:
    raise errors.UserValueError(
        f'{path} is {error}. Remove it: the run goes on without it.'
    ) from error
  return config


def read_summary(path: pathlib.Path) -> dict[str, Any] | None:
  """Reads `summary.json`; `None` if there is none, or a damaged one.

  Raises:
    UserError: If the system cannot read it.
  """
  try:
    summary = parse(path.read_bytes())
    check_tree(summary, {})
    results = [n for n in summary if n.startswith(('best_', 'test_'))]
    on_data = summary.get('task') != 'ppo'
    wanted = [*_SUMMARY, *_SUMMARY_ON_DATA * on_data]
    for name in sorted({*wanted, *results}):
      # On a split that training never used, a model's loss may be NaN.
      finite = not name.startswith('test_')
      if not is_number(summary.get(name), finite):
        raise ValueError(
            f'damaged: {name} must be a number, got '
            f'{fields.shown(summary.get(name))}'
        )
  except FileNotFoundError:
    return None
  except OSError as error:
    raise errors.UserError(
        f'Cannot read {path}: {error.strerror}. Remove it: the run goes on '
        'without it.'
    ) from error
  except ValueError as error:
    logging.warning('%s is %s. It is written again.', path, error)
    return None
  return summary


def parse_metrics(data: bytes) -> list[tuple[bytes, dict[str, Any]]]:
  """Returns the sound lines of `metrics.jsonl` and what they hold."""
  lines = []
  for line in data.splitlines(keepends=True):
    try:
      row = parse(line)
    except ValueError:
      continue
    if line.endswith(b'\n') and _is_row(row):
      lines.append((line, row))
  return lines


def numbers(rows: list[dict[str, Any]], name: str) -> list[tuple[int, float]]:
  """Returns `(step, value)` of each row where a metric is a finite number."""
  return [(row['step'], row[name]) for row in rows if is_number(row.get(name))]


def title(workdir: pathlib.Path) -> dict[str, Any]:
  """Returns what a run's files say of it.

  It is `layer`, `data`, `parameters` and `sequence_length`, as far as they name
  them. The data of a run of reinforcement learning is its environment.
  """
  config = _read_dictionary(workdir / 'config.json')
  summary = _read_dictionary(workdir / 'summary.json')
  model, data, environment = (
      config[name] if isinstance(config.get(name), dict) else {}
      for name in ('model', 'data', 'environment')
  )
  # A summary has them too: somebody may have kept it without the config.
  found = dict(
      layer=model.get('layer') or summary.get('model.layer'),
      data=(
          data.get('name') or environment.get('name')
          or summary.get('data.name')
      ),
      parameters=summary.get('parameters'),
      sequence_length=data.get('sequence_length'),
  )
  kinds = dict(layer=str, data=str, parameters=int, sequence_length=int)
  return {n: v for n, v in found.items() if isinstance(v, kinds[n])}


def parse_checkpoint(data: bytes) -> dict[str, Any]:
  """Returns the record of a checkpoint, see the package `checkpoint`.

  Raises:
    ValueError: If it is not such a record; the message is short.
  """
  record = parse(data)
  check_tree(record, dict(meta={}, leaves={}))
  types: dict[str, type] = dict(
      format=int, step=int, meta=dict, leaves=dict, sha256=str
  )
  for name, kind in types.items():
    if not isinstance(record.get(name), kind):
      raise ValueError(f'damaged: {name} is {fields.shown(record.get(name))}')
  if not (record.get('metric') is None or is_number(record['metric'])):
    raise ValueError(f'damaged: metric is {fields.shown(record["metric"])}')
  for name, leaf in record['leaves'].items():
    check_tree(leaf, {}, name)
    if not (
        isinstance(leaf.get('dtype'), str)
        and isinstance(leaf.get('digest'), str)
        and isinstance(leaf.get('shape'), list)
    ):
      raise ValueError(f'damaged: {name} is {fields.shown(leaf)}')
  return record


def check_meta(meta: dict[str, Any], names, where: str) -> None:
  """Raises `UserValueError` unless training has written a checkpoint's `meta`.

  Args:
    meta: As `Checkpointer.restore` returns it.
    names: The entries that it must have.
    where: The name of the checkpoint, for the error.
  """
  for name in names:
    if name not in meta:
      raise errors.UserValueError(
          f'{where} was not written by experiments.train: its `meta` lacks '
          f'{name!r}.'
      )
  for name, kinds in _META.items():
    if name in meta and not isinstance(meta[name], kinds):
      raise errors.UserValueError(
          f'{where} was not written by experiments.train: {name!r} of its '
          f'`meta` must be a dictionary, got {fields.shown(meta[name])}.'
      )


def _children(value):
  if isinstance(value, dict):
    return value.values()
  return value if isinstance(value, list) else ()


def is_number(value: Any, finite: bool = True) -> bool:
  """Returns whether a value of a record is a number and not a boolean."""
  return (
      isinstance(value, int | float)  # JSON has no others.
      and not isinstance(value, bool)
      and (not finite or -_MAX_NUMBER < value < _MAX_NUMBER)
  )


def _is_row(row) -> bool:
  if not isinstance(row, dict):
    return False
  step = row.get('step')
  return (
      isinstance(step, int)
      and not isinstance(step, bool)
      and 0 <= step < _MAX_STEP
      and is_number(row.get('wall_time'))
  )


def _read_dictionary(path):
  try:
    value = parse(path.read_bytes())
  except (OSError, ValueError):
    return {}
  return value if isinstance(value, dict) else {}
