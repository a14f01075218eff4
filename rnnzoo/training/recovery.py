"""What a run does about numbers that are not finite, and what it remembers.

`config.on_nan` says what happens at a step with a loss or gradient like that:

* `'stop'`: the run ends; the last checkpoint is from before.
* `'skip'`: the step's update is not made (in the compiled step itself, so that
  nothing waits) and the batch is gone. `config.nan_limit` such steps in a row
  end the run.
* `'rollback'`: the last checkpoint is restored, the learning rate multiplied by
  `config.nan_rate_factor`, and training goes on with the batch after the bad
  one (Chowdhery et al., 2022, https://arxiv.org/abs/2204.02311, section 5.1, do
  so by hand). `config.nan_limit` rollbacks to one checkpoint end the run.

Loss and gradient norm are the same on all devices and processes, and so is what
is decided from them. The history of a run is a part of every checkpoint, so one
that is resumed goes on as if it had never ended.
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
  """Something is not finite; `step` is the number of the step, from 1."""

  def __init__(self, what: str, step: int):
    self.what, self.step = what, step
    super().__init__(what)


def warn(text: str, *args):
  """Warns of what happens on all processes, on one of them."""
  if jax.process_index() == 0:
    logging.warning(text, *args)


def describe(step: int, loss: float, grad_norm: float) -> str | None:
  """Says what is not finite at a step, or returns `None` if all is."""
  for name, value in (('loss', loss), ('gradient', grad_norm)):
    if not math.isfinite(value):
      return (
          f'The {name} is not finite at step {step} (loss {loss}, gradient '
          f'norm {grad_norm})'
      )
  return None


def try_to_save(save) -> bool:
  """Calls a part of saving; says whether that went well, and why not."""
  try:
    save()
  except errors.UserError as error:
    if jax.process_count() > 1:
      raise  # Others may have saved: only a new start makes all agree.
    logging.warning('%s The next save tries again.', error)
    return False
  return True


@dataclasses.dataclass(frozen=True)
class History:
  """What has been done so far about numbers that are not finite.

  Attributes:
    skipped: Steps whose update was not made.
    in_a_row: How many of them were the last ones.
    rollbacks: One dictionary each: `restored`, the step gone back to, `bad`,
      the step that was at fault, and `rate`, the factor of the learning rate.
    data_since: The last step on earlier data, 0 if the data never changed, see
      `checks.check_data`.
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
    """Returns a checkpoint's `meta` with this history."""
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
    """Returns how often the run has gone back to a step."""
    return sum(entry['restored'] == step for entry in self.rollbacks)

  @property
  def rate(self) -> float:
    """What the learning rate is to be multiplied by."""
    return math.prod(entry['rate'] for entry in self.rollbacks)

  @property
  def batches_left_out(self) -> int:
    """Step s trains on the batch of this number plus s."""
    return sum(entry['bad'] - entry['restored'] for entry in self.rollbacks)

  def adjust(self, config) -> ConfigDict:
    """Returns `config` with the learning rate that rollbacks have left."""
    if not self.rollbacks:
      return config
    config = config.copy_and_resolve_references()
    with config.ignore_type():  # Rates may be given as integers.
      for name in ('learning_rate', 'end_learning_rate'):
        config.optimizer[name] *= self.rate
    return config


def is_sound(state, frozen=None) -> jax.Array:
  """Whether a training state is fit to be kept; to be jitted.

  Parameters, their average and statistics must be finite; a carry or the
  optimiser may hold infinities, as a running maximum does at the start, and so
  may a frozen parameter, which training does not change.

  Args:
    state: The training state.
    frozen: Whether a parameter is frozen, a bool per leaf; `None` if none is.
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
