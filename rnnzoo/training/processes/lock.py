"""Locks a workdir: two runs would damage each other's files."""

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
  """The locked open files; `file` is `None` if the file system has no locks."""

  file: Any
  directory: int


_held = {}  # Workdir -> `_Held`; `None` in all processes but the first.
_led = {}  # The name that `hold` was given -> the workdir that it led to.


@contextlib.contextmanager
def hold(workdir):
  """Keeps other runs out of a workdir, which is made if missing.

  There are two locks of the kernel: on the file `.lock`, which names the
  process that holds it, and on the directory, which keeps other runs out even
  if somebody removes the file. The kernel releases them when the process ends,
  however it ends, so there are no stale locks. All processes of a run make this
  call; the first of them holds the locks. One process may enter several times.

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
  """Does the work of `hold`, for a path without links."""
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

  That can happen in two ways. The workdir, or a link that leads to it, was
  moved or replaced after `hold`. Or somebody removed `.lock`, the file system
  does not lock directories, and another run has started. A missing `.lock` that
  no other run holds is created again.

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
    # The directory comes first, so that a refused run never holds `.lock`.
    try:
      _flock(directory)
    except BlockingIOError as error:
      raise _another_run(workdir, _read(workdir / FILE)) from error
    held = _Held(_lock_file(workdir), directory)
    opened.pop_all()
  if held.file is None:
    logging.warning(
        '%s cannot be locked: make sure that no two runs write to it.', workdir
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
      # Otherwise somebody removed the file between opening and locking.
      if _is_at(file.fileno(), path):
        if os.fstat(file.fileno()).st_nlink == 1:
          opened.pop_all()
          return file
        path.unlink()  # After `cp -l` another workdir has the same file.


def _read(path) -> bytes:
  """Returns the text of a lock file, without locking it."""
  try:
    with open(path, 'rb', opener=files.open_own) as file:
      return file.read(200)
  except (OSError, errors.UserError):
    return b''


def _sign(file):
  """Writes into the locked file which process holds it."""
  owner = f'process {os.getpid()} on {socket.gethostname()}\n'
  with contextlib.suppress(OSError):  # The disk is full; the lock still holds.
    file.truncate(0)
    file.write(owner.encode())


def _unlock(held: _Held):
  """Closes the files, which unlocks them. `.lock` stays."""
  if held.file is not None:
    held.file.close()
  os.close(held.directory)


def _flock(descriptor: int) -> bool:
  """Locks an open file; returns whether its file system has locks.

  Raises:
    BlockingIOError: If another process holds the lock.
  """
  import fcntl  # Windows has none, and models should load there too.

  try:
    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
  except BlockingIOError:
    raise
  except OSError:  # Some network file systems lock no directories, or nothing.
    return False
  return True


def _is_at(descriptor: int, path) -> bool:
  """Returns whether an open file is the one that lies at a path now."""
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
