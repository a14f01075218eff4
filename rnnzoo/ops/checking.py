"""Checks of what a caller passes, shared by all ops.

Each error names the argument, what was expected and what came.
"""

from collections.abc import Sequence
from typing import NamedTuple, TypeVar

import jax
import jax.numpy as jnp

_State = TypeVar('_State', bound=NamedTuple)


def has_axes(name: str, u: jax.Array, axes: Sequence[str]):
  """Raises `ValueError` unless `u` has one axis for each letter of `axes`."""
  if u.ndim != len(axes):
    raise ValueError(f'`{name}` must be {brackets(axes)}, got shape {u.shape}.')


def has_shape(
    name: str, u: jax.Array, axes: Sequence[str], shape: Sequence[int]
):
  """Raises `ValueError` unless `u` has this shape.

  Args:
    name: The name of the argument.
    u: The argument, anything that has a shape.
    axes: A letter for each axis, for the message.
    shape: The expected shape.
  """
  if jnp.shape(u) != tuple(shape):
    raise ValueError(
        f'`{name}` must be {brackets(axes)} = {tuple(shape)}, got '
        f'{jnp.shape(u)}.'
    )


def are_floating(**operands: jax.Array | None):
  """Raises `ValueError` unless all operands that are given are real floats."""
  for name, u in operands.items():
    if u is not None and not jnp.issubdtype(u.dtype, jnp.floating):
      raise ValueError(f'`{name}` must be floating, got {u.dtype}.')


def are_inexact(**operands: jax.Array):
  """Raises `ValueError` unless all operands are floating or complex."""
  for name, u in operands.items():
    if not jnp.issubdtype(u.dtype, jnp.inexact):
      raise ValueError(f'`{name}` must be floating or complex, got {u.dtype}.')


def broadcastable(name: str, u: jax.Array, shape, like: str = 'x') -> jax.Array:
  """Returns `u` with three axes if it broadcasts to `shape`, or raises.

  Args:
    name: The name of the argument.
    u: The argument, with at most three axes.
    shape: Three sizes.
    like: The name of the operand that has this shape, for the message.
  """
  if u.ndim > 3 or any(
      n not in (1, m) for n, m in zip(u.shape[::-1], shape[::-1])
  ):
    raise ValueError(
        f'`{name}` must broadcast to the shape of `{like}` {shape}, got '
        f'{u.shape}.'
    )
  return u.reshape((1,) * (3 - u.ndim) + u.shape)


def state(h0: jax.Array | None, shape, dtype) -> jax.Array:
  """Returns the initial state `[B, D]` in `dtype`, zeros if `None`, or raises.

  Args:
    h0: The state, or `None`.
    shape: The shape of the inputs `[B, T, D]`.
    dtype: The dtype of states.
  """
  state_shape = shape[0], shape[2]
  if h0 is None:
    return jnp.zeros(state_shape, dtype)
  h0 = jnp.asarray(h0)
  has_shape('h0', h0, 'BD', state_shape)
  if jnp.issubdtype(h0.dtype, jnp.complexfloating) and not jnp.issubdtype(
      dtype, jnp.complexfloating
  ):
    raise ValueError(f'`h0` is {h0.dtype}, but all else is real.')
  return h0.astype(dtype)


def state_tuple(state: _State | None, empty: _State) -> _State:
  """Returns a state that is a NamedTuple in its own dtypes, or raises.

  Args:
    state: The state, or `None` for `empty`.
    empty: The state before the first token, of the wanted shapes and dtypes.
  """
  if state is None:
    return empty
  for name, got, want in zip(empty._fields, state, empty):
    if jnp.shape(got) != want.shape:
      raise ValueError(
          f'`state.{name}` must be {want.shape}, got {jnp.shape(got)}.'
      )
  return empty._make(
      jnp.asarray(got, want.dtype) for got, want in zip(state, empty)
  )


def flags(
    reset: jax.Array | None, mask: jax.Array | None, shape
) -> tuple[jax.Array | None, jax.Array | None]:
  """Returns the flags `reset` and `mask` as arrays, or raises.

  Args:
    reset: Booleans `[B, T]`, or `[B]` for one step; `None` stays `None`.
    mask: Likewise.
    shape: The shape of the inputs `[B, T, ...]`, or `[B]` for one step.
  """
  return flag('reset', reset, shape), flag('mask', mask, shape)


def flag(name: str, flag: jax.Array | None, shape) -> jax.Array | None:
  """Returns one flag as an array, or raises; see `flags`."""
  if flag is None:
    return None
  flag = jnp.asarray(flag)
  if flag.shape != shape[:2] or flag.dtype != jnp.bool_:
    raise ValueError(
        f'`{name}` must be bool {shape[:2]}, got {flag.dtype} {flag.shape}.'
    )
  return flag


def brackets(axes: Sequence[str]) -> str:
  """`BTD` as `[B, T, D]`."""
  return f'[{", ".join(axes)}]'
