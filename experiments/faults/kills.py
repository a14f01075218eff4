"""Kills runs with `kill -9` at random moments."""

import random
import signal
import time

from experiments.faults import runs


def kill_at_random(directory, *, count, steps, seed=0):
  """Kills one run again and again; compares it with a run without a fault.

  The random moments are of three kinds in turn: in the whole life of the
  process, its start included; during training; while a checkpoint is being
  written.

  Args:
    directory: An empty directory.
    count: The number of kills.
    steps: The number of steps of a run. When a run ends, another one starts.
    seed: The seed of the moments.

  Yields:
    An `Outcome`.
  """
  draw = random.Random(seed)
  whole, longest_save = _watch_a_whole_run(directory / 'whole', steps)
  expected = runs.results(whole)
  kinds = {'start or end': 0, 'training': 0, 'save': 0}
  problems, most, resumed, number = [], 0, 0, 0
  while sum(kinds.values()) < count:
    number += 1
    workdir = directory / f'killed_{number}'
    reached = durable = 0
    while True:
      run = runs.Run(workdir, total_steps=steps)
      kind = list(kinds)[sum(kinds.values()) % 3]
      if sum(kinds.values()) < count:
        _wait_for_moment(run, kind, draw)
        run.process.kill()
      run.process.join()
      began = run.first_step()
      if 'Traceback' in run.said() or 'damaged' in run.said():
        problems.append(f'said {run.warnings("Error", "damaged")}')
      trained = runs.last_step(workdir) > reached or run.code == 0
      if (began or trained) and began != durable:
        problems.append(f'began after {began}, not {durable}')
      if run.code == 0:
        break
      if run.code != -signal.SIGKILL:
        problems.append(f'ended with {run.code}: {run.last_line()}')
        break
      kinds[kind] += 1
      reached = runs.last_step(workdir)
      durable = max(runs.saved_steps(workdir), default=0)
      resumed += bool(durable)
      lost = reached - durable
      most = max(most, lost)
      longest_save = max(longest_save, lost - runs.SAVE_EVERY)
      # A save starts only after the one before has ended.
      if lost > 2 * runs.SAVE_EVERY:
        problems.append(f'{lost} steps lost at {reached}')
      written = runs.results(workdir)
      wrong = [s for s in written if not _is_part(written[s], expected[s])]
      if wrong:
        problems.append(f'other results at steps {wrong[:5]}')
    problems += runs.differences(workdir, whole)
  moments = ', '.join(f'{n} in {kind}' for kind, n in kinds.items())
  yield runs.Outcome(
      f'kill -9 at {count} random moments ({moments})',
      '; '.join(problems) or f'{resumed} of {count} times there was a complete '
      'checkpoint to go on from; every loss, gradient norm and final bit is '
      'that of the run without a kill',
      f'at most {most} steps, of {runs.SAVE_EVERY} between saves + '
      f'{longest_save} that the longest save took',
      not problems,
  )


def _watch_a_whole_run(workdir, steps):
  """Trains without a fault; returns the steps that the longest save took."""
  run = runs.Run(workdir, total_steps=steps)
  seen, longest = set(), 0

  def look():
    nonlocal longest
    new = set(runs.saved_steps(workdir)) - seen
    seen.update(new)
    if new:
      longest = max(longest, runs.last_step(workdir) - max(new))
    return False

  run.wait_until(look)
  if run.code:
    raise RuntimeError(run.said()[-2000:])
  return workdir, longest


def _wait_for_moment(run, kind, draw):
  """Waits for a random moment in the life of a process."""
  if kind == 'start or end':
    run.wait_until(_after(draw.uniform(0, 5)))
    return
  first = runs.last_step(run.workdir)
  trains = lambda: (
      runs.last_step(run.workdir) != first and 'step ' in run.said()
  )
  run.wait_until(trains)
  if kind == 'training':
    run.wait_until(_after(draw.uniform(0, 0.5)))
    return
  for _ in range(draw.randint(1, 4)):  # The first save is unlike the others.
    run.wait_until(lambda: not runs.is_saving(run.workdir))
    run.wait_until(lambda: runs.is_saving(run.workdir))
  run.wait_until(_after(draw.uniform(0, 0.08)))


def _after(seconds):
  end = time.monotonic() + seconds
  return lambda: time.monotonic() >= end


def _is_part(values, whole):
  """Returns whether all results that are written are those of the whole run."""
  return all(v is None or v == w for v, w in zip(values, whole))
