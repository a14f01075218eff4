"""Bad numbers and failing saves in real runs, on eight devices."""

import errno
import json
import os
import signal
from unittest import mock

from absl import logging
from absl.testing import absltest
from absl.testing import parameterized
from experiments.cli import tasks
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from rnnzoo import errors
from rnnzoo.training import checkpoint
from rnnzoo.training import config as config_lib
from rnnzoo.training import loop
from rnnzoo.training import recovery
from rnnzoo.training.processes import signals
from tests.experiments import commands
from tests.training import loop_test
from tests.training import poison


class RecoveryTestCase(parameterized.TestCase):

  @classmethod
  def setUpClass(cls):
    super().setUpClass()
    cls.directory = commands.temporary_directory(cls)

  def train(self, name, bad=None, *, stop_at=None, kill_at=None,
            stop_evaluating=None, **changes):
    """Trains for six steps, saving every second; `seen` lists the batches."""
    workdir = self.directory / name
    config = loop_test.make_config(**dict(model__num_layers=1) | changes)
    task, dataset = tasks.make_task(config)
    tasks.open_workdir(workdir, config)
    task, dataset, self.seen = poison.poisoned(
        task, dataset, bad or {}, stop_at, kill_at, stop_evaluating
    )
    return loop.train(task, dataset, config, workdir)

  def losses(self, name):
    return commands.metrics(self.directory / name, 'train_loss')

  def digests(self, name, step=6):
    return commands.digests(self.directory / name, step)

  def history(self, name):
    directory = self.directory / name / 'checkpoints'
    with checkpoint.Checkpointer(directory, readonly=True) as saver:
      return recovery.History.of(saver.restore_meta()[1])


class HistoryTest(parameterized.TestCase):

  def test_as_a_part_of_meta(self):
    # Checkpoints of earlier versions have none.
    self.assertEqual(recovery.History.of(dict(config={})), recovery.History())
    history = recovery.History(skipped=3, in_a_row=1).roll_back(4, 9, 0.5)
    meta = json.loads(json.dumps(history.in_meta(dict(config={}))))
    self.assertEqual(set(meta), {'config', 'history'})
    self.assertEqual(recovery.History.of(meta), history)

  def test_rollbacks(self):
    history = recovery.History()
    for restored, bad in ((4, 9), (4, 5), (8, 10)):
      history = history.roll_back(restored, bad, 0.5)
    self.assertEqual(history.rollbacks_to(4), 2)
    self.assertEqual(history.rollbacks_to(8), 1)
    self.assertEqual(history.rate, 0.125)
    # Step 5 had batch 5, then 10, then 11; step 9 batch 15, then 17.
    self.assertEqual(history.batches_left_out, 8)

  def test_rates(self):
    config = loop_test.make_config()
    config.optimizer = dict(
        start_learning_rate=0.4, learning_rate=2, end_learning_rate=0.1
    )
    config.lock()
    history = recovery.History().roll_back(4, 9, 0.25)
    self.assertEqual(
        history.adjust(config).optimizer.to_dict(),
        dict(
            start_learning_rate=0.1, learning_rate=0.5, end_learning_rate=0.025
        ),
    )
    self.assertEqual(config.optimizer.learning_rate, 2)

  @parameterized.parameters(
      ('on_nan', 'skipp', 'Did you mean "skip"?'),
      ('nan_limit', 0, 'nan_limit must be at least 1'),
      ('nan_rate_factor', 0.0, r'nan_rate_factor must be in \(0, 1\]'),
  )
  def test_bad_values(self, name, value, message):
    config = loop_test.make_config(**{name: value})
    with self.assertRaisesRegex(errors.UserValueError, message):
      config_lib.check(config)

  def test_soundness(self):
    state = dict(
        params=dict(w=jnp.ones(3)), step=jnp.int32(1),
        carry=dict(m=jnp.full(2, -jnp.inf)),
        opt_state=(jnp.zeros((), jnp.int32), jnp.ones(3)),
    )
    self.assertTrue(recovery.is_sound(state))
    for name, value in (('params', jnp.inf), ('carry', jnp.nan),
                        ('opt_state', jnp.nan), ('ema', -jnp.inf)):
      bad = state | {name: [jnp.array([0, value])]}
      self.assertFalse(recovery.is_sound(bad), name)
    # A table of what is impossible, which no training has made.
    state['params']['frozen'] = jnp.full(2, -jnp.inf)
    self.assertFalse(recovery.is_sound(state))
    frozen = dict(w=False, frozen=True)
    self.assertTrue(recovery.is_sound(state, frozen))
    state['params']['w'] = jnp.full(3, jnp.nan)
    self.assertFalse(recovery.is_sound(state, frozen))


class BadNumbersTest(RecoveryTestCase):

  @parameterized.parameters(('row', 'loss'), ('gradient', 'gradient'))
  def test_stop(self, kind, what):
    with self.assertRaisesRegex(
        errors.UserError,
        f'The {what} is not finite at step 3 .* last good checkpoint is step 2;'
        '.* on_nan=rollback',
    ):
      self.train(f'stop_{kind}', {3: kind}, total_steps=4, eval_every=4)
    workdir = self.directory / f'stop_{kind}'
    self.assertIsNone(commands.metrics(workdir, 'grad_norm')[3])
    self.assertEqual(
        commands.metrics(workdir, 'train_loss')[3] is None, what == 'loss'
    )
    self.assertEqual(commands.saved_steps(workdir), [2])

  def test_skip(self):
    bad = {2: 'loss', 3: 'gradient', 4: 'row', 5: 'carry'}
    skip = dict(on_nan='skip', keep=9, save_every=1)
    with self.assertLogs(logging.get_absl_logger()) as logs:
      summary = self.train('skip', bad, **skip)
    self.assertRegex(
        '\n'.join(logs.output),
        r'The gradient is not .* step 3 .* skipped, number 2 in all, 2 in a ',
    )
    self.assertEqual(summary['skipped_steps'], 4)
    losses = self.losses('skip')
    self.assertEqual([s for s in losses if losses[s] is None], [2, 4])
    counts = commands.metrics(self.directory / 'skip', 'skipped_steps')
    self.assertEqual(counts, {2: 1, 3: 2, 4: 3, 5: 4, 6: 4})
    # Whatever was wrong, nothing but the step's number is new.
    after = {step: self.digests('skip', step) for step in range(1, 7)}
    for step in bad:
      changed = [n for n in after[1] if after[step][n] != after[1][n]]
      self.assertEqual(changed, ['step'])
    changed = [n for n in after[1] if after[6][n] != after[1][n]]
    self.assertContainsSubset(['params/head/kernel', 'step'], changed)
    # The same bits, if it was stopped in between.
    with self.assertRaises(signals.Interrupted):
      self.train('skip_stopped', bad, stop_at=4, **skip)
    self.train('skip_stopped', bad, **skip)
    self.assertEqual(self.losses('skip_stopped'), losses)
    self.assertEqual(self.digests('skip_stopped'), after[6])

  def test_skip_too_often(self):
    skip = dict(on_nan='skip', nan_limit=2)
    bad = {2: 'loss', 4: 'row', 5: 'gradient'}
    # Stopped between the two in a row.
    with self.assertRaises(signals.Interrupted):
      self.train('often', bad, stop_at=4, **skip)
    self.assertEqual(self.history('often').in_a_row, 1)
    with self.assertRaisesRegex(
        errors.UserError,
        'gradient is not finite at step 5 .* of 2 such steps in a row',
    ):
      self.train('often', bad, **skip)
    # Who wants more patience can have it, and other policies.
    self.train('often', bad, on_nan='skip', nan_limit=3)
    self.assertEqual(self.history('often').skipped, 3)

  def test_roll_back(self):
    back = dict(on_nan='rollback', keep=9)
    bad = {4: 'row', 8: 'gradient'}
    with self.assertLogs(logging.get_absl_logger()) as logs:
      summary = self.train('back', bad, **back)
    said = '\n'.join(logs.output)
    self.assertRegex(said, r'step 4 .*Back to step 2, with the learning rate '
                     r'times 0\.5; batches 3 to 4 are left out')
    self.assertRegex(said, r'step 6 .*Back to step 4, with the learning rate '
                     r'times 0\.25; batches 7 to 8 are left out')
    self.assertEqual(self.seen, [1, 2, 3, 4, 5, 6, 7, 8, 9, 10])
    self.assertEqual(summary['rollbacks'], 2)
    losses = self.losses('back')
    self.assertEqual(list(losses), [1, 2, 3, 4, 5, 6])
    self.assertTrue(np.isfinite(list(losses.values())).all())
    self.assertEqual(
        self.history('back').rollbacks,
        (dict(restored=2, bad=4, rate=0.5), dict(restored=4, bad=6, rate=0.5)),
    )
    # The same bits, if it is killed just after the first rollback and stopped
    # after the second.
    with self.assertRaises(KeyboardInterrupt):
      self.train('stopped', bad, kill_at=5, **back)
    self.assertEqual(commands.saved_steps(self.directory / 'stopped'), [2])
    self.assertLen(self.history('stopped').rollbacks, 1)
    with self.assertRaises(signals.Interrupted):
      self.train('stopped', bad, stop_at=9, **back)
    self.assertEqual(self.seen, [5, 6, 7, 8, 9])
    self.train('stopped', bad, **back)
    self.assertEqual(self.seen, [10])
    self.assertEqual(self.losses('stopped'), losses)
    self.assertEqual(self.digests('stopped'), self.digests('back'))

  def test_roll_back_to_the_start(self):
    back = dict(on_nan='rollback', total_steps=4, eval_every=4)
    self.train('start', {1: 'loss'}, **back)
    self.assertEqual(self.seen, [1, 2, 2, 3, 4, 5])  # It is a step ahead.
    self.assertEqual(
        self.history('start').rollbacks, (dict(restored=0, bad=1, rate=0.5),)
    )

  def test_roll_back_too_often(self):
    bad = {number: 'loss' for number in range(3, 100)}
    for _ in range(2):  # The second time it has given up already.
      with self.assertRaisesRegex(
          errors.UserError, 'gone back to step 2 3 times .nan_limit. and gives'
      ):
        self.train('over', bad, on_nan='rollback', nan_limit=3)
    self.assertLen(self.history('over').rollbacks, 3)


class StoppedEvaluationTest(RecoveryTestCase):

  def test_it_is_made_up_for(self):
    changes = dict(total_steps=4, eval_every=2, save_every=4)
    expected = self.train('whole', **changes)
    evaluations = lambda name: commands.metrics(
        self.directory / name, 'eval_loss'
    )
    # In the first one, the one at the end, and the one on the test split.
    for when, said, done, saved in (
        (1, 'step 2 is saved', [], [2]),
        (2, 'step 4 is saved', [2], [2, 4]),
        (2, 'step 4 is saved', [2, 4], [2, 4]),
    ):
      with self.assertRaisesRegex(signals.Interrupted, said):
        self.train('stopped', stop_evaluating=when, **changes)
      self.assertEqual(list(evaluations('stopped')), done)
      self.assertEqual(
          commands.saved_steps(self.directory / 'stopped'), saved
      )
    found = self.train('stopped', **changes)
    for name in ('train_loss', 'eval_loss'):
      self.assertEqual(
          commands.metrics(self.directory / 'stopped', name),
          commands.metrics(self.directory / 'whole', name),
      )
    for name in ('best_step', 'best_eval_loss', 'test_loss'):
      self.assertEqual(found[name], expected[name])


class FailingSavesTest(RecoveryTestCase):

  def let_fail(self, name, times):
    """Lets calls of Orbax's manager fail as on a full disk, by number."""
    real = getattr(ocp.CheckpointManager, name)
    calls = []

    def call(manager, *args, **kwargs):
      calls.append(name)
      if len(calls) in times:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
      return real(manager, *args, **kwargs)

    self.enterContext(mock.patch.object(ocp.CheckpointManager, name, call))

  def test_training_goes_on(self):
    self.train('whole', total_steps=4, eval_every=2, save_every=1, keep=9)
    # The save of step 1 does not begin, and another does not end.
    self.let_fail('save', [1])
    self.let_fail('wait_until_finished', [2])
    with self.assertLogs(logging.get_absl_logger(), 'WARNING') as logs:
      self.train('failing', total_steps=4, eval_every=2, save_every=1, keep=9)
    self.assertLen(logs.output, 2)
    for line, step in zip(logs.output, ('1', '[23]')):
      self.assertRegex(
          line,
          f'Cannot save checkpoint {step} in .*: No space left on device.* '
          'The next save tries again.',
      )
    saved = commands.saved_steps(self.directory / 'failing')
    self.assertIn(4, saved)
    self.assertNotIn(1, saved)
    self.assertEqual(self.losses('failing'), self.losses('whole'))
    self.assertEqual(self.digests('failing', 4), self.digests('whole', 4))

  def test_the_last_save(self):
    last = dict(total_steps=2, eval_every=2, save_every=2)
    # It is tried twice,
    self.let_fail('save', [1, 3, 4])
    self.train('last', **last)
    self.assertEqual(commands.saved_steps(self.directory / 'last'), [2])
    # and not more often.
    with self.assertRaisesRegex(errors.UserError, 'Cannot save checkpoint 2'):
      self.train('last_fails', **last)
    self.train('last_fails', **last)
    self.assertEqual(self.digests('last_fails', 2), self.digests('last', 2))

  def test_a_signal_and_no_room(self):
    self.let_fail('save', [2, 3, 4])
    handler = signal.getsignal(signal.SIGINT)
    with self.assertRaisesRegex(
        errors.UserError,
        'Cannot save checkpoint 3 in .*: No space left .* kept is 2',
    ):
      self.train('signal', stop_at=3)
    self.assertIs(signal.getsignal(signal.SIGINT), handler)
    # A rollback is made, too, though it cannot be noted.
    self.train('unnoted', {1: 'loss'}, on_nan='rollback', total_steps=2,
               eval_every=2)


if __name__ == '__main__':
  absltest.main()
