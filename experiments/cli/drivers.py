"""Runs a command: flags, exit codes, errors in one line."""

import contextlib
import os
import sys

from absl import app
from absl import flags
from experiments.cli import config_flag
from experiments.cli import help_text
from experiments.cli import hosts
from rnnzoo import errors
from rnnzoo import filenames
from rnnzoo.training import logs
from rnnzoo.training import memory
from rnnzoo.training.processes import peers
from rnnzoo.training.processes import signals

# A flag that is defined here belongs to the module that calls this one.
flags.disclaim_key_flags()


class _PathParser(flags.ArgumentParser):
  """Makes the names of files absolute; an empty one stays empty."""

  def parse(self, argument):
    return filenames.absolute(argument) if argument else argument

  def flag_type(self):
    return 'path'


def define_path(name, default, help_text):
  """Defines a flag that is the name of a file or a directory, `~` allowed."""
  return flags.DEFINE(
      _PathParser(), name, default, help_text,
      serializer=flags.ArgumentSerializer(),
  )


def define_layers():
  """Defines `--layers`, the config file of a run that is restored."""
  return define_path(
      'layers', None,
      'The config file of the run. It is needed only if the file exports '
      'LAYERS, TASKS or DATASETS.',
  )


def define_data_dir():
  """Defines `--data_dir`, for the data of a run that is restored."""
  return define_path(
      'data_dir', None,
      'The directory of prepared data sets, if it is another than in training.',
  )


def run(main):
  """Runs an absl `main`; an error that the user can correct is one line.

  The line goes to stderr. The exit code is then 2 for a wrong command line and
  1 for everything else. After a signal it is that of a shell, 128 + signal.
  """
  logs.set_up()

  def guarded(argv):
    with (
        peers.leaving_on_errors(), _readable_errors(), memory.readable_errors()
    ):
      main(argv)
      sys.stdout.flush()
      peers.finish(0)

  app.run(guarded, flags_parser=_parse_flags)


def check_usage(argv, **required):
  """Raises `app.UsageError` (exit code 2) on stray words and missing flags."""
  if len(argv) > 1:
    raise app.UsageError(f'Unexpected arguments: {" ".join(argv[1:])}')
  for name, value in required.items():
    if not value:
      raise app.UsageError(f'--{name} is required.')


@contextlib.contextmanager
def _readable_errors():
  """Prints a line instead of a traceback for errors that users can correct."""
  try:
    yield
  except (app.UsageError, flags.Error) as error:
    _exit(2, f'Error: {error}')
  except errors.UserError as error:
    _exit(1, f'Error: {error}')
  except signals.Interrupted as stopped:
    # All processes of a run stop after the same step, and one reports it.
    if hosts.is_first():
      with contextlib.suppress(OSError):  # The terminal may be gone: SIGHUP.
        print(_line(stopped), file=sys.stderr, flush=True)
    peers.finish(128 + stopped.signum)
    sys.exit(128 + stopped.signum)
  except KeyboardInterrupt:
    _exit(130, 'Interrupted.')
  except BrokenPipeError:
    # The reader, such as `head`, has ended. Flushing at exit would fail again.
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    sys.exit(1)
  except OSError as error:  # A full disk, missing permissions.
    if error.strerror is None:
      raise
    where = f'{error.filename}: ' if error.filename else ''
    _exit(1, f'Error: {where}{error.strerror}.')


def _exit(code, message):
  if peers.watched():
    peers.leave(code, _line(message))
  print(_line(message), file=sys.stderr)
  sys.exit(code)


def _line(message):
  return ' '.join(str(message).split())


def _parse_flags(argv):
  """Parses flags like absl, with errors in one line; prints the help."""
  # In place of the flag of absl, which knows no config.
  flags.DEFINE_bool(
      'help', False, 'Show this help.', short_name='h', allow_override=True
  )
  with _readable_errors():
    with config_flag.readable_errors():
      rest = config_flag.parse(argv, flags.FLAGS)
    if flags.FLAGS.help:
      print(help_text.of_command(
          sys.modules['__main__'].__doc__,
          flags.FLAGS.get_key_flags_for_module('__main__'),
          config_flag.defined(),
      ))
      sys.stdout.flush()
      sys.exit()
  return rest
