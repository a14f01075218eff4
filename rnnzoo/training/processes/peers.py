"""How one process of several ends when another has died: with one message.

JAX's collectives then raise errors of a dozen kinds, or wait for ever; its
coordination service notices the missing heartbeats and aborts the process from
C++, with pages of stack. Here both become one line and an exit code. Barriers
at the end of a process would wait for the dead: a process that fails leaves at
once, and with that the others notice that it is gone.
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

# What a shell calls a temporary failure: the same command may succeed.
LOST = 75

_MESSAGE = (
    'Error: process {index} lost another process of the run ({reason}); see '
    'what that one said last. Everything up to the last save is safe: the same '
    'commands go on from there.'
)

# In messages of errors, if a collective or a barrier has failed.
_SIGNS = re.compile(
    r'gloo|nccl|coordination|heartbeat|barrier|distributed service|'
    r'connection (reset|closed|refused)|socket closed|unavailable|'
    r'deadline_exceeded', re.IGNORECASE,
)
# The first line of what C++ logs before it aborts.
_FATAL = re.compile(rb'[EF]\d{4} [\d:.]+ +\d+ (coordination|client)')

# What Gloo says of each group of processes, by several threads at once.
_GREETING = re.compile(
    rb'\[Gloo\] Rank|is connected to|peer ranks\.|'
    rb'Expected number of connected peer ranks is :|[\d\s]'
)

_leaving = threading.Lock()
_watch = None  # The `_Watch` of this process, once there are several.


def watch(index: int):
  """Makes this process, number `index`, end readably when another has died."""
  global _watch
  if _watch is None:
    _watch = _Watch(index)
  _watch.index = index  # Known late where the cluster says who is who.


def watched() -> bool:
  """Whether `watch` has been called: this is a run of several processes."""
  return _watch is not None


def finish(code: int):
  """Waits until the others have done all too; not for those that are gone.

  Args:
    code: The exit code, whatever happens now: in the moments when all leave,
      process 0 may close the coordination service while another is still about
      to say goodbye.
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
  """Ends the process at once, without waiting for any other.

  Args:
    code: The exit code.
    message: What to print on stderr.
  """
  _leaving.acquire()  # For good: who comes second has nothing to add.
  with contextlib.suppress(Exception):
    sys.stdout.flush()
  with contextlib.suppress(Exception):
    logging.flush()
    print(message.rstrip(), file=sys.stderr, flush=True)
  os._exit(code)


def leave_lost(reason: str):
  """Ends the process because another one is gone."""
  reason = ' '.join(reason.split())
  reason = reason if len(reason) <= 160 else reason[:157] + '...'
  leave(LOST, _MESSAGE.format(index=_watch.index, reason=reason))


@contextlib.contextmanager
def leaving_on_errors():
  """Ends the process on an error, if there are others that it would wait for.

  To be entered inside all contexts whose ends wait for other processes. In a
  run of one process nothing is different, and a run that is asked to stop does
  so on all of them.
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
  """Ends the process with what a driver would print of an error."""
  by_user = isinstance(error, errors.UserError)
  # What a save says of a barrier that it waited for in vain, say.
  reason = error.__cause__ if by_user else error
  if _SIGNS.search(f'{type(reason).__name__}: {reason}'):
    leave_lost(f'{reason}'.strip().partition('\n')[0])
  if by_user:
    leave(1, f'Error: {" ".join(str(error).split())}')
  leave(1, ''.join(traceback.format_exception(error)))


class _Watch:
  """Stands between C++ and stderr, and between its abort and the end.

  What C++ prints passes through a pipe to stderr: all but the pages before an
  abort that has a better explanation, and Gloo's greetings. What Python prints
  does not take part.
  """

  def __init__(self, index: int):
    self.index = index
    self.code = None  # See `finish`.
    self._held = b''  # From the first fatal line on.
    self._ended = threading.Event()
    _move_streams()
    reader, writer = os.pipe()
    for stream in (1, 2):
      os.dup2(writer, stream)
    os.close(writer)
    threading.Thread(target=self._read, args=(reader,), daemon=True).start()
    # Both must live as long as the process.
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
    """The handler of SIGABRT, in the thread of C++ that aborts."""
    self._libc.alarm(10)  # Whatever happens here, it ends.
    if self.code is not None:
      os._exit(self.code)
    # The last writers to the pipe, so that the reader reaches its end.
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
  """What the coordination service found wrong."""
  found = re.search(r'stopped sending heartbeats\):\s+([\d,\s]*\d)', text)
  if found:
    return f'no heartbeat of process {found[1]}'
  if 'Socket closed' in text or 'PollForError' in text:
    return 'the coordinator, process 0, does not answer'
  return 'says the coordination service'


def _move_streams():
  """Gives what Python prints descriptors of its own, beside those of C++."""
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
  if faulthandler.is_enabled():  # It remembers a descriptor.
    faulthandler.enable(file=sys.stderr)
