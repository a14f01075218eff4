"""One run from a state to the end: steps, metrics, evaluations, saves."""

import contextlib
import time

from absl import logging
import jax
import numpy as np
from rnnzoo.training import evaluation
from rnnzoo.training import memory
from rnnzoo.training import metrics as metrics_lib
from rnnzoo.training import program as program_lib
from rnnzoo.training import records
from rnnzoo.training import recovery
from rnnzoo.training import sharding
from rnnzoo.training.performance import throughput
from rnnzoo.training.processes import lock
from rnnzoo.training.processes import multihost
from rnnzoo.training.processes import signals


class Run:
  """One process's part in one run: the compiled steps and where results go."""

  def __init__(
      self, task, config, program, mesh, workdir, saver, profiler, stop
  ):
    self.task, self.config = task, config
    self.program, self.mesh = program, mesh
    self.workdir, self.saver = workdir, saver
    self.profiler, self.stop = profiler, stop
    self.largest = multihost.Largest(mesh)
    self.steps_at_once = config.steps_per_dispatch
    self.eval_step = multihost.meeting(evaluation.make_eval_step(task))
    self.is_sound = jax.jit(
        lambda state: recovery.is_sound(state, program.tx.frozen)
    )

  def to_the_end(self, state, history) -> recovery.BadNumbers | None:
    """Trains from a state on and saves the last one.

    Args:
      state: The state; it is donated.
      history: What happened before.

    Returns:
      What forbids to go on, or `None` once all is done.
    """
    config, self.history = self.config, history
    self.first = int(memory.fetch(state['step']))
    program = self.program
    if history.rollbacks:
      program = program_lib.make_program(
          self.task, history.adjust(config), self.mesh
      )
    self.train_step = multihost.meeting(program.train_step)
    self.compiled_step = lambda *args: program.train_step.lower(*args).compile()
    self.meter = throughput.make_meter(self.task, config, state)
    with contextlib.ExitStack() as stack:
      self.writer = stack.enter_context(
          metrics_lib.MetricsWriter(
              self.workdir, resume_step=self.first,
              tensorboard=config.tensorboard,
          )
      )
      self.progress = stack.enter_context(
          metrics_lib.Progress(
              config.total_steps, initial=self.first,
              tokens_per_step=config.batch_size * config.data.sequence_length,
          )
      )
      batches = stack.enter_context(
          contextlib.closing(
              self.task.train_iterator(
                  self.first + 1 + history.batches_left_out
              )
          )
      )
      self._make_good()
      try:
        self._steps(state, batches)
      except recovery.BadNumbers as error:
        # Without the traceback, which would keep the state alive.
        return error.with_traceback(None)
    return None

  def _steps(self, state, batches):
    config, pending = self.config, []
    if self._lacks_evaluation():
      eval_loss = self._evaluate(state, self.first)
      self._save(self.first, state, eval_loss, for_good=False)
    self.start = time.monotonic()
    for step in range(
        self.first + self.steps_at_once, config.total_steps + 1,
        self.steps_at_once,
    ):
      self.profiler.before(step - self.steps_at_once + 1, step)
      with self.meter.input([m['loss'] for _, m in pending[-1:]]):
        batch = self._next(batches)
      if step == self.first + self.steps_at_once:
        # The call below finds it compiled.
        memory.warn_of_step(self.compiled_step(state, batch))
      self.meter.dispatch(batch)
      state, metrics = self.train_step(state, batch)
      pending.append((step, metrics))
      # One step ahead of the device and no more: a signal is soon heard.
      if len(pending) > 1:
        jax.block_until_ready(pending[-2])
        self.meter.done()
      self.profiler.after(step, metrics)
      self.progress.update(step - self.steps_at_once)
      due = lambda every: step % every == 0 or step == config.total_steps
      # One process hears of it, and all stop after the same step.
      stopping = self.largest(self.stop.signum or 0)
      if due(config.eval_every) or stopping:
        self._flush(pending)
      elif (step - self.steps_at_once) % config.log_every == 0:
        # A step late: its numbers are there, and the device is not kept idle.
        self._flush(pending, under_way=1)
      eval_loss = None
      if due(config.eval_every) and not stopping:
        with self._pause():
          try:
            eval_loss = self._evaluate(state, step)
          except signals.Interrupted as interrupted:
            stopping = interrupted.signum  # It is made up for on resuming.
      if due(config.save_every) or eval_loss is not None or stopping:
        self._flush(pending)
        with self._pause():
          if not memory.fetch(self.is_sound(state)):
            raise recovery.BadNumbers(
                f'The state is not finite after step {step}', step
            )
          self._save(
              step, state, eval_loss,
              for_good=stopping or step == config.total_steps,
          )
      if stopping:
        raise signals.Interrupted(stopping, step)

  def _make_good(self):
    """Writes what checkpoints know and the metrics have lost to damage."""
    rows = metrics_lib.read_metrics(self.workdir)
    known = dict(records.numbers(rows, 'eval_loss'))
    # That of the first step is computed again, see `_lacks_evaluation`.
    lost = {
        step: loss for step, loss in sorted(self.saver.metrics.items())
        if step < self.first and step not in known
    }
    if lost or self.first and all(row['step'] != self.first for row in rows):
      recovery.warn(
          'Lines up to step %d are missing from metrics.jsonl. Validation '
          'losses restored from checkpoints: %s.', self.first,
          ', '.join(f'step {step}' for step in lost) or 'none',
      )
    for step, loss in lost.items():
      self.writer.write(step, {'eval_loss': loss})

  def _next(self, batches):
    if self.steps_at_once == 1:
      return sharding.global_batch(self.mesh, next(batches))
    several = [next(batches) for _ in range(self.steps_at_once)]
    stacked = jax.tree.map(lambda *rows: np.stack(rows), *several)
    return sharding.global_batch(self.mesh, stacked, stacked=True)

  @contextlib.contextmanager
  def _pause(self):
    """Leaves out what happens inside from the speed of training."""
    with self.progress.pause(), self.meter.pause():
      yield

  def _flush(self, pending, *, under_way=0):
    """Writes the metrics of the steps since the last flush.

    Args:
      pending: `(step, metrics)` of those steps; what is written is taken out.
      under_way: So many of the newest are left for later.

    Raises:
      BadNumbers: If there is a step among them that the run cannot pass.
    """
    done = pending[: len(pending) - under_way]
    del pending[: len(done)]
    if not done:
      return
    fetched = memory.fetch(done)  # One by one they would take milliseconds.
    if not under_way:
      self.meter.all_done()
    measured = self.meter.read()
    newest = done[-1][0]
    for last, values in fetched:
      values = {name: np.atleast_1d(v) for name, v in values.items()}
      count = len(values['loss'])
      for i in range(count):
        one = {name: float(v[i]) for name, v in values.items()}
        self._record(last - count + 1 + i, one, newest, measured)
    self.progress.update(
        newest, one['loss'], notes=throughput.describe(measured)
    )

  def _record(self, number, one, newest, measured):
    """Writes the metrics of one step, if they are due or not finite."""
    skipped = bool(one.get('skipped'))
    self.history = self.history.count(skipped)
    seen = self.history.skipped
    extra = dict(skipped_steps=seen) if seen else {}
    losses = dict(train_loss=one['loss'], grad_norm=one['grad_norm'])
    what = recovery.describe(number, one['loss'], one['grad_norm'])
    if what or skipped:
      self.writer.write(number, losses | extra)
      if not skipped:
        raise recovery.BadNumbers(what, number)
      what = what or f'There is NaN in the carry after step {number}'
      self.history.check_limit(what, self.config.nan_limit, number)
      recovery.warn(
          '%s: skipped, number %d in all, %d in a row.',
          what, self.history.skipped, self.history.in_a_row
      )
    elif number % self.config.log_every == 0 or number == newest:
      rate = (number - self.first) / (time.monotonic() - self.start)
      self.writer.write(number, dict(
          **losses,
          **{f'train_{n}': one[n] for n in ('accuracy',) if n in one},
          **extra,
          steps_per_second=rate,
          **(measured if number == newest else {}),
      ))

  def _save(self, step, state, eval_loss, *, for_good):
    """Starts a save. One that fails is reported; the next one may succeed.

    Args:
      step: The step of the state.
      state: The state.
      eval_loss: Its validation loss, if known.
      for_good: Whether there is no next one: wait for this, and raise
        `UserError` if it fails twice.

    Raises:
      UserError: Then, or if another run may be writing to the workdir.
    """
    def save():
      self.saver.save(
          step, state, self.history.in_meta(self.task.meta),
          best_metric=eval_loss,
      )
      if for_good:
        self.saver.wait()

    lock.check(self.workdir)  # No next save could make that good.
    recovery.try_to_save(self.saver.wait)
    if not recovery.try_to_save(save) and for_good:
      save()

  def _evaluate(self, state, step):
    """Evaluates on all eval splits; returns the loss on the first of them."""
    params = state.get('ema', state['params'])
    losses = {}
    for i, split in enumerate(self.config.eval_splits):
      sums = self.sums(params, state['batch_stats'], split, step)
      name = 'eval_' if i == 0 else f'eval_{split}_'
      losses |= {f'{name}{k}': v for k, v in sums.items()}
    self.writer.write(step, losses)
    logging.info(
        'step %d: %s', step,
        ', '.join(f'{k} {v:.4f}' for k, v in losses.items() if 'loss' in k),
    )
    if not np.isfinite(losses['eval_loss']):
      raise recovery.BadNumbers(
          f'The validation loss is {losses["eval_loss"]} at step {step}', step
      )
    return losses['eval_loss']

  def _lacks_evaluation(self):
    """Whether the run was stopped when it should have evaluated."""
    due = self.first and (
        self.first % self.config.eval_every == 0
        or self.first == self.config.total_steps
        or self.first in self.saver.metrics
    )
    rows = metrics_lib.read_metrics(self.workdir)
    known = dict(records.numbers(rows, 'eval_loss'))
    return multihost.agreed(bool(due) and self.first not in known)

  def sums(self, params, batch_stats, split, step):
    """Returns the mean loss and accuracy over a split.

    Raises:
      Interrupted: If a signal comes; `step` is what it says is saved.
    """
    def check():
      if signum := self.largest(self.stop.signum or 0):
        raise signals.Interrupted(signum, step)

    return evaluation.mean_metrics(
        self.eval_step, self.mesh, params, batch_stats,
        self.task.eval_batches(split), check,
    )
