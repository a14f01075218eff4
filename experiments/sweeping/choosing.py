"""Choosing the value of a field on validation, with the first seed.

The runs of the first seed try all values. The other seeds run with the best
one only, so that no test result has a part in the choice.
"""

from collections.abc import Sequence
import itertools
import pathlib

from experiments.cli import config_flag
from experiments.cli import ppo_results
from experiments.cli import results
from experiments.cli import tasks as programs
from experiments.sweeping import points as points_lib
from experiments.sweeping import running
from rnnzoo import errors
from rnnzoo import tasks

Points = Sequence[points_lib.Point]


def check(points: Points, field: str) -> str:
  """Returns the name of the field, checked.

  Args:
    points: All runs.
    field: What `--select` says.

  Raises:
    UserValueError: If `--grid` has not several values of the field.
  """
  field = field.removeprefix('config.')
  if any(len(group) < 2 for group in groups(points, field)):
    raise errors.UserValueError(
        f'--select={field} needs several values to choose from: '
        f'--grid={field}=VALUE,VALUE.'
    )
  return field


def groups(points: Points, field: str) -> list[list[points_lib.Point]]:
  """Returns the runs of the first seed that differ in the field alone."""
  prefix = f'--config.{field}='

  def rest(point):
    words = [word for word in point.words if not word.startswith(prefix)]
    return point.config, *words

  first = [point for point in points if point.seed == 0]
  return [
      list(group) for _, group in itertools.groupby(
          sorted(first, key=rest), key=rest
      )
  ]


def choose(group: Points, workdir: pathlib.Path) -> points_lib.Point | None:
  """Returns the run of a group that is best on validation.

  That is the metric which chooses the checkpoint, on the first of
  `eval_splits`. Of equal ones it is the one with the lower loss there, and then
  the first.

  Args:
    group: The runs.
    workdir: The directory of the sweep, or of its results.

  Returns:
    The run; `None` if any of them has no result.
  """
  found = []
  for point in group:
    if not running.is_done(point, workdir):
      return None
    result = results.read(workdir / point.directory / results.FILE)
    values = result['values'][point.eval_split]
    if point.program == programs.PPO:
      found.append((-values[ppo_results.METRIC], 0))
      continue
    exports = config_flag.exports_of(point.config)
    task = tasks.find(result['task'], exports.tasks)
    sign = -1 if task.best_mode == 'max' else 1
    found.append((sign * values[task.best], values.get('loss', 0)))
  return group[min(range(len(group)), key=found.__getitem__)]


def with_chosen(
    points: Points, field: str, workdir: pathlib.Path
) -> tuple[list[points_lib.Point], list[points_lib.Point]]:
  """Returns the runs that are left of a sweep, and the chosen ones among them.

  Args:
    points: All runs.
    field: The field.
    workdir: Where the results of the first seed are.

  Returns:
    The runs of the first seed and, where a value is chosen, those of the other
    seeds with it, in the order of `points`; the chosen runs of the first seed.
  """
  chosen = [choose(group, workdir) for group in groups(points, field)]
  chosen = [point for point in chosen if point]
  settings = {point.setting for point in chosen}
  left = [p for p in points if p.seed == 0 or p.setting in settings]
  return left, chosen
