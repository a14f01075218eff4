"""Your own events in a CSV file: a header, then one row for each event.

  time,type,sequence
  2026-01-05 08:12:00,call,7
  2026-01-05 08:20:30,visit,7

`data.time_column` holds dates of ISO 8601 or numbers. `data.type_column` and
`data.sequence_column` may be empty: then all events are of one type, or of one
sequence. The rows of a sequence must be in order; those of others may stand
between them.

Without `data.start` the first event of a sequence is read and not predicted:
nobody knows since when there was none. Without `data.end` a sequence ends with
its last event. Where they are set, the time before the first event and the time
without one at the end belong to the likelihood. Sequences of more than
`data.sequence_length` targets are cut; each part starts with the last event of
the part before.
"""

import collections
import datetime
import pathlib
from typing import Any

from absl import logging
import numpy as np
from rnnzoo import errors
from rnnzoo import fields
from rnnzoo.data import definition
from rnnzoo.data import pipeline
from rnnzoo.data import settings
from rnnzoo.data.events import sequences
from rnnzoo.data.series import table

NAME = 'events_csv'
SPLITS = ('train', 'validation', 'test')
# The split is the same for all seeds of a run, so that runs can be compared.
_SPLIT_SEED = 0


def load(config: Any, shard: pipeline.Shard, seed: int) -> pipeline.Dataset:
  """Returns the events of the file, see `sequences.dataset`.

  With a column of sequences, whole sequences are shared out at random, always
  in the same way; otherwise the parts follow one another in time.

  Args:
    config: Has the fields of `DEFINITION`.
    shard: The rows of this process.
    seed: Fixes the order of the training sequences.

  Raises:
    UserError: If the file cannot be read or does not go with the config; the
      message names the line.
  """
  path = settings.data_file(config, NAME, 'a CSV file')
  found, names = read(path, config)
  if config.sequence_column:
    order = np.random.default_rng(_SPLIT_SEED).permutation(len(found))
    found = [found[i] for i in order]
  else:
    found = sequences.cut(found[0], config.sequence_length)
  splits, begin = {}, 0
  for name, share in zip(SPLITS, np.cumsum(config.parts)):
    stop = round(len(found) * float(share))
    splits[name] = [
        part for events in found[begin:stop]
        for part in sequences.cut(events, config.sequence_length)
    ]
    begin = stop
  try:
    return sequences.dataset(
        splits, shard, pipeline.check_seed(seed),
        kinds=len(names),
        length=config.sequence_length,
        name=NAME,
        class_names=names,
    )
  except errors.UserValueError as error:
    raise errors.UserValueError(f'{path}: {error}') from error


def read(
    path: pathlib.Path, config: Any
) -> tuple[list[sequences.Events], tuple[str, ...]]:
  """Returns the sequences of a file that have a target, and the types.

  Raises:
    UserError: See `load`.
  """
  if len(config.parts) != 3 or abs(sum(config.parts) - 1) > 1e-6:
    raise errors.UserValueError(
        'data.parts must be the shares of train, validation and test, which '
        f'add up to 1, got {fields.shown(config.parts)}.'
    )
  header, rows, lines = table.read_rows(path)
  columns = dict(zip(header, map(list, zip(*rows))))
  of = {}
  for field in ('time_column', 'type_column', 'sequence_column'):
    name = getattr(config, field)
    if name:
      table.check_column(path, field, name, header)
      of[field] = [text.strip() for text in columns[name]]
      _check_full(path, name, of[field], lines)
    else:
      of[field] = [''] * len(rows)
  limits = {
      name: getattr(config, name) for name in ('start', 'end')
      if getattr(config, name)
  }
  for name, text in limits.items():
    try:
      table.parse_time(text)
    except ValueError as error:
      raise errors.UserValueError(
          f'data.{name} must be a date of ISO 8601 or a number, got {text!r}.'
      ) from error
  times = table.read_times(
      path, of['time_column'] + [*limits.values()],
      lines + [0] * len(limits),
  )
  seconds = np.array([_number(time) for time in times]) / config.time_unit
  start, end = (
      seconds[len(rows) + [*limits].index(name)] if name in limits else None
      for name in ('start', 'end')
  )
  names = tuple(sorted(set(of['type_column'])))
  kinds = {name: kind for kind, name in enumerate(names)}
  members = collections.defaultdict(list)
  for row, sequence in enumerate(of['sequence_column']):
    members[sequence].append(row)
  found, empty = [], []
  for sequence, places in members.items():
    at = seconds[places]
    _check_order(
        path, at, [of['time_column'][i] for i in places],
        [lines[i] for i in places], start, end, config,
    )
    types = np.array([kinds[of['type_column'][i]] for i in places])
    events = _window(at, types, start, end, config.min_gap)
    (found if events.targets else empty).append(
        events if events.targets else sequence
    )
  if empty:
    logging.warning(
        '%s: %d of %d sequences are left out, such as %r: they have one event '
        'and nothing to predict after it (data.start and data.end are empty).',
        path, len(empty), len(members), empty[0],
    )
  if not found:
    raise errors.UserValueError(
        f'{path}: no sequence has two events, so there is nothing to predict. '
        'data.sequence_column may be another, or empty.'
    )
  return found, names


def write_fixture(directory: pathlib.Path, config: Any):
  """Writes random events, see `Definition.write_fixture`."""
  settings.mark_fixture(directory)
  path = settings.fixture_file(directory, config, NAME)
  path.parent.mkdir(parents=True, exist_ok=True)
  write_events(path, *(
      settings.field(config, f'{name}_column', default)
      for name, default in (('time', 'time'), ('type', ''), ('sequence', ''))
  ))


def write_events(
    path: pathlib.Path, time: str = 'time', kind: str = 'type',
    sequence: str = 'sequence', count: int = 60,
):
  """Writes sequences in which `a` comes in bursts and `b` follows `a` soon.

  Args:
    path: The file.
    time: The name of the column of the times.
    kind: That of the types; if empty, there is none.
    sequence: That of the sequences, likewise.
    count: The number of sequences.
  """
  rng = np.random.default_rng(0)
  lines, now = [','.join(filter(None, (time, kind, sequence)))], 0.0
  for number in range(count):
    now = 0.0 if sequence else now
    last = 'b'
    for _ in range(int(rng.integers(10, 20))):
      now += rng.exponential(0.1 if last == 'a' else 2.0) + 1e-3
      last = rng.choice(['a', 'b'], p=[0.3, 0.7] if last == 'a' else [0.9, 0.1])
      texts = [f'{now:.4f}', last * bool(kind), f's{number}' * bool(sequence)]
      lines.append(','.join(filter(None, texts)))
  path.write_text('\n'.join(lines) + '\n')


def _number(time) -> float:
  """Returns a number, or the seconds of a date since 1970."""
  if isinstance(time, float):
    return time
  epoch = datetime.datetime(1970, 1, 1)
  if time.utcoffset() is not None:
    epoch = epoch.replace(tzinfo=datetime.UTC)
  return (time - epoch).total_seconds()


def _window(at, types, start, end, min_gap):
  """Returns the events of a sequence, gaps below `min_gap` raised to it."""
  first = None
  if start is None:
    start, first = at[0], int(types[0])
    at, types = at[1:], types[1:]
  gaps = np.maximum(np.diff(at, prepend=start), min_gap)
  times = np.cumsum(gaps)
  if end is not None:
    end = float(max(end - start, times[-1] if len(times) else 0.0))
  return sequences.Events(times, types, end, first)


def _check_full(path, name, texts, lines):
  for text, line in zip(texts, lines):
    if not text:
      raise errors.UserValueError(
          f'{path}, line {line}: column {name!r} is empty. Fill it in, or '
          'leave out the row.'
      )


def _check_order(path, at, texts, lines, start, end, config):
  """Raises `UserValueError` unless the times of a sequence increase."""
  where = f'{path}, line'
  for i, gap in enumerate(np.diff(at), 1):
    if gap < 0:
      raise errors.UserValueError(
          f'{where} {lines[i]}: the time {texts[i]} is before {texts[i - 1]}, '
          f'the time of the event before in line {lines[i - 1]}. Sort the rows '
          'by time.'
      )
    if gap == 0 and not config.min_gap:
      raise errors.UserValueError(
          f'{where} {lines[i]}: two events of a sequence at {texts[i]}. Set '
          'data.min_gap to what the clock can tell apart, or leave out one.'
      )
  if start is not None and (
      at[0] < start or at[0] == start and not config.min_gap
  ):
    raise errors.UserValueError(
        f'{where} {lines[0]}: the time {texts[0]} must be after data.start '
        f'{config.start}.'
    )
  if end is not None and at[-1] > end:
    raise errors.UserValueError(
        f'{where} {lines[-1]}: the time {texts[-1]} is after data.end '
        f'{config.end}.'
    )


DEFINITION = definition.Definition(
    task='events',
    fields=dict(
        path=fields.Field(str, default='', help='The file.'),
        time_column=fields.Field(
            str, default='time',
            help='The column of the times: dates of ISO 8601, or numbers.',
        ),
        type_column=fields.Field(
            str, default='',
            help='The column of the types. If empty, there is one type.',
        ),
        sequence_column=fields.Field(
            str, default='',
            help='The column that says which sequence an event belongs to. If '
            'empty, there is one.',
        ),
        time_unit=fields.Field(
            float, low=0, above_low=True, default=1.0,
            help='What all times are divided by. Dates are seconds, so 3600 '
            'makes hours. Losses depend on it.',
        ),
        start=fields.Field(
            str, default='',
            help='When all windows start, as a date or a number. If empty, '
            'with their first event.',
        ),
        end=fields.Field(
            str, default='',
            help='When all windows end. If empty, with their last event.',
        ),
        min_gap=fields.Field(
            float, low=0, default=0.0,
            help='Shorter gaps are raised to this. With 0, two events of a '
            'sequence at one time are an error.',
        ),
        sequence_length=fields.Field(
            int, low=1, default=128,
            help='The targets of a row; longer sequences are cut.',
        ),
        parts=fields.Field(
            tuple, items=float, low=0, high=1, default=(0.7, 0.1, 0.2),
            help='The shares of train, validation and test.',
        ),
    ),
    load=load,
    write_fixture=write_fixture,
)
