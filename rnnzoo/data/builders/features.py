"""Which features a data set on disk may have."""

import json
import pathlib

_KNOWN = 'tensorflow_datasets.core.features.'


def check(directory: pathlib.Path) -> None:
  """Raises `ValueError` if a data set names classes outside of TFDS.

  TFDS imports the module of every class that `features.json` names. So a
  foreign data set could run any code.

  Args:
    directory: The directory of one version of a data set.
  """
  names = _class_names(json.loads((directory / 'features.json').read_text()))
  for name in names:
    if not str(name).startswith(_KNOWN):
      raise ValueError(f'features.json names {name!r}, no class of TFDS')


def _class_names(tree):
  """All that TFDS would take for the name of a class, in any depth."""
  if isinstance(tree, list):
    return [name for item in tree for name in _class_names(item)]
  if not isinstance(tree, dict):
    return []
  # Its older form is {'type': name, 'content': ...}.
  own = [tree[key] for key in ('pythonClassName', 'type') if key in tree]
  return own + _class_names(list(tree.values()))
