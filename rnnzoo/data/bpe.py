"""Byte-pair encoding by the library `tokenizers`, which is an extra.

A tokenizer is kept as the text of its `tokenizer.json`, the format of Hugging
Face, so that a checkpoint holds all of it.
"""

from collections.abc import Iterable, Iterator
import functools
import json
import pathlib
import re
from typing import Any

import numpy as np
from rnnzoo import errors

# A piece of text that is encoded at once has at least so many characters, and
# so many pieces are in memory together.
_PIECE = 2**16
_PIECES = 128
# Lone surrogates, as JSON may have them, that stand for no byte.
_STRANGE = re.compile('[\ud800-\udc7f\udd00-\udfff]')


def _library() -> Any:
  try:
    import tokenizers  # An extra.
  except ImportError as error:
    raise errors.UserFileNotFoundError(
        'data.level=bpe needs the library tokenizers. To install it: pip '
        "install 'tokenizers>=0.21'"
    ) from error
  return tokenizers


def pieces(text: str) -> Iterator[str]:
  """Cuts a text at ends of lines, so that a long text needs little memory.

  >>> list(pieces('a' * 70_000 + '\\n' + 'b'))[1]
  'b'
  """
  start = 0
  while start < len(text):
    end = text.find('\n', start + _PIECE) + 1 or len(text)
    yield text[start:end]
    start = end


def train(texts: Iterable[str], size: int) -> str:
  """Learns a tokenizer of bytes and their most frequent sequences.

  It reads words as GPT-2 does and can encode every text, exactly. The same
  texts give the same tokenizer.

  Args:
    texts: What to learn from.
    size: The number of tokens; fewer if the texts have fewer sequences. The
      256 bytes are among them.

  Returns:
    The text of its `tokenizer.json`.

  Raises:
    UserFileNotFoundError: If `tokenizers` is not installed.
  """
  library = _library()
  tokenizer = library.Tokenizer(library.models.BPE())
  byte_level = library.pre_tokenizers.ByteLevel(add_prefix_space=False)
  tokenizer.pre_tokenizer = byte_level
  tokenizer.decoder = library.decoders.ByteLevel()
  tokenizer.train_from_iterator(
      (clean(piece) for text in texts for piece in pieces(text)),
      library.trainers.BpeTrainer(
          vocab_size=size, initial_alphabet=byte_level.alphabet(),
          show_progress=False,
      ),
  )
  return tokenizer.to_str()


def read(path: pathlib.Path) -> str:
  """Returns the text of a `tokenizer.json`, if it is one.

  Raises:
    UserFileNotFoundError: If there is no such file, or `tokenizers` is not
      installed; `UserError` if it cannot be read.
    UserValueError: If it holds no tokenizer.
  """
  try:
    text = path.read_bytes().decode('utf-8')
    json.loads(text)
  except FileNotFoundError as error:
    raise errors.UserFileNotFoundError(
        f'There is no file {path} (data.tokenizer).'
    ) from error
  except ValueError as error:
    raise errors.UserValueError(
        f'{path} (data.tokenizer) is no tokenizer.json: it is not JSON.'
    ) from error
  except OSError as error:
    raise errors.UserError(
        f'{path} (data.tokenizer) cannot be read: {error.strerror}.'
    ) from error
  try:
    parsed(text)
  except errors.UserValueError as error:
    raise errors.UserValueError(f'{path} (data.tokenizer): {error}') from error
  return text


@functools.lru_cache(maxsize=4)
def parsed(text: str) -> Any:
  """Returns the `tokenizers.Tokenizer` of the text of a `tokenizer.json`.

  Raises:
    UserFileNotFoundError: If `tokenizers` is not installed.
    UserValueError: If the text is no tokenizer.
  """
  library = _library()
  try:
    tokenizer = library.Tokenizer.from_str(text)
  except Exception as error:  # The library raises nothing more specific.
    why = ' '.join(str(error).split())[:200]
    raise errors.UserValueError(
        f'This is no tokenizer that the library tokenizers reads: {why}.'
    ) from error
  # A window of text is what the config says, whatever the file says.
  tokenizer.no_padding()
  tokenizer.no_truncation()
  return tokenizer


@functools.lru_cache(maxsize=4)
def size(text: str) -> int:
  """Returns the number of ids of a tokenizer, unused ones included."""
  return 1 + max(parsed(text).get_vocab().values(), default=-1)


def encode(text: str, content: str) -> np.ndarray:
  """Returns the ids of `content`, int32 `[N]`; lone surrogates are lost."""
  tokenizer, found = parsed(text), []
  queue = []

  def empty():
    for encoding in tokenizer.encode_batch(queue, add_special_tokens=False):
      found.append(np.array(encoding.ids, np.int32))
    queue.clear()

  for piece in pieces(content):
    queue.append(clean(piece))
    if len(queue) == _PIECES:
      empty()
  empty()
  return np.concatenate([np.zeros(0, np.int32), *found])


def decode(text: str, ids: np.ndarray) -> str:
  """Returns the text of ids `[N]`."""
  return parsed(text).decode(ids.tolist(), skip_special_tokens=False)


def size_in_bytes(text: str, token: int) -> int:
  """Returns how many bytes of UTF-8 a token stands for.

  >>> learned = train(['ab' * 9], 257)
  >>> size_in_bytes(learned, encode(learned, 'ab')[0])
  2
  """
  tokenizer = parsed(text)
  if isinstance(tokenizer.decoder, _library().decoders.ByteLevel):
    # A token may be a part of a character, which `decode` replaces. Each
    # character of its name is a byte.
    return len(tokenizer.id_to_token(int(token)))
  return len(decode(text, np.array([token])).encode('utf-8'))


def decoder(text: str) -> Any:
  """Returns a function from the next id to the characters that it completes."""
  stream = _library().decoders.DecodeStream(skip_special_tokens=False)
  tokenizer = parsed(text)
  return lambda token: stream.step(tokenizer, int(token)) or ''


def to_bytes(text: str) -> bytes:
  """Returns the UTF-8 of any text, with what no UTF-8 has replaced.

  Undecodable bytes of a command line are surrogate escapes; they come back.

  >>> to_bytes('a\\udcff\\ud800')
  b'a\\xff\\xef\\xbf\\xbd'
  """
  return _STRANGE.sub('\N{REPLACEMENT CHARACTER}', text).encode(
      'utf-8', 'surrogateescape'
  )


def clean(text: str) -> str:
  """Replaces lone surrogates, which Rust cannot hold."""
  return to_bytes(text).decode('utf-8', 'replace')
