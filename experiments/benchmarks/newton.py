r"""Compares nonlinear cells solved by Newton's method with the loop over time.

  python -m experiments.benchmarks.newton \
      [--runs=WORKDIR] --out=experiments/results/newton_cpu.json

For each cell and length: the number of iterations until the residual is at most
the tolerance of `ops.newton_scan`, the times of a call and of its gradients by
both solvers, in turn, and the numbers of steps that must follow each other: T
for the loop, 2 log2(T) for each iteration. Weights are fresh; with `--runs`,
those of the first such cell of a trained model too. Inputs are normal. Prints a
table, and writes JSON.
"""

import functools
import math
import sys

from absl import flags
from experiments.benchmarks import timing
from experiments.cli import drivers
from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np
import rnnzoo
from rnnzoo import errors
from rnnzoo import layers
from rnnzoo.layers import parallel_cells
from rnnzoo.training.processes import host

_CELLS = ('elman', 'gru', 'lstm', 'slstm', 'para_gru', 'para_lstm')
_LAYERS = flags.DEFINE_multi_enum(
    'layers', list(_CELLS), _CELLS, 'The cells to measure.'
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

# Tried in this order.
_ITERATIONS = (1, 2, 3, 4, 5, 6, 8, 10, 12, 16, 20, 24, 32, 48, 64, 96, 128)
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
  d = _FEATURES.value
  for name in _LAYERS.value:
    options = dict(recurrent_init='uniform') if name == 'slstm' else {}
    yield name, 'fresh', layers.LAYERS[name](d, d, **options, rngs=nnx.Rngs(0))
  names = {cell: name for name, cell in layers.LAYERS.items()}
  for run in _RUNS.value:
    model = rnnzoo.restore(run)
    found = [
        module for _, module in nnx.iter_graph(model)
        if isinstance(module, parallel_cells.ParallelCell)
        and names.get(type(module)) in _CELLS
    ]
    if not found:
      raise errors.UserValueError(
          f'The model of {run} has no cell among {", ".join(_CELLS)}.'
      )
    yield names[type(found[0])], 'trained', found[0]


def measure(cell, length):
  """Returns the figures of one cell and length."""
  x = jnp.asarray(
      np.random.default_rng(0).standard_normal(
          (_BATCH.value, length, cell.in_features), np.float32
      )
  )
  graphs, state = {}, None
  tolerance = 16 * float(jnp.finfo(jnp.float32).eps)
  for count in _ITERATIONS:
    cell.set_solver('newton', count)
    graph, state = nnx.split(cell)
    residual = jax.jit(lambda state, x: nnx.merge(graph, state).residual(x))
    worst = float(residual(state, x).max())
    if worst <= tolerance or count >= length:
      break
  graphs['newton'] = graph
  cell.set_solver('sequential', None)
  graphs['sequential'] = nnx.split(cell)[0]
  calls = {}
  for solver, graph in graphs.items():

    def run(state, x, graph=graph):
      return nnx.merge(graph, state)(x)[1]

    def slopes(state, x, run=run):
      return jax.grad(lambda *u: jnp.sum(run(*u) ** 2), (0, 1))(state, x)

    for suffix, function in (('ms', run), ('gradient_ms', slopes)):
      program, _ = timing.compiled(function, state, x)
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
  record = dict(timing.environment(), rows=[])
  for name, weights, cell in cells():
    for length in _LENGTHS.value:
      print(f'{name}, {weights} weights, T = {length}', file=sys.stderr)
      record['rows'].append(
          dict(cell=name, weights=weights, **measure(cell, length))
      )
  timing.print_table(record['rows'], _COLUMNS)
  timing.save(record, _OUT.value)


if __name__ == '__main__':
  drivers.run(main)
