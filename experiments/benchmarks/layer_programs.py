"""Builds the programs of a layer that the benchmarks time."""

from flax import nnx
import jax
import jax.numpy as jnp
from rnnzoo import layers
from rnnzoo.layers import base


def make(name, width):
  """Returns a layer of `width` inputs with its defaults.

  Args:
    name: A name in `rnnzoo.layers.LAYERS`.
    width: Features of a token; for frames, of `[4, 4, width / 16]`.
  """
  size = (4, 4, width // 16) if name.startswith('conv_') else width
  return layers.LAYERS[name](size, rngs=nnx.Rngs(0))


def programs_of(layer, by_step):
  """Returns pure functions `(params, x) -> ...` by name, and the parameters.

  They are `forward`, `training` (gradients of parameters and input), `token`,
  and, if `by_step`, `steps`: `training` by a scan of `layer.step`.
  """
  graph, params, rest = nnx.split(layer, nnx.Param, ...)

  def forward(params, x):
    return nnx.merge(graph, params, rest)(x)[1]

  def one_by_one(params, x):
    model = nnx.merge(graph, params, rest)
    carry = model.initialize_carry(x.shape[0], x.dtype)
    return base.scan_steps(model, carry, x)[1]

  def training(run):
    loss = lambda params, x: jnp.square(run(params, x)).mean()
    return jax.grad(loss, argnums=(0, 1))

  def token(params, x):
    model = nnx.merge(graph, params, rest)
    return model.step(model.initialize_carry(x.shape[0], x.dtype), x[:, 0])

  programs = dict(forward=forward, training=training(forward), token=token)
  if by_step:
    programs['steps'] = training(one_by_one)
  return programs, params
