"""HGRN (Qin et al., 2023), https://arxiv.org/abs/2311.04823."""

from typing import Literal

from flax import nnx
import jax
import jax.numpy as jnp
from rnnzoo import ops
from rnnzoo.layers import base
from rnnzoo.layers import common
from rnnzoo.layers import initializers
from rnnzoo.layers import linear_maps
from rnnzoo.layers import recurrences


def hgrn_gate(start, bound, forget, v):
  """Computes `a = bound + (1 - bound) sigmoid(forget)`, `x = (1 - a) silu(v)`.

  A gate for `ops.gated_scan`. The decay `a` stays above `bound`, in [0, 1).

  >>> import jax.numpy as jnp
  >>> bound, zero, large = jnp.float32(0.5), jnp.zeros((1, 2, 1)), 40.
  >>> ops.gated_scan(hgrn_gate, (bound, zero, zero + large))[1][0, :, 0]
  Array([10. , 17.5], dtype=float32)
  """
  del start
  # The weight of the input is rounded first, and the decay is 1 minus it, so
  # that both sum to one.
  z = (1 - bound) * jax.nn.sigmoid(-forget)
  return 1 - z, z * jax.nn.silu(v)


class HGRN(recurrences.LinearRecurrence):
  r"""A gated linear recurrence whose forget gate stays above a bound.

  .. math::
      \lambda_t &= \gamma + (1 - \gamma) \odot \sigma(W_f x_t) \\
      h_t &= \lambda_t \odot h_{t-1}
          + (1 - \lambda_t) \odot \mathrm{SiLU}(W_i x_t) \\
      y_t &= W_o (\mathrm{norm}(h_t) \odot \mathrm{SiLU}(W_g x_t))

  A larger :math:`\gamma` means a longer memory. In the paper it grows with
  depth, from 0 in the first layer, so that upper layers remember longer. One
  matrix there holds the bounds of all layers (a cumulative softmax over depth,
  initially `k / num_layers` in layer `k`). Here each layer has a parameter of
  its own, which starts at `lower_bound`, or none, and then :math:`\gamma = 0`,
  as in a first layer.

  With `complex_state` the state is also rotated by a learned angle in every
  step: :math:`\lambda_t e^{i \theta}` replaces :math:`\lambda_t`. The input
  map and the output gate are then twice as wide, and `norm` takes all real
  parts followed by all imaginary parts.

  The state is `H` numbers a sequence, real or complex. A token costs `4 D H`
  multiplications, `7 D H` if the state is complex.

  The sources are two implementations. The layer of flash-linear-attention has a
  real state, RMSNorm and no biases, which are the defaults here; the golden
  numbers are those of its recurrence, `ops.log_decay_gate`. The layers of the
  first author are real and complex (`norm='layer'`, `use_bias=True`) and
  interleave real and imaginary inputs, where here all real ones come first. The
  paper and its training code were not available. Linear maps start as in
  PyTorch, as in both sources (the language model of the first one draws them
  from N(0, 0.02^2)).

  Example::

    >>> from flax import nnx
    >>> import jax.numpy as jnp
    >>> layer = HGRN(16, lower_bound=0.5, rngs=nnx.Rngs(0))
    >>> x = jnp.ones((2, 10, 16))                     # [B, T, D]
    >>> carry, y = layer(x)                           # [B, H], [B, T, D]
    >>> carry, y_next = layer.step(carry, x[:, -1])   # [B, H], [B, D]
    >>> carry.shape, y.shape
    ((2, 16), (2, 10, 16))

  Attributes:
    in_features: Size `D` of an input and of an output.
    hidden_features: Size `H` of the state, `int(D * expansion_factor)`.
    out_features: `D`.
  """

  def __init__(
      self,
      in_features: int,
      *,
      expansion_factor: float = 1.0,
      lower_bound: float = 0.0,
      complex_state: bool = False,
      norm: Literal['rms', 'layer'] = 'rms',
      use_bias: bool = False,
      dtype: jnp.dtype | None = None,
      param_dtype: jnp.dtype = jnp.float32,
      rngs: nnx.Rngs,
  ):
    """Creates the layer.

    Args:
      in_features: Size `D` of an input.
      expansion_factor: Hidden features per input feature.
      lower_bound: Initial value of `gamma`, in [0, 1); 0 means no `gamma`.
      complex_state: Whether the state is complex, and rotates.
      norm: The norm of the state before the output map: `rms` or `layer`.
      use_bias: Whether the linear maps have biases.
      dtype: Compute dtype; that of the input if `None`.
      param_dtype: Dtype of the parameters, float32 at least for `gamma` and
        `theta`.
      rngs: Source of the initial parameters.

    Raises:
      ValueError: If the bound is out of range, or the norm is unknown.
    """
    if not 0 <= lower_bound < 1:
      raise ValueError(f'`lower_bound` must be in [0, 1), got {lower_bound}.')
    if norm not in ('rms', 'layer'):
      raise ValueError(f"`norm` must be 'rms' or 'layer', got {norm!r}.")
    self.in_features = self.out_features = d = in_features
    self.hidden_features = h = int(in_features * expansion_factor)
    self.dtype = dtype
    wide = 2 * h if complex_state else h
    decay_dtype = base.state_dtype(param_dtype)
    diagonal = lambda u: nnx.Param(u, axes=('hidden',), recurrent=True)
    # [D] -> [2, H]: forget gate, input; of a complex one real, imaginary part.
    self.gates = linear_maps.gate_map(
        1 + wide // h, d, h, use_bias, param_dtype, rngs
    )
    init = initializers.uniform_fan_in(d)
    self.output_gate = nnx.Linear(
        d,
        wide,
        use_bias=use_bias,
        kernel_init=init,
        bias_init=init,
        kernel_metadata=dict(axes=('embed', 'hidden')),
        bias_metadata=dict(axes=('hidden',)),
        param_dtype=param_dtype,
        rngs=rngs,
    )
    self.norm = common.NORMS[norm](
        wide, epsilon=1e-5, param_dtype=param_dtype, rngs=rngs
    )
    self.output = linear_maps.output_map(wide, d, use_bias, param_dtype, rngs)
    if lower_bound > 0:
      logit = jax.scipy.special.logit(jnp.full((h,), lower_bound, decay_dtype))
      self.bound_logit = diagonal(logit)
    else:
      self.bound_logit = None
    if complex_state:
      angle = 10_000.0 ** (-2 / h * jnp.arange(h, dtype=decay_dtype))
      self.theta = diagonal(angle)
    else:
      self.theta = None

  @property
  def state_shape(self) -> tuple[int, ...]:
    """Sizes `(H,)` of the state of one sequence."""
    return (self.hidden_features,)

  @property
  def complex_state(self) -> bool:
    """Whether the state is complex."""
    return self.theta is not None

  def __call__(self, x, carry=None, *, reset=None, mask=None):
    if self.complex_state:  # A gate of `ops.gated_scan` is real.
      return super().__call__(x, carry, reset=reset, mask=mask)
    x, carry, _, reset = base.prepare(self, x, carry, reset, mask)
    carry, h = ops.gated_scan(
        hgrn_gate, self._logits(x), carry, reset=reset, mask=mask
    )
    return carry, base.masked(self.readout(h, x), mask)

  def _logits(self, x):
    """Returns the bound `[H]` or `[1]`, and what `gates` gives `[..., H]`."""
    dtype = base.state_dtype(x.dtype)
    bound = jnp.zeros((1,), dtype)
    if self.bound_logit is not None:
      bound = jax.nn.sigmoid(self.bound_logit[...].astype(dtype))
    return bound, *common.project_each(self.gates, x, dtype)

  def recurrence(self, x):
    if self.theta is None:
      return hgrn_gate(None, *self._logits(x))
    bound, forget, real, imaginary = self._logits(x)
    modulus, real = hgrn_gate(None, bound, forget, real)
    _, imaginary = hgrn_gate(None, bound, forget, imaginary)
    theta = self.theta[...].astype(modulus.dtype)
    a = jax.lax.complex(modulus * jnp.cos(theta), modulus * jnp.sin(theta))
    return a, jax.lax.complex(real, imaginary)

  def readout(self, h, x):
    if self.complex_state:
      h = jnp.concatenate([h.real, h.imag], axis=-1)
    o = self.norm(h).astype(x.dtype)
    o = o * jax.nn.silu(common.project(self.output_gate, x))
    return common.project(self.output, o)
