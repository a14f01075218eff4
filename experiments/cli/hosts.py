r"""The flags that make a program one process of several.

  python -m experiments.train ... --multihost

where a cluster says who is who, or on each machine

  python -m experiments.train ... --coordinator_address=node0:1234 \
      --num_processes=2 --process_id=0
"""

from absl import flags
from absl import logging
import jax
from rnnzoo.training.processes import multihost
from rnnzoo.training.processes import peers

_MULTIHOST = flags.DEFINE_bool(
    'multihost', False,
    'Join the other processes of the cluster. Slurm (under srun), Cloud TPU, '
    'GKE with TPUs and Open MPI are detected.',
)
_COORDINATOR = flags.DEFINE_string(
    'coordinator_address', None,
    'The address of process 0, as HOST:PORT. It is needed where no cluster is '
    'detected.',
)
_NUM_PROCESSES = flags.DEFINE_integer(
    'num_processes', None, 'The number of processes of the run.'
)
_PROCESS_ID = flags.DEFINE_integer(
    'process_id', None, 'The index of this process, from 0.'
)
_BIND_ADDRESS = flags.DEFINE_string(
    'coordinator_bind_address', None,
    'The address at which process 0 listens, as HOST:PORT. The default is '
    '--coordinator_address, so at 127.0.0.1 only this machine can connect; in '
    'a detected cluster it is all interfaces. Connections need no password.',
)
_HEARTBEAT = flags.DEFINE_integer(
    'heartbeat_timeout', multihost.HEARTBEAT_SECONDS,
    'The seconds without a sign of life after which a process counts as dead.',
    lower_bound=1, upper_bound=10**6,
)
_START_TIMEOUT = flags.DEFINE_integer(
    'start_timeout', multihost.START_SECONDS,
    'The seconds within which all processes must start.',
    lower_bound=1, upper_bound=10**6,
)


def join():
  """Joins the other processes if the flags say so; `main` calls it first."""
  given = _COORDINATOR.value, _NUM_PROCESSES.value, _PROCESS_ID.value
  if not _MULTIHOST.value and given == (None,) * 3:
    return
  multihost.initialize(
      *given,
      bind_address=_BIND_ADDRESS.value,
      heartbeat_seconds=_HEARTBEAT.value,
      start_seconds=_START_TIMEOUT.value,
  )
  if is_first():
    logging.info('%d processes.', jax.process_count())
  else:
    logging.set_verbosity(logging.WARNING)


def is_first() -> bool:
  """Returns whether this is the process that reports to the user."""
  return not peers.watched() or jax.process_index() == 0
