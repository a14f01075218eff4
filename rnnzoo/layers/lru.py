"""LRU (Orvieto et al., 2023), https://arxiv.org/abs/2303.06349."""

import math

from flax import nnx
import jax
import jax.numpy as jnp
from rnnzoo.layers import base
from rnnzoo.layers import common
from rnnzoo.layers import initializers
from rnnzoo.layers import recurrences
from rnnzoo.layers import state_space

# Values of the option `parametrization`: what the parameters of lambda are.
PARAMETRIZATIONS = ('stable', 'polar', 'cartesian')


def _from_polar(rate, phase):
  """Returns `exp(-rate + i phase)`."""
  modulus = jnp.exp(-rate)
  return jax.lax.complex(modulus * jnp.cos(phase), modulus * jnp.sin(phase))


class LRU(recurrences.TimedRecurrence):
  r"""A complex diagonal linear recurrence between two dense maps.

  .. math::
      \lambda &= \exp(-e^{\nu^{\log}} + i e^{\theta^{\log}}) \\
      h_t &= \lambda \odot h_{t-1} + e^{\gamma^{\log}} \odot (B x_t) \\
      y_t &= \mathrm{Re}(C h_t) + D \odot x_t

  :math:`|\lambda| < 1` for all values of the parameters. :math:`\gamma` is a
  parameter. It starts at :math:`\sqrt{1 - |\lambda|^2}`, which gives the state
  the variance of its input. The state is `N` complex numbers a sequence. A
  token costs `4 D N` multiplications.

  Two other parametrisations are rows of the paper's ablation. Neither keeps
  :math:`|\lambda| < 1` during training. `polar`: :math:`\lambda = \exp(-\nu +
  i \theta)`. `cartesian`: the parameters are the real and the imaginary part of
  :math:`\lambda`. The initial values are the same for all three.

  The defaults are those in the text of the paper. Its experiments choose the
  ring and the phase by task (`r_min` 0.9, `r_max` 0.999 for images, `max_phase`
  pi / 10 for sequences of 16k). The paper trains `nu_log`, `theta_log`,
  `gamma_log` and B with a smaller rate and without weight decay (they have
  `recurrent` metadata).

  A call takes `dt` `[B, T]`, and `step` takes `dt` `[B]`: the length of each
  step. The state decays by :math:`\lambda^{dt}`, so a step of 2 equals a step
  without input followed by a step with it. :math:`\gamma` does not depend on
  `dt`, so with uneven steps it no longer preserves the variance. With
  `cartesian`, the phase of the power is taken from :math:`(-\pi, \pi]`.

  Example::

    >>> from flax import nnx
    >>> import jax.numpy as jnp
    >>> layer = LRU(16, 24, rngs=nnx.Rngs(0))
    >>> x = jnp.ones((2, 10, 16))                     # [B, T, D]
    >>> carry, y = layer(x)                           # [B, N], [B, T, D]
    >>> carry, y_next = layer.step(carry, x[:, -1])   # [B, N], [B, D]
    >>> carry.shape, carry.dtype, y.shape
    ((2, 24), dtype('complex64'), (2, 10, 16))

  Attributes:
    in_features: Size `D` of an input.
    state_features: Size `N` of the state.
    out_features: `D`, because of the skip.
  """

  complex_state = True

  def __init__(
      self,
      in_features: int,
      state_features: int | None = None,
      *,
      r_min: float = 0.0,
      r_max: float = 1.0,
      max_phase: float = 2 * math.pi,
      use_gamma: bool = True,
      parametrization: str = 'stable',
      dtype: jnp.dtype | None = None,
      param_dtype: jnp.dtype = jnp.float32,
      rngs: nnx.Rngs,
  ):
    """Creates the layer.

    Args:
      in_features: Size `D` of an input.
      state_features: Size `N` of the state; `D` if `None`.
      r_min: Smallest initial `|lambda|`.
      r_max: Largest initial `|lambda|`.
      max_phase: Largest initial phase of `lambda`, in radians.
      use_gamma: Whether inputs are scaled by `gamma`; without it
        `exp(gamma_log)` is 1 (the paper's "ring" ablation).
      parametrization: `stable`, `polar` or `cartesian`.
      dtype: Compute dtype; that of the input if `None`.
      param_dtype: Dtype of the parameters, float32 at least for those that set
        the decays.
      rngs: Source of the initial parameters.

    Raises:
      ValueError: If the radii or the phase are out of range, or the
        parametrisation is unknown.
    """
    state_space.check_choice(
        'parametrization', parametrization, PARAMETRIZATIONS
    )
    if not max_phase > 0:
      raise ValueError(f'`max_phase` must be positive, got {max_phase}.')
    self.in_features = self.out_features = d = in_features
    self.state_features = n = state_features or in_features
    self.parametrization = parametrization
    self.dtype = dtype
    decay_dtype = base.state_dtype(param_dtype)
    nu_log = initializers.ring(r_min, r_max)(rngs.params(), (n,), decay_dtype)
    # Not 0, where the logarithm of the phase diverges.
    phase = max_phase * jax.random.uniform(
        rngs.params(), (n,), decay_dtype, 1e-6, 1
    )
    diagonal = lambda u: nnx.Param(u, axes=('hidden',), recurrent=True)
    if parametrization == 'stable':
      self.nu_log = diagonal(nu_log)
      self.theta_log = diagonal(jnp.log(phase))
    elif parametrization == 'polar':
      self.nu = diagonal(jnp.exp(nu_log))
      self.theta = diagonal(phase)
    else:
      lambda_ = _from_polar(jnp.exp(nu_log), phase)
      self.Lambda_re = diagonal(lambda_.real)
      self.Lambda_im = diagonal(lambda_.imag)
    if use_gamma:
      # 1 - |lambda|^2 without cancellation where |lambda| is close to 1.
      self.gamma_log = diagonal(
          0.5 * jnp.log(-jnp.expm1(-2 * jnp.exp(nu_log)))
      )
    else:
      self.gamma_log = None
    normal = lambda *shape: jax.random.normal(rngs.params(), shape, param_dtype)
    into = lambda u: nnx.Param(u, axes=('hidden', 'embed'), recurrent=True)
    self.B_re = into(normal(n, d) / math.sqrt(2 * d))
    self.B_im = into(normal(n, d) / math.sqrt(2 * d))
    self.C_re = nnx.Param(normal(d, n) / math.sqrt(n), axes=('embed', 'hidden'))
    self.C_im = nnx.Param(normal(d, n) / math.sqrt(n), axes=('embed', 'hidden'))
    self.D = nnx.Param(normal(d), axes=(None,))

  @property
  def state_shape(self) -> tuple[int, ...]:
    """Sizes `(N,)` of the state of one sequence."""
    return (self.state_features,)

  def recurrence(self, x, dt=None):
    dtype = base.state_dtype(x.dtype)
    lambda_ = self._decay(dtype, dt)
    scale = 1.0
    if self.gamma_log is not None:
      scale = jnp.exp(self.gamma_log[...].astype(dtype))[:, None]
    into = lambda b: jnp.einsum(
        '...d,nd->...n', x, (b[...].astype(dtype) * scale).astype(x.dtype),
        preferred_element_type=dtype,
    )
    return lambda_, jax.lax.complex(into(self.B_re), into(self.B_im))

  def _decay(self, dtype, dt):
    """Returns lambda `[N]`, or its powers `[..., N]` for steps `dt` `[...]`."""
    of = lambda parameter: parameter[...].astype(dtype)
    if self.parametrization == 'stable':
      rate, phase = jnp.exp(of(self.nu_log)), jnp.exp(of(self.theta_log))
    elif self.parametrization == 'polar':
      rate, phase = of(self.nu), of(self.theta)
    else:
      real, imag = of(self.Lambda_re), of(self.Lambda_im)
      if dt is None:
        return jax.lax.complex(real, imag)
      rate, phase = -jnp.log(jnp.hypot(real, imag)), jnp.arctan2(imag, real)
    if dt is not None:
      rate, phase = rate * dt[..., None], phase * dt[..., None]
    return _from_polar(rate, phase)

  def readout(self, h, x):
    out = lambda part, c: jnp.einsum(
        '...n,dn->...d', part.astype(x.dtype), c[...].astype(x.dtype)
    )
    y = out(h.real, self.C_re) - out(h.imag, self.C_im)
    return y + common.scaled(x, self.D[...])
