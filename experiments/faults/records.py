"""Damages the records of a run: config, metrics, summary, metadata, lock."""

import json
import shutil

from experiments.faults import runs

STEPS = 2 * runs.SAVE_EVERY  # The length of the run with damaged records.
TOTAL = STEPS + runs.SAVE_EVERY
BRACKETS = b'[' * 100_000
# The last step is then evaluated like all others.
SETTINGS = dict(eval_every=runs.SAVE_EVERY)
METADATA = f'checkpoints/{STEPS}/meta/metadata'


def _change(**values):
  """Returns a function that changes values in the last line of a file."""

  def change(data):
    *lines, last = data.splitlines(keepends=True)
    row = {**json.loads(last), **values}
    row = {name: value for name, value in row.items() if value is not ...}
    return b''.join(lines) + json.dumps(row).encode() + b'\n'

  return change


# Functions from the content of a record to the damaged content, by record and
# name of the damage; `None` means no file.
DAMAGES = {
    'config.json': {
        'invalid UTF-8': lambda data: data.replace(b'e', b'\xe5', 1),
        '[]': lambda _: b'[]',
        '3': lambda _: b'3',
        'null': lambda _: b'null',
        '"model": 3': lambda _: b'{"model": 3}',
        '100,000 brackets': lambda _: BRACKETS,
    },
    'metrics.jsonl': {
        'missing': lambda _: None,
        'empty': lambda _: b'',
        'garbage': lambda data: bytes(len(data)),
        'garbage after the first save': lambda data: b''.join(
            data.splitlines(keepends=True)[: runs.SAVE_EVERY + 1]
        ) + b'\xff\n' + BRACKETS + b'\n',
        'step a string': _change(step=str(STEPS)),
        'step null': _change(step=None),
        'loss a string': _change(eval_loss='low', train_loss='low'),
        'no wall_time': _change(wall_time=...),
    },
    'summary.json': {
        'missing': lambda _: None,
        'empty': lambda _: b'',
        'half': lambda data: data[: len(data) // 2],
        '{}': lambda _: b'{}',
        '[]': lambda _: b'[]',
        'test_loss null': lambda data: json.dumps(
            {**json.loads(data), 'test_loss': None}
        ).encode(),
    },
    METADATA: {
        '[]': lambda _: b'[]',
        '100,000 brackets': lambda _: BRACKETS,
        'invalid UTF-8': lambda data: data.replace(b'e', b'\xe5', 1),
    },
}
SHORT = (  # The damages of `--short`.
    ('metrics.jsonl', 'missing'), (METADATA, '100,000 brackets'),
)


def damage_records(directory, *, short):
  """Damages each record of a run in every way; yields `Outcome`s."""
  stopped, whole = directory / 'stopped', directory / 'whole'
  runs.finish(stopped, total_steps=STEPS, **SETTINGS)
  runs.finish(whole, total_steps=TOTAL, **SETTINGS)
  for record, damages in DAMAGES.items():
    chosen = [
        name for name in damages if not short or (record, name) in SHORT
    ]
    if not chosen:
      continue
    problems = []
    check, expected = _CHECKS[record]
    for number, name in enumerate(chosen):
      workdir = directory / f'{record.replace("/", "_")}_{number}'
      shutil.copytree(whole if record == 'summary.json' else stopped, workdir)
      path = workdir / record
      data = damages[name](path.read_bytes())
      if data is None:
        path.unlink()
      else:
        path.write_bytes(data)
      run = runs.Run(workdir, total_steps=TOTAL, **SETTINGS).wait()
      problems += [f'{name}: {what}' for what in check(run, whole)]
    yield runs.Outcome(
        f'{record.replace(str(STEPS), "STEP")} damaged, in turn: '
        f'{", ".join(chosen)}',
        '; '.join(problems) or expected[0], expected[1], not problems,
    )
  if not short:
    yield _garbage_in_a_lock(directory / 'live')


def _check_config(run, whole):
  """The run must stop with one line, and resume without the file."""
  said, problems = run.last_line(), []
  if run.code != 1 or not said.startswith('Error: ') or (
      'config.json' not in said
  ):
    problems.append(f'exit code {run.code}: {said}')
  (run.workdir / 'config.json').unlink()
  again = runs.Run(run.workdir, total_steps=TOTAL, **SETTINGS).wait()
  return problems + _check_end(again, whole, STEPS, every_line=True)


def _check_metrics(run, whole):
  return _check_end(run, whole, STEPS)


def _check_summary(run, whole):
  problems = _check_end(run, whole, TOTAL)
  found, expected = (
      json.loads((workdir / 'summary.json').read_bytes())
      for workdir in (run.workdir, whole)
  )
  return problems + [
      f'{name} is {found[name]} and not {value}'
      for name, value in expected.items() if found.get(name) != value
  ]


def _check_metadata(run, whole):
  """The run must move the checkpoint away and restore the one before."""
  problems = _check_end(run, whole, STEPS - runs.SAVE_EVERY, every_line=True)
  if not (run.workdir / 'bad_checkpoints' / str(STEPS)).exists():
    problems.append('was not put aside')
  return problems


_CHECKS = {
    'config.json': (_check_config, (
        'exit code 1, a line says what is wrong with config.json; without the '
        'file the run went on', 'nothing',
    )),
    'metrics.jsonl': (_check_metrics, (
        'the run went on; validation losses that the checkpoints know were '
        'written again; the last state is that of the run without damage',
        'the damaged lines',
    )),
    'summary.json': (_check_summary, (
        'written again, the same', 'nothing',
    )),
    METADATA: (_check_metadata, (
        'noticed, said, put aside, the checkpoint before restored',
        f'at most {runs.SAVE_EVERY} steps, computed again',
    )),
}


def _check_end(run, whole, first, *, every_line=False):
  """Returns how a run differs from the whole one after step `first`."""
  if run.code:
    return [f'exit code {run.code}: {run.last_line()}']
  problems = []
  if run.first_step() != first:
    problems.append(f'went on after step {run.first_step()}, not {first}')
  if every_line:
    return problems + runs.differences(run.workdir, whole)
  here, there = runs.results(run.workdir), runs.results(whole)
  wrong = [s for s in range(first + 1, TOTAL + 1) if here.get(s) != there[s]]
  if wrong:
    problems.append(f'other results at steps {wrong}')
  if runs.digests(run.workdir, TOTAL) != runs.digests(whole, TOTAL):
    problems.append('another state at the end')
  return problems


def _garbage_in_a_lock(workdir):
  """Writes garbage to the lock of a running run, and starts a second one."""
  first = runs.Run(workdir, total_steps=400)
  first.wait_until(lambda: runs.saved_steps(workdir))
  (workdir / '.lock').write_bytes(b'\xff\xfe\n' * 1000)
  second = runs.Run(workdir, total_steps=400).wait()
  first.end()
  problems = []
  said = second.last_line()
  if second.code != 1 or 'Another run' not in said:
    problems.append(f'the second: exit code {second.code}, {said}')
  return runs.Outcome(
      '.lock of a run that trains: garbage; then a second run',
      '; '.join(problems) or 'the second ended with exit code 1: '
      f'{runs.anonymous(said, workdir)}', 'nothing', not problems,
  )
