"""Language modelling: predict the next token."""

from collections.abc import Mapping
import dataclasses
import math
import pathlib
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from rnnzoo import errors
from rnnzoo import models
from rnnzoo.tasks import base
from rnnzoo.training import losses


@dataclasses.dataclass(frozen=True)
class LanguageModelling(base.Task):
  """Trains `models.LanguageModel` with the cross-entropy of each next token.

  The batch holds `inputs` and `targets` `[B, T]`, token ids. Targets where
  `mask` is `False` do not count, so a task that asks for some tokens only, such
  as associative recall, is of this kind too.

  Metrics: `loss` in nats for each target, and `accuracy`.

  Attributes:
    model: See `Task`.
    layers: See `Task`.
    loss_chunk: For how many targets, at most, a device holds logits at once: 0
      for all of its targets, -1 for an automatic choice; see
      `losses.chunked_cross_entropy`.
  """

  loss_chunk: int = 0

  name: ClassVar[str] = 'language_modelling'
  units: ClassVar[Mapping[str, str]] = dict(loss='nats')

  def __post_init__(self):
    if self.loss_chunk < losses.AUTOMATIC:
      raise errors.UserValueError(
          'loss_chunk must be a number of tokens, 0 for all of them or '
          f'{losses.AUTOMATIC} for as many as fit, got {self.loss_chunk}.'
      )

  @classmethod
  def from_config(cls, config, layers=None):
    model = models.ModelConfig.from_dict(config.model.to_dict())
    return cls(model, layers, config.loss_chunk)

  def sizes(self, dataset):
    return dict(vocab_size=dataset.vocab_size)

  @property
  def outputs(self):
    return self.model.vocab_size

  @classmethod
  def batch_shapes(cls, config):
    if not config.model.vocab_size:
      return None
    shape = config.batch_size, config.data.sequence_length
    batch = {
        name: jax.ShapeDtypeStruct(shape, jnp.int32)
        for name in ('inputs', 'targets')
    }
    # The files of a folder are documents, as the parts at a separator are.
    documents = config.data.get('separator') or (
        config.data.get('path') and pathlib.Path(config.data.path).is_dir()
    )
    if config.data.get('contiguous') or documents:
      batch['reset'] = jax.ShapeDtypeStruct(shape, jnp.bool_)
    if documents:
      batch['mask'] = jax.ShapeDtypeStruct(shape, jnp.bool_)
    return batch

  def build(self, rngs):
    return models.LanguageModel(self.model, self.layers, rngs=rngs)

  def forward(self, model, batch, carry, *, train, key):
    length, room = batch['inputs'].shape[1], model.context
    # With resets or padding, sequences may be shorter.
    is_whole = not {'reset', 'input_mask'} & {*batch}
    if room is not None and length > room and is_whole:
      raise errors.UserValueError(
          f'data.sequence_length must be at most {room}, the context that the '
          'attention of this model keeps, and so must the sequences of all '
          f'parts of the data, got {length}.'
      )
    run = model.features if self.loss_chunk else model
    carry, outputs = run(
        batch['inputs'], carry,
        reset=batch.get('reset'), mask=batch.get('input_mask'),
        train=train, key=key,
    )
    targets, mask = batch['targets'], batch.get('mask')
    if self.loss_chunk:
      last = model.output_map()
      sums = losses.chunked_cross_entropy(
          outputs, last.kernel, targets, mask,
          vocab_axis=last.vocab_axis, bias=last.bias, soft_cap=last.soft_cap,
          chunk=self.loss_chunk,
      )
    else:
      sums = losses.cross_entropy(outputs, targets, mask)
    return carry, dict(
        loss=sums['loss'], accuracy=sums['correct'], weight=sums['weight']
    )

  def predict(self, model, batch):
    """Returns the most probable token and the log probability of the target."""
    _, logits = model(
        batch['inputs'],
        reset=batch.get('reset'), mask=batch.get('input_mask'),
    )
    log_probability = jnp.take_along_axis(
        jax.nn.log_softmax(logits), batch['targets'][..., None], axis=-1
    )
    return dict(
        prediction=logits.argmax(-1), log_probability=log_probability[..., 0]
    )

  def unit(self, metric, dataset):
    unit = super().unit(metric, dataset)
    return f'{unit} per {_singular(dataset.unit)}' if unit else ''

  def derived(self, means, dataset):
    bits = means['loss'] / math.log(2)
    found = dict(bits_per_token=bits)
    if dataset.bytes_per_token:
      found['bits_per_byte'] = bits / dataset.bytes_per_token
    return found

  def describe(self, means, dataset):
    loss = means['loss']
    return (
        f'loss {loss:.4f} nats, {loss / math.log(2):.4f} bits per '
        f'{_singular(dataset.unit)}, accuracy {means["accuracy"]:.4f}'
    )

  def sentence(self, summary, dataset):
    nats = summary['best_eval_loss'], summary['test_loss']
    bits = [loss / math.log(2) for loss in nats]
    text = (
        f'validation {bits[0]:.3f} and test {bits[1]:.3f} bits per '
        f'{_singular(dataset.unit)} ({nats[0]:.4f} and {nats[1]:.4f} nats)'
    )
    if dataset.unit == 'tokens' and 'test_bits_per_byte' in summary:
      text += f', {summary["test_bits_per_byte"]:.3f} bits per byte'
    if not dataset.forecast:  # Only some tokens are asked for.
      text += f', test accuracy {summary["test_accuracy"]:.1%}'
    return text

  def details(self, predictions, dataset):
    """Returns how many sequences have all of their answers right.

    Each token is predicted after the right ones before it. Greedy decoding
    gives the same answers where all are right.
    """
    if dataset.forecast:
      return []
    right = [
        np.array_equal(target, prediction) for target, prediction in
        zip(predictions['target'], predictions['prediction'], strict=True)
    ]
    return [f'sequences with all answers right: {np.mean(right):.4f}']

  def check_result(self, summary: Mapping[str, Any], dataset, config):
    """Raises `UserError` if gzip should be beaten and is not."""
    if not config.must_beat_gzip:
      return
    gzip_bits = dataset.baselines()['gzip_bits']
    if not summary['test_bits_per_token'] < gzip_bits:
      raise errors.UserError(
          f'The model ({summary["test_bits_per_token"]:.3f} bits per '
          f'{_singular(dataset.unit)}) does not beat gzip ({gzip_bits:.3f}).'
      )


def _singular(unit):
  return unit.removesuffix('s')
