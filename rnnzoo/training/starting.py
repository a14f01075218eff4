"""The state that a run starts from: restored, taken over, or new.

With it comes the run's history, see recovery.py.
"""

import dataclasses
import pathlib

from absl import logging
import jax
from rnnzoo import errors
from rnnzoo import filenames
from rnnzoo.training import checkpoint
from rnnzoo.training import checks
from rnnzoo.training import evaluation
from rnnzoo.training import records
from rnnzoo.training import recovery

# Fields of a model that change nothing about its parameters and what they mean.
_MAY_DIFFER = frozenset((
    'dtype', 'param_dtype', 'remat', 'scan_layers', 'dropout',
    'dropout_over_time', 'embed_std',
))


def start(run):
  """Returns the state to go on from, and the history of the run up to it.

  Args:
    run: A `loop.Run`.
  """
  if run.saver.latest_step() is None:
    return _new(run), recovery.History()
  step, state, history = _restore(run)
  logging.info('Going on after step %d.', step)
  return state, history


def roll_back(run, bad: recovery.BadNumbers):
  """Goes back to the last sound checkpoint, or the start, and notes that there.

  Args:
    run: A `loop.Run`; the learning rate of its program does not matter.
    bad: What was wrong, and when.

  Returns:
    `(state, history)`, as `start` would from now on.

  Raises:
    UserError: If the run has gone back there too often.
  """
  config, saver = run.config, run.saver
  before = saver.latest_step()
  if before is None:
    restored, history = 0, recovery.History()
    state = _new(run)
  else:
    restored, state, history = _restore(run)
  if history.rollbacks_to(restored) >= config.nan_limit:
    raise errors.UserError(
        f'{bad.what}. The run has gone back to step {restored} '
        f'{config.nan_limit} times (nan_limit) and gives up.'
    )
  history = history.roll_back(restored, bad.step, config.nan_rate_factor)
  recovery.warn(
      '%s. Back to step %d, with the learning rate times %g; batches %d to %d '
      'are left out.', bad.what, restored, history.rate,
      restored + history.batches_left_out - (bad.step - restored) + 1,
      restored + history.batches_left_out,
  )
  meta = history.in_meta(run.meta)
  try:
    if before is None:
      saver.save(restored, state, meta)
    else:
      saver.note(restored, meta)
  except errors.UserError as error:
    # A run resumed from there meets the same numbers, and does the same.
    logging.warning('%s', error)
  return state, history


def _restore(run):
  """Returns the latest step, its state and the history of the run up to it."""
  config, saver = run.config, run.saver
  # Old checkpoints have moments of frozen parameters too: leave them out.
  partial = bool(config.optimizer.freeze)
  step, state, meta = saver.restore(
      run.program.abstract_state, partial=partial
  )
  records.check_meta(
      meta, ('vocabulary',), f'Checkpoint {step} in {saver.directory}'
  )
  checks.check_kind(run.meta, meta)
  checks.check_vocabulary(run.meta['vocabulary'], meta['vocabulary'])
  history = recovery.History.of(meta)
  changed = checks.check_data(
      run.meta['data'], meta.get('data'),
      'allow the new data: --config.data.allow_changed=True'
      if 'allow_changed' in config.data else 'use another workdir',
      config.data.get('allow_changed'),
  )
  # A run that is finished never sees the new data.
  if changed and step < config.total_steps:
    recovery.warn(
        'The data is not what it was. The best checkpoint is chosen among '
        'those after step %d.', step
    )
    history = dataclasses.replace(history, data_since=step)
    saver.forget_metrics()
  return step, state, history


def _new(run):
  """Returns the state before the first step, of `init_from` if there is one."""
  program = run.program
  state = jax.jit(program.make_state, out_shardings=program.shardings)()
  found = {}
  if run.initial:
    found = _of_model(run, program.abstract_state)
  elif run.config.init_from:
    found = _take_over(run, run.config.init_from, program.abstract_state)
  state |= found
  if found and 'ema' in state:
    state['ema'] = jax.tree.map(lambda p: p.copy(), found['params'])
  return state


def _of_model(run, abstract):
  """Returns the parameters and batch statistics of the model to start from.

  Raises:
    UserValueError: If the run has another model.
  """
  model = run.initial(run.mesh)
  fields = {
      field.name for field in dataclasses.fields(run.task.model)
  } - _MAY_DIFFER
  differences = [
      f'model.{name} is {there!r} there, {now!r} now'
      for name in sorted(fields)
      if (there := getattr(model.config, name))
      != (now := getattr(run.task.model, name))
  ]
  if differences:
    raise errors.UserValueError(
        'The model to start from (init_from) is another one: '
        f'{"; ".join(differences)}. Leave these fields as they are there.'
    )
  found = dict(zip(('params', 'batch_stats'), run.task.functional.variables(
      model
  )))
  # The training step takes the memory over: it must not be the model's.
  return jax.tree.map(
      lambda u, like: jax.device_put(
          u.astype(like.dtype), like.sharding, may_alias=False
      ),
      found, {name: abstract[name] for name in found},
  )


def _take_over(run, workdir, abstract):
  """Returns the parameters and batch statistics of another run's best model."""
  directory = pathlib.Path(filenames.absolute(workdir)) / 'checkpoints'
  if not directory.is_dir():
    hint = ''
    if any(directory.parent.glob('*.safetensors')):
      hint = (
          ' From Python, give `initial=lambda mesh: '
          'convert.load_pretrained(folder, mesh=mesh)` in its place.'
      )
    raise errors.UserFileNotFoundError(
        f'init_from: there is no run in {workdir}.{hint}'
    )
  with checkpoint.Checkpointer(directory, readonly=True) as source:
    step, meta = source.restore_meta(best=True)
    records.check_meta(
        meta, ('vocabulary', 'config'), f'Checkpoint {step} in {directory}'
    )
    checks.check_vocabulary(
        run.meta['vocabulary'], meta['vocabulary'], f'init_from={workdir}'
    )
    name = evaluation.parameters_name(meta['config'])
    part = {name: abstract['params'], 'batch_stats': abstract['batch_stats']}
    step, found, _ = source.restore(part, best=True, partial=True)
  logging.info('Parameters of %s, step %d.', workdir, step)
  return dict(params=found[name], batch_stats=found['batch_stats'])
