"""LinOSS (Rusch, Rus, 2025), https://arxiv.org/abs/2410.03943."""

from typing import Literal

from flax import nnx
import jax
import jax.numpy as jnp
from rnnzoo.layers import oscillators
from rnnzoo.layers import state_space

Discretization = Literal['im', 'imex']
_DISCRETIZATIONS = ('im', 'imex')


class LinOSS(oscillators.Oscillators):
  r"""Undamped oscillators as a state space model.

  .. math::
      y'' = -A \odot y + B x, \qquad \Delta = \sigma(steps), \quad A \ge 0

  with the velocity :math:`z = y'`, by the implicit rule (`im`), which damps:

  .. math::
      y_t &= (y_{t-1} + \Delta z_{t-1} + \Delta^2 B x_t) / (1 + \Delta^2 A) \\
      z_t &= z_{t-1} + \Delta (B x_t - A y_t)

  or the implicit-explicit one (`imex`), which keeps volumes:

  .. math::
      z_t &= z_{t-1} + \Delta (B x_t - A y_{t-1}) \\
      y_t &= y_{t-1} + \Delta z_t

  The output is :math:`\mathrm{Re}(C y_t) + D \odot x_t`. A sequence is one
  `ops.block_scan`. The state is `4 P` real numbers a sequence. A token costs
  `4 D P` multiplications.

  Example::

    >>> from flax import nnx
    >>> import jax.numpy as jnp
    >>> layer = LinOSS(16, 32, rngs=nnx.Rngs(0))
    >>> carry, y = layer(jnp.ones((2, 10, 16)))       # y: [B, T, D]
    >>> carry.y.shape, carry.y.dtype, y.shape
    ((2, 32), dtype('complex64'), (2, 10, 16))

  Attributes:
    in_features: Size `D` of an input.
    out_features: `D`.
    state_features: Number `P` of oscillators.
    discretization: `im` or `imex`.
  """

  def __init__(
      self,
      in_features: int,
      state_features: int = 64,
      *,
      discretization: Discretization = 'im',
      dtype: jnp.dtype | None = None,
      param_dtype: jnp.dtype = jnp.float32,
      rngs: nnx.Rngs,
  ):
    """Creates the layer, with the authors' initial values.

    Args:
      in_features: Size `D` of an input.
      state_features: Number `P` of oscillators.
      discretization: `im` or `imex`.
      dtype: Compute dtype; that of the input if `None`.
      param_dtype: Dtype of the parameters.
      rngs: Source of the initial parameters.

    Raises:
      ValueError: If an option is unknown, or there is no oscillator.
    """
    state_space.check_choice(
        'discretization', discretization, _DISCRETIZATIONS
    )
    self.in_features = in_features
    self.discretization = discretization
    self.create_maps(state_features, dtype, param_dtype, rngs)
    uniform = lambda: nnx.Param(
        jax.random.uniform(rngs.params(), (state_features,), param_dtype),
        axes=('hidden',), recurrent=True,
    )
    self.A_diag, self.steps = uniform(), uniform()

  def transition(self, dtype):
    dt = jax.nn.sigmoid(self.steps[...].astype(dtype))
    A = jax.nn.relu(self.A_diag[...].astype(dtype))
    if self.discretization == 'imex':
      return oscillators.explicit_transition(dt, A, jnp.ones_like(dt))
    s = 1 / (1 + dt**2 * A)
    matrix = [[s, -dt * A * s], [dt * s, s]]
    return oscillators.stacked(matrix), jnp.stack([dt * s, dt**2 * s])
