"""Judges a plan: whether it fits, what to change, how fast a step can be."""

from collections.abc import Mapping
from typing import Any

from rnnzoo.training.performance import hardware as hardware_lib


def verdict(result: Mapping[str, Any], hardware) -> str:
  """Returns `fits`, `tight` or `does not fit`.

  A program is tight if its peak leaves less than a tenth of the memory free; if
  the peak exceeds the part of a GPU's memory that JAX reserves by default; or
  if arguments and temporaries together exceed the memory, so that it only fits
  because the compiler reuses memory.
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
  """Returns what to change if a program does not fit, the most useful first.

  The sizes of the state, of the logits and of what is kept for the backward
  pass are known even if the compiler has refused the program.
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
        f'model.remat=full: recompute inside each block what is now kept for '
        f'the backward pass, about {size(kept)}.',
    ))
  elif result['rows_per_device'] > 1:
    # As many parts as needed to fit what grows with the batch into the rest.
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
          f'{result["rows_per_device"]} rows of a device. Or use a smaller '
          'batch_size.',
      ))
  else:
    mesh = result['mesh']
    found.append((
        kept / 2,
        f'mesh.sequence={2 * mesh["sequence"]}: each device has one row; '
        'split it along time. Or use a shorter data.sequence_length.',
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
        f'{size(state)} on each device; split them among more devices.',
    ))
  found.sort(key=lambda one: -one[0])
  texts = [text for saved, text in found if saved > 0.02 * result['limit']]
  if result['verdict'] == 'tight' and 'peak' in memory:
    hardware = hardware_lib.find(result['kind'])
    if hardware and memory['peak'] > hardware.pool * result['limit']:
      texts.insert(0, (
          'XLA_PYTHON_CLIENT_MEM_FRACTION=.95 in the environment: JAX takes '
          f'only {hardware.pool:.0%} of a GPU by default.'
      ))
  return texts or ['More devices, or a smaller model.']


def roofline(result: Mapping[str, Any], hardware) -> dict[str, float]:
  """Estimates the seconds of a step if every part runs at the device's peak.

  `best` is the slowest of the three parts, as if they overlap perfectly;
  `worst` is their sum, as if they do not overlap. A real step may be slower
  than both.
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
