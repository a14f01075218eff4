"""`curve.png`: the returns of a run over the steps of its environments."""

import pathlib
import re

from rnnzoo.training import files
from rnnzoo.training import metrics as metrics_lib
from rnnzoo.training import records
from rnnzoo.training.metrics import curves

_TRAIN, _EVAL = '#4477aa', '#ee6677'


def plot(workdir) -> pathlib.Path:
  """Draws the mean return of all agents, and each of them thin.

  Args:
    workdir: The run's directory.

  Returns:
    The path of the image.

  Raises:
    errors.UserError: If the image cannot be written.
  """
  # Not pyplot, which keeps global state and may look for a display.
  from matplotlib import figure
  from matplotlib.backends import backend_agg

  workdir = files.workdir(workdir)
  rows = [
      dict(row, step=row['environment_steps'])
      for row in metrics_lib.read_metrics(workdir)
      if records.is_number(row.get('environment_steps'))
  ]
  canvas = backend_agg.FigureCanvasAgg(
      figure.Figure(figsize=(8, 4.5), layout='constrained')
  )
  axes = canvas.figure.subplots()
  for name, color, label in (
      ('train_return', _TRAIN, 'training'),
      ('eval_return', _EVAL, 'evaluation, most probable actions'),
  ):
    agents = sorted({
        key for row in rows for key in row
        if re.fullmatch(rf'{name}_seed_\d+', key)
    })
    for agent in agents:
      axes.plot(*curves.column(rows, agent), color=color, lw=0.7, alpha=0.35)
    steps, values = curves.column(rows, name)
    if len(steps):
      mean = f', mean of {len(agents)} agents' if agents else ''
      axes.plot(
          steps, values, color=color, label=f'{label}{mean}', markersize=3.5,
          marker='o' if name == 'eval_return' else None,
      )
  axes.set(xlabel='environment steps of an agent', ylabel='return')
  axes.xaxis.set_major_formatter('{x:,.0f}')
  axes.spines[['top', 'right']].set_visible(False)
  axes.grid(alpha=0.25)
  if axes.get_legend_handles_labels()[0]:
    axes.legend(
        loc='lower left', bbox_to_anchor=(0, 1), ncols=2, frameon=False,
        fontsize='small',
    )
  found = records.title(workdir)
  title = ' on '.join(found[n] for n in ('layer', 'data') if n in found)
  canvas.figure.suptitle(
      f'Return of {title or "a policy"}', x=0.01, ha='left'
  )
  return curves.write(canvas.figure, workdir)
