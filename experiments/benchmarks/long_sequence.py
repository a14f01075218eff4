"""Trains on one sequence of a million tokens that eight devices share.

  python -m experiments.benchmarks.long_sequence

No device ever holds the sequence: each has a segment of it, and sends the
others a few numbers per channel. The loss must be that of one device with the
whole sequence. The devices are virtual ones of the CPU, so this shows that the
numbers are right, and not how fast real devices are.
"""

import os
import sys
import time

from absl import flags
from experiments.benchmarks import timing
from experiments.cli import drivers
import jax
from ml_collections import ConfigDict
import numpy as np
from rnnzoo import models
from rnnzoo import tasks
from rnnzoo.training import optimizers
from rnnzoo.training import sharding
from rnnzoo.training import step as step_lib
from rnnzoo.training.processes import host

_DEVICES = flags.DEFINE_integer(
    'devices', 8, 'The number of virtual devices.', lower_bound=1
)
_LENGTH = flags.DEFINE_integer(
    'length', 2**20, 'The number of tokens in the sequence.', lower_bound=1
)
_WHOLE_LENGTH = flags.DEFINE_integer(
    'whole_length', None,
    'The number of tokens at which the loss is compared with that of one '
    'device; the default is --length.', lower_bound=1,
)
_LAYER = flags.DEFINE_string(
    'layer', 'min_gru', 'The layer, as in config.model.layer.'
)
_NUM_LAYERS = flags.DEFINE_integer(
    'num_layers', 2, 'The number of blocks.', lower_bound=1
)
_FEATURES = flags.DEFINE_integer(
    'features', 32, 'The number of features of the model.', lower_bound=1
)
_STEPS = flags.DEFINE_integer(
    'steps', 2, 'The number of training steps.', lower_bound=1
)
_OUT = drivers.define_path(
    'out', 'experiments/results/long_sequence_cpu.json',
    'The JSON file of the results.',
)

_VOCAB_SIZE = 64
_OPTIMIZER = ConfigDict(dict(
    name='adamw', start_learning_rate=0.0, learning_rate=1e-2,
    end_learning_rate=1e-3, warmup_steps=0, groups={},
    schedule='constant', weight_decay=0.1, recurrent_rate_factor=1.0, clip=1.0,
    options={}, freeze=(),
))
_COLUMNS = {
    'devices': '{devices}',
    'tokens': '{length}',
    'losses': '{shown_losses}',
    's a step': '{seconds:.1f}',
    'compile s': '{compile_seconds:.1f}',
    'MB a device': '{megabytes_per_device:.0f}',
    'peak MB': '{peak_megabytes:.0f}',
}


def use_virtual_devices(count: int) -> None:
  """Splits the CPU; to be called before JAX uses it.

  Where two cores play eight devices, some wait long for the others. By default
  XLA takes this for a deadlock after 40 seconds.
  """
  jax.config.update('jax_platforms', 'cpu')
  os.environ['XLA_FLAGS'] = ' '.join((
      f'--xla_force_host_platform_device_count={count}',
      '--xla_cpu_collective_call_warn_stuck_timeout_seconds=600',
      '--xla_cpu_collective_call_terminate_timeout_seconds=3600',
      '--xla_cpu_collective_timeout_seconds=3600',
      os.environ.get('XLA_FLAGS', ''),  # The caller's word is the last.
  ))


def tokens(length):
  """Returns a sequence in which most tokens follow from the one before."""
  rng = np.random.default_rng(0)
  steps = rng.choice([1, 5, 11], size=length + 1, p=[0.6, 0.3, 0.1])
  return (np.cumsum(steps) % _VOCAB_SIZE).astype(np.int32)[None]


def measure(length, devices):
  """Trains on one sequence that devices share; returns a row."""
  config = models.ModelConfig(
      layer=_LAYER.value, num_layers=_NUM_LAYERS.value,
      features=_FEATURES.value, vocab_size=_VOCAB_SIZE, conv_kernel=4,
      mlp='none', remat='full',
  )
  task = tasks.LanguageModelling(config)
  functional = task.functional
  tx = optimizers.make_optimizer(
      _OPTIMIZER, _STEPS.value,
      axes=functional.axes, recurrent=functional.recurrent,
  )
  mesh = sharding.make_mesh(
      dict(data=1, fsdp=1, model=1, sequence=devices), jax.devices()[:devices]
  )
  train_step = step_lib.make_train_step(
      task.loss_fn(train=True), tx, seed=0
  )
  text = tokens(length)
  with jax.set_mesh(mesh):
    make = lambda: step_lib.initial_state(functional, tx, 0)
    shardings = sharding.state_shardings(
        mesh, jax.eval_shape(make), tx, functional.axes
    )
    state = jax.jit(make, out_shardings=shardings)()
    batch = dict(inputs=text[:, :-1], targets=text[:, 1:])
    batch = sharding.global_batch(mesh, batch)
    start = time.monotonic()
    program = jax.jit(
        train_step, donate_argnums=0, out_shardings=(shardings, None)
    ).lower(state, batch).compile()
    compiled = time.monotonic()
    history = []
    for _ in range(_STEPS.value):
      state, metrics = program(state, batch)
      history.append(float(metrics['loss']))
    seconds = (time.monotonic() - compiled) / _STEPS.value
  memory = program.memory_analysis()
  sizes = memory.temp_size_in_bytes, memory.argument_size_in_bytes
  return dict(
      devices=devices,
      length=length,
      losses=history,
      seconds=seconds,
      tokens_per_second=length / seconds,
      compile_seconds=compiled - start,
      megabytes_per_device=sum(sizes) / 2**20,
      peak_megabytes=host.peak_memory() / 2**20,
  )


def main(argv):
  drivers.check_usage(argv)
  use_virtual_devices(_DEVICES.value)
  whole = _WHOLE_LENGTH.value or _LENGTH.value
  # The run with the least memory comes first, because the peak never falls.
  rows = [measure(_LENGTH.value, _DEVICES.value)]
  if whole != _LENGTH.value:
    rows.append(measure(whole, _DEVICES.value))
  rows.append(measure(whole, 1))
  split, alone = rows[-2:]
  difference = max(
      abs(a - b) / abs(b) for a, b in zip(split['losses'], alone['losses'])
  )
  timing.print_table(
      [
          dict(row, shown_losses=' '.join(f'{u:.6f}' for u in row['losses']))
          for row in rows
      ],
      _COLUMNS,
  )
  print(f'The losses differ by {difference:.1e} of their size.')
  record = dict(
      timing.environment(),
      layer=_LAYER.value,
      num_layers=_NUM_LAYERS.value,
      features=_FEATURES.value,
      vocab_size=_VOCAB_SIZE,
      relative_difference=difference,
      rows=rows,
  )
  timing.save(record, _OUT.value)
  if not difference < 1e-5:
    sys.exit('That is too much.')


if __name__ == '__main__':
  drivers.run(main)
