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


def training_memory(layer, time, batch=1):
  """Returns the bytes of temporaries in a training step on `[batch, time, D]`.

  Nothing runs: the compiled program says it.
  """
  graph, params, rest = nnx.split(layer, nnx.Param, ...)

  def loss(params, x):
    return (nnx.merge(graph, params, rest)(x)[1] ** 2).sum()

  compiled = jax.jit(jax.grad(loss, (0, 1))).lower(
      params, jax.ShapeDtypeStruct((batch, time, layer.in_features), 'float32')
  ).compile()
  return compiled.memory_analysis().temp_size_in_bytes


def lstm(features=4, hidden=5):
  return layers.LSTM(features, hidden, rngs=nnx.Rngs(0))
