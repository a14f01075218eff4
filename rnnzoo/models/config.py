"""The config of a model, as plain data."""

from collections.abc import Mapping
import dataclasses
from typing import Any, Literal

import jax
from rnnzoo import errors
from rnnzoo import fields
from rnnzoo.models import patterns

Options = Mapping[str, Any]

# The name in `layer` of a block that has an MLP and no layer.
NO_LAYER = 'mlp'

# Limits that the annotations of the fields below do not give; see
# `fields.Field`.
_DETAILS = dict(
    num_layers=dict(low=1, high=10_000),
    features=dict(low=1, high=2**20),
    norm_epsilon=dict(low=0),
    final_norm_epsilon=dict(low=0),
    # Each tap of the kernel is an operation of the compiled program.
    conv_kernel=dict(low=0, high=1024),
    mlp_factor=dict(low=0, above_low=True, high=1024),
    mlp_multiple=dict(low=1, high=2**20),
    shared_block=dict(low=0, high=1000),
    dropout=dict(low=0, high=1, below_high=True),
    vocab_size=dict(low=0),
    in_features=dict(low=0),
    input_scale=dict(low=0, above_low=True),
    num_classes=dict(low=0),
    out_features=dict(low=0),
    window=dict(low=0),
    horizon=dict(low=0),
    future_features=dict(low=0),
    components=dict(low=1, high=1024),
    gap_deviation=dict(low=0, above_low=True),
    patch=dict(low=1),
    max_time=dict(low=0, high=10_000_000),
    halvings=dict(low=1, high=8),
    embed_std=dict(low=0),
    embed_scale=dict(low=0, above_low=True),
    logit_scale=dict(low=0, above_low=True),
)
# What a variant may change: whatever belongs to a single block.
_OF_A_BLOCK = (
    'norm', 'norm_position', 'norm_epsilon', 'conv_kernel', 'gate', 'mlp',
    'mlp_factor', 'mlp_multiple', 'experts', 'use_bias', 'layer_scales',
    'mlp_gate_scale', 'mlp_scales', 'shared_block', 'dropout',
    'dropout_over_time',
)


@dataclasses.dataclass(frozen=True)
class ModelConfig:
  """Describes a model.

  A model embeds its input, runs `num_layers` blocks, normalises and maps the
  features to outputs. A block computes these three sums, in this order:

      x = x + conv(x)                          if conv_kernel
      x = x + dropout(gate(layer(norm(x))))
      x = x + dropout(mlp(norm(x)))            if mlp

  `mlp='geglu'` makes it the block of minGRU and minLSTM. `gate='glu'` and
  `mlp='none'` make it the block of LRU, S4D and S5. With `norm_position='post'`
  the norm follows each sum: `x = norm(x + dropout(gate(layer(x))))`, without a
  norm before the layer. With `norm_position='out'` it follows the branch:
  `x = x + dropout(norm(gate(layer(x))))`. With `norm_position='both'` what it
  gives is also what the branch is added to: `x = norm(x)`, and then
  `x = x + dropout(gate(layer(x)))`. Layers have the initial values of their
  papers; all other linear maps have those of PyTorch.

  >>> ModelConfig.tiny().replace(layer='lru').layer_names
  ('lru', 'lru')
  >>> ModelConfig(layer=('lru', 'lru', 'gru'), num_layers=4).layer
  'lru,lru,gru'

  Blocks may differ in more than their layer. The first of these has an MLP
  and the others have experts:

  >>> config = ModelConfig(
  ...     layer='dense;kda,kda,attention', num_layers=5, mlp='swiglu',
  ...     experts=dict(num_experts=8), variants=dict(
  ...         dense=dict(layer='kda', mlp_factor=4.0, experts={}),
  ...     ),
  ... )
  >>> config.layer_names
  ('kda', 'kda', 'kda', 'attention', 'kda')
  >>> [bool(config.at_depth(i).experts) for i in range(5)]
  [False, True, True, True, True]

  Attributes:
    layer: The name of a layer in `rnnzoo.layers.LAYERS`, or several names,
      joined by commas or in a tuple. Several names are a pattern: it repeats
      until there are `num_layers` blocks. What stands before a semicolon does
      not repeat: `gru;lru,lru,attention`. Names joined by
      `+`, such as `mamba2+attention`, are layers of one block, which read the
      same input and whose outputs are added, see `layers.Parallel`. `mlp` is a
      block without a layer, which has only its MLP.
    variants: Blocks that differ, by a name to be used in `layer`, which may be
      that of a layer: `{'wide': {'layer': 'lru', 'mlp_factor': 4.0}}`. Each has
      new values of the fields of a block, and perhaps `layer`, its layer, and
      `layer_options`, which win over those of this layer.
    num_layers: The number of blocks.
    features: The number of features `D` between the blocks.
    layer_options: Keyword arguments of the layers, such as
      `{'expansion_factor': 2}`. Under the name of a layer stand those for that
      layer alone: `{'gla': {'num_heads': 2}}`. Under names joined by `+` stand
      those of `layers.Parallel`: `{'gla+lru': {'output_scales': (1, 0.5)}}`.
    bidirectional: Whether each layer also runs backwards in time, with
      parameters of its own. For classifiers and regressors only.
    norm: The kind of all norms: `rms` (RMSNorm), `rms1` (RMSNorm whose factor
      is 1 plus the parameter), `layer` (LayerNorm) or `batch` (BatchNorm over
      the steps that exist).
    norm_position: `pre`, before each layer and MLP; `post`, after each sum;
      `out`, after each layer and MLP; or `both`, before each of them and before
      its sum.
    out_norm_layers: Names of layers, joined by commas or in a tuple: blocks
      with these layers have `norm_position='out'`.
    norm_epsilon: The small number under the square root of a norm. 0 means the
      default of the norm: 1e-5 for `batch`, 1e-6 for the others.
    final_norm_epsilon: That of the norm after the last block; 0 means
      `norm_epsilon`.
    conv_kernel: The number of taps of a causal convolution at the start of
      every block; 0 means no convolution.
    gate: What follows the layer. If `y` is the output of the layer and
      `u = dropout(gelu(y))`, it is `none` (`y`), `glu`
      (`W1 u * sigmoid(W2 u)`), `half_glu` (`u * sigmoid(W u)`) or `half_glu2`
      (`y * sigmoid(W u)`).
    mlp: The kind of MLP: `none`, `gelu` (`W2 gelu(W1 x)`), `geglu`
      (`W2 (W1 x * gelu(W3 x))`), `swiglu` (the same with `silu`) or `relu2`
      (`W2 relu(W1 x)^2`).
    mlp_factor: The MLP has `mlp_factor * features` hidden features.
    mlp_multiple: The number of hidden features of the MLP is rounded up to a
      multiple of this.
    mlp_layers: Names of layers, joined by commas or in a tuple: only blocks
      with these layers have an MLP. Empty means all blocks.
    experts: Options of `models.Experts`, such as `{'num_experts': 8}`: the MLP
      of a block is then a mixture of experts, each an MLP of kind `mlp` with
      `mlp_factor * features` hidden features and no biases. Empty means one
      MLP.
    mlp_gate_scale: What `W3 x` of an MLP is multiplied by, before its
      nonlinearity.
    shared_block: The number, from 1, of the shared block that a block uses; 0
      for none. What it gives is added to what the norm before the layer reads,
      and not to `x`. See `models.SharedBlock`; the numbers have no gap.
    shared_options: Options of all shared blocks, such as `{'num_heads': 8}`.
    use_bias: Whether the linear maps of gate and MLP have a bias. For the maps
      inside of a layer, see the options of the layer.
    layer_scales: The factors `a` and `b` of the sum of a block and its layer,
      `a * x + b * layer(norm(x))`.
    mlp_scales: Those of the sum of a block and its MLP.
    dropout: The probability that dropout sets an element to 0: after the
      embedding, in the gate, after the layer and after the MLP.
    dropout_over_time: Whether all steps of a sequence have the same dropout
      mask.
    vocab_size: The number of tokens; 0 if the inputs are no tokens.
    in_features: The size of an input vector; 0 if the inputs are no vectors.
    image_shape: The height, width and channels of an input image; empty if the
      inputs are no images.
    input_offset: What is subtracted from inputs that are integers, vectors or
      images: one number, or one for each channel. Empty means 0. The data set
      decides. Floating inputs are taken as they are.
    input_scale: What the difference is divided by, likewise. Empty means 255
      for uint8 images, and otherwise 1.
    num_classes: The number of classes of a classifier.
    out_features: The number of values that a regressor predicts, or of columns
      that a forecaster does.
    window: The number of steps that a forecaster reads.
    horizon: The number of steps that a forecaster predicts.
    future_features: The number of inputs that a forecaster knows for these
      steps, too.
    distribution: What a forecaster predicts of each number: the number itself,
      `point`; a mean and a deviation, `gaussian`; or nine quantiles, from 0.1
      to 0.9, `quantile`.
    window_norm: What a forecaster subtracts from each column of a window and
      adds to the forecast: the `last` value, the `mean`, or with `standard` the
      mean, after which it divides by the deviation of the window. `none` leaves
      columns as they are.
    separate_columns: Whether a forecaster predicts each column from its own
      past and from the inputs that are no targets, with the same parameters for
      all columns. Otherwise it reads all columns together.
    event_density: How a point process describes the next event. `mixture`: the
      time by a mixture of log-normal densities, and the type by probabilities
      that depend on this time. `intensity`: the rate of each type, which
      approaches a limit as a sum of exponentials does.
    components: The number of densities, or of exponentials of each type.
    gap_mean: The mean of the logarithms of the gaps between events. The data
      set decides.
    gap_deviation: Their standard deviation, likewise.
    patch: The number of steps that a forecaster reads at once, as one vector.
      It must divide `window`.
    max_time: The number of steps of an episode for which a decision model has
      an embedding each; later ones share the last. 0 means no embedding.
    halvings: How often a model of videos halves the height and the width of a
      frame before its blocks, and doubles them after its blocks.
    pooling: How a classifier or a regressor gets one output for a sequence:
      from the `mean` of the features of all steps, or from the `last` or the
      `first` step. `none` means an output at every step. Masked steps do not
      count.
    tie_embeddings: Whether a language model uses the embedding, transposed, as
      the map to logits.
    scale_embeddings: Whether embeddings are multiplied by `sqrt(features)`.
    embed_scale: What else embeddings are multiplied by, before the first norm.
    embed_norm: Whether there is a norm between the embedding and the first
      block.
    embed_std: The standard deviation of the initial embeddings. 0 means 1, or
      `1 / sqrt(features)` with `tie_embeddings`.
    logit_scale: What a language model multiplies its logits by, before
      `soft_cap`.
    soft_cap: If positive, a language model bounds its logits:
      `soft_cap * tanh(logits / soft_cap)`.
    dtype: The dtype of activations: `float32`, `bfloat16` or `float64`. States
      and outputs are never narrower than float32.
    param_dtype: The dtype of parameters: `float32`, `bfloat16` or `float64`.
    remat: What the backward pass computes again in order to save memory:
      `none`, `full` (everything inside of a block) or `dots` (everything but
      matrix products).
    scan_layers: Whether a compiled program runs the blocks in a loop. A deep
      model compiles much faster this way and runs slightly slower. The layout
      of parameters and carries is the same.
  """

  layer: str = 'min_gru'
  num_layers: int = 3
  features: int = 256
  layer_options: Options = dataclasses.field(default_factory=dict)
  variants: Options = dataclasses.field(default_factory=dict)
  bidirectional: bool = False
  norm: Literal['rms', 'rms1', 'layer', 'batch'] = 'rms'
  norm_position: Literal['pre', 'post', 'out', 'both'] = 'pre'
  out_norm_layers: str = ''
  norm_epsilon: float = 0.0
  final_norm_epsilon: float = 0.0
  conv_kernel: int = 0
  gate: Literal['none', 'glu', 'half_glu', 'half_glu2'] = 'none'
  mlp: Literal['none', 'gelu', 'geglu', 'swiglu', 'relu2'] = 'geglu'
  mlp_factor: float = 2.0
  mlp_multiple: int = 1
  mlp_layers: str = ''
  experts: Options = dataclasses.field(default_factory=dict)
  mlp_gate_scale: float = 1.0
  shared_block: int = 0
  shared_options: Options = dataclasses.field(default_factory=dict)
  use_bias: bool = True
  layer_scales: tuple[float, ...] = (1.0, 1.0)
  mlp_scales: tuple[float, ...] = (1.0, 1.0)
  dropout: float = 0.0
  dropout_over_time: bool = False
  vocab_size: int = 0
  in_features: int = 0
  image_shape: tuple[int, ...] = ()
  input_offset: tuple[float, ...] = ()
  input_scale: tuple[float, ...] = ()
  num_classes: int = 0
  out_features: int = 0
  window: int = 0
  horizon: int = 0
  future_features: int = 0
  distribution: Literal['point', 'gaussian', 'quantile'] = 'point'
  window_norm: Literal['none', 'last', 'mean', 'standard'] = 'standard'
  separate_columns: bool = True
  event_density: Literal['mixture', 'intensity'] = 'mixture'
  components: int = 8
  gap_mean: float = 0.0
  gap_deviation: float = 1.0
  patch: int = 1
  max_time: int = 0
  halvings: int = 2
  pooling: Literal['mean', 'last', 'first', 'none'] = 'mean'
  tie_embeddings: bool = False
  scale_embeddings: bool = False
  embed_scale: float = 1.0
  embed_norm: bool = False
  embed_std: float = 0.0
  logit_scale: float = 1.0
  soft_cap: float = 0.0
  dtype: Literal['float32', 'bfloat16', 'float64'] = 'float32'
  param_dtype: Literal['float32', 'bfloat16', 'float64'] = 'float32'
  remat: Literal['none', 'full', 'dots'] = 'none'
  scan_layers: bool = False

  def __post_init__(self) -> None:
    for name in ('layer', 'mlp_layers', 'out_norm_layers'):
      value = getattr(self, name)
      if isinstance(value, (tuple, list)):
        fields.check(f'model.{name}', value, fields.Field(tuple))
        object.__setattr__(self, name, ','.join(value))
    fields.check_all(vars(self), FIELDS, 'model.')
    shape = tuple(self.image_shape)  # A list in JSON.
    object.__setattr__(self, 'image_shape', shape)
    if shape and (len(shape) != 3 or min(shape) < 1):
      raise errors.UserValueError(
          'model.image_shape must be (height, width, channels), all positive, '
          f'or empty, got {fields.shown(shape)}.'
      )
    for name in ('input_offset', 'input_scale'):
      value = tuple(getattr(self, name))
      object.__setattr__(self, name, value)
      channels = shape[-1] if shape else self.in_features
      if channels and len(value) not in (0, 1, channels):
        raise errors.UserValueError(
            f'model.{name} must be one number, or one for each of the '
            f'{channels} channels, got {fields.shown(value)}.'
        )
    for name in ('layer_scales', 'mlp_scales'):
      value = tuple(getattr(self, name))
      object.__setattr__(self, name, value)
      if len(value) != 2:
        raise errors.UserValueError(
            f'model.{name} must be two numbers, got {fields.shown(value)}.'
        )
    if not patterns.is_valid(self.layer):
      raise errors.UserValueError(
          'model.layer must be the name of a layer, or several joined by '
          'commas or +, with one semicolon after those that do not repeat, got '
          f'{self.layer!r}.'
      )
    if self.mlp != 'none' and int(self.features * self.mlp_factor) < 1:
      raise errors.UserValueError(
          f'model.mlp_factor {self.mlp_factor} of model.features '
          f'{self.features} leaves the MLP no hidden features.'
      )
    known = patterns.names(self.layer)
    for field in ('mlp_layers', 'out_norm_layers', 'variants'):
      value = getattr(self, field)
      for name in patterns.names(value) if isinstance(value, str) else value:
        if name not in known:
          raise errors.UserValueError(
              f'model.{field} names {name!r}, which is not in model.layer, '
              f'{self.layer!r}.{errors.suggest(name, known)}'
          )
    for name, changes in self.variants.items():
      self._check_variant(f'model.variants.{name}', changes)

  def _check_variant(self, where: str, changes: Any):
    """Raises `UserValueError` unless these are changes of a block."""
    known = {name: FIELDS[name] for name in _OF_A_BLOCK}
    known['layer'] = fields.Field(str)
    known['layer_options'] = FIELDS['layer_options']
    fields.check(where, changes, fields.Field(dict))
    fields.check_all(changes, known, f'{where}.')

  @property
  def block_names(self) -> tuple[str, ...]:
    """The name of every block in `layer`, in order of depth.

    >>> ModelConfig(layer='gru;lru,gru', num_layers=4).block_names
    ('gru', 'lru', 'gru', 'lru')
    """
    first, rest = self._pattern
    rounds = -(-self.num_layers // len(rest))
    return (first + rest * rounds)[: self.num_layers]

  @property
  def layer_names(self) -> tuple[str, ...]:
    """The name of the layer of every block, in order of depth."""
    layers = (
        self.variants.get(name, {}).get('layer', name)
        for name in self.block_names
    )
    return tuple('+'.join(patterns.parts_of(layer)) for layer in layers)

  @property
  def stacks(self) -> tuple[range, ...]:
    """The depths of the blocks that are one stack, for each stack.

    A block that does not repeat is a stack alone. The others form one for each
    position of the pattern.

    >>> ModelConfig(layer='gru;lru,gru', num_layers=6).stacks
    (range(0, 1), range(1, 6, 2), range(2, 6, 2))
    """
    first, rest = map(len, self._pattern)
    stacks = [range(i, i + 1) for i in range(first)]
    stacks += [range(first + i, self.num_layers, rest) for i in range(rest)]
    return tuple(depths for depths in stacks if depths.start < self.num_layers)

  @property
  def num_first(self) -> int:
    """How many blocks stand before those that repeat."""
    return min(len(self._pattern[0]), self.num_layers)

  @property
  def _pattern(self) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The names that stand once, and those that repeat."""
    first, _, rest = self.layer.rpartition(';')
    return patterns.names(first), patterns.names(rest)

  @property
  def layers_used(self) -> tuple[str, ...]:
    """The name of each layer once; those of parallel ones by themselves."""
    return tuple(dict.fromkeys(
        part for name in self.layer_names for part in patterns.parts_of(name)
    ))

  def at_depth(self, depth: int) -> 'ModelConfig':
    """Returns the config of the block at `depth`.

    It is this config, with what `mlp_layers`, `out_norm_layers` and `variants`
    change in this block.
    """
    name, config = self.block_names[depth], self
    if name not in (patterns.names(self.mlp_layers) or self.block_names):
      config = config.replace(mlp='none', mlp_layers='')
    if name in patterns.names(self.out_norm_layers):
      config = config.replace(norm_position='out')
    changes = self.variants.get(name, {})
    return config.replace(**{
        name: value for name, value in changes.items() if name in _OF_A_BLOCK
    })

  def check_dtypes(self) -> None:
    """Raises `UserValueError` if JAX would replace a dtype by another."""
    x64 = jax.config.values['jax_enable_x64']
    for name in ('dtype', 'param_dtype'):
      if getattr(self, name) == 'float64' and not x64:
        raise errors.UserValueError(
            f'model.{name} float64 needs JAX_ENABLE_X64=1 in the environment '
            "or jax.config.update('jax_enable_x64', True): without it JAX "
            'computes in float32.'
        )

  def replace(self, **changes: Any) -> 'ModelConfig':
    """Returns a copy with some fields changed.

    Raises:
      UserValueError: If a value is wrong.
    """
    return dataclasses.replace(self, **changes)

  @classmethod
  def from_dict(cls, values: Mapping[str, Any]) -> 'ModelConfig':
    """Builds a config from a mapping such as an `ml_collections.ConfigDict`.

    Fields that are missing have their defaults, so that configs of older
    versions can be read.

    Raises:
      UserValueError: If there is no field of that name, or a value is wrong.
    """
    fields.check_names(values, FIELDS, 'model.')
    return cls(**values)

  @classmethod
  def tiny(cls) -> 'ModelConfig':
    """Returns a model small enough for a test."""
    return cls(num_layers=2, features=8, vocab_size=16)


def _field(field: dataclasses.Field) -> fields.Field:
  known = fields.of_annotation(field.type)
  assert known, field  # Every annotation above says what a value may be.
  limits = _DETAILS.get(field.name, {})
  return dataclasses.replace(
      known, help=_EXPLANATIONS.get(field.name, ''), **limits
  )


_EXPLANATIONS = fields.explanations(ModelConfig.__doc__, 'Attributes')
# What the value of each field may be, by name.
FIELDS = {f.name: _field(f) for f in dataclasses.fields(ModelConfig)}
