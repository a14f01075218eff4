"""Language modelling where the true probability of each token is known."""

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp
from rnnzoo import errors
from rnnzoo.tasks import language
from rnnzoo.training import losses


@dataclasses.dataclass(frozen=True)
class KnownSource(language.LanguageModelling):
  """Trains as `LanguageModelling` does, and compares with the true source.

  The batch also holds `probabilities` `[B, T, V]`: those of the source of the
  data for each target. They are not trained on.

  Metrics, besides `loss` and `accuracy`: `possible`, how often the token that
  the model finds most probable has a probability above 0, and
  `total_variation`, half the sum of the absolute differences between the
  probabilities of the model and the true ones (0 is best, 1 is worst).
  """

  name: ClassVar[str] = 'known_source'
  larger_is_better: ClassVar[tuple[str, ...]] = ('accuracy', 'possible')

  def __post_init__(self):
    super().__post_init__()
    if self.loss_chunk > 0:  # The automatic choice is that of all targets.
      raise errors.UserValueError(
          'loss_chunk must be 0 or -1 for known_source, which compares all '
          f'probabilities at once, got {self.loss_chunk}.'
      )

  @classmethod
  def batch_shapes(cls, config):
    return None  # The data set decides more than inputs and targets.

  def forward(self, model, batch, carry, *, train, key):
    carry, logits = model(
        batch['inputs'], carry,
        reset=batch.get('reset'), mask=batch.get('input_mask'),
        train=train, key=key,
    )
    mask, true = batch.get('mask'), batch['probabilities']
    sums = losses.cross_entropy(logits, batch['targets'], mask)
    said = jax.lax.stop_gradient(logits).argmax(-1)
    possible = jnp.take_along_axis(true, said[..., None], -1)[..., 0] > 0
    distance = jnp.abs(jax.nn.softmax(logits) - true).sum(-1) / 2
    valid = jnp.ones(said.shape, bool) if mask is None else mask
    total = lambda u: jax.lax.stop_gradient(
        jnp.where(valid, u, 0).sum(dtype=jnp.float32)
    )
    return carry, dict(
        loss=sums['loss'], accuracy=sums['correct'],
        possible=total(possible), total_variation=total(distance),
        weight=sums['weight'],
    )

  def describe(self, means, dataset):
    return (
        f'{super().describe(means, dataset)}, possible '
        f'{means["possible"]:.4f}, total variation '
        f'{means["total_variation"]:.4f}'
    )

  def sentence(self, summary, dataset):
    return (
        f'{super().sentence(summary, dataset)}, possible '
        f'{summary["test_possible"]:.1%}, total variation '
        f'{summary["test_total_variation"]:.4f}'
    )
