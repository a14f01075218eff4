"""Prompts as arrays: what is checked, padding, pieces of one width."""

from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from rnnzoo import errors
from rnnzoo import fields

# A prompt that is shorter than a chunk is padded to a power of two, so that
# few programs are compiled, and to this at least.
_SHORTEST = 16

Piece = tuple[np.ndarray, np.ndarray | None]  # Tokens and mask `[B, P]`.


def pad(prompts: Sequence[Sequence[int]]) -> tuple[np.ndarray, np.ndarray]:
  """Makes one array of prompts of different lengths, with padding before them.

  >>> pad([[1, 2], [3]])[0]
  array([[1, 2],
         [0, 3]], dtype=int32)

  Args:
    prompts: Token ids, a sequence a prompt.

  Returns:
    Token ids `[B, P]`, int32, and a mask `[B, P]` that is `False` on padding.

  Raises:
    UserValueError: If an id does not fit into int32.
  """
  for row, prompt in enumerate(prompts):
    errors.check_token_ids(f'prompts[{row}]', prompt)
  return _padded(prompts, max(map(len, prompts), default=0))


def check_prompts(
    model: Any, prompts: jax.typing.ArrayLike, mask: jax.typing.ArrayLike | None
) -> list[np.ndarray]:
  """Returns the tokens of each prompt, int32 `[P]`, without padding.

  Args:
    model: Whose vocabulary the tokens must be in, if it has one.
    prompts: Token ids `[B, P]`.
    mask: Booleans `[B, P]`, `False` on padding, or `None`.

  Raises:
    UserValueError: If an argument has another form, or a prompt is empty.
  """
  prompts = np.asarray(prompts)
  if prompts.ndim != 2 or not np.issubdtype(prompts.dtype, np.integer):
    raise errors.UserValueError(
        '`prompts` must be integers [B, P], got '
        f'{prompts.dtype} {prompts.shape}.'
    )
  if mask is not None:
    mask = np.asarray(mask)
    if mask.shape != prompts.shape or mask.dtype != bool:
      raise errors.UserValueError(
          f'`mask` must be bool {prompts.shape}, got {mask.dtype} {mask.shape}.'
      )
  if not prompts.shape[1] or mask is not None and not mask.any(1).all():
    raise errors.UserValueError('A prompt must have at least one token.')
  present = prompts if mask is None else np.where(mask, prompts, 0)
  config = getattr(model, 'config', None)
  errors.check_token_ids(
      'prompts', present, getattr(config, 'vocab_size', None)
  )
  rows = present.astype(np.int32)
  return list(rows) if mask is None else [u[m] for u, m in zip(rows, mask)]


def check_length(name: str, length: Any):
  """Raises `UserValueError` unless `length` is an integer of at least 1."""
  if not fields.is_integer(length) or length < 1:
    raise errors.UserValueError(
        f'`{name}` must be an integer of at least 1, got {length!r}.'
    )


def pieces(rows: Sequence[np.ndarray], chunk: int | None) -> list[Piece]:
  """Returns prompts as arrays of one width, padding before them.

  >>> import numpy as np
  >>> [tokens.tolist() for tokens, mask in pieces([np.arange(1, 6)], 4)]
  [[[0, 0, 0, 1]], [[2, 3, 4, 5]]]

  Args:
    rows: The tokens of each prompt, `[P]`.
    chunk: The largest width; if `None`, there is one array of all.

  Returns:
    Pairs of token ids and a mask `[B, width]`; the mask is `None` where there
    is no padding.
  """
  longest = max(map(len, rows))
  if chunk is None:
    is_whole = min(map(len, rows)) == longest
    tokens, mask = _padded(rows, longest)
    return [(tokens, None if is_whole else mask)]
  check_length('chunk', chunk)
  width = min(chunk, max(_SHORTEST, 1 << (longest - 1).bit_length()))
  tokens, mask = _padded(rows, -(-longest // width) * width)
  return [
      (tokens[:, i : i + width], mask[:, i : i + width])
      for i in range(0, tokens.shape[1], width)
  ]


def _padded(prompts, width) -> tuple[np.ndarray, np.ndarray]:
  tokens = np.zeros((len(prompts), width), np.int32)
  mask = np.zeros((len(prompts), width), bool)
  for row, prompt in enumerate(prompts):
    tokens[row, width - len(prompt) :] = prompt
    mask[row, width - len(prompt) :] = True
  return tokens, mask
