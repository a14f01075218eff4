r"""Trains many configs, layers and seeds, and collects what came out.

  python -m experiments.sweep \
      --configs=experiments/configs/images/digits.py:lru,min_gru --seeds=3 \
      --grid=optimizer.learning_rate=1e-3,3e-3 --workdir=runs/sweep

Each run is `experiments.train`, or `experiments.ppo` for a config with an
environment, in a workdir of its own: CONFIG/LAYER/SETTING/seed_N. Its output is
in `log.txt` there. All files and fields are checked before the first run. The
same command goes on after a stop: it skips what is done, and resumes what is
not. Ctrl-C stops the runs, which save first.

The means and standard errors are printed, and kept in `sweep.json`.
`--results=DIR` copies the records of each run to DIR, for `experiments.report`.
A run whose records are in DIR is not run again, on another machine either. A
record in DIR of a run with other fields is an error; nothing is replaced.

`--select=optimizer.learning_rate` tries the values of that field in `--grid`
with the first seed only. The other seeds run with the value that was best on
validation.

`--lr_range=1e-5,1e-1` is another kind of sweep: one short run of each config,
whose learning rate grows, and a plot of the loss against the rate.
"""

import json
import pathlib
import shutil
import sys
import tempfile

from absl import flags
from experiments.cli import drivers
from experiments.cli import results
from experiments.reporting import collecting
from experiments.reporting import texts
from experiments.sweeping import choosing
from experiments.sweeping import points as points_lib
from experiments.sweeping import rates
from experiments.sweeping import running
import jax
from rnnzoo import errors
from rnnzoo.training import files
from rnnzoo.training.processes import lock

_CONFIGS = flags.DEFINE_string(
    'configs', None,
    'What to train: FILE:LAYER,LAYER,FILE and so on. A file without a layer '
    'has its own.',
)
_SEEDS = flags.DEFINE_integer(
    'seeds', 1, 'The number of seeds, from 0 on.', lower_bound=1
)
_GRID = flags.DEFINE_multi_string(
    'grid', [],
    'The values of a field, FIELD=VALUE,VALUE; one value sets it in all runs.',
)
_SELECT = flags.DEFINE_string(
    'select', None,
    'A field of --grid: the first seed tries its values, and the other seeds '
    'run with the one that is best on validation.',
)
_JOBS = flags.DEFINE_integer(
    'jobs', 1, 'How many runs at a time.', lower_bound=1
)
_WORKDIR = drivers.define_path('workdir', None, 'The directory of all runs.')
_RESULTS = drivers.define_path(
    'results', None,
    'Copy result.json and summary.json of each run to this directory, and the '
    'metrics and the curve of the first seed. Runs whose records are there '
    'already are not run again.',
)
_LR_RANGE = flags.DEFINE_string(
    'lr_range', None,
    'Train one short run of each config whose learning rate grows from the '
    'first to the second of two rates, such as 1e-5,1e-1.',
)
_LR_STEPS = flags.DEFINE_integer(
    'lr_steps', 200, 'The steps of such a run.', lower_bound=3
)


def main(argv):
  drivers.check_usage(argv, configs=_CONFIGS.value, workdir=_WORKDIR.value)
  # The devices are for the runs: a TPU serves one process only.
  jax.config.update('jax_platforms', 'cpu')
  ranged = rates.parse(_LR_RANGE.value) if _LR_RANGE.value else None
  grid = [*_GRID.value]
  if ranged:
    rates.check_configs(_CONFIGS.value)
    grid += rates.grid(*ranged, _LR_STEPS.value)
  points = points_lib.make(
      _CONFIGS.value, grid, 1 if ranged else _SEEDS.value
  )
  select, chosen = None, []
  if _SELECT.value:
    if ranged:
      raise errors.UserValueError('--select does not go with --lr_range.')
    select = choosing.check(points, _SELECT.value)
  workdir = pathlib.Path(_WORKDIR.value)
  is_done = rates.is_done if ranged else running.is_done
  kept = pathlib.Path(_RESULTS.value) if _RESULTS.value else None

  def ended():
    if not ranged:
      collect(points, workdir, chosen)
      if kept:
        copy(points, workdir, kept)

  def train(points):
    left = [point for point in points if not is_done(point, workdir)]
    runs = '1 run' if len(points) == 1 else f'{len(points)} runs'
    say(f'{runs}, {len(points) - len(left)} of them done before')
    return running.run(left, workdir, _JOBS.value, say, ended)

  with lock.hold(workdir):
    if ranged:
      rates.claim(points, workdir)
    elif kept:
      check_kept(points, kept)
      copy(points, kept, workdir)
    if select:
      failed = train([point for point in points if point.seed == 0])
      points, chosen = choosing.with_chosen(points, select, workdir)
      for point in chosen:
        say(f'chosen: {point.setting}')
      failed += train([point for point in points if point.seed > 0])
    else:
      failed = train(points)
    if ranged:
      print(*rates.draw(points, workdir, *ranged), sep='\n')
      return
    ended()
  print(table(points, workdir))
  if failed:
    raise errors.UserError(
        f'{len(failed)} of {len(points)} runs failed. {"; ".join(failed)}'
    )


def say(line: str) -> None:
  """Prints a line at once."""
  print(line, file=sys.stderr, flush=True)


def found(points, workdir) -> dict[pathlib.PurePosixPath, dict]:
  """Returns the results of each setting by seed, as far as they are there."""
  settings: dict = {}
  for point in points:
    by_seed = settings.setdefault(point.setting, {})
    if running.is_done(point, workdir):
      by_seed[point.seed] = results.read(
          workdir / point.directory / results.FILE
      )
  return settings


def collect(points, workdir, chosen=()) -> None:
  """Writes `sweep.json`: for each setting, the mean and its standard error.

  The settings of `chosen` runs are marked.
  """
  rows, best = [], {point.setting for point in chosen}
  for setting, by_seed in found(points, workdir).items():
    row = dict(setting=str(setting), seeds={}, runs=len(by_seed))
    if setting in best:
      row['chosen'] = True
    for seed, result in by_seed.items():
      row |= {
          name: result[name] for name in (
              'config', 'layer', 'overrides', 'metric', 'split', 'unit',
              'parameters', 'device', 'published', 'published_error', 'source',
          )
      }
      row['seeds'][seed] = result['value']
    if by_seed:
      values = row['seeds'].values()
      row['mean'] = sum(values) / len(values)
      row['standard_error'] = collecting.standard_error(values)
      hours = [result['hours'] for result in by_seed.values()]
      row['hours'] = round(sum(hours), 4)
    rows.append(row)
  text = json.dumps(dict(rows=rows), indent=2) + '\n'
  files.write_text(workdir / 'sweep.json', text)


def table(points, workdir) -> str:
  """Returns the results as aligned text."""
  lines = [('setting', 'measured', 'result', 'seeds', 'time of a run')]
  for setting, by_seed in found(points, workdir).items():
    if not by_seed:
      lines.append((str(setting), '', 'not run', '0', ''))
      continue
    first = next(iter(by_seed.values()))
    metric, split = first['metric'], first['split']
    row = collecting.Row(
        config='', task=first['data'], layer=first['layer'], overrides={},
        metric=metric, split=split, unit=first['unit'],
        values={seed: result['value'] for seed, result in by_seed.items()},
        runs=tuple(by_seed.values()),
    )
    lines.append((
        str(setting), texts.measured(row),
        texts.number(row.mean, metric, row.error), str(len(by_seed)),
        texts.hours(row),
    ))
  widths = [max(map(len, column)) for column in zip(*lines)]
  return '\n'.join(
      '  '.join(cell.ljust(width) for cell, width in zip(line, widths)).rstrip()
      for line in lines
  )


def check_kept(points, kept) -> None:
  """Checks before the first run that its records can be kept.

  Raises:
    UserValueError: If the record of another run is where one of these goes.
    OSError: If nothing can be written there.
  """
  kept.mkdir(parents=True, exist_ok=True)
  with tempfile.TemporaryFile(dir=kept):
    pass
  for point in points:
    path = kept / point.directory / results.FILE
    if path.exists() and not running.is_done(point, kept):
      raise errors.UserValueError(
          f'{path} is of a run of other fields or steps, or damaged. Remove '
          'it, or use another --results.'
      )


def copy(points, source, target) -> None:
  """Copies the records of finished runs that `target` lacks, in the same tree.

  Those of smoke runs are not copied.
  """
  for point in points:
    if not running.is_done(point, source) or running.is_done(point, target):
      continue
    origin, place = source / point.directory, target / point.directory
    result = results.read(origin / results.FILE)
    if result.get('fixture') or result.get('smoke'):
      continue
    place.mkdir(parents=True, exist_ok=True)
    names = ['summary.json']
    if point.seed == 0:
      names += ['metrics.jsonl', 'curve.png']
    for name in (*names, results.FILE):  # Last, as the sign that all is there.
      if (origin / name).exists():  # Somebody may have kept the result alone.
        shutil.copyfile(origin / name, place / name)


if __name__ == '__main__':
  drivers.run(main)
