r"""Trains the LRU of each task of the Long Range Arena for some steps.

  python -m experiments.benchmarks.lra_steps

The models, the optimisers and the lengths are those of the paper
(`experiments/configs/lra/settings.py`), without warm-up. All steps take the
same batch of two random rows, so the loss must fall. Each task has a process of
its own: its peak of memory is that of its compilation and its steps. On Path-X
the blocks are computed again in the backward pass (`model.remat=full`).

The seconds are the median of all steps but the first two.
"""

import json
import os
import pathlib
import statistics
import subprocess
import sys
import time

from absl import flags
from absl import logging
from experiments.benchmarks import lra_plans
from experiments.benchmarks import timing
from experiments.cli import drivers
import jax
import numpy as np
from rnnzoo import errors
from rnnzoo import tasks
from rnnzoo.training import program as program_lib
from rnnzoo.training import sharding
from rnnzoo.training import state as state_lib
from rnnzoo.training.processes import host

_TASKS = flags.DEFINE_list('tasks', [*lra_plans.SHAPES], 'What to train.')
_LAYER = flags.DEFINE_string('layer', 'lru', 'Which layer.')
_STEPS = flags.DEFINE_integer('steps', 20, 'How many steps.', lower_bound=3)
_ROWS = flags.DEFINE_integer('rows', 2, 'The rows of a batch.', lower_bound=1)
_SHORT = flags.DEFINE_bool(
    'short', False, 'Train narrow models on short rows, as a quick trial.'
)
_OUT = drivers.define_path(
    'out', 'experiments/results/lra_steps_cpu.json',
    'The JSON file of the results.',
)

_INSIDE = 'RNNZOO_LRA_STEPS'  # Set in the process that trains.
_COLUMNS = {
    'task': '{task}', 'length': '{length}', 'depth': '{depth}',
    'width': '{width}', 'parameters': '{parameters}',
    's to compile': '{compile_seconds:.0f}', 's a step': '{seconds:.2f}',
    'peak MiB': '{peak_mib:.0f}', 'GFLOP a step': '{gflops:.0f}',
    'first loss': '{first:.3f}', 'last loss': '{last:.3f}',
}


def make_batch(name: str, config, rows: int) -> dict:
  """Returns a batch of random rows; each has all its steps."""
  length, vocab_size, sequences = lra_plans.SHAPES[name]
  if _SHORT.value:
    length = 16
  rng = np.random.default_rng(0)
  targets = rng.integers(0, config.model.num_classes, rows, np.int32)
  if not vocab_size:
    size = rows, length, config.model.in_features
    return dict(inputs=rng.random(size, np.float32), targets=targets)
  size = (rows, length) if sequences == 1 else (rows, length, sequences)
  return dict(
      inputs=rng.integers(1, vocab_size, size, np.int32), targets=targets,
      input_mask=np.ones(size, bool),
  )


def measure(name: str) -> dict:
  """Trains on one task; returns its row of the record."""
  config, _ = lra_plans.cell(name, _LAYER.value, 1)
  config.batch_size = _ROWS.value
  config.optimizer.warmup_steps = 0
  if _SHORT.value:
    config.model.num_layers, config.model.features = 1, 8
  two = lra_plans.SHAPES[name][2] == 2
  task = tasks.find('matching' if two else 'classification').from_config(config)
  batch = make_batch(name, config, _ROWS.value)
  program = program_lib.make_program(
      task, config, sharding.make_mesh(config.mesh)
  )
  state = jax.jit(program.make_state, out_shardings=program.shardings)()
  start = time.perf_counter()
  step = program.train_step.lower(state, batch).compile()
  compile_seconds = time.perf_counter() - start
  losses, seconds = [], []
  for _ in range(_STEPS.value):
    start = time.perf_counter()
    state, metrics = step(state, batch)
    losses.append(float(metrics['loss']))
    seconds.append(time.perf_counter() - start)
  return dict(
      task=name, layer=_LAYER.value, rows=_ROWS.value,
      length=batch['inputs'].shape[1], depth=config.model.num_layers,
      width=config.model.features, remat=config.model.remat,
      parameters=state_lib.count_parameters(state['params']),
      compile_seconds=compile_seconds, seconds=statistics.median(seconds[2:]),
      peak_mib=host.peak_memory() / 2**20,
      gflops=step.cost_analysis()['flops'] / 1e9,
      first=losses[0], last=losses[-1], losses=losses,
  )


def main(argv):
  drivers.check_usage(argv)
  logging.set_verbosity(logging.ERROR)
  for name in _TASKS.value:
    if name not in lra_plans.SHAPES:
      raise errors.UserValueError(
          f'--tasks: there is no task {name!r}; the tasks are '
          f'{", ".join(lra_plans.SHAPES)}.'
      )
  if _INSIDE in os.environ:
    host.pin_malloc()
    pathlib.Path(_OUT.value).write_text(json.dumps(measure(*_TASKS.value)))
    return
  rows, path = [], pathlib.Path(_OUT.value)
  for name in _TASKS.value:
    one = path.with_name(f'{path.stem}_{name}.json')
    words = [*sys.argv[1:], f'--tasks={name}', f'--out={one}']
    done = subprocess.run(
        [sys.executable, '-m', 'experiments.benchmarks.lra_steps', *words],
        env=dict(os.environ, **{_INSIDE: '1'}),
    )
    if done.returncode:
      raise errors.UserError(f'{name} failed, see above.')
    rows.append(json.loads(one.read_text()))
    one.unlink()
    print(f'{name}: {rows[-1]["seconds"]:.2f} s a step', flush=True)
  timing.print_table(rows, _COLUMNS)
  timing.write(dict(timing.environment(), rows=rows), _OUT.value)
  print(f'Wrote {_OUT.value}.')
  risen = [u['task'] for u in rows if not u['last'] < u['first']]
  if risen:
    raise errors.UserError(f'The loss did not fall on {", ".join(risen)}.')


if __name__ == '__main__':
  drivers.run(main)
