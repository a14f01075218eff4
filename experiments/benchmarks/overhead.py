"""Measures what the training loop adds to the time of the compiled step.

  python -m experiments.benchmarks.overhead

The real loop trains a model of six layers that is so small that the host is the
bottleneck: it reads and places batches, fetches and writes metrics. From time
to time the loop pauses inside the iterator over its batches, and the same step
runs bare: `state, metrics = jitted(state, batch)`, with one batch that stays on
the device, waiting only for the last step. Loop and bare step alternate in
short segments, so that other programs slow down both, and the results are
medians over the segments.

The exit code is 1 if the loop adds more than `--limit` milliseconds to a step.
"""

import contextlib
import pathlib
import tempfile
import time

from absl import flags
from absl import logging
from experiments.benchmarks import timing
from experiments.cli import drivers
from experiments.cli import tasks
from experiments.cli import watching
from experiments.configs import default
import jax
import numpy as np
from rnnzoo import errors
from rnnzoo import models
from rnnzoo.training import loop
from rnnzoo.training import program as program_lib
from rnnzoo.training import sharding
from rnnzoo.training.processes import host

_ROUNDS = flags.DEFINE_integer(
    'rounds', 100, 'The number of segments of each kind.', lower_bound=1
)
_STEPS = flags.DEFINE_integer(
    'steps', 20, 'The number of steps in a segment.', lower_bound=10
)
_SHORT = flags.DEFINE_bool(
    'short', False,
    'Train one layer in few segments and apply no limit, as a quick trial.',
)
_LIMIT = flags.DEFINE_float(
    'limit', 1.5,
    'The largest number of milliseconds that the loop may add to a step.',
)
_OUT = drivers.define_path(
    'out', 'experiments/results/overhead_cpu.json',
    'The JSON file of the results.',
)

_ROOT = pathlib.Path(__file__).parents[2]
_COLUMNS = {
    'what': '{what}', 'ms a step': '{ms:.3f}', 'CPU ms': '{cpu_ms:.3f}',
    'quartiles of ms': '{low_ms:.3f} {high_ms:.3f}',
}


def make_config(rounds, steps, num_layers):
  """Returns a config of width 16 on 4 x 8 characters."""
  config = default.get_config()
  config.model = default.model(models.ModelConfig(
      layer='min_gru', num_layers=num_layers, features=16, conv_kernel=4
  ))
  default.use_data(config, 'text_file')
  config.data.path = str(_ROOT / 'LICENSE')
  config.data.sequence_length = 8
  config.batch_size = 4
  # One round to warm up; the last segment ends with the step after it.
  config.total_steps = (rounds + 1) * steps + 1
  config.eval_every = config.save_every = config.total_steps
  return config


class Rounds:
  """An iterator over batches that times the loop that reads them.

  Attributes:
    seconds: For each name `[rounds, 2]`, the seconds of a segment by the clock
      and of the CPU.
  """

  def __init__(self, task, dataset, config, steps):
    self._steps = steps
    self._mesh = sharding.make_mesh(config.mesh)
    self._program = program_lib.make_program(task, config, self._mesh)
    self._dataset = dataset
    self.seconds = {
        name: [] for name in ('loop', 'bare step', 'read batch', 'place batch')
    }

  def iterator(self, start):
    """Yields the batches; closing it closes the iterator that it reads."""
    with contextlib.closing(self._dataset.train_iterator(start)) as batches:
      program = self._program
      self._state = jax.jit(
          program.make_state, out_shardings=program.shardings
      )()
      since = None
      for step, batch in enumerate(batches, start):
        if (step - start) % self._steps == 0:
          if since is not None:
            self._note('loop', since)
          self._alone(batches, batch)
          since = _now()
        yield batch

  def _alone(self, batches, batch):
    placed = sharding.global_batch(self._mesh, batch)
    for name, call in (
        ('bare step', lambda: self._step(placed)),
        ('read batch', lambda: next(batches)),
        ('place batch', lambda: sharding.global_batch(self._mesh, batch)),
    ):
      jax.block_until_ready(call())
      since = _now()
      for _ in range(self._steps):
        result = call()
      jax.block_until_ready(result)
      self._note(name, since)

  def _step(self, batch):
    self._state, metrics = self._program.train_step(self._state, batch)
    return metrics

  def _note(self, name, since):
    self.seconds[name].append(np.subtract(_now(), since) / self._steps)


def _now():
  return time.perf_counter(), time.process_time()


def measure(rounds, steps, num_layers):
  """Returns a row for the loop, the bare step, the difference, and parts."""
  config = make_config(rounds, steps, num_layers)
  task, dataset = tasks.make_task(config)
  watch = Rounds(task, dataset, config, steps)
  with tempfile.TemporaryDirectory() as workdir:
    loop.train(
        task, watching.replaced(dataset, train_iterator=watch.iterator), config,
        workdir,
    )
  # The first segment of the loop holds its compilation.
  found = {
      name: np.array(seconds[1 : rounds + 1]) * 1e3
      for name, seconds in watch.seconds.items()
  }
  # A segment of the loop lies between two of the bare step.
  found['overhead'] = found['loop'] - found['bare step']
  rows = []
  for name in ('loop', 'bare step', 'overhead', 'read batch', 'place batch'):
    low, (ms, cpu_ms), high = np.quantile(found[name], (0.25, 0.5, 0.75), 0)
    rows.append(dict(
        what=name, ms=ms, cpu_ms=cpu_ms, low_ms=low[0], high_ms=high[0]
    ))
  return rows


def main(argv):
  drivers.check_usage(argv)
  logging.set_verbosity(logging.WARNING)
  host.pin_malloc()
  host.enable_compilation_cache()
  rounds, num_layers = (3, 1) if _SHORT.value else (_ROUNDS.value, 6)
  print(
      f'{rounds} rounds of {_STEPS.value} steps in the loop and as many bare.',
      flush=True,
  )
  rows = measure(rounds, _STEPS.value, num_layers)
  timing.print_table(rows, _COLUMNS)
  overhead = rows[2]['ms']
  timing.write(
      dict(
          timing.environment(), rounds=rounds, steps=_STEPS.value,
          num_layers=num_layers,
          limit_ms=_LIMIT.value, rows=rows,
      ),
      _OUT.value,
  )
  print(f'Wrote {_OUT.value}.')
  if overhead > _LIMIT.value and not _SHORT.value:
    raise errors.UserError(
        f'The loop costs {overhead:.2f} ms a step, more than {_LIMIT.value}.'
    )


if __name__ == '__main__':
  drivers.run(main)
