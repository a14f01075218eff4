"""Names in a checkpoint, which become paths: none may lead out of it."""

import re

from rnnzoo.training import records


def leads_out(name: str) -> bool:
  """Whether `name`, taken for a path, may lie outside of where it is read."""
  parts = re.split(r'[/\\]', name)
  return (
      name.startswith(('/', '\\', '~'))
      or '://' in name
      or '\0' in name
      or not {'.', '..'}.isdisjoint(parts)
  )


def check_metadata(directory) -> None:
  """Raises `ValueError` if what Orbax notes of arrays names other places.

  Its names of arrays become paths. Those in the binary `manifest.ocdbt` and its
  nodes are TensorStore's, which refuses `..` and absolute ones itself.

  Args:
    directory: Of the arrays, an `etils.epath.Path`.
  """
  files = [directory / '_METADATA', *directory.glob('array_metadatas/*')]
  for path in files:
    if not path.exists():
      continue
    for text in _strings(records.parse(path.read_bytes())):
      if leads_out(text):
        raise ValueError(f'{path.name} names {text!r}, which lies elsewhere')


def _strings(tree):
  if isinstance(tree, str):
    yield tree
  elif isinstance(tree, list):
    for item in tree:
      yield from _strings(item)
  elif isinstance(tree, dict):
    for key, item in tree.items():
      yield key
      yield from _strings(item)
