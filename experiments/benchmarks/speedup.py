"""How much faster a training step is where time is parallel, or at least bare.

  python -m experiments.benchmarks.speedup

One step of gradient descent on a mean squared error: Flax's `nnx.RNN` around an
`nnx.GRUCell` against our `MinGRU` of the same width, side by side in one run.
"""

import functools
import json
import pathlib

from absl import app
from absl import flags
from experiments.benchmarks import timing
from flax import nnx
import jax
import jax.numpy as jnp
from rnnzoo import layers
from rnnzoo.training import host

_LENGTHS = flags.DEFINE_multi_integer('lengths', [512, 4096], 'Of sequences.')
_BATCH = flags.DEFINE_integer('batch', 8, 'Sequences in a step.')
_FEATURES = flags.DEFINE_integer('features', 128, 'Width of input and state.')
_REPEATS = flags.DEFINE_integer('repeats', 5, 'Of each timing.', lower_bound=1)
_OUT = flags.DEFINE_string(
    'out', 'experiments/results/speedup_cpu.json', 'Where to write.'
)

_COLUMNS = {
    'layer': '{layer}',
    'length': '{length}',
    'parameters': '{parameters}',
    'ms a step': '{ms:.1f}',
    'tokens/s': '{tokens_per_second:.0f}',
    'x nnx.RNN': '{speedup:.1f}',
    'compile s': '{compile_seconds:.2f}',
}


def flax_gru(features, rngs):

  def apply(model, x):
    # Its own would be drawn from the module's random numbers at each call.
    return model(x, initial_carry=jnp.zeros((x.shape[0], features)))

  return nnx.RNN(nnx.GRUCell(features, features, rngs=rngs)), apply


def min_gru(features, rngs):
  return layers.MinGRU(features, rngs=rngs), lambda model, x: model(x)[1]


_LAYERS = {'nnx.RNN(GRUCell)': flax_gru, 'MinGRU': min_gru}


def training_step(model, apply):
  """Returns a pure function of parameters, inputs, targets, and parameters."""
  graph, params, rest = nnx.split(model, nnx.Param, ...)

  def step(params, x, targets):

    def loss_fn(params):
      y = apply(nnx.merge(graph, params, rest), x)
      return jnp.mean((y - targets) ** 2)

    loss, grads = jax.value_and_grad(loss_fn)(params)
    return jax.tree.map(lambda p, g: p - 0.1 * g, params, grads), loss

  return step, params


def measure(length):
  """Returns one row for each layer."""
  shape = _BATCH.value, length, _FEATURES.value
  x, targets = jax.random.normal(jax.random.key(0), (2, *shape))
  programs, rows = {}, []
  for name, make in _LAYERS.items():
    step, params = training_step(*make(_FEATURES.value, nnx.Rngs(0)))
    program, compile_seconds = timing.compiled(step, params, x, targets)
    programs[name] = functools.partial(program, params, x, targets)
    count = sum(p.size for p in jax.tree.leaves(params))
    rows.append(
        dict(layer=name, length=length, parameters=count, **compile_seconds)
    )
  seconds = timing.interleaved_medians(programs, _REPEATS.value)
  for row in rows:
    row['ms'] = seconds[row['layer']] * 1e3
    row['tokens_per_second'] = _BATCH.value * length / seconds[row['layer']]
    row['speedup'] = seconds['nnx.RNN(GRUCell)'] / seconds[row['layer']]
  return rows


def main(argv):
  if len(argv) > 1:
    raise app.UsageError(f'Unexpected arguments: {argv[1:]}')
  timing.never_cache_compilation()
  host.pin_malloc()
  record = dict(
      timing.environment(),
      batch=_BATCH.value,
      features=_FEATURES.value,
      rows=[row for length in _LENGTHS.value for row in measure(length)],
  )
  timing.print_table(record['rows'], _COLUMNS)
  out = pathlib.Path(_OUT.value)
  out.parent.mkdir(parents=True, exist_ok=True)
  out.write_text(json.dumps(record, indent=1) + '\n')
  print(f'Wrote {out}.')


if __name__ == '__main__':
  app.run(main)
