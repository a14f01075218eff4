r"""Plans a run on devices that need not exist here: does it fit, what it costs.

  python -m experiments.train --config=experiments/configs/quickstart.py \
      --plan=v5e:16x16

The training step is compiled for these devices in a process of its own, because
the compilers read their environment when they start. The report is printed, and
written as a table and as JSON.
"""

import json
import os
import pathlib
import subprocess
import sys

from absl import logging
from experiments.cli import config_flag
from experiments.cli import tasks
import jax
from rnnzoo import data as data_lib
from rnnzoo import errors
from rnnzoo import planning
from rnnzoo.planning import targets
from rnnzoo.training import files
from rnnzoo.training.performance import hardware as hardware_lib

_RESULTS = pathlib.Path(__file__).parent / 'results' / 'plans'
# Set in the process that compiles.
_INSIDE = 'RNNZOO_PLANNING'

_WORDS = dict(
    parameters='parameters',
    optimiser='optimiser',
    rest='batch and the rest',
    kept='kept for the backward pass',
    gradients='gradients',
    logits='logits at once',
)


def main(config, exports, name: str, target: str, workdir: str | None) -> int:
  """Plans a run, prints the report and writes it; returns the exit code.

  Args:
    config: A resolved config.
    exports: What the config file brings.
    name: What to call the config.
    target: See `targets.parse`.
    workdir: Where to write; if `None`, beside the other results.

  Raises:
    UserError: If the config does not go with the target.
  """
  target = targets.parse(target)
  if _INSIDE not in os.environ:
    return _in_a_process_of_its_own(target)
  jax.config.update('jax_enable_compilation_cache', False)
  task, batch = task_and_shapes(config, exports)
  result = planning.plan(task, config, target, batch)
  result = dict(config=name, layer=config.model.layer) | result
  text = report(result)
  print(f'\n{text}')
  directory = files.workdir(workdir) if workdir else _RESULTS
  path = directory / f'{name}_{target.name.replace(":", "_")}'
  directory.mkdir(parents=True, exist_ok=True)
  files.write_text(path.with_suffix('.md'), text)
  files.write_text(
      path.with_suffix('.json'), json.dumps(result, indent=2) + '\n'
  )
  logging.info('Written: %s and .json', path.with_suffix('.md'))
  return int(result['verdict'] == 'does not fit')


def _in_a_process_of_its_own(target):
  variables = dict(os.environ, **targets.environment(target))
  variables[_INSIDE] = '1'
  code = subprocess.run(
      [sys.executable, '-m', 'experiments.train', *sys.argv[1:]], env=variables
  ).returncode
  if code < 0:
    raise errors.UserError(
        f'The compiler for {target.name} died of signal {-code}. Run it with '
        'TF_CPP_MIN_LOG_LEVEL=0 in the environment to see why.'
    )
  return code


def task_and_shapes(config, exports=config_flag.NO_EXPORTS):
  """Returns the task and the shapes of a global batch.

  The data is not loaded if the config alone decides the shapes.
  """
  kind = data_lib.find(config.data.name, exports.datasets).task
  task = tasks.task_of(config, kind, exports)
  batch = task.batch_shapes(config)
  if batch is None:
    task, dataset = tasks.make_task(config, exports)
    batch = {
        name: jax.ShapeDtypeStruct(part.shape, part.dtype)
        for name, part in dataset.each_shape()[-1].items()
    }
  return task, batch


def report(result) -> str:
  """Returns a plan as text, which is Markdown."""
  memory, limit = result['memory'], result['limit']
  mesh = ' x '.join(f'{k} {v}' for k, v in result['mesh'].items())
  rows, length = result['batch'][:2]
  sequences = result['tokens'] // (rows * length)  # 2 for pairs.
  size = f'{rows} x {length}'
  if sequences > 1:
    size = f'{rows} x {sequences} x {length}'
  lines = [
      f'# {result["config"]} on {result["target"]}: {result["verdict"]}',
      '',
      f'{result["parameters"]:,} parameters ({result["layer"]}, '
      f'{result["dtype"]}), batches of {size} tokens, on '
      f'{result["devices"]} x {result["kind"]} ({mesh}): '
      f'{result["rows_per_device"]} rows a device.',
      '',
      f'Compiled, not run, by jax {result["jax"]} and {result["compiler"]}, in '
      f'{result["seconds"]:.0f} s of CPU time and '
      f'{_gib(result["host_memory"])} GiB of this machine.',
      '',
  ]
  known = ('parameters', 'optimiser', 'rest')
  table = [(_WORDS[k], _gib(memory[k]), 'exact') for k in known]
  inside = [
      (_WORDS[k], f'~ {_gib(memory[k])}', 'by arithmetic')
      for k in ('kept', 'gradients', 'logits')
  ]
  if 'peak' in memory:
    table += [
        ('temporaries', _gib(memory['temporaries']), 'the compiler'),
        *((f'- {name}', *rest) for name, *rest in inside),
        ('**peak**', f'**{_gib(memory["peak"])}**', 'the compiler'),
    ]
  else:
    table += [
        *inside, ('**needed**', f'**{_gib(result["required"])}**',
                  'the compiler, refusing it'),
    ]
  table.append(('of', _gib(limit), 'what a program may use'))
  lines += _table(('memory of a device', 'GiB', 'says'), table, '<><')
  if result['advice']:
    lines += ['', 'What to change, most useful first:', '']
    lines += [f'{i}. {text}' for i, text in enumerate(result['advice'], 1)]
  if 'collectives' in result:
    lines += ['', *_collectives(result), '', *_roofline(result)]
  lines += ['', *_flops(result)]
  return '\n'.join(lines) + '\n'


def _collectives(result):
  if not result['collectives']:
    return ['Nothing is sent from device to device.']
  table = [
      (
          row['kind'],
          f'{row["group"]}' + (' beyond a host' if row['hosts_apart'] else ''),
          f'{row["operations"]}', f'{row["times"]:.0f}',
          f'{row["bytes"] / 1e9:.3f}',
      )
      for row in result['collectives']
  ]
  lines = _table(
      ('a device sends', 'among', 'operations', 'runs a step', 'GB a step'),
      table, '<>>>>',
  )
  if result['unknown_loops']:
    lines += ['', f'{len(result["unknown_loops"])} loops of unknown length are '
              'counted as one round.']
  reduced = [row['kind'] for row in result['collectives']]
  if result['mesh']['fsdp'] > 1 and 'reduce-scatter' not in reduced:
    lines += ['', 'No reduce-scatter, though mesh.fsdp splits the parameters: '
              'every device receives whole gradients.']
  return lines


def _flops(result):
  executed, needed = (
      result['flops'][k] / result['devices'] for k in ('executed', 'needed')
  )
  return [
      f'Operations a step and device, from the jaxpr: {executed:.3g}, of which '
      f'{needed:.3g} ({needed / executed:.0%}) are of the model and the '
      'rest is recomputed to save memory.',
  ]


def _roofline(result):
  found = result['roofline']
  milli = lambda name: f'{1e3 * found[name]:.1f}'
  hardware = hardware_lib.find(result['kind'])
  lines = _table(
      ('**estimate** of a step', 'ms', 'at the peak of'),
      [
          ('products of matrices', milli('compute'),
           f'{hardware.peak(result["dtype"]) / 1e12:.0f} TFLOP/s'),
          ('memory', milli('memory'), f'{hardware.bandwidth / 1e9:.0f} GB/s'),
          ('network', milli('network'), f'{hardware.link / 1e9:.0f} GB/s'),
          ('**all at once**', f'**{milli("best")}**', 'if all overlap'),
          ('one after another', milli('worst'), 'if nothing does'),
      ],
      '<><',
  )
  lines += [
      '',
      f'That is at most {found["tokens_per_second"] / 1e6:.2f} million tokens '
      f'a second, and {found["utilisation"]:.0%} of the peak in operations of '
      'the model. An estimate: nothing was run, and a real step is slower.',
  ]
  return lines


def _gib(size):
  return f'{size / hardware_lib.GIB:.2f}'


def _table(header, rows, align):
  """Returns a Markdown table whose columns line up in a terminal, too."""
  widths = [max(map(len, column)) for column in zip(header, *rows)]
  line = lambda row: '| ' + ' | '.join(
      f'{cell:{a}{w}}' for cell, a, w in zip(row, align, widths)
  ) + ' |'
  rule = '|' + '|'.join(
      '-' * (w + 1) + ('-' if a == '<' else ':') for a, w in zip(align, widths)
  ) + '|'
  return [line(header), rule, *map(line, rows)]


if __name__ == '__main__':
  print(__doc__)  # Planning is an option of training.
