"""A module to wrap, inputs for it, and one program for a call of it."""

import functools

from flax import nnx
import jax
import numpy as np
from rnnzoo import layers


def draw(*shape):
  return np.random.default_rng(0).standard_normal(shape).astype(np.float32)


@functools.partial(jax.jit, static_argnums=(0, 1))
def _call(graph, options, state, args, flags):
  return nnx.merge(graph, state)(*args, **dict(options), **flags)


def run(module, *args, **keywords):
  """Calls a module as one compiled program: eager ones are many more."""
  graph, state = nnx.split(module)
  static = {k: v for k, v in keywords.items() if isinstance(v, bool)}
  arrays = {k: v for k, v in keywords.items() if k not in static}
  return _call(graph, tuple(static.items()), state, args, arrays)


def lstm(features=4, hidden=5):
  return layers.LSTM(features, hidden, rngs=nnx.Rngs(0))
