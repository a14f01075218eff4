"""What is different around Orbax while a `Checkpointer` is open.

Orbax loses memory, writes dozens of log lines for each save, and leaves
tracebacks of its threads when a save or a restore fails. All of it is set right
when the first `Checkpointer` opens, and put back when the last one is closed.
After a failed save or restore the process stays quiet: the abandoned coroutines
may report much later, even at its end.
"""

import contextlib
import gc
import logging as python_logging
import os
import sys
import threading
import traceback as python_traceback
import warnings

from absl import logging
import orbax.checkpoint as ocp
from rnnzoo.training.checkpoint import leaks

_ORBAX = os.path.dirname(ocp.__file__)

_lock = threading.Lock()
_users = 0  # Open checkpointers.
_has_failed = False  # Whether a save or a restore has failed.
_undo = contextlib.ExitStack()


@contextlib.contextmanager
def applied():
  """To be entered by each `Checkpointer`, in any order with others."""
  global _users
  with _lock:
    if not _users:
      _undo.enter_context(leaks.avoided())
      _undo.enter_context(_quiet())
    _users += 1
  try:
    yield
  finally:
    with _lock:
      _users -= 1
      if not _users:
        _undo.close()


def drop_leftovers(error: BaseException) -> None:
  """Frees what Orbax has begun and given up, without Python's complaints.

  Reading or writing one array has failed; the coroutines of the others are
  referred to by the frames of the error. Python warns of a coroutine that was
  never awaited when it collects it.

  Args:
    error: The error that Orbax raised; the local variables of its frames go.
  """
  global _has_failed
  _has_failed = True
  with warnings.catch_warnings():
    warnings.simplefilter('ignore', RuntimeWarning)
    failed: BaseException | None = error
    while failed is not None:
      python_traceback.clear_frames(failed.__traceback__)
      failed = failed.__cause__ or failed.__context__
    gc.collect()


@contextlib.contextmanager
def _quiet():
  """Hides Orbax's log lines and what its abandoned coroutines report."""
  show = sys.unraisablehook

  def hide_leftovers(unraisable):
    # Orbax closes the event loop that TensorStore still reports to, and Python
    # prints a traceback for each array, here or in the log of asyncio.
    if not _from_orbax(unraisable.exc_value, unraisable.exc_traceback):
      show(unraisable)

  loggers = [
      logger for logger in
      (logging.get_absl_logger(), python_logging.getLogger('asyncio'))
      if _is_shown not in logger.filters
  ]
  for logger in loggers:
    logger.addFilter(_is_shown)
  sys.unraisablehook = hide_leftovers
  try:
    yield
  finally:
    if not _has_failed:
      for logger in loggers:
        logger.removeFilter(_is_shown)
      if sys.unraisablehook is hide_leftovers:
        sys.unraisablehook = show


def _is_shown(record) -> bool:
  """Keeps Orbax's own log lines for `--verbosity=1`.

  Its errors are hidden too: they come with a traceback, and `save`, `wait` and
  `restore` raise what they say in one sentence.
  """
  _, error, traceback = record.exc_info or (None, None, None)
  quiet = record.pathname.startswith(_ORBAX)
  if record.name == 'asyncio':
    quiet = _from_orbax(error, traceback)
  return not quiet or logging.level_debug()


def _from_orbax(error: BaseException | None, traceback) -> bool:
  while traceback is not None:
    if traceback.tb_frame.f_code.co_filename.startswith(_ORBAX):
      return True
    traceback = traceback.tb_next
  # Errors of TensorStore, Orbax's engine, arrive without a frame of either.
  return 'OCDBT' in str(error) or str(error) == 'Event loop is closed'
