"""Blocks of attention whose parameters several places of a model share."""

from typing import Any, Literal, NamedTuple

from flax import nnx
import jax
import jax.numpy as jnp
from rnnzoo import errors
from rnnzoo import fields
from rnnzoo import ops
from rnnzoo.layers import attention
from rnnzoo.layers import base
from rnnzoo.layers import common
from rnnzoo.models import maps
from rnnzoo.models.config import ModelConfig

# Arguments of `SharedBlock` that are not in `ModelConfig.shared_options`.
_GIVEN = ('self', 'features', 'norm_epsilon', 'dtype', 'param_dtype', 'rngs')


class SharedInput(NamedTuple):
  """What a block that uses a shared block gets from the model.

  Attributes:
    block: The shared block.
    first: What the first block of the model reads, `[B, T, D]`, or `[B, D]`
      for a step.
  """

  block: 'SharedBlock'
  first: jax.Array


class SharedBlock(nnx.Module):
  r"""Attention and an MLP that several places of a model share (Zamba2).

  .. math::
      u_t &= \mathrm{attention}(\mathrm{norm}([x_t, x^{(0)}_t])) \\
      y_t &= W_o W_2 (\mathrm{gelu}(W_g n_t) \odot W_1 n_t),
      \quad n_t = \mathrm{norm}(u_t)

  It reads the features `x` `[B, T, D]` of a place and what the first block of
  the model reads, side by side. There is no residual connection. Scores are
  products of queries and keys divided by `sqrt(K / 2)`, for heads of `K`
  features. Each place has a carry and a `SharedUse` of its own: `W_o`, and
  matrices of low rank that are added to others.

  https://arxiv.org/abs/2411.15242

  >>> from flax import nnx
  >>> import jax.numpy as jnp
  >>> block = SharedBlock(8, num_heads=2, adapter_rank=3, rngs=nnx.Rngs(0))
  >>> use = SharedUse(block, rngs=nnx.Rngs(1))
  >>> x, carry = jnp.ones((2, 5, 8)), block.initialize_carry(2)
  >>> carry, y = block(use, carry, x, x)                       # [B, T, D]
  >>> carry, y = block(use, carry, x[:, 0], x[:, 0], step=True)  # [B, D]
  >>> carry.count, y.shape
  (Array([6, 6], dtype=int32), (2, 8))

  Attributes:
    attention: An `AdaptedAttention`, `[B, T, 2 D]` to `[B, T, D]`.
    adapter_rank: The rank of the matrices of each place; 0 for none.
    attention_adapters: Whether queries, keys and values have them, too.
  """

  def __init__(
      self,
      features: int,
      *,
      num_heads: int = 4,
      num_kv_heads: int | None = None,
      window: int = 1024,
      on_full: Literal['slide', 'error'] = 'slide',
      rotary_fraction: float = 1.0,
      max_wavelength: float = 10_000.0,
      mlp_features: int | None = None,
      adapter_rank: int = 0,
      attention_adapters: bool = False,
      norm_epsilon: float = 1e-6,
      dtype: Any = None,
      param_dtype: Any = jnp.float32,
      rngs: nnx.Rngs,
  ):
    """Creates the block.

    Args:
      features: `D`.
      num_heads: The number of heads, of `2 D / num_heads` features each.
      num_kv_heads: That of keys and values; `num_heads` if `None`.
      window: How many tokens a token sees, see `layers.Attention`, like the
        next three.
      on_full: What happens to longer sequences.
      rotary_fraction: The fraction of a head that is rotated.
      max_wavelength: The longest wavelength of the rotations.
      mlp_features: The number `F` of hidden features; `4 D` if `None`.
      adapter_rank: The rank of the matrices of each place; 0 for none.
      attention_adapters: Whether queries, keys and values have them, too.
      norm_epsilon: Added to the mean squares in the norms.
      dtype: Compute dtype; that of the input if `None`.
      param_dtype: Dtype of the parameters.
      rngs: Source of the initial parameters.

    Raises:
      ValueError: If a size is out of range, or does not divide another one.
    """
    if attention_adapters and not adapter_rank:
      raise ValueError(
          '`adapter_rank` must be at least 1 with `attention_adapters`, got 0.'
      )
    hidden = 4 * features if mlp_features is None else mlp_features
    if hidden < 1:
      raise ValueError(f'`mlp_features` must be at least 1, got {hidden}.')
    self.adapter_rank = adapter_rank
    self.attention_adapters = attention_adapters
    norm = lambda n: common.RMSNorm(
        n, epsilon=norm_epsilon, param_dtype=param_dtype
    )
    self.norm, self.mlp_norm = norm(2 * features), norm(features)
    self.attention = AdaptedAttention(
        2 * features, out_features=features, num_heads=num_heads,
        num_kv_heads=num_kv_heads, window=window, on_full=on_full,
        rotary_fraction=rotary_fraction, max_wavelength=max_wavelength,
        score_scale=(features / max(num_heads, 1)) ** -0.5, dtype=dtype,
        param_dtype=param_dtype, rngs=rngs,
    )
    linear = lambda n, m, **axes: maps.linear(
        n, m, param_dtype, rngs, use_bias=False, **axes
    )
    self.mlp_gate = linear(features, hidden, into='mlp')
    self.mlp_in = linear(features, hidden, into='mlp')
    self.mlp_out = linear(hidden, features, out_of='mlp', into='embed')

  def initialize_carry(
      self, batch_size: int, dtype: Any = None
  ) -> ops.AttentionCache:
    """Returns the carry of one place before the first token."""
    return self.attention.initialize_carry(batch_size, dtype)

  def __call__(
      self,
      use: 'SharedUse',
      carry: ops.AttentionCache,
      x: jax.Array,
      first: jax.Array,
      *,
      reset: jax.Array | None = None,
      mask: jax.Array | None = None,
      step: bool = False,
  ) -> tuple[ops.AttentionCache, jax.Array]:
    """Runs sequences `[B, T, D]`, or a step `[B, D]`, for one place.

    Args:
      use: What the place has of its own.
      carry: Its state after earlier tokens.
      x: Its features.
      first: What the first block of the model reads.
      reset: Where sequences start, `[B, T]` or `[B]`.
      mask: Which tokens exist, `[B, T]` or `[B]`.
      step: Whether this is a step.

    Returns:
      The next carry, and an array like `x`.

    Raises:
      ValueError: If the carry does not fit.
    """
    y = base.masked(jnp.concatenate([x, first], axis=-1), mask)
    y = ops.spread_rows(self.norm(y))
    layer, flags = self.attention.adapted(use.attention), dict(
        reset=reset, mask=mask
    )
    if step:
      carry, y = layer.step(carry, y, **flags)
    else:
      carry, y = layer(y, carry, **flags)
    y = ops.spread_rows(self.mlp_norm(y))
    gate = common.project(self.mlp_gate, y)
    inner = common.project(self.mlp_in, y)
    if use.mlp is not None:
      more = use.mlp(y)
      gate, inner = gate + more[..., 0, :], inner + more[..., 1, :]
    y = common.project(
        self.mlp_out, jax.nn.gelu(gate, approximate=False) * inner
    )
    return carry, base.masked(common.project(use.output, y), mask)


class SharedUse(nnx.Module):
  """What a place that uses a shared block has of its own.

  Attributes:
    output: The last map, `[D]` to `[D]`.
    attention: Adapters by the names of maps, see `AdaptedAttention`.
    mlp: The adapter of both maps to hidden features, or `None`.
  """

  def __init__(self, shared: SharedBlock, *, rngs: nnx.Rngs):
    """Creates the parameters of one use of `shared`."""
    layer, rank = shared.attention, shared.adapter_rank
    features = layer.out_features
    self.output = maps.linear(
        features, features, shared.mlp_in.param_dtype, rngs, use_bias=False,
        into=None,
    )

    def adapter(linear, *axes):
      return Adapter(
          linear.in_features, rank, axes, linear.param_dtype, rngs
      )

    self.attention = nnx.Dict()
    if shared.attention_adapters:
      for name in ('query', 'key', 'value'):
        linear = getattr(layer, name)
        self.attention[name] = adapter(linear, linear.out_features)
    inner = shared.mlp_in
    self.mlp = adapter(inner, 2, inner.out_features) if rank else None


class Adapter(nnx.Module):
  """A linear map of low rank (LoRA), `[D]` to `[..., M]`, which starts at 0.

  https://arxiv.org/abs/2106.09685
  """

  def __init__(
      self, features: int, rank: int, shape: tuple[int, ...], param_dtype: Any,
      rngs: nnx.Rngs,
  ):
    """Creates the map from `features` numbers to an array of a shape."""
    self.down = maps.linear(
        features, rank, param_dtype, rngs, use_bias=False, into=None
    )
    axes = (*(None for _ in shape), 'hidden')
    self.up = nnx.LinearGeneral(
        rank, shape, use_bias=False, kernel_init=nnx.initializers.zeros,
        kernel_metadata=dict(axes=axes), param_dtype=param_dtype, rngs=rngs,
    )

  def __call__(self, x: jax.Array) -> jax.Array:
    return common.project(self.up, common.project(self.down, x))


class AdaptedAttention(attention.Attention):
  """Attention that adds adapters to its maps, others in each use.

  Attributes:
    adapters: By the names of maps: `query`, `key` and `value`.
  """

  adapters: Any = ()

  def adapted(self, adapters: Any) -> 'AdaptedAttention':
    """Returns a copy with adapters, of the same parameters."""
    layer = nnx.merge(*nnx.split(self))
    layer.adapters = adapters
    return layer

  def _map(self, name, x):
    y = super()._map(name, x)
    return y + self.adapters[name](x) if name in self.adapters else y


def make(config: ModelConfig, rngs: nnx.Rngs) -> SharedBlock:
  """Builds a shared block.

  >>> config = ModelConfig(features=8, shared_options=dict(mlp_features=12))
  >>> make(config, nnx.Rngs(0)).mlp_in.kernel.shape
  (8, 12)

  Args:
    config: The config of the model.
    rngs: The source of the initial parameters.

  Raises:
    UserValueError: If `config.shared_options` has an option that does not
      exist or that has a wrong value.
  """
  known = fields.of_arguments(SharedBlock.__init__, without=_GIVEN)
  fields.check_all(config.shared_options, known, 'model.shared_options.')
  epsilon = config.norm_epsilon
  try:
    return SharedBlock(
        config.features, dtype=jnp.dtype(config.dtype),
        param_dtype=jnp.dtype(config.param_dtype), rngs=rngs,
        **dict(norm_epsilon=epsilon) if epsilon else {},
        **config.shared_options,
    )
  except ValueError as error:
    raise errors.UserValueError(f'model.shared_options: {error}') from error
