"""Command lines: `python -m experiments.train` and the others.

Python runs this file before any of them, so it is light and comes first.
"""

import os
import sys


def _open_missing_streams():
  """Opens /dev/null where `>&-` closed stdin, stdout or stderr.

  Otherwise the next file that is opened takes their number, and what is printed
  goes into it.
  """
  for number, name in enumerate(('stdin', 'stdout', 'stderr')):
    try:
      os.fstat(number)
    except OSError:
      os.open(os.devnull, os.O_RDWR)  # The lowest free number, which this is.
    if getattr(sys, name) is None:
      stream = open(number, 'w' if number else 'r', closefd=False)
      setattr(sys, name, stream)


def _say_interrupted(kind, error, trace):
  """Prints one line for Ctrl-C during imports; see cli/drivers.py for later."""
  if issubclass(kind, KeyboardInterrupt):
    print('Interrupted.', file=sys.stderr)
  else:
    sys.__excepthook__(kind, error, trace)


if sys.argv[0] == '-m':  # Python sets this while it looks for the module.
  _open_missing_streams()
  sys.excepthook = _say_interrupted
