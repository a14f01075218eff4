"""The training loop: batches in; metrics, checkpoints and a summary out."""

from collections.abc import Callable
import contextlib
import dataclasses
import json
import pathlib
import signal
import time
from typing import Any

from absl import logging
import jax
import jax.numpy as jnp
import numpy as np
from rnnzoo import errors
from rnnzoo.training import checkpoint
from rnnzoo.training import checks
from rnnzoo.training import host
from rnnzoo.training import metrics as metrics_lib
from rnnzoo.training import program as program_lib
from rnnzoo.training import sharding
from rnnzoo.training import state as state_lib
from rnnzoo.training import step as step_lib


class Interrupted(Exception):
  """The run was asked to stop and has saved; `signum` says by which signal."""

  def __init__(self, signum: int, step: int):
    self.signum = signum
    super().__init__(
        f'Stopped by {signal.Signals(signum).name}; step {step} is saved. The '
        'same command goes on from there.'
    )


@dataclasses.dataclass(frozen=True)
class Task:
  """What the loop needs to know about a model and its data.

  Attributes:
    functional: The model.
    loss: `loss(functional, train=bool)` gives a `training.step.LossFn`.
    train_iterator: Maps a step to an iterator that starts with its batch.
    eval_batches: Maps the name of a split to its batches.
    initial_carry: For stateful training, maps the model to its first recurrent
      state; else `None`.
    meta: Goes into every checkpoint: the config, the vocabulary.
  """

  functional: state_lib.Functional
  loss: Callable[..., step_lib.LossFn]
  train_iterator: Callable[[int], Any]
  eval_batches: Callable[[str], Any]
  initial_carry: Callable[[Any], Any] | None
  meta: dict[str, Any]


def train(task: Task, config, workdir) -> dict[str, Any]:
  """Trains to `config.total_steps`, going on where the workdir stands.

  Args:
    task: The model and its data.
    config: See `experiments/configs/default.py`.
    workdir: Where `metrics.jsonl`, `checkpoints/` and `curve.png` go.

  Returns:
    The summary: losses of the best checkpoint, time, parameters, device.

  Raises:
    UserError: If something that a user can cure stops the run.
    Interrupted: After a signal, once everything is saved.
  """
  checks.check_intervals(config)
  window = checks.profile_window(config.profile_steps)
  workdir = pathlib.Path(workdir)
  mesh = sharding.make_mesh(config.mesh)
  sharding.check_batch_size(config.batch_size, mesh, config.accumulate_steps)
  with contextlib.ExitStack() as stack:
    stack.enter_context(jax.set_mesh(mesh))
    stop = stack.enter_context(_signals())
    saver = stack.enter_context(
        checkpoint.Checkpointer(workdir / 'checkpoints', keep=config.keep)
    )
    program = program_lib.make_program(task, config, mesh)
    state = _start(task, config, program, saver)
    first = int(state['step'])
    summary = workdir / 'summary.json'
    if first >= config.total_steps and summary.exists():
      logging.info('Already trained to step %d.', first)
      return json.loads(summary.read_text())
    writer = stack.enter_context(
        metrics_lib.MetricsWriter(
            workdir, resume_step=first, tensorboard=config.tensorboard
        )
    )
    progress = stack.enter_context(
        metrics_lib.Progress(
            config.total_steps, initial=first,
            tokens_per_step=config.batch_size * config.data.sequence_length,
        )
    )
    profiler = stack.enter_context(
        contextlib.closing(_Profiler(window, workdir / 'profile'))
    )
    run = _Run(
        task, config, program, mesh, saver, writer, progress, profiler, stop
    )
    run.to_the_end(state, first)
    del state  # Given away, all of it.
    values = _summarize(run, workdir)
    if jax.process_index() == 0:
      write_text(summary, json.dumps(values, indent=2) + '\n')
      metrics_lib.plot_curves(workdir)
    return values


class _Run:
  """One process's part in one run: the compiled steps and where results go."""

  def __init__(
      self, task, config, program, mesh, saver, writer, progress, profiler, stop
  ):
    self.task, self.config, self.mesh = task, config, mesh
    self.saver, self.writer, self.progress = saver, writer, progress
    self.profiler, self.stop = profiler, stop
    self.steps_at_once = config.steps_per_dispatch
    self.train_step = program.train_step
    self.eval_step = _eval_step(task)
    self.all_finite = jax.jit(_all_finite)

  def to_the_end(self, state, first):
    """Trains from step `first` on, and saves the last state."""
    config, pending = self.config, []
    batches = self.task.train_iterator(first + 1)
    start = time.monotonic()
    with contextlib.closing(batches):
      for step in range(
          first + self.steps_at_once, config.total_steps + 1, self.steps_at_once
      ):
        self.profiler.before(step - self.steps_at_once + 1, step)
        state, metrics = self.train_step(state, self._next(batches))
        pending.append((step, metrics))
        # One step ahead of the device and no more: a signal is soon heard.
        jax.block_until_ready(pending[-2:][0])
        self.profiler.after(step, metrics)
        self.progress.update(step - self.steps_at_once)
        due = lambda every: step % every == 0 or step == config.total_steps
        stopping = self.stop.signum is not None
        if due(config.log_every) or due(config.eval_every) or stopping:
          self._flush(pending, step, start, first)
        eval_loss = None
        if due(config.eval_every):
          with self.progress.pause():
            eval_loss = self._evaluate(state, step)
          if not np.isfinite(eval_loss):
            self._refuse(f'The validation loss is {eval_loss} at step {step}')
        if due(config.save_every) or eval_loss is not None or stopping:
          self._flush(pending, step, start, first)
          with self.progress.pause():
            if not self.all_finite(state['params']):
              self._refuse(f'The parameters are not finite after step {step}')
            self.saver.save(
                step, state, self.task.meta, best_metric=eval_loss
            )
        if stopping:
          self.saver.wait()
          raise Interrupted(self.stop.signum, step)
    self.saver.wait()

  def _next(self, batches):
    if self.steps_at_once == 1:
      return sharding.global_batch(self.mesh, next(batches))
    several = [next(batches) for _ in range(self.steps_at_once)]
    stacked = jax.tree.map(lambda *rows: np.stack(rows), *several)
    return sharding.global_batch(self.mesh, stacked, stacked=True)

  def _flush(self, pending, step, start, first):
    """Fetches the metrics of the steps since the last flush and writes them."""
    for last, values in pending:
      values = {name: np.atleast_1d(v) for name, v in values.items()}
      count = len(values['loss'])
      for i in range(count):
        one = {name: float(v[i]) for name, v in values.items()}
        number = last - count + 1 + i
        if not np.isfinite(one['loss']) or not np.isfinite(one['grad_norm']):
          self.writer.write(number, dict(
              train_loss=one['loss'], grad_norm=one['grad_norm']
          ))
          which = 'gradient' if np.isfinite(one['loss']) else 'loss'
          self._refuse(
              f'The {which} is not finite at step {number} (loss '
              f'{one["loss"]}, gradient norm {one["grad_norm"]})'
          )
        if number % self.config.log_every == 0 or number == step:
          rate = (number - first) / (time.monotonic() - start)
          self.writer.write(number, dict(
              train_loss=one['loss'],
              grad_norm=one['grad_norm'],
              **{f'train_{n}': one[n] for n in ('accuracy',) if n in one},
              steps_per_second=rate,
          ))
    if pending:
      self.progress.update(step, one['loss'])
    pending.clear()

  def _refuse(self, what):
    """Raises `UserError`: no step is made, or kept, with numbers like these."""
    self.saver.wait()
    good = self.saver.latest_step()
    kept = (
        f'The last good checkpoint is step {good}' if good is not None
        else 'There is no checkpoint before it'
    )
    raise errors.UserError(
        f'{what}. {kept}; try a smaller optimizer.learning_rate or '
        'optimizer.clip.'
    )

  def _evaluate(self, state, step):
    """Evaluates on all eval splits; returns the loss on the first of them."""
    params = state.get('ema', state['params'])
    losses = {}
    for i, split in enumerate(self.config.eval_splits):
      sums = self.sums(params, state['batch_stats'], split)
      name = 'eval_' if i == 0 else f'eval_{split}_'
      losses |= {f'{name}{k}': v for k, v in sums.items()}
    self.writer.write(step, losses)
    logging.info(
        'step %d: %s', step,
        ', '.join(f'{k} {v:.4f}' for k, v in losses.items() if 'loss' in k),
    )
    return losses['eval_loss']

  def sums(self, params, batch_stats, split):
    """Returns the mean loss and accuracy over a split."""
    return _mean_metrics(
        self.eval_step, self.mesh, params, batch_stats,
        self.task.eval_batches(split),
    )


def evaluate_model(task: Task, model, split: str, mesh) -> dict[str, float]:
  """Evaluates a model on a split.

  Args:
    task: A task whose models look like this one.
    model: The model.
    split: A name that `task.eval_batches` takes.
    mesh: The devices to share the batches among.

  Returns:
    Means over the positions that count: `loss` in nats, and `accuracy`.
  """
  params, batch_stats = jax.device_put(
      task.functional.variables(model), jax.NamedSharding(mesh, jax.P())
  )
  with jax.set_mesh(mesh):
    return _mean_metrics(
        _eval_step(task), mesh, params, batch_stats, task.eval_batches(split)
    )


def _eval_step(task):
  return jax.jit(
      step_lib.make_eval_step(task.loss(task.functional, train=False))
  )


def _mean_metrics(eval_step, mesh, params, batch_stats, batches):
  totals = {}
  for batch in batches:
    new = eval_step(params, batch_stats, sharding.global_batch(mesh, batch))
    totals = {k: totals.get(k, 0.0) + v for k, v in new.items()}
  weight = float(totals['weight'])
  means = dict(loss=float(totals['loss']) / weight)
  if 'correct' in totals:
    means['accuracy'] = float(totals['correct']) / weight
  return means


def _all_finite(tree):
  return jnp.stack([jnp.isfinite(u).all() for u in jax.tree.leaves(tree)]).all()


def parameters_name(config) -> str:
  """Returns the part of a state that a run evaluates: `params` or `ema`."""
  return 'ema' if config['ema_decay'] > 0 else 'params'


def write_text(path: pathlib.Path, text: str):
  """Writes a file such that at no time there is half of it."""
  new = path.with_name(path.name + '.new')
  try:
    new.write_text(text)
    new.replace(path)
  except OSError:
    new.unlink(missing_ok=True)
    raise


def _start(task, config, program, saver):
  """Returns the state to go on from: restored, taken over, or new."""
  abstract = program.abstract_state
  if saver.latest_step() is not None:
    step, state, meta = saver.restore(abstract)
    checks.check_vocabulary(task.meta['vocabulary'], meta['vocabulary'])
    logging.info('Going on after step %d.', step)
    return state
  state = jax.jit(program.make_state, out_shardings=program.shardings)()
  if config.init_from:
    found = _take_over(task, config.init_from, abstract)
    state |= found
    if 'ema' in state:
      state['ema'] = jax.tree.map(lambda p: p.copy(), found['params'])
  return state


def _take_over(task, workdir, abstract):
  """Returns the parameters and batch statistics of another run's best model."""
  directory = pathlib.Path(workdir) / 'checkpoints'
  if not directory.is_dir():
    raise errors.UserFileNotFoundError(
        f'init_from: there is no run in {workdir}.'
    )
  with checkpoint.Checkpointer(directory, readonly=True) as source:
    _, meta = source.restore_meta(best=True)
    checks.check_vocabulary(
        task.meta['vocabulary'], meta['vocabulary'], f'init_from={workdir}'
    )
    name = parameters_name(meta['config'])
    part = {name: abstract['params'], 'batch_stats': abstract['batch_stats']}
    step, found, _ = source.restore(part, best=True, partial=True)
  logging.info('Parameters of %s, step %d.', workdir, step)
  return dict(params=found[name], batch_stats=found['batch_stats'])


def _summarize(run, workdir):
  """Evaluates the best checkpoint on the test split; returns the summary."""
  task, config = run.task, run.config
  name = parameters_name(config)
  replicated = jax.NamedSharding(run.mesh, jax.P())
  abstract = jax.tree.map(
      lambda u: jax.ShapeDtypeStruct(u.shape, u.dtype, sharding=replicated),
      {
          name: task.functional.params,
          'batch_stats': task.functional.batch_stats,
      },
  )
  step, best, _ = run.saver.restore(abstract, best=True, partial=True)
  params = best[name]
  test = run.sums(params, best['batch_stats'], 'test')
  rows = metrics_lib.read_metrics(workdir)
  evals = [r for r in rows if r.get('eval_loss') is not None]
  seconds = _busy_seconds(rows)
  extra = {
      f'best_eval_{split}_loss': min(
          r[f'eval_{split}_loss'] for r in evals if f'eval_{split}_loss' in r
      )
      for split in config.eval_splits[1:]
  }
  return {
      'best_step': step,
      'best_eval_loss': min(r['eval_loss'] for r in evals),
      **extra,
      'test_loss': test['loss'],
      'test_bits_per_token': test['loss'] / np.log(2),
      'test_accuracy': test['accuracy'],
      'total_steps': config.total_steps,
      'parameters': state_lib.count_parameters(task.functional.params),
      'seconds': round(seconds, 1),
      'device': host.device_description(),
      'jax': jax.__version__,
      'seed': config.seed,
      'model.layer': config.model.layer,
      'data.name': config.data.name,
  }


def _busy_seconds(rows):
  """Time between metric lines, without the pauses between runs."""
  times = [r['wall_time'] for r in rows]
  gaps = np.diff(times)
  usual = 20 * np.median(gaps) if len(gaps) else 0
  return float(gaps[gaps <= max(usual, 60)].sum()) if len(gaps) else 0.0


class _Stop:
  """Remembers that a signal came; the loop looks at every step."""

  signum: int | None = None


@contextlib.contextmanager
def _signals():
  """Turns SIGINT and SIGTERM into a wish; a second SIGINT kills as usual."""
  stop = _Stop()

  def remember(signum, _):
    stop.signum = signum
    signal.signal(signal.SIGINT, signal.default_int_handler)

  old = {s: signal.signal(s, remember) for s in (signal.SIGINT, signal.SIGTERM)}
  try:
    yield stop
  finally:
    for signum, handler in old.items():
      signal.signal(signum, handler)


class _Profiler:
  """Traces the steps of a window into a directory, for TensorBoard or xprof."""

  def __init__(self, window, directory):
    self._window, self._directory = window, directory
    self._runs = False

  def before(self, first, last):
    """Starts the trace if the window opens within these steps."""
    if self._window and first <= self._window[0] <= last:
      jax.profiler.start_trace(str(self._directory))
      self._runs = True

  def after(self, step, results):
    """Ends the trace if this step is the window's last, once it is computed."""
    if self._runs and step >= self._window[1]:
      jax.block_until_ready(results)
      self.close()

  def close(self):
    """Ends the trace if there is one."""
    if self._runs:
      jax.profiler.stop_trace()
      self._runs = False
