"""Writes the tables of README.md and `docs/` that come from the code.

  python -m experiments.benchmarks.readme

The table of layers comes from `rnnzoo.layers`, the measured tables from the
records in `experiments/results`. Sentences are not written: `claims` has the
numbers that they must contain, and a test compares.
"""

from collections.abc import Mapping, Sequence
import inspect
import json
import pathlib
import re
import sys
from typing import Any

from experiments.cli import drivers
from rnnzoo import layers

ROOT = pathlib.Path(__file__).parents[2]
RESULTS = ROOT / 'experiments' / 'results'

_NOT_MEASURED = 'not measured'
_LAYERS = {
    'Year': '{year}',
    'Layer': '`{layer}`',
    'Name in configs': '`{name}`',
    'Paper': '{paper}',
    'Code': '[{file}]({path})',
}
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
_CONVERSIONS = {
    'Family': '`{family}`',
    'Parameters': '{parameters:,}',
    'Logits': '{logits:.1e}',
    'States': '{states:.1e}',
    'Greedy tokens that are equal': '{tokens}',
}
_SCANS = {
    'float32, `[B, T, D]`': '{direction}, {size}',
    'times faster than `associative_scan`, jax 0.10.2 / 0.12.0':
        '{speedups[0]:.1f} / {speedups[1]:.1f}',
    'times as long as `a*.5+x`': '{ceilings[0]:.1f} / {ceilings[1]:.1f}',
}
_DEPTHS = {
    'Cell': '`{cell}`',
    'T': '{length}',
    'Device': '{target}',
    'Iterations': '{iterations}',
    'Steps, loop': '{sequential_forward}',
    'Steps, Newton': '{newton_forward}',
    'With gradient, loop': '{sequential_gradient}',
    'With gradient, Newton': '{newton_gradient}',
    'MB, loop': '{sequential_forward_megabytes:.0f}',
    'MB, Newton': '{newton_forward_megabytes:.0f}',
}
_NEWTON = {
    'Cell': '`{cell}`',
    'Weights': '{weights}',
    'T': '{length}',
    'Iterations': '{iterations}',
    'Loop, ms': '{sequential_ms:.0f}',
    'Newton, ms': '{newton_ms:.0f}',
    'Loop with gradient, ms': '{sequential_gradient_ms:.0f}',
    'Newton with gradient, ms': '{newton_gradient_ms:.0f}',
}
# `(Feng et al., 2024)`, and then the link to the paper.
_AUTHORS = r'\(([^()\d]+), ((?:19|20)\d\d)[^()]*\)'
_ADDRESS = r'https://arxiv\.org/abs/(\d{4}\.\d{4,5})'


def record(name: str) -> dict[str, Any]:
  """Reads a file in `experiments/results`."""
  return json.loads((RESULTS / name).read_text())


def page(name: str) -> str:
  """Reads a page, by its path in the repository."""
  return (ROOT / name).read_text()


def tables() -> dict[str, list[str]]:
  """Returns the tables of each page that this program writes."""
  recall = [
      dict(row, percent=100 * row['accuracy'])
      for row in record('recall.json')['rows']
  ]
  return {
      'README.md': [_table(_papers(), _LAYERS)],
      'docs/layers.md': [_cost_table(_costs()), _table(recall, _RECALL)],
      'docs/pretrained.md': [
          _table(record('convert.json')['rows'], _CONVERSIONS)
      ],
      'docs/scans.md': [
          _table(_scans(), _SCANS), _newton_table(), _depth_table()
      ],
  }


def _papers() -> list[dict[str, Any]]:
  """Returns a row for each layer, by year and name of the class."""
  rows = [dict(paper_of(layer), name=name, layer=layer.__name__,
               file=pathlib.Path(path).name, path=path)
          for name, layer in layers.LAYERS.items()
          for path in [f'{layer.__module__.replace(".", "/")}.py']]
  return sorted(rows, key=lambda row: (row['year'], row['layer'].lower()))


def paper_of(layer: type) -> dict[str, str]:
  """Returns year and paper of a layer, as its docstring gives them.

  That of the class counts if it names a paper with its address, as in `(Feng et
  al., 2024), https://arxiv.org/abs/2410.01201`; else that of the module does,
  where the address may be missing.

  Args:
    layer: A class of `rnnzoo.layers`.

  Returns:
    A dictionary of `year` and `paper`, which is Markdown.

  Raises:
    ValueError: If neither docstring names authors and year.
  """
  own = re.search(rf'{_AUTHORS},\s+{_ADDRESS}', inspect.getdoc(layer) or '')
  text = own.group() if own else sys.modules[layer.__module__].__doc__
  found = re.search(_AUTHORS, text)
  if found is None:
    raise ValueError(
        f'The docstring of {layer.__module__} does not name its paper, as in '
        '"minGRU (Feng et al., 2024), https://arxiv.org/abs/2410.01201."'
    )
  authors, year = found.groups()
  paper = ' and '.join(re.split(', | & ', authors))
  if address := re.search(_ADDRESS, text):
    paper += f', [{address[1]}]({address[0]})'
  return dict(year=year, paper=paper)


def _newton_table() -> str:
  """Returns a row for each cell that was solved by Newton's method."""
  if not (RESULTS / 'newton_cpu.json').exists():
    empty = [''] * (len(_NEWTON) - 1)
    return _markdown(_NEWTON, [[_NOT_MEASURED, *empty]])
  return _table(record('newton_cpu.json')['rows'], _NEWTON)


def _depth_table() -> str:
  """Returns a row for each cell, length and device of `newton_depth.py`."""
  rows = sorted(
      record('newton_depth.json')['rows'],
      key=lambda row: (row['target'], row['length'], row['cell']),
  )
  unknown = lambda row: {k: '' if u is None else u for k, u in row.items()}
  return _table(list(map(unknown, rows)), _DEPTHS)


def _costs() -> dict[str, dict[str, Any]]:
  return {
      row['layer']: dict(row, over_steps=row['over_steps'] or '')
      for row in record('layers_cpu.json')['rows'] if row['length'] == 4096
  }


def _cost_table(measured: Mapping[str, Mapping[str, Any]]) -> str:
  """Returns a row for each layer, measured or not."""
  rows = []
  for name in sorted(layers.LAYERS):
    cells = [f'`{name}`', _NOT_MEASURED] + [''] * (len(_COSTS) - 2)
    if name in measured:
      cells = [form.format(**measured[name]) for form in _COSTS.values()]
    rows.append(cells)
  return _markdown(_COSTS, rows)


def claims() -> dict[str, list[str]]:
  """Returns the words that sentences of each page must contain."""
  shakespeare, averaged = (
      record(f'language/tiny_shakespeare/{run}summary.json')
      for run in ('', 'min_gru/seed_0/')
  )
  nats, best = (
      f'{run["best_eval_nanogpt_validation_loss"]:.3f}'
      for run in (shakespeare, averaged)
  )
  minutes, fewer = (
      f'{run["seconds"] / 60:.0f} minutes' for run in (shakespeare, averaged)
  )
  millions = f'{averaged["parameters"] / 1e6:.1f}'
  training = [
      f'It reaches {nats} nats per character', f'({minutes})',
      f'an average of the weights it reaches {best}',
      f'this took {fewer} on one core',
  ]
  if shakespeare['best_step'] == shakespeare['total_steps']:
    training.append(f'best at the last of {shakespeare["total_steps"]} steps')
  overhead = record('overhead_cpu.json')['rows']
  (loop,) = (r['ms'] for r in overhead if r['what'] == 'overhead')
  share = record('input_wait_cpu.json')['input_share']
  training += [
      f'The loop costs {loop:.1f} ms a step more',
      f'spends {100 * share:.1f} % of the time on reading batches',
      f'makes {record("soak.json")["steps"]:,} steps',
  ]
  worst = f'{_worst_loss(record("meshes.json")):.1e}'.replace('e-0', 'e-')
  return {
      'README.md': [
          f'{len(layers.LAYERS)} layers',
          f'A minGRU with {millions} million parameters reaches **{best} nats '
          'per character**',
          f'in {fewer} on one CPU core',
      ],
      'docs/devices.md': [f'no loss differs by more than {worst}'],
      'docs/layers.md': _abilities(record('abilities.json')['rows']),
      'docs/scans.md': _speeds(),
      'docs/tasks.md': _scores(),
      'docs/training.md': training,
  }


def _scores() -> list[str]:
  """Returns the results in docs/tasks.md, each with its time."""
  words = []
  for folder in (
      'digits/lru', 'digits/min_gru', 'smnist/min_gru', 'smnist/lru'
  ):
    paths = sorted((RESULTS / 'images' / folder).rglob('summary.json'))
    found = [json.loads(path.read_text()) for path in paths]
    mean = lambda key, found=found: sum(r[key] for r in found) / len(found)
    words.append(
        f'{100 * mean("test_accuracy"):.1f} % | {mean("seconds"):.0f} s'
    )
  adding = record('synthetic/adding/lru/summary.json')
  return words + [f'{adding["test_loss"]:.4f} | {adding["seconds"]:.0f} s']


def _speeds():
  faster = {
      (r['layer'], r['length']): r['speedup']
      for r in record('speedup_cpu_jax0.12.0.1.json')['rows']
  }
  less = [r['cpu_speedup'] for r in _linear_scans()]
  return [
      '{:.1f} and {:.1f} times faster at T = 512, {:.1f} and {:.1f} times at '
      'T = 4096'.format(*(
          faster[layer, n] for n in (512, 4096)
          for layer in ('MinGRU', 'MinLSTM')
      )),
      f'{min(less):.0f} to {max(less):.0f} times less CPU time',
  ]


def _abilities(rows):
  """Returns the words of docs/layers.md; 99 % right means learned."""
  remembered = [r for r in rows if r['task'] == 'remember']
  parity = [r for r in rows if r['task'] == 'parity']
  known = [r['accuracy'] for r in remembered if r['accuracy'] > 0.99]
  right = [min(r['accuracy'], r['longer']) for r in parity]
  learned = [u for u in right if u > 0.99]
  failed = [r['longer'] for r in parity if r['theory'] == 'cannot']
  short = [
      f'`{r["layer"]}` {_span([r["longer"]])} %' for r in parity
      if r['accuracy'] > 0.99 >= r['longer']
  ]
  return [
      f'{len(known)} of {len(remembered)} layers learn it, {_span(known)} % '
      'right',
      *(
          f'`{r["layer"]}` gets {_span([r["accuracy"]])} % right'
          for r in remembered if r['accuracy'] <= 0.99
      ),
      f'{len(learned)} of {len(parity)} layers learn it, {_span(learned)} % '
      'right at either length',
      f'On 256 bits: {", ".join(short)}.',
      f'The {len(failed)} layers that theory says cannot learn it are '
      f'{_span(failed)} % right on 256 bits',
  ]


def _span(shares):
  low, high = (f'{100 * u:.1f}'.removesuffix('.0') for u in
               (min(shares), max(shares)))
  return low if low == high else f'{low} to {high}'


def _worst_loss(meshes: Mapping[str, Any]) -> float:
  """Returns the largest relative difference from the loss of one device."""
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
  return _markdown(columns, [
      [form.format(**row) for form in columns.values()] for row in rows
  ])


def _markdown(headings, rows):
  lines = [list(headings), ['---'] * len(headings), *rows]
  text = '\n'.join(f'| {" | ".join(cells)} |' for cells in lines) + '\n'
  text = text.replace('| --- ', '|---').replace('--- |', '---|')
  return re.sub(r'\|  (?=\|)', '| ', text)


def updated(name: str, text: str) -> str:
  """Returns the text of a page with new tables and counts."""
  for table in tables().get(name, ()):
    head = re.escape(table.partition('\n')[0])
    text, count = re.subn(
        rf'^{head}\n(\|.*\n)*', lambda _, table=table: table, text,
        flags=re.MULTILINE,
    )
    if count != 1:
      raise ValueError(f'{name} has {count} tables with the head {head}.')
  if name == 'README.md':
    text = re.sub(r'\b\d+ layers\b', f'{len(layers.LAYERS)} layers', text)
  return text


def main(argv):
  drivers.check_usage(argv)
  for name in tables():
    (ROOT / name).write_text(updated(name, page(name)))
  for name, sentences in claims().items():
    text = ' '.join(page(name).split())
    for sentence in sentences:
      if sentence not in text:
        print(f'{name} does not say: {sentence}.')


if __name__ == '__main__':
  drivers.run(main)
