"""Training of policies from the first line to the last.

`train` reads from top to bottom: workdir, program, first state, steps, result.
A program runs `log_every` steps of all agents at once; between two of them
there is time for metrics, evaluations and checkpoints.
"""

import contextlib
import json
import math
import pathlib
import time
from typing import Any

from absl import logging
import jax
import jax.numpy as jnp
import numpy as np
from rnnzoo import environments
from rnnzoo import errors
from rnnzoo import filenames
from rnnzoo.rl import curves
from rnnzoo.rl import ppo
from rnnzoo.training import checkpoint
from rnnzoo.training import files
from rnnzoo.training import memory
from rnnzoo.training import metrics as metrics_lib
from rnnzoo.training import records
from rnnzoo.training import state as state_lib
from rnnzoo.training.processes import lock
from rnnzoo.training.processes import signals

# Marks the key of evaluations among those that are made of a seed and a step.
_EVALUATION = 2**32 - 1
_READ = ('params', 'moments', 'seed')  # By an evaluation, of a state.
RESULT = 'evaluation.json'


def make_environment(config) -> environments.Environment:
  """Returns the environment of a config.

  Raises:
    UserValueError: If there is no such environment, or an option is wrong.
  """
  options = config.environment.to_dict()
  return environments.make(options.pop('name'), **options)


def train(config, workdir, layers=None) -> dict[str, Any]:
  """Trains to `config.total_steps`, going on where the workdir stands.

  Args:
    config: All fields of `rl.config.FIELDS`, and `model`, `optimizer` and
      `environment`.
    workdir: Where `metrics.jsonl`, `checkpoints/`, `curve.png` and
      `evaluation.json` go.
    layers: More layers by name, in addition to those of the zoo and `none`.

  Returns:
    What `evaluation.json` holds: the evaluation of the best checkpoint.

  Raises:
    UserError: If the user has to change something.
    Interrupted: After a signal, once everything is saved.
  """
  learner = ppo.PPO(config, make_environment(config), layers)
  workdir = files.workdir(workdir)
  with contextlib.ExitStack() as stack:
    stack.enter_context(lock.hold(workdir))
    stop = stack.enter_context(signals.caught())
    saver = stack.enter_context(checkpoint.Checkpointer(
        workdir / 'checkpoints', keep=config.keep, best_mode='max'
    ))
    stack.enter_context(memory.readable_errors())

    # ---- The compiled programs, and the state to start from. ----
    make_state = jax.jit(lambda seeds: jax.vmap(learner.initial_state)(seeds))
    seeds = config.seed + jnp.arange(config.num_seeds, dtype=jnp.uint32)
    abstract = jax.eval_shape(make_state, seeds)
    train_steps = make_train_steps(learner, config.log_every)
    evaluate = make_evaluate(learner, config.eval_episodes)
    if saver.latest_step() is None:
      first, state = 0, make_state(seeds)
    else:
      first, state, _ = saver.restore(abstract)
      logging.info('Going on after step %d.', first)
    count = state_lib.count_parameters(abstract['params']) // config.num_seeds
    meta = dict(config=json.loads(config.to_json()), parameters=count)

    # ---- The steps. ----
    per_step = config.num_environments * config.rollout_length
    writer = stack.enter_context(metrics_lib.MetricsWriter(
        workdir, resume_step=first, tensorboard=config.tensorboard
    ))
    progress = stack.enter_context(metrics_lib.Progress(
        config.total_steps, initial=first,
        tokens_per_step=per_step * config.num_seeds, unit='steps',
        name='return',
    ))
    for step in range(first + config.log_every, config.total_steps + 1,
                      config.log_every):
      start = time.perf_counter()
      state, metrics = train_steps(state)
      metrics = memory.fetch(metrics)
      seconds = time.perf_counter() - start
      row = summarize(metrics, config.reward_scale)
      if not math.isfinite(row['loss']):
        raise errors.UserError(
            f'The loss is {row["loss"]} at step {step}. The checkpoints are '
            'those of before; try a smaller optimizer.learning_rate or '
            'reward_scale in another workdir.'
        )
      row['environment_steps'] = step * per_step
      if step > first + config.log_every or first:  # Else it has compiled.
        speed = config.log_every * per_step * config.num_seeds / seconds
        row['environment_steps_per_second'] = round(speed)
      writer.write(step, row)
      progress.update(step, row.get('train_return', math.nan))

      metric = None
      if step % config.eval_every == 0 or step == config.total_steps:
        with progress.pause():
          returns = memory.fetch(evaluate(state))
          metric = float(returns.mean())
          writer.write(step, dict(
              eval_return=metric, environment_steps=step * per_step,
              **by_seed('eval_return', returns.mean(1)),
          ))
          logging.info('step %d: %s', step, describe(returns))
      if metric is not None or step % config.save_every == 0 or stop.signum:
        with progress.pause():
          lock.check(workdir)
          saver.save(step, state, meta, best_metric=metric)
      if stop.signum:
        saver.wait()
        raise signals.Interrupted(stop.signum, step)
    saver.wait()
  curves.plot(workdir)
  result = evaluate_saved(workdir, config.eval_episodes, layers)
  with files.usable(workdir):
    files.write_text(workdir / RESULT, json.dumps(result, indent=2) + '\n')
  return result


def make_train_steps(learner: ppo.PPO, count: int):
  """Returns a compiled function of the states of all agents: `count` steps.

  It donates the states, and returns the new ones and the metrics of every
  step, `[count, num_seeds]`.
  """
  def body(state, _):
    return jax.vmap(learner.update)(state)

  return jax.jit(
      lambda state: jax.lax.scan(body, state, length=count), donate_argnums=0
  )


def make_evaluate(learner: ppo.PPO, episodes: int):
  """Returns a compiled function of the states of all agents.

  It returns the returns `[num_seeds, episodes]`, and reads `params`, `moments`
  and `seed` only. An agent has the same episodes in every evaluation.
  """
  def one(state):
    key = jax.random.fold_in(jax.random.key(state['seed']), _EVALUATION)
    return learner.evaluate(state, key, episodes)

  run = jax.jit(jax.vmap(one))
  return lambda state: run({n: state[n] for n in _READ})


def summarize(metrics: dict[str, Any], reward_scale: float) -> dict[str, float]:
  """Returns the means of some steps, over all agents.

  The mean return is that of the episodes that ended in these steps: of each
  agent, and then of the agents. It is missing if an agent has none.

  Args:
    metrics: From `make_train_steps`, as NumPy arrays.
    reward_scale: That of the config; the mean square error of the values is
      given in units of the environment.
  """
  episodes = metrics.pop('episodes')
  row = {name: float(value.mean()) for name, value in metrics.items()}
  row['value_loss'] /= reward_scale**2
  count = episodes.count.sum(0)
  if count.all():
    returns = episodes.returns.sum(0) / count
    row['train_return'] = float(returns.mean())
    row['train_length'] = float((episodes.lengths.sum(0) / count).mean())
    row |= by_seed('train_return', returns)
  return row


def by_seed(name: str, values: np.ndarray) -> dict[str, float]:
  """Names the values of several agents; nothing for one agent alone.

  >>> by_seed('return', np.array([1.0, 2.0]))
  {'return_seed_0': 1.0, 'return_seed_1': 2.0}
  """
  if len(values) == 1:
    return {}
  return {f'{name}_seed_{i}': float(value) for i, value in enumerate(values)}


def evaluate_saved(workdir, episodes: int, layers=None) -> dict[str, Any]:
  """Evaluates the best checkpoint of a run.

  Args:
    workdir: The directory of the run; nothing in it is changed.
    episodes: How many, for each agent.
    layers: The layers that the config file of the run defined itself.

  Returns:
    `step`, `episodes`, `parameters`, the config's `environment`, `layer` and
    `seed`, the mean return over all agents and episodes (`eval_return`), and
    for each agent the mean (`returns`) and the standard deviation
    (`deviations`) over its episodes.

  Raises:
    UserError: If there is no run, or it cannot be read.
  """
  directory = pathlib.Path(filenames.absolute(workdir)) / 'checkpoints'
  if not directory.is_dir():
    raise errors.UserFileNotFoundError(
        f'There is no run in {workdir}: it has no directory "checkpoints".'
    )
  with checkpoint.Checkpointer(directory, readonly=True) as saver:
    step, meta = saver.restore_meta(best=True)
    config = config_of(meta, f'Checkpoint {step} in {directory}')
    learner = ppo.PPO(config, make_environment(config), layers)
    seeds = config.seed + jnp.arange(config.num_seeds, dtype=jnp.uint32)
    abstract = jax.eval_shape(jax.vmap(learner.initial_state), seeds)
    step, state, _ = saver.restore(
        {n: abstract[n] for n in _READ}, best=True, partial=True
    )
  returns = memory.fetch(make_evaluate(learner, episodes)(state))
  return dict(
      environment=config.environment.to_dict(),
      layer=config.model.layer,
      seed=config.seed,
      parameters=meta.get('parameters'),
      step=step,
      episodes=episodes,
      eval_return=round(float(returns.mean()), 4),
      returns=[round(float(u), 4) for u in returns.mean(1)],
      deviations=[round(float(u), 4) for u in returns.std(1)],
  )


def config_of(meta: dict[str, Any], where: str):
  """Returns the config in the record of a checkpoint.

  Raises:
    UserValueError: If the checkpoint is not of a run of PPO.
  """
  from ml_collections import ConfigDict

  records.check_meta(meta, ('config',), where)
  config = ConfigDict(meta['config'])
  for name in ('environment', 'model', 'optimizer'):
    if not isinstance(config.get(name), ConfigDict):
      raise errors.UserValueError(
          f'{where} is not of a run of PPO: its config has no {name!r}.'
      )
  return config


def describe(returns: np.ndarray) -> str:
  """Returns the result of an evaluation `[num_seeds, episodes]` in words.

  >>> describe(np.array([[1.0, 3.0]]))
  'mean return 2 of 2 episodes'
  >>> describe(np.array([[1.0, 3.0], [4.0, 4.0]]))
  'mean return 3 of 2 episodes of 2 agents (2, 4)'
  """
  seeds, episodes = returns.shape
  text = f'mean return {returns.mean():.4g} of {episodes} episodes'
  if seeds > 1:
    each = ', '.join(f'{mean:.4g}' for mean in returns.mean(1))
    text += f' of {seeds} agents ({each})'
  return text
