"""Measures how long the devices wait for data, with ten million parameters.

  python -m experiments.benchmarks.input_wait

Trains for a few steps and prints what `metrics.jsonl` says. The exit code is 1
if reading and placing batches took more than `--limit` of the time. This is an
upper bound of the waiting time, since the devices may be busy meanwhile.
"""

import pathlib
import tempfile

from absl import flags
from absl import logging
from experiments.benchmarks import timing
from experiments.cli import drivers
from experiments.cli import tasks
from experiments.configs import default
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
    'The largest fraction of the time that reading and placing batches may '
    'take.',
)
_SHORT = flags.DEFINE_bool(
    'short', False, 'Train a narrow model and apply no limit, as a quick trial.'
)
_OUT = drivers.define_path(
    'out', 'experiments/results/input_wait_cpu.json',
    'The JSON file of the results.',
)

_ROOT = pathlib.Path(__file__).parents[2]
_COLUMNS = {
    'step': '{step}', 's a step': '{seconds:.3f}',
    'device s a step': '{device_seconds:.3f}',
    'input ms a step': '{input_ms:.2f}', 'of the time': '{input_share:.3%}',
    'input wait': '{input_wait:.3%}', 'tokens/s': '{tokens_per_second:.0f}',
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


def measure(config):
  """Trains; returns the number of parameters and a row for each log line."""
  task, dataset = tasks.make_task(config)
  with tempfile.TemporaryDirectory() as workdir:
    summary = loop.train(task, dataset, config, workdir)
    lines = metrics.read_metrics(workdir)
  tokens = config.batch_size * config.data.sequence_length
  rows = []
  for line in lines:
    if 'input_wait' in line:
      rate = line['tokens_per_second_per_device']
      rows.append(dict(
          step=line['step'], seconds=tokens / rate, tokens_per_second=rate,
          device_seconds=line['device_seconds'],
          input_ms=1e3 * line['input_seconds'],
          input_share=line['input_seconds'] * rate / tokens,
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
  timing.write(
      dict(
          timing.environment(), parameters=parameters, input_share=share,
          limit=_LIMIT.value, rows=rows,
      ),
      _OUT.value,
  )
  print(f'Input: {share:.3%} of the time. Wrote {_OUT.value}.')
  if share > _LIMIT.value and not _SHORT.value:
    raise errors.UserError(
        f'Input took {share:.1%} of the time, more than {_LIMIT.value:.0%}.'
    )


if __name__ == '__main__':
  drivers.run(main)
