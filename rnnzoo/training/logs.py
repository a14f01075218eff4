"""Log lines for a person: the time of day and what is said.

  12:52:24  step 30/300  loss 2.504  16.6k tokens/s  01:06 left

At `--verbosity=1` lines have absl's long form, with process id, file name and
line number, and other libraries are heard too.
"""

import logging as python_logging
import os
import sysconfig

from absl import logging
from rnnzoo import errors

_OURS = os.path.dirname(errors.__file__) + os.sep
_LIBRARIES = tuple(
    sysconfig.get_path(name) + os.sep
    for name in ('stdlib', 'purelib', 'platlib')
)
_PREFIXES = {
    python_logging.WARNING: 'Warning: ',
    python_logging.ERROR: 'Error: ',
    python_logging.CRITICAL: 'Error: ',
}


def set_up() -> None:
  """Shows the log lines of a program, from INFO on; to be called at its start.

  This is a setting of the whole process, so programs call it, not libraries.
  With several processes the first one alone should log at INFO.

  Example::

    >>> from rnnzoo.training import logs
    >>> logs.set_up()
  """
  logging.set_verbosity(logging.INFO)
  # At `--verbosity=1` too: JAX would log each function that it traces.
  python_logging.getLogger('jax').setLevel(python_logging.WARNING)
  handler = logging.get_absl_handler()
  handler.setFormatter(_Formatter())
  handler.addFilter(_is_for_a_person)


class _Formatter(logging.PythonFormatter):
  """Writes the time and the message; absl's long form at `--verbosity=1`."""

  def format(self, record):
    if logging.level_debug():
      return super().format(record)
    time = self.formatTime(record, '%H:%M:%S')
    text = python_logging.Formatter.format(self, record)
    return f'{time}  {_PREFIXES.get(record.levelno, "")}{text}'


def _is_for_a_person(record) -> bool:
  """Returns whether a record is shown: of other libraries only errors are."""
  if logging.level_debug() or record.levelno >= python_logging.ERROR:
    return True
  path = record.pathname
  return path.startswith(_OURS) or not path.startswith(_LIBRARIES)
