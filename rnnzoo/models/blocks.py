"""The residual block around a layer, once for all of them."""

from typing import Any, NamedTuple

from flax import nnx
import jax
import jax.numpy as jnp
from rnnzoo import ops
from rnnzoo.layers import base
from rnnzoo.layers import common
from rnnzoo.layers import initializers
from rnnzoo.models.config import ModelConfig


class BlockCarry(NamedTuple):
  """State of a block: its convolution's last inputs or `None`, its layer's."""

  conv: Any
  layer: Any


class Block(nnx.Module):
  """Convolution, recurrent layer and MLP, each on its own residual branch."""

  def __init__(self, config: ModelConfig, layer, *, rngs: nnx.Rngs):
    """Wraps `layer`, a `RecurrentLayer` of `config.features` inputs."""
    features = config.features
    param_dtype = jnp.dtype(config.param_dtype)
    linear = lambda n, m, **k: _linear(
        n, m, param_dtype, rngs, use_bias=config.use_bias, **k
    )
    self.config = config
    if config.conv_kernel:
      self.conv = CausalConv(features, config.conv_kernel, param_dtype, rngs)
    self.norm = make_norm(config, rngs)
    self.layer = layer
    if layer.out_features != features:
      self.project = linear(
          layer.out_features, features, out_of='hidden', into='embed'
      )
    if config.gate != 'none':
      self.gate = linear(features, features)
    if config.gate == 'glu':
      self.value = linear(features, features)
    if config.mlp != 'none':
      multiple = config.mlp_multiple
      hidden = -(-int(features * config.mlp_factor) // multiple) * multiple
      self.mlp_norm = make_norm(config, rngs)
      self.mlp_in = linear(features, hidden, into='mlp')
      if config.mlp != 'gelu':
        self.mlp_gate = linear(features, hidden, into='mlp')
      self.mlp_out = linear(hidden, features, out_of='mlp', into='embed')

  def initialize_carry(self, batch_size: int, dtype=None) -> BlockCarry:
    """Returns the carry before the first token."""
    dtype = jnp.dtype(dtype or self.config.dtype)
    conv = None
    if self.config.conv_kernel:
      shape = (batch_size, self.config.conv_kernel - 1, self.config.features)
      conv = jnp.zeros(shape, dtype)
    return BlockCarry(conv, self.layer.initialize_carry(batch_size, dtype))

  def __call__(
      self, x, carry, v_first=None, *, reset=None, mask=None, train=False,
      key=None,
  ):
    """Runs whole sequences.

    Args:
      x: Residual stream `[B, T, D]`.
      carry: State left by earlier tokens.
      v_first: What the first layer that has a `first_value` gave for these
        tokens; `None` before.
      reset: Booleans `[B, T]`, `True` on the first token of each sequence.
      mask: Booleans `[B, T]`, `False` on tokens to be skipped.
      train: Whether batch norms use and update the batch's statistics.
      key: For dropout; `None` means none.

    Returns:
      The next carry, `[B, T, D]`, and `v_first` for the next block.
    """
    return self._run(x, carry, v_first, reset, mask, train, key, step=False)

  def step(self, carry, x, v_first=None, *, reset=None, mask=None):
    """Runs one token `[B, D]`: next carry, `[B, D]`, and `v_first`."""
    return self._run(x, carry, v_first, reset, mask, False, None, step=True)

  def _run(self, x, carry, v_first, reset, mask, train, key, *, step):
    config = self.config
    keys = [None] * 3 if key is None else jax.random.split(key, 3)
    drop = lambda u, k: dropout(
        u, config.dropout, k, over_time=config.dropout_over_time
    )
    flags = dict(reset=reset, mask=mask)
    conv = carry.conv
    if (conv is None) != (not config.conv_kernel):
      raise ValueError(
          f'`carry.conv` must be {"an array" if conv is None else "None"}, as '
          f'conv_kernel is {config.conv_kernel}, got {base.sketch(conv)}.'
      )
    if config.conv_kernel:
      like = (x.shape[0], config.conv_kernel - 1, config.features)
      base.check_carry(
          BlockCarry(conv, None),
          BlockCarry(jax.ShapeDtypeStruct(like, x.dtype), None),
      )
      conv, y = self.conv(x, conv, step=step, **flags)
      x = ops.spread_rows(x + y)

    def branch(x, norm, function):
      # Padding may hold anything; a norm must not spread it.
      normed = lambda u: ops.spread_rows(
          norm(base.masked(u, mask), mask=mask, train=train)
      )
      if config.norm_position == 'pre':
        return ops.spread_rows(x + function(normed(x)))
      return normed(x + function(x))

    next_carry, told = carry.layer, v_first

    def mix(u):
      nonlocal next_carry, told
      options = flags
      if hasattr(self.layer, 'first_value'):
        options = dict(flags, v_first=v_first)
        if v_first is None:
          told = self.layer.first_value(u, carry.layer, **flags)
      if step:
        next_carry, y = self.layer.step(carry.layer, u, **options)
      else:
        next_carry, y = self.layer(u, carry.layer, **options)
      if self.layer.out_features != config.features:
        y = common.project(self.project, y)
      if config.gate != 'none':
        active = drop(jax.nn.gelu(y), keys[0])
        if config.gate == 'glu':
          y = common.project(self.value, active)
        elif config.gate == 'half_glu':
          y = active
        y = jax.nn.sigmoid(common.project(self.gate, active)) * y
      return drop(base.masked(y, mask), keys[1])

    def mlp(u):
      y = common.project(self.mlp_in, u)
      if config.mlp == 'gelu':
        y = jax.nn.gelu(y)
      else:
        nonlinearity = dict(geglu=jax.nn.gelu, swiglu=jax.nn.silu)[config.mlp]
        y = y * nonlinearity(common.project(self.mlp_gate, u))
      return drop(common.project(self.mlp_out, y), keys[2])

    x = branch(x, self.norm, mix)
    if config.mlp != 'none':
      x = branch(x, self.mlp_norm, mlp)
    return BlockCarry(conv, next_carry), x, told


class CausalConv(nnx.Module):
  """A depthwise causal convolution, then a dense map of each token."""

  def __init__(self, features, kernel_size, param_dtype, rngs):
    init = initializers.uniform_fan_in(kernel_size)
    self.kernel = nnx.Param(
        init(rngs.params(), (kernel_size, features), param_dtype),
        axes=(None, None),
    )
    self.bias = nnx.Param(
        init(rngs.params(), (features,), param_dtype), axes=(None,)
    )
    self.pointwise = _linear(features, features, param_dtype, rngs)

  def __call__(self, x, tail, *, reset=None, mask=None, step=False):
    convolve = ops.causal_conv1d_step if step else ops.causal_conv1d
    tail, y = convolve(
        x, self.kernel[...], self.bias[...], tail, reset=reset, mask=mask
    )
    return tail, base.masked(common.project(self.pointwise, y), mask)


def make_norm(config: ModelConfig, rngs: nnx.Rngs) -> nnx.Module:
  """Returns the norm of a model, over its features."""
  options = dict(epsilon=config.norm_epsilon) if config.norm_epsilon else {}
  return common.NORMS[config.norm](
      config.features, param_dtype=jnp.dtype(config.param_dtype), rngs=rngs,
      **options,
  )


def make_head(
    config: ModelConfig, outputs: int, rngs: nnx.Rngs, *, use_bias: bool
) -> nnx.Linear:
  """Returns the last map of a model, from its features to `outputs` numbers."""
  return _linear(
      config.features, outputs, jnp.dtype(config.param_dtype), rngs,
      use_bias=use_bias, into='vocab',
  )


def dropout(x, rate, key, *, over_time=False):
  """Zeroes elements of `x` `[B, ..., D]` at random, and scales the rest.

  Args:
    x: Activations.
    rate: Rounded to a multiple of 2^-16: sixteen random bits an element.
    key: A PRNG key; `None` means no dropout.
    over_time: Whether elements that differ only in time share their fate.

  Returns:
    An array like `x`.
  """
  if key is None or rate == 0:
    return x
  shape = (x.shape[0], 1, x.shape[-1]) if over_time and x.ndim == 3 else x.shape
  threshold = round(rate * 2**16)
  keep = jax.random.bits(key, shape, jnp.uint16) >= jnp.uint16(threshold)
  return jnp.where(keep, x / (1 - threshold / 2**16), 0).astype(x.dtype)


def _linear(
    n, m, param_dtype, rngs, *, use_bias=True, out_of='embed', into='hidden'
):
  init = initializers.uniform_fan_in(n)
  return nnx.Linear(
      n,
      m,
      use_bias=use_bias,
      kernel_init=init,
      bias_init=init,
      kernel_metadata=dict(axes=(out_of, into)),
      bias_metadata=dict(axes=(into,)),
      param_dtype=param_dtype,
      rngs=rngs,
  )
