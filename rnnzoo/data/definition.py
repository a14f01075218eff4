"""`Definition`: what a name in `data.name` stands for."""

from collections.abc import Callable, Mapping
import dataclasses
import os
import pathlib
import types
from typing import Any

from rnnzoo import errors
from rnnzoo import fields as fields_lib
from rnnzoo.data import pipeline
from rnnzoo.data import settings

# Every data set has these fields.
COMMON = dict(
    name=fields_lib.Field(str, default='', help='The name of the data set.'),
    data_dir=fields_lib.Field(
        str, default='',
        help='The directory of prepared data sets. If empty, it is '
        "$RNNZOO_DATA_DIR or else rnnzoo in the user's cache directory.",
    ),
    allow_changed=fields_lib.Field(
        bool, default=False,
        help='Resume a run although its data has changed.',
    ),
)


@dataclasses.dataclass(frozen=True)
class Definition:
  """A data set before it is loaded: its fields, its kind of task, its loader.

  Attributes:
    task: The name of its kind of task, a key of `rnnzoo.tasks.TASKS`.
    fields: The fields of `config.data` that belong to this data set, each with
      a default. The fields in `COMMON` belong to all data sets.
    load: Called with `(config, shard, seed)`, returns the `Dataset`. `config`
      has one checked attribute for each field, defaults included.
    write_fixture: Called with `(directory, config)`, writes small generated
      files in the exact layout of the real ones, and calls
      `settings.mark_fixture`. With `data_dir=directory`, `load` then reads
      these files. `None` where no files are needed.
  """

  task: str
  fields: Mapping[str, fields_lib.Field]
  load: Callable[[Any, pipeline.Shard, int], pipeline.Dataset]
  write_fixture: Callable[[pathlib.Path, Any], None] | None = None

  def __post_init__(self):
    for name, field in self.fields.items():
      if not isinstance(field, fields_lib.Field):
        raise errors.UserValueError(
            f'`fields` of a Definition must hold rnnzoo.fields.Field by name, '
            f'got {fields_lib.shown(field)} at {name!r}.'
        )

  @property
  def all_fields(self) -> dict[str, fields_lib.Field]:
    """The fields of this data set and those that all have."""
    return {**COMMON, **self.fields}

  def defaults(self) -> dict[str, Any]:
    """Returns the default of each field of this data set."""
    return {name: field.default for name, field in self.fields.items()}

  def checked(self, name: str, config: Any) -> types.SimpleNamespace:
    """Returns the values of all fields, defaults filled in.

    Args:
      name: The name of the data set, for the messages.
      config: A mapping or an object. A value of `None` means the default.

    Raises:
      UserValueError: If a value is wrong, or a field is unknown here.
    """
    known = self.all_fields
    for field in settings.names(config):
      if field not in known:
        raise errors.UserValueError(
            f'The data set {name} has no field data.{field}; it has '
            f'{", ".join(known)}.' + errors.suggest(str(field), known)
        )
    values = {}
    for field, description in known.items():
      value = settings.field(config, field)
      if isinstance(value, os.PathLike):
        value = os.fspath(value)
      if value is None:
        value = description.default
      else:
        fields_lib.check(f'data.{field}', value, description)
      values[field] = value
    return types.SimpleNamespace(**values)
