"""Training from the first line to the last: batches in, results out.

`train` reads from top to bottom: devices, workdir, program, first state, steps,
summary. `_Attempt` is the loop over steps from one state on; a run has more
than one attempt only if it goes back to a checkpoint (`on_nan='rollback'`).
"""

from collections.abc import Callable
import contextlib
import dataclasses
import json
import math
import pathlib
import time
from typing import Any

from absl import logging
import jax
import numpy as np
from rnnzoo import errors
from rnnzoo.training import checkpoint
from rnnzoo.training import config as config_lib
from rnnzoo.training import evaluation
from rnnzoo.training import files
from rnnzoo.training import memory
from rnnzoo.training import metrics as metrics_lib
from rnnzoo.training import program as program_lib
from rnnzoo.training import records
from rnnzoo.training import recovery
from rnnzoo.training import sharding
from rnnzoo.training import starting
from rnnzoo.training import stopping
from rnnzoo.training import summary as summary_lib
from rnnzoo.training.performance import profiling
from rnnzoo.training.performance import throughput
from rnnzoo.training.processes import lock
from rnnzoo.training.processes import multihost
from rnnzoo.training.processes import peers
from rnnzoo.training.processes import signals


@dataclasses.dataclass(frozen=True)
class Run:
  """Everything that stays the same from the start of a run to its end.

  Attributes:
    task: The kind of task and its model, see `rnnzoo.tasks.Task`.
    dataset: The data, see `rnnzoo.data.Dataset`.
    config: See `training.config.defaults`.
    workdir: Where results go.
    mesh: The devices.
    program: The compiled training step and the shapes of its state.
    saver: The checkpoints.
    profiler: Records a trace of the steps that the config asks for.
    stop: The signals that have come.
    eval_step: Compiled: `(params, batch_stats, batch) -> sums`.
    largest: Agrees with other processes on the largest of their numbers.
    meta: Goes into every checkpoint.
    initial: See `train`.
  """

  task: Any
  dataset: Any
  config: Any
  workdir: pathlib.Path
  mesh: jax.sharding.Mesh
  program: program_lib.Program
  saver: checkpoint.Checkpointer
  profiler: profiling.Profiler
  stop: signals.Stop
  eval_step: Any
  largest: multihost.Largest
  meta: dict[str, Any]
  initial: Callable[[jax.sharding.Mesh], Any] | None = None

  def means(self, params, batch_stats, split, step) -> dict[str, float]:
    """Returns the mean of each metric over a split.

    Args:
      params: Parameters.
      batch_stats: Statistics of batch norms.
      split: The name of the split.
      step: The step that is saved, should a signal come.

    Raises:
      Interrupted: If a signal comes.
    """
    def check():
      if signum := self.largest(self.stop.signum or 0):
        raise signals.Interrupted(signum, step)

    return evaluation.mean_metrics(
        self.eval_step, self.mesh, params, batch_stats,
        self.dataset.eval_batches(split), check,
    )


def train(
    task, dataset, config, workdir,
    initial: Callable[[jax.sharding.Mesh], Any] | None = None,
) -> dict[str, Any]:
  """Trains to `config.total_steps`, going on where the workdir stands.

  Args:
    task: The kind of task and its model, with the sizes of the data set.
    dataset: The data, this process's rows of each batch.
    config: All fields of `training.config.defaults`, and `model` and `data`.
    workdir: Where `metrics.jsonl`, `checkpoints/` and `curve.png` go.
    initial: See `rnnzoo.training.train`.

  Returns:
    The summary, which `summary.json` holds too.

  Raises:
    UserError: If the user has to change something.
    Interrupted: After a signal, once everything is saved.
  """
  # ---- The devices, and the directory, which belongs to this run alone. ----
  config_lib.check(config)
  config_lib.check_fits(config, dataset)
  workdir = files.workdir(workdir)
  mesh = sharding.make_mesh(config.mesh)
  sharding.check_batch_size(config.batch_size, mesh, config.accumulate_steps)
  for batch in dataset.each_shape():  # Not only at a step that has it.
    sharding.check_batch(mesh, batch)
  for split in dataset.split_lengths:  # Not only once training is over.
    sharding.check_batch(mesh, dataset.eval_batches(split)[0])
  task.warn_of_gathers(mesh.shape['sequence'])
  with contextlib.ExitStack() as stack:
    stack.enter_context(lock.hold(workdir))
    stack.enter_context(jax.set_mesh(mesh))
    stop = stack.enter_context(signals.caught())
    saver = stack.enter_context(checkpoint.Checkpointer(
        workdir / 'checkpoints', keep=config.keep,
        best_mode=task.best_mode,
    ))
    stack.enter_context(peers.leaving_on_errors())
    stack.enter_context(memory.readable_errors())

    # ---- The compiled step, and the state to start from. ----
    program = program_lib.make_program(task, config, mesh)
    memory.check(
        program.abstract_state, 'Parameters and optimizer state',
        'Use a smaller model, or shard it over more devices (mesh.fsdp).',
    )
    run = Run(
        task=task,
        dataset=dataset,
        config=config,
        workdir=workdir,
        mesh=mesh,
        program=program,
        saver=saver,
        profiler=stack.enter_context(contextlib.closing(profiling.Profiler(
            config_lib.profile_window(config.profile_steps),
            workdir / 'profile',
        ))),
        stop=stop,
        eval_step=multihost.meeting(evaluation.make_eval_step(task)),
        largest=multihost.Largest(mesh),
        meta=make_meta(task, dataset, config),
        initial=initial,
    )
    if config.stop_at:
      stopping.check_metrics(run, config.stop_at)
    state, history = starting.start(run)
    first = int(memory.fetch(state['step']))
    path = workdir / 'summary.json'
    is_done = first >= config.total_steps
    is_done = is_done or bool(stopping.reason(run, history, first))
    found = records.read_summary(path) if is_done else None
    if multihost.agreed(bool(found)):
      logging.info('Already trained to step %d.', first)
      _draw(run)
      return found or {}

    # ---- The steps. A bad number ends them or leads back to a checkpoint. ----
    while True:
      attempt = _Attempt(run, history, first)
      bad = attempt.to_the_end(state)
      history = attempt.history
      del state  # There may be no room for two states.
      if not bad:
        break
      run.profiler.close()
      state, history = _recover(run, bad)
      first = int(memory.fetch(state['step']))

    # ---- The test splits, summary.json and the curve. ----
    summary = summary_lib.summarize(run, history)
    if jax.process_index() == 0:
      with files.usable(workdir):
        files.write_text(path, json.dumps(summary, indent=2) + '\n')
    _draw(run)
    return summary


def make_meta(task, dataset, config) -> dict[str, Any]:
  """Returns what every checkpoint records beside the state."""
  return dict(
      task.meta(),
      config=config.to_dict(),
      vocabulary=dataset.vocabulary and dataset.vocabulary.to_json(),
      data=dataset.source,
  )


def _recover(run, bad):
  """Returns the state and history to go on from, or raises `UserError`."""
  recovery.try_to_save(run.saver.wait)
  if run.config.on_nan == 'rollback':
    return starting.roll_back(run, bad)
  good = run.saver.latest_step()
  kept = (
      f'The last good checkpoint is step {good}' if good is not None
      else 'There is no checkpoint before it'
  )
  raise errors.UserError(
      f'{bad.what}. {kept}; try a smaller optimizer.learning_rate or '
      'optimizer.clip, or on_nan=rollback, which may also be added now.'
  )


def _draw(run):
  """Draws `curve.png`, if it is missing or older than what it shows."""
  if jax.process_index() != 0:
    return
  times = [
      path.stat().st_mtime_ns if path.exists() else 0
      for path in (
          run.workdir / name
          for name in ('curve.png', 'metrics.jsonl', 'summary.json')
      )
  ]
  if not times[0] or times[0] < max(times):
    metrics_lib.plot_curves(
        run.workdir,
        loss_unit=run.task.unit('loss', run.dataset),
        unit=run.dataset.unit,
        metric=run.task.best,
        best_mode=run.task.best_mode,
    )


class _Attempt:
  """Training from one state on: until the end, or until a bad number.

  Attributes:
    history: What has happened in this run about bad numbers.
  """

  def __init__(self, run: Run, history: recovery.History, first: int):
    config = run.config
    self.run, self.history, self.first = run, history, first
    self.config, self.steps_at_once = config, config.steps_per_dispatch
    program = run.program
    if history.rollbacks:  # They have lowered the learning rate.
      program = program_lib.make_program(
          run.task, history.adjust(config), run.mesh
      )
    self.train_step = multihost.meeting(program.train_step)
    self.compiled_step = lambda *args: program.train_step.lower(*args).compile()
    self.is_sound = jax.jit(
        lambda state: recovery.is_sound(state, program.tx.frozen)
    )
    self.meter = throughput.make_meter(
        run.task, run.dataset, config, program.abstract_state
    )
    self.writer = metrics_lib.MetricsWriter(
        run.workdir, resume_step=first, tensorboard=config.tensorboard
    )
    self.progress = metrics_lib.Progress(
        config.total_steps,
        initial=first,
        tokens_per_step=throughput.tokens_per_step(
            run.task, run.dataset, config
        ),
        unit=run.dataset.unit,
    )
    self.start_time = time.monotonic()

  def to_the_end(self, state) -> recovery.BadNumbers | None:
    """Trains and saves the last state, which is donated.

    Returns:
      What prevents the run from going on; `None` once all steps are done.
    """
    next_batch = self.first + 1 + self.history.batches_left_out
    with self.writer, self.progress, contextlib.closing(
        self.run.dataset.train_iterator(next_batch)
    ) as batches:
      self._restore_lost_lines()
      try:
        self._steps(state, batches)
      except recovery.BadNumbers as error:
        # Without the traceback, which would keep the state alive.
        return error.with_traceback(None)
    return None

  def _steps(self, state, batches):
    """The loop over steps."""
    config, run, pending = self.config, self.run, []
    if self._lacks_evaluation():
      metric = self._evaluate(state, self.first)
      self._save(self.first, state, metric, is_last=False)
    if stopping.reason(run, self.history, self.first):
      return
    self.start_time = time.monotonic()
    for step in range(
        self.first + self.steps_at_once, config.total_steps + 1,
        self.steps_at_once,
    ):
      # ---- One batch and one dispatch. ----
      run.profiler.before(step - self.steps_at_once + 1, step)
      with self.meter.input([m['loss'] for _, m, _ in pending[-1:]]):
        batch = self._next(batches)
      if step == self.first + self.steps_at_once:
        self._compile(state, batch)
      tokens = self._tokens(batch)
      self.meter.dispatch(batch, tokens)
      state, metrics = self.train_step(state, batch)
      pending.append((step, metrics, tokens))
      # The device is one step behind and no more: a signal is noticed soon.
      if len(pending) > 1:
        jax.block_until_ready(pending[-2])
        self.meter.done()
      run.profiler.after(step, metrics)
      self.progress.update(step - self.steps_at_once)

      # ---- Metrics. ----
      due = lambda every: step % every == 0 or step == config.total_steps
      # All processes stop after the same step.
      signum = run.largest(run.stop.signum or 0)
      if due(config.eval_every) or signum:
        self._flush(pending)
      elif (step - self.steps_at_once) % config.log_every == 0:
        # One step late: its numbers are ready, and the device does not wait.
        self._flush(pending, under_way=1)

      # ---- Evaluation. ----
      metric = None
      if due(config.eval_every) and not signum:
        with self._pause():
          try:
            metric = self._evaluate(state, step)
          except signals.Interrupted as interrupted:
            # The resumed run evaluates this step, see `_lacks_evaluation`.
            signum = interrupted.signum

      reason = ''
      if metric is not None:
        reason = stopping.reason(run, self.history, step)

      # ---- Checkpoint. ----
      if due(config.save_every) or metric is not None or signum:
        self._flush(pending)
        with self._pause():
          if not memory.fetch(self.is_sound(state)):
            raise recovery.BadNumbers(
                f'The state is not finite after step {step}', step
            )
          self._save(
              step, state, metric,
              is_last=signum or reason or step == config.total_steps,
          )
      if signum:
        raise signals.Interrupted(signum, step)
      if reason:
        logging.info('Stopped at step %d: %s.', step, reason)
        return

  def _next(self, batches):
    """Returns the next batch on the devices, or several batches, stacked."""
    mesh = self.run.mesh
    if self.steps_at_once == 1:
      return sharding.global_batch(mesh, next(batches))
    several = [next(batches) for _ in range(self.steps_at_once)]
    stacked = jax.tree.map(lambda *rows: np.stack(rows), *several)
    return sharding.global_batch(mesh, stacked, stacked=True)

  def _compile(self, state, batch):
    """Compiles the step for each shape; JAX's cache keeps the programs."""
    shapes = [
        sharding.global_batch(self.run.mesh, make())
        for make in self.run.dataset.buckets.values()
    ]
    for one in shapes or [batch]:
      compiled = self.compiled_step(state, one)
    memory.warn_of_step(compiled)  # The last one is the longest.

  def _tokens(self, batch):
    """Returns the tokens of all steps of a dispatch, padding included."""
    if self.run.dataset.buckets:
      return math.prod(batch['inputs'].shape[:2])
    rows = self.config.batch_size * self.steps_at_once
    return rows * self.run.dataset.sequence_length

  @contextlib.contextmanager
  def _pause(self):
    """Excludes what happens inside from the measured speed of training."""
    with self.progress.pause(), self.meter.pause():
      yield

  def _flush(self, pending, *, under_way=0):
    """Writes the metrics of the steps since the last flush.

    Args:
      pending: `(step, metrics, tokens)` of these steps; what is written is
        removed.
      under_way: How many of the newest steps to leave for later.

    Raises:
      BadNumbers: If the run cannot go on after one of these steps.
    """
    done = pending[: len(pending) - under_way]
    del pending[: len(done)]
    if not done:
      return
    fetched = memory.fetch(done)  # Fetching one by one takes milliseconds.
    if not under_way:
      self.meter.all_done()
    measured = self.meter.read()
    newest = done[-1][0]
    for last, values, _ in fetched:
      values = {name: np.atleast_1d(v) for name, v in values.items()}
      count = len(values['loss'])
      for i in range(count):
        one = {name: float(v[i]) for name, v in values.items()}
        self._record(last - count + 1 + i, one, newest, measured)
    self.progress.update(
        newest, one['loss'], tokens=sum(tokens for *_, tokens in done),
        notes=throughput.describe(measured),
    )

  def _record(self, number, one, newest, measured):
    """Writes the metrics of one step, if they are due or not finite."""
    one = dict(one)
    skipped = bool(one.pop('skipped', False))
    loss, grad_norm = one['loss'], one.pop('grad_norm')
    self.history = self.history.count(skipped)
    seen = self.history.skipped
    extra = dict(skipped_steps=seen) if seen else {}
    first = dict(train_loss=loss, grad_norm=grad_norm)
    what = recovery.describe(number, loss, grad_norm)
    if what or skipped:
      self.writer.write(number, first | extra)
      if what and not skipped:
        raise recovery.BadNumbers(what, number)
      what = what or f'There is NaN in the carry after step {number}'
      self.history.check_limit(what, self.config.nan_limit, number)
      recovery.warn(
          '%s: skipped, number %d in all, %d in a row.',
          what, self.history.skipped, self.history.in_a_row
      )
    elif number % self.config.log_every == 0 or number == newest:
      rate = (number - self.first) / (time.monotonic() - self.start_time)
      self.writer.write(number, dict(
          **first,
          **{f'train_{n}': v for n, v in one.items() if n != 'loss'},
          **extra,
          steps_per_second=rate,
          **(measured if number == newest else {}),
      ))

  def _evaluate(self, state, step):
    """Evaluates on all eval splits; returns the metric that chooses."""
    run = self.run
    params = state.get('ema', state['params'])
    values, texts = {}, []
    for split, prefix in stopping.prefixes(self.config).items():
      means = run.means(params, state['batch_stats'], split, step)
      values |= {f'{prefix}{name}': v for name, v in means.items()}
      texts.append(f'{split} {run.task.describe(means, run.dataset)}')
    self.writer.write(step, values)
    logging.info('step %d: %s', step, '; '.join(texts))
    if not np.isfinite(values['eval_loss']):
      raise recovery.BadNumbers(
          f'The validation loss is {values["eval_loss"]} at step {step}', step
      )
    return values[f'eval_{run.task.best}']

  def _known_metrics(self, rows):
    return dict(records.numbers(rows, f'eval_{self.run.task.best}'))

  def _lacks_evaluation(self):
    """Whether the run was stopped when it should have evaluated."""
    measured = self.run.saver.metrics
    due = self.first and (
        self.first % self.config.eval_every == 0
        or self.first == self.config.total_steps
        or self.first in measured
    )
    known = self._known_metrics(metrics_lib.read_metrics(self.run.workdir))
    return multihost.agreed(bool(due) and self.first not in known)

  def _restore_lost_lines(self):
    """Writes what checkpoints know and damaged metrics have lost."""
    rows = metrics_lib.read_metrics(self.run.workdir)
    known = self._known_metrics(rows)
    # That of the first step is computed again, see `_lacks_evaluation`.
    lost = {
        step: metric for step, metric in sorted(self.run.saver.metrics.items())
        if step < self.first and step not in known
    }
    if lost or self.first and all(row['step'] != self.first for row in rows):
      recovery.warn(
          'Lines up to step %d are missing from metrics.jsonl. Validation '
          'results restored from checkpoints: %s.', self.first,
          ', '.join(f'step {step}' for step in lost) or 'none',
      )
    for step, metric in lost.items():
      self.writer.write(step, {f'eval_{self.run.task.best}': metric})

  def _save(self, step, state, metric, *, is_last):
    """Starts a save. A failed one is reported; the next one may succeed.

    Args:
      step: The step of the state.
      state: The state.
      metric: What chooses the best checkpoint, if it was measured.
      is_last: Whether no other save follows: wait for this one, and raise
        `UserError` if it fails twice.

    Raises:
      UserError: Then, or if another run may be writing to the workdir.
    """
    run = self.run

    def save():
      run.saver.save(
          step, state, self.history.in_meta(run.meta), best_metric=metric
      )
      if is_last:
        run.saver.wait()

    lock.check(run.workdir)  # A later save could not repair a shared workdir.
    recovery.try_to_save(run.saver.wait)
    if not recovery.try_to_save(save) and is_last:
      save()
