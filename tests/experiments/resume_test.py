"""Runs that were stopped and started again equal those that were not."""

import re
import signal

from absl.testing import absltest
from absl.testing import parameterized
import numpy as np
from tests.experiments import commands

STEPS = 48  # Of the tiny config, which saves every 4.


def largest_file(directory):
  files = [path for path in directory.rglob('*') if path.is_file()]
  return max(files, key=lambda path: path.stat().st_size)


class ResumeTest(parameterized.TestCase):

  @classmethod
  def setUpClass(cls):
    super().setUpClass()
    cls.directory = commands.temporary_directory(cls)
    cls.whole = cls.directory / 'whole'
    command = commands.train(cls.whole).wait()
    if command.code:
      raise AssertionError(str(command))
    cls.losses = commands.metrics(cls.whole, 'train_loss')

  def stop(self, name, signum):
    """Starts a run and stops it half way; returns it and its directory."""
    workdir = self.directory / name
    command = commands.train(workdir)
    command.wait_for_step(workdir, 5)
    command.send(signum)
    return command.wait(), workdir

  def go_on(self, workdir):
    """Starts it again; checks that it ends like the one without a stop."""
    command = commands.train(workdir).wait()
    self.assertEqual(command.code, 0, command)
    self.assertEqual(
        commands.metrics(workdir, 'train_loss'), self.losses, command
    )
    for name in ('eval_loss', 'grad_norm'):
      self.assertEqual(
          commands.metrics(workdir, name), commands.metrics(self.whole, name)
      )
    self.assertEqual(
        commands.digests(workdir, STEPS), commands.digests(self.whole, STEPS)
    )
    return command

  def test_the_whole_run(self):
    self.assertEqual(list(self.losses), list(range(1, STEPS + 1)))
    # 3 latest, and the best of 16, 32, 48.
    self.assertEqual(commands.saved_steps(self.whole), [40, 44, 48])

  def test_killed(self):
    stopped, workdir = self.stop('killed', signal.SIGKILL)
    self.assertEqual(stopped.code, -signal.SIGKILL)
    done = self.go_on(workdir)
    self.assertRegex(done.stderr, r'Going on after step \d+\.')

  @parameterized.parameters(
      ('SIGTERM', 143, 'flip'), ('SIGINT', 130, 'truncate')
  )
  def test_asked_to_stop(self, name, code, damage):
    stopped, workdir = self.stop(name, getattr(signal, name))
    self.assertEqual(stopped.code, code, stopped)
    self.assertNotIn('Traceback', stopped.stderr)
    said = re.fullmatch(
        rf'Stopped by {name}; step (\d+) is saved\. .* goes on from there\.',
        stopped.stderr.splitlines()[-1],
    )
    step = int(said[1])
    steps = commands.saved_steps(workdir)
    self.assertEqual(steps[-1], step)
    # What is worse than a stop: the checkpoint that it left is damaged too.
    file = largest_file(workdir / 'checkpoints' / str(step) / 'state')
    data = bytearray(file.read_bytes())
    if damage == 'flip':
      data[len(data) // 2] ^= 1
    else:
      data = data[: len(data) // 2]
    file.write_bytes(data)
    done = self.go_on(workdir)
    self.assertRegex(done.stderr, f'Checkpoint {step} is damaged: .* Moved it')
    self.assertIn(f'Going on after step {steps[-2]}.', done.stderr)
    self.assertTrue((workdir / 'bad_checkpoints' / str(step)).exists())

  @parameterized.named_parameters(
      ('data', ['--config.mesh.data=8']),
      ('all', ['--config.mesh.fsdp=2', '--config.mesh.model=2']),
  )
  def test_eight_devices(self, mesh):
    workdir = self.directory / mesh[0]
    # Constant schedule: a shorter run is the beginning of a longer one.
    done = commands.train(
        workdir, *mesh, '--config.total_steps=8', '--config.model.dropout=0.0',
        devices=8,
    ).wait()
    self.assertEqual(done.code, 0, done)
    alone = self.directory / 'alone'
    if not alone.exists():
      commands.train(
          alone, '--config.total_steps=8', '--config.model.dropout=0.0'
      ).wait()
    for name in ('train_loss', 'eval_loss'):
      one, eight = (commands.metrics(w, name) for w in (alone, workdir))
      self.assertEqual(list(one), list(eight))
      np.testing.assert_allclose(
          list(eight.values()), list(one.values()), rtol=1e-5
      )
    if len(mesh) > 1:  # The checkpoint of many devices goes on on one.
      more = commands.train(
          workdir, '--config.total_steps=9', '--config.model.dropout=0.0'
      ).wait()
      self.assertEqual(more.code, 0, more)
      self.assertIn('Going on after step 8.', more.stderr)


if __name__ == '__main__':
  absltest.main()
