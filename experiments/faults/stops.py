"""Preempts runs: SIGTERM, and SIGKILL 20 seconds later."""

import signal
import time

from experiments.faults import runs

GRACE = 20  # Seconds; the shortest notice that clouds give.

MOMENTS = {
    'while it starts': ('', lambda run: 'tokens), ' in run.said()),
    'in a step': ('', lambda run: runs.last_step(run.workdir) > 5),
    'in a save': ('', lambda run: (
        runs.saved_steps(run.workdir) and runs.is_saving(run.workdir)
    )),
    'in an evaluation of a minute': ('slow_evaluation=60', lambda run: (
        runs.last_step(run.workdir) == 16
    )),
}


def preempt(directory, *, short):
  """Stops runs by SIGTERM at four moments; yields `Outcome`s."""
  whole = directory / 'whole'
  runs.finish(whole)
  for name in ['in a step'] if short else MOMENTS:
    inject, moment = MOMENTS[name]
    workdir = directory / name.replace(' ', '_')
    run = runs.Run(workdir, inject=inject)
    run.wait_until(lambda: moment(run))
    start = time.monotonic()
    run.process.terminate()
    run.process.join(GRACE)
    seconds = time.monotonic() - start
    problems = []
    if run.code is None:
      problems.append(f'had not ended after {GRACE} s')
      run.end()
    yield judge(
        run, whole, f'SIGTERM {name}, SIGKILL {GRACE} s later',
        (128 + signal.SIGTERM, -signal.SIGTERM), f'after {seconds:.1f} s ',
        problems,
    )


def judge(run, whole, what, codes, when='', problems=()) -> runs.Outcome:
  """Resumes a run that a signal ended; returns what it lost.

  Args:
    run: The run, which has ended.
    whole: The workdir of a run without a fault.
    what: The fault, for the table.
    codes: The exit codes that are right.
    when: When the run ended, in words, with a space at the end.
    problems: The problems that are known.
  """
  problems, workdir = list(problems), run.workdir
  reached = runs.last_step(workdir)
  durable = max(runs.saved_steps(workdir), default=0)
  if run.code not in codes:
    problems.append(f'ended with {run.code}: {run.last_line()}')
  if durable != reached:
    problems.append(f'step {reached} is not saved, only {durable}')
  last = runs.finish(workdir)
  if last.first_step() != durable:
    problems.append(f'went on after {last.first_step()}')
  problems += runs.differences(workdir, whole)
  return runs.Outcome(
      what,
      '; '.join(problems) or f'ended {when}with {_code(run.code)}',
      f'{reached - durable} steps' if reached > durable else 'nothing',
      not problems,
  )


def _code(code):
  if code < 0:
    return 'nothing to save yet'
  return f'exit code {code}, its last step saved'
