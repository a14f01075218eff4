r"""Measures what every layer costs at one width: time, memory, compilation.

  python -m experiments.benchmarks.layers \
      --out=experiments/results/layers_cpu.json

There are four programs for each layer and length: the whole sequence forwards;
a training step (the gradients of parameters and input); the same training step
by a `jax.lax.scan` of `layer.step`, which the parallel form should beat; and
`layer.step` on one token. The two training steps are interleaved. The scan
keeps the state of every token. Where that would take 8 GiB or more, it runs
over fewer tokens (`steps_length`), and its time is scaled up.

Rows of the file that come from the same JAX and the same device are kept, so a
long benchmark can run in parts. Prints a table and draws a plot;
`experiments.benchmarks.readme` makes the table of `docs/` from the JSON.
"""

import functools
import sys

from absl import flags
from experiments.benchmarks import layer_programs
from experiments.benchmarks import plots
from experiments.benchmarks import timing
from experiments.cli import drivers
import jax
from rnnzoo import layers
from rnnzoo.layers import base
from rnnzoo.layers import recurrences
from rnnzoo.training.processes import host
import tqdm

_NAMES = flags.DEFINE_multi_enum(
    'layers', sorted(layers.LAYERS), sorted(layers.LAYERS),
    'The layers to measure.',
)
_LENGTHS = flags.DEFINE_multi_integer(
    'lengths', [512, 4096, 16384],
    'The lengths of the sequences.', lower_bound=1,
)
_AGAINST_STEPS = flags.DEFINE_multi_integer(
    'against_steps', [4096],
    'The lengths at which a scan of `step` is measured too.', lower_bound=1,
)
_BATCH = flags.DEFINE_integer(
    'batch', 4, 'The number of sequences in a batch.', lower_bound=1
)
_FEATURES = flags.DEFINE_integer(
    'features', 256,
    'The number of input features, a multiple of 16.', lower_bound=16,
)
_REPEATS = flags.DEFINE_integer(
    'repeats', 3,
    'The number of times that each timing is repeated.', lower_bound=1,
)
_OUT = drivers.define_path(
    'out', 'experiments/results/layers_cpu.json',
    'The JSON file of the results; the plot is written beside it.',
)
flags.adopt_module_key_flags(plots)

# The largest memory of a scan of `step`, in bytes.
_TOO_MUCH = 8 * 2**30

_COLUMNS = {
    'layer': '{layer}',
    'length': '{length}',
    'parameters': '{parameters}',
    'forward ms': '{forward_ms:.1f}',
    'training ms': '{training_ms:.1f}',
    'x scan of steps': '{over_steps}',
    'token us': '{token_us:.0f}',
    'forward MiB': '{forward_mib:.1f}',
    'training MiB': '{training_mib:.1f}',
    'compile s': '{compile_seconds:.1f}',
}


def measure(name, length):
  """Returns the row of a layer at one length."""
  layer = layer_programs.make(name, _FEATURES.value)
  shape = base.input_shape(layer)
  x = jax.random.normal(jax.random.key(0), (_BATCH.value, length, *shape))
  # The form of a cell is such a scan already.
  by_step = length in _AGAINST_STEPS.value and not isinstance(
      layer, recurrences.RecurrentCell
  )
  functions, params = layer_programs.programs_of(layer, by_step)
  programs, inputs = {}, dict.fromkeys(functions, x)
  for what, function in functions.items():
    programs[what] = timing.compiled(function, params, x)
  while by_step and timing.temporary_bytes(programs['steps'][0]) > _TOO_MUCH:
    inputs['steps'] = inputs['steps'][:, : inputs['steps'].shape[1] // 2]
    programs['steps'] = timing.compiled(
        functions['steps'], params, inputs['steps']
    )
  durations = timing.interleaved_medians(
      {
          what: functools.partial(program, params, inputs[what])
          for what, (program, _) in programs.items()
      },
      _REPEATS.value,
  )
  ms = {what: d.seconds * 1e3 for what, d in durations.items()}
  steps_length = inputs['steps'].shape[1] if by_step else None
  if by_step:
    ms['steps'] *= length / steps_length
  mib = lambda what: timing.temporary_bytes(programs[what][0]) / 2**20
  return dict(
      layer=name,
      length=length,
      batch=_BATCH.value,
      features=_FEATURES.value,
      parameters=sum(p.size for p in jax.tree.leaves(params)),
      forward_ms=ms['forward'],
      training_ms=ms['training'],
      training_cpu_ms=durations['training'].cpu_seconds * 1e3,
      steps_ms=ms.get('steps'),
      steps_length=steps_length,
      over_steps=by_step and round(ms['steps'] / ms['training'], 1) or None,
      token_us=ms['token'] * 1e3,
      forward_mib=mib('forward'),
      training_mib=mib('training'),
      **programs['training'][1],
  )


def draw(record):
  """Draws the costs of each layer, one dot for each length."""
  lengths = sorted({row['length'] for row in record['rows']})
  rows = {(row['layer'], row['length']): row for row in record['rows']}
  columns = dict(
      training_ms='training step, milliseconds',
      training_mib='training step, temporary memory, MiB',
      token_us='one call of step, microseconds',
  )
  at = lengths[len(lengths) // 2]
  keys = {u: row['training_ms'] for (u, n), row in rows.items() if n == at}
  figure, panels = plots.subplots(
      1, len(columns),
      f'Time and memory of each layer: {record["rows"][0]["batch"]} sequences, '
      f'{record["rows"][0]["features"]} features, float32',
      figsize=(11, 2.5 + 0.2 * len(keys)), sharey=True,
  )
  heights = plots.layers_axis(panels[0], keys)
  for panel, (key, label) in zip(panels[0], columns.items()):
    # The cost of one more token does not depend on the length.
    alone = key == 'token_us'
    shown = [at] if alone else lengths
    for name, height in heights.items():
      values = [rows[name, n][key] for n in shown if (name, n) in rows]
      panel.plot(values, [height] * len(values), color=plots.LIGHT, zorder=1)
    for length in shown:
      there = [name for name in heights if (name, length) in rows]
      panel.plot(
          [rows[name, length][key] for name in there],
          [heights[name] for name in there],
          'o', markersize=5, label=f'{length:,} tokens',
          color=plots.GRAY if alone else plots.COLORS[lengths.index(length)],
      )
    panel.set(xscale='log', xlabel=label)
    plots.plain_numbers(panel.xaxis)
  plots.legend(figure, panels[0, 0])
  return figure


def kept(record):
  """Returns the rows of the file from the same device and JAX."""
  earlier = timing.read(_OUT.value)
  if any(earlier.get(key) != record[key] for key in ('jax', 'device')):
    return []
  return [
      row
      for row in earlier['rows']
      if row['layer'] in layers.LAYERS
      and (row['batch'], row['features']) == (_BATCH.value, _FEATURES.value)
  ]


def main(argv):
  drivers.check_usage(argv)
  if plots.replotted(_OUT.value, draw):
    return
  timing.never_cache_compilation()
  host.pin_malloc()
  record = timing.environment()
  rows = {(row['layer'], row['length']): row for row in kept(record)}
  cases = [(name, n) for name in _NAMES.value for n in _LENGTHS.value]
  bar = tqdm.tqdm(cases, unit='row', file=sys.stderr)
  for name, length in bar:
    bar.set_postfix_str(f'{name} {length}')
    rows[name, length] = measure(name, length)
    record['rows'] = [rows[key] for key in sorted(rows)]
    # After each row, so that an interruption loses no results.
    timing.write(record, _OUT.value)
  timing.print_table(record['rows'], _COLUMNS)
  plots.save(record, _OUT.value, draw)


if __name__ == '__main__':
  drivers.run(main)
