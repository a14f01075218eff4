"""mLSTM (Beck et al., 2024, 2025), https://arxiv.org/abs/2405.04517."""

from typing import Literal

from flax import nnx
import jax
import jax.numpy as jnp
from rnnzoo import ops
from rnnzoo.layers import base
from rnnzoo.layers import common
from rnnzoo.layers import initializers


class _MatrixMemory(base.RecurrentLayer):
  """Maps of a token, the memory, and what is made of its answer.

  A subclass defines `_operands`, what `ops.mlstm` takes, and `_readout`.
  """

  def _set_sizes(self, in_features, num_heads, **features):
    self.in_features, self.num_heads = in_features, num_heads
    for name, value in features.items():
      if num_heads < 1 or value < 1 or value % num_heads:
        raise ValueError(
            f'`num_heads` must divide the {value} `{name}`, got {num_heads}.'
        )
      setattr(self, name, value)

  def initialize_carry(self, batch_size: int, dtype=None) -> ops.MLSTMState:
    """Returns the state before the first token: zeros."""
    return ops.empty_mlstm_state(
        batch_size,
        self.num_heads,
        self.key_features // self.num_heads,
        self.hidden_features // self.num_heads,
        base.state_dtype(dtype or self.dtype),
    )

  def __call__(self, x, carry=None, *, reset=None, mask=None):
    x, carry, _, reset = base.prepare(self, x, carry, reset, mask)
    carry, h = ops.mlstm(
        *self._operands(x), carry, eps=self.epsilon,
        forget_gate=self.forget_gate, reset=reset, mask=mask,
        chunk_size=self.chunk_size,
    )
    return carry, base.masked(self._readout(h, x), mask)

  def step(self, carry, x, *, reset=None, mask=None):
    x, carry, initial, reset = base.prepare(
        self, x, carry, reset, mask, step=True
    )
    carry, h = memory_step(
        self._operands(x), carry, initial, reset, mask, eps=self.epsilon,
        forget_gate=self.forget_gate,
    )
    return carry, base.masked(self._readout(h, x), mask)

  def _in_heads(self, linear, x):
    # Wide, for the gradient of a bias is a sum over all tokens.
    y = common.project(linear, x, base.state_dtype(x.dtype))
    return split_heads(y.astype(x.dtype), self.num_heads)


class MLSTM(_MatrixMemory):
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

  for each head, of `d` features, by itself. Values are written under keys and
  read by queries; the divisor is what all that was written weighs. `C` is kept
  transposed, and like `n` times :math:`e^{-m_t}` of a logarithm `m`, which
  changes nothing but that no gate is ever too large, see `ops.mlstm`; queries
  are divided for keys. `epsilon` in the divisor is the official code's; the
  paper divides W_k alone, and not b_k, which that code does not have.

  The state is `H d + H + heads` numbers a sequence. Cost a token: `4 D H`
  multiplications in maps and about `2 (Q + 2 d) H` in chunks of `Q` tokens; a
  step takes `3 H d`.

  This is the cell of the paper by itself, with an output as wide as the memory;
  its models are made of `MLSTMBlock` and, later, of `MLSTMLarge`. Initial
  values are those of the official code, for W_o those of the other maps: the
  gates begin independent of the token, and with the bias of :math:`f` from 3 to
  6 over the heads they forget slowly.

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
      num_heads: Number of heads, which divides `H`.
      forget_gate: `sigmoid` or `exponential`: the paper allows either.
      use_bias: Whether the maps have biases; those of `i` and `f` always do.
      epsilon: Added to the divisor, where that is times `exp(-m)`.
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
    check_forget_gate(forget_gate)
    self.forget_gate, self.epsilon = forget_gate, epsilon
    self.chunk_size, self.dtype = chunk_size, dtype
    for name in ('query', 'key', 'value', 'output_gate'):
      setattr(self, name, linear(
          in_features, h, ('embed', 'hidden'), use_bias=use_bias,
          param_dtype=param_dtype, rngs=rngs,
      ))
    self.gates = gate_map(in_features, num_heads, None, param_dtype, rngs)

  def _operands(self, x):
    q, k, v = (
        self._in_heads(map_of, x)
        for map_of in (self.query, self.key, self.value)
    )
    return q, k, v, *gates_of(self.gates, x)

  def _readout(self, h, x):
    wide = base.state_dtype(x.dtype)
    gate = jax.nn.sigmoid(common.project(self.output_gate, x, wide))
    return (gate * h.reshape(gate.shape).astype(wide)).astype(x.dtype)


class MLSTMLarge(_MatrixMemory):
  r"""The mLSTM of xLSTM-7B: few large products, and gates within bounds.

  xLSTM-7B (Beck et al., 2025), https://arxiv.org/abs/2503.13427.

  .. math::
      q_t &= W_q x_t, \quad k_t = W_k x_t / \sqrt{d_k}, \quad v_t = W_v x_t \\
      \log i_t &= c(w_i^T x_t + b_i), \quad
      f_t = \sigma(c(w_f^T x_t + b_f)), \quad c(u) = 15 \tanh(u / 15) \\
      y_t &= W_{out} \bigl(\sigma(W_o x_t) \odot
             \mathrm{norm}(h_t)\bigr)

  with :math:`h_t` what the memory of `MLSTM` answers, and a norm that takes
  each head by itself. Against `MLSTMBlock` there is no convolution, and nothing
  around the memory that is wider than the input: the model has an MLP for that
  (SwiGLU, 2.667 times as wide in the published one, rounded up to a multiple of
  64). Keys are half as wide as values, which halves the state.

  The state is `(K / heads) V + K + heads` numbers a sequence for `K` key and
  `V` value features. Cost a token: `2 D K + 3 D V` multiplications in maps and
  about `(Q + 2 K / heads) (K + V)` in chunks of `Q` tokens.

  Initial values are those of the published configuration and training code: the
  bias of :math:`i` is -10, which keeps gradients from spiking at first, and
  that of :math:`f` from 3 to 6 over the heads; the maps to all three gates are
  0; `output` is divided by the model's depth, `num_layers`. That code has the
  norm as `rms` or as `layer`; the published model has it as `layer`.

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
      num_heads: Number of heads, which divides keys and values.
      key_factor: Key features per input feature.
      value_factor: Value features per input feature.
      gate_soft_cap: Bound of the gates before their exponential or sigmoid;
        none if `None`.
      input_gate_bias: Initial bias of `i`.
      norm: The norm of each head: `layer` or `rms`.
      norm_epsilon: Added to what the norm takes the root of.
      use_bias: Whether the maps and the norm have biases; those of `i` and `f`
        always do.
      epsilon: Added to the divisor, where that is times `exp(-m)`.
      num_layers: Depth of the model, by which the initial `output` is divided.
      zero_init: Whether the map to the output gate starts at 0; small if not.
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
    check_depth(num_layers)
    if gate_soft_cap is not None and not gate_soft_cap > 0:
      raise ValueError(
          f'`gate_soft_cap` must be positive or None, got {gate_soft_cap}.'
      )
    self.out_features = in_features
    self.gate_soft_cap, self.epsilon = gate_soft_cap, epsilon
    self.chunk_size, self.dtype = chunk_size, dtype
    options = dict(use_bias=use_bias, param_dtype=param_dtype, rngs=rngs)
    into = lambda size, **kernel_init: linear(
        in_features, size, ('embed', 'hidden'), **kernel_init, **options
    )
    self.query, self.key, self.value = into(keys), into(keys), into(values)
    zeros = dict(kernel_init=nnx.initializers.zeros_init())
    self.output_gate = into(values, **(zeros if zero_init else {}))
    self.gates = gate_map(
        in_features, num_heads, input_gate_bias, param_dtype, rngs
    )
    self.norm = common.HeadNorm(
        num_heads, values // num_heads, kind=norm, epsilon=norm_epsilon,
        use_bias=use_bias, param_dtype=param_dtype,
    )
    self.output = linear(
        values, in_features, ('hidden', 'embed'),
        kernel_init=initializers.wang(in_features, num_layers), **options,
    )

  def _operands(self, x):
    q, k, v = (
        self._in_heads(map_of, x)
        for map_of in (self.query, self.key, self.value)
    )
    gates, cap = gates_of(self.gates, x), self.gate_soft_cap
    if cap is not None:
      gates = tuple(cap * jnp.tanh(gate / cap) for gate in gates)
    return q, k, v, *gates

  def _readout(self, h, x):
    wide = base.state_dtype(x.dtype)
    gate = jax.nn.sigmoid(common.project(self.output_gate, x, wide))
    h = self.norm(h.astype(wide)).reshape(gate.shape)
    y = common.project(self.output, (gate * h).astype(x.dtype), wide)
    return y.astype(x.dtype)


def linear(
    fan_in, fan_out, axes, *, use_bias, param_dtype, rngs, kernel_init=None
):
  """A map with the official code's initial values, by default those within."""
  return nnx.Linear(
      fan_in,
      fan_out,
      use_bias=use_bias,
      kernel_init=kernel_init or initializers.small(fan_in),
      kernel_metadata=dict(axes=axes),
      bias_metadata=dict(axes=axes[1:]),
      param_dtype=param_dtype,
      rngs=rngs,
  )


def gate_map(in_features, num_heads, input_gate_bias, param_dtype, rngs):
  """The map `[D] -> [2, heads]` to input and forget gates, at first constant.

  Args:
    in_features: `D`.
    num_heads: Number of heads.
    input_gate_bias: Initial bias of the input gates; normal of deviation 0.1 if
      `None`.
    param_dtype: Dtype of the parameters, float32 at least for the bias.
    rngs: Source of the initial parameters.
  """
  bias_dtype = base.state_dtype(param_dtype)

  def bias_init(key, shape, dtype):
    del dtype  # What sets the decay is never stored below float32.
    i = jnp.full(num_heads, input_gate_bias or 0, bias_dtype)
    if input_gate_bias is None:
      i = 0.1 * jax.random.normal(key, (num_heads,), bias_dtype)
    f = jnp.linspace(3, 6, num_heads, dtype=bias_dtype)
    return jnp.concatenate([i, f]).reshape(shape)

  return nnx.LinearGeneral(
      in_features,
      (2, num_heads),
      kernel_init=nnx.initializers.zeros_init(),
      bias_init=bias_init,
      kernel_metadata=dict(axes=('embed', None, 'heads')),
      bias_metadata=dict(axes=(None, 'heads'), recurrent=True),
      param_dtype=param_dtype,
      rngs=rngs,
  )


def gates_of(gates, x):
  """Input and forget gates `[..., heads]` of `gate_map`, float32 at least."""
  return common.project_each(gates, x, base.state_dtype(x.dtype))


def memory_step(operands, carry, initial, reset, mask, **options):
  """`ops.mlstm_step` where sequences may start and tokens be absent."""
  old = carry if reset is None else base.select(reset, initial, carry)
  new, h = ops.mlstm_step(*operands, old, **options)
  return new if mask is None else base.select(mask, new, carry), h


def split_heads(u, num_heads):
  """`[..., H]` as `[..., heads, d]`."""
  return u.reshape(*u.shape[:-1], num_heads, u.shape[-1] // num_heads)


def check_forget_gate(forget_gate):
  if forget_gate not in ('sigmoid', 'exponential'):
    raise ValueError(
        "`forget_gate` must be 'sigmoid' or 'exponential', got "
        f'{forget_gate!r}.'
    )


def check_depth(num_layers):
  if num_layers < 1:
    raise ValueError(f'`num_layers` must be at least 1, got {num_layers}.')
