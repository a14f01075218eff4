"""Shared by state space layers: HiPPO matrices, spectra, discretisation.

Initial matrices are computed in NumPy and float64, because eigenvectors in
float32 are too inaccurate.
"""

import math

import jax
import jax.numpy as jnp
import numpy as np
import numpy.typing as npt

Real = npt.NDArray[np.float64]
Complex = npt.NDArray[np.complexfloating]

# Terms of the series of `(exp(z) - 1) / z` for |z| < 1/2, enough for float64.
_TERMS = 14


def legs(n: int) -> tuple[Real, Real]:
  """Returns HiPPO-LegS (Gu et al., 2020), https://arxiv.org/abs/2008.07669.

  >>> legs(2)[0].round(3)
  array([[-1.   , -0.   ],
         [-1.732, -2.   ]])

  Args:
    n: Size of the state.

  Returns:
    `A` `[N, N]` and `B` `[N]`, float64.
  """
  root = np.sqrt(2 * np.arange(n) + 1.0)
  a = -np.tril(np.outer(root, root), -1) - np.diag(np.arange(1.0, n + 1))
  return a, root


def normal_legs(n: int) -> tuple[Complex, Complex, Real]:
  """Diagonalises the normal part of HiPPO-LegS, `A + P P^T`.

  >>> normal_legs(8)[0].imag[4:].round(4)
  array([ 0.4275,  1.9578,  5.3542, 19.8574])

  Args:
    n: Size of the state, even.

  Returns:
    `(lambda, V, P)` with `P_n = sqrt(n + 1/2)`: eigenvalues `[N]`, -1/2 plus
    pairs of imaginary numbers in ascending order; unitary eigenvectors `[N,
    N]`; and `P` `[N]`.
  """
  a, _ = legs(n)
  p = np.sqrt(np.arange(n) + 0.5)
  s = a + np.outer(p, p)
  # Skew-symmetric apart from its diagonal of -1/2, so -i times it is Hermitian.
  skew = s + 0.5 * np.eye(n)
  imag, v = np.linalg.eigh(-1j * (skew - skew.T) / 2)
  return -0.5 + 1j * imag, v, p


def block_legs(
    n: int, blocks: int, *, half: bool = True
) -> tuple[Complex, Complex]:
  """Diagonalises a block diagonal matrix of equal `normal_legs` blocks.

  >>> lambda_, v = block_legs(8, 2)
  >>> lambda_.shape, v.shape
  ((4,), (8, 4))

  Args:
    n: Size of the state, `blocks` times an even number if `half`.
    blocks: Number of blocks.
    half: Whether to keep one of each pair of conjugates, the negative one.

  Returns:
    `(lambda, V)`: eigenvalues `[M]` and eigenvectors `[N, M]`, `M` being `N` or
    half of that.
  """
  lambda_, v, _ = normal_legs(n // blocks)
  keep = n // blocks // (2 if half else 1)  # Ascending: the negative ones.
  return np.tile(lambda_[:keep], blocks), np.kron(np.eye(blocks), v[:, :keep])


def log_uniform(low: float, high: float):
  """Makes an initializer of logarithms of step sizes, uniform over a range.

  Args:
    low: Smallest step, positive.
    high: Largest step.

  Returns:
    An initializer `(key, shape, dtype) -> array`.

  Raises:
    ValueError: If the ends are not in order.
  """
  if not 0 < low <= high:
    raise ValueError(
        f'`dt_min`, `dt_max` must satisfy 0 < dt_min <= dt_max, got {low}, '
        f'{high}.'
    )

  def init(key, shape, dtype=jnp.float32):
    u = jax.random.uniform(key, shape, dtype)
    return math.log(low) + u * (math.log(high) - math.log(low))

  return init


def zero_order_hold(
    lambda_: jax.Array, step: jax.Array
) -> tuple[jax.Array, jax.Array]:
  """Returns `exp(lambda step)` and `(exp(lambda step) - 1) / lambda`."""
  z = lambda_ * step
  return jnp.exp(z), step * _relative_expm1(z)


def bilinear(
    lambda_: jax.Array, step: jax.Array
) -> tuple[jax.Array, jax.Array]:
  """Returns `(1 + z/2) / (1 - z/2)`, `step / (1 - z/2)`, `z = lambda step`."""
  half = 0.5 * lambda_ * step
  inverse = 1 / (1 - half)
  return (1 + half) * inverse, step * inverse


# By the names of the option `discretization`: `(lambda, step) -> (a, b)` such
# that `h' = lambda h + x` becomes `h_t = a h_{t-1} + b x_t`.
DISCRETIZATIONS = dict(zoh=zero_order_hold, bilinear=bilinear)


def check_choice(name: str, value: str, choices) -> None:
  """Raises `ValueError` unless `value` is one of `choices`."""
  if value not in choices:
    raise ValueError(
        f'`{name}` must be one of {list(choices)}, got {value!r}.'
    )


def _relative_expm1(z):
  """Computes `(exp(z) - 1) / z`, accurate near 0, as is its gradient."""
  small = jnp.abs(z.real) + jnp.abs(z.imag) < 0.5
  near = jnp.where(small, z, 0)
  series = jnp.ones_like(z)
  for n in range(_TERMS, 1, -1):
    series = 1 + near / n * series
  far = jnp.where(small, 1, z)
  return jnp.where(small, series, (jnp.exp(far) - 1) / far)
