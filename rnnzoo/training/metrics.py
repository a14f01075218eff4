"""What a run leaves to look at: `metrics.jsonl`, `curve.png`, a progress bar.

`metrics.jsonl` holds one flat JSON object a line, written at once, each with
`step` and `wall_time`: seconds since the epoch, which go on in a process even
where the clock is set back. Numbers that are not finite are `null`.
"""

import contextlib
import io
import json
import math
import numbers
import os
import pathlib
import sys
import time
from typing import Any

from absl import logging
import jax
import numpy as np
from rnnzoo import errors
from rnnzoo.training import files
from rnnzoo.training import records
import tqdm

_COLORS = {
    'train': '#4477aa', 'eval': ('#ee6677', '#228833', '#aa3377'),
    'speed': '#333333', 'wait': '#bb5500',
}


def _plain(key: str, value: Any) -> Any:
  """Turns what a metric may be into what strict JSON may hold."""
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
  """Reads `metrics.jsonl`, one dictionary a line, leaving out damaged lines.

  Args:
    workdir: The run's directory. If it has no metrics the result is empty.
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

  Of several processes only the first writes.
  """

  def __init__(
      self,
      workdir,
      *,
      resume_step: int | None = None,
      tensorboard: bool = True,
  ):
    """Opens a run's metrics, repairing what a killed run left.

    Args:
      workdir: The run's directory; made if missing.
      resume_step: The step at which the run goes on: lines after it are cut (0
        cuts all). If `None`, all sound lines stay.
      tensorboard: Write event files to `tensorboard/` too, if `tensorboardX` is
        installed.

    Raises:
      errors.UserError: If the files cannot be written.
    """
    workdir = files.workdir(workdir)
    self._path = workdir / 'metrics.jsonl'
    self._file = None
    self._board = None
    self._written = None  # The last line's `wall_time`, and the monotonic one.
    self._rest = b''  # What a full disk did not take.
    if jax.process_index() != 0:
      return
    with self._readable_errors():
      workdir.mkdir(parents=True, exist_ok=True)
      files.check_own(self._path)
      self._cut(resume_step)
      # Unbuffered: what could not be written is not tried again later.
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
              # The rest of the name only tells runs of different seconds apart.
              filename_suffix=f'.{resume_step or 0}',
              flush_secs=10,  # A flush waits for the disk, milliseconds.
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
    """Writes one line, which is on disk when this returns.

    A line that cannot be written, as on a full disk, is kept for the next call:
    a run is worth more than its records.

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
      self._write_rest()
      if self._board is not None:
        for key, value in row.items():
          if value is not None and not isinstance(value, str):
            self._board.add_scalar(key, float(value), step, walltime=now)
    except errors.UserError as e:
      if not waited:  # Once is enough.
        logging.warning('%s The lines wait in memory.', e)

  def close(self) -> None:
    """Closes the files; `write` must not be called after.

    Raises:
      errors.UserError: If there are lines that still cannot be written.
    """
    if self._file is None:
      return
    try:
      self._write_rest()
    finally:
      self._file.close()
      if self._board is not None:
        self._board.close()

  def _write_rest(self) -> None:
    with self._readable_errors():
      while self._rest:  # A full disk takes a part first, fails at the next.
        self._rest = self._rest[self._file.write(self._rest) :]

  def _now(self) -> float:
    """The time since the epoch, which never goes back."""
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
    # After `cp -l`, what is appended would be in both files.
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


def _column(rows, key) -> tuple[np.ndarray, np.ndarray]:
  """Steps in ascending order and finite values of a metric."""
  # Losses that a run has recovered come after those of later steps.
  points = sorted(records.numbers(rows, key), key=lambda point: point[0])
  return np.array(points, float).reshape(-1, 2).T


def _smooth(values: np.ndarray) -> np.ndarray:
  """Means over a window of about a thirtieth of the run around each point.

  The window is centred, and narrow at the start, so that the line does not lag
  behind where the loss falls fast.
  """
  i = np.arange(len(values))
  half = np.minimum(i, max(1, len(values) // 60))
  end = np.minimum(i + half + 1, len(values))
  sums = np.concatenate([[0.0], np.cumsum(values)])
  return (sums[end] - sums[i - half]) / (end - i + half)


def _title(workdir: pathlib.Path) -> str:
  """Layer, dataset and size, as far as the run's files tell."""
  found = records.title(workdir)
  title = ' on '.join(found[n] for n in ('layer', 'data') if found.get(n))
  if 'parameters' in found:
    size = tqdm.tqdm.format_sizeof(found['parameters'])
    title += f'{", " if title else ""}{size} parameters'
  return title


def _plot_speed(axes, rows) -> None:
  """Draws tokens a second, and what of the time the devices had to wait."""
  steps, speeds = _column(rows, 'tokens_per_second_per_device')
  waited, waits = _column(rows, 'input_wait')
  other = axes.twinx()
  for each, x, y, color, label in (
      (axes, steps, speeds, _COLORS['speed'], 'tokens/s\nper device'),
      (other, waited, 100 * waits, _COLORS['wait'], 'waiting for\ndata, %'),
  ):
    # A point has no line.
    each.plot(x, y, color=color, linewidth=0.8, marker='.' * (len(x) == 1))
    each.set_ylabel(label, fontsize='x-small', color=color)
    each.set_ylim(bottom=0)
    each.tick_params(axis='x', labelsize='x-small')
    each.tick_params(axis='y', labelsize='x-small', colors=color)
    each.spines['top'].set_visible(False)
  other.set_ylim(0, max(1, *other.get_ylim()))  # Never fractions of nothing.
  axes.grid(alpha=0.25)


def plot_curves(workdir) -> pathlib.Path:
  """Draws `curve.png` from `metrics.jsonl`.

  The training loss is drawn thin and, when there are enough points, smoothed;
  every evaluation loss (`eval_loss`, `eval_..._loss`) has its own colour, and
  the lowest `eval_loss` a mark. Below lies the speed, where it was measured.
  The title comes from `config.json` and `summary.json`, as far as they exist.

  Args:
    workdir: The run's directory. With no metrics the axes stay empty.

  Returns:
    The path of the image.

  Raises:
    errors.UserError: If the image cannot be written.
  """
  # Not pyplot, which keeps global state and may look for a display.
  from matplotlib import figure
  from matplotlib import ticker
  from matplotlib.backends import backend_agg

  workdir = files.workdir(workdir)
  rows = read_metrics(workdir)
  canvas = backend_agg.FigureCanvasAgg(
      figure.Figure(figsize=(8, 4.5), layout='constrained')
  )
  if any('tokens_per_second_per_device' in row for row in rows):
    axes, below = canvas.figure.subplots(2, sharex=True, height_ratios=(5, 1))
    _plot_speed(below, rows)
  else:
    axes = below = canvas.figure.add_subplot()
  axes.set_title(_title(workdir), loc='left')
  below.set_xlabel('step')
  below.xaxis.set_major_locator(ticker.MaxNLocator(
      'auto', integer=True, min_n_ticks=1, steps=(1, 2, 5, 10)
  ))
  axes.set_ylabel('loss, nats per token')
  axes.spines['top'].set_visible(False)
  axes.grid(alpha=0.25)
  bits = axes.secondary_yaxis(
      'right', (lambda x: x / math.log(2), lambda x: x * math.log(2))
  )
  bits.set_ylabel('loss, bits per token')

  steps, losses = _column(rows, 'train_loss')
  color = _COLORS['train']
  if len(steps) >= 20:
    axes.plot(steps, losses, color=color, linewidth=0.8, alpha=0.35)
    axes.plot(steps, _smooth(losses), color=color, label='training')
  elif len(steps):
    marker = 'o' if len(steps) == 1 else None
    axes.plot(steps, losses, color=color, marker=marker, label='training')
  keys = {key for row in rows for key in row}
  keys = [k for k in keys if k.startswith('eval') and k.endswith('loss')]
  # `eval_loss` comes first, whatever the others are called.
  for i, key in enumerate(sorted(keys, key=lambda k: (k != 'eval_loss', k))):
    steps, losses = _column(rows, key)
    if not len(steps):
      continue
    color = _COLORS['eval'][i % len(_COLORS['eval'])]
    label = 'validation'
    if key != 'eval_loss':
      label = key[len('eval_') : -len('_loss')].replace('_', ' ')
    axes.plot(
        steps, losses, color=color, marker='o', markersize=3.5, label=label
    )
    if key == 'eval_loss':
      best = int(np.argmin(losses))
      axes.plot(
          steps[best], losses[best], color=color, marker='*', markersize=14,
          markeredgecolor='white', linestyle='none', zorder=4,
          label=f'best: {losses[best]:.4g} nats, '
          f'{losses[best] / math.log(2):.4g} bits at step {steps[best]:.0f}',
      )
  if axes.lines:
    axes.legend(frameon=False)
  image = io.BytesIO()
  canvas.figure.savefig(image, format='png', dpi=150)
  path = workdir / 'curve.png'
  try:
    files.write_bytes(path, image.getvalue())
  except OSError as e:
    raise errors.UserError(f'Cannot write {path}: {e.strerror or e}.') from e
  return path


def _columns(file) -> int:
  """The width of a terminal, 0 where it does not say, as in some containers."""
  try:
    return os.get_terminal_size(file.fileno()).columns
  except (OSError, ValueError):
    return 0


class _AboveBar:
  """A stream for absl's handler that prints above the bar, not into it."""

  def __init__(self, file):
    self._file = file

  def write(self, text: str) -> None:
    if text.strip():
      tqdm.tqdm.write(text.rstrip('\n'), file=self._file)

  def flush(self) -> None:
    self._file.flush()


class Progress:
  """A progress bar on a terminal; lines in the log where there is none.

  Example::

    with Progress(300, tokens_per_step=4096) as progress:
      for step in range(1, 301):
        loss = train_step()
        progress.update(step, loss if step % 10 == 0 else None)

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
      file=None,
  ):
    """Starts a bar.

    Args:
      total: The last step.
      initial: The step at which the run goes on.
      tokens_per_step: Tokens of a global batch.
      file: Where to draw, `sys.stderr` if `None`.
    """
    self.tokens_per_second = None
    self._total = total
    self._tokens_per_step = tokens_per_step
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
    return self

  def __exit__(self, *_):
    self.close()

  def update(self, step: int, loss=None, *, notes: str = '') -> None:
    """Moves to `step`; with a loss, shows that, the speed and the time left.

    Args:
      step: Steps done, counted over the whole run.
      loss: The step's loss, a number or an array of one. Reading it waits for
        the device, so give it only every so many steps.
      notes: What else to show beside the loss.
    """
    if loss is not None:
      loss = float(jax.block_until_ready(loss))
    now = time.perf_counter()
    if self._mark is None:
      self._mark = step, now
    elif loss is not None and step > self._mark[0]:
      latest = (now - self._mark[1]) / (step - self._mark[0])
      mean = self._seconds_per_step
      self._seconds_per_step = latest if mean is None else (latest + mean) / 2
      self._mark = step, now
      if self._tokens_per_step and self._seconds_per_step > 0:
        self.tokens_per_second = self._tokens_per_step / self._seconds_per_step
    if loss is not None:
      text = f'loss {loss:.4f}'
      if self.tokens_per_second is not None:
        rate = tqdm.tqdm.format_sizeof(self.tokens_per_second)
        text += f', {rate} tokens/s'
      if notes:
        text += f', {notes}'
      if self._seconds_per_step is not None:
        left = self._seconds_per_step * (self._total - step)
        text += f', {tqdm.tqdm.format_interval(left)} left'
      if not self._bar.disable:
        self._bar.set_postfix_str(text, refresh=False)
      elif self._logs:
        logging.info('step %d/%d, %s', step, self._total, text)
    self._bar.update(step - self._bar.n)

  @contextlib.contextmanager
  def pause(self):
    """Leaves out what happens inside, such as an evaluation, from the speed."""
    start = time.perf_counter()
    yield
    if self._mark is not None:
      step, since = self._mark
      self._mark = step, since + time.perf_counter() - start

  def close(self) -> None:
    """Leaves the bar as it is and gives the log its stream back."""
    self._bar.close()
    self._handler.stream = self._stream
