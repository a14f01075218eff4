"""`metrics.jsonl`: one flat JSON object in each line, written immediately.

Each line has `step` and `wall_time`, the seconds since the epoch. Within one
process `wall_time` never decreases, even if the clock is set back. Numbers that
are not finite are `null`.
"""

import contextlib
import io
import json
import math
import numbers
import time
from typing import Any

from absl import logging
import jax
import numpy as np
from rnnzoo import errors
from rnnzoo.training import files
from rnnzoo.training import records


def _plain(key: str, value: Any) -> Any:
  """Returns the value of a metric as strict JSON can hold it."""
  if isinstance(value, (jax.Array, np.ndarray, np.generic)) and value.size == 1:
    value = jax.block_until_ready(value).item()
  if value is None or isinstance(value, (str, bool, int)):
    return value
  if isinstance(value, numbers.Real):
    return float(value) if math.isfinite(value) else None
  raise ValueError(
      f'`values` must be numbers or strings, got {value!r} at {key}.'
  )


def read_metrics(workdir) -> list[dict[str, Any]]:
  """Reads `metrics.jsonl`: a dictionary for each line that is not damaged.

  Args:
    workdir: The run's directory. If it has no metrics, the result is empty.
  """
  path = files.workdir(workdir) / 'metrics.jsonl'
  try:
    return [row for _, row in records.parse_metrics(path.read_bytes())]
  except FileNotFoundError:
    return []


class MetricsWriter:
  """Appends metrics to `metrics.jsonl` and, where installed, to TensorBoard.

  Example::

    with MetricsWriter(workdir) as writer:
      writer.write(10, {'train_loss': 2.31, 'learning_rate': 1e-3})

  With several processes only the first one writes.
  """

  def __init__(
      self,
      workdir,
      *,
      resume_step: int | None = None,
      tensorboard: bool = True,
  ):
    """Opens a run's metrics, and removes lines that a killed run left half.

    Args:
      workdir: The run's directory; made if missing.
      resume_step: The step from which the run continues: lines after it are cut
        (0 cuts all). If `None`, all sound lines stay.
      tensorboard: Write event files to `tensorboard/` too, if `tensorboardX` is
        installed.

    Raises:
      errors.UserError: If the files cannot be written.
    """
    workdir = files.workdir(workdir)
    self._path = workdir / 'metrics.jsonl'
    self._file = None
    self._board = None
    self._written = None  # `wall_time` and monotonic time of the last line.
    self._rest = b''  # What a full disk has not taken yet.
    if jax.process_index() != 0:
      return
    with self._readable_errors():
      workdir.mkdir(parents=True, exist_ok=True)
      files.check_own(self._path)
      self._cut(resume_step)
      # Unbuffered, so that a failed write is reported at once.
      self._file = open(
          self._path, 'ab', buffering=0, opener=files.open_own
      )
      if tensorboard:
        files.check_own(workdir / 'tensorboard')
        with contextlib.suppress(ImportError):
          import tensorboardX

          self._board = tensorboardX.SummaryWriter(
              str(workdir / 'tensorboard'),
              purge_step=None if resume_step is None else resume_step + 1,
              # Two files that were opened in one second need different names.
              filename_suffix=f'.{resume_step or 0}',
              flush_secs=10,  # A flush waits milliseconds for the disk.
          )

  def __enter__(self):
    return self

  def __exit__(self, error_type, error, traceback):
    try:
      self.close()
    except errors.UserError as e:
      if error is None:
        raise
      logging.warning('%s', e)  # The first error is the one to report.

  def write(self, step: int, values: dict[str, Any]) -> None:
    """Writes one line immediately.

    A line that cannot be written, as on a full disk, is kept for the next call,
    because a run should not end for its records.

    Args:
      step: The step after which the values hold.
      values: Numbers, arrays of one number, or strings, by name.

    Raises:
      ValueError: If a value is none of these, or named `step` or `wall_time`.
    """
    if reserved := {'step', 'wall_time'} & set(values):
      raise ValueError(f'`values` must not contain {min(reserved)!r}.')
    row = {key: _plain(key, value) for key, value in values.items()}
    if self._file is None:
      return
    now = self._now()
    line = json.dumps({'step': int(step), **row, 'wall_time': now}) + '\n'
    waited = bool(self._rest)
    self._rest += line.encode()
    try:
      self._write_rest(self._file)
      if self._board is not None:
        for key, value in row.items():
          if value is not None and not isinstance(value, str):
            self._board.add_scalar(key, float(value), step, walltime=now)
    except errors.UserError as e:
      if not waited:  # Warn once, not at every line.
        logging.warning('%s The lines wait in memory.', e)

  def close(self) -> None:
    """Closes the files; `write` must not be called after that.

    Raises:
      errors.UserError: If some lines still cannot be written.
    """
    if self._file is None:
      return
    try:
      self._write_rest(self._file)
    finally:
      self._file.close()
      if self._board is not None:
        self._board.close()

  def _write_rest(self, file: io.FileIO) -> None:
    with self._readable_errors():
      while self._rest:  # A full disk takes a part, and fails at the next one.
        self._rest = self._rest[file.write(self._rest) :]

  def _now(self) -> float:
    """Returns the seconds since the epoch, never less than before."""
    now, monotonic = time.time(), time.monotonic()
    if self._written is not None:
      then, monotonic_then = self._written
      now = max(now, then + monotonic - monotonic_then)
    self._written = now, monotonic
    return now

  def _cut(self, resume_step: int | None) -> None:
    if not self._path.exists():
      return
    data = self._path.read_bytes()
    kept = b''.join(
        line for line, row in records.parse_metrics(data)
        if resume_step is None or row['step'] <= resume_step
    )
    # After `cp -l` two workdirs share the file: this one gets its own.
    if kept != data or self._path.stat().st_nlink > 1:
      files.write_bytes(self._path, kept)

  @contextlib.contextmanager
  def _readable_errors(self):
    try:
      yield
    except OSError as e:
      raise errors.UserError(
          f'Cannot write metrics to {self._path.parent}: {e.strerror or e}.'
      ) from e
