"""Autoencoding: give a sequence back from one vector."""

import dataclasses
from typing import ClassVar

import jax.numpy as jnp
from rnnzoo import models
from rnnzoo.tasks import base
from rnnzoo.training import losses


@dataclasses.dataclass(frozen=True)
class Autoencoding(base.Task):
  """Trains `models.SequenceAutoencoder` with the cross-entropy of its tokens.

  The batch holds `inputs` and `targets` `[B, T]`, token ids. Targets where
  `mask` is `False` do not count.

  Metrics: `loss` in nats for each target, and `accuracy`.
  """

  name: ClassVar[str] = 'autoencoding'
  units: ClassVar = dict(loss='nats')

  def sizes(self, dataset):
    return dict(vocab_size=dataset.vocab_size)

  @property
  def outputs(self):
    return self.model.vocab_size

  def build(self, rngs):
    return models.SequenceAutoencoder(self.model, self.layers, rngs=rngs)

  def forward(self, model, batch, carry, *, train, key):
    carry, code = model(
        batch['inputs'], carry, **base.side_inputs(batch), train=train, key=key
    )
    targets = batch['targets']
    logits = model.decode(code, targets.shape[1], train=train)
    sums = losses.cross_entropy(logits, targets, batch.get('mask'))
    return carry, dict(
        loss=sums['loss'], accuracy=sums['correct'], weight=sums['weight']
    )

  def predict(self, model, batch):
    """Returns the most probable tokens."""
    _, code = model(batch['inputs'], **base.side_inputs(batch))
    logits = model.decode(code, batch['targets'].shape[1])
    return dict(prediction=logits.argmax(-1).astype(jnp.int32))

  def describe(self, means, dataset):
    del dataset
    return f'loss {means["loss"]:.4f} nats, accuracy {means["accuracy"]:.4f}'

  def sentence(self, summary, dataset):
    del dataset
    return (
        f'accuracy of the tokens: test {summary["test_accuracy"]:.2%} (loss: '
        f'validation {summary["best_eval_loss"]:.4f}, test '
        f'{summary["test_loss"]:.4f} nats)'
    )
