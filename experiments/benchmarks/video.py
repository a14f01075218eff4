r"""What a training step on videos takes, against the number of frames.

  python -m experiments.benchmarks.video

The model is that of `experiments/configs/video/moving_mnist.py`, small, with
ConvS5 and with ConvLSTM; a batch is one video. Half of its frames are seen. The
bytes are the temporaries of the compiled step, activations first of all, as the
compiler says. ConvS5 computes all frames at once, and ConvLSTM one after
another.
"""

import functools
import pathlib

from absl import flags
from experiments.benchmarks import timing
from experiments.cli import drivers
from experiments.configs.video import moving_mnist
import jax
import jax.numpy as jnp
import numpy as np
from rnnzoo import errors
from rnnzoo import tasks
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
_OUT = drivers.define_path(
    'out', None,
    'The JSON file of the results; by default moving_mnist_cpu.json in '
    'experiments/results.',
)

_RESULTS = pathlib.Path(__file__).parents[1] / 'results'
_COLUMNS = {
    'layer': '{layer}', 'frames': '{frames}', 'ms a step': '{ms:.0f}',
    'CPU ms': '{cpu_ms:.0f}', 'temporaries MiB': '{mib:.0f}',
}


def main(argv):
  drivers.check_usage(argv)
  frames = lengths(_FRAMES.value)
  host.pin_malloc()
  host.enable_compilation_cache()
  rows = measured(_LAYERS.value, frames)
  timing.print_table(rows, _COLUMNS)
  timing.save(
      dict(timing.environment(), rows=rows),
      _OUT.value or _RESULTS / 'moving_mnist_cpu.json',
  )


def lengths(texts: list[str]) -> list[int]:
  """Returns the numbers of frames, or raises `UserValueError`."""
  if not all(text.isdigit() and int(text) % 2 == 0 != int(text)
             for text in texts):
    raise errors.UserValueError(
        f'--frames must be even numbers, got {",".join(texts)}.'
    )
  return [int(text) for text in texts]


def step_of(layer: str, frames: int):
  """Returns the config, the task and the shapes of a batch of a step."""
  config = moving_mnist.get_config(f'{layer}_small')
  size = config.data.size
  config.model.image_shape = (size, size, 1)
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
      config, task, shapes = step_of(name, count)
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


if __name__ == '__main__':
  drivers.run(main)
