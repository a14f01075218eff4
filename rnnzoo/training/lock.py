"""One run a workdir: two would spoil each other's metrics and checkpoints."""

import contextlib
import os
import pathlib
import socket

from absl import logging
import jax
from rnnzoo import errors
from rnnzoo.training import files
from rnnzoo.training import hashing

FILE = '.lock'

_held = set()  # Workdirs that this process holds.


@contextlib.contextmanager
def hold(workdir):
  """Keeps other runs out of a workdir, which is made if missing.

  The lock is the kernel's, on the file `.lock`, and ends with the process,
  however that ends: there are no stale ones. The processes of one run share it,
  the first of them holds it, and all make this call. In one process it may be
  held several times over.

  Args:
    workdir: The directory.

  Raises:
    errors.UserError: If another run holds it, or it cannot be made.
  """
  workdir = pathlib.Path(workdir).resolve()
  if workdir in _held:
    yield
    return
  file, problem = None, None
  if jax.process_index() == 0:
    try:
      file = _lock(workdir)
    except errors.UserError as error:
      problem = error
  (failed,) = hashing.sum_over_processes([int(problem is not None)])
  if failed:
    raise problem or errors.UserError(
        f'The first process cannot use {workdir}.'
    )
  _held.add(workdir)
  try:
    yield
  finally:
    _held.remove(workdir)
    if file is not None:
      file.close()  # And with that unlock it. It stays, to be locked again.


def _lock(workdir):
  """Returns the locked file, open, or `None` where there are no locks."""
  import fcntl  # Not on Windows, where models are to load all the same.

  with files.usable(workdir):
    workdir.mkdir(parents=True, exist_ok=True)
    file = open(workdir / FILE, 'ab+', buffering=0)
  try:
    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
  except BlockingIOError as error:
    file.seek(0)
    owner = file.read().decode().strip() or 'its lock file does not say which'
    file.close()
    raise errors.UserError(
        f'Another run is writing to {workdir}: {owner}. Let it end, or use '
        'another --workdir.'
    ) from error
  except OSError as error:  # Some network file systems.
    file.close()
    logging.warning(
        '%s cannot be locked (%s): see to it that no two runs write to it.',
        workdir, error.strerror,
    )
    return None
  with contextlib.suppress(OSError):  # A full disk: it is locked all the same.
    file.truncate(0)
    file.write(f'process {os.getpid()} on {socket.gethostname()}\n'.encode())
  return file
