"""Injects faults into training runs and reports what each of them cost.

  python -m experiments.faults [--short] [--only=kill,disk] [--out=FILE]

Each fault hits real runs of a tiny model. Their results are then compared, bit
for bit, with those of runs without a fault. The table is written to
experiments/results/faults.md. The exit code is 1 if something was lost that
must not be lost. All faults take about ten minutes on two cores, `--short` one.
"""

import os
import pathlib
import platform
import sys
import tempfile
import time

from absl import app
from absl import flags
from experiments.cli import drivers
from experiments.faults import company
from experiments.faults import damage
from experiments.faults import data
from experiments.faults import disk
from experiments.faults import elastic
from experiments.faults import hangup
from experiments.faults import kills
from experiments.faults import nan
from experiments.faults import reader
from experiments.faults import records
from experiments.faults import runs
from experiments.faults import stops
import jax
from rnnzoo.training import files

# Faults by name: `(directory, short) -> iterable of runs.Outcome`.
FAULTS = {
    'kill': lambda d, short: kills.kill_at_random(
        d, count=3 if short else 30, steps=100 if short else 400
    ),
    'preempt': lambda d, short: stops.preempt(d, short=short),
    'checkpoint': lambda d, short: damage.damage_checkpoints(d, short=short),
    'config': lambda d, short: data.half_a_config(d),
    'records': lambda d, short: records.damage_records(d, short=short),
    'shard': lambda d, short: data.damage_shards(d, short=short),
    'disk': lambda d, short: disk.fill(d, short=short),
    'nan': lambda d, short: nan.poison(d, short=short),
    'two_runs': lambda d, short: company.two_runs(d),
    'one_of_two': lambda d, short: company.one_of_two(d),
    'hangup': lambda d, short: hangup.hang_up(d, short=short),
    'reader': lambda d, short: reader.restore_beside(d, short=short),
    'devices': lambda d, short: elastic.resume(d, short=short),
}
# The tests of the other faults are in tests/experiments.
SHORT = ('kill', 'checkpoint', 'disk', 'records')

_HEADER = """# What is lost when

Written by `python -m experiments.faults{words}` ({about}). Each fault was done
to real runs, which were then compared with runs that were left alone.

| fault | what happened | what was lost | |
|---|---|---|---|
"""


def main(argv):
  drivers.check_usage(argv)
  short = flags.FLAGS.short
  names = flags.FLAGS.only or (SHORT if short else FAULTS)
  if unknown := set(names) - set(FAULTS):
    known = ', '.join(FAULTS)
    raise app.UsageError(f'--only={min(unknown)} is none of {known}')
  outcomes = []
  with tempfile.TemporaryDirectory() as directory:
    for name in names:
      start = time.monotonic()
      place = pathlib.Path(directory) / name
      place.mkdir()
      for outcome in FAULTS[name](place, short):
        outcomes.append(outcome)
        print(_row(outcome), flush=True)
      print(f'({name}: {time.monotonic() - start:.0f} s)', flush=True)
  out = pathlib.Path(flags.FLAGS.out)
  out.parent.mkdir(parents=True, exist_ok=True)
  files.write_text(out, table(outcomes, short))
  bad = [outcome for outcome in outcomes if not outcome.ok]
  print(f'{len(outcomes)} faults, {len(bad)} that lost too much: {out}')
  return 1 if bad else 0


def table(outcomes, short) -> str:
  """Returns the outcomes as Markdown."""
  about = f'jax {jax.__version__}, Python {platform.python_version()}, CPU'
  header = _HEADER.format(words=' --short' if short else '', about=about)
  return header + ''.join(_row(outcome) + '\n' for outcome in outcomes)


def _row(outcome):
  cells = (
      outcome.fault, outcome.happened, outcome.lost,
      'ok' if outcome.ok else '**lost**',
  )
  cells = (' '.join(cell.replace('|', '\\|').split()) for cell in cells)
  return f'| {" | ".join(cells)} |'


if __name__ == '__main__':
  os.environ.setdefault('JAX_PLATFORMS', 'cpu')
  # Python warns at length of what killed processes leave behind.
  os.environ.setdefault('PYTHONWARNINGS', 'ignore:resource_tracker')
  flags.DEFINE_bool('short', False, 'Inject a few faults only; takes a minute.')
  flags.DEFINE_list(
      'only', [], f'Inject only these faults: {", ".join(FAULTS)}.'
  )
  drivers.define_path(
      'out', str(runs.ROOT / 'experiments' / 'results' / 'faults.md'),
      'The file of the table, in Markdown.',
  )
  drivers.run(lambda argv: sys.exit(main(argv)))
