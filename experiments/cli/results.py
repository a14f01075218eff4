"""`result.json`: what a run reached, and how to repeat it, in one file.

It holds no name of a directory of the machine. Its fields:

* `task`, `data`, `config`, `layer`, `overrides`, `seed`: what was trained. The
  config is a file of the repository and its argument; `overrides` are the
  fields that the command line set, apart from the seeds.
* `commit`, `dirty`: the code that finished the run. '' and `null` mean that it
  did not lie in a clone of its repository; dirty code differs from its commit.
* `device`, `hours`, `parameters`, `steps`, `best_step`.
* `metric`, `value`, `unit`, `split`: the number to compare. If others have
  published one, it is of the same metric and split; else it is the first metric
  of `stop_at`, or the one that chooses the checkpoint, on the test split.
* `published`, `published_error`, `source`: that number, or `null`.
* `values`: all metrics of the checkpoint that validation chose, by split.
* `larger_is_better`: those metrics of `values` that should grow.
* `baselines`: what simple predictors reach on the test split, by names such as
  `naive_mse`. Records of before lack it.
* `command`: the command line, with another workdir.
* `fixture`, `smoke`: only if `true`. Such a run says nothing about the layer.
"""

from collections.abc import Callable, Collection, Mapping
import functools
import json
import os
import pathlib
import re
import shlex
import subprocess
from typing import Any

from experiments.cli import config_flag
from experiments.cli import published as published_lib
from rnnzoo import errors
from rnnzoo import fields
from rnnzoo.training import files
from rnnzoo.training import metrics as metrics_lib
from rnnzoo.training import records

FILE = 'result.json'
ROOT = pathlib.Path(__file__).resolve().parents[2]

_TEXT = fields.Field(str)
_NUMBER = fields.Field(float)
_OPTIONAL = fields.Field(float, optional=True)
_COUNT = fields.Field(int, low=0, high=2**63)
_FIELDS = dict(
    task=_TEXT, data=_TEXT, config=_TEXT, layer=_TEXT,
    overrides=fields.Field(dict),
    seed=_COUNT, commit=_TEXT, dirty=fields.Field(bool, optional=True),
    device=_TEXT, hours=_NUMBER, parameters=_COUNT, steps=_COUNT,
    best_step=_COUNT, metric=_TEXT, value=_NUMBER, unit=_TEXT, split=_TEXT,
    published=_OPTIONAL, published_error=_OPTIONAL,
    source=fields.Field(str, optional=True), values=fields.Field(dict),
    larger_is_better=fields.Field(tuple), command=_TEXT,
)
# Overrides that say which runs, not of what.
_SEEDS = ('seed', 'num_seeds')
# Where the data lies, and what is written beside a run, change no result.
_WITHOUT_EFFECT = ('data.data_dir', 'tensorboard')
# A value that holds a separator is taken for the name of a file.
_PATH = re.compile(r'''[^\s'",;=()\[\]{}]*/[^'",;()\[\]{}]*''')


def make(
    summary: Mapping[str, Any],
    workdir,
    config,
    task,
    dataset,
    flag: config_flag.ConfigFlag,
    commit: tuple[str, bool | None],
) -> dict[str, Any]:
  """Returns the result of a finished run.

  Args:
    summary: What `training.loop.train` returned.
    workdir: The directory of the run, for its metrics.
    config: The config that was trained.
    task: The kind of task.
    dataset: The data set.
    flag: The config file and the overrides.
    commit: What `commit` returned when the run started.

  Raises:
    UserError: If `PUBLISHED` of the config file is wrong, or the number to
      compare is not finite.
  """
  rows = metrics_lib.read_metrics(workdir)
  return record(
      summary, _values(summary, rows, config, task), flag, commit,
      metric=next(iter(config.stop_at), task.best),
      unit=lambda metric: task.unit(metric, dataset),
      larger_is_better=task.larger_is_better,
      data=dataset.name, smoke=config.smoke, baselines=dataset.baselines(),
  )


def record(
    summary: Mapping[str, Any],
    values: dict[str, dict[str, float]],
    flag: config_flag.ConfigFlag,
    commit: tuple[str, bool | None],
    *,
    metric: str,
    unit: Callable[[str], str],
    larger_is_better: Collection[str],
    data: str,
    smoke: bool,
    baselines: Mapping[str, float] | None = None,
    program: str = 'experiments.train',
) -> dict[str, Any]:
  """Returns the result of a finished run of any program.

  Args:
    summary: `task`, `model.layer`, `seed`, `device`, `seconds`, `parameters`,
      `total_steps`, `best_step`, and `fixture` if it is true.
    values: All metrics of the best checkpoint, by split.
    flag: The config file and the overrides.
    commit: What `commit` returned when the run started.
    metric: The metric to compare on the test split, unless others have
      published another one.
    unit: What a metric is measured in.
    larger_is_better: The metrics that should grow.
    data: The name of the data set or of the environment.
    smoke: Whether the run was made small.
    baselines: What simple predictors reach on the test split.
    program: The command that made the run.

  Raises:
    UserError: As `make`.
  """
  layer = summary['model.layer']
  numbers = published_lib.of_file(flag.filename)
  overrides = overrides_of(flag)
  found = published_lib.find(
      numbers, published_lib.name_of(flag.argument, layer, overrides),
      overrides, values,
  )
  # Layers of a file without published numbers of their own are compared with
  # the others: by the same metric.
  alike = found or [
      number for number in numbers
      if number.metric in values.get(number.split, {})
  ]
  metric, split = (
      (alike[0].metric, alike[0].split) if alike
      else (metric, 'test')
  )
  if metric not in values.get(split, {}):
    raise errors.UserError(
        f'The {metric} on {split} is not a finite number, so there is no '
        f'{FILE}. summary.json has what was measured.'
    )
  first = found[0] if found else None
  file = neutral(flag.filename)
  # `FILE` and `FILE:LAYER` are the same only if nothing else chose the layer.
  if flag.argument or not {'model.layer', 'preset'} & overrides.keys():
    file += f':{flag.argument or layer}'
  words = [f'--config.{name}={value}' for name, value in overrides.items()]
  for name in _SEEDS:
    overrides.pop(name, None)
  return {
      'task': summary['task'],
      'data': data,
      'config': file,
      'layer': layer,
      'overrides': overrides,
      'seed': summary['seed'],
      'commit': commit[0],
      'dirty': commit[1],
      'device': summary['device'],
      'hours': round(summary['seconds'] / 3600, 4),
      'parameters': summary['parameters'],
      'steps': summary['total_steps'],
      'best_step': summary['best_step'],
      'metric': metric,
      'value': values[split][metric],
      'unit': unit(metric),
      'split': split,
      'published': first and first.value,
      'published_error': first and first.error,
      'source': first and first.source,
      'values': values,
      'larger_is_better': [
          name for name in larger_is_better
          if any(name in of_split for of_split in values.values())
      ],
      'baselines': {
          name: value for name, value in (baselines or {}).items()
          if records.is_number(value)
      },
      'command': shlex.join([
          'python', '-m', program, f'--config={file}', *words,
          f'--workdir=runs/{pathlib.Path(flag.filename).stem}',
      ]),
      **({'fixture': True} if summary.get('fixture') else {}),
      **({'smoke': True} if smoke else {}),
  }


def write(result: Mapping[str, Any], workdir: pathlib.Path) -> None:
  """Writes `result.json`, unless it holds this run already.

  A finished run may be started again by later code: the first record stays.
  """
  path = workdir / FILE
  try:
    old = read(path)
  except errors.UserError:
    old = None
  same = ('values', 'steps', 'config', 'overrides')
  if old and all(old[name] == result[name] for name in same):
    return
  with files.usable(workdir):
    files.write_text(path, json.dumps(result, indent=2) + '\n')


def read(path: pathlib.Path) -> dict[str, Any]:
  """Reads a result.

  Raises:
    UserValueError: If the file is damaged or of an older form; one line that
      names it.
    UserFileNotFoundError: If it is missing.
  """
  try:
    result = records.parse(path.read_bytes())
    records.check_tree(result, {})
    missing = [name for name in _FIELDS if name not in result]
    if missing:
      raise ValueError(f'of an older form: it lacks {", ".join(missing)}')
    for name, field in _FIELDS.items():
      fields.check(name, result[name], field)
    for name, text in result['overrides'].items():
      fields.check(f'overrides.{name}', text, _TEXT)
    like = {split: {} for split in result['values']}
    records.check_tree(result['values'], like, 'values')
    fields.check('baselines', result.get('baselines', {}), fields.Field(dict))
    for name, value in result.get('baselines', {}).items():
      fields.check(f'baselines.{name}', value, _NUMBER)
    for split, metrics in result['values'].items():
      for name, value in metrics.items():
        fields.check(f'values.{split}.{name}', value, _NUMBER)
    if result['metric'] not in result['values'].get(result['split'], {}):
      raise ValueError('damaged: values lacks its metric')
  except FileNotFoundError as error:
    raise errors.UserFileNotFoundError(f'There is no file {path}.') from error
  except OSError as error:
    raise errors.UserError(f'Cannot read {path}: {error.strerror}.') from error
  except errors.UserError as error:
    raise errors.UserValueError(f'{path} is damaged: {error}') from error
  except ValueError as error:
    raise errors.UserValueError(f'{path} is {error}.') from error
  for name in _WITHOUT_EFFECT:  # Older records have them.
    result['overrides'].pop(name, None)
  return result


def _values(summary, rows, config, task):
  """Returns the metrics of the best checkpoint by split.

  Those of the splits that were evaluated during training are read from the
  metrics, at the step of that checkpoint. What `Task.derived` computes is known
  of the test splits only, and the summary has it.
  """
  at_best = {}
  for row in rows:
    if row['step'] == summary['best_step']:
      at_best |= row
  values: dict[str, dict[str, float]] = {}
  first, *others = config.eval_splits
  # `eval_short_loss` is the loss on `short`, not the `short_loss` of the first.
  for split in sorted(others, key=len, reverse=True) + [first]:
    prefix = 'eval_' if split == first else f'eval_{split}_'
    names = [name for name in at_best if name.startswith(prefix)]
    measured = {n.removeprefix(prefix): at_best.pop(n) for n in names}
    values[split] = {
        n: value for n, value in measured.items() if records.is_number(value)
    }
  values[first].setdefault(task.best, summary[f'best_eval_{task.best}'])
  for name, value in summary.items():
    # `test_256_loss` is the loss on `test_256`, longer sequences.
    found = re.fullmatch(r'(test(?:_\d+)?)_(.+)', name)
    if found and records.is_number(value):
      values.setdefault(found[1], {})[found[2]] = value
  return values


def overrides_of(flag: config_flag.ConfigFlag) -> dict[str, str]:
  """Returns the overrides of a command line, as text that holds no path.

  A size of the data that is the config file's own is no change.
  """
  found = {}
  of = lambda name, config: functools.reduce(
      lambda u, key: u[key], name.split('.'), config
  )
  own = None
  if not {'data.name', 'preset', 'model.layer'} & set(flag.overrides):
    own = flag.unchanged
  for name in flag.overrides:
    if name in _WITHOUT_EFFECT:
      continue
    value = of(name, flag.value)
    if own is not None and name.startswith('data.') and value == of(name, own):
      continue
    if hasattr(value, 'to_dict'):
      value = value.to_dict()
    if isinstance(value, dict):
      value = json.dumps(value)
    value = published_lib.text(value)
    found[name] = _PATH.sub(lambda match: neutral(match[0]), value)
  return dict(sorted(found.items()))


def neutral(path: str) -> str:
  """Returns the name of a file relative to the repository.

  Of a file elsewhere only the last part is left.

  >>> neutral('/home/ada/texts/novel.txt')
  'novel.txt'
  """
  full = pathlib.Path(os.path.abspath(os.path.expanduser(path))).resolve()
  if full.is_relative_to(ROOT):
    return full.relative_to(ROOT).as_posix()
  return full.name


def commit() -> tuple[str, bool | None]:
  """Returns the commit of this code, and whether the code differs from it.

  `('', None)` where there is no git, or the code is in no repository of its
  own.
  """
  # Under a hook of git, these name another repository.
  env = {k: v for k, v in os.environ.items() if not k.startswith('GIT_')}

  def git(*words):
    return subprocess.run(
        ['git', *words], cwd=ROOT, env=env, check=True, text=True, timeout=30,
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    ).stdout.strip()

  try:
    if pathlib.Path(git('rev-parse', '--show-toplevel')).resolve() != ROOT:
      return '', None
    changed = git(
        'status', '--porcelain', '--', 'rnnzoo', 'experiments',
        ':!experiments/results',
    )
    return git('rev-parse', 'HEAD'), bool(changed)
  except (OSError, subprocess.SubprocessError):
    return '', None
