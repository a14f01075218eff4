"""Measures how the time of a step divides: computing, or waiting for data."""

import collections
import contextlib
import time

import jax
from rnnzoo.training.performance import flops
from rnnzoo.training.performance import hardware

# Log lines name the share of the time that the device waits for data from here.
_NOTABLE_WAIT = 0.05


class Meter:
  """Measures the steps of training, without waiting for the device itself.

  The loop always has one step under way on the device, and waits for the step
  before that one. So it knows when each step ends.

  Example::

    meter = Meter(tokens_per_step=4096)
    metrics = None
    for step in range(1, 301):
      with meter.input(metrics):
        batch = next(batches)
      meter.dispatch(batch)
      state, metrics = train_step(state, batch)
      ...  # Wait for the step before this one.
      meter.done()
      if step % 10 == 0:
        print(meter.read())
  """

  def __init__(
      self,
      *,
      tokens_per_step: int,
      steps_at_once: int = 1,
      devices: int | None = None,
      peak: float | None = None,
      flops_of=None,
      clock=time.perf_counter,
  ):
    """Starts to measure.

    Args:
      tokens_per_step: Tokens of a global batch, see `dispatch`.
      steps_at_once: Steps of one dispatch.
      devices: How many devices share the tokens; by default all devices of all
        processes.
      peak: Operations that a device can do in a second; `None` if unknown.
      flops_of: Maps a batch to the operations that a dispatch of it needs, see
        `performance.flops`; called once for each number of tokens, and only if
        `peak` is known.
      clock: Returns seconds.
    """
    self._tokens, self._at_once = tokens_per_step, steps_at_once
    self._devices = devices or jax.device_count()
    self._peak, self._flops_of = peak, flops_of
    self._flops = {}  # The operations of a dispatch, by its tokens.
    self._clock = clock
    self._started = collections.deque()  # Start times of steps under way.
    self._last = None  # The time when the last step was known to be done.
    self._reset()

  def _reset(self):
    self._since, self._paused = self._clock(), 0.0
    self._waited = self._reading = self._busy = 0.0
    self._steps = self._done_tokens = self._done_flops = 0

  @contextlib.contextmanager
  def input(self, under_way=None):
    """Measures the time to get a batch and to transfer it to the device.

    Args:
      under_way: Results of the newest step. If the device still computes them
        when the batch is there, it has not waited.
    """
    start = self._clock()
    yield
    seconds = self._clock() - start
    self._reading += seconds
    if all(u.is_ready() for u in jax.tree.leaves(under_way)):
      self._waited += seconds

  @contextlib.contextmanager
  def pause(self):
    """Does not count the time inside, such as an evaluation between steps."""
    start = self._clock()
    yield
    self._paused += self._clock() - start

  def dispatch(self, batch, tokens: int | None = None) -> None:
    """Notes that a step on this batch is dispatched to the device now.

    Args:
      batch: The batch, or several, stacked.
      tokens: The tokens of all its steps; `None` means `tokens_per_step` each.
    """
    tokens = tokens or self._tokens * self._at_once
    if tokens not in self._flops and self._peak and self._flops_of:
      self._flops[tokens] = self._flops_of(batch)
    self._started.append((self._clock(), tokens))

  def done(self) -> None:
    """Notes that the oldest step under way has been computed."""
    now = self._clock()
    start, tokens = self._started.popleft()
    if self._last is None:  # The first step includes the compilation.
      self._last = now
      self._reset()
      return
    self._busy += now - max(start, self._last)
    self._last = now
    self._steps += self._at_once
    self._done_tokens += tokens
    self._done_flops += self._flops.get(tokens, 0)

  def all_done(self) -> None:
    """Notes that all steps under way have been computed."""
    while self._started:
      self.done()

  def read(self) -> dict[str, float]:
    """Returns the measurements since the last call; `{}` if no step ended.

    Returns:
      `input_wait`: the fraction of the time in which the loop got a batch while
      the device had nothing to do, or ran out of work;
      `input_seconds`: the seconds per step to get a batch;
      `device_seconds`: the seconds per step from its start, or from the end of
      the step before if that is later, until the loop knows that it is done;
      `tokens_per_second_per_device`;
      `model_flops_utilization`, if operations and peak are known.
    """
    elapsed = self._clock() - self._since - self._paused
    if not self._steps or elapsed <= 0:
      return {}
    shared = elapsed * self._devices
    values = dict(
        input_wait=self._waited / elapsed,
        input_seconds=self._reading / self._steps,
        device_seconds=self._busy / self._steps,
        tokens_per_second_per_device=self._done_tokens / shared,
    )
    if self._done_flops:
      values['model_flops_utilization'] = (
          self._done_flops / shared / self._peak
      )
    self._reset()
    return values


def describe(values: dict[str, float]) -> list[str]:
  """Returns what a person wants to know of `Meter.read`, a few words each.

  Waiting for data is left out where it costs next to nothing.

  >>> describe(dict(input_wait=0.0123, model_flops_utilization=0.4))
  ['40% MFU']
  >>> describe(dict(input_wait=0.123))
  ['12% of the time waiting for data']
  """
  parts = []
  waited = values.get('input_wait', 0.0)
  if waited > _NOTABLE_WAIT:
    parts.append(f'{waited:.0%} of the time waiting for data')
  if 'model_flops_utilization' in values:
    parts.append(f'{values["model_flops_utilization"]:.0%} MFU')
  return parts


def tokens_per_step(task, dataset, config) -> int:
  """Returns how many steps of time a global batch holds."""
  return config.batch_size * task.sequences * dataset.sequence_length


def make_meter(task, dataset, config, state) -> Meter:
  """Returns the meter of a run.

  Args:
    task: See `rnnzoo.tasks.Task`.
    dataset: The data set.
    config: See `training.config.defaults`.
    state: The training state, or its shapes.
  """
  device = jax.devices()[0]
  found = hardware.find(device.device_kind)
  platform = 'cuda' if device.platform == 'gpu' else device.platform
  # Only the shapes, because the arrays are donated.
  shapes = jax.eval_shape(lambda: state)
  count = config.steps_per_dispatch

  def flops_of(batch):
    one = jax.eval_shape(lambda: batch)
    if count > 1:
      one = jax.eval_shape(lambda: jax.tree.map(lambda u: u[0], batch))
    return count * flops.of_training_step(task, shapes, one, platform=platform)

  return Meter(
      tokens_per_step=tokens_per_step(task, dataset, config),
      steps_at_once=count,
      peak=found and found.peak(task.model.dtype),
      flops_of=flops_of,
  )
