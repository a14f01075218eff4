"""A conversation with a pretrained model that has a chat template."""

from collections.abc import Iterator, Mapping, Sequence
import json
import pathlib

from experiments.cli import opening
from experiments.cli import sampling as sampling_lib
from experiments.cli import texts
import jax
import numpy as np
from rnnzoo import convert
from rnnzoo import errors
from rnnzoo import generation
from rnnzoo.data import bpe


class Conversation:
  """Replies to messages, turn by turn.

  The carry of the model is kept from turn to turn where the text of the
  conversation only grows, so that a turn costs as much as its own tokens. A
  template that changes what came before, such as one that drops the thoughts of
  earlier replies, has everything read again.

  Attributes:
    messages: The conversation so far.
    tokens_read: How many tokens the last turn read.
  """

  def __init__(
      self,
      opened: opening.Opened,
      *,
      seed: int,
      length: int,
      sampling: generation.Sampling,
      stop_strings: Sequence[str] = (),
      chunk: int | None = None,
  ):
    """Creates a conversation without messages.

    Args:
      opened: The model.
      seed: The seed of the random choices.
      length: The largest number of tokens of a reply.
      sampling: How tokens are chosen.
      stop_strings: Strings that end a reply; they are no part of it.
      chunk: How many tokens are read at once; all if `None`.

    Raises:
      UserValueError: If the model has no chat template.
    """
    if opened.template is None:
      raise errors.UserValueError(
          'This model has no chat template: its folder has neither '
          'chat_template.jinja nor chat_template in tokenizer_config.json. '
          'Leave --chat and --messages out, and give --prompt.'
      )
    self.messages, self.tokens_read = [], 0
    self._opened, self._length = opened, length
    self._stop_strings = stop_strings
    self._make_writer = lambda: generation.Writer(
        opened.run.model, sampling=sampling, chunk=chunk,
        key=jax.random.fold_in(jax.random.key(seed), len(self.messages)),
    )
    self._writer, self._text, self._last = self._make_writer(), '', []

  def reply(
      self,
      messages: Sequence[Mapping[str, str]],
      clock: sampling_lib.Clock | None = None,
  ) -> Iterator[str]:
    """Yields the reply to more messages, piece by piece, and keeps it.

    Args:
      messages: What comes after the messages so far.
      clock: Is told when tokens come.
    """
    convert.chat.check_messages(messages)
    messages = [*self.messages, *messages]
    whole = self._opened.template.render(messages)
    vocabulary = self._opened.run.vocabulary
    before, self._text = self._text, ''  # Until this turn is complete.
    if not (before and whole.startswith(before) and whole != before):
      self._writer, before = self._make_writer(), ''
    ids = self._encode(whole[len(before) :], self._last if before else [])
    self.tokens_read = len(ids)
    if clock:
      self._writer.compile(ids[None])
      clock.start(len(ids))
    self._writer.read(ids[None])
    part = texts.Text(vocabulary, self._opened.stop, self._stop_strings)
    shown = []
    for (piece,) in sampling_lib.continued(
        self._writer, [part], self._length, clock
    ):
      shown.append(piece)
      yield piece
    self.messages = [
        *messages, dict(role='assistant', content=''.join(shown))
    ]
    # All that the model has written, a stop token or string included. If the
    # next text starts otherwise, all of it is read again.
    self._text = whole + vocabulary.decode([*part.ids, *part.stop_tokens])
    self._last = part.stop_tokens

  def _encode(self, text: str, last: Sequence[int]) -> np.ndarray:
    """Returns the ids of what stands in the conversation after tokens `last`.

    The template writes the tokens that start and end a text by itself.
    """
    vocabulary = self._opened.run.vocabulary
    # A tokenizer may add a space to what is first.
    before = vocabulary.decode(last)
    ids = bpe.encode(vocabulary.symbols, before + text)
    if np.array_equal(ids[: len(last)], last):
      return ids[len(last) :]
    return bpe.encode(vocabulary.symbols, text)


def read_messages(path) -> list[Mapping[str, str]]:
  """Returns the messages of a JSON file.

  Raises:
    UserFileNotFoundError: If there is no such file.
    UserValueError: If it holds something else.
  """
  try:
    found = json.loads(pathlib.Path(path).read_bytes())
  except FileNotFoundError as error:
    raise errors.UserFileNotFoundError(
        f'There is no file {path} (--messages).'
    ) from error
  except (ValueError, RecursionError) as error:  # RecursionError: too deep.
    raise errors.UserValueError(f'{path} (--messages) is not JSON.') from error
  convert.chat.check_messages(found)
  return found
