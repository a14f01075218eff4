r"""Writes text with the model of a run, or of a folder of Hugging Face.

  python -m experiments.generate --workdir=runs/quickstart --prompt='The ' \
      --length=400 --temperature=0.8 --seed=0

`--pretrained=DIR` writes with a model in the format of Hugging Face instead: a
folder with `config.json`, `*.safetensors` and `tokenizer.json`.

The text of a single prompt is printed as it is written. Several prompts
(`--prompt` again, or `--prompts=FILE`) are continued in one batch and printed
one after another. `--stop=TEXT` ends a text where TEXT would stand.

  python -m experiments.generate --pretrained=DIR --chat

`--chat` is a conversation in the terminal, which Ctrl-D ends; `--messages=FILE`
replies to a list of messages in JSON, such as `[{"role": "user", "content":
"Hello"}]`. Both together go on from there. The folder must have a chat
template, which runs in the sandbox of jinja2.

The last line, on stderr, says how fast it was.
"""

import json
import pathlib
import sys

from absl import app
from absl import flags
from absl import logging
from experiments.cli import chatting
from experiments.cli import drivers
from experiments.cli import opening
from experiments.cli import sampling
from rnnzoo import errors
from rnnzoo import fields
from rnnzoo import generation
from rnnzoo.training.processes import host

_MODEL = opening.Flags()
_PROMPT = flags.DEFINE_multi_string(
    'prompt', [],
    'The text to continue. Without a prompt, the text starts on a new line.',
)
_PROMPTS = drivers.define_path(
    'prompts', None,
    'A file of prompts, one a line: texts, or JSON strings if its name ends in '
    '.jsonl.',
)
_LENGTH = flags.DEFINE_integer(
    'length', 400,
    'The number of tokens to write.', lower_bound=1, upper_bound=10**7,
)
_STOP = flags.DEFINE_multi_string(
    'stop', [], 'A text ends before this string.'
)
_TEMPERATURE = flags.DEFINE_float(
    'temperature', 0.8,
    'Higher values make the text more random; 0 always takes the most '
    'probable token.',
)
_TOP_K = flags.DEFINE_integer(
    'top_k', 0,
    'Choose only among the k most probable tokens; 0 means all.',
    lower_bound=0, upper_bound=fields.MAX_INT,
)
_TOP_P = flags.DEFINE_float(
    'top_p', 1.0,
    'Choose only among the most probable tokens that together have this '
    'probability.',
)
_MIN_P = flags.DEFINE_float(
    'min_p', 0.0,
    'Choose only among tokens that are at least this many times as probable as '
    'the most probable one.',
)
_REPETITION_PENALTY = flags.DEFINE_float(
    'repetition_penalty', 1.0,
    'More than 1 makes tokens less probable that stand in the text already.',
)
_SEED = flags.DEFINE_integer(
    'seed', 0,
    'The seed of the random choices: the same seed gives the same text.',
    lower_bound=0, upper_bound=2**32 - 1,
)
_CHUNK = flags.DEFINE_integer(
    'chunk', 512,
    'The number of tokens of a prompt that are read at once. Fewer need less '
    'memory. 0 means all.',
    lower_bound=0, upper_bound=fields.MAX_INT,
)
_STREAM = flags.DEFINE_bool(
    'stream', True,
    'Print the characters of a single prompt as soon as they are known.',
)
_CHAT = flags.DEFINE_bool(
    'chat', False, 'Talk with the model. Ctrl-D ends the conversation.'
)
_MESSAGES = drivers.define_path(
    'messages', None, 'A JSON file of messages to reply to.'
)


def main(argv):
  drivers.check_usage(argv)
  _MODEL.check_usage()
  is_chat = _CHAT.value or _MESSAGES.value
  if is_chat and (_PROMPT.value or _PROMPTS.value):
    raise app.UsageError('--chat and --messages take no --prompt.')
  # Text may hold what the terminal cannot show.
  sys.stdout.reconfigure(errors='backslashreplace')
  host.enable_compilation_cache()
  messages = chatting.read_messages(_MESSAGES.value) if _MESSAGES.value else []
  prompts = _PROMPT.value
  if _PROMPTS.value:
    prompts = prompts + read_prompts(_PROMPTS.value)
  opened = _MODEL.open()
  options = dict(
      stop_strings=_STOP.value,
      seed=_SEED.value,
      length=_LENGTH.value,
      chunk=_CHUNK.value or None,
      sampling=generation.Sampling(
          _TEMPERATURE.value, _TOP_K.value, _TOP_P.value, _MIN_P.value,
          _REPETITION_PENALTY.value,
      ),
  )
  if is_chat:
    chat(
        chatting.Conversation(opened, **options), messages, _CHAT.value
    )
  else:
    write(opened, prompts, **options)


def write(opened, prompts, **options):
  """Prints what follows the prompts."""
  clock = sampling.Clock()
  options |= dict(stop=opened.stop, clock=clock)
  is_given = bool(prompts)
  prompts = prompts or [sampling.start_of_text(opened.run)]
  if len(prompts) == 1 and _STREAM.value:
    pieces = sampling.pieces(opened.run, prompts[0], **options)
    first = next(pieces, '')  # An error comes before anything is printed.
    print(prompts[0] if is_given else '', first, sep='', end='', flush=True)
    for piece in pieces:
      print(piece, end='', flush=True)
    print()
  else:
    found = sampling.continuations(opened.run, prompts, **options)
    for i, text in enumerate(found):
      if i:
        print('-' * 20)
      print((prompts[i] if is_given else '') + text)
  logging.info('%s', clock)


def chat(conversation, messages, goes_on):
  """Replies to messages, and then, if it goes on, to what is typed."""
  if messages:
    reply(conversation, messages)
  while goes_on:
    try:
      line = input('> ')
    except EOFError:
      print()
      return
    if line.strip():
      reply(conversation, [dict(role='user', content=line)])


def reply(conversation, messages):
  """Prints a reply as it is written."""
  clock = sampling.Clock()
  for piece in conversation.reply(messages, clock):
    print(piece, end='', flush=True)
  print()
  logging.info('%s', clock)


def read_prompts(path):
  """Returns the prompts of a file.

  Raises:
    UserError: If it cannot be read, or holds something else.
  """
  try:
    text = pathlib.Path(path).read_bytes().decode('utf-8-sig')
  except FileNotFoundError as error:
    raise errors.UserFileNotFoundError(
        f'There is no file {path} (--prompts).'
    ) from error
  except UnicodeDecodeError as error:
    raise errors.UserValueError(
        f'{path} (--prompts) is not UTF-8 text.'
    ) from error
  # `splitlines` would also split at what JSON strings may hold, as U+2028.
  prompts = [line for u in text.split('\n') if (line := u.removesuffix('\r'))]
  if path.endswith('.jsonl'):
    prompts = [_json_string(path, prompt) for prompt in prompts]
  if not prompts:
    raise errors.UserValueError(f'{path} (--prompts) has no prompt.')
  return prompts


def _json_string(path, line):
  try:
    found = json.loads(line)
  except ValueError:
    found = None
  if not isinstance(found, str):
    raise errors.UserValueError(
        f'{path} (--prompts) must have a JSON string a line, got {line[:40]!r}.'
    )
  return found


if __name__ == '__main__':
  drivers.run(main)
