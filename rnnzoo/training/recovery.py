"""Handles losses and gradients that are not finite.

`config.on_nan` says what happens at a step with such a loss or gradient:

* `'stop'`: the run ends; its last checkpoint is older than the step.
* `'skip'`: the step makes no update, and training continues with the next
  batch. The compiled step decides this itself, so that the host need not wait.
  `config.nan_limit` such steps in a row end the run.
* `'rollback'`: the last checkpoint is restored, the learning rate is multiplied
  by `config.nan_rate_factor`, and training continues with the batch after the
  bad one. Chowdhery et al. (2022, https://arxiv.org/abs/2204.02311, section
  5.1) do this by hand. `config.nan_limit` rollbacks to one checkpoint end the
  run.

All devices and processes have the same loss and gradient norm, so they all
decide alike. Every checkpoint contains the history of the run, so a resumed run
continues as if it had never ended.
"""

import dataclasses
import math
from typing import Any

from absl import logging
import jax
import jax.numpy as jnp
from ml_collections import ConfigDict
from rnnzoo import errors

POLICIES = ('stop', 'skip', 'rollback')


class BadNumbers(Exception):
  """A loss or a gradient is not finite; `step` counts from 1."""

  def __init__(self, what: str, step: int):
    self.what, self.step = what, step
    super().__init__(what)


def warn(text: str, *args):
  """Logs a warning on the first process only."""
  if jax.process_index() == 0:
    logging.warning(text, *args)


def describe(step: int, loss: float, grad_norm: float) -> str | None:
  """Returns what is not finite at a step; `None` if everything is finite."""
  for name, value in (('loss', loss), ('gradient', grad_norm)):
    if not math.isfinite(value):
      return (
          f'The {name} is not finite at step {step} (loss {loss}, gradient '
          f'norm {grad_norm})'
      )
  return None


def try_to_save(save) -> bool:
  """Calls a part of saving; returns whether it succeeded, and logs why not."""
  try:
    save()
  except errors.UserError as error:
    if jax.process_count() > 1:
      raise  # Others may have saved; only a restart makes all agree.
    logging.warning('%s The next save tries again.', error)
    return False
  return True


@dataclasses.dataclass(frozen=True)
class History:
  """The skipped steps and the rollbacks of a run so far.

  Attributes:
    skipped: The number of steps that made no update.
    in_a_row: The number of such steps since the last update.
    rollbacks: A dictionary for each rollback: `restored`, the step of the
      checkpoint, `bad`, the step with the bad number, and `rate`, the factor of
      the learning rate.
    data_since: The last step on the data of before; 0 if the data never
      changed. See `checks.check_data`.
  """

  skipped: int = 0
  in_a_row: int = 0
  rollbacks: tuple[dict[str, Any], ...] = ()
  data_since: int = 0

  @classmethod
  def of(cls, meta: dict[str, Any]) -> 'History':
    """Reads the history in a checkpoint's `meta`; older ones have none."""
    found = meta.get('history', {})
    return cls(**found | dict(rollbacks=tuple(found.get('rollbacks', ()))))

  def in_meta(self, meta: dict[str, Any]) -> dict[str, Any]:
    """Returns the `meta` of a checkpoint with this history."""
    return meta | dict(history=dataclasses.asdict(self))

  def count(self, skipped: bool) -> 'History':
    """Returns the history after one more step."""
    return dataclasses.replace(
        self,
        skipped=self.skipped + skipped,
        in_a_row=self.in_a_row + 1 if skipped else 0,
    )

  def check_limit(self, what: str, limit: int, step: int):
    """Raises `BadNumbers` if too many steps in a row have been skipped."""
    if self.in_a_row >= limit:
      raise BadNumbers(
          f'{what}, the last of {self.in_a_row} such steps in a row '
          '(nan_limit)', step
      )

  def roll_back(self, restored: int, bad: int, rate: float) -> 'History':
    """Returns the history after one more rollback."""
    entry = dict(restored=restored, bad=bad, rate=rate)
    return dataclasses.replace(self, rollbacks=self.rollbacks + (entry,))

  def rollbacks_to(self, step: int) -> int:
    """Returns the number of rollbacks to the checkpoint of a step."""
    return sum(entry['restored'] == step for entry in self.rollbacks)

  @property
  def rate(self) -> float:
    """The factor of the learning rate after all rollbacks."""
    return math.prod(entry['rate'] for entry in self.rollbacks)

  @property
  def batches_left_out(self) -> int:
    """The number of batches left out: step s trains on batch s plus this."""
    return sum(entry['bad'] - entry['restored'] for entry in self.rollbacks)

  def adjust(self, config) -> ConfigDict:
    """Returns `config` with the learning rate after all rollbacks."""
    if not self.rollbacks:
      return config
    config = config.copy_and_resolve_references()
    with config.ignore_type():  # Rates may be given as integers.
      for name in (
          'start_learning_rate', 'learning_rate', 'end_learning_rate'
      ):
        config.optimizer[name] *= self.rate
    return config


def is_sound(state, frozen=None) -> jax.Array:
  """Returns whether a training state may be saved; to be jitted.

  Parameters, their moving average and batch statistics must be finite. A carry
  and the state of the optimiser may contain infinities, such as a running
  maximum at the start, but no NaN. Frozen parameters may have any value,
  because training does not change them.

  Args:
    state: The training state.
    frozen: A bool for each parameter, whether it is frozen; `None` if none is.
  """
  kept = {
      name: state[name] for name in ('params', 'ema', 'batch_stats')
      if name in state
  }
  for name in ('params', 'ema'):
    if frozen is not None and name in kept:
      kept[name] = jax.tree.map(
          lambda held, u: None if held else u, frozen, kept[name]
      )
  checks = [jnp.isfinite(u).all() for u in jax.tree.leaves(kept)]
  rest = {n: state[n] for n in ('opt_state', 'carry') if n in state}
  checks += [~jnp.isnan(u).any() for u in jax.tree.leaves(rest)]
  return jnp.stack(checks).all()
