"""Log-linear Mamba-2 (Guo et al., 2025), https://arxiv.org/abs/2506.04761."""

from flax import nnx
import jax
import jax.numpy as jnp
from rnnzoo import ops
from rnnzoo.layers import base
from rnnzoo.layers import common
from rnnzoo.layers import level_scales
from rnnzoo.layers import mamba2


class LogLinearMamba2(mamba2.Mamba2):
  r"""`Mamba2` with about `log2(T)` states, which a token weighs.

  With :math:`z, x, B, C, \Delta, A, D` as in `Mamba2`, for each head

  .. math::
      \lambda_t^{(\ell)} &= \mathrm{softplus}\bigl(
          L^{(\ell)} (W_\ell u_t + b_\ell)\bigr) \\
      o_t &= \sum_{s \le t} \lambda_t^{(\ell(t, s))}
             e^{A (\Delta_{s+1} + \dots + \Delta_t)}
             \langle C_t, B_s \rangle \Delta_s x_s \\
      y_t &= W_{out}\, \mathrm{norm}\bigl((o_t + D x_t)
             \odot \mathrm{silu}(z_t)\bigr) + b_{out}

  The level :math:`\ell(t, s)` is 0 for the token itself. Levels 1, 2, 3, ...
  hold 1, 2, 4, ... earlier tokens, the latest ones in the lowest levels: the
  nodes of a Fenwick tree (`ops.log_linear_attention`). Positions count from the
  last reset. `num_levels` hold `2**(num_levels - 1)` tokens. A longer sequence
  is an error where its length is known. Under `jax.jit`, a carry that is passed
  on cannot be checked: there the last level also holds all older tokens.

  The norm is over all channels, and the maps have biases, as in the code of
  flash-linear-attention. Its initial rates are 1, 2, ..., H, and its model
  draws the maps again (normal, with standard deviation 0.02). With `E` levels,
  the state is `(E - 1) H N P + (K - 1) (H P + 2 G N)` numbers a sequence. A
  token costs `D H E` more multiplications in maps than in `Mamba2`, and in
  parallel about `2 (E - 1) H N P` for the states: take no more levels than the
  sequences need. Training keeps the states between chunks, so long chunks save
  memory.

  Example::

    >>> from flax import nnx
    >>> import jax.numpy as jnp
    >>> layer = LogLinearMamba2(16, head_features=8, state_features=4,
    ...                         num_levels=5, rngs=nnx.Rngs(0))
    >>> x = jnp.ones((2, 10, 16))                     # [B, T, D]
    >>> carry, y = layer(x)                           # [B, T, D]
    >>> carry, y_next = layer.step(carry, x[:, -1])   # [B, D]
    >>> carry.ssm.levels.shape, carry.ssm.count, y.shape
    ((2, 4, 4, 4, 8), Array([11, 11], dtype=int32), (2, 10, 16))

  Attributes:
    in_features: Size `D` of an input.
    hidden_features: Number `H P` of channels, `int(D * expansion_factor)`.
    num_heads: `H`.
    head_features: Channels `P` of a head.
    num_groups: `G`.
    state_features: Size `N` of the state of a channel.
    num_levels: `E`.
    out_features: `D`.
  """

  def __init__(
      self,
      in_features: int,
      *,
      num_levels: int = 15,
      state_features: int = 128,
      expansion_factor: float = 2.0,
      head_features: int | None = None,
      num_groups: int = 1,
      conv_kernel: int = 4,
      dt_min: float = 1e-3,
      dt_max: float = 0.1,
      dt_floor: float = 1e-4,
      norm_epsilon: float = 1e-5,
      use_conv_bias: bool = False,
      use_bias: bool = True,
      num_layers: int = 1,
      chunk_size: int | None = None,
      dtype: jnp.dtype | None = None,
      param_dtype: jnp.dtype = jnp.float32,
      rngs: nnx.Rngs,
  ):
    """Creates the layer.

    Args:
      in_features: Size `D` of an input.
      num_levels: Number `E` of levels, 2 to 25; the default is for sequences of
        up to 16384 tokens.
      state_features: Size `N` of the state of a channel.
      expansion_factor: Channels per input feature.
      head_features: Channels `P` of a head; if `None`, the published 64, or all
        channels if there are fewer.
      num_groups: Number `G` of groups of heads that share B and C.
      conv_kernel: Taps `K` of the convolution.
      dt_min: Smallest initial step size.
      dt_max: Largest initial step size.
      dt_floor: Initial step sizes below are raised to it.
      norm_epsilon: Added to the mean square in the norm.
      use_conv_bias: Whether the convolution has a bias.
      use_bias: Whether the input and output maps have biases.
      num_layers: Depth of the model; the initial `out_proj` is divided by its
        square root (twice the depth where there are MLPs).
      chunk_size: Tokens in a chunk, a power of two; if `None`, the default of
        `ops.log_linear_attention`. It affects rounding only.
      dtype: Compute dtype; that of the input if `None`.
      param_dtype: Dtype of the parameters, float32 at least for those of the
        state: `A_log`, `D`, `L` and `dt_bias`.
      rngs: Source of the initial parameters.

    Raises:
      ValueError: If a size or a step size is out of range.
    """
    super().__init__(
        in_features, state_features=state_features,
        expansion_factor=expansion_factor, head_features=head_features,
        num_groups=num_groups, conv_kernel=conv_kernel, dt_min=dt_min,
        dt_max=dt_max, dt_floor=dt_floor, norm_epsilon=norm_epsilon,
        use_conv_bias=use_conv_bias, use_bias=use_bias, num_layers=num_layers,
        chunk_size=chunk_size, dtype=dtype, param_dtype=param_dtype, rngs=rngs,
    )
    heads, self.num_levels = self.num_heads, num_levels
    rates = jnp.arange(1, heads + 1, dtype=base.state_dtype(param_dtype))
    self.A_log = nnx.Param(jnp.log(rates), axes=('heads',), recurrent=True)
    self.norm_groups = 1
    self.norm = common.HeadNorm(
        1, self.hidden_features, epsilon=norm_epsilon, param_dtype=param_dtype
    )
    self.level_proj, self.L = level_scales.make(
        in_features, heads, num_levels, use_bias=use_bias,
        param_dtype=param_dtype, rngs=rngs,
    )

  def initialize_carry(
      self, batch_size: int, dtype=None
  ) -> mamba2.Mamba2Carry:
    """Returns the carry before the first token: zeros."""
    carry = super().initialize_carry(batch_size, dtype)
    return carry._replace(ssm=ops.empty_level_state(
        batch_size, self.num_heads, self.num_levels, self.state_features,
        self.head_features, carry.ssm.dtype,
    ))

  def _recur(self, x, u, b, c, ssm, flags):
    delta, decay = self._steps(x)
    return ops.log_linear_attention(
        c, b, u * delta[..., None], self._scales(x), ssm, log_decay=decay,
        chunk_size=self.chunk_size, **flags,
    )

  def _recur_step(self, x, u, b, c, ssm, mask):
    delta, decay = self._steps(x)
    return ops.log_linear_attention_step(
        c, b, u * delta[..., None], self._scales(x), ssm, log_decay=decay,
        mask=mask,
    )

  def _scales(self, x) -> jax.Array:
    """Returns the scale of each level, `[..., H, E]`."""
    return level_scales.of(self.level_proj, self.L, x)
