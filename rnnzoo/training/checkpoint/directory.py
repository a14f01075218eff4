"""A directory of checkpoints: which there are, and which of them are sound."""

from collections.abc import Callable
import contextlib
import time
from typing import Any

from absl import logging
from etils import epath
import jax
import orbax.checkpoint as ocp
from rnnzoo import errors
from rnnzoo import filenames
from rnnzoo.training import files
from rnnzoo.training.checkpoint import damage
from rnnzoo.training.checkpoint import record as record_lib
from rnnzoo.training.checkpoint import retention

# A checkpoint that is being deleted should be gone after so long.
_DELETING_SECONDS = 10
# The threads of a failed save should have ended after so long.
_WRITING_SECONDS = 2


class Directory:
  """The checkpoints on disk, listed by an Orbax manager.

  Attributes:
    path: Where the checkpoints lie.
    bad_path: Where damaged ones go.
    manager: Orbax's; another one after `open`.
  """

  def __init__(self, path, policy: retention.LatestAndBest, readonly: bool):
    """Opens a directory; see `Checkpointer` for the arguments and errors."""
    self.path = epath.Path(filenames.absolute(path))
    self.bad_path = self.path.parent / f'bad_{self.path.name}'
    self._policy, self._readonly = policy, readonly
    try:
      if self.path.exists() and not self.path.is_dir():
        raise NotADirectoryError('not a directory')
      if not readonly and '://' not in str(self.path):
        # The directory itself may be a link, to a larger disk.
        for each in (self.bad_path, *self.path.glob('*')):
          files.check_own(each)
      self.open()
    except OSError as e:
      raise errors.UserError(
          f'Cannot use {self.path} for checkpoints: {damage.reason(e)}.'
      ) from e

  def open(self) -> None:
    """Makes a new manager, which looks at the disk."""
    self._list(self._make_manager)

  def remove_leftovers(self, quiet_seconds: float = 0.0) -> None:
    """Removes what killed and failed saves have left, on the first process.

    Args:
      quiet_seconds: Look again until nothing new has appeared for so long. The
        threads of a failed save may create its directory once more.
    """
    if jax.process_index() > 0:
      return
    start = last = time.monotonic()
    while True:
      for path in self.path.glob('*.orbax-checkpoint-tmp*'):
        last = time.monotonic()
        with contextlib.suppress(OSError):
          path.rmtree(missing_ok=True)
      now = time.monotonic()
      if now - last >= quiet_seconds or now - start > _WRITING_SECONDS:
        return
      time.sleep(0.01)

  def all_steps(self) -> list[int]:
    """The saved steps in ascending order, one being written included."""
    return sorted(self.manager.all_steps())

  def first_sound(
      self,
      read: Callable[[int], Any],
      *,
      step: int | None,
      best: bool,
      move: bool,
  ) -> Any:
    """Returns `read(step)` of the first checkpoint that is not damaged.

    Args:
      read: Raises `damage.DamagedError` if a checkpoint is damaged.
      step: Try this one and no other.
      best: Try the best one before the latest.
      move: Move damaged ones aside, unless `step` is given.

    Raises:
      errors.UserFileNotFoundError: If there is no checkpoint, or not this one.
      errors.UserError: If none is sound.
    """
    damaged = set()
    while steps := self._candidates(step, best, damaged):
      candidate = steps[0]
      try:
        return read(candidate)
      except damage.DamagedError as e:
        reason = str(e)
      if self._vanished(candidate):
        continue
      damaged.add(candidate)
      if step is not None:
        raise errors.UserError(
            f'Checkpoint {step} in {self.path} is damaged: {reason}.'
        )
      moved = f' Moved it to {self._set_aside(candidate)}.' if move else ''
      logging.warning(
          'Checkpoint %d is damaged: %s.%s Trying the next.',
          candidate, reason, moved
      )
    if not damaged:
      number = '' if step is None else f' {step}'
      raise errors.UserFileNotFoundError(
          f'There is no checkpoint{number} in {self.path}.'
      )
    where = f', now in {self.bad_path}' if move else ''
    raise errors.UserError(
        f'No checkpoint in {self.path} can be read: all {len(damaged)} are '
        f'damaged{where}.'
    )

  def _candidates(self, step, best, damaged) -> list[int]:
    """Returns the steps that may be restored, the first choice first."""
    steps = [s for s in self.all_steps()[::-1] if s not in damaged]
    first = self._policy.best(self.all_steps()) if best else None
    if first is not None:
      steps.sort(key=lambda s: s != first)  # Stable: the rest as before.
    if step is not None:
      steps = [step] if step in steps else []
    return steps

  def _vanished(self, step: int) -> bool:
    """Returns whether the run that writes here has deleted a checkpoint.

    Only a reader asks: where a run keeps few checkpoints, the reader finds half
    of one, or none. Then it looks which checkpoints there are now.
    """
    if not self._readonly or jax.process_count() > 1:
      return False  # Several processes must all try the same ones.
    known, start = set(self.all_steps()), time.monotonic()
    while True:
      self._list(self.manager.reload)
      if not (self.path / str(step)).exists():
        return True
      # One is deleted only after another is complete.
      grows = not known.issuperset(self.all_steps())
      if time.monotonic() - start > (_DELETING_SECONDS if grows else 0.1):
        return False
      time.sleep(0.02)

  def _set_aside(self, step: int) -> epath.Path:
    target = damage.set_aside(self.path, self.bad_path, step)
    self._policy.metrics.pop(step, None)
    self.manager.reload()
    return target

  def _make_manager(self) -> None:
    # Orbax would clean up in a thread that fails if the program ends at once.
    if not self._readonly:
      self.remove_leftovers()
    self.manager = ocp.CheckpointManager(
        self.path,
        options=ocp.CheckpointManagerOptions(
            create=not self._readonly,
            preservation_policy=self._policy,
            # Where a thread cannot create a directory, other threads wait for
            # the directory, and the program does not end for 20 minutes.
            async_options=ocp.AsyncOptions(
                create_directories_asynchronously=False
            ),
        ),
        item_names=('state', 'meta'),
    )

  def _list(self, find: Callable[[], None]) -> None:
    """Finds out which checkpoints there are, and their metrics.

    Args:
      find: Makes the manager look. Where a run deletes a checkpoint at that
        moment, it may fail, or miss a new one; a reader looks again.
    """
    tries = 5 if self._readonly and self.path.is_dir() else 1
    for i in range(tries):
      try:
        find()
        find = self.manager.reload
        if self.all_steps():
          break
      except FileNotFoundError:
        if i == tries - 1:
          raise
      time.sleep(0.02 * (i < tries - 1))
    self._read_metrics()

  def _read_metrics(self) -> None:
    found = {}
    for step in self.all_steps():
      # A damaged one is dealt with once it is to be restored.
      with contextlib.suppress(damage.DamagedError):
        record = record_lib.read(self.path, step)
        found[step] = record_lib.best_mode(record), record['metric']
    if self._readonly and found:
      self._policy.best_mode = found[max(found)][0]
    self._policy.metrics.clear()
    for step, (mode, metric) in found.items():
      if metric is not None and mode == self._policy.best_mode:
        self._policy.metrics[step] = metric
