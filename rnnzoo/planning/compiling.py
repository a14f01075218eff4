"""Compiles a training step for devices that are not there, and says what fits.

XLA compiles for TPUs and GPUs on any CPU. What it then knows of the program is
exact: the memory it needs, what devices send each other. How long a step takes
it does not know; `roofline` is an estimate and says so.

`experiments.train --plan=v5e:16x16` is the command line of this.
"""

from collections.abc import Mapping
import gc
import importlib.metadata
import math
import re
import resource
import sys
import time
from typing import Any

from absl import logging
import jax
from rnnzoo import errors
from rnnzoo.planning import hlo
from rnnzoo.planning import targets
from rnnzoo.planning import traffic
from rnnzoo.training import losses
from rnnzoo.training import optimizers
from rnnzoo.training import program as program_lib
from rnnzoo.training import sharding
from rnnzoo.training import state as state_lib
from rnnzoo.training.performance import flops
from rnnzoo.training.performance import hardware as hardware_lib

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
  """Compiles the training step of a task for devices that are not there.

  Args:
    task: A `rnnzoo.tasks.Task`, of which nothing but the model, its loss and
      its carry is looked at.
    config: See `experiments/configs/default.py`.
    target: The devices; the process was started in their `environment`.
    batch: Shapes of a global batch, `inputs` `[B, T]` among them.

  Returns:
    What is known, as plain data. `verdict` is `fits`, `tight` or `does not
    fit`; in the last case there may be no more than `required` bytes.

  Raises:
    UserError: If the config does not go with the devices.
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
  result = dict(
      target=target.name,
      devices=mesh.size,
      kind=mesh.devices.flat[0].device_kind,
      mesh=dict(mesh.shape),
      rows_per_device=_shard(batch['inputs'])[0],
      tokens=batch['inputs'].size,
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
    # The compiler needs the memory more.
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
  result['verdict'] = verdict(result, target.hardware)
  result['advice'] = advice(result, config)
  peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
  result['host_memory'] = peak * (1 if sys.platform == 'darwin' else 1024)
  return result


def verdict(result: Mapping[str, Any], hardware) -> str:
  """Returns `fits`, `tight` or `does not fit`.

  Tight is what the compiler accepts by using memory twice over where it counts
  on nothing else, or what leaves less than a tenth of the memory, or, of a GPU,
  more than the part of it that JAX takes unless told otherwise.
  """
  memory, limit = result['memory'], hardware.memory
  if 'required' in result or memory['peak'] > limit:
    return 'does not fit'
  if memory['peak'] > min(0.9, hardware.pool) * limit:
    return 'tight'
  if memory['arguments'] + memory['temporaries'] > limit:
    return 'tight'
  return 'fits'


def advice(result: Mapping[str, Any], config) -> list[str]:
  """Returns what to change, the most useful first, where it does not fit.

  What is kept for the backward pass, the logits and the state are known by
  arithmetic, whether or not the program was compiled.
  """
  if result['verdict'] == 'fits':
    return []
  memory, gib = result['memory'], hardware_lib.GIB
  size = lambda n: f'{n / gib:.1f} GiB'
  found = []
  kept, model = memory['kept'], config.model
  state = memory['parameters'] + memory['optimiser'] + memory['gradients']
  if model.remat != 'full':
    found.append((
        kept,
        f'model.remat=full: recompute inside each block what now is kept for '
        f'the backward pass, about {size(kept)}.',
    ))
  elif result['rows_per_device'] > 1:
    # As many parts as bring what grows with the batch down to what is left.
    free = 0.8 * result['limit'] - state
    grows = kept + memory['logits']
    parts = 2
    while parts < result['rows_per_device'] and grows / parts > max(free, 0):
      parts *= 2
    if result['rows_per_device'] % parts == 0:
      found.append((
          grows * (1 - 1 / parts),
          f'accumulate_steps={config.accumulate_steps * parts}: the same batch '
          f'in parts; about {size(grows)} grow with the '
          f'{result["rows_per_device"]} rows of a device. Or a smaller '
          'batch_size.',
      ))
  else:
    mesh = result['mesh']
    found.append((
        kept / 2,
        f'mesh.sequence={2 * mesh["sequence"]}: there is one row a device; '
        'split its time. Or a shorter data.sequence_length.',
    ))
  if not config.loss_chunk:
    found.append((
        2 * memory['logits'],
        f'loss_chunk=-1: the logits of all tokens take {size(memory["logits"])}'
        ', and their gradient as much.',
    ))
  if model.dtype == 'float32':
    found.append((
        kept / 2, 'model.dtype=bfloat16: activations of half the size.'
    ))
  split = result['mesh']['fsdp']
  if split < result['devices']:
    more = min(split * 4, result['devices'])
    found.append((
        state * (1 - split / more),
        f'mesh.fsdp={more}: parameters, gradients and optimiser take '
        f'{size(state)} on each device; split them among more.',
    ))
  found.sort(key=lambda one: -one[0])
  texts = [text for saved, text in found if saved > 0.02 * result['limit']]
  if result['verdict'] == 'tight' and 'peak' in memory:
    pool = hardware_lib.find(result['kind']).pool
    if memory['peak'] > pool * result['limit']:
      texts.insert(0, (
          'XLA_PYTHON_CLIENT_MEM_FRACTION=.95 in the environment: JAX takes '
          f'{pool:.0%} of a GPU unless told otherwise.'
      ))
  return texts or ['More devices, or a smaller model.']


def roofline(result: Mapping[str, Any], hardware) -> dict[str, float]:
  """Estimates the seconds of a step, were nothing lost but the peaks' limits.

  `best` is the slowest of the three parts, if they overlap perfectly; `worst`
  is their sum, if not at all. A real step may be slower than either.
  """
  count = result['devices']
  compute = result['flops']['executed'] / count / hardware.peak(result['dtype'])
  memory = result['bytes_moved'] / hardware.bandwidth
  network = sum(
      row['bytes'] / hardware.speed(row['hosts_apart'])
      for row in result['collectives']
  )
  best = max(compute, memory, network)
  ideal = result['flops']['needed'] / count / hardware.peak(result['dtype'])
  return dict(
      compute=compute, memory=memory, network=network,
      best=best, worst=compute + memory + network,
      tokens_per_second=result['tokens'] / best,
      utilisation=ideal / best,
  )


def _placed(batch, mesh, steps=0):
  """Gives a batch, or those of several steps, the shardings of the loop."""
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
  """Returns bytes per device that arithmetic knows before any compiler."""
  frozen = optimizers.frozen_parameters(
      state['params'], tuple(config.optimizer.freeze)
  )
  trained = jax.tree.map(
      lambda held, p: None if held else p, frozen, state['params']
  )
  others = {k: v for k, v in state.items() if k not in ('params', 'opt_state')}
  tokens = math.prod(_shard(batch['inputs'])) // config.accumulate_steps
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

  They are the residuals of `jax.vjp` but for the parameters; whatever has a
  batch in it is shared among the devices that share that.
  """
  loss = task.loss_fn(train=True)

  def backward(params, batch):
    key = jax.random.key(0, impl='rbg')
    run = lambda p: loss(p, state['batch_stats'], batch, None, key)[0]
    return jax.vjp(run, params)[1]

  residuals = jax.tree.leaves(jax.eval_shape(backward, state['params'], batch))
  shapes = {u.shape for u in jax.tree.leaves(state['params'])}
  rows, mesh = batch['inputs'].shape[0], batch['inputs'].sharding.mesh.shape
  parts = mesh['data'] * mesh['fsdp'] * mesh['sequence']
  return sum(
      u.size * u.dtype.itemsize // parts // config.accumulate_steps
      for u in residuals if u.shape not in shapes and rows in u.shape
  )


def _compiled(memory, text, target, result, steps):
  """Returns what a compiled step tells of its memory and by its text."""
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
  out = dict(
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
  out['roofline'] = roofline(result | out, target.hardware)
  return out


def _refused(error):
  """Returns what the compiler says of a program that it does not take.

  Raises:
    UserError: If memory is not the reason.
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
