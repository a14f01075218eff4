"""Damages the files of checkpoints; other faults use the same functions."""

import os
import random
import re
import shutil

from experiments.faults import runs

SHORT = (  # Pairs (damage, kind of file) of `--short`.
    ('flipped bit', 'state/ocdbt.process_0/d/*'),
    ('missing', 'state/manifest.ocdbt'),
    ('truncated', 'meta/metadata'),
)


def flip_bit(path, draw):
  data = bytearray(path.read_bytes())
  used = [i for i, byte in enumerate(data) if byte]  # A zero may be padding.
  data[draw.choice(used)] ^= 1 << draw.randrange(8)
  path.write_bytes(data)


def truncate(path, draw):
  os.truncate(path, draw.randrange(path.stat().st_size))


def remove(path, draw):
  del draw
  path.unlink()


DAMAGES = {'flipped bit': flip_bit, 'truncated': truncate, 'missing': remove}


def damage_checkpoints(directory, *, short, seed=0):
  """Damages every kind of file in the latest checkpoint; yields `Outcome`s."""
  draw = random.Random(seed)
  stopped, whole = directory / 'stopped', directory / 'whole'
  last = 3 * runs.SAVE_EVERY
  total = last + runs.SAVE_EVERY
  # The last step is then evaluated like all others.
  settings = dict(eval_every=runs.SAVE_EVERY)
  runs.finish(stopped, total_steps=last, **settings)
  runs.finish(whole, total_steps=total, **settings)
  kinds = _kinds_of_files(stopped / 'checkpoints' / str(last))
  for name, damage in DAMAGES.items():
    chosen = [k for k in kinds if not short or (name, k) in SHORT]
    fell_back, unread, problems = [], [], []
    for kind in chosen:
      workdir = directory / f'{name}_{kinds.index(kind)}'.replace(' ', '_')
      shutil.copytree(stopped, workdir)
      files = sorted((workdir / 'checkpoints' / str(last)).glob(kind))
      damage(max(files, key=lambda file: file.stat().st_size), draw)
      run = runs.Run(workdir, total_steps=total, **settings).wait()
      wrong = [run.last_line()] if run.code else runs.differences(
          workdir, whole
      )
      if run.first_step() == last:
        unread.append(kind)
      elif run.first_step() == last - runs.SAVE_EVERY:
        fell_back.append(kind)
        if not re.search(rf'Checkpoint {last} is damaged: .* Moved it', (
            run.said()
        )):
          wrong.append('did not say so')
        if not (workdir / 'bad_checkpoints' / str(last)).exists():
          wrong.append('was not put aside')
      else:
        wrong.append(f'began after step {run.first_step()}')
      problems += [f'{kind}: {what}' for what in wrong]
    yield runs.Outcome(
        f'{name}: in turn, {_listing(chosen)} of the latest checkpoint',
        '; '.join(problems) or 'noticed, said, put aside, the checkpoint '
        f'before restored: {_listing(fell_back)}; not needed, nothing happened:'
        f' {_listing(unread)}; every result is that of the run without damage',
        f'at most {runs.SAVE_EVERY} steps, computed again',
        not problems,
    )


def _kinds_of_files(directory):
  """Returns patterns, one for each kind of file in a checkpoint."""
  names = [
      str(path.relative_to(directory)) for path in directory.rglob('*')
      if path.is_file()
  ]
  return sorted({re.sub(r'[0-9a-f]{32}', '*', name) for name in names})


def _listing(kinds):
  return ', '.join(f'`{kind}`' for kind in kinds) or 'none'
