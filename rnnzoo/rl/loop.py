"""Training of policies from the first line to the last.

`train` reads from top to bottom: workdir, program, first state, steps, result.
A program runs `log_every` steps of all agents at once; between two of them
there is time for metrics, evaluations and checkpoints.
"""

import contextlib
import json
import math
import time
from typing import Any

from absl import logging
import jax
import jax.numpy as jnp
import numpy as np
from rnnzoo import errors
from rnnzoo.rl import curves
from rnnzoo.rl import ppo
from rnnzoo.rl import saved as saved_lib
from rnnzoo.training import checkpoint
from rnnzoo.training import files
from rnnzoo.training import memory
from rnnzoo.training import metrics as metrics_lib
from rnnzoo.training import state as state_lib
from rnnzoo.training import summary as summary_lib
from rnnzoo.training.processes import host
from rnnzoo.training.processes import lock
from rnnzoo.training.processes import signals

# What must be finite after each step. The norm of the parameters is computed
# after the last update, the others before it.
_FINITE = ('loss', 'grad_norm', 'param_norm')


def train(config, workdir, layers=None) -> dict[str, Any]:
  """Trains to `config.total_steps`, going on where the workdir stands.

  Args:
    config: All fields of `rl.config.FIELDS`, and `model`, `optimizer` and
      `environment`.
    workdir: Where `metrics.jsonl`, `checkpoints/`, `curve.png` and
      `summary.json` go.
    layers: More layers by name, in addition to those of the zoo and `none`.

  Returns:
    What `summary.json` holds, see `summarize_run`.

  Raises:
    UserError: If the user has to change something.
    Interrupted: After a signal, once everything is saved.
  """
  learner = ppo.PPO(config, saved_lib.make_environment(config), layers)
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
    evaluate = saved_lib.make_evaluate(learner, config.eval_episodes)
    if saver.latest_step() is None:
      first, state = 0, make_state(seeds)
    else:
      step, meta = saver.restore_meta()
      where = f'Checkpoint {step} in {workdir / "checkpoints"}'
      check_same(config, saved_lib.config_of(meta, where), where)
      first, state, _ = saver.restore(abstract)
      if first % config.log_every:
        raise errors.UserValueError(
            f'log_every {config.log_every} must divide the step of the latest '
            f'checkpoint, {first}.'
        )
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
      check_finite(metrics, step)
      row = summarize(metrics, config.reward_scale)
      row['environment_steps'] = step * per_step
      if step > first + config.log_every:  # Before, it has compiled.
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
  result = summarize_run(workdir, config, layers)
  with files.usable(workdir):
    files.write_text(
        workdir / 'summary.json', json.dumps(result, indent=2) + '\n'
    )
  return result


def summarize_run(workdir, config, layers=None) -> dict[str, Any]:
  """Tests the best checkpoint of a finished run.

  Args:
    workdir: The directory of the run.
    config: Its config.
    layers: As for `train`.

  Returns:
    What `saved.evaluate_saved` returns, `mean_return` under the name
    `test_return`; and `best_eval_return`, `eval_returns` (the returns of each
    agent that chose the checkpoint), `total_steps`, `environment_steps` (of an
    agent), `seconds`, `device` and `jax`.
  """
  found = saved_lib.evaluate_saved(workdir, config.eval_episodes, layers)
  found['test_return'] = found.pop('mean_return')
  rows = metrics_lib.read_metrics(workdir)
  chosen = {}
  for row in rows:
    if row['step'] == found['best_step'] and 'eval_return' in row:
      chosen = row
  names = by_seed('eval_return', np.zeros(config.num_seeds)) or ('eval_return',)
  return found | dict(
      best_eval_return=chosen.get('eval_return'),
      eval_returns=[chosen.get(name) for name in names],
      total_steps=config.total_steps,
      environment_steps=(
          config.total_steps * config.num_environments * config.rollout_length
      ),
      seconds=round(summary_lib.busy_seconds(rows), 1),
      device=host.device_description(),
      jax=jax.__version__,
  )


def check_same(config, then, where: str) -> None:
  """Raises `UserValueError` if a run was of another environment or model.

  Args:
    config: The config of now.
    then: That of the checkpoint.
    where: The checkpoint, for the message.
  """
  values = [
      {name: u[name] for name in ('num_seeds', 'observe_last')} | {
          f'{part}.{name}': value
          for part in ('environment', 'model')
          for name, value in u[part].items()
      }
      # As in the checkpoint: JSON has no tuples.
      for u in (json.loads(config.to_json()), json.loads(then.to_json()))
  ]
  now, before = values
  for name in sorted(now.keys() & before.keys()):  # Older runs lack some.
    if now[name] != before[name]:
      raise errors.UserValueError(
          f'{where} is of a run with {name} {before[name]}, the config says '
          f'{now[name]}. Use another workdir.'
      )


def check_finite(metrics: dict[str, Any], step: int) -> None:
  """Raises `UserError` if a loss, a gradient or a parameter is not finite.

  Args:
    metrics: From `make_train_steps`, as NumPy arrays.
    step: The last of these steps, for the message.
  """
  for name in _FINITE:
    bad = ~np.isfinite(metrics[name]).all(0)
    if bad.any():
      agents = ', '.join(map(str, np.flatnonzero(bad)))
      raise errors.UserError(
          f'{name} is not finite by step {step}'
          f'{f" (agents {agents})" if len(bad) > 1 else ""}. The checkpoints '
          'are those of before; try a smaller optimizer.learning_rate or '
          'reward_scale in another workdir.'
      )


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
