r"""Compares `ops.gated_scan` with the same gates in front of a scan.

  python -m experiments.benchmarks.gated_scan \
      --out=experiments/results/gated_scan_cpu.json

`ops.gated_scan` computes the gates of minGRU, minLSTM and RG-LRU inside of the
scan (pinned to `sequential`). The others compute them in front of
`ops.linear_scan` and of `jax.lax.associative_scan`. The lower bound is
`u * .5 + v`, which moves three arrays. Malloc is pinned, as in the commands.
Prints a table, and writes JSON and a plot.
"""

import sys

from absl import flags
from experiments.benchmarks import baselines
from experiments.benchmarks import plots
from experiments.benchmarks import timing
from experiments.cli import drivers
import jax.numpy as jnp
import numpy as np
from rnnzoo import ops
from rnnzoo.layers import min_gru
from rnnzoo.layers import min_lstm
from rnnzoo.layers import rg_lru
from rnnzoo.training.processes import host

_SHAPES = flags.DEFINE_multi_string(
    'shapes', ['8,4096,256', '1,65536,64'], 'A shape as batch,time,features.'
)
_CHOSEN = flags.DEFINE_multi_enum(
    'gates',
    ['min_gru', 'min_lstm', 'rg_lru'],
    ['min_gru', 'min_lstm', 'rg_lru'],
    'The gates to measure.',
)
_REPEATS = flags.DEFINE_integer(
    'repeats', 9,
    'The number of times that each timing is repeated.', lower_bound=1,
)
_OUT = drivers.define_path(
    'out', 'experiments/results/gated_scan_cpu.json',
    'The JSON file of the results; the plot is written beside it.',
)
flags.adopt_module_key_flags(plots)

# The gates, and the number of their arrays [B, T, D].
_GATES = {
    'min_gru': (min_gru.min_gru_gate(), 2),
    'min_lstm': (min_lstm.min_lstm_gate(), 3),
    'rg_lru': (rg_lru.rg_lru_gate, 3),
}
_CEILING = 'u*.5+v'
# The labels of the legend.
_LABELS = {
    'gates + linear_scan': 'gates, then linear_scan',
    'gated_scan': 'gated_scan',
    'gated_scan, sequential': 'gated_scan, gates inside the loop',
    'gates + associative_scan': 'gates, then associative_scan',
    _CEILING: 'u*.5+v: one pass over memory',
}
_COLUMNS = {
    'form': '{form}',
    'gate': '{gate}',
    'direction': '{direction}',
    'shape': '{shape}',
    'ms': '{ms:.2f}',
    'CPU ms': '{cpu_ms:.2f}',
    'GB/s': '{gb_per_second:.1f}',
    'x gates apart': '{speedup:.2f}',
    'of ceiling': '{times_the_ceiling:.2f}',
    'temporary MiB': '{temporary_mib:.1f}',
    'compile s': '{compile_seconds:.2f}',
}


def forms(gate, constant):
  """Returns the forms by name, functions of the inputs `[B, T, D]`."""

  def inside(*u):
    with ops.implementation('sequential'):
      return ops.gated_scan(gate, (*constant, *u))[1]

  return {
      'gated_scan, sequential': inside,
      'gated_scan': lambda *u: ops.gated_scan(gate, (*constant, *u))[1],
      'gates + linear_scan': (
          lambda *u: ops.linear_scan(*gate(None, *constant, *u))[1]
      ),
      'gates + associative_scan': (
          lambda *u: baselines.associative_scan(*gate(None, *constant, *u))
      ),
      _CEILING: lambda *u: u[0] * 0.5 + u[-1],
  }


def measure(name, shape, repeats):
  """Returns one row for each form and direction."""
  rng = np.random.default_rng(0)
  normal = lambda: jnp.asarray(rng.standard_normal(shape, np.float32))
  gate, count = _GATES[name]
  constant = ()
  if name == 'rg_lru':
    constant = (jnp.full((1, 1, shape[2]), 0.05),)  # The rate.
  inputs = [normal() for _ in range(count)]
  # Arrays that move forwards: inputs and states. Backwards: the same again, a
  # cotangent, and a gradient for each input.
  rows = timing.compare_both_ways(
      forms(gate, constant),
      inputs,
      normal(),
      moves=(count + 1, 3 * count + 3),
      base='gates + linear_scan',
      ceiling=_CEILING,
      repeats=repeats,
  )
  return [dict(gate=name, **row) for row in rows]


def draw(record):
  """Draws the times of all forms, forwards and with gradients."""
  figure, panels = plots.subplots(
      1, 2, 'Time of a gated scan with the gates inside or before it, float32 '
      '[batch x time x features]',
      figsize=(11, 3.8), sharex=True, sharey=True,
  )
  for panel, direction in zip(panels[0], ('forward', 'forward+backward')):
    rows = [r for r in record['rows'] if r['direction'] == direction]
    plots.dots(
        panel, rows, ('gate', 'shape'), _LABELS,
        title=direction.replace('+', ' and '), xlabel='milliseconds',
    )
  plots.legend(figure, panels[0, 0])
  return figure


def main(argv):
  drivers.check_usage(argv)
  if plots.replotted(_OUT.value, draw):
    return
  timing.never_cache_compilation()
  host.pin_malloc()
  record = dict(timing.environment(), rows=[])
  for shape in _SHAPES.value:
    for name in _CHOSEN.value:
      print(f'{name} {shape}', file=sys.stderr)
      shape_ = tuple(map(int, shape.split(',')))
      record['rows'] += measure(name, shape_, _REPEATS.value)
  timing.print_table(record['rows'], _COLUMNS)
  plots.save(record, _OUT.value, draw)


if __name__ == '__main__':
  drivers.run(main)
