"""Nonlinear cells that can be computed for all tokens at once."""

import math
from typing import Any, Literal

from flax import nnx
import jax
import jax.numpy as jnp
from rnnzoo import ops
from rnnzoo.layers import base
from rnnzoo.layers import common
from rnnzoo.layers import recurrences
from rnnzoo.layers import state_space

Solver = Literal['sequential', 'newton']
_SOLVERS = ('sequential', 'newton')


class ParallelCell(recurrences.RecurrentCell):
  """A nonlinear cell, scanned token by token or solved by Newton's method.

  The states of all tokens solve one system of equations, and
  `ops.newton_scan` solves it in a few iterations, each parallel over time. The
  result is that of the scan, up to rounding. A subclass whose channels do not
  read each other needs no more than `project` and `update`.

  The carry is one array `[B, H]`, the output, or a NamedTuple of arrays
  `[B, H]`, of which `h` is the output. It means the same with both solvers: a
  sequence may start with one and go on with the other.

  Attributes:
    solver: `sequential` or `newton`.
    newton_iterations: The number of iterations of Newton's method. If `None`,
      as many as the solution needs.
    newton_max_slope: The size to which entries of the Jacobian are cut, or
      `None`; see `ops.newton_scan`.
    newton_strict: Whether a solution that misses its tolerance is a
      `FloatingPointError`, not a warning.
  """

  solver: Solver = 'sequential'
  newton_iterations: int | None = None
  newton_max_slope: float | None = None
  newton_strict: bool = False

  def set_solver(
      self,
      solver: Solver,
      newton_iterations: int | None = None,
      newton_max_slope: float | None = None,
      newton_strict: bool = False,
  ) -> None:
    """Checks and sets the attributes of these names.

    Raises:
      ValueError: If the solver is unknown, or another value is out of range or
        without use.
    """
    state_space.check_choice('solver', solver, _SOLVERS)
    for name, value in dict(
        newton_iterations=newton_iterations, newton_max_slope=newton_max_slope,
        newton_strict=newton_strict or None,
    ).items():
      if value is not None and solver != 'newton':
        raise ValueError(f"`{name}` needs solver='newton', got {solver!r}.")
    if newton_iterations is not None and newton_iterations < 1:
      raise ValueError(
          f'`newton_iterations` must be at least 1, got {newton_iterations}.'
      )
    if newton_max_slope is not None and not newton_max_slope > 0:
      raise ValueError(
          f'`newton_max_slope` must be above 0, got {newton_max_slope}.'
      )
    self.solver = solver
    self.newton_iterations = newton_iterations
    self.newton_max_slope = newton_max_slope
    self.newton_strict = newton_strict

  def residual(
      self,
      x: jax.Array,
      carry: base.Carry | None = None,
      *,
      reset: jax.Array | None = None,
      mask: jax.Array | None = None,
  ) -> jax.Array:
    """Returns how far the solution of Newton's method is from the scan.

    The arguments are those of a call. With a fixed number of iterations it
    says whether they suffice.

    Returns:
      `[B]`: the largest difference of a state from that which the cell computes
      of the state before it, relative where states are above 1.

    Raises:
      ValueError: As a call, or if the cell is a GRU without `reset_after`.
    """
    x, carry, initial, reset = base.prepare(self, x, carry, reset, mask)
    # Who asks for the residual needs no warning and no error. The tolerance
    # does not matter for a fixed number of iterations.
    tolerance = None if self.newton_iterations is None else math.inf
    return self._solve(
        carry, self.project(x), initial, reset, mask, x.dtype, tolerance, False
    )[2]

  def linearize(
      self, carry: base.Carry, projected: Any, dtype: jnp.dtype
  ) -> tuple[base.Carry, jax.Array]:
    """Returns `update`'s carry and the part of its Jacobian within a channel.

    A cell none of whose channels reads another one need not define it, because
    this part is all.

    Args:
      carry: As for `update`.
      projected: As for `update`.
      dtype: As for `update`.

    Returns:
      The next carry, and `[B, H]` or, for a carry of K arrays,
      `[B, K, K, H]` with the new state first.
    """
    raise TypeError(f'{type(self).__name__} does not define linearize.')

  def _scan(self, carry, projected, initial, reset, mask, dtype):
    if self.solver == 'sequential':
      return super()._scan(carry, projected, initial, reset, mask, dtype)
    carry, y, _ = self._solve(
        carry, projected, initial, reset, mask, dtype, None, self.newton_strict
    )
    return carry, base.masked(y, mask)

  def _solve(
      self, carry, projected, initial, reset, mask, dtype, tolerance, strict
  ):
    """Returns the last carry, all outputs, and the residuals."""
    leaves, structure = jax.tree.flatten(carry)

    def pack(carry):  # [N, H], or [N, K, H].
      leaves = jax.tree.leaves(carry)
      return leaves[0] if len(leaves) == 1 else jnp.stack(leaves, axis=1)

    def unpack(h):
      if len(leaves) == 1:
        return structure.unflatten([h])
      return structure.unflatten(h[..., k, :] for k in range(len(leaves)))

    def step(h, projected):
      return pack(self.update(unpack(h), projected, dtype)[0])

    def linearize(h, projected):
      carry, jacobian = self.linearize(unpack(h), projected, dtype)
      return pack(carry), jacobian

    rounding = jnp.finfo(dtype)
    if tolerance is None and rounding.bits < 32:
      # A product in bfloat16 jumps with its input: no state solves the
      # equations to the last digit of float32.
      tolerance = float(rounding.eps) / 4
    last, h, residual = ops.newton_scan(
        step,
        projected,
        pack(carry),
        linearize=linearize if self._mixes() else None,
        initial=pack(initial),
        reset=reset,
        mask=mask,
        num_iterations=self.newton_iterations,
        tolerance=tolerance,
        max_slope=self.newton_max_slope,
        strict=strict,
    )
    return unpack(last), output_of(unpack(h)), residual

  def _mixes(self):
    return type(self).linearize is not ParallelCell.linearize


class DiagonalCell(ParallelCell):
  """A cell whose units read themselves only: what ParaGRU and ParaLSTM share.

  Attributes:
    A: Weights of the state `[3, H]`, one for each gate.
    B: The map of inputs to gates, block diagonal, `[heads, D / heads, 3,
      H / heads]`.
    b: Its bias `[3, H]`, for the first gate from 0 to -1 over the units.
  """

  def create_maps(
      self, in_features: int, hidden_features: int | None, num_heads: int,
      dtype: Any, param_dtype: jnp.dtype, rngs: nnx.Rngs, *,
      fan_out_by_head: bool = False,
  ) -> None:
    """Sets the attributes, with the authors' initial values.

    Args:
      in_features: `D`.
      hidden_features: `H`; `D` if `None`.
      num_heads: Number of blocks of `B`.
      dtype: Compute dtype; that of the input if `None`.
      param_dtype: Dtype of the parameters.
      rngs: Source of the initial parameters.
      fan_out_by_head: Whether the Glorot distribution of `B` counts the outputs
        of one head, not all.

    Raises:
      ValueError: If the heads do not divide `D` and `H`.
    """
    self.in_features = d = in_features
    self.hidden_features = self.out_features = h = hidden_features or d
    self.num_heads = num_heads
    self.dtype = dtype
    if min(num_heads, d, h) < 1 or d % num_heads or h % num_heads:
      raise ValueError(
          f'`num_heads` must divide the {d} inputs and the {h} units, got '
          f'{num_heads}.'
      )
    self.A = diagonal_weights(3, h, param_dtype, rngs)
    fan_in, units = d // num_heads, h // num_heads
    bound = math.sqrt(6 / (fan_in + (units if fan_out_by_head else h)))
    self.B = nnx.Param(
        jax.random.uniform(
            rngs.params(), (num_heads, fan_in, 3, units), param_dtype, -bound,
            bound,
        ),
        axes=('heads', 'inner', None, None),
    )
    zeros = jnp.zeros((h,), param_dtype)
    first = -jnp.linspace(0, 1, h, dtype=param_dtype)
    self.b = nnx.Param(
        jnp.stack([first, zeros, zeros]), axes=(None, 'hidden'), recurrent=True
    )

  def project(self, x):
    return common.gates_by_head(
        x, self.B[...], self.b[...], base.state_dtype(x.dtype)
    )


class MixingCell(ParallelCell):
  """A cell whose gates read the last output through one linear map.

  A subclass defines `mix`, the map, `mix_diagonal`, its diagonal, and
  `advance`, the rest, which mixes no channels.
  """

  def mix(self, h: jax.Array, dtype: jnp.dtype) -> jax.Array:
    """Maps outputs `[B, H]` to their part of the gates `[B, G, H]`."""
    raise TypeError(f'{type(self).__name__} does not define mix.')

  def mix_diagonal(self) -> jax.Array:
    """The slopes `[G, H]` of `mix` from a channel to the same channel."""
    raise TypeError(f'{type(self).__name__} does not define mix_diagonal.')

  def advance(
      self, carry: base.Carry, projected: jax.Array, mixed: jax.Array
  ) -> tuple[base.Carry, jax.Array]:
    """Maps a carry, inputs and `mix` of `h` to the next carry and output."""
    raise TypeError(f'{type(self).__name__} does not define advance.')

  def update(self, carry, projected, dtype):
    return self.advance(carry, projected, self.mix(output_of(carry), dtype))

  def linearize(self, carry, projected, dtype):
    h = output_of(carry)
    mixed = self.mix(h, dtype)
    slopes = self.mix_diagonal().astype(mixed.dtype)
    leaves, structure = jax.tree.flatten(carry)
    advance = lambda carry, mixed: self.advance(carry, projected, mixed)[0]
    columns = []
    for leaf in leaves:
      tangents = [
          jnp.ones_like(u) if u is leaf else jnp.zeros_like(u) for u in leaves
      ]
      slope = jnp.broadcast_to(slopes, mixed.shape)
      if leaf is not h:
        slope = jnp.zeros_like(mixed)
      *tangents, slope, _ = ops.vary_together((*tangents, slope, mixed))
      new, column = jax.jvp(
          advance, (carry, mixed), (structure.unflatten(tangents), slope)
      )
      columns.append(jax.tree.leaves(column))
    if len(leaves) == 1:
      return new, columns[0][0]
    return new, jnp.stack(
        [jnp.stack(row, axis=1) for row in zip(*columns)], axis=1
    )


def output_of(carry: base.Carry) -> jax.Array:
  """The output among the arrays of a carry."""
  return getattr(carry, 'h', carry)


def diagonal_weights(
    gates: int, features: int, param_dtype: jnp.dtype, rngs: nnx.Rngs
) -> nnx.Param:
  """Makes weights `[G, H]` of a state, normal with variance `4 / (5 H)`."""
  init = nnx.initializers.normal(2 / math.sqrt(5 * features))
  return nnx.Param(
      init(rngs.params(), (gates, features), param_dtype),
      axes=(None, 'hidden'), recurrent=True,
  )
