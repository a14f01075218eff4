"""M2RNN (Mishra et al., 2026), https://arxiv.org/abs/2603.14360."""

import functools
from typing import Any, Literal, NamedTuple

from flax import nnx
import jax
import jax.numpy as jnp
from rnnzoo import ops
from rnnzoo.layers import base
from rnnzoo.layers import checking
from rnnzoo.layers import common
from rnnzoo.layers import delta_memory
from rnnzoo.layers import initializers
from rnnzoo.layers import linear_maps
from rnnzoo.layers import recurrences
from rnnzoo.layers import state_space

_FORGET_GATES = dict(none=lambda f: f, sigmoid=jax.nn.sigmoid)
_STATE_INITS = ('normal', 'identity')


@functools.partial(jax.custom_vjp, nondiff_argnums=(1,))
def clip_gradient(h: jax.Array, limit: float) -> jax.Array:
  """Returns `h`, whose gradient is clipped to `[-limit, limit]`."""
  del limit
  return h


clip_gradient.defvjp(
    lambda h, limit: (h, None),
    lambda limit, _, gradient: (jnp.clip(gradient, -limit, limit),),
)


class _Cell(recurrences.RecurrentCell):
  """The recurrence. Its inputs are queries, keys, values and gates in a row."""

  def __init__(
      self, num_heads, parts, key_features, value_features, forget_gate,
      state_init, gradient_clip, dtype, param_dtype, rngs,
  ):
    *self.parts, weights = parts
    self.num_heads = num_heads
    self.features = key_features, key_features, value_features, 1
    self.in_features = sum(n * u for n, u in zip(self.parts, self.features))
    self.out_features = num_heads * value_features
    self.state_shape = (num_heads, key_features, value_features)
    self.forget_gate = forget_gate
    self.gradient_clip = gradient_clip
    self.dtype = dtype
    shape = (weights, value_features, value_features)
    if state_init == 'normal':
      value = jax.random.normal(rngs.params(), shape, param_dtype)
    else:
      value = jnp.broadcast_to(jnp.eye(shape[-1], dtype=param_dtype), shape)
    self.W = nnx.Param(value, axes=('heads', None, None), recurrent=True)

  def project(self, x):
    """Splits `[..., D_in]` into `q`, `k`, `v`, `f` `[..., N, features]`."""
    sizes = [n * u for n, u in zip(self.parts, self.features)]
    ends = [sum(sizes[:i]) for i in range(1, len(sizes))]
    x = x.astype(base.state_dtype(x.dtype))
    q, k, v, f = (
        delta_memory.shared(
            u.reshape(*x.shape[:-1], n, size), self.num_heads
        )
        for u, n, size in zip(
            jnp.split(x, ends, axis=-1), self.parts, self.features
        )
    )
    return q, k, v, _FORGET_GATES[self.forget_gate](f)

  def update(self, carry, projected, dtype):
    H: jax.Array = carry
    q, k, v, f = projected
    # Heads that share a matrix stand together.
    W = self.W[...].astype(dtype).astype(H.dtype)
    groups = H.astype(dtype).astype(H.dtype).reshape(
        H.shape[0], W.shape[0], H.shape[1] // W.shape[0], *H.shape[2:]
    )
    mixed = jnp.einsum('bgrkv,gvw->bgrkw', groups, W).reshape(H.shape)
    new = jnp.tanh(mixed + k[..., None] * v[..., None, :])
    f = f[..., None]
    H = f * H + (1 - f) * new
    if self.gradient_clip is not None:
      H = clip_gradient(H, self.gradient_clip)
    y = (q[..., None] * H).sum(-2)
    return H, y.reshape(H.shape[0], self.out_features)


class M2RNNCarry(NamedTuple):
  """State of `M2RNN`.

  Attributes:
    conv: Last inputs of the convolution, `[B, C-1, channels]` in the compute
      dtype; `None` without a convolution.
    H: The state `[B, N, K, V]`, in float32 at least.
  """

  conv: Any
  H: jax.Array


class M2RNN(base.RecurrentLayer):
  r"""A nonlinear recurrence whose state is a matrix for each head.

  With queries, keys, values and one forget gate a head from one linear map,

  .. math::
      Z_t &= \tanh(H_{t-1} W + k_t v_t^\top) \\
      H_t &= f_t H_{t-1} + (1 - f_t) Z_t \\
      y_t &= W_o \, H_t^\top q_t \quad \text{(all heads side by side)}

  A head has `K V` numbers of state and one matrix `W` of `V V` numbers. The
  published layer uses `f` as the map gives it, here `forget_gate='none'`.
  Another published implementation has :math:`f = \sigma(\cdot)`, and starts
  with :math:`W = I`, which its authors say that runs of the paper often do. The
  default is a normal `W`, as in the published layer. Queries are not scaled.
  Heads may share queries, keys, values, gates or `W`.

  The state is `N K V` numbers a sequence. The layer is sequential over time. A
  token costs `D N (2 K + V + 1) + D N V` multiplications in maps, which are
  computed for all tokens at once, and `N K V (V + 4)` for the state. A training
  step keeps the state of every token.

  With a normal `W` and gates near 0 the states are chaotic: a small difference
  grows from token to token, that of rounding too. With an identity and
  `sigmoid` it does not.

  The published layer has no widths by default, so those here are ours. Another
  version of it has a convolution; that its filters have no bias is a guess. All
  but `W` starts as in PyTorch.

  Example::

    >>> from flax import nnx
    >>> import jax.numpy as jnp
    >>> layer = M2RNN(16, num_heads=2, rngs=nnx.Rngs(0))
    >>> x = jnp.ones((2, 10, 16))                     # [B, T, D]
    >>> carry, y = layer(x)                           # [B, T, D]
    >>> carry, y_next = layer.step(carry, x[:, -1])   # [B, D]
    >>> carry.H.shape, y.shape
    ((2, 2, 8, 8), (2, 10, 16))

  Attributes:
    in_features: Size `D` of an input and of an output.
    out_features: `D`.
    num_heads: Number `N` of heads of the state.
    key_features: Features `K` of a query and of a key of a head.
    value_features: Features `V` of a value of a head.
    cell: The recurrence, with `W`.
  """

  gathers_time = True

  def __init__(
      self,
      in_features: int,
      *,
      num_heads: int | None = None,
      num_query_heads: int | None = None,
      num_key_heads: int | None = None,
      num_value_heads: int | None = None,
      num_forget_heads: int | None = None,
      num_weight_heads: int | None = None,
      key_features: int | None = None,
      value_features: int | None = None,
      forget_gate: Literal['none', 'sigmoid'] = 'none',
      state_init: Literal['normal', 'identity'] = 'normal',
      gradient_clip: float | None = None,
      conv_kernel: int = 0,
      activation: str = 'silu',
      use_bias: bool = False,
      dtype: jnp.dtype | None = None,
      param_dtype: jnp.dtype = jnp.float32,
      rngs: nnx.Rngs,
  ):
    """Creates the layer.

    Args:
      in_features: Size `D` of an input.
      num_heads: Number `N` of heads of the state; `D / K` if `None`.
      num_query_heads: Number of heads of queries, a divisor of `N`, each for
        `N` over this number of heads of the state; `N` if `None`.
      num_key_heads: Likewise, of keys.
      num_value_heads: Likewise, of values.
      num_forget_heads: Likewise, of gates.
      num_weight_heads: Likewise, of matrices `W`.
      key_features: Features `K` of a key. If `None`, `D / N`; if `num_heads` is
        `None` too, the largest divisor of 16 that divides `D`.
      value_features: Features `V` of a value; `K` if `None`.
      forget_gate: What is applied to `f`: `none` or `sigmoid`.
      state_init: Initial `W`: `normal`, with variance 1, or `identity`.
      gradient_clip: If not `None`, no element of the gradient of a state is
        larger, at any token.
      conv_kernel: Taps `C` of a causal convolution of queries, keys and values,
        with an activation after it; 0 for neither.
      activation: That activation: `silu`, `relu`, `elu` or `identity`.
      use_bias: Whether the map to queries, keys, values and gates has a bias.
      dtype: Compute dtype; that of the input if `None`.
      param_dtype: Dtype of the parameters.
      rngs: Source of the initial parameters.

    Raises:
      ValueError: If the heads do not divide each other or the features, or an
        option is unknown or out of range.
    """
    heads, keys = delta_memory.heads_of(
        in_features, 16, num_heads, key_features
    )
    values = keys if value_features is None else value_features
    checking.check_sizes(
        num_heads=heads, key_features=keys, value_features=values
    )
    if conv_kernel < 0:
      raise ValueError(f'`conv_kernel` must be 0 or more, got {conv_kernel}.')
    if gradient_clip is not None and not gradient_clip > 0:
      raise ValueError(
          f'`gradient_clip` must be positive, got {gradient_clip}.'
      )
    choices = state_space.check_choice
    choices('forget_gate', forget_gate, _FORGET_GATES)
    choices('state_init', state_init, _STATE_INITS)
    delta_memory.checked_activation(activation)
    parts = []
    for name, number in dict(
        num_query_heads=num_query_heads, num_key_heads=num_key_heads,
        num_value_heads=num_value_heads, num_forget_heads=num_forget_heads,
        num_weight_heads=num_weight_heads,
    ).items():
      number = heads if number is None else number
      if number < 1 or heads % number:
        raise ValueError(
            f'`{name}` must divide `num_heads` = {heads}, got {number}.'
        )
      parts.append(number)
    self.in_features = self.out_features = in_features
    self.num_heads = heads
    self.key_features, self.value_features = keys, values
    self.conv_kernel = conv_kernel
    self.activation = activation
    self.dtype = dtype
    self.cell = _Cell(
        heads, parts, keys, values, forget_gate, state_init, gradient_clip,
        dtype, param_dtype, rngs,
    )
    usual = initializers.uniform_fan_in
    self.input = nnx.Linear(
        in_features,
        self.cell.in_features,
        use_bias=use_bias,
        kernel_init=usual(in_features),
        bias_init=usual(in_features),
        kernel_metadata=dict(axes=('embed', 'hidden')),
        bias_metadata=dict(axes=('hidden',)),
        param_dtype=param_dtype,
        rngs=rngs,
    )
    self.channels = self.cell.in_features - self.cell.parts[-1]
    if conv_kernel:
      self.conv = nnx.Param(
          usual(conv_kernel)(
              rngs.params(), (conv_kernel, self.channels), param_dtype
          ),
          axes=(None, 'hidden'),
      )
    self.output = linear_maps.out_of_heads(
        heads * values, in_features, usual(heads * values),
        param_dtype=param_dtype, rngs=rngs,
    )

  def initialize_carry(self, batch_size: int, dtype=None) -> M2RNNCarry:
    """Returns the state before the first token: zeros."""
    dtype = jnp.dtype(dtype or self.dtype or jnp.float32)
    conv = None
    if self.conv_kernel:
      shape = (batch_size, self.conv_kernel - 1, self.channels)
      conv = jnp.zeros(shape, dtype)
    return M2RNNCarry(conv, self.cell.initialize_carry(batch_size, dtype))

  def __call__(self, x, carry=None, *, reset=None, mask=None):
    x, carry, _, reset = base.prepare(self, x, carry, reset, mask)
    flags = dict(reset=reset, mask=mask)
    tail, u = self._project(ops.causal_conv1d, x, carry.conv, flags)
    H, y = self.cell(u, carry.H, **flags)
    y = base.masked(common.project(self.output, y), mask)
    return M2RNNCarry(tail, H), y

  def step(self, carry, x, *, reset=None, mask=None):
    x, carry, _, reset = base.prepare(self, x, carry, reset, mask, step=True)
    flags = dict(reset=reset, mask=mask)
    tail, u = self._project(ops.causal_conv1d_step, x, carry.conv, flags)
    H, y = self.cell.step(carry.H, u, **flags)
    y = base.masked(common.project(self.output, y), mask)
    return M2RNNCarry(tail, H), y

  def _project(self, convolve, x, tail, flags):
    """Returns the next tail, and the inputs of the cell."""
    u = common.project(self.input, x)
    if not self.conv_kernel:
      return None, u
    tail, read = convolve(
        u[..., : self.channels], self.conv[...], None, tail, **flags
    )
    read = delta_memory.ACTIVATIONS[self.activation](read)
    return tail, jnp.concatenate([read, u[..., self.channels :]], axis=-1)
