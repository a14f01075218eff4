"""Tests of `rnnzoo.training.processes.lock`: one run a workdir."""

import os
import pathlib
import signal
import subprocess
import sys
import tempfile
from unittest import mock

from absl.testing import absltest
from rnnzoo import errors
from rnnzoo.training.processes import lock

HOLDER = """
import sys, time
from rnnzoo.training.processes import lock
with lock.hold(sys.argv[1]):
  print('held', flush=True)
  time.sleep(600)
"""


class LockTest(absltest.TestCase):

  def setUp(self):
    super().setUp()
    self.directory = pathlib.Path(
        self.enterContext(tempfile.TemporaryDirectory())
    )
    self.workdir = self.directory / 'runs' / 'one'

  def test_another_process_is_refused_until_the_first_one_ends(self):
    with subprocess.Popen(
        [sys.executable, '-c', HOLDER, str(self.workdir)],
        stdout=subprocess.PIPE, text=True,
    ) as holder:
      self.addCleanup(holder.kill)
      self.assertEqual(holder.stdout.readline(), 'held\n')
      with self.assertRaisesRegex(
          errors.UserError, f'Another run is writing to .*one: process '
          f'{holder.pid} on .*another --workdir'
      ):
        with lock.hold(self.workdir):
          self.fail('held twice')
      with lock.hold(self.directory / 'runs' / 'two'):
        pass
      # Neither garbage in the file nor its removal lets anybody in.
      file = self.workdir / lock.FILE
      for damage in (lambda: file.write_bytes(b'\xff\xfe\n'), file.unlink):
        damage()
        with self.assertRaisesRegex(
            errors.UserError, 'Another run is .*one: its lock file does not say'
        ):
          with lock.hold(self.workdir):
            self.fail('held twice')
      holder.send_signal(signal.SIGKILL)
    with lock.hold(self.workdir):
      file = self.workdir / lock.FILE
      self.assertStartsWith(file.read_text(), f'process {os.getpid()} on ')

  def test_one_process_may_hold_a_workdir_twice(self):
    with lock.hold(self.workdir):
      with lock.hold(str(self.workdir)):
        pass
      with lock.hold(self.workdir / '..' / 'one'):
        pass
      self.check_held(True)
    self.check_held(False)

  def test_a_removed_lock_file_is_created_again(self):
    file = self.workdir / lock.FILE
    with lock.hold(self.workdir):
      lock.check(self.workdir)
      file.unlink()
      lock.check(self.workdir)
      self.check_held(True)
    self.check_held(False)
    lock.check(self.workdir)  # Nothing is held: nothing to say.
    self.assertStartsWith(file.read_text(), f'process {os.getpid()} on ')

  def test_check_notices_another_run(self):
    import fcntl

    file = self.workdir / lock.FILE
    with lock.hold(self.workdir):
      file.unlink()
      with open(file, 'wb') as other:  # Where directories have no locks.
        fcntl.flock(other, fcntl.LOCK_EX)
        with self.assertRaisesRegex(errors.UserError, 'Another run is writing'):
          lock.check(self.workdir)

  def test_check_notices_a_moved_workdir(self):
    with lock.hold(self.workdir):
      self.workdir.rename(self.directory / 'moved')
      for _ in range(2):
        with self.assertRaisesRegex(errors.UserError, 'moved or removed it'):
          lock.check(self.workdir)
        self.workdir.mkdir(exist_ok=True)

  def test_check_notices_a_link_that_leads_elsewhere(self):
    link, other = self.directory / 'link', self.directory / 'other'
    for path in (self.workdir, other):
      path.mkdir(parents=True)
    link.symlink_to(self.workdir)
    with lock.hold(link):
      lock.check(link)
      link.unlink()
      link.symlink_to(other)
      with lock.hold(link):  # The run that is there already.
        with self.assertRaisesRegex(errors.UserError, 'a link that leads to'):
          lock.check(link)
      lock.check(self.workdir)
    with lock.hold(link):
      lock.check(link)
    self.assertEqual(os.listdir(other), [lock.FILE])

  def test_a_refused_run_holds_no_lock(self):
    import fcntl

    self.workdir.mkdir(parents=True)
    directory = os.open(self.workdir, os.O_RDONLY)
    self.addCleanup(os.close, directory)
    fcntl.flock(directory, fcntl.LOCK_EX)
    file = self.workdir / lock.FILE
    file.write_text('process 7 on there\n')
    opened = len(os.listdir('/proc/self/fd')) if sys.platform == 'linux' else 0
    locks = mock.patch.object(lock, '_lock_file', self.fail)
    with locks, self.assertRaisesRegex(errors.UserError, 'process 7 on there'):
      with lock.hold(self.workdir):
        self.fail('held twice')
    fcntl.flock(directory, fcntl.LOCK_UN)
    file.unlink()
    file.symlink_to('nowhere')
    with self.assertRaisesRegex(errors.UserError, 'symbolic link'):
      with lock.hold(self.workdir):
        self.fail('held a link')
    if opened:
      self.assertLen(os.listdir('/proc/self/fd'), opened)

  def test_files_behind_links_are_not_changed(self):
    self.workdir.mkdir(parents=True)
    precious, file = self.directory / 'precious', self.workdir / lock.FILE
    precious.write_text('mine')
    for target in (precious, self.directory / 'nowhere'):
      file.symlink_to(target)
      with self.assertRaisesRegex(errors.UserError, 'lock is a symbolic link'):
        with lock.hold(self.workdir):
          self.fail('held a link')
      file.unlink()
    self.assertFalse((self.directory / 'nowhere').exists())
    os.link(precious, file)  # As of `cp -l`.
    with lock.hold(self.workdir):
      self.check_held(True)
      self.assertIn('process', file.read_text())
    self.assertEqual(precious.read_text(), 'mine')
    file.unlink()
    os.mkfifo(file)
    with self.assertRaisesRegex(errors.UserError, 'neither a file nor a dir'):
      with lock.hold(self.workdir):
        self.fail('held a pipe')

  def test_an_error_inside_releases_the_lock(self):
    with self.assertRaisesRegex(KeyError, 'mine'):
      with lock.hold(self.workdir):
        raise KeyError('mine')
    self.check_held(False)

  def test_a_file_cannot_be_a_workdir(self):
    self.workdir.parent.mkdir()
    self.workdir.write_text('mine')
    for path in (self.workdir, self.workdir / 'below'):
      with self.assertRaisesRegex(errors.UserError, 'is not a directory'):
        with lock.hold(path):
          self.fail('held a file')
    self.assertEqual(self.workdir.read_text(), 'mine')

  def check_held(self, held):
    """Whether a process that asks for the kernel's lock is refused it."""
    import fcntl

    with open(self.workdir / lock.FILE, 'rb') as file:
      try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
      except BlockingIOError:
        self.assertTrue(held)
      else:
        self.assertFalse(held)


if __name__ == '__main__':
  absltest.main()
