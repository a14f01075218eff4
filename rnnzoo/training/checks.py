"""Checks that a resumed run has the config, the data and the code of before."""

import hashlib
import json
import pathlib
from typing import Any

import jax
from rnnzoo import errors
from rnnzoo import filenames
from rnnzoo.training import files
from rnnzoo.training import records

# What may differ between a run and its continuation.
FREE_FIELDS = (
    'mesh', 'whole_axes', 'log_every', 'eval_every', 'save_every', 'keep',
    'tensorboard', 'data.data_dir', 'data.allow_changed',
    'data.test_lengths', 'data.test_examples', 'profile_steps', 'loss_chunk',
    'smoke_overrides', 'stop_at', 'patience', 'on_nan', 'nan_limit',
    'nan_rate_factor',
)
# Names of files: two that mean the same file are equal.
PATH_FIELDS = ('data.path', 'data.tokenizer', 'init_from')


def open_workdir(workdir, config, defaults: dict[str, Any]) -> pathlib.Path:
  """Makes the workdir, or checks that it belongs to a run of this config.

  Args:
    workdir: The directory.
    config: The config, a `ConfigDict`; it is written to `config.json`.
    defaults: The default of every field. The config of an older run may lack
      some fields.

  Raises:
    UserValueError: If the workdir belongs to another config.
  """
  workdir = files.workdir(workdir)
  path = workdir / 'config.json'
  new = json.dumps(json.loads(config.to_json()), indent=2, sort_keys=True)
  with files.usable(workdir):
    workdir.mkdir(parents=True, exist_ok=True)
    old = path.read_bytes() if path.is_file() else None
    # Without a checkpoint, there is nothing that another config could damage.
    checkpoints = [p.name for p in workdir.glob('checkpoints/*')]
    if old is not None and any(name.isdecimal() for name in checkpoints):
      now = json.loads(new)
      then = records.read_config(path, now)
      then = filled_up(then, now, defaults)
      if 'data' in now:  # Older configs held the fields of all data sets.
        then['data'] = {
            name: value for name, value in then['data'].items()
            if name in now['data']
        }
      check_same_config(then, now)
    if old != (new + '\n').encode() and jax.process_index() == 0:
      files.write_text(path, new + '\n')
  return workdir


def filled_up(old, new, defaults):
  """Returns `old` with the default of each field that only `new` has.

  Args:
    old: The config of an older run, nested dictionaries.
    new: The config of now.
    defaults: The default of every field.
  """
  filled = dict(old)
  for name in new.keys() & defaults.keys():
    if isinstance(defaults[name], dict) and not name.endswith('options'):
      filled[name] = filled_up(old.get(name, {}), new[name], defaults[name])
    elif name not in old:
      filled[name] = defaults[name]
  return filled


def check_vocabulary(now, then, where='the checkpoint'):
  """Raises `UserValueError` if the vocabulary has changed."""
  if now == then:
    return
  levels = [(v or {}).get('level') for v in (now, then)]
  if levels != ['char', 'char']:
    raise errors.UserValueError(
        f'The text and the model of {where} have different vocabularies: '
        f'{_vocabulary_shown(now)} now, {_vocabulary_shown(then)} there. Use '
        'the data.level, the text and the tokenizer.json (data.tokenizer) of '
        'that run.'
    )
  symbols = [set(v.get('symbols', '')) for v in (now, then)]
  only = [''.join(sorted(a - b))[:10] for a, b in (symbols, symbols[::-1])]
  raise errors.UserValueError(
      f'The text and the model of {where} have different vocabularies: only '
      f'the text has {only[0]!r}, only the model {only[1]!r}. With '
      'data.level=byte all texts have the same.'
  )


def check_kind(now, then):
  """Raises `UserValueError` if a run was of another kind of task.

  Args:
    now: What the run records in its checkpoints, see `loop.make_meta`.
    then: The same in the checkpoint.
  """
  # Checkpoints from before there were kinds are of language models.
  kinds = [meta.get('task', 'language_modelling') for meta in (now, then)]
  if kinds[0] != kinds[1]:
    raise errors.UserValueError(
        f'The kind of task is {kinds[0]}, but the checkpoint is of a run of '
        f'{kinds[1]}. Use another workdir.'
    )


def _vocabulary_shown(vocabulary) -> str:
  if not vocabulary:
    return 'no text'
  level, symbols = vocabulary.get('level'), vocabulary.get('symbols', '')
  digest = hashlib.sha256(str(symbols).encode('utf-8', 'replace')).hexdigest()
  return f'{level} {digest[:8]}' if symbols else str(level)


def check_data(now, then, allow: str, allowed: bool) -> bool:
  """Returns whether the data of a run has changed.

  Args:
    now: `data.Dataset.source`, or `None`.
    then: The `source` in the checkpoint; `None` in old checkpoints.
    allow: What else to do than to restore the old data, for the message.
    allowed: Whether a change is allowed.

  Raises:
    UserValueError: If the data has changed and a change is not allowed.
  """
  if not then or not now or now == then:
    return False
  if allowed:
    return True
  old, new = _flatten(then), _flatten(now)
  changes = [
      f'{name} {old.get(name)} there, {new.get(name)} now'
      for name in sorted(old.keys() | new.keys())
      if old.get(name) != new.get(name) and name != 'sha256'
  ]
  raise errors.UserValueError(
      'The data is not what the checkpoint was trained on: '
      + ('; '.join(changes) or 'of the same length, with another digest')
      + f'. Restore the old data, or {allow}.'
  )


def check_same_config(
    old: dict[str, Any],
    new: dict[str, Any],
    free: tuple[str, ...] = FREE_FIELDS,
):
  """Raises `UserValueError` if a run of `old` cannot continue with `new`.

  Args:
    old: The config of the run.
    new: That of now.
    free: The fields that may differ.
  """
  if new.get('optimizer', {}).get('schedule') == 'constant':
    free += ('total_steps',)
  old, new = _flatten(old), _flatten(new)
  is_free = lambda name: any(
      name == f or name.startswith(f + '.') for f in free
  )
  changes = [
      f'{name}: {old.get(name)!r} there, {new.get(name)!r} now'
      for name in sorted(old.keys() | new.keys())
      if not (_same(name, old.get(name), new.get(name)) or is_free(name))
  ]
  if changes:
    advice = 'Use another workdir, or the old values.'
    if 'optimizer.schedule' in new and 'total_steps' not in free and any(
        change.startswith('total_steps:') for change in changes
    ):
      advice += (
          ' total_steps can change only under optimizer.schedule=constant, as '
          'the other schedules end there. To train on, start in a new workdir '
          'with init_from set to this one.'
      )
    raise errors.UserValueError(
        'The workdir belongs to a run of another config: '
        f'{"; ".join(changes)}. {advice}'
    )


def _same(name, old, new):
  """Returns whether two values of a field mean the same."""
  if name in PATH_FIELDS and isinstance(old, str) and isinstance(new, str):
    return filenames.same(old, new)
  return old == new


def _flatten(tree, prefix=''):
  flat = {}
  for key, value in tree.items():
    if isinstance(value, dict):
      flat |= _flatten(value, f'{prefix}{key}.')
    else:
      flat[prefix + key] = list(value) if isinstance(value, tuple) else value
  return flat
