"""Tests of `rnnzoo.training.checkpoint`, on real files."""

import gc
import json
import logging as python_logging
import subprocess
import sys
from unittest import mock

from absl import logging
from absl.testing import absltest
import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from orbax.checkpoint._src.serialization import tensorstore_utils
from rnnzoo import errors
from rnnzoo.training import checkpoint
from rnnzoo.training.checkpoint import arrays
from rnnzoo.training.checkpoint import orbax_context
from tests.training import cases

P = jax.sharding.PartitionSpec


class CheckpointerTest(cases.CheckpointTestCase):

  def test_saving_and_restoring_a_state(self):
    state = cases.make_state(3)
    state['odd'] = {
        'bool': jnp.array([True, False]), 'complex': jnp.array([1 + 2j]),
        'half': jnp.ones((2, 2), jnp.float16), 'empty': jnp.zeros((0, 3)),
        'list': [jnp.uint32(7), {1: jnp.int8(-1)}],
    }
    with checkpoint.Checkpointer(self.directory) as checkpoints:
      self.assertTrue(checkpoints.save(3, state, cases.META))
    step, restored, meta = self.open().restore(cases.abstract(state))
    self.assertEqual((step, meta), (3, cases.META))
    self.assert_states_equal(restored, state)
    self.assertEqual(checkpoint.restore_meta(self.directory), (3, cases.META))

  def test_plain_orbax_reads_the_checkpoint(self):
    state = cases.make_state(3)
    with checkpoint.Checkpointer(self.directory) as checkpoints:
      checkpoints.save(3, state, cases.META)
    with ocp.CheckpointManager(self.directory) as manager:
      read = manager.restore(3, args=ocp.args.Composite(
          state=ocp.args.StandardRestore(), meta=ocp.args.JsonRestore()
      ))
    self.assertEqual(read['meta']['meta'], cases.META)
    digest = cases.slow_digest(np.asarray(state['params']['b']))
    self.assertEqual(
        read['meta']['leaves']['params/b'],
        {'dtype': 'bfloat16', 'shape': [96], 'digest': f'{digest:016x}'},
    )
    self.assert_states_equal(read['state']['params'], state['params'])
    np.testing.assert_array_equal(
        read['state']['opt_state']['1']['0']['mu']['w'],
        state['opt_state'][1][0].mu['w'],
    )

  def test_restoring_to_another_sharding(self):
    mesh = cases.make_mesh()
    spread = jax.sharding.NamedSharding(mesh, P('data', 'model'))
    single = jax.sharding.SingleDeviceSharding(jax.devices()[5])
    w = cases.make_state(1)['params']['w']
    checkpoints = self.open()
    for step, before, after in ((1, spread, single), (2, single, spread)):
      state = {'w': jax.device_put(w + step, before)}
      checkpoints.save(step, state, {})
      _, restored, _ = checkpoints.restore(cases.abstract(state, after))
      self.assertEqual(restored['w'].sharding, after)
      self.assert_states_equal(restored, state)
    # No sharding asked for: one device.
    unplaced = {'w': jax.ShapeDtypeStruct(w.shape, w.dtype)}
    _, restored, _ = checkpoints.restore(unplaced)
    self.assertLen(restored['w'].devices(), 1)

  def test_arrays_may_be_donated_at_once(self):
    @jax.jit
    def start():
      return {'w': jnp.arange(2**20, dtype=jnp.float32)}

    update = jax.jit(
        lambda s: {'w': s['w'] * 1.5 + 1}, donate_argnums=0
    )
    checkpoints = self.open(keep=9)
    state, expected = start(), {}
    for step in range(1, 5):
      state = update(state)
      expected[step] = np.array(state['w'])
      state = update(state)
      expected[step, 'next'] = np.array(state['w'])
    state = start()
    for step in range(1, 5):
      state = update(state)
      checkpoints.save(step, state, {})
      state = update(state)
      np.testing.assert_array_equal(state['w'], expected[step, 'next'])
    for step in range(1, 5):
      _, restored, _ = checkpoints.restore(cases.abstract(state), step=step)
      np.testing.assert_array_equal(restored['w'], expected[step])

  def test_keeps_the_latest_and_the_best(self):
    state = {'w': jnp.ones(3)}
    checkpoints = self.open(keep=2)
    self.assertIsNone(checkpoints.latest_step())
    self.assertIsNone(checkpoints.best_step())
    losses = [3.0, 1.0, 2.0, float('nan'), None, 1.0]
    for step, loss in enumerate(losses, start=1):
      checkpoints.save(step, state, {}, best_metric=loss)
    checkpoints.wait()
    self.assertEqual(checkpoints.all_steps(), [2, 5, 6])
    self.assertEqual(checkpoints.best_step(), 2)  # Not 6, which only equals it.
    checkpoints = self.open(keep=2)
    self.assertEqual(checkpoints.best_step(), 2)
    self.assertEqual(checkpoints.restore(state, best=True)[0], 2)
    self.assertEqual(checkpoints.restore(state)[0], 6)
    checkpoints.save(7, state, {}, best_metric=0.5)
    checkpoints.wait()
    self.assertEqual(checkpoints.all_steps(), [6, 7])
    self.assertEqual(
        sorted(path.name for path in self.directory.iterdir()), ['6', '7']
    )

  def test_max_mode_keeps_the_highest_metric(self):
    state = {'w': jnp.ones(3)}
    checkpoints = self.open(keep=1, best_mode='max')
    accuracies = [0.5, 0.75, float('nan'), None, 0.75, 0.25]
    for step, accuracy in enumerate(accuracies, start=1):
      checkpoints.save(step, state, {}, best_metric=accuracy)
    checkpoints.wait()
    self.assertEqual(checkpoints.all_steps(), [2, 6])
    self.assertEqual(checkpoints.best_step(), 2)  # Not 5, which only equals it.
    self.assertEqual(checkpoints.metrics, {2: 0.75, 6: 0.25})
    # A reader need not know the mode.
    reader = self.open(readonly=True)
    self.assertEqual(reader.restore(state, best=True)[0], 2)
    self.assertEqual(checkpoint.restore_meta(self.directory, best=True)[0], 2)

  def test_metrics_of_the_other_mode_do_not_count(self):
    state = {'w': jnp.ones(3)}
    with checkpoint.Checkpointer(self.directory) as checkpoints:
      checkpoints.save(1, state, {}, best_metric=9.0)  # A loss.
    with checkpoint.Checkpointer(self.directory, best_mode='max') as other:
      self.assertEqual(other.metrics, {})
      self.assertIsNone(other.best_step())
      self.assertEqual(other.restore(state, best=True)[0], 1)
      other.save(1, state, {}, best_metric=0.25)
      other.save(2, state, {}, best_metric=0.5)
      self.assertEqual(other.metrics, {1: 0.25, 2: 0.5})
    self.assertEqual(self.open(readonly=True).best_step(), 2)

  def test_min_mode_is_the_default_and_not_recorded(self):
    records = {}
    for mode in ('min', 'max'):
      directory = self.workdir / mode
      with checkpoint.Checkpointer(directory, best_mode=mode) as checkpoints:
        checkpoints.save(1, {'w': jnp.ones(3)}, cases.META, best_metric=0.5)
      records[mode] = json.loads((directory / '1/meta/metadata').read_text())
    self.assertCountEqual(
        records['min'], ['format', 'step', 'meta', 'metric', 'leaves', 'sha256']
    )
    self.assertEqual(records['max']['best_mode'], 'max')

  def test_a_step_saved_twice_only_notes_its_metric(self):
    state = {'w': jnp.ones(3)}
    checkpoints = self.open(keep=1)
    self.assertTrue(checkpoints.save(1, state, cases.META))
    self.assertFalse(checkpoints.save(1, state, cases.META, best_metric=2.0))
    self.assertFalse(checkpoints.save(1, state, cases.META))
    self.assertEqual(checkpoints.best_step(), 1)
    checkpoints.save(2, state, cases.META)
    checkpoints.wait()
    reopened = self.open(readonly=True)
    self.assertEqual(reopened.all_steps(), [1, 2])
    self.assertEqual(reopened.best_step(), 1)
    self.assertEqual(reopened.restore(state, step=1)[2], cases.META)

  def test_wrong_arguments_raise(self):
    state = {'w': jnp.ones(3)}
    checkpoints = self.open()
    checkpoints.save(5, state, {})
    with self.assertRaisesRegex(ValueError, 'after the latest checkpoint, 5'):
      checkpoints.save(4, state, {})
    with self.assertRaisesRegex(ValueError, '`meta` must be JSON'):
      checkpoints.save(6, state, {'x': object()})
    for bad in (np.ones(3), 2.0, jax.random.key(0)):
      with self.assertRaisesRegex(ValueError, 'at a/b'):
        checkpoints.save(6, {'a': {'b': bad}}, {})
    with self.assertRaisesRegex(ValueError, 'twice'):
      checkpoints.save(6, {'a': {'b': jnp.ones(1)}, 'a/b': jnp.ones(1)}, {})
    with self.assertRaisesRegex(ValueError, 'keep'):
      self.open(keep=0)
    with self.assertRaisesRegex(ValueError, "'min' or 'max', got 'lowest'"):
      self.open(best_mode='lowest')
    with self.assertRaisesRegex(ValueError, 'readonly'):
      self.open(readonly=True).save(7, state, {})
    (self.workdir / 'file').write_text('')
    with self.assertRaisesRegex(errors.UserError, 'file.*: not a directory'):
      checkpoint.Checkpointer(self.workdir / 'file')

  def test_nothing_to_restore(self):
    for readonly in (True, False):
      checkpoints = self.open(readonly=readonly)
      with self.assertRaisesRegex(
          errors.UserFileNotFoundError, 'There is no checkpoint in '
      ):
        checkpoints.restore({'w': jnp.ones(3)})
      self.assertEqual(self.directory.exists(), not readonly)
    checkpoints.save(1, {'w': jnp.ones(3)}, {})
    with self.assertRaisesRegex(
        errors.UserFileNotFoundError, 'no checkpoint 2 '
    ):
      checkpoints.restore({'w': jnp.ones(3)}, step=2)

  def test_restoring_a_part_of_the_state(self):
    state = cases.make_state(3)
    with checkpoint.Checkpointer(self.directory) as checkpoints:
      checkpoints.save(3, state, cases.META)
    wanted = {'params': cases.abstract(state['params'])}
    _, restored, _ = self.open(readonly=True).restore(wanted, partial=True)
    self.assert_states_equal(restored, {'params': state['params']})

  def test_narrow_floats_are_widened_and_other_dtypes_raise(self):
    narrow = {
        'b': jnp.linspace(0, 1, 8, dtype=jnp.bfloat16),
        'h': jnp.ones(2, jnp.float16),
    }
    checkpoints = self.open()
    checkpoints.save(1, narrow, cases.META)
    wide = jax.tree.map(lambda x: x.astype(jnp.float32), narrow)
    _, restored, _ = checkpoints.restore(cases.abstract(wide))
    self.assert_states_equal(restored, wide)
    checkpoints.save(2, wide | {'i': jnp.int16(3)}, cases.META)
    for name, dtype in (('b', 'bfloat16'), ('i', 'float32'), ('h', 'float16')):
      like = {name: jnp.zeros(jnp.shape(wide.get(name, 0)), dtype)}
      with self.assertRaisesRegex(errors.UserError, f'{name} is .* {dtype}'):
        checkpoints.restore(cases.abstract(like), partial=True)

  def test_a_checkpoint_of_another_model_raises_and_is_not_damaged(self):
    state = cases.make_state(3)
    checkpoints = self.open()
    checkpoints.save(3, state, cases.META)
    other = cases.make_state(3)
    other['params']['w'] = jnp.ones((8, 96))
    other['params']['new'] = jnp.ones(2)
    other['step'] = jnp.float32(1)
    with self.assertRaisesRegex(
        errors.UserError,
        r'Checkpoint 3 in .* another model or optimizer: '
        r'params/new \(float32\[2\]\) is not in the checkpoint; params/w is '
        r'float32\[64, 96\] in the checkpoint and float32\[8, 96\] here; '
        r'step is int32\[\] in the checkpoint and float32\[\] here\.$',
    ):
      checkpoints.restore(other)
    with self.assertRaisesRegex(errors.UserError, '/1/0/count is only'):
      checkpoints.restore({'params': state['params'], 'step': state['step']})
    self.assertEqual(checkpoints.all_steps(), [3])
    self.assert_states_equal(checkpoints.restore(state)[1], state)

  def test_leftovers_of_killed_saves_are_removed(self):
    state = {'w': jnp.ones(3)}
    with checkpoint.Checkpointer(self.directory) as checkpoints:
      checkpoints.save(1, state, {})
    for name in ('2.orbax-checkpoint-tmp', '3.orbax-checkpoint-tmp-17'):
      (self.directory / name / 'state').mkdir(parents=True)
      (self.directory / name / 'state' / 'file').write_text('half')
    reader = self.open(readonly=True)
    self.assertEqual(reader.all_steps(), [1])
    self.assertLen(list(self.directory.iterdir()), 3)
    checkpoints = self.open()
    self.assertEqual(checkpoints.restore(state)[0], 1)
    self.assertLen(list(self.directory.iterdir()), 1)
    self.assertTrue(checkpoints.save(2, state, {}))
    self.assertEqual(checkpoints.restore(state)[0], 2)

  def test_a_reader_notices_that_a_run_deletes_checkpoints(self):
    state = {'w': jnp.ones(3)}
    writer = self.open(keep=1)
    writer.save(1, state, {}, best_metric=3.0)
    writer.wait()
    reader = self.open(readonly=True)
    writer.save(2, state, {}, best_metric=2.0)
    writer.wait()
    self.assertEqual(reader.all_steps(), [1])  # It is no longer there.
    with self.assertNoLogs('absl', 'WARNING'):
      self.assertEqual(reader.restore(state, best=True)[0], 2)
    restore = arrays.restore  # And in the midst of reading.

    def late(directory, *args):
      if directory.parent.name == '2':
        writer.save(3, state, {}, best_metric=1.0)
        writer.wait()
      return restore(directory, *args)

    with mock.patch.object(arrays, 'restore', late):
      with self.assertNoLogs('absl', 'WARNING'):
        self.assertEqual(reader.restore(state, best=True)[0], 3)
    with self.assertRaisesRegex(
        errors.UserFileNotFoundError, 'no checkpoint 2 '
    ):
      reader.restore(state, step=2)

  def test_saves_keep_no_memory(self):
    state = {f'w{i}': jnp.ones((2, 2)) for i in range(20)}
    checkpoints = self.open(keep=1)

    def blocks(first, count):
      for step in range(first, first + count):
        checkpoints.save(step, state, cases.META)
        checkpoints.restore(state)
      gc.collect()
      return sys.getallocatedblocks()

    before = blocks(1, 4)  # Caches are full then.
    # Of TensorStore's JSON 4 for each array and 130 for each of four looks at
    # its metrics, without `leaks.avoided`.
    self.assertLess((blocks(5, 4) - before) / 4, 200)


class OrbaxContextTest(cases.CheckpointTestCase):

  def test_nothing_is_changed_at_import(self):
    program = """
import logging, sys, warnings
import orbax.checkpoint
from absl import logging as absl_logging
from orbax.checkpoint._src.serialization import tensorstore_utils
import rnnzoo.training.memory, rnnzoo.training.records
def settings():
  loggers = absl_logging.get_absl_logger(), logging.getLogger('asyncio')
  return (
      sys.unraisablehook, tensorstore_utils.ts, warnings.filters[:],
      [logger.filters[:] for logger in loggers],
  )
before = settings()
import rnnzoo.training.checkpoint
assert settings() == before
"""
    subprocess.run([sys.executable, '-c', program], check=True)

  def test_all_is_restored_when_the_last_checkpointer_closes(self):
    def settings():
      loggers = logging.get_absl_logger(), python_logging.getLogger('asyncio')
      return (
          sys.unraisablehook, tensorstore_utils.ts,
          [logger.filters[:] for logger in loggers],
      )

    # After a failure, of another test here, some of it stays.
    self.enterContext(mock.patch.object(orbax_context, '_has_failed', False))
    before = settings()
    first = checkpoint.Checkpointer(self.directory)
    during = settings()
    self.assertIsNot(during[1], before[1])
    second = checkpoint.Checkpointer(self.directory, readonly=True)
    self.assertEqual(settings(), during)
    first.close()
    self.assertEqual(settings(), during)
    second.close()
    self.assertEqual(settings(), before)
    (self.workdir / 'file').write_text('')
    with self.assertRaises(errors.UserError):
      checkpoint.Checkpointer(self.workdir / 'file')
    self.assertEqual(settings(), before)


if __name__ == '__main__':
  absltest.main()
