"""Which runs a sweep consists of, and where each of them is kept."""

from collections.abc import Sequence
import itertools
import pathlib
import re
from typing import NamedTuple

from experiments.cli import config_flag
from experiments.cli import results
from experiments.cli import tasks
from experiments.reporting import collecting
from rnnzoo import errors
from rnnzoo import layers
from rnnzoo import models
from rnnzoo.models import building
from rnnzoo.rl.memoryless import Memoryless
from rnnzoo.tasks import forecasting


class Point(NamedTuple):
  """One run.

  Attributes:
    config: `FILE` or `FILE:LAYER`.
    words: The overrides `--config.FIELD=VALUE`.
    seed: The seed.
    setting: The directory of all seeds of this setting, below the workdir.
    total_steps: The step at which it ends.
    eval_split: The split that chooses its best checkpoint.
    overrides: What its result records of `words`, as pairs.
    program: The command that trains it.
  """

  config: str
  words: tuple[str, ...]
  seed: int
  setting: pathlib.PurePosixPath
  total_steps: int
  eval_split: str
  overrides: tuple[tuple[str, str], ...]
  program: str

  @property
  def directory(self) -> pathlib.PurePosixPath:
    """The workdir of the run, below that of the sweep."""
    return self.setting / f'seed_{self.seed}'

  @property
  def command(self) -> tuple[str, ...]:
    """The flags of the program, but for the workdir."""
    # Each seed is a run of its own.
    one = ('--config.num_seeds=1',) * (self.program == tasks.PPO)
    return (
        f'--config={self.config}', f'--config.seed={self.seed}', *one,
        *self.words,
    )


def make(
    configs: str, grid: Sequence[str], seeds: int
) -> list[Point]:
  """Returns all runs; a mistake in any of them is an error now.

  Args:
    configs: `FILE[:LAYER],...`. A word that is no file is one more layer of the
      file before it.
    grid: `FIELD=VALUE,...`, as often as there are fields. A field with one
      value has it in all runs.
    seeds: How many seeds, from 0 on.

  Raises:
    UserError: If a file, a field or a value is wrong.
  """
  axes = [_axis(text) for text in grid]
  names = [name for name, _ in axes]
  for name in names:
    if names.count(name) > 1:  # The last one would win.
      raise errors.UserValueError(
          f'--grid must not set {name} twice; --lr_range sets its fields too.'
      )
  points = []
  for config in files_and_layers(configs):
    for values in itertools.product(*(values for _, values in axes)):
      chosen = [(name, v) for (name, _), v in zip(axes, values)]
      words = tuple(f'--config.{name}={value}' for name, value in chosen)
      flag = config_flag.parse_alone(config, *words)
      source = 'environment' if 'environment' in flag.value else 'data'
      resolved = tasks.resolve(flag.value, flag.exports, source=source)
      _check_layers(resolved, flag.exports)
      varied = [
          f'{name.rpartition(".")[2]}={value}'
          for (name, several), (_, value) in zip(axes, chosen)
          if len(several) > 1
      ]
      setting = pathlib.PurePosixPath(
          *_place(flag), _safe(flag.argument or resolved.model.layer),
          *[_safe(','.join(varied))] * bool(varied),
      )
      points += [
          Point(
              config, words, seed, setting, resolved.total_steps,
              *resolved.get('eval_splits', ('validation',))[:1],
              tuple(results.overrides_of(flag).items()),
              tasks.COMMANDS[source],
          )
          for seed in range(seeds)
      ]
  places = [point.directory for point in points]
  for place in places:
    if places.count(place) > 1:
      raise errors.UserValueError(
          f'--configs and --grid have two runs for the directory {place}.'
      )
  return points


def files_and_layers(configs: str) -> list[str]:
  """Returns `FILE` or `FILE:LAYER` for each setting.

  >>> files_and_layers('a.py:lru,gru,b.py')
  ['a.py:lru', 'a.py:gru', 'b.py']
  """
  found: list[str] = []
  for word in configs.split(','):
    if '.py' in word or not found:
      found.append(word)
    else:
      file = found[-1].partition(':')[0]
      found.append(f'{file}:{word}')
  return found


def _axis(text: str) -> tuple[str, list[str]]:
  name, equals, values = text.partition('=')
  several, depth = [''], 0
  for letter in values:
    depth += (letter in '([{') - (letter in ')]}')
    if letter == ',' and not depth:  # Others belong to a value.
      several.append('')
    else:
      several[-1] += letter
  if not (name and equals and all(several)):
    raise errors.UserValueError(
        '--grid must be FIELD=VALUE,VALUE such as '
        f'optimizer.learning_rate=1e-3,3e-3, got {text!r}.'
    )
  name = name.removeprefix('config.')
  if name in ('seed', 'num_seeds'):
    raise errors.UserValueError(f'--grid cannot set {name}; --seeds does.')
  return name, several


def _check_layers(config, exports) -> None:
  """Raises `UserValueError` on a layer or an option that does not exist."""
  model = models.ModelConfig.from_dict(config.model.to_dict())
  if model.layer in forecasting.MODELS:  # It has no layers to check.
    return
  known = {**layers.LAYERS, **(exports.layers or {})}
  if 'environment' in config:
    known['none'] = Memoryless
  for depth in range(model.num_layers):
    building.layer_options(model, depth, known)


def _place(flag) -> tuple[str, ...]:
  """Returns the directory of a config: its place among the configs."""
  path = pathlib.PurePosixPath(results.neutral(flag.filename))
  if path.is_relative_to(collecting.CONFIGS.as_posix()):
    path = path.relative_to(collecting.CONFIGS.as_posix())
  return path.with_suffix('').parts


def _safe(name: str) -> str:
  return re.sub(r'[^\w.,=+-]', '_', name)
