"""Prepares D4RL's trajectories of MuJoCo in the layout of TFDS.

The data sets are `d4rl_mujoco_halfcheetah`, `d4rl_mujoco_hopper` and
`d4rl_mujoco_walker2d` with the configs `v2-medium`, `v2-medium-replay` and
`v2-medium-expert` (Fu et al. 2020, https://arxiv.org/abs/2004.07219). The
builders of TFDS need TensorFlow; this one makes the same records of the
original HDF5 files without it, and `read` takes both, as array_record.

A record is an episode in the form of RLDS. If the step after the last one is
known or was a terminal state, there is one more step, of which only the
observation and the flags mean something.
"""

from collections.abc import Iterator, Mapping
import pathlib
from typing import Any, NamedTuple

import numpy as np
from rnnzoo import errors
from rnnzoo.data.builders import records
from rnnzoo.data.control import robots
import tensorflow_datasets as tfds

VERSION = '1.2.0'
ADDRESS = (
    'http://rail.eecs.berkeley.edu/datasets/offline_rl/gym_mujoco_v2/{file}'
)
_POLICY = 256  # Hidden units of the policies that made the data.


class Source(NamedTuple):
  """One of the nine data sets, for `scripts/prepare_datasets.py`."""

  robot: str
  quality: str

  @property
  def name(self) -> str:
    """What `scripts/prepare_datasets.py` calls it."""
    return f'd4rl_{self.robot}_{self.quality.replace("-", "_")}'

  @property
  def file(self) -> str:
    """The name of the original file."""
    return f'{self.robot}_{self.quality.replace("-", "_")}-v2.hdf5'

  def prepare(
      self, data_dir: pathlib.Path, manual_dir: pathlib.Path | None = None
  ) -> pathlib.Path:
    """Writes the data set under `data_dir`, unless it is there already.

    Args:
      data_dir: Where data sets lie; made if missing.
      manual_dir: The directory with the original file.

    Returns:
      The directory of the data set.

    Raises:
      UserError: If h5py is not installed, or the file is missing, damaged or
        another.
    """
    where = f'It is at {ADDRESS.format(file=self.file)}'
    if manual_dir is None:
      raise errors.UserValueError(
          f'{self.name} needs --manual_dir=DIR, a directory with the file '
          f'{self.file}. {where}'
      )
    path = manual_dir / self.file
    if not path.is_file():
      raise errors.UserFileNotFoundError(
          f'There is no file {self.file} in {manual_dir} (--manual_dir). '
          f'{where}'
      )
    return records.write(
        builder_of(self, lambda: checked(read_hdf5(path), self, path)),
        data_dir, manual_dir,
    )

  def read(self, data_dir: pathlib.Path) -> list[dict[str, np.ndarray]]:
    """Returns the steps of each episode: `observation`, `action`, `reward`.

    Raises:
      UserFileNotFoundError: If it was never prepared, saying how to.
      UserError: If its files cannot be read.
    """
    return records.read(
        data_dir, f'd4rl_mujoco_{self.robot}/v2-{self.quality}', VERSION,
        ['train'],
        'Get the file and prepare it: {command} --manual_dir=DIR, where DIR '
        f'holds {self.file}.',
        convert=lambda found: [steps_of(record) for record in found],
        arguments=self.name,
    )['train']

  def describe(self, data_dir: pathlib.Path) -> dict[str, str]:
    """Returns what it holds, for people."""
    rewards = [episode['reward'] for episode in self.read(data_dir)]
    returns = [float(r.sum(dtype=np.float64)) for r in rewards]
    return dict(train=(
        f'{len(rewards):,} episodes, {sum(map(len, rewards)):,} steps; return '
        f'{np.mean(returns):,.2f} on average, {max(returns):,.2f} at best'
    ))


SOURCES = {
    source.name: source for source in (
        Source(robot, quality) for robot in robots.ROBOTS
        for quality in robots.QUALITIES
    )
}


def features_of(source: Source) -> dict[str, Any]:
  """Returns the features of a record, as TFDS has them."""
  observation, action, qpos, qvel = robots.ROBOTS[source.robot].sizes

  def tensor(*shape: int, dtype: type = np.float32):
    return tfds.features.Tensor(shape=shape, dtype=dtype)

  found: dict[str, Any] = dict(steps=tfds.features.Dataset(dict(
      observation=tensor(observation), action=tensor(action),
      reward=np.float32, discount=np.float32,
      is_first=np.bool_, is_last=np.bool_, is_terminal=np.bool_,
      infos=dict(
          action_log_probs=np.float64, qpos=tensor(qpos, dtype=np.float64),
          qvel=tensor(qvel, dtype=np.float64),
      ),
  )))
  if source.quality != 'medium-expert':
    found |= dict(algorithm=np.object_, iteration=np.int32)
  if source.quality == 'medium':
    linear = lambda outputs, inputs: dict(
        weight=tensor(outputs, inputs), bias=tensor(outputs)
    )
    found['policy'] = dict(
        fc0=linear(_POLICY, observation), fc1=linear(_POLICY, _POLICY),
        last_fc=linear(action, _POLICY),
        last_fc_log_std=linear(action, _POLICY),
        nonlinearity=np.object_,
        output_distribution=np.object_,
    )
  return found


def builder_of(source: Source, read):
  """Returns the builder of a data set; `read` gives the arrays of its file."""

  class Builder(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    """Writes an episode as a record."""

    name = f'd4rl_mujoco_{source.robot}'
    VERSION = tfds.core.Version(VERSION)
    BUILDER_CONFIGS = [
        tfds.core.BuilderConfig(
            name=f'v2-{source.quality}', version=VERSION, description=''
        )
    ]
    MANUAL_DOWNLOAD_INSTRUCTIONS = f'Put {source.file} into manual_dir.'

    def _info(self):
      return tfds.core.DatasetInfo(
          builder=self,
          description='Trajectories of D4RL.',
          features=tfds.features.FeaturesDict(features_of(source)),
          homepage='https://arxiv.org/abs/2004.07219',
          disable_shuffling=True,
      )

    def _split_generators(self, dl_manager):
      del dl_manager
      return dict(train=self._generate_examples())

    def _generate_examples(self):
      yield from enumerate(episodes(read()))

  return Builder


def read_hdf5(path: pathlib.Path) -> dict[str, Any]:
  """Returns all arrays of a file by name, such as `infos/qpos`.

  Raises:
    UserError: If h5py is not installed, or the file is no HDF5 file.
  """
  try:
    import h5py  # pyright: ignore[reportMissingImports]
  except ImportError as error:
    raise errors.UserError(
        f'{path} needs h5py, which is not installed: pip install '
        'h5py.'
    ) from error
  found = {}

  def visit(name, item):
    if isinstance(item, h5py.Dataset):
      found[name] = item[()]

  try:
    with h5py.File(path, 'r') as file:
      file.visititems(visit)
  except OSError as error:
    raise errors.UserError(
        f'{path} cannot be read as HDF5: {records.first_line(error)}.'
    ) from error
  return found


def checked(
    arrays: dict[str, Any], source: Source, path: pathlib.Path
) -> dict[str, Any]:
  """Returns the arrays of a file if they are those of a data set.

  Raises:
    UserValueError: If an array is missing or has another shape.
  """
  observation, action, *_ = robots.ROBOTS[source.robot].sizes
  sizes = dict(
      observations=observation, actions=action, rewards=1, terminals=1,
      timeouts=1,
  )
  count = np.size(arrays.get('observations', ())) // observation
  for name, size in sizes.items():
    found = np.shape(arrays.get(name, ()))
    if not count or found[:1] != (count,) or np.prod(found) != count * size:
      raise errors.UserValueError(
          f'{path} is not the {source.file} of D4RL: {name} must be [N, '
          f'{size}], got {list(found) if name in arrays else "no such array"}.'
      )
  flat = ('rewards', 'terminals', 'timeouts')
  return arrays | {name: arrays[name].reshape(count) for name in flat}


def episodes(arrays: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
  """Yields the records of the arrays of an original file."""
  done = arrays['terminals'].astype(bool) | arrays['timeouts'].astype(bool)
  ends = np.flatnonzero(done) + 1
  if not len(ends) or ends[-1] < len(done):
    ends = np.append(ends, len(done))
  metadata: dict[str, Any] = {}
  for name, value in arrays.items():
    if name.startswith('metadata/'):
      *parents, last = name.split('/')[1:]
      place = metadata
      for parent in parents:
        place = place.setdefault(parent, {})
      place[last] = value
  infos = {
      name.removeprefix('infos/'): value for name, value in arrays.items()
      if name.startswith('infos/')
  }
  start = 0
  for end in ends.tolist():
    count = end - start
    terminal = bool(arrays['terminals'][end - 1])
    following = arrays.get('next_observations')
    discount = np.ones(count, np.float32)
    discount[-1] = not terminal
    steps = dict(
        observation=arrays['observations'][start:end],
        action=arrays['actions'][start:end],
        reward=arrays['rewards'][start:end].reshape(count),
        discount=discount,
        is_terminal=np.zeros(count, bool),
        infos={name: value[start:end] for name, value in infos.items()},
    )
    if terminal or following is not None:
      after = _map(lambda u: np.zeros_like(u[:1]), steps)
      if following is not None:
        after['observation'] = following[end - 1:end]
      after['is_terminal'] = np.array([terminal])
      steps = _map(lambda u, v: np.concatenate([u, v]), steps, after)
    number = np.arange(len(steps['reward']))
    steps |= dict(is_first=number == 0, is_last=number == number[-1])
    # TFDS takes a step at a time.
    yield dict(metadata, steps=[
        _map(lambda u, i=i: u[i], steps) for i in number
    ])
    start = end


def _map(function, *trees):
  """Applies a function to the leaves of nested dictionaries."""
  if not isinstance(trees[0], Mapping):
    return function(*trees)
  return {key: _map(function, *(t[key] for t in trees)) for key in trees[0]}


def steps_of(record: Mapping[str, Any]) -> dict[str, np.ndarray]:
  """Returns the steps of a record in which something was done.

  The step after the last one has the discount 0 and no reward. A terminal
  transition has the discount 0 too, but it is followed by such a step.
  """
  steps = list(record['steps'])
  if steps[-1]['discount'] == 0:
    steps.pop()
  return {
      name: np.array([step[name] for step in steps], np.float32)
      for name in ('observation', 'action', 'reward')
  }


def prepare_fixture(data_dir: pathlib.Path, source: Source):
  """Prepares a few short episodes, of random numbers but for the actions."""
  with records.quiet():
    records.write(
        builder_of(source, lambda: fixture_arrays(source)), data_dir, data_dir
    )


def fixture_arrays(source: Source, count: int = 12) -> dict[str, Any]:
  """Returns arrays as in an original file of `count` episodes."""
  observation, action, qpos, qvel = robots.ROBOTS[source.robot].sizes
  rng = np.random.default_rng(0)
  lengths = rng.integers(21, 30, count)
  ends = np.cumsum(lengths) - 1
  steps = int(lengths.sum())
  x = rng.normal(size=(steps, observation)).astype(np.float32)
  rule = rng.normal(size=(observation, action)) / observation**0.5
  terminals, timeouts = np.zeros(steps, bool), np.zeros(steps, bool)
  terminals[ends[::2]], timeouts[ends[1::2]] = True, True
  found: dict[str, Any] = dict(
      observations=x, actions=np.tanh(x @ rule).astype(np.float32),
      rewards=rng.uniform(size=steps).astype(np.float32),
      next_observations=np.roll(x, -1, axis=0),
      terminals=terminals, timeouts=timeouts,
  )
  found |= {
      'infos/action_log_probs': np.zeros(steps),
      'infos/qpos': np.zeros((steps, qpos)),
      'infos/qvel': np.zeros((steps, qvel)),
  }
  if source.quality != 'medium-expert':
    found |= {'metadata/algorithm': b'SAC', 'metadata/iteration': np.int32(1)}
  if source.quality == 'medium':
    for name, outputs, inputs in (
        ('fc0', _POLICY, observation), ('fc1', _POLICY, _POLICY),
        ('last_fc', action, _POLICY), ('last_fc_log_std', action, _POLICY),
    ):
      path = f'metadata/policy/{name}'
      found[f'{path}/weight'] = np.zeros((outputs, inputs), np.float32)
      found[f'{path}/bias'] = np.zeros(outputs, np.float32)
    found |= {
        'metadata/policy/nonlinearity': b'relu',
        'metadata/policy/output_distribution': b'tanh_gaussian',
    }
  return found
