"""`linear_scan`: the first-order recurrence under every diagonal layer.

An implementation only has to run (see `__init__.py` for its contract). The
gradient is written once, at the bottom, and is itself such a scan.
"""

import functools
from typing import Literal, get_args

import jax
import jax.numpy as jnp
from rnnzoo.ops.linear_scan import reference
from rnnzoo.ops.linear_scan import sharded
from rnnzoo.ops.linear_scan import xla

Implementation = Literal['reference', 'associative', 'sequential']
_IMPLEMENTATIONS = dict(
    reference=reference.scan,
    associative=xla.associative,
    sequential=xla.sequential,
)
# These two are differentiated by JAX itself, in forward mode too.
_PLAIN = ('reference', 'associative')

# Of `a`, `x`, `h0` and `reset`; see `sharded.py`.
_LAYOUTS = ('btd', 'btd', 'bd', 'bt')

_context = jax.make_user_context(None)


def implementation(name: Implementation):
  """Pins every scan traced inside `with implementation(name):` to one form.

  The choice is part of the `jax.jit` cache key, so it cannot go stale.

  >>> import jax.numpy as jnp
  >>> with implementation('reference'):
  ...   h_last, h = linear_scan(jnp.full((1, 3, 1), .5), jnp.ones((1, 3, 1)))
  >>> h_last
  Array([[1.75]], dtype=float32)

  Args:
    name: `reference` (`lax.scan`), `associative` (`lax.associative_scan`) or
      `sequential` (an in-place loop). The first two also allow `jax.jvp`.

  Returns:
    A context manager.

  Raises:
    ValueError: If there is no such implementation.
  """
  if name not in _IMPLEMENTATIONS:
    raise ValueError(
        f'`name` must be one of {get_args(Implementation)}, got {name!r}.'
    )
  return _context(name)


def linear_scan(
    a: jax.Array,
    x: jax.Array,
    h0: jax.Array | None = None,
    *,
    reverse: bool = False,
    reset: jax.Array | None = None,
) -> tuple[jax.Array, jax.Array]:
  """Computes `h_t = a_t * h_{t-1} + x_t` along axis 1.

  Runs in the form that suits the platform the program is lowered for: a loop
  without temporaries on CPU, `jax.lax.associative_scan` elsewhere. Under
  `jax.set_mesh` every device scans its own rows (axes `data`, `fsdp`) and
  channels (`model`). Differentiable in `a`, `x` and `h0`, through both results
  and any number of times; in forward mode (`jax.jvp`) only inside
  `with implementation('reference')` or `'associative'`.

  >>> import jax.numpy as jnp
  >>> x = jnp.ones((1, 4, 1))
  >>> reset = jnp.array([[False, False, True, False]])
  >>> h_last, h = linear_scan(jnp.full((1, 1, 1), .5), x, reset=reset)
  >>> h[0, :, 0]
  Array([1. , 1.5, 1. , 1.5], dtype=float32)

  Args:
    a: Decays, broadcastable to `[B, T, D]`, real or complex. A size of one
      along batch or time is never expanded in memory on CPU.
    x: Inputs `[B, T, D]`, real or complex.
    h0: State before the first step `[B, D]`; zeros if `None`.
    reverse: If `True`, time runs from `T - 1` down to `0`.
    reset: Booleans `[B, T]`; where `True` the state entering that step, in the
      direction of travel, is replaced by zero. By selection: a NaN before it
      reaches neither later values nor their gradients.

  Returns:
    `(h_last, h)`: the state after the final step `[B, D]` (index 0 if
    `reverse`), in the accumulation dtype `promote_types(float32, ...)` of `a`
    and `x`, and all states `[B, T, D]`, in the dtype of `x`, complex if `a` is.

  Raises:
    ValueError: If shapes or dtypes disagree.
    TypeError: On forward-mode differentiation outside the forms named above.
  """
  a, x, h0, reset = _checked(a, x, h0, reset)
  if x.size == 0:  # No step, no row or no channel: the state stays as it was.
    return h0, x
  name = _context.value
  # Outside the hand-written rule, so that it need not undo this.
  operands = sharded.aligned(x, (a, x, h0, reset), _LAYOUTS)
  if name in _PLAIN:
    return _run(name, reverse, False, *operands)
  try:
    return _scan(name, reverse, False, *operands)
  except TypeError as error:
    if 'forward-mode' not in str(error):
      raise
    raise TypeError(
        '`linear_scan` has a hand-written reverse-mode gradient; for jax.jvp, '
        "jacfwd or hessian trace it inside `with rnnzoo.ops.implementation("
        "'associative')` (or 'reference')."
    ) from error


def _checked(a, x, h0, reset):
  """Returns the operands in their final shapes and dtypes, or raises."""
  a, x = jnp.asarray(a), jnp.asarray(x)
  if x.ndim != 3:
    raise ValueError(f'`x` must be [B, T, D], got shape {x.shape}.')
  for name, u in (('a', a), ('x', x)):
    if not jnp.issubdtype(u.dtype, jnp.inexact):
      raise ValueError(f'`{name}` must be floating or complex, got {u.dtype}.')
  if a.ndim > 3 or any(
      n not in (1, m) for n, m in zip(a.shape[::-1], x.shape[::-1])
  ):
    raise ValueError(
        f'`a` must broadcast to the shape of `x` {x.shape}, got {a.shape}.'
    )
  a = a.reshape((1,) * (3 - a.ndim) + a.shape)
  dtype = jnp.promote_types(jnp.result_type(a, x), jnp.float32)
  if jnp.issubdtype(dtype, jnp.complexfloating):
    x = x.astype(jnp.promote_types(x.dtype, jnp.complex64))
  state_shape = (x.shape[0], x.shape[2])
  if h0 is None:
    h0 = jnp.zeros(state_shape, dtype)
  else:
    h0 = jnp.asarray(h0)
    if h0.shape != state_shape:
      raise ValueError(f'`h0` must be [B, D] = {state_shape}, got {h0.shape}.')
    if jnp.issubdtype(h0.dtype, jnp.complexfloating) and not jnp.issubdtype(
        dtype, jnp.complexfloating
    ):
      raise ValueError(
          f'`h0` is {h0.dtype}, but `a` {a.dtype} and `x` {x.dtype} are real.'
      )
    h0 = h0.astype(dtype)
  if reset is not None:
    reset = jnp.asarray(reset)
    if reset.shape != x.shape[:2] or reset.dtype != jnp.bool_:
      raise ValueError(
          f'`reset` must be bool [B, T] = {x.shape[:2]}, got {reset.dtype} '
          f'{reset.shape}.'
      )
  return a, x, h0, reset


def _run(name, reverse, decay_after, *operands):
  bind = lambda scan: functools.partial(
      scan, reverse=reverse, decay_after=decay_after
  )
  if name is not None:  # Exactly that one; never a fallback.
    scan = bind(_IMPLEMENTATIONS[name])
    if name in _PLAIN and sharded.is_partly_manual():
      # JAX cannot lower the gradient of a shard_map inside another one, and
      # XLA's partitioner knows how to split these two.
      return scan(*operands)
  else:  # Chosen at lowering, not by whichever device is local while tracing.
    scan = lambda *local: jax.lax.platform_dependent(
        *local, cpu=bind(xla.sequential), default=bind(xla.associative)
    )
  return sharded.over_mesh(scan, operands[1], operands, _LAYOUTS, ('bd', 'btd'))


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1, 2))
def _scan(name, reverse, decay_after, a, x, h0, reset):
  return _run(name, reverse, decay_after, a, x, h0, reset)


def _forward(name, reverse, decay_after, a, x, h0, reset):
  last, h = _scan(name, reverse, decay_after, a, x, h0, reset)
  return (last, h), (a, h, h0, reset)


def _backward(name, reverse, decay_after, residuals, cotangents):
  # The adjoint runs the other way, with the decay on the other side of a step:
  # it returns dx, and what is left of it before the first step is dh0.
  a, h, h0, reset = residuals
  dlast, dh = cotangents
  dh0, dx = _scan(name, not reverse, not decay_after, a, dh, dlast, reset)
  # a_t met the state on its left, and with it the cotangent on its right.
  dtype = h0.dtype
  if decay_after:
    left, right = h.astype(dtype), _beside(dx, dlast, reset, reverse)
  else:
    left, right = _beside(h, h0, reset, not reverse), dx.astype(dtype)
  da = left * right
  if not jnp.issubdtype(a.dtype, jnp.complexfloating):
    da = da.real
  over = tuple(i for i in range(3) if a.shape[i] != h.shape[i])
  return da.sum(over, keepdims=True).astype(a.dtype), dx, dh0, None


def _beside(u, edge, reset, from_the_left):
  """`u_{t-1}`, or `u_{t+1}`; `edge` fills the gap, and 0 is beyond a reset."""
  u, edge = u.astype(edge.dtype), edge[:, None]
  if from_the_left:
    u = jnp.concatenate([edge, u[:, :-1]], axis=1)
  else:
    u = jnp.concatenate([u[:, 1:], edge], axis=1)
  # Before anything multiplies it: 0 * NaN would cross into another sequence.
  return u if reset is None else jnp.where(reset[..., None], 0, u)


_scan.defvjp(_forward, _backward)
