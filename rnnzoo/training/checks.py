"""What a config must satisfy, and what a run may change when it goes on."""

import functools
from typing import Any

from rnnzoo import errors
from rnnzoo import fields
from rnnzoo import filenames
from rnnzoo.training import optimizers
from rnnzoo.training import recovery

# What may differ between a run and its continuation.
FREE_FIELDS = (
    'mesh', 'whole_axes', 'log_every', 'eval_every', 'save_every', 'keep',
    'tensorboard', 'data.data_dir', 'data.allow_changed', 'profile_steps',
    'loss_chunk', 'on_nan', 'nan_limit', 'nan_rate_factor',
)
# Names of files: two that mean the same file are equal.
PATH_FIELDS = ('data.path', 'init_from')


_COUNT = fields.Field(int, low=1)
_BOOL = fields.Field(bool)
_AXIS = fields.Field(int, low=-1)  # See `sharding.make_mesh`, too.
# Of a config, but for what models, data and optimisers read.
FIELDS = {
    # Both NumPy and JAX take these.
    'seed': fields.Field(int, low=0, high=2**32 - 1),
    'total_steps': _COUNT,
    'batch_size': _COUNT,
    'log_every': _COUNT,
    'eval_every': _COUNT,
    'save_every': _COUNT,
    'keep': _COUNT,
    'eval_splits': fields.Field(tuple),
    'accumulate_steps': _COUNT,
    'steps_per_dispatch': _COUNT,
    'loss_chunk': fields.Field(int, low=-1),
    'stateful': _BOOL,
    'ema_decay': fields.Field(float, low=0, high=1, below_high=True),
    'init_from': fields.Field(str),
    'on_nan': fields.Field(str, choices=recovery.POLICIES),
    'nan_limit': _COUNT,
    'nan_rate_factor': fields.Field(float, low=0, high=1, above_low=True),
    'profile_steps': fields.Field(str),
    'tensorboard': _BOOL,
    'sample_characters': fields.Field(int, low=0, high=10**7),
    'must_beat_gzip': _BOOL,
    'mesh.data': _AXIS,
    'mesh.fsdp': _AXIS,
    'mesh.model': _AXIS,
    'mesh.sequence': _AXIS,
    'whole_axes': fields.Field(tuple),
    'smoke': _BOOL,
}


def check(config):
  """Checks the values that `FIELDS` describes, and those of the optimiser.

  Args:
    config: A config that has all of these fields.

  Raises:
    UserValueError: If one is wrong, or some make no sense together.
  """
  for name, field in FIELDS.items():
    value = functools.reduce(getattr, name.split('.'), config)
    fields.check(name, value, field)
  optimizers.check(config.optimizer)
  if not config.eval_splits:
    raise errors.UserValueError(
        'eval_splits must name at least one split, such as validation: the '
        'first one chooses the best checkpoint.'
    )
  for name in ('total_steps', 'log_every', 'eval_every', 'save_every'):
    if config[name] % config.steps_per_dispatch:
      raise errors.UserValueError(
          f'{name} {config[name]} must be a multiple of steps_per_dispatch '
          f'{config.steps_per_dispatch}.'
      )
  profile_window(config.profile_steps)


def profile_window(text: str) -> tuple[int, int] | None:
  """Parses `profile_steps`, such as '10:15': the first and the last step.

  Raises:
    UserValueError: If it is something else.
  """
  if not text:
    return None
  first, _, last = text.partition(':')
  numbers = first.isdecimal() and last.isdecimal()
  if not (numbers and 0 < int(first) <= int(last)):
    raise errors.UserValueError(
        f"profile_steps must be two steps, such as '10:15', got {text!r}."
    )
  return int(first), int(last)


def check_vocabulary(now, then, where='the checkpoint'):
  """Raises `UserValueError` if tokens do not mean what they meant."""
  if now == then:
    return
  symbols = [set((v or {}).get('symbols', '')) for v in (now, then)]
  only = [''.join(sorted(a - b))[:10] for a, b in (symbols, symbols[::-1])]
  raise errors.UserValueError(
      f'The text and the model of {where} have different vocabularies: only '
      f'the text has {only[0]!r}, only the model {only[1]!r}. With '
      'data.level=byte all texts have the same.'
  )


def check_data(now, then, allow: str, allowed: bool) -> bool:
  """Returns whether the data of a run has changed.

  Args:
    now: What `data.Dataset.source` says, or `None`.
    then: What it said when the checkpoint was written; `None` if that is from
      before it was recorded.
    allow: How to allow that, as `--config.data.allow_changed=True`.
    allowed: Whether that is allowed.

  Raises:
    UserValueError: If it has, and that is not allowed.
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
      + f'. Restore the old data, or allow the new data: {allow}.'
  )


def check_same_config(old: dict[str, Any], new: dict[str, Any]):
  """Raises `UserValueError` if a run of `old` cannot go on with `new`."""
  free = FREE_FIELDS
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
    advice = 'Use another --workdir, or the old values.'
    if 'total_steps' not in free and any(
        change.startswith('total_steps:') for change in changes
    ):
      advice += (
          ' total_steps can change only under optimizer.schedule=constant, as '
          'the other schedules end there. To train on, start a new --workdir '
          'with --config.init_from set to this one.'
      )
    raise errors.UserValueError(
        'The workdir belongs to a run of another config: '
        f'{"; ".join(changes)}. {advice}'
    )


def _same(name, old, new):
  """Whether two values of a field mean the same."""
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
