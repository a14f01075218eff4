r"""Trains recurrent policies by PPO, environments included in the program.

  python -m experiments.ppo \
      --config=experiments/configs/rl/cartpole_masked.py:min_gru \
      --workdir=runs/cartpole_masked

The same command resumes a run that was stopped. Ctrl-C saves a checkpoint
first. `--config=FILE:LAYER` trains another layer; the layer `none` remembers
nothing. `--evaluate=100` trains nothing: it evaluates the best checkpoint in
the workdir in that many episodes.
"""

import json

from absl import flags
from absl import logging
from experiments.cli import config_flag
from experiments.cli import drivers
from experiments.cli import tasks
from experiments.configs.rl import settings
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
    'of episodes. --config is needed only for layers of its own.',
    lower_bound=0,
)


def main(argv):
  drivers.check_usage(argv, workdir=_WORKDIR.value)
  host.pin_malloc()
  host.enable_compilation_cache()
  layers = _CONFIG.exports.layers
  if _EVALUATE.value:
    result = rl.evaluate_saved(_WORKDIR.value, _EVALUATE.value, layers)
    report(result)
    return
  drivers.check_usage(argv, config=_CONFIG.value)
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
    result = rl.train(config, workdir, layers)
  report(result)
  print(f'curve: {workdir / "curve.png"}')


def report(result):
  """Prints the evaluation of a checkpoint."""
  agents = ', '.join(
      f'{mean:.4g} (std {deviation:.3g})'
      for mean, deviation in zip(result['returns'], result['deviations'])
  )
  print(
      f'\n{result["environment"]["name"]}, {result["layer"]}, '
      f'{result["parameters"]:,} parameters, step {result["step"]}: mean '
      f'return {result["eval_return"]:.4g} of {result["episodes"]} episodes\n'
      f'  by agent: {agents}'
  )


if __name__ == '__main__':
  drivers.run(main)
