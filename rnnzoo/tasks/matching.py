"""Matching: one label for two sequences."""

import dataclasses
from typing import ClassVar

from rnnzoo import models
from rnnzoo.tasks import classification


@dataclasses.dataclass(frozen=True)
class Matching(classification.Classification):
  """Trains `models.PairClassifier` with the cross-entropy of the labels.

  The batch holds `inputs`, tokens `[B, T, 2]`, and `targets`, `[B]` class ids.
  `input_mask` `[B, T, 2]` says which steps exist, `mask` `[B]` which targets
  count.

  Metrics: those of `Classification`. The length of a pair is that of both
  sequences together.
  """

  name: ClassVar[str] = 'matching'
  sequences: ClassVar[int] = 2

  def build(self, rngs):
    return models.PairClassifier(self.model, self.layers, rngs=rngs)
