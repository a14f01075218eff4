"""The records of programs that learn from a stream, one a learner and seed.

`WORKDIR/LEARNER/seed_N` has `result.json` and `metrics.jsonl`. See `results.py`
for the fields of a record.
"""

from collections.abc import Iterable
import json
import pathlib
import shlex
from typing import Any

from experiments.cli import config_flag
from experiments.cli import results
from rnnzoo import errors
from rnnzoo.training import checks
from rnnzoo.training import files
from rnnzoo.training import metrics as metrics_lib
from rnnzoo.training import records
from rnnzoo.training.metrics import curves
from rnnzoo.training.processes import host

SPLIT = 'stream'
# Overrides that say which runs, and where files are.
_NEUTRAL = ('seed', 'num_seeds', 'learners', 'stream.path')


def start(workdir: str, config) -> pathlib.Path:
  """Makes the directory of a run, writes its config there; returns its path.

  Other learners and seeds may join those that the directory has.

  Raises:
    UserValueError: If it has records of another config, or belongs to another
      program.
  """
  path = files.workdir(workdir)
  file, now = path / 'config.json', json.loads(config.to_json())
  with files.usable(path):
    path.mkdir(parents=True, exist_ok=True)
    if file.exists():
      then = records.read_config(file, now)
      if 'learners' not in then:
        raise errors.UserValueError(
            f'--workdir={path} is of another program. Use another workdir.'
        )
      if any(path.glob(f'*/seed_*/{results.FILE}')):
        checks.check_same_config(then, now, (*_NEUTRAL, 'smoke_overrides'))
    files.write_text(file, config.to_json(indent=2) + '\n')
  return path


def write(
    values: dict[str, float],
    lines: Iterable[tuple[int, dict[str, float]]],
    workdir: pathlib.Path,
    *,
    metric: str,
    unit: str,
    larger_is_better: tuple[str, ...],
    task: str,
    data: str,
    program: str,
    learner: str,
    parameters: int,
    seed: int,
    steps: int,
    seconds: float,
    flag: config_flag.ConfigFlag,
    smoke: bool,
    commit: tuple[str, bool | None],
) -> None:
  """Writes the record and the metrics of a learner with a seed.

  Args:
    values: All that was measured, by name.
    lines: The steps and the numbers of the lines of `metrics.jsonl`.
    workdir: The directory of the run.
    metric: The one of `values` to compare.
    unit: What it is measured in.
    larger_is_better: Those of `values` that should grow.
    task: The kind of task.
    data: The name of the stream or of the environment.
    program: The command that made the run.
    learner: The name of the learner.
    parameters: How many it has.
    seed: The seed.
    steps: The length of the stream.
    seconds: How long this run took.
    flag: The config file and the overrides.
    smoke: Whether the run was made small.
    commit: What `results.commit` returned.
  """
  folder = workdir / learner / f'seed_{seed}'
  with metrics_lib.MetricsWriter(
      folder, resume_step=0, tensorboard=False
  ) as writer:
    for step, line in lines:
      writer.write(step, line)
  overrides = results.overrides_of(flag)
  for field in _NEUTRAL:
    overrides.pop(field, None)
  file = f'{results.neutral(flag.filename)}:{learner}'
  words = [f'--config.{field}={value}' for field, value in overrides.items()]
  results.write({
      'task': task,
      'data': data,
      'config': file,
      'layer': learner,
      'overrides': overrides,
      'seed': seed,
      'commit': commit[0],
      'dirty': commit[1],
      'device': host.device_description(),
      'hours': round(seconds / 3600, 6),
      'parameters': parameters,
      'steps': steps,
      'best_step': steps,
      'metric': metric,
      'value': values[metric],
      'unit': unit,
      'split': SPLIT,
      'published': None,
      'published_error': None,
      'source': None,
      'values': {SPLIT: values},
      'larger_is_better': list(larger_is_better),
      'command': shlex.join([
          'python', '-m', program, f'--config={file}', *words,
          f'--config.seed={seed}', '--config.num_seeds=1',
          f'--workdir=runs/{data}',
      ]),
      **({'smoke': True} if smoke else {}),
  }, folder)


def draw(
    lines: dict[str, Any], workdir: pathlib.Path, title: str, ylabel: str,
    yscale: str = 'linear',
) -> pathlib.Path:
  """Draws a curve of each learner into `curve.png`; returns its path.

  Args:
    lines: Steps and values by learner.
    workdir: Where it goes.
    title: The title.
    ylabel: What the values are.
    yscale: Theirs.
  """
  # Not pyplot, which keeps global state and may look for a display.
  from matplotlib import figure
  from matplotlib.backends import backend_agg

  canvas = backend_agg.FigureCanvasAgg(
      figure.Figure(figsize=(8, 4.5), layout='constrained')
  )
  axes = canvas.figure.subplots()
  for name, (steps, values) in lines.items():
    style = '--' if name.startswith(('linear', 'none')) else '-'
    axes.plot(steps, values, style, lw=1.2, label=name)
  axes.set(xlabel='step', ylabel=ylabel, yscale=yscale)
  axes.xaxis.set_major_formatter('{x:,.0f}')
  axes.spines[['top', 'right']].set_visible(False)
  axes.grid(alpha=0.25)
  axes.legend(frameon=False, fontsize='small', ncols=2)
  canvas.figure.suptitle(title, x=0.01, ha='left')
  return curves.write(canvas.figure, workdir)
