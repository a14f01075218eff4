"""RWKV-4 (Peng et al., 2023), https://arxiv.org/abs/2305.13048."""

import math
from typing import NamedTuple

from flax import nnx
import jax
import jax.numpy as jnp
from rnnzoo import ops
from rnnzoo.layers import base
from rnnzoo.layers import common


class RWKV4Carry(NamedTuple):
  """State of `RWKV4`: the last token `[B, D]`, and the sums of `ops.wkv`."""

  previous: jax.Array
  aa: jax.Array
  bb: jax.Array
  pp: jax.Array


class RWKV4(base.RecurrentLayer):
  r"""The time mixing of RWKV-4: a decaying average of values.

  .. math::
      r_t &= W_r (\mu_r x_t + (1 - \mu_r) x_{t-1}), \quad
      k_t = W_k (\mu_k x_t + (1 - \mu_k) x_{t-1}), \quad
      v_t = W_v (\mu_v x_t + (1 - \mu_v) x_{t-1}) \\
      a_t &= e^w a_{t-1} + e^{k_t} v_t, \quad
      b_t = e^w b_{t-1} + e^{k_t}, \quad w = -e^{d} \\
      y_t &= W_o \Bigl(\sigma(r_t) \odot
             \frac{a_{t-1} + e^{u + k_t} v_t}{b_{t-1} + e^{u + k_t}}\Bigr)

  where :math:`d` is the parameter `time_decay` and :math:`u` is `time_first`,
  the weight of the current token. The state is `4 D` numbers a sequence: the
  last token, and both sums with a common exponent `pp`, which prevents
  overflow. A token costs `4 D^2` multiplications. In parallel it is one running
  maximum and two linear recurrences (`ops.wkv`).

  The published model alternates this layer and `RWKV4ChannelMix`, each after a
  LayerNorm and with a residual connection: `layer='rwkv4,rwkv4_channel_mix'`,
  `norm='layer'`, `mlp='none'`. It also has a LayerNorm right after the
  embedding, `embed_norm=True`. Published weights contain `time_decay`;
  inference code replaces it by `-exp(time_decay)` when it loads them. Some code
  starts `pp` at -1e38 instead of -1e30, with the same results.

  Example::

    >>> from flax import nnx
    >>> import jax.numpy as jnp
    >>> layer = RWKV4(16, layer_index=1, num_layers=4, rngs=nnx.Rngs(0))
    >>> x = jnp.ones((2, 10, 16))                     # [B, T, D]
    >>> carry, y = layer(x)                           # [B, T, D]
    >>> carry, y_next = layer.step(carry, x[:, -1])   # [B, D]
    >>> carry.previous.shape, carry.aa.shape, y.shape
    ((2, 16), (2, 16), (2, 10, 16))

  Attributes:
    in_features: Size `D` of an input, of the state and of an output.
    out_features: `D`.
  """

  def __init__(
      self,
      in_features: int,
      *,
      layer_index: int = 0,
      num_layers: int = 1,
      zero_init: bool = True,
      dtype: jnp.dtype | None = None,
      param_dtype: jnp.dtype = jnp.float32,
      rngs: nnx.Rngs,
  ):
    """Creates the layer.

    Args:
      in_features: Size `D` of an input.
      layer_index: Index of the layer among the time mixings of the model. The
        initial decays and shifts of the channels depend on it.
      num_layers: Number of such layers in the model.
      zero_init: Whether all maps but that of values start at zero, as
        published, instead of orthogonal.
      dtype: Compute dtype; that of the input if `None`.
      param_dtype: Dtype of the parameters, float32 at least for `time_decay`
        and `time_first`.
      rngs: Source of the initial parameters.

    Raises:
      ValueError: If `layer_index` is out of range.
    """
    common.check_depth(layer_index, num_layers)
    self.in_features = self.out_features = d = in_features
    self.dtype = dtype
    r01 = layer_index / max(num_layers - 1, 1)
    r10 = 1 - layer_index / num_layers
    channel = jnp.arange(d)
    share = channel / d
    shift = lambda u: nnx.Param(u.astype(param_dtype), axes=(None,))
    self.mu_k = shift(share**r10)
    self.mu_v = shift(share**r10 + 0.3 * r01)
    self.mu_r = shift(share ** (0.5 * r10))
    state_dtype = base.state_dtype(param_dtype)
    recurrent = lambda u: nnx.Param(
        u.astype(state_dtype), axes=('hidden',), recurrent=True
    )
    place = channel / max(d - 1, 1)
    self.time_decay = recurrent(-5 + 8 * place ** (0.7 + 1.3 * r01))
    zigzag = 0.5 * ((channel + 1) % 3 - 1)
    self.time_first = recurrent(math.log(0.3) + zigzag)
    options = dict(param_dtype=param_dtype, rngs=rngs)
    into, out = ('embed', 'hidden'), ('hidden', 'embed')
    self.key = linear(d, d, into, zero_init, **options)
    self.value = linear(d, d, into, False, **options)
    self.receptance = linear(d, d, into, zero_init, **options)
    self.output = linear(d, d, out, zero_init, **options)

  def initialize_carry(self, batch_size: int, dtype=None) -> RWKV4Carry:
    """Returns the carry before the first token: zeros, and -1e30 for `pp`."""
    dtype = base.state_dtype(dtype or self.dtype)
    state = ops.empty_wkv_state(batch_size, self.in_features, dtype)
    return RWKV4Carry(jnp.zeros_like(state.aa), *state)

  def __call__(self, x, carry=None, *, reset=None, mask=None):
    x, carry, _, reset = base.prepare(self, x, carry, reset, mask)
    previous, k, v, r = self._project(x, carry, reset, mask)
    state, y = ops.wkv(
        k, v, *self._times(k.dtype), state=ops.WKVState(*carry[1:]),
        reset=reset, mask=mask,
    )
    return RWKV4Carry(previous, *state), self._readout(y, r, mask)

  def step(self, carry, x, *, reset=None, mask=None):
    x, carry, initial, reset = base.prepare(
        self, x, carry, reset, mask, step=True
    )
    previous, k, v, r = self._project(x, carry, reset, mask)
    old = carry if reset is None else base.select(reset, initial, carry)
    new, y = ops.wkv_step(
        k, v, *self._times(k.dtype), state=ops.WKVState(*old[1:])
    )
    if mask is not None:
      new = base.select(mask, new, ops.WKVState(*carry[1:]))
    return RWKV4Carry(previous, *new), self._readout(y, r, mask)

  def _project(self, x, carry, reset, mask):
    """Returns the last token, and keys, values and receptances `[..., D]`."""
    previous, shifted = common.token_shift(
        x, carry.previous, reset=reset, mask=mask
    )
    dtype = base.state_dtype(x.dtype)
    k = common.project(self.key, mix(x, shifted, self.mu_k), dtype)
    v = common.project(self.value, mix(x, shifted, self.mu_v), dtype)
    r = common.project(self.receptance, mix(x, shifted, self.mu_r))
    return previous, k, v, r

  def _times(self, dtype):
    return tuple(
        u[...].astype(dtype) for u in (self.time_decay, self.time_first)
    )

  def _readout(self, y, r, mask):
    y = jax.nn.sigmoid(r) * y.astype(r.dtype)
    return base.masked(common.project(self.output, y), mask)


def mix(x, shifted, mu):
  """Returns `mu x_t + (1 - mu) x_{t-1}` in the dtype of `x`."""
  mu = mu[...].astype(base.state_dtype(x.dtype))
  return (x * mu + shifted * (1 - mu)).astype(x.dtype)


def linear(n, m, axes, zero, *, gain=None, param_dtype, rngs):
  """Makes a map `[n] -> [m]`: zero, or orthogonal with a gain.

  The gain is `sqrt(m / n)`, but at least 1, if `None`.
  """
  gain = math.sqrt(max(m / n, 1)) if gain is None else gain
  orthogonal = nnx.initializers.orthogonal(gain)

  def init(key, shape, dtype):  # QR decompositions need float32 at least.
    return orthogonal(key, shape, base.state_dtype(dtype)).astype(dtype)

  return nnx.Linear(
      n,
      m,
      use_bias=False,
      kernel_init=nnx.initializers.zeros if zero else init,
      kernel_metadata=dict(axes=axes),
      param_dtype=param_dtype,
      rngs=rngs,
  )
