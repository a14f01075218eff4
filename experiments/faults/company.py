"""Two runs in one workdir, and two processes of one run."""

import time

from experiments import local_cluster
from experiments.faults import runs

MINUTE = 60


def two_runs(directory):
  """Starts a second run in a workdir that is in use; yields an `Outcome`."""
  steps = 400  # The first run must still be running.
  whole, workdir = directory / 'whole', directory / 'shared'
  runs.finish(whole, total_steps=steps)
  first = runs.Run(workdir, total_steps=steps)
  first.wait_until(lambda: runs.saved_steps(workdir))
  second = runs.Run(workdir, total_steps=steps).wait()
  problems = []
  if second.code != 1 or 'Another run' not in second.last_line():
    problems.append(f'the second: {second.code}, {second.last_line()}')
  # The lock of a dead process does not count.
  first.end()
  last = runs.finish(workdir, total_steps=steps)
  if not last.first_step():
    problems.append('began anew')
  problems += runs.differences(workdir, whole)
  yield runs.Outcome(
      'a second run in the workdir of one that trains; then kill -9 of the '
      'first, and its command again',
      '; '.join(problems) or f'the second ended with exit code 1: '
      f'{runs.anonymous(second.last_line(), workdir)} The first went on after '
      f'step {last.first_step()}',
      'nothing', not problems,
  )


def one_of_two(directory):
  """Kills each of the two processes of a run in turn; yields `Outcome`s."""
  whole, steps = directory / 'whole', 60
  for run in _start_two(whole, steps):
    if run.wait().code:
      raise RuntimeError(run.said()[-2000:])
  for victim in (0, 1):
    workdir = directory / f'without_{victim}'
    both = _start_two(workdir, steps)
    both[victim].wait_until(lambda: runs.last_step(workdir) > 9)
    both[victim].end()
    start = time.monotonic()
    other = both[1 - victim]
    other.process.join(MINUTE)
    seconds = time.monotonic() - start
    problems, said = [], other.last_line()
    if other.code is None:
      problems.append(f'the other was still there after {MINUTE} s')
      other.end()
    elif other.code == 0:
      problems.append('the other ended with exit code 0')
    reached = runs.last_step(workdir)
    durable = max(runs.saved_steps(workdir), default=0)
    for run in _start_two(workdir, steps):
      if run.wait().code:
        problems.append(f'then: exit code {run.code}, {run.last_line()}')
    problems += runs.differences(workdir, whole)
    yield runs.Outcome(
        f'kill -9 of process {victim} of two',
        '; '.join(problems) or f'the other ended after {seconds:.0f} s with '
        f'exit code {other.code}: {runs.anonymous(said, workdir)} Both went on '
        f'after step {durable}',
        f'{reached - durable} steps, computed again', not problems,
    )


def _start_two(workdir, steps):
  address = f'127.0.0.1:{local_cluster.free_port()}'
  return [
      runs.Run(
          workdir, f'--coordinator_address={address}', '--num_processes=2',
          f'--process_id={i}', total_steps=steps,
      )
      for i in range(2)
  ]
