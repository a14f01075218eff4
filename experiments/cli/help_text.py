"""What `--help` prints: the docstring, the flags and the fields of the config.

absl's own help does not know the config.
"""

from collections.abc import Iterable, Iterator
import os
import re
import textwrap
from typing import Any

from absl import flags
from experiments.cli import config_flag
from experiments.cli import schema
from ml_collections import ConfigDict
from rnnzoo import fields
from rnnzoo import layers
from rnnzoo import models
from rnnzoo.models import building

_WIDTH = 80
_COLUMN = 34  # Where explanations start.


def of_command(
    docstring: str,
    own_flags: Iterable[flags.Flag],
    flag: config_flag.ConfigFlag | None = None,
) -> str:
  """Returns the help of a command.

  Args:
    docstring: The docstring of its main module.
    own_flags: Its flags.
    flag: The flag `--config`, once it is parsed, if the command has it.

  Raises:
    UserError: If the config is wrong.
  """
  lines = [docstring.rstrip(), '', 'Flags:']
  if flag:
    lines.append(_entry('--config', 'The config file: FILE or FILE:LAYER.'))
  for one in own_flags:
    name = f'[no]{one.name}' if one.boolean else one.name
    lines.append(_entry(f'--{name}', _explained(one)))
  if flag:
    whose = flag.filename or 'defaults; --config=FILE --help lists another'
    lines += ['', f'Fields of the config ({whose}).']
    lines += ['--config.FIELD=VALUE sets one. The values now:', '']
    lines += _config_lines(flag.value or flag.defaults(), flag.exports)
  return '\n'.join(lines)


def _explained(flag) -> str:
  """Returns the help of a flag with its choices and its default."""
  # absl writes the choices before and a remark after what the author wrote.
  text = re.sub('^<.*?>: ', '', flag.help).partition(';\n')[0]
  value = flag.default
  choices = getattr(flag.parser, 'enum_values', ())
  if choices:
    text += f' One of {", ".join(choices)}.'
  if isinstance(flag, flags.MultiFlag):
    text += ' May be given several times.'
  if isinstance(value, list):
    is_all = choices and set(value) == set(choices)
    value = 'all' if is_all else ', '.join(map(str, value))
  elif isinstance(value, str) and os.path.isabs(value):
    value = os.path.relpath(value)
  return text if value in (None, '') else f'{text} Default: {value}.'


def _config_lines(config: ConfigDict, exports) -> Iterator[str]:
  """Yields lines on every field of a config, part by part."""
  schema.check(config, exports)
  known = schema.fields_of(config, exports)
  values = schema.flatten(config.to_dict())
  for part in ('', *schema.PARTS):
    if part and part in config:
      yield ''
    for name, field in known.items():
      if name.rpartition('.')[0] == part:
        text = field.help
        if not all(choice in text for choice in field.choices):
          text += f' One of {", ".join(filter(None, field.choices))}.'
        yield _entry(f'{name}={_shown(values[name])}', text)
    if part == 'model' and part in config:
      yield from _option_lines(config.model, exports)


def _option_lines(model: ConfigDict, exports) -> Iterator[str]:
  """Yields lines on the options of the layers of a model."""
  known = {**layers.LAYERS, **(exports.layers or {})}
  given = model.layer_options.to_dict()
  config = models.ModelConfig.from_dict(model.to_dict())
  for name in config.layers_used:
    if name not in known:
      continue
    yield f'\nOptions of {name}, in model.layer_options:'
    function = building.function_of(known[name])
    texts = fields.explanations(function.__doc__, 'Args')
    chosen = given | given.get(name, {})
    for option, parameter in building.options_of(known[name]).items():
      value = chosen.get(option, parameter.default)
      yield _entry(f'{option}={_shown(value)}', texts.get(option, ''))


def _entry(name: str, text: str) -> str:
  """Returns a name and its explanation in two columns."""
  text = text.replace('`', '')
  lines = textwrap.wrap(text, _WIDTH - _COLUMN, break_on_hyphens=False)
  left = f'  {name}'
  if len(left) > _WIDTH:
    left = f'{left[: _WIDTH - 3]}...'
  if lines and len(left) <= _COLUMN - 2:
    left = f'{left:{_COLUMN}}{lines.pop(0)}'
  return '\n'.join([left, *(' ' * _COLUMN + line for line in lines)])


def _shown(value: Any) -> str:
  """Returns a value almost as the command line takes it."""
  if isinstance(value, str):
    return value or "''"
  return getattr(value, '__name__', None) or fields.shown(value)
