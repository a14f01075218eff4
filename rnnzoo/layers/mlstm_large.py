"""mLSTM (Beck et al., 2024, 2025), https://arxiv.org/abs/2405.04517."""

from typing import Literal

from flax import nnx
import jax
import jax.numpy as jnp
from rnnzoo.layers import base
from rnnzoo.layers import common
from rnnzoo.layers import initializers
from rnnzoo.layers import matrix_memory


class MLSTMLarge(matrix_memory.MatrixMemory):
  r"""The mLSTM of xLSTM-7B: a few large products, and bounded gates.

  xLSTM-7B (Beck et al., 2025), https://arxiv.org/abs/2503.13427.

  .. math::
      q_t &= W_q x_t, \quad k_t = W_k x_t / \sqrt{d_k}, \quad v_t = W_v x_t \\
      \log i_t &= c(w_i^T x_t + b_i), \quad
      f_t = \sigma(c(w_f^T x_t + b_f)), \quad c(u) = 15 \tanh(u / 15) \\
      y_t &= W_{out} \bigl(\sigma(W_o x_t) \odot
             \mathrm{norm}(h_t)\bigr)

  where :math:`h_t` is the output of the memory of `MLSTM`, and the norm is over
  the features of each head. Unlike `MLSTMBlock`, it has no convolution, and
  nothing around the memory is wider than the input. The model has an MLP for
  that (SwiGLU, 2.667 times as wide in the published one, rounded up to a
  multiple of 64). Keys are half as wide as values, which halves the state.

  The state is `(K / heads) V + K + heads` numbers a sequence for `K` key and
  `V` value features. A token costs `2 D K + 3 D V` multiplications in maps and
  about `(Q + 2 K / heads) (K + V)` in chunks of `Q` tokens.

  Initial values are those of the published configuration and training code. The
  bias of :math:`i` is -10, which avoids spikes of the gradient at first, and
  that of :math:`f` is from 3 to 6 over the heads. The maps to all three gates
  are 0. `output` is divided by the depth of the model, `num_layers`. The norm
  of that code may be `rms` or `layer`; that of the published model is `layer`.

  Example::

    >>> from flax import nnx
    >>> import jax.numpy as jnp
    >>> layer = MLSTMLarge(32, num_heads=2, rngs=nnx.Rngs(0))
    >>> carry, y = layer(jnp.ones((2, 10, 32)))       # y: [B, T, D]
    >>> carry.C.shape, y.shape
    ((2, 2, 8, 16), (2, 10, 32))

  Attributes:
    in_features: Size `D` of an input.
    key_features: Size `K` of the keys of all heads.
    hidden_features: Size `V` of the values of all heads.
    out_features: `D`.
    num_heads: Number of heads.
  """

  forget_gate = 'sigmoid'

  def __init__(
      self,
      in_features: int,
      *,
      num_heads: int = 8,
      key_factor: float = 0.5,
      value_factor: float = 1.0,
      gate_soft_cap: float | None = 15.0,
      input_gate_bias: float = -10.0,
      norm: Literal['layer', 'rms'] = 'layer',
      norm_epsilon: float = 1e-6,
      use_bias: bool = False,
      epsilon: float = 1e-6,
      num_layers: int = 1,
      zero_init: bool = True,
      chunk_size: int = 64,
      dtype: jnp.dtype | None = None,
      param_dtype: jnp.dtype = jnp.float32,
      rngs: nnx.Rngs,
  ):
    """Creates the layer.

    Args:
      in_features: Size `D` of an input.
      num_heads: Number of heads, a divisor of the key and the value features.
      key_factor: Key features per input feature.
      value_factor: Value features per input feature.
      gate_soft_cap: Bound of the logits of the gates; `None` for no bound.
      input_gate_bias: Initial bias of `i`.
      norm: The norm of each head: `layer` or `rms`.
      norm_epsilon: Added to the variance or the mean square in the norm.
      use_bias: Whether the maps and the norm have biases; those of `i` and `f`
        always do.
      epsilon: Added to the divisor, which is a multiple of `exp(-m)`.
      num_layers: Depth of the model, by which the initial `output` is divided.
      zero_init: Whether the map to the output gate starts at 0, instead of
        `small`.
      chunk_size: Tokens `Q` that are computed at once, a power of two.
      dtype: Compute dtype; that of the input if `None`.
      param_dtype: Dtype of the parameters, float32 at least for the biases of
        `i` and `f`.
      rngs: Source of the initial parameters.

    Raises:
      ValueError: If a size is out of range, or an option is unknown.
    """
    keys = int(in_features * key_factor)
    values = int(in_features * value_factor)
    self._set_sizes(
        in_features, num_heads, key_features=keys, hidden_features=values
    )
    matrix_memory.check_depth(num_layers)
    if gate_soft_cap is not None and not gate_soft_cap > 0:
      raise ValueError(
          f'`gate_soft_cap` must be positive or None, got {gate_soft_cap}.'
      )
    self.out_features = in_features
    self.gate_soft_cap, self.epsilon = gate_soft_cap, epsilon
    self.chunk_size, self.dtype = chunk_size, dtype
    options = dict(use_bias=use_bias, param_dtype=param_dtype, rngs=rngs)
    into = lambda size, **kernel_init: matrix_memory.linear(
        in_features, size, ('embed', 'hidden'), **kernel_init, **options
    )
    self.query, self.key, self.value = into(keys), into(keys), into(values)
    zeros = dict(kernel_init=nnx.initializers.zeros_init())
    self.output_gate = into(values, **(zeros if zero_init else {}))
    self.gates = matrix_memory.gate_map(
        in_features, num_heads, input_gate_bias, param_dtype, rngs
    )
    self.norm = common.HeadNorm(
        num_heads, values // num_heads, kind=norm, epsilon=norm_epsilon,
        use_bias=use_bias, param_dtype=param_dtype,
    )
    self.output = matrix_memory.linear(
        values, in_features, ('hidden', 'embed'),
        kernel_init=initializers.wang(in_features, num_layers), **options,
    )

  def _operands(self, x):
    q, k, v = (
        self._in_heads(map_of, x)
        for map_of in (self.query, self.key, self.value)
    )
    gates, cap = matrix_memory.gates_of(self.gates, x), self.gate_soft_cap
    if cap is not None:
      gates = tuple(cap * jnp.tanh(gate / cap) for gate in gates)
    return q, k, v, *gates

  def _readout(self, h, x):
    wide = base.state_dtype(x.dtype)
    gate = jax.nn.sigmoid(common.project(self.output_gate, x, wide))
    h = self.norm(h.astype(wide)).reshape(gate.shape)
    y = common.project(self.output, (gate * h).astype(x.dtype), wide)
    return y.astype(x.dtype)
