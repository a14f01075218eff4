"""Injects NaN into training, under each policy of `on_nan`."""

import math

from experiments.faults import runs

BAD = 2 * runs.SAVE_EVERY + 2  # The step whose batch is bad.
STEPS = 4 * runs.SAVE_EVERY
KINDS = {
    'loss': 'NaN in the loss',
    'gradient': 'NaN in the gradient alone',
    'row': 'NaN in one row of a batch',
}


def poison(directory, *, short):
  """Injects NaN into one step, in every way and policy; yields `Outcome`s."""
  whole = directory / 'whole'
  runs.finish(whole, total_steps=STEPS)
  cases = [(kind, policy) for kind in KINDS for policy in POLICIES]
  for kind, policy in (
      [('gradient', 'skip'), ('row', 'rollback')] if short else cases
  ):
    workdir = directory / f'{kind}_{policy}'
    run = runs.Run(
        workdir, inject=f'{kind}={BAD}', on_nan=policy, total_steps=STEPS,
    ).wait()
    # The steps before have the same results.
    before, expected = runs.results(workdir), runs.results(whole)
    good = 2 * runs.SAVE_EVERY
    problems = [
        f'another result at step {step}' for step in range(1, good + 1)
        if before.get(step) != expected[step]
    ]
    lost = POLICIES[policy](run, whole, problems)
    yield runs.Outcome(
        f'{KINDS[kind]}, on_nan={policy}',
        '; '.join(problems) or _said(run), lost, not problems,
    )


def _stop(run, whole, problems):
  """The run must stop, and resume without the fault as if it had never been."""
  if run.code != 1 or 'not finite' not in run.last_line():
    problems.append(f'exit code {run.code}: {run.last_line()}')
  runs.finish(run.workdir, on_nan='stop', total_steps=STEPS)
  problems += runs.differences(run.workdir, whole)
  return 'nothing: the last good checkpoint goes on once the cause is gone'


def _skip(run, whole, problems):
  """The run must make all updates except one."""
  del whole
  _check_the_end(run, problems)
  skipped = runs.metrics(run.workdir, 'skipped_steps')[STEPS][0]
  if skipped != 1:
    problems.append(f'{skipped} steps skipped')
  return 'the bad batch'


def _rollback(run, whole, problems):
  """The run must go back and leave out the bad batch, at half the rate."""
  del whole
  _check_the_end(run, problems)
  left_out = BAD - 2 * runs.SAVE_EVERY
  return f'the bad batch and the {left_out - 1} since the checkpoint'


POLICIES = {'stop': _stop, 'skip': _skip, 'rollback': _rollback}


def _check_the_end(run, problems):
  if run.code:
    problems.append(f'exit code {run.code}: {run.last_line()}')
  loss = runs.metrics(run.workdir, 'train_loss').get(STEPS, (None,))[0]
  if loss is None or not math.isfinite(loss):
    problems.append(f'the last loss is {loss}')


def _said(run):
  lines = run.warnings('not finite')
  return runs.anonymous(lines[0], run.workdir) if lines else ''
