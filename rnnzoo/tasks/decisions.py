"""Offline reinforcement learning: which action followed, given the return."""

from collections.abc import Callable
import dataclasses
from typing import Any, ClassVar

import jax.numpy as jnp
from rnnzoo import models
from rnnzoo.tasks import base
from rnnzoo.training import losses

# Names in `model.layer` that stand for a whole model.
MODELS: dict[str, Callable[..., Any]] = {
    'behaviour_cloning': models.BehaviourCloning,
}


@dataclasses.dataclass(frozen=True)
class Decisions(base.Task):
  """Trains `models.DecisionModel`, or a model of `MODELS`, on windows.

  The batch holds `inputs` `[B, K, D]`, the return to go, the observation, the
  action before and the number of the step, `targets` `[B, K, A]`, the actions,
  `input_mask` `[B, K]`, the steps that exist, and `mask` `[B, K]`, those that
  count.

  Metrics: `loss` and `mse`, the mean squared error of the numbers of an action,
  which are in [-1, 1], and `mae`, their mean absolute error. How well a model
  acts is another question: `experiments.act` asks the environment.
  """

  name: ClassVar[str] = 'decisions'
  units: ClassVar = dict(
      loss='mean squared error of actions', mse='mean squared error of actions',
      mae='mean absolute error of actions',
  )

  def sizes(self, dataset):
    return dict(
        in_features=dataset.in_features, out_features=dataset.out_features
    )

  @property
  def outputs(self):
    return self.model.out_features

  def build(self, rngs):
    make = MODELS.get(self.model.layer, models.DecisionModel)
    return make(self.model, self.layers, rngs=rngs)

  def forward(self, model, batch, carry, *, train, key):
    carry, actions = model(
        batch['inputs'], carry, **_flags(batch), train=train, key=key
    )
    sums = losses.squared_error(actions, batch['targets'], batch.get('mask'))
    return carry, dict(sums, mse=sums['loss'])

  def predict(self, model, batch):
    """Returns the actions `[B, K, A]`."""
    _, actions = model(batch['inputs'], **_flags(batch))
    return dict(prediction=actions.astype(jnp.float32))

  def describe(self, means, dataset):
    del dataset
    return (
        f'mean squared error of actions {means["mse"]:.4f}, mean absolute '
        f'error {means["mae"]:.4f}'
    )

  def sentence(self, summary, dataset):
    del dataset
    return (
        'mean squared error of actions: validation '
        f'{summary["best_eval_loss"]:.4f}, test {summary["test_mse"]:.4f}'
    )


def _flags(batch):
  return dict(reset=batch.get('reset'), mask=batch.get('input_mask'))
