r"""Draws the curves of several runs in one plot, and prints them as a table.

  python -m experiments.compare runs/lru runs/min_gru --output=compare.png

A run may still be under way. `--metric` chooses what is drawn: a name in
`metrics.jsonl`, such as `eval_accuracy`, `train_loss` or `train_return`. Runs
of `experiments.ppo` are drawn over the steps of an agent in its environments.

`--lengths` draws finished runs over the lengths of the test sequences, which
`data.test_lengths` chose; `--metric` is `accuracy` then, for example.
"""

import pathlib
import re
from typing import Any, NamedTuple

from absl import app
from absl import flags
from experiments.cli import drivers
from rnnzoo import errors
from rnnzoo import tasks
from rnnzoo.training import files
from rnnzoo.training import metrics as metrics_lib
from rnnzoo.training import records
from rnnzoo.training import summary as summary_lib
from rnnzoo.training.metrics import curves

_OUTPUT = drivers.define_path(
    'output', 'compare.png', 'Write the plot to this file.'
)
_METRIC = flags.DEFINE_string(
    'metric', '',
    'What to compare. If empty, the metric of validation that chooses the '
    'checkpoint of the first run.',
)
_LENGTHS = flags.DEFINE_bool(
    'lengths', False,
    'Compare test sequences of several lengths: those of training, and those '
    'in data.test_lengths.',
)
# As in the plots of the benchmarks.
_COLORS = (
    '#4477aa', '#ee6677', '#228833', '#aa3377', '#ccbb44', '#66ccee', '#882255',
    '#44aa99', '#999933', '#332288',
)


Points = list[tuple[float, float]]  # Of a line: across and up.


class Run(NamedTuple):
  """What a workdir says of its run.

  Attributes:
    name: The directory, as it was given.
    title: See `records.title`.
    summary: `summary.json`; empty before the end.
    rows: The lines of `metrics.jsonl`.
  """

  name: str
  title: dict[str, Any]
  summary: dict[str, Any]
  rows: list[dict[str, Any]]


def main(argv):
  if len(argv) < 2:
    raise app.UsageError('Which runs? Give their workdirs.')
  runs = [read(name) for name in argv[1:]]
  metric = _METRIC.value or chosen(runs[0])
  if _LENGTHS.value:
    name, unit = metric.removeprefix('eval_'), 'length of a test sequence'
    points, metric = [by_length(run, name) for run in runs], f'test_{name}'
  else:
    unit, points = by_step(runs, metric)
  lines = [
      ('run', 'layer', 'data', metric, unit, 'parameters', 'seconds'),
      *(line(run, metric, found) for run, found in zip(runs, points)),
  ]
  widths = [max(map(len, column)) for column in zip(*lines)]
  for cells in lines:
    print('  '.join(c.ljust(w) for c, w in zip(cells, widths)).rstrip())
  path = pathlib.Path(_OUTPUT.value)
  draw(runs, points, metric, path, unit, logarithmic=_LENGTHS.value)
  print(f'plot: {path}')


def by_step(runs: list[Run], metric: str) -> tuple[str, list[Points]]:
  """Returns a metric of each run over its steps, and what the steps are."""
  # Runs of PPO may make rollouts of different sizes.
  across = 'environment_steps'
  if not all(records.numbers(run.rows, across) for run in runs):
    across = 'step'
  points = []
  for run in runs:
    points.append([
        (row[across], row[metric]) for row in run.rows
        if records.is_number(row.get(metric))
        and records.is_number(row.get(across))
    ])
    if not points[-1]:
      names = sorted({name for row in run.rows for name in row})
      raise errors.UserValueError(
          f'--metric: {run.name} has no {metric}, only {", ".join(names)}.'
      )
  return across.replace('_', ' '), points


def by_length(run: Run, metric: str) -> Points:
  """Returns a metric of a run over the lengths of its test sequences.

  Raises:
    UserValueError: If there are not two lengths.
  """
  points = [
      (int(found[1]), value) for name, value in run.summary.items()
      if (found := re.fullmatch(rf'test_(\d+)_{re.escape(metric)}', name))
      and records.is_number(value)
  ]
  trained = run.title.get('sequence_length')
  if trained and records.is_number(run.summary.get(f'test_{metric}')):
    points.append((trained, run.summary[f'test_{metric}']))
  if len(points) < 2:
    raise errors.UserValueError(
        f'--lengths: {run.name} has no {metric} of several lengths. It is in '
        'the summary.json of a finished run with data.test_lengths.'
    )
  return sorted(points)


def read(name: str) -> Run:
  """Reads what a run has written.

  Raises:
    UserFileNotFoundError: If it has written no metrics.
  """
  workdir = files.workdir(name)
  rows = metrics_lib.read_metrics(workdir)
  if not rows:
    raise errors.UserFileNotFoundError(
        f'There are no metrics in {name}; it should be the --workdir of a run.'
    )
  path = workdir / 'summary.json'
  return Run(
      name, records.title(workdir), records.read_summary(path) or {}, rows
  )


def chosen(run: Run) -> str:
  """Returns the metric that chooses the checkpoint of a run."""
  best = [name for name in run.summary if name.startswith('best_eval_')]
  if best:
    return best[0].removeprefix('best_')
  returns = any('environment_steps' in row for row in run.rows)
  return 'eval_return' if returns else 'eval_loss'


def line(run: Run, metric: str, points) -> tuple[str, ...]:
  """Returns the cells of a run: its best value, and the step of that."""
  grows = metric.endswith('_return') or any(
      metric.endswith(f'_{name}')
      for kind in tasks.TASKS.values() for name in kind.larger_is_better
  )
  step, value = (max if grows else min)(points, key=lambda point: point[1])
  size = run.title.get('parameters')
  seconds = run.summary.get('seconds', summary_lib.busy_seconds(run.rows))
  return (
      run.name, run.title.get('layer', ''), run.title.get('data', ''),
      f'{value:.4g}', f'{step:,}', f'{size:,}' if size else '',
      f'{seconds:,.0f}',
  )


def short_names(names: list[str]) -> list[str]:
  """Returns names without the directories with which all of them begin.

  >>> short_names(['runs/copying/lru', 'runs/copying/gru/seed_1'])
  ['lru', 'gru/seed_1']
  """
  parts = [name.rstrip('/').split('/') for name in names]
  while len({part[0] for part in parts}) == 1 and min(map(len, parts)) > 1:
    parts = [part[1:] for part in parts]
  return ['/'.join(part) for part in parts]


def draw(
    runs, points, metric: str, path: pathlib.Path, unit: str = 'step',
    logarithmic: bool = False,
) -> None:
  """Draws a line for each run; `unit` names the horizontal axis."""
  from matplotlib import figure
  from matplotlib.backends import backend_agg

  canvas = backend_agg.FigureCanvasAgg(
      figure.Figure(figsize=(8, 4.5), layout='constrained')
  )
  axes = canvas.figure.subplots()
  names = short_names([run.name for run in runs])
  for i, (name, one) in enumerate(zip(names, points)):
    color, style = _COLORS[i % len(_COLORS)], '-:'[i // len(_COLORS) % 2]
    steps, values = zip(*sorted(one))
    is_noisy = metric.startswith('train_') and len(values) >= 20
    if is_noisy:
      axes.plot(steps, values, color=color, linewidth=0.8, alpha=0.3)
    axes.plot(
        steps, curves.smooth(values) if is_noisy else values, style,
        color=color, label=name.replace('$', r'\$'),
        marker=None if is_noisy else 'o', markersize=3.5,
    )
  axes.set(xlabel=unit, ylabel=metric.replace('_', ' '))
  if logarithmic:
    axes.set_xscale('log', base=2)
    axes.xaxis.set_major_formatter('{x:,.0f}')
  axes.spines[['top', 'right']].set_visible(False)
  axes.grid(alpha=0.25)
  axes.legend(
      loc='lower left', bbox_to_anchor=(0, 1), ncols=3, frameon=False,
      fontsize='small',
  )
  path.parent.mkdir(parents=True, exist_ok=True)
  canvas.figure.savefig(path, format='png', dpi=150)


if __name__ == '__main__':
  drivers.run(main)
