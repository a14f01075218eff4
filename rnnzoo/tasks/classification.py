"""Classification of sequences: one label for each, or one for every step."""

import dataclasses
from typing import ClassVar

import jax
import numpy as np
from rnnzoo import models
from rnnzoo.tasks import base
from rnnzoo.training import losses

# A confusion matrix of more classes is too wide for a terminal.
_MAX_CLASSES = 20


@dataclasses.dataclass(frozen=True)
class Classification(base.Task):
  """Trains `models.SequenceClassifier` with the cross-entropy of the labels.

  The batch holds `inputs`, tokens `[B, T]`, vectors `[B, T, D]` or images
  `[B, T, H, W, C]`, perhaps `dt` `[B, T]`, the lengths of the steps, and
  `targets`, `[B]` or `[B, T]` class ids. `input_mask` `[B, T]` says which steps
  exist, `mask` which targets count.

  Metrics: `loss` in nats for each target, and `accuracy`, which chooses the
  best checkpoint. Of several checkpoints with the same accuracy it is the
  first.
  """

  name: ClassVar[str] = 'classification'
  best: ClassVar[str] = 'accuracy'
  best_mode: ClassVar[str] = 'max'
  units: ClassVar = dict(loss='nats')

  def sizes(self, dataset):
    return dict(
        base.input_sizes(self.model, dataset), num_classes=dataset.num_classes
    )

  @property
  def outputs(self):
    return self.model.num_classes

  def build(self, rngs):
    return models.SequenceClassifier(self.model, self.layers, rngs=rngs)

  def forward(self, model, batch, carry, *, train, key):
    carry, logits = model(
        batch['inputs'], carry, **base.side_inputs(batch),
        train=train, key=key,
    )
    sums = losses.cross_entropy(logits, batch['targets'], batch.get('mask'))
    return carry, dict(
        loss=sums['loss'], accuracy=sums['correct'], weight=sums['weight']
    )

  def predict(self, model, batch):
    """Returns the most probable class and its probability."""
    _, logits = model(batch['inputs'], **base.side_inputs(batch))
    return dict(
        prediction=logits.argmax(-1),
        probability=jax.nn.softmax(logits).max(-1),
    )

  def describe(self, means, dataset):
    del dataset
    return f'accuracy {means["accuracy"]:.2%}, loss {means["loss"]:.4f} nats'

  def sentence(self, summary, dataset):
    del dataset
    return (
        f'accuracy: validation {summary["best_eval_accuracy"]:.2%}, test '
        f'{summary["test_accuracy"]:.2%} (loss {summary["best_eval_loss"]:.4f} '
        f'and {summary["test_loss"]:.4f} nats)'
    )

  def details(self, predictions, dataset):
    """Returns the confusion matrix, and the accuracy by length."""
    flat = lambda name: np.concatenate(
        [np.ravel(u) for u in predictions[name]]
    )
    target, prediction = flat('target'), flat('prediction')
    lines = confusion_lines(
        target, prediction, dataset.num_classes, dataset.class_names
    )
    lengths = np.asarray(predictions['length'])
    if len(set(lengths.tolist())) > 1:
      lengths = np.repeat(lengths, [np.size(t) for t in predictions['target']])
      lines += ['', *accuracy_by_length(lengths, target == prediction)]
    return lines


def confusion_lines(target, prediction, num_classes, names=()) -> list[str]:
  """Returns the confusion matrix as lines: a row a true class.

  >>> lines = confusion_lines(np.array([0, 0, 1]), np.array([0, 1, 1]), 2)
  >>> for line in lines: print(line)
  confusion matrix: rows are true classes, columns are predictions
        0  1
    0:  1  1
    1:  0  1
  """
  names = [str(name) for name in names or range(num_classes)]
  counts = np.zeros((num_classes, num_classes), int)
  np.add.at(counts, (target, prediction), 1)
  if num_classes > _MAX_CLASSES:
    wrong = counts - np.diag(np.diag(counts))
    order = np.argsort(-wrong, axis=None)[:_MAX_CLASSES]
    pairs = [divmod(int(i), num_classes) for i in order]
    return ['most frequent confusions:'] + [
        f'  {names[t]} predicted as {names[p]}: {wrong[t, p]}'
        for t, p in pairs if wrong[t, p]
    ]
  width = max(len(name) for name in names)
  column = max(width, len(str(counts.max()))) + 2
  head = ''.join(f'{name:>{column}}' for name in names)
  return [
      'confusion matrix: rows are true classes, columns are predictions',
      f'  {"":>{width}} {head}',
      *(
          f'  {name:>{width}}:' + ''.join(f'{n:>{column}}' for n in row)
          for name, row in zip(names, counts, strict=True)
      ),
  ]


def accuracy_by_length(lengths, correct, parts: int = 4) -> list[str]:
  """Returns the accuracy of equally many targets, short to long, as lines.

  >>> accuracy_by_length(np.array([1, 2, 9, 9]), np.array([1, 1, 1, 0]), 2)
  ['accuracy by length:', '  1 to 2: 100.0% of 2', '  9 to 9: 50.0% of 2']

  Args:
    lengths: The length of the sequence of each target, `[n]`.
    correct: Whether each target is predicted, `[n]`.
    parts: The number of lines.
  """
  order = np.argsort(lengths, kind='stable')
  lines = ['accuracy by length:']
  for part in np.array_split(order, parts):
    if len(part):
      low, high = lengths[part].min(), lengths[part].max()
      lines.append(
          f'  {low} to {high}: {correct[part].mean():.1%} of {len(part)}'
      )
  return lines
