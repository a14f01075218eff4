"""How far `ops.linear_scan` is from float64, by length, dtype and decay.

  python -m experiments.benchmarks.accuracy \
      --out=experiments/results/accuracy.json

Every implementation that runs on this device, at T up to 2**20, with decays
near 0, near 1 and of all kinds. The inputs are rounded first, so that what is
measured is the scan alone. Errors are relative to the largest state: the
largest and the median one of the states as they are stored, and that of the
last state, which is never rounded to less than float32. Prints a table, writes
JSON and a plot.
"""

import sys

from absl import app
from absl import flags
from experiments.benchmarks import timing
import jax
import jax.numpy as jnp
import numpy as np
from rnnzoo import ops

_LENGTHS = flags.DEFINE_multi_integer(
    'lengths', [2**n for n in (8, 12, 16, 20)], 'Of sequences.'
)
_IMPLEMENTATIONS = flags.DEFINE_multi_enum(
    'implementations',
    ['reference', 'associative', 'sequential'],
    ['reference', 'associative', 'sequential', 'pallas_tpu', 'pallas_gpu'],
    'Which ones to run.',
)
_OUT = flags.DEFINE_string(
    'out', 'experiments/results/accuracy.json', 'Where to write.'
)

_FEATURES = 4
_DTYPES = dict(
    float32=jnp.float32, bfloat16=jnp.bfloat16, complex64=jnp.complex64
)
_COLUMNS = {
    'implementation': '{implementation}',
    'dtype': '{dtype}',
    'decay': '{decay}',
    'length': '{length}',
    'largest error': '{largest:.1e}',
    'median': '{median:.1e}',
    'of h_last': '{last:.1e}',
}


def decays(kind, rng, shape):
  """Returns decays `near 0`, `near 1` or `mixed`."""
  if kind == 'near 0':
    return rng.uniform(0, 1e-3, shape)
  if kind == 'near 1':
    return 1 - rng.uniform(1e-5, 1e-3, shape)
  return 1 / (1 + np.exp(-rng.normal(0, 4, shape)))


def operands(kind, dtype, length):
  """Returns `a` and `x` `[1, T, D]`, rounded to `dtype`."""
  rng = np.random.default_rng(0)
  shape = 1, length, _FEATURES
  a, x = decays(kind, rng, shape), rng.standard_normal(shape)
  if dtype == 'complex64':
    a = a * np.exp(1j * rng.uniform(0, 2 * np.pi, shape))
    x = x + 1j * rng.standard_normal(shape)
  elif dtype == 'bfloat16':
    # It has no number between 0.9961 and 1: decays are kept in float32.
    return jnp.asarray(a, jnp.float32), jnp.asarray(x, jnp.bfloat16)
  return jnp.asarray(a, _DTYPES[dtype]), jnp.asarray(x, _DTYPES[dtype])


def exact(a, x):
  """The scan in double precision, one step after the other."""
  wide = np.complex128 if np.iscomplexobj(a) else np.float64
  a, x = np.asarray(a).astype(wide)[0], np.asarray(x).astype(wide)[0]
  h, state = np.empty_like(x), np.zeros_like(x[0])
  for t in range(len(x)):
    h[t] = state = a[t] * state + x[t]
  return h


def measure(implementation, kind, dtype, length, want):
  """Returns one row."""
  a, x = operands(kind, dtype, length)
  with ops.implementation(implementation):
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


def draw(plt, record):
  """Draws the error of the last state over length, a panel a decay."""
  kinds = list(dict.fromkeys(r['decay'] for r in record['rows']))
  figure, panels = plt.subplots(
      1, len(kinds), figsize=(13, 4.2), sharey=True, squeeze=False
  )
  styles = dict(zip(_DTYPES, ('-', ':', '--')))
  names = list(dict.fromkeys(r['implementation'] for r in record['rows']))
  for panel, kind in zip(panels[0], kinds):
    for name in names:
      for dtype, style in styles.items():
        rows = [
            r for r in record['rows']
            if (r['decay'], r['implementation'], r['dtype'])
            == (kind, name, dtype)
        ]
        panel.plot(
            [r['length'] for r in rows],
            [r['last'] for r in rows],
            style,
            color=f'C{names.index(name)}',
            marker='.',
            label=f'{name}, {dtype}',
        )
    panel.set_xscale('log', base=2)
    panel.set_yscale('log')
    panel.set_xlabel('length')
    panel.set_title(f'decay {kind}')
    panel.grid(alpha=0.3)
  panels[0][0].set_ylabel('error of the last state / largest state')
  panels[0][-1].legend(fontsize=7)
  return figure


def main(argv):
  if len(argv) > 1:
    raise app.UsageError(f'Unexpected arguments: {argv[1:]}')
  record = dict(timing.environment(), rows=[])
  for kind in ('near 0', 'near 1', 'mixed'):
    for dtype in _DTYPES:
      for length in _LENGTHS.value:
        print(f'{kind} {dtype} {length}', file=sys.stderr)
        want = exact(*operands(kind, dtype, length))
        record['rows'] += [
            measure(name, kind, dtype, length, want)
            for name in _IMPLEMENTATIONS.value
        ]
  timing.print_table(record['rows'], _COLUMNS)
  timing.save(record, _OUT.value, draw)


if __name__ == '__main__':
  app.run(main)
