r"""Compares the training steps of minimal RNNs and of Flax's GRU and LSTM.

  python -m experiments.benchmarks.speedup \
      --out=experiments/results/speedup_cpu.json

A training step is one step of gradient descent on a mean squared error.
`nnx.RNN` around a `GRUCell` and an `OptimizedLSTMCell` alternates with `MinGRU`
and `MinLSTM` of the same width. The plot corresponds to the first figure of the
minRNN paper (https://arxiv.org/abs/2410.01201): time, speed-up and memory over
the length.
"""

import functools
import sys

from absl import flags
from experiments.benchmarks import plots
from experiments.benchmarks import timing
from experiments.cli import drivers
from flax import nnx
import jax
import jax.numpy as jnp
from rnnzoo import layers
from rnnzoo.training.processes import host

_LENGTHS = flags.DEFINE_multi_integer(
    'lengths', [128, 256, 512, 1024, 2048, 4096],
    'The lengths of the sequences.', lower_bound=1,
)
_OUR_LENGTHS = flags.DEFINE_multi_integer(
    'our_lengths', [16384, 65536],
    'Further lengths, for the layers of rnnzoo only.', lower_bound=1,
)
_NAMES = flags.DEFINE_multi_enum(
    'layers',
    ['nnx.RNN(GRUCell)', 'MinGRU', 'nnx.RNN(OptimizedLSTMCell)', 'MinLSTM'],
    ['nnx.RNN(GRUCell)', 'MinGRU', 'nnx.RNN(OptimizedLSTMCell)', 'MinLSTM'],
    'The layers to measure.',
)
_BATCH = flags.DEFINE_integer(
    'batch', 8, 'The number of sequences in a batch.', lower_bound=1
)
_FEATURES = flags.DEFINE_integer(
    'features', 128,
    'The number of features of the input and of the state.', lower_bound=1,
)
_REPEATS = flags.DEFINE_integer(
    'repeats', 5,
    'The number of times that each timing is repeated.', lower_bound=1,
)
_OUT = drivers.define_path(
    'out', 'experiments/results/speedup_cpu.json',
    'The JSON file of the results; the plot is written beside it.',
)
flags.adopt_module_key_flags(plots)

_COLUMNS = {
    'layer': '{layer}',
    'length': '{length}',
    'parameters': '{parameters}',
    'ms a step': '{ms:.1f}',
    'tokens/s': '{tokens_per_second:.0f}',
    'x nnx.RNN': '{speedup}',
    'temporary MiB': '{temporary_mib:.0f}',
    'compile s': '{compile_seconds:.2f}',
}


def flax_rnn(cell, features, rngs):

  def apply(model, x):
    # By default, nnx.RNN would draw a random carry at each call.
    carry = model.cell.initialize_carry(
        (x.shape[0], features), nnx.Rngs(0)
    )
    return model(x, initial_carry=carry)

  return nnx.RNN(cell(features, features, rngs=rngs)), apply


def ours(layer, features, rngs):
  return layer(features, rngs=rngs), lambda model, x: model(x)[1]


# Each of our layers follows the layer that it is compared with.
_LAYERS = {
    'nnx.RNN(GRUCell)': functools.partial(flax_rnn, nnx.GRUCell),
    'MinGRU': functools.partial(ours, layers.MinGRU),
    'nnx.RNN(OptimizedLSTMCell)': functools.partial(
        flax_rnn, nnx.OptimizedLSTMCell
    ),
    'MinLSTM': functools.partial(ours, layers.MinLSTM),
}
_AGAINST = {
    'MinGRU': 'nnx.RNN(GRUCell)', 'MinLSTM': 'nnx.RNN(OptimizedLSTMCell)'
}


def training_step(model, apply):
  """Returns a training step as a pure function, and the first parameters."""
  graph, params, rest = nnx.split(model, nnx.Param, ...)

  def step(params, x, targets):

    def loss_fn(params):
      y = apply(nnx.merge(graph, params, rest), x)
      return jnp.mean((y - targets) ** 2)

    loss, grads = jax.value_and_grad(loss_fn)(params)
    return jax.tree.map(lambda p, g: p - 0.1 * g, params, grads), loss

  return step, params


def measure(length, names):
  """Returns one row for each layer."""
  shape = _BATCH.value, length, _FEATURES.value
  x, targets = jax.random.normal(jax.random.key(0), (2, *shape))
  programs, rows = {}, []
  for name in names:
    step, params = training_step(
        *_LAYERS[name](_FEATURES.value, nnx.Rngs(0))
    )
    program, compile_seconds = timing.compiled(step, params, x, targets)
    programs[name] = functools.partial(program, params, x, targets)
    rows.append(dict(
        layer=name,
        length=length,
        parameters=sum(p.size for p in jax.tree.leaves(params)),
        temporary_mib=timing.temporary_bytes(program) / 2**20,
        **compile_seconds,
    ))
  durations = timing.interleaved_medians(programs, _REPEATS.value)
  seconds = {name: duration.seconds for name, duration in durations.items()}
  for row in rows:
    row['ms'] = seconds[row['layer']] * 1e3
    row['tokens_per_second'] = _BATCH.value * length / seconds[row['layer']]
    against = seconds.get(_AGAINST.get(row['layer']))
    row['speedup'] = against and round(against / seconds[row['layer']], 2)
  return rows


def draw(record):
  """Draws time, speed-up and memory of a step over length."""
  figure, panels = plots.subplots(
      1, 3,
      f'Cost of a training step of {record["batch"]} sequences, '
      f'{record["features"]} features: parallel scans and nnx.RNN',
      figsize=(12, 4.4), sharex=True,
  )
  labels = dict(
      ms='milliseconds', speedup='times faster than nnx.RNN',
      temporary_mib='temporary memory, MiB',
  )
  lengths = sorted({r['length'] for r in record['rows']})
  for panel, (key, label) in zip(panels[0], labels.items()):
    for i, name in enumerate(_LAYERS):
      rows = [
          r for r in record['rows'] if r['layer'] == name and r[key] is not None
      ]
      if rows:
        panel.plot(
            [r['length'] for r in rows], [r[key] for r in rows],
            # Two layers that are compared have the same colour.
            ('-' if name in _AGAINST else '--') + 'o', markersize=4,
            color=plots.COLORS[i // 2], zorder=3 - (name in _AGAINST),
            label=name,
        )
    panel.set_xscale('log', base=2)
    panel.set_xticks(lengths, [f'{n:,}' for n in lengths], rotation=45)
    panel.minorticks_off()
    panel.set(xlabel='length of the sequences', ylabel=label)
    if key == 'speedup':
      panel.set_ylim(0, 1.1 * panel.get_ylim()[1])
    else:
      panel.set_yscale('log')
      plots.plain_numbers(panel.yaxis)
  plots.legend(figure, panels[0, 0])
  return figure


def main(argv):
  drivers.check_usage(argv)
  if plots.replotted(_OUT.value, draw):
    return
  timing.never_cache_compilation()
  host.pin_malloc()
  record = dict(
      timing.environment(),
      batch=_BATCH.value,
      features=_FEATURES.value,
      rows=[],
  )
  names = _NAMES.value
  ours_only = [name for name in names if name in _AGAINST]
  cases = [(length, names) for length in _LENGTHS.value]
  cases += [(length, ours_only) for length in _OUR_LENGTHS.value]
  for length, names in cases:
    print(f'length {length}', file=sys.stderr)
    record['rows'] += measure(length, names)
  timing.print_table(record['rows'], _COLUMNS)
  plots.save(record, _OUT.value, draw)


if __name__ == '__main__':
  drivers.run(main)
