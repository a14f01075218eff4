"""A zoo of modern recurrent networks in JAX and Flax."""

import importlib

from rnnzoo import layers as layers
from rnnzoo import models as models
from rnnzoo import ops as ops

__version__ = '0.1.0'

# Loaded on first use: they bring TFDS, Orbax and the like.
_LAZY = (
    'convert', 'data', 'environments', 'errors', 'generation', 'linen',
    'online', 'planning', 'restoring', 'rl', 'tasks', 'testing', 'training',
)


def __getattr__(name):
  if name in _LAZY:
    return importlib.import_module(f'rnnzoo.{name}')
  if name == 'restore':
    return importlib.import_module('rnnzoo.restoring').restore
  raise AttributeError(f"module 'rnnzoo' has no attribute {name!r}")


def __dir__():
  return sorted([*globals(), *_LAZY, 'restore'])
