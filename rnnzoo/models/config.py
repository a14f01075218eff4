"""What a model is made of, as plain data."""

from collections.abc import Mapping
import dataclasses
from typing import Any, Literal

from rnnzoo import errors

Options = Mapping[str, Any]


@dataclasses.dataclass(frozen=True)
class ModelConfig:
  """Everything a model is built from, except its weights.

  A block is, in this order and each part with its own residual connection:

      x = x + conv(x)                          if conv_kernel
      x = x + dropout(gate(layer(norm(x))))
      x = x + dropout(mlp(norm(x)))            if mlp

  That is the block of minGRU and minLSTM with `mlp='geglu'`, and of LRU, S4D
  and S5 with `gate='glu'` and without `mlp`. With `norm_position='post'` each
  sum is normalised instead of each branch's input.

  >>> ModelConfig.tiny().replace(layer='lru').layer_names
  ('lru', 'lru')

  Attributes:
    layer: A name in `rnnzoo.layers.LAYERS`, or several joined by commas: a
      pattern that is repeated over depth.
    num_layers: Number of blocks.
    features: Width of the residual stream.
    layer_options: Keyword arguments of the layers; those under a key that is a
      layer's name are for that layer alone.
    bidirectional: Whether each layer is paired with one that runs backwards
      (classifiers only).
    norm: `rms`, `layer` or `batch`.
    norm_position: `pre` or `post`.
    conv_kernel: Width of the causal convolution, 0 for none.
    gate: After the layer: `none`, or GELU, dropout and `glu` (`W1 u *
      sigmoid(W2 u)`) or `half_glu` (`u * sigmoid(W u)`).
    mlp: `none`, `gelu`, `geglu` or `swiglu`.
    mlp_factor: Hidden features of the MLP per feature.
    dropout: Rate, after the embedding, the layer and the MLP.
    dropout_over_time: Whether one dropout mask serves all time steps.
    vocab_size: Number of tokens; 0 for a classifier of vectors.
    in_features: Size of an input vector, where there is no vocabulary.
    num_classes: Of a classifier.
    pooling: Of a classifier, over the steps that exist: `mean`, `last`,
      `first`.
    tie_embeddings: Whether the head is the embedding, transposed.
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
  conv_kernel: int = 0
  gate: Literal['none', 'glu', 'half_glu'] = 'none'
  mlp: Literal['none', 'gelu', 'geglu', 'swiglu'] = 'geglu'
  mlp_factor: float = 2.0
  dropout: float = 0.0
  dropout_over_time: bool = False
  vocab_size: int = 0
  in_features: int = 0
  num_classes: int = 0
  pooling: Literal['mean', 'last', 'first'] = 'mean'
  tie_embeddings: bool = False
  soft_cap: float = 0.0
  dtype: Literal['float32', 'bfloat16', 'float64'] = 'float32'
  param_dtype: Literal['float32', 'bfloat16', 'float64'] = 'float32'
  remat: Literal['none', 'full', 'dots'] = 'none'
  scan_layers: bool = False

  def __post_init__(self):
    for field in dataclasses.fields(self):
      value = getattr(self, field.name)
      choices = getattr(field.type, '__args__', None)
      if field.name != 'layer_options' and choices and value not in choices:
        raise errors.UserValueError(
            f'model.{field.name} must be one of {", ".join(choices)}, got '
            f'{value!r}.{errors.suggest(str(value), choices)}'
        )
    for name in ('num_layers', 'features'):
      if getattr(self, name) < 1:
        raise errors.UserValueError(
            f'model.{name} must be at least 1, got {getattr(self, name)}.'
        )
    for name in ('conv_kernel', 'vocab_size', 'in_features', 'num_classes'):
      if getattr(self, name) < 0:
        raise errors.UserValueError(
            f'model.{name} must not be negative, got {getattr(self, name)}.'
        )
    if not 0 <= self.dropout < 1:
      raise errors.UserValueError(
          f'model.dropout must be in [0, 1), got {self.dropout}.'
      )

  @property
  def layer_names(self) -> tuple[str, ...]:
    """The name of each block's layer, first to last."""
    pattern = tuple(name.strip() for name in self.layer.split(','))
    return tuple(pattern[i % len(pattern)] for i in range(self.num_layers))

  def replace(self, **changes) -> 'ModelConfig':
    """Returns a copy with some fields changed."""
    return dataclasses.replace(self, **changes)

  @classmethod
  def from_dict(cls, fields: Mapping[str, Any]) -> 'ModelConfig':
    """Builds a config from a mapping such as an `ml_collections.ConfigDict`.

    Raises:
      UserValueError: On a field that does not exist, naming the nearest.
    """
    known = [field.name for field in dataclasses.fields(cls)]
    for name in fields:
      if name not in known:
        raise errors.UserValueError(
            f'There is no config field model.{name}.'
            f'{errors.suggest(name, known)}'
        )
    return cls(**dict(fields))

  @classmethod
  def tiny(cls) -> 'ModelConfig':
    """Returns a model small enough for a test."""
    return cls(num_layers=2, features=8, vocab_size=16)


def _lra(features, state_features, dropout, r_min, r_max, **fields):
  """An LRU classifier of table 9 of the LRU paper."""
  options = dict(state_features=state_features, r_min=r_min, r_max=r_max)
  if 'max_phase' in fields:
    options['max_phase'] = fields.pop('max_phase')
  return ModelConfig(
      layer='lru', num_layers=6, features=features, layer_options=options,
      norm='batch', mlp='none', dropout=dropout, dropout_over_time=True,
      **dict(dict(gate='glu'), **fields),
  )


def _hawk(features, hidden_features, num_layers):
  """A language model of table 2 of the Griffin paper, all of it recurrent."""
  options = dict(hidden_features=hidden_features, output_scale=2 / num_layers)
  return ModelConfig(
      layer='griffin', num_layers=num_layers, features=features, mlp_factor=3,
      tie_embeddings=True, layer_options=options,
  )


def _mamba(num_layers, features, **fields):
  """A language model of the Mamba paper: the layer is all there is."""
  return ModelConfig(
      layer='mamba', num_layers=num_layers, features=features, mlp='none',
      layer_options=dict(num_layers=num_layers),
      **dict(dict(tie_embeddings=True, scan_layers=True), **fields),
  )


def _psmnist(layer, features, order):
  """A classifier of pixel sequences by an LMU and its last output."""
  return ModelConfig(
      layer=layer, num_layers=1, features=features, mlp='none',
      layer_options=dict(order=order, theta=784.0), in_features=1,
      num_classes=10, pooling='last',
  )


def _rwkv4(num_layers, features):
  """A language model of RWKV-4: two of our blocks are one layer of theirs."""
  return ModelConfig(
      layer='rwkv4,rwkv4_channel_mix', num_layers=2 * num_layers,
      features=features, norm='layer', mlp='none', scan_layers=True,
  )


def _s5(features, state_features, blocks, c_init, dropout, **fields):
  """An S5 classifier of the official scripts, those with `half_glu`."""
  options = dict(
      state_features=state_features, blocks=blocks, c_init=c_init,
      bidirectional=True, **fields.pop('options', {}),
  )
  return ModelConfig(
      layer='s5', num_layers=6, features=features, layer_options=options,
      norm='batch', gate='half_glu', mlp='none', dropout=dropout,
      dropout_over_time=True, **fields,
  )


def _s4(features, state_features, norm_position, **fields):
  """An S4 classifier of the official configs of the long range arena.

  Theirs adds the two directions up; here a linear map brings them together.
  """
  options = dict(
      state_features=state_features, output_map='none',
      **fields.pop('options', {}),
  )
  return ModelConfig(
      layer='s4', num_layers=6, features=features, layer_options=options,
      bidirectional=True, norm='batch', norm_position=norm_position,
      gate='glu', mlp='none', **fields,
  )


# Published models, by name. Vocabularies and classes belong to the data.
PRESETS = dict(
    hawk_100m=_hawk(768, 1024, 12),
    hawk_200m=_hawk(1024, 1536, 12),
    hawk_400m=_hawk(1536, 2048, 12),
    hawk_1_3b=_hawk(2048, 2560, 24),
    hawk_3b=_hawk(3072, 4096, 24),
    hawk_7b=_hawk(4096, 5632, 32),
    min_gru_shakespeare=ModelConfig(
        layer='min_gru', num_layers=3, features=384,
        layer_options=dict(expansion_factor=2), dropout=0.2,
    ),
    min_lstm_shakespeare=ModelConfig(
        layer='min_lstm', num_layers=3, features=384,
        layer_options=dict(expansion_factor=2), dropout=0.2,
    ),
    min_gru_selective_copying=ModelConfig(
        layer='min_gru', num_layers=3, features=64, mlp='none', vocab_size=16,
        layer_options=dict(expansion_factor=6, learn_initial_state=True),
    ),
    min_lstm_selective_copying=ModelConfig(
        layer='min_lstm', num_layers=3, features=64, mlp='none', vocab_size=16,
        layer_options=dict(
            expansion_factor=6, normalize=False, learn_initial_state=True
        ),
    ),
    # xLSTM[0:1] of the official code; its MLP has 1.3 * 64 features, rounded up
    # to a multiple of 64.
    slstm_parity=ModelConfig(
        layer='slstm_block', num_layers=2, features=64, norm='layer',
        mlp='geglu', mlp_factor=2.0, vocab_size=3,
        layer_options=dict(num_heads=1),
    ),
    mamba_130m=_mamba(24, 768),
    mamba_370m=_mamba(48, 1024),
    mamba_790m=_mamba(48, 1536),
    mamba_1p4b=_mamba(48, 2048),
    mamba_2p8b=_mamba(64, 2560),
    mamba_selective_copying=_mamba(
        2, 64, vocab_size=16, tie_embeddings=False, scan_layers=False
    ),
    # One layer on permuted images, one pixel a token; here, as in every model,
    # with an encoder, a norm and a residual connection that it does not have.
    lmu_psmnist=_psmnist('lmu', 212, 256),
    parallel_lmu_psmnist=_psmnist('parallel_lmu', 346, 468),
    rwkv4_169m=_rwkv4(12, 768),
    rwkv4_430m=_rwkv4(24, 1024),
    rwkv4_1p5b=_rwkv4(24, 2048),
    rwkv4_3b=_rwkv4(32, 2560),
    rwkv4_7b=_rwkv4(32, 4096),
    rwkv4_14b=_rwkv4(40, 5120),
    s4_listops=_s4(256, 4, 'post', num_classes=10),
    s4_text=_s4(256, 4, 'pre', num_classes=2),
    s4_image=_s4(512, 64, 'post', dropout=0.1, in_features=1, num_classes=10),
    s4_pathfinder=_s4(256, 64, 'pre', in_features=1, num_classes=2),
    s4_pathx=_s4(
        256, 64, 'pre', in_features=1, num_classes=2,
        options=dict(dt_min=1e-4),
    ),
    s5_image=_s5(
        512, 384, 3, 'lecun_normal', 0.1, in_features=1, num_classes=10,
        options=dict(clip_eigs=True),
    ),
    s5_pathfinder=_s5(
        192, 256, 8, 'trunc_standard_normal', 0.05, in_features=1,
        num_classes=2,
    ),
    s5_pathx=_s5(
        128, 256, 16, 'complex_normal', 0.0, in_features=1, num_classes=2,
        options=dict(dt_min=1e-4),
    ),
    s5_speech=_s5(
        96, 128, 16, 'lecun_normal', 0.1, in_features=1, num_classes=35
    ),
    lru_scifar=_lra(512, 384, 0.1, 0.9, 0.999, in_features=3, num_classes=10),
    lru_listops=_lra(128, 256, 0.0, 0.0, 0.99, num_classes=10),
    lru_text=_lra(256, 192, 0.1, 0.5, 0.9, num_classes=2),
    lru_pathfinder=_lra(
        192, 256, 0.0, 0.9, 0.999, in_features=1, num_classes=2,
        bidirectional=True,
    ),
    lru_pathx=_lra(
        128, 256, 0.0, 0.999, 0.9999, in_features=1, num_classes=2,
        bidirectional=True, gate='half_glu', max_phase=0.314159265,
    ),
)
