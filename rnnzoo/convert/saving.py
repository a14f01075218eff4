"""From a model to a folder that `transformers` opens."""

import contextlib
import math
import os
import pathlib
import shutil
from typing import Any

from flax import nnx
import numpy as np
from rnnzoo import errors
from rnnzoo import fields
from rnnzoo import filenames
from rnnzoo.convert import families
from rnnzoo.convert import loading
from rnnzoo.convert import settings as settings_lib
from rnnzoo.convert import tables
from rnnzoo.convert import weights
from rnnzoo.models.config import ModelConfig
from rnnzoo.models.language_model import LanguageModel

# Files of a tokenizer, and how to sample: not the business of a model.
_COPIED = (
    loading.TOKENIZER, 'tokenizer_config.json', 'special_tokens_map.json',
    'added_tokens.json', 'chat_template.jinja', 'generation_config.json',
)
_TOKEN_IDS = ('bos_token_id', 'eos_token_id', 'pad_token_id')
# How long the sequences of a training were: `context` may be less.
_LONGEST = ('max_position_embeddings', 'model_max_length')
# The fields of a config that a forward pass reads, apart from the modules.
_FORWARD = (
    'layer_names', 'stacks', 'logit_scale', 'soft_cap', 'scale_embeddings',
    'embed_scale', 'tie_embeddings',
)
# Those that it reads in each block.
_OF_A_BLOCK = (
    'norm_position', 'gate', 'mlp', 'mlp_gate_scale', 'layer_scales',
    'mlp_scales', 'shared_block',
)
# Attributes of modules that do not change what they compute.
_SPEED = (
    'balance', 'balance_loss', 'chunk_size', 'config', 'dtype', 'param_dtype',
    'precision',
)
# So much is in memory at once, in addition to the model.
_SHARD = 2**32


def save_pretrained(
    model: LanguageModel,
    path: str | os.PathLike,
    *,
    like: str | os.PathLike | None = None,
    shard_bytes: int = _SHARD,
):
  """Writes a model as a folder that `transformers` and `load_pretrained` open.

  It need not come from `load_pretrained`: any `LanguageModel` will do whose
  config is that of a family, such as one made from a preset `mamba_*`.

  Args:
    model: The model. Its parameters keep their dtypes.
    path: The folder, which is made if need be. It must not hold weights.
    like: A folder of which the tokenizer and the ids of its special tokens are
      copied, such as the one that the model was loaded from.
    shard_bytes: The size of a file. As much is in memory in addition to the
      model.

  Raises:
    UserValueError: If no family computes what this model does, or the folder
      has weights already.
    UserFileNotFoundError: If the library safetensors or `like` is missing.
  """
  weights.library()
  name, config, values = _describe(model)
  family = families.FAMILIES[name]
  folder = pathlib.Path(filenames.absolute(path))
  source = None if like is None else pathlib.Path(filenames.absolute(like))
  extra = {}
  if source is not None:
    extra = loading.language_part(settings_lib.read(source))
  held = sorted(folder.glob('*.safetensors*'))
  if held:
    raise errors.UserValueError(
        f'{folder} has weights already: {held[0].name}. Give another folder.'
    )
  params = {
      '.'.join(map(str, path)): variable.get_value()
      for path, variable in nnx.to_flat_state(nnx.state(model, nnx.Param))
  }
  table = family.full_table(config)

  def values_of(part):
    leaf = params[part.path]
    leaf = leaf if part.index is None else leaf[part.index]
    return part.view(np.asarray(leaf))

  def size_of(part):
    shape = tables.shape_of(part, params)
    return math.prod(shape) * params[part.path].dtype.itemsize

  sizes = {key: sum(map(size_of, row)) for key, row in table.items()}
  folder.mkdir(parents=True, exist_ok=True)
  weights.write(
      folder, sizes,
      (
          (key, np.concatenate([values_of(part) for part in row]))
          for key, row in table.items()
      ),
      shard_bytes,
  )
  values = dict(
      architectures=[family.architecture], model_type=name,
      dtype=model.config.param_dtype, **values,
  )
  kept = _TOKEN_IDS if model.context is None else _TOKEN_IDS + _LONGEST
  values |= {k: extra[k] for k in kept if k in extra}
  (folder / settings_lib.NAME).write_text(settings_lib.text(values))
  for file in _COPIED:
    if source is not None and (source / file).exists():
      with contextlib.suppress(shutil.SameFileError):  # `like` is this folder.
        shutil.copyfile(source / file, folder / file)


def _describe(model) -> tuple[str, ModelConfig, dict[str, Any]]:
  """Returns the family of a model, its config as read, and `config.json`.

  Raises:
    UserValueError: If there is no such family.
  """
  used = set(model.config.layer_names)
  problems = []
  for name, family in families.FAMILIES.items():
    if not used <= set(family.layers):
      continue
    try:
      values = family.write(model)
      settings = settings_lib.Settings(values, context=model.context)
      config = family.read(settings)
      settings.finish()
    except (AttributeError, errors.UserValueError) as error:
      # The model lacks a part, or a value is one that the family has not.
      problems.append(f'{name}: {str(error).removesuffix(".")}')
      continue
    wrong = _difference(model, config)
    if wrong is None:
      return name, config, values
    problems.append(f'{name}: {wrong}')
  if not problems:
    problems = [f'none has the layers {", ".join(sorted(used))}']
  raise errors.UserValueError(
      'No family of pretrained models computes what this model does: '
      f'{"; ".join(problems)}.'
  )


def _difference(model, config) -> str | None:
  """Returns how a model differs from one of another config, if it does."""
  pairs = [(_FORWARD, model.config, config)]
  if model.config.layer_names == config.layer_names:
    pairs += [
        (_OF_A_BLOCK, model.config.at_depth(i), config.at_depth(i))
        for i in range(config.num_layers)
    ]
  for names, *configs in pairs:
    for name in names:
      own, other = (getattr(one, name) for one in configs)
      if not _same(own, other):
        own, other = fields.shown(own), fields.shown(other)
        return f'model.{name} must be {other}, got {own}'
  config = config.replace(scan_layers=True)  # One block a stack is traced.
  other = nnx.eval_shape(lambda: LanguageModel(config, rngs=nnx.Rngs(0)))
  own_facts, other_facts = _facts(model), _facts(other)
  for key in [*own_facts, *other_facts]:
    own, want = own_facts.get(key), other_facts.get(key)
    if not _same(own, want):
      return f'{key} must be {fields.shown(want)}, got {fields.shown(own)}'
  return None


def _same(a, b) -> bool:
  """Whether two values are the same, but for a rounding."""
  if isinstance(a, float) and isinstance(b, float):
    return math.isclose(a, b, rel_tol=1e-12)
  return a == b


def _facts(model) -> dict[str, Any]:
  """Returns the shapes of all parameters and what else sets the output."""
  facts = {}
  for path, node in nnx.iter_graph(model):
    name = '.'.join(map(str, path))
    if isinstance(node, nnx.Param):
      facts[name] = tuple(node.get_value().shape)
    elif isinstance(node, nnx.Module):
      facts[name] = type(node).__name__
      facts |= {
          f'{name}.{key}': value for key, value in vars(node).items()
          if key not in _SPEED and not key.startswith('_')
          and isinstance(value, (bool, int, float, str, tuple, type(None)))
      }
  return facts
