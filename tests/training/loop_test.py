"""Tests of `rnnzoo.training.loop`, with a small model, on eight devices."""

import hashlib
import json
import os
import signal
import types
from unittest import mock

from absl.testing import absltest
from absl.testing import parameterized
from experiments.cli import tasks
from experiments.cli import watching
import jax
import jax.numpy as jnp
from ml_collections import ConfigDict
import numpy as np
import optax
import rnnzoo
from rnnzoo import errors
from rnnzoo.training import checkpoint
from rnnzoo.training import checks
from rnnzoo.training import config as config_lib
from rnnzoo.training import evaluation
from rnnzoo.training import loop
from rnnzoo.training import metrics
from rnnzoo.training import program as program_lib
from rnnzoo.training import recovery
from rnnzoo.training import sharding
from rnnzoo.training import starting
from rnnzoo.training import summary as summary_lib
from rnnzoo.training.processes import signals
from tests.experiments import commands
from tests.experiments import tiny


def make_config(**changes):
  """A stateful run of six steps; `changes` have dots as `__`."""
  config = tiny.get_config()
  config.data.path = str(commands.ROOT / 'LICENSE')
  config.data.contiguous = config.stateful = True
  config.batch_size = 16
  config.model.dropout = 0.0
  config.total_steps = 6
  config.eval_every = 6
  config.save_every = 2
  for name, value in changes.items():
    config.update_from_flattened_dict({name.replace('__', '.'): value})
  return config


def stopping(train_iterator, stop_at):
  """The same batches, and a closed terminal together with one of them."""

  def batches(start):
    for step, batch in enumerate(train_iterator(start), start):
      if step == stop_at:
        os.kill(os.getpid(), signal.SIGHUP)
      yield batch

  return batches


class LoopTest(parameterized.TestCase):

  @classmethod
  def setUpClass(cls):
    super().setUpClass()
    cls.directory = commands.temporary_directory(cls)
    cls.reference = cls.directory / 'reference'
    cls.train(cls.reference)
    cls.losses = commands.metrics(cls.reference, 'train_loss')

  @classmethod
  def train(cls, workdir, stop_at=None, **changes):
    config = make_config(**changes)
    task, dataset = tasks.make_task(config)
    tasks.open_workdir(workdir, config)
    if stop_at:
      batches = stopping(dataset.train_iterator, stop_at)
      dataset = watching.replaced(dataset, train_iterator=batches)
    return loop.train(task, dataset, config, workdir)

  def assert_close(self, workdir, rtol=1e-5):
    found = commands.metrics(workdir, 'train_loss')
    self.assertEqual(list(found), list(self.losses))
    np.testing.assert_allclose(
        list(found.values()), list(self.losses.values()), rtol=rtol
    )

  def test_the_carry_is_saved_and_goes_on(self):
    workdir = self.directory / 'stopped'
    # Under nohup SIGHUP is ignored, in the background SIGINT.
    for number in (signal.SIGHUP, signal.SIGINT):
      old = signal.signal(number, signal.default_int_handler)
      self.addCleanup(signal.signal, number, old)
    with self.assertRaisesRegex(signals.Interrupted, 'SIGHUP; step 3 is saved'):
      self.train(workdir, stop_at=3)
    for number in (signal.SIGHUP, signal.SIGINT):
      self.assertIs(signal.getsignal(number), signal.default_int_handler)
    self.assertEqual(commands.saved_steps(workdir), [2, 3])
    carries = [n for n in commands.digests(workdir, 3) if n.startswith('carry')]
    self.assertLen(carries, 2)  # The convolution's and the layer's.
    self.train(workdir)
    self.assertEqual(commands.metrics(workdir, 'train_loss'), self.losses)
    self.assertEqual(
        commands.digests(workdir, 6), commands.digests(self.reference, 6)
    )

  def test_nohup(self):
    old = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    self.addCleanup(signal.signal, signal.SIGHUP, old)
    with signals.caught() as stop:
      os.kill(os.getpid(), signal.SIGHUP)
    self.assertIsNone(stop.signum)

  def test_killed_while_plotting(self):
    curve = self.reference / 'curve.png'
    drawn = curve.stat().st_mtime_ns
    with self.assertLogs('absl', 'INFO') as logs:
      self.train(self.reference)
    self.assertIn('Already trained to step 6.', str(logs.output))
    self.assertEqual(curve.stat().st_mtime_ns, drawn)
    curve.unlink()
    self.train(self.reference)
    self.assertTrue(curve.exists())

  def test_the_text_behind_a_run_changes(self):
    text = (commands.ROOT / 'LICENSE').read_text()
    path, workdir = self.directory / 'text.txt', self.directory / 'changing'
    path.write_text(text)
    changes = dict(
        data__path=str(path), save_every=1, eval_every=1, keep=1, log_every=1
    )
    self.train(workdir, total_steps=2, **changes)
    best = checkpoint.restore_meta(workdir / 'checkpoints', best=True)[1]
    self.assertEqual(
        best['data']['sha256'], hashlib.sha256(text.encode()).hexdigest()
    )
    appended = r'characters.train \d+ there, \d+ now; .*allow_changed=True'
    for new, message in (
        (text[::-1], 'of the same length, with another digest'),
        (text[:99] + 'ab' + text[101:], 'another digest'),
        (text[:99] + 'ba' + text[101:], 'another digest'),
        (text + text[:999], appended),
    ):
      path.write_text(new)
      _, dataset = tasks.make_task(make_config(**changes))
      with self.assertRaisesRegex(errors.UserValueError, message):
        checks.check_data(
            dataset.source, best['data'], 'data.allow_changed=True', False
        )
    with self.assertRaisesRegex(errors.UserValueError, appended):
      self.train(workdir, total_steps=3, **changes)
    rows = metrics.read_metrics(workdir)
    for row in rows:  # What there was looks better than all that may come.
      if 'eval_loss' in row:
        row['eval_loss'] = 1e-3
    (workdir / 'metrics.jsonl').write_text(
        ''.join(json.dumps(row) + '\n' for row in rows)
    )
    with checkpoint.Checkpointer(workdir / 'checkpoints') as saver:
      saver._rewrite(2, metric=1e-3)
    allowed = dict(changes, data__allow_changed=True)
    with self.assertLogs('absl', 'WARNING') as logs:
      summary = self.train(workdir, total_steps=3, **allowed)
    self.assertIn('The data is not what it was', str(logs.output))
    self.assertEqual(summary['best_step'], 3)
    self.assertGreater(summary['best_eval_loss'], 1)
    # From now on it is the data of this run.
    _, meta = checkpoint.restore_meta(workdir / 'checkpoints')
    self.assertEqual(meta['data'], dataset.source)

  def test_a_run_that_did_not_record_its_data(self):
    self.assertFalse(checks.check_data(dict(sha256='1'), None, '', False))
    self.assertFalse(checks.check_data(dict(version=1), {}, '', False))
    with self.assertRaisesRegex(ValueError, 'version 1 there, 2 now'):
      checks.check_data(dict(version=2), dict(version=1), '', False)

  def test_the_carry_matters(self):
    workdir = self.directory / 'stateless'
    self.train(workdir, stateful=False, total_steps=2)
    losses = commands.metrics(workdir, 'train_loss')
    self.assertAlmostEqual(losses[1], self.losses[1], places=5)
    self.assertGreater(abs(losses[2] - self.losses[2]), 1e-4)

  def test_several_steps_at_once(self):
    workdir = self.directory / 'several'
    self.train(
        workdir, steps_per_dispatch=2, log_every=2, profile_steps='4:4'
    )
    found = commands.metrics(workdir, 'train_loss')
    self.assertEqual(list(found), [2, 4, 6])
    for step, loss in found.items():
      np.testing.assert_allclose(loss, self.losses[step], rtol=1e-5)
    self.assertNotEmpty(list((workdir / 'profile').rglob('*.xplane.pb')))

  def test_where_the_time_goes(self):
    rows = metrics.read_metrics(self.reference)
    rows = [row for row in rows if 'device_seconds' in row]
    # Not of the first, in which all is compiled.
    self.assertGreaterEqual(len(rows), 4)
    self.assertGreater(sum(row['input_seconds'] for row in rows), 0)
    for row in rows:
      self.assertBetween(row['input_wait'], 0, 1)
      self.assertGreater(row['device_seconds'], 0)
      self.assertGreater(row['tokens_per_second_per_device'], 0)
      self.assertNotIn('model_flops_utilization', row)  # Not known of a CPU.

  def test_accumulation(self):
    workdir = self.directory / 'accumulated'
    self.train(workdir, accumulate_steps=2)
    self.assert_close(workdir)

  def test_moving_average_and_fine_tuning(self):
    first, second = self.directory / 'first', self.directory / 'second'
    # The moving average is what is evaluated, restored and taken over.
    summary = self.train(first, ema_decay=0.9, total_steps=2)
    steps = commands.digests(first, 2)
    self.assertNotEqual(
        steps['ema/embed/embedding'], steps['params/embed/embedding']
    )
    model = rnnzoo.restore(first)
    config = make_config(ema_decay=0.9, total_steps=2)
    task, dataset = tasks.make_task(config)
    mesh = sharding.make_mesh(config.mesh)
    found = evaluation.evaluate_model(task, dataset, model, 'test', mesh)
    self.assertAlmostEqual(found['loss'], summary['test_loss'], places=5)
    self.train(
        second, init_from=str(first), optimizer__freeze=('embed',),
        total_steps=1,
    )
    tuned = commands.digests(second, 1)
    self.assertEqual(
        tuned['params/embed/embedding'], steps['ema/embed/embedding']
    )
    self.assertNotEqual(tuned['params/head/kernel'], steps['ema/head/kernel'])

  def test_init_from_another_vocabulary(self):
    with self.assertRaisesRegex(
        errors.UserValueError, 'init_from=.* different vocabularies'
    ):
      self.train(
          self.directory / 'bytes', init_from=str(self.reference),
          data__level='byte',
      )

  def test_batch_norm_in_a_loop_over_depth(self):
    workdir = self.directory / 'deep'
    summary = self.train(
        workdir, model__norm='batch', model__scan_layers=True,
        model__remat='full', total_steps=2,
    )
    self.assertLess(summary['test_loss'], 6)
    self.assertIn(
        'batch_stats/norm/mean', commands.digests(workdir, 2)
    )


class SummaryTest(absltest.TestCase):

  def test_a_best_loss_of_zero(self):
    config = make_config()
    functional = mock.MagicMock(params={}, batch_stats={}, axes={})
    restored = {'params': {}, 'batch_stats': {}}
    run = mock.MagicMock(
        config=config, mesh=sharding.make_mesh(config.mesh),
        task=mock.MagicMock(
            functional=functional, best='loss', best_mode='min',
            derived=lambda *_: {},
        ),
        dataset=types.SimpleNamespace(
            name='text_file', fixture=False, eval_splits=('validation', 'test')
        ),
        saver=mock.MagicMock(
            restore=lambda *_, **__: (5, restored, {}),
            metrics={4: -1.0, 5: 0.0},
        ),
        means=lambda *_: dict(loss=2.0, accuracy=0.5),
        workdir=commands.temporary_directory(type(self)),
    )
    history = recovery.History()
    found = summary_lib.summarize(run, history)
    self.assertEqual(found['best_eval_loss'], 0)
    self.assertEqual(found['test_accuracy'], 0.5)
    del run.saver.metrics[5]  # Its evaluation is lost.
    found = summary_lib.summarize(run, history)
    self.assertEqual(found['best_eval_loss'], -1)


class StartingTest(parameterized.TestCase):

  @parameterized.parameters((6, True), (2, False))
  def test_data_that_changed(self, total_steps, changed):
    config = make_config(total_steps=total_steps)
    config.data.allow_changed = True
    meta = dict(vocabulary={}, data=dict(version=1))
    saver = mock.MagicMock(
        latest_step=lambda: 2, restore=lambda *_, **__: (2, 'state', meta)
    )
    run = mock.MagicMock(
        config=config, saver=saver, meta=dict(meta, data=dict(version=2))
    )
    bad = recovery.BadNumbers('It is bad', 4)
    for go_on in (starting.start, lambda run: starting.roll_back(run, bad)):
      saver.forget_metrics.reset_mock()
      state, history = go_on(run)
      self.assertEqual((state, history.data_since), ('state', 2 * changed))
      # A run that is finished keeps its best checkpoint.
      self.assertEqual(saver.forget_metrics.called, changed)
    noted = saver.note.call_args.args[1]
    self.assertEqual(noted['history']['data_since'], 2 * changed)
    self.assertLen(noted['history']['rollbacks'], 1)

  def test_steps_that_are_deleted_have_no_metrics_to_forget(self):
    directory = commands.temporary_directory(type(self)) / 'checkpoints'
    with checkpoint.Checkpointer(directory) as saver:
      saver.save(1, {'w': jnp.ones(1)}, {}, best_metric=1.0)
      saver._policy.metrics[7] = 0.5
      saver.forget_metrics()
      self.assertEqual(saver.metrics, {})
    with checkpoint.Checkpointer(directory) as saver:
      self.assertEqual((saver.all_steps(), saver.metrics), ([1], {}))

  def test_a_run_with_all_in_bfloat16_goes_on_in_float32(self):
    # As they were once saved: moments of frozen parameters, too.
    changes = dict(model__param_dtype='bfloat16', ema_decay=0.9)
    config = make_config(**changes)
    task, dataset = tasks.make_task(config)
    mesh = sharding.make_mesh(config.mesh)
    old = program_lib.make_program(task, config, mesh)
    state = jax.jit(old.make_state, out_shardings=old.shardings)()
    parts = ('params', 'ema', 'opt_state')
    for u in jax.tree.leaves([state[name] for name in parts]):
      self.assertIn(u.dtype, (jnp.float32, jnp.int32))
    narrow = lambda u: u.astype(
        jnp.bfloat16 if u.dtype == jnp.float32 else u.dtype
    )
    state |= {
        name: jax.tree.map(lambda u: narrow(u + 1), state[name])
        for name in parts
    }
    config = make_config(optimizer__freeze=('embed',), **changes)
    program = program_lib.make_program(task, config, mesh)
    workdir = commands.temporary_directory(type(self))
    with checkpoint.Checkpointer(workdir / 'checkpoints') as saver:
      meta = loop.make_meta(task, dataset, config)
      saver.save(2, state, meta)
      found, _ = starting.start(types.SimpleNamespace(
          config=config, program=program, saver=saver, meta=meta
      ))
    self.assertEqual(
        jax.tree.map(lambda u: (u.shape, u.dtype.name, u.sharding), found),
        jax.tree.map(
            lambda u: (u.shape, u.dtype.name, u.sharding),
            program.abstract_state,
        ),
    )
    for name in ('params', 'ema'):
      jax.tree.map(np.testing.assert_array_equal, found[name], state[name])
    moments = [
        optax.tree.get(s['opt_state'], 'mu') for s in (found, state)
    ]
    self.assertFalse(jax.tree.leaves(moments[0]['embed']))
    jax.tree.map(np.testing.assert_array_equal, *(m['head'] for m in moments))
    # The model has them as it always had, rounded.
    model = rnnzoo.restore(workdir)
    kernel = model.head.kernel[...]
    self.assertEqual(kernel.dtype, jnp.bfloat16)
    np.testing.assert_array_equal(kernel, state['ema']['head']['kernel'])


class ConfigTest(parameterized.TestCase):

  def check(self, **changes):
    old, new = (
        json.loads(make_config(**c).to_json()) for c in ({}, changes)
    )
    checks.check_same_config(old, new)

  def test_what_may_differ(self):
    self.check(
        mesh__fsdp=2, log_every=3, eval_every=3, save_every=3, keep=1,
        data__data_dir='x', profile_steps='1:2', tensorboard=True,
        total_steps=99, on_nan='skip', nan_limit=1, nan_rate_factor=0.1,
    )

  def test_names_of_one_file(self):
    with mock.patch.dict(os.environ, HOME=os.getcwd()):
      for name in ('./t.txt', os.path.abspath('t.txt'), '~/t.txt'):
        checks.check_same_config(
            dict(data=dict(path='t.txt')), dict(data=dict(path=name))
        )
    for name in ('t.txt', ''):
      with self.assertRaisesRegex(errors.UserValueError, 'init_from: '):
        checks.check_same_config(dict(init_from='.'), dict(init_from=name))

  @parameterized.parameters(
      (dict(seed=4), 'seed: 0 there, 4 now'),
      (dict(model__features=4, batch_size=2),
       'batch_size: 16 there, 2 now; model.features: 16 there, 4 now'),
      (dict(data__path='y'), r'data.path: .* there, .y. now'),
      (dict(optimizer__options=ConfigDict(dict(b1=0.5))), r'optimizer.options'),
  )
  def test_what_may_not(self, changes, message):
    with self.assertRaisesRegex(errors.UserValueError, message):
      self.check(**changes)

  def test_total_steps_of_a_schedule_with_an_end(self):
    old, new = ({}, {})
    for config, steps in ((old, 3), (new, 4)):
      config |= dict(total_steps=steps, optimizer=dict(schedule='cosine'))
    with self.assertRaisesRegex(
        errors.UserValueError,
        'total_steps: 3 there, 4 now.*optimizer.schedule=constant.*init_from',
    ):
      checks.check_same_config(old, new)
    with self.assertRaises(errors.UserValueError) as caught:
      checks.check_same_config(old, dict(old, seed=1))
    self.assertNotIn('init_from', str(caught.exception))

  @parameterized.parameters('3', '3:', ':3', '0:3', '4:3', 'a:b', '1:2:3')
  def test_bad_profile_window(self, text):
    with self.assertRaisesRegex(errors.UserValueError, 'profile_steps'):
      config_lib.profile_window(text)

  def test_profile_window(self):
    self.assertIsNone(config_lib.profile_window(''))
    self.assertEqual(config_lib.profile_window('3:12'), (3, 12))

  def test_vocabulary(self):
    then = dict(level='char', symbols='abc')
    checks.check_vocabulary(dict(then), then)
    checks.check_vocabulary(None, None)
    for now, message in (
        (dict(level='char', symbols='abd'), "only the model 'c'"),
        (None, 'no text now, char'),
    ):
      with self.assertRaisesRegex(ValueError, message):
        checks.check_vocabulary(now, then)


if __name__ == '__main__':
  absltest.main()
