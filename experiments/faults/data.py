"""Damages a shard of a data set, and cuts a config in half."""

import os
import random
import shutil

from experiments.faults import damage
from experiments.faults import runs
from rnnzoo.data.builders import tiny_shakespeare

STEPS = 2 * runs.SAVE_EVERY


def damage_shards(directory, *, short, seed=0):
  """Damages the training shard in every way; yields `Outcome`s."""
  draw = random.Random(seed)
  sound = directory / 'data'
  _prepare(sound)
  settings = dict(
      data__name='tiny_shakespeare', total_steps=STEPS,
      eval_every=runs.SAVE_EVERY,
  )
  whole, half = directory / 'whole', directory / 'half'
  runs.finish(whole, data__data_dir=sound, **settings)
  runs.finish(
      half, data__data_dir=sound,
      **{**settings, 'total_steps': runs.SAVE_EVERY},
  )
  for name, change in damage.DAMAGES.items():
    if short and name != 'truncated':
      continue
    data, workdir = directory / f'data_{name}', directory / f'run_{name}'
    shutil.copytree(sound, data)
    shutil.copytree(half, workdir)
    (shard,) = data.glob('*/*/*-train.array_record*')
    change(shard, draw)
    run = runs.Run(workdir, data__data_dir=data, **settings).wait()
    problems, said = [], run.last_line()
    if run.code == 0:  # The bit may not matter.
      problems = runs.differences(workdir, whole)
      said = 'the bit is one that nobody reads.'
    elif run.code != 1 or not said.startswith('Error: '):
      problems.append(f'exit code {run.code}: {said}')
    runs.finish(workdir, data__data_dir=sound, **settings)
    problems += runs.differences(workdir, whole)
    said = runs.anonymous(said, data).replace('WORKDIR', 'DATA_DIR')
    yield runs.Outcome(
        f'{name}: the shard with the training text, between two starts',
        '; '.join(problems) or f'exit code {run.code}: {said} With the shard '
        'put right the run went on', 'nothing', not problems,
    )


def half_a_config(directory):
  """Cuts config.json in the middle; yields an `Outcome`."""
  whole, workdir = directory / 'whole', directory / 'run'
  settings = dict(eval_every=runs.SAVE_EVERY)
  runs.finish(whole, total_steps=STEPS, **settings)
  runs.finish(workdir, total_steps=runs.SAVE_EVERY, **settings)
  path = workdir / 'config.json'
  os.truncate(path, path.stat().st_size // 2)
  run = runs.Run(workdir, total_steps=STEPS, **settings).wait()
  said, problems = run.last_line(), []
  if run.code != 1 or not said.startswith('Error: '):
    problems.append(f'exit code {run.code}: {said}')
  path.unlink()
  again = runs.finish(workdir, total_steps=STEPS, **settings)
  if again.first_step() != runs.SAVE_EVERY:
    problems.append('began anew')
  problems += runs.differences(workdir, whole)
  yield runs.Outcome(
      'truncated: config.json',
      '; '.join(problems) or f'exit code 1: {runs.anonymous(said, workdir)} '
      'Without the file the run went on', 'nothing', not problems,
  )


def _prepare(data_dir):
  """Prepares the text of the licence like the real data set."""
  # The file must be larger than the padding that array_record adds.
  text = (runs.ROOT / runs.SETTINGS['data.path']).read_text() * 9
  tiny_shakespeare.prepare_fixture(data_dir, text)
