"""minLSTM (Feng et al., 2024), https://arxiv.org/abs/2410.01201."""

from collections.abc import Callable

from flax import nnx
import jax
import jax.numpy as jnp
from rnnzoo import ops
from rnnzoo.layers import base
from rnnzoo.layers import common
from rnnzoo.layers import min_gru


class MinLSTM(base.GatedRecurrence):
  r"""An LSTM without output gate, whose gates do not look at the previous
  state.

  .. math::
      f_t &= \sigma(W_f x_t + b_f), \quad i_t = \sigma(W_i x_t + b_i) \\
      f'_t &= f_t / (f_t + i_t), \quad i'_t = i_t / (f_t + i_t) \\
      h_t &= f'_t \odot h_{t-1} + i'_t \odot g(W_h x_t + b_h) \\
      y_t &= W_o h_t + b_o \quad \text{(only if projected)}

  The state `h` is `H` numbers a sequence and plays the part of the LSTM's cell.
  Cost a token: `3 D H` multiplications, `D H` more if projected. The published
  configurations train with `normalize=False` (`f' = f`, `i' = i`), although the
  paper's equations normalise.

  Example::

    >>> from flax import nnx
    >>> import jax.numpy as jnp
    >>> layer = MinLSTM(16, rngs=nnx.Rngs(0))
    >>> carry, y = layer(jnp.ones((2, 10, 16)))       # [B, H], [B, T, H]
    >>> carry.shape, y.shape
    ((2, 16), (2, 10, 16))

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
      activation_fn: Callable[[jax.Array], jax.Array] = min_gru.positive,
      normalize: bool = True,
      forget_bias: float = 3.0,
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
      activation_fn: The candidate's `g`: `min_gru.positive` or
        `min_gru.identity`.
      normalize: Whether the two gates are scaled to sum to one.
      forget_bias: Added to the initial bias of the forget gate.
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
    self.normalize = normalize
    self.dtype = dtype
    # The three maps, [D] -> [3, H]: forget, input, candidate.
    self.gates = min_gru.gate_projection(
        3, in_features, self.hidden_features, use_bias, param_dtype, rngs,
        shift=jnp.array([[forget_bias], [0], [0]], jnp.float32),
    )
    if use_projection:
      self.output = min_gru.output_projection(
          self.hidden_features, in_features, use_bias, param_dtype, rngs
      )
    else:
      self.output = None
    self.initial_is_zero = not learn_initial_state
    if learn_initial_state:
      self.initial_state = min_gru.initial_state(
          self.hidden_features, param_dtype, rngs
      )
    else:
      self.initial_state = None

  @base.computed
  def gate(self) -> ops.Gate:
    return ops.min_lstm_gate(self.activation_fn, self.normalize)

  def initialize_carry(self, batch_size: int, dtype=None) -> jax.Array:
    """Returns the state before the first token `[B, H]`, float32 at least."""
    return min_gru.initialize_carry(self, batch_size, dtype)

  def project(self, x):
    return common.project_each(self.gates, x, base.state_dtype(x.dtype))

  def readout(self, h, x):
    h = h.astype(x.dtype)
    return h if self.output is None else common.project(self.output, h)
