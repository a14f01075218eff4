"""Functions as attributes of a layer that can be pickled."""

import importlib
import sys
from typing import NamedTuple


class Named(NamedTuple):
  """The module and the name of a function."""

  module: str
  name: str

  def find(self):
    return getattr(importlib.import_module(self.module), self.name)


def by_name(value):
  """Replaces a function by its name; returns any other value unchanged."""
  module = getattr(value, '__module__', None)
  name = getattr(value, '__qualname__', None)
  if module is None or name is None or isinstance(value, type):
    return value
  found = getattr(sys.modules.get(module), name, None)
  return Named(module, name) if found is value else value
