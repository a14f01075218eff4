"""Trains one case on one mesh."""

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
  """Trains a case on one mesh; returns its entry of `meshes.json`.

  Args:
    case: A `cases.Case`.
    sizes: The sizes of `(data, fsdp, model, sequence)`.
    state: The first state, on any devices.
    batches: A batch for each step.

  Returns:
    A dictionary: `losses` and their `digest`, the bytes of the state on one
    device and in total, `activations_moved` and the `seconds` that it took.
  """
  start = time.monotonic()
  mesh = _mesh(sizes)
  with jax.set_mesh(mesh):
    program = program_lib.make_program(case.task, case.config, mesh)
    # A copy, because the step may overwrite its state.
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

  The length of a sequence is a multiple of `cases.PRIME`, and no other size is.
  Hence the size of an activation is a multiple of it, and that of a parameter
  is not. All-reduces do not count: sums over an axis that devices share need
  them.
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
