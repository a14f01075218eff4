"""DeltaNet (Yang et al., 2024), https://arxiv.org/abs/2406.06484."""

from collections.abc import Callable
import math
from typing import NamedTuple

from flax import nnx
import jax
import jax.numpy as jnp
from rnnzoo import ops
from rnnzoo.layers import base
from rnnzoo.layers import common
from rnnzoo.layers import initializers

ACTIVATIONS: dict[str, Callable[[jax.Array], jax.Array]] = dict(
    silu=jax.nn.silu,
    relu=jax.nn.relu,
    elu=lambda u: jax.nn.elu(u) + 1,
    identity=lambda u: u,
)


class DeltaNetCarry(NamedTuple):
  """State of `DeltaNet` and `GatedDeltaNet`.

  Attributes:
    conv: Last inputs of the convolutions of queries, keys and values, `[B, C-1,
      H (2 K + V)]`.
    S: The map from keys to values `[B, H, K, V]`.
  """

  conv: jax.Array
  S: jax.Array


class DeltaNet(base.RecurrentLayer):
  r"""Linear attention that corrects the value its state returns for a key.

  For each head, with :math:`*` a causal convolution with one filter of `C` taps
  a channel,

  .. math::
      q_t &= \mathrm{unit}(\phi(c_q * W_q x)_t), \quad
      k_t = \mathrm{unit}(\phi(c_k * W_k x)_t), \quad
      v_t = \mathrm{silu}(c_v * W_v x)_t \\
      \beta_t &= \sigma(W_\beta x_t) \\
      S_t &= S_{t-1} + k_t \beta_t (v_t - S_{t-1}^\top k_t)^\top \\
      y_t &= W_o \, \mathrm{norm}(S_t^\top q_t / \sqrt{K})

  where unit divides by the length of a vector, norm by the root of the mean
  square, and :math:`\phi` is the `activation`. The state is `H K V` numbers a
  sequence, and `(C - 1) H (2 K + V)` for the convolutions (32768 + 2304 if `D`
  is 256). A token costs `2 D H (K + V)` multiplications in maps, and for the
  state `3 H K V` in a step, or about `H (3 K V + 2 Q (K + V))` in parallel, in
  chunks of `Q` tokens (`ops.delta_rule`).

  Transitions have the eigenvalues 1 and `1 - beta`, in (0, 1).
  `allow_negative_eigenvalues` doubles `beta`. Then they are in (-1, 1), and a
  layer can count modulo 2 (https://arxiv.org/abs/2411.12537).

  Published models are reported to have heads of 128 features. Like the code of
  the authors, this layer adds 1e-6 to the squared length. Initial maps and
  filters are those of its modules (the PyTorch defaults); its training code
  draws them again (normal, with standard deviation 0.02).

  Example::

    >>> from flax import nnx
    >>> import jax.numpy as jnp
    >>> layer = DeltaNet(16, num_heads=2, rngs=nnx.Rngs(0))
    >>> x = jnp.ones((2, 10, 16))                     # [B, T, D]
    >>> carry, y = layer(x)                           # [B, T, D]
    >>> carry, y_next = layer.step(carry, x[:, -1])   # [B, D]
    >>> carry.conv.shape, carry.S.shape, y.shape
    ((2, 3, 48), (2, 2, 8, 8), (2, 10, 16))

  Attributes:
    in_features: Size `D` of an input and of an output.
    out_features: `D`.
    num_heads: Number `H` of heads.
    key_features: Features `K` of a query and of a key of a head.
    value_features: Features `V` of a value of a head.
  """

  carry_tails = ('conv',)

  def __init__(
      self,
      in_features: int,
      *,
      num_heads: int | None = None,
      key_features: int | None = None,
      value_features: int | None = None,
      conv_kernel: int = 4,
      activation: str = 'silu',
      allow_negative_eigenvalues: bool = False,
      norm_epsilon: float = 1e-5,
      chunk_size: int | None = None,
      dtype: jnp.dtype | None = None,
      param_dtype: jnp.dtype = jnp.float32,
      rngs: nnx.Rngs,
  ):
    """Creates the layer.

    Args:
      in_features: Size `D` of an input.
      num_heads: Number `H` of heads; `D / K` if `None`.
      key_features: Features `K` of a key. If `None`, `D / H`; if `num_heads` is
        `None` too, the largest power of two up to 128 that divides `D`.
      value_features: Features `V` of a value; `K` if `None`.
      conv_kernel: Taps `C` of the convolutions.
      activation: The activation of queries and keys: `silu`, `relu`, `elu`
        (plus 1) or `identity`.
      allow_negative_eigenvalues: Whether `beta` is in (0, 2) instead of (0, 1).
      norm_epsilon: Added to the mean squares in the norm.
      chunk_size: Tokens in a chunk, a power of two; if `None`, the default of
        `ops.delta_rule`. It affects rounding only.
      dtype: Compute dtype; that of the input if `None`.
      param_dtype: Dtype of the parameters.
      rngs: Source of the initial parameters.

    Raises:
      ValueError: If sizes do not fit, or the activation is unknown.
    """
    num_heads, key_features = heads_of(
        in_features, 128, num_heads, key_features
    )
    if value_features is None:
      value_features = key_features
    if activation not in ACTIVATIONS:
      raise ValueError(
          f'`activation` must be one of {", ".join(ACTIVATIONS)}, got '
          f'{activation!r}.'
      )
    for name, value in dict(
        num_heads=num_heads, key_features=key_features,
        value_features=value_features, conv_kernel=conv_kernel,
    ).items():
      if value < 1:
        raise ValueError(f'`{name}` must be at least 1, got {value}.')
    self.in_features = self.out_features = d = in_features
    self.num_heads = num_heads
    self.key_features, self.value_features = key_features, value_features
    self.conv_kernel = conv_kernel
    self.activation = activation
    self.allow_negative_eigenvalues = allow_negative_eigenvalues
    self.chunk_size = chunk_size
    self.dtype = dtype

    channels = num_heads * (2 * key_features + value_features)
    options = dict(param_dtype=param_dtype, rngs=rngs)
    # One map and one convolution for queries, keys and values together.
    self.qkv = linear(d, channels, ('embed', 'hidden'), **options)
    taps = initializers.uniform_fan_in(conv_kernel)
    self.conv = nnx.Param(
        taps(rngs.params(), (conv_kernel, channels), param_dtype),
        axes=(None, 'hidden'),
    )
    self.beta = linear(d, num_heads, ('embed', 'heads'), **options)
    self.norm = common.HeadNorm(
        num_heads, value_features, epsilon=norm_epsilon, share=True,
        param_dtype=param_dtype,
    )
    self.output = linear(
        num_heads * value_features, d, ('hidden', 'embed'), **options
    )

  @property
  def state_shape(self) -> base.StateShape:
    """Sizes of the arrays of the carry of one sequence."""
    return base.carry_shape(
        DeltaNetCarry,
        conv=(self.conv_kernel - 1, self.conv.shape[-1]),
        S=(self.num_heads, self.key_features, self.value_features),
    )

  def __call__(self, x, carry=None, *, reset=None, mask=None):
    x, carry, _, reset = base.prepare(self, x, carry, reset, mask)
    flags = dict(reset=reset, mask=mask)
    tail, operands = self._project(ops.causal_conv1d, x, carry, flags)
    S, y = ops.delta_rule(
        *operands, carry.S, log_decay=self._log_decay(x),
        scale=self.key_features**-0.5, chunk_size=self.chunk_size, **flags,
    )
    return DeltaNetCarry(tail, S), self._readout(y, x, mask)

  def step(self, carry, x, *, reset=None, mask=None):
    x, carry, initial, reset = base.prepare(
        self, x, carry, reset, mask, step=True
    )
    flags = dict(reset=reset, mask=mask)
    tail, operands = self._project(ops.causal_conv1d_step, x, carry, flags)
    S = carry.S
    if reset is not None:
      S = base.select(reset, initial.S, S)
    S, y = ops.delta_rule_step(
        *operands, S, log_decay=self._log_decay(x),
        scale=self.key_features**-0.5,
    )
    if mask is not None:
      S = base.select(mask, S, carry.S)
    return DeltaNetCarry(tail, S), self._readout(y, x, mask)

  def _project(self, convolve, x, carry, flags):
    """Returns the tail, and `q`, `k`, `v` and `beta` for `ops.delta_rule`."""
    tail, u = convolve(
        common.project(self.qkv, x), self.conv[...], None, carry.conv, **flags
    )
    keys = self.num_heads * self.key_features
    q, k, v = jnp.split(u, [keys, 2 * keys], axis=-1)
    heads = lambda u, features: u.reshape(
        *u.shape[:-1], self.num_heads, features
    )
    activate = ACTIVATIONS[self.activation]
    q, k = (_unit(activate(heads(u, self.key_features))) for u in (q, k))
    v = jax.nn.silu(heads(v, self.value_features))
    beta = common.project(self.beta, x, base.state_dtype(x.dtype))
    beta = jax.nn.sigmoid(beta)
    if self.allow_negative_eigenvalues:
      beta = 2 * beta
    return tail, (q, k, v, beta)

  def _log_decay(self, x):
    """Returns log decays `[..., H]` in a subclass, `None` here."""
    del x

  def _readout(self, y, x, mask):
    """Maps the output of the heads `[..., H, V]` to `[..., D]`."""
    y = self._gate(self.norm(y), x)
    y = y.reshape(*x.shape[:-1], self.num_heads * self.value_features)
    y = y.astype(x.dtype)
    return base.masked(common.project(self.output, y), mask)

  def _gate(self, y, x):
    """Applies the output gate of a subclass to `y` `[..., H, V]`."""
    del x
    return y


def linear(n, m, axes, *, param_dtype, rngs):
  """Makes a map `[n] -> [m]` without bias, initialised as in PyTorch."""
  return nnx.Linear(
      n,
      m,
      use_bias=False,
      kernel_init=initializers.uniform_fan_in(n),
      kernel_metadata=dict(axes=axes),
      param_dtype=param_dtype,
      rngs=rngs,
  )


def heads_of(
    features, largest, num_heads, head_features
) -> tuple[int, int]:
  """Returns the number of heads and the features of a head."""
  if num_heads is None and head_features is None:
    head_features = math.gcd(features, largest)
  for name, number in (
      ('num_heads', num_heads), ('key_features', head_features)
  ):
    if None not in (num_heads, head_features):
      break
    if number is not None and (number < 1 or features % number):
      raise ValueError(f'`{name}` must divide {features}, got {number}.')
  return (
      features // head_features if num_heads is None else num_heads,
      features // num_heads if head_features is None else head_features,
  )


def _unit(u: jax.Array) -> jax.Array:
  """Normalises the features of `u` to length 1, up to an epsilon."""
  wide = u.astype(base.state_dtype(u.dtype))
  square = jnp.square(wide).sum(-1, keepdims=True)
  return (wide * jax.lax.rsqrt(square + 1e-6)).astype(u.dtype)
