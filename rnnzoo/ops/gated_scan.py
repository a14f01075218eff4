"""`linear_scan` with its gates inside, on platforms where that is faster.

If gates are computed before a scan, `a` and `x` and their gradients are written
to memory and read again: minGRU moves seven arrays. If the scan reads the
inputs of the gates instead, it moves three, and the backward pass recomputes
`a` and `x`. On CPU, one core computes gates inside a scan, but all cores
compute gates before it. The latter was faster in 11 of 12 measured cases
(`experiments/results/gated_scan_cpu_jax0.10.2.json`).
"""

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from rnnzoo.ops import checking
from rnnzoo.ops import exact
from rnnzoo.ops.linear_scan import gates
from rnnzoo.ops.linear_scan import gradient

# `(start, *inputs) -> (a, x)`, element by element. `start` is the reset flag of
# the step, or None.
Gate = Callable[..., tuple[jax.Array, jax.Array]]


def log_decay_gate(start, log_a, x):
  """`a = exp(log_a)`, `x = x`: a recurrence given by the log of its decay.

  A decay that is stored and trained in this form keeps its digits near 0.

  >>> import jax.numpy as jnp
  >>> inputs = jnp.full((1, 3, 1), jnp.log(.5)), jnp.ones((1, 3, 1))
  >>> gated_scan(log_decay_gate, inputs)[1][0, :, 0]
  Array([1.  , 1.5 , 1.75], dtype=float32)
  """
  del start
  return jnp.exp(log_a), x


def gated_scan(
    gate: Gate,
    inputs: Sequence[jax.Array],
    h0: jax.Array | None = None,
    *,
    reverse: bool = False,
    reset: jax.Array | None = None,
    mask: jax.Array | None = None,
    initial: jax.Array | None = None,
) -> tuple[jax.Array, jax.Array]:
  """Computes `h_t = a_t * h_{t-1} + x_t` with `a_t, x_t = gate(*inputs_t)`.

  Platforms, meshes and gradients are those of `linear_scan`. On TPU, the kernel
  computes the gates inside the scan. On CPU and GPU, they are computed before
  it, but with `ops.implementation('sequential')` the loop computes them inside.

  >>> import jax.numpy as jnp
  >>> average = lambda start, z, v: (1 - z, z * v)
  >>> z, v = jnp.full((1, 3, 1), 0.5), jnp.ones((1, 3, 1))
  >>> h_last, h = gated_scan(average, (z, v))
  >>> h[0, :, 0]
  Array([0.5  , 0.75 , 0.875], dtype=float32)

  Args:
    gate: An elementwise function `(start, *inputs) -> (a, x)`, like those of
      minGRU, minLSTM, RG-LRU and HGRN in `rnnzoo.layers`. Its arguments have
      the accumulation dtype. Pass the same object in every call: JAX compiles
      the program again for every new one.
    inputs: The inputs of the gate, real, each broadcastable to the last one,
      which is `[B, T, D]`.
    h0: State before the first step `[B, D]`; zeros if `None`.
    reverse: If `True`, time runs from `T - 1` down to `0`.
    reset: Booleans `[B, T]`, as in `linear_scan`.
    mask: Booleans `[B, T]`, `False` where the state does not change.
    initial: State `[B, D]` to which a reset returns; zeros if `None`. The gates
      are then computed before the scan on every platform.

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
  if initial is None or reset is None:
    return gradient.scan(gate, inputs, h0, reset, mask, reverse=reverse)
  checking.has_shape('initial', initial, 'BD', h0.shape)
  if mask is not None:
    reset = reset & mask
    inputs = [jnp.where(mask[..., None], u, 0) for u in inputs]
  a, x = gates.evaluate(gate, inputs, dtype, reset, None)
  # The scan resets to zero, so the first input has the decayed state added.
  decayed = a * initial[:, None].astype(dtype)
  x = jnp.where(reset[..., None], x + decayed, x)
  if mask is not None:
    a = jnp.where(mask[..., None], a, 1)
    x = jnp.where(mask[..., None], x, 0)
  h_last, h = gradient.scan(gates.linear, (a, x), h0, reset, reverse=reverse)
  return h_last, h.astype(inputs[-1].dtype)
