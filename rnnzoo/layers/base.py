"""The contract of a layer: what every layer of the zoo promises.

Axes: `B` batch, `T` time, `D` features, `H` hidden features, `N` state
features. Time is axis 1 everywhere. A layer inherits `RecurrentLayer` or one of
the shared forms in `recurrences.py`, and starts with `prepare`, which checks
its arguments.
"""

from collections.abc import Callable
import functools
import importlib
from typing import Any

from flax import nnx
import jax
import jax.numpy as jnp
from rnnzoo import ops
from rnnzoo.layers import checking
from rnnzoo.layers import pickling

Carry = Any  # A pytree of arrays, batch axis first; each layer says which.
StateShape = Any  # `(H,)`, or a NamedTuple of several such tuples.


def _with_arrays(method: Callable, place: int) -> Callable:
  """Makes a method accept lists and NumPy arrays in place of JAX arrays.

  Args:
    method: A method of a layer, `__call__` for example.
    place: The position of `x` among its arguments.

  Returns:
    A method that passes all its arguments on. If they do not fit, Python's own
    message appears, which names `method`.
  """

  @functools.wraps(method)
  def run(self, *args, **options):
    args = [
        checking.as_array('x', u, required=True) if i == place else u
        for i, u in enumerate(args)
    ]
    options = {
        k: checking.as_array(k, u, required=k == 'x') if k in _ARRAYS else u
        for k, u in options.items()
    }
    return method(self, *args, **options)

  return run


_ARRAYS = ('x', 'reset', 'mask', 'dt', 'v_first')
# The methods that `RecurrentLayer` wraps in each of its subclasses, and the
# position of `x` among their arguments.
_WRAPPED = dict(__call__=0, first_value=0, step=1)


class RecurrentLayer(nnx.Module):
  """A sequence layer with a state of fixed size.

  As in `jax.lax.scan`, the carry comes first among the results, and first
  among the arguments of `step`. Three ways to run a sequence give the same
  outputs, carry and gradients: one call, calls on chunks of any lengths, and a
  scan of `step`.

  `reset` marks the tokens that start a new sequence. Before such a token is
  read, the state is replaced by that of `initialize_carry`. The replacement is
  a selection, so nothing from earlier tokens, not even a NaN, reaches later
  ones. `mask` marks the tokens that exist. Where it is `False` the carry passes
  unchanged, the output is 0, and no gradient flows.

  Outputs have the compute dtype: the `dtype` of the layer, or the dtype of `x`
  if that is `None`. States have the dtype `promote_types(float32, compute
  dtype)`.

  `x`, the flags and the side inputs may be lists or NumPy arrays: the methods
  of every subclass receive them as JAX arrays. A carry is not converted. A
  subclass must use the names `x` and `carry`, and take all other arguments by
  keyword.

  Attributes:
    in_features: Size `D_in` of an input token.
    out_features: Size `D_out` of an output token.
    dtype: Compute dtype, or `None` for that of the input.
    causal: Whether outputs depend on no later input. If not, the layer has no
      `step`.
    gathers_time: Whether, on a mesh that splits time, every device computes the
      whole sequence instead of a segment of it.
    state_shape: Sizes of the state of one sequence, if the carry is zero at the
      start: `(H,)`, or a NamedTuple of several such tuples.
    complex_state: Whether that state is complex.
    carry_tails: Names of the arrays of the carry that hold recent inputs, as of
      a convolution, and so have the compute dtype.
    input_shape: Defined only if a token is not a vector: the sizes of a token,
      `(H, W, C)` for an image, the last of them `in_features`. The layer then
      takes `[B, T, H, W, C]` in place of `[B, T, D_in]`, and its outputs differ
      from its inputs in the last axis only.
  """

  in_features: int
  out_features: int
  dtype: Any = None
  causal: bool = True
  gathers_time: bool = False
  state_shape: StateShape = None
  complex_state: bool = False
  carry_tails: tuple[str, ...] = ()

  def __init_subclass__(cls, **options):
    super().__init_subclass__(**options)
    for name, place in _WRAPPED.items():
      if name in vars(cls):
        setattr(cls, name, _with_arrays(vars(cls)[name], place))

  def initialize_carry(self, batch_size: int, dtype=None) -> Carry:
    """Returns the carry before the first token.

    It is zero, unless a subclass defines another one.

    Args:
      batch_size: `B`.
      dtype: The compute dtype that the carry is for. If `None`, it is the
        `dtype` of the layer, or else float32.

    Returns:
      A pytree of arrays, batch axis first.
    """
    if self.state_shape is None:
      raise TypeError(
          f'{type(self).__name__} does not define initialize_carry.'
      )
    compute_dtype = jnp.dtype(dtype or self.dtype or jnp.float32)
    dtype = state_dtype(compute_dtype)
    if self.complex_state:
      dtype = jnp.promote_types(dtype, jnp.complex64)
    zeros = lambda shape, dtype: jnp.zeros((batch_size, *shape), dtype)
    if not hasattr(self.state_shape, '_fields'):
      return zeros(self.state_shape, dtype)
    return type(self.state_shape)(**{
        name: zeros(shape, compute_dtype if name in self.carry_tails else dtype)
        for name, shape in self.state_shape._asdict().items()
    })

  def __call__(
      self,
      x: jax.Array,
      carry: Carry | None = None,
      *,
      reset: jax.Array | None = None,
      mask: jax.Array | None = None,
  ) -> tuple[Carry, jax.Array]:
    """Runs a whole sequence.

    Args:
      x: Inputs `[B, T, D_in]`, T >= 0.
      carry: The state left by earlier tokens; `initialize_carry` if `None`.
      reset: Booleans `[B, T]`, `True` on the first token of each sequence.
      mask: Booleans `[B, T]`, `False` on tokens to be skipped.

    Returns:
      `(carry, y)`: the state after the last token, and outputs `[B, T, D_out]`.

    Raises:
      ValueError: If shapes or dtypes disagree.
    """
    raise TypeError(f'{type(self).__name__} does not define __call__.')

  def step(
      self,
      carry: Carry,
      x: jax.Array,
      *,
      reset: jax.Array | None = None,
      mask: jax.Array | None = None,
  ) -> tuple[Carry, jax.Array]:
    """Runs one token: `x` `[B, D_in]`, `reset` and `mask` `[B]`.

    Returns:
      `(carry, y)`: the next state, and the output `[B, D_out]`.

    Raises:
      ValueError: If shapes or dtypes disagree.
    """
    raise TypeError(f'{type(self).__name__} does not define step.')

  def __getstate__(self):
    # Pickle cannot store the function inside `jnp.tanh`, which is jitted. It
    # can store the name.
    return {
        name: pickling.by_name(value)
        for name, value in super().__getstate__().items()
    }

  def __setstate__(self, state):
    super().__setstate__({
        name: value.find() if isinstance(value, pickling.Named) else value
        for name, value in state.items()
    })


def scan_steps(layer, carry, x, *, reset=None, mask=None):
  """Scans `layer.step` over `x` `[B, T, D]`, as a reference in tests."""
  x, reset, mask = (
      checking.as_array(name, u)
      for name, u in (('x', x), ('reset', reset), ('mask', mask))
  )
  _, carry, _, _ = prepare(layer, x, carry, reset, mask)
  by_time = lambda u: jnp.moveaxis(u, 1, 0)

  def body(carry, inputs):
    x_t, reset_t, mask_t = inputs
    return layer.step(carry, x_t, reset=reset_t, mask=mask_t)

  carry, y = jax.lax.scan(
      body, carry, jax.tree.map(by_time, (x, reset, mask))
  )
  return carry, jnp.moveaxis(y, 0, 1)


def prepare(layer, x, carry, reset, mask, *, step=False):
  """Checks the arguments of a layer's call, and fills in what is missing.

  Args:
    layer: The layer that is called.
    x: `[B, T, D_in]`, or `[B, D_in]` for a step.
    carry: A carry, or `None`.
    reset: `[B, T]`, or `[B]` for a step, or `None`.
    mask: Likewise.
    step: Whether `step` is called.

  Returns:
    `(x, carry, initial, reset)`: `x` in the compute dtype, 0 where masked; the
    carry to start from; the carry of `initialize_carry`, to which a reset
    returns; and `reset`, `False` where masked.

  Raises:
    ValueError: If shapes or dtypes disagree.
  """
  axes, token = ('B',) if step else ('B', 'T'), input_shape(layer)
  fits = lambda shape: (
      len(shape) == len(axes) + len(token) and shape[len(axes) :] == token
  )
  if not fits(x.shape):
    names = ('D',) if len(token) == 1 else ('H', 'W', 'C')
    swapped = step and fits(getattr(carry, 'shape', ()))
    raise ValueError(
        f'`x` must be [{", ".join(axes + names)}] with '
        f'{", ".join(names)} = {", ".join(map(str, token))}, got {x.shape}'
        + ('; the carry is the first argument of `step`.' if swapped else '.')
    )
  if not jnp.issubdtype(x.dtype, jnp.floating):
    raise ValueError(f'`x` must be floating, got {x.dtype}.')
  checking.check_flags(x.shape[: len(axes)], reset=reset, mask=mask)
  x = x.astype(layer.dtype or x.dtype)
  initial = layer.initialize_carry(x.shape[0], x.dtype)
  if carry is None:
    carry = initial
  else:
    checking.check_carry(carry, initial, x.dtype)
  if mask is not None:
    x = masked(x, mask)
    reset = None if reset is None else reset & mask
  # Inside a `jax.shard_map` of the user, JAX types the zeros made here as equal
  # on all devices, but the next state as varying. A scan needs one type.
  return ops.vary_together((x, carry, initial, reset))


def prepare_dt(dt, x, mask):
  """Checks the lengths of steps, and converts them to the dtype of states.

  Args:
    dt: Floating, of the shape of `x` without its features, or `None`.
    x: Inputs from `prepare`.
    mask: Booleans of the shape of `dt`, `False` on skipped steps, or `None`.

  Returns:
    `dt` in the dtype of states, 1 where masked; or `None`.

  Raises:
    ValueError: If shapes or dtypes disagree.
  """
  if dt is None:
    return None
  if dt.shape != x.shape[:-1] or not jnp.issubdtype(dt.dtype, jnp.floating):
    raise ValueError(
        f'`dt` must be floating {x.shape[:-1]}, got {dt.dtype} {dt.shape}.'
    )
  dt = dt.astype(state_dtype(x.dtype))
  return dt if mask is None else jnp.where(mask, dt, 1)


def select(flag: jax.Array, new: Carry, old: Carry) -> Carry:
  """Takes rows of `new` where `flag` `[B]` is `True`, else rows of `old`."""

  def one(n, o):
    return jnp.where(flag.reshape(flag.shape + (1,) * (n.ndim - 1)), n, o)

  return jax.tree.map(one, new, old)


def carry_shape(
    carry_type: Callable[..., Any], **sizes: tuple[int, ...]
) -> StateShape:
  """Returns a `state_shape`: a carry with sizes in place of its arrays."""
  return carry_type(**sizes)


def idle_where_absent(a, b, mask):
  """Replaces decays by 1 and inputs by 0 where `mask` `[B, T]` is `False`."""
  if mask is None:
    return a, b
  return jnp.where(mask[..., None], a, 1), masked(b, mask)


def state_dtype(dtype) -> jnp.dtype:
  """The dtype of states and gates for a compute dtype: float32 at least."""
  return jnp.promote_types(jnp.float32, dtype or jnp.float32)


def masked(y: jax.Array, mask: jax.Array | None) -> jax.Array:
  """Returns `y` with 0 where `mask`, over its leading axes, is `False`."""
  if mask is None:
    return y
  return jnp.where(mask.reshape(mask.shape + (1,) * (y.ndim - mask.ndim)), y, 0)


def input_shape(layer) -> tuple[int, ...]:
  """The sizes of an input token: `(D_in,)`, or those of an image."""
  return getattr(layer, 'input_shape', (layer.in_features,))


def output_shape(layer) -> tuple[int, ...]:
  """The sizes of an output token."""
  return input_shape(layer)[:-1] + (layer.out_features,)


def __getattr__(name):
  # Layers of users may name these forms as they were named in version 0.1,
  # before they had a file of their own.
  if name in ('LinearRecurrence', 'RecurrentCell', 'TimedRecurrence'):
    return getattr(importlib.import_module('rnnzoo.layers.recurrences'), name)
  raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
