r"""Compares `ops.linear_scan` with other forms of the same recurrence.

  python -m experiments.benchmarks.linear_scan \
      --out=experiments/results/linear_scan_cpu.json

The others are `jax.lax.associative_scan` and `jax.lax.scan`, both written
plainly and differentiated by JAX. The lower bound is `a * .5 + x`, which moves
the same three arrays. Everything runs twice, in two processes: with malloc
pinned, as in the commands, and with its default. Prints a table, and writes
JSON and a plot.
"""

import json
import pathlib
import subprocess
import sys
import tempfile

from absl import flags
from experiments.benchmarks import baselines
from experiments.benchmarks import plots
from experiments.benchmarks import timing
from experiments.cli import drivers
import jax.numpy as jnp
import numpy as np
from rnnzoo import ops
from rnnzoo.training.processes import host

_SHAPES = flags.DEFINE_multi_string(
    'shapes',
    ['8,4096,256', '32,1024,512', '1,65536,64', '8,512,256', '1024,256,8'],
    'A shape as batch,time,features. The first one is measured in all '
    '--dtypes.',
)
_DTYPES = flags.DEFINE_multi_enum(
    'dtypes',
    ['float32', 'bfloat16', 'complex64'],
    ['float32', 'bfloat16', 'complex64'],
    'The dtypes in which the first shape is measured.',
)
_REPEATS = flags.DEFINE_integer(
    'repeats', 9,
    'The number of times that each timing is repeated.', lower_bound=1,
)
_OUT = drivers.define_path(
    'out', 'experiments/results/linear_scan_cpu.json',
    'The JSON file of the results; the plot is written beside it.',
)
_MALLOC = flags.DEFINE_enum(
    'malloc', 'both', ['both', 'pinned', 'default'],
    'Whether to measure with malloc pinned, with its default, or with both.',
)
flags.adopt_module_key_flags(plots)

_CEILING = 'a*.5+x'
# The labels of the legend.
_LABELS = {
    'linear_scan': 'linear_scan',
    'associative_scan': 'jax.lax.associative_scan',
    'lax.scan': 'jax.lax.scan',
    _CEILING: 'a*.5+x: one pass over memory',
}
_COLUMNS = {
    'form': '{form}',
    'direction': '{direction}',
    'shape': '{shape}',
    'dtype': '{dtype}',
    'malloc': '{malloc}',
    'ms': '{ms:.2f}',
    'CPU ms': '{cpu_ms:.2f}',
    'GB/s': '{gb_per_second:.1f}',
    'x associative': '{speedup:.1f}',
    'of ceiling': '{times_the_ceiling:.2f}',
    'temporary MiB': '{temporary_mib:.1f}',
    'compile s': '{compile_seconds:.2f}',
    'CPU s': '{compile_cpu_seconds:.2f}',
}


_FORMS = {
    'linear_scan': lambda a, x: ops.linear_scan(a, x)[1],
    'associative_scan': baselines.associative_scan,
    'lax.scan': baselines.lax_scan,
    _CEILING: lambda a, x: a * 0.5 + x,
}


def measure(shape, dtype, repeats):
  """Returns one row for each form and direction."""
  rng = np.random.default_rng(0)
  normal = lambda: rng.standard_normal(shape, np.float32)
  a = rng.uniform(0.5, 1, shape)
  if jnp.issubdtype(dtype, jnp.complexfloating):
    a = a * np.exp(1j * normal())
  a, x, dh = (jnp.asarray(u, dtype) for u in (a, normal(), normal()))
  # Arrays that every implementation moves: forwards it reads a and x and writes
  # h; backwards it reads a, h and dh and writes da and dx.
  forms = dict(_FORMS)
  if dtype == jnp.bfloat16:
    del forms['lax.scan']  # On a CPU some versions of XLA take minutes for it.
  return timing.compare_both_ways(
      forms,
      (a, x),
      dh,
      moves=(3, 3 + 5),
      base='associative_scan',
      ceiling=_CEILING,
      repeats=repeats,
  )


def measure_all(malloc):
  """Returns the record of one run, in this process."""
  timing.never_cache_compilation()
  if malloc == 'pinned' and not host.pin_malloc():
    print('malloc cannot be pinned here: not glibc.', file=sys.stderr)
    malloc = 'default'
  shapes = [tuple(map(int, shape.split(','))) for shape in _SHAPES.value]
  cases = [(shapes[0], jnp.dtype(name)) for name in _DTYPES.value]
  cases += [(shape, jnp.dtype('float32')) for shape in shapes[1:]]
  record = dict(timing.environment(), rows=[])
  for shape, dtype in cases:
    print(f'{shape} {dtype.name}, malloc {malloc}', file=sys.stderr)
    for row in measure(shape, dtype, _REPEATS.value):
      record['rows'].append(dict(row, malloc=malloc))
  return record


def measure_in_new_processes():
  """Merges the records of both runs."""
  records = []
  with tempfile.TemporaryDirectory() as folder:
    for malloc in ('pinned', 'default'):
      out = pathlib.Path(folder) / f'{malloc}.json'
      command = [sys.executable, '-m', 'experiments.benchmarks.linear_scan']
      command += [f'--shapes={shape}' for shape in _SHAPES.value]
      command += [f'--dtypes={dtype}' for dtype in _DTYPES.value]
      command += [f'--repeats={_REPEATS.value}', f'--malloc={malloc}']
      subprocess.run([*command, f'--out={out}'], check=True)
      records.append(json.loads(out.read_text()))
  record = dict(records[0], rows=records[0]['rows'] + records[1]['rows'])
  record['load_average'] = [r['load_average'] for r in records]
  return record


def draw(record):
  """Draws the times of all forms, one panel per direction and malloc."""
  figure, panels = plots.subplots(
      2, 2, 'Time of a linear recurrence [batch x time x features] in four '
      'forms',
      figsize=(11, 6.5), sharex=True, sharey=True,
  )
  for row, direction in zip(panels, ('forward', 'forward+backward')):
    for panel, malloc in zip(row, ('pinned', 'default')):
      rows = [
          r for r in record['rows']
          if (r['direction'], r['malloc']) == (direction, malloc)
      ]
      plots.dots(
          panel, rows, ('shape', 'dtype'), _LABELS,
          title=f'{direction.replace("+", " and ")}, malloc {malloc}',
      )
  for panel in panels[-1]:
    panel.set_xlabel('milliseconds')
  plots.legend(figure, panels[0, 0])
  return figure


def main(argv):
  drivers.check_usage(argv)
  if plots.replotted(_OUT.value, draw):
    return
  if _MALLOC.value != 'both':
    timing.save(measure_all(_MALLOC.value), _OUT.value)
    return
  record = measure_in_new_processes()
  timing.print_table(record['rows'], _COLUMNS)
  plots.save(record, _OUT.value, draw)


if __name__ == '__main__':
  drivers.run(main)
