r"""Counts what must follow each other on accelerators: Newton and the loop.

  python -m experiments.benchmarks.newton_depth --targets=h200x1,v5e:1x1

Each call and each gradient of the cells of `newton.py`, with fresh weights and
by both solvers, is compiled for these devices, which need not be there (see
`docs/plans.md` for the compilers). Nothing is timed. For each program: the
instructions on the longest path from arguments to results, each round of a loop
counted, and the bytes that a device must move. A loop over time has a few short
instructions for each token, one after the other. The number of iterations is
the one that the tolerance of `ops.newton_scan` needs on CPU.

The adjoint of a dense cell (Elman, GRU, LSTM, sLSTM) is iterated until it is
solved; how often is not known from its program, so its gradient is left out.
What the record has already is not compiled again.
"""

import json
import os
import pathlib
import subprocess
import sys

from absl import flags
from absl import logging
from experiments.benchmarks import newton_cells
from experiments.benchmarks import timing
from experiments.cli import drivers
import jax
from rnnzoo import errors
from rnnzoo.layers import parallel_cells
from rnnzoo.planning import depth
from rnnzoo.planning import hlo
from rnnzoo.planning import targets as targets_lib
from rnnzoo.planning import traffic
from rnnzoo.training import files

_TARGETS = flags.DEFINE_list(
    'targets', ['h200x1', 'v5e:1x1'], 'The devices, as for --plan.'
)
_LAYERS = flags.DEFINE_multi_enum(
    'layers', list(newton_cells.CELLS), newton_cells.CELLS, 'The cells.'
)
_LENGTHS = flags.DEFINE_multi_integer(
    'lengths', [1024, 4096], 'The numbers of tokens.', lower_bound=2
)
_FEATURES = flags.DEFINE_integer(
    'features', 128, 'The width of inputs and states.', lower_bound=4
)
_BATCH = flags.DEFINE_integer('batch', 4, 'The batch size.', lower_bound=1)
_OUT = drivers.define_path(
    'out', 'experiments/results/newton_depth.json',
    'The JSON file of the results.',
)

_INSIDE = 'RNNZOO_PLANNING'  # Set in the process that compiles.
_COLUMNS = {
    'cell': '{cell}', 'T': '{length}', 'device': '{target}',
    'iterations': '{iterations}', 'loop': '{sequential_forward}',
    'Newton': '{newton_forward}', 'loop, gradient': '{sequential_gradient}',
    'Newton, gradient': '{newton_gradient}',
    'loop, MB': '{sequential_forward_megabytes:.0f}',
    'Newton, MB': '{newton_forward_megabytes:.0f}',
}


def count(name, length, target, known) -> dict:
  """Returns a row of the record.

  Args:
    name: The name of the cell.
    length: The number of tokens.
    target: The device.
    known: The number of iterations if it is known.
  """
  cell = newton_cells.fresh(name, _FEATURES.value)
  x = newton_cells.inputs(cell, _BATCH.value, length)
  number = known or newton_cells.iterations(cell, x)[0]
  functions, state = newton_cells.functions(cell, number)
  mesh = jax.sharding.Mesh(targets_lib.devices(target)[:1], ('x',))
  whole = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
  there = jax.tree.map(
      lambda u: jax.ShapeDtypeStruct(u.shape, u.dtype, sharding=whole),
      (state, x),
  )
  row = dict(
      cell=name, length=length, target=target.name, iterations=number,
      batch=_BATCH.value, features=_FEATURES.value, jax=jax.__version__,
  )
  for solver, both in functions.items():
    for direction, function in both.items():
      if (solver, direction) == ('newton', 'gradient') and not isinstance(
          cell, parallel_cells.DiagonalCell
      ):
        row['newton_gradient'] = None
        continue
      compiled = jax.jit(function).lower(*there).compile()
      program = hlo.Program(compiled.as_text())
      row[f'{solver}_{direction}'] = depth.critical_path(program)
      row[f'{solver}_{direction}_megabytes'] = round(
          traffic.bytes_moved(program) / 1e6, 3
      )
  return row


def add(target, path) -> None:
  """Writes what a record lacks of a device, a row at a time."""
  rows = timing.read(str(path))['rows']
  key = lambda row: tuple(row[u] for u in (
      'cell', 'length', 'batch', 'features', 'target'
  ))
  done = {key(row): row['iterations'] for row in rows}
  for name in _LAYERS.value:
    for length in _LENGTHS.value:
      this = name, length, _BATCH.value, _FEATURES.value
      if (*this, target.name) in done:
        continue
      logging.info('%s, T = %d, %s', name, length, target.name)
      known = [n for other, n in done.items() if other[:-1] == this]
      rows.append(count(name, length, target, known and known[0]))
      files.write_text(path, json.dumps(dict(rows=rows), indent=1) + '\n')
      jax.clear_caches()


def main(argv):
  drivers.check_usage(argv)
  path = pathlib.Path(_OUT.value)
  if _INSIDE in os.environ:
    timing.never_cache_compilation()
    return add(targets_lib.parse(_TARGETS.value[0]), path)
  flag = lambda name, values: [f'--{name}={u}' for u in values]
  for name in _TARGETS.value:
    target = targets_lib.parse(name)
    command = [
        sys.executable, '-m', 'experiments.benchmarks.newton_depth',
        f'--targets={name}', f'--features={_FEATURES.value}',
        f'--batch={_BATCH.value}', f'--out={path}',
        *flag('layers', _LAYERS.value), *flag('lengths', _LENGTHS.value),
    ]
    variables = dict(os.environ, **targets_lib.environment(target))
    variables[_INSIDE] = '1'
    if subprocess.run(command, env=variables).returncode:
      raise errors.UserError(f'Compiling for {name} failed, see above.')
  timing.print_table(timing.read(str(path))['rows'], _COLUMNS)


if __name__ == '__main__':
  drivers.run(main)
