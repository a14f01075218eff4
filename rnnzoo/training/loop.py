"""Training: batches in; metrics, checkpoints and a summary out.

This is what surrounds the loop over steps, which is in run.py.
"""

from collections.abc import Callable
import contextlib
import dataclasses
import json
from typing import Any

from absl import logging
import jax
from rnnzoo import errors
from rnnzoo.training import checkpoint
from rnnzoo.training import checks
from rnnzoo.training import files
from rnnzoo.training import memory
from rnnzoo.training import metrics as metrics_lib
from rnnzoo.training import program as program_lib
from rnnzoo.training import records
from rnnzoo.training import recovery
from rnnzoo.training import run as run_lib
from rnnzoo.training import sharding
from rnnzoo.training import starting
from rnnzoo.training import state as state_lib
from rnnzoo.training import step as step_lib
from rnnzoo.training import summary as summary_lib
from rnnzoo.training.performance import profiling
from rnnzoo.training.processes import lock
from rnnzoo.training.processes import multihost
from rnnzoo.training.processes import peers
from rnnzoo.training.processes import signals


@dataclasses.dataclass(frozen=True)
class Task:
  """What the loop needs to know about a model and its data.

  Attributes:
    functional: The model.
    loss: `loss(functional, train=bool)` gives a `training.step.LossFn`.
    train_iterator: Maps a step to an iterator that starts with its batch.
    eval_batches: Maps the name of a split to its batches.
    initial_carry: For stateful training, maps the model to its first recurrent
      state; else `None`.
    meta: Goes into every checkpoint: the config, the vocabulary, and what tells
      the data from any other.
  """

  functional: state_lib.Functional
  loss: Callable[..., step_lib.LossFn]
  train_iterator: Callable[[int], Any]
  eval_batches: Callable[[str], Any]
  initial_carry: Callable[[Any], Any] | None
  meta: dict[str, Any]


def train(task: Task, config, workdir) -> dict[str, Any]:
  """Trains to `config.total_steps`, going on where the workdir stands.

  Args:
    task: The model and its data.
    config: See `experiments/configs/default.py`.
    workdir: Where `metrics.jsonl`, `checkpoints/` and `curve.png` go.

  Returns:
    The summary: losses of the best checkpoint, time, parameters, device.

  Raises:
    UserError: If something that a user can cure stops the run.
    Interrupted: After a signal, once everything is saved.
  """
  checks.check(config)
  window = checks.profile_window(config.profile_steps)
  workdir = files.workdir(workdir)
  mesh = sharding.make_mesh(config.mesh)
  sharding.check_batch_size(config.batch_size, mesh, config.accumulate_steps)
  with contextlib.ExitStack() as stack:
    stack.enter_context(lock.hold(workdir))
    stack.enter_context(jax.set_mesh(mesh))
    stop = stack.enter_context(signals.caught())
    saver = stack.enter_context(
        checkpoint.Checkpointer(workdir / 'checkpoints', keep=config.keep)
    )
    stack.enter_context(peers.leaving_on_errors())
    stack.enter_context(memory.readable_errors())
    program = program_lib.make_program(task, config, mesh)
    memory.check(
        program.abstract_state, 'Parameters and optimizer state',
        'Use a smaller model, or shard it over more devices (mesh.fsdp).',
    )
    state, history = starting.start(task, config, program, saver)
    first = int(memory.fetch(state['step']))
    summary = workdir / 'summary.json'
    found = first >= config.total_steps and records.read_summary(summary)
    if multihost.agreed(bool(found)):
      logging.info('Already trained to step %d.', first)
      _draw(workdir)
      return found
    profiler = stack.enter_context(
        contextlib.closing(profiling.Profiler(window, workdir / 'profile'))
    )
    run = run_lib.Run(
        task, config, program, mesh, workdir, saver, profiler, stop
    )
    while bad := run.to_the_end(state, history):
      del state  # There is not always room for two.
      profiler.close()
      state, history = _recover(task, config, program, saver, bad)
    del state  # Given away, all of it.
    values = summary_lib.summarize(run, workdir)
    if jax.process_index() == 0:
      with files.usable(workdir):
        files.write_text(summary, json.dumps(values, indent=2) + '\n')
    _draw(workdir)
    return values


def _draw(workdir):
  """Draws `curve.png`, if it is missing or older than what it shows."""
  if jax.process_index() != 0:
    return
  times = [
      (workdir / name).stat().st_mtime_ns if (workdir / name).exists() else 0
      for name in ('curve.png', 'metrics.jsonl', 'summary.json')
  ]
  if not times[0] or times[0] < max(times):
    metrics_lib.plot_curves(workdir)


def _recover(task, config, program, saver, bad):
  """Returns the state and history to go on from, or raises `UserError`."""
  recovery.try_to_save(saver.wait)
  if config.on_nan == 'rollback':
    return starting.roll_back(task, config, program, saver, bad)
  good = saver.latest_step()
  kept = (
      f'The last good checkpoint is step {good}' if good is not None
      else 'There is no checkpoint before it'
  )
  raise errors.UserError(
      f'{bad.what}. {kept}; try a smaller optimizer.learning_rate or '
      'optimizer.clip, or on_nan=rollback, which may also be added now.'
  )
