"""`Checkpointer`: saves and restores training states in one directory."""

import contextlib
import math
from typing import Any

from absl import logging
from etils import epath
import jax
import orbax.checkpoint as ocp
from rnnzoo import errors
from rnnzoo.training.checkpoint import arrays
from rnnzoo.training.checkpoint import damage
from rnnzoo.training.checkpoint import directory as directory_lib
from rnnzoo.training.checkpoint import orbax_context
from rnnzoo.training.checkpoint import record as record_lib
from rnnzoo.training.checkpoint import retention
from rnnzoo.training.checkpoint import trees


class Checkpointer:
  """Saves and restores training states in one directory.

  Example::

    with Checkpointer(workdir / 'checkpoints') as checkpoints:
      checkpoints.save(10, state, {'config': config}, best_metric=1.7)
      step, state, meta = checkpoints.restore(abstract_state)

  In a run of several processes all of them make the same calls.
  """

  def __init__(
      self,
      directory,
      *,
      keep: int = 3,
      best_mode: retention.BestMode = 'min',
      readonly: bool = False,
  ):
    """Opens a directory of checkpoints and removes leftovers of killed saves.

    Args:
      directory: Where the checkpoints lie; made if missing.
      keep: How many of the latest checkpoints stay, besides the best.
      best_mode: Whether the checkpoint of the lowest (`'min'`, as for a loss)
        or of the highest `best_metric` (`'max'`, as for an accuracy) is the
        best. Metrics that were saved in the other mode do not count. With
        `readonly` the mode of the latest checkpoint is used instead.
      readonly: Change nothing on disk, neither now nor when a checkpoint turns
        out to be damaged. For everything that does not train.

    Raises:
      ValueError: If `keep` is less than 1, or `best_mode` is unknown.
      errors.UserError: If the directory cannot be made.
    """
    if keep < 1:
      raise ValueError(f'`keep` must be at least 1, got {keep}.')
    if best_mode not in ('min', 'max'):
      raise ValueError(
          f"`best_mode` must be 'min' or 'max', got {best_mode!r}."
      )
    self._policy = retention.LatestAndBest(keep, best_mode)
    self._readonly = readonly
    self._saving = None
    with contextlib.ExitStack() as stack:
      stack.enter_context(orbax_context.applied())
      self._directory = directory_lib.Directory(
          directory, self._policy, readonly
      )
      self._context = stack.pop_all()

  def __enter__(self):
    return self

  def __exit__(self, error_type, error, traceback):
    try:
      self.close()
    except errors.UserError as e:
      if error is None:
        raise
      logging.warning('%s', e)  # The first error is the one to report.

  def save(
      self,
      step: int,
      state: Any,
      meta: dict[str, Any],
      *,
      best_metric: float | None = None,
  ) -> bool:
    """Starts saving a state and returns while it is being written.

    The arrays may be donated or deleted as soon as this returns. A step that is
    already saved is not written again, only its metric is noted.

    Args:
      step: Its step, after those already saved.
      state: A tree of arrays, of any dtype and sharding.
      meta: A dictionary that JSON can hold.
      best_metric: The value by which the best checkpoint is chosen, such as the
        validation loss, if known. The best checkpoint is never deleted.

    Returns:
      Whether a save was started.

    Raises:
      ValueError: If `step` is before the latest one, or `state` or `meta` hold
        what cannot be saved.
      errors.UserError: If this save, or the one before, could not be written.
    """
    if self._readonly:
      raise ValueError('This checkpointer was opened with `readonly=True`.')
    leaves = trees.named_leaves(state)
    for name, leaf in leaves.items():
      if not isinstance(leaf, jax.Array):
        raise ValueError(
            f'`state` must hold JAX arrays, got {type(leaf)} at {name}.'
        )
    if best_metric is not None:
      best_metric = float(best_metric)
      best_metric = best_metric if math.isfinite(best_metric) else None
    self.wait()
    if step in self.all_steps():
      if best_metric is not None:
        self._policy.metrics[step] = best_metric
        self._rewrite(
            step, metric=best_metric, best_mode=self._policy.best_mode
        )
      return False
    latest = self.latest_step()
    if latest is not None and step < latest:
      raise ValueError(
          f'`step` must be after the latest checkpoint, {latest}, got {step}.'
      )
    record = record_lib.make(
        step, leaves, meta, best_metric, self._policy.best_mode
    )
    if best_metric is not None:
      self._policy.metrics[step] = best_metric
    self._saving = step
    args = ocp.args.Composite(
        state=ocp.args.PyTreeSave(trees.nested(trees.filled(leaves))),
        meta=ocp.args.JsonSave(record),
    )
    try:
      # `force`, or Orbax declines in silence by rules of its own.
      self._directory.manager.save(step, args=args, force=True)
    except Exception as e:
      raise self._save_failed(e) from e
    return True

  def note(self, step: int, meta: dict[str, Any]) -> None:
    """Replaces the `meta` of a saved checkpoint.

    Args:
      step: Which one.
      meta: As for `save`.

    Raises:
      errors.UserError: If it cannot be written; the old one is intact then.
    """
    self.wait()
    self._rewrite(step, meta=meta)

  def forget_metrics(self) -> None:
    """Removes the metrics of all checkpoints, so that none of them is the best.

    Raises:
      errors.UserError: If that cannot be written.
    """
    self.wait()
    for step in self.metrics:
      self._rewrite(step, metric=None)
    self._policy.metrics.clear()

  def wait(self) -> None:
    """Blocks until the save under way is on disk.

    Raises:
      errors.UserError: If it could not be written, for instance on a full disk.
        The checkpoints before it are intact, and the next save may succeed.
    """
    if self._saving is None:
      return
    try:
      self._directory.manager.wait_until_finished()
    except Exception as e:
      raise self._save_failed(e) from e
    self._saving = None

  def close(self) -> None:
    """Waits, then frees Orbax's threads; nothing else may be called after."""
    with self._context:
      try:
        self.wait()
      finally:
        self._directory.manager.close()

  @property
  def directory(self) -> epath.Path:
    """Where the checkpoints lie."""
    return self._directory.path

  def all_steps(self) -> list[int]:
    """The saved steps in ascending order, one being written included."""
    return self._directory.all_steps()

  def latest_step(self) -> int | None:
    """The latest saved step, or `None`."""
    return max(self.all_steps(), default=None)

  @property
  def metrics(self) -> dict[int, float]:
    """The metrics by step, of the saved steps that have one."""
    known = self._policy.metrics
    return {s: known[s] for s in self.all_steps() if s in known}

  def best_step(self) -> int | None:
    """The step of the best metric, or `None` where no step has one."""
    return self._policy.best(self.all_steps())

  def restore(
      self,
      abstract_state: Any,
      *,
      step: int | None = None,
      best: bool = False,
      partial: bool = False,
  ) -> tuple[int, Any, dict[str, Any]]:
    """Restores the latest checkpoint that is sound.

    A damaged one is moved to `bad_checkpoints`, next to `checkpoints` (not
    where `readonly`), a warning says so, and the one before is tried. That does
    not depend on the sharding: a state saved on 8 devices restores on one.
    Where float32 is asked for and bfloat16 or float16 was saved, the array is
    widened.

    Args:
      abstract_state: Arrays or `jax.ShapeDtypeStruct`s in the saved structure.
        Their `sharding` says where the result goes; the first device if `None`.
      step: Restore this one and no other; nothing is moved.
      best: Try the one with the best metric before the latest.
      partial: Restore only the arrays that `abstract_state` has, for instance
        `{'params': ...}` without the optimiser's.

    Returns:
      `(step, state, meta)`: the step it found, the arrays in the structure of
      `abstract_state`, and what `save` was given as `meta`.

    Raises:
      errors.UserFileNotFoundError: If there is no checkpoint, or not this one.
      errors.UserError: If the checkpoint holds other arrays or shapes, or none
        is sound.
    """
    leaves = trees.named_leaves(abstract_state)

    def read(candidate):
      record = record_lib.read(self.directory, candidate)
      wrong = trees.differences(leaves, record['leaves'], partial=partial)
      if wrong:
        more = f', and {len(wrong) - 3} more' if len(wrong) > 3 else ''
        raise errors.UserValueError(
            f'Checkpoint {candidate} in {self.directory} belongs to another '
            f'model or optimizer: {"; ".join(wrong[:3])}{more}.'
        )
      restored = arrays.restore(
          self.directory / str(candidate) / 'state', leaves, record['leaves']
      )
      structure = jax.tree.structure(abstract_state)
      state = jax.tree.unflatten(structure, restored)
      return candidate, state, record['meta']

    return self._sound(read, step, best, move=not self._readonly)

  def restore_meta(
      self, *, step: int | None = None, best: bool = False
  ) -> tuple[int, dict[str, Any]]:
    """Reads `(step, meta)` as `restore` would, and moves nothing."""

    def read(candidate):
      return candidate, record_lib.read(self.directory, candidate)['meta']

    return self._sound(read, step, best, move=False)

  def _sound(self, read, step, best, *, move):
    self.wait()
    return self._directory.first_sound(read, step=step, best=best, move=move)

  def _save_failed(self, error: Exception) -> errors.UserError:
    """Gives up the save under way; returns the error to raise."""
    step, self._saving = self._saving, None
    with contextlib.suppress(Exception):  # The same error again.
      self._directory.manager.close()
    orbax_context.drop_leftovers(error)
    self._directory.remove_leftovers(quiet_seconds=0.1)
    # Only the disk knows now which checkpoints there are.
    self._directory.open()
    kept = f'The latest one kept is {self.latest_step()}.'
    return errors.UserError(
        f'Cannot save checkpoint {step} in {self.directory}: '
        f'{damage.reason(error)}. {kept if self.all_steps() else ""}'.rstrip()
    )

  def _rewrite(self, step: int, **entries) -> None:
    """Changes entries of a checkpoint's record, all at one moment."""
    record = record_lib.read(self.directory, step) | entries
    if jax.process_index() == 0:
      try:
        record_lib.write(self.directory, record)
      except OSError as e:
        raise errors.UserError(
            f'Cannot note the {next(iter(entries))} of checkpoint {step} in '
            f'{self.directory}: {damage.reason(e)}.'
        ) from e


def restore_meta(
    directory, *, step: int | None = None, best: bool = False
) -> tuple[int, dict[str, Any]]:
  """Reads `(step, meta)` of the latest sound checkpoint in a directory.

  Args:
    directory: Where the checkpoints lie; nothing in it is changed.
    step: Read this one and no other.
    best: Try the one with the best metric before the latest.

  Returns:
    The step, and what `Checkpointer.save` was given as `meta`.

  Raises:
    errors.UserFileNotFoundError: If there is no checkpoint, or not this one.
    errors.UserError: If none is sound.
  """
  with Checkpointer(directory, readonly=True) as checkpoints:
    return checkpoints.restore_meta(step=step, best=best)
