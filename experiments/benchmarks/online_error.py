r"""Measures errors of online gradients against back-propagation through time.

  python -m experiments.benchmarks.online_error \
      --out=experiments/results/online_error.json

`rnnzoo.online.RTRL` is exact for the last recurrent layer and for what follows
it. For earlier layers it ignores their influence on the states of later ones.
The models are residual blocks of one layer each, with their initial parameters,
and predict the mean of the last ten inputs. Gradients are summed over one
stream. An error is the norm of the difference, relative to the norm of the
exact gradient; the cosine is that of the angle between the two gradients.
"""

from absl import flags
from experiments.benchmarks import timing
from experiments.cli import drivers
from flax import nnx
import jax
import numpy as np
from rnnzoo import layers as zoo
from rnnzoo import online

_LAYERS = flags.DEFINE_multi_string(
    'layers', ['lru', 'min_gru', 'min_lstm', 'rg_lru'], 'The layers to measure.'
)
_DEPTHS = flags.DEFINE_multi_integer(
    'depths', [1, 2, 4], 'The numbers of blocks.', lower_bound=1
)
_FEATURES = flags.DEFINE_integer(
    'features', 16, 'The number of features of the model.', lower_bound=1
)
_LENGTH = flags.DEFINE_integer(
    'length', 200, 'The number of tokens in a stream.', lower_bound=1
)
_BATCH = flags.DEFINE_integer(
    'batch', 4, 'The number of streams in a batch.', lower_bound=1
)
_OUT = drivers.define_path(
    'out', 'experiments/results/online_error.json',
    'The JSON file of the results.',
)

_INPUTS, _MEMORY = 4, 10
_COLUMNS = {
    'layer': '{layer}',
    'blocks': '{depth}',
    'of': '{part}',
    'relative error': '{error:.1e}',
    'cosine': '{cosine:.4f}',
}


def make_model(layer, depth, features):
  """A stack of residual blocks between an encoder and a head."""
  rngs = nnx.Rngs(0)

  def block():
    inner = zoo.LAYERS[layer](features, rngs=rngs)
    return online.Stack(
        nnx.RMSNorm(features, rngs=rngs), inner,
        nnx.Linear(inner.out_features, features, rngs=rngs), jax.nn.gelu,
        residual=True,
    )

  return online.Stack(
      nnx.Linear(_INPUTS, features, rngs=rngs),
      *(block() for _ in range(depth)),
      nnx.Linear(features, _INPUTS, rngs=rngs),
  )


def measure(layer, depth):
  """Returns a row for the encoder, for each layer, and for the whole."""
  model = make_model(layer, depth, _FEATURES.value)
  learner = online.RTRL(model, lambda y, target: ((y - target) ** 2).mean())
  rng = np.random.default_rng(0)
  shape = _BATCH.value, _LENGTH.value, _INPUTS
  inputs = rng.standard_normal(shape).astype(np.float32)
  late = np.pad(inputs, ((0, 0), (_MEMORY, 0), (0, 0)))
  targets = sum(
      late[:, _MEMORY - i : _MEMORY - i + _LENGTH.value] for i in range(_MEMORY)
  ) / _MEMORY
  errors = online.gradient_error(learner, learner.params, inputs, targets)
  parts = {'all': '', 'encoder': 'parts.0'}
  for i in range(depth):
    parts[f'layer {i + 1}'] = f'parts.{i + 1}.parts.1'
  return [
      dict(
          layer=layer, depth=depth, part=part, error=errors[path][0],
          cosine=errors[path][1],
      )
      for part, path in parts.items()
  ]


def main(argv):
  drivers.check_usage(argv)
  rows = [
      row for layer in _LAYERS.value for depth in _DEPTHS.value
      for row in measure(layer, depth)
  ]
  timing.print_table(rows, _COLUMNS)
  timing.save(
      dict(
          timing.environment(), features=_FEATURES.value,
          length=_LENGTH.value, batch=_BATCH.value, rows=rows,
      ),
      _OUT.value,
  )


if __name__ == '__main__':
  drivers.run(main)
