"""Damaged checkpoints: what is wrong with them, and where they go."""

import re

import jax
from jax.experimental import multihost_utils
from rnnzoo import errors


class DamagedError(Exception):
  """A checkpoint that cannot be trusted; the message says why."""


def reason(error: BaseException) -> str:
  """Returns what went wrong in a few words, without the story around it."""
  if isinstance(error, OSError) and error.strerror:
    return error.strerror
  text = str(error).strip()
  # TensorStore puts the reason at the end of a long sentence; its notes follow,
  # in any order, as in ` [os_error_code='27'] [tensorstore_spec='...']`.
  sentence, *notes = re.split(r' (?=\[\w+=)', text)
  if any(note.startswith('[os_error_code') for note in notes):
    return sentence.rpartition(':')[2].strip()
  line = f'{type(error).__name__}: {text}'.splitlines()[0]
  return line if len(line) <= 80 else line[:77] + '...'


def set_aside(directory, bad_directory, step: int):
  """Moves a damaged checkpoint away, so that its step can be saved again.

  All processes call this together.

  Args:
    directory: An `epath.Path` with the checkpoint `<step>`.
    bad_directory: An `epath.Path`; made if missing. Nothing in it is replaced.
    step: The step of the damaged checkpoint.

  Returns:
    The new path of the checkpoint.

  Raises:
    errors.UserError: If the checkpoint cannot be moved.
  """
  target = bad_directory / str(step)
  number = 1
  while target.exists():
    number += 1
    target = bad_directory / f'{step}.{number}'
  if jax.process_count() > 1:  # All of them have chosen the name.
    multihost_utils.sync_global_devices('rnnzoo_set_aside_begin')
  if jax.process_index() == 0:
    try:
      bad_directory.mkdir(parents=True, exist_ok=True)
      (directory / str(step)).rename(target)
    except OSError as e:
      raise errors.UserError(
          f'Checkpoint {step} in {directory} is damaged and cannot be moved to '
          f'{target}: {reason(e)}.'
      ) from e
  if jax.process_count() > 1:
    multihost_utils.sync_global_devices('rnnzoo_set_aside_end')
  return target
