"""Files that are never seen half written."""

import pathlib


def write_text(path: pathlib.Path, text: str):
  """Writes a file such that at no time there is half of it."""
  new = path.with_name(path.name + '.new')
  try:
    new.write_text(text)
    new.replace(path)
  except OSError:
    new.unlink(missing_ok=True)
    raise
