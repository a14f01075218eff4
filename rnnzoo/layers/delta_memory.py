"""The memory of the layers of the delta rule: maps, convolutions, readout."""

from collections.abc import Callable
import math
from typing import Any, NamedTuple

from flax import nnx
import jax
import jax.numpy as jnp
from rnnzoo import ops
from rnnzoo.layers import base
from rnnzoo.layers import checking
from rnnzoo.layers import common
from rnnzoo.layers import initializers

ACTIVATIONS: dict[str, Callable[[jax.Array], jax.Array]] = dict(
    silu=jax.nn.silu,
    relu=jax.nn.relu,
    elu=lambda u: jax.nn.elu(u) + 1,
    identity=lambda u: u,
)


class DeltaNetCarry(NamedTuple):
  """State of `DeltaNet` and of the layers that came after it.

  Attributes:
    conv: Last inputs of the convolutions of queries, keys and values, `[B, C-1,
      H K + N (H K + G V)]`.
    S: The map from keys to values `[B, G, K, V]`. `G` is `H`, and `N` is 1,
      unless the layer says otherwise. That of `LogLinearGatedDeltaNet` has
      levels, an `ops.LevelState`.
  """

  conv: jax.Array
  S: Any


class DeltaMemory(base.RecurrentLayer):
  """A layer around a map from keys to values that is corrected by its errors.

  A token is mapped to queries, keys and values, which pass a short convolution.
  After the recurrence every head is normalised and gated. A subclass makes its
  parameters with `_make_tokens` and `_make_readout`, and `_make_head_decay` if
  it has the map `decay`. It defines `_operands`, what the recurrence reads, and
  may define `_gate`.

  Attributes:
    recurrence: The op that runs a whole sequence.
    recurrence_step: The op that runs a token.
    num_writes: Keys and values `N` of a token and a head.
    activation: The activation of queries and keys.
    allow_negative_eigenvalues: Whether rates are in (0, 2), not (0, 1).
  """

  carry_tails = ('conv',)
  recurrence: Callable[..., Any] = staticmethod(ops.delta_rule)
  recurrence_step: Callable[..., Any] = staticmethod(ops.delta_rule_step)
  num_writes: int = 1
  activation: str = 'silu'
  allow_negative_eigenvalues: bool = False
  decay: nnx.Linear

  def _make_tokens(
      self, in_features, *, num_heads, num_value_heads, key_features,
      value_features, conv_kernel, chunk_size, dtype, num_writes=1, param_dtype,
      rngs,
  ):
    """Sets the sizes, and makes the map and the convolution of tokens."""
    values = num_heads if num_value_heads is None else num_value_heads
    checking.check_sizes(
        num_heads=num_heads, key_features=key_features,
        value_features=value_features, conv_kernel=conv_kernel,
    )
    check_value_heads(num_heads, values)
    self.in_features = self.out_features = in_features
    self.num_heads, self.num_value_heads = num_heads, values
    self.key_features, self.value_features = key_features, value_features
    self.conv_kernel = conv_kernel
    self.num_writes = num_writes
    self.chunk_size = chunk_size
    self.dtype = dtype
    channels = num_heads * key_features * (1 + num_writes)
    channels += values * value_features * num_writes
    # One map and one convolution for queries, keys and values together.
    self.qkv = linear(
        in_features, channels, ('embed', 'hidden'), param_dtype=param_dtype,
        rngs=rngs,
    )
    taps = initializers.uniform_fan_in(conv_kernel)
    self.conv = nnx.Param(
        taps(rngs.params(), (conv_kernel, channels), param_dtype),
        axes=(None, 'hidden'),
    )

  def _make_head_decay(self, dt_min, dt_max, *, param_dtype, rngs):
    """Makes rates and biases of one decay for each head of values."""
    # Parameters of the decay are float32 at least, and have no weight decay.
    per_head = lambda u: nnx.Param(u, axes=('heads',), recurrent=True)
    shape, dtype = (self.num_value_heads,), base.state_dtype(param_dtype)
    step_sizes = initializers.step_size_bias(dt_min, dt_max)
    rates = jax.random.uniform(rngs.params(), shape, dtype, 1e-3, 16.0)
    self.A_log = per_head(jnp.log(rates))
    self.dt_bias = per_head(step_sizes(rngs.params(), shape, dtype))

  def _make_readout(self, norm_epsilon, *, param_dtype, rngs):
    """Makes the norm of the heads and the map to outputs."""
    self.norm = common.HeadNorm(
        self.num_value_heads, self.value_features, epsilon=norm_epsilon,
        share=True, param_dtype=param_dtype,
    )
    self.output = linear(
        self.num_value_heads * self.value_features, self.in_features,
        ('hidden', 'embed'), param_dtype=param_dtype, rngs=rngs,
    )

  @property
  def state_shape(self) -> base.StateShape:
    """Sizes of the arrays of the carry of one sequence."""
    return base.carry_shape(
        DeltaNetCarry,
        conv=(self.conv_kernel - 1, self.conv.shape[-1]),
        S=(self.num_value_heads, self.key_features, self.value_features),
    )

  def __call__(self, x, carry=None, *, reset=None, mask=None):
    x, carry, _, reset = base.prepare(self, x, carry, reset, mask)
    flags = dict(reset=reset, mask=mask)
    tail, tokens = self._project(ops.causal_conv1d, x, carry, flags)
    S, y = self._recur(self._operands(*tokens, x), carry.S, flags)
    return DeltaNetCarry(tail, S), self._readout(y, x, mask)

  def step(self, carry, x, *, reset=None, mask=None):
    x, carry, initial, reset = base.prepare(
        self, x, carry, reset, mask, step=True
    )
    flags = dict(reset=reset, mask=mask)
    tail, tokens = self._project(ops.causal_conv1d_step, x, carry, flags)
    S = carry.S
    if reset is not None:
      S = base.select(reset, initial.S, S)
    S, y = self._recur_step(self._operands(*tokens, x), S, mask)
    if mask is not None:
      S = base.select(mask, S, carry.S)
    return DeltaNetCarry(tail, S), self._readout(y, x, mask)

  def _recur(self, operands, S, flags):
    """Returns the last state and the outputs of the heads `[B, T, G, V]`."""
    return self.recurrence(
        **operands, S0=S, scale=self.key_features**-0.5,
        chunk_size=self.chunk_size, **flags,
    )

  def _recur_step(self, operands, S, mask):
    """Runs one token; what becomes of absent rows does not matter."""
    del mask
    return self.recurrence_step(
        **operands, S=S, scale=self.key_features**-0.5
    )

  def _project(self, convolve, x, carry, flags):
    """Returns the tail, and queries, keys and values of each head.

    Queries are `[..., H, K]`, keys `[..., H, K]` or `[..., N, H, K]`, values
    `[..., G, V]` or `[..., N, G, V]`.
    """
    tail, u = convolve(
        common.project(self.qkv, x), self.conv[...], None, carry.conv, **flags
    )
    writes, keys = self.num_writes, self.num_heads * self.key_features
    q, k, v = jnp.split(u, [keys, (1 + writes) * keys], axis=-1)
    one, some = (self.num_heads, self.key_features), ()
    if writes > 1:
      some = (writes,)
    activate = ACTIVATIONS[self.activation]
    q = activate(q.reshape(*u.shape[:-1], *one))
    k = activate(k.reshape(*u.shape[:-1], *some, *one))
    v = jax.nn.silu(v.reshape(
        *u.shape[:-1], *some, self.num_value_heads, self.value_features
    ))
    return tail, (q, k, v)

  def _operands(self, q, k, v, x) -> dict[str, Any]:
    """Returns the operands of the recurrence, but for the state.

    Args:
      q: As `_project` returns it.
      k: Likewise.
      v: Likewise.
      x: Inputs `[..., D]`.
    """
    raise TypeError(f'{type(self).__name__} does not define _operands.')

  def _rates(self, linear, x):
    """Maps `[..., D]` to rates of correction, in the dtype of states."""
    rates = self._gates(linear, x)
    return 2 * rates if self.allow_negative_eigenvalues else rates

  def _gates(self, linear, x):
    """Maps `[..., D]` to numbers in (0, 1), in the dtype of states."""
    return jax.nn.sigmoid(
        common.project(linear, x, base.state_dtype(x.dtype))
    )

  def _head_decay(self, x):
    """Returns log decays `[..., G]` in the dtype of states."""
    dtype = base.state_dtype(x.dtype)
    raw = common.project(self.decay, x, dtype)
    return log_decay(raw, self.A_log[...], self.dt_bias[...])

  def _readout(self, y, x, mask):
    """Maps the output of the heads `[..., G, V]` to `[..., D]`."""
    y = self._gate(self.norm(y), x)
    y = y.reshape(*x.shape[:-1], self.num_value_heads * self.value_features)
    y = y.astype(x.dtype)
    return base.masked(common.project(self.output, y), mask)

  def _gate(self, y, x):
    """Applies the output gate of a subclass to `y` `[..., G, V]`."""
    del x
    return y


def log_decay(
    raw: jax.Array, A_log: jax.Array, dt_bias: jax.Array
) -> jax.Array:
  """Returns `-exp(A_log) softplus(raw + dt_bias)`, the decay of Mamba-2.

  Args:
    raw: `[..., H]`, or `[..., H, K]` for a decay for each feature of a key.
    A_log: `[H]`, or `[H, 1]`.
    dt_bias: `[H]`, or `[H, K]`.

  Returns:
    Logarithms of decays, like `raw`.
  """
  dt = jax.nn.softplus(raw + dt_bias.astype(raw.dtype))
  return -jnp.exp(A_log.astype(raw.dtype)) * dt


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


def values_of(num_heads, num_value_heads, features) -> int:
  """Returns features of a value so that all heads have `features H`."""
  values = num_heads if num_value_heads is None else num_value_heads
  check_value_heads(num_heads, values)
  if features * num_heads % values:
    raise ValueError(
        f'`num_value_heads` must divide the {features * num_heads} features of '
        f'values, got {values}; or give `value_features`.'
    )
  return features * num_heads // values


def checked_activation(activation: str) -> str:
  """Returns the name of an activation, or raises."""
  if activation not in ACTIVATIONS:
    raise ValueError(
        f'`activation` must be one of {", ".join(ACTIVATIONS)}, got '
        f'{activation!r}.'
    )
  return activation


def check_value_heads(num_heads: int, num_value_heads: int) -> None:
  """Raises `ValueError` unless each head of keys has as many of values."""
  if num_heads < 1:
    raise ValueError(f'`num_heads` must be at least 1, got {num_heads}.')
  if num_value_heads < 1 or num_value_heads % num_heads:
    raise ValueError(
        f'`num_value_heads` must be a multiple of `num_heads` = {num_heads}, '
        f'got {num_value_heads}.'
    )


def unit(u: jax.Array) -> jax.Array:
  """Normalises the features of `u` to length 1, up to an epsilon of 1e-6."""
  wide = u.astype(base.state_dtype(u.dtype))
  square = jnp.square(wide).sum(-1, keepdims=True)
  return (wide * jax.lax.rsqrt(square + 1e-6)).astype(u.dtype)


def shared(u: jax.Array, num_value_heads: int) -> jax.Array:
  """Gives `G` heads of values what `H` heads of keys have, in their order.

  >>> import jax.numpy as jnp
  >>> shared(jnp.array([[1.], [2.]]), 4)[:, 0]
  Array([1., 1., 2., 2.], dtype=float32)

  Args:
    u: `[..., H, K]`.
    num_value_heads: `G`, a multiple of `H`.

  Returns:
    `[..., G, K]`.
  """
  times = num_value_heads // u.shape[-2]
  return u if times == 1 else jnp.repeat(u, times, axis=-2)
