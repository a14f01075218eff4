"""Errors that a person can cause and cure: one readable line, no traceback."""

import difflib


class UserError(Exception):
  """Something the user can put right; drivers print it and exit with 1.

  Code that has a better built-in category raises a class of both, so that
  library users may catch `ValueError` and drivers may catch this.
  """


class UserValueError(UserError, ValueError):
  """A wrong value in a config, a flag, a file or a prompt."""


class UserFileNotFoundError(UserError, FileNotFoundError):
  """Something that should be on disk and is not."""

  def __str__(self):  # OSError would print the arguments as a tuple.
    return str(self.args[0]) if self.args else ''


def suggest(word, known):
  """Returns ` Did you mean "x"?` for the nearest of `known`, or nothing.

  >>> suggest('featurs', ['features', 'layer'])
  ' Did you mean "features"?'
  """
  near = difflib.get_close_matches(word, list(known), n=1)
  return f' Did you mean "{near[0]}"?' if near else ''
