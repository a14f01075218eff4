"""The matrix memory of mLSTM layers: its maps, gates and steps."""

from typing import Literal

from flax import nnx
import jax
import jax.numpy as jnp
from rnnzoo import ops
from rnnzoo.layers import base
from rnnzoo.layers import common
from rnnzoo.layers import initializers


class MatrixMemory(base.RecurrentLayer):
  """A layer around the matrix memory: maps of a token, memory, output.

  A subclass defines `_operands`, the arguments of `ops.mlstm`, and `_readout`,
  the output for what the memory returns.
  """

  num_heads: int
  key_features: int
  hidden_features: int
  forget_gate: Literal['sigmoid', 'exponential']
  epsilon: float
  chunk_size: int

  def _operands(self, x) -> tuple[jax.Array, ...]:
    """Maps `[..., D]` to `q`, `k`, `v`, `i` and `f`."""
    raise TypeError(f'{type(self).__name__} does not define _operands.')

  def _readout(self, h, x) -> jax.Array:
    """Maps `h` of the memory and `x` `[..., D]` to `[..., D_out]`."""
    raise TypeError(f'{type(self).__name__} does not define _readout.')

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
        *self._operands(x), state=carry, eps=self.epsilon,
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
    # In float32, because the gradient of a bias is a sum over all tokens.
    y = common.project(linear, x, base.state_dtype(x.dtype))
    return split_heads(y.astype(x.dtype), self.num_heads)


def linear(
    fan_in, fan_out, axes, *, use_bias, param_dtype, rngs, kernel_init=None
):
  """Makes a map, by default with the `small` initial values."""
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
  """Makes the map `[D] -> [2, heads]` to both gates, constant at first.

  Args:
    in_features: `D`.
    num_heads: Number of heads.
    input_gate_bias: Initial bias of the input gates; if `None`, normal with
      standard deviation 0.1.
    param_dtype: Dtype of the parameters, float32 at least for the bias.
    rngs: Source of the initial parameters.
  """
  bias_dtype = base.state_dtype(param_dtype)

  def bias_init(key, shape, dtype):
    del dtype  # Parameters that set the decay are float32 at least.
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
  """Returns input and forget gates `[..., heads]`, float32 at least."""
  return common.project_each(gates, x, base.state_dtype(x.dtype))


def memory_step(operands, carry, initial, reset, mask, **options):
  """Runs `ops.mlstm_step` with the flags of a step."""
  old = carry if reset is None else base.select(reset, initial, carry)
  new, h = ops.mlstm_step(*operands, state=old, **options)
  return new if mask is None else base.select(mask, new, carry), h


def split_heads(u, num_heads):
  """Reshapes `[..., H]` to `[..., heads, d]`."""
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
