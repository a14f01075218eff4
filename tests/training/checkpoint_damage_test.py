"""Tests of damaged checkpoints and of saves that fail, on real files."""

import errno
import os
import resource
import shutil
import subprocess
import sys
import threading
from unittest import mock

from absl.testing import absltest
import numpy as np
from rnnzoo import errors
from rnnzoo.training import checkpoint
from rnnzoo.training.checkpoint import damage
from tests.training import cases


def largest_file(directory):
  files = [path for path in directory.rglob('*') if path.is_file()]
  return max(files, key=lambda path: path.stat().st_size)


def flip_bit(path, position, bit=0):
  data = bytearray(path.read_bytes())
  data[position] ^= 1 << bit
  path.write_bytes(data)


class DamageTest(cases.CheckpointTestCase):

  def setUp(self):
    super().setUp()
    self.states = {step: cases.make_state(step) for step in (1, 2)}
    with checkpoint.Checkpointer(self.directory) as checkpoints:
      for step, state in self.states.items():
        meta = cases.META | {'step': step}
        checkpoints.save(step, state, meta, best_metric=step)

  def assert_falls_back(self, reason):
    """Restores; checks that 1 came back, 2 was moved, and 2 saves again."""
    checkpoints = self.open()
    with self.assertLogs('absl', 'WARNING') as logs:
      step, state, meta = checkpoints.restore(cases.abstract(self.states[1]))
    self.assertEqual((step, meta['step']), (1, 1))
    self.assert_states_equal(state, self.states[1])
    self.assertLen(logs.records, 1)
    self.assertRegex(
        logs.records[0].getMessage(),
        rf'^Checkpoint 2 is damaged: .*{reason}.*bad_checkpoints/2\S*\. Trying',
    )
    self.assertEqual(checkpoints.all_steps(), [1])
    self.assertTrue(
        checkpoints.save(2, self.states[2], cases.META, best_metric=2)
    )
    checkpoints.wait()
    step, state, _ = self.open().restore(cases.abstract(self.states[2]))
    self.assertEqual(step, 2)
    self.assert_states_equal(state, self.states[2])

  def test_a_flipped_bit_falls_back_to_the_step_before(self):
    rng = np.random.default_rng(3)
    for i in range(6):
      path = largest_file(self.directory / '2' / 'state')
      # Each is a bit of the weights, which do not compress: none is unused.
      flip_bit(path, rng.integers(100, path.stat().st_size // 2), i)
      self.assert_falls_back('/w is not what was written')
    self.assertLen(list((self.workdir / 'bad_checkpoints').iterdir()), 6)

  def test_no_flipped_bit_anywhere_gives_wrong_values(self):
    rng = np.random.default_rng(4)
    paths = [p for p in (self.directory / '2').rglob('*') if p.is_file()]
    self.assertGreater(len(paths), 5)
    for path in paths:
      whole = path.read_bytes()
      for _ in range(2):
        flip_bit(path, rng.integers(len(whole)), rng.integers(8))
        reader = self.open(readonly=True)
        step, state, meta = reader.restore(cases.abstract(self.states[2]))
        self.assertEqual(meta['step'], step)
        self.assert_states_equal(state, self.states[step])
        path.write_bytes(whole)

  def test_truncated_and_missing_files_fall_back_too(self):
    for name, do_damage in (
        ('data', lambda path: os.truncate(path, path.stat().st_size // 2)),
        ('data', lambda path: path.unlink()),
        ('meta/metadata', lambda path: os.truncate(path, 40)),
        ('meta/metadata', lambda path: path.unlink()),
        ('meta/metadata', lambda path: flip_bit(path, 30)),
        ('meta/metadata', lambda path: path.write_bytes(b'[' * 100_000)),
        ('meta/metadata', lambda path: path.write_bytes(b'[]')),
        ('meta/metadata', lambda path: (path.unlink(), path.mkdir())),
        ('state/_METADATA', lambda path: path.write_bytes(b'[' * 100_000)),
        ('state/manifest.ocdbt', lambda path: path.unlink()),
    ):
      with self.subTest(name):
        path = self.directory / '2' / name
        path = largest_file(self.directory / '2') if name == 'data' else path
        do_damage(path)
        self.assert_falls_back('metadata' if 'metadata' in name else 'arrays')

  def test_files_behind_links_are_not_changed(self):
    elsewhere = self.workdir / 'elsewhere'
    (elsewhere / '3.orbax-checkpoint-tmp').mkdir(parents=True)
    state = cases.abstract(self.states[1])
    for path in self.workdir / 'bad_checkpoints', self.directory / '3':
      path.symlink_to(elsewhere)
      with self.subTest(path.name), self.assertRaisesRegex(
          errors.UserError, f'{path} is a symbolic link, and a run'
      ):
        checkpoint.Checkpointer(self.directory)
      path.unlink()
    self.assertTrue((elsewhere / '3.orbax-checkpoint-tmp').exists())
    # Readers may go through links; a workdir and `checkpoints` may be links.
    linked = self.workdir / 'linked'
    linked.symlink_to(self.directory)
    self.assertEqual(checkpoint.restore_meta(linked)[0], 2)
    with checkpoint.Checkpointer(linked) as checkpoints:
      checkpoints.save(3, self.states[1], cases.META)
    self.assertTrue((self.directory / '3').is_dir())
    shutil.rmtree(self.directory / '3')
    linked.unlink()
    linked.symlink_to(self.workdir)
    with checkpoint.Checkpointer(linked / 'checkpoints') as checkpoints:
      self.assertEqual(checkpoints.metrics, {1: 1.0, 2: 2.0})
      # What a damaged record is noted in, as a link, is replaced.
      meta = self.directory / '2' / 'meta'
      (meta / 'metadata.new').symlink_to(elsewhere / 'precious')
      (elsewhere / 'precious').write_text('mine')
      checkpoints.note(2, cases.META)
      self.assertEqual((elsewhere / 'precious').read_text(), 'mine')
      self.assertEqual(checkpoints.restore(state)[2], cases.META)

  def test_readers_move_nothing(self):
    flip_bit(largest_file(self.directory / '2' / 'state'), 300)
    checkpoints = self.open(readonly=True)
    with self.assertLogs('absl', 'WARNING'):
      step, state, _ = checkpoints.restore(cases.abstract(self.states[1]))
    self.assertEqual(step, 1)
    self.assert_states_equal(state, self.states[1])
    self.assertEqual(
        sorted(path.name for path in self.workdir.rglob('[12]')), ['1', '2']
    )
    self.assertFalse((self.workdir / 'bad_checkpoints').exists())

  def test_a_damaged_checkpoint_that_was_asked_for_raises(self):
    flip_bit(largest_file(self.directory / '2' / 'state'), 300)
    checkpoints = self.open()
    with self.assertRaisesRegex(errors.UserError, 'Checkpoint 2 in .* damaged'):
      checkpoints.restore(cases.abstract(self.states[2]), step=2)
    self.assertEqual(checkpoints.all_steps(), [1, 2])

  def test_a_damaged_best_checkpoint_falls_back_to_the_latest(self):
    flip_bit(largest_file(self.directory / '1' / 'state'), 300)
    checkpoints = self.open(readonly=True)
    self.assertEqual(checkpoints.best_step(), 1)
    with self.assertLogs('absl', 'WARNING'):
      self.assertEqual(checkpoints.restore(self.states[1], best=True)[0], 2)

  def test_no_sound_checkpoint_raises(self):
    for step in (1, 2):
      flip_bit(largest_file(self.directory / str(step) / 'state'), 300)
    checkpoints = self.open()
    with self.assertLogs('absl', 'WARNING'):
      with self.assertRaisesRegex(errors.UserError, 'all 2 are damaged, now'):
        checkpoints.restore(cases.abstract(self.states[1]))
    self.assertEqual(checkpoints.all_steps(), [])

  def test_a_save_on_a_full_disk_raises_and_keeps_the_others(self):
    checkpoints = self.open()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (8192, hard))
    try:
      with self.assertRaisesRegex(
          errors.UserError,
          'Cannot save checkpoint 3 in .*: File too large. The latest one kept '
          'is 2.',
      ):
        checkpoints.save(3, self.states[2], cases.META, best_metric=0)
        checkpoints.wait()
    finally:
      resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    self.assertEqual(checkpoints.all_steps(), [1, 2])
    self.assertEqual(checkpoints.best_step(), 1)
    # A thread of the failed save may create its directory again.
    (self.directory / '3.orbax-checkpoint-tmp' / 'state').mkdir(parents=True)
    self.assertTrue(checkpoints.save(3, self.states[2], cases.META))
    step, state, _ = checkpoints.restore(cases.abstract(self.states[2]))
    self.assertEqual(step, 3)
    self.assert_states_equal(state, self.states[2])

  def test_a_directory_that_cannot_be_created_leaves_no_thread_waiting(self):
    checkpoints = self.open()
    threads = set(threading.enumerate())
    with mock.patch.object(
        os, 'mkdir', side_effect=OSError(errno.ENOSPC, 'No space left')
    ):
      with self.assertRaisesRegex(errors.UserError, 'Cannot save .*No space'):
        checkpoints.save(3, self.states[2], cases.META)
        checkpoints.wait()
    for thread in set(threading.enumerate()) - threads:
      thread.join(10)
      self.assertFalse(thread.is_alive(), thread)
    self.assertTrue(checkpoints.save(3, self.states[2], cases.META))

  def test_the_reason_stands_before_the_notes_in_any_order(self):
    notes = ["[os_error_code='27']", '[tensorstore_spec=\'{"a":{"b":[0]}}\']']
    for order in notes, notes[::-1]:
      text = ' '.join(['Error opening "zarr": "/a/d": File too large', *order])
      self.assertEqual(damage.reason(ValueError(text)), 'File too large')

  def test_failures_print_one_readable_line_each(self):
    """Neither Orbax's logs nor tracebacks of its threads reach the terminal."""
    os.truncate(largest_file(self.directory / '2'), 300)
    program = f"""
import gc, resource
from absl import logging
import jax.numpy as jnp, numpy as np
from rnnzoo import errors
from rnnzoo.training import checkpoint
from rnnzoo.training.checkpoint import digests
logging.use_absl_handler()
logging.set_verbosity(logging.INFO)
noise = np.random.default_rng(0).standard_normal((20, 100, 100), np.float32)
state = {{'w': {{str(i): jnp.asarray(x) for i, x in enumerate(noise)}}}}
with checkpoint.Checkpointer({str(self.directory)!r}) as checkpoints:
  params = {{'params': {{'w': jnp.zeros((64, 96))}}}}
  checkpoints.restore(params, partial=True)
  checkpoints.save(5, state, {{}})
  checkpoints.wait()
  resource.setrlimit(resource.RLIMIT_FSIZE, (8192, 8192))
  try:
    checkpoints.save(6, state, {{}})
    checkpoints.wait()
  except errors.UserError as e:
    print(e)
gc.collect()
"""
    done = subprocess.run(
        [sys.executable, '-c', program], capture_output=True, text=True,
        check=False,
    )
    self.assertEqual(done.returncode, 0, done.stderr)
    self.assertEqual(done.stdout.count('\n'), 1)
    self.assertIn('Cannot save checkpoint 6', done.stdout)
    lines = done.stderr.splitlines()
    lines = [x for x in lines if ' directory.py' in x or x[0] not in 'IW']
    self.assertLen(lines, 1, done.stderr)
    self.assertIn('Checkpoint 2 is damaged: its arrays', lines[0])


if __name__ == '__main__':
  absltest.main()
