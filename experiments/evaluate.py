r"""Evaluates a model: on a part of the data of its run, or on any text.

  python -m experiments.evaluate --workdir=runs/quickstart --split=test

It is the best checkpoint of the run. `--predictions=FILE` writes a line of JSON
for every sequence: its target, the prediction and its length.

  python -m experiments.evaluate --pretrained=DIR --text=my.txt

`--text=FILE` reads a text of any length in chunks, with the carry kept, and
prints its perplexity and bits per byte. The last line is JSON. The model is
that of a run, or a folder in the format of Hugging Face.
"""

import json
import pathlib
import time

from absl import app
from absl import flags
from absl import logging
from experiments.cli import config_flag
from experiments.cli import drivers
from experiments.cli import hosts
from experiments.cli import opening
from experiments.cli import perplexity
from experiments.cli import tasks
import jax
import numpy as np
from rnnzoo import restoring
from rnnzoo.tasks import base
from rnnzoo.training import evaluation
from rnnzoo.training import files
from rnnzoo.training import sharding
from rnnzoo.training import step as step_lib
from rnnzoo.training.processes import host
from rnnzoo.training.processes import multihost

_MODEL = opening.Flags()
_TEXT = drivers.define_path(
    'text', None, 'A file of UTF-8 text to evaluate on, in place of --split.'
)
_CHUNK = flags.DEFINE_integer(
    'chunk', 512,
    'The number of tokens of --text that are read at once. Fewer need less '
    'memory.',
    lower_bound=1, upper_bound=10**7,
)
_SPLIT = flags.DEFINE_string(
    'split', 'test',
    'The part of the data to evaluate on, such as test or validation.',
)
_DATA_DIR = drivers.define_data_dir()
_ALLOW_CHANGED = flags.DEFINE_bool(
    'allow_changed', False,
    'Evaluate even if the data has changed since training.',
)
_PREDICTIONS = drivers.define_path(
    'predictions', None,
    'Write every prediction to this file, as lines of JSON.',
)
flags.adopt_module_key_flags(hosts)


def main(argv):
  drivers.check_usage(argv, split=_SPLIT.value)
  _MODEL.check_usage()
  if _MODEL.pretrained.value and not _TEXT.value:
    raise app.UsageError('--pretrained has no data of its own: give --text.')
  host.pin_malloc()
  host.enable_compilation_cache()
  if _TEXT.value:
    evaluate_text()
    return
  hosts.join()
  exports = config_flag.exports_of(_MODEL.layers.value)
  run = restoring.restore_run(
      _MODEL.workdir.value, layers=exports.layers, tasks=exports.tasks
  )
  config = tasks.of_run(run.config, exports)
  if _DATA_DIR.value is not None:
    config.data.data_dir = _DATA_DIR.value
  mesh = sharding.make_mesh(
      dict(data=-1, fsdp=1, model=1, sequence=1),
      multihost.sharing_devices(config.batch_size),
  )
  index, count = multihost.data_shard(mesh)
  dataset = tasks.load_data_of_run(
      run, config, exports, allow_changed=_ALLOW_CHANGED.value,
      process_index=index, process_count=count,
  )
  means = evaluation.evaluate_model(
      run.task, dataset, run.model, _SPLIT.value, mesh
  )
  if hosts.is_first():
    print(
        f'{dataset.name}, {_SPLIT.value}, step {run.step}: '
        f'{run.task.describe(means, dataset)}'
    )
    if _SPLIT.value == 'test':  # The following is known of the test split only.
      for name, value in run.task.derived(means, dataset).items():
        print(f'  {name.replace("_", " ")}: {value:.4f}')
      for name, value in dataset.baselines().items():
        print(f'  for comparison, {name.replace("_", " ")}: {value:.4f}')
  # The next token is asked for everywhere: there is nothing more to say. And a
  # prediction reads whole rows, which may be too long for the memory.
  steps = dataset.split_lengths.get(_SPLIT.value, dataset.sequence_length)
  wants_details = (
      type(run.task).details is not base.Task.details
      and not dataset.forecast and steps <= step_lib.SEGMENT_STEPS
  )
  if _PREDICTIONS.value or wants_details and jax.process_count() == 1:
    found = evaluation.predict(
        run.task, dataset, run.model, _SPLIT.value, mesh
    )
    for line in run.task.details(found, dataset):
      print(line)
    if _PREDICTIONS.value:
      write_predictions(found, _PREDICTIONS.value)
      logging.info('Written: %s', _PREDICTIONS.value)


def evaluate_text():
  """Prints how well the model predicts a text."""
  run = _MODEL.open().run
  start = time.perf_counter()
  found = perplexity.measure(run, _TEXT.value, _CHUNK.value)
  seconds = time.perf_counter() - start
  name = pathlib.Path(_TEXT.value).name
  print(
      f'{found["tokens"]} tokens of {name}: perplexity '
      f'{found["perplexity"]:.4g}, {found["bits_per_byte"]:.4f} bits per byte, '
      f'{found["loss"]:.4f} nats per token, accuracy {found["accuracy"]:.4f}'
  )
  print(json.dumps(dict(
      found, text=_TEXT.value, seconds=seconds,
      tokens_per_second=found['tokens'] / seconds,
  )))


def write_predictions(found, path):
  """Writes a line of JSON for each sequence, in the order of the data set."""

  def plain(u):
    if np.asarray(u).dtype.kind == 'f' and np.isnan(u).any():
      u = np.where(np.isnan(u), None, u)  # JSON has no NaN.
    return u.tolist() if hasattr(u, 'tolist') else u

  count = len(found['prediction'])
  files.write_text(pathlib.Path(path), ''.join(
      json.dumps({name: plain(u[i]) for name, u in found.items()}) + '\n'
      for i in range(count)
  ))


if __name__ == '__main__':
  drivers.run(main)
