"""`patience`: a run ends once its evaluations bring nothing better."""

import json
import types

from absl.testing import absltest
from absl.testing import parameterized
import numpy as np
from rnnzoo import data
from rnnzoo import errors
from rnnzoo import models
from rnnzoo import tasks
from rnnzoo import training
from rnnzoo.training import recovery
from rnnzoo.training import stopping
from tests.experiments import commands


class ReasonTest(parameterized.TestCase):

  @parameterized.parameters(
      # The best one first, then none, one and two that are no better.
      (tasks.Classification, [0.5], False),
      (tasks.Classification, [0.5, 0.4], False),
      (tasks.Classification, [0.5, 0.4, 0.4], True),
      (tasks.Classification, [0.5, 0.5, 0.5], True),  # Equal is no better.
      (tasks.Classification, [0.5, 0.4, 0.6], False),
      (tasks.Classification, [0.1, 0.5, 0.4, 0.3], True),
      (tasks.Regression, [0.5, 0.6, 0.7], True),
      (tasks.Regression, [0.5, 0.6, 0.4], False),
  )
  def test_patience_of_two(self, task, values, ends):
    found = self.reason(task, values)
    self.assertEqual('(patience)' in found, ends)

  def test_what_does_not_count(self):
    values = [0.5, 0.4, 0.4, 0.9]
    self.assertTrue(self.reason(tasks.Classification, values, step=30))
    self.assertFalse(self.reason(tasks.Classification, values, step=35))
    self.assertFalse(self.reason(tasks.Classification, values, patience=0))
    # After other data, the first evaluation is the best one yet.
    history = recovery.History(data_since=10)
    self.assertFalse(
        self.reason(tasks.Classification, [0.5, 0.4, 0.4], history=history)
    )

  def reason(self, task, values, *, step=None, patience=2, history=None):
    workdir = commands.temporary_directory(self)
    steps = range(10, 10 * len(values) + 1, 10)
    rows = [
        {'step': n, 'wall_time': n, f'eval_{task.best}': value}
        for n, value in zip(steps, values)
    ]
    text = ''.join(json.dumps(row) + '\n' for row in rows)
    (workdir / 'metrics.jsonl').write_text(text)
    run = types.SimpleNamespace(workdir=workdir, task=task, config=(
        types.SimpleNamespace(
            stop_at={}, patience=patience, eval_splits=('validation',)
        )
    ))
    history = history or recovery.History()
    return stopping.reason(run, history, step or steps[-1])


class RunTest(absltest.TestCase):

  def test_a_resumed_run_ends_at_the_same_step(self):
    x = np.random.default_rng(0).normal(size=(40, 3, 2))
    dataset = data.from_arrays(x, np.arange(40) % 2, batch_size=8)
    workdir = commands.temporary_directory(self)

    def train(**changes):
      summary = training.train(
          tasks.Classification(models.ModelConfig(
              layer='min_gru', num_layers=1, features=4, mlp='none'
          )), dataset, workdir, **dict(
              total_steps=100, eval_every=4, save_every=4, log_every=4,
              patience=3, tensorboard=False,
              # Nothing is learned.
              optimizer=dict(
                  learning_rate=0.0, schedule='constant', warmup_steps=0
              ),
          ) | changes,
      )
      evals = list(commands.metrics(workdir, 'eval_accuracy'))
      return summary['best_step'], evals

    # The first evaluation is the best one; it takes three more.
    self.assertEqual(train(total_steps=8), (4, [4, 8]))
    self.assertEqual(train(), (4, [4, 8, 12, 16]))
    with self.assertLogs('absl', 'INFO') as logs:
      self.assertEqual(train(), (4, [4, 8, 12, 16]))
    self.assertIn('Already trained to step 16', str(logs.output))
    with self.assertRaisesRegex(errors.UserError, 'patience must not be neg'):
      train(patience=-1)


if __name__ == '__main__':
  absltest.main()
