"""ConvS5 (Smith et al., 2023), https://arxiv.org/abs/2310.19694."""

from collections.abc import Sequence
import math

from flax import nnx
import jax
import jax.numpy as jnp
from rnnzoo import ops
from rnnzoo.layers import base
from rnnzoo.layers import images
from rnnzoo.layers import state_space
from rnnzoo.ops import exact


class ConvS5(base.RecurrentLayer):
  r"""S5 over images: B, C and D are convolutions, Lambda is the same
  everywhere.

  .. math::
      \bar\Lambda = e^{\Lambda \Delta}, \qquad
      \bar B = \Lambda^{-1} (\bar\Lambda - 1) B \\
      h_t &= \bar\Lambda \odot h_{t-1} + \bar B * x_t \\
      y_t &= 2\,\mathrm{Re}(C * h_t) + D * x_t

  A token is an image `[H, W, C]`, padded with zeros. The kernel of the
  recurrence is 1x1 and diagonal, so frames are scanned in parallel, by one
  `ops.linear_scan` over `H W P / 2` channels. One of each pair of conjugate
  states is stored, hence the factor 2. The state is `H W P / 2` complex numbers
  a sequence. A token costs `2 K^2 H W P C` multiplications, and `K^2 H W C^2`
  for D.

  `Lambda` starts at the eigenvalues of the normal part of HiPPO-LegS, in
  `blocks` equal blocks. B and C are drawn real and He-normal over the inputs of
  a pixel, and transformed to the basis of the eigenvectors, as in the published
  code. D starts He-normal. In that code D is part of a block after the layer,
  with a nonlinearity or as a residual network (`C_D_config`); for such a block,
  `d_kernel_size=0` leaves it out here. `Lambda`, `log_step` and B have
  `recurrent` metadata, as in S5.

  Example::

    >>> from flax import nnx
    >>> import jax.numpy as jnp
    >>> layer = ConvS5((16, 16, 3), 8, rngs=nnx.Rngs(0))
    >>> x = jnp.ones((2, 5, 16, 16, 3))               # [B, T, H, W, C]
    >>> carry, y = layer(x)                           # [B, H, W, P/2], like x
    >>> carry, y_next = layer.step(carry, x[:, -1])
    >>> carry.shape, carry.dtype, y.shape
    ((2, 16, 16, 4), dtype('complex64'), (2, 5, 16, 16, 3))

  Attributes:
    in_features: Channels `C` of an image.
    state_features: Size `P` of the state of a pixel, pairs counted as two.
    out_features: `C`.
    image_shape: `(H, W)`.
    input_shape: `(H, W, C)`.
  """

  complex_state = True

  def __init__(
      self,
      input_shape: Sequence[int],
      state_features: int | None = None,
      *,
      blocks: int = 1,
      b_kernel_size: int = 3,
      c_kernel_size: int = 3,
      d_kernel_size: int = 3,
      dt_min: float = 0.001,
      dt_max: float = 0.1,
      clip_eigs: bool = True,
      dtype: jnp.dtype | None = None,
      param_dtype: jnp.dtype = jnp.float32,
      rngs: nnx.Rngs,
  ):
    """Creates the layer.

    Args:
      input_shape: `(H, W, C)`: height, width and channels of an image.
      state_features: Size `P` of the state of a pixel; `C` if `None`.
      blocks: Number of HiPPO blocks that `P` is made of.
      b_kernel_size: Width `K` of the kernel of B, odd.
      c_kernel_size: Width of the kernel of C, odd.
      d_kernel_size: Width of the kernel of D, odd; 0 for no D.
      dt_min: Smallest initial step, in units of the time of `Lambda`.
      dt_max: Largest initial step.
      clip_eigs: Whether real parts are kept below -1e-4. Without it the
        recurrence may become unstable.
      dtype: Compute dtype; that of the input if `None`.
      param_dtype: Dtype of the parameters, float32 at least for those that set
        the decays.
      rngs: Source of the initial parameters.

    Raises:
      ValueError: If a size is out of range.
    """
    self.image_shape, c = images.checked_input_shape(input_shape)
    self.in_features = self.out_features = c
    for name, size in (('b', b_kernel_size), ('c', c_kernel_size)):
      images.check_kernel_size(f'{name}_kernel_size', size)
    if d_kernel_size:
      images.check_kernel_size('d_kernel_size', d_kernel_size)
    p = state_features or c
    if blocks < 1 or p % blocks or p // blocks % 2:
      raise ValueError(
          '`state_features` must be `blocks` times a number that is even, got '
          f'{p} and {blocks}.'
      )
    self.state_features = p
    self.clip_eigs = clip_eigs
    self.dtype = dtype
    decay_dtype = base.state_dtype(param_dtype)
    lambda_, v = state_space.block_legs(p, blocks)
    diagonal = lambda u: nnx.Param(
        jnp.asarray(u, decay_dtype), axes=('hidden',), recurrent=True
    )
    self.Lambda_re = diagonal(lambda_.real)
    self.Lambda_im = diagonal(lambda_.imag)
    log_step = state_space.log_uniform(dt_min, dt_max)
    self.log_step = diagonal(
        log_step(rngs.params(), lambda_.shape, decay_dtype)
    )

    def draw(size, inputs, outputs):
      he_normal = nnx.initializers.he_normal()
      shape = (size, size, inputs, outputs)
      return he_normal(rngs.params(), shape, decay_dtype)

    param = lambda u, **metadata: nnx.Param(
        jnp.asarray(u, param_dtype), **metadata
    )
    into = dict(axes=(None, None, 'embed', 'hidden'), recurrent=True)
    out = dict(axes=(None, None, 'hidden', 'embed'))
    b = exact.einsum('hwcp,pn->hwcn', draw(b_kernel_size, c, p), v.conj())
    self.B_re, self.B_im = param(b.real, **into), param(b.imag, **into)
    out_of = exact.einsum('hwpc,pn->hwnc', draw(c_kernel_size, p, c), v)
    self.C_re = param(out_of.real, **out)
    self.C_im = param(out_of.imag, **out)
    if d_kernel_size:
      self.D = param(
          draw(d_kernel_size, c, c), axes=(None, None, 'embed', 'hidden')
      )
    else:
      self.D = None

  @property
  def input_shape(self) -> tuple[int, ...]:
    """`(H, W, C)`."""
    return (*self.image_shape, self.in_features)

  @property
  def state_shape(self) -> tuple[int, ...]:
    """Sizes `(H, W, P / 2)` of the state of one sequence."""
    return (*self.image_shape, self.state_features // 2)

  def __call__(self, x, carry=None, *, reset=None, mask=None):
    x, carry, _, reset = base.prepare(self, x, carry, reset, mask)
    a, b, skip = self._recurrence(x)
    # A channel for every pixel and state; decays do not vary over time.
    a = jnp.tile(a, math.prod(self.image_shape))
    a, b = base.idle_where_absent(a, b, mask)
    last, h = ops.linear_scan(a, _flat(b, 2), _flat(carry, 1), reset=reset)
    y = self._readout(h.reshape(b.shape), skip, x.dtype)
    return last.reshape(carry.shape), base.masked(y, mask)

  def step(self, carry, x, *, reset=None, mask=None):
    x, carry, initial, reset = base.prepare(
        self, x, carry, reset, mask, step=True
    )
    a, b, skip = self._recurrence(x)
    h = a * (carry if reset is None else base.select(reset, initial, carry)) + b
    carry = h if mask is None else base.select(mask, h, carry)
    return carry, base.masked(self._readout(h, skip, x.dtype), mask)

  def _recurrence(self, x):
    """Maps `[..., H, W, C]` to `a`, `b` and `D * x`.

    Returns:
      `[P / 2]`, `[..., H, W, P / 2]` and `[..., H, W, C]`, or 0 without D.
    """
    dtype = base.state_dtype(x.dtype)
    real = self.Lambda_re[...].astype(dtype)
    if self.clip_eigs:
      real = jnp.minimum(real, -1e-4)
    lambda_ = jax.lax.complex(real, self.Lambda_im[...].astype(dtype))
    a, scale = state_space.zero_order_hold(
        lambda_, jnp.exp(self.log_step[...].astype(dtype))
    )
    # One real convolution computes all: some platforms have no complex ones,
    # and most of the cost is moving pixels in memory.
    kernels, skip = [self.B_re[...], self.B_im[...]], 0
    if self.D is not None:
      if self.D.shape[0] == self.B_re.shape[0]:
        kernels.append(self.D[...])
      else:
        skip = images.convolve(x, self.D[...], dtype)
    both = images.convolve(x, jnp.concatenate(kernels, axis=-1), dtype)
    n = self.state_features // 2
    if len(kernels) > 2:
      skip = both[..., 2 * n :]
    b = jax.lax.complex(both[..., :n], both[..., n : 2 * n])
    return a, scale * b, skip

  def _readout(self, h, skip, dtype):
    parts = jnp.concatenate([h.real, h.imag], axis=-1).astype(dtype)
    c = jnp.concatenate([self.C_re[...], -self.C_im[...]], axis=-2)
    y = 2 * images.convolve(parts, c, base.state_dtype(dtype)) + skip
    return y.astype(dtype)


def _flat(u, axis):
  """Merges the axes of pixels and states, from `axis` on."""
  return u.reshape(u.shape[:axis] + (math.prod(u.shape[axis:]),))
