"""S4D (Gu et al., 2022), https://arxiv.org/abs/2206.11893."""

import math

from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np
from rnnzoo.layers import base
from rnnzoo.layers import glu
from rnnzoo.layers import state_space
from rnnzoo.ops import diagonal_ssm


def _lin(n):
  return -0.5 + 1j * math.pi * np.arange(n // 2), None


def _inv(n):
  k = np.arange(n // 2)
  return -0.5 + 1j * n / math.pi * (n / (2 * k + 1) - 1), None


def _legs(n):
  # The positive half of each pair.
  lambda_, v, _ = state_space.normal_legs(n)
  b = v.conj().T @ state_space.legs(n)[1]
  b = b.real + 1j * np.clip(b.imag, -2, 2)
  return lambda_[n // 2 :], b[n // 2 :]


def _real(n):
  return -np.arange(1.0, n + 1), None


# Functions of `N` that return eigenvalues, and B or `None` if it is 1.
INITIALIZATIONS = dict(lin=_lin, inv=_inv, legs=_legs, real=_real)


class S4D(base.RecurrentLayer):
  r"""A diagonal state space model for each channel, then a map across them.

  .. math::
      \lambda &= -e^{A^{\log}_{re}} + i A_{im}, \qquad
      \Delta = e^{\Delta^{\log}} \\
      \bar\lambda &= e^{\lambda \Delta}, \qquad
      \bar B = \frac{\bar\lambda - 1}{\lambda} B \\
      h_t &= \bar\lambda \odot h_{t-1} + \bar B x_t \\
      s_t &= 2\,\mathrm{Re}(C h_t) + D x_t \\
      (u_t, v_t) &= W\,\mathrm{gelu}(s_t) + w, \qquad
      y_t = u_t \odot \sigma(v_t)

  The first four lines hold for each of `D` channels, with `N / 2` complex
  numbers and their conjugates, hence the factor 2. Only the output map (exact
  GELU, GLU) mixes channels. It is part of the published layer;
  `output_map='none'` gives :math:`s_t`, for a block that has a gate.

  The state is `D N / 2` complex numbers a sequence, `D N` real ones with
  `init='real'`. A step costs `2 D N` complex multiplications. A sequence is a
  convolution by FFT, which costs `T log T` a channel, with a kernel that costs
  `T N` real multiplications a channel. The states of all steps are never
  stored. With `reset`, `mask` or `dt` it is a scan in chunks of 64 steps, which
  the backward pass computes again. Without `reset`, an input that is not finite
  makes all outputs of its row NaN.

  `dt` (call `[B, T]`, `step` `[B]`) is the length of each step: `Delta dt`
  replaces `Delta`. With `zoh`, a step of 2 equals two steps with the same
  input.

  Initialisations of lambda: `lin` (-1/2 + i pi n), `inv` (-1/2 + i N/pi (N/(2n
  + 1) - 1)), `legs` (the normal part of HiPPO-LegS, with its B) and `real` (-(n
  + 1), n < N, and all numbers are real). The LRU paper prints another `inv`,
  with N/(n + 1). B is a parameter for `legs` and 1 otherwise, where C can
  absorb it. The paper trains `log_A_real`, `A_imag`, `log_dt` and B with a
  smaller rate and without weight decay (`recurrent` metadata).

  Example::

    >>> from flax import nnx
    >>> import jax.numpy as jnp
    >>> layer = S4D(16, 8, rngs=nnx.Rngs(0))
    >>> x = jnp.ones((2, 10, 16))                     # [B, T, D]
    >>> carry, y = layer(x)                     # [B, D, N / 2], [B, T, D]
    >>> carry, y_next = layer.step(carry, x[:, -1])
    >>> carry.shape, carry.dtype, y.shape
    ((2, 16, 4), dtype('complex64'), (2, 10, 16))

  Attributes:
    in_features: Size `D` of an input.
    state_features: Size `N` of the state of a channel, in real numbers.
    out_features: `D`.
  """

  def __init__(
      self,
      in_features: int,
      state_features: int = 64,
      *,
      init: str = 'lin',
      discretization: str = 'zoh',
      output_map: str = 'glu',
      dt_min: float = 0.001,
      dt_max: float = 0.1,
      step_rescale: float = 1.0,
      dtype: jnp.dtype | None = None,
      param_dtype: jnp.dtype = jnp.float32,
      rngs: nnx.Rngs,
  ):
    """Creates the layer.

    Args:
      in_features: Size `D` of an input.
      state_features: Size `N` of the state of a channel, even.
      init: Initial eigenvalues: `lin`, `inv`, `legs` or `real`.
      discretization: `zoh` or `bilinear`.
      output_map: `glu` or `none`.
      dt_min: Smallest initial step, in units of the time of lambda.
      dt_max: Largest initial step.
      step_rescale: Multiplies all steps: 2 for data sampled half as often as
        the training data.
      dtype: Compute dtype; that of the input if `None`.
      param_dtype: Dtype of the parameters, float32 at least for those that set
        the decays.
      rngs: Source of the initial parameters.

    Raises:
      ValueError: If an option is unknown or a size is out of range.
    """
    choices = state_space.check_choice
    choices('init', init, INITIALIZATIONS)
    choices('discretization', discretization, state_space.DISCRETIZATIONS)
    choices('output_map', output_map, glu.OUTPUT_MAPS)
    if state_features < 2 or state_features % 2:
      raise ValueError(
          f'`state_features` must be even and positive, got {state_features}.'
      )
    self.in_features = self.out_features = d = in_features
    self.state_features = state_features
    self.discretization = discretization
    self.step_rescale = step_rescale
    self.dtype = dtype
    decay_dtype = base.state_dtype(param_dtype)
    log_dt = state_space.log_uniform(dt_min, dt_max)
    lambda_, b = INITIALIZATIONS[init](state_features)
    n = len(lambda_)
    of_all = lambda u, dtype: jnp.tile(jnp.asarray(u, dtype), (d, 1))
    normal = lambda *shape: jax.random.normal(rngs.params(), shape, param_dtype)
    system = lambda u: nnx.Param(u, axes=('hidden', 'inner'), recurrent=True)
    real = init == 'real'
    self.log_dt = nnx.Param(
        log_dt(rngs.params(), (d,), decay_dtype), axes=('hidden',),
        recurrent=True,
    )
    self.log_A_real = system(of_all(np.log(-lambda_.real), decay_dtype))
    self.A_imag = None if real else system(of_all(lambda_.imag, decay_dtype))
    self.B_re = None if b is None else system(of_all(b.real, param_dtype))
    self.B_im = None if b is None else system(of_all(b.imag, param_dtype))
    # Complex normal: each part has half the variance.
    scale = 1 if real else math.sqrt(0.5)
    self.C_re = nnx.Param(scale * normal(d, n), axes=('hidden', 'inner'))
    self.C_im = None if real else nnx.Param(
        scale * normal(d, n), axes=('hidden', 'inner')
    )
    self.D = nnx.Param(normal(d), axes=(None,))
    self.output = (
        glu.output_glu(d, param_dtype, rngs) if output_map == 'glu' else None
    )

  @property
  def state_shape(self) -> tuple[int, ...]:
    """Sizes `(D, N / 2)` of the state of one sequence."""
    return (self.in_features, self.log_A_real[...].shape[-1])

  @property
  def complex_state(self) -> bool:
    """Whether the state is complex."""
    return self.A_imag is not None

  def __call__(self, x, carry=None, *, reset=None, mask=None, dt=None):
    from_zero = carry is None
    x, carry, _, reset = base.prepare(self, x, carry, reset, mask)
    dt = base.prepare_dt(dt, x, mask)
    dtype = base.state_dtype(x.dtype)
    system, c = self._continuous(dtype), self._read(dtype)
    wide = x.astype(dtype)
    if x.shape[1] and reset is None and mask is None and dt is None:
      carry, s = diagonal_ssm.diagonal_convolution(
          *self._discrete(system), c, wide, None if from_zero else carry
      )
    else:
      carry, s = diagonal_ssm.diagonal_scan(
          self._discrete, system, c, wide, carry,
          dt=dt, reset=reset, mask=mask,
      )
    return carry, base.masked(self._out(s, wide, x.dtype), mask)

  def step(self, carry, x, *, reset=None, mask=None, dt=None):
    x, carry, initial, reset = base.prepare(
        self, x, carry, reset, mask, step=True
    )
    dt = base.prepare_dt(dt, x, mask)
    dtype = base.state_dtype(x.dtype)
    wide = x.astype(dtype)
    a, b = self._discrete(self._continuous(dtype), dt)
    entering = carry if reset is None else base.select(reset, initial, carry)
    h = a * entering + b * wide[..., None]
    carry = h if mask is None else base.select(mask, h, carry)
    s = diagonal_ssm.readout(self._read(dtype), h)
    return carry, base.masked(self._out(s, wide, x.dtype), mask)

  def _continuous(self, dtype):
    """Returns Lambda and B or `None`, `[D, N / 2]`, and the steps `[D, 1]`."""
    lambda_ = -jnp.exp(self.log_A_real[...].astype(dtype))
    if self.A_imag is not None:
      lambda_ = jax.lax.complex(lambda_, self.A_imag[...].astype(dtype))
    b = None
    if self.B_re is not None and self.B_im is not None:
      b = jax.lax.complex(
          self.B_re[...].astype(dtype), self.B_im[...].astype(dtype)
      )
    steps = self.step_rescale * jnp.exp(self.log_dt[...].astype(dtype))
    return lambda_, b, steps[:, None]

  def _discrete(self, system, dt=None):
    """Returns decays and weights `[..., D, N / 2]` for steps `dt` `[...]`."""
    lambda_, b, steps = system
    discretize = state_space.DISCRETIZATIONS[self.discretization]
    decay, weight = discretize(
        lambda_, steps if dt is None else steps * dt[..., None, None]
    )
    return decay, weight if b is None else weight * b

  def _read(self, dtype):
    """Returns C, times 2 if the conjugate states are left out."""
    c = self.C_re[...].astype(dtype)
    if self.C_im is None:
      return c
    return 2 * jax.lax.complex(c, self.C_im[...].astype(dtype))

  def _out(self, s, x, dtype):
    s = (s + self.D[...].astype(s.dtype) * x).astype(dtype)
    return s if self.output is None else glu.glu(self.output, s)
