"""What every layer of the zoo promises, and the two ways to keep it.

Axes: `B` batch, `T` time, `D` features, `H` hidden features, `N` state
features. Time is axis 1 everywhere. A diagonal linear recurrence inherits
`LinearRecurrence` and is one `ops.linear_scan`, or `GatedRecurrence` and is one
`ops.gated_scan`; a nonlinear one inherits
`RecurrentCell` and is scanned token by token.
"""

from collections.abc import Callable
import functools
import importlib
import sys
import textwrap
from typing import Any, NamedTuple

from flax import nnx
import jax
import jax.numpy as jnp
from rnnzoo import ops

# XLA:CPU once widened the whole of a stack of bfloat16 outputs for every row
# that a loop wrote to it: ten times slower at T = 4096. (Measured: 0.10.2 does
# so, 0.12 does not.)
_STACK_WIDE = jax.__version_info__ < (0, 12)

Carry = Any  # A pytree of arrays, batch axis first; each layer says which.


def _with_arrays(method: Callable, place: int) -> Callable:
  """Wraps `__call__` and the like: lists and NumPy arrays become JAX arrays.

  Args:
    method: Of a layer.
    place: Where `x` is among its arguments.

  Returns:
    A method of the same arguments, whatever they are: a call that does not fit
    gets Python's own message, which names `method`.
  """

  @functools.wraps(method)
  def run(self, *args, **options):
    args = [
        as_array('x', u, required=True) if i == place else u
        for i, u in enumerate(args)
    ]
    options = {
        k: as_array(k, u, required=k == 'x') if k in _ARRAYS else u
        for k, u in options.items()
    }
    return method(self, *args, **options)

  return run


_ARRAYS = ('x', 'reset', 'mask', 'dt', 'v_first')
# The door of all layers: what `RecurrentLayer` wraps in each of its subclasses,
# and where `x` is among the arguments.
_DOOR = dict(__call__=0, first_value=0, step=1)


class RecurrentLayer(nnx.Module):
  """A sequence layer with a state of fixed size.

  The carry comes first, going in and coming out, as in `jax.lax.scan`. For
  every layer the whole sequence, chunks of it of any lengths, and a scan of
  `step` give the same outputs, carry and gradients.

  `reset` marks where a new sequence starts: before that token is read the state
  becomes that of `initialize_carry`, by selection, so nothing from before, not
  even a NaN, reaches what comes after. `mask` marks the steps that exist: where
  it is `False` the carry passes unchanged, the output is 0, and no gradient
  flows.

  Outputs have the compute dtype: `dtype` if the layer was given one, else that
  of `x`. States are kept in `promote_types(float32, compute dtype)`.

  `x`, the flags and the side inputs may be lists or NumPy arrays: the methods
  of every subclass get them as JAX arrays. A carry stays as it is. In a
  subclass `x` and `carry` must have these names, and everything else is passed
  by keyword.

  Attributes:
    in_features: Size `D_in` of an input token.
    out_features: Size `D_out` of an output token.
    dtype: Compute dtype, or `None` for that of the input.
    causal: Whether outputs depend on no later input; else there is no `step`.
    gathers_time: Whether on a mesh that splits time every device computes all
      of it, and so needs the whole sequence, instead of a stretch of it.
    input_shape: Of layers only whose token is no vector: its sizes, the last of
      them `in_features`, `[H, W, C]` of an image. Read `[B, T, H, W, C]` for
      `[B, T, D_in]` then; outputs differ from that in their last axis only.
  """

  in_features: int
  out_features: int
  dtype: Any = None
  causal: bool = True
  gathers_time: bool = False

  def __init_subclass__(cls, **options):
    super().__init_subclass__(**options)
    for name, place in _DOOR.items():
      if name in vars(cls):
        setattr(cls, name, _with_arrays(vars(cls)[name], place))

  def initialize_carry(self, batch_size: int, dtype=None) -> Carry:
    """Returns the carry before the first token.

    Args:
      batch_size: `B`.
      dtype: The compute dtype the carry is for; `self.dtype`, or else float32,
        if `None`.

    Returns:
      A pytree of arrays, batch axis first.
    """
    raise TypeError(f'{type(self).__name__} does not define initialize_carry.')

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
    # Pickle finds `jnp.tanh` by its name, and not the function inside its jit.
    return {
        name: _by_name(value) for name, value in super().__getstate__().items()
    }

  def __setstate__(self, state):
    super().__setstate__({
        name: value.find() if isinstance(value, _Named) else value
        for name, value in state.items()
    })


class _Named(NamedTuple):
  """A function by the name it has in its module."""

  module: str
  name: str

  def find(self):
    return getattr(importlib.import_module(self.module), self.name)


class RecurrentCell(RecurrentLayer):
  """A layer whose recurrence is not linear: it is scanned, token by token.

  A cell defines `project`, what a token needs that does not look at the state
  (one matmul for the whole sequence), and `update`, the rest.
  """

  gathers_time = True

  def project(self, x: jax.Array) -> Any:
    """Maps `[..., D_in]` to a pytree of `[..., ...]`."""
    raise TypeError(f'{type(self).__name__} does not define project.')

  def update(
      self, carry: Carry, projected: Any, dtype: jnp.dtype
  ) -> tuple[Carry, jax.Array]:
    """Maps a carry and a projected token to the next carry and `[B, D_out]`.

    Matmuls run in the compute dtype `dtype`, gates and states in that of the
    carry.
    """
    raise TypeError(f'{type(self).__name__} does not define update.')

  def __call__(self, x, carry=None, *, reset=None, mask=None):
    x, carry, initial, reset = prepare(self, x, carry, reset, mask)
    graphdef, weights = nnx.split(self)
    run = lambda weights, rows: nnx.merge(graphdef, weights)._scan(
        *rows, x.dtype
    )
    # Weights are gathered, and their gradients added up, once and not for every
    # token.
    carry, y = ops.map_rows(
        run, weights, (carry, self.project(x), initial, reset, mask)
    )
    return carry, y.astype(x.dtype)

  def _scan(self, carry, projected, initial, reset, mask, dtype):
    by_time = lambda u: jnp.moveaxis(u, 1, 0)

    def body(carry, inputs):
      projected, reset_t, mask_t = inputs
      carry, y = self._guarded(
          carry, projected, initial, reset_t, mask_t, dtype
      )
      return carry, y.astype(state_dtype(dtype)) if _STACK_WIDE else y

    inputs = jax.tree.map(by_time, (projected, reset, mask))
    carry, y = jax.lax.scan(body, carry, inputs)
    return carry, jnp.moveaxis(y, 0, 1)

  def step(self, carry, x, *, reset=None, mask=None):
    x, carry, initial, reset = prepare(self, x, carry, reset, mask, step=True)
    projected = self.project(x)
    return self._guarded(carry, projected, initial, reset, mask, x.dtype)

  def _guarded(self, carry, projected, initial, reset, mask, dtype):
    entering = carry if reset is None else select(reset, initial, carry)
    new, y = self.update(entering, projected, dtype)
    y = y.astype(dtype)
    if mask is None:
      return new, y
    return select(mask, new, carry), select(mask, y, jnp.zeros_like(y))


class LinearRecurrence(RecurrentLayer):
  """A layer `h_t = a_t * h_{t-1} + b_t`, parallel over time.

  A layer defines `recurrence`, the `a` and `b` of its tokens, and `readout`,
  the outputs of its states; neither looks across time.

  Attributes:
    initial_is_zero: Whether `initialize_carry` gives zeros, as a learned
      initial state does not.
  """

  initial_is_zero: bool = True

  def recurrence(self, x: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Maps `[..., D_in]` to decays, broadcastable to, and inputs `[..., H]`."""
    raise TypeError(f'{type(self).__name__} does not define recurrence.')

  def readout(self, h: jax.Array, x: jax.Array) -> jax.Array:
    """Maps states `[..., H]` and inputs `[..., D_in]` to `[..., D_out]`."""
    raise TypeError(f'{type(self).__name__} does not define readout.')

  def scan(self, x, carry, initial, reset, mask, dt=None):
    """Maps inputs `[B, T, D_in]` to the last carry and states `[B, T, H]`."""
    a, b = self.recurrence(x) if dt is None else self.recurrence(x, dt)
    if reset is not None and not self.initial_is_zero:
      b = jnp.where(reset[..., None], b + a * initial[:, None], b)
    a, b = idle_where_absent(a, b, mask)
    return ops.linear_scan(a, b, carry, reset=reset)

  def __call__(self, x, carry=None, *, reset=None, mask=None):
    x, carry, initial, reset = prepare(self, x, carry, reset, mask)
    carry, h = self.scan(x, carry, initial, reset, mask)
    return carry, masked(self.readout(h, x), mask)

  def step(self, carry, x, *, reset=None, mask=None):
    x, carry, initial, reset = prepare(self, x, carry, reset, mask, step=True)
    return self._advance(self.recurrence(x), x, carry, initial, reset, mask)

  def _advance(self, recurrence, x, carry, initial, reset, mask):
    a, b = recurrence
    h = a * (carry if reset is None else select(reset, initial, carry)) + b
    carry = h if mask is None else select(mask, h, carry)
    return carry, masked(self.readout(h, x), mask)


class TimedRecurrence(LinearRecurrence):
  """A linear recurrence whose steps may differ in length.

  `dt` `[B, T]`, in `step` `[B]`, is the length of each step as a multiple of
  the usual one, not negative: the time that the token stands for. `None` means
  1. It has a gradient.
  """

  def recurrence(
      self, x: jax.Array, dt: jax.Array | None = None
  ) -> tuple[jax.Array, jax.Array]:
    """`LinearRecurrence.recurrence`, with the lengths of the steps `[...]`."""
    raise TypeError(f'{type(self).__name__} does not define recurrence.')

  def __call__(self, x, carry=None, *, reset=None, mask=None, dt=None):
    x, carry, initial, reset = prepare(self, x, carry, reset, mask)
    dt = prepare_dt(dt, x, mask)
    carry, h = self.scan(x, carry, initial, reset, mask, dt)
    return carry, masked(self.readout(h, x), mask)

  def step(self, carry, x, *, reset=None, mask=None, dt=None):
    x, carry, initial, reset = prepare(self, x, carry, reset, mask, step=True)
    recurrence = self.recurrence(x, prepare_dt(dt, x, mask))
    return self._advance(recurrence, x, carry, initial, reset, mask)


class computed:  # A decorator, named like `property`.
  """A property that one may set, to another value for this layer."""

  def __init__(self, compute: Callable):
    self._compute = compute

  def __get__(self, layer, owner=None):
    return self if layer is None else self._compute(layer)


class GatedRecurrence(LinearRecurrence):
  """A layer whose `a` and `b` are computed from its projections by a gate.

  A layer defines `gate`, as `ops.gated_scan` takes it, and `project`.
  """

  gate: ops.Gate

  def project(self, x: jax.Array) -> tuple[jax.Array, ...]:
    """Maps `[..., D_in]` to what the gate takes, the last one `[..., H]`."""
    raise TypeError(f'{type(self).__name__} does not define project.')

  def recurrence(self, x):
    return self.gate(None, *self.project(x))

  def scan(self, x, carry, initial, reset, mask):
    if reset is not None and not self.initial_is_zero:
      # A reset to a state that is not zero is no business of the scan.
      return super().scan(x, carry, initial, reset, mask)
    return ops.gated_scan(
        self.gate, self.project(x), carry, reset=reset, mask=mask
    )


def scan_steps(layer, carry, x, *, reset=None, mask=None):
  """Scans `layer.step` over `x` `[B, T, D]`: the oracle for parallel forms."""
  x, reset, mask = (
      as_array(name, u)
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
  """Checks the arguments of a layer's call and brings them into working form.

  Args:
    layer: The layer that is called.
    x: `[B, T, D_in]`, or `[B, D_in]` for a step.
    carry: The given carry, or `None`.
    reset: `[B, T]` or `[B]`, or `None`.
    mask: Likewise.
    step: Whether this is a step.

  Returns:
    `(x, carry, initial, reset)`: `x` in the compute dtype, 0 where masked; the
    carry to start from; that of `initialize_carry`, which a reset puts back;
    and `reset`, `False` where masked.

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
  check_flags(x.shape[: len(axes)], reset=reset, mask=mask)
  x = x.astype(layer.dtype or x.dtype)
  initial = layer.initialize_carry(x.shape[0], x.dtype)
  if carry is None:
    carry = initial
  else:
    check_carry(carry, initial, x.dtype)
  if mask is not None:
    x = masked(x, mask)
    reset = None if reset is None else reset & mask
  # In a user's `jax.shard_map` a state made here would be the same on every
  # device, which its successor is not, and a scan wants one type for both.
  return ops.vary_together((x, carry, initial, reset))


def prepare_dt(dt, x, mask):
  """Checks lengths of steps and brings them into working form.

  Args:
    dt: Floating, of the shape of `x` but for its features, or `None`.
    x: Inputs, prepared.
    mask: The steps that exist, or `None`.

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


def as_array(name, value, *, required=False):
  """Returns a list or a NumPy array as a JAX array, `None` as it is.

  Args:
    name: Of the argument.
    value: What was given for it; an array of JAX stays as it is.
    required: Whether `None` is an error.

  Returns:
    An array of JAX, or `None`.

  Raises:
    ValueError: If it cannot be one, as a carry of several arrays cannot.
  """
  if value is None and required:
    raise ValueError(f'`{name}` must be an array, got None.')
  if value is None or isinstance(value, jax.Array):
    return value
  kind = type(value).__name__
  # A carry is no array, though all of its leaves may have one shape.
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


def check_flags(shape, **flags):
  """Raises `ValueError` unless all flags are `None` or bool of that shape."""
  for name, flag in flags.items():
    if flag is not None and (flag.shape != shape or flag.dtype != jnp.bool_):
      raise ValueError(
          f'`{name}` must be bool {shape}, got {flag.dtype} {flag.shape}.'
      )


def check_carry(carry, initial, dtype=None):
  """Raises `ValueError` unless `carry` is a tree like `initial`.

  Args:
    carry: What was given.
    initial: What it must be like.
    dtype: The compute dtype, of a layer's carry.
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
  """Describes a tree by the types of its arrays, in few words."""

  def of(u):
    if hasattr(u, 'shape') and hasattr(u, 'dtype'):
      return _Word(f'{u.dtype}[{",".join(map(str, u.shape))}]')
    return _Word(type(u).__name__)

  text = repr(jax.tree.map(of, tree))
  return textwrap.shorten(text, 200, placeholder=' ...')


class _Word(str):
  """A string that `repr` shows without quotes."""

  __repr__ = str.__str__


def select(flag: jax.Array, new: Carry, old: Carry) -> Carry:
  """Takes rows of `new` where `flag` `[B]` is `True`, else rows of `old`."""

  def one(n, o):
    return jnp.where(flag.reshape(flag.shape + (1,) * (n.ndim - 1)), n, o)

  return jax.tree.map(one, new, old)


def idle_where_absent(a, b, mask):
  """Returns decays of 1 and inputs of 0 where `mask` `[B, T]` is `False`."""
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
  """The sizes of an input token: `[D_in]` but for layers of images."""
  return getattr(layer, 'input_shape', (layer.in_features,))


def output_shape(layer) -> tuple[int, ...]:
  """The sizes of an output token."""
  return input_shape(layer)[:-1] + (layer.out_features,)


def _by_name(value):
  """The `_Named` of a function that has one; anything else as it is."""
  module = getattr(value, '__module__', None)
  name = getattr(value, '__qualname__', None)
  if None in (module, name) or isinstance(value, type):
    return value
  found = getattr(sys.modules.get(module), name, None)
  return _Named(module, name) if found is value else value
