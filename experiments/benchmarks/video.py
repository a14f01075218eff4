r"""What a training step on videos takes, against the number of frames.

  python -m experiments.benchmarks.video

The model is that of `experiments/configs/video/moving_mnist.py`, small, with
ConvS5 and with ConvLSTM; a batch is one video. Half of its frames are seen. The
bytes are the temporaries of the compiled step, activations first of all, as the
compiler says. ConvS5 computes all frames at once, and ConvLSTM one after
another.

With `--target=h200x1` nothing is run. The step of the large model, 16 videos,
is compiled for that device, which need not be there (see `docs/plans.md`), and
the seconds are two estimates: if all overlaps, and if nothing does. A loop of
ConvLSTM also pays for the start of its kernels, frame by frame, which the
estimates leave out.
"""

import functools
import os
import pathlib
import subprocess
import sys

from absl import flags
from experiments.benchmarks import timing
from experiments.cli import drivers
from experiments.configs.video import moving_mnist
import jax
import jax.numpy as jnp
import numpy as np
from rnnzoo import errors
from rnnzoo import planning
from rnnzoo import tasks
from rnnzoo.planning import targets as targets_lib
from rnnzoo.training import program as program_lib
from rnnzoo.training import sharding
from rnnzoo.training import state as state_lib
from rnnzoo.training.processes import host

_LAYERS = flags.DEFINE_list('layers', ['conv_s5', 'conv_lstm'], 'The layers.')
_FRAMES = flags.DEFINE_list(
    'frames', ['20', '80', '320'], 'The numbers of frames, even ones.'
)
_REPEATS = flags.DEFINE_integer(
    'repeats', 5, 'How often a step is timed.', lower_bound=1
)
_TARGET = flags.DEFINE_string(
    'target', '', 'Plan for these devices, as for --plan; measure if empty.'
)
_OUT = drivers.define_path(
    'out', None,
    'The JSON file of the results; by default moving_mnist_cpu.json or '
    'moving_mnist_TARGET.json in experiments/results.',
)

_RESULTS = pathlib.Path(__file__).parents[1] / 'results'
_INSIDE = 'RNNZOO_PLANNING'  # Set in the process that compiles.
_COLUMNS = {
    'layer': '{layer}', 'frames': '{frames}', 'ms a step': '{ms:.0f}',
    'CPU ms': '{cpu_ms:.0f}', 'temporaries MiB': '{mib:.0f}',
}
_PLANNED = {
    'layer': '{layer}', 'frames': '{frames}', 'ms at best': '{best_ms}',
    'ms at worst': '{worst_ms}', 'temporaries MiB': '{mib}',
    'verdict': '{verdict}',
}


def main(argv):
  drivers.check_usage(argv)
  frames = lengths(_FRAMES.value)
  if _TARGET.value and _INSIDE not in os.environ:
    target = targets_lib.parse(_TARGET.value)
    done = subprocess.run(
        [sys.executable, '-m', 'experiments.benchmarks.video', *sys.argv[1:]],
        env={**os.environ, **targets_lib.environment(target), _INSIDE: '1'},
    )
    if done.returncode:
      raise errors.UserError(f'The plans for {target.name} failed, see above.')
    return
  if _TARGET.value:
    timing.never_cache_compilation()
    target = targets_lib.parse(_TARGET.value)
    rows = [
        planned(layer, count, target)
        for layer in _LAYERS.value for count in frames
    ]
    timing.print_table(rows, _PLANNED)
  else:
    host.pin_malloc()
    host.enable_compilation_cache()
    rows = measured(_LAYERS.value, frames)
    timing.print_table(rows, _COLUMNS)
  name = f'moving_mnist_{_TARGET.value or "cpu"}.json'
  timing.save(
      dict(timing.environment(), rows=rows), _OUT.value or _RESULTS / name
  )


def lengths(texts: list[str]) -> list[int]:
  """Returns the numbers of frames, or raises `UserValueError`."""
  if not all(text.isdigit() and int(text) % 2 == 0 != int(text)
             for text in texts):
    raise errors.UserValueError(
        f'--frames must be even numbers, got {",".join(texts)}.'
    )
  return [int(text) for text in texts]


def step_of(layer: str, frames: int, small: bool):
  """Returns the config, the task and the shapes of a batch of a step."""
  config = moving_mnist.get_config(layer + '_small' * small)
  size = config.data.size
  config.model.image_shape = (size, size, 1)
  if small:
    config.batch_size = 1
  shape = config.batch_size, frames // 2, size, size, 1
  batch = dict.fromkeys(
      ('inputs', 'targets'), jax.ShapeDtypeStruct(shape, jnp.uint8)
  )
  return config, tasks.find('video').from_config(config), batch


def measured(names: list[str], frames: list[int]) -> list[dict]:
  """Compiles the steps and times them; returns a row of each."""
  calls, rows = {}, []
  for name in names:
    state = None  # The same for all lengths.
    for count in frames:
      config, task, shapes = step_of(name, count, small=True)
      program = program_lib.make_program(
          task, config, sharding.make_mesh(config.mesh, jax.devices()[:1])
      )
      if state is None:
        state = jax.jit(program.make_state, out_shardings=program.shardings)()
      rng = np.random.default_rng(0)
      batch = {
          k: rng.integers(0, 256, u.shape, np.uint8) for k, u in shapes.items()
      }
      # Jitted anew: the step of the program gives the old state away.
      step = jax.jit(program.train_step.__wrapped__)
      step = step.lower(state, batch).compile()
      calls[name, count] = functools.partial(step, state, batch)
      rows.append(dict(
          layer=name, frames=count, rows=1, size=config.data.size,
          parameters=state_lib.count_parameters(state['params']),
          mib=timing.temporary_bytes(step) / 2**20,
      ))
      print(f'{name}, {count} frames: compiled', flush=True)
  durations = timing.interleaved_medians(calls, _REPEATS.value)
  return [
      dict(row, ms=1e3 * taken.seconds, cpu_ms=1e3 * taken.cpu_seconds)
      for row, taken in zip(rows, durations.values(), strict=True)
  ]


def planned(name: str, frames: int, target: targets_lib.Target) -> dict:
  """Plans a step; returns its row."""
  config, task, shapes = step_of(name, frames, small=False)
  result = planning.plan(task, config, target, shapes)
  found = result.get('roofline', {})  # There is none if it does not fit.
  rounded = lambda u, scale: None if u is None else round(u * scale, 2)
  return dict(
      layer=name, frames=frames, rows=config.batch_size, size=config.data.size,
      mib=rounded(result['memory'].get('temporaries'), 2**-20),
      best_ms=rounded(found.get('best'), 1e3),
      worst_ms=rounded(found.get('worst'), 1e3),
      **{
          name: result[name] for name in (
              'target', 'verdict', 'parameters', 'dtype', 'flops', 'memory',
              'compiler', 'seconds',
          )
      },
  )


if __name__ == '__main__':
  drivers.run(main)
