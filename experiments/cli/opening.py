"""The flags that say which model a command works with: a run's, or a folder's.

`generate` and `evaluate` take both.
"""

from typing import NamedTuple

from absl import app
from absl import flags
from experiments.cli import config_flag
from experiments.cli import drivers
from experiments.cli import sampling
from rnnzoo import convert
from rnnzoo import errors
from rnnzoo import fields
from rnnzoo import restoring

# A flag that is defined here belongs to the module that calls `define`.
flags.disclaim_key_flags()


class Opened(NamedTuple):
  """A model and what a text needs.

  Attributes:
    run: The model, its vocabulary and where it comes from.
    stop: The tokens that end a text.
    template: How a conversation becomes a text, or `None`.
  """

  run: restoring.Run
  stop: tuple[int, ...] = ()
  template: convert.ChatTemplate | None = None


class Flags:
  """The flags `--workdir`, `--pretrained`, `--dtype`, `--context`, `--layers`.

  Attributes:
    workdir: The flag of that name; the others likewise.
  """

  def __init__(self):
    self.workdir = drivers.define_path(
        'workdir', None, 'The directory of the run.'
    )
    self.pretrained = drivers.define_path(
        'pretrained', None,
        'A folder of pretrained weights, in place of --workdir.',
    )
    self.dtype = flags.DEFINE_enum(
        'dtype', None, ['float32', 'bfloat16'],
        'The dtype of a pretrained model; by default that of its file.',
    )
    self.context = flags.DEFINE_integer(
        'context', None,
        'How many tokens the attention of a pretrained model keeps; by default '
        'as many as its file says, and at most 4096.',
        lower_bound=1, upper_bound=fields.MAX_INT,
    )
    self.layers = drivers.define_layers()

  def check_usage(self):
    """Raises `app.UsageError` unless there is one model."""
    if bool(self.workdir.value) == bool(self.pretrained.value):
      raise app.UsageError('One of --workdir and --pretrained is required.')

  def open(self) -> Opened:
    """Loads the model.

    Raises:
      UserError: If it cannot be loaded, or has no text.
    """
    if self.pretrained.value:
      return open_pretrained(
          self.pretrained.value, self.dtype.value, self.context.value
      )
    exports = config_flag.exports_of(self.layers.value)
    run = restoring.restore_run(
        self.workdir.value, layers=exports.layers, tasks=exports.tasks
    )
    sampling.check_text(run)
    return Opened(run)


def open_pretrained(
    path, dtype: str | None = None, context: int | None = None
) -> Opened:
  """Returns a pretrained model as a run.

  Raises:
    UserError: If it cannot be loaded, or has no tokenizer.
  """
  found = convert.open_pretrained(path, dtype=dtype, context=context)
  if found.vocabulary is None:
    raise errors.UserFileNotFoundError(
        f'{path} has no tokenizer.json, so text has no meaning for this model. '
        'In Python, rnnzoo.convert.load_pretrained and rnnzoo.generation take '
        'token ids.'
    )
  config = dict(data=dict(name=str(path)))
  run = restoring.Run(found.model, found.vocabulary, config, step=0)
  return Opened(run, found.stop_tokens, convert.chat_template(path))
