r"""Trains the model of a config file on all devices.

  python -m experiments.train --config=experiments/configs/quickstart.py \
      --workdir=runs/quickstart --config.total_steps=500

The same command resumes a run that was stopped. Ctrl-C saves a checkpoint
first. `--config=FILE:LAYER` trains another layer, and `--config=FILE --help`
lists the fields of that file.
"""

import pathlib
import sys

from absl import flags
from absl import logging
from experiments import plan
from experiments.cli import config_flag
from experiments.cli import drivers
from experiments.cli import forecasts
from experiments.cli import hosts
from experiments.cli import published
from experiments.cli import results
from experiments.cli import rollouts
from experiments.cli import sampling
from experiments.cli import tasks
from rnnzoo import restoring
from rnnzoo.training import loop
from rnnzoo.training import sharding
from rnnzoo.training.processes import host
from rnnzoo.training.processes import lock
from rnnzoo.training.processes import multihost

_CONFIG = config_flag.define()
_WORKDIR = drivers.define_path(
    'workdir', None, 'The directory of the run, where everything is written.'
)
_PLAN = flags.DEFINE_string(
    'plan', None,
    'Train nothing; say whether a training step fits on these devices, which '
    'need not exist here, and what it costs: v5e:16x16, v5p:4x4x4, v6e:8x8 or '
    'h200x8, for example.',
)
_PIN_MALLOC = flags.DEFINE_bool(
    'pin_malloc', True,
    'Keep freed memory in the process, which makes large arrays 2 to 4 times '
    'faster on CPUs with glibc.',
)
_PROFILE_STEPS = flags.DEFINE_string(
    'profile_steps', None,
    'Write a trace of these steps, such as 10:15, to profile/ in the workdir, '
    'for TensorBoard or xprof. It is the same as --config.profile_steps.',
)
_DETERMINISTIC = flags.DEFINE_bool(
    'deterministic', False,
    'Make two runs equal in every bit on GPUs too, where this costs speed. On '
    'CPUs and TPUs they are always equal.',
)
flags.adopt_module_key_flags(hosts)


def main(argv):
  drivers.check_usage(argv, config=_CONFIG.value)
  exports = _CONFIG.exports
  if _PLAN.value:
    sys.exit(plan.main(
        tasks.resolve(_CONFIG.value, exports), exports,
        pathlib.Path(_CONFIG.filename).stem, _PLAN.value, _WORKDIR.value,
    ))
  drivers.check_usage(argv, workdir=_WORKDIR.value)
  # Text may hold characters that the terminal cannot show.
  sys.stdout.reconfigure(errors='backslashreplace')
  if _PIN_MALLOC.value:
    host.pin_malloc()
  if _DETERMINISTIC.value:
    host.make_deterministic()
  host.enable_compilation_cache()
  hosts.join()
  published.of_file(_CONFIG.filename)  # A mistake shows now, not at the end.
  commit = results.commit()
  config = tasks.resolve(_CONFIG.value, exports)
  if _PROFILE_STEPS.value:
    config.profile_steps = _PROFILE_STEPS.value
  # A process reads the rows of each batch that its own devices work on.
  index, count = multihost.data_shard(sharding.make_mesh(config.mesh))
  task, dataset = tasks.make_task(
      config, exports, process_index=index, process_count=count
  )
  with lock.hold(_WORKDIR.value):
    workdir = tasks.open_workdir(_WORKDIR.value, config, exports)
    multihost.check_shared(workdir)
    logging.info(
        '%s, %s of width %d, on %s, %s.',
        config.model.layer, counted(config.model.num_layers, 'layers'),
        config.model.features, describe(dataset), host.device_description(),
    )
    summary = loop.train(
        task, dataset, config, workdir, tasks.initial(config, dataset)
    )
    if hosts.is_first():
      results.write(results.make(
          summary, workdir, config, task, dataset, _CONFIG, commit
      ), workdir)
  if hosts.is_first():
    report(summary, task, dataset, workdir)
  if dataset.horizon and count == 1 and hosts.is_first():
    run = restoring.restore_run(
        workdir, layers=exports.layers, tasks=exports.tasks
    )
    if dataset.image_shape:
      images = workdir / 'rollout.gif'
      rollouts.draw(
          rollouts.make(run, dataset, 'test', [0]), images, scale=2
      )
      print(f'rollout: {images} and rollout.png')
    else:
      forecasts.draw(
          forecasts.make(run, dataset, 'test'), workdir / 'forecast.png',
          f'{config.model.layer} on {dataset.name}, test',
      )
      print(f'forecast: {workdir / "forecast.png"}')
  if config.sample_characters and dataset.vocabulary:
    run = restoring.restore_run(
        workdir, layers=exports.layers, tasks=exports.tasks
    )
    text = sampling.write_sample(
        run, workdir, config.sample_characters, config.seed
    )
    if hosts.is_first():
      lines = text.strip().splitlines()[:8]
      print(f'sample: {workdir / "sample.txt"}', *lines, sep='\n  ')
  task.check_result(summary, dataset, config)


def describe(dataset) -> str:
  """Returns the name of a data set and the sizes that decide the model's."""
  sizes = dict(
      tokens=dataset.vocab_size, inputs=dataset.in_features,
      classes=dataset.num_classes, outputs=dataset.out_features,
  )
  words = [counted(size, name) for name, size in sizes.items() if size]
  if dataset.image_shape:
    words.insert(0, f'images {" x ".join(map(str, dataset.image_shape))}')
  return f'{dataset.name} ({", ".join(words)})'


def counted(number: int, names: str) -> str:
  """Returns a number and what it counts.

  >>> counted(2, 'layers'), counted(1, 'layers'), counted(1, 'classes')
  ('2 layers', '1 layer', '1 class')
  """
  if number == 1:
    names = names.removesuffix('es' if names == 'classes' else 's')
  return f'{number} {names}'


def report(summary, task, dataset, workdir):
  """Prints the result, and below it what simple predictors reach."""
  print(
      f'\n{task.sentence(summary, dataset)}, step {summary["best_step"]}, '
      f'{summary["parameters"]:,} parameters, {summary["seconds"]:.0f} s'
  )
  for split in dataset.split_lengths:
    means = {
        name.removeprefix(f'{split}_'): value
        for name, value in summary.items() if name.startswith(f'{split}_')
    }
    if means:  # A summary may be older than data.test_lengths.
      print(f'  {split}: {task.describe(means, dataset)}')
  for name, value in dataset.baselines().items():
    print(f'  for comparison, {name.replace("_", " ")}: {value:.3f}')
  print(f'curve: {workdir / "curve.png"}')


if __name__ == '__main__':
  drivers.run(main)
