"""Signed minGRU (Santiago, 2026), the package mingru-scans 0.2.0."""

from flax import nnx
import jax
import jax.numpy as jnp
from rnnzoo.layers import base
from rnnzoo.layers import common
from rnnzoo.layers import linear_maps
from rnnzoo.layers import recurrences


class SignedMinGRU(recurrences.LinearRecurrence):
  r"""A minGRU whose decay has a sign: a state can flip, and so count modulo 2.

  .. math::
      z_t &= \sigma(W_z x_t + b_z) \\
      a_t &= \tanh(W_s x_t + b_s) \quad \text{or, if coupled,} \quad
      (1 - z_t) \odot \tanh(W_s x_t + b_s) \\
      h_t &= a_t \odot h_{t-1} + z_t \odot (W_h x_t + b_h) \\
      y_t &= W_o h_t + b_o \quad \text{(only if projected)}

  A whole sequence is one `ops.linear_scan`. The state is `H` numbers a
  sequence. A token costs `3 D H` multiplications, and `D H` more if the output
  is projected.

  Example::

    >>> from flax import nnx
    >>> import jax.numpy as jnp
    >>> layer = SignedMinGRU(16, expansion_factor=2, rngs=nnx.Rngs(0))
    >>> carry, y = layer(jnp.ones((2, 10, 16)))       # [B, H], [B, T, D]
    >>> carry.shape, y.shape
    ((2, 32), (2, 10, 16))

  Attributes:
    in_features: Size `D` of an input.
    hidden_features: Size `H` of the state, `int(D * expansion_factor)`.
    out_features: `D` if the output is projected, else `H`.
    coupled: Whether the decay is at most `1 - z`.
  """

  def __init__(
      self,
      in_features: int,
      *,
      expansion_factor: float = 1.0,
      coupled: bool = False,
      use_bias: bool = True,
      use_projection: bool | None = None,
      dtype: jnp.dtype | None = None,
      param_dtype: jnp.dtype = jnp.float32,
      rngs: nnx.Rngs,
  ):
    """Creates the layer.

    Args:
      in_features: Size `D` of an input.
      expansion_factor: Hidden features per input feature.
      coupled: Whether the decay is multiplied by `1 - z`. The author found that
        this hinders counting.
      use_bias: Whether the linear maps have biases.
      use_projection: Whether `y` is projected back to `D`; by default only
        where `H` differs from `D`.
      dtype: Compute dtype; that of the input if `None`.
      param_dtype: Dtype of the parameters.
      rngs: Source of the initial parameters.
    """
    self.in_features = in_features
    self.hidden_features = int(in_features * expansion_factor)
    if use_projection is None:
      use_projection = self.hidden_features != in_features
    self.out_features = in_features if use_projection else self.hidden_features
    self.coupled = coupled
    self.dtype = dtype
    # The maps of z, s and h, [D] -> [3, H].
    self.gates = linear_maps.gate_map(
        3, in_features, self.hidden_features, use_bias, param_dtype, rngs
    )
    if use_projection:
      self.output = linear_maps.output_map(
          self.hidden_features, in_features, use_bias, param_dtype, rngs
      )
    else:
      self.output = None

  @property
  def state_shape(self) -> tuple[int, ...]:
    """Sizes `(H,)` of the state of one sequence."""
    return (self.hidden_features,)

  def recurrence(self, x):
    z, s, v = common.project_each(self.gates, x, base.state_dtype(x.dtype))
    z, a = jax.nn.sigmoid(z), jnp.tanh(s)
    return (1 - z) * a if self.coupled else a, z * v

  def readout(self, h, x):
    h = h.astype(x.dtype)
    return h if self.output is None else common.project(self.output, h)
