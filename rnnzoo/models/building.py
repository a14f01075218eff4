"""Builds the layer of a block from the config, and checks its options."""

from collections.abc import Callable, Mapping
import contextlib
import dataclasses
import inspect
from typing import Any

from flax import nnx
import jax
import jax.numpy as jnp
from rnnzoo import errors
from rnnzoo import fields
from rnnzoo import layers as zoo
from rnnzoo.layers import base
from rnnzoo.models import config as config_lib
from rnnzoo.models import patterns
from rnnzoo.models.config import ModelConfig

# Layers by name: classes, or functions with the same arguments.
Layers = Mapping[str, Callable[..., base.RecurrentLayer]]

# Arguments of layers that are not `layer_options`.
_GIVEN = (
    'self', 'in_features', 'input_shape', 'branches', 'rngs', 'dtype',
    'param_dtype',
)


def make_layer(
    config: ModelConfig, depth: int, known: Layers, rngs: nnx.Rngs,
    image_shape: tuple[int, ...] = (),
) -> base.RecurrentLayer | None:
  """Builds the layer of the block at `depth`.

  >>> config = ModelConfig(
  ...     layer='gru,min_gru', num_layers=2, features=8,
  ...     layer_options=dict(min_gru=dict(expansion_factor=2)),
  ... )
  >>> layer = make_layer(config, 1, zoo.LAYERS, nnx.Rngs(0))
  >>> layer.in_features, layer.hidden_features
  (8, 16)

  Args:
    config: The model's config.
    depth: The index of the block.
    known: All layers by name.
    rngs: The source of the initial parameters.
    image_shape: `(H, W)` if the features between the blocks are images
      `[H, W, D]`, empty if they are vectors `[D]`.

  Returns:
    The layer, or a `Bidirectional` of two layers with `config.bidirectional`;
    `None` for a block `mlp`.

  Raises:
    UserValueError: If the layer or an option does not exist, or the layer
      cannot be built with these options.
  """
  name = config.layer_names[depth]
  if name == config_lib.NO_LAYER:
    return None
  options = layer_options(config, depth, known, images=bool(image_shape))
  size = (*image_shape, config.features) if image_shape else config.features
  build = lambda: _build(name, known, config, size, options, rngs)
  layer = build()
  if config.bidirectional:
    _check_no_first_value('model.bidirectional', name, layer)
    layer = zoo.Bidirectional(layer, build())
  return layer


def layer_options(
    config: ModelConfig, depth: int, known: Layers,
    *, images: bool | None = None,
) -> dict[str, Any]:
  """Returns the keyword arguments of the layer at `depth`, checked.

  `config.layer_options` has options for all layers and, under the name of a
  layer, options for that layer alone, which win. Those of a variant win over
  both. Some layers also get their place in the model, because they depend on
  it.

  Args:
    config: The model's config.
    depth: The index of the block.
    known: All layers by name.
    images: Whether the blocks are made of images, not of vectors; `None` if
      that is not to be checked.

  Returns:
    Values by the names of arguments. If several layers are in parallel, those
    of `layers.Parallel`, and the options of each layer under its name.

  Raises:
    UserValueError: If the layer or an option does not exist, or a value is
      wrong.
  """
  for other, own in config.layer_options.items():
    parts = patterns.parts_of(other)
    if other in known or len(parts) > 1:
      fields.check(
          f'model.layer_options.{other}', own, fields.Field(dict)
      )
    if len(parts) > 1:
      for part in parts:
        _check_known(part, known)
  name = config.layer_names[depth]
  if name == config_lib.NO_LAYER:
    return {}
  variant = config.variants.get(config.block_names[depth], {})
  variant = dict(variant.get('layer_options', {}))
  parts = patterns.parts_of(name)
  if len(parts) == 1:
    return _options(name, variant, config, depth, known, images)
  own = {}
  for other, given in config.layer_options.items():
    if patterns.parts_of(other) == parts:  # There may be spaces.
      own |= given
  own |= {k: v for k, v in variant.items() if k not in parts}
  check_options(name, zoo.Parallel, own, 'model.layer_options')
  return own | {
      part: _options(part, variant.get(part, {}), config, depth, known, images)
      for part in parts
  }


def _options(name, variant, config, depth, known, images) -> dict[str, Any]:
  """Returns the arguments of one layer at `depth`; those of a variant win."""
  _check_known(name, known)
  allowed = options_of(known[name])
  if reads_images(known[name]) and images is False:
    raise errors.UserValueError(
        f'Layer {name} reads images [H, W, C]; the blocks of this model are '
        'made of vectors. Those of a model of videos are made of images.'
    )
  if images and not reads_images(known[name]):
    raise errors.UserValueError(
        f'Layer {name} reads vectors; the blocks of this model are made of '
        f'images [H, W, C]. Layers that read them: {", ".join(image_layers())}.'
    )
  shared = {
      k: v for k, v in config.layer_options.items()
      if k not in known and '+' not in k
  }
  options = shared | dict(config.layer_options.get(name, {})) | dict(variant)
  check_options(name, known[name], options, 'model.layer_options')
  place = config.layer_names[depth]
  index = config.layer_names[:depth].count(place)
  count = config.layer_names.count(place)
  place = dict(
      layer_index=index, num_layers=count,  # Among those of the same name.
      relative_depth=index / max(count - 1, 1),
      block_index=depth, num_blocks=config.num_layers,
  )
  return {k: v for k, v in place.items() if k in allowed} | options


def _check_known(name, known):
  if name not in known:
    raise errors.UserValueError(
        f'There is no layer {name!r}.{errors.suggest(name, known)} The layers '
        f'are: {", ".join(sorted(known))}.'
    )


def check_options(
    name: str, make: Callable[..., Any], options: Mapping[str, Any], where: str
) -> None:
  """Checks the options of a layer.

  >>> check_options('lru', zoo.LRU, dict(state_features=8), 'layer_options')

  Args:
    name: The name of the layer, for the message.
    make: Its class or function.
    options: Keyword arguments of it.
    where: The field of a config that holds them.

  Raises:
    UserValueError: If there is no such option, or a value is wrong.
  """
  allowed = options_of(make)
  for option, value in options.items():
    if option not in allowed:
      raise errors.UserValueError(
          f'Layer {name} has no option {option!r} (config field {where}).'
          f'{errors.suggest(option, allowed)} Its options are: '
          f'{", ".join(sorted(allowed))}. If these options are of another '
          f"layer, clear them with --config.{where}='{{}}'."
      )
    field = _field(option, allowed[option].annotation)
    if field:
      fields.check(f'{where}.{option}', value, field)


def build(
    name: str, make: Callable[..., Any], size: int, options: Mapping[str, Any],
    of: str, **given: Any,
) -> base.RecurrentLayer:
  """Calls `make`; an error is one line if the layer is one of the zoo.

  Args:
    name: The name of the layer.
    make: Its class or function.
    size: The size of an input.
    options: Keyword arguments, from the config.
    of: What the layer is built of, for the message.
    **given: The other keyword arguments.

  Raises:
    UserValueError: If that fails, or a parameter has no elements.
  """
  problem = f'Layer {name} cannot be built of {of}'
  # The author of a layer of their own needs the traceback.
  own = name not in zoo.LAYERS
  with contextlib.nullcontext() if own else _readable_errors(problem):
    layer = make(size, **given, **options)
  if not all(u.size for u in jax.tree.leaves(nnx.state(layer, nnx.Param))):
    raise errors.UserValueError(
        f'{problem}: a parameter would have no elements.'
    )
  return layer


def _build(name, known, config, size, options, rngs) -> base.RecurrentLayer:
  """Builds a layer of a model, or several in parallel."""
  shown = fields.shown(dict(config.layer_options))
  of = f'model.features {config.features} and model.layer_options {shown}'
  parts = patterns.parts_of(name)
  if len(parts) == 1:
    return build(
        name, known[name], size, options, of,
        param_dtype=jnp.dtype(config.param_dtype),
        dtype=jnp.dtype(config.dtype), rngs=rngs,
    )
  scales = {k: v for k, v in options.items() if k not in parts}
  branches = [
      _build(part, known, config, size, options[part], rngs) for part in parts
  ]
  for part, branch in zip(parts, branches):
    _check_no_first_value(f'model.layer {name}', part, branch)
  with _readable_errors(f'Layer {name} cannot be built of {of}'):
    return zoo.Parallel(branches, **scales)


@contextlib.contextmanager
def _readable_errors(problem):
  """Makes an error while a layer is built a `UserValueError`."""
  try:
    yield
  except errors.UserError:
    raise
  except (
      ArithmeticError, LookupError, MemoryError, TypeError, ValueError
  ) as error:
    raise errors.UserValueError(
        f'{problem}: {type(error).__name__}: {error}'
    ) from error


def _check_no_first_value(what, name, layer):
  if hasattr(layer, 'first_value'):
    raise errors.UserValueError(
        f'{what} does not go with layer {name}, which looks at the values of '
        'the first of its kind.'
    )


def takes_dt(layer: Any) -> bool:
  """Whether a layer, or a class of layers, takes `dt`, the lengths of steps.

  >>> takes_dt(zoo.LRU), takes_dt(zoo.GRU)
  (True, False)
  """
  return 'dt' in inspect.signature(layer.__call__).parameters


def timed_layers() -> list[str]:
  """Returns the names of the layers of the zoo that take `dt`."""
  return [name for name, layer in zoo.LAYERS.items() if takes_dt(layer)]


def reads_images(make: Callable[..., Any]) -> bool:
  """Whether a layer, by its class or its function, reads images `[H, W, C]`.

  >>> reads_images(zoo.ConvS5), reads_images(zoo.S5)
  (True, False)
  """
  return 'input_shape' in inspect.signature(function_of(make)).parameters


def image_layers() -> list[str]:
  """Returns the names of the layers of the zoo that read images."""
  return [name for name, layer in zoo.LAYERS.items() if reads_images(layer)]


def function_of(make: Callable[..., Any]) -> Callable[..., Any]:
  """Returns the function whose arguments and docstring are those of a layer."""
  # The metaclass of Flax hides the signature of a class.
  return make.__init__ if inspect.isclass(make) else make


def options_of(make: Callable[..., Any]) -> dict[str, inspect.Parameter]:
  """Returns the arguments of a layer that may be in `layer_options`."""
  parameters = inspect.signature(function_of(make)).parameters
  return {k: v for k, v in parameters.items() if k not in _GIVEN}


def _field(option: str, annotation: Any) -> fields.Field | None:
  """Returns what the value of an option may be; `None` if anything."""
  if option == 'conv_kernel':
    return config_lib.FIELDS['conv_kernel']
  field = fields.of_annotation(annotation)
  if field and field.kind is int:  # All integer options are counts.
    field = dataclasses.replace(field, low=0)
  return field
