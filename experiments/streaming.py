r"""Learns to act from a stream: an update after every step, nothing is kept.

  python -m experiments.streaming --workdir=runs/streaming \
      --config=experiments/configs/rl/streaming_cartpole_masked.py

Stream AC(lambda) with a recurrent layer, see rnnzoo/rl/streaming.py for the
algorithm and the names of learners; `FILE:lru,lru_10,none` chooses some. All
seeds of a learner are one program. The workdir gets `curve.png`, and
`LEARNER/seed_N` of it `result.json` and `metrics.jsonl`, when the learner has
done all of its steps: a run that is stopped before starts again.
"""

import math
import statistics

from absl import logging
from experiments.cli import config_flag
from experiments.cli import drivers
from experiments.cli import online_results
from experiments.cli import results
from experiments.cli import tasks
from experiments.configs.rl import settings
import numpy as np
from rnnzoo import environments
from rnnzoo import errors
from rnnzoo.rl import saved
from rnnzoo.rl import streaming
from rnnzoo.training.processes import host

_CONFIG = config_flag.define(settings.streaming)
_WORKDIR = drivers.define_path(
    'workdir', None, 'The directory of the run, where everything is written.'
)

_PARTS = 50  # Of the stream, in metrics and curves.


def main(argv):
  drivers.check_usage(argv, config=_CONFIG.value, workdir=_WORKDIR.value)
  commit = results.commit()
  host.enable_compilation_cache()
  config = tasks.resolve(_CONFIG.value, _CONFIG.exports, source='streaming')
  run_all(_CONFIG, config, _WORKDIR.value, commit)
  logging.info('Done on %s.', host.device_description())


def run_all(flag, config, workdir, commit) -> None:
  """Runs all learners, and prints and writes what they reach.

  Args:
    flag: The config file and the overrides.
    config: The resolved config.
    workdir: Where everything is written.
    commit: What `results.commit` returned.
  """
  environment, lines = saved.make_environment(config), {}
  # All of them are built before the first one runs: one may not exist.
  learners = {
      name: streaming.StreamAC(name, config, environment)
      for name in config.learners
  }
  workdir = online_results.start(workdir, config)
  print(
      f'Mean return of the episodes that end in the last tenth of '
      f'{config.total_steps:,} steps:'
  )
  print(f'{"learner":12} {"return":>8} {"std":>8} {"us/step":>9}  parameters')
  for name, learner in learners.items():
    got = streaming.run(
        learner, config.seed, config.num_seeds, config.total_steps
    )
    seconds = got.seconds / config.num_seeds
    last = [
        of_last_tenth(returns, f'{name}, seed {config.seed + i}', environment)
        for i, returns in enumerate(got.returns)
    ]
    parts = []
    for i, returns in enumerate(got.returns):
      steps, means = by_part(returns)
      parts.append(means)
      online_results.write(
          {'return': last[i], 'return_of_all': mean(returns)},
          [
              (int(step), {'return': float(value)})
              for step, value in zip(steps, means) if np.isfinite(value)
          ],
          workdir, metric='return', unit='',
          larger_is_better=('return', 'return_of_all'), task='streaming_rl',
          data=config.environment.name, program='experiments.streaming',
          learner=name, parameters=got.parameters, seed=config.seed + i,
          steps=config.total_steps, seconds=seconds, flag=flag,
          smoke=config.smoke, commit=commit,
      )
    of_agents = np.array([mean(values) for values in np.transpose(parts)])
    known = np.isfinite(of_agents)  # In the others no episode ends.
    lines[name] = steps[known], of_agents[known]
    deviation = statistics.stdev(last) if len(last) > 1 else 0.0
    print(
        f'{name:12} {np.mean(last):8.4g} {deviation:8.3g} '
        f'{1e6 * seconds / config.total_steps:9.1f}  {got.parameters}'
    )
  agents = 'one agent' if len(last) == 1 else f'mean of {len(last)} agents'
  title = f'Stream AC on {config.environment.name}, {agents}'
  path = online_results.draw(
      lines, workdir, title, 'mean return of the episodes that end'
  )
  print(f'curve: {path}')


def mean(returns: np.ndarray) -> float:
  """Returns the mean over episodes; NaN if none has ended."""
  ended = returns[np.isfinite(returns)]
  return float(ended.mean()) if ended.size else float('nan')


def of_last_tenth(
    returns: np.ndarray, who: str, environment: environments.Environment
) -> float:
  """Returns the mean return of the episodes that end there.

  Args:
    returns: `[T]`, NaN where no episode ends.
    who: The learner and the seed, for the message.
    environment: Theirs.

  Raises:
    UserValueError: If none ends there.
  """
  value = mean(returns[-max(1, len(returns) // 10) :])
  if math.isnan(value):
    raise errors.UserValueError(
        f'{who}: no episode ends in the last tenth of the {len(returns):,} '
        f'steps, so there is no result. An episode has at most '
        f'{environment.max_steps:,} steps: set total_steps to '
        f'{10 * environment.max_steps:,} or more.'
    )
  return value


def by_part(returns: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
  """Returns the last step and the mean return of each part of the stream.

  Args:
    returns: `[T]`, NaN where no episode ends.
  """
  every = max(1, len(returns) // _PARTS)
  ends = np.arange(every, len(returns) + 1, every)
  return ends, np.array([mean(returns[e - every : e]) for e in ends])


if __name__ == '__main__':
  drivers.run(main)
