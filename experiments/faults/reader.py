"""Restores a model again and again while its run saves every step."""

import time

from experiments.faults import runs
import rnnzoo
from rnnzoo import errors


def restore_beside(directory, *, short):
  """Restores beside a run that keeps one checkpoint; yields an `Outcome`."""
  workdir, whole = directory / 'run', directory / 'whole'
  settings = dict(
      save_every=1, keep=1, total_steps=60 if short else 400,
      eval_every=runs.SAVE_EVERY,
  )
  runs.finish(whole, **settings)
  run = runs.Run(workdir, **settings)
  run.wait_until(lambda: runs.saved_steps(workdir))
  problems, count, longest = [], 0, 0.0
  while run.code is None:
    start = time.monotonic()
    try:
      rnnzoo.restore(workdir)
    except errors.UserError as error:
      problems.append(str(error))
    count += 1
    longest = max(longest, time.monotonic() - start)
  failed = len(problems)
  problems = sorted(set(problems))
  if run.code:
    problems.append(f'the run ended with {run.code}: {run.last_line()}')
  if (workdir / 'bad_checkpoints').exists():
    problems.append('checkpoints were put aside')
  problems += runs.differences(workdir, whole)
  yield runs.Outcome(
      f'`rnnzoo.restore` {count} times beside a run that saves every step and '
      'keeps one checkpoint',
      f'{failed} of {count} failed: {"; ".join(problems)}' if problems else
      f'each time there was a model, after {longest:.1f} s at most',
      'nothing', not problems,
  )
