"""From a folder of Hugging Face to a model on devices, tensor by tensor."""

import collections
from collections.abc import Callable, Mapping, Sequence
import dataclasses
import math
import os
import pathlib
import re
from typing import Any, NamedTuple

from flax import traverse_util
import jax
import jax.numpy as jnp
import numpy as np
from rnnzoo import errors
from rnnzoo import fields
from rnnzoo import filenames
from rnnzoo import mesh as mesh_lib
from rnnzoo.convert import families
from rnnzoo.convert import settings as settings_lib
from rnnzoo.convert import tables
from rnnzoo.convert import weights
from rnnzoo.data import bpe
from rnnzoo.data import vocabulary as vocabularies
from rnnzoo.models.config import ModelConfig
from rnnzoo.models.language_model import LanguageModel
from rnnzoo.training import memory
from rnnzoo.training import sharding
from rnnzoo.training import state as state_lib
import tqdm

# So many bytes of a file are read at once.
_PIECE = 2**24
# XLA:CPU takes memory over without a copy if its address divides by this.
_ALIGNMENT = 64
# A folder of more bytes is read with a progress bar.
_WITH_A_BAR = 2**28
# So many names of tensors are in a message.
_SHOWN = 20

TOKENIZER = 'tokenizer.json'


class Pretrained(NamedTuple):
  """A model from a folder of Hugging Face, and what came with it.

  Attributes:
    model: The model.
    vocabulary: How text becomes tokens, from `tokenizer.json`; `None` if the
      folder has none.
    stop_tokens: The ids after which a text ends.
    family: The `model_type` of the folder.
    values: What `config.json` holds.
  """

  model: LanguageModel
  vocabulary: 'Tokenizer | None'
  stop_tokens: tuple[int, ...]
  family: str
  values: Mapping[str, Any]


@dataclasses.dataclass(frozen=True)
class Tokenizer(vocabularies.Vocabulary):
  """The vocabulary of a `tokenizer.json`, which may add tokens of its own.

  Attributes:
    first: The id that each text starts with, in addition to what the file says;
      `None` for no such id.
  """

  first: int | None = None

  def encode(self, text: str) -> np.ndarray:
    """Returns the ids of `text`, int32 `[N]`, with those that are added."""
    ids = bpe.parsed(self.symbols).encode(bpe.clean(text)).ids
    if self.first is not None and ids[:1] != [self.first]:
      ids = [self.first, *ids]
    return np.array(ids, np.int32)


def load_pretrained(
    path: str | os.PathLike,
    *,
    dtype: Any = None,
    mesh: jax.sharding.Mesh | None = None,
    context: int | None = None,
    ignore: Sequence[str] = (),
) -> LanguageModel:
  """Loads a model from a folder with `config.json` and `*.safetensors`.

  It is called like any model of `rnnzoo.models`: `carry, logits =
  model(tokens)`, then `carry, logits = model.step(carry, next_tokens)`.
  `open_pretrained` gives the vocabulary too.

  Args:
    path: The folder. Nothing is downloaded.
    dtype: The dtype of parameters and activations: `float32`, `bfloat16` or
      `float64`. If `None`, that of the file, float32 for float16. Parameters
      that set decays are float32 at least.
    mesh: Where the parameters go, each split as in training: a mesh with the
      axes `data`, `fsdp`, `model` and `sequence`, see
      `training.sharding.make_mesh`. If `None`, the default device has all.
    context: For models whose attention sees every token: how many it keeps. A
      sequence that has more is an error. If `None`, 4096, or less if the file
      says so.
    ignore: Names of values of `config.json` to leave out of account, of those
      that would be an error because rnnzoo does not know them.

  Returns:
    The model. While it is loaded, neither the host nor the devices hold more
    than the model and a small part of a file.

  Raises:
    UserFileNotFoundError: If the folder, its weights, or the library
      safetensors are missing.
    UserValueError: If the family, a value of the config or a tensor is not
      implemented, missing or of another shape.
  """
  return open_pretrained(
      path, dtype=dtype, mesh=mesh, context=context, ignore=ignore
  ).model


def is_pretrained(path: str | os.PathLike) -> bool:
  """Whether this is a folder of Hugging Face, and not the workdir of a run."""
  file = pathlib.Path(filenames.absolute(path)) / settings_lib.NAME
  return file.is_file() and 'model_type' in settings_lib.read_json(file)


def pretrained_config(
    path: str | os.PathLike,
    *,
    dtype: Any = None,
    context: int | None = None,
    ignore: Sequence[str] = (),
) -> ModelConfig:
  """Returns the config of the model in a folder, whose weights are not read.

  Args:
    path: See `load_pretrained`, like all the others.
    dtype: Of parameters and activations.
    context: How many tokens attention keeps.
    ignore: Names of values of `config.json`.

  Raises:
    UserFileNotFoundError: If something is missing on disk.
    UserValueError: If something is not implemented.
  """
  return _describe(path, dtype, context, ignore).config


def open_pretrained(
    path: str | os.PathLike,
    *,
    dtype: Any = None,
    mesh: jax.sharding.Mesh | None = None,
    context: int | None = None,
    ignore: Sequence[str] = (),
) -> Pretrained:
  """Loads a model with its vocabulary.

  Args:
    path: See `load_pretrained`, like all the others.
    dtype: Of parameters and activations.
    mesh: Where the parameters go.
    context: How many tokens attention keeps.
    ignore: Names of values of `config.json`.

  Returns:
    A `Pretrained`.

  Raises:
    UserFileNotFoundError: If something is missing on disk.
    UserValueError: If something is not implemented, or does not fit.
  """
  _check_mesh(mesh)
  found = _describe(path, dtype, context, ignore)
  folder, values = found.folder, found.values
  vocabulary = _vocabulary(folder, values)
  with memory.readable_errors():
    model = _load(found.config, found.family, found.tensors, mesh)
  return Pretrained(
      model, vocabulary, _stop_tokens(folder, values), found.name, values
  )


class _Described(NamedTuple):
  """What a folder says, before its weights are read."""

  folder: pathlib.Path
  values: Mapping[str, Any]
  name: str
  family: families.Family
  tensors: dict[str, weights.Tensor]
  config: ModelConfig


def _describe(path, dtype, context, ignore) -> _Described:
  folder = pathlib.Path(filenames.absolute(path))
  values = language_part(settings_lib.read(folder))
  name, family = _family_of(values)
  settings = settings_lib.Settings(values, context=context)
  config = family.read(settings)
  settings.finish(ignore)
  tensors = weights.find(folder)
  if family.prefix:
    tensors = {
        name.replace(family.prefix, 'model.', 1)
        if name.startswith(family.prefix) else name: tensor
        for name, tensor in tensors.items()
    }
  for old, new in family.renamed.items():
    for name in [*tensors]:
      known = re.sub(old, new, name)
      if known not in tensors:
        tensors[known] = tensors.pop(name)
  tensors = {
      name: tensor for name, tensor in tensors.items()
      if not name.startswith(family.unused)
      and not name.endswith(family.derived)
  }
  dtype = _dtype_of(tensors) if dtype is None else _name_of(dtype)
  config = config.replace(dtype=dtype, param_dtype=dtype, scan_layers=True)
  return _Described(folder, values, name, family, tensors, config)


def language_part(values) -> Mapping[str, Any]:
  """Returns the values of the part that reads text, if there are others.

  Raises:
    UserValueError: If the file says two things.
  """
  name, part = values.get('model_type'), values.get('text_config')
  if not isinstance(name, str) or name not in families.WITH_IMAGES:
    return values
  text = families.WITH_IMAGES[name]
  if not isinstance(part, dict) or part.get('model_type', text) != text:
    raise errors.UserValueError(
        f'config.json: text_config must be an object with model_type {text}, '
        f'got {fields.shown(part)}.'
    )
  tied = values.get('tie_word_embeddings', part.get('tie_word_embeddings'))
  if part.get('tie_word_embeddings', tied) != tied:
    raise errors.UserValueError(
        f'config.json: tie_word_embeddings must be {tied} in text_config too.'
    )
  return part | dict(model_type=text, tie_word_embeddings=tied)


def _family_of(values) -> tuple[str, families.Family]:
  name = values.get('model_type')
  known = families.FAMILIES
  if not isinstance(name, str) or name not in known:
    names = sorted([*known, *families.WITH_IMAGES])
    raise errors.UserValueError(
        f'config.json: model_type {name!r} is not implemented.'
        f'{errors.suggest(str(name), names)} The families are: '
        f'{", ".join(names)}.'
    )
  family, classes = known[name], values.get('architectures')
  if classes and classes != [family.architecture]:
    raise errors.UserValueError(
        f'config.json: architectures must be {family.architecture}, the '
        f'language model, got {fields.shown(classes)}.'
    )
  return name, family


def _check_mesh(mesh):
  missing = [] if mesh is None else [
      axis for axis in mesh_lib.AXES if axis not in mesh.shape
  ]
  if missing:
    raise errors.UserValueError(
        f'`mesh` must have the axes {", ".join(mesh_lib.AXES)}; it lacks '
        f'{", ".join(missing)}. training.sharding.make_mesh makes one.'
    )


def _name_of(dtype) -> str:
  try:
    return jnp.dtype(dtype).name
  except TypeError as error:
    raise errors.UserValueError(
        '`dtype` must be float32, bfloat16, float64 or None, got '
        f'{fields.shown(dtype)}.'
    ) from error


def _dtype_of(tensors) -> str:
  """Returns the dtype of most bytes, as `ModelConfig` has it."""
  sizes = collections.Counter()
  for tensor in tensors.values():
    sizes[tensor.dtype] += weights.size_of(tensor)
  most = sizes.most_common(1)[0][0] if sizes else 'float32'
  x64 = jax.config.values['jax_enable_x64']
  if most == 'float64' and x64 or most == 'bfloat16':
    return most
  return 'float32'


def _vocabulary(folder, values) -> Tokenizer | None:
  path = folder / TOKENIZER
  if not path.exists():
    return None
  # Parsed when it is used: `tokenizers` is an extra.
  first = None
  if values.get('force_bos_token_insert'):  # xLSTM-7B.
    first = values.get('bos_token_id')
  return Tokenizer('bpe', settings_lib.read_text(path), first)


def _stop_tokens(folder, values) -> tuple[int, ...]:
  path = folder / 'generation_config.json'
  if path.exists():
    values = dict(values) | settings_lib.read_json(path)
  found = values.get('eos_token_id')
  found = found if isinstance(found, list) else [found]
  return tuple(token for token in found if isinstance(token, int))


class _Fill(NamedTuple):
  """Rows of a tensor that a part of a parameter gets."""

  name: str
  start: int
  stop: int
  view: tables.View


def _load(config, family, tensors, mesh) -> LanguageModel:
  """Builds the model and fills it, its largest parameters first."""
  functional = state_lib.Functional(
      lambda rngs: LanguageModel(config, rngs=rngs)
  )
  flat = traverse_util.flatten_dict
  params: dict[str, Any] = {**flat(functional.params, sep='.')}
  axes = flat(functional.axes, sep='.')
  fills = _fills(family.full_table(config), tensors, params, family, config)
  total = sum(weights.size_of(tensor) for tensor in tensors.values())
  found = {}
  with tqdm.tqdm(
      total=total, unit='B', unit_scale=True, leave=False,
      disable=None if total > _WITH_A_BAR else True,
  ) as bar:

    def fill(array, parts):
      for name, start, stop, view in parts:
        tensor, place = tensors[name], view(array)
        step = _rows_at_once(tensor)
        for first in range(start, stop, step):
          rows = weights.read(tensor, first, min(first + step, stop))
          place[first - start : first - start + step] = rows
          bar.update(rows.nbytes)

    largest_first = sorted(params, key=lambda path: -_bytes(params[path]))
    for path in largest_first:
      leaf, place = params[path], None
      if mesh is not None:
        place = sharding.parameter_sharding(mesh, leaf.shape, axes[path])
      found[path] = _filled(leaf, place, fills[path], fill)
  tree = traverse_util.unflatten_dict(found, sep='.')
  return functional.merge(tree, {})


def _fills(
    table: tables.Table, tensors, params, family, config
) -> Mapping[str, Mapping[int | None, list[_Fill]]]:
  """Returns what fills each parameter, by the index in its stack.

  Raises:
    UserValueError: If a tensor is missing, not known, or of another shape.
  """
  missing = [name for name in table if name not in tensors]
  strange = [
      name for name in tensors if name not in table
      # Some files hold a tied head all the same.
      and not (name == family.head and config.tie_embeddings)
  ]
  problems = []
  if missing:
    problems.append(f'it lacks the tensors {_listed(missing)}')
  if strange:
    problems.append(f'it has the unknown tensors {_listed(strange)}')
  fills = collections.defaultdict(lambda: collections.defaultdict(list))
  for name, row in table.items():
    shapes = [tables.shape_of(part, params) for part in row]
    rows = sum(shape[0] for shape in shapes)
    want = (rows, *shapes[0][1:])
    if name in tensors and tensors[name].shape != want:
      problems.append(
          f'{name} must be {list(want)}, got {list(tensors[name].shape)}'
      )
    start = 0
    for part, shape in zip(row, shapes):
      fills[part.path][part.index].append(
          _Fill(name, start, start + shape[0], part.view)
      )
      start += shape[0]
  if problems:
    shown = '; '.join(problems[:_SHOWN])
    raise errors.UserValueError(
        f'The weights do not fit config.json: {shown}.'
    )
  if config.tie_embeddings and family.head in tensors:
    _check_copy(tensors, family)
  return fills


def _check_copy(tensors, family):
  """Checks that a head in the file is the embedding, as the config says."""
  head, embedding = tensors[family.head], tensors[family.embedding]
  step = _rows_at_once(embedding)
  same = head.shape == embedding.shape and all(
      np.array_equal(
          weights.read(head, start, start + step),
          weights.read(embedding, start, start + step),
      )
      for start in range(0, head.shape[0], step)
  )
  if not same:
    raise errors.UserValueError(
        f'config.json says that the head is tied, but {family.head} is not '
        f'{family.embedding}.'
    )


def _filled(
    leaf: jax.ShapeDtypeStruct, place: Any, fills, fill: Callable
) -> jax.Array:
  """Returns a parameter on its devices.

  Args:
    leaf: Its shape, with the axis `layers` first if it is in a stack, and its
      dtype.
    place: Its sharding, or `None` for the default device.
    fills: What fills it, by the index in the stack.
    fill: Fills an array with these.
  """
  host = _empty(leaf.shape, np.dtype(leaf.dtype))
  for index, parts in fills.items():
    fill(host if index is None else host[index], parts)
  if place is None:
    return jax.device_put(host)
  return jax.make_array_from_callback(
      leaf.shape, place, lambda index: host[index]
  )


def _empty(shape, dtype) -> np.ndarray:
  """Returns memory that a device which is the host takes over as it is."""
  size = math.prod(shape) * dtype.itemsize
  memory = np.empty(size + _ALIGNMENT, np.uint8)
  start = -memory.ctypes.data % _ALIGNMENT
  return memory[start : start + size].view(dtype).reshape(shape)


def _rows_at_once(tensor: weights.Tensor) -> int:
  row = weights.size_of(tensor) // tensor.shape[0]
  return max(1, _PIECE // max(1, row))


def _bytes(leaf) -> int:
  return leaf.size * np.dtype(leaf.dtype).itemsize


def _listed(names: Sequence[str]) -> str:
  more = len(names) - _SHOWN
  return ', '.join(names[:_SHOWN]) + (f' and {more} more' if more > 0 else '')
