"""What a config must satisfy, and what a run may change when it goes on."""

from typing import Any

from rnnzoo import errors
from rnnzoo import filenames
from rnnzoo.training import recovery

# What may differ between a run and its continuation.
FREE_FIELDS = (
    'mesh', 'whole_axes', 'log_every', 'eval_every', 'save_every', 'keep',
    'tensorboard', 'data.data_dir', 'data.allow_changed', 'profile_steps',
    'loss_chunk', 'on_nan', 'nan_limit', 'nan_rate_factor',
)
# Names of files: two that mean the same file are equal.
PATH_FIELDS = ('data.path', 'init_from')


def check_intervals(config):
  """Raises `UserValueError` on intervals that make no sense together."""
  for name in ('total_steps', 'log_every', 'eval_every', 'save_every', 'keep',
               'accumulate_steps', 'steps_per_dispatch', 'batch_size'):
    if config[name] < 1:
      raise errors.UserValueError(
          f'{name} must be at least 1, got {config[name]}.'
      )
    if name.endswith(('_every', '_steps')) and name != 'accumulate_steps' and (
        config[name] % config.steps_per_dispatch
    ):
      raise errors.UserValueError(
          f'{name} {config[name]} must be a multiple of steps_per_dispatch '
          f'{config.steps_per_dispatch}.'
      )


def check_policies(config):
  """Raises `UserValueError` on a policy for bad numbers that is none."""
  if config.on_nan not in recovery.POLICIES:
    raise errors.UserValueError(
        f'on_nan must be one of {", ".join(recovery.POLICIES)}, got '
        f'{config.on_nan!r}.{errors.suggest(config.on_nan, recovery.POLICIES)}'
    )
  if config.nan_limit < 1:
    raise errors.UserValueError(
        f'nan_limit must be at least 1, got {config.nan_limit}.'
    )
  if not 0 < config.nan_rate_factor <= 1:
    raise errors.UserValueError(
        f'nan_rate_factor must be in (0, 1], got {config.nan_rate_factor}.'
    )


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
  """Says whether the data of a run is other than it was.

  Args:
    now: What `data.Dataset.source` says, or `None`.
    then: What it said when the checkpoint was written; `None` if that is from
      before it was recorded.
    allow: How to allow that, as `--config.data.allow_changed=True`.
    allowed: Whether it is.

  Raises:
    UserValueError: If it is, and nobody allows it.
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
      + f'. Restore the old data, use another --workdir, or allow it: {allow}.'
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
    raise errors.UserValueError(
        'The workdir belongs to a run of another config: '
        + '; '.join(changes)
        + '. Use another --workdir, or the old values.'
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
