"""RG-LRU (De et al., 2024), https://arxiv.org/abs/2402.19427."""

import math
from typing import Literal, NamedTuple

from flax import nnx
import jax
import jax.numpy as jnp
from rnnzoo import ops
from rnnzoo.layers import base
from rnnzoo.layers import common
from rnnzoo.layers import recurrences

Initialization = Literal['paper', 'recurrentgemma']

RATE = 8.0  # The paper's c.


def rg_lru_gate(start, rate, r, i, x):
  """Computes `a = exp(-rate sigmoid(r))` and `sqrt(1 - a^2) sigmoid(i) x`.

  A gate for `ops.gated_scan`. `start` marks the first token of a sequence,
  which is not normalised, or is `None`.

  Args:
    start: Booleans, or `None`.
    rate: `c softplus(-Lambda)`, the rate of decay where the gate is open.
    r: Logits of the recurrence gate.
    i: Logits of the input gate.
    x: Inputs.

  Returns:
    `(a, x)` of the recurrence `h_t = a_t h_{t-1} + x_t`.
  """
  log_a = -rate * jax.nn.sigmoid(r)
  scale = _normalizer(log_a)
  if start is not None:
    scale = jnp.where(start, 1, scale)
  return jnp.exp(log_a), scale * jax.nn.sigmoid(i) * x


@jax.custom_jvp
def _normalizer(log_a):
  """`sqrt(1 - a^2)`, accurate where `a` is near 1."""
  return jnp.sqrt(_one_minus_square(log_a))


@_normalizer.defjvp
def _normalizer_jvp(primals, tangents):
  (log_a,), (dlog_a,) = primals, tangents
  x = _one_minus_square(log_a)
  # The slope of the root is infinite at 0. As in the published code, it is
  # bounded by 1000.
  slope = -jnp.exp(2 * log_a) * jax.lax.rsqrt(jnp.maximum(x, 2.5e-7))
  return jnp.sqrt(x), slope * dlog_a


def _one_minus_square(log_a):
  y = -2 * log_a
  if y.dtype == jnp.float64:
    return -jnp.expm1(-y)
  # In a loop on a CPU, expm1 is ten times slower than this form, which is as
  # accurate: a Taylor series where the difference would cancel, and elsewhere
  # the exponential that the gate computes anyway.
  series = 1 / 5040
  for factorial in (720, 120, 24, 6, 2, 1):
    series = 1 / factorial - y * series
  return jnp.where(y < 0.35, y * series, 1 - jnp.square(jnp.exp(log_a)))


class RGLRUCarry(NamedTuple):
  """State of an RG-LRU.

  Attributes:
    h: The state `[B, D]`, float32 at least; complex `[B, D / 2]` for CG-LRU.
    fresh: Booleans `[B]`, `True` until the first token, which does not use `h`.
  """

  h: jax.Array
  fresh: jax.Array


class RGLRU(recurrences.LinearRecurrence):
  r"""A real diagonal linear recurrence with a gate on its decay.

  .. math::
      r_t &= \sigma(W_a x_t + b_a), \quad i_t = \sigma(W_x x_t + b_x) \\
      a_t &= a^{c r_t}, \quad a = \sigma(\Lambda), \quad c = 8 \\
      h_t &= a_t \odot h_{t-1} + \sqrt{1 - a_t^2} \odot (i_t \odot x_t) \\
      y_t &= h_t

  :math:`W_a` and :math:`W_x` are block diagonal. The first token of a sequence
  is not normalised, :math:`h_1 = i_1 \odot x_1`, as in the published code; the
  flag `fresh` in the carry marks it. The slope of the root is bounded by 1000.

  The state is `D` numbers and a flag a sequence. A token costs `2 D^2 / G`
  multiplications with `G` blocks. A whole sequence is one `ops.gated_scan`.

  The parameter is `a_param` :math:`= -\Lambda`, as in the published code. Paper
  and code have different initial values. `paper`: :math:`a^c` is uniform in
  [0.9, 0.999], and the weights of the gates have variance `G / D`, 1 / fan-in.
  `recurrentgemma`: `a` itself is uniform over the ring of these radii, so that
  the memory is eight times shorter, and the variance is `1 / D`, because the
  initialiser that the code calls counts the blocks as inputs.

  Example::

    >>> from flax import nnx
    >>> import jax.numpy as jnp
    >>> layer = RGLRU(16, num_heads=4, rngs=nnx.Rngs(0))
    >>> x = jnp.ones((2, 10, 16))                     # [B, T, D]
    >>> carry, y = layer(x)
    >>> carry, y_next = layer.step(carry, x[:, -1])   # [B, D]
    >>> carry.h.shape, carry.fresh, y.shape
    ((2, 16), Array([False, False], dtype=bool), (2, 10, 16))

  Attributes:
    in_features: Size `D` of an input, of the state and of an output.
    out_features: `D`.
    num_heads: The number `G` of blocks.
  """

  def __init__(
      self,
      in_features: int,
      *,
      num_heads: int | None = None,
      initialization: Initialization = 'paper',
      dtype: jnp.dtype | None = None,
      param_dtype: jnp.dtype = jnp.float32,
      rngs: nnx.Rngs,
  ):
    """Creates the layer.

    Args:
      in_features: Size `D` of an input.
      num_heads: Number `G` of blocks of the gates' matrices; if `None`, the
        paper's 16, or the largest divisor of 16 that divides `D`.
      initialization: `paper` or `recurrentgemma`, see above.
      dtype: Compute dtype; that of the input if `None`.
      param_dtype: Dtype of the parameters, float32 at least for `a_param`.
      rngs: Source of the initial parameters.

    Raises:
      ValueError: If the blocks do not divide `D`, or the initialisation is
        unknown.
    """
    self.in_features = self.out_features = in_features
    self.dtype = dtype
    self._make_parameters(
        in_features, num_heads, initialization, param_dtype, rngs
    )

  def _make_parameters(
      self, features, num_heads, initialization, param_dtype, rngs
  ):
    """Makes the parameters for a state of `features`."""
    width = self.in_features
    if num_heads is None:
      num_heads = math.gcd(16, features)
    if num_heads < 1 or features % num_heads:
      raise ValueError(f'`num_heads` must divide {features}, got {num_heads}.')
    self.num_heads = num_heads
    decay = decay_initializer(initialization)
    self.a_param = nnx.Param(
        decay(rngs.params(), (features,), base.state_dtype(param_dtype)),
        axes=('hidden',), recurrent=True,
    )
    kernel = (num_heads, width // num_heads, features // num_heads)
    fan_in = kernel[1] if initialization == 'paper' else width
    normal = lambda: jax.random.normal(rngs.params(), kernel, param_dtype)
    blocks = lambda: nnx.Param(
        normal() / math.sqrt(fan_in), axes=('heads', 'inner', None)
    )
    zeros = lambda: nnx.Param(
        jnp.zeros(kernel[::2], param_dtype), axes=('heads', None)
    )
    self.W_a, self.b_a = blocks(), zeros()
    self.W_x, self.b_x = blocks(), zeros()

  @property
  def state_shape(self) -> tuple[int, ...]:
    """Sizes `(H,)` of the state of one sequence."""
    return (self.in_features,)

  def initialize_carry(self, batch_size: int, dtype=None) -> RGLRUCarry:
    """Returns the carry before the first token: zeros, and `fresh`."""
    return RGLRUCarry(
        h=super().initialize_carry(batch_size, dtype),
        fresh=jnp.ones((batch_size,), bool),
    )

  def __call__(self, x, carry=None, *, reset=None, mask=None):
    x, carry, _, reset = base.prepare(self, x, carry, reset, mask)
    if mask is None:
      first, is_empty = jnp.arange(x.shape[1]) == 0, x.shape[1] == 0
    else:
      first, is_empty = mask & (jnp.cumsum(mask, axis=1) == 1), ~mask.any(1)
    start = carry.fresh[:, None] & first
    if reset is not None:
      start = start | reset
    h_last, h = self._states(x, carry.h, start, mask)
    carry = RGLRUCarry(h_last, carry.fresh & is_empty)
    return carry, base.masked(self.readout(h, x), mask)

  def step(self, carry, x, *, reset=None, mask=None):
    x, carry, initial, reset = base.prepare(
        self, x, carry, reset, mask, step=True
    )
    entering = carry if reset is None else base.select(reset, initial, carry)
    start = entering.fresh[:, None]
    a, b = self.recurrence(x, start)
    h = a * jnp.where(start, 0, entering.h) + b
    y = self.readout(h, x)
    new = RGLRUCarry(h, entering.fresh & False)
    if mask is not None:
      new = base.select(mask, new, carry)
    return new, base.masked(y, mask)

  def recurrence(self, x, start=None):
    """Maps `[..., D_in]` to decays and inputs `[..., H]`.

    Args:
      x: Inputs.
      start: Booleans `[..., 1]`, `True` on the first token of a sequence, or
        `None` if no sequence starts.

    Returns:
      `(a, b)`.
    """
    rate, r, i = self._logits(x)
    return rg_lru_gate(start, rate, r, i, x.astype(r.dtype))

  def _states(self, x, h, start, mask):
    """Maps inputs and the state `[B, H]` to the last state and all states."""
    return ops.gated_scan(
        rg_lru_gate, (*self._logits(x), x), h, reset=start, mask=mask
    )

  def _logits(self, x):
    """Returns the rate `[H]`, `-c log a`, and both gates' logits `[..., H]`."""
    dtype = base.state_dtype(x.dtype)
    rate = RATE * jax.nn.softplus(self.a_param[...].astype(dtype))
    logits = lambda w, b: common.block_diagonal(x, w[...], b[...], dtype)
    return rate, logits(self.W_a, self.b_a), logits(self.W_x, self.b_x)

  def readout(self, h, x):
    return h.astype(x.dtype)


def decay_initializer(initialization: Initialization):
  """Makes an initializer of `a_param`, where `a = exp(-softplus(a_param))`.

  Args:
    initialization: `paper` or `recurrentgemma`.

  Returns:
    An initializer `(key, shape, dtype) -> array`.

  Raises:
    ValueError: If there is no such initialisation.
  """
  if initialization not in ('paper', 'recurrentgemma'):
    raise ValueError(
        "`initialization` must be 'paper' or 'recurrentgemma', got "
        f'{initialization!r}.'
    )

  def init(key, shape, dtype=jnp.float32):
    if initialization == 'paper':
      u = jax.random.uniform(key, shape, dtype, 0.9, 0.999)
      log_a = jnp.log(u) / RATE
    else:
      u = jax.random.uniform(key, shape, dtype, 0.9**2, 0.999**2)
      log_a = jnp.log(u) / 2
    return jnp.log(jnp.expm1(-log_a))

  return init
