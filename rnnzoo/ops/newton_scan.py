"""Nonlinear recurrences in parallel over time, by Newton's method."""

from collections.abc import Callable
from typing import Any, NamedTuple
import warnings

import jax
from jax import core
from jax import lax
import jax.numpy as jnp
import numpy as np
from rnnzoo import mesh
from rnnzoo.ops import checking
from rnnzoo.ops import rows
from rnnzoo.ops.block_scan import block_scan
from rnnzoo.ops.linear_scan import api

Step = Callable[[jax.Array, Any], jax.Array]
Linearize = Callable[[jax.Array, Any], tuple[jax.Array, jax.Array]]

# The tolerance is this many times the distance of 1 to the next number.
_ROUNDING = 16


class _Problem(NamedTuple):
  """What is fixed when a solution is traced.

  Attributes:
    step: `step(h, x, *constants)`.
    linearize: `linearize(h, x, *constants)`, or `None` if the Jacobian is exact
      and comes from `step`.
    iterations: The fixed number of iterations, or `None`.
    limit: The largest number of iterations.
    tolerance: The residual at which the iteration stops.
    max_slope: See `newton_scan`.
  """

  step: Callable[..., Any]
  linearize: Callable[..., Any] | None
  iterations: int | None
  limit: int
  tolerance: float
  max_slope: float | None


def newton_scan(
    step: Step,
    x: Any,
    h0: jax.Array,
    *,
    linearize: Linearize | None = None,
    initial: jax.Array | None = None,
    reset: jax.Array | None = None,
    mask: jax.Array | None = None,
    num_iterations: int | None = None,
    max_iterations: int | None = None,
    tolerance: float | None = None,
    max_slope: float | None = None,
    strict: bool = False,
) -> tuple[jax.Array, jax.Array, jax.Array]:
  r"""Solves `h_t = step(h_{t-1}, x_t)` for all t at once.

  Newton's method starts from a guess of all states. An iteration evaluates
  `step` and its Jacobian :math:`J_t` at the states guessed so far, for all
  tokens in parallel, and solves the linear recurrence

  .. math::
      h_t = f_t + J_t (h_{t-1} - p_t), \qquad f_t = step(p_t, x_t)

  with one scan, :math:`p_t` being the guess of :math:`h_{t-1}` (Lim et al.,
  2023, arXiv 2309.12252; Gonzalez et al., 2024, arXiv 2407.19115; ParaRNN,
  arXiv 2510.21450). The first guess is one step from the initial state. After
  k iterations the first k states of a sequence are exact whatever J is, so T
  iterations always suffice; where the recurrence forgets, a few do.

  J is the exact Jacobian where a channel of the new state depends on that
  channel of the old state only: one `linear_scan` for states `[B, D]`, one
  `block_scan` of `K x K` matrices for states `[B, K, D]`. For other
  recurrences, such as a GRU with its dense matrix, `linearize` gives an
  approximation of that form, and the iteration converges linearly. Without it
  the gradients of such a recurrence are wrong: nothing checks which channels
  `step` reads.

  Gradients are those of the solution, not of the iterations. With the exact
  Jacobian they take one reversed scan. With `linearize` the adjoint equation
  is solved by the same iteration with exact vector-Jacobian products, to
  `tolerance` or to its end after T iterations. If the states are not solved to
  the tolerance, neither are the gradients. The residual has none. Only reverse
  mode is supported; second derivatives only without `linearize`.

  The result is close to the exact one if the residual is small and the
  recurrence forgets: if the absolute values in every row of the whole Jacobian,
  at all states, add up to `L` at most, the error of every state is at most
  `residual * (1 + L + L^2 + ... + L^(T-1))`, with the residual not divided by
  the size of the state. For `L < 1` that is below `residual / (1 - L)`.

  >>> import jax.numpy as jnp
  >>> x = jnp.ones((1, 5, 1))
  >>> h_last, h, residual = newton_scan(
  ...     lambda h, x: jnp.tanh(0.5 * h + x), x, jnp.zeros((1, 1)))
  >>> [round(float(u), 3) for u in h[0, :, 0]]
  [0.762, 0.881, 0.894, 0.895, 0.895]
  >>> bool(residual[0] < 1e-6)
  True

  Args:
    step: Maps states `[N, D]` or `[N, K, D]` and inputs, a tree of arrays
      `[N, ...]`, to the next states, for each of N tokens by itself. It may use
      other floating arrays, which then have gradients. Integers that `jax.jit`
      traces must be in `x`: JAX cannot differentiate around them otherwise.
    x: The inputs, a tree of arrays `[B, T, ...]`.
    h0: The state before the first token, `[B, D]` or `[B, K, D]`, floating. The
      dtype of all states.
    linearize: Maps the arguments of `step` to its result and an approximate
      Jacobian, `[N, D]` or `[N, K, K, D]` with the new state first. If `None`,
      the Jacobian has that form and is computed from `step`.
    initial: The state to which a reset returns, like `h0`; zeros if `None`.
    reset: Booleans `[B, T]`, `True` where a new sequence starts.
    mask: Booleans `[B, T]`, `False` where the state passes unchanged. `step`
      gets 0 in place of the floating inputs there.
    num_iterations: A fixed number of iterations. If `None`, the iteration ends
      when all residuals are at most `tolerance`.
    max_iterations: The largest number of iterations then; T if `None`, with
      which the solution is always found.
    tolerance: A bound of the residual; 16 times the rounding error of the dtype
      if `None`.
    max_slope: Entries of the Jacobian are cut to `[-max_slope, max_slope]`, the
      damped form. Plain Newton (`None`) can grow beyond all bounds in long
      sequences where the Jacobian at a wrong guess is larger than 1. With 1 an
      iteration of a diagonal recurrence cannot.
    strict: Whether to raise if the tolerance is not reached. It has no effect
      where the residual is not known: in `jax.jit`, `jax.grad` and `jax.vmap`.

  Returns:
    `(h_last, h, residual)`: the state after the last token, all states
    `[B, T, D]` or `[B, T, K, D]`, and the largest difference of a state from
    `step` of the state before it, divided by the size of the state where that
    is above 1, `[B]`; NaN if a state is. Where `strict` could raise, a residual
    above the tolerance is a warning otherwise.

  Raises:
    ValueError: If shapes or dtypes disagree, or a number is out of range.
    FloatingPointError: If `strict` and the tolerance is not reached.
  """
  h0 = jnp.asarray(h0)
  checking.are_floating(h0=h0)
  if jnp.finfo(h0.dtype).bits < 32:
    raise ValueError(
        f'`h0` must be float32 or float64, got {h0.dtype}: states of a '
        'recurrence need more digits.'
    )
  if h0.ndim not in (2, 3):
    raise ValueError(f'`h0` must be [B, D] or [B, K, D], got {h0.shape}.')
  leaves, structure = jax.tree.flatten(jax.tree.map(jnp.asarray, x))
  if not leaves or any(u.ndim < 2 for u in leaves):
    raise ValueError('`x` must be a tree of arrays [B, T, ...].')
  batch, time = leaves[0].shape[:2]
  for u in leaves:
    if u.shape[:2] != (batch, time):
      raise ValueError(
          f'All arrays of `x` must be [B, T, ...] with B, T = {batch}, {time}, '
          f'got {u.shape}.'
      )
  axes = 'BD' if h0.ndim == 2 else 'BKD'
  checking.has_shape('h0', h0, axes, (batch, *h0.shape[1:]))
  if initial is None:
    initial = jnp.zeros_like(h0)
  initial = jnp.asarray(initial, h0.dtype)
  checking.has_shape('initial', initial, axes, h0.shape)
  reset, mask = checking.flags(reset, mask, (batch, time))
  if mask is not None and reset is not None:
    reset = reset & mask
  for name, value in (
      ('num_iterations', num_iterations), ('max_iterations', max_iterations)
  ):
    if value is not None and value < 1:
      raise ValueError(f'`{name}` must be at least 1, got {value}.')
  for name, value in (('tolerance', tolerance), ('max_slope', max_slope)):
    if value is not None and not value > 0:
      raise ValueError(f'`{name}` must be above 0, got {value}.')
  if not h0.size * time:
    return h0, jnp.zeros((batch, time, *h0.shape[1:]), h0.dtype), (
        jnp.zeros((batch,), h0.dtype)
    )
  if mask is not None:
    # An absent token may hold anything, and 0 * NaN would be in the gradients.
    leaves = [
        jnp.where(_as_flag(mask, u), u, 0)
        if jnp.issubdtype(u.dtype, jnp.inexact) else u
        for u in leaves
    ]
  # Inside a user's `jax.shard_map` all of them vary over the same axes.
  leaves, h0, initial, reset, mask = rows.vary_together(
      (leaves, h0, initial, reset, mask)
  )
  x = structure.unflatten(leaves)
  flat = lambda u: u.reshape(batch * time, *u.shape[2:])
  token = jax.tree.map(flat, x)
  state = flat(
      jnp.broadcast_to(h0[:, None], (batch, time, *h0.shape[1:]))
  )
  step = _checked('step', step, state.shape)
  step, constants = jax.closure_convert(step, state, token)
  approximate, others = None, []
  if linearize is not None:
    shapes = state.shape, (*state.shape[:-1], *state.shape[1:])
    linearize = _checked('linearize', linearize, *shapes)
    approximate, others = jax.closure_convert(linearize, state, token)
  problem = _Problem(
      step, approximate, num_iterations, max_iterations or time,
      tolerance or _ROUNDING * float(jnp.finfo(h0.dtype).eps), max_slope,
  )
  others = jax.tree.map(lax.stop_gradient, others)
  h, residual = _solve(
      problem, constants, others, x, h0, initial, reset, mask
  )
  _report(residual, problem.tolerance, strict)
  return h[:, -1], h, residual


@lambda fn: jax.custom_vjp(fn, nondiff_argnums=(0,))
def _solve(problem, constants, others, x, h0, initial, reset, mask):
  """Returns the states and the residuals."""
  system = _System(problem, constants, others, x, h0, initial, reset, mask)

  first = system.guess()

  def linearize(h):
    # A state that overflowed says nothing: its guess starts again.
    p = system.previous(jnp.where(jnp.isfinite(h), h, first))
    return p, *system.linearize(p, problem.max_slope)

  def iterate(p, f, J):
    # An infinite state, such as the logarithm of an empty one, is as `step`
    # left it: in a scan, 0 times it would be NaN.
    infinite = jnp.isinf(f)
    by_row, by_column = infinite, jnp.isinf(p)
    if J.ndim > p.ndim:
      by_row, by_column = by_row[:, :, :, None], by_column[:, :, None]
    J = jnp.where(by_row | by_column | ~jnp.isfinite(J), 0, J)
    h = system.scan(J, jnp.where(infinite, 0, f - _times(J, p)))
    return jnp.where(infinite, f, h)

  if problem.iterations is not None:
    h = lax.fori_loop(
        0, problem.iterations, lambda _, h: iterate(*linearize(h)), first
    )
    return h, _residual(h, system.step(system.previous(h), x, constants))

  def goes_on(state):
    count, moved, h, _, f, _ = state
    # Written so that a NaN goes on.
    solved = jnp.all(_residual(h, f) <= problem.tolerance)
    return (count < problem.limit) & moved & ~solved

  def body(state):
    count, _, old, *guess = state
    h = iterate(*guess)
    # From equal states all iterations are equal. So a NaN in one sequence does
    # not keep the others waiting for T iterations.
    return count + 1, _difference(h, old).any(), h, *linearize(h)

  moved, _ = mesh.same_varying(jnp.asarray(True), first)
  _, _, h, _, f, _ = lax.while_loop(
      goes_on, body,
      (jnp.zeros((), jnp.int32), moved, first, *linearize(first)),
  )
  return h, _residual(h, f)


def _forward(problem, constants, others, x, h0, initial, reset, mask):
  operands = constants, others, x, h0, initial, reset, mask
  h, residual = _solve(problem, *operands)
  return (h, residual), (operands, h)


def _backward(problem, residuals, cotangents):
  (constants, others, x, h0, initial, reset, mask), h = residuals
  dh, _ = cotangents  # The residual has no gradient.
  system = _System(problem, constants, others, x, h0, initial, reset, mask)
  p = system.previous(h)
  _, vjp = jax.vjp(
      lambda p, x, constants: system.step(p, x, constants), p, x, constants
  )
  _, J = system.linearize(p)
  adjoint = system.scan_back(J, dh)
  if problem.linearize is not None:
    # The scan used an approximate Jacobian: repeat it with what is missing.
    missing = lambda u: vjp(u)[0] - _times(_transposed(J), u)

    def iterate(state):
      count, u, _ = state
      new = system.scan_back(J, dh + system.next(missing(u)))
      # For each sequence by itself: another one may be larger, or NaN.
      largest = lambda u: u.max(axis=tuple(range(1, u.ndim)))
      size = largest(jnp.abs(new))
      change = largest(jnp.where(_difference(new, u), jnp.abs(new - u), 0))
      return count + 1, new, change / jnp.where(size > 0, size, 1)

    # Written so that a NaN goes on.
    goes_on = lambda state: (state[0] < h.shape[1]) & ~jnp.all(
        state[2] <= problem.tolerance
    )
    unknown, adjoint = mesh.same_varying(
        jnp.full(h.shape[:1], jnp.inf, h.dtype), adjoint
    )
    _, adjoint, _ = lax.while_loop(
        goes_on, iterate, (jnp.zeros((), jnp.int32), adjoint, unknown)
    )
  dp, dx, dconstants = vjp(adjoint)
  first = dp[:, 0]
  dinitial = jnp.zeros_like(initial)
  if reset is not None:
    entering = _as_flag(reset, dp)
    dinitial = jnp.where(entering, dp, 0).sum(1)
    first = jnp.where(entering[:, 0], 0, first)
  return (
      dconstants, jax.tree.map(jnp.zeros_like, others), dx, first, dinitial,
      None, None,
  )


_solve.defvjp(_forward, _backward)


class _System(NamedTuple):
  """The equations of all tokens, for states `[B, T, D]` or `[B, T, K, D]`."""

  problem: _Problem
  constants: Any
  others: Any
  x: Any
  h0: jax.Array
  initial: jax.Array
  reset: jax.Array | None
  mask: jax.Array | None

  def previous(self, h):
    """The states that enter each token, if `h` leave it."""
    p = jnp.concatenate([self.h0[:, None], h[:, :-1]], axis=1)
    if self.reset is None:
      return p
    return jnp.where(_as_flag(self.reset, p), self.initial[:, None], p)

  def step(self, p, x, constants):
    """`step` of every token; an absent one passes its state on."""
    f = self.per_token(self.problem.step, p, x, constants)
    return f if self.mask is None else jnp.where(_as_flag(self.mask, f), f, p)

  def linearize(self, p, limit=None):
    """`step` of every token at `p`, and the Jacobian that a scan uses."""
    if self.problem.linearize is not None:
      f, J = self.per_token(self.problem.linearize, p, self.x, self.others)
    else:
      run = lambda h, x, *constants: _exact(
          lambda h: self.problem.step(h, x, *constants), h
      )
      f, J = self.per_token(run, p, self.x, self.constants)
    if limit is not None:
      J = jnp.clip(J, -limit, limit)
    if self.mask is not None:
      f = jnp.where(_as_flag(self.mask, f), f, p)
      J = jnp.where(_as_flag(self.mask, J), J, _identity(p))
    # The state that enters the first token of a sequence is known.
    J = J.at[:, 0].set(0)
    if self.reset is not None:
      J = jnp.where(_as_flag(self.reset, J), 0, J)
    return f, J

  def per_token(self, fn, p, x, constants):
    """Runs `fn` on all tokens as one batch `[B T, ...]`."""
    flat = lambda u: u.reshape(-1, *u.shape[2:])
    results = fn(flat(p), jax.tree.map(flat, x), *constants)
    return jax.tree.map(
        lambda u: u.reshape(*p.shape[:2], *u.shape[1:]), results
    )

  def guess(self) -> jax.Array:
    """One step from the initial state, for every token that is there."""
    start = jnp.broadcast_to(self.initial[:, None], self._shape())
    f = self.per_token(self.problem.step, start, self.x, self.constants)
    if self.mask is None:
      return f
    # An absent one has the guess of the last one that is there, or `h0`.
    time = jnp.broadcast_to(jnp.arange(f.shape[1]), self.mask.shape)
    last = lax.cummax(jnp.where(self.mask, time, -1), axis=1)
    last = _as_flag(last, f)
    held = jnp.take_along_axis(f, jnp.maximum(last, 0), axis=1)
    return jnp.where(last < 0, self.h0[:, None], held)

  def scan(self, J, b):
    """Solves `h_t = J_t h_{t-1} + b_t`; `J` is 0 where a sequence starts."""
    return _linear(J, b, self.reset)

  def scan_back(self, J, b):
    """Solves `u_t = J_{t+1}^T u_{t+1} + b_t`."""
    starts = self.reset
    if starts is not None:
      starts = jnp.concatenate([starts[:, 1:], starts[:, :1]], axis=1)
    return _linear(self.next(_transposed(J)), b, starts, reverse=True)

  def next(self, u):
    """Moves `u` `[B, T, ...]` to the token before, 0 across a reset."""
    if self.reset is not None:
      u = jnp.where(_as_flag(self.reset, u), 0, u)
    return jnp.concatenate([u[:, 1:], jnp.zeros_like(u[:, :1])], axis=1)

  def _shape(self):
    time = jax.tree.leaves(self.x)[0].shape[1]
    return self.h0.shape[0], time, *self.h0.shape[1:]


def _linear(J, b, reset, reverse=False):
  """All states of a linear recurrence, diagonal or of small matrices."""
  run = api.linear_scan if b.ndim == 3 else block_scan
  return run(J, b, reset=reset, reverse=reverse)[1]


def _checked(name, fn, *shapes):
  """Returns `fn`, which now raises `ValueError` unless it returns these."""

  def run(h, x):
    results = fn(h, x)
    types = lambda shape, dtype: f'{dtype} {shape}'
    wanted = ', '.join(types(shape, h.dtype) for shape in shapes)
    got = ', '.join(
        types(jnp.shape(u), jnp.result_type(u))
        for u in jax.tree.leaves(results)
    )
    if got != wanted:
      raise ValueError(
          f'`{name}` must return {wanted} for {h.shape[0]} tokens, got {got}.'
      )
    return results

  return run


def _exact(step, h):
  """Returns `step(h)` and the Jacobian of a step that mixes no channels."""
  along = lambda tangent: jax.jvp(
      step, (h,), (mesh.same_varying(tangent, h)[0],)
  )
  if h.ndim == 2:
    return along(jnp.ones_like(h))
  columns = []
  for k in range(h.shape[1]):
    f, column = along(jnp.zeros_like(h).at[:, k].set(1))
    columns.append(column)
  return f, jnp.stack(columns, axis=2)


def _times(J, p):
  """`J p`, with 0 where `J` is 0, even if `p` is infinite."""
  if J.ndim == p.ndim:
    return jnp.where(J == 0, 0, J * p)
  return jnp.where(J == 0, 0, J * p[:, :, None]).sum(3)


def _transposed(J):
  return J if J.ndim == 3 else jnp.swapaxes(J, 2, 3)


def _identity(p):
  """The Jacobian of a token that is absent, with axes of size 1."""
  if p.ndim == 3:
    return jnp.ones((), p.dtype)
  return jnp.eye(p.shape[2], dtype=p.dtype)[:, :, None]


def _as_flag(flag, like):
  """Gives flags `[B, T]` as many axes as `like`."""
  return flag.reshape(*flag.shape, *(1,) * (like.ndim - 2))


def _difference(h, old):
  """Where two arrays differ; NaN is equal to NaN."""
  return (h != old) & ~(jnp.isnan(h) & jnp.isnan(old))


def _residual(h, f):
  """The largest difference `[B]`, for each state over its size or 1."""
  # Equal infinities are no difference.
  difference = jnp.where(h == f, 0, jnp.abs(h - f))
  size = jnp.maximum(jnp.abs(h), 1)
  return (difference / size).max(axis=tuple(range(1, h.ndim)))


def _report(residual, tolerance, strict):
  """Warns or raises about a residual, where it is known."""
  if isinstance(residual, core.Tracer) or not (
      residual.is_fully_addressable
  ):
    return
  worst = float(np.max(residual))
  if worst <= tolerance:
    return
  advice = (
      'allow more iterations (`newton_iterations` of a layer, whose default '
      'allows all), or set `max_slope` (`newton_max_slope` of a layer) to 1.'
  )
  if strict:
    raise FloatingPointError(
        f'newton_scan has a residual of {worst:.2g}, above its tolerance of '
        f'{tolerance:.2g}: {advice}'
    )
  # Python shows a text once for each line that calls: no residual is in it.
  warnings.warn(
      f'newton_scan did not reach its tolerance of {tolerance:.2g}: {advice}',
      stacklevel=3,
  )
