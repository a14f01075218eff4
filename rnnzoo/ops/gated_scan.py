"""`linear_scan` with its gates inside, where that is faster.

Gates computed outside a scan are written to memory and read again, and so are
their gradients: minGRU moves seven arrays. Where the scan reads what the gates
are made of it moves three, and nobody ever sees `a` and `x`; the backward pass
computes them anew. On CPU one core computes gates inside a scan, and all cores
those outside, and the second was faster in 11 of 12 measured cases
(`experiments/results/gated_scan_cpu_jax0.10.2.json`).
"""

from collections.abc import Callable, Sequence
import functools

import jax
import jax.numpy as jnp
from rnnzoo.ops import checking
from rnnzoo.ops import exact
from rnnzoo.ops.linear_scan import gradient

# `(start, *inputs) -> (a, x)`, element by element; `start` is the reset flag of
# the step, or None.
Gate = Callable[..., tuple[jax.Array, jax.Array]]


def positive(x: jax.Array) -> jax.Array:
  """The `g` of minGRU, always positive: `x + 0.5` above zero, sigmoid below."""
  return jnp.where(x >= 0, x + 0.5, jax.nn.sigmoid(x))


def identity(x: jax.Array) -> jax.Array:
  """The `g` of the plain form of minGRU."""
  return x


@functools.cache
def min_gru_gate(activation_fn: Callable = positive) -> Gate:
  """`a = 1 - z`, `x = z g(v)` with `z = sigmoid(k)`; inputs `k, v`.

  Feng et al. (2024), https://arxiv.org/abs/2410.01201.
  """

  def gate(start, k, v):
    del start
    z = jax.nn.sigmoid(k)
    # 1 - z, not sigmoid(-k): rounded apart, the two cost 40x in accuracy where
    # z is small.
    return 1 - z, z * activation_fn(v)

  return gate


@functools.cache
def min_lstm_gate(
    activation_fn: Callable = positive, normalize: bool = True
) -> Gate:
  """`a = f / (f + i)`, `x = i g(v) / (f + i)`; inputs: logits of f, i, and v.

  Without `normalize`, `a = f` and `x = i g(v)`. Feng et al. (2024),
  https://arxiv.org/abs/2410.01201.
  """

  def gate(start, forget, input_, v):
    del start
    if not normalize:
      return jax.nn.sigmoid(forget), jax.nn.sigmoid(input_) * activation_fn(v)
    # With f = 1 / (1 + u), i = 1 / (1 + w): z = i / (f + i) = (1 + u) / (2 +
    # u + w), all divided by the largest of 1, u and w, so that none overflows.
    # Exponentials alone: XLA:CPU leaves a loop with log1p to slower code.
    shift = jnp.maximum(jnp.maximum(-forget, -input_), 0)
    shift = jax.lax.stop_gradient(shift)  # It cancels.
    one = jnp.exp(-shift)
    u, w = jnp.exp(-forget - shift), jnp.exp(-input_ - shift)
    z = (one + u) / (2 * one + u + w)
    return 1 - z, z * activation_fn(v)

  return gate


def rg_lru_gate(start, rate, r, i, x):
  """`a = exp(-rate sigmoid(r))`, `sqrt(1 - a^2) sigmoid(i) x`.

  De et al. (2024), https://arxiv.org/abs/2402.19427: `rate` `[1, 1, D]` is
  `c softplus(Lambda)`. At a start nothing decays, and nothing is normalised.
  """
  log_a = -rate * jax.nn.sigmoid(r)
  scale = _normalizer(log_a)
  if start is not None:
    scale = jnp.where(start, 1, scale)
  return jnp.exp(log_a), scale * jax.nn.sigmoid(i) * x


@jax.custom_jvp
def _normalizer(log_a):
  """`sqrt(1 - a^2)`, without loss where `a` is near 1."""
  return jnp.sqrt(_one_minus_square(log_a))


@_normalizer.defjvp
def _normalizer_jvp(primals, tangents):
  (log_a,), (dlog_a,) = primals, tangents
  x = _one_minus_square(log_a)
  # The slope of the root is infinite at 0: no more than 1000, as published.
  slope = -jnp.exp(2 * log_a) * jax.lax.rsqrt(jnp.maximum(x, 2.5e-7))
  return jnp.sqrt(x), slope * dlog_a


def _one_minus_square(log_a):
  y = -2 * log_a
  if y.dtype == jnp.float64:
    return -jnp.expm1(-y)
  # In a loop on a CPU, expm1 is ten times slower than this, which is as good:
  # Taylor's series where the difference would cancel, and an exponential that
  # the gate has computed where not.
  series = 1 / 5040
  for factorial in (720, 120, 24, 6, 2, 1):
    series = 1 / factorial - y * series
  return jnp.where(y < 0.35, y * series, 1 - jnp.square(jnp.exp(log_a)))


def gated_scan(
    gate: Gate,
    inputs: Sequence[jax.Array],
    h0: jax.Array | None = None,
    *,
    reverse: bool = False,
    reset: jax.Array | None = None,
    mask: jax.Array | None = None,
) -> tuple[jax.Array, jax.Array]:
  """Computes `h_t = a_t * h_{t-1} + x_t` with `a_t, x_t = gate(*inputs_t)`.

  All that holds for `linear_scan` holds here: platforms, meshes, gradients.
  On TPU the kernel computes the gates inside the scan; on CPU and GPU they are
  computed before it. With `ops.implementation('sequential')` the loop computes
  them inside.

  >>> import jax.numpy as jnp
  >>> k, v = jnp.zeros((1, 3, 1)), jnp.ones((1, 3, 1))
  >>> h_last, h = gated_scan(min_gru_gate(), (k, v))
  >>> h[0, :, 0]
  Array([0.75  , 1.125 , 1.3125], dtype=float32)

  Args:
    gate: `min_gru_gate()`, `min_lstm_gate()`, `rg_lru_gate`, or a function of
      your own `(start, *inputs) -> (a, x)` that treats every element alike; its
      arguments are in the accumulation dtype. Always the same object, or all
      is traced anew.
    inputs: What the gate takes, real, each broadcastable to the last one, which
      is `[B, T, D]`.
    h0: State before the first step `[B, D]`; zeros if `None`.
    reverse: If `True`, time runs from `T - 1` down to `0`.
    reset: Booleans `[B, T]`, as in `linear_scan`.
    mask: Booleans `[B, T]`; where `False` the state passes unchanged.

  Returns:
    `(h_last, h)`: the state after the final step `[B, D]`, in the accumulation
    dtype `promote_types(float32, ...)` of the inputs, and all states `[B, T,
    D]`, in the dtype of the last input.

  Raises:
    ValueError: If shapes or dtypes disagree.
    NotImplementedError: If a pinned implementation cannot take the inputs.
    TypeError: On forward-mode differentiation of a hand-written gradient.
  """
  inputs = tuple(jnp.asarray(u) for u in inputs)
  if not inputs or inputs[-1].ndim != 3:
    raise ValueError(
        'the last of `inputs` must be [B, T, D], got shapes '
        f'{[u.shape for u in inputs]}.'
    )
  shape = inputs[-1].shape
  checking.are_floating(**{f'inputs[{i}]': u for i, u in enumerate(inputs)})
  inputs = tuple(
      checking.broadcastable(f'inputs[{i}]', u, shape)
      for i, u in enumerate(inputs)
  )
  dtype = exact.accumulation_dtype(*inputs)
  h0 = checking.state(h0, shape, dtype)
  reset, mask = checking.flags(reset, mask, shape)
  if not inputs[-1].size:  # No step, no row or no channel.
    return h0, inputs[-1]
  return gradient.scan(gate, inputs, h0, reset, mask, reverse=reverse)
