"""Fills the disk for a while, or for good."""

import contextlib
import pathlib
import resource
import subprocess

from experiments.faults import runs

STEPS = 200  # Enough to empty the disk while the run trains.
FULL = 'Cannot save checkpoint'


def fill(directory, *, short):
  """Makes saves fail for a while, and for good; yields `Outcome`s."""
  whole = directory / 'whole'
  runs.finish(whole, total_steps=STEPS)
  with _small_disk(directory / 'disk') as disk:
    yield _for_a_while(disk, directory, whole)
    if not short:
      yield _for_good(disk, directory, whole)


def _ways(disk, directory):
  """Returns functions that fill and empty the disk, their name, its path."""
  if disk is None:
    return _limit, _unlimit, 'no file beyond 8 kB', directory
  return _fill_up, _empty, 'a tmpfs of 8 MB', disk


def _for_a_while(disk, directory, whole):
  full, room, how, place = _ways(disk, directory)
  workdir = place / 'for_a_while'
  run = runs.Run(workdir, total_steps=STEPS)
  run.wait_until(lambda: runs.saved_steps(workdir))
  full(run, disk)
  run.wait_until(lambda: run.said().count(FULL) >= 2)
  before = runs.saved_steps(workdir)
  reached = runs.last_step(workdir)
  room(run, disk)
  run.wait()
  problems = [] if run.code == 0 else [
      f'exit code {run.code}: {run.last_line()}'
  ]
  if run.first_step():
    problems.append('began again')
  if not problems:
    problems += runs.differences(workdir, whole)
  warned = run.warnings(FULL)
  return runs.Outcome(
      f'disk full during saves, for a while ({how})',
      '; '.join(problems) or f'trained on and said {len(warned)} times: '
      f'{runs.anonymous(warned[0], workdir)}',
      f'nothing; a kill meanwhile would have cost {reached - max(before)} '
      'steps', not problems,
  )


def _for_good(disk, directory, whole):
  full, room, how, place = _ways(disk, directory)
  workdir = place / 'for_good'
  run = runs.Run(workdir, total_steps=STEPS)
  run.wait_until(lambda: runs.saved_steps(workdir))
  full(run, disk)
  run.wait()
  said = run.last_line()
  problems = [] if run.code == 1 and said.startswith('Error: ') else [
      f'exit code {run.code}: {said}'
  ]
  durable = max(runs.saved_steps(workdir))
  room(run, disk)
  again = runs.finish(workdir, total_steps=STEPS)
  if again.first_step() != durable:
    problems.append(f'went on after {again.first_step()}, not {durable}')
  problems += runs.differences(workdir, whole)
  return runs.Outcome(
      f'disk full until the end ({how})',
      '; '.join(problems) or f'exit code 1: {runs.anonymous(said, workdir)} '
      f'With room again it went on after step {durable}',
      'the steps that could not be saved, computed again', not problems,
  )


@contextlib.contextmanager
def _small_disk(path):
  """Mounts a file system of 8 MB; yields `None` where this is not allowed."""
  path.mkdir()
  try:
    subprocess.run(
        ['mount', '-t', 'tmpfs', '-o', 'size=8M', 'tmpfs', str(path)],
        check=True, capture_output=True,
    )
  except (OSError, subprocess.CalledProcessError):
    yield None
    return
  try:
    yield path
  finally:
    subprocess.run(['umount', '-l', str(path)], check=True)


def _fill_up(run, disk):
  """Leaves room for some lines of text, but not for a checkpoint."""
  del run
  filler = pathlib.Path(disk) / 'filler'
  with open(filler, 'wb', buffering=0) as file:
    with contextlib.suppress(OSError):
      while file.write(b'0' * 4096):
        pass
    file.truncate(file.tell() - 16 * 4096)


def _empty(run, disk):
  del run
  (pathlib.Path(disk) / 'filler').unlink()


def _limit(run, disk):
  """Makes the process fail to write files larger than 8 kB, as a quota does."""
  del disk
  _, hard = resource.prlimit(run.process.pid, resource.RLIMIT_FSIZE)
  resource.prlimit(run.process.pid, resource.RLIMIT_FSIZE, (8192, hard))


def _unlimit(run, disk):
  del disk
  if run.code is None:
    _, hard = resource.prlimit(run.process.pid, resource.RLIMIT_FSIZE)
    resource.prlimit(run.process.pid, resource.RLIMIT_FSIZE, (hard, hard))
