"""The residual block around a layer, the same for all layers."""

from typing import Any, NamedTuple

from flax import nnx
import jax
import jax.numpy as jnp
from rnnzoo import errors
from rnnzoo import ops
from rnnzoo.layers import base
from rnnzoo.layers import checking
from rnnzoo.layers import common
from rnnzoo.layers import initializers
from rnnzoo.models import experts as experts_lib
from rnnzoo.models import maps
from rnnzoo.models import shared as shared_lib
from rnnzoo.models.config import ModelConfig


class BlockCarry(NamedTuple):
  """The state of a block."""

  conv: Any  # The last inputs `[B, K - 1, D]` of the convolution, or `None`.
  layer: base.Carry  # `None` if there is no layer.
  shared: Any = None  # Of a shared block in this place, or `None`.


class Block(nnx.Module):
  """A convolution, a recurrent layer and an MLP, each with a residual branch.

  It may lack some of them. `ModelConfig` has the equations. Where the layer
  reads images, the features are `[B, T, H, W, D]`, all other maps are those of
  a pixel, and there is no convolution over time.

  >>> from flax import nnx
  >>> import jax.numpy as jnp
  >>> from rnnzoo import layers
  >>> rngs, config = nnx.Rngs(0), ModelConfig(features=8)
  >>> block = Block(config, layers.MinGRU(8, rngs=rngs), rngs=rngs)
  >>> x, carry = jnp.ones((2, 5, 8)), block.initialize_carry(2)
  >>> carry, y, _ = block(x, carry)                  # [B, T, D]
  >>> carry, y, _ = block.step(carry, x[:, 0])       # [B, D]

  Attributes:
    config: The `ModelConfig` of this block, see `ModelConfig.at_depth`.
    layer: The recurrent layer, or `None` if the block is only an MLP.
  """

  def __init__(
      self, config: ModelConfig, layer: base.RecurrentLayer | None, *,
      shared: shared_lib.SharedBlock | None = None, rngs: nnx.Rngs,
  ):
    """Creates the block around `layer`, which reads `[B, T, D]`.

    Args:
      config: That of the block.
      layer: The layer, or `None`.
      shared: The shared block of `config.shared_block`, which does not become a
        part of this one.
      rngs: Source of the initial parameters.

    Raises:
      UserValueError: If there is neither a layer nor an MLP.
    """
    features = config.features
    param_dtype = jnp.dtype(config.param_dtype)
    linear = lambda n, m, **k: maps.linear(
        n, m, param_dtype, rngs, use_bias=config.use_bias, **k
    )
    self.config = config
    if config.conv_kernel:
      self.conv = CausalConv(features, config.conv_kernel, param_dtype, rngs)
    if shared is not None:
      self.use = shared_lib.SharedUse(shared, rngs=rngs)
    self.layer = layer
    if layer is not None:
      self.norm = make_norm(config, rngs)
      if layer.out_features != features:
        self.project = linear(
            layer.out_features, features, out_of='hidden', into='embed'
        )
      if config.gate != 'none':
        self.gate = linear(features, features)
      if config.gate == 'glu':
        self.value = linear(features, features)
    elif config.mlp == 'none' or config.shared_block:
      raise errors.UserValueError(
          "A block mlp of model.layer needs a model.mlp other than 'none', and "
          f'no model.shared_block; got {config.mlp!r} and '
          f'{config.shared_block}.'
      )
    if config.mlp != 'none':
      multiple = config.mlp_multiple
      hidden = -(-int(features * config.mlp_factor) // multiple) * multiple
      self.mlp_norm = make_norm(config, rngs)
      if config.experts:
        self.experts = experts_lib.make(config, hidden, rngs)
        return
      self.mlp_in = linear(features, hidden, into='mlp')
      if config.mlp in maps.GATED:
        self.mlp_gate = linear(features, hidden, into='mlp')
      self.mlp_out = linear(hidden, features, out_of='mlp', into='embed')

  @property
  def causal(self) -> bool:
    """Whether outputs depend on no later input."""
    return self.layer is None or self.layer.causal

  def initialize_carry(
      self, batch_size: int, dtype: Any = None,
      shared: shared_lib.SharedBlock | None = None,
  ) -> BlockCarry:
    """Returns the carry before the first token.

    Args:
      batch_size: `B`.
      dtype: The compute dtype; `config.dtype` if `None`.
      shared: The shared block that this block uses.

    Returns:
      A `BlockCarry`, batch axis first.
    """
    dtype = jnp.dtype(dtype or self.config.dtype)
    conv = None
    if self.config.conv_kernel:
      shape = (batch_size, self.config.conv_kernel - 1, self.config.features)
      conv = jnp.zeros(shape, dtype)
    return BlockCarry(conv, *(
        None if part is None else part.initialize_carry(batch_size, dtype)
        for part in (self.layer, shared)
    ))

  def __call__(
      self,
      x: jax.Array,
      carry: BlockCarry,
      v_first: Any = None,
      *,
      reset: jax.Array | None = None,
      mask: jax.Array | None = None,
      dt: jax.Array | None = None,
      train: bool = False,
      key: jax.Array | None = None,
      shared: shared_lib.SharedInput | None = None,
  ) -> tuple[BlockCarry, jax.Array, Any]:
    """Runs whole sequences.

    Args:
      x: Features `[B, T, D]`.
      carry: The state after earlier tokens.
      v_first: For layers with a `first_value`, such as RWKV-7: the values
        that the first of them gave for these tokens. `None` before that layer.
      reset: Booleans `[B, T]`, `True` on the first token of each sequence.
      mask: Booleans `[B, T]`, `False` on tokens to skip.
      dt: The length of each step `[B, T]`, for layers that take it, or `None`.
      train: Whether batch norms use and update the statistics of the batch.
      key: The PRNG key of dropout; `None` means no dropout.
      shared: What `config.shared_block` needs.

    Returns:
      The next carry, features `[B, T, D]`, and `v_first` for the next block.

    Raises:
      ValueError: If the carry does not fit.
    """
    flags = dict(reset=reset, mask=mask)
    return self._run(
        x, carry, v_first, flags, dt, train, key, shared, step=False
    )

  def step(
      self,
      carry: BlockCarry,
      x: jax.Array,
      v_first: Any = None,
      *,
      reset: jax.Array | None = None,
      mask: jax.Array | None = None,
      dt: jax.Array | None = None,
      shared: shared_lib.SharedInput | None = None,
  ) -> tuple[BlockCarry, jax.Array, Any]:
    """Runs one token: `x` `[B, D]`; `reset`, `mask` and `dt` `[B]`.

    Returns:
      The next carry, features `[B, D]`, and `v_first` for the next block.

    Raises:
      ValueError: If the carry does not fit, or the layer is not causal.
    """
    flags = dict(reset=reset, mask=mask)
    return self._run(
        x, carry, v_first, flags, dt, False, None, shared, step=True
    )

  def _run(self, x, carry, v_first, flags, dt, train, key, shared, *, step):
    config, mask = self.config, flags['mask']
    keys = (None, None, None) if key is None else jax.random.split(key, 3)
    position = config.norm_position

    def normalized(norm, x):
      # Padding may hold anything, which a norm of the batch must not read.
      x = norm(base.masked(x, mask), mask=mask, train=train)
      return ops.spread_rows(x)

    def enter(norm, x, more=None):
      """Returns what a branch is added to, and what it reads."""
      u = x if more is None else x + more
      u = normalized(norm, u) if position in ('pre', 'both') else u
      return (u if position == 'both' else x), u

    def add(norm, x, y, scales, key):
      y = normalized(norm, y) if position == 'out' else y
      x, y = (
          u if scale == 1 else u * jnp.asarray(scale, u.dtype)
          for u, scale in zip((x, self._dropout(y, key)), scales)
      )
      x = x + y
      return normalized(norm, x) if position == 'post' else ops.spread_rows(x)

    _check_conv_carry(config, carry.conv, x)
    conv = carry.conv
    if config.conv_kernel:
      conv, y = self.conv(x, conv, step=step, **flags)
      x = ops.spread_rows(x + y)

    own, more = carry.shared, None
    if shared is not None:
      own, more = shared.block(
          self.use, own, x, shared.first, step=step, **flags
      )
    layer = carry.layer
    if self.layer is not None:
      x, u = enter(self.norm, x, more)
      layer, y, v_first = self._mix(
          self.layer, u, layer, v_first, flags, dt, step
      )
      y = base.masked(self._gate(y, keys[0]), mask)
      x = add(self.norm, x, y, config.layer_scales, keys[1])

    if config.mlp != 'none':
      x, u = enter(self.mlp_norm, x)
      y = self._mlp(u, mask, train)
      x = add(self.mlp_norm, x, y, config.mlp_scales, keys[2])
    return BlockCarry(conv, layer, own), x, v_first

  def _mix(self, layer, x, carry, v_first, flags, dt, step):
    """Runs the layer: the next carry, `[..., D]`, and `v_first`."""
    options, next_first = dict(flags), v_first
    if dt is not None:
      options['dt'] = dt
    first_value = getattr(layer, 'first_value', None)
    if first_value is not None:
      options['v_first'] = v_first
      if v_first is None:
        next_first = first_value(x, carry, **flags)
    if step:
      carry, y = layer.step(carry, x, **options)
    else:
      carry, y = layer(x, carry, **options)
    if layer.out_features != self.config.features:
      y = common.project(self.project, y)
    return carry, y, next_first

  def _gate(self, y, key):
    """Applies `config.gate` to the output `[..., D]` of the layer."""
    kind = self.config.gate
    if kind == 'none':
      return y
    active = self._dropout(jax.nn.gelu(y), key)
    if kind == 'glu':
      y = common.project(self.value, active)
    elif kind == 'half_glu':
      y = active
    return jax.nn.sigmoid(common.project(self.gate, active)) * y

  def _mlp(self, x, mask=None, train=False):
    config = self.config
    if config.experts:
      return self.experts(x, mask=mask, train=train)
    gate = self.mlp_gate if config.mlp in maps.GATED else None
    return maps.mlp(
        config.mlp, self.mlp_in, gate, self.mlp_out, x, config.mlp_gate_scale
    )

  def _dropout(self, x, key):
    return dropout(
        x, self.config.dropout, key, over_time=self.config.dropout_over_time
    )


class CausalConv(nnx.Module):
  """A depthwise causal convolution, then a linear map of each token."""

  def __init__(
      self, features: int, kernel_size: int, param_dtype: Any, rngs: nnx.Rngs
  ):
    init = initializers.uniform_fan_in(kernel_size)
    self.kernel = nnx.Param(
        init(rngs.params(), (kernel_size, features), param_dtype),
        axes=(None, None),
    )
    self.bias = nnx.Param(
        init(rngs.params(), (features,), param_dtype), axes=(None,)
    )
    self.pointwise = maps.linear(features, features, param_dtype, rngs)

  def __call__(
      self,
      x: jax.Array,
      tail: jax.Array,
      *,
      reset: jax.Array | None = None,
      mask: jax.Array | None = None,
      step: bool = False,
  ) -> tuple[jax.Array, jax.Array]:
    """Runs sequences `[B, T, D]`, or a step `[B, D]`.

    Args:
      x: Features.
      tail: The last `kernel_size - 1` inputs, `[B, K - 1, D]`.
      reset: Where sequences start, `[B, T]` or `[B]`.
      mask: Which tokens exist, `[B, T]` or `[B]`.
      step: Whether this is a step.

    Returns:
      The next tail, and an array like `x`.
    """
    convolve = ops.causal_conv1d_step if step else ops.causal_conv1d
    tail, y = convolve(
        x, self.kernel[...], self.bias[...], tail, reset=reset, mask=mask
    )
    return tail, base.masked(common.project(self.pointwise, y), mask)


def _check_conv_carry(config, conv, x):
  """Raises `ValueError` unless `conv` is what a convolution of `x` needs."""
  if (conv is None) != (not config.conv_kernel):
    raise ValueError(
        f'`carry.conv` must be {"an array" if conv is None else "None"}, as '
        f'conv_kernel is {config.conv_kernel}, got {checking.sketch(conv)}.'
    )
  if conv is not None:
    like = (x.shape[0], config.conv_kernel - 1, config.features)
    checking.check_carry(
        BlockCarry(conv, None),
        BlockCarry(jax.ShapeDtypeStruct(like, x.dtype), None),
    )


def make_norm(config: ModelConfig, rngs: nnx.Rngs) -> nnx.Module:
  """Returns a norm over `config.features`.

  >>> make_norm(ModelConfig(features=8), nnx.Rngs(0))(jnp.ones((1, 8))).shape
  (1, 8)
  """
  options = dict(epsilon=config.norm_epsilon) if config.norm_epsilon else {}
  return common.NORMS[config.norm](
      config.features, param_dtype=jnp.dtype(config.param_dtype), rngs=rngs,
      **options,
  )


def make_final_norm(config: ModelConfig, rngs: nnx.Rngs) -> nnx.Module:
  """Returns the norm after the last block."""
  epsilon = config.final_norm_epsilon or config.norm_epsilon
  return make_norm(config.replace(norm_epsilon=epsilon), rngs)


def make_head(
    config: ModelConfig, outputs: int, rngs: nnx.Rngs, *, use_bias: bool
) -> nnx.Linear:
  """Returns the last map of a model, from its features to `outputs` numbers."""
  return maps.linear(
      config.features, outputs, jnp.dtype(config.param_dtype), rngs,
      use_bias=use_bias, into='vocab',
  )


def make_linear(
    config: ModelConfig, rngs: nnx.Rngs, *, parts: int = 1
) -> nnx.Linear:
  """Returns a linear map with a bias to `config.features`.

  Args:
    config: The model's config.
    rngs: The source of the initial parameters.
    parts: How many vectors of `config.features` numbers are its input.
  """
  features = config.features
  return maps.linear(
      parts * features, features, jnp.dtype(config.param_dtype), rngs,
      into='hidden',
  )


def make_map(
    config: ModelConfig, inputs: int, outputs: int, rngs: nnx.Rngs
) -> nnx.Linear:
  """Returns a small linear map with a bias, which every device holds whole."""
  return maps.linear(
      inputs, outputs, jnp.dtype(config.param_dtype), rngs, out_of=None,
      into=None,
  )


def dropout(
    x: jax.Array, rate: float, key: jax.Array | None, *, over_time: bool = False
) -> jax.Array:
  """Sets random elements of `x` to 0 and scales the others.

  >>> dropout(jnp.ones((2, 5, 8)), 0.1, jax.random.key(0)).shape
  (2, 5, 8)

  Args:
    x: Features `[B, T, D]` or `[B, D]`, of images `[B, T, H, W, D]` or
      `[B, H, W, D]`.
    rate: The probability of 0, rounded to a multiple of 2^-16, since each
      element gets sixteen random bits.
    key: A PRNG key; `None` means no dropout.
    over_time: Whether all steps of a sequence have the same mask.

  Returns:
    An array like `x`.
  """
  if key is None or rate == 0:
    return x
  shape = x.shape
  if over_time and x.ndim in (3, 5):
    shape = (x.shape[0], 1, *x.shape[2:])
  threshold = round(rate * 2**16)
  keep = jax.random.bits(key, shape, jnp.uint16) >= jnp.uint16(threshold)
  return jnp.where(keep, x / (1 - threshold / 2**16), 0).astype(x.dtype)
