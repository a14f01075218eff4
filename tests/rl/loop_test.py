"""Runs of PPO: metrics, curves, and bits that survive a stop."""

import signal
from unittest import mock

from absl.testing import absltest
from experiments.configs.rl import settings
import numpy as np
from rnnzoo import errors
from rnnzoo.rl import loop
from rnnzoo.rl import saved
from rnnzoo.training import records
from rnnzoo.training.processes import signals
from tests.experiments import commands


def config(**changes):
  config = settings.defaults('cart_pole', 'min_gru')
  config.update(config.smoke_overrides)
  config.update(dict(environment=dict(time_limit=20), tensorboard=False))
  config.update(changes)
  return config


class Killed(BaseException):
  """Ends a run at once, as SIGKILL does."""


class LoopTest(absltest.TestCase):

  def test_a_stopped_run_equals_one_without_a_stop(self):
    directory = commands.temporary_directory(self)
    whole, stopped = directory / 'whole', directory / 'stopped'
    make = lambda **changes: config(num_seeds=2, total_steps=6, **changes)
    result = loop.train(make(), whole)
    self.assertLen(result['returns'], 2)
    self.assertTrue((whole / 'curve.png').exists())
    returns = commands.metrics(whole, 'train_return')
    self.assertEqual(list(returns), [2, 4, 6])
    self.assertEqual(
        commands.metrics(whole, 'environment_steps'), {2: 128, 4: 256, 6: 384}
    )
    for step in returns:
      seeds = [
          commands.metrics(whole, f'train_return_seed_{i}')[step]
          for i in range(2)
      ]
      self.assertAlmostEqual(returns[step], float(np.mean(seeds)), 4)
    # The first steps of a program include its compilation.
    speeds = commands.metrics(whole, 'environment_steps_per_second')
    self.assertEqual(list(speeds), [4, 6])
    self.check_summary(result, whole)

    # A signal at the first log line, and a sudden end at the next one.
    write, seen = loop.summarize, []

    def interrupt(*args):
      seen.append(args)
      if len(seen) == 1:
        signal.raise_signal(signal.SIGINT)
      elif len(seen) == 2:
        raise Killed
      return write(*args)

    with mock.patch.object(loop, 'summarize', interrupt):
      with self.assertRaisesRegex(signals.Interrupted, 'step 2 is saved'):
        loop.train(make(), stopped)
      self.assertEqual(commands.saved_steps(stopped), [2])
      with self.assertRaises(Killed):
        loop.train(make(), stopped)
      again = loop.train(make(), stopped)
    speeds = commands.metrics(stopped, 'environment_steps_per_second')
    self.assertEqual(list(speeds), [6])
    for found in (again, result):
      found.pop('seconds')
    self.assertEqual(again, result)
    self.assertEqual(
        commands.digests(stopped, 6), commands.digests(whole, 6)
    )
    for name in ('loss', 'train_return', 'eval_return'):
      self.assertEqual(
          commands.metrics(stopped, name), commands.metrics(whole, name)
      )
    # A run that is finished is only evaluated.
    self.assertEqual(
        loop.train(make(), whole)['returns'], result['returns']
    )
    self.check_refusals(make, whole)

  def check_summary(self, result, workdir):
    """The result is of other episodes than the choice of the checkpoint."""
    chosen = commands.metrics(workdir, 'eval_return')[result['best_step']]
    self.assertEqual(result['best_eval_return'], chosen)
    self.assertAlmostEqual(float(np.mean(result['eval_returns'])), chosen, 4)
    self.assertNotAlmostEqual(result['test_return'], chosen, 3)
    path = workdir / 'summary.json'
    self.assertEqual(records.read_summary(path), result)
    found = saved.evaluate_saved(workdir, 4)
    self.assertEqual(found['returns'], result['returns'])

  def check_refusals(self, make, workdir):
    """A run goes on with what it is of, and a policy acts where it can."""
    for changes, message in (
        # The same shapes: nothing else would notice.
        (dict(environment=dict(time_limit=7)), 'environment.time_limit 20, .*'),
        (dict(environment=dict(masked=True)), 'environment.masked False, .*T'),
        (dict(model=dict(layer='lru')), 'with model.layer min_gru.*lru'),
        (dict(log_every=4, total_steps=8, eval_every=8, save_every=8),
         'log_every 4 must divide the step of the latest checkpoint, 6'),
    ):
      changed = make()
      changed.update(changes)
      with self.assertRaisesRegex(errors.UserValueError, f'(?i){message}'):
        loop.train(changed, workdir)
    longer = saved.evaluate_saved(
        workdir, 4, environment=dict(time_limit=30)
    )
    self.assertEqual(longer['environment']['time_limit'], 30)
    self.assertGreater(longer['mean_return'], 0)
    for environment in (dict(masked=True), dict(name='t_maze')):
      with self.assertRaisesRegex(
          errors.UserValueError, r'trained on CartPole\(.* cannot act in '
      ):
        saved.evaluate_saved(workdir, 4, environment=environment)

  def test_a_run_stops_on_what_is_not_finite(self):
    """The loss of a step is finite before its update is not."""
    workdir = commands.temporary_directory(self)
    with self.assertRaisesRegex(
        errors.UserError, r'param_norm is not finite by step 1\. The checkp'
    ):
      loop.train(config(
          epochs=1, minibatches=1, log_every=1, total_steps=2, save_every=1,
          optimizer=dict(learning_rate=3e38),
      ), workdir)
    self.assertEqual(commands.saved_steps(workdir), [])
    ones = np.ones((2, 3))
    for name in ('loss', 'grad_norm', 'param_norm'):
      metrics = dict(loss=ones, grad_norm=ones, param_norm=ones)
      loop.check_finite(metrics, 4)
      metrics[name] = np.where(np.arange(3) == 1, np.nan, ones)
      with self.assertRaisesRegex(errors.UserError, rf'{name} .*\(agents 1\)'):
        loop.check_finite(metrics, 4)

  def test_no_run_to_evaluate(self):
    with self.assertRaisesRegex(errors.UserFileNotFoundError, 'no run in'):
      saved.evaluate_saved(commands.temporary_directory(self), 4)


if __name__ == '__main__':
  absltest.main()
