"""What a config compiles to: the training state, where it lies, and the step.

The loop runs it; planning compiles it for devices that are not there.
"""

from collections.abc import Callable
import dataclasses
import functools
from typing import Any

from absl import logging
import jax
from rnnzoo.training import optimizers
from rnnzoo.training import sharding
from rnnzoo.training import step as step_lib


@dataclasses.dataclass(frozen=True)
class Program:
  """A training step and the state it maps to the next.

  Attributes:
    tx: The optimiser.
    abstract_state: The state as `jax.ShapeDtypeStruct`s with their shardings.
    make_state: Makes the state before the first step; to be jitted with the
      shardings of `abstract_state`.
    train_step: Jitted: `(state, batch) -> (state, metrics)`; the state given to
      it is donated. With `config.steps_per_dispatch` more than 1, batches and
      metrics of that number of steps are stacked.
  """

  tx: optimizers.Optimizer
  abstract_state: Any
  make_state: Callable[[], Any]
  train_step: Any

  @property
  def shardings(self):
    """Where each array of the state lies."""
    return jax.tree.map(lambda leaf: leaf.sharding, self.abstract_state)


def make_program(task, config, mesh) -> Program:
  """Builds the program of a task.

  Args:
    task: See `rnnzoo.tasks.Task`.
    config: See `training.config.defaults`.
    mesh: The devices; none of them is used yet.

  Returns:
    A `Program`; nothing has been compiled.

  Raises:
    UserError: If the optimiser's config is at fault, or a parameter cannot be
      shared as the mesh asks.
  """
  functional = task.functional
  tx = optimizers.make_optimizer(
      config.optimizer, config.total_steps,
      axes=functional.axes, recurrent=functional.recurrent,
  )
  initial_carry = None
  if config.stateful:
    initial_carry = lambda model: model.initialize_carry(config.batch_size)
  make_state = lambda: step_lib.initial_state(
      functional, tx, config.seed,
      ema=config.ema_decay > 0, carry=initial_carry,
  )
  abstract = jax.eval_shape(make_state)
  whole = tuple(config.whole_axes)
  sharding.check_parameters(mesh, functional.params, functional.axes, whole)
  if task.model.dtype == 'bfloat16':
    for line in sharding.tile_warnings(
        mesh, functional.params, functional.axes, whole
    ):
      _warn(line)
  shardings = sharding.state_shardings(
      mesh, abstract, tx, functional.axes, whole
  )
  abstract = jax.tree.map(
      lambda leaf, s: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=s),
      abstract, shardings,
  )
  train_step = step_lib.make_train_step(
      task.loss_fn(train=True), tx,
      seed=config.seed,
      accumulate_steps=config.accumulate_steps,
      ema_decay=config.ema_decay,
      skip_bad=config.on_nan == 'skip',
  )
  if config.steps_per_dispatch > 1:
    train_step = step_lib.several_steps(train_step)
  train_step = jax.jit(
      train_step,
      donate_argnums=0,
      # The numbers that decide how a run goes on are the same everywhere.
      out_shardings=(shardings, jax.NamedSharding(mesh, jax.P())),
  )
  return Program(tx, abstract, make_state, train_step)


@functools.cache  # A run may make its program more than once.
def _warn(line):
  logging.warning('%s', line)
