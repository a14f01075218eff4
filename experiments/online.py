r"""Runs learners once over a stream: online regression, cumulative error, time.

  python -m experiments.online \
      --config=experiments/configs/online/mackey_glass.py --workdir=runs/online

Each learner predicts every target before it learns from it. `FILE:lru,lstm_10`
chooses learners, see rnnzoo/online/regression.py. The workdir gets
`LEARNER/seed_N/result.json` and `metrics.jsonl`, and `curve.png` of the first
seed.
"""

import pathlib
import shlex
import statistics

from absl import logging
from experiments.cli import config_flag
from experiments.cli import drivers
from experiments.cli import results
from experiments.cli import tasks
from experiments.configs.online import settings
import numpy as np
from rnnzoo.online import regression
from rnnzoo.online import streams
from rnnzoo.training import files
from rnnzoo.training import metrics as metrics_lib
from rnnzoo.training.metrics import curves
from rnnzoo.training.processes import host

_CONFIG = config_flag.define(settings.defaults)
_WORKDIR = drivers.define_path(
    'workdir', None, 'The directory of the run, where everything is written.'
)

# The lines of `metrics.jsonl` of a run.
_LINES = 100
_SPLIT = 'stream'


def main(argv):
  drivers.check_usage(argv, config=_CONFIG.value, workdir=_WORKDIR.value)
  commit = results.commit()
  host.enable_compilation_cache()
  config = tasks.resolve(_CONFIG.value, _CONFIG.exports, source='stream')
  run_all(_CONFIG, config, _WORKDIR.value, commit)
  logging.info('Done on %s.', host.device_description())


def run_all(flag, config, workdir, commit) -> None:
  """Runs all learners with all seeds, and prints and writes what they reach.

  Args:
    flag: The config file and the overrides.
    config: The resolved config.
    workdir: Where everything is written.
    commit: What `results.commit` returned.
  """
  workdir = files.workdir(workdir)
  with files.usable(workdir):
    workdir.mkdir(parents=True, exist_ok=True)
    files.write_text(
        workdir / 'config.json', config.to_json(indent=2) + '\n'
    )
  seeds = range(config.seed, config.seed + config.num_seeds)
  loaded = {seed: streams.load(config.stream, seed) for seed in seeds}
  first = {}
  print(f'{"learner":12} {"error":>8} {"std":>8} {"us/step":>9}  parameters')
  for name in config.learners:
    learner, programs, found = regression.make(name, config), {}, []
    for seed, stream in loaded.items():
      got = regression.run(learner, stream, seed, programs)
      found.append(got)
      record = describe(got, stream)
      folder = workdir / name / f'seed_{seed}'
      write_metrics(got.errors, folder)
      results.write(
          make_result(record, got, name, seed, flag, config, commit), folder
      )
    first[name] = found[0].errors
    means = [got.errors.mean() for got in found]
    deviation = statistics.stdev(means) if len(means) > 1 else 0.0
    steps = sum(len(got.errors) for got in found)
    seconds = sum(got.seconds for got in found) / steps
    print(
        f'{name:12} {np.mean(means):8.4f} {deviation:8.4f} '
        f'{1e6 * seconds:9.1f}  {learner.parameters}'
    )
  known = describe(found[0], loaded[config.seed])
  for name in ('naive_error', 'best_possible_error'):
    if name in known:
      print(f'  for comparison, {name.replace("_", " ")}: {known[name]:.4f}')
  title = f'Online regression on {config.stream.name}, seed {config.seed}'
  print(f'curve: {draw(first, workdir, title)}')


def describe(got: regression.Result, stream: streams.Stream):
  """Returns the numbers of a run, errors in variances of the targets.

  `naive_error` is that of the input as the prediction: of the value before,
  where targets are the next inputs.
  """
  steps = len(got.errors)
  naive = np.square(stream.inputs - stream.targets).mean()
  return dict(
      error=float(got.errors.mean()),
      second_half_error=float(got.errors[steps // 2 :].mean()),
      naive_error=float(naive),
      microseconds_per_step=round(1e6 * got.seconds / steps, 2),
      **({} if stream.noise is None else dict(
          best_possible_error=float(stream.noise)
      )),
  )


def write_metrics(errors: np.ndarray, folder: pathlib.Path) -> None:
  """Writes the mean error of all steps so far, a hundred times."""
  so_far = np.cumsum(errors) / np.arange(1, len(errors) + 1)
  every = max(1, len(errors) // _LINES)
  with metrics_lib.MetricsWriter(
      folder, resume_step=0, tensorboard=False
  ) as writer:
    for step in range(every, len(errors) + 1, every):
      writer.write(step, dict(
          error=float(so_far[step - 1]),
          recent_error=float(errors[step - every : step].mean()),
      ))


def make_result(record, got, name, seed, flag, config, commit):
  """Returns what `result.json` holds, see cli/results.py."""
  overrides = results.overrides_of(flag)
  for field in ('seed', 'num_seeds', 'learners', 'stream.path'):
    overrides.pop(field, None)
  file = f'{results.neutral(flag.filename)}:{name}'
  words = [f'--config.{field}={value}' for field, value in overrides.items()]
  return {
      'task': 'online_regression',
      'data': config.stream.name,
      'config': file,
      'layer': name,
      'overrides': overrides,
      'seed': seed,
      'commit': commit[0],
      'dirty': commit[1],
      'device': host.device_description(),
      'hours': round(got.seconds / 3600, 6),
      'parameters': got.parameters,
      'steps': len(got.errors),
      'best_step': len(got.errors),
      'metric': 'error',
      'value': record['error'],
      'unit': 'variances of the targets',
      'split': _SPLIT,
      'published': None,
      'published_error': None,
      'source': None,
      'values': {_SPLIT: record},
      'larger_is_better': [],
      'command': shlex.join([
          'python', '-m', 'experiments.online', f'--config={file}', *words,
          f'--config.seed={seed}', '--config.num_seeds=1',
          f'--workdir=runs/{config.stream.name}',
      ]),
      **({'smoke': True} if config.smoke else {}),
  }


def draw(errors, workdir: pathlib.Path, title: str) -> pathlib.Path:
  """Draws the mean error of all steps so far, of each learner."""
  # Not pyplot, which keeps global state and may look for a display.
  from matplotlib import figure
  from matplotlib.backends import backend_agg

  canvas = backend_agg.FigureCanvasAgg(
      figure.Figure(figsize=(8, 4.5), layout='constrained')
  )
  axes = canvas.figure.subplots()
  for name, values in errors.items():
    steps = np.arange(1, len(values) + 1)
    style = '--' if name.startswith('linear') else '-'
    axes.plot(steps, np.cumsum(values) / steps, style, lw=1.2, label=name)
  axes.set(
      xlabel='step', ylabel='mean squared error so far, in variances',
      yscale='log',
  )
  axes.spines[['top', 'right']].set_visible(False)
  axes.grid(alpha=0.25)
  axes.legend(frameon=False, fontsize='small', ncols=2)
  canvas.figure.suptitle(title, x=0.01, ha='left')
  return curves.write(canvas.figure, workdir)


if __name__ == '__main__':
  drivers.run(main)
