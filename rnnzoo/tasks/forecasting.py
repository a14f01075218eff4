"""Forecasting: the next steps of some columns, from a window of the last."""

from collections.abc import Callable
import dataclasses
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from rnnzoo import models
from rnnzoo.models import forecaster
from rnnzoo.tasks import base
from rnnzoo.training import losses

# Names in `model.layer` that stand for a whole model.
MODELS: dict[str, Callable[..., Any]] = {'dlinear': models.DLinear}


@dataclasses.dataclass(frozen=True)
class Forecasting(base.Task):
  """Trains `models.Forecaster`, or a model of `MODELS`.

  The batch holds `inputs` `[B, L, D]`, whose first `C` columns are the past of
  the columns to forecast, `targets` `[B, H, C]`, their next steps, and perhaps
  `future` `[B, H, F]`, what is known of these, and `dt` `[B, L]`, the lengths
  of the steps. `mask`, `[B]` or `[B, H, C]`, says which targets count.

  The loss depends on `model.distribution`: the squared error (`point`), the
  negative log-likelihood in nats (`gaussian`), or twice the mean pinball loss
  of all quantiles (`quantile`), which is near to the continuous ranked
  probability score.

  Metrics, averaged over the numbers that count: `loss`; `mse` and `mae`, the
  errors of the number, of the mean or of the median that is forecast; and but
  for `point` `coverage`, the share of targets between the quantiles 0.1 and
  0.9, which should be 0.8.
  """

  name: ClassVar[str] = 'forecasting'
  forecasts: ClassVar[bool] = True
  units: ClassVar = dict(mse='mean squared error', mae='mean absolute error')

  def sizes(self, dataset):
    return dict(
        in_features=dataset.in_features,
        out_features=dataset.out_features,
        window=dataset.sequence_length,
        horizon=dataset.horizon,
        future_features=dataset.future_features,
    )

  @property
  def outputs(self):
    return self.model.out_features * self.model.horizon

  def build(self, rngs):
    make = MODELS.get(self.model.layer, models.Forecaster)
    return make(self.model, self.layers, rngs=rngs)

  def forward(self, model, batch, carry, *, train, key):
    _, y = model(
        batch['inputs'], future=batch.get('future'), dt=batch.get('dt'),
        train=train, key=key,
    )
    targets, mask = batch['targets'], batch.get('mask')
    if mask is not None and mask.ndim < targets.ndim:
      mask = jnp.broadcast_to(mask[:, None, None], targets.shape)
    found = _described(self.model.distribution, y)
    # Each number is a target of its own: some may be missing.
    sums = losses.squared_error(
        found['prediction'][..., None], targets[..., None], mask
    )
    sums['mse'] = sums['loss']
    if self.model.distribution != 'point':
      valid = jnp.ones(targets.shape, bool) if mask is None else mask
      score = losses.gaussian(y, targets)
      if self.model.distribution == 'quantile':
        score = losses.pinball(y, targets, forecaster.QUANTILES)
      inside = (found['low'] <= targets) & (targets <= found['high'])
      sums['loss'] = jnp.where(valid, score, 0).sum()
      sums['coverage'] = jnp.sum(inside & valid, dtype=score.dtype)
    return carry, sums

  def predict(self, model, batch):
    """Returns the forecast, and the quantiles 0.1 and 0.9 if it has them."""
    _, y = model(
        batch['inputs'], future=batch.get('future'), dt=batch.get('dt')
    )
    return _described(self.model.distribution, y)

  def describe(self, means, dataset):
    del dataset
    text = (
        f'mean squared error {means["mse"]:.4f}, mean absolute error '
        f'{means["mae"]:.4f}'
    )
    if 'coverage' in means:
      text += (
          f', loss {means["loss"]:.4f}, {means["coverage"]:.1%} between the '
          'quantiles 0.1 and 0.9'
      )
    return text

  def sentence(self, summary, dataset):
    means = {
        name.removeprefix('test_'): value for name, value in summary.items()
        if name.startswith('test_')
    }
    return (
        f'{dataset.horizon} steps ahead, test: {self.describe(means, dataset)} '
        f'(validation loss {summary["best_eval_loss"]:.4f})'
    )


def _described(distribution: str, y: jax.Array) -> dict[str, jax.Array]:
  """Returns the forecast `[B, H, C]`, and its band if it has one."""
  y = y.astype(jnp.float32)
  if distribution == 'point':
    return dict(prediction=y)
  if distribution == 'gaussian':
    mean, deviation = y[..., 0], y[..., 1]
    width = jax.scipy.stats.norm.ppf(0.9) * deviation
    return dict(prediction=mean, low=mean - width, high=mean + width)
  middle = forecaster.QUANTILES.index(0.5)
  return dict(prediction=y[..., middle], low=y[..., 0], high=y[..., -1])
