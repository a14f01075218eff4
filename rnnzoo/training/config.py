"""Every field of a training run: its default, its limits, its meaning."""

from collections.abc import Mapping
import copy
import functools
from typing import Any

from ml_collections import ConfigDict
from rnnzoo import errors
from rnnzoo import fields
from rnnzoo.training import optimizers
from rnnzoo.training import recovery

_count = functools.partial(fields.Field, int, low=1)
_axis = functools.partial(fields.Field, int, low=-1)  # See `sharding`, too.

# All fields but those of the optimiser, the model and the data set.
FIELDS = {
    'seed': fields.Field(
        # Both NumPy and JAX take these seeds.
        int, low=0, high=2**32 - 1, default=0,
        help='The seed of the initial parameters, the data and dropout.',
    ),
    'total_steps': _count(default=1000, help='The number of training steps.'),
    'batch_size': _count(
        default=64, help='The rows of a batch, over all devices and processes.'
    ),
    'log_every': _count(default=10, help='The steps between two log lines.'),
    'eval_every': _count(
        default=100, help='The steps between two evaluations.'
    ),
    'save_every': _count(
        default=100, help='The steps between two checkpoints.'
    ),
    'keep': _count(
        default=3,
        help='The number of latest checkpoints to keep, beside the best one.',
    ),
    'eval_splits': fields.Field(
        tuple, default=('validation',),
        help='The splits to evaluate. The first one chooses the best '
        'checkpoint.',
    ),
    'stop_at': fields.Field(
        dict, default={},
        help='End the run once each of eval_splits reaches all of these '
        "metrics, such as {'accuracy': 0.99}. A loss or an error must fall to "
        'its value.',
    ),
    'patience': fields.Field(
        int, low=0, default=0,
        help='End the run once this number of evaluations in a row were no '
        'better than the best one before, by the metric that chooses the best '
        'checkpoint. 0 means never.',
    ),
    'accumulate_steps': _count(
        default=1,
        help='The number of parts of a batch that are run one after another. '
        'More parts need less memory.',
    ),
    'steps_per_dispatch': _count(
        default=1,
        help='The number of steps in one compiled program. More steps make '
        'tiny models faster.',
    ),
    'loss_chunk': fields.Field(
        int, low=-1, default=-1,
        help='The number of tokens whose logits a device holds at once '
        '(language models). 0 means all tokens; -1 means all if their logits '
        'take at most 256 MiB, and otherwise as many as take that much.',
    ),
    'stateful': fields.Field(
        bool, default=False,
        help='Carry the state from one window of the text to the next; needs '
        'data.contiguous.',
    ),
    'ema_decay': fields.Field(
        float, low=0, high=1, below_high=True, default=0.0,
        help='If positive, evaluate a moving average of the parameters with '
        'this decay.',
    ),
    'init_from': fields.Field(
        str, default='',
        help='Start from the best parameters of the run in this workdir, or '
        'from those of a folder in the format of Hugging Face, whose config is '
        'then that of the model.',
    ),
    'on_nan': fields.Field(
        str, choices=recovery.POLICIES, default='stop',
        help='What to do when a loss or a gradient is not finite: stop; skip '
        'the update; or rollback to the last checkpoint and go on after the '
        'bad batch.',
    ),
    'nan_limit': _count(
        default=10,
        help='End the run after this number of skipped updates in a row, or '
        'of rollbacks to one step.',
    ),
    'nan_rate_factor': fields.Field(
        float, low=0, high=1, above_low=True, default=0.5,
        help='Multiply the learning rate by this at each rollback.',
    ),
    'profile_steps': fields.Field(
        str, default='',
        help='Write a trace of these steps, such as 10:15, for a profiler.',
    ),
    'tensorboard': fields.Field(
        bool, default=True,
        help='Write event files for TensorBoard too, if tensorboardX is '
        'installed.',
    ),
    'sample_characters': fields.Field(
        int, low=0, high=10**7, default=0,
        help='The length of the text that the model writes to sample.txt at '
        'the end (language models of text). 0 means none.',
    ),
    'must_beat_gzip': fields.Field(
        bool, default=False,
        help='Fail unless the test loss is below that of gzip.',
    ),
    'mesh.data': _axis(
        default=-1,
        help='The number of devices that share the rows of a batch. -1 means '
        'all devices that are left.',
    ),
    'mesh.fsdp': _axis(
        default=1,
        help='The number of devices that share the rows of a batch and also '
        'the parameters.',
    ),
    'mesh.model': _axis(
        default=1, help='The number of devices that share the features.'
    ),
    'mesh.sequence': _axis(
        default=1, help='The number of devices that share the time axis.'
    ),
    'whole_axes': fields.Field(
        tuple, default=(),
        help="Axes of parameters, such as 'vocab', that every device holds "
        'whole.',
    ),
}


def defaults() -> dict[str, Any]:
  """Returns all fields but those of the model and of the data set."""
  values: dict[str, Any] = {}
  for name, field in FIELDS.items():
    part, _, last = name.rpartition('.')
    place = values.setdefault(part, {}) if part else values
    place[last] = copy.deepcopy(field.default)
  return values | dict(optimizer=optimizers.defaults())


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
  if len(dataset.buckets) > 1 and config.steps_per_dispatch > 1:
    raise errors.UserValueError(
        f'steps_per_dispatch must be 1, got {config.steps_per_dispatch}: the '
        'batches of one dispatch must have one length, and those of '
        f'data.buckets have {len(dataset.buckets)}.'
    )
  if config.stateful and not dataset.contiguous:
    raise errors.UserValueError('stateful needs data.contiguous=True.')
