"""What all command lines share: exit codes, one-line errors, layers of a config."""

import importlib.util
import os
import sys

from absl import app
from absl import logging
from rnnzoo import errors
from rnnzoo.training import loop


def run(main):
  """Runs an absl `main`: a user's mistake is one line on stderr and exit code 1."""
  logging.set_verbosity(logging.INFO)
  # JAX tells which accelerators it did not find; nobody asked.
  logging.get_absl_logger().addFilter(
      lambda record: 'nable to initialize backend' not in record.getMessage()
  )

  def guarded(argv):
    try:
      main(argv)
    except errors.UserError as error:
      print(f'Error: {_one_line(error)}', file=sys.stderr)
      sys.exit(1)
    except loop.Interrupted as stopped:
      print(stopped, file=sys.stderr)
      sys.exit(128 + stopped.signum)

  app.run(guarded)


def check_usage(argv, **required):
  """Raises `app.UsageError` (exit code 2) on stray arguments or missing flags."""
  if len(argv) > 1:
    raise app.UsageError(f'Unexpected arguments: {" ".join(argv[1:])}')
  for name, value in required.items():
    if not value:
      raise app.UsageError(f'--{name} is required.')


def layers_of(config_filename):
  """Returns the `LAYERS` that a config file exports, or `None`."""
  path = config_filename.partition(':')[0]
  spec = importlib.util.spec_from_file_location('_rnnzoo_config', path)
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  return getattr(module, 'LAYERS', None)


def _one_line(error):
  return ' '.join(str(error).split())
