"""Mean and variance of observations, by which a policy normalises them."""

from typing import NamedTuple

import jax
import jax.numpy as jnp


class Moments(NamedTuple):
  """Mean and variance of the observations seen so far, `[D]`."""

  count: jax.Array
  mean: jax.Array
  variance: jax.Array

  @classmethod
  def initial(cls, features: int) -> 'Moments':
    # A count near 0: the first rollout replaces mean and variance.
    return cls(jnp.float32(1e-4), jnp.zeros(features), jnp.ones(features))

  def normalize(self, x: jax.Array) -> jax.Array:
    """Normalises the first `D` of the last axis of `x`; at most 10 remains."""
    size = self.mean.size
    std = jnp.sqrt(self.variance + 1e-8)
    first = jnp.clip((x[..., :size] - self.mean) / std, -10, 10)
    return jnp.concatenate([first, x[..., size:]], -1)

  def update(self, x: jax.Array) -> 'Moments':
    """Returns the moments after seeing `x` `[..., D or more]` too."""
    x = x[..., : self.mean.size].reshape(-1, self.mean.size)
    new = x.shape[0]
    count = self.count + new
    delta = x.mean(0) - self.mean
    squares = self.variance * self.count + x.var(0) * new
    return Moments(
        count,
        self.mean + delta * new / count,
        (squares + delta**2 * self.count * new / count) / count,
    )
