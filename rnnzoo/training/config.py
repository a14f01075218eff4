"""Every field of a training run, with its default and what it may be."""

from collections.abc import Mapping
import functools
from typing import Any

from ml_collections import ConfigDict
from rnnzoo import errors
from rnnzoo import fields
from rnnzoo.training import optimizers
from rnnzoo.training import recovery


def defaults() -> dict[str, Any]:
  """Returns all fields but those of the model and of the data set."""
  return dict(
      seed=0,
      total_steps=1000,
      batch_size=64,  # Of all devices and processes together.
      log_every=10,
      eval_every=100,
      save_every=100,
      keep=3,  # The latest checkpoints to keep, in addition to the best one.
      eval_splits=('validation',),  # The first one chooses the best checkpoint.
      # End the run once each eval split reaches all of these metrics, such as
      # dict(accuracy=0.99). A loss or an error reaches what it falls to.
      stop_at={},
      accumulate_steps=1,  # Split each batch into parts, run one by one.
      steps_per_dispatch=1,  # Steps in one compiled program: for tiny models.
      # Language models only: tokens whose logits a device holds at once. 0: all
      # of its tokens. -1: all if their logits take up to 256 MiB, else as many
      # as take that much.
      loss_chunk=-1,
      stateful=False,  # Carry the state across windows (data.contiguous).
      ema_decay=0.0,  # If positive, evaluate a moving average of parameters.
      init_from='',  # A workdir whose best parameters to start from.
      # At a loss or gradient that is not finite: 'stop'; 'skip' the update; or
      # 'rollback' to the last checkpoint and go on after the bad batch.
      on_nan='stop',
      nan_limit=10,  # Skips in a row, or rollbacks to one step, before the end.
      nan_rate_factor=0.5,  # Multiplies the learning rate at each rollback.
      profile_steps='',  # Such as '10:15': a trace for a profiler.
      tensorboard=True,  # Event files too, where tensorboardX is installed.
      sample_characters=0,  # Text to generate at the end, into sample.txt.
      must_beat_gzip=False,  # Fail unless the test loss beats gzip.
      mesh=dict(data=-1, fsdp=1, model=1, sequence=1),
      # Axes of parameters, such as 'vocab', that are whole on every device.
      whole_axes=(),
      optimizer=dict(
          name='adamw',
          learning_rate=1e-3,
          end_learning_rate=1e-4,
          warmup_steps=100,
          schedule='cosine',
          weight_decay=0.1,  # Not on vectors and recurrent parameters.
          recurrent_rate_factor=1.0,
          clip=1.0,
          options=dict(b2=0.99),  # Keyword arguments of the optax function.
          freeze=(),  # Groups of parameters to leave alone, such as 'embed'.
      ),
  )


_COUNT = fields.Field(int, low=1)
_BOOL = fields.Field(bool)
_AXIS = fields.Field(int, low=-1)  # `sharding.make_mesh` checks more.
# Without those of the optimiser, which are in optimizers.py.
FIELDS = {
    # Both NumPy and JAX take these seeds.
    'seed': fields.Field(int, low=0, high=2**32 - 1),
    'total_steps': _COUNT,
    'batch_size': _COUNT,
    'log_every': _COUNT,
    'eval_every': _COUNT,
    'save_every': _COUNT,
    'keep': _COUNT,
    'eval_splits': fields.Field(tuple),
    'stop_at': fields.Field(dict),
    'accumulate_steps': _COUNT,
    'steps_per_dispatch': _COUNT,
    'loss_chunk': fields.Field(int, low=-1),
    'stateful': _BOOL,
    'ema_decay': fields.Field(float, low=0, high=1, below_high=True),
    'init_from': fields.Field(str),
    'on_nan': fields.Field(str, choices=recovery.POLICIES),
    'nan_limit': _COUNT,
    'nan_rate_factor': fields.Field(float, low=0, high=1, above_low=True),
    'profile_steps': fields.Field(str),
    'tensorboard': _BOOL,
    'sample_characters': fields.Field(int, low=0, high=10**7),
    'must_beat_gzip': _BOOL,
    'mesh.data': _AXIS,
    'mesh.fsdp': _AXIS,
    'mesh.model': _AXIS,
    'mesh.sequence': _AXIS,
    'whole_axes': fields.Field(tuple),
}


def make(settings: Mapping[str, Any]) -> ConfigDict:
  """Returns the defaults with some fields changed.

  >>> make(dict(total_steps=5, optimizer=dict(clip=0.5))).optimizer.clip
  0.5

  Args:
    settings: Values by field; `mesh` and `optimizer` may be given in part.

  Raises:
    UserValueError: If there is no such field, or a value is wrong.
  """
  config = defaults()
  fields.check_names(settings, config)
  for name, value in settings.items():
    if name in ('mesh', 'optimizer'):
      fields.check(name, value, fields.Field(dict))
      fields.check_names(value, config[name], f'{name}.')
      config[name] |= value
    else:
      config[name] = value
  config = ConfigDict(config)
  check(config)
  return config


def check(config):
  """Checks the values that `FIELDS` describes, and those of the optimiser.

  Args:
    config: A config that has all of these fields.

  Raises:
    UserValueError: If a value is wrong, or some values contradict each other.
  """
  for name, field in FIELDS.items():
    value = functools.reduce(getattr, name.split('.'), config)
    fields.check(name, value, field)
  optimizers.check(config.optimizer)
  for metric, value in config.stop_at.items():
    fields.check(f'stop_at.{metric}', value, fields.Field(float))
  if not config.eval_splits:
    raise errors.UserValueError(
        'eval_splits must name at least one split, such as validation: the '
        'first one chooses the best checkpoint.'
    )
  for name in ('total_steps', 'log_every', 'eval_every', 'save_every'):
    if config[name] % config.steps_per_dispatch:
      raise errors.UserValueError(
          f'{name} {config[name]} must be a multiple of steps_per_dispatch '
          f'{config.steps_per_dispatch}.'
      )
  profile_window(config.profile_steps)


def profile_window(text: str) -> tuple[int, int] | None:
  """Parses `profile_steps`, such as '10:15': the first and the last step.

  Raises:
    UserValueError: If it is something else.
  """
  if not text:
    return None
  first, _, last = text.partition(':')
  numbers = first.isdecimal() and last.isdecimal()
  if not (numbers and 0 < int(first) <= int(last)):
    raise errors.UserValueError(
        f"profile_steps must be two steps, such as '10:15', got {text!r}."
    )
  return int(first), int(last)


def check_fits(config, dataset):
  """Raises `UserValueError` if a config does not go with a data set."""
  for split in config.eval_splits:
    if split not in dataset.eval_splits:
      raise errors.UserValueError(
          f'eval_splits: {dataset.name} has no split {split!r}, only '
          f'{", ".join(dataset.eval_splits)}.'
      )
  if config.stateful and not dataset.contiguous:
    raise errors.UserValueError('stateful needs data.contiguous=True.')
