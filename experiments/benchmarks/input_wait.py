"""Measures how long the devices wait for data.

  python -m experiments.benchmarks.input_wait

Trains for a few steps and prints what `metrics.jsonl` says: first a model of
text with ten million parameters, then small models of other sets (`SETS`). The
exit code is 1 if reading and placing batches of text took more than `--limit`
of the time, which is an upper bound of the waiting time, since the devices may
be busy meanwhile; or if the devices waited more than `--limit` of the time for
the other sets.
"""

from collections.abc import Callable
import pathlib
import tempfile

from absl import flags
from absl import logging
from experiments.benchmarks import timing
from experiments.cli import drivers
from experiments.cli import tasks
from experiments.configs import default
from experiments.configs.images import smnist
import numpy as np
from rnnzoo import errors
from rnnzoo import models
from rnnzoo.training import loop
from rnnzoo.training import metrics
from rnnzoo.training.processes import host

_STEPS = flags.DEFINE_integer(
    'steps', 12, 'The number of training steps.', lower_bound=4
)
_LIMIT = flags.DEFINE_float(
    'limit', 0.02,
    'The largest fraction of the time that may go to data.',
)
_SHORT = flags.DEFINE_bool(
    'short', False,
    'Train small models for few steps and apply no limit, as a quick trial.'
)
_OUT = drivers.define_path(
    'out', 'experiments/results/input_wait_cpu.json',
    'The JSON file of the results.',
)

# The lengths of rows of tokens are much like those of ListOps.
_LENGTHS = (500, 2000)

_ROOT = pathlib.Path(__file__).parents[2]
_COLUMNS = {
    'step': '{step}', 's a step': '{seconds:.3f}',
    'device s a step': '{device_seconds:.3f}',
    'input ms a step': '{input_ms:.2f}', 'of the time': '{input_share:.3%}',
    'input wait': '{input_wait:.3%}', 'tokens/s': '{tokens_per_second:.0f}',
}
_SET_COLUMNS = {
    'set': '{set}', 'steps of time a batch': '{tokens_a_step:.0f}',
    **{name: _COLUMNS[name] for name in (
        's a step', 'input ms a step', 'of the time', 'input wait'
    )},
}


def make_config(features, steps):
  """Returns a config of ten million parameters, 2048 characters a step."""
  config = default.get_config()
  config.model = default.model(models.ModelConfig(
      layer='min_gru', num_layers=7, features=features, conv_kernel=4,
      scan_layers=True,
  ))
  config.data.name = 'text_file'
  config.data.path = str(_ROOT / 'LICENSE')
  config.batch_size = 8
  config.log_every = 2
  config.total_steps = config.eval_every = config.save_every = steps
  config.tensorboard = False
  return config


def images(sequence: str):
  """Returns the config of MNIST, by `'pixels'` or `'rows'`."""
  config = smnist.get_config('lru')
  config.data.sequence = sequence
  return config


def tokens(buckets: int):
  """Returns a config of rows of 501 to 2,000 tokens, in so many lengths."""
  config = default.get_config()
  config.model = default.model(models.ModelConfig(
      layer='lru', num_layers=2, features=64, mlp='none', gate='half_glu2',
  ))
  default.use_data(config, 'npz_file')
  config.data.buckets = buckets
  config.batch_size = 16
  return config


# By name, a config and the number of its steps.
SETS: dict[str, tuple[Callable, int]] = {
    'smnist, pixels': (lambda: images('pixels'), 40),
    'smnist, rows': (lambda: images('rows'), 600),
    'tokens, one length': (lambda: tokens(1), 40),
    'tokens, 8 lengths': (lambda: tokens(8), 40),
}
_SHORT_SETS = ('smnist, rows', 'tokens, one length')


def write_tokens(path: pathlib.Path, count: int, low: int, high: int):
  """Writes rows of tokens and their classes for the set `npz_file`."""
  rng = np.random.default_rng(0)
  # The mean is about that of ListOps, 1,062 for 500 and 2,000.
  lengths = np.ceil(low + (high - low) * rng.beta(1.2, 2, count)).astype(int)
  np.savez(
      path, lengths=lengths, y=rng.integers(0, 10, count),
      x=rng.integers(0, 15, (count, high)).astype(np.uint8),
  )


def measure_set(name: str) -> dict:
  """Trains on one of `SETS`; returns the mean of all log lines but the first.

  The first line has the first steps, which are slower.
  """
  config, steps = SETS[name][0](), SETS[name][1]
  count, limits = 2000, _LENGTHS
  if _SHORT.value:
    config.smoke = True  # A fixture will do.
    steps, count, limits = 6, 100, (5, 20)
  config.total_steps = config.eval_every = config.save_every = steps
  config.log_every = steps // 3
  config.tensorboard = False
  with tempfile.TemporaryDirectory() as directory:
    if config.data.name == 'npz_file':
      config.data.path = str(pathlib.Path(directory, 'tokens.npz'))
      write_tokens(pathlib.Path(config.data.path), count, *limits)
    parameters, rows = measure(config)
  mean = {
      name: float(np.mean([row[name] for row in rows[1:]]))
      for name in rows[0] if name != 'step'
  }
  return dict(set=name, steps=steps, parameters=parameters, **mean)


def measure(config):
  """Trains; returns the number of parameters and a row for each log line."""
  task, dataset = tasks.make_task(config)
  with tempfile.TemporaryDirectory() as workdir:
    summary = loop.train(task, dataset, config, workdir)
    lines = metrics.read_metrics(workdir)
  rows, step = [], 0
  for line in lines:
    if 'input_wait' in line:
      sizes = [
          config.batch_size * dataset.train_batch(i)['inputs'].shape[1]
          for i in range(step + 1, line['step'] + 1)
      ]
      size, step = float(np.mean(sizes)), line['step']
      rate = line['tokens_per_second_per_device']
      rows.append(dict(
          step=step, seconds=size / rate, tokens_per_second=rate,
          tokens_a_step=size,
          device_seconds=line['device_seconds'],
          input_ms=1e3 * line['input_seconds'],
          input_share=line['input_seconds'] * rate / size,
          input_wait=line['input_wait'],
      ))
  return summary['parameters'], rows


def main(argv):
  drivers.check_usage(argv)
  logging.set_verbosity(logging.WARNING)
  host.pin_malloc()
  host.enable_compilation_cache()
  features = 32 if _SHORT.value else 400
  print(f'{_STEPS.value} steps, {host.device_description()}.', flush=True)
  parameters, rows = measure(make_config(features, _STEPS.value))
  print(f'{parameters:,} parameters')
  timing.print_table(rows, _COLUMNS)
  # The mean of all lines: on a busy machine a single line is unreliable.
  total = sum(row['seconds'] for row in rows)
  share = sum(row['input_ms'] for row in rows) / 1e3 / total
  print(f'Input: {share:.3%} of the time.\n')
  names = _SHORT_SETS if _SHORT.value else SETS
  sets = [measure_set(name) for name in names]
  timing.print_table(sets, _SET_COLUMNS)
  timing.write(
      dict(
          timing.environment(), parameters=parameters, input_share=share,
          limit=_LIMIT.value, rows=rows, sets=sets,
      ),
      _OUT.value,
  )
  print(f'Wrote {_OUT.value}.')
  if _SHORT.value:
    return
  most = max(share, *(row['input_wait'] for row in sets))
  if most > _LIMIT.value:
    raise errors.UserError(
        f'Input took {most:.1%} of the time, more than {_LIMIT.value:.0%}.'
    )


if __name__ == '__main__':
  drivers.run(main)
