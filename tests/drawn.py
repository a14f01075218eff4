"""Modules of drawn parameters, for tests to which any will do."""

from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np
from rnnzoo import linen


def module(make):
  """Makes a module by `make(rngs)`; nothing is compiled to initialise it."""
  result = nnx.eval_shape(lambda: make(nnx.Rngs(0)))
  if jax.tree.leaves(nnx.state(result, nnx.Not(nnx.Variable))):
    result = make(nnx.Rngs(0))  # It has constants.
  rng = np.random.default_rng(0)
  variables = jax.tree.map(
      lambda s: jnp.asarray(rng.uniform(0.01, 0.3, s.shape).astype(s.dtype)),
      linen.to_linen_variables(result),
  )
  return linen.from_linen_variables(result, variables)
