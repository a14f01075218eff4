"""mLSTM (Beck et al., 2024, 2025), https://arxiv.org/abs/2405.04517."""

from typing import Literal

from flax import nnx
import jax
import jax.numpy as jnp
from rnnzoo.layers import base
from rnnzoo.layers import common
from rnnzoo.layers import matrix_memory


class MLSTM(matrix_memory.MatrixMemory):
  r"""An LSTM with a matrix for a cell, which is parallel over time.

  .. math::
      q_t &= W_q x_t + b_q, \quad k_t = (W_k x_t + b_k) / \sqrt{d}, \quad
      v_t = W_v x_t + b_v \\
      i_t &= \exp(w_i^T x_t + b_i), \quad f_t = \sigma(w_f^T x_t + b_f)
      \text{ or } \exp(w_f^T x_t + b_f) \\
      C_t &= f_t C_{t-1} + i_t v_t k_t^T, \quad
      n_t = f_t n_{t-1} + i_t k_t \\
      h_t &= \sigma(W_o x_t + b_o) \odot
      \frac{C_t q_t}{\max(|n_t^T q_t|, 1)}

  for each head of `d` features. Values are written under keys and read by
  queries, and the divisor is the total weight of what was written. `C` is
  stored transposed. `C` and `n` are stored as multiples of :math:`e^{-m_t}`
  with a logarithm `m`, which keeps the gates in range and changes no output,
  see `ops.mlstm`. The code divides queries by :math:`\sqrt{d}` instead of keys.
  The `epsilon` in the divisor is that of the official code. The paper divides
  W_k but not b_k; the official code has no b_k.

  The state is `H d + H + heads` numbers a sequence. A token costs `4 D H`
  multiplications in maps and about `2 (Q + 2 d) H` in chunks of `Q` tokens; a
  step takes `3 H d`.

  This is the bare cell of the paper, with an output as wide as the memory. The
  models of the authors consist of `MLSTMBlock` and, later, of `MLSTMLarge`.
  Initial values are those of the official code, and W_o starts like the other
  maps. At first the gates do not depend on the token, and the bias of
  :math:`f`, from 3 to 6 over the heads, makes them forget slowly.

  Example::

    >>> from flax import nnx
    >>> import jax.numpy as jnp
    >>> layer = MLSTM(16, 32, rngs=nnx.Rngs(0))
    >>> carry, y = layer(jnp.ones((2, 10, 16)))       # y: [B, T, H]
    >>> carry.C.shape, carry.n.shape, y.shape         # C: [B, heads, d, d]
    ((2, 4, 8, 8), (2, 4, 8), (2, 10, 32))

  Attributes:
    in_features: Size `D` of an input.
    hidden_features: Size `H` of the values of all heads, and of the output.
    key_features: Size of the keys of all heads: `H`.
    out_features: `H`.
    num_heads: Number of heads.
  """

  def __init__(
      self,
      in_features: int,
      hidden_features: int | None = None,
      *,
      num_heads: int = 4,
      forget_gate: Literal['sigmoid', 'exponential'] = 'sigmoid',
      use_bias: bool = True,
      epsilon: float = 1e-6,
      chunk_size: int = 64,
      dtype: jnp.dtype | None = None,
      param_dtype: jnp.dtype = jnp.float32,
      rngs: nnx.Rngs,
  ):
    """Creates the layer.

    Args:
      in_features: Size `D` of an input.
      hidden_features: Size `H` of the values of all heads; `D` if `None`.
      num_heads: Number of heads, a divisor of `H`.
      forget_gate: `sigmoid` or `exponential`; the paper allows both.
      use_bias: Whether the maps have biases; those of `i` and `f` always do.
      epsilon: Added to the divisor, which is a multiple of `exp(-m)`.
      chunk_size: Tokens `Q` that are computed at once, a power of two.
      dtype: Compute dtype; that of the input if `None`.
      param_dtype: Dtype of the parameters, float32 at least for the biases of
        `i` and `f`.
      rngs: Source of the initial parameters.

    Raises:
      ValueError: If the heads do not divide `H`, or an option is unknown.
    """
    h = hidden_features or in_features
    self._set_sizes(in_features, num_heads, hidden_features=h, key_features=h)
    self.out_features = h
    matrix_memory.check_forget_gate(forget_gate)
    self.forget_gate, self.epsilon = forget_gate, epsilon
    self.chunk_size, self.dtype = chunk_size, dtype
    self.query, self.key, self.value, self.output_gate = (
        matrix_memory.linear(
            in_features, h, ('embed', 'hidden'), use_bias=use_bias,
            param_dtype=param_dtype, rngs=rngs,
        )
        for _ in range(4)
    )
    self.gates = matrix_memory.gate_map(
        in_features, num_heads, None, param_dtype, rngs
    )

  def _operands(self, x):
    q, k, v = (
        self._in_heads(map_of, x)
        for map_of in (self.query, self.key, self.value)
    )
    return q, k, v, *matrix_memory.gates_of(self.gates, x)

  def _readout(self, h, x):
    wide = base.state_dtype(x.dtype)
    gate = jax.nn.sigmoid(common.project(self.output_gate, x, wide))
    return (gate * h.reshape(gate.shape).astype(wide)).astype(x.dtype)
