r"""Runs a command as several processes of this machine, as a cluster would.

  python -m experiments.local_cluster --processes=2 experiments.train \
      --config=experiments/configs/quickstart.py --workdir=runs/two

Each line of the output begins with the index of its process. The exit code is
that of the process that failed first by itself. A signal is passed on to all
processes.
"""

import contextlib
import ctypes
import os
import pathlib
import signal
import socket
import subprocess
import sys
import threading
import time

from absl import app
from absl import flags
from experiments.cli import drivers
from rnnzoo.training.processes import peers

_PROCESSES = flags.DEFINE_integer(
    'processes', 2, 'The number of processes.', lower_bound=1
)
_DEVICES = flags.DEFINE_integer(
    'devices', 0,
    'The number of virtual CPU devices of each process; 0 means the devices '
    'that JAX finds.', lower_bound=0,
)
_LOG = drivers.define_path('log', '', 'Write all lines to this file too.')
_GRACE = flags.DEFINE_integer(
    'grace', 60,
    'After a failure, the seconds to wait until the other processes end by '
    'themselves; then end them.', lower_bound=1,
)


def main(argv):
  if len(argv) < 2:
    raise app.UsageError('Which program? Such as experiments.train.')
  module, words = argv[1], argv[2:]
  with contextlib.ExitStack() as stack:
    log = None
    if _LOG.value:
      pathlib.Path(_LOG.value).parent.mkdir(parents=True, exist_ok=True)
      log = stack.enter_context(open(_LOG.value, 'w', encoding='utf-8'))
    sys.exit(run(
        module, words, _PROCESSES.value, _DEVICES.value, _GRACE.value, log
    ))


def run(module, words, count, devices, grace, log=None) -> int:
  """Runs all processes to their end.

  Args:
    module: The module to run.
    words: Its command line.
    count: The number of processes.
    devices: The number of virtual CPU devices of each; 0 for those of JAX.
    grace: The seconds between a failure and the end of all processes.
    log: A file for a copy of all output.

  Returns:
    The first exit code that is not 0. `peers.LOST` counts only if no process
    has another one.
  """
  address = f'127.0.0.1:{free_port()}'
  processes = [
      start(module, words, address, count, i, devices) for i in range(count)
  ]
  for signum in (signal.SIGINT, signal.SIGTERM):
    signal.signal(signum, lambda number, _: _pass_on(processes, number))

  def say(line, out=sys.stderr):
    for file in filter(None, (out, log)):
      file.write(line + '\n')
      file.flush()

  say(f'{count} processes of {" ".join([module, *words])}')

  def copy(index, stream, out):
    for line in stream:
      say(f'[{index}] {line.rstrip()}', out)

  threads = [
      threading.Thread(target=copy, args=(i, stream, out))
      for i, process in enumerate(processes)
      for stream, out in (
          (process.stdout, sys.stdout), (process.stderr, sys.stderr)
      )
  ]
  for thread in threads:
    thread.start()
  code = _wait(processes, grace, say)
  for thread in threads:
    thread.join()
  return code


def start(module, words, address, count, index, devices=0):
  """Starts process `index` of `count`; returns its `subprocess.Popen`."""
  environment = dict(os.environ, PYTHONUNBUFFERED='1')
  if devices:
    environment['XLA_FLAGS'] = (
        environment.get('XLA_FLAGS', '')
        + f' --xla_force_host_platform_device_count={devices}'
    )
  return subprocess.Popen(
      [
          sys.executable, '-m', module, *words,
          f'--coordinator_address={address}', f'--num_processes={count}',
          f'--process_id={index}',
      ],
      env=environment, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
      stderr=subprocess.PIPE, text=True, errors='replace',
      # Ctrl-C reaches them only through this process.
      start_new_session=True, preexec_fn=_die_with_parent,
  )


def _die_with_parent():
  """Under Linux, ends this process when the one that started it is killed."""
  if sys.platform == 'linux':
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG


def free_port() -> int:
  """Returns a port of the loopback interface that nobody listens on."""
  with socket.socket() as found:
    found.bind(('127.0.0.1', 0))
    return found.getsockname()[1]


def _pass_on(processes, signum):
  for process in processes:
    process.send_signal(signum)  # Has no effect after the end.


def _wait(processes, grace, say):
  """Waits for all processes; returns the exit code, see `run`."""
  code, end = 0, None
  running = dict(enumerate(processes))
  while running:
    for index, process in [*running.items()]:
      if (found := process.poll()) is None:
        continue
      del running[index]
      if found < 0:
        say(f'[{index}] ended by {signal.Signals(-found).name}')
        found = 128 - found  # As a shell would say it.
      if found and not code:
        end = time.monotonic() + grace
      if found and code in (0, peers.LOST):
        code = found
    if end is not None and time.monotonic() > end:
      for index, process in running.items():
        say(f'[{index}] does not end: killed')
        process.kill()
      end = None
    time.sleep(0.05)
  return code


if __name__ == '__main__':
  flags.FLAGS.set_gnu_getopt(False)  # Flags after the program are its own.
  drivers.run(main)
