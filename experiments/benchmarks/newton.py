r"""Compares nonlinear cells solved by Newton's method with the loop over time.

  python -m experiments.benchmarks.newton \
      [--runs=WORKDIR] --out=experiments/results/newton_cpu.json

For each cell and length: the number of iterations until the residual is at most
the tolerance of `ops.newton_scan`, the times of a call and of its gradients by
both solvers, in turn, and the numbers of steps that must follow each other: T
for the loop, 2 log2(T) for each iteration. Weights are fresh; with `--runs`,
those of the first such cell of a trained model too. Inputs are normal. Prints a
table, and writes JSON after each row. It may be stopped: a row that is there is
not measured again. `newton_depth.py` counts the steps and bytes of the same
programs on accelerators.
"""

import functools
import math
import pathlib
import sys

from absl import flags
from experiments.benchmarks import newton_cells
from experiments.benchmarks import timing
from experiments.cli import drivers
from flax import nnx
import jax
import rnnzoo
from rnnzoo import errors
from rnnzoo import layers
from rnnzoo.layers import parallel_cells
from rnnzoo.training.processes import host

_LAYERS = flags.DEFINE_multi_enum(
    'layers', list(newton_cells.CELLS), newton_cells.CELLS,
    'The cells to measure.',
)
_LENGTHS = flags.DEFINE_multi_integer(
    'lengths', [256, 1024, 4096], 'The numbers of tokens.', lower_bound=2
)
_FEATURES = flags.DEFINE_integer(
    'features', 128, 'The width of inputs and states.', lower_bound=4
)
_BATCH = flags.DEFINE_integer('batch', 4, 'The batch size.', lower_bound=1)
_RUNS = flags.DEFINE_multi_string(
    'runs', [], 'Workdirs of trained models that have such a cell.'
)
_REPEATS = flags.DEFINE_integer(
    'repeats', 5, 'The number of times that each timing is repeated.',
    lower_bound=1,
)
_OUT = drivers.define_path(
    'out', 'experiments/results/newton_cpu.json',
    'The JSON file of the results.',
)

_COLUMNS = {
    'cell': '{cell}', 'weights': '{weights}', 'T': '{length}',
    'iterations': '{iterations}', 'residual': '{residual:.1e}',
    'depth / loop': '{depth_ratio:.2f}',
    'loop ms': '{sequential_ms:.1f}', 'Newton ms': '{newton_ms:.1f}',
    'loop, gradient ms': '{sequential_gradient_ms:.1f}',
    'Newton, gradient ms': '{newton_gradient_ms:.1f}',
}


def cells():
  """Yields the name, the kind of weights and the cell, fresh and trained."""
  for name in _LAYERS.value:
    yield name, 'fresh', newton_cells.fresh(name, _FEATURES.value)
  names = {cell: name for name, cell in layers.LAYERS.items()}
  for run in _RUNS.value:
    model = rnnzoo.restore(run)
    found = [
        module for _, module in nnx.iter_graph(model)
        if isinstance(module, parallel_cells.ParallelCell)
        and names.get(type(module)) in newton_cells.CELLS
    ]
    if not found:
      raise errors.UserValueError(
          f'The model of {run} has no cell among '
          f'{", ".join(newton_cells.CELLS)}.'
      )
    # A model stacks the parameters of all layers of a kind.
    graph, state = nnx.split(found[0])
    first = nnx.merge(graph, jax.tree.map(lambda u: u[0], state))
    yield names[type(first)], f'of {pathlib.Path(run).resolve().name}', first


def measure(cell, length):
  """Returns the figures of one cell and length."""
  x = newton_cells.inputs(cell, _BATCH.value, length)
  count, worst = newton_cells.iterations(cell, x)
  functions, state = newton_cells.functions(cell, count)
  calls = {}
  for solver, both in functions.items():
    for direction, suffix in (('forward', 'ms'), ('gradient', 'gradient_ms')):
      program, _ = timing.compiled(both[direction], state, x)
      calls[f'{solver}_{suffix}'] = functools.partial(program, state, x)
  medians = timing.interleaved_medians(calls, _REPEATS.value)
  depth = count * 2 * math.ceil(math.log2(length))
  return dict(
      batch=_BATCH.value, features=cell.in_features, length=length,
      iterations=count, residual=worst, depth=depth,
      depth_ratio=depth / length,
      **{name: time.seconds * 1e3 for name, time in medians.items()},
  )


def main(argv):
  drivers.check_usage(argv)
  timing.never_cache_compilation()
  host.pin_malloc()
  rows = timing.earlier_rows(_OUT.value)
  key = lambda row: tuple(
      row[u] for u in ('cell', 'weights', 'length', 'batch', 'features')
  )
  done = set(map(key, rows))
  for name, weights, cell in cells():
    for length in _LENGTHS.value:
      this = name, weights, length, _BATCH.value, cell.in_features
      if this in done:
        continue
      print(f'{name}, weights {weights}, T = {length}', file=sys.stderr)
      rows.append(timing.row_of_now(
          dict(cell=name, weights=weights, **measure(cell, length))
      ))
      timing.write(dict(timing.environment(), rows=rows), _OUT.value)
  timing.print_table(rows, _COLUMNS)


if __name__ == '__main__':
  drivers.run(main)
