"""Several processes that run the same program, each on its own devices.

JAX's multi-controller runtime does the work. This module starts it, and makes
the processes agree where they must. All of them need one file system for the
workdir.
"""

import itertools
import math
import os
import re
import time
from typing import Any

import jax
from jax._src import distributed
from jax.experimental import multihost_utils
import jax.numpy as jnp
import numpy as np
from rnnzoo import errors
from rnnzoo.training import files
from rnnzoo.training.processes import peers

# A process counts as dead after so long without a heartbeat.
HEARTBEAT_SECONDS = 20
# All processes have to start within this time.
START_SECONDS = 300


def initialize(
    coordinator_address: str | None = None,
    num_processes: int | None = None,
    process_id: int | None = None,
    *,
    bind_address: str | None = None,
    heartbeat_seconds: int = HEARTBEAT_SECONDS,
    start_seconds: int = START_SECONDS,
):
  """Joins the processes of a run; call it before JAX computes anything.

  Without arguments the cluster provides them: Slurm, Cloud TPU, GKE with TPU,
  Open MPI. From then on, if one process fails, all of them end within a minute.

  Args:
    coordinator_address: `host:port` of process 0; any free port will do.
    num_processes: How many processes the run has.
    process_id: The number of this process, from 0.
    bind_address: Where process 0 listens. If `None`, only at the coordinator's
      address (so only on the loopback interface if that is a loopback address),
      and on all interfaces if the cluster names the coordinator.
    heartbeat_seconds: A process counts as dead after so long without a
      heartbeat.
    start_seconds: How long to wait for the other processes.

  Raises:
    UserError: If the arguments do not describe a run, or the processes do not
      find each other.
  """
  given: dict[str, Any] = dict(
      coordinator_address=coordinator_address, num_processes=num_processes,
      process_id=process_id,
  )
  missing = [name for name, value in given.items() if value is None]
  if missing and len(missing) < len(given):
    raise errors.UserValueError(
        f'{", ".join(given)} belong together; {", ".join(missing)} is missing.'
    )
  if not missing:
    _check(coordinator_address, num_processes, process_id)
    bind_address = bind_address or os.environ.get(
        'JAX_COORDINATOR_BIND_ADDRESS', coordinator_address
    )
  # JAX's handler of SIGTERM would replace ours, see signals.py.
  jax.config.update('jax_enable_preemption_service', False)
  options: dict[str, Any] = dict(
      coordinator_bind_address=bind_address,
      heartbeat_timeout_seconds=heartbeat_seconds,
      initialization_timeout=start_seconds,
      # The first process still writes when the others are done.
      shutdown_timeout_seconds=3600,
  )
  if not missing:
    options['cluster_detection_method'] = 'deactivate'
  peers.watch(-1 if process_id is None else process_id)
  try:
    jax.distributed.initialize(**given, **options)
  except (RuntimeError, ValueError, OSError) as error:
    raise errors.UserError(_what_failed(error, missing)) from error
  peers.watch(jax.process_index())


def _check(address, num_processes, process_id):
  if not re.fullmatch(r'.+:\d+', address):
    raise errors.UserValueError(
        f'coordinator_address must be host:port, got {address!r}.'
    )
  if num_processes < 1 or not 0 <= process_id < num_processes:
    raise errors.UserValueError(
        'process_id must be from 0 to num_processes - 1, got '
        f'process_id={process_id} and num_processes={num_processes}.'
    )


def _what_failed(error, missing):
  text = ' '.join(str(error).split())
  if missing and ('should be' in text or 'must be defined' in text):
    return (
        '--multihost finds no cluster that it knows here (Slurm under srun, '
        'Cloud TPU, GKE with TPU, Open MPI). Say who is who with '
        '--coordinator_address, --num_processes and --process_id.'
    )
  return f'This process cannot join the others: {text}.'


def data_shard(
    mesh, process_of=lambda device: device.process_index
) -> tuple[int | tuple[int, ...], int]:
  """Returns which rows of a batch this process reads.

  They are the rows that its devices hold. Processes whose devices hold the same
  rows, as when the mesh axis `model` spans several processes, read the same.

  Args:
    mesh: The mesh; a batch is sharded over its axes `data` and `fsdp`.
    process_of: Maps a device to the number of its process.

  Returns:
    `(index, count)`: a batch has `count` equal parts, and this process reads
    part number `index`; or several parts, if the layout of the mesh separates
    them.

  Raises:
    UserValueError: If two processes share only some of their rows.
  """
  rows = mesh.shape['data'] * mesh.shape['fsdp']
  sharding = jax.NamedSharding(mesh, jax.P(('data', 'fsdp')))
  held = {}
  for device, (index,) in sharding.devices_indices_map((rows,)).items():
    first = index.indices(rows)[0]
    held.setdefault(process_of(device), set()).add(first)
  parts = {tuple(sorted(part)) for part in held.values()}
  if sum(map(len, parts)) != rows or len({*map(len, parts)}) != 1:
    raise errors.UserValueError(
        f'mesh.data {mesh.shape["data"]} x mesh.fsdp {mesh.shape["fsdp"]} '
        f'does not deal equal parts of a batch to the {len(held)} processes.'
    )
  mine = tuple(sorted(held[jax.process_index()]))
  first, width = mine[0], len(mine)
  if mine == (*range(first, first + width),) and first % width == 0:
    return first // width, rows // width
  return mine, rows


def sharing_devices(
    batch_size: int,
) -> list[jax.Device]:  # pyright: ignore[reportInvalidTypeForm]
  """Returns as many devices as can share a batch evenly.

  There are equally many of each process.

  Raises:
    UserValueError: If the processes cannot share the batch evenly.
  """
  rows, rest = divmod(batch_size, jax.process_count())
  if rest:
    raise errors.UserValueError(
        f'batch_size {batch_size} must be a multiple of the number of '
        f'processes, {jax.process_count()}.'
    )
  count = math.gcd(rows, jax.local_device_count())
  return [
      device
      for index in range(jax.process_count())
      for device in jax.local_devices(index)[:count]
  ]


def check_shared(workdir, seconds: float = 30):
  """Raises `UserError` unless all processes see the same workdir.

  Args:
    workdir: A directory with `config.json`, which process 0 has made.
    seconds: How long a network file system may take to show it to all.
  """
  if jax.process_count() == 1:
    return
  multihost_utils.sync_global_devices('rnnzoo_check_shared')
  path = files.workdir(workdir) / 'config.json'
  end = time.monotonic() + seconds
  while not (found := path.exists()) and time.monotonic() < end:
    time.sleep(0.5)
  seen = multihost_utils.process_allgather(np.array([found]))
  if not seen.all():
    blind = ', '.join(map(str, np.flatnonzero(~seen)))
    raise errors.UserError(
        f'--workdir={workdir} of process 0 is not there for process {blind}: '
        'all processes need one file system.'
    )


def meeting(step):
  """Returns a jitted function; calls that compile start everywhere at once.

  Gloo fails if one process begins a collective 30 seconds after another, and
  processes may take different times to compile.

  Args:
    step: A jitted function, whose last argument is a batch. Nothing else may
      have another shape than before.
  """
  if jax.process_count() == 1:
    return step
  met = set()

  def run(*args):
    shapes = tuple(u.shape for u in jax.tree.leaves(args[-1]))
    if shapes not in met:
      step.lower(*args).compile()  # The call below finds it compiled.
      _meet()
      met.add(shapes)
    return step(*args)

  return run


_meetings = itertools.count()


def _meet():
  """Waits for all processes, as long as they are alive."""
  # JAX's public barriers are collectives themselves; Orbax uses this one too.
  client = distributed.global_state.client
  assert client is not None  # There are several processes.
  client.wait_at_barrier(f'rnnzoo_{next(_meetings)}', 24 * 3600 * 1000)


def agreed(value: bool) -> bool:
  """Returns the value of process 0; all processes call this together."""
  if jax.process_count() == 1:
    return value
  return bool(multihost_utils.broadcast_one_to_all(np.array(value)))


def sum_over_processes(values: list[int]) -> list[int]:
  """Returns the sum of each of `values` over all processes, modulo 2^64."""
  if jax.process_count() == 1:
    return values
  # As pairs of 32-bit words, because JAX has 64-bit integers only under x64.
  halves = np.array(values, np.uint64).view(np.uint32)
  gathered = np.asarray(multihost_utils.process_allgather(halves))
  words = np.ascontiguousarray(gathered).view(np.uint64)
  return [int(x) for x in words.sum(axis=0, dtype=np.uint64)]


class Largest:
  """The largest of the numbers that the processes pass in, one call later.

  One process alone may receive a signal, and all have to act on it after the
  same step. Each call costs a small collective, which nothing waits for.
  """

  def __init__(self, mesh):
    """Compiles nothing yet.

    Args:
      mesh: The mesh of the run.
    """
    self._sharding = jax.NamedSharding(mesh, jax.P(mesh.axis_names))
    self._count = len(mesh.local_devices)
    self._largest = jax.jit(
        jnp.max, out_shardings=jax.NamedSharding(mesh, jax.P())
    )
    self._under_way = None

  def __call__(self, number: int) -> int:
    """Passes in a number; returns the largest of the previous call."""
    if jax.process_count() == 1:
      return number
    mine = np.full(self._count, number, np.int32)
    before, self._under_way = self._under_way, self._largest(
        jax.make_array_from_process_local_data(self._sharding, mine)
    )
    return 0 if before is None else int(jax.block_until_ready(before))
