r"""Lets the model of a run act in its environment, and measures the return.

  python -m experiments.act --workdir=runs/hopper --episodes=20

All episodes run side by side. The model acts in two ways, see
`experiments/cli/acting.py`: with its state carried through the whole episode,
and reading the last K steps again each time. `--target_return` is the return
that it is asked for; the best one of its data by default.

It needs `pip install -e '.[decisions]'`, and writes `returns.json` into the
workdir.
"""

import json
import math
import pathlib

from absl import flags
from experiments.cli import acting
from experiments.cli import config_flag
from experiments.cli import drivers
from experiments.cli import results
import jax
from rnnzoo import errors
from rnnzoo import filenames
from rnnzoo import restoring
from rnnzoo.training import files
from rnnzoo.training.processes import host

FILE = 'returns.json'

_WORKDIR = drivers.define_path('workdir', None, 'The directory of the run.')
_EPISODES = flags.DEFINE_integer(
    'episodes', 20, 'The number of episodes, one environment for each.',
    lower_bound=1,
)
_TARGET_RETURN = flags.DEFINE_float(
    'target_return', None,
    'The return that the model is asked for; the best of its data by default.',
)
_ENVIRONMENT = flags.DEFINE_string(
    'environment', '',
    'The name of the environment in gymnasium; that of the data by default.',
)
_SEED = flags.DEFINE_integer(
    'seed', 1000, 'The seed of the first environment.', lower_bound=0
)
_LAYERS = drivers.define_layers()


def main(argv):
  drivers.check_usage(argv, workdir=_WORKDIR.value)
  if not math.isfinite(_TARGET_RETURN.value or 0):
    raise errors.UserValueError(
        f'--target_return must be a finite number, got {_TARGET_RETURN.value}.'
    )
  host.enable_compilation_cache()
  # One small program after another: waiting for another thread costs more.
  jax.config.update('jax_cpu_enable_async_dispatch', False)
  commit = results.commit()
  exports = config_flag.exports_of(_LAYERS.value)
  run = restoring.restore_run(
      _WORKDIR.value, layers=exports.layers, tasks=exports.tasks
  )
  facts = acting.facts_of(run)
  environments = acting.make_environments(
      _ENVIRONMENT.value, _EPISODES.value, facts
  )
  target = _TARGET_RETURN.value
  target = facts.best_return if target is None else target
  found = {}
  for way in acting.WAYS:
    outcome = acting.play(
        acting.Policy(run.model, way, facts.window), environments, facts,
        target, _SEED.value,
    )
    found[way] = acting.summary(outcome, facts)
    report(way, found[way], facts.window)
  print(
      f'  for comparison, the data: mean return {facts.mean_return:.1f}, best '
      f'{facts.best_return:.1f}'
  )
  workdir = pathlib.Path(filenames.absolute(_WORKDIR.value))
  with files.usable(workdir):
    files.write_text(workdir / FILE, json.dumps(dict(
        environment=environments[0].spec.id,
        layer=run.config['model']['layer'],
        seed=run.config['seed'],
        step=run.step,
        episodes=_EPISODES.value,
        first_environment_seed=_SEED.value,
        target_return=round(target, 2),
        window=facts.window,
        data=dict(
            name=run.config['data'].get('path') or run.config['data']['name'],
            best_return=round(facts.best_return, 2),
            mean_return=round(facts.mean_return, 2),
        ),
        commit=commit[0],
        dirty=commit[1],
        device=host.device_description(),
        **found,
    ), indent=2) + '\n')


def report(way, found, window):
  """Prints what came of one way."""
  words = dict(
      carried='state carried', reread=f'last {window} steps read again'
  )[way]
  score = f', score {found["score"]:.1f}' if 'score' in found else ''
  print(
      f'{words}: mean return {found["mean_return"]:.1f} (std '
      f'{found["deviation"]:.1f}){score}, mean length '
      f'{found["mean_length"]:.0f}, {found["model_ms_per_step"]:.2f} ms of the '
      f'model a step of all environments'
  )


if __name__ == '__main__':
  drivers.run(main)
