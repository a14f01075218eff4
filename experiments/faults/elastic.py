"""Resumes runs with another number of devices than they were killed with."""

import shutil

from experiments.faults import runs

STEPS = 10 * runs.SAVE_EVERY
TOLERANCE = 1e-5


def resume(directory, *, short):
  """Kills runs and resumes them on other devices; yields `Outcome`s."""
  counts = (1, 2) if short else (1, 2, 4, 8)
  wholes = {}
  for count in counts:
    wholes[count] = _start(directory / f'whole_{count}', count).wait().workdir
  for before in counts:
    stopped = directory / f'from_{before}'
    run = _start(stopped, before)
    run.wait_until(lambda: runs.saved_steps(stopped))
    run.end()
    worst, problems, begins = 0, [], set()
    for after in counts:
      workdir = directory / f'from_{before}_to_{after}'
      shutil.copytree(stopped, workdir)
      run = _start(workdir, after).wait()
      begins.add(run.first_step())
      if run.code:
        problems.append(f'on {after}: {run.last_line()}')
        continue
      expected = _batches(wholes[1])
      if any(expected.get(s, d) != d for s, d in _batches(workdir).items()):
        problems.append(f'other batches on {after}')
      if before == after:
        wrong = runs.differences(workdir, wholes[after])
        problems += [f'on {after}: {what}' for what in wrong]
      worst = max(worst, _difference(workdir, wholes[1]))
    if worst > TOLERANCE:
      problems.append(f'losses differ by {worst:.1e}')
    others = ', '.join(map(str, counts))
    begin = max(begins)
    yield runs.Outcome(
        f'kill -9 on {before} device{"s" * (before > 1)}, then the same '
        f'command on {others}',
        '; '.join(problems) or f'went on after step {begin} to {STEPS}: the '
        f'same batches; on {before} again bit for bit what it would have been; '
        f'all losses within {worst:.0e} (relative) of one device',
        'nothing that was saved', not problems,
    )


def _start(workdir, devices):
  # The record is outside of the workdir, so that a copy starts without it.
  return runs.Run(
      workdir, inject=f'batches={_record(workdir)}', devices=devices,
      total_steps=STEPS, model__dropout=0.0,
  )


def _record(workdir):
  return workdir.with_name(workdir.name + '_batches')


def _batches(workdir):
  """Returns the digests of the batches that a process read, by step."""
  lines = [line.split() for line in _record(workdir).read_text().splitlines()]
  return {int(step): digest for step, digest in lines}


def _difference(workdir, whole):
  """Returns the largest relative difference between two losses."""
  here, there = (
      runs.metrics(w, 'train_loss') for w in (workdir, whole)
  )
  if here.keys() != there.keys():
    return float('inf')
  return max(
      abs(here[step][0] - loss) / loss for step, (loss,) in there.items()
  )
