"""Reading `config.json`: every value is used, checked, or an error."""

from collections.abc import Mapping, Sequence
import json
import math
import pathlib
from typing import Any

from rnnzoo import errors
from rnnzoo import fields

NAME = 'config.json'

# What a file may say of any model and what has no effect on its logits: who
# wrote it, ids of tokens, the initial values of a training, how to sample.
NO_EFFECT: frozenset[str] = frozenset((
    '_name_or_path', 'architectures', 'auto_map', 'bad_words_ids',
    'begin_suppress_tokens', 'bos_token_id', 'chunk_size_feed_forward',
    'cls_token_id', 'cross_attention_hidden_size', 'decoder_start_token_id',
    'diversity_penalty', 'do_sample', 'dtype', 'early_stopping',
    'encoder_no_repeat_ngram_size', 'eos_token_id',
    'exponential_decay_length_penalty', 'finetuning_task',
    'forced_bos_token_id', 'forced_eos_token_id', 'id2label',
    'initializer_range', 'is_decoder', 'label2id', 'length_penalty',
    'max_length', 'min_length', 'model_type', 'no_repeat_ngram_size',
    'num_beam_groups', 'num_beams', 'num_return_sequences', 'output_attentions',
    'output_hidden_states', 'output_scores', 'pad_token_id', 'prefix',
    'problem_type', 'remove_invalid_values', 'repetition_penalty',
    'return_dict', 'return_dict_in_generate', 'sep_token_id', 'suppress_tokens',
    'task_specific_params', 'temperature', 'tf_legacy_loss',
    'tie_encoder_decoder', 'tokenizer_class', 'top_k', 'top_p', 'torch_dtype',
    'torchscript', 'transformers_version', 'typical_p', 'unk_token_id',
    'use_bfloat16', 'use_cache',
))
# What older files say of every model.
_NEVER = dict(
    add_cross_attention=False, is_encoder_decoder=False, pruned_heads={}
)


class Settings:
  """The values of a `config.json`, each of which has to be accounted for.

  A value that is null counts as missing, as in `transformers`.

  >>> settings = Settings({'hidden_size': 8, 'hidden_act': 'silu'})
  >>> settings.take('hidden_size', 768)
  8
  >>> settings.must_be('hidden_act', 'gelu')
  Traceback (most recent call last):
  rnnzoo.errors.UserValueError: config.json: hidden_act = 'silu' is not \
implemented: it must be 'gelu'.

  Attributes:
    context: The number of tokens that attention without a window keeps, or
      `None` if it was not given.
  """

  def __init__(
      self, values: Mapping[str, Any], *, context: int | None = None,
      where: str = NAME,
  ):
    """Creates the settings.

    Args:
      values: What the file holds.
      context: See above.
      where: What messages call the file.
    """
    self.context = context
    self._values = {k: v for k, v in values.items() if v is not None}
    self._nulls = {k for k, v in values.items() if v is None}
    self._where = where
    self._taken: set[str] = {*NO_EFFECT}
    self._context_is_used = False

  def take(self, name: str, default: Any) -> Any:
    """Returns a value, of the type of its default.

    Raises:
      UserValueError: If it has another type.
    """
    self._taken.add(name)
    value = self._values.get(name, default)
    items = type(default[0]) if isinstance(default, tuple) else str
    kind = fields.Field(type(default), items=items)
    fields.check(f'{self._where}: {name}', value, kind)
    return tuple(value) if isinstance(default, tuple) else value

  def is_null(self, name: str) -> bool:
    """Whether the file says null, where that is not the same as nothing."""
    return name in self._nulls

  def size(self, name: str, default: int) -> int:
    """Returns an integer of at least 1; the default is what `auto` means."""
    if self._values.get(name) == 'auto':
      self._taken.add(name)
      return default
    value = self.take(name, default)
    fields.check(f'{self._where}: {name}', value, fields.Field(int, low=1))
    return value

  def positive(self, name: str, default: float) -> float:
    """Returns a number above 0, such as the epsilon of a norm."""
    value = self.take(name, default)
    limits = fields.Field(float, low=0, above_low=True)
    fields.check(f'{self._where}: {name}', value, limits)
    return value

  def numbers(
      self, name: str, default: tuple[float, ...]
  ) -> tuple[float, ...]:
    """Returns a list of numbers, which may be infinite."""
    self._taken.add(name)
    values = self._values.get(name, default)
    if isinstance(values, list):
      values = [math.inf if u == 'Infinity' else u for u in values]
    if not isinstance(values, (list, tuple)) or not all(
        isinstance(u, (int, float)) and not isinstance(u, bool) for u in values
    ):
      raise errors.UserValueError(
          f'{self._where}: {name} must be a list of numbers, got '
          f'{fields.shown(values)}.'
      )
    return tuple(float(u) for u in values)

  def must_be(self, name: str, *allowed: Any):
    """Checks a value of which only some are implemented.

    Args:
      name: Of the value, which may be missing.
      *allowed: What it may be.

    Raises:
      UserValueError: If it is something else.
    """
    self._taken.add(name)
    value = self._values.get(name, allowed[0])
    if not any(_equal(value, u) for u in allowed):
      raise errors.UserValueError(
          f'{self._where}: {name} = {fields.shown(value)} is not implemented: '
          f'it must be {" or ".join(map(repr, allowed))}.'
      )

  def no_effect(self, *names: str):
    """Accounts for values that the logits do not depend on."""
    self._taken.update(names)

  def indices(self, name: str, default: tuple[int, ...]) -> tuple[int, ...]:
    """Returns a list of integers of at least 0, which may be empty."""
    self._taken.add(name)
    values = self._values.get(name, default)
    limits = fields.Field(tuple, items=int, low=0)
    fields.check(f'{self._where}: {name}', values, limits)
    return tuple(values)

  def layers(
      self, name: str, default: tuple[str, ...], depth: int,
      known: Mapping[str, str],
  ) -> tuple[str, ...]:
    """Returns the layers of all blocks, from a list of their kinds.

    Args:
      name: Of the list.
      default: The list, if the file has none.
      depth: The number of blocks.
      known: Our layers by kind.

    Raises:
      UserValueError: If the list has another length, or a kind is not known.
    """
    # Of older files.
    old = dict(attention='full_attention', mamba='linear_attention')
    kinds = self.take(name, default)
    kinds = [old[kind] if kind in old else kind for kind in kinds]
    strange = [kind for kind in kinds if kind not in known]
    if len(kinds) != depth or strange:
      raise errors.UserValueError(
          f'{self._where}: {name} must be {depth} kinds, each '
          f'{" or ".join(known)}, got {fields.shown(kinds)}.'
      )
    return tuple(known[kind] for kind in kinds)

  def rotary(
      self, fraction: float = 1.0, theta: float = 10_000.0,
      no_effect: Sequence[str] = (),
  ) -> tuple[float, float]:
    """Returns the longest wavelength and the fraction that is rotated.

    Newer files have them in `rope_parameters`, older ones at the top.

    Args:
      fraction: The fraction, if the file does not say.
      theta: The wavelength, likewise.
      no_effect: Names in `rope_parameters` to leave out of account.

    Raises:
      UserValueError: If positions are scaled in any way.
    """
    self.must_be('rope_scaling', None)
    values = self.take('rope_parameters', {})
    inner = Settings(values, where=f'{self._where}: rope_parameters')
    inner.must_be('rope_type', 'default')
    inner.no_effect(*no_effect)
    theta = inner.take('rope_theta', self.take('rope_theta', theta))
    outer = self.take('partial_rotary_factor', fraction)
    fraction = inner.take('partial_rotary_factor', outer)
    inner.finish()
    return theta, fraction

  def context_size(self, default: int) -> int:
    """Returns `context` for a family whose attention keeps every token.

    Args:
      default: What it is if it was not given.

    Raises:
      UserValueError: If it is not at least 1.
    """
    self._context_is_used = True
    if self.context is None:
      return default
    fields.check('`context`', self.context, fields.Field(int, low=1))
    return self.context

  def finish(self, ignore: Sequence[str] = ()):
    """Checks that every value was accounted for.

    Args:
      ignore: Names of values that the caller chose to leave out of account.

    Raises:
      UserValueError: If one is left.
    """
    for name, value in _NEVER.items():
      self.must_be(name, value)
    left = {
        name: value for name, value in self._values.items()
        if name not in self._taken and name not in ignore
    }
    if left:
      listed = ', '.join(f'{k} ({fields.shown(v)})' for k, v in left.items())
      raise errors.UserValueError(
          f'{self._where} has values that rnnzoo does not know for this '
          f'family: {listed}. They may change what the model computes; name '
          'those that do not in `ignore`, or remove them from the file.'
      )
    if self.context is not None and not self._context_is_used:
      raise errors.UserValueError(
          f'`context` must be None, got {self.context}: no attention of this '
          'model keeps every token.'
      )


def read(folder: pathlib.Path) -> dict[str, Any]:
  """Returns what the `config.json` of a folder holds.

  Raises:
    UserFileNotFoundError: If there is none.
    UserValueError: If it is not JSON, or no object.
  """
  try:
    return read_json(folder / NAME)
  except (FileNotFoundError, NotADirectoryError) as error:
    raise errors.UserFileNotFoundError(
        f'There is no pretrained model in {folder}: it has no {NAME}.'
    ) from error


def read_json(path: pathlib.Path) -> dict[str, Any]:
  """Returns the object that a file holds, which is there."""
  try:
    values = json.loads(path.read_bytes(), object_hook=_special_float)
  except ValueError as error:
    raise errors.UserValueError(f'{path} is not JSON: {error}.') from error
  if not isinstance(values, dict):
    raise errors.UserValueError(f'{path} must hold an object.')
  return values


def read_text(path: pathlib.Path) -> str:
  """Returns the text that a file holds, which is there."""
  try:
    return path.read_bytes().decode('utf-8')
  except UnicodeDecodeError as error:
    raise errors.UserValueError(
        f'{path} is not UTF-8 text: {error.reason}.'
    ) from error


def text(values: Mapping[str, Any]) -> str:
  """Returns the text of a `config.json`.

  >>> print(text({'limit': math.inf}), end='')
  {
    "limit": {
      "__float__": "Infinity"
    }
  }
  """
  return json.dumps(_for_json(values), indent=2, sort_keys=True) + '\n'


# `transformers` writes a number that JSON lacks as an object with one key.
def _special_float(u):
  return float(u['__float__']) if set(u) == {'__float__'} else u


def _for_json(u):
  if isinstance(u, Mapping):
    return {k: _for_json(v) for k, v in u.items()}
  if isinstance(u, (list, tuple)):
    return [_for_json(v) for v in u]
  return {'__float__': 'Infinity'} if u == math.inf else u


def _equal(a, b):
  if isinstance(a, float) and isinstance(b, float) and math.isnan(a):
    return math.isnan(b)
  return type(a) is type(b) and a == b or (
      isinstance(a, (int, float)) and isinstance(b, (int, float))
      and not isinstance(a, bool) and not isinstance(b, bool) and a == b
  )
