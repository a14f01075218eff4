"""CG-LRU (De et al., 2024), appendix B of https://arxiv.org/abs/2402.19427."""

import math

from flax import nnx
import jax
import jax.numpy as jnp
from rnnzoo import ops
from rnnzoo.layers import base
from rnnzoo.layers import rg_lru


class CGLRU(rg_lru.RGLRU):
  r"""RG-LRU over complex numbers: its gate acts on decay and rotation.

  .. math::
      \tilde x_t &= x_t^{(1)} + i\, x_t^{(2)} \quad \text{(the halves of } x_t
          \text{)} \\
      r_t &= \sigma(W_a x_t + b_a), \quad i_t = \sigma(W_x x_t + b_x) \\
      \tilde a_t &= \tilde a^{c r_t}, \quad
          \tilde a = \sigma(\Lambda) e^{i \theta}, \quad c = 8 \\
      \tilde h_t &= \tilde a_t \odot \tilde h_{t-1}
          + \sqrt{1 - |\tilde a_t|^2} \odot (i_t \odot \tilde x_t) \\
      y_t &= [\mathrm{Re}\, \tilde h_t;\ \mathrm{Im}\, \tilde h_t]

  The gates take all `D` features and give `N = D / 2`, in blocks. As in
  `RGLRU`, the first token is not normalised, the slope of the root is bounded,
  and `a_param` :math:`= -\Lambda` has two initialisations. The paper does not
  give the initial :math:`\theta`. Here the phase of an open gate, :math:`c
  \theta`, is uniform over [0, `max_phase`]. The complex option of the published
  code does the same with pi / 10 (there the phase itself is the parameter). For
  language the paper found no benefit in complex numbers.

  The state is `D / 2` complex numbers and a flag a sequence. A token costs
  `D^2 / G` multiplications with `G` blocks.

  Example::

    >>> from flax import nnx
    >>> import jax.numpy as jnp
    >>> layer = CGLRU(16, num_heads=4, rngs=nnx.Rngs(0))
    >>> x = jnp.ones((2, 10, 16))                     # [B, T, D]
    >>> carry, y = layer(x)
    >>> carry, y_next = layer.step(carry, x[:, -1])   # [B, D]
    >>> carry.h.shape, carry.h.dtype, y.shape
    ((2, 8), dtype('complex64'), (2, 10, 16))

  Attributes:
    in_features: Size `D` of an input and of an output.
    out_features: `D`.
    state_features: Size `N` of the state.
    num_heads: The number `G` of blocks.
  """

  complex_state = True

  def __init__(
      self,
      in_features: int,
      *,
      num_heads: int | None = None,
      initialization: rg_lru.Initialization = 'paper',
      max_phase: float = math.pi / 10,
      dtype: jnp.dtype | None = None,
      param_dtype: jnp.dtype = jnp.float32,
      rngs: nnx.Rngs,
  ):
    """Creates the layer.

    Args:
      in_features: Size `D` of an input, even.
      num_heads: Number `G` of blocks of the gates' matrices; if `None`, the
        paper's 16, or the largest divisor of 16 that divides `D / 2`.
      initialization: `paper` or `recurrentgemma`, see `RGLRU`.
      max_phase: Largest initial `c theta`, in radians.
      dtype: Compute dtype; that of the input if `None`.
      param_dtype: Dtype of the parameters, float32 at least for `a_param` and
        `theta`.
      rngs: Source of the initial parameters.

    Raises:
      ValueError: If `D` is odd, the blocks do not divide `D / 2`, the phase is
        negative, or the initialisation is unknown.
    """
    if in_features % 2:
      raise ValueError(f'`in_features` must be even, got {in_features}.')
    if max_phase < 0:
      raise ValueError(f'`max_phase` must not be negative, got {max_phase}.')
    self.in_features = self.out_features = in_features
    self.state_features = n = in_features // 2
    self.dtype = dtype
    self._make_parameters(n, num_heads, initialization, param_dtype, rngs)
    phase = jax.random.uniform(
        rngs.params(), (n,), base.state_dtype(param_dtype), 0, max_phase
    )
    self.theta = nnx.Param(
        phase / rg_lru.RATE, axes=('hidden',), recurrent=True
    )

  @property
  def state_shape(self) -> tuple[int, ...]:
    """Sizes `(N,)` of the state of one sequence."""
    return (self.state_features,)

  def recurrence(self, x, start=None):
    rate, r, i = self._logits(x)
    modulus, scale = rg_lru.rg_lru_gate(start, rate, r, i, 1.0)
    phase = rg_lru.RATE * self.theta[...].astype(r.dtype) * jax.nn.sigmoid(r)
    a = jax.lax.complex(modulus * jnp.cos(phase), modulus * jnp.sin(phase))
    real, imaginary = jnp.split(x.astype(r.dtype), 2, axis=-1)
    return a, jax.lax.complex(scale * real, scale * imaginary)

  def _states(self, x, h, start, mask):
    a, b = self.recurrence(x, start[..., None])
    a, b = base.idle_where_absent(a, b, mask)
    return ops.linear_scan(a, b, h, reset=start)

  def readout(self, h, x):
    return jnp.concatenate([h.real, h.imag], axis=-1).astype(x.dtype)
