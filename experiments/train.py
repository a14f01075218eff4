"""Trains one config, on every device there is.

  python -m experiments.train --config=experiments/configs/quickstart.py \
      --workdir=runs/quickstart --config.total_steps=500

The same command again goes on where it stopped. Ctrl-C saves first.
"""

import math
import pathlib
import sys

from absl import flags
from absl import logging
from experiments import drivers
from experiments import hosts
from experiments import plan
from experiments import sampling
from experiments import tasks
from ml_collections import config_flags
from rnnzoo import errors
from rnnzoo.training import loop
from rnnzoo.training import sharding
from rnnzoo.training.processes import host
from rnnzoo.training.processes import lock
from rnnzoo.training.processes import multihost

_CONFIG = config_flags.DEFINE_config_file('config', lock_config=True)
_WORKDIR = drivers.define_path('workdir', None, 'Where to write.')
_PLAN = flags.DEFINE_string(
    'plan', None,
    'Train nothing, but say whether the step fits on devices that need not be '
    'there, and what it costs: v5e:16x16, v5p:4x4x4, v6e:8x8, h200x8.',
)
_PIN_MALLOC = flags.DEFINE_bool(
    'pin_malloc', True,
    'Keep freed memory in the process: large arrays are 2 to 4 times faster on '
    'CPU with glibc.',
)
_PROFILE_STEPS = flags.DEFINE_string(
    'profile_steps', None,
    'A trace of these steps, such as 10:15, into profile/ of the workdir, for '
    'TensorBoard or xprof; the same as --config.profile_steps.',
)
_DETERMINISTIC = flags.DEFINE_bool(
    'deterministic', False,
    'Two runs are equal in every bit. On GPU that costs speed; CPU and TPU are '
    'so without it.',
)


def main(argv):
  if _PLAN.value:
    drivers.check_usage(argv, config=_CONFIG.value)
    filename = flags.FLAGS['config'].config_filename
    sys.exit(plan.main(
        tasks.resolve(_CONFIG.value), drivers.layers_of(filename),
        pathlib.Path(filename.partition(':')[0]).stem, _PLAN.value,
        _WORKDIR.value,
    ))
  drivers.check_usage(argv, config=_CONFIG.value, workdir=_WORKDIR.value)
  # Text may hold what the terminal cannot show.
  sys.stdout.reconfigure(errors='backslashreplace')
  if _PIN_MALLOC.value:
    host.pin_malloc()
  if _DETERMINISTIC.value:
    host.make_deterministic()
  host.enable_compilation_cache()
  hosts.join()
  config = tasks.resolve(_CONFIG.value)
  if _PROFILE_STEPS.value:
    config.profile_steps = _PROFILE_STEPS.value
  layers = drivers.layers_of(flags.FLAGS['config'].config_filename)
  # Of every batch, a process reads the rows that its devices work on.
  index, count = multihost.data_shard(sharding.make_mesh(config.mesh))
  task, dataset = tasks.make_task(
      config, layers, process_index=index, process_count=count
  )
  with lock.hold(_WORKDIR.value):
    workdir = tasks.open_workdir(_WORKDIR.value, config)
    multihost.check_shared(workdir)
    logging.info(
        '%s, %d layers of width %d, on %s (%d tokens), %s.',
        config.model.layer, config.model.num_layers, config.model.features,
        dataset.name, dataset.vocab_size, host.device_description(),
    )
    summary = loop.train(task, config, workdir)
  if hosts.is_first():
    report(summary, dataset, workdir)
  if config.sample_characters and dataset.vocabulary:
    text = sampling.write_sample(
        workdir, config.sample_characters, config.seed, layers
    )
    if hosts.is_first():
      lines = text.strip().splitlines()[:8]
      print(f'sample: {workdir / "sample.txt"}', *lines, sep='\n  ')
  if config.must_beat_gzip:
    check_baselines(summary, dataset)


def report(summary, dataset, workdir):
  """Prints what came out, beside what anybody could have had for free."""
  nats = summary['best_eval_loss'], summary['test_loss']
  bits = [loss / math.log(2) for loss in nats]
  print(
      f'\nvalidation {bits[0]:.3f} and test {bits[1]:.3f} bits per token '
      f'({nats[0]:.4f} and {nats[1]:.4f} nats), step {summary["best_step"]}, '
      f'{summary["parameters"]:,} parameters, {summary["seconds"]:.0f} s'
  )
  for name, value in dataset.baselines().items():
    print(f'  {name.replace("_", " ")}: {value:.3f}')
  print(f'curve: {workdir / "curve.png"}')


def check_baselines(summary, dataset):
  """Raises `UserError` unless the test loss beats gzip."""
  gzip_bits = dataset.baselines()['gzip_bits']
  if not summary['test_bits_per_token'] < gzip_bits:
    raise errors.UserError(
        f'The model ({summary["test_bits_per_token"]:.3f} bits per token) does '
        f'not beat gzip ({gzip_bits:.3f}).'
    )


if __name__ == '__main__':
  drivers.run(main)
