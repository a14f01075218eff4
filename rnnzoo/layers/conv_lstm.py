"""Convolutional LSTM (Shi et al., 2015), https://arxiv.org/abs/1506.04214."""

from collections.abc import Sequence
from typing import NamedTuple

from flax import nnx
import jax
import jax.numpy as jnp
from rnnzoo.layers import base
from rnnzoo.layers import images
from rnnzoo.layers import recurrences


class ConvLSTMCarry(NamedTuple):
  """State of a ConvLSTM, both `[B, H, W, F]` and float32 at least."""

  c: jax.Array
  h: jax.Array


class ConvLSTM(recurrences.RecurrentCell):
  r"""An LSTM over images, with convolutions in place of matrices.

  .. math::
      i_t &= \sigma(W_{xi} * x_t + W_{hi} * h_{t-1}
          + W_{ci} \odot c_{t-1} + b_i) \\
      f_t &= \sigma(W_{xf} * x_t + W_{hf} * h_{t-1}
          + W_{cf} \odot c_{t-1} + b_f) \\
      c_t &= f_t \odot c_{t-1}
          + i_t \odot \tanh(W_{xc} * x_t + W_{hc} * h_{t-1} + b_c) \\
      o_t &= \sigma(W_{xo} * x_t + W_{ho} * h_{t-1}
          + W_{co} \odot c_t + b_o) \\
      h_t &= o_t \odot \tanh(c_t)

  A token is an image `[H, W, C]`, padded with zeros. The peepholes `W_c` are
  those of the paper and have the size of the image; most later code leaves them
  out. The state is `2 H W F` numbers a sequence. The layer is sequential over
  time. A token costs `4 K^2 H W F (C + F)` multiplications; those with `C` are
  computed for all frames at once.

  The paper does not give initial values. Here they are those of Keras: input
  kernels are Glorot uniform, recurrent kernels orthogonal for each gate, the
  bias of the forget gate is 1, and peepholes are 0.

  Example::

    >>> from flax import nnx
    >>> import jax.numpy as jnp
    >>> layer = ConvLSTM((16, 16, 3), 8, rngs=nnx.Rngs(0))
    >>> carry, y = layer(jnp.ones((2, 5, 16, 16, 3)))   # [B, T, H, W, C]
    >>> carry.c.shape, y.shape
    ((2, 16, 16, 8), (2, 5, 16, 16, 8))

  Attributes:
    in_features: Channels `C` of an image.
    hidden_features: Channels `F` of the state and of the output.
    out_features: `F`.
    image_shape: `(H, W)`.
    input_shape: `(H, W, C)`.
  """

  def __init__(
      self,
      input_shape: Sequence[int],
      hidden_features: int | None = None,
      *,
      kernel_size: int = 3,
      use_peepholes: bool = True,
      forget_bias: float = 1.0,
      dtype: jnp.dtype | None = None,
      param_dtype: jnp.dtype = jnp.float32,
      rngs: nnx.Rngs,
  ):
    """Creates the layer.

    Args:
      input_shape: `(H, W, C)`: height, width and channels of an image.
      hidden_features: Channels `F` of the state; `C` if `None`.
      kernel_size: Width `K` of all kernels, odd.
      use_peepholes: Whether the gates depend on the cell.
      forget_bias: Initial bias of the forget gate.
      dtype: Compute dtype; that of the input if `None`.
      param_dtype: Dtype of the parameters.
      rngs: Source of the initial parameters.

    Raises:
      ValueError: If `input_shape` is no image's, or `kernel_size` is even.
    """
    images.check_kernel_size('kernel_size', kernel_size)
    self.image_shape, self.in_features = images.checked_input_shape(input_shape)
    f = self.hidden_features = self.out_features = (
        hidden_features or self.in_features
    )
    self.dtype = dtype

    def draw(init, inputs):  # Gates in the order i, f, c, o.
      shape = (kernel_size, kernel_size, inputs, f)
      gates = [init(rngs.params(), shape, param_dtype) for _ in range(4)]
      return jnp.concatenate(gates, axis=-1)

    self.W_x = nnx.Param(
        draw(nnx.initializers.glorot_uniform(), self.in_features),
        axes=(None, None, 'embed', 'hidden'),
    )
    self.W_h = nnx.Param(
        draw(nnx.initializers.orthogonal(), f),
        axes=(None, None, 'state', 'hidden'), recurrent=True,
    )
    bias = jnp.zeros((4, f), param_dtype).at[1].set(forget_bias)
    self.b = nnx.Param(bias.reshape(-1), axes=('hidden',))
    if use_peepholes:  # Gates in the order i, f, o.
      self.W_c = nnx.Param(
          jnp.zeros((3, *self.image_shape, f), param_dtype),
          axes=(None, 'inner', None, 'hidden'), recurrent=True,
      )
    else:
      self.W_c = None

  @property
  def input_shape(self) -> tuple[int, ...]:
    """`(H, W, C)`."""
    return (*self.image_shape, self.in_features)

  @property
  def state_shape(self) -> base.StateShape:
    """Sizes of the arrays of the carry of one sequence."""
    size = (*self.image_shape, self.hidden_features)
    return base.carry_shape(ConvLSTMCarry, c=size, h=size)

  def project(self, x):
    dtype = base.state_dtype(x.dtype)
    from_x = images.convolve(x, self.W_x[...], dtype)
    return from_x + self.b[...].astype(dtype)

  def update(self, carry, projected, dtype):
    c, h = carry
    gates = projected + images.convolve(
        h.astype(dtype), self.W_h[...], h.dtype
    )
    i, f, g, o = jnp.split(gates, 4, axis=-1)
    if self.W_c is not None:
      to_i, to_f, to_o = self.W_c[...].astype(c.dtype)
      i, f = i + to_i * c, f + to_f * c
    c = jax.nn.sigmoid(f) * c + jax.nn.sigmoid(i) * jnp.tanh(g)
    if self.W_c is not None:
      o = o + to_o * c
    h = jax.nn.sigmoid(o) * jnp.tanh(c)
    return ConvLSTMCarry(c, h), h
