"""How a process ends when another process of the run has died: in one line.

Without this module, JAX's collectives raise errors of a dozen kinds or wait for
ever, and JAX's coordination service, which misses the heartbeats of the dead
process, aborts from C++ with pages of stack. Here both become one line and an
exit code. The barriers at the end of a process would wait for the dead process.
Therefore a process that fails exits at once, and the others notice that.
"""

import contextlib
import ctypes
import faulthandler
import os
import re
import signal
import sys
import threading
import traceback

from absl import logging
import jax
from rnnzoo import errors
from rnnzoo.training.processes import signals

# A temporary failure (EX_TEMPFAIL): the same command may succeed.
LOST = 75

_MESSAGE = (
    'Error: process {index} lost another process of the run ({reason}); see '
    'what that one said last. Everything up to the last save is safe: the same '
    'commands go on from there.'
)

# Messages of errors contain one of these if a collective or a barrier failed.
_SIGNS = re.compile(
    r'gloo|nccl|coordination|heartbeat|barrier|distributed service|'
    r'connection (reset|closed|refused)|socket closed|unavailable|'
    r'deadline_exceeded', re.IGNORECASE,
)
# The first line of what C++ logs before it aborts.
_FATAL = re.compile(rb'[EF]\d{4} [\d:.]+ +\d+ (coordination|client)')

# Gloo prints these for each group of processes, from several threads at once.
_GREETING = re.compile(
    rb'\[Gloo\] Rank|is connected to|peer ranks\.|'
    rb'Expected number of connected peer ranks is :|[\d\s]'
)

_leaving = threading.Lock()
_watch = None  # The `_Watch` of this process, once there are several.


def watch(index: int):
  """Makes this process end with one line when another process has died.

  Args:
    index: The number of this process. A second call may correct it.
  """
  global _watch
  if _watch is None:
    _watch = _Watch(index)
  _watch.index = index  # On a cluster the number is known late.


def watched() -> bool:
  """Returns whether `watch` was called, as in a run of several processes."""
  return _watch is not None


def finish(code: int):
  """Waits until the other processes are done; not for those that have died.

  Args:
    code: The exit code, whatever happens from now on: process 0 may close the
      coordination service while another process still wants to sign off there.
  """
  if _watch is None:
    return
  _watch.code = code
  sys.stdout.flush()
  try:
    jax.distributed.shutdown()
  except RuntimeError:
    os._exit(code)


def leave(code: int, message: str):
  """Exits at once, without waiting for any other process.

  Args:
    code: The exit code.
    message: What to print on stderr.
  """
  _leaving.acquire()  # Never released: only the first thread prints.
  with contextlib.suppress(Exception):
    sys.stdout.flush()
  with contextlib.suppress(Exception):
    logging.flush()
    print(message.rstrip(), file=sys.stderr, flush=True)
  os._exit(code)


def leave_lost(reason: str):
  """Exits because another process has died."""
  reason = ' '.join(reason.split())
  reason = reason if len(reason) <= 160 else reason[:157] + '...'
  index = -1 if _watch is None else _watch.index
  leave(LOST, _MESSAGE.format(index=index, reason=reason))


@contextlib.contextmanager
def leaving_on_errors():
  """Exits on an error if there are other processes that would be waited for.

  Enter this inside all contexts whose ends wait for other processes. In a run
  of one process it does nothing. `Interrupted` passes through: all processes
  stop after the same step.
  """
  try:
    yield
  except signals.Interrupted:
    raise
  except Exception as error:
    if _watch is None:
      raise
    leave_on(error)
  except KeyboardInterrupt:
    if _watch is None:
      raise
    leave(130, 'Interrupted.')


def leave_on(error: Exception):
  """Exits with the message that a driver would print for an error."""
  by_user = isinstance(error, errors.UserError)
  # For instance, a save that has waited for a barrier in vain.
  reason = error.__cause__ if by_user else error
  if _SIGNS.search(f'{type(reason).__name__}: {reason}'):
    leave_lost(f'{reason}'.strip().partition('\n')[0])
  if by_user:
    leave(1, f'Error: {" ".join(str(error).split())}')
  leave(1, ''.join(traceback.format_exception(error)))


class _Watch:
  """Filters what C++ prints on stderr, and handles its abort.

  The output of C++ goes through a pipe. A thread passes it on to stderr, except
  for the pages before an abort, for which there is a better explanation, and
  for Gloo's greetings. The output of Python does not go through the pipe.
  """

  def __init__(self, index: int):
    self.index = index
    self.code: int | None = None  # See `finish`.
    self._held = b''  # From the first fatal line on.
    self._ended = threading.Event()
    _move_streams()
    reader, writer = os.pipe()
    for stream in (1, 2):
      os.dup2(writer, stream)
    os.close(writer)
    threading.Thread(target=self._read, args=(reader,), daemon=True).start()
    # Both objects must live as long as the process.
    self._libc = ctypes.CDLL(None)
    self._handler = ctypes.CFUNCTYPE(None, ctypes.c_int)(self._aborted)
    self._libc.signal.argtypes = ctypes.c_int, ctypes.c_void_p
    self._libc.signal(
        signal.SIGABRT, ctypes.cast(self._handler, ctypes.c_void_p)
    )

  def _read(self, reader):
    with os.fdopen(reader, 'rb') as lines:
      for line in lines:
        if self._held or _FATAL.match(line):
          self._held += line
        elif _GREETING.sub(b'', line):
          self._show(line)
    self._ended.set()

  def _show(self, text: bytes):
    with contextlib.suppress(OSError, ValueError):
      os.write(sys.stderr.fileno(), text)

  def _aborted(self, _):
    """Handles SIGABRT, in the thread of C++ that aborts."""
    self._libc.alarm(10)  # Exit even if something below blocks.
    if self.code is not None:
      os._exit(self.code)
    # These are the last writers to the pipe: the reader reaches its end now.
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for stream in (1, 2):
      os.dup2(nowhere, stream)
    self._ended.wait(5)
    text = self._held.decode(errors='replace')
    if 'RegisterTask' in text:
      leave(1, (
          f'Error: process {self.index} cannot join the others: not all of '
          'them have started, or their coordinator cannot be reached.'
      ))
    if 'distributed service' in text or 'coordination' in text:
      leave_lost(_reason(text))
    leave(128 + signal.SIGABRT, text or 'Aborted.')


def _reason(text: str) -> str:
  """Returns what the coordination service has noticed."""
  found = re.search(r'stopped sending heartbeats\):\s+([\d,\s]*\d)', text)
  if found:
    return f'no heartbeat of process {found[1]}'
  if 'Socket closed' in text or 'PollForError' in text:
    return 'the coordinator, process 0, does not answer'
  return 'says the coordination service'


def _move_streams():
  """Gives Python's streams descriptors of their own, apart from C++."""
  handler = logging.get_absl_handler().python_handler
  for number, name in ((1, 'stdout'), (2, 'stderr')):
    old = getattr(sys, name)
    old.flush()
    new = os.fdopen(
        os.dup(number), 'w', buffering=1, encoding=old.encoding,
        errors=old.errors,
    )
    if handler.stream is old:
      handler.stream = new
    setattr(sys, name, new)
  if faulthandler.is_enabled():  # It holds the old descriptor.
    faulthandler.enable(file=sys.stderr)
