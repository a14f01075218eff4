"""Reads the results in a directory and compares them with published numbers."""

import ast
from collections.abc import Iterable, Iterator, Mapping
import dataclasses
import math
import pathlib
import statistics
from typing import Any

from experiments.cli import published as published_lib
from experiments.cli import results
from rnnzoo import errors
from rnnzoo.training import metrics as metrics_lib
from rnnzoo.training import records

CONFIGS = pathlib.Path('experiments/configs')

BETTER, WORSE, EQUAL = 'better', 'worse', 'equal'


@dataclasses.dataclass(frozen=True)
class Row:
  """One number that was measured with some seeds, or one that was not run.

  Attributes:
    config: The config file, relative to the repository.
    task: The name of the data set; '' if nothing was run.
    layer: The layer.
    overrides: Fields that differ from the config file, as text.
    metric: The name of the metric.
    split: The part of the data.
    unit: What the metric is measured in; '' for a plain number.
    values: The number of each seed, by seed; empty if nothing was run.
    published: What others have published, if it is known.
    larger_is_better: Whether the metric should grow.
    runs: The results themselves; none for a simple predictor, whose number
      these hold, and none if nothing was run.
    folders: Where they lie.
  """

  config: str
  task: str
  layer: str
  overrides: Mapping[str, str]
  metric: str
  split: str
  unit: str = ''
  values: Mapping[int, float] = dataclasses.field(default_factory=dict)
  published: published_lib.Number | None = None
  larger_is_better: bool = False
  runs: tuple[Mapping[str, Any], ...] = ()
  folders: tuple[pathlib.Path, ...] = ()

  @property
  def name(self) -> str:
    """The layer, with what differs from the config file."""
    changes = [f'{name}={value}' for name, value in self.overrides.items()]
    return ', '.join([self.layer, *changes])

  @property
  def mean(self) -> float | None:
    """The mean over the seeds."""
    return statistics.fmean(self.values.values()) if self.values else None

  @property
  def error(self) -> float | None:
    """The standard error of the mean; `None` with less than two seeds."""
    return standard_error(self.values.values())

  @property
  def gain(self) -> float | None:
    """How much better the mean is than the published number."""
    if self.mean is None or self.published is None:
      return None
    difference = self.mean - self.published.value
    return difference if self.larger_is_better else -difference

  @property
  def verdict(self) -> str:
    """`BETTER`, `WORSE`, `EQUAL`, or '' if there is nothing to compare.

    Two numbers are equal if they differ by no more than their errors together,
    as independent ones add up.
    """
    if self.gain is None:
      return ''
    margin = math.hypot(self.error or 0, self.published.error or 0)
    if abs(self.gain) <= margin:
      return EQUAL
    return BETTER if self.gain > 0 else WORSE


@dataclasses.dataclass(frozen=True)
class Section:
  """What is known of one config file.

  Attributes:
    config: The file, relative to the repository.
    title: Its name, such as `synthetic/mqar`.
    about: The first sentence of its docstring.
    rows: What was run, the best first.
    not_run: The published numbers that no run stands beside.
  """

  config: str
  title: str
  about: str
  rows: tuple[Row, ...]
  not_run: tuple[Row, ...]


@dataclasses.dataclass(frozen=True)
class Report:
  """All sections, and the files that could not be used.

  Attributes:
    sections: By config.
    unnumbered: Configs without a result and without a published number.
    bare: Lines on runs that left only a `summary.json`.
    problems: A line on each file that is left out: it is damaged, of an older
      form, of a smoke run, of generated data, or does not go with another.
  """

  sections: tuple[Section, ...]
  unnumbered: tuple[str, ...]
  bare: tuple[str, ...]
  problems: tuple[str, ...]

  @property
  def rows(self) -> list[Row]:
    """All rows that were run."""
    return [row for section in self.sections for row in section.rows]

  @property
  def not_run(self) -> list[Row]:
    """All rows that were not."""
    return [row for section in self.sections for row in section.not_run]


def standard_error(values: Iterable[float]) -> float | None:
  """Returns the standard error of a mean; `None` with less than two values.

  >>> standard_error([1.0, 3.0])
  1.0
  """
  values = list(values)
  if len(values) < 2:
    return None
  return statistics.stdev(values) / math.sqrt(len(values))


def collect(directory: pathlib.Path, root: pathlib.Path = results.ROOT):
  """Returns the `Report` on a directory of results.

  Args:
    directory: It is searched for `result.json`.
    root: The repository, with the config files.

  Raises:
    UserError: If there is no such directory.
  """
  if not directory.is_dir():
    raise errors.UserFileNotFoundError(f'There is no directory {directory}.')
  problems: list[str] = []
  groups = _groups(directory, problems)
  bare = tuple(_bare(directory, problems))
  files = config_files(root)
  sections, unnumbered = [], []
  for config in sorted({*files, *(key[0] for key in groups)}):
    numbers = None
    if config in files:
      try:
        numbers = published_lib.of_file(str(root / config))
      except errors.UserError as error:
        problems.append(str(error))
    rows = [
        row for key, runs in groups.items() if key[0] == config
        for row in _rows(config, runs, numbers)
    ]
    rows += _baselines(config, [
        run for key, runs in groups.items() if key[0] == config
        for run, _ in runs
    ])
    seen = {row.published for row in rows}
    not_run = tuple(
        Row(config, '', n.layer, dict(n.where), n.metric, n.split, published=n)
        for n in numbers or () if n not in seen
    )
    if not rows and not not_run:
      unnumbered.append(config)
      continue
    title = config.removeprefix(f'{CONFIGS}/').removesuffix('.py')
    rows.sort(key=lambda row: (
        # `test` first, and `test_64` before `test_256`.
        row.split != 'test', len(row.split), row.split, row.metric,
        -row.mean if row.larger_is_better else row.mean, row.name,
    ))
    sections.append(Section(
        config, title, _about(root / config), tuple(rows), not_run
    ))
  return Report(
      tuple(sections), tuple(unnumbered), bare, tuple(sorted(problems))
  )


def config_files(root: pathlib.Path = results.ROOT) -> list[str]:
  """Returns the config files of a repository, relative to it.

  >>> 'experiments/configs/quickstart.py' in config_files()
  True
  """
  return [
      path.relative_to(root).as_posix()
      for path in sorted((root / CONFIGS).rglob('*.py'))
      if 'get_config' in path.read_text()  # Written there, or imported.
  ]


def _groups(directory, problems):
  """Returns `(result, folder)` of all runs, by what they have in common."""
  groups: dict[tuple, list] = {}
  for path in sorted(directory.rglob(results.FILE)):
    name = _shown(path, directory)
    try:
      result = results.read(path)
    except errors.UserError as error:
      problems.append(str(error).replace(str(path), name))
      continue
    if result.get('fixture') or result.get('smoke'):
      what = 'generated data' if result.get('fixture') else 'a smoke run'
      problems.append(f'{name} is left out: it is of {what}.')
      continue
    file, _, argument = result['config'].partition(':')
    key = (
        file, argument, result['layer'], tuple(result['overrides'].items()),
    )
    runs = groups.setdefault(key, [])
    for other, folder in runs:
      wrong = [n for n in ('steps', 'parameters') if result[n] != other[n]]
      if wrong or result['seed'] == other['seed']:
        what = f'other {" and ".join(wrong)}' if wrong else 'the same seed'
        problems.append(
            f'{name} is left out: {_shown(folder / results.FILE, directory)} '
            f'is of the same setting, with {what}.'
        )
        break
    else:
      runs.append((result, path.parent))
  return groups


def _rows(config, runs, numbers) -> Iterator[Row]:
  """Yields a row for each number that some runs of one setting have.

  Args:
    config: The config file.
    runs: `(result, folder)` of each.
    numbers: The published numbers of the config file; `None` if there is no
      such file any more, and only the results know the number.
  """
  runs = sorted(runs, key=lambda run: run[0]['seed'])
  first = runs[0][0]
  measured = first['values']
  name = published_lib.name_of(
      first['config'].partition(':')[2], first['layer'], first['overrides']
  )
  found = published_lib.find(
      numbers or (), name, first['overrides'], measured
  )
  # The config file counts: its numbers may have been corrected since the run.
  wanted = [(n.metric, n.split, n) for n in found] or [(
      first['metric'], first['split'],
      _recorded(first) if numbers is None else None,
  )]
  # What becomes of longer sequences is shown, even if nobody has published it.
  known = {split for _, split, _ in wanted}
  wanted += [
      (first['metric'], split, None) for split in measured
      if split.startswith('test_') and split not in known
  ]
  for metric, split, number in wanted:
    having = [
        run for run in runs if metric in run[0]['values'].get(split, {})
    ]
    if not having:  # A loss on longer sequences may be infinite.
      continue
    yield Row(
        config, first['data'], name, first['overrides'],
        metric, split, first['unit'] if metric == first['metric'] else '',
        {r['seed']: r['values'][split][metric] for r, _ in having},
        number,
        metric in first['larger_is_better'],
        tuple(run for run, _ in having), tuple(path for _, path in having),
    )


def _baselines(config, runs) -> list[Row]:
  """Returns a row for each simple predictor that runs were compared with.

  Runs on the same data tell the same of it.
  """
  found = {}
  for run in runs:
    data = {
        name: value for name, value in run['overrides'].items()
        if name.startswith('data.') and name != 'data.path'
    }
    for name, value in run.get('baselines', {}).items():
      layer, _, metric = name.rpartition('_')
      if layer and metric == run['metric'] and run['split'] == 'test':
        found[layer, *data.items()] = Row(
            config, run['data'], layer, data, metric, 'test', run['unit'],
            {0: value}, None, metric in run['larger_is_better'],
        )
  return list(found.values())


def _recorded(result) -> published_lib.Number | None:
  """Returns the published number that a result itself holds, if it does."""
  if result['published'] is None:
    return None
  return published_lib.Number(
      result['layer'], result['metric'], result['published'],
      result['published_error'], result['split'], result['source'] or '',
  )


def _bare(directory, problems) -> Iterator[str]:
  """Yields a line on each run that left a summary and no result."""
  for path in sorted(directory.rglob('summary.json')):
    if (path.parent / results.FILE).exists():
      continue
    name = _shown(path, directory)
    try:
      summary = records.parse(path.read_bytes())
      records.check_tree(summary, {})
    except (OSError, ValueError) as error:
      problems.append(f'{name} is {error}.')
      continue
    if summary.get('fixture'):
      problems.append(f'{name} is left out: it is of generated data.')
      continue
    tests = [
        f'{key.replace("_", " ")} {value:.4g}' for key, value in summary.items()
        if key.startswith('test_') and records.is_number(value)
    ]
    what = f'{summary.get("model.layer", "?")} on {summary.get("data.name")}'
    yield f'{name}: {", ".join([what, *tests])}'


def _about(path: pathlib.Path) -> str:
  """Returns the first sentence of the docstring of a config file."""
  try:
    text = ast.get_docstring(ast.parse(path.read_text())) or ''
  except (OSError, SyntaxError, ValueError):
    return ''
  return ' '.join(text.partition('\n\n')[0].split())


def _shown(path, directory) -> str:
  """Returns the name of a result as seen from outside its directory."""
  return (pathlib.Path(directory.name) / path.relative_to(directory)).as_posix()


def curves(rows: Iterable[Row]) -> tuple[str, list[tuple[Row, list]]]:
  """Returns a metric of validation and its `(step, value)` in some rows.

  Of each row the first seed counts that kept its metrics. The metric is the one
  that most rows have, such as `eval_accuracy`; '' if none has any.
  """
  found: dict[str, dict[str, tuple[Row, list]]] = {}
  for row in rows:
    names = [f'eval_{row.metric}', 'eval_loss']
    if row.split not in ('test', 'validation'):
      names.insert(0, f'eval_{row.split}_{row.metric}')
    kept = next(filter(None, map(metrics_lib.read_metrics, row.folders)), [])
    for name in names:
      # A row with another number of the same runs adds no other curve.
      if points := sorted(records.numbers(kept, name)):
        found.setdefault(name, {}).setdefault(row.name, (row, points))
  if not found:
    return '', []
  best = max(found, key=lambda name: len(found[name]))
  return best, list(found[best].values())
