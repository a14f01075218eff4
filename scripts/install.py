"""Installs requirements into the environment that runs it.

  python scripts/install.py --editable .[test]

All arguments are for pip. The work is done by uv, several times quicker, where
uv can be had and pip's configuration says nothing that uv would not follow; by
pip otherwise. Needs nothing but the standard library.
"""

import ast
from collections.abc import Iterable
import os
import pathlib
import subprocess
import sys

# uv does not read pip's configuration: these settings are handed over ...
_SAME_IN_UV = {
    'cert': 'SSL_CERT_FILE',
    'constraint': 'UV_CONSTRAINT',
    'extra-index-url': 'UV_INDEX',
    'find-links': 'UV_FIND_LINKS',
    'index-url': 'UV_DEFAULT_INDEX',
}
# ... and these are about pip itself. With any other, pip has to do it.
_PIP_ONLY = frozenset((
    'break-system-packages', 'cache-dir', 'default-timeout',
    'disable-pip-version-check', 'no-cache-dir', 'no-color', 'no-input',
    'no-warn-script-location', 'progress-bar', 'quiet', 'require-virtualenv',
    'retries', 'root-user-action', 'timeout', 'verbose',
))


def uv_environment(lines: Iterable[str]) -> dict[str, str] | None:
  """Translates the output of `pip config list` for uv.

  >>> uv_environment(["global.timeout='60'", "global.find-links='a b'"])
  {'UV_FIND_LINKS': 'a,b'}

  Args:
    lines: Such as `global.index-url='https://...'`; a later one wins, but
      nothing wins over the environment's (`:env:.`).

  Returns:
    Environment variables, or `None` if there is a setting that uv lacks.
  """
  settings = {}
  # Sorted, the environment's come first: take them last.
  for line in sorted(lines, key=lambda line: line.startswith(':env:')):
    name, separator, value = line.strip().partition('=')
    if separator:
      settings[name.rpartition('.')[2]] = str(ast.literal_eval(value))
  if not set(settings) <= set(_SAME_IN_UV) | _PIP_ONLY:
    return None
  environment = {
      _SAME_IN_UV[name]: (',' if name == 'find-links' else ' ').join(
          value.split()
      )
      for name, value in settings.items()
      if name in _SAME_IN_UV
  }
  if 'UV_INDEX' in environment:
    # The best version of all indices, as pip takes it.
    environment['UV_INDEX_STRATEGY'] = 'unsafe-best-match'
  return environment


def install_with_uv(arguments: list[str]) -> bool:
  """Returns whether uv could be had and has done it."""
  listed = subprocess.run(
      [sys.executable, '-m', 'pip', 'config', 'list'],
      capture_output=True, text=True, check=False,
  )
  settings = uv_environment(listed.stdout.splitlines())
  if listed.returncode or settings is None:
    return False
  pip = [sys.executable, '-m', 'pip', 'install', '--quiet', 'uv']
  if subprocess.run(pip, capture_output=True, check=False).returncode:
    return False
  uv = pathlib.Path(sys.executable).with_name('uv')
  done = subprocess.run(
      [uv, 'pip', 'install', '--quiet', '--python', sys.executable, *arguments],
      # An index named for uv itself is the user's word and stays.
      env={'UV_PYTHON_DOWNLOADS': 'never'} | settings | dict(os.environ),
      capture_output=True, check=False,
  )
  return not done.returncode


def main(arguments: list[str]) -> int:
  if install_with_uv(arguments):
    return 0
  pip = [sys.executable, '-m', 'pip', 'install', '--quiet', *arguments]
  return subprocess.run(pip, check=False).returncode


if __name__ == '__main__':
  sys.exit(main(sys.argv[1:]))
