"""Video: the next frames, from the frames that were seen."""

import dataclasses
import math
from typing import ClassVar

import jax
import jax.numpy as jnp
from rnnzoo import models
from rnnzoo.models import inputs as inputs_lib
from rnnzoo.models import video
from rnnzoo.tasks import base

_UNIT = 'squared error of a frame'


@dataclasses.dataclass(frozen=True)
class Video(base.Task):
  """Trains `models.VideoPredictor`, whose frames have values from 0 to 1.

  The batch holds `inputs` `[B, T, H, W, C]`, the frames that are seen, and
  `targets`, the next ones. `mask` `[B]` says which sequences count.

  Training reads all of these frames and predicts the one after each (teacher
  forcing). The loss is the binary cross-entropy of a pixel.

  Metrics, averaged over sequences and frames: `loss`; `next_mse`, the squared
  error of a prediction from true frames; and in evaluation `mse`, that of the
  targets where each is predicted from the prediction before it, and `copy_mse`,
  that of the last frame seen. Squared errors are sums over the pixels of a
  frame, the unit of the publications on Moving MNIST.
  """

  name: ClassVar[str] = 'video'
  best: ClassVar[str] = 'mse'
  forecasts: ClassVar[bool] = True
  units: ClassVar = dict(
      loss='nats a pixel', mse=_UNIT, next_mse=_UNIT, copy_mse=_UNIT
  )

  def sizes(self, dataset):
    return dict(image_shape=dataset.image_shape)

  @property
  def outputs(self):
    return math.prod(self.model.image_shape) if self.model.image_shape else 0

  def bind(self, dataset):
    task = super().bind(dataset)
    video.inner_shape(task.model)  # A size that does not fit shows now.
    return task

  def build(self, rngs):
    return models.VideoPredictor(self.model, self.layers, rngs=rngs)

  def forward(self, model, batch, carry, *, train, key):
    seen, targets = self._frames(batch)
    rows = len(seen)
    counts = batch.get('mask')
    counts = jnp.ones((rows,), bool) if counts is None else counts
    # Summed over the sequences that count, of a mean over frames.
    total = lambda u: jnp.where(
        counts, u.reshape(rows, -1).mean(1), 0
    ).sum()
    truth = jnp.concatenate([seen[:, 1:], targets], axis=1)
    found = {}
    if train:
      frames = jnp.concatenate([seen, targets[:, :-1]], axis=1)
      carry, logits = model(frames, carry, train=True, key=key)
    else:
      # In two parts, so that the state after the frames seen is there.
      after, logits = model(seen, carry)
      predicted = _predict(model, after, logits, targets.shape[1])
      carry, later = model(targets[:, :-1], after)
      logits = jnp.concatenate([logits, later], axis=1)
      found['mse'] = total(_error(predicted, targets))
      found['copy_mse'] = total(_error(seen[:, -1:], targets))
    entropy = jax.nn.softplus(logits) - truth * logits
    return carry, dict(
        loss=total(entropy),
        next_mse=total(_error(jax.nn.sigmoid(logits), truth)),
        weight=counts.sum(dtype=jnp.float32),
        **found,
    )

  def predict(self, model, batch):
    """Returns the frames, and the squared errors `[B, H]` of each."""
    seen, targets = self._frames(batch)
    carry, logits = model(seen)
    predicted = _predict(model, carry, logits, targets.shape[1])
    return dict(
        prediction=predicted,
        mse=_error(predicted, targets),
        copy_mse=_error(seen[:, -1:], targets),
    )

  def details(self, predictions, dataset):
    """Returns the squared error of each predicted frame, and of copying."""
    rows = zip(predictions['mse'].mean(0), predictions['copy_mse'].mean(0))
    return [
        f'  frame {number}: squared error {error:.2f}, copying the last frame '
        f'{copied:.2f}'
        for number, (error, copied) in enumerate(
            rows, dataset.sequence_length + 1
        )
    ]

  def describe(self, means, dataset):
    return (
        f'squared error of {dataset.horizon} predicted frames '
        f'{means["mse"]:.2f} a frame (copying the last frame: '
        f'{means["copy_mse"]:.2f}), of the next frame {means["next_mse"]:.2f}, '
        f'loss {means["loss"]:.4f} nats a pixel'
    )

  def sentence(self, summary, dataset):
    means = {
        name.removeprefix('test_'): value for name, value in summary.items()
        if name.startswith('test_')
    }
    return (
        f'test: {self.describe(means, dataset)} (validation squared error '
        f'{summary["best_eval_mse"]:.2f})'
    )

  def _frames(self, batch):
    """Returns the frames to see and to predict, float32 or wider."""
    return tuple(
        inputs_lib.normalize(self.model, batch[name])
        for name in ('inputs', 'targets')
    )


def _predict(model, carry, logits, count):
  """Returns the `count` frames after those of the logits `[B, T, ...]`."""
  first = jax.nn.sigmoid(logits[:, -1])
  _, later = model.rollout(carry, first, count - 1)
  return jnp.concatenate([first[:, None], later], axis=1)


def _error(predicted, truth):
  """Returns the squared errors of frames `[B, T, H, W, C]`, `[B, T]`."""
  return jnp.square(predicted - truth).sum((2, 3, 4))
