"""Compiles a training step for devices that need not exist here.

XLA compiles for TPUs and GPUs on any CPU. The compiled program gives exact
numbers for the memory that it needs and for what devices send to each other. It
does not give the time of a step: `verdicts.roofline` estimates that.
"""

from collections.abc import Mapping
import gc
import importlib.metadata
import math
import re
import time
from typing import Any

from absl import logging
import jax
from rnnzoo import errors
from rnnzoo.planning import hlo
from rnnzoo.planning import targets
from rnnzoo.planning import traffic
from rnnzoo.planning import verdicts
from rnnzoo.training import losses
from rnnzoo.training import optimizers
from rnnzoo.training import program as program_lib
from rnnzoo.training import sharding
from rnnzoo.training import state as state_lib
from rnnzoo.training.performance import flops
from rnnzoo.training.processes import host

_TOO_LARGE = re.compile(
    r'\(([\d.]+)([KMG])\) exceeds available HBM \(([\d.]+)([KMG])\)'
)
_UNITS = dict(K=2**10, M=2**20, G=2**30)


def plan(
    task,
    config,
    target: targets.Target,
    batch: Mapping[str, jax.ShapeDtypeStruct],
) -> dict[str, Any]:
  """Compiles the training step of a task for devices that need not exist here.

  Args:
    task: A `rnnzoo.tasks.Task`; only its model, loss and carry are used.
    config: See `experiments/configs/default.py`.
    target: The devices. The process must run in their `environment`.
    batch: Shapes of a global batch, `inputs` `[B, T]` among them.

  Returns:
    The plan as plain data. `verdict` is `fits`, `tight` or `does not fit`; in
    the last case the compiler may give nothing but the bytes `required`.

  Raises:
    UserError: If the config is impossible on these devices.
  """
  mesh = sharding.make_mesh(config.mesh, list(targets.devices(target)))
  sharding.check_batch_size(config.batch_size, mesh, config.accumulate_steps)
  steps = config.steps_per_dispatch
  given = _placed(batch, mesh, steps if steps > 1 else 0)
  batch = _placed(batch, mesh)
  logging.info('Tracing the training step.')
  program = program_lib.make_program(task, config, mesh)
  state = program.abstract_state
  dtype = config.model.dtype
  result: dict[str, Any] = dict(
      target=target.name,
      devices=mesh.size,
      kind=mesh.devices.flat[0].device_kind,
      mesh=dict(mesh.shape),
      rows_per_device=_shard(batch['inputs'])[0],
      tokens=task.sequences * math.prod(batch['inputs'].shape[:2]),
      batch=list(batch['inputs'].shape),
      parameters=state_lib.count_parameters(state['params']),
      dtype=dtype,
      jax=jax.__version__,
      compiler=_compiler_version(target),
      limit=target.hardware.memory,
  )
  with jax.set_mesh(mesh):
    traced = program.train_step.trace(state, given)
    executed = flops.count(traced.jaxpr, platform=target.platform)
    result['flops'] = dict(
        executed=executed.total() // steps,
        needed=flops.of_training_step(
            task, state, batch, platform=target.platform
        ),
    )
    result['memory'] = _memory(task, config, state, batch)
    logging.info(
        'Compiling it for %d x %s; a model of a billion parameters takes a '
        'minute or two.', mesh.size, result['kind'],
    )
    lowered = traced.lower()
    # Free what the compiler does not need, because it needs much memory.
    del traced
    jax.clear_caches()
    gc.collect()
    start = time.process_time()
    try:
      compiled = lowered.compile()
    except jax.errors.JaxRuntimeError as error:
      result |= _refused(error)
    else:
      del lowered
      memory, text = compiled.memory_analysis(), compiled.as_text()
      del compiled
      result |= _compiled(memory, text, target, result, steps)
  result['seconds'] = round(time.process_time() - start, 1)
  result['verdict'] = verdicts.verdict(result, target.hardware)
  result['advice'] = verdicts.advice(result, config)
  result['host_memory'] = host.peak_memory()
  return result


def _placed(batch, mesh, steps=0):
  """Returns the shapes of one or several batches with the loop's shardings."""
  ahead = (steps,) if steps else ()
  shapes = tuple((name, ahead + u.shape) for name, u in batch.items())
  shardings = sharding.batch_shardings(mesh, shapes, bool(steps))
  return {
      name: jax.ShapeDtypeStruct(
          shape, batch[name].dtype, sharding=shardings[name]
      )
      for name, shape in shapes
  }


def _shard(u):
  return u.sharding.shard_shape(u.shape)


def _per_device(tree):
  return sum(
      math.prod(_shard(u)) * u.dtype.itemsize for u in jax.tree.leaves(tree)
  )


def _memory(task, config, state, batch):
  """Returns the bytes per device that need no compiler to compute."""
  frozen = optimizers.frozen_parameters(
      state['params'], tuple(config.optimizer.freeze)
  )
  trained = jax.tree.map(
      lambda held, p: None if held else p, frozen, state['params']
  )
  others = {k: v for k, v in state.items() if k not in ('params', 'opt_state')}
  rows, steps = _shard(batch['inputs'])[:2]
  tokens = rows * steps // config.accumulate_steps
  mesh = batch['inputs'].sharding.mesh
  columns = max(1, task.outputs // mesh.shape['model'])
  at_once = config.loss_chunk or tokens
  if at_once == losses.AUTOMATIC:
    at_once = losses.LOGITS_AT_ONCE // columns
  return dict(
      parameters=_per_device(state['params']),
      optimiser=_per_device(state['opt_state']),
      rest=_per_device(others) + _per_device(batch),
      gradients=_per_device(trained),
      kept=_kept(task, config, state, batch),
      logits=4 * columns * min(tokens, at_once),
  )


def _kept(task, config, state, batch):
  """Estimates the bytes per device kept from the forward to the backward pass.

  They are the residuals of `jax.vjp` without the parameters. An array with a
  batch axis is shared among the devices that share the batch.
  """
  loss = task.loss_fn(train=True)

  def backward(params, batch_stats, batch):
    key = jax.random.key(0, impl='rbg')
    run = lambda p: loss(p, batch_stats, batch, None, key)[0]
    return jax.vjp(run, params)[1]

  residuals = jax.tree.leaves(jax.eval_shape(
      backward, state['params'], state['batch_stats'], batch
  ))
  shapes = {u.shape for u in jax.tree.leaves(state['params'])}
  rows, mesh = batch['inputs'].shape[0], batch['inputs'].sharding.mesh.shape
  parts = mesh['data'] * mesh['fsdp'] * mesh['sequence']
  batched = {rows, task.sequences * rows}
  return sum(
      u.size * u.dtype.itemsize // parts // config.accumulate_steps
      for u in residuals if u.shape not in shapes and batched & {*u.shape}
  )


def _compiled(memory, text, target, result, steps):
  """Returns the memory of a compiled step and what its text shows."""
  program = hlo.Program(text)
  count = target.hardware.per_host or result['devices']
  rows = {}
  for one in traffic.collectives(program, result['devices']):
    apart = len({i // count for i in one.group}) > 1
    row = rows.setdefault((one.kind, len(one.group), apart), dict(
        kind=one.kind, group=len(one.group), hosts_apart=apart,
        operations=0, times=0.0, bytes=0.0,
    ))
    row['operations'] += 1
    row['times'] += one.times / steps
    row['bytes'] += one.times * one.size / steps
  out: dict[str, Any] = dict(
      memory=result['memory'] | dict(
          arguments=memory.argument_size_in_bytes,
          temporaries=memory.temp_size_in_bytes,
          peak=memory.peak_memory_in_bytes,
          code=memory.generated_code_size_in_bytes,
      ),
      collectives=sorted(rows.values(), key=lambda row: -row['bytes']),
      unknown_loops=[u.name for u in program.loops if u.rounds is None],
      bytes_moved=traffic.bytes_moved(program) / steps,
  )
  out['roofline'] = verdicts.roofline(result | out, target.hardware)
  return out


def _refused(error):
  """Returns the sizes in the compiler's message that memory is too small.

  Raises:
    UserError: If the message names no sizes.
  """
  found = _TOO_LARGE.search(str(error))
  if not found:
    if 'RESOURCE_EXHAUSTED' in str(error):
      raise errors.UserError(
          f'The compiler refuses: {str(error).splitlines()[0]}'
      ) from error
    raise error
  number = lambda i: int(float(found[i]) * _UNITS[found[i + 1]])
  return dict(required=number(1), limit=number(3))


def _compiler_version(target):
  module = 'libtpu' if target.platform == 'tpu' else 'jax_cuda13_plugin'
  name = module.replace('_', '-')
  return f'{name} {importlib.metadata.version(name)}'
