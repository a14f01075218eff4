r"""Trains recurrent policies by PPO, environments included in the program.

  python -m experiments.ppo \
      --config=experiments/configs/rl/ppo_cartpole_masked.py:min_gru \
      --workdir=runs/cartpole_masked

The same command resumes a run that was stopped. Ctrl-C saves a checkpoint
first. `--config=FILE:LAYER` trains another layer; the layer `none` remembers
nothing. `experiments.sweep` runs these configs, too.

`--evaluate=100` trains nothing: it evaluates the best checkpoint in the workdir
in that many episodes. `--gif=episode.gif` draws one. Both may change options of
the environment, such as `--config=FILE --config.environment.length=50`.
"""

import json
import pathlib

from absl import flags
from absl import logging
from experiments.cli import config_flag
from experiments.cli import drivers
from experiments.cli import episodes
from experiments.cli import ppo_results
from experiments.cli import published
from experiments.cli import results
from experiments.cli import tasks
from experiments.configs.rl import settings
from rnnzoo import errors
from rnnzoo import rl
from rnnzoo.training import checks
from rnnzoo.training.processes import host
from rnnzoo.training.processes import lock

_CONFIG = config_flag.define(settings.defaults)
_WORKDIR = drivers.define_path(
    'workdir', None, 'The directory of the run, where everything is written.'
)
_EVALUATE = flags.DEFINE_integer(
    'evaluate', 0,
    'Train nothing: evaluate the best checkpoint of the workdir in this number '
    'of episodes. --config is needed only for layers of its own, and to change '
    'options of the environment.',
    lower_bound=0,
)
_GIF = drivers.define_path(
    'gif', None,
    'Train nothing: draw an episode of the best checkpoint of the workdir to '
    'this file. --config is as for --evaluate.',
)
_EPISODE = flags.DEFINE_integer(
    'episode', 0, 'Which episode --gif draws.', lower_bound=0
)


def main(argv):
  drivers.check_usage(argv, workdir=_WORKDIR.value)
  host.pin_malloc()
  host.enable_compilation_cache()
  if _EVALUATE.value or _GIF.value:
    show()
    return
  drivers.check_usage(argv, config=_CONFIG.value)
  published.of_file(_CONFIG.filename)  # A mistake shows now, not at the end.
  commit = results.commit()
  config = tasks.resolve(
      _CONFIG.value, _CONFIG.exports, source='environment'
  )
  with lock.hold(_WORKDIR.value):
    workdir = checks.open_workdir(
        _WORKDIR.value, config,
        json.loads(settings.defaults(config.environment.name).to_json()),
    )
    logging.info(
        'Layer %s, %d agents on %s, %s.', config.model.layer, config.num_seeds,
        config.environment.name, host.device_description(),
    )
    summary = rl.train(config, workdir, _CONFIG.exports.layers)
    ppo_results.write(summary, workdir, _CONFIG, commit)
  report(summary, summary['test_return'])
  print(f'curve: {workdir / "curve.png"}')


def show():
  """Evaluates or draws the policy of a run that stands still."""
  layers, changes = _CONFIG.exports.layers, changed_environment()
  if _EVALUATE.value:
    found = rl.evaluate_saved(
        _WORKDIR.value, _EVALUATE.value, layers, changes
    )
    report(found, found['mean_return'])
  if _GIF.value:
    saved = rl.restore_best(_WORKDIR.value, layers, changes)
    path = pathlib.Path(_GIF.value)
    steps, total = episodes.draw(saved, _EPISODE.value, path)
    print(f'episode: {path}, {steps} steps, return {total:.4g}')


def changed_environment() -> dict:
  """Returns the options of the environment that the command line sets.

  Raises:
    UserValueError: If `--config` is of another program or sets other fields.
  """
  if not _CONFIG.filename:
    return {}
  environment = _CONFIG.value.get('environment')
  others = [n for n in _CONFIG.overrides if not n.startswith('environment.')]
  if environment is None or others:
    raise errors.UserValueError(
        'To evaluate a policy, --config may only set environment.*, got '
        f'{", ".join(others) or "a file without an environment"}.'
    )
  names = [n.removeprefix('environment.') for n in _CONFIG.overrides]
  return {name: environment[name] for name in ('name', *names)}


def report(found, mean: float):
  """Prints the evaluation of a checkpoint."""
  agents = ', '.join(
      f'{one:.4g} (std {deviation:.3g})'
      for one, deviation in zip(found['returns'], found['deviations'])
  )
  options = ', '.join(
      f'{name}={value}' for name, value in found['environment'].items()
      if name != 'name'
  )
  print(
      f'\n{found["environment"]["name"]} ({options}), {found["model.layer"]}, '
      f'{found["parameters"]:,} parameters, step {found["best_step"]}: mean '
      f'return {mean:.4g} of {found["episodes"]} new episodes\n'
      f'  by agent: {agents}'
  )


if __name__ == '__main__':
  drivers.run(main)
