"""S5 (Smith et al., 2022), https://arxiv.org/abs/2208.04933."""

import math

from flax import nnx
import jax
import jax.numpy as jnp
from rnnzoo import ops
from rnnzoo.layers import base
from rnnzoo.layers import common
from rnnzoo.layers import directions
from rnnzoo.layers import recurrences
from rnnzoo.layers import state_space


def _lecun_normal(key, shape, dtype, v):
  """Draws both parts for all rows at once, as the published code does."""
  c = jax.nn.initializers.lecun_normal()(key, (*shape, 2), dtype)
  return _turned(c, v)


def _trunc_standard_normal(key, shape, dtype, v):
  """Draws row by row. The variance is 1 / P, despite the name."""
  init = jax.nn.initializers.lecun_normal()
  row = lambda key: init(key, (1, shape[1], 2), dtype)[0]
  return _turned(jax.vmap(row)(jax.random.split(key, shape[0])), v)


def _complex_normal(key, shape, dtype, v):
  """Draws in the eigenbasis, without a change of basis."""
  shape = shape[0], v.shape[1], 2
  return math.sqrt(0.5) * jax.random.normal(key, shape, dtype)


def _turned(c, v):
  c = _times(jax.lax.complex(c[..., 0], c[..., 1]), v)
  return jnp.stack([c.real, c.imag], axis=-1)


def _times(m, n):
  return jnp.matmul(m, n, precision=jax.lax.Precision.HIGHEST)


# `(key, (D, P), dtype, V [P, stored]) -> [D, stored, 2]`, real and imaginary.
C_INITIALIZATIONS = dict(
    lecun_normal=_lecun_normal,
    trunc_standard_normal=_trunc_standard_normal,
    complex_normal=_complex_normal,
)


class S5(recurrences.TimedRecurrence):
  r"""One diagonal state space model of all channels (MIMO).

  .. math::
      \bar\Lambda = e^{\Lambda \Delta}, \qquad
      \bar B = \Lambda^{-1} (\bar\Lambda - 1) B \\
      h_t &= \bar\Lambda \odot h_{t-1} + \bar B x_t \\
      y_t &= 2\,\mathrm{Re}(C h_t) + D \odot x_t

  with `zoh`, the default, or `bilinear`. With `conj_sym` only one of each pair
  of conjugate states is stored, hence the factor 2; otherwise all `P` are,
  without that factor. There is a `Delta` for each state (S4D has one for each
  channel). The state is `P / 2` complex numbers a sequence. A token costs `2 D
  P` multiplications.

  `Lambda` starts at the eigenvalues of the normal part of HiPPO-LegS, in
  `blocks` equal blocks. B and C are drawn real and LeCun-normal, and
  transformed to the basis of the eigenvectors. In the published code the
  variance of B is 1 / P and that of C is 1 / (D P) (`lecun_normal`) or 1 / P
  (`trunc_standard_normal`, despite its name). `complex_normal` is drawn in the
  eigenbasis. The defaults are those of the paper, except `blocks`, which it
  chooses by task. It trains `Lambda`, `log_step` and, in most tasks, B with a
  smaller rate and without weight decay (`recurrent`). The activation,
  `half_glu` or `glu`, belongs to the block (`ModelConfig.gate`).

  With `bidirectional` the same recurrence runs from both ends, and the second
  states have a matrix `C2`. The carry is then a `BidirectionalCarry`, and there
  is no `step`. `dt` (call `[B, T]`, `step` `[B]`) is the length of each step:
  `Delta dt` replaces `Delta`, in both directions. With `zoh`, a step of 2
  equals two steps with the same input.

  Example::

    >>> from flax import nnx
    >>> import jax.numpy as jnp
    >>> layer = S5(16, 24, blocks=3, rngs=nnx.Rngs(0))
    >>> x = jnp.ones((2, 10, 16))                     # [B, T, D]
    >>> carry, y = layer(x)                           # [B, P / 2], [B, T, D]
    >>> carry, y_next = layer.step(carry, x[:, -1])   # [B, P / 2], [B, D]
    >>> carry.shape, carry.dtype, y.shape
    ((2, 12), dtype('complex64'), (2, 10, 16))

  Attributes:
    in_features: Size `D` of an input.
    state_features: Size `P` of the state, pairs counted as two.
    out_features: `D`, because of the skip.
  """

  complex_state = True

  def __init__(
      self,
      in_features: int,
      state_features: int | None = None,
      *,
      blocks: int = 1,
      conj_sym: bool = True,
      discretization: str = 'zoh',
      c_init: str = 'lecun_normal',
      dt_min: float = 0.001,
      dt_max: float = 0.1,
      clip_eigs: bool = False,
      bidirectional: bool = False,
      step_rescale: float = 1.0,
      dtype: jnp.dtype | None = None,
      param_dtype: jnp.dtype = jnp.float32,
      rngs: nnx.Rngs,
  ):
    """Creates the layer.

    Args:
      in_features: Size `D` of an input.
      state_features: Size `P` of the state; `D` if `None`.
      blocks: Number of HiPPO blocks that `P` is made of.
      conj_sym: Whether to keep one state of each conjugate pair.
      discretization: `zoh` or `bilinear`.
      c_init: `lecun_normal`, `trunc_standard_normal` or `complex_normal`.
      dt_min: Smallest initial step, in units of the time of `Lambda`.
      dt_max: Largest initial step.
      clip_eigs: Whether real parts are kept below -1e-4. Without it the
        recurrence may become unstable.
      bidirectional: Whether to run from both ends.
      step_rescale: Multiplies all steps: 2 for data sampled half as often as
        the training data.
      dtype: Compute dtype; that of the input if `None`.
      param_dtype: Dtype of the parameters, float32 at least for those that set
        the decays.
      rngs: Source of the initial parameters.

    Raises:
      ValueError: If an option is unknown or a size is out of range.
    """
    state_space.check_choice(
        'discretization', discretization, state_space.DISCRETIZATIONS
    )
    state_space.check_choice('c_init', c_init, C_INITIALIZATIONS)
    p = state_features or in_features
    if blocks < 1 or p % blocks or (conj_sym and p // blocks % 2):
      raise ValueError(
          '`state_features` must be `blocks` times a number'
          f'{" that is even" if conj_sym else ""}, got {p} and {blocks}.'
      )
    self.in_features = self.out_features = d = in_features
    self.state_features = p
    self.conj_sym = conj_sym
    self.discretization = discretization
    self.clip_eigs = clip_eigs
    self.causal = not bidirectional
    self.step_rescale = step_rescale
    self.dtype = dtype
    decay_dtype = base.state_dtype(param_dtype)
    lambda_, v = state_space.block_legs(p, blocks, half=conj_sym)
    diagonal = lambda u: nnx.Param(
        jnp.asarray(u, decay_dtype), axes=('hidden',), recurrent=True
    )
    self.Lambda_re = diagonal(lambda_.real)
    self.Lambda_im = diagonal(lambda_.imag)
    log_step = state_space.log_uniform(dt_min, dt_max)
    self.log_step = diagonal(
        log_step(rngs.params(), lambda_.shape, decay_dtype)
    )
    lecun_normal = jax.nn.initializers.lecun_normal()
    b = _times(v.conj().T, lecun_normal(rngs.params(), (p, d), decay_dtype))
    into = lambda u: nnx.Param(
        jnp.asarray(u, param_dtype), axes=('hidden', 'embed'), recurrent=True
    )
    self.B_re, self.B_im = into(b.real), into(b.imag)
    draw = lambda: C_INITIALIZATIONS[c_init](
        rngs.params(), (d, p), decay_dtype, v
    )
    out = lambda u: nnx.Param(
        jnp.asarray(u, param_dtype), axes=('embed', 'hidden')
    )
    c = draw()
    self.C_re, self.C_im = out(c[..., 0]), out(c[..., 1])
    if bidirectional:
      c = draw()
      self.C2_re, self.C2_im = out(c[..., 0]), out(c[..., 1])
    self.D = nnx.Param(
        jax.random.normal(rngs.params(), (d,), param_dtype), axes=(None,)
    )

  @property
  def state_shape(self) -> base.StateShape:
    """Sizes `(P / 2,)` of the state of one sequence.

    With `bidirectional`, those of both directions.
    """
    size = (self.Lambda_re[...].shape[-1],)
    return size if self.causal else directions.BidirectionalCarry(size, size)

  def recurrence(self, x, dt=None):
    dtype = base.state_dtype(x.dtype)
    real = self.Lambda_re[...].astype(dtype)
    if self.clip_eigs:
      real = jnp.minimum(real, -1e-4)
    lambda_ = jax.lax.complex(real, self.Lambda_im[...].astype(dtype))
    steps = self.step_rescale * jnp.exp(self.log_step[...].astype(dtype))
    if dt is not None:
      steps = steps * dt[..., None]
    discretize = state_space.DISCRETIZATIONS[self.discretization]
    a, scale = discretize(lambda_, steps)
    into = lambda b: jnp.einsum(
        '...d,pd->...p', x, b[...].astype(x.dtype),
        preferred_element_type=dtype,
    )
    b = jax.lax.complex(into(self.B_re), into(self.B_im))
    return a, scale * b

  def readout(self, h, x):
    y = self._out(h, self.C_re, self.C_im, x.dtype)
    return y + common.scaled(x, self.D[...])

  def __call__(self, x, carry=None, *, reset=None, mask=None, dt=None):
    if self.causal:
      return super().__call__(x, carry, reset=reset, mask=mask, dt=dt)
    x, carry, _, reset = base.prepare(self, x, carry, reset, mask)
    dt = base.prepare_dt(dt, x, mask)
    a, b = self.recurrence(x, dt)
    a, b = base.idle_where_absent(a, b, mask)
    last, h = ops.linear_scan(a, b, carry.forward, reset=reset)
    if reset is not None:
      reset = directions.starts_of_reversed(reset, mask)
    first, h2 = ops.linear_scan(
        a, b, carry.backward, reset=reset, reverse=True
    )
    y = self.readout(h, x) + self._out(h2, self.C2_re, self.C2_im, x.dtype)
    return directions.BidirectionalCarry(last, first), base.masked(y, mask)

  def step(self, carry, x, *, reset=None, mask=None, dt=None):
    if not self.causal:
      raise ValueError('A bidirectional S5 has no `step`.')
    return super().step(carry, x, reset=reset, mask=mask, dt=dt)

  def _out(self, h, c_re, c_im, dtype):
    """Returns `Re(C h)`, times 2 if the conjugate states are left out."""
    out = lambda part, c: jnp.einsum(
        '...p,dp->...d', part.astype(dtype), c[...].astype(dtype)
    )
    y = out(h.real, c_re) - out(h.imag, c_im)
    return 2 * y if self.conj_sym else y
