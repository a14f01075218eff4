"""Regression: numbers for each sequence, or for every step."""

import dataclasses
from typing import ClassVar

import jax.numpy as jnp
from rnnzoo import models
from rnnzoo.tasks import base
from rnnzoo.training import losses


@dataclasses.dataclass(frozen=True)
class Regression(base.Task):
  """Trains `models.SequenceRegressor` with the squared error.

  The batch holds `inputs`, tokens `[B, T]`, vectors `[B, T, D]` or images
  `[B, T, H, W, C]`, perhaps `dt` `[B, T]`, the lengths of the steps, and
  `targets`, numbers `[B, K]` or `[B, T, K]`. `input_mask` `[B, T]` says which
  steps exist, `mask` (`[B]` or `[B, T]`) which targets count.

  The targets may be later values of the series; `forecasting.py` forecasts
  several steps of some columns from windows of a file.

  Metrics: `loss` and `mse`, the mean squared error, and `mae`, the mean
  absolute error, all averaged over the `K` numbers of a target.
  """

  name: ClassVar[str] = 'regression'
  units: ClassVar = dict(loss='mean squared error')

  def sizes(self, dataset):
    return dict(
        base.input_sizes(self.model, dataset), out_features=dataset.out_features
    )

  @property
  def outputs(self):
    return self.model.out_features

  def build(self, rngs):
    return models.SequenceRegressor(self.model, self.layers, rngs=rngs)

  def forward(self, model, batch, carry, *, train, key):
    carry, outputs = model(
        batch['inputs'], carry, **base.side_inputs(batch),
        train=train, key=key,
    )
    sums = losses.squared_error(outputs, batch['targets'], batch.get('mask'))
    return carry, dict(sums, mse=sums['loss'])

  def predict(self, model, batch):
    """Returns the predicted numbers."""
    _, outputs = model(batch['inputs'], **base.side_inputs(batch))
    return dict(prediction=outputs.astype(jnp.float32))

  def describe(self, means, dataset):
    del dataset
    return (
        f'mean squared error {means["mse"]:.6g}, mean absolute error '
        f'{means["mae"]:.6g}'
    )

  def sentence(self, summary, dataset):
    del dataset
    return (
        f'mean squared error: validation {summary["best_eval_loss"]:.6g}, test '
        f'{summary["test_mse"]:.6g} (test mean absolute error '
        f'{summary["test_mae"]:.6g})'
    )
