r"""Measures the rounding errors of `ops.linear_scan`: length, dtype and decay.

  python -m experiments.benchmarks.accuracy \
      --out=experiments/results/accuracy.json

Runs every implementation that this device has, for lengths up to 2**20 (up to
2**16 for the kernel of the TPU, which is emulated on other devices), with
decays near 0, near 1 and of all kinds. The reference is float64. The inputs are
rounded to the dtype first, so that only the error of the scan is measured.
Errors are relative to the largest state: the largest and the median error of
the stored states, and that of the last state, which is never rounded to less
than float32. Prints a table, and writes JSON and a plot.
"""

import sys

from absl import flags
from experiments.benchmarks import baselines
from experiments.benchmarks import plots
from experiments.benchmarks import timing
from experiments.cli import drivers
import jax
import numpy as np
from rnnzoo import ops
from rnnzoo.ops.linear_scan import pallas_tpu

_LENGTHS = flags.DEFINE_multi_integer(
    'lengths', [2**n for n in (8, 12, 16, 20)],
    'The lengths of the sequences.', lower_bound=1,
)
_IMPLEMENTATIONS = flags.DEFINE_multi_enum(
    'implementations',
    ['reference', 'associative', 'sequential', 'pallas_tpu'],
    ['reference', 'associative', 'sequential', 'pallas_tpu', 'pallas_gpu'],
    'The implementations to measure.',
)
_OUT = drivers.define_path(
    'out', 'experiments/results/accuracy.json',
    'The JSON file of the results; the plot is written beside it.',
)
flags.adopt_module_key_flags(plots)

_DTYPES = 'float32', 'bfloat16', 'complex64'
_COLUMNS = {
    'implementation': '{implementation}',
    'dtype': '{dtype}',
    'decay': '{decay}',
    'length': '{length}',
    'largest error': '{largest:.1e}',
    'median': '{median:.1e}',
    'of h_last': '{last:.1e}',
}


def measure(implementation, kind, dtype, length, want):
  """Returns one row."""
  a, x = baselines.operands(kind, dtype, length)
  interpreted = pallas_tpu.interpreted(_is_pretended())
  with interpreted, ops.implementation(implementation):
    last, h = jax.jit(ops.linear_scan)(a, x)
  size = np.abs(want).max()
  error = np.abs(np.asarray(h[0]).astype(want.dtype) - want) / size
  return dict(
      implementation=implementation,
      dtype=dtype,
      decay=kind,
      length=length,
      largest=float(error.max()),
      median=float(np.median(error)),
      last=float((np.abs(np.asarray(last)[0] - want[-1]) / size).max()),
  )


def _is_pretended():
  """Returns whether the TPU kernel is interpreted, with the same rounding."""
  return jax.default_backend() != 'tpu'


def draw(record):
  """Draws the error of the last state over the length, one panel per case."""
  kinds = list(dict.fromkeys(r['decay'] for r in record['rows']))
  names = list(dict.fromkeys(r['implementation'] for r in record['rows']))
  figure, panels = plots.subplots(
      len(_DTYPES), len(kinds),
      'Error of linear_scan in its last state, compared with float64',
      figsize=(10, 8), sharex=True, sharey=True,
  )
  for row, dtype in zip(panels, _DTYPES):
    for panel, kind in zip(row, kinds):
      for k, name in enumerate(names):
        rows = [
            r for r in record['rows']
            if (r['decay'], r['implementation'], r['dtype'])
            == (kind, name, dtype)
        ]
        panel.plot(
            [r['length'] for r in rows], [r['last'] for r in rows],
            # Lines of equal values lie on top of each other.
            color=plots.COLORS[k], linewidth=6 / (k + 1), label=name,
        )
      panel.set_xscale('log', base=2)
      panel.set(yscale='log', title=f'{dtype}, decay {kind}')
  for panel in panels[-1]:
    panel.set_xlabel('length of the sequence')
  for panel in panels[:, 0]:
    panel.set_ylabel('largest error / largest state')
  plots.legend(figure, panels[0, 0])
  return figure


def main(argv):
  drivers.check_usage(argv)
  if plots.replotted(_OUT.value, draw):
    return
  record = dict(timing.environment(), rows=[])
  for kind in ('near 0', 'near 1', 'mixed'):
    for dtype in _DTYPES:
      for length in _LENGTHS.value:
        print(f'{kind} {dtype} {length}', file=sys.stderr)
        want = baselines.exact(*baselines.operands(kind, dtype, length))
        record['rows'] += [
            measure(name, kind, dtype, length, want)
            for name in _IMPLEMENTATIONS.value
            if name != 'pallas_tpu' or not _is_pretended() or length <= 2**16
        ]
  timing.print_table(record['rows'], _COLUMNS)
  plots.save(record, _OUT.value, draw)


if __name__ == '__main__':
  drivers.run(main)
