"""What LinOSS and D-LinOSS share: a layer of forced harmonic oscillators."""

import math
from typing import Any, NamedTuple

from flax import nnx
import jax
import jax.numpy as jnp
from rnnzoo import ops
from rnnzoo.layers import base
from rnnzoo.layers import common


class OscillatorCarry(NamedTuple):
  """State of the oscillators, both `[B, P]` and complex64 at least.

  It means the same for every rule that computes the next one, so a layer goes
  on from the carry of another one with as many oscillators.

  Attributes:
    z: Velocities.
    y: Positions.
  """

  z: jax.Array
  y: jax.Array


class Oscillators(base.RecurrentLayer):
  r"""Oscillators driven by `B x`, whose positions are read.

  A subclass creates the parameters of `y'' = -A y - G y' + B x` and defines
  `transition`, one step of it. The forces and states are complex and the matrix
  of a step is real, so a sequence is one `ops.block_scan` over real and
  imaginary parts.
  """

  complex_state = True

  def create_maps(
      self, state_features: int, dtype: Any, param_dtype: jnp.dtype,
      rngs: nnx.Rngs,
  ) -> None:
    """Sets the attributes, `B`, `C` and `D`, with the authors' initial values.

    Raises:
      ValueError: If `state_features` is below 1.
    """
    if state_features < 1:
      raise ValueError(
          f'`state_features` must be at least 1, got {state_features}.'
      )
    d = self.out_features = self.in_features
    self.state_features = p = state_features
    self.dtype = dtype

    def uniform(*shape, fan_in):
      bound = 1 / math.sqrt(fan_in)
      return jax.random.uniform(
          rngs.params(), shape, param_dtype, -bound, bound
      )

    # The last axis holds real and imaginary parts.
    self.B = nnx.Param(
        uniform(p, d, 2, fan_in=d), axes=('hidden', 'embed', None),
        recurrent=True,
    )
    self.C = nnx.Param(
        uniform(d, p, 2, fan_in=p), axes=('embed', 'hidden', None)
    )
    self.D = nnx.Param(
        jax.random.normal(rngs.params(), (d,), param_dtype), axes=(None,)
    )

  def transition(self, dtype: jnp.dtype) -> tuple[jax.Array, jax.Array]:
    """Returns the matrix `[2, 2, P]` of a step, and the gains of its force.

    Args:
      dtype: Dtype of the results.

    Returns:
      The matrix that maps the velocity and the position before a step to those
      after it, and `[2, P]`, which multiplies `B x`.
    """
    raise TypeError(f'{type(self).__name__} does not define transition.')

  @property
  def state_shape(self) -> base.StateShape:
    """Sizes of the arrays of the carry of one sequence."""
    size = (self.state_features,)
    return base.carry_shape(OscillatorCarry, z=size, y=size)

  def __call__(self, x, carry=None, *, reset=None, mask=None):
    x, carry, _, reset = base.prepare(self, x, carry, reset, mask)
    matrix, forces = self._forces(x)
    a = matrix[None, None]
    if mask is not None:  # An absent token changes nothing.
      present = mask[:, :, None, None, None]
      a = jnp.where(present, a, jnp.eye(2, dtype=a.dtype)[:, :, None])
      forces = base.masked(forces, mask)
    last, h = ops.block_scan(a, forces, _parts(carry), reset=reset)
    return _carry(last), self._read(h[:, :, 1], x, mask)

  def step(self, carry, x, *, reset=None, mask=None):
    x, carry, initial, reset = base.prepare(
        self, x, carry, reset, mask, step=True
    )
    matrix, forces = self._forces(x)
    entering = carry if reset is None else base.select(reset, initial, carry)
    h = (matrix * _parts(entering)[:, None]).sum(2) + forces
    new = _carry(h)
    carry = new if mask is None else base.select(mask, new, carry)
    return carry, self._read(h[:, 1], x, mask)

  def _forces(self, x):
    """Returns the matrix `[2, 2, 2 P]`, and what is added `[..., 2, 2 P]`."""
    dtype = base.state_dtype(x.dtype)
    matrix, gains = self.transition(dtype)
    # Real parts of all oscillators, then imaginary parts.
    twice = lambda u: jnp.concatenate([u, u], axis=-1)
    B = self.B[...].transpose(1, 2, 0).reshape(self.in_features, -1)
    forces = common.product(x, B, dtype)
    return twice(matrix), twice(gains) * forces[..., None, :]

  def _read(self, y, x, mask):
    """Maps positions `[..., 2 P]` to `Re(C y) + D x`, 0 where masked."""
    C = self.C[...].transpose(2, 1, 0)  # [2, P, D].
    C = jnp.concatenate([C[0], -C[1]])
    skip = common.scaled(x, self.D[...])
    return base.masked(common.product(y.astype(x.dtype), C) + skip, mask)


def explicit_transition(
    dt: jax.Array, A: jax.Array, damping: jax.Array
) -> tuple[jax.Array, jax.Array]:
  """Returns `transition` of the implicit-explicit rule.

  Args:
    dt: Length of a step `[P]`.
    A: Stiffness `[P]`.
    damping: What a step multiplies a velocity by, `[P]`.
  """
  matrix = [
      [damping, -dt * A * damping], [dt * damping, 1 - dt**2 * A * damping]
  ]
  return stacked(matrix), jnp.stack([dt * damping, dt**2 * damping])


def stacked(rows: list[list[jax.Array]]) -> jax.Array:
  """Returns the matrix `[2, 2, P]` of these entries `[P]`."""
  return jnp.stack([jnp.stack(row) for row in rows])


def _parts(carry):
  """A carry as real numbers `[B, 2, 2 P]`."""
  return jnp.stack(
      [jnp.concatenate([u.real, u.imag], axis=-1) for u in carry], axis=1
  )


def _carry(h):
  """The carry for real numbers `[B, 2, 2 P]`."""
  real, imaginary = jnp.split(h, 2, axis=-1)
  return OscillatorCarry(*jnp.moveaxis(jax.lax.complex(real, imaginary), 1, 0))
