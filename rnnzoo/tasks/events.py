"""Events: when the next one comes, and of which type it is."""

from collections.abc import Mapping
import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp
from rnnzoo import models
from rnnzoo.tasks import base


@dataclasses.dataclass(frozen=True)
class EventPrediction(base.Task):
  """Trains `models.PointProcess` with the likelihood of each sequence.

  The batch holds `inputs` `[B, T]`, the types of the events that are read, and
  `gaps` `[B, T]`, the time since the event before each of them; `targets` and
  `target_gaps` are those of the next events. A target `K`, where `K` is the
  number of types, says that there was no event until the window ended. `mask`
  says which targets count, `input_mask` which events exist.

  The loss is the negative log-likelihood of all targets, divided by the number
  of events among them: the last target of a window, which is none, counts in
  the sum only. Densities of time have a unit, so the loss depends on that of
  the gaps.

  Metrics: `loss` in nats per event; `accuracy`, how often the most probable
  type at the time of an event was that of the event, if there are several
  types; and where the batch has `true_log_likelihood` `excess`, how far the
  loss is above that of the process that made the data.
  """

  name: ClassVar[str] = 'events'
  units: ClassVar[Mapping[str, str]] = dict(
      loss='nats per event', excess='nats per event'
  )

  def sizes(self, dataset):
    return dict(
        vocab_size=dataset.vocab_size, gap_mean=dataset.gap_mean,
        gap_deviation=dataset.gap_deviation,
    )

  @property
  def outputs(self):
    return self.model.vocab_size

  def build(self, rngs):
    return models.PointProcess(self.model, self.layers, rngs=rngs)

  def forward(self, model, batch, carry, *, train, key):
    carry, outputs = model(
        batch['inputs'], batch['gaps'], carry,
        reset=batch.get('reset'), mask=batch.get('input_mask'),
        train=train, key=key,
    )
    targets, mask = batch['targets'], batch.get('mask')
    valid = jnp.ones(targets.shape, bool) if mask is None else mask
    gaps = jnp.where(valid, batch['target_gaps'], 1)
    total = lambda u: jnp.where(valid, u, 0).sum(dtype=jnp.float32)
    found = model.log_likelihood(outputs, targets, gaps)
    kinds = self.model.vocab_size - 1
    sums = dict(loss=-total(found), weight=total(targets < kinds))
    if kinds > 1:
      said = self._most_probable(model, outputs, gaps)
      sums['accuracy'] = total(said == targets)
    if 'true_log_likelihood' in batch:
      sums['excess'] = jax.lax.stop_gradient(
          total(batch['true_log_likelihood'] - found)
      )
    return carry, sums

  def predict(self, model, batch):
    """Returns the most probable type at the time of each target.

    `log_likelihood` is that of the target. Where a target says that there was
    no event, the prediction is of an event at that time.
    """
    _, outputs = model(
        batch['inputs'], batch['gaps'],
        reset=batch.get('reset'), mask=batch.get('input_mask'),
    )
    gaps = batch['target_gaps']
    return dict(
        prediction=self._most_probable(model, outputs, gaps),
        log_likelihood=model.log_likelihood(outputs, batch['targets'], gaps),
    )

  def describe(self, means, dataset):
    del dataset
    text = f'{means["loss"]:.4f} nats per event'
    if 'excess' in means:
      text += f', {means["excess"]:.4f} above the true process'
    if 'accuracy' in means:
      text += f', accuracy of types {means["accuracy"]:.2%}'
    return text

  def sentence(self, summary, dataset):
    means = {
        name.removeprefix('test_'): value for name, value in summary.items()
        if name.startswith('test_')
    }
    return (
        f'test: {self.describe(means, dataset)} (validation '
        f'{summary["best_eval_loss"]:.4f} nats per event)'
    )

  def _most_probable(self, model, outputs, gaps):
    density = jax.lax.stop_gradient(model.log_density(outputs, gaps))
    return density.argmax(-1)
