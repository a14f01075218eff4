"""The learning-rate range test (Smith, 2015, https://arxiv.org/abs/1506.01186).

One short run whose learning rate grows exponentially. Where its loss is lowest,
training at a constant rate is near the end of what it can bear: people take a
third to a tenth of that rate.
"""

from collections.abc import Sequence
import json
import pathlib

from experiments.cli import config_flag
from experiments.cli import results
from experiments.sweeping import points as points_lib
import numpy as np
from rnnzoo import errors
from rnnzoo.training import files
from rnnzoo.training import metrics as metrics_lib
from rnnzoo.training import records
from rnnzoo.training.metrics import curves

PLOT = 'learning_rate.png'
# The fields of the test that a workdir is for.
_CLAIM = 'range.json'


def parse(text: str) -> tuple[float, float]:
  """Returns the lowest and the highest rate of `1e-5,1e-1`.

  Raises:
    UserValueError: If it is something else.
  """
  try:
    low, high = map(float, text.split(','))
  except ValueError:
    low, high = 0.0, 0.0
  if not 0 < low < high < float('inf'):
    raise errors.UserValueError(
        '--lr_range must be two rates, the lower one first, such as 1e-5,1e-1, '
        f'got {text!r}.'
    )
  return low, high


def check_configs(configs: str) -> None:
  """Raises `UserValueError` if a config is one of `experiments.ppo`."""
  for config in points_lib.files_and_layers(configs):
    if 'environment' in config_flag.parse_alone(config).value:
      raise errors.UserValueError(
          f'--lr_range looks at the loss of training on data, but {config} is '
          'of experiments.ppo. Try some rates: '
          '--grid=optimizer.learning_rate=1e-3,3e-3.'
      )


def grid(low: float, high: float, steps: int) -> list[str]:
  """Returns what `points.make` takes so that all runs are range tests."""
  return [
      f'{name}={value}' for name, value in {
          'optimizer.schedule': 'exponential',
          'optimizer.learning_rate': low,
          'optimizer.end_learning_rate': high,
          'optimizer.warmup_steps': 0,
          'total_steps': steps,
          'steps_per_dispatch': 1,
          'log_every': 1,
          'eval_every': steps,
          'save_every': steps,
          'sample_characters': 0,
          'must_beat_gzip': False,
          'on_nan': 'stop',  # A rollback would lower the rate.
      }.items()
  ]


def draw(
    points: Sequence[points_lib.Point], workdir: pathlib.Path, low: float,
    high: float,
) -> list[str]:
  """Draws the loss against the rate, in each workdir that has losses.

  A run may have ended early: that is what a rate that is too high does.

  Returns:
    A line on each run.
  """
  from matplotlib import figure
  from matplotlib.backends import backend_agg

  lines = []
  for point in points:
    directory = workdir / point.directory
    rows = metrics_lib.read_metrics(directory)
    losses = records.numbers(rows, 'train_loss')
    if len(losses) < 3:
      lines.append(f'{point.setting}: no losses, see {directory.name}/log.txt')
      continue
    steps, values = np.array(losses).T
    rates = low * (high / low) ** ((steps - 1) / point.total_steps)
    smooth = curves.smooth(values)
    best = int(np.argmin(smooth))
    canvas = backend_agg.FigureCanvasAgg(
        figure.Figure(figsize=(7, 4), layout='constrained')
    )
    axes = canvas.figure.subplots()
    axes.plot(rates, values, color='#4477aa', linewidth=0.8, alpha=0.35)
    axes.plot(rates, smooth, color='#4477aa')
    axes.axvline(rates[best], color='#ee6677', linestyle=':')
    # After the loss explodes, nothing else could be seen.
    top = max(values[0], smooth[: best + 1].max())
    bottom = smooth.min()
    axes.set(
        xscale='log', xlabel='learning rate', ylabel='training loss',
        ylim=(bottom - 0.1 * (top - bottom), top + 0.3 * (top - bottom)),
    )
    axes.set_title(
        f'{point.setting}: lowest loss at a rate of {rates[best]:.2g}',
        loc='left', fontsize='medium',
    )
    axes.spines[['top', 'right']].set_visible(False)
    axes.grid(alpha=0.25)
    canvas.figure.savefig(directory / PLOT, dpi=120)
    lines.append(
        f'{point.setting}: lowest loss {smooth[best]:.4g} at a rate of '
        f'{rates[best]:.2g} ({point.directory / PLOT})'
    )
  return lines


def claim(
    points: Sequence[points_lib.Point], workdir: pathlib.Path
) -> None:
  """Notes in the workdir of each run which test it is for.

  Raises:
    UserValueError: If a workdir has another run, whose losses would be drawn
      against the wrong rates; or if a run is a smoke run, whose overrides
      choose its rate.
  """
  for point in points:
    wanted = dict(point.overrides)
    if wanted.get('smoke') == 'True':
      raise errors.UserValueError(
          '--lr_range does not go with smoke=True, which sets the rate too. '
          'Use a small --lr_steps.'
      )
    directory = workdir / point.directory
    path = directory / _CLAIM
    try:
      found = json.loads(path.read_text())
    except (OSError, ValueError):
      found = None
    if found != wanted and (directory / 'config.json').exists():
      raise errors.UserValueError(
          f'{directory} has a run that is no range test of these rates and '
          'fields. Use another --workdir.'
      )
    directory.mkdir(parents=True, exist_ok=True)
    files.write_text(path, json.dumps(wanted, indent=2) + '\n')


def is_done(point: points_lib.Point, workdir: pathlib.Path) -> bool:
  """Whether a range test has its plot or its result."""
  directory = workdir / point.directory
  return (directory / PLOT).exists() or (directory / results.FILE).exists()
