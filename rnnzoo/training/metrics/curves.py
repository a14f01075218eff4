"""`curve.png`: the losses of a run over its steps, and its speed."""

import io
import math
import pathlib

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


def _column(rows, key) -> tuple[np.ndarray, np.ndarray]:
  """Steps in ascending order and finite values of a metric."""
  # Losses that a run has recovered come after those of later steps.
  points = sorted(records.numbers(rows, key), key=lambda point: point[0])
  return np.array(points, float).reshape(-1, 2).T


def _smooth(values: np.ndarray) -> np.ndarray:
  """Means over a window of about a thirtieth of the run around each point.

  The window is centred, and narrow at the start, so that the line does not lag
  behind where the loss falls fast.
  """
  i = np.arange(len(values))
  half = np.minimum(i, max(1, len(values) // 60))
  end = np.minimum(i + half + 1, len(values))
  sums = np.concatenate([[0.0], np.cumsum(values)])
  return (sums[end] - sums[i - half]) / (end - i + half)


def _title(workdir: pathlib.Path) -> str:
  """Layer, dataset and size, as far as the run's files tell."""
  found = records.title(workdir)
  title = ' on '.join(found[n] for n in ('layer', 'data') if found.get(n))
  if 'parameters' in found:
    size = tqdm.tqdm.format_sizeof(found['parameters'])
    title += f'{", " if title else ""}{size} parameters'
  return title


def _plot_speed(axes, rows) -> None:
  """Draws tokens a second, and what of the time the devices had to wait."""
  steps, speeds = _column(rows, 'tokens_per_second_per_device')
  waited, waits = _column(rows, 'input_wait')
  other = axes.twinx()
  for each, x, y, color, label in (
      (axes, steps, speeds, _COLORS['speed'], 'tokens/s\nper device'),
      (other, waited, 100 * waits, _COLORS['wait'], 'waiting for\ndata, %'),
  ):
    # A point has no line.
    each.plot(x, y, color=color, linewidth=0.8, marker='.' * (len(x) == 1))
    each.set_ylabel(label, fontsize='x-small', color=color)
    each.set_ylim(bottom=0)
    each.tick_params(axis='x', labelsize='x-small')
    each.tick_params(axis='y', labelsize='x-small', colors=color)
    each.spines['top'].set_visible(False)
  other.set_ylim(0, max(1, *other.get_ylim()))  # Never fractions of nothing.
  axes.grid(alpha=0.25)


def plot_curves(workdir) -> pathlib.Path:
  """Draws `curve.png` from `metrics.jsonl`.

  The training loss is drawn thin and, when there are enough points, smoothed;
  every evaluation loss (`eval_loss`, `eval_..._loss`) has its own colour, and
  the lowest `eval_loss` a mark. Below lies the speed, where it was measured.
  The title comes from `config.json` and `summary.json`, as far as they exist.

  Args:
    workdir: The run's directory. With no metrics the axes stay empty.

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
  canvas = backend_agg.FigureCanvasAgg(
      figure.Figure(figsize=(8, 4.5), layout='constrained')
  )
  if any('tokens_per_second_per_device' in row for row in rows):
    axes, below = canvas.figure.subplots(2, sharex=True, height_ratios=(5, 1))
    _plot_speed(below, rows)
  else:
    axes = below = canvas.figure.add_subplot()
  axes.set_title(_title(workdir), loc='left')
  below.set_xlabel('step')
  below.xaxis.set_major_locator(ticker.MaxNLocator(
      'auto', integer=True, min_n_ticks=1, steps=(1, 2, 5, 10)
  ))
  axes.set_ylabel('loss, nats per token')
  axes.spines['top'].set_visible(False)
  axes.grid(alpha=0.25)
  bits = axes.secondary_yaxis(
      'right', (lambda x: x / math.log(2), lambda x: x * math.log(2))
  )
  bits.set_ylabel('loss, bits per token')

  steps, losses = _column(rows, 'train_loss')
  color = _COLORS['train']
  if len(steps) >= 20:
    axes.plot(steps, losses, color=color, linewidth=0.8, alpha=0.35)
    axes.plot(steps, _smooth(losses), color=color, label='training')
  elif len(steps):
    marker = 'o' if len(steps) == 1 else None
    axes.plot(steps, losses, color=color, marker=marker, label='training')
  keys = {key for row in rows for key in row}
  keys = [k for k in keys if k.startswith('eval') and k.endswith('loss')]
  # `eval_loss` comes first, whatever the others are called.
  for i, key in enumerate(sorted(keys, key=lambda k: (k != 'eval_loss', k))):
    steps, losses = _column(rows, key)
    if not len(steps):
      continue
    color = _COLORS['eval'][i % len(_COLORS['eval'])]
    label = 'validation'
    if key != 'eval_loss':
      label = key[len('eval_') : -len('_loss')].replace('_', ' ')
    axes.plot(
        steps, losses, color=color, marker='o', markersize=3.5, label=label
    )
    if key == 'eval_loss':
      best = int(np.argmin(losses))
      axes.plot(
          steps[best], losses[best], color=color, marker='*', markersize=14,
          markeredgecolor='white', linestyle='none', zorder=4,
          label=f'best: {losses[best]:.4g} nats, '
          f'{losses[best] / math.log(2):.4g} bits at step {steps[best]:.0f}',
      )
  if axes.lines:
    axes.legend(frameon=False)
  image = io.BytesIO()
  canvas.figure.savefig(image, format='png', dpi=150)
  path = workdir / 'curve.png'
  try:
    files.write_bytes(path, image.getvalue())
  except OSError as e:
    raise errors.UserError(f'Cannot write {path}: {e.strerror or e}.') from e
  return path
