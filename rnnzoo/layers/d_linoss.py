"""D-LinOSS (Boyer et al., 2025), https://arxiv.org/abs/2505.12171."""

import math

from flax import nnx
import jax
import jax.numpy as jnp
from rnnzoo.layers import oscillators


class DLinOSS(oscillators.Oscillators):
  r"""Oscillators with a learned damping.

  .. math::
      y'' &= -A \odot y - G \odot y' + B x, \qquad
      \Delta = \sigma(steps), \quad G \ge 0 \\
      z_t &= (z_{t-1} + \Delta (B x_t - A y_{t-1})) / (1 + \Delta G) \\
      y_t &= y_{t-1} + \Delta z_t

  The output is :math:`\mathrm{Re}(C y_t) + D \odot x_t`. `A` is cut to the
  range in which the two eigenvalues of a step are a complex pair or equal, so
  that no state grows. At its ends float32 loses about four digits.

  A sequence is one `ops.block_scan`. The state is `4 P` real numbers a
  sequence. A token costs `4 D P` multiplications.

  Example::

    >>> from flax import nnx
    >>> import jax.numpy as jnp
    >>> layer = DLinOSS(16, 32, rngs=nnx.Rngs(0))
    >>> carry, y = layer(jnp.ones((2, 10, 16)))       # y: [B, T, D]
    >>> carry.y.shape, carry.y.dtype, y.shape
    ((2, 32), dtype('complex64'), (2, 10, 16))

  Attributes:
    in_features: Size `D` of an input.
    out_features: `D`.
    state_features: Number `P` of oscillators.
  """

  def __init__(
      self,
      in_features: int,
      state_features: int = 64,
      *,
      r_min: float = 0.9,
      theta_max: float = math.pi,
      dtype: jnp.dtype | None = None,
      param_dtype: jnp.dtype = jnp.float32,
      rngs: nnx.Rngs,
  ):
    """Creates the layer. Eigenvalues start in a ring, as those of the LRU.

    Args:
      in_features: Size `D` of an input.
      state_features: Number `P` of oscillators.
      r_min: The smallest initial radius of an eigenvalue; the largest is 1.
      theta_max: The largest initial angle.
      dtype: Compute dtype; that of the input if `None`.
      param_dtype: Dtype of the parameters.
      rngs: Source of the initial parameters.

    Raises:
      ValueError: If a number is out of range.
    """
    if not 0 < r_min <= 1:
      raise ValueError(f'`r_min` must be in (0, 1], got {r_min}.')
    if not 0 < theta_max <= math.pi:
      raise ValueError(f'`theta_max` must be in (0, pi], got {theta_max}.')
    self.in_features = in_features
    self.create_maps(state_features, dtype, param_dtype, rngs)
    size = (state_features,)
    steps = 0.5 * jax.random.normal(rngs.params(), size)
    squared = jax.random.uniform(rngs.params(), size, minval=r_min**2)
    theta = jax.random.uniform(rngs.params(), size, maxval=theta_max)
    # The eigenvalues of a step have radius 1 / sqrt(1 + dt G).
    dt = jax.nn.sigmoid(steps)
    G = (1 - squared) / (dt * squared)
    A = (2 + dt * G - 2 * jnp.cos(theta) * jnp.sqrt(1 + dt * G)) / dt**2
    self.A_diag, self.G_diag, self.steps = (
        nnx.Param(u.astype(param_dtype), axes=('hidden',), recurrent=True)
        for u in (A, G, steps)
    )

  def transition(self, dtype):
    dt = jax.nn.sigmoid(self.steps[...].astype(dtype))
    G = jax.nn.relu(self.G_diag[...].astype(dtype))
    middle, width = 2 + dt * G, 2 * jnp.sqrt(1 + dt * G)
    A = jnp.clip(
        self.A_diag[...].astype(dtype),
        (middle - width) / dt**2, (middle + width) / dt**2,
    )
    return oscillators.explicit_transition(dt, A, 1 / (1 + dt * G))
