"""Training and evaluation with batches of several lengths."""

import os
import signal
from unittest import mock

from absl.testing import absltest
from absl.testing import parameterized
from experiments import plan
from experiments.cli import watching
from experiments.configs import default
from flax import nnx
import jax
import numpy as np
from rnnzoo import data
from rnnzoo import errors
from rnnzoo import models
from rnnzoo import tasks
from rnnzoo import training
from rnnzoo.training import evaluation
from rnnzoo.training import loop
from rnnzoo.training import sharding
from rnnzoo.training.performance import throughput
from rnnzoo.training.processes import signals
from tests.experiments import commands

N, T, ROWS = 96, 24, 8
SETTINGS = dict(
    total_steps=12, eval_every=6, save_every=6, log_every=1, tensorboard=False
)


def arrays():
  rng = np.random.default_rng(0)
  x = [rng.integers(0, 9, n) for n in 2 * rng.integers(1, T // 2 + 1, N)]
  return dict(x=x, y=np.array([u.mean() > 4 for u in x]).astype(int))


def load(buckets=3, **changes):
  return data.from_arrays(
      **arrays() | changes, batch_size=ROWS, buckets=buckets
  )


def make_task(layer='lru', **fields):
  return tasks.Classification(
      models.ModelConfig(layer=layer, num_layers=1, features=8, **fields)
  )


class NoRunTest(parameterized.TestCase):

  def one_device(self):
    return sharding.make_mesh(
        dict(data=1, fsdp=1, model=1, sequence=1), jax.devices()[:1]
    )

  @parameterized.parameters(
      ('lru', dict(pooling='last', bidirectional=True)),
      ('min_gru', dict(conv_kernel=3, norm='batch')),
  )
  def test_padding_changes_no_evaluation(self, layer, fields):
    padded, bucketed = load(1), load(3)
    task = make_task(layer, **fields).bind(padded)
    model = task.build(nnx.Rngs(0))
    mesh = self.one_device()
    for run in (evaluation.evaluate_model, evaluation.predict):
      one, other = (
          run(task, dataset, model, 'test', mesh)
          for dataset in (padded, bucketed)
      )
      self.assertEqual(one.keys(), other.keys())
      for name, values in one.items():
        np.testing.assert_allclose(other[name], values, atol=1e-6, rtol=1e-6)
    self.assertGreater(len(set(one['length'])), 3)  # In the order of the data.

  def test_predictions_of_steps_are_in_the_order_of_the_data(self):
    y = [row % 2 for row in arrays()['x']]
    padded, bucketed = load(1, y=y), load(3, y=y)
    task = make_task(pooling='none').bind(padded)
    model = task.build(nnx.Rngs(0))
    one, other = (
        evaluation.predict(task, dataset, model, 'test', self.one_device())
        for dataset in (padded, bucketed)
    )
    for name in ('target', 'prediction', 'probability'):
      for a, b in zip(one[name], other[name], strict=True):
        np.testing.assert_allclose(a, b, atol=1e-6)

  def test_several_steps_at_once_need_one_length(self):
    settings = SETTINGS | dict(steps_per_dispatch=2, log_every=2)
    with self.assertRaisesRegex(
        errors.UserValueError, r'^steps_per_dispatch must be 1, got 2: .* 3\.$'
    ):
      training.train(
          make_task(), load(), commands.temporary_directory(self), **settings
      )

  def test_a_plan_is_of_the_longest(self):
    path = commands.temporary_directory(self) / 'my.npz'
    given = arrays()
    lengths = np.array([len(u) for u in given['x']])
    whole = np.zeros((N, T), int)
    for row, u in zip(whole, given['x'], strict=True):
      row[: len(u)] = u
    np.savez(path, x=whole, y=given['y'], lengths=lengths)
    config = default.get_config()
    config.batch_size = ROWS
    config.data = default.data('npz_file')
    config.data.update(path=str(path), buckets=3)
    _, batch = plan.task_and_shapes(config)
    self.assertEqual(batch['inputs'].shape, (ROWS, lengths.max()))


class RunTest(absltest.TestCase):

  @classmethod
  def setUpClass(cls):
    super().setUpClass()
    cls.directory = commands.temporary_directory(cls)
    cls.dataset, cls.whole = load(), cls.directory / 'whole'
    cls.seen = []  # Lengths that are compiled, and then tokens of batches.
    init, dispatch = loop._Attempt.__init__, throughput.Meter.dispatch

    def watched(attempt, *args):
      init(attempt, *args)
      step = attempt.compiled_step
      attempt.compiled_step = lambda state, batch: (
          cls.seen.append(batch['inputs'].shape[1]) or step(state, batch)
      )

    def dispatching(meter, batch, tokens):
      cls.seen.append(tokens)
      dispatch(meter, batch, tokens)

    with (
        mock.patch.object(loop._Attempt, '__init__', watched),
        mock.patch.object(throughput.Meter, 'dispatch', dispatching),
    ):
      training.train(make_task(), cls.dataset, cls.whole, **SETTINGS)

  def test_every_length_is_compiled_first_and_counted(self):
    sizes = list(self.dataset.buckets)
    self.assertLen(sizes, 3)
    self.assertEqual(self.seen[:3], sizes)
    self.assertEqual(self.seen[3:], [
        self.dataset.train_batch(step)['inputs'].size for step in range(1, 13)
    ])
    self.assertEqual(set(self.seen[3:]), {ROWS * size for size in sizes})

  def test_a_run_that_is_stopped_goes_on_inside_of_an_epoch(self):
    workdir = self.directory / 'stopped'

    def stopping(start):
      batches = self.dataset.train_iterator(start)
      for step, batch in enumerate(batches, start):
        if step == 5:  # Of the 9 of an epoch.
          os.kill(os.getpid(), signal.SIGTERM)
        yield batch

    with self.assertRaises(signals.Interrupted):
      training.train(
          make_task(), watching.replaced(self.dataset, train_iterator=stopping),
          workdir, **SETTINGS,
      )
    training.train(make_task(), load(), workdir, **SETTINGS)
    for name in ('train_loss', 'eval_loss'):
      self.assertEqual(
          commands.metrics(workdir, name), commands.metrics(self.whole, name)
      )
    self.assertEqual(
        commands.digests(workdir, 12), commands.digests(self.whole, 12)
    )

  def test_devices_share_the_time_of_each_length(self):
    mesh, workdir = dict(data=4, sequence=2), self.directory / 'shared'
    training.train(make_task(), load(), workdir, **SETTINGS, mesh=mesh)
    one, other = (
        list(commands.metrics(run, 'train_loss').values())
        for run in (self.whole, workdir)
    )
    np.testing.assert_allclose(one, other, rtol=1e-5)
    odd = load(x=[u[: 1 + i % 3] for i, u in enumerate(arrays()['x'])])
    with self.assertRaisesRegex(errors.UserValueError, 'data.buckets'):
      training.train(
          make_task(), odd, self.directory / 'odd', **SETTINGS, mesh=mesh
      )


if __name__ == '__main__':
  absltest.main()
