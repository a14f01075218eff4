"""RG-LRU (De et al., 2024), https://arxiv.org/abs/2402.19427."""

import math
from typing import Literal, NamedTuple

from flax import nnx
import jax
import jax.numpy as jnp
from rnnzoo import ops
from rnnzoo.layers import base
from rnnzoo.layers import common

Initialization = Literal['paper', 'recurrentgemma']

RATE = 8.0  # The paper's c.


class RGLRUCarry(NamedTuple):
  """State of an RG-LRU.

  Attributes:
    h: The state `[B, D]`, float32 at least; complex `[B, D / 2]` for CG-LRU.
    fresh: Booleans `[B]`, `True` until the first token; `h` is not read then.
  """

  h: jax.Array
  fresh: jax.Array


class StartedRecurrence(base.LinearRecurrence):
  """A linear recurrence that treats the first token of a sequence apart.

  A layer defines `recurrence` and `readout`, and `states`, the scan.
  """

  def recurrence(self, x, start=None):
    """Maps `[..., D_in]` to decays and inputs `[..., H]`.

    Args:
      x: Inputs.
      start: Booleans `[..., 1]`, `True` on the first token of a sequence.

    Returns:
      `(a, b)`.
    """
    raise TypeError(f'{type(self).__name__} does not define recurrence.')

  def states(self, x, h, start, mask):
    """Maps inputs and the state `[B, H]` to the last and all states."""
    raise TypeError(f'{type(self).__name__} does not define states.')

  def scan(self, x, carry, initial, reset, mask):
    fresh = carry.fresh
    if mask is None:
      first, none = jnp.arange(x.shape[1]) == 0, x.shape[1] == 0
    else:
      first, none = mask & (jnp.cumsum(mask, axis=1) == 1), ~mask.any(1)
    start = fresh[:, None] & first
    if reset is not None:
      start = start | reset
    h_last, h = self.states(x, carry.h, start, mask)
    return RGLRUCarry(h_last, fresh & none), h

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


class RGLRU(StartedRecurrence):
  r"""A real diagonal linear recurrence with a gate on its decay.

  .. math::
      r_t &= \sigma(W_a x_t + b_a), \quad i_t = \sigma(W_x x_t + b_x) \\
      a_t &= a^{c r_t}, \quad a = \sigma(\Lambda), \quad c = 8 \\
      h_t &= a_t \odot h_{t-1} + \sqrt{1 - a_t^2} \odot (i_t \odot x_t) \\
      y_t &= h_t

  :math:`W_a` and :math:`W_x` are block diagonal. The first token of a sequence
  is not normalised, :math:`h_1 = i_1 \odot x_1`, as in the published code; that
  is what `fresh` in the carry is for. The slope of the root is bounded by 1000.

  The state is `D` numbers and a flag a sequence. Cost a token: `2 D^2 / G`
  multiplications with `G` blocks. A whole sequence is one `ops.gated_scan`.

  The parameter is `a_param` :math:`= -\Lambda`, as in the published code. Paper
  and code start apart. `paper`: :math:`a^c` is uniform in [0.9, 0.999], and the
  gates' weights have variance `G / D`, 1 / fan-in. `recurrentgemma`: `a` itself
  is uniform over the ring of these radii, so that memory is eight times
  shorter, and the variance is `1 / D`, as the initialiser that is called there
  counts the blocks into the fan-in.

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
    make_parameters(
        self, in_features, num_heads, initialization, param_dtype, rngs
    )

  def initialize_carry(self, batch_size: int, dtype=None) -> RGLRUCarry:
    """Returns the carry before the first token: zeros, and fresh."""
    dtype = base.state_dtype(dtype or self.dtype)
    return RGLRUCarry(
        h=jnp.zeros((batch_size, self.in_features), dtype),
        fresh=jnp.ones((batch_size,), bool),
    )

  def project(self, x):
    return (*gate_inputs(self, x), x)

  def recurrence(self, x, start=None):
    rate, r, i, x = self.project(x)
    return ops.rg_lru_gate(start, rate, r, i, x.astype(r.dtype))

  def states(self, x, h, start, mask):
    return ops.gated_scan(
        ops.rg_lru_gate, self.project(x), h, reset=start, mask=mask
    )

  def readout(self, h, x):
    return h.astype(x.dtype)


def make_parameters(
    layer, features, num_heads, initialization, param_dtype, rngs
):
  """Gives `layer` the parameters of an RG-LRU with a state of `features`.

  Args:
    layer: Has `in_features`, which the gates read.
    features: Size `H` of the state.
    num_heads: As in `RGLRU`.
    initialization: Likewise.
    param_dtype: Likewise.
    rngs: Source of the initial parameters.

  Raises:
    ValueError: If the blocks do not divide `H`, or the initialisation is
      unknown.
  """
  width = layer.in_features
  if num_heads is None:
    num_heads = math.gcd(16, features)
  if num_heads < 1 or features % num_heads:
    raise ValueError(f'`num_heads` must divide {features}, got {num_heads}.')
  layer.num_heads = num_heads
  decay = decay_initializer(initialization)
  layer.a_param = nnx.Param(
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
  layer.W_a, layer.b_a = blocks(), zeros()
  layer.W_x, layer.b_x = blocks(), zeros()


def decay_initializer(initialization: Initialization):
  """`a_param` such that `a = exp(-softplus(a_param))` is as said in `RGLRU`.

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


def gate_inputs(layer, x):
  """The rate `[H]`, `-c log a`, and the logits of both gates `[..., H]`."""
  dtype = base.state_dtype(x.dtype)
  rate = RATE * jax.nn.softplus(layer.a_param[...].astype(dtype))
  logits = lambda w, b: common.block_diagonal(x, w[...], b[...], dtype)
  return rate, logits(layer.W_a, layer.b_a), logits(layer.W_x, layer.b_x)
