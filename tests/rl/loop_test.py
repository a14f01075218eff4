"""Runs of PPO: metrics, curves, and bits that survive a stop."""

import signal

from absl.testing import absltest
from experiments.configs.rl import settings
import numpy as np
from rnnzoo import errors
from rnnzoo.rl import loop
from rnnzoo.rl import saved
from rnnzoo.training.processes import signals
from tests.experiments import commands


def config(**changes):
  config = settings.defaults('cart_pole', 'min_gru')
  config.update(config.smoke_overrides)
  config.update(dict(environment=dict(time_limit=20), tensorboard=False))
  config.update(changes)
  return config


class LoopTest(absltest.TestCase):

  def test_a_stopped_run_equals_one_without_a_stop(self):
    directory = commands.temporary_directory(self)
    whole, stopped = directory / 'whole', directory / 'stopped'
    result = loop.train(config(num_seeds=2), whole)
    self.assertLen(result['returns'], 2)
    self.assertTrue((whole / 'curve.png').exists())
    returns = commands.metrics(whole, 'train_return')
    self.assertEqual(list(returns), [2, 4])
    self.assertEqual(
        commands.metrics(whole, 'environment_steps'), {2: 128, 4: 256}
    )
    for step in returns:
      seeds = [
          commands.metrics(whole, f'train_return_seed_{i}')[step]
          for i in range(2)
      ]
      self.assertAlmostEqual(returns[step], float(np.mean(seeds)), 4)

    # A signal at the first log line.
    write = loop.summarize

    def interrupt(*args):
      signal.raise_signal(signal.SIGINT)
      return write(*args)

    loop.summarize = interrupt
    try:
      with self.assertRaisesRegex(signals.Interrupted, 'step 2 is saved'):
        loop.train(config(num_seeds=2), stopped)
    finally:
      loop.summarize = write
    self.assertEqual(commands.saved_steps(stopped), [2])
    again = loop.train(config(num_seeds=2), stopped)
    self.assertEqual(again, result)
    self.assertEqual(
        commands.digests(stopped, 4), commands.digests(whole, 4)
    )
    for name in ('loss', 'train_return', 'eval_return'):
      self.assertEqual(
          commands.metrics(stopped, name), commands.metrics(whole, name)
      )
    # A run that is finished is only evaluated.
    self.assertEqual(loop.train(config(num_seeds=2), whole), result)

  def test_no_run_to_evaluate(self):
    with self.assertRaisesRegex(errors.UserFileNotFoundError, 'no run in'):
      saved.evaluate_saved(commands.temporary_directory(self), 4)


if __name__ == '__main__':
  absltest.main()
