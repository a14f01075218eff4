"""The cases: which models and layers train on which meshes."""

import dataclasses
import itertools
import math
import pathlib
from typing import Any

from experiments.cli import tasks
from experiments.configs import default
from flax import nnx
import jax.numpy as jnp
from ml_collections import ConfigDict
import numpy as np
from rnnzoo import layers
from rnnzoo import models
from rnnzoo import tasks as tasks_lib

# Sizes of (data, fsdp, model, sequence).
ONE = (1, 1, 1, 1)
ALL_MESHES = tuple(
    sizes
    for sizes in itertools.product((8, 4, 2, 1), repeat=4)
    if math.prod(sizes) == 8
)
SOME_MESHES = ((2, 4, 1, 1), (1, 1, 8, 1), (1, 1, 1, 8), (1, 2, 2, 2))

STEPS = 20
BATCH, FEATURES = 16, 64
# A divisor of the number of tokens, and of no other size.
PRIME = 7
TIME = 8 * PRIME

MODELS = dict(
    mixed=dict(
        layer='min_gru,lru', num_layers=2, conv_kernel=4, dropout=0.1,
        norm='batch',
    ),
    griffin=dict(
        layer='griffin,griffin,attention', num_layers=6, scan_layers=True,
        tie_embeddings=True, soft_cap=30.0, remat='full',
        layer_options=dict(
            griffin=dict(num_heads=8),
            attention=dict(
                num_heads=8, num_kv_heads=1, window=32, rotary_fraction=0.5
            ),
        ),
    ),
)

# Options with which eight devices can share the channels of a layer.
_HEADS = dict(num_heads=8)
_LAYER_OPTIONS = dict(
    aaren=_HEADS,
    attention=dict(num_heads=8, window=4),
    cg_lru=_HEADS,
    comba=_HEADS,
    delta_net=_HEADS,
    gated_attention=dict(num_heads=8, window=4),
    gated_delta_net=_HEADS,
    gated_delta_net2=_HEADS,
    # With values of 12 features, its map would have a multiple of PRIME.
    gated_delta_product=dict(num_heads=8, value_features=6),
    gla=dict(num_heads=8, decay_rank=4),
    griffin=_HEADS,
    hgrn2=_HEADS,
    kda=_HEADS,
    latent_attention=dict(num_heads=8, window=4),
    lightning_attention=_HEADS,
    linear_attention=_HEADS,
    lmu=dict(order=8, theta=16.0),
    # Levels for 64 tokens would be a multiple of PRIME.
    log_linear_gated_delta_net=dict(num_heads=8, num_levels=9),
    log_linear_mamba2=dict(head_features=8, state_features=4, num_levels=9),
    # With normal matrices its states are chaotic, so that rounding grows.
    m2rnn=dict(num_heads=8, forget_gate='sigmoid', state_init='identity'),
    mamba2=dict(head_features=8, state_features=4),
    mamba3=dict(head_features=16, state_features=4),
    mesa_net=_HEADS,
    mlstm=_HEADS,
    mlstm_block=_HEADS,
    mlstm_large=_HEADS,
    para_gru=_HEADS,
    para_lstm=_HEADS,
    parallel_lmu=dict(order=8, theta=16.0),
    ret_net=_HEADS,
    rg_lru=_HEADS,
    rwkv6=dict(head_features=8, mix_rank=4, decay_rank=4),
    rwkv7=dict(
        head_features=8, decay_rank=4, rate_rank=4, value_rank=4, gate_rank=4
    ),
    s4=dict(state_features=16),
    s4d=dict(state_features=16),
    slstm=_HEADS,
    slstm_block=_HEADS,
)
_IMAGE_LAYERS = dict(
    conv_lstm=lambda rngs: layers.ConvLSTM((4, 4, 16), 16, rngs=rngs),
    conv_s5=lambda rngs: layers.ConvS5((4, 4, 16), 16, rngs=rngs),
)


@dataclasses.dataclass(frozen=True)
class Case:
  """A model and its data.

  Attributes:
    task: The kind of task and its model.
    dataset: The data; only its `train_iterator` is used.
    config: The config of the training.
    quick: Whether to compile with few optimisations, in a quarter of the time.
      Convolutions would then run too slowly.
  """

  task: tasks_lib.Task
  dataset: Any
  config: ConfigDict
  quick: bool = True

  def batches(self, steps):
    """Returns the first batches."""
    batches = self.dataset.train_iterator(1)
    return [next(batches) for _ in range(steps)]


def everything():
  """Returns the meshes of all cases by the name of the case."""
  return (
      {f'model {name}': ALL_MESHES for name in MODELS}
      | {name: SOME_MESHES for name in layers.LAYERS}
  )


def short():
  """Returns the meshes of the cases of `--short`."""
  return {'min_gru': ((1, 2, 2, 2),)}


def make_case(name: str) -> Case:
  """Builds a model of `MODELS` ('model griffin'), or a block with a layer."""
  config = default.get_config()
  config.batch_size = BATCH
  config.total_steps = STEPS
  config.data.sequence_length = TIME
  config.optimizer.warmup_steps = 0
  if name in _IMAGE_LAYERS:
    return Case(
        _VideoTask(make_layer=_IMAGE_LAYERS[name]), _Videos(), config,
        quick=False,
    )
  fields = dict(layer=name, num_layers=1, mlp='gelu')
  if name in _LAYER_OPTIONS:
    fields['layer_options'] = _LAYER_OPTIONS[name]
  if name.startswith('model '):
    fields = MODELS[name.removeprefix('model ')]
  config.model = default.model(models.ModelConfig(features=FEATURES, **fields))
  # All texts have the vocabulary of 256 bytes, which eight devices can share.
  default.use_data(config, 'text_file')
  config.data.path = str(pathlib.Path(__file__).parents[2] / 'LICENSE')
  config.data.level = 'byte'
  return Case(*tasks.make_task(config), config)


class _Video(nnx.Module):
  """A model that is one layer of images."""

  def __init__(self, make_layer, rngs):
    self.layer = make_layer(rngs)


@dataclasses.dataclass(frozen=True)
class _VideoTask(tasks_lib.Regression):
  """Prediction of the next frame of a video, for layers of images."""

  make_layer: Any = None

  def build(self, rngs):
    return _Video(self.make_layer, rngs)

  def forward(self, model, batch, carry, *, train, key):
    del train, key
    _, y = model.layer(batch['inputs'])
    errors = jnp.square(y - batch['targets']).mean((2, 3, 4))
    return carry, dict(loss=errors.sum(), weight=jnp.float32(errors.size))


class _Videos:
  """Random videos, whose frames change slowly."""

  def train_iterator(self, step):
    random = np.random.default_rng(step)
    while True:
      video = random.standard_normal((BATCH, TIME + 1, 4, 4, 16), np.float32)
      video = video.cumsum(1) / 8
      yield dict(inputs=video[:, :-1], targets=video[:, 1:])
