"""Training runs in processes of their own, to be observed and disturbed."""

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

# A model that trains in a second on the text of the licence.
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
    # A shorter run is then the start of a longer one.
    'optimizer.schedule': 'constant',
    'optimizer.warmup_steps': 0,
    'total_steps': 48,
    'log_every': 1,
    'eval_every': 16,
    'save_every': SAVE_EVERY,
    'tensorboard': False,
}

_LOGS = tempfile.TemporaryDirectory()  # The disk of the workdirs gets full.
_count = itertools.count()


@dataclasses.dataclass(frozen=True)
class Outcome:
  """One line of the table.

  Attributes:
    fault: The fault.
    happened: What the run did and printed.
    lost: What was lost; `'nothing'` if nothing was.
    ok: Whether the loss is within the limit.
  """

  fault: str
  happened: str
  lost: str
  ok: bool


class Run:
  """A process that trains.

  Attributes:
    workdir: The directory that it writes to.
    code: The exit code, negative for a signal; `None` while it runs.
  """

  def __init__(self, workdir, *words, inject='', devices=1, **settings):
    """Starts `python -m experiments.train`.

    Args:
      workdir: The directory that it writes to.
      *words: Further words of the command line.
      inject: A change of the program, see inject.py.
      devices: The number of virtual CPU devices.
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
    """Returns everything that it has printed so far."""
    return self._log.read_text(errors='replace') if self._log.exists() else ''

  def last_line(self) -> str:
    """Returns the last line that it has printed."""
    return self.said().strip().rpartition('\n')[2]

  def warnings(self, *words) -> list[str]:
    """Returns the log lines with one of these words, without their time."""
    lines = [
        line for line in self.said().split('\n')
        if any(word in line for word in words)
    ]
    prefix = r'\d\d:\d\d:\d\d  (Warning: )?'
    return [re.sub(prefix, '', line, count=1) for line in lines]

  def first_step(self) -> int | None:
    """Returns the step of the checkpoint that it resumed from; 0 for none."""
    found = re.search(r'Going on after step (\d+)\.', self.said())
    return int(found[1]) if found else 0

  def wait_until(self, condition, timeout=600) -> bool:
    """Waits for a condition and checks it about every millisecond.

    Args:
      condition: A function without arguments.
      timeout: In seconds.

    Returns:
      Whether the condition became true while the process was alive.
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
  """Trains to the end; raises `RuntimeError` if the run fails."""
  run = Run(workdir, **settings).wait()
  if run.code:
    raise RuntimeError(f'A run without a fault failed:\n{run.said()[-2000:]}')
  return run


def metrics(workdir, *names) -> dict[int, tuple]:
  """Returns the values of some metrics by step, from all complete lines."""
  rows = {}
  for row in _lines(workdir):
    rows.setdefault(row['step'], {}).update(row)
  return {
      step: tuple(row.get(name) for name in names)
      for step, row in rows.items()
  }


def results(workdir) -> dict[int, tuple]:
  """Returns the losses and gradient norms by step."""
  return metrics(workdir, 'train_loss', 'grad_norm', 'eval_loss')


def last_step(workdir) -> int:
  """Returns the last step that has been logged, or 0."""
  path = pathlib.Path(workdir) / 'metrics.jsonl'
  if not path.exists():
    return 0
  with open(path, 'rb') as file:  # This is called often, and the end is enough.
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
  """Returns how a finished run differs from the one without a fault."""
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
  """Returns a text with WORKDIR in place of the path of the workdir."""
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
