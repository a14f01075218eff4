"""Chat templates of folders: how a conversation becomes one text.

A template is a program from a file that somebody else wrote. It runs in the
sandbox of jinja2, which reaches no attribute, file or module that it should
not, and may change nothing that it is given.
"""

from collections.abc import Mapping, Sequence
import dataclasses
import datetime
import importlib.metadata
import json
import os
import pathlib
import re
from typing import Any

from rnnzoo import errors
from rnnzoo import fields
from rnnzoo import filenames
from rnnzoo.convert import settings as settings_lib

FILE = 'chat_template.jinja'
CONFIG = 'tokenizer_config.json'
# Older folders have the names of special tokens here, and only here.
TOKENS = 'special_tokens_map.json'
# The sandbox of older versions can be left.
_OLDEST = (3, 1, 6)

Message = Mapping[str, Any]


@dataclasses.dataclass(frozen=True)
class ChatTemplate:
  """How a conversation becomes a text.

  >>> template = ChatTemplate(
  ...     '{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}'
  ...     '{% if add_generation_prompt %}<assistant>{% endif %}'
  ... )
  >>> template.render([dict(role='user', content='Hello')])
  '<user>Hello<assistant>'

  Attributes:
    source: The template, in the language of jinja2.
    tokens: Names that it may use, such as `bos_token`, and their texts.
  """

  source: str
  tokens: Mapping[str, str] = dataclasses.field(default_factory=dict)

  def render(
      self, messages: Sequence[Message], *, add_generation_prompt: bool = True
  ) -> str:
    """Returns the text of a conversation.

    Args:
      messages: Dictionaries with `role`, such as `user`, and `content`.
      add_generation_prompt: Whether the text ends where the model should reply.

    Raises:
      UserFileNotFoundError: If jinja2 is not installed.
      UserValueError: If the messages have another form, or the template cannot
        be run, or does what the sandbox forbids.
    """
    check_messages(messages)
    library = _library()
    environment = library.sandbox.ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True,
        extensions=[library.ext.loopcontrols, _generation_tag(library)],
    )
    environment.filters['tojson'] = _to_json
    # The class itself has methods that change what they are given.
    environment.globals['dict'] = lambda *args, **named: dict(*args, **named)
    environment.globals['raise_exception'] = _raise
    environment.globals['strftime_now'] = (
        lambda form: datetime.datetime.now().strftime(form)
    )
    try:
      return environment.from_string(self.source).render(
          messages=[dict(message) for message in messages],
          # Not undefined, which many templates tell from none.
          tools=None, documents=None,
          add_generation_prompt=add_generation_prompt, **self.tokens,
      )
    except errors.UserError:
      raise
    # A program of somebody else's may fail in any way.
    except Exception as error:
      why = ' '.join(str(error).split())[:200]
      raise errors.UserValueError(
          f'The chat template cannot be run: {type(error).__name__}: {why}.'
      ) from error


def chat_template(path: str | os.PathLike) -> ChatTemplate | None:
  """Returns the chat template of a folder, or `None` if it has none.

  `chat_template.jinja` comes before `chat_template` of `tokenizer_config.json`;
  of several templates it is the one named `default`.

  Args:
    path: The folder.

  Raises:
    UserValueError: If a file is damaged.
  """
  folder = pathlib.Path(filenames.absolute(path))
  file, config, values = folder / FILE, folder / CONFIG, {}
  if config.exists():
    values = settings_lib.read_json(config)
  source = values.get('chat_template')
  if file.exists():
    source = settings_lib.read_text(file)
  if isinstance(source, list):
    named = {
        one.get('name'): one.get('template')
        for one in source if isinstance(one, dict)
    }
    source = named.get('default')
  if source is None:
    return None
  if not isinstance(source, str):
    raise errors.UserValueError(
        f'{config}: chat_template must be a text, got {fields.shown(source)}.'
    )
  tokens = {}
  if (folder / TOKENS).exists():
    values = settings_lib.read_json(folder / TOKENS) | values
  for name, value in values.items():
    if isinstance(value, dict):
      value = value.get('content')
    if name.endswith('_token') and isinstance(value, str):
      tokens[name] = value
  return ChatTemplate(source, tokens)


def check_messages(messages: Any):
  """Raises `UserValueError` unless this is a list of messages."""
  wrong = not isinstance(messages, (list, tuple)) or not messages
  if not wrong:
    wrong = not all(
        isinstance(message, Mapping) and isinstance(message.get('role'), str)
        and 'content' in message for message in messages
    )
  if wrong:
    raise errors.UserValueError(
        'Messages must be a list of objects with "role", such as "user", and '
        f'"content", at least one, got {fields.shown(messages)}.'
    )


def _library() -> Any:
  try:
    import jinja2  # An extra.
    import jinja2.ext
    import jinja2.sandbox
  except ImportError as error:
    raise errors.UserFileNotFoundError(
        'Chat templates need the library jinja2. To install it: pip install '
        'jinja2'
    ) from error
  version = importlib.metadata.version('jinja2')
  if tuple(map(int, re.findall(r'\d+', version)[:3])) < _OLDEST:
    raise errors.UserFileNotFoundError(
        f'Chat templates need jinja2 {".".join(map(str, _OLDEST))} or newer, '
        f'got {version}. To install it: pip install --upgrade jinja2'
    )
  return jinja2


def _generation_tag(library) -> type:
  """Returns what knows `{% generation %}`, which marks replies for training."""

  class Generation(library.ext.Extension):
    """Leaves what is marked as it is."""

    tags = {'generation'}

    def parse(self, parser):
      next(parser.stream)
      return parser.parse_statements(
          ('name:endgeneration',), drop_needle=True
      )

  return Generation


# The arguments are those that `transformers` gives this filter.
def _to_json(
    value, ensure_ascii=False, indent=None, separators=None, sort_keys=False
):
  return json.dumps(
      value, ensure_ascii=ensure_ascii, indent=indent, separators=separators,
      sort_keys=sort_keys,
  )


def _raise(message):
  why = ' '.join(str(message).split())
  raise errors.UserValueError(f'The chat template refuses the messages: {why}')
