"""Which tensor of a file is which parameter of a model.

A table has one row for each tensor: the parts of parameters whose rows it
holds, one part after another along the first axis. A part is a view of a
parameter, in the layout that the file has. To load is to assign to the view,
and to save is to read it, so one table does both, and neither can differ from
the other.
"""

from collections.abc import Callable, Collection, Mapping, Sequence
import functools
from typing import Any, NamedTuple

import jax
import numpy as np
from rnnzoo.models import patterns
from rnnzoo.models.config import ModelConfig

View = Callable[[Any], Any]


class Part(NamedTuple):
  """A parameter, or a part of it, as a tensor of a file holds it.

  Attributes:
    path: The dotted path of the parameter in the model.
    index: The index along the axis `layers` of a stack, or `None` if the
      parameter is in no stack.
    view: Maps the parameter (that of one layer) to a view of its memory.
  """

  path: str
  index: int | None
  view: View


Row = tuple[Part, ...]
Table = Mapping[str, Row]


def same(u):
  """The layout of the parameter itself."""
  return u


def transposed(u):
  """The weight `[N, D]` of PyTorch for a kernel `[D, ...]`.

  >>> transposed(np.zeros((3, 2, 5))).shape
  (10, 3)
  """
  return u.reshape(u.shape[0], -1).T


@functools.cache
def transposed_rows(start: int, stop: int) -> View:
  """Rows `[start, stop)` of the weight that `transposed` returns.

  >>> transposed_rows(2, 6)(np.zeros((3, 10))).shape
  (4, 3)
  """
  return lambda u: transposed(u)[start:stop]


def flat(u):
  """A vector for the bias or the scale `[G, H]` of several maps or heads."""
  return u.reshape(-1)


@functools.cache
def expert_inner(index: int, gate: int) -> View:
  """The weight `[F, D]` of an expert for the kernels `[E, D, G, F]` of all.

  >>> expert_inner(3, 0)(np.zeros((4, 2, 1, 5))).shape
  (5, 2)
  """
  return lambda u: u[index, :, gate].T


@functools.cache
def expert_outer(index: int) -> View:
  """The weight `[D, F]` of an expert for the kernels `[E, F, D]` of all.

  >>> expert_outer(3)(np.zeros((4, 5, 2))).shape
  (2, 5)
  """
  return lambda u: u[index].T


def experts_inner(u):
  """The weights `[E, G F, D]` of all experts for kernels `[E, D, G, F]`."""
  return u.reshape(*u.shape[:2], -1).swapaxes(1, 2)


def experts_outer(u):
  """The weights `[E, D, F]` of all experts for kernels `[E, F, D]`."""
  return u.swapaxes(1, 2)


def taps(u):
  """The weight `[C, 1, K]` of a depthwise convolution for a kernel `[K, C]`.

  >>> taps(np.zeros((4, 6))).shape
  (6, 1, 4)
  """
  return u.T[:, None]


@functools.cache
def taps_rows(start: int, stop: int) -> View:
  """Rows `[start, stop)` of the weight that `taps` returns.

  >>> taps_rows(2, 6)(np.zeros((3, 10))).shape
  (4, 1, 3)
  """
  return lambda u: taps(u)[start:stop]


def whole(path: str, view: View = same) -> Row:
  """The row of a parameter that is in no stack."""
  return (Part(path, None, view),)


def shape_of(part: Part, params: Mapping[str, Any]) -> tuple[int, ...]:
  """Returns the shape of a part in the file.

  Args:
    part: The part.
    params: The parameters by their paths, or their shapes.
  """
  shape = tuple(params[part.path].shape)
  return _shape_of_view(part.view, shape if part.index is None else shape[1:])


@functools.lru_cache(maxsize=2**14)  # There may be hundreds of experts.
def _shape_of_view(view, shape):
  like = jax.ShapeDtypeStruct(shape, np.float32)
  return jax.eval_shape(view, like).shape


def whole_norm(name: str, path: str, *, bias: bool = False) -> Table:
  """The rows of a norm that is in no stack, see `Block.norm`."""
  table = {f'{name}.weight': whole(f'{path}.scale')}
  if bias:
    table[f'{name}.bias'] = whole(f'{path}.bias')
  return table


class Block(NamedTuple):
  """Where the parameters of one block are: those of a stack at an index.

  A block that is in no stack, such as a shared one, has no index.
  """

  path: str
  index: int | None

  def row(self, path: str, view: View = same) -> Row:
    """The row of one parameter; rows are added to put parts after others."""
    return (Part(f'{self.path}.{path}', self.index, view),)

  def linear(self, name: str, path: str, *, bias: bool = False) -> Table:
    """The rows of a linear map, whose tensors are `name.weight` and `.bias`."""
    table = {f'{name}.weight': self.row(f'{path}.kernel', transposed)}
    if bias:
      table[f'{name}.bias'] = self.row(f'{path}.bias', flat)
    return table

  def mlp(self, name: str, *, bias: bool = False) -> Table:
    """The rows of a gated MLP: `name.gate_proj`, `.up_proj`, `.down_proj`."""
    table = {}
    for part, path in dict(gate='gate', up='in', down='out').items():
      table |= self.linear(f'{name}.{part}_proj', f'mlp_{path}', bias=bias)
    return table

  def experts(self, name: str, count: int, *names: str) -> Table:
    """The rows of experts that the file has one by one: `name.0.gate_proj`.

    Args:
      name: What the names of all tensors start with.
      count: The number of experts.
      *names: The rest: of the gate if there is one, of the other map to hidden
        features, and of the map from them.
    """
    *inner, outer = names
    table = {}
    for i in range(count):
      for gate, part in enumerate(inner):
        table[f'{name}.{i}.{part}.weight'] = self.row(
            'experts.mlp_in', expert_inner(i, gate)
        )
      table[f'{name}.{i}.{outer}.weight'] = self.row(
          'experts.mlp_out', expert_outer(i)
      )
    return table

  def norm(self, name: str, path: str, *, bias: bool = False) -> Table:
    """The rows of a norm, whose tensors are `name.weight` and `.bias`."""
    table = {f'{name}.weight': self.row(f'{path}.scale', flat)}
    if bias:
      table[f'{name}.bias'] = self.row(f'{path}.bias', flat)
    return table


def blocks(config: ModelConfig) -> list[Block]:
  """Returns where the blocks of a model are, in order of depth.

  >>> config = ModelConfig(layer='lru,gru', num_layers=3)
  >>> for block in blocks(config):
  ...   print(*block)
  backbone.stacks.0 0
  backbone.stacks.1 0
  backbone.stacks.0 1
  """
  found = {
      depth: Block(f'backbone.stacks.{stack}', index)
      for stack, depths in enumerate(config.stacks)
      for index, depth in enumerate(depths)
  }
  return [found[depth] for depth in range(config.num_layers)]


def with_dense(
    layers: Sequence[str], dense: Collection[int], factor: float
) -> dict[str, Any]:
  """Returns fields of a `ModelConfig` whose other blocks have experts.

  >>> with_dense(['lru', 'gru', 'gru'], [0], 4.0)['layer']
  'lru_dense;gru'

  Args:
    layers: The layers of all blocks.
    dense: The depths of those that have an MLP and no experts.
    factor: The `mlp_factor` of these.

  Returns:
    `layer` and `variants`.
  """
  variants = {
      f'{layers[i]}_dense': dict(
          layer=layers[i], mlp_factor=factor, experts={}
      ) for i in sorted(dense)
  }
  return dict(variants=variants, layer=patterns.pattern([
      f'{layer}_dense' if i in dense else layer
      for i, layer in enumerate(layers)
  ]))


def dense_blocks(config: ModelConfig) -> list[int]:
  """Returns the depths of the blocks without experts."""
  return [
      i for i in range(config.num_layers) if not config.at_depth(i).experts
  ]


def first_with(model: Any, name: str) -> Any:
  """Returns the first part of this name in a block; `None` if there is none."""
  found = (getattr(stack, name, None) for stack in model.backbone.stacks)
  return next((part for part in found if part is not None), None)


def first_stacks(model: Any) -> dict[str, Any]:
  """Returns the first stack of blocks with each layer, by its name."""
  stacks = {}
  for name, stack in zip(model.config.layer_names, model.backbone.stacks):
    stacks.setdefault(name, stack)
  return stacks


def common_values(model: Any) -> dict[str, Any]:
  """Returns what most files say of a model with MLPs of SiLU and RMS norms."""
  config = model.config
  return dict(
      hidden_act='silu', hidden_size=config.features,
      num_hidden_layers=config.num_layers, vocab_size=config.vocab_size,
      rms_norm_eps=model.norm.epsilon,
      tie_word_embeddings=config.tie_embeddings,
  )


def mlp_features(model: Any) -> int:
  """Returns the number of hidden features of the first MLP.

  Raises:
    AttributeError: If there is none.
  """
  return first_with(model, 'mlp_in').kernel.shape[-1]


def ratio(part: int, whole: int) -> float:
  """Returns a factor with `int(whole * factor) == part`.

  >>> ratio(192, 64), int(11 * (15 / 11)), int(11 * ratio(15, 11))
  (3.0, 14, 15)
  """
  factor = part / whole
  return factor if int(whole * factor) == part else np.nextafter(
      factor, np.inf
  ).item()
