"""`curve.png`: the losses and metrics of a run over its steps, its speed."""

import io
import math
import pathlib
from typing import Literal

import numpy as np
from rnnzoo import errors
from rnnzoo.training import files
from rnnzoo.training import records
from rnnzoo.training.metrics import writer
import tqdm

_COLORS = {
    'train': '#4477aa', 'eval': ('#ee6677', '#228833', '#aa3377'),
    'speed': '#333333', 'wait': '#bb5500',
}


def column(rows, key) -> tuple[np.ndarray, np.ndarray]:
  """Returns the steps in ascending order, and the finite values of a metric."""
  # Losses restored from checkpoints come after those of later steps.
  points = sorted(records.numbers(rows, key), key=lambda point: point[0])
  steps, values = np.array(points, float).reshape(-1, 2).T
  return steps, values


def smooth(values: np.ndarray) -> np.ndarray:
  """Returns means over a window of about a thirtieth of the run.

  The window is centred at each point, and narrow at the start of the run, so
  that the line does not lag behind where the loss falls fast.
  """
  i = np.arange(len(values))
  half = np.minimum(i, max(1, len(values) // 60))
  end = np.minimum(i + half + 1, len(values))
  sums = np.concatenate([[0.0], np.cumsum(values)])
  return (sums[end] - sums[i - half]) / (end - i + half)


def _title(workdir: pathlib.Path) -> str:
  """Returns layer, data set and size, as far as the run's files name them."""
  found = records.title(workdir)
  title = ' on '.join(found[n] for n in ('layer', 'data') if found.get(n))
  if 'parameters' in found:
    size = tqdm.tqdm.format_sizeof(found['parameters'])
    title += f'{", " if title else ""}{size} parameters'
  return title


def write(figure, workdir: pathlib.Path) -> pathlib.Path:
  """Writes a Matplotlib figure as `curve.png` of a run; returns its path.

  Raises:
    errors.UserError: If it cannot be written.
  """
  image = io.BytesIO()
  figure.savefig(image, format='png', dpi=150)
  path = workdir / 'curve.png'
  try:
    files.write_bytes(path, image.getvalue())
  except OSError as e:
    raise errors.UserError(f'Cannot write {path}: {e.strerror or e}.') from e
  return path


def plot_curves(
    workdir,
    *,
    loss_unit: str = '',
    unit: str = 'tokens',
    metric: str = 'loss',
    best_mode: Literal['min', 'max'] = 'min',
) -> pathlib.Path:
  """Draws `curve.png` from `metrics.jsonl`.

  The training loss is drawn thin and, when there are enough points, smoothed;
  the loss on each evaluation split (`eval_loss`, `eval_..._loss`) has its own
  colour. Where another metric chooses the best checkpoint, it has a panel of
  its own above. A star marks the best value of `eval_<metric>`. The speed lies
  below, where it was measured. The title comes from `config.json` and
  `summary.json`, as far as they exist.

  Args:
    workdir: The run's directory. With no metrics the axes stay empty.
    loss_unit: The unit of the loss, such as `nats per character`. A second
      scale shows nats in bits.
    unit: What the steps of a sequence are, in the plural, for the speed.
    metric: The metric that chooses the best checkpoint, such as `accuracy`.
    best_mode: Whether its lowest or its highest value is the best.

  Returns:
    The path of the image.

  Raises:
    errors.UserError: If the image cannot be written.
  """
  # Not pyplot, which keeps global state and may look for a display.
  from matplotlib import figure
  from matplotlib import ticker
  from matplotlib.backends import backend_agg

  workdir = files.workdir(workdir)
  rows = writer.read_metrics(workdir)
  names = ['loss'] if metric == 'loss' else [metric, 'loss']
  has_speed = any('tokens_per_second_per_device' in row for row in rows)
  canvas = backend_agg.FigureCanvasAgg(figure.Figure(
      figsize=(8, 4.5 + 3 * (len(names) - 1)), layout='constrained'
  ))
  panels = canvas.figure.subplots(
      len(names) + has_speed, sharex=True, squeeze=False,
      height_ratios=[5] * len(names) + [1] * has_speed,
  )[:, 0]
  for axes, name in zip(panels, names):
    of_loss = ', '.join(['loss', loss_unit]) if loss_unit else 'loss'
    axes.set_ylabel(of_loss if name == 'loss' else name)
    if name == 'loss':
      _add_bits(axes, loss_unit)
    _plot_metric(axes, rows, name)
    if name == metric:
      in_nats = name == 'loss' and loss_unit.startswith('nats')
      _mark_best(axes, rows, name, best_mode, 'nats' if in_nats else '')
    if axes.lines:  # Above the panel, where the legend covers nothing.
      axes.legend(
          loc='lower left', bbox_to_anchor=(0, 1), ncols=5, frameon=False,
          fontsize='small', borderaxespad=0.2,
      )
  if has_speed:
    _plot_speed(panels[-1], rows, unit)
  title = f'{" and ".join(names)} of {_title(workdir) or "a run"}'
  canvas.figure.suptitle(title[0].upper() + title[1:], x=0.01, ha='left')
  panels[-1].set_xlabel('step')
  panels[-1].xaxis.set_major_locator(ticker.MaxNLocator(
      'auto', integer=True, min_n_ticks=1, steps=(1, 2, 5, 10)
  ))
  return write(canvas.figure, workdir)


def _add_bits(axes, unit: str) -> None:
  """Adds a second scale in bits to a loss in nats."""
  if not unit.startswith('nats'):
    return
  bits = axes.secondary_yaxis(
      'right', (lambda x: x / math.log(2), lambda x: x * math.log(2))
  )
  bits.set_ylabel(f'loss, {unit.replace("nats", "bits", 1)}')


def _plot_metric(axes, rows, name: str) -> None:
  """Draws a metric in training and on every evaluation split."""
  axes.spines[['top', 'right']].set_visible(False)
  axes.grid(alpha=0.25)
  steps, values = column(rows, f'train_{name}')
  color = _COLORS['train']
  if len(steps) >= 20:
    axes.plot(steps, values, color=color, linewidth=0.8, alpha=0.35)
    axes.plot(steps, smooth(values), color=color, label='training')
  elif len(steps):
    marker = 'o' if len(steps) == 1 else None
    axes.plot(steps, values, color=color, marker=marker, label='training')
  main = f'eval_{name}'
  keys = {key for row in rows for key in row}
  keys = [k for k in keys if k.startswith('eval_') and k.endswith(f'_{name}')]
  # That of validation comes first, whatever the others are called.
  for i, key in enumerate(sorted(keys, key=lambda k: (k != main, k))):
    steps, values = column(rows, key)
    if not len(steps):
      continue
    label = key.removeprefix('eval_').removesuffix(f'_{name}').replace('_', ' ')
    axes.plot(
        steps, values, color=_COLORS['eval'][i % len(_COLORS['eval'])],
        marker='o', markersize=3.5,
        label='validation' if key == main else label,
    )


def _mark_best(axes, rows, name: str, best_mode: str, unit: str) -> None:
  """Marks the best value of validation, the first of several, with a star.

  Args:
    axes: Where the metric is drawn.
    rows: From `read_metrics`.
    name: The metric.
    best_mode: `'min'` or `'max'`.
    unit: What it is measured in; '' for nothing.
  """
  steps, values = column(rows, f'eval_{name}')
  if not len(steps):
    return
  best = int(np.argmax(values) if best_mode == 'max' else np.argmin(values))
  text = f'{values[best]:.4g} {unit}'.rstrip()
  if unit == 'nats':
    text += f', {values[best] / math.log(2):.4g} bits'
  axes.plot(
      steps[best], values[best], color=_COLORS['eval'][0], marker='*',
      markersize=14, markeredgecolor='white', linestyle='none', zorder=4,
      label=f'best: {text} at step {steps[best]:.0f}',
  )


def _plot_speed(axes, rows, unit: str) -> None:
  """Draws the speed, and the share of the time that devices wait for data."""
  steps, speeds = column(rows, 'tokens_per_second_per_device')
  waited, waits = column(rows, 'input_wait')
  other = axes.twinx()
  for each, x, y, color, label in (
      (axes, steps, speeds, _COLORS['speed'], f'{unit}/s\nper device'),
      (other, waited, 100 * waits, _COLORS['wait'], 'waiting for\ndata, %'),
  ):
    # A point has no line.
    each.plot(x, y, color=color, linewidth=0.8, marker='.' * (len(x) == 1))
    each.set_ylabel(label, fontsize='x-small', color=color)
    each.set_ylim(0, 1.15 * each.get_ylim()[1])
    each.tick_params(axis='x', labelsize='x-small')
    each.tick_params(axis='y', labelsize='x-small', colors=color)
    each.spines['top'].set_visible(False)
  other.set_ylim(0, max(1, *other.get_ylim()))  # A scale of 1 % at least.
  axes.yaxis.set_major_formatter('{x:,.0f}')
  axes.grid(alpha=0.25)
