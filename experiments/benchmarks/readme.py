"""The tables and numbers of README.md that were measured.

  python -m experiments.benchmarks.readme

Writes the tables anew from the records in `experiments/results`. Sentences are
left as they are; what they have to say is in `claims`, and a test compares.
"""

from collections.abc import Mapping, Sequence
import json
import pathlib
import re
from typing import Any

from experiments import drivers

_ROOT = pathlib.Path(__file__).parents[2]
README = _ROOT / 'README.md'
RESULTS = _ROOT / 'experiments' / 'results'

_COSTS = {
    'Layer': '`{layer}`',
    'Parameters': '{parameters}',
    'Forward, ms': '{forward_ms:.0f}',
    'Training step, ms': '{training_ms:.0f}',
    'Times faster than a scan of steps': '{over_steps}',
    'One token, us': '{token_us:.0f}',
    'Temporaries in training, MiB': '{training_mib:.0f}',
}
_RECALL = {
    'Layer': '`{layer}`',
    'Right, %': '{percent:.1f}',
    'Steps': '{steps}',
    'State, numbers': '{state}',
}
_SCANS = {
    'float32, `[B, T, D]`': '{direction}, {size}',
    'times faster than `associative_scan`, jax 0.10.2 / 0.12.0':
        '{speedups[0]:.1f} / {speedups[1]:.1f}',
    'times as long as `a*.5+x`': '{ceilings[0]:.1f} / {ceilings[1]:.1f}',
}


def record(name: str) -> dict[str, Any]:
  """Reads a file in `experiments/results`."""
  return json.loads((RESULTS / name).read_text())


def tables() -> list[str]:
  """Returns the tables, as they stand in README.md."""
  costs = [
      dict(row, over_steps=row['over_steps'] or '')
      for row in record('layers_cpu.json')['rows'] if row['length'] == 4096
  ]
  recall = [
      dict(row, percent=100 * row['accuracy'])
      for row in record('recall.json')['rows']
  ]
  return [_table(costs, _COSTS), _table(recall, _RECALL),
          _table(_scans(), _SCANS)]


def claims() -> list[str]:
  """Returns what sentences of README.md have to say, word for word."""
  found = []
  faster = {
      (r['layer'], r['length']): r['speedup']
      for r in record('speedup_cpu_jax0.12.0.1.json')['rows']
  }
  found.append(
      '{:.1f} and {:.1f} times faster at T = 512, {:.1f} and {:.1f} times at '
      'T = 4096'.format(*(
          faster[layer, n] for n in (512, 4096)
          for layer in ('MinGRU', 'MinLSTM')
      ))
  )
  less = [r['cpu_speedup'] for r in _linear_scans()]
  found.append(f'{min(less):.0f} to {max(less):.0f} times less CPU time')
  overhead = record('overhead_cpu.json')['rows']
  (loop,) = (r['ms'] for r in overhead if r['what'] == 'overhead')
  found.append(f'The loop costs {loop:.1f} ms a step more')
  share = record('input_wait_cpu.json')['input_share']
  found.append(f'reading batches {100 * share:.1f} % of the time')
  found.append(f'makes {record("soak.json")["steps"]:,} steps')
  run = record('tiny_shakespeare/summary.json')
  nats = run['best_eval_nanogpt_validation_loss']
  found.append(f'It reaches {nats:.3f} nats per character')
  if run['best_step'] == run['total_steps']:
    found.append(f'best at the last of {run["total_steps"]} steps')
  meshes = record('meshes.json')
  worst = f'{_worst_loss(meshes):.1e}'.replace('e-0', 'e-')
  found.append(f'no loss differs by more than {worst}')
  return found + _abilities(record('abilities.json')['rows'])


def _abilities(rows):
  """What README.md says of them; 99 % right is learned."""
  remembered = [r['accuracy'] for r in rows if r['task'] == 'remember']
  parity = [r for r in rows if r['task'] == 'parity']
  right = [min(r['accuracy'], r['longer']) for r in parity]
  learned = [u for u in right if u > 0.99]
  others = [r['longer'] for r, u in zip(parity, right) if u <= 0.99]
  return [
      f'All {len(remembered)} layers tested learn it, {_span(remembered)} % '
      'right',
      f'The {len(learned)} recurrent cells learn it, {_span(learned)} % right',
      f'The other {len(others)} layers are {_span(others)} % right on 256 bits',
  ]


def _span(shares):
  low, high = (f'{100 * u:.1f}'.removesuffix('.0') for u in
               (min(shares), max(shares)))
  return low if low == high else f'{low} to {high}'


def _worst_loss(meshes: Mapping[str, Any]) -> float:
  """The largest difference of a loss from one device's, relative."""
  return max(
      abs(loss - alone) / abs(alone)
      for runs in meshes.values() for run in runs.values()
      for loss, alone in zip(run['losses'], runs['1,1,1,1']['losses'])
  )


def _linear_scans():
  """Rows of `linear_scan`, malloc pinned, with both versions of JAX."""
  rows = []
  for version in ('0.10.2', '0.12.0.1'):
    of = record(f'linear_scan_cpu_jax{version}.json')['rows']
    key = lambda r: (r['direction'], r['shape'], r['dtype'])
    of = [r for r in of if r['malloc'] == 'pinned']
    other = {key(r): r for r in of if r['form'] == 'associative_scan'}
    rows += [
        dict(r, version=version,
             cpu_speedup=other[key(r)]['cpu_ms'] / r['cpu_ms'])
        for r in of if r['form'] == 'linear_scan'
    ]
  return rows


def _scans():
  rows = []
  for direction in ('forward', 'forward+backward'):
    for shape in ('8x4096x256', '32x1024x512'):
      both = [
          r for r in _linear_scans()
          if (r['direction'], r['shape'], r['dtype'])
          == (direction, shape, 'float32')
      ]
      rows.append(dict(
          direction=direction.replace('+', ' and '),
          size=shape.replace('x', ' x '),
          speedups=[r['speedup'] for r in both],
          ceilings=[r['times_the_ceiling'] for r in both],
      ))
  return rows


def _table(
    rows: Sequence[Mapping[str, Any]], columns: Mapping[str, str]
) -> str:
  """Returns a Markdown table; `columns` is heading -> format of a row."""
  lines = [list(columns), ['---'] * len(columns)]
  lines += [[form.format(**row) for form in columns.values()] for row in rows]
  text = '\n'.join(f'| {" | ".join(cells)} |' for cells in lines) + '\n'
  return text.replace('| --- ', '|---').replace('--- |', '---|').replace(
      '|  |', '| |'
  )


def updated(text: str) -> str:
  """Returns the text of README.md with its tables written anew."""
  for table in tables():
    head = re.escape(table.partition('\n')[0])
    text, count = re.subn(
        rf'^{head}\n(\|.*\n)*', lambda _: table, text, flags=re.MULTILINE
    )
    if count != 1:
      raise ValueError(f'{README} has {count} tables with the head {head}.')
  return text


def main(argv):
  drivers.check_usage(argv)
  README.write_text(updated(README.read_text()))
  text = ' '.join(README.read_text().split())
  for claim in claims():
    if claim not in text:
      print(f'README.md does not say: {claim}.')


if __name__ == '__main__':
  drivers.run(main)
