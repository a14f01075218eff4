"""Trajectories: windows of episodes, the files, and what makes them."""

import sys
import types
from unittest import mock

from absl.testing import absltest
from absl.testing import parameterized
import numpy as np
from rnnzoo import data
from rnnzoo import errors
from rnnzoo.data.builders import d4rl
from rnnzoo.data.builders import hopper_ours
from rnnzoo.data.control import episodes as episodes_lib
from rnnzoo.data.control import trajectories
from tests.experiments import commands

K = 6


def arrays(lengths=(9, 4, 7, 12, 5), seed=0, extra=0):
  """Returns the arrays of a file, with an episode without end at the end."""
  rng = np.random.default_rng(seed)
  steps = sum(lengths) + extra
  ends = np.cumsum(lengths) - 1
  found = dict(
      observations=rng.normal(2, 3, (steps, 4)),
      actions=rng.uniform(-2, 2, (steps, 2)),
      rewards=rng.normal(size=steps),
      terminals=np.zeros(steps, bool), truncations=np.zeros(steps, bool),
  )
  found['terminals'][ends[::2]] = True
  found['truncations'][ends[1::2]] = True
  return found


class TrajectoriesTest(parameterized.TestCase):

  def setUp(self):
    super().setUp()
    self.path = commands.temporary_directory(self) / 'my.npz'

  def load(self, found, **config):
    np.savez(self.path, **found)
    config = dict(sequence_length=K, parts=(0.6, 0.2, 0.2)) | config
    return data.load(
        dict(name='trajectories', path=str(self.path), **config),
        batch_size=4, seed=0,
    )

  def test_windows_are_what_a_loop_makes(self):
    found = arrays(extra=3)
    dataset = self.load(found, reward_scale=10.0)
    lengths = (9, 4, 7, 12, 5)
    starts = np.cumsum((0, *lengths[:-1]))
    part = episodes_lib.split(5, (0.6, 0.2, 0.2))
    train = np.repeat(part == 0, lengths)
    x, a, r = (found[n][:37] for n in ('observations', 'actions', 'rewards'))
    mean, std = x[train].mean(0), x[train].std(0)
    bound = np.abs(a[train]).max(0)
    windows = {}
    for episode, (start, length) in enumerate(zip(starts, lengths)):
      rows = []
      for t in range(length):
        now = start + t
        before = a[now - 1] / bound if t else np.zeros(2)
        rows.append([
            r[now:start + length].sum() / 10, *(x[now] - mean) / std, *before, t
        ])
      for first in range(length):
        window, target = np.zeros((K, 8)), np.zeros((K, 2))
        inside = rows[first:first + K]
        window[:len(inside)] = inside
        goal = a[start + first:start + length][:K] / bound
        target[:len(goal)] = goal
        windows.setdefault(part[episode], []).append(
            (window, target, np.arange(K) < len(inside), first)
        )
    # An epoch has each window of the train part once.
    count = len(windows[0])
    self.assertEqual(dataset.source['examples']['train'], count)
    batches = [dataset.train_batch(step) for step in range(1, count // 4 + 1)]
    got = np.concatenate([b['inputs'] for b in batches])
    wanted = np.array([w for w, *_ in windows[0]], np.float32)
    nearest = [int(np.abs(wanted - g).sum((1, 2)).argmin()) for g in got]
    self.assertLen(set(nearest), len(got))
    np.testing.assert_allclose(got, wanted[nearest], rtol=1e-4, atol=1e-4)
    for key, index in (('targets', 1), ('mask', 2), ('input_mask', 2)):
      np.testing.assert_allclose(
          np.concatenate([b[key] for b in batches]),
          np.array([w[index] for w in windows[0]], np.float32)[nearest], 1e-5,
      )
    # Evaluation reads each step once.
    for index, name in ((1, 'validation'), (2, 'test')):
      (batch,) = dataset.eval_batches(name)
      expected = [w for w in windows[index] if w[3] % K == 0]
      self.assertEqual(batch['mask'].sum(), sum(w[2].sum() for w in expected))
      for row, (window, target, exists, _) in enumerate(expected):
        np.testing.assert_allclose(batch['inputs'][row], window, 1e-4, 1e-4)
        np.testing.assert_allclose(batch['targets'][row], target, 1e-5)
        np.testing.assert_array_equal(batch['mask'][row], exists)
    returns = np.add.reduceat(r, starts)[part == 0]
    for name, value in (
        ('best_return', returns.max()), ('mean_return', returns.mean())
    ):
      self.assertAlmostEqual(dataset.source[name], float(value), places=4)
      self.assertEqual(dataset.baselines()[name], dataset.source[name])

  def test_timeouts_are_truncations(self):
    found = arrays()
    one = self.load(found)
    found['timeouts'] = found.pop('truncations')
    found['environment'] = np.array('My-v1')
    two = self.load(found)
    self.assertEqual(one.source['sha256'], two.source['sha256'])
    self.assertEqual(two.source['environment'], 'My-v1')
    named = self.load(found, environment='Other-v1')
    self.assertEqual(named.source['environment'], 'Other-v1')

  @parameterized.parameters(
      (dict(actions=None), 'no array actions, only obs'),
      (dict(reward=np.ones(37), rewards=None), 'no array rewards.*"reward"'),
      (dict(rewards=np.ones((37, 1))), r'rewards must be numbers \[N\]'),
      (dict(actions=np.ones(37)), r'actions must be numbers \[N, S\]'),
      (dict(observations=np.ones((36, 4))), r'float64 \(36, 4\) with 37 rew'),
      (dict(terminals=np.array(['no'] * 37)), 'terminals must be numbers'),
      (dict(rewards=np.full(37, np.nan)), 'must be finite.* but row 0 is not'),
      (dict(rewards=np.full(37, 1e39)), 'must be finite in float32'),
      (
          dict(terminals=np.zeros(37), truncations=np.zeros(37)),
          'no episode ends',
      ),
  )
  def test_wrong_files(self, changes, message):
    found = {k: v for k, v in (arrays() | changes).items() if v is not None}
    with self.assertRaisesRegex(errors.UserValueError, message) as caught:
      self.load(found)
    self.assertNotIn('\n', str(caught.exception))

  @parameterized.parameters(
      (dict(sequence_length=13), 'longer than every episode.*has 12 steps'),
      (dict(parts=(0.6, 0.2)), 'three positive shares'),
      (dict(parts=(1.0, 0.0, 0.0)), 'three positive shares'),
  )
  def test_wrong_fields(self, config, message):
    with self.assertRaisesRegex(errors.UserValueError, message):
      self.load(arrays(), **config)

  def test_each_part_has_an_episode(self):
    for count, shares in ((3, (0.1, 0.1, 0.8)), (4, (0.02, 0.49, 0.49))):
      part = episodes_lib.split(count, shares)
      self.assertTrue(np.bincount(part, minlength=3).all(), f'{part}')
    with self.assertRaisesRegex(errors.UserValueError, 'three positive shares'):
      episodes_lib.split(9, (0.8, 0.1, float('nan')))

  def test_two_episodes_are_too_few(self):
    with self.assertRaisesRegex(errors.UserValueError, 'There are 2 whole ep'):
      self.load(arrays((9, 8)))


class D4RLTest(parameterized.TestCase):

  @parameterized.parameters(('hopper', 'medium', True),
                            ('walker2d', 'medium-replay', False))
  def test_episodes_are_those_of_the_original(self, robot, quality, following):
    source = d4rl.Source(robot, quality)
    original = d4rl.fixture_arrays(source, 4)
    if not following:
      del original['next_observations']
    # The last episode has no end.
    original['terminals'][-1] = original['timeouts'][-1] = False
    directory = commands.temporary_directory(self)
    with d4rl.records.quiet():
      d4rl.records.write(
          d4rl.builder_of(source, lambda: original), directory, directory
      )
    found = source.read(directory)
    self.assertLen(found, 4)
    for name, key in (
        ('observation', 'observations'), ('action', 'actions'),
        ('reward', 'rewards'),
    ):
      np.testing.assert_array_equal(
          np.concatenate([episode[name] for episode in found]), original[key]
      )
    self.assertStartsWith(source.describe(directory)['train'], '4 episodes')
    self.assertNotIn('tensorflow', sys.modules)

  def test_scores(self):
    directory = commands.temporary_directory(self)
    d4rl.prepare_fixture(directory, d4rl.Source('halfcheetah', 'medium-expert'))
    dataset = data.load(
        dict(name='d4rl', data_dir=str(directory), robot='halfcheetah',
             quality='medium-expert', sequence_length=8),
        batch_size=4, seed=0,
    )
    self.assertEqual(dataset.source['unit_scores'], [-280.178953, 12135.0])
    self.assertEqual(dataset.source['environment'], 'HalfCheetah-v4')
    self.assertEqual((dataset.in_features, dataset.out_features), (25, 6))

  def test_missing_files(self):
    directory = commands.temporary_directory(self)
    source = d4rl.SOURCES['d4rl_walker2d_medium_expert']
    with self.assertRaisesRegex(
        errors.UserFileNotFoundError,
        'scripts/prepare_datasets.py d4rl_walker2d_medium_expert --data_dir=.*'
        '--manual_dir=DIR, where DIR holds walker2d_medium_expert-v2.hdf5',
    ):
      source.read(directory)
    with self.assertRaisesRegex(errors.UserError, 'needs --manual_dir=DIR'):
      source.prepare(directory)
    with self.assertRaisesRegex(errors.UserError, 'There is no file walker2d'):
      source.prepare(directory, directory)
    (directory / source.file).write_bytes(b'nothing')
    found = d4rl.fixture_arrays(source, 2)
    for other, message in (
        ({'x': np.ones(3)}, r'observations must be \[N, 17\], got no such'),
        (found | dict(actions=found['actions'][:, :3]), r'actions .* got \['),
        (found | dict(timeouts=np.ones(2)), r'timeouts must be \[N, 1\], got'),
    ):
      with mock.patch.object(d4rl, 'read_hdf5', return_value=other):
        with self.assertRaisesRegex(errors.UserValueError, message) as caught:
          source.prepare(directory, directory)
      self.assertNotIn('\n', str(caught.exception))
    with mock.patch.dict(sys.modules, h5py=None):
      with self.assertRaisesRegex(errors.UserError, 'needs h5py'):
        source.prepare(directory, directory)


class Pole:
  """A stand-in for Hopper: falls as soon as the action is too far off."""

  observation_space = types.SimpleNamespace(shape=(3,))
  action_space = types.SimpleNamespace(shape=(2,))

  def reset(self, seed):
    self.rng, self.number = np.random.default_rng(seed), 0
    self.now = self.rng.normal(size=3)
    return self.now, {}

  def step(self, action):
    error = np.abs(action - np.clip(self.now[:2], -1, 1)).sum()
    self.number += 1
    self.now = self.rng.normal(size=3)
    fell = error > 1.8
    return self.now, 1 + float(fell - error), fell, self.number == 30, {}


class HopperTest(parameterized.TestCase):

  def test_the_search_learns_and_the_file_is_one_of_trajectories(self):
    self.enterContext(mock.patch.object(hopper_ours, 'make', Pole))
    self.enterContext(mock.patch.object(
        hopper_ours, 'mujoco', lambda: types.SimpleNamespace(__version__='0')
    ))
    self.enterContext(mock.patch.object(hopper_ours, 'STEP_SIZE', 0.05))
    directory = commands.temporary_directory(self)
    short = hopper_ours.generate
    self.enterContext(mock.patch.object(
        hopper_ours, 'generate',
        lambda seed, workers: short(
            seed, workers, training_steps=8000, data_steps=1100
        ),
    ))
    place = hopper_ours.prepare(directory, workers=1)
    self.assertEqual(hopper_ours.prepare(directory, workers=1), place)
    with self.assertRaisesRegex(errors.UserValueError, 'the data of --seed=0'):
      hopper_ours.prepare(directory, seed=1)
    dataset = data.load(
        dict(name='trajectories', path='hopper_ours', data_dir=str(directory)),
        batch_size=4, seed=0,
    )
    self.assertEqual(dataset.name, 'hopper_ours')
    self.assertEqual(dataset.source['environment'], 'Hopper-v5')
    self.assertEqual((dataset.in_features, dataset.out_features), (7, 2))
    record = hopper_ours.json.loads((place / hopper_ours.RECORD).read_text())
    self.assertEqual(sum(dataset.source['episodes']), record['episodes'])
    means = record['mean_return_of_policies']
    self.assertLen(means, hopper_ours.POLICIES + 1)
    self.assertGreater(means[-1], 2 * means[0])
    arrays_, _ = short(0, 1, training_steps=8000, data_steps=1100)
    again = trajectories.read(place / hopper_ours.FILE)
    np.testing.assert_array_equal(arrays_['actions'], again.actions)
    self.assertIn('at best', hopper_ours.describe(directory)['train'])

  def test_without_mujoco(self):
    directory = commands.temporary_directory(self)
    with mock.patch.dict(sys.modules, gymnasium=None):
      with self.assertRaisesRegex(
          errors.UserError, r"pip install 'gymnasium\[mujoco\]'"
      ):
        hopper_ours.prepare(directory)
    with self.assertRaisesRegex(errors.UserValueError, 'no --manual_dir'):
      hopper_ours.prepare(directory, directory)
    with self.assertRaisesRegex(
        errors.UserFileNotFoundError, 'scripts/prepare_datasets.py hopper_ours'
    ):
      trajectories.find(
          types.SimpleNamespace(path='hopper_ours', data_dir=str(directory))
      )


if __name__ == '__main__':
  absltest.main()
