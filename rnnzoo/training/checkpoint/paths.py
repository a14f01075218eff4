"""Names in a checkpoint become paths: none of them may lead out of it."""

import re

from rnnzoo.training import records


def leads_out(name: str) -> bool:
  """Returns whether `name` as a path may lie outside the checkpoint."""
  parts = re.split(r'[/\\]', name)
  return (
      name.startswith(('/', '\\', '~'))
      or '://' in name
      or '\0' in name
      or not {'.', '..'}.isdisjoint(parts)
  )


def check_metadata(directory) -> None:
  """Raises `ValueError` if Orbax's metadata has a name that leads elsewhere.

  Its names of arrays become paths. The names in the binary `manifest.ocdbt` and
  its nodes belong to TensorStore, which itself refuses `..` and absolute ones.

  Args:
    directory: The directory of the arrays, an `etils.epath.Path`.
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
