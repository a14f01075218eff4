"""Training runs as processes of their own, to be watched and harmed."""

import dataclasses
import itertools
import json
import os
import pathlib
import re
import signal
import tempfile
import time

from experiments.cli import processes

ROOT = pathlib.Path(__file__).parents[2]
SAVE_EVERY = 4

# A model that trains in a second, on the text of the licence.
SETTINGS = {
    'model.layer': 'min_gru',
    'model.num_layers': 2,
    'model.features': 16,
    'model.conv_kernel': 4,
    'model.dropout': 0.1,
    'data.name': 'text_file',
    'data.path': 'LICENSE',
    'data.sequence_length': 32,
    'batch_size': 8,
    # So that a shorter run is the beginning of a longer one.
    'optimizer.schedule': 'constant',
    'optimizer.warmup_steps': 0,
    'total_steps': 48,
    'log_every': 1,
    'eval_every': 16,
    'save_every': SAVE_EVERY,
    'tensorboard': False,
}

_LOGS = tempfile.TemporaryDirectory()  # Not in workdirs: their disk gets full.
_count = itertools.count()


@dataclasses.dataclass(frozen=True)
class Outcome:
  """One line of the table.

  Attributes:
    fault: What was done.
    happened: What the run did and said.
    lost: What was lost, `'nothing'` where nothing was.
    ok: Whether no more was lost than may be.
  """

  fault: str
  happened: str
  lost: str
  ok: bool


class Run:
  """A process that trains.

  Attributes:
    workdir: Where it writes.
    code: Its exit code once it has ended, negative for a signal; else `None`.
  """

  def __init__(self, workdir, *words, inject='', devices=1, **settings):
    """Starts `python -m experiments.train`.

    Args:
      workdir: Where it writes.
      *words: Further words of the command line.
      inject: What to change in the program before it runs, see inject.py.
      devices: Number of virtual CPU devices.
      **settings: Config fields that differ from `SETTINGS`, with `__` for `.`.
    """
    self.workdir = pathlib.Path(workdir)
    self._log = pathlib.Path(_LOGS.name) / str(next(_count))
    fields = {name.replace('__', '.'): v for name, v in settings.items()}
    module = ['experiments.faults.inject', inject] if inject else [
        'experiments.train'
    ]
    self.process = processes.start(
        *module,
        '--config=experiments/configs/default.py', f'--workdir={workdir}',
        *(f'--config.{k}={v}' for k, v in {**SETTINGS, **fields}.items()),
        *words,
        stdout=self._log, stderr=self._log, devices=devices, cwd=ROOT,
    )

  @property
  def code(self):
    return self.process.exitcode

  def said(self) -> str:
    """What it has printed so far."""
    return self._log.read_text(errors='replace') if self._log.exists() else ''

  def last_line(self) -> str:
    """The last line it has printed."""
    return self.said().strip().rpartition('\n')[2]

  def warnings(self, *words) -> list[str]:
    """The log lines that hold one of these words, without their prefix."""
    lines = [
        line for line in self.said().split('\n')
        if any(word in line for word in words)
    ]
    prefix = r'\d\d:\d\d:\d\d  (Warning: )?'
    return [re.sub(prefix, '', line, count=1) for line in lines]

  def first_step(self) -> int | None:
    """The step it went on after; 0 if it began anew."""
    found = re.search(r'Going on after step (\d+)\.', self.said())
    return int(found[1]) if found else 0

  def wait_until(self, condition, timeout=600) -> bool:
    """Waits for a condition, looking every millisecond or so.

    Args:
      condition: A function without arguments.
      timeout: In seconds.

    Returns:
      Whether it came true while the process was alive.
    """
    end = time.monotonic() + timeout
    while not condition():
      if self.code is not None:
        return False
      if time.monotonic() > end:
        self.end()
        raise TimeoutError(f'Nothing for {timeout} s:\n{self.said()[-2000:]}')
      time.sleep(0.001)
    return True

  def wait(self, timeout=600) -> 'Run':
    """Waits until it has ended."""
    self.wait_until(lambda: self.code is not None, timeout)
    return self

  def end(self, signum=signal.SIGKILL) -> 'Run':
    """Sends a signal and waits until it has ended."""
    os.kill(self.process.pid, signum)
    self.process.join()
    return self


def finish(workdir, **settings) -> Run:
  """Runs to the end; raises `RuntimeError` if that goes wrong."""
  run = Run(workdir, **settings).wait()
  if run.code:
    raise RuntimeError(f'A run without a fault failed:\n{run.said()[-2000:]}')
  return run


def metrics(workdir, *names) -> dict[int, tuple]:
  """Returns the values of some metrics by step, from all whole lines."""
  rows = {}
  for row in _lines(workdir):
    rows.setdefault(row['step'], {}).update(row)
  return {
      step: tuple(row.get(name) for name in names)
      for step, row in rows.items()
  }


def results(workdir) -> dict[int, tuple]:
  """Returns all that is computed, by step: losses and gradient norms."""
  return metrics(workdir, 'train_loss', 'grad_norm', 'eval_loss')


def last_step(workdir) -> int:
  """Returns the last step that has been logged, or 0."""
  path = pathlib.Path(workdir) / 'metrics.jsonl'
  if not path.exists():
    return 0
  with open(path, 'rb') as file:  # The end is enough, and often asked for.
    file.seek(max(0, path.stat().st_size - 4096))
    lines = file.read().split(b'\n')[:-1]
  return json.loads(lines[-1])['step'] if lines else 0


def saved_steps(workdir) -> list[int]:
  """Returns the steps of the checkpoints that are complete."""
  return sorted(int(name) for name in _names(workdir) if name.isdecimal())


def is_saving(workdir) -> bool:
  """Returns whether a checkpoint is being written."""
  return any('tmp' in name for name in _names(workdir))


def digests(workdir, step) -> dict[str, str]:
  """Returns the digests of all arrays of a checkpoint."""
  path = pathlib.Path(workdir) / 'checkpoints' / str(step) / 'meta/metadata'
  leaves = json.loads(path.read_text())['leaves']
  return {name: leaf['digest'] for name, leaf in leaves.items()}


def differences(workdir, whole) -> list[str]:
  """Says where a finished run differs from the one without a fault."""
  found = []
  here, there = results(workdir), results(whole)
  wrong = [s for s in sorted(here | there) if here.get(s) != there.get(s)]
  if wrong:
    found.append(f'other results at steps {wrong[:5]}')
  last = [saved_steps(w)[-1] for w in (workdir, whole)]
  if last[0] != last[1]:
    found.append(f'ends with checkpoint {last[0]} and not {last[1]}')
  elif digests(workdir, last[0]) != digests(whole, last[0]):
    found.append('another state at the end')
  return found


def anonymous(text, workdir) -> str:
  """Returns a text without the place of the workdir."""
  for path in (workdir, pathlib.Path(workdir).resolve()):
    text = text.replace(str(path), 'WORKDIR')
  return text


def _names(workdir):
  try:
    return os.listdir(pathlib.Path(workdir) / 'checkpoints')
  except FileNotFoundError:
    return []


def _lines(workdir):
  path = pathlib.Path(workdir) / 'metrics.jsonl'
  lines = path.read_bytes().split(b'\n')[:-1] if path.exists() else []
  return [json.loads(line) for line in lines]
