"""The speed of training, from the records of `benchmarks.speedup`."""

from collections.abc import Iterator
import dataclasses
import pathlib

from experiments.cli import published as published_lib
from experiments.reporting import collecting
from rnnzoo.training import records

BENCHMARK = 'experiments/benchmarks/speedup.py'
# How often a training step of one layer fits into that of another one.
_SOURCE = 'https://arxiv.org/abs/2410.01201, one T4, batches of 64'
PUBLISHED = [
    published_lib.Number(
        layer, 'speedup', value, None, f'T = {length}', _SOURCE
    )
    for layer, length, value in [
        ('min_gru', 512, 175.0),
        ('min_gru', 4096, 1324.0),
        ('min_lstm', 512, 235.0),
        ('min_lstm', 4096, 1361.0),
    ]
]
_LAYERS = {'MinGRU': 'min_gru', 'MinLSTM': 'min_lstm'}
_FIELDS = ('device', 'jax', 'batch', 'features', 'rows')


def added(
    report: collecting.Report, directory: pathlib.Path
) -> collecting.Report:
  """Returns a report with a section for each `speedup_*.json` in `directory`.

  A file that is no such record becomes one of the `problems`.
  """
  problems = [*report.problems]
  sections = (*report.sections, *_sections(directory, problems))
  return dataclasses.replace(
      report, sections=sections, problems=tuple(problems)
  )


def _sections(directory, problems) -> Iterator[collecting.Section]:
  for path in sorted(directory.glob('speedup_*.json')):
    try:
      record = records.parse(path.read_bytes())
      records.check_tree(record, {})
      rows = list(_rows(record))
      device, jax, batch, features, _ = (record[name] for name in _FIELDS)
    except (KeyError, OSError, TypeError, ValueError):
      problems.append(
          f'{path.name} is left out: it is no record of '
          'experiments.benchmarks.speedup.'
      )
      continue
    about = (
        'How many times faster a training step of minGRU and minLSTM is than '
        'one of the GRU and the LSTM of Flax (`nnx.RNN`), at sequences of T '
        f'steps. Batches of {batch}, {features} features, one layer, {device}, '
        f'JAX {jax}. Command: `python -m experiments.benchmarks.speedup`.'
    )
    seen = {row.published for row in rows}
    missing = tuple(
        collecting.Row(
            BENCHMARK, '', n.layer, {}, n.metric, n.split, published=n
        )
        for n in PUBLISHED if n not in seen
    )
    title = f'speed of training, {path.stem.removeprefix("speedup_")}'
    yield collecting.Section(BENCHMARK, title, about, tuple(rows), missing)


def _rows(record) -> Iterator[collecting.Row]:
  numbers = {(n.layer, n.split): n for n in PUBLISHED}
  for row in record['rows']:
    layer, split = _LAYERS.get(row['layer']), f'T = {row["length"]}'
    if layer and records.is_number(row['speedup']):
      yield collecting.Row(
          BENCHMARK, 'speed', layer, {}, 'speedup', split,
          values={0: row['speedup']}, published=numbers.get((layer, split)),
          larger_is_better=True,
      )
