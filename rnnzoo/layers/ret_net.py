"""RetNet (Sun et al., 2023), https://arxiv.org/abs/2307.08621."""

from typing import Any, Literal, NamedTuple

from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np
from rnnzoo import ops
from rnnzoo.layers import base
from rnnzoo.layers import common
from rnnzoo.layers import initializers
from rnnzoo.layers import linear_maps
from rnnzoo.layers import rotary


class RetNetCarry(NamedTuple):
  """State of `RetNet`.

  Attributes:
    S: The map from keys to values `[B, H, K, V]`.
    position: Number of tokens of the sequence so far `[B]`, int32, to be read
      as unsigned. After `2**32` tokens it is 0 again, so reset before that.
      `None` without rotation.
  """

  S: jax.Array
  position: Any


class RetNet(base.RecurrentLayer):
  r"""Multi-scale retention: linear attention with a decay rate for each head.

  For head `h` of `H`, counted from 0,

  .. math::
      q_t &= R_t W_q x_t, \quad k_t = R_t W_k x_t, \quad v_t = W_v x_t \\
      S_t &= \gamma_h S_{t-1} + k_t v_t^\top, \quad
      \gamma_h = 1 - 2^{-5-h} \\
      y_t &= W_o (\mathrm{silu}(W_g x_t) \odot
             \mathrm{norm}(S_t^\top q_t / \sqrt{K}))

  `R_t` rotates pairs of features by the position in the sequence, with
  wavelengths from 1 to 10000 times 2 pi, so that scores depend on distances.
  The decay of a head is a constant, the same for all tokens. The first head
  remembers about 32 tokens, and each further head twice as many.

  The state is `H K V` numbers a sequence (32768 if `D` is 256, with four
  heads), and the position. A token costs `D H (2 K + 3 V)` multiplications in
  maps, `8 D^2` by default, and for the state `3 H K V` in a step, or about `H
  (Q + 2 K) V + H Q K` in parallel, in chunks of `Q` tokens
  (`ops.linear_attention`); decays are computed once for all chunks.

  The published models have heads of 256 key features. The norm is that of the
  paper: over the features of each head, with the mean subtracted and without
  parameters. The code of the authors differs: it has `norm='rms'`, and it
  scales keys instead of queries, which changes the state only. It pairs
  neighbouring features for the rotation; here feature `i` of the first half of
  a head is paired with feature `i` of the second, which is another order of the
  columns of `W_q` and `W_k`. It also divides scores by the root of the sum of
  decays and by their own sum, for half precision. The norm cancels both
  factors, up to its epsilon, so they are left out here. Maps start as in that
  code: Glorot uniform, with a gain of :math:`2^{-5/2}` for all but the last.

  Example::

    >>> from flax import nnx
    >>> import jax.numpy as jnp
    >>> layer = RetNet(16, num_heads=2, rngs=nnx.Rngs(0))
    >>> x = jnp.ones((2, 10, 16))                     # [B, T, D]
    >>> carry, y = layer(x)                           # [B, T, D]
    >>> carry, y_next = layer.step(carry, x[:, -1])   # [B, D]
    >>> carry.S.shape, carry.position, y.shape
    ((2, 2, 8, 16), Array([11, 11], dtype=int32), (2, 10, 16))

  Attributes:
    in_features: Size `D` of an input and of an output.
    out_features: `D`.
    num_heads: Number `H` of heads.
    key_features: Features `K` of a query and of a key of a head.
    value_features: Features `V` of a value of a head.
    hidden_features: `H V`.
  """

  def __init__(
      self,
      in_features: int,
      *,
      num_heads: int = 4,
      key_features: int | None = None,
      value_features: int | None = None,
      use_rotation: bool = True,
      max_wavelength: float = 10_000.0,
      norm: Literal['layer', 'rms'] = 'layer',
      norm_epsilon: float = 1e-6,
      use_norm_scale: bool = False,
      chunk_size: int | None = None,
      dtype: jnp.dtype | None = None,
      param_dtype: jnp.dtype = jnp.float32,
      rngs: nnx.Rngs,
  ):
    """Creates the layer.

    Args:
      in_features: Size `D` of an input.
      num_heads: Number `H` of heads.
      key_features: Features `K` of a key, even with `use_rotation`; `D / H` if
        `None`.
      value_features: Features `V` of a value; `2 D / H` if `None`.
      use_rotation: Whether queries and keys are rotated.
      max_wavelength: Longest wavelength of the rotations, in units of 2 pi
        tokens; the shortest one is 1.
      norm: Norm of each head: `layer` or `rms`.
      norm_epsilon: Added to the variance or the mean square in the norm.
      use_norm_scale: Whether the norm has a scale, one for all heads.
      chunk_size: Tokens in a chunk, a power of two; if `None`, the default of
        `ops.linear_attention`. It affects rounding only.
      dtype: Compute dtype; that of the input if `None`.
      param_dtype: Dtype of the parameters.
      rngs: Source of the initial parameters.

    Raises:
      ValueError: If the heads do not divide the features, or a number is out of
        range.
    """
    self.in_features = self.out_features = d = in_features
    self.num_heads = num_heads
    size = linear_maps.head_size
    self.key_features = size('key_features', key_features, d, num_heads)
    self.value_features = size(
        'value_features', value_features, 2 * d, num_heads
    )
    if use_rotation and self.key_features % 2:
      raise ValueError(
          '`key_features` must be even to be rotated, got '
          f'{self.key_features}.'
      )
    if not max_wavelength > 0:
      raise ValueError(
          f'`max_wavelength` must be positive, got {max_wavelength}.'
      )
    self.hidden_features = hidden = num_heads * self.value_features
    self.use_rotation = use_rotation
    self.max_wavelength = max_wavelength
    self.chunk_size = chunk_size
    self.dtype = dtype
    options: dict[str, Any] = dict(param_dtype=param_dtype, rngs=rngs)
    small = initializers.small_glorot()
    into = lambda features: linear_maps.into_heads(
        d, num_heads, features, small, **options
    )
    self.query = into(self.key_features)
    self.key = into(self.key_features)
    self.value = into(self.value_features)
    self.gate = into(self.value_features)
    self.norm = common.HeadNorm(
        num_heads, self.value_features, kind=norm, epsilon=norm_epsilon,
        use_scale=use_norm_scale, share=True, param_dtype=param_dtype,
    )
    self.output = linear_maps.out_of_heads(
        hidden, d, nnx.initializers.glorot_uniform(), **options
    )

  def initialize_carry(self, batch_size: int, dtype=None) -> RetNetCarry:
    """Returns the carry before the first token: zeros.

    Args:
      batch_size: `B`.
      dtype: The compute dtype; the state is float32 at least.
    """
    shape = self.num_heads, self.key_features, self.value_features
    dtype = base.state_dtype(dtype or self.dtype)
    position = jnp.zeros((batch_size,), jnp.int32)
    return RetNetCarry(
        jnp.zeros((batch_size, *shape), dtype),
        position if self.use_rotation else None,
    )

  def __call__(self, x, carry=None, *, reset=None, mask=None):
    x, carry, _, reset = base.prepare(self, x, carry, reset, mask)
    positions = last = None
    if self.use_rotation:
      positions = self._positions(carry.position, x.shape[1], reset, mask)
      positions, last = positions[:, :-1], positions[:, -1]
    S, y = ops.linear_attention(
        *self._tokens(x, positions), carry.S, reset=reset, mask=mask,
        chunk_size=self.chunk_size, **self._retention(carry.S.dtype),
    )
    return RetNetCarry(S, last), self._readout(y, x, mask)

  def step(self, carry, x, *, reset=None, mask=None):
    x, carry, initial, reset = base.prepare(
        self, x, carry, reset, mask, step=True
    )
    old = carry if reset is None else base.select(reset, initial, carry)
    S, y = ops.linear_attention_step(
        *self._tokens(x, old.position), old.S, **self._retention(old.S.dtype)
    )
    new = RetNetCarry(S, old.position + 1 if self.use_rotation else None)
    if mask is not None:
      new = base.select(mask, new, carry)
    return new, self._readout(y, x, mask)

  def _positions(self, before, time, reset, mask):
    """Returns the positions of all tokens and of the next one: `[B, T + 1]`."""
    behind = lambda flag, last: None if flag is None else jnp.pad(
        flag, ((0, 0), (0, 1)), constant_values=last
    )
    return ops.sequence_positions(
        before, time + 1, reset=behind(reset, False), mask=behind(mask, True)
    )

  def _tokens(self, x, positions):
    """Maps `[..., D]` to queries and keys `[..., H, K]`, values `[..., H, V]`.
    """
    q, k, v = (
        common.project(linear, x)
        for linear in (self.query, self.key, self.value)
    )
    if self.use_rotation:
      pairs = self.key_features // 2
      # The last pair has the longest wavelength, not the pair after it.
      longest = self.max_wavelength ** (pairs / max(pairs - 1, 1))
      q, k = (
          rotary.rotary(u, positions, 2 * pairs, longest) for u in (q, k)
      )
    return q, k, v

  def _retention(self, dtype) -> dict[str, Any]:
    return dict(
        log_decay=jnp.asarray(log_decays(self.num_heads), dtype),
        scale=self.key_features**-0.5,
    )

  def _readout(self, y, x, mask):
    """Maps the output of the heads `[..., H, V]` to `[..., D]`."""
    y = jax.nn.silu(common.project(self.gate, x)) * self.norm(y)
    y = y.reshape(*x.shape[:-1], self.hidden_features)
    return base.masked(common.project(self.output, y), mask)


def log_decays(num_heads: int) -> np.ndarray:
  """Returns the logarithms of `1 - 2^(-5-h)` for `h` from 0, float64."""
  return np.log1p(-(2.0 ** -(5 + np.arange(num_heads))))
