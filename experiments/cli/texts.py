"""A text as it is written: tokens in, the characters that are certain out."""

import codecs
from collections.abc import Callable, Sequence

from rnnzoo.data import bpe
from rnnzoo.data import vocabulary as vocabularies


class Text:
  """The new part of one text.

  A stop string may end in the middle of a token, or span several. What could be
  its start is held back until the next tokens say whether it is.

  >>> vocabulary = vocabularies.Vocabulary.of_text('endo.')
  >>> text = Text(vocabulary, stop_strings=['end'])
  >>> [text.add(token) for token in vocabulary.encode('eneend.')]
  ['', '', 'en', 'e', '', '', '']
  >>> text.ended
  True

  Attributes:
    ids: The tokens that belong to the text, those of a stop string included.
      Those that the vocabulary lacks are not.
    ended: Whether a stop token or a stop string has come.
    stop_tokens: The stop token that has come, if one has that has a text.
  """

  def __init__(
      self,
      vocabulary: vocabularies.Vocabulary,
      stop: Sequence[int] = (),
      stop_strings: Sequence[str] = (),
  ):
    """Creates an empty text.

    Args:
      vocabulary: How tokens become characters.
      stop: Tokens that end the text.
      stop_strings: Strings that end the text; they are no part of it.
    """
    self.ids, self.stop_tokens, self.ended = [], [], False
    self._size = len(vocabulary)
    self._stop = frozenset(stop)
    self._stop_strings = tuple(filter(None, stop_strings))
    self._decode, self._rest = _decoder(vocabulary)
    self._held = ''

  def add(self, token: int) -> str:
    """Returns the characters that are certain once this token has come."""
    if self.ended:
      return ''
    # A model may have more ids than its tokenizer: those have no text.
    has_text = int(token) < self._size
    if int(token) in self._stop:
      if has_text:
        self.stop_tokens.append(int(token))
      return self.finish()
    if not has_text:
      return ''
    self.ids.append(int(token))
    return self._show(self._decode(token))

  def finish(self) -> str:
    """Returns what was held back; nothing more is to come."""
    if self.ended:
      return ''
    text = self._show(self._rest(self.ids))
    shown = text + self._held if not self.ended else text
    self.ended, self._held = True, ''
    return shown

  def _show(self, piece: str) -> str:
    text = self._held + piece
    # The one that is complete first ends the text, whatever the tokens are.
    found = [
        (text.index(stop) + len(stop), text.index(stop))
        for stop in self._stop_strings if stop in text
    ]
    if found:
      self.ended, self._held = True, ''
      return text[: min(found)[1]]
    keep = max(
        (
            size for stop in self._stop_strings
            for size in range(1, len(stop)) if text.endswith(stop[:size])
        ),
        default=0,
    )
    self._held = text[len(text) - keep :]
    return text[: len(text) - keep]


def _decoder(
    vocabulary: vocabularies.Vocabulary
) -> tuple[Callable[[int], str], Callable[[Sequence[int]], str]]:
  """Returns functions from a token to the characters that it completes.

  The second one takes all tokens, and returns what is left at the end: the
  place of broken characters.
  """
  if vocabulary.level == 'char':
    return lambda token: vocabulary.decode([token]), lambda ids: ''
  if vocabulary.level == 'byte':
    decoder = codecs.getincrementaldecoder('utf-8')('replace')
    return (
        lambda token: decoder.decode(bytes([int(token)])),
        lambda ids: decoder.decode(b'', final=True),
    )
  decode, shown = bpe.decoder(vocabulary.symbols), []

  def add(token):
    shown.append(decode(token))
    return shown[-1]

  def rest(ids):
    whole, before = vocabulary.decode(ids), ''.join(shown)
    return whole[len(before) :] if whole.startswith(before) else ''

  return add, rest
