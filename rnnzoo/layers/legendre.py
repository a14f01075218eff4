"""The Legendre memory of LMU and parallel LMU."""

import math

from flax import nnx
import jax.numpy as jnp
import numpy as np

DISCRETIZATIONS = ('zoh', 'euler')


def advance(m, a, b, u):
  """Computes one step of a memory: `A m + B u`.

  Args:
    m: `[..., N]`.
    a: `A` `[N, N]`.
    b: `B` `[N]`.
    u: `[..., 1]`.

  Returns:
    The next memory `[..., N]`, in the dtype of `m`.
  """
  a, b = a[...].astype(m.dtype), b[...].astype(m.dtype)
  # A product of lower precision would make the float32 state meaningless.
  return jnp.matmul(m, a.T, precision='highest') + b * u


def legendre_memory(
    order: int, theta: float, discretization: str = 'zoh'
) -> tuple[np.ndarray, np.ndarray]:
  r"""The linear system whose state encodes the last `theta` values of its
  input.

  .. math::
      \theta \dot m &= A m + B u \\
      A_{ij} &= (2i + 1) \begin{cases}
          -1 & i < j \\ (-1)^{i-j+1} & i \ge j \end{cases} \\
      B_i &= (2i + 1) (-1)^i

  The state `m` holds the coefficients of `u` over the window, in Legendre
  polynomials shifted to [0, 1]; the argument is the time ago as a fraction of
  `theta`. The system is discretised with a step of 1.

  >>> a, b = legendre_memory(2, 10.)
  >>> a.round(4)
  array([[ 0.8922, -0.0816],
         [ 0.2448,  0.729 ]])

  Args:
    order: `N`.
    theta: Length of the window, in steps.
    discretization: `zoh` or `euler`.

  Returns:
    `A` `[N, N]` and `B` `[N]`, float64.

  Raises:
    ValueError: If an argument is out of range.
  """
  if order < 1:
    raise ValueError(f'`order` must be at least 1, got {order}.')
  if not theta > 0:
    raise ValueError(f'`theta` must be positive, got {theta}.')
  if discretization not in DISCRETIZATIONS:
    raise ValueError(
        f'`discretization` must be one of {DISCRETIZATIONS}, got '
        f'{discretization!r}.'
    )
  if discretization == 'euler' and not theta > 4 * order:
    raise ValueError(
        f'`theta` must be above 4 * order = {4 * order} for `euler`, got '
        f'{theta}.'
    )
  i = np.arange(order)[:, None]
  j = i.T
  system = np.zeros((order + 1, order + 1))
  system[:-1, :-1] = np.where(i < j, -1.0, (-1.0) ** (i - j + 1))
  system[:-1, -1:] = (-1.0) ** i
  system[:-1] *= (2 * i + 1) / theta
  if discretization == 'zoh':
    system = _exponential(system)
  else:
    system += np.eye(order + 1)
  return system[:-1, :-1], system[:-1, -1]


def memory_matrices(order, theta, discretization, trainable, dtype):
  """Returns `legendre_memory` as parameters, or as constants of NumPy."""
  matrices = legendre_memory(order, theta, discretization)
  if not trainable:
    return matrices
  a, b = (jnp.asarray(u, dtype) for u in matrices)
  return (
      nnx.Param(a, axes=(None, None), recurrent=True),
      nnx.Param(b, axes=(None,), recurrent=True),
  )


def _exponential(matrix):
  """Computes `exp(matrix)` by scaling, a Taylor series, and squaring."""
  norm = np.abs(matrix).sum(0).max()
  halvings = max(0, math.ceil(math.log2(norm)) + 1)
  small = matrix / 2**halvings
  total = term = np.eye(len(matrix))
  for k in range(1, 20):  # 0.5^20 / 20! is below 1e-24.
    term = term @ small / k
    total = total + term
  for _ in range(halvings):
    total = total @ total
  return total
