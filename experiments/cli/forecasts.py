"""Draws forecasts of the model of a run, for forecast.py and train.py."""

from collections.abc import Sequence
import pathlib
from typing import Any, NamedTuple

import jax
import numpy as np
from rnnzoo import errors
from rnnzoo import restoring

# The steps of the past in a plot, as multiples of the horizon, and columns.
_PAST = 3
_COLUMNS = 4
_COLORS = dict(past='#555555', truth='#4477aa', forecast='#ee6677')


class Forecast(NamedTuple):
  """One window, its truth and its forecast, in the units of the file.

  Attributes:
    names: The columns.
    past: The steps that were read, `[L, C]`.
    truth: The steps after them, `[H, C]`; NaN where a number is missing.
    prediction: The forecast, `[H, C]`.
    band: The quantiles 0.1 and 0.9, `[2, H, C]`, or `None`.
  """

  names: tuple[str, ...]
  past: np.ndarray
  truth: np.ndarray
  prediction: np.ndarray
  band: np.ndarray | None


def make(
    run: restoring.Run, dataset: Any, split: str, window: int | None = None
) -> Forecast:
  """Returns the forecast of a window.

  Args:
    run: The restored run.
    dataset: Its data set, all rows of each batch.
    split: The part of the data.
    window: The number of the window in this part; one in the middle if `None`.

  Raises:
    UserValueError: If the run forecasts nothing, or there is no such window.
  """
  if not (dataset.horizon and dataset.out_features):
    raise errors.UserValueError(
        f'This run is of {dataset.name}, a data set for {dataset.task}: there '
        'is no forecast to draw.'
    )
  batches = dataset.eval_batches(split)
  count = dataset.source['examples'][split]
  window = count // 2 if window is None else window
  if not 0 <= window < count:
    raise errors.UserValueError(
        f'--window must be in [0, {count}), the windows of {split}, got '
        f'{window}.'
    )
  number, row = divmod(window, dataset.batch_size)
  batch = batches[number]
  found = jax.jit(run.task.predict)(
      run.model, {name: u[row : row + 1] for name, u in batch.items()}
  )
  scale, offset = map(
      np.array, (dataset.target_scale, dataset.target_offset)
  )
  of_file = lambda u: np.asarray(u, np.float64) * scale + offset
  known = batch['mask'][row]
  truth = of_file(batch['targets'][row])
  return Forecast(
      dataset.target_names,
      of_file(batch['inputs'][row, :, : len(scale)]),
      np.where(known, truth, np.nan),
      of_file(found['prediction'][0]),
      of_file(np.stack([found['low'][0], found['high'][0]]))
      if 'low' in found else None,
  )


def draw(
    forecast: Forecast, path: pathlib.Path, title: str,
    columns: Sequence[str] = (),
) -> None:
  """Writes a plot with a panel for each column.

  Args:
    forecast: What to draw.
    path: The image.
    title: The title.
    columns: The columns; the last four if empty.

  Raises:
    UserValueError: If there is no such column.
  """
  from matplotlib import figure
  from matplotlib.backends import backend_agg

  names = forecast.names
  for name in columns:
    if name not in names:
      raise errors.UserValueError(
          f'--columns: the run has no column {name!r} to forecast, only '
          f'{", ".join(names)}.' + errors.suggest(name, names)
      )
  shown = [names.index(name) for name in columns or names[-_COLUMNS:]]
  canvas = backend_agg.FigureCanvasAgg(figure.Figure(
      figsize=(9, 0.9 + 1.7 * len(shown)), layout='constrained'
  ))
  panels = canvas.figure.subplots(len(shown), sharex=True, squeeze=False)[:, 0]
  steps = len(forecast.truth)
  past = forecast.past[-_PAST * steps :]
  before, after = np.arange(1 - len(past), 1), np.arange(1, steps + 1)
  for axes, column in zip(panels, shown):
    axes.plot(before, past[:, column], color=_COLORS['past'], label='past')
    axes.plot(
        after, forecast.truth[:, column], color=_COLORS['truth'], label='truth'
    )
    axes.plot(
        after, forecast.prediction[:, column], color=_COLORS['forecast'],
        label='forecast',
    )
    if forecast.band is not None:
      axes.fill_between(
          after, *forecast.band[:, :, column], color=_COLORS['forecast'],
          alpha=0.2, linewidth=0, label='quantiles 0.1 to 0.9',
      )
    axes.axvline(0.5, color='black', linewidth=0.8, linestyle=':')
    axes.set_ylabel(names[column].replace('$', r'\$'))
    axes.spines[['top', 'right']].set_visible(False)
    axes.grid(alpha=0.25)
    axes.margins(x=0.01)
  panels[0].legend(
      loc='lower left', bbox_to_anchor=(0, 1), ncols=4, frameon=False,
      fontsize='small', borderaxespad=0.2,
  )
  panels[-1].set_xlabel('steps after the last one read')
  canvas.figure.suptitle(title.replace('$', r'\$'), x=0.01, ha='left')
  path.parent.mkdir(parents=True, exist_ok=True)
  canvas.figure.savefig(path, format='png', dpi=120)
