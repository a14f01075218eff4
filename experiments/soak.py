"""Makes a long run of a tiny model and checks that nothing grows or slows down.

  python -m experiments.soak

The real training loop makes 100,000 steps, one at a time, with evaluations,
logs and a checkpoint every 20 steps. After every 500 steps it takes a sample:
resident memory, open files, threads, blocks that Python has allocated, arrays
that JAX keeps alive, and the time of a step. It also times the bare compiled
step there and then, to tell a slow loop from a busy machine.

At half time a run has all that it needs; LIMITS says what may grow after that.
The samples are written to `--out`, their plot beside it. The exit code is 1 if
something grew. `--short` checks only the number of arrays, since 2,000 steps
are too few for the rest.
"""

import contextlib
import dataclasses
import gc
import itertools
import os
import pathlib
import sys
import tempfile
import time

from absl import flags
from absl import logging
from experiments.benchmarks import plots
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

_STEPS = flags.DEFINE_integer(
    'steps', 100_000, 'The number of training steps.', lower_bound=400
)
_SAMPLES = flags.DEFINE_integer(
    'samples', 200,
    'The number of samples to take during the run.', lower_bound=20,
)
_SAVE_EVERY = flags.DEFINE_integer(
    'save_every', 20, 'The number of steps between checkpoints.', lower_bound=1
)
_SHORT = flags.DEFINE_bool(
    'short', False, 'Make 2,000 steps and 4 checkpoints only, as a quick trial.'
)
_OUT = drivers.define_path(
    'out', 'experiments/results/soak.json',
    'The JSON file of the samples; the plot is written beside it.',
)
flags.adopt_module_key_flags(plots)

_ROOT = pathlib.Path(__file__).parents[1]


@dataclasses.dataclass(frozen=True)
class Limit:
  """How much a quantity may grow in the second half of a run.

  Attributes:
    title: The title of its panel in the plot.
    fixed: The limit for a run of any length.
    each_step: What each step adds to the limit.
    relative: If given, the limit is this fraction of the median.
    each_save: What each checkpoint adds to the limit.
  """

  title: str
  fixed: float = 0.0
  each_step: float = 0.0
  relative: float | None = None
  each_save: float = 0.0


# Growth is the length of the second half times the slope of its samples (the
# estimator of Theil and Sen, which ignores outliers).
LIMITS = dict(
    # Fragmentation moves the heap by a few MiB. A log line that stays in memory
    # (300 bytes every 10 steps) would be 30 bytes a step.
    resident_mib=Limit('resident memory, MiB', 4.0, 10 / 2**20),
    # These repeat exactly with every log, evaluation and save, except that a
    # checkpoint that is being written holds some of them.
    files=Limit('open files', 0.5),
    threads=Limit('threads', 0.5),
    arrays=Limit('arrays kept by JAX', 0.5),
    # Caches of bounded size still fill up. If each log line left two objects,
    # they would be 0.2 a step. TensorStore would leave 500 a save, which
    # rnnzoo/training/checkpoint/leaks.py avoids.
    blocks=Limit('blocks allocated by Python', 1000, 0.02, each_save=2),
    # A ratio of CPU times, because other programs change the time by the clock.
    # On a busy machine a sample is still wrong by a quarter or more, and the
    # line through a hundred samples by a tenth.
    slowness=Limit('step in the loop / bare step, CPU time', relative=0.25),
)

# The fields of a sample: the saves before it, the seconds of a step in the loop
# and of a bare step, and the quantities with limits.
FIELDS = (
    'step', 'saves', 'seconds', 'cpu_seconds', 'bare_cpu_seconds', *LIMITS
)


def make_config(steps, samples, save_every):
  """Returns one layer of width 8 on 4 x 8 characters."""
  config = default.get_config()
  config.model = default.model(models.ModelConfig(
      layer='min_gru', num_layers=1, features=8, conv_kernel=4
  ))
  default.use_data(config, 'text_file')
  config.data.path = str(_ROOT / 'LICENSE')
  config.data.sequence_length = 8
  config.batch_size = 4
  config.total_steps = steps
  config.eval_every = 10 * (steps // samples)
  config.save_every = save_every
  return config


class Sampler:
  """An iterator over batches that takes a sample from time to time."""

  def __init__(self, task, dataset, config, samples):
    self._save_every = config.save_every
    self._every = config.total_steps // samples
    self._mesh = sharding.make_mesh(config.mesh)
    self._program = program_lib.make_program(task, config, self._mesh)
    self._dataset = dataset
    # Allocated at once, because samples must not add to the growth.
    self._table = np.zeros((samples + 1, len(FIELDS)))
    self._count = 0

  @property
  def samples(self):
    """A dictionary with FIELDS for each sample."""
    rows = self._table[: self._count].tolist()
    return [dict(zip(FIELDS, row)) for row in rows]

  def iterator(self, start):
    """Yields the batches; closing it closes the iterator that it reads."""
    with contextlib.closing(self._dataset.train_iterator(start)) as batches:
      self._state = jax.jit(
          self._program.make_state, out_shardings=self._program.shardings
      )()
      since = None
      for step, batch in enumerate(batches, start):
        if step % self._every == 0:
          now = _now()
          if since is not None:
            self._sample(step - 1, np.subtract(now, since) / self._every, batch)
          since = _now()
        yield batch

  def _sample(self, step, seconds, batch):
    placed = sharding.global_batch(self._mesh, batch)
    bare = min(self._time_bare(placed, 20) for _ in range(3))
    if not self._count:
      gc.freeze()  # Searching all modules each time would take long.
    gc.collect()
    sample = dict(
        step=step,
        saves=step // self._save_every,
        seconds=seconds[0],
        cpu_seconds=seconds[1],
        bare_cpu_seconds=bare,
        resident_mib=_resident_bytes() / 2**20,
        files=len(os.listdir('/proc/self/fd')),
        threads=len(os.listdir('/proc/self/task')),
        arrays=len(jax.live_arrays()),
        blocks=sys.getallocatedblocks(),
        slowness=seconds[1] / bare,
    )
    if self._count % 20 == 0:
      print(
          '  step {step:>7,}: {resident_mib:.1f} MiB, {files} files, {threads} '
          'threads, {arrays} arrays, {blocks:,} blocks, {rate:.0f} '
          'steps/s'.format(rate=1 / sample['seconds'], **sample),
          flush=True,
      )
    self._table[self._count] = [sample[name] for name in FIELDS]
    self._count += 1

  def _time_bare(self, batch, count):
    _, since = _now()
    for _ in range(count):
      self._state, metrics = self._program.train_step(self._state, batch)
    jax.block_until_ready(metrics)
    return (_now()[1] - since) / count


def _now():
  return time.perf_counter(), time.process_time()


def _resident_bytes():
  pages = pathlib.Path('/proc/self/statm').read_text().split()[1]
  return int(pages) * os.sysconf('SC_PAGE_SIZE')


def soak(task, dataset, config, samples):
  """Trains, and returns the samples."""
  sampler = Sampler(task, dataset, config, samples)
  with tempfile.TemporaryDirectory() as workdir:
    loop.train(
        task, watching.replaced(dataset, train_iterator=sampler.iterator),
        config, workdir,
    )
  return sampler.samples


def growth(samples, name):
  """Returns the growth of a quantity over the samples.

  >>> growth([dict(step=s, files=9 + (s == 7)) for s in range(10)], 'files')
  0.0

  Args:
    samples: From `Sampler`.
    name: The name of the quantity.
  """
  slopes = [
      (b[name] - a[name]) / (b['step'] - a['step'])
      for a, b in itertools.combinations(samples, 2)
  ]
  return float(np.median(slopes)) * (samples[-1]['step'] - samples[0]['step'])


def judge(samples):
  """Returns a row for each limit: the growth, the limit, and `flat`."""
  half = samples[len(samples) // 2 :]
  steps, saves = (
      int(half[-1][key] - half[0][key]) for key in ('step', 'saves')
  )
  rows = []
  for name, limit in LIMITS.items():
    allowed = limit.fixed + limit.each_step * steps + limit.each_save * saves
    if limit.relative is not None:
      allowed = limit.relative * float(np.median([s[name] for s in half]))
    grown = growth(half, name)
    rows.append(dict(
        what=name, last=float(half[-1][name]), growth=grown, allowed=allowed,
        saves=saves, flat=grown <= allowed,
    ))
  return rows


def draw(record):
  """Draws all quantities over the steps."""
  samples = record['samples']
  quantities = {name: limit.title for name, limit in LIMITS.items()}
  quantities['rate'] = 'steps a second, by the clock'
  figure, panels = plots.subplots(
      4, 2, f'What {record["steps"]:,} training steps of a tiny model with '
      f'{samples[-1]["saves"]:,.0f} checkpoints use, and their speed',
      figsize=(10, 9), sharex=True,
  )
  steps = [sample['step'] for sample in samples]
  for panel, (name, title) in zip(panels.flat, quantities.items()):
    values = [
        1 / sample['seconds'] if name == 'rate' else sample[name]
        for sample in samples
    ]
    panel.plot(steps, values, linewidth=0.8, color=plots.COLORS[0])
    panel.set(title=title, ylim=(0, 1.2 * max(values)))
    panel.yaxis.set_major_formatter('{x:,.0f}')
    panel.axvspan(
        steps[len(steps) // 2], steps[-1], color=plots.LIGHT, alpha=0.3
    )
  panels[-1, -1].axis('off')
  panels[-1, -1].text(
      0, 0.8, '\n'.join([
          'Growth in the second half, shaded (and its limit):',
          *(f'{quantities.get(row["what"], row["what"])}: '
            f'{row["growth"]:.4g} ({row["allowed"]:.4g})'
            for row in record['rows']),
      ]), va='top', fontsize='small', transform=panels[-1, -1].transAxes,
  )
  for panel in (panels[-1, 0], panels[-2, 1]):  # The lowest of each column.
    panel.set_xlabel('step')
    panel.xaxis.set_major_formatter('{x:,.0f}')
    panel.tick_params(labelbottom=True)
  return figure


def main(argv):
  drivers.check_usage(argv)
  if plots.replotted(_OUT.value, draw):
    return
  if not pathlib.Path('/proc/self/statm').exists():
    raise errors.UserError('The soak reads /proc, which only Linux has.')
  logging.set_verbosity(logging.WARNING)
  host.pin_malloc()
  host.enable_compilation_cache()
  steps, samples, save_every = (
      _STEPS.value, _SAMPLES.value, _SAVE_EVERY.value
  )
  if _SHORT.value:
    steps, samples, save_every = 2000, 40, 500
  config = make_config(steps, samples, save_every)
  task, dataset = tasks.make_task(config)
  print(
      f'{steps:,} steps of a tiny model, a save every {save_every}.',
      flush=True,
  )
  start = time.monotonic()
  found = soak(task, dataset, config, samples)
  rows = judge(found)
  timing.print_table(rows, {
      'in the second half': '{what}', 'last': '{last:.1f}',
      'growth': '{growth:.2f}', 'allowed': '{allowed:.2f}', 'flat': '{flat}',
  })
  plots.save(
      dict(
          timing.environment(), steps=steps, steps_per_dispatch=1,
          seconds=round(time.monotonic() - start, 1), rows=rows, samples=found,
      ),
      _OUT.value, draw,
  )
  grown = [row['what'] for row in rows if not row['flat']]
  if _SHORT.value:
    # By half time neither pools of threads nor caches are full, a save still
    # under way is a good part of the samples, and times are anything.
    grown = [what for what in grown if what == 'arrays']
  if grown:
    raise errors.UserError(f'Not flat: {", ".join(grown)}.')


if __name__ == '__main__':
  drivers.run(main)
