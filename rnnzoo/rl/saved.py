"""Policies that are saved: restoring and evaluating the best checkpoint."""

from collections.abc import Mapping
import pathlib
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict
from rnnzoo import environments
from rnnzoo import errors
from rnnzoo import filenames
from rnnzoo.rl import config as config_lib
from rnnzoo.rl import ppo
from rnnzoo.training import checkpoint
from rnnzoo.training import checks
from rnnzoo.training import memory
from rnnzoo.training import records
from rnnzoo.training import state as state_lib

# They mark the keys of episodes that are no training, among the keys that are
# made of a seed and a step. EVALUATION chooses the best checkpoint.
EVALUATION, TEST = 2**32 - 1, 2**32 - 3
_READ = ('params', 'moments', 'seed')  # By an evaluation, of a state.
TASK = 'ppo'  # In records.


def make_environment(config) -> environments.Environment:
  """Returns the environment of a config.

  Raises:
    UserValueError: If there is no such environment, or an option is wrong.
  """
  options = config.environment.to_dict()
  return environments.make(options.pop('name'), **options)


class Saved(NamedTuple):
  """The best checkpoint of a run.

  Attributes:
    learner: The learner of its config, in the environment to evaluate in.
    config: Its config; its environment is that of the learner.
    step: Its step.
    state: Of all agents, as far as an evaluation reads it.
    parameters: Their number.
  """

  learner: ppo.PPO
  config: Any
  step: int
  state: Any
  parameters: int


def restore_best(
    workdir, layers=None, environment: Mapping[str, Any] | None = None
) -> Saved:
  """Restores the best checkpoint of a run; nothing on disk is changed.

  Args:
    workdir: The directory of the run.
    layers: The layers that the config file of the run defined itself.
    environment: Options of the environment that differ from those of the run;
      `name` is one of them.

  Raises:
    UserError: If there is no run, it cannot be read, or its policy does not fit
      the environment.
  """
  directory = pathlib.Path(filenames.absolute(workdir)) / 'checkpoints'
  if not directory.is_dir():
    raise errors.UserFileNotFoundError(
        f'There is no run in {workdir}: it has no directory "checkpoints".'
    )
  with checkpoint.Checkpointer(directory, readonly=True) as saver:
    step, meta = saver.restore_meta(best=True)
    config = config_of(meta, f'Checkpoint {step} in {directory}')
    trained = make_environment(config)
    if environment:
      # Another environment has other options.
      name = environment.get('name', config.environment.name)
      if name != config.environment.name:
        config.environment = ConfigDict(dict(name=name))
      config.environment.update(environment)
    other = make_environment(config)
    for space in ('observation', 'action'):
      before, now = getattr(trained, space), getattr(other, space)
      if before != now:
        raise errors.UserValueError(
            f'The policy in {workdir} was trained on {trained}, where the '
            f'{space} is {before}. It cannot act in {other}, where it is {now}.'
        )
    learner = ppo.PPO(config, other, layers)
    seeds = config.seed + jnp.arange(config.num_seeds, dtype=jnp.uint32)
    abstract = jax.eval_shape(jax.vmap(learner.initial_state), seeds)
    step, state, _ = saver.restore(
        {n: abstract[n] for n in _READ}, best=True, partial=True
    )
  count = state_lib.count_parameters(abstract['params']) // config.num_seeds
  return Saved(learner, config, step, state, count)


def evaluate_saved(
    workdir, episodes: int, layers=None,
    environment: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
  """Evaluates the best checkpoint of a run, in episodes that did not choose it.

  Args:
    workdir: The directory of the run; nothing in it is changed.
    episodes: How many, for each agent.
    layers: The layers that the config file of the run defined itself.
    environment: Options of the environment that differ from those of the run.

  Returns:
    `task`, `best_step`, `episodes`, `parameters`, `environment`, `data.name`
    (that of the environment), `model.layer`, `seed`, the mean return over all
    agents and episodes (`mean_return`), and for each agent the mean (`returns`)
    and the standard deviation (`deviations`) over its episodes.

  Raises:
    UserError: If there is no run, it cannot be read, or its policy does not fit
      the environment.
  """
  saved = restore_best(workdir, layers, environment)
  config = saved.config
  run = make_evaluate(saved.learner, episodes, TEST)
  returns = memory.fetch(run(saved.state))
  return {
      'task': TASK,
      'environment': config.environment.to_dict(),
      'data.name': config.environment.name,
      'model.layer': config.model.layer,
      'seed': config.seed,
      'parameters': saved.parameters,
      'best_step': saved.step,
      'episodes': episodes,
      'mean_return': round(float(returns.mean()), 4),
      'returns': [round(float(u), 4) for u in returns.mean(1)],
      'deviations': [round(float(u), 4) for u in returns.std(1)],
  }


def config_of(meta: dict[str, Any], where: str):
  """Returns the config in the record of a checkpoint.

  Raises:
    UserValueError: If the checkpoint is not of a run of PPO.
  """
  records.check_meta(meta, ('config',), where)
  defaults = config_lib.defaults()
  try:
    records.check_tree(meta['config'], defaults)
  except ValueError as error:
    raise errors.UserValueError(
        f'The config in {where} is {error}.'
    ) from error
  # An older run may lack some fields.
  config = ConfigDict(checks.filled_up(meta['config'], defaults, defaults))
  for name in ('environment', 'model', 'optimizer'):
    if not isinstance(config.get(name), ConfigDict):
      raise errors.UserValueError(
          f'{where} is not of a run of PPO: its config has no {name!r}.'
      )
  return config


def make_evaluate(learner: ppo.PPO, episodes: int, mark: int = EVALUATION):
  """Returns a compiled function of the states of all agents.

  It returns the returns `[num_seeds, episodes]`, and reads `params`, `moments`
  and `seed` only. An agent has the same episodes in every evaluation with the
  same `mark`, and none of them in training.
  """
  def one(state):
    key = jax.random.fold_in(jax.random.key(state['seed']), mark)
    return learner.evaluate(state, key, episodes)

  run = jax.jit(jax.vmap(one))
  return lambda state: run({n: state[n] for n in _READ})
