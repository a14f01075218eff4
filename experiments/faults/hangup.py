"""Closes the terminal, and kills a run while its curve is drawn."""

import signal

from experiments.faults import runs
from experiments.faults import stops


def hang_up(directory, *, short):
  """Sends SIGHUP during a step, kills a run that plots; yields `Outcome`s."""
  whole = directory / 'whole'
  runs.finish(whole)
  yield _close_terminal(directory / 'closed', whole)
  if not short:
    yield _kill_plotting(directory / 'plotting', whole)


def _close_terminal(workdir, whole):
  run = runs.Run(workdir)
  run.wait_until(lambda: runs.last_step(workdir) > 5)
  run.end(signal.SIGHUP)
  return stops.judge(
      run, whole, 'SIGHUP in a step', (128 + signal.SIGHUP,)
  )


def _kill_plotting(workdir, whole):
  run = runs.Run(workdir, inject='slow_plot=60')
  run.wait_until((workdir / 'summary.json').exists)
  run.end()
  problems, curve = [], workdir / 'curve.png'
  if curve.exists():
    problems.append('the curve was drawn before the end')
  last = runs.finish(workdir)
  if not curve.exists():
    problems.append('the curve is not drawn')
  if f'curve: {curve}' not in last.said():
    problems.append('the curve is not named')
  problems += runs.differences(workdir, whole)
  return runs.Outcome(
      'kill -9 while the curve of a finished run is drawn',
      '; '.join(problems) or 'the same command again draws it', 'nothing',
      not problems,
  )
