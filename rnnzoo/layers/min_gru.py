"""minGRU (Feng et al., 2024), https://arxiv.org/abs/2410.01201."""

from collections.abc import Callable

from flax import nnx
import jax
import jax.numpy as jnp
from rnnzoo import ops
from rnnzoo.layers import base
from rnnzoo.layers import common
from rnnzoo.layers import initializers

positive, identity = ops.positive, ops.identity  # The paper's two `g`.


class MinGRU(base.GatedRecurrence):
  r"""A GRU whose gate and candidate do not look at the previous state.

  .. math::
      z_t &= \sigma(W_z x_t + b_z) \\
      h_t &= (1 - z_t) \odot h_{t-1} + z_t \odot g(W_h x_t + b_h) \\
      y_t &= W_o h_t + b_o \quad \text{(only if projected)}

  Nothing on the right but the first term holds :math:`h_{t-1}`, so a whole
  sequence is one `ops.gated_scan`. The state is `H` numbers a sequence. Cost a
  token: `2 D H` multiplications, `D H` more if projected.

  The published code works on logarithms, with `g` = `positive`; the numbers are
  the same. Its options are the arguments below; its experiments use biases and
  a learned initial state, the widespread port neither.

  Example::

    >>> from flax import nnx
    >>> import jax.numpy as jnp
    >>> layer = MinGRU(16, expansion_factor=2, rngs=nnx.Rngs(0))
    >>> x = jnp.ones((2, 10, 16))                     # [B, T, D]
    >>> carry, y = layer(x)                           # [B, H], [B, T, D]
    >>> carry, y_next = layer.step(carry, x[:, -1])   # [B, H], [B, D]
    >>> carry.shape, y.shape, y_next.shape
    ((2, 32), (2, 10, 16), (2, 16))

  Attributes:
    in_features: Size `D` of an input.
    hidden_features: Size `H` of the state, `int(D * expansion_factor)`.
    out_features: `D` if the output is projected, else `H`.
  """

  def __init__(
      self,
      in_features: int,
      *,
      expansion_factor: float = 1.0,
      activation_fn: Callable[[jax.Array], jax.Array] = positive,
      use_bias: bool = True,
      use_projection: bool | None = None,
      learn_initial_state: bool = False,
      dtype: jnp.dtype | None = None,
      param_dtype: jnp.dtype = jnp.float32,
      rngs: nnx.Rngs,
  ):
    """Creates the layer.

    Args:
      in_features: Size `D` of an input.
      expansion_factor: Hidden features per input feature.
      activation_fn: The candidate's `g`: `positive` or `identity`.
      use_bias: Whether the linear maps have biases.
      use_projection: Whether `y` is projected back to `D`; by default only
        where `H` differs from `D`.
      learn_initial_state: Whether the first state is `g(s)` with a parameter
        `s` instead of zero.
      dtype: Compute dtype; that of the input if `None`.
      param_dtype: Dtype of the parameters.
      rngs: Source of the initial parameters.
    """
    self.in_features = in_features
    self.hidden_features = int(in_features * expansion_factor)
    if use_projection is None:
      use_projection = self.hidden_features != in_features
    self.out_features = in_features if use_projection else self.hidden_features
    self.activation_fn = activation_fn
    self.dtype = dtype
    # Both maps, [D] -> [2, H]: the gate's, the candidate's.
    self.gates = gate_projection(
        2, in_features, self.hidden_features, use_bias, param_dtype, rngs
    )
    if use_projection:
      self.output = output_projection(
          self.hidden_features, in_features, use_bias, param_dtype, rngs
      )
    else:
      self.output = None
    self.initial_is_zero = not learn_initial_state
    if learn_initial_state:
      self.initial_state = initial_state(
          self.hidden_features, param_dtype, rngs
      )
    else:
      self.initial_state = None

  @base.computed
  def gate(self) -> ops.Gate:
    return ops.min_gru_gate(self.activation_fn)

  def initialize_carry(self, batch_size: int, dtype=None) -> jax.Array:
    """Returns the state before the first token `[B, H]`, float32 at least."""
    return initialize_carry(self, batch_size, dtype)

  def project(self, x):
    return common.project_each(self.gates, x, base.state_dtype(x.dtype))

  def readout(self, h, x):
    h = h.astype(x.dtype)
    return h if self.output is None else common.project(self.output, h)


def gate_projection(
    gates, in_features, hidden_features, use_bias, param_dtype, rngs, shift=0.0
):
  """A linear map `[D] -> [G, H]`; recurrent parameters: no weight decay.

  Args:
    gates: `G`.
    in_features: `D`.
    hidden_features: `H`.
    use_bias: Whether there is a bias `[G, H]`.
    param_dtype: Dtype of the parameters.
    rngs: Source of the initial parameters.
    shift: Added to the initial bias; broadcast to `[G, H]`.

  Returns:
    An `nnx.LinearGeneral`.
  """
  return nnx.LinearGeneral(
      in_features,
      (gates, hidden_features),
      use_bias=use_bias,
      kernel_init=initializers.uniform_fan_in(in_features),
      # Flax draws it flat.
      bias_init=initializers.uniform_fan_in(
          in_features,
          jnp.broadcast_to(shift, (gates, hidden_features)).reshape(-1),
      ),
      kernel_metadata=dict(axes=('embed', None, 'hidden'), recurrent=True),
      bias_metadata=dict(axes=(None, 'hidden'), recurrent=True),
      param_dtype=param_dtype,
      rngs=rngs,
  )


def output_projection(
    hidden_features, out_features, use_bias, param_dtype, rngs
):
  """A linear map `[H] -> [D]` with PyTorch's default initialisation."""
  return nnx.Linear(
      hidden_features,
      out_features,
      use_bias=use_bias,
      kernel_init=initializers.uniform_fan_in(hidden_features),
      bias_init=initializers.uniform_fan_in(hidden_features),
      kernel_metadata=dict(axes=('hidden', 'embed')),
      bias_metadata=dict(axes=(None,)),
      param_dtype=param_dtype,
      rngs=rngs,
  )


def initial_state(hidden_features, param_dtype, rngs):
  """A learned vector `s` `[H]` from N(0, 1); the state starts at `g(s)`."""
  return nnx.Param(
      jax.random.normal(rngs.params(), (hidden_features,), param_dtype),
      axes=('hidden',),
  )


def initialize_carry(layer, batch_size, dtype):
  """The first state of `layer` `[B, H]`: zeros, or `g(s)`."""
  dtype = base.state_dtype(dtype or layer.dtype)
  shape = (batch_size, layer.hidden_features)
  if layer.initial_state is None:
    return jnp.zeros(shape, dtype)
  initial = layer.activation_fn(layer.initial_state[...].astype(dtype))
  return jnp.broadcast_to(initial, shape)
