r"""Runs learners once over a stream: online regression, cumulative error, time.

  python -m experiments.online \
      --config=experiments/configs/online/mackey_glass.py --workdir=runs/online

Each learner predicts every target before it learns from it. `FILE:lru,lstm_10`
chooses learners, see rnnzoo/online/regression.py. The workdir gets
`LEARNER/seed_N/result.json` and `metrics.jsonl`, and `curve.png` of the first
seed.
"""

import statistics

from absl import logging
from experiments.cli import config_flag
from experiments.cli import drivers
from experiments.cli import online_results
from experiments.cli import results
from experiments.cli import tasks
from experiments.configs.online import settings
import numpy as np
from rnnzoo.online import regression
from rnnzoo.online import streams
from rnnzoo.training.processes import host

_CONFIG = config_flag.define(settings.defaults)
_WORKDIR = drivers.define_path(
    'workdir', None, 'The directory of the run, where everything is written.'
)

# The lines of `metrics.jsonl` of a run.
_LINES = 100


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
  workdir = online_results.start(workdir, config)
  seeds = range(config.seed, config.seed + config.num_seeds)
  loaded = {seed: streams.load(config.stream, seed) for seed in seeds}
  first = {}
  print(f'{"learner":12} {"error":>8} {"std":>8} {"us/step":>9}  parameters')
  for name in config.learners:
    learner, programs, found = regression.make(name, config), {}, []
    for seed, stream in loaded.items():
      got = regression.run(learner, stream, seed, programs)
      found.append(got)
      online_results.write(
          describe(got, stream), lines_of(got.errors), workdir,
          metric='error', unit='variances of the targets', larger_is_better=(),
          task='online_regression', data=config.stream.name,
          program='experiments.online', learner=name,
          parameters=got.parameters, seed=seed, steps=len(got.errors),
          seconds=got.seconds, flag=flag, smoke=config.smoke, commit=commit,
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
  curves = {
      name: (np.arange(1, len(values) + 1), so_far(values))
      for name, values in first.items()
  }
  title = f'Online regression on {config.stream.name}, seed {config.seed}'
  path = online_results.draw(
      curves, workdir, title, 'mean squared error so far, in variances', 'log'
  )
  print(f'curve: {path}')


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


def so_far(errors: np.ndarray) -> np.ndarray:
  """Returns the mean error of all steps so far `[T]`."""
  return np.cumsum(errors) / np.arange(1, len(errors) + 1)


def lines_of(errors: np.ndarray) -> list[tuple[int, dict[str, float]]]:
  """Returns steps and numbers for `metrics.jsonl`, about a hundred."""
  every, means = max(1, len(errors) // _LINES), so_far(errors)
  return [
      (step, dict(
          error=float(means[step - 1]),
          recent_error=float(errors[step - every : step].mean()),
      ))
      for step in range(every, len(errors) + 1, every)
  ]


if __name__ == '__main__':
  drivers.run(main)
