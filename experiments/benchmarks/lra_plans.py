r"""Plans the Long Range Arena: how many hours the full runs would take.

  python -m experiments.benchmarks.lra_plans --targets=h200x1,v5e:2x4

The training step of each cell of `experiments/configs/lra/settings.py` is
compiled for these devices, which need not be there (see `docs/plans.md` for the
compilers). No data is read. A cell that the record has already is not compiled
again, so the command may be stopped. `--cells=listops:lru,text:s5` chooses.

The hours are the steps of the paper times two estimates of a step: the slowest
of its products, its traffic with memory and its network, at the peak of the
device, and their sum. Nothing was run: a real step is slower than the first.
A batch is rounded up to a multiple of the devices, and Retrieval counts both
documents. The blocks run in a loop. On Path-X they are computed again in the
backward pass (`model.remat=full`).
"""

import itertools
import json
import os
import pathlib
import subprocess
import sys

from absl import flags
from absl import logging
from experiments.cli import drivers
from experiments.configs import default
from experiments.configs.lra import settings
import jax
import jax.numpy as jnp
from rnnzoo import errors
from rnnzoo import planning
from rnnzoo import tasks
from rnnzoo.planning import targets as targets_lib
from rnnzoo.training import files

_CELLS = flags.DEFINE_list(
    'cells', [], 'TASK:LAYER, as many as you like; all if empty.'
)
_TARGETS = flags.DEFINE_list(
    'targets', ['h200x1', 'v5e:2x4'], 'The devices, as for --plan.'
)

_RESULTS = pathlib.Path(__file__).parents[1] / 'results' / 'plans'
_INSIDE = 'RNNZOO_PLANNING'  # Set in the process that compiles.
# Steps, tokens of the alphabet (0 where the inputs are numbers), and sequences
# a row.
SHAPES = dict(
    scifar=(1024, 0, 1),
    listops=(2048, 18, 1),
    text=(4096, 135, 1),
    retrieval=(4000, 98, 2),
    pathfinder=(1024, 0, 1),
    pathx=(16_384, 0, 1),
)
LAYERS = ('lru', 's5', 's4d', 'min_gru', 'mamba')


def main(argv):
  drivers.check_usage(argv)
  cells = _CELLS.value or [
      f'{task}:{layer}' for task, layer in itertools.product(SHAPES, LAYERS)
  ]
  cells = [tuple(cell.partition(':')[::2]) for cell in cells]
  for task, layer in cells:
    if task not in SHAPES or not layer:
      raise errors.UserValueError(
          '--cells must be TASK:LAYER with one of the tasks '
          f'{", ".join(SHAPES)}, got {task}:{layer}.'
      )
  if _INSIDE in os.environ:
    jax.config.update('jax_enable_compilation_cache', False)
    target = targets_lib.parse(_TARGETS.value[0])
    return add(cells, target, _RESULTS)
  for name in _TARGETS.value:
    target = targets_lib.parse(name)
    variables = dict(os.environ, **targets_lib.environment(target))
    command = [
        sys.executable, '-m', 'experiments.benchmarks.lra_plans',
        f'--targets={name}', f'--cells={",".join(map(":".join, cells))}',
    ]
    variables[_INSIDE] = '1'
    if subprocess.run(command, env=variables).returncode:
      raise errors.UserError(f'The plans for {name} failed, see above.')


def add(cells, target, directory: pathlib.Path) -> None:
  """Plans the cells that a record lacks, and writes it after each of them.

  Args:
    cells: `(task, layer)` of each.
    target: The devices.
    directory: Where `lra.json` and `lra.md` are.
  """
  path = directory / 'lra.json'
  rows = json.loads(path.read_text())['rows'] if path.exists() else []
  done = {(row['task'], row['layer'], row['target']) for row in rows}
  for task, layer in cells:
    if (task, layer, target.name) in done:
      continue
    logging.info('%s, %s, on %s', task, layer, target.name)
    rows.append(plan(task, layer, target))
    rows.sort(key=lambda row: (
        row['target'], [*SHAPES].index(row['task']), row['layer']
    ))
    files.write_text(path, json.dumps(dict(rows=rows), indent=2) + '\n')
    files.write_text(path.with_suffix('.md'), table(rows))
    jax.clear_caches()


def plan(task: str, layer: str, target: targets_lib.Target) -> dict:
  """Returns the plan of a cell, as a row of the record."""
  config, shapes = cell(task, layer, len(targets_lib.devices(target)))
  kind = tasks.find('classification').from_config(config)
  result = planning.plan(kind, config, target, shapes)
  found = result.get('roofline', {})  # There is none if it does not fit.
  hours = {
      name: round(found[name] * config.total_steps / 3600, 2)
      for name in ('best', 'worst') if name in found
  }
  return dict(
      task=task, layer=layer, target=target.name, steps=config.total_steps,
      rows=config.batch_size, length=SHAPES[task][0],
      remat=config.model.remat, verdict=result['verdict'],
      hours_at_best=hours.get('best'), hours_at_worst=hours.get('worst'),
      roofline={
          name: found[name] for name in ('compute', 'memory', 'network')
          if name in found
      },
      bytes_moved=result.get('bytes_moved'),
      **{
          name: result[name] for name in (
              'parameters', 'dtype', 'flops', 'memory', 'jax', 'compiler',
              'seconds',
          )
      },
  )


def cell(task: str, layer: str, devices: int):
  """Returns the config of a cell and the shapes of its batch.

  Args:
    task: A key of `SHAPES`.
    layer: See `settings.use`.
    devices: The batch is rounded up to a multiple of it.
  """
  length, vocab_size, sequences = SHAPES[task]
  config = settings.use(default.get_config(), task, layer)
  config.batch_size = devices * -(-sequences * config.batch_size // devices)
  config.model.vocab_size = vocab_size
  config.model.scan_layers = True
  if task == 'pathx':
    config.model.remat = 'full'
  size = (config.batch_size, length)
  of = jax.ShapeDtypeStruct
  if vocab_size:
    shapes = dict(inputs=of(size, jnp.int32), input_mask=of(size, jnp.bool))
  else:
    shapes = dict(inputs=of((*size, config.model.in_features), jnp.float32))
  return config, shapes | dict(targets=of(size[:1], jnp.int32))


def table(rows) -> str:
  """Returns the record as a page: the hours of each cell, a table a target."""
  found = {(r['target'], r['layer'], r['task']): r for r in rows}
  layers = [name for name in LAYERS if any(r['layer'] == name for r in rows)]
  layers += sorted({r['layer'] for r in rows} - {*layers})
  lines = [
      '# Hours of the full runs of the Long Range Arena',
      '',
      'Two estimates from compiled training steps, see '
      '`experiments/benchmarks/lra_plans.py`: all at once, and one after '
      'another. Nothing was run. `-`: not planned.',
  ]
  for target in sorted({r['target'] for r in rows}):
    lines += ['', f'## {target}', '', f'| | {" | ".join(SHAPES)} |']
    lines.append('|---|' + '--:|' * len(SHAPES))
    for layer in layers:
      words = [_hours(found.get((target, layer, task))) for task in SHAPES]
      lines.append(f'| `{layer}` | {" | ".join(words)} |')
  return '\n'.join(lines) + '\n'


def _hours(row) -> str:
  if row is None:
    return '-'
  if row['hours_at_best'] is None:
    return row['verdict']
  words = f'{row["hours_at_best"]:.1f} to {row["hours_at_worst"]:.1f}'
  return words if row['verdict'] == 'fits' else f'{words}, {row["verdict"]}'


if __name__ == '__main__':
  drivers.run(main)
