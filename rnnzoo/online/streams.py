"""Streams of numbers for online regression: generated, or inside a package.

A stream is inputs `[T, 1]` and targets `[T, 1]`, float64, both standardised by
the mean and the deviation of the whole stream. But for `narma`, a target is the
next input.
"""

from collections.abc import Callable, Mapping
import csv
import importlib.util
import pathlib
from typing import Any, NamedTuple

import numpy as np
from rnnzoo import errors
from rnnzoo import fields


class Stream(NamedTuple):
  """A stream.

  Attributes:
    inputs: `[T, 1]`.
    targets: `[T, 1]`, of mean 0 and variance 1.
    noise: The smallest error that a predictor can have on average, as a part of
      the variance; `None` if it is not known.
  """

  inputs: np.ndarray
  targets: np.ndarray
  noise: float | None = None


def _of_series(values: np.ndarray, noise: float | None = None) -> Stream:
  """Returns the stream whose targets are the next values `[T + 1]`."""
  values = np.asarray(values, np.float64)
  scale = values[1:].std()
  values = ((values - values[1:].mean()) / scale)[:, None]
  return Stream(
      values[:-1], values[1:], None if noise is None else noise / scale**2
  )


def mackey_glass(rng: np.random.Generator, length: int) -> Stream:
  """The equation of Mackey and Glass (1977) with a delay of 17.

  https://doi.org/10.1126/science.267326. `dx/dt = 0.2 x(t - 17) / (1 + x(t -
  17)**10) - 0.1 x`, by steps of 0.1 of Heun's method, one value each 6 units of
  time. The seed decides where it starts.
  """
  small, delay, every, skip = 0.1, 170, 60, 3000
  change = lambda x, late: 0.2 * late / (1 + late**10) - 0.1 * x
  total = skip + every * (length + 1)
  x = np.empty(delay + total + 1)
  x[: delay + 1] = 1.2 + 0.2 * (rng.random() - 0.5)
  for t in range(delay, delay + total):
    late, next_late = x[t - delay], x[t - delay + 1]
    slope = change(x[t], late)
    ahead = x[t] + small * slope
    x[t + 1] = x[t] + small / 2 * (slope + change(ahead, next_late))
  return _of_series(x[delay + skip :: every][: length + 1])


def narma(rng: np.random.Generator, length: int) -> Stream:
  """NARMA-10 (Atiya & Parlos 2000), https://doi.org/10.1109/72.846741.

  Inputs are uniform random numbers, and targets what a nonlinear filter of
  order 10 makes of the inputs so far.
  """
  while True:
    u = rng.uniform(0, 0.5, length + 10)
    y = np.zeros(length + 11)
    for t in range(9, length + 10):
      y[t + 1] = (
          0.3 * y[t] + 0.05 * y[t] * y[t - 9 : t + 1].sum()
          + 1.5 * u[t - 9] * u[t] + 0.1
      )
      if not y[t + 1] < 10:  # Rarely it runs away: draw again.
        break
    else:
      u, y = u[10:], y[11:]
      standard = lambda v: ((v - v.mean()) / v.std())[:, None]
      return Stream(standard(u), standard(y))


def switching_ar(rng: np.random.Generator, length: int) -> Stream:
  """An autoregressive process of order 2 whose frequency changes.

  Every 500 steps on average it gets a new period between 4 and 30 steps, drawn
  uniformly on the scale of the logarithm. The noise has the deviation 1, and
  the poles the absolute value 0.98.
  """
  x, coefficients = np.zeros(length + 3), (0.0, 0.0)
  radius, switch = 0.98, rng.random(length + 3) < 1 / 500
  for t in range(2, length + 3):
    if t == 2 or switch[t]:
      angle = 2 * np.pi / np.exp(rng.uniform(np.log(4), np.log(30)))
      coefficients = 2 * radius * np.cos(angle), -(radius**2)
    x[t] = coefficients[0] * x[t - 1] + coefficients[1] * x[t - 2]
    x[t] += rng.normal()
  return _of_series(x[2:], noise=1.0)


def packaged(name: str, path: str = '') -> Stream:
  """A series inside statsmodels, whose files are read without an import.

  `sunspots` (yearly), `elnino` (monthly) or `co2` (weekly; a missing number is
  the one before it).

  Args:
    name: The name.
    path: The CSV file; if empty, it is that of an installed statsmodels.

  Raises:
    UserFileNotFoundError: If there is no such file; it names the command to get
      it. `UserValueError` for a file that is another.
  """
  spec = None if path else importlib.util.find_spec('statsmodels')
  places = spec.submodule_search_locations if spec else None
  found = [pathlib.Path(path)] if path else [
      pathlib.Path(place, 'datasets', name, f'{name}.csv')
      for place in places or ()
  ]
  if not found or not found[0].is_file():
    raise errors.UserFileNotFoundError(
        f'There is no file {found[0] if found else f"{name}.csv"}. '
        'pip install --no-deps statsmodels brings it; stream.path may name it.'
    )
  try:
    with open(found[0], encoding='utf-8', newline='') as file:
      rows = [row for row in csv.reader(file) if row][1:]
  except (OSError, UnicodeDecodeError, csv.Error) as error:
    raise errors.UserValueError(
        f'{found[0]} cannot be read as CSV in UTF-8: {error}.'
    ) from error
  values = []
  for number, row in enumerate(rows, 2):
    for text in row[1:]:
      if text.strip().lower() in ('', 'nan', 'na') and values:
        values.append(values[-1])
        continue
      try:
        values.append(float(text))
      except ValueError as error:
        raise errors.UserValueError(
            f'{found[0]}, line {number}: expected a number, got {text[:40]!r}.'
        ) from error
  # The first number is no target.
  if not np.isfinite(values).all() or len(values) < 3 or not (
      np.std(values[1:]) > 0
  ):
    raise errors.UserValueError(
        f'{found[0]} must have at least three numbers, all finite, which '
        f'differ after the first one, got {len(values)}.'
    )
  return _of_series(np.array(values))


GENERATED: Mapping[str, Callable[..., Stream]] = dict(
    mackey_glass=mackey_glass, narma=narma, switching_ar=switching_ar
)
PACKAGED = ('co2', 'elnino', 'sunspots')
FIELDS = dict(
    name=fields.Field(
        str, choices=(*GENERATED, *PACKAGED), default='mackey_glass',
        help='The stream.',
    ),
    length=fields.Field(
        int, low=10, default=3000,
        help='The number of steps, if the stream is generated.',
    ),
    path=fields.Field(
        str, default='',
        help='The file of sunspots, elnino or co2, if statsmodels is not '
        'installed.',
    ),
)


def load(config: Any, seed: int) -> Stream:
  """Returns the stream of a config.

  >>> import types
  >>> config = types.SimpleNamespace(name='narma', length=50, path='')
  >>> load(config, seed=0).targets.shape
  (50, 1)

  Args:
    config: Has the fields in `FIELDS`.
    seed: Decides a generated stream.

  Raises:
    UserError: If a file is missing or wrong.
  """
  if config.name in PACKAGED:
    return packaged(config.name, config.path)
  return GENERATED[config.name](np.random.default_rng(seed), config.length)
