"""minGRU (Feng et al., 2024), https://arxiv.org/abs/2410.01201."""

from collections.abc import Callable
import functools

from flax import nnx
import jax
import jax.numpy as jnp
from rnnzoo import ops
from rnnzoo.layers import base
from rnnzoo.layers import common
from rnnzoo.layers import linear_maps
from rnnzoo.layers import recurrences

# The two functions `g` of the paper.
positive, identity = common.positive, common.identity


@functools.cache
def min_gru_gate(
    activation_fn: Callable[[jax.Array], jax.Array] = positive
) -> ops.Gate:
  """Returns the gate `(k, v) -> (1 - z, z g(v))` with `z = sigmoid(k)`.

  >>> import jax.numpy as jnp
  >>> k, v = jnp.zeros((1, 3, 1)), jnp.ones((1, 3, 1))
  >>> h_last, h = ops.gated_scan(min_gru_gate(), (k, v))
  >>> h[0, :, 0]
  Array([0.75  , 1.125 , 1.3125], dtype=float32)

  Args:
    activation_fn: `g`.

  Returns:
    A function `(start, k, v) -> (a, x)` for `ops.gated_scan`, the same object
    for the same `g`.
  """

  def gate(start, k, v):
    del start
    z = jax.nn.sigmoid(k)
    # 1 - z, not sigmoid(-k): two roundings that do not match cost a factor of
    # 40 in accuracy where z is small.
    return 1 - z, z * activation_fn(v)

  return gate


class MinGRU(recurrences.LinearRecurrence):
  r"""A GRU whose gate and candidate do not depend on the previous state.

  .. math::
      z_t &= \sigma(W_z x_t + b_z) \\
      h_t &= (1 - z_t) \odot h_{t-1} + z_t \odot g(W_h x_t + b_h) \\
      y_t &= W_o h_t + b_o \quad \text{(only if projected)}

  The recurrence is linear in :math:`h_{t-1}`, so a whole sequence is one
  `ops.gated_scan`. The state is `H` numbers a sequence. A token costs `2 D H`
  multiplications, and `D H` more if the output is projected.

  The published code computes with logarithms, with `g` = `positive`, and gives
  the same numbers. Its options are the arguments below. Its experiments use
  biases and a learned initial state; the most used port has neither.

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
      update_bias: float = 0.0,
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
      update_bias: Added to the initial bias of the gate z: with -5 a state
        starts to remember about 150 tokens, not two.
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
    self.gates = linear_maps.gate_map(
        2, in_features, self.hidden_features, use_bias, param_dtype, rngs,
        shift=jnp.array([[update_bias], [0]], jnp.float32),
    )
    if use_projection:
      self.output = linear_maps.output_map(
          self.hidden_features, in_features, use_bias, param_dtype, rngs
      )
    else:
      self.output = None
    self.initial_is_zero = not learn_initial_state
    if learn_initial_state:
      self.initial_state = nnx.Param(
          jax.random.normal(
              rngs.params(), (self.hidden_features,), param_dtype
          ),
          axes=('hidden',),
      )
    else:
      self.initial_state = None

  @recurrences.computed
  def gate(self) -> ops.Gate:
    """The gate, as `ops.gated_scan` takes it."""
    return min_gru_gate(self.activation_fn)

  @property
  def state_shape(self) -> tuple[int, ...]:
    """Sizes `(H,)` of the state of one sequence."""
    return (self.hidden_features,)

  def initialize_carry(self, batch_size: int, dtype=None) -> jax.Array:
    """Returns the state before the first token `[B, H]`: zeros, or `g(s)`.

    Args:
      batch_size: `B`.
      dtype: The compute dtype; the state is float32 at least.
    """
    zeros = super().initialize_carry(batch_size, dtype)
    if self.initial_state is None:
      return zeros
    initial = self.activation_fn(self.initial_state[...].astype(zeros.dtype))
    return jnp.broadcast_to(initial, zeros.shape)

  def __call__(self, x, carry=None, *, reset=None, mask=None):
    x, carry, initial, reset = base.prepare(self, x, carry, reset, mask)
    carry, h = ops.gated_scan(
        self.gate, self._logits(x), carry, reset=reset, mask=mask,
        initial=None if self.initial_is_zero else initial,
    )
    return carry, base.masked(self.readout(h, x), mask)

  def recurrence(self, x):
    return self.gate(None, *self._logits(x))

  def _logits(self, x):
    """Returns the logits of `z`, and the candidates, both `[..., H]`."""
    return common.project_each(self.gates, x, base.state_dtype(x.dtype))

  def readout(self, h, x):
    h = h.astype(x.dtype)
    return h if self.output is None else common.project(self.output, h)
