"""Which checkpoints stay: the latest ones and the best one."""

from typing import Literal

BestMode = Literal['min', 'max']


class LatestAndBest:
  """An Orbax preservation policy that also knows which checkpoint is the best.

  Orbax has a policy `BestN`, but it needs a file of metrics that no digest
  protects: if that file is damaged, the manager does not open at all.

  Attributes:
    best_mode: Whether the lowest (`'min'`) or the highest (`'max'`) metric is
      the best.
    metrics: The metrics by step; `Checkpointer` fills them in.
  """

  def __init__(self, keep: int, best_mode: BestMode):
    self._keep = keep
    self.best_mode = best_mode
    self.metrics: dict[int, float] = {}

  def best(self, steps) -> int | None:
    """Returns the step of the best metric; the earliest where some are equal.

    Args:
      steps: The steps to choose from; those without a metric do not count.
    """
    sign = -1 if self.best_mode == 'max' else 1
    known = [(sign * self.metrics[s], s) for s in steps if s in self.metrics]
    return min(known)[1] if known else None

  def should_preserve(self, checkpoints, *, context):
    """Returns for each of `checkpoints` whether it stays."""
    del context
    steps = [checkpoint.step for checkpoint in checkpoints]
    kept = {*sorted(steps)[-self._keep :], self.best(steps)}
    return [step in kept for step in steps]
