"""Initialisers of papers that `jax.nn.initializers` does not have."""

import math

import jax
import jax.numpy as jnp


def uniform_fan_in(fan_in: int, shift: jax.typing.ArrayLike = 0.0):
  """Makes `U(-1/sqrt(fan_in), 1/sqrt(fan_in)) + shift`, as in PyTorch.

  Args:
    fan_in: Number of inputs of a unit, for kernel and bias alike.
    shift: Added to every value; broadcast against the parameter's shape.

  Returns:
    An initializer `(key, shape, dtype) -> array`.
  """
  bound = 1 / math.sqrt(fan_in)

  def init(key, shape, dtype=jnp.float32, out_sharding=None):
    value = jax.random.uniform(key, shape, dtype, -bound, bound)
    return value + jnp.asarray(shift, dtype)

  return init


def small(features: int):
  """Makes a normal with variance `2 / (5 features)`: Nguyen, Salazar (2019).

  Args:
    features: Width of the model.

  Returns:
    An initializer `(key, shape, dtype) -> array`.
  """
  return jax.nn.initializers.normal(math.sqrt(2 / (5 * features)))


def wang(features: int, num_layers: int):
  """Makes a normal of deviation `2 / (num_layers sqrt(features))` (Ben Wang).

  Args:
    features: Width of the model.
    num_layers: Its depth.

  Returns:
    An initializer `(key, shape, dtype) -> array`.
  """
  return jax.nn.initializers.normal(2 / (num_layers * math.sqrt(features)))


def small_glorot():
  """Makes a Glorot uniform with a gain of `2**-2.5`.

  The authors of RetNet and GLA use it for queries and keys.

  Returns:
    An initializer `(key, shape, dtype) -> array`.
  """
  return jax.nn.initializers.variance_scaling(2**-5, 'fan_avg', 'uniform')


def step_size_bias(dt_min: float, dt_max: float, dt_floor: float | None = None):
  """Makes `b` such that `softplus(b)` is log-uniform in `[dt_min, dt_max]`.

  As in Gu and Dao (2023), by the inverse of the softplus.

  Args:
    dt_min: Smallest step size, positive.
    dt_max: Largest.
    dt_floor: Smaller step sizes are raised to it, if given; positive.

  Returns:
    An initializer `(key, shape, dtype) -> array`.

  Raises:
    ValueError: If a number is not positive, or they are not in order.
  """
  given = dict(dt_min=dt_min, dt_max=dt_max)
  if dt_floor is not None:
    given['dt_floor'] = dt_floor
  if not 0 < dt_min <= dt_max or not all(u > 0 for u in given.values()):
    raise ValueError(
        f'{", ".join(f"`{name}`" for name in given)} must be positive and in '
        f'order, got {", ".join(map(str, given.values()))}.'
    )

  def init(key, shape, dtype=jnp.float32):
    low, high = math.log(dt_min), math.log(dt_max)
    dt = jnp.exp(jax.random.uniform(key, shape, dtype, low, high))
    if dt_floor is not None:
      dt = jnp.maximum(dt, dt_floor)
    return dt + jnp.log(-jnp.expm1(-dt))

  return init


def ring(r_min: float, r_max: float):
  """Makes `nu_log` so that `|lambda| = exp(-exp(nu_log))` is uniform on a ring.

  Lemma 2 of Orvieto et al. (2023). Samples exclude the ends, where the
  logarithms diverge.

  Args:
    r_min: Inner radius, in [0, r_max).
    r_max: Outer radius, in (r_min, 1].

  Returns:
    An initializer `(key, shape, dtype) -> array`.

  Raises:
    ValueError: If the radii are not in order.
  """
  if not 0 <= r_min < r_max <= 1:
    raise ValueError(
        f'`r_min`, `r_max` must satisfy 0 <= r_min < r_max <= 1, got {r_min}, '
        f'{r_max}.'
    )

  def init(key, shape, dtype=jnp.float32):
    u = jax.random.uniform(key, shape, jnp.float32, 1e-6, 1 - 1e-6)
    nu = -0.5 * jnp.log(u * (r_max**2 - r_min**2) + r_min**2)
    return jnp.log(nu).astype(dtype)

  return init
