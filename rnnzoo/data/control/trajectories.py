"""Your own trajectories in a file that `numpy.savez` wrote.

  numpy.savez('my.npz', observations=..., actions=..., rewards=...,
              terminals=..., truncations=..., environment='Hopper-v5')

All steps of all episodes stand one after another: `observations` `[N, S]`, what
was seen, `actions` `[N, A]`, what was then done, `rewards` `[N]`, what that
brought, `terminals` `[N]`, whether the episode ended there, and `truncations`
`[N]` (`timeouts` in D4RL), whether it was cut off there, such as by a time
limit. `environment` is the name in gymnasium. Steps after the last end are left
out. Pickled objects are never loaded.

`data.path=hopper_ours` is the file that `scripts/prepare_datasets.py
hopper_ours` generates.
"""

import pathlib
from typing import Any

from absl import logging
import numpy as np
from rnnzoo import errors
from rnnzoo import fields
from rnnzoo.data import definition
from rnnzoo.data import npz_file
from rnnzoo.data import pipeline
from rnnzoo.data import settings
from rnnzoo.data.control import episodes as episodes_lib

NAME = 'trajectories'
# What `scripts/prepare_datasets.py` generates.
GENERATED = ('hopper_ours',)
FILE = 'trajectories.npz'
AXES = dict(observations=2, actions=2, rewards=1, terminals=1, truncations=1)


def load(config: Any, shard: pipeline.Shard, seed: int) -> pipeline.Dataset:
  """Returns the windows of `config.path`, see `episodes.dataset`."""
  path = find(config)
  name = config.path if config.path in GENERATED else NAME
  return episodes_lib.dataset(
      read(path, config.environment), config, shard, seed, name=name
  )


def find(config: Any) -> pathlib.Path:
  """Returns the file of a config.

  Raises:
    UserFileNotFoundError: If it is not there.
  """
  if config.path not in GENERATED:
    return settings.data_file(
        config, NAME, f'a .npz file, or {" or ".join(GENERATED)}'
    )
  directory = settings.data_directory(config)
  path = directory / config.path / FILE
  if not path.exists():
    raise errors.UserFileNotFoundError(
        f'{config.path} is not in {directory}. To generate it: python '
        f'scripts/prepare_datasets.py {config.path} --data_dir={directory}'
    )
  return path


def read(
    path: pathlib.Path, environment: str = ''
) -> episodes_lib.Episodes:
  """Returns the episodes of a file.

  Args:
    path: The file.
    environment: The name of the environment, if the file has none.

  Raises:
    UserValueError: If an array is missing, has another shape, or is not finite.
  """
  found = npz_file.read_arrays(path)
  if 'truncations' not in found and 'timeouts' in found:
    found['truncations'] = found.pop('timeouts')
  for name in AXES:
    if name not in found:
      raise errors.UserValueError(
          f'{path} (data.path) has no array {name}, only '
          f'{", ".join(found) or "none"}.' + errors.suggest(name, found)
      )
  count = found['rewards'].size
  for name, axes in AXES.items():
    array = found[name]
    real = array.dtype == bool or np.issubdtype(array.dtype, np.integer) or (
        np.issubdtype(array.dtype, np.floating)
    )
    if array.ndim != axes or len(array) != count or not array.size or not real:
      raise errors.UserValueError(
          f'{path} (data.path): {name} must be numbers '
          f'{["[N]", "[N, S]"][axes - 1]}, one row for each of N rewards, got '
          f'{array.dtype} {array.shape} with {count} rewards.'
      )
    with np.errstate(over='ignore'):
      array = array.astype(np.float32)  # Beyond its largest number: infinite.
    bad = ~np.isfinite(array).reshape(count, -1).all(1)
    if bad.any():
      raise errors.UserValueError(
          f'{path} (data.path): {name} must be finite in float32, but row '
          f'{int(np.argmax(bad))} is not, nor are {int(bad.sum()) - 1} others.'
      )
  done = (found['terminals'] != 0) | (found['truncations'] != 0)
  ends = np.flatnonzero(done) + 1
  if not len(ends):
    raise errors.UserValueError(
        f'{path} (data.path): no episode ends: terminals and truncations are '
        'all False.'
    )
  if ends[-1] < len(done):
    logging.warning(
        '%s: the last %d steps are left out, because their episode has no end.',
        path, len(done) - ends[-1],
    )
  part = lambda name: found[name][:ends[-1]].astype(np.float32)
  return episodes_lib.Episodes(
      part('observations'), part('actions'), part('rewards'), ends,
      environment or str(found.get('environment', '')),
  )


def write_fixture(directory: pathlib.Path, config: Any):
  """Writes walks on a line, see `Definition.write_fixture`."""
  settings.mark_fixture(directory)
  path = settings.fixture_file(directory, config, NAME)
  generated = settings.field(config, 'path', '')
  if generated in GENERATED:
    path = directory / generated / FILE
  path.parent.mkdir(parents=True, exist_ok=True)
  with open(path, 'wb') as file:  # savez would add .npz to a name.
    np.savez(file, **walks())  # pyright: ignore[reportArgumentType]


def walks(
    count: int = 24, sizes: tuple[int, int] = (11, 3), seed: int = 0
) -> dict[str, np.ndarray]:
  """Returns episodes of an agent that more or less follows a linear rule.

  Args:
    count: The number of episodes.
    sizes: Those of an observation and of an action.
    seed: Decides everything.
  """
  rng = np.random.default_rng(seed)
  rule = rng.normal(size=sizes) / np.sqrt(sizes[0])
  found = dict(
      observations=[], actions=[], rewards=[], terminals=[], truncations=[]
  )
  for episode in range(count):
    length = int(rng.integers(25, 50))
    x = rng.normal(size=(length, sizes[0]))
    skill = episode / count  # It makes the return, and shows in the actions.
    a = np.tanh(x @ rule * (2 * skill - 1))
    last = np.arange(length) == length - 1
    found['observations'].append(x)
    found['actions'].append(a)
    found['rewards'].append(np.full(length, skill))
    found['terminals'].append(last & (episode % 2 == 0))
    found['truncations'].append(last & (episode % 2 == 1))
  arrays = {name: np.concatenate(rows) for name, rows in found.items()}
  for name in ('observations', 'actions', 'rewards'):
    arrays[name] = arrays[name].astype(np.float32)
  return dict(arrays, environment=np.array('Hopper-v5'))


DEFINITION = definition.Definition(
    task='decisions',
    fields=dict(
        path=fields.Field(
            str, default='',
            help='The .npz file, or hopper_ours for what '
            'scripts/prepare_datasets.py generates.',
        ),
        environment=fields.Field(
            str, default='',
            help='The name of the environment in gymnasium; that in the file '
            'if empty.',
        ),
        **episodes_lib.FIELDS,
    ),
    load=load,
    write_fixture=write_fixture,
)
