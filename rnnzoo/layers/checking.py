"""Checks of the arguments of layers. Each error names the argument."""

import textwrap
from typing import Any

import jax
import jax.numpy as jnp


def as_array(name: str, value: Any, *, required: bool = False) -> Any:
  """Converts a list or a NumPy array to a JAX array.

  Args:
    name: Name of the argument, for messages.
    value: Its value. A JAX array is returned unchanged.
    required: Whether `None` is an error.

  Returns:
    A JAX array, or `None`.

  Raises:
    ValueError: If the value cannot be converted, like a carry of several
      arrays.
  """
  if value is None and required:
    raise ValueError(f'`{name}` must be an array, got None.')
  if value is None or isinstance(value, jax.Array):
    return value
  kind = type(value).__name__
  # NumPy would stack a carry whose arrays all have the same shape.
  if isinstance(value, dict) or hasattr(value, '_fields'):
    raise ValueError(
        f'`{name}` must be an array, got {kind}; `step` takes the carry first, '
        'a call takes `x` first.'
    )
  try:
    return jnp.asarray(value)
  except (TypeError, ValueError, OverflowError) as error:
    raise ValueError(
        f'`{name}` must be an array or a list of equally long rows of numbers, '
        f'got {kind}.'
    ) from error


def check_sizes(**sizes: int) -> None:
  """Raises `ValueError` unless all sizes, by their names, are at least 1."""
  for name, size in sizes.items():
    if size < 1:
      raise ValueError(f'`{name}` must be at least 1, got {size}.')


def channel_heads(
    channels: int, head_features: int | None, num_groups: int
) -> tuple[int, int]:
  """Returns the channels of a head and the number of heads, as in Mamba-2.

  >>> channel_heads(192, None, 3)
  (64, 3)

  Args:
    channels: The number of channels.
    head_features: Channels of a head. If `None`, 64, or all of them if there
      are fewer.
    num_groups: Number of groups of heads.

  Raises:
    ValueError: If a size is below 1 or does not divide what it should.
  """
  size = min(64, channels) if head_features is None else head_features
  check_sizes(head_features=size, num_groups=num_groups)
  if channels % size:
    raise ValueError(
        f'`head_features` must divide the {channels} channels, got {size}.'
    )
  heads = channels // size
  if heads % num_groups:
    raise ValueError(
        f'`num_groups` must divide the {heads} heads, got {num_groups}.'
    )
  return size, heads


def check_flags(shape, **flags):
  """Raises `ValueError` unless all flags are `None` or bool of that shape."""
  for name, flag in flags.items():
    if flag is not None and (flag.shape != shape or flag.dtype != jnp.bool_):
      raise ValueError(
          f'`{name}` must be bool {shape}, got {flag.dtype} {flag.shape}.'
      )


def check_carry(carry, initial, dtype=None):
  """Checks that two carries have the same structure, shapes and dtypes.

  Args:
    carry: The carry to check.
    initial: A carry of the right form.
    dtype: The compute dtype if `carry` is that of a layer, for the message.

  Raises:
    ValueError: If they differ.
  """
  want = jax.tree_util.tree_flatten_with_path(initial)
  got = jax.tree_util.tree_flatten_with_path(carry)
  arrays = all(hasattr(u, 'shape') and hasattr(u, 'dtype') for _, u in got[0])
  if want[1] != got[1] or not arrays:
    raise ValueError(
        f'`carry` must be {sketch(initial)}, got {sketch(carry)}; '
        'initialize_carry(batch_size) of the same layer makes one.'
    )
  for (path, w), (_, g) in zip(want[0], got[0]):
    if w.shape != g.shape or w.dtype != g.dtype:
      advice = ''
      if dtype is not None:
        advice = (
            f'; layer.initialize_carry(batch_size, jnp.{dtype}) makes one'
        )
      raise ValueError(
          f'`carry{jax.tree_util.keystr(path)}` must be {w.dtype} {w.shape}, '
          f'got {g.dtype} {g.shape}{advice}.'
      )


def sketch(tree) -> str:
  """Describes a tree by the dtypes and shapes of its arrays."""

  def of(u):
    if hasattr(u, 'shape') and hasattr(u, 'dtype'):
      return _Word(f'{u.dtype}[{",".join(map(str, u.shape))}]')
    return _Word(type(u).__name__)

  text = repr(jax.tree.map(of, tree))
  return textwrap.shorten(text, 200, placeholder=' ...')


class _Word(str):
  """A string that `repr` shows without quotes."""

  __repr__ = str.__str__
