"""A progress bar on a terminal, or lines in the log."""

from collections.abc import Sequence
import contextlib
import os
import sys
import time

from absl import logging
import jax
import tqdm


def _columns(file) -> int:
  """Returns the width of a terminal; 0 if unknown, as in some containers."""
  try:
    return os.get_terminal_size(file.fileno()).columns
  except (OSError, ValueError):
    return 0


class _AboveBar:
  """A stream for absl's handler that prints above the progress bar."""

  def __init__(self, file):
    self._file = file

  def write(self, text: str) -> None:
    if text.strip():
      tqdm.tqdm.write(text.rstrip('\n'), file=self._file)

  def flush(self) -> None:
    self._file.flush()


class Progress:
  """A progress bar on a terminal; lines in the log if there is no terminal.

  Example::

    with Progress(300, tokens_per_step=4096) as progress:
      for step in range(1, 301):
        loss = train_step()
        progress.update(step, loss if step % 10 == 0 else None)

  A line in the log is `step 30/300  loss 2.504  16.6k tokens/s  01:06 left`.
  Before the first update it says `compiling`.

  Attributes:
    tokens_per_second: The recent speed, `None` until it is known. The first
      update starts the clock, so that compilation does not count.
  """

  def __init__(
      self,
      total: int,
      *,
      initial: int = 0,
      tokens_per_step: int | None = None,
      unit: str = 'tokens',
      name: str = 'loss',
      file=None,
  ):
    """Starts a bar.

    Args:
      total: The last step.
      initial: The step from which the run continues.
      tokens_per_step: Tokens of a global batch.
      unit: What the tokens are, in the plural, such as `characters`.
      name: What the number is that `update` shows.
      file: Where to draw, `sys.stderr` if `None`.
    """
    self.tokens_per_second = None
    self._total = total
    self._tokens_per_step, self._unit = tokens_per_step, unit
    self._name = name
    self._seconds_per_step = None
    self._mark = None  # Step and time from which the speed is measured.
    self._logs = jax.process_index() == 0
    file = sys.stderr if file is None else file
    columns = _columns(file)
    self._bar = tqdm.tqdm(
        total=total,
        initial=initial,
        file=file,
        disable=None if self._logs else True,  # None: unless it is a terminal.
        dynamic_ncols=columns > 0,
        ncols=None if columns else 80,
        nrows=None if columns else 24,
        bar_format='{percentage:3.0f}% {bar} {n_fmt}/{total_fmt} '
        '[{elapsed}{postfix}]',
    )
    self._handler = logging.get_absl_handler().python_handler
    self._stream = self._handler.stream
    if not self._bar.disable and self._stream in (sys.stderr, sys.__stderr__):
      self._handler.stream = _AboveBar(self._bar.fp)

  def __enter__(self):
    if self._bar.n < self._total:
      self._show(self._bar.n, ['compiling'])
    return self

  def __exit__(self, *_):
    self.close()

  def update(
      self, step: int, loss=None, *, tokens: int | None = None,
      notes: Sequence[str] = (),
  ) -> None:
    """Moves to `step`; with a loss, shows loss, speed and time left.

    Args:
      step: Steps done, counted over the whole run.
      loss: The step's loss, a number or an array of one number. Reading it
        waits for the device, so do not pass it at every step.
      tokens: Those of the steps since the last loss, where batches differ.
      notes: What else to show beside the loss, a few words each.
    """
    if loss is not None:
      loss = float(jax.block_until_ready(loss))
    now = time.perf_counter()
    if self._mark is None:
      self._mark = step, now
      if loss is None:
        self._bar.set_postfix_str('', refresh=False)
    elif loss is not None and step > self._mark[0]:
      latest = (now - self._mark[1]) / (step - self._mark[0])
      mean = self._seconds_per_step
      self._seconds_per_step = latest if mean is None else (latest + mean) / 2
      if tokens and self._tokens_per_step:
        latest = tokens / (step - self._mark[0])
        self._tokens_per_step = (
            latest if mean is None else (latest + self._tokens_per_step) / 2
        )
      self._mark = step, now
      if self._tokens_per_step and self._seconds_per_step > 0:
        self.tokens_per_second = self._tokens_per_step / self._seconds_per_step
    if loss is not None:
      parts = [f'{self._name} {loss:#.4g}']
      if self.tokens_per_second is not None:
        rate = tqdm.tqdm.format_sizeof(self.tokens_per_second)
        parts.append(f'{rate} {self._unit}/s')
      parts += notes
      if self._seconds_per_step is not None:
        left = self._seconds_per_step * (self._total - step)
        parts.append(f'{tqdm.tqdm.format_interval(left)} left')
      self._show(step, parts)
    self._bar.update(step - self._bar.n)

  def _show(self, step: int, parts: list[str]) -> None:
    if not self._bar.disable:
      self._bar.set_postfix_str(', '.join(parts), refresh=False)
    elif self._logs:
      logging.info('%s', '  '.join([f'step {step}/{self._total}', *parts]))

  @contextlib.contextmanager
  def pause(self):
    """Does not count the time inside, such as an evaluation, in the speed."""
    start = time.perf_counter()
    yield
    if self._mark is not None:
      step, since = self._mark
      self._mark = step, since + time.perf_counter() - start

  def close(self) -> None:
    """Leaves the bar on the terminal and restores the stream of the log."""
    self._bar.close()
    self._handler.stream = self._stream
