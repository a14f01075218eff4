"""Runs several training commands, a few at a time."""

from collections.abc import Callable, Iterable
import pathlib
import signal
import subprocess
import sys
import time

from experiments.cli import processes
from experiments.cli import results
from experiments.sweeping import points as points_lib
from rnnzoo import errors
from rnnzoo.training.processes import signals

LOG = 'log.txt'


def is_done(point: points_lib.Point, workdir: pathlib.Path) -> bool:
  """Whether a run of the same steps and fields has left its result."""
  path = workdir / point.directory / results.FILE
  try:
    result = results.read(path)
  except errors.UserError:
    return False
  return (
      result['steps'] == point.total_steps
      and result['overrides'] == dict(point.overrides)
  )


def run(
    points: Iterable[points_lib.Point],
    workdir: pathlib.Path,
    jobs: int,
    say: Callable[[str], None],
    ended: Callable[[], None],
) -> list[str]:
  """Runs all points, at most `jobs` at a time; output goes to `log.txt`.

  Args:
    points: What to run, in this order.
    workdir: The directory of the sweep.
    jobs: How many at a time.
    say: Is called with a line on each run that starts or ends.
    ended: Is called after each end.

  Returns:
    A line on each run that failed.

  Raises:
    Interrupted: After a signal, once all runs have saved and ended.
  """
  waiting, running, failed = list(points), {}, []
  with signals.caught() as stop:
    try:
      while running or (waiting and not stop.signum):
        while waiting and len(running) < jobs and not stop.signum:
          point = waiting.pop(0)
          running[point] = start(point, workdir)
          say(f'started: {point.directory}')
        if stop.signum:
          _stop(running.values())
        for point, process in [*running.items()]:
          if process.poll() is None:
            continue
          del running[point]
          if process.returncode == 0:
            say(f'done: {point.directory}')
          elif not stop.signum:
            why = last_line(point, workdir)
            if process.returncode < 0:  # Such as SIGKILL, for want of memory.
              why = f'{signal.Signals(-process.returncode).name} after: {why}'
            failed.append(f'{point.directory}: {why}')
            say(f'failed: {failed[-1]}')
          ended()
        time.sleep(0.1)
    except Exception:  # Such as a full disk.
      _stop(running.values())
      raise
    if stop.signum:
      raise Stopped(stop.signum)
  return failed


class Stopped(signals.Interrupted):
  """The sweep was asked to stop, and its runs have saved."""

  def __init__(self, signum: int):
    super().__init__(signum, 0)
    self.args = (
        f'Stopped by {signal.Signals(signum).name}; the runs have saved. The '
        'same command goes on from there.',
    )


def start(point: points_lib.Point, workdir: pathlib.Path) -> subprocess.Popen:
  """Starts the training command of a point."""
  directory = workdir / point.directory
  directory.mkdir(parents=True, exist_ok=True)
  with open(directory / LOG, 'a') as log:
    return subprocess.Popen(
        # After a kill of this process, no run is left that holds its workdir.
        processes.ending_with_parent(
            sys.executable, '-m', point.program, *point.command,
            f'--workdir={directory}',
        ),
        stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT,
        # Ctrl-C reaches it only through this process.
        start_new_session=True,
    )


def last_line(point: points_lib.Point, workdir: pathlib.Path) -> str:
  """Returns the last line that a run has printed, its error."""
  text = (workdir / point.directory / LOG).read_text(errors='replace')
  return (text.strip().splitlines() or ['it printed nothing'])[-1]


def _stop(processes):
  """Lets runs save and end."""
  for process in processes:
    process.send_signal(signal.SIGTERM)  # Has no effect after the end.
  for process in processes:
    process.wait()
