"""One case of `cases` trained on one mesh."""

import hashlib
import math
import re
import time

from experiments.meshes import cases
import jax
import numpy as np
from rnnzoo.testing import cases as testing_cases
from rnnzoo.training import program as program_lib
from rnnzoo.training import sharding

_MOVES = re.compile(
    r' = (\(?\w+\[.*?) (all-gather|all-to-all|collective-permute|'
    r'reduce-scatter)(?:-start)?\('
)


def run(case, sizes, state, batches):
  """Trains a case on one mesh; returns what `meshes.json` says of it.

  Args:
    case: A `cases.Case`.
    sizes: Of `(data, fsdp, model, sequence)`; all of them 1 for one device.
    state: The state to start from, anywhere.
    batches: One for each step.

  Returns:
    A dictionary: `losses`, `digest` of them, bytes of the state on a device and
    of all of it, and `activations_moved`.
  """
  start = time.monotonic()
  mesh = _mesh(sizes)
  with jax.set_mesh(mesh):
    program = program_lib.make_program(case.task, case.config, mesh)
    # Copied: the step may write where its state lay.
    state = jax.device_put(jax.device_get(state), program.shardings)
    bytes_of = lambda leaf: leaf.addressable_shards[0].data.nbytes
    here = sum(map(bytes_of, jax.tree.leaves(state)))
    lowered = program.train_step.lower(
        state, sharding.global_batch(mesh, batches[0])
    )
    options = testing_cases.quick_options() if case.quick else None
    compiled = lowered.compile(options)
    losses = []
    for batch in batches:
      state, metrics = compiled(state, sharding.global_batch(mesh, batch))
      losses.append(float(metrics['loss']))
  return dict(
      losses=losses,
      digest=hashlib.sha256(np.float32(losses).tobytes()).hexdigest()[:8],
      state_bytes=here,
      all_state_bytes=sum(leaf.nbytes for leaf in jax.tree.leaves(state)),
      activations_moved=activations_moved(compiled.as_text()),
      seconds=round(time.monotonic() - start, 1),
  )


def first_state(case, sizes=cases.ONE):
  """Returns the state before the first step."""
  mesh = _mesh(sizes)
  with jax.set_mesh(mesh):
    program = program_lib.make_program(case.task, case.config, mesh)
    make = jax.jit(program.make_state, out_shardings=program.shardings)
    return make.lower().compile(testing_cases.quick_options())()


def activations_moved(text: str) -> dict[str, int]:
  """Returns the largest activation that each kind of collective moves.

  Sequences have a multiple of `cases.PRIME` tokens, and nothing else has: so
  does the size of what is as long as time, and of no parameter. All-reduces are
  not looked at: products summed over a shared axis need them.
  """
  largest = {}
  for result, kind in _MOVES.findall(text):
    for shape in re.findall(r'\w+\[([\d,]*)\]', result):
      size = math.prod(int(n) for n in shape.split(',') if n)
      if size % cases.PRIME == 0:
        largest[kind] = max(size, largest.get(kind, 0))
  return largest


def _mesh(sizes):
  return sharding.make_mesh(
      dict(zip(sharding.MESH_AXES, sizes)), jax.devices()[: math.prod(sizes)]
  )
