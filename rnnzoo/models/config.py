"""What a model is made of, as plain data."""

from collections.abc import Mapping
import dataclasses
from typing import Any, Literal

import jax
from rnnzoo import errors
from rnnzoo import fields

Options = Mapping[str, Any]

# What the annotations of the fields below do not say: see `fields.Field`.
_DETAILS = dict(
    num_layers=dict(low=1, high=10_000),
    features=dict(low=1, high=2**20),
    norm_epsilon=dict(low=0),
    # Each step of it is an operation of the compiled program.
    conv_kernel=dict(low=0, high=1024),
    mlp_factor=dict(low=0, above_low=True, high=1024),
    mlp_multiple=dict(low=1, high=2**20),
    dropout=dict(low=0, high=1, below_high=True),
    vocab_size=dict(low=0),
    in_features=dict(low=0),
    num_classes=dict(low=0),
    out_features=dict(low=0),
    embed_std=dict(low=0),
)


@dataclasses.dataclass(frozen=True)
class ModelConfig:
  """Everything a model is built from, except its weights.

  A block is, in this order and each part with its own residual connection:

      x = x + conv(x)                          if conv_kernel
      x = x + dropout(gate(layer(norm(x))))
      x = x + dropout(mlp(norm(x)))            if mlp

  That is the block of minGRU and minLSTM with `mlp='geglu'`, and of LRU, S4D
  and S5 with `gate='glu'` and without `mlp`. With `norm_position='post'` each
  sum is normalised instead of each branch's input. Maps of the block start as
  PyTorch's do, whatever the published model; layers start as published.

  >>> ModelConfig.tiny().replace(layer='lru').layer_names
  ('lru', 'lru')
  >>> ModelConfig(layer=('lru', 'lru', 'gru'), num_layers=4).layer
  'lru,lru,gru'

  Attributes:
    layer: A name in `rnnzoo.layers.LAYERS`, or several, joined by commas or in
      a tuple: a pattern that is repeated over depth.
    num_layers: Number of blocks.
    features: Width of the residual stream.
    layer_options: Keyword arguments of the layers; those under a key that is a
      layer's name are for that layer alone.
    bidirectional: Whether each layer is paired with one that runs backwards
      (classifiers only).
    norm: `rms`, `layer` or `batch`.
    norm_position: `pre` or `post`.
    norm_epsilon: Added to what a norm divides by, under the root; 0 for the
      norm's own: 1e-6, 1e-5 of `batch`.
    conv_kernel: Width of the causal convolution, 0 for none.
    gate: After the layer: `none`, or GELU, dropout and `glu` (`W1 u *
      sigmoid(W2 u)`), `half_glu` (`u * sigmoid(W u)`) or `half_glu2` (the same
      but for the first `u`, which is the layer's output as it came).
    mlp: `none`, `gelu`, `geglu` or `swiglu`.
    mlp_factor: Hidden features of the MLP per feature.
    mlp_multiple: They are rounded up to a multiple of it.
    mlp_layers: Names of the layers that an MLP follows, joined by commas or in
      a tuple; all of them if empty.
    use_bias: Whether the maps of gate and MLP have biases. Those of the layers
      are `layer_options`.
    dropout: Rate, after the embedding, the layer and the MLP.
    dropout_over_time: Whether one dropout mask serves all time steps.
    vocab_size: Number of tokens; 0 for a classifier of vectors.
    in_features: Size of an input vector, where there is no vocabulary.
    num_classes: Number of classes of a classifier.
    out_features: Numbers that a regressor predicts.
    pooling: How a classifier or a regressor gets one output from all steps:
      from the `mean` of their features, or from the `last` or the `first` step.
      `none` means an output at every step. Skipped steps do not count.
    tie_embeddings: Whether the head is the embedding, transposed.
    scale_embeddings: Whether embeddings are multiplied by the root of
      `features`.
    embed_norm: Whether there is a norm right after the embedding, too.
    embed_std: Standard deviation of initial embeddings; if 0, 1, or
      `features ** -0.5` where they are the head, too.
    soft_cap: If positive, logits are `soft_cap * tanh(logits / soft_cap)`.
    dtype: Of activations: `float32`, `bfloat16` or `float64`.
    param_dtype: Of parameters.
    remat: What the backward pass recomputes: `none`, `full` (everything inside
      a block) or `dots` (everything but matmuls).
    scan_layers: Whether depth is a loop in the compiled program: slower to run
      by a little, much faster to compile when deep. Never changes the layout of
      parameters or carries.
  """

  layer: str = 'min_gru'
  num_layers: int = 3
  features: int = 256
  layer_options: Options = dataclasses.field(default_factory=dict)
  bidirectional: bool = False
  norm: Literal['rms', 'layer', 'batch'] = 'rms'
  norm_position: Literal['pre', 'post'] = 'pre'
  norm_epsilon: float = 0.0
  conv_kernel: int = 0
  gate: Literal['none', 'glu', 'half_glu', 'half_glu2'] = 'none'
  mlp: Literal['none', 'gelu', 'geglu', 'swiglu'] = 'geglu'
  mlp_factor: float = 2.0
  mlp_multiple: int = 1
  mlp_layers: str = ''
  use_bias: bool = True
  dropout: float = 0.0
  dropout_over_time: bool = False
  vocab_size: int = 0
  in_features: int = 0
  num_classes: int = 0
  out_features: int = 0
  pooling: Literal['mean', 'last', 'first', 'none'] = 'mean'
  tie_embeddings: bool = False
  scale_embeddings: bool = False
  embed_norm: bool = False
  embed_std: float = 0.0
  soft_cap: float = 0.0
  dtype: Literal['float32', 'bfloat16', 'float64'] = 'float32'
  param_dtype: Literal['float32', 'bfloat16', 'float64'] = 'float32'
  remat: Literal['none', 'full', 'dots'] = 'none'
  scan_layers: bool = False

  def __post_init__(self):
    for name in ('layer', 'mlp_layers'):
      value = getattr(self, name)
      if isinstance(value, (tuple, list)):
        fields.check(f'model.{name}', value, fields.Field(tuple))
        object.__setattr__(self, name, ','.join(value))
    fields.check_all(vars(self), FIELDS, 'model.')
    if not all(name.strip() for name in self.layer.split(',')):
      raise errors.UserValueError(
          'model.layer must be the name of a layer, or several joined by '
          f'commas, got {self.layer!r}.'
      )
    if self.mlp != 'none' and int(self.features * self.mlp_factor) < 1:
      raise errors.UserValueError(
          f'model.mlp_factor {self.mlp_factor} of model.features '
          f'{self.features} leaves the MLP no hidden features.'
      )
    for name in _split(self.mlp_layers):
      if name not in _split(self.layer):
        raise errors.UserValueError(
            f'model.mlp_layers names {name!r}, which is not in model.layer, '
            f'{self.layer!r}.{errors.suggest(name, _split(self.layer))}'
        )

  @property
  def layer_names(self) -> tuple[str, ...]:
    """The name of each block's layer, first to last."""
    pattern = _split(self.layer)
    return tuple(pattern[i % len(pattern)] for i in range(self.num_layers))

  def at_depth(self, depth: int) -> 'ModelConfig':
    """Returns the config of the block at `depth`: this, but for its MLP."""
    followed = _split(self.mlp_layers) or self.layer_names
    if self.layer_names[depth] in followed:
      return self
    return self.replace(mlp='none', mlp_layers='')

  def check_dtypes(self):
    """Raises `UserValueError` on a dtype that JAX would replace by another."""
    for name in ('dtype', 'param_dtype'):
      if getattr(self, name) == 'float64' and not jax.config.jax_enable_x64:
        raise errors.UserValueError(
            f'model.{name} float64 needs JAX_ENABLE_X64=1 in the environment '
            "or jax.config.update('jax_enable_x64', True): without it JAX "
            'computes in float32.'
        )

  def replace(self, **changes) -> 'ModelConfig':
    """Returns a copy with some fields changed."""
    return dataclasses.replace(self, **changes)

  @classmethod
  def from_dict(cls, values: Mapping[str, Any]) -> 'ModelConfig':
    """Builds a config from a mapping such as an `ml_collections.ConfigDict`.

    Raises:
      UserValueError: On a field that does not exist, naming the nearest.
    """
    fields.check_names(values, FIELDS, 'model.')
    return cls(**values)

  @classmethod
  def tiny(cls) -> 'ModelConfig':
    """Returns a model small enough for a test."""
    return cls(num_layers=2, features=8, vocab_size=16)


FIELDS = {
    field.name: dataclasses.replace(
        fields.of_annotation(field.type), **_DETAILS.get(field.name, {})
    )
    for field in dataclasses.fields(ModelConfig)
}


def _split(names):
  return tuple(name.strip() for name in names.split(',') if name.strip())
