"""Errors that a person can cause and cure: one readable line, no traceback."""

import difflib

import numpy as np


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


def check_token_ids(name, ids, vocab_size=None):
  """Raises `UserValueError` unless all of `ids` are tokens.

  >>> check_token_ids('tokens', [0, 15], 16)

  Args:
    name: Of the argument.
    ids: Integers.
    vocab_size: How many tokens there are; as many as int32 has if `None`.
  """
  ids, size = np.asarray(ids), vocab_size or 2**31
  wrong = (ids < 0) | (ids >= size)
  if wrong.any():
    at = tuple(int(i) for i in np.argwhere(wrong)[0])
    raise UserValueError(
        f'`{name}` must be token ids from 0 to {size - 1}, got {ids[at]} at '
        f'index {list(at)}.'
    )


def suggest(word, known):
  """Returns ` Did you mean "x"?` for the nearest of `known`, or nothing.

  >>> suggest('featurs', ['features', 'layer']), suggest('LRU', ['lru', 's5'])
  (' Did you mean "features"?', ' Did you mean "lru"?')
  """
  # The name of a class, such as `LRU`, is that of a layer but for its case.
  lower = {name.lower(): name for name in reversed(list(known))}
  near = difflib.get_close_matches(word, list(known), n=1)
  near = near or difflib.get_close_matches(word.lower(), list(lower), n=1)
  return f' Did you mean "{lower.get(near[0], near[0])}"?' if near else ''
