"""One process of several that add numbers, and what may happen to it.

A program for hosts_test.py: quick to start, and with the same beginning and end
as all command lines.
"""

import json
import pathlib
import time
from unittest import mock

from absl import flags
from experiments.cli import drivers
from experiments.cli import hosts
import jax
from jax.experimental import multihost_utils
import jax.numpy as jnp
import numpy as np
from rnnzoo import data
from rnnzoo import errors
from rnnzoo.data.text import windows
from rnnzoo.training import sharding
from rnnzoo.training.processes import multihost
from rnnzoo.training.processes import peers

_FAIL = flags.DEFINE_enum(
    'fail', '', ['', 'user', 'bug'], 'How the last process ends, if early.'
)
_READ = flags.DEFINE_bool('read', False, 'Read a batch instead of adding.')
_TIMES = flags.DEFINE_integer('times', 5, 'How often to add.')
_READY = flags.DEFINE_string('ready', '', 'A file to write once it adds.')


BATCH = dict(name='text_file', path='LICENSE', sequence_length=16)


def main(argv):
  drivers.check_usage(argv)
  hosts.join()
  if _READ.value:
    # As JAX deals devices out, and as it may on a torus.
    for order in ([0, 1, 2, 3], [0, 2, 1, 3]):
      read([jax.devices()[i] for i in order])
    return
  mesh = sharding.make_mesh(dict(data=-1, fsdp=1, model=1, sequence=1))
  mine, count = multihost.data_shard(mesh)
  add = jax.jit(jnp.sum, out_shardings=jax.NamedSharding(mesh, jax.P()))
  rows = np.full(jax.local_device_count(), mine + 1)
  rows = sharding.global_batch(mesh, dict(inputs=rows[:, None]))['inputs']
  largest = multihost.Largest(mesh)
  heard = []
  last = jax.process_index() == jax.process_count() - 1
  with peers.leaving_on_errors():
    total = int(add(rows))
    if _READY.value:
      path = pathlib.Path(f'{_READY.value}{jax.process_index()}')
      path.write_text(listening())
    for _ in range(_TIMES.value):
      time.sleep(0.01)
      heard.append(largest(15 if last and len(heard) == 1 else 0))
      if int(add(rows)) != total:
        raise AssertionError('Another sum.')
      if last and _FAIL.value == 'user':
        raise errors.UserValueError('A wrong value\nhere.')
      if last and _FAIL.value == 'bug':
        raise KeyError('A bug.')
  if hosts.is_first():
    print(count, total, heard[:3], multihost.agreed(True))
  else:
    multihost.agreed(False)


def read(devices):
  """Prints how many rows this process has made, and the batch of all."""
  sizes = dict(data=-1, fsdp=1, model=1, sequence=1)
  mesh = sharding.make_mesh(sizes, devices)
  index, count = multihost.data_shard(mesh)
  made, pairs = [], windows.pairs

  def counted(tokens, positions):
    made.append(len(positions))
    return pairs(tokens, positions)

  with mock.patch.object(windows, 'pairs', counted):
    dataset = data.load(
        BATCH, batch_size=8, seed=3, process_index=index, process_count=count
    )
    batch = sharding.global_batch(mesh, dataset.train_batch(5))
  inputs = multihost_utils.process_allgather(batch['inputs'], tiled=True)
  print(json.dumps([made, inputs.tolist()]))


def listening() -> str:
  """Returns the addresses that TCP ports are open at, in the kernel's form."""
  tables = ''.join(
      pathlib.Path(f'/proc/self/net/{name}').read_text()
      for name in ('tcp', 'tcp6')
  )
  lines = [line.split() for line in tables.splitlines()]
  return ' '.join(line[1] for line in lines if line[3] == '0A')


if __name__ == '__main__':
  drivers.run(main)
