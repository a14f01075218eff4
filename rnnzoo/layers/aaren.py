"""Aaren (Feng et al., 2024), https://arxiv.org/abs/2405.13956."""

import math

from flax import nnx
import jax
import jax.numpy as jnp
from rnnzoo import ops
from rnnzoo.layers import base
from rnnzoo.layers import common
from rnnzoo.layers import initializers

AarenCarry = ops.SoftmaxState


class Aaren(base.RecurrentLayer):
  r"""Attention with a learned query, the same for every token.

  .. math::
      s_t &= \langle q, W_k x_t \rangle / \sqrt{d}, \quad v_t = W_v x_t \\
      m_t &= \max(m_{t-1}, s_t) \\
      u_t &= e^{m_{t-1} - m_t} u_{t-1} + e^{s_t - m_t} \\
      w_t &= e^{m_{t-1} - m_t} w_{t-1} + e^{s_t - m_t} v_t \\
      y_t &= W_o (w_t / u_t)

  for every head, each with its own `q`. `w_t / u_t` is the softmax attention of
  `q` over the tokens so far; `m` only keeps the exponentials in range. The
  query does not depend on the token, so this is not causal self-attention, and
  needs no cache: the state is `H (d + 2)` numbers a sequence. In parallel it is
  one running maximum and two linear recurrences (`ops.softmax_scan`); the
  prefix operator of the paper on `(m, u, w)` gives the same numbers. A token
  costs `2 D H d + D H` multiplications: scores are inner products of the token
  with `W_k q`, and keys are never computed.

  We had only the abstract of the paper. It describes a module based on
  attention that is trained in parallel by the prefix scan and updated with new
  tokens in constant memory. We could not verify these choices, which are as in
  a Transformer: heads, the scale, an output map, maps without biases (a bias of
  `W_k` would cancel), `q` from N(0, 1), and initial maps as in PyTorch.

  Example::

    >>> from flax import nnx
    >>> import jax.numpy as jnp
    >>> layer = Aaren(16, num_heads=4, rngs=nnx.Rngs(0))
    >>> x = jnp.ones((2, 10, 16))                     # [B, T, D]
    >>> carry, y = layer(x)                           # [B, T, D]
    >>> carry, y_next = layer.step(carry, x[:, -1])   # [B, D]
    >>> carry, y_last = layer.last(x)                 # [B, D], many to one
    >>> carry.m.shape, carry.w.shape, y.shape
    ((2, 4), (2, 4, 4), (2, 10, 16))

  Attributes:
    in_features: Size `D` of an input.
    num_heads: Number `H` of heads.
    hidden_features: Size `H d` of all values.
    out_features: `D` if the output is projected, else `H d`.
  """

  def __init__(
      self,
      in_features: int,
      *,
      num_heads: int = 8,
      head_features: int | None = None,
      use_projection: bool = True,
      use_bias: bool = False,
      dtype: jnp.dtype | None = None,
      param_dtype: jnp.dtype = jnp.float32,
      rngs: nnx.Rngs,
  ):
    """Creates the layer.

    Args:
      in_features: Size `D` of an input.
      num_heads: Number `H` of heads.
      head_features: Size `d` of keys and values; `D / H` if `None`.
      use_projection: Whether there is an output map.
      use_bias: Whether the maps of values and outputs have biases.
      dtype: Compute dtype; that of the input if `None`.
      param_dtype: Dtype of the parameters.
      rngs: Source of the initial parameters.

    Raises:
      ValueError: If `H` does not divide `D` and `head_features` is `None`.
    """
    if head_features is None:
      if num_heads < 1 or in_features % num_heads:
        raise ValueError(
            f'`num_heads` must divide `in_features` = {in_features}, got '
            f'{num_heads}; or give `head_features`.'
        )
      head_features = in_features // num_heads
    self.in_features = in_features
    self.num_heads, self.head_features = num_heads, head_features
    self.hidden_features = hidden = num_heads * head_features
    self.out_features = in_features if use_projection else hidden
    self.dtype = dtype

    def heads(use_bias):
      return nnx.LinearGeneral(
          in_features,
          (num_heads, head_features),
          use_bias=use_bias,
          kernel_init=initializers.uniform_fan_in(in_features),
          bias_init=initializers.uniform_fan_in(in_features),
          kernel_metadata=dict(axes=('embed', 'hidden', None)),
          bias_metadata=dict(axes=('hidden', None)),
          param_dtype=param_dtype,
          rngs=rngs,
      )

    self.query = nnx.Param(
        jax.random.normal(
            rngs.params(), (num_heads, head_features), param_dtype
        ),
        axes=('hidden', None),
    )
    self.key = heads(False)
    self.value = heads(use_bias)
    if use_projection:
      self.output = nnx.Linear(
          hidden,
          in_features,
          use_bias=use_bias,
          kernel_init=initializers.uniform_fan_in(hidden),
          bias_init=initializers.uniform_fan_in(hidden),
          kernel_metadata=dict(axes=('hidden', 'embed')),
          bias_metadata=dict(axes=(None,)),
          param_dtype=param_dtype,
          rngs=rngs,
      )
    else:
      self.output = None

  def initialize_carry(self, batch_size: int, dtype=None) -> AarenCarry:
    """Returns the carry before the first token: sums of 0, and `m = -inf`."""
    return ops.empty_softmax_state(
        batch_size, self.num_heads, self.head_features,
        base.state_dtype(dtype or self.dtype),
    )

  def __call__(self, x, carry=None, *, reset=None, mask=None):
    x, carry, _, reset = base.prepare(self, x, carry, reset, mask)
    s, v = self._scores(x), common.project(self.value, x)
    carry, o = ops.softmax_scan(s, v, carry, reset=reset, mask=mask)
    return carry, self._readout(o, mask)

  def last(self, x, carry=None, *, reset=None, mask=None):
    """Runs a whole sequence and returns its last output only.

    Args:
      x: Inputs `[B, T, D]`.
      carry: The state left by earlier tokens; `initialize_carry` if `None`.
      reset: Booleans `[B, T]`.
      mask: Booleans `[B, T]`.

    Returns:
      `(carry, y)`: the state, and the output `[B, D_out]` at the last token
      that `mask` keeps.

    Raises:
      ValueError: If shapes or dtypes disagree.
    """
    x, carry, _, reset = base.prepare(self, x, carry, reset, mask)
    s, v = self._scores(x), common.project(self.value, x)
    carry, o = ops.softmax_last(s, v, carry, reset=reset, mask=mask)
    return carry, self._readout(o, None)

  def step(self, carry, x, *, reset=None, mask=None):
    x, carry, initial, reset = base.prepare(
        self, x, carry, reset, mask, step=True
    )
    s, v = self._scores(x), common.project(self.value, x)
    old = carry if reset is None else base.select(reset, initial, carry)
    m = jnp.maximum(old.m, s)
    a, b = jnp.exp(old.m - m), jnp.exp(s - m)
    new = AarenCarry(
        m=m,
        u=a * old.u + b,
        w=a[..., None] * old.w + b[..., None] * v.astype(s.dtype),
    )
    o = (new.w / new.u[..., None]).astype(x.dtype)
    if mask is not None:
      new = base.select(mask, new, carry)
    return new, self._readout(o, mask)

  def _scores(self, x):
    """Maps `[..., D]` to `[..., H]`, in the dtype of states."""
    dtype = base.state_dtype(x.dtype)
    kernel = jnp.einsum(
        'dhk,hk->dh',
        self.key.kernel[...].astype(dtype),
        self.query[...].astype(dtype) / math.sqrt(self.head_features),
    )
    return jnp.einsum(
        '...d,dh->...h', x, kernel.astype(x.dtype), preferred_element_type=dtype
    )

  def _readout(self, o, mask):
    """Maps averages `[..., H, d]` to `[..., D_out]`."""
    y = o.reshape(*o.shape[:-2], self.hidden_features)
    if self.output is not None:
      y = common.project(self.output, y)
    return base.masked(y, mask)
