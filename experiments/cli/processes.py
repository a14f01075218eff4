"""Starts commands as processes, without the seconds that importing JAX takes.

A server process imports everything once. Each command is a fork of the server
and runs like `python -m MODULE WORDS`.
"""

import multiprocessing
import os
import runpy
import sys

_CONTEXT = multiprocessing.get_context('forkserver')
_CONTEXT.set_forkserver_preload(['experiments.preload'])


def start(
    module, *words, stdout, stderr, devices=1, cwd='.', xla_flags=''
):
  """Starts `python -m module words`.

  Args:
    module: The dotted name of the module.
    *words: Its command line.
    stdout: The path of the file to which its output is appended.
    stderr: The same for its errors.
    devices: The number of virtual CPU devices.
    cwd: The directory that it runs in.
    xla_flags: Further flags of XLA.

  Returns:
    A started `multiprocessing.Process`.
  """
  words = [module, *map(str, words)]
  process = _CONTEXT.Process(
      target=_run, args=(words, (stdout, stderr), devices, str(cwd), xla_flags)
  )
  process.start()
  return process


def ending_with_parent(*command: str) -> list[str]:
  """Returns a command that runs another one, which ends if its parent does.

  Under Linux, that is. A function that `subprocess` calls in the child would do
  the same, but needs a fork, and a fork of JAX may never end.
  """
  if sys.platform != 'linux':
    return [*command]
  code = (  # PR_SET_PDEATHSIG, SIGKILL
      'import ctypes, os, sys; ctypes.CDLL(None).prctl(1, 9); '
      'os.execv(sys.argv[1], sys.argv[1:])'
  )
  return [sys.executable, '-c', code, *command]


def _run(words, paths, devices, cwd, xla_flags):
  """Runs the command in the forked process."""
  for number, path in zip((1, 2), paths):
    file = os.open(path, os.O_CREAT | os.O_WRONLY | os.O_APPEND, 0o644)
    os.dup2(file, number)
    os.close(file)
  os.environ['XLA_FLAGS'] = (
      f'--xla_force_host_platform_device_count={devices} {xla_flags}'
  )
  os.chdir(cwd)
  sys.argv = words
  runpy.run_module(words[0], run_name='__main__', alter_sys=True)
