"""One run a workdir: two would spoil each other's metrics and checkpoints."""

import contextlib
import os
import re
import socket
from typing import Any, NamedTuple

from absl import logging
import jax
from rnnzoo import errors
from rnnzoo.training import files
from rnnzoo.training.processes import multihost

FILE = '.lock'


class _Held(NamedTuple):
  """The locks on a workdir: open files, `file` `None` if there are no locks."""

  file: Any
  directory: int


_held = {}  # By workdir, what this process holds; `None` if not the first.
_led = {}  # By the name that `hold` was given, the workdir it led to.


@contextlib.contextmanager
def hold(workdir):
  """Keeps other runs out of a workdir, which is made if missing.

  The locks are the kernel's, on the file `.lock`, which says who holds it, and
  on the directory, which still keeps others out when somebody removes the file.
  They end with the process, however that ends: there are no stale ones. The
  processes of one run share them, the first of them holds them, and all make
  this call. In one process they may be held several times over.

  Args:
    workdir: The directory.

  Raises:
    errors.UserError: If another run holds it, or it cannot be made.
  """
  name = files.workdir(workdir)
  if name in _led:
    yield
    return
  _led[name] = name.resolve()
  try:
    with _holding(_led[name]):
      yield
  finally:
    del _led[name]


@contextlib.contextmanager
def _holding(workdir):
  """`hold`, for a name without links."""
  if workdir in _held:
    yield
    return
  held, problem = None, None
  if jax.process_index() == 0:
    try:
      held = _lock(workdir)
    except errors.UserError as error:
      problem = error
  (failed,) = multihost.sum_over_processes([int(problem is not None)])
  if failed:
    raise problem or errors.UserError(
        f'The first process cannot use {workdir}.'
    )
  _held[workdir] = held
  try:
    yield
  finally:
    held = _held.pop(workdir)
    if held is not None:
      _unlock(held)


def check(workdir):
  """Raises `UserError` if another run may be writing to a workdir by now.

  That is so where the workdir, or a link that leads to it, was moved or
  replaced after `hold`; or where somebody removed `.lock`, the file system does
  not lock directories, and another run came in. A `.lock` that nobody else
  holds is made again.

  Args:
    workdir: The directory; nothing is checked unless this process holds it.
  """
  name = files.workdir(workdir)
  workdir = _led.get(name) or name.resolve()
  held = _held.get(workdir)
  if held is None:
    return
  if not _is_at(held.directory, name.resolve()):
    raise errors.UserError(
        f'{name} is no longer the directory that this run began to write to: '
        'somebody moved or removed it, or a link that leads to it. Start the '
        'same command again to resume from the files that are there now.'
    )
  if held.file is not None and not _is_at(held.file.fileno(), workdir / FILE):
    with files.usable(workdir):
      file = _lock_file(workdir)
    if file is not None:
      _sign(file)
    logging.warning(
        '%s was deleted during the run. It was created again.', workdir / FILE
    )
    held.file.close()
    _held[workdir] = held._replace(file=file)


def _lock(workdir) -> _Held:
  with files.usable(workdir), contextlib.ExitStack() as opened:
    workdir.mkdir(parents=True, exist_ok=True)
    directory = os.open(workdir, os.O_RDONLY | getattr(os, 'O_DIRECTORY', 0))
    opened.callback(os.close, directory)
    # First, so that who is refused has not held `.lock` either.
    try:
      _flock(directory)
    except BlockingIOError as error:
      raise _another_run(workdir, _read(workdir / FILE)) from error
    held = _Held(_lock_file(workdir), directory)
    opened.pop_all()
  if held.file is None:
    logging.warning(
        '%s cannot be locked: see to it that no two runs write to it.', workdir
    )
  else:
    _sign(held.file)
  return held


def _lock_file(workdir):
  """Returns the locked file, open, or `None` where there are no locks."""
  path = workdir / FILE
  while True:
    with contextlib.ExitStack() as opened:
      file = opened.enter_context(
          open(path, 'ab+', buffering=0, opener=files.open_own)
      )
      try:
        locked = _flock(file.fileno())
      except BlockingIOError as error:
        raise _another_run(workdir, _read(path)) from error
      if not locked:
        return None
      # Else somebody removed it between opening and locking.
      if _is_at(file.fileno(), path):
        if os.fstat(file.fileno()).st_nlink == 1:
          opened.pop_all()
          return file
        path.unlink()  # As of `cp -l`: the file is another workdir's too.


def _read(path) -> bytes:
  """Returns what a lock file says, without locking it."""
  try:
    with open(path, 'rb', opener=files.open_own) as file:
      return file.read(200)
  except (OSError, errors.UserError):
    return b''


def _sign(file):
  """Writes who holds it into the locked file."""
  owner = f'process {os.getpid()} on {socket.gethostname()}\n'
  with contextlib.suppress(OSError):  # A full disk: it is locked all the same.
    file.truncate(0)
    file.write(owner.encode())


def _unlock(held: _Held):
  """Closes the files, and with that unlocks them. `.lock` stays."""
  if held.file is not None:
    held.file.close()
  os.close(held.directory)


def _flock(descriptor: int) -> bool:
  """Locks an open file; returns whether its file system has locks.

  Raises:
    BlockingIOError: If another process holds the lock.
  """
  import fcntl  # Not on Windows, where models are to load all the same.

  try:
    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
  except BlockingIOError:
    raise
  except OSError:  # Some network file systems, or for directories only.
    return False
  return True


def _is_at(descriptor: int, path) -> bool:
  """Whether an open file is the one that lies at a path now."""
  try:
    return os.path.samestat(os.fstat(descriptor), os.lstat(path))
  except OSError:
    return False


def _another_run(workdir, text: bytes) -> errors.UserError:
  found = re.match(r'process \d+ on \S+', text.decode(errors='replace'))
  owner = found[0] if found else 'its lock file does not say which'
  return errors.UserError(
      f'Another run is writing to {workdir}: {owner}. Let it end, or use '
      'another --workdir.'
  )
