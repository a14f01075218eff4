"""Compares every mesh of eight devices with one device: losses and memory.

  python -m experiments.meshes             # half an hour on two cores
  python -m experiments.meshes --short     # one layer on one mesh
  python -m experiments.meshes --only=lru,'model griffin'

Two models on all 20 meshes `data x fsdp x model x sequence` of 8 virtual CPU
devices, and every layer on some of them, make 20 training steps each, in
float32, with the step and the batches of the training loop. Each result is
written to experiments/results/meshes.json at once, and a result that is there
is not computed again; meshes.md is the table. The exit code is 1 if a loss
differs from that of one device, or if devices do not share the state.
"""

import gc
import json
import pathlib

from absl import flags
from absl import logging
from experiments.cli import drivers
from experiments.meshes import cases
from experiments.meshes import runs
from experiments.meshes import table
import jax
from rnnzoo import errors
from rnnzoo.training import files
from rnnzoo.training import records

_ONLY = flags.DEFINE_list(
    'only', [],
    'Run only these models and layers, such as lru or model griffin.',
)
_SHORT = flags.DEFINE_bool(
    'short', False, 'Run only one layer on one mesh, as a quick trial.'
)
_OUTPUT = drivers.define_path(
    'output', 'experiments/results',
    'The directory of meshes.json and meshes.md.',
)


def main(argv):
  drivers.check_usage(argv)
  jax.config.update('jax_platforms', 'cpu')
  jax.config.update('jax_num_cpu_devices', 8)
  known = cases.short() if _SHORT.value else cases.everything()
  for name in _ONLY.value:
    if name not in known:
      raise errors.UserValueError(
          f'--only: there is no {name!r}.{errors.suggest(name, known)}'
      )
  output = pathlib.Path(_OUTPUT.value)
  output.mkdir(parents=True, exist_ok=True)
  path = output / 'meshes.json'
  results = records.parse(path.read_bytes()) if path.exists() else {}
  for name in _ONLY.value or known:
    done = results.setdefault(name, {})
    missing = [m for m in (cases.ONE, *known[name]) if text(m) not in done]
    if missing:
      logging.info('%s on %d meshes.', name, len(missing))
      add(name, missing, done, lambda: write(path, results))
    jax.clear_caches()  # Programs live as long as their process.
    gc.collect()
  write(path, results)
  files.write_text(output / 'meshes.md', table.markdown(results))
  table.check(results)
  print(f'{len(results)} models and layers: {output / "meshes.md"}')


def add(name, meshes, done, save):
  """Runs a case on some meshes."""
  case = cases.make_case(name)
  batches, state = case.batches(cases.STEPS), runs.first_state(case)
  for sizes in meshes:
    result = runs.run(case, sizes, state, batches)
    done[text(sizes)] = result
    save()
    logging.info(
        '%s on %s: losses differ by %.1e, %.1f %% of the state, %.0f s.',
        name, text(sizes),
        table.difference(result, done[text(cases.ONE)]),
        100 * result['state_bytes'] / result['all_state_bytes'],
        result['seconds'],
    )


def write(path, results):
  """Writes the results, a line for each model or layer."""
  lines = (f'{json.dumps(k)}: {json.dumps(v)}' for k, v in results.items())
  files.write_text(path, '{\n' + ',\n'.join(lines) + '\n}\n')


def text(sizes) -> str:
  """Returns sizes as '2,2,2,1'."""
  return ','.join(map(str, sizes))


if __name__ == '__main__':
  drivers.run(main)
