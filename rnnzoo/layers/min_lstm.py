"""minLSTM (Feng et al., 2024), https://arxiv.org/abs/2410.01201."""

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


@functools.cache
def min_lstm_gate(
    activation_fn: Callable[[jax.Array], jax.Array] = common.positive,
    normalize: bool = True,
) -> ops.Gate:
  """Returns the gate `a = f / (f + i)`, `x = i g(v) / (f + i)`.

  Args:
    activation_fn: `g`.
    normalize: Whether to divide by `f + i`; if not, `a = f` and `x = i g(v)`.

  Returns:
    A function `(start, forget, input, v) -> (a, x)` for `ops.gated_scan`, which
    takes the logits of `f` and `i`; the same object for the same arguments.
  """

  def gate(start, forget, input_, v):
    del start
    if not normalize:
      return jax.nn.sigmoid(forget), jax.nn.sigmoid(input_) * activation_fn(v)
    # With f = 1 / (1 + u) and i = 1 / (1 + w), z = i / (f + i) is
    # (1 + u) / (2 + u + w). Dividing by the largest of 1, u and w avoids
    # overflow. This form needs exponentials only: XLA:CPU compiles a loop with
    # log1p to slower code.
    shift = jnp.maximum(jnp.maximum(-forget, -input_), 0)
    shift = jax.lax.stop_gradient(shift)  # It cancels.
    one = jnp.exp(-shift)
    u, w = jnp.exp(-forget - shift), jnp.exp(-input_ - shift)
    z = (one + u) / (2 * one + u + w)
    return 1 - z, z * activation_fn(v)

  return gate


class MinLSTM(recurrences.LinearRecurrence):
  r"""An LSTM without output gate, whose gates do not depend on the previous
  state.

  .. math::
      f_t &= \sigma(W_f x_t + b_f), \quad i_t = \sigma(W_i x_t + b_i) \\
      f'_t &= f_t / (f_t + i_t), \quad i'_t = i_t / (f_t + i_t) \\
      h_t &= f'_t \odot h_{t-1} + i'_t \odot g(W_h x_t + b_h) \\
      y_t &= W_o h_t + b_o \quad \text{(only if projected)}

  The state `h` is `H` numbers a sequence and corresponds to the cell of an
  LSTM. A token costs `3 D H` multiplications, and `D H` more if the output is
  projected. The published configurations train with `normalize=False` (`f' =
  f`, `i' = i`), although the equations of the paper normalise.

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
      activation_fn: Callable[[jax.Array], jax.Array] = common.positive,
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
        `min_gru.identity`, as in minGRU.
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
    self.gates = linear_maps.gate_map(
        3, in_features, self.hidden_features, use_bias, param_dtype, rngs,
        shift=jnp.array([[forget_bias], [0], [0]], jnp.float32),
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
    return min_lstm_gate(self.activation_fn, self.normalize)

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
    """Returns the logits of `f` and `i`, and the candidates, all `[..., H]`."""
    return common.project_each(self.gates, x, base.state_dtype(x.dtype))

  def readout(self, h, x):
    h = h.astype(x.dtype)
    return h if self.output is None else common.project(self.output, h)
