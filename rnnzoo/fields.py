"""Descriptions of the values in a config, and one-line errors for wrong ones.

A `Field` describes one value. The parts of the package describe the fields that
they read, each beside its code: `models.config`, `data.definition`,
`training.optimizers` and `training.config`.
"""

from collections.abc import Callable, Iterable, Mapping
import dataclasses
import inspect
import math
import numbers
import re
import types
import typing
from typing import Any

import numpy as np
from rnnzoo import errors

# The largest int32 and the largest float32.
MAX_INT = 2**31 - 1
MAX_FLOAT = 3.4028234e38

_KINDS = {
    bool: 'True or False',
    int: 'an integer',
    float: 'a number',
    str: 'a string',
    dict: 'a dictionary with strings as keys',
}
_ITEMS = {str: 'strings', int: 'integers', float: 'numbers'}


@dataclasses.dataclass(frozen=True)
class Field:
  """The description of one value.

  Attributes:
    kind: `bool`, `int`, `float` (or an integer), `str`, `tuple` (or a list) or
      `dict` (or another mapping, whose keys are strings).
    low: The smallest number, not below `-MAX_INT` or `-MAX_FLOAT`.
    high: The largest number; `MAX_INT` or `MAX_FLOAT` if `None`.
    above_low: Whether the number must be larger than `low`.
    below_high: Whether the number must be smaller than `high`.
    choices: All possible strings; any string if empty.
    items: The kind of the members of a tuple, `str`, `int` or `float`. Limits
      hold for each member.
    optional: Whether `None` is possible.
    hint: A sentence that ends the message.
    default: The value where none is given; it is not checked.
    help: One sentence or two on what the value does, for `--help`.
  """

  kind: type
  low: float | None = None
  high: float | None = None
  above_low: bool = False
  below_high: bool = False
  choices: tuple[str, ...] = ()
  items: type = str
  optional: bool = False
  hint: str = ''
  default: Any = None
  help: str = ''


def check(name: str, value: Any, field: Field):
  """Checks one value.

  >>> check('model.dropout', 0.5, Field(float, 0, 1, below_high=True))
  >>> check('model.dropout', 1, Field(float, 0, 1, below_high=True))
  Traceback (most recent call last):
  rnnzoo.errors.UserValueError: model.dropout must be in [0, 1), got 1.

  Args:
    name: The name of the value, for the message.
    value: The value.
    field: The description of the value.

  Raises:
    UserValueError: If the value is something else.
  """
  wrong = None if value is None and field.optional else _wrong(value, field)
  if wrong:
    near = ''
    if field.choices and isinstance(value, str):
      near = errors.suggest(value, field.choices)
    hint = f' {field.hint}' if field.hint else ''
    raise errors.UserValueError(
        f'{name} must {wrong}, got {shown(value)}.{near}{hint}'
    )


def check_names(names: Iterable[str], fields, prefix: str = ''):
  """Raises `UserValueError` on a name that is not in `fields`."""
  for name in names:
    if name not in fields:
      raise errors.UserValueError(
          f'There is no config field {prefix}{name}.'
          f'{errors.suggest(str(name), fields)}'
      )


def check_all(values: Mapping[str, Any], fields, prefix: str = ''):
  """Checks the values of a mapping; not every field must have one.

  Args:
    values: Values by name.
    fields: A `Field` for each name that there may be.
    prefix: What the messages put before the names, such as `model.`.

  Raises:
    UserValueError: If there is no such field, or a value is wrong.
  """
  check_names(values, fields, prefix)
  for name, value in values.items():
    check(f'{prefix}{name}', value, fields[name])


def of_annotation(annotation: Any) -> Field | None:
  """Returns the description of an annotated argument; `None` if unknown.

  >>> of_annotation(int | None)  # doctest: +ELLIPSIS
  Field(kind=<class 'int'>, ..., optional=True, ...)
  """
  origin, args = typing.get_origin(annotation), typing.get_args(annotation)
  if origin in (typing.Union, types.UnionType) and type(None) in args:
    rest = [arg for arg in args if arg is not type(None)]
    field = of_annotation(rest[0]) if len(rest) == 1 else None
    return field and dataclasses.replace(field, optional=True)
  if origin is typing.Literal:
    return Field(str, choices=args)
  if origin is Mapping:
    return Field(dict)
  if origin is tuple:
    return Field(tuple, items=args[0])
  return Field(annotation) if annotation in (bool, int, float, str) else None


def of_arguments(
    function: Callable[..., Any], without: Iterable[str]
) -> dict[str, Field | None]:
  """Returns the descriptions of the annotated arguments of a function.

  >>> list(of_arguments(lambda self, a, b: a, ('self', 'b')))
  ['a']

  Args:
    function: A function, or a method of a class.
    without: The arguments to leave out.
  """
  return {
      name: of_annotation(parameter.annotation)
      for name, parameter in inspect.signature(function).parameters.items()
      if name not in without
  }


def explanations(docstring: str | None, section: str) -> dict[str, str]:
  """Returns what a section of a docstring, such as `Args`, says of each name.

  >>> explanations('Adds.\\n\\nArgs:\\n  a: The first\\n    number.\\n', 'Args')
  {'a': 'The first number.'}
  """
  text = inspect.cleandoc(docstring or '').partition(f'\n{section}:\n')[2]
  text = re.split(r'\n(?=\S)', text)[0]  # The next section is not indented.
  found = re.findall(r'^  (\w+): (.*(?:\n    .*)*)', text, re.MULTILINE)
  return {name: ' '.join(words.split()) for name, words in found}


def is_integer(value: Any) -> bool:
  """True for Python's and NumPy's integers, not for booleans."""
  return _is_of_kind(value, Field(int))


def shown(value: Any) -> str:
  """Returns `value` as a message shows it: never longer than a line."""
  try:
    text = repr(value)
  except ValueError:  # Python refuses to write out integers this long.
    return 'an integer of thousands of digits'
  return text if len(text) <= 60 else f'{text[:57]}...'


def _wrong(value, field):
  """Returns what is wrong with `value`, as the message says it, or `None`."""
  kind = field.kind
  if not _is_of_kind(value, field):
    if kind is tuple:
      wanted = f'a tuple of {_ITEMS[field.items]}'
    elif field.choices:
      wanted = f'one of {_listed(field.choices)}'
    else:
      wanted = _KINDS[kind]
    return f'be {wanted}{" or None" if field.optional else ""}'
  if kind is str:
    if field.choices and value not in field.choices:
      return f'be one of {_listed(field.choices)}'
    if '\0' in value:
      return 'have no NUL character'
  if kind in (int, float):
    return _out_of_range(value, field)
  if kind is tuple and field.items in (int, float):
    member = dataclasses.replace(field, kind=field.items)
    wrong = [_out_of_range(item, member) for item in value]
    return next((f'{text} in every place' for text in wrong if text), None)
  return None


def _listed(choices):
  return ', '.join(choice or "''" for choice in choices)


def _is_of_kind(value, field):
  kind = field.kind
  if kind is str:
    return isinstance(value, str)
  if kind is tuple:
    return isinstance(value, (tuple, list)) and all(
        _is_of_kind(item, Field(field.items)) for item in value
    )
  if kind is dict:
    return hasattr(value, 'items') and all(
        isinstance(key, str) for key, _ in value.items()
    )
  is_bool = isinstance(value, (bool, np.bool_))
  if kind is bool:
    return is_bool
  number = numbers.Integral if kind is int else numbers.Real
  return isinstance(value, number) and not is_bool


def _out_of_range(value: float, field: Field) -> str | None:
  """Returns what is wrong with a number, or `None`."""
  # JAX takes no larger integers, whatever they are multiplied with.
  largest = MAX_INT if isinstance(value, numbers.Integral) else MAX_FLOAT
  low = -largest if field.low is None else field.low
  high = largest if field.high is None else field.high
  # Neither is true of NaN.
  above = value > low if field.above_low else value >= low
  below = value < high if field.below_high else value <= high
  if above and below:
    return None
  if field.kind is float:
    if field.low is not None and field.high is not None:
      opening, closing = '[('[field.above_low], '])'[field.below_high]
      return f'be in {opening}{low:g}, {high:g}{closing}'
    if value != value or value in (math.inf, -math.inf):
      return 'be a finite number'
  if above:
    return f'be at most {high}'
  if low:
    return f'be at least {low}'
  return 'be positive' if field.above_low else 'not be negative'
