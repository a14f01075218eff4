"""Small models and inputs for the tests of models."""

import functools

from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np
from rnnzoo import models
from tests import collectives

B, T, V = 2, 9, 16
CONFIGS = dict(
    min_gru=dict(layer='min_gru', conv_kernel=3),
    lru_paper=dict(layer='lru', norm='batch', gate='glu', mlp='none'),
    pattern=dict(
        layer='min_gru,lru,gru', num_layers=5, norm='layer',
        norm_position='post', mlp='swiglu', tie_embeddings=True, soft_cap=5.0,
    ),
    remat=dict(layer='min_lstm', num_layers=3, remat='dots', gate='half_glu'),
)

# Compiles in less time, to slower programs.
jit = functools.partial(jax.jit, compiler_options=collectives.QUICKLY)


def make(kind=models.LanguageModel, **changes):
  """Returns a model of a tiny config with some fields changed."""
  return kind(models.ModelConfig.tiny().replace(**changes), rngs=nnx.Rngs(0))


def inputs(features=0):
  """Returns tokens `[B, T]`, or vectors of that many features, and flags.

  The flags are `reset`, at step 4, and `mask`, with gaps in other places.
  """
  rng = np.random.default_rng(0)
  x = rng.integers(0, V, (B, T), np.int32)
  if features:
    x = rng.standard_normal((B, T, features), np.float32)
  reset = jnp.zeros((B, T), bool).at[:, 4].set(True)
  mask = jnp.ones((B, T), bool).at[0, 5:7].set(False).at[1, :2].set(False)
  return jnp.asarray(x), dict(reset=reset, mask=mask)


def part(flags, *index):
  """Returns the flags of some steps."""
  return {k: v[(slice(None), *index)] for k, v in flags.items()}


def assert_trees_close(got, want, atol=2e-6):
  jax.tree.map(
      lambda g, w: np.testing.assert_allclose(g, w, atol=atol), got, want
  )
