"""Runs the command lines as processes of their own, see cli/processes.py."""

import contextlib
import importlib
import json
import os
import pathlib
import tempfile
import time

from absl import flags
from experiments.cli import processes

ROOT = pathlib.Path(__file__).parents[2]
# Small enough to train in a second; see there.
TINY = '--config=tests/experiments/tiny.py'


def temporary_directory(test) -> pathlib.Path:
  """Returns a directory that goes with a test, or with the class of one."""
  directory = tempfile.TemporaryDirectory()
  is_class = isinstance(test, type)
  clean = test.addClassCleanup if is_class else test.addCleanup
  clean(directory.cleanup)
  return pathlib.Path(directory.name)


def imported(name):
  """Imports a program and leaves the flags of this process as they are.

  Those of two programs may have the same names.
  """
  aside, new = flags.FlagValues(), flags.FlagValues()
  aside.append_flag_values(flags.FLAGS)
  flags.FLAGS.remove_flag_values(aside)
  try:
    return importlib.import_module(name)
  finally:
    new.append_flag_values(flags.FLAGS)
    flags.FLAGS.remove_flag_values(new)
    flags.FLAGS.append_flag_values(aside)


class Command:
  """A command line that has been started.

  Attributes:
    code: The exit code, once `wait` has returned; negative for a signal.
    stdout: What it printed.
    stderr: Likewise.
  """

  def __init__(self, module, *words, devices=1, cwd=ROOT, xla_flags=''):
    """Starts `python -m module words`, on so many CPU devices."""
    self._words = [module, *map(str, words)]
    self._output = tempfile.TemporaryDirectory()
    self._paths = [
        pathlib.Path(self._output.name, name) for name in ('out', 'err')
    ]
    self.process = processes.start(
        *self._words, stdout=self._paths[0], stderr=self._paths[1],
        devices=devices, cwd=cwd, xla_flags=xla_flags,
    )

  def wait(self, timeout=300):
    """Waits until it ends; returns itself."""
    self.process.join(timeout)
    self.code = self.process.exitcode
    if self.code is None:
      self.process.kill()
      self.process.join()
    self.stdout, self.stderr = (path.read_text() for path in self._paths)
    if self.code is None:
      raise AssertionError(f'{self} did not end:\n{self.stderr}')
    self._output.cleanup()
    return self

  def wait_for_step(self, workdir, step, timeout=300):
    """Waits until the run has logged this step, and saved another."""
    end = time.monotonic() + timeout
    while last_step(workdir) < step or not saved_steps(workdir):
      if not self.process.is_alive() or time.monotonic() > end:
        raise AssertionError(f'No step {step} of {self.wait(0)}')
      time.sleep(0.005)

  def send(self, signum):
    """Sends a signal, unless the process has ended."""
    with contextlib.suppress(ProcessLookupError):
      os.kill(self.process.pid, signum)

  def __str__(self):
    text = ' '.join(self._words)
    if hasattr(self, 'stderr'):
      text += f': exit code {self.code}\n{self.stdout}\n{self.stderr}'
    return text


def train(workdir, *words, config=TINY, devices=1, cwd=ROOT, xla_flags=''):
  """Starts a training run."""
  return Command(
      'experiments.train', config, f'--workdir={workdir}', *words,
      devices=devices, cwd=cwd, xla_flags=xla_flags,
  )


def metrics(workdir, name):
  """Returns `{step: value}` of a metric."""
  path = pathlib.Path(workdir) / 'metrics.jsonl'
  lines = path.read_bytes().split(b'\n')[:-1] if path.exists() else []
  rows = [json.loads(line) for line in lines]
  return {row['step']: row[name] for row in rows if name in row}


def last_step(workdir):
  """Returns the last step that has been logged, or 0."""
  return max(metrics(workdir, 'train_loss'), default=0)


def digests(workdir, step):
  """Returns the digests of all arrays of a checkpoint."""
  path = pathlib.Path(workdir) / 'checkpoints' / str(step) / 'meta/metadata'
  return json.loads(path.read_text())['leaves']


def saved_steps(workdir):
  """Returns the steps of the checkpoints that are there."""
  directory = pathlib.Path(workdir) / 'checkpoints'
  names = [p.name for p in directory.iterdir()] if directory.exists() else []
  return sorted(int(name) for name in names if name.isdecimal())
