"""HGRN (Qin et al., 2023), https://arxiv.org/abs/2311.04823."""

from typing import Literal

from flax import nnx
import jax
import jax.numpy as jnp
from rnnzoo import ops
from rnnzoo.layers import base
from rnnzoo.layers import common
from rnnzoo.layers import initializers
from rnnzoo.layers import min_gru


class HGRN(base.GatedRecurrence):
  r"""A gated linear recurrence whose forget gate stays above a bound.

  .. math::
      \lambda_t &= \gamma + (1 - \gamma) \odot \sigma(W_f x_t) \\
      h_t &= \lambda_t \odot h_{t-1}
          + (1 - \lambda_t) \odot \mathrm{SiLU}(W_i x_t) \\
      y_t &= W_o (\mathrm{norm}(h_t) \odot \mathrm{SiLU}(W_g x_t))

  :math:`\gamma` makes a layer remember: in the paper it rises with depth, from
  0 in the first layer, and upper layers see further. There one matrix serves
  all layers (a cumulated softmax over depth, at first `k / num_layers` in layer
  `k`); here each layer has its own, a parameter that starts at `lower_bound`,
  or none, and :math:`\gamma = 0`, as in a first layer.

  With `complex_state` the state also turns by a learned angle a step,
  :math:`\lambda_t e^{i \theta}` in place of :math:`\lambda_t`, input and gate
  are twice as wide, and `norm` reads the real parts and then the imaginary
  ones.

  The state is `H` numbers a sequence, complex ones if so asked. Cost a token:
  `4 D H` multiplications, `7 D H` if complex.

  What was read: the layer of flash-linear-attention, whose real state, RMSNorm
  and lack of biases are the defaults (and whose recurrence was also run: the
  golden numbers are of `ops.log_decay_gate`); the first author's layers, real
  and complex (`norm='layer'`, `use_bias=True`), which interleave real and
  imaginary inputs where here they follow each other. The paper itself was not
  at hand, nor its training code: linear maps start as PyTorch's do, as in both
  layers (the language model around the former draws them from N(0, 0.02^2)).

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

  gate = staticmethod(ops.hgrn_gate)

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
      lower_bound: Where `gamma` starts, in [0, 1); 0 leaves it out.
      complex_state: Whether the state is complex and turns.
      norm: Of the state as it is read: `rms` or `layer`.
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
    diagonal = dict(axes=('hidden',), recurrent=True)
    # [D] -> [2, H]: forget gate, input; of a complex one real, imaginary part.
    self.gates = min_gru.gate_projection(
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
    self.output = min_gru.output_projection(
        wide, d, use_bias, param_dtype, rngs
    )
    if lower_bound > 0:
      logit = jax.scipy.special.logit(jnp.full((h,), lower_bound, decay_dtype))
      self.bound_logit = nnx.Param(logit, **diagonal)
    else:
      self.bound_logit = None
    if complex_state:
      angle = 10_000.0 ** (-2 / h * jnp.arange(h, dtype=decay_dtype))
      self.theta = nnx.Param(angle, **diagonal)
    else:
      self.theta = None

  def initialize_carry(self, batch_size: int, dtype=None) -> jax.Array:
    """Returns the state before the first token: zeros `[B, H]`."""
    dtype = base.state_dtype(dtype or self.dtype)
    if self.theta is not None:
      dtype = jnp.promote_types(dtype, jnp.complex64)
    return jnp.zeros((batch_size, self.hidden_features), dtype)

  def project(self, x):
    dtype = base.state_dtype(x.dtype)
    bound = jnp.zeros((1,), dtype)
    if self.bound_logit is not None:
      bound = jax.nn.sigmoid(self.bound_logit[...].astype(dtype))
    return bound, *common.project_each(self.gates, x, dtype)

  def recurrence(self, x):
    if self.theta is None:
      return super().recurrence(x)
    bound, forget, real, imaginary = self.project(x)
    modulus, real = self.gate(None, bound, forget, real)
    _, imaginary = self.gate(None, bound, forget, imaginary)
    theta = self.theta[...].astype(modulus.dtype)
    a = jax.lax.complex(modulus * jnp.cos(theta), modulus * jnp.sin(theta))
    return a, jax.lax.complex(real, imaginary)

  def scan(self, x, carry, initial, reset, mask):
    if self.theta is None:
      return super().scan(x, carry, initial, reset, mask)
    # No gate of `ops.gated_scan` is complex.
    return base.LinearRecurrence.scan(self, x, carry, initial, reset, mask)

  def readout(self, h, x):
    if self.theta is not None:
      h = jnp.concatenate([h.real, h.imag], axis=-1)
    o = self.norm(h).astype(x.dtype)
    o = o * jax.nn.silu(common.project(self.output_gate, x))
    return common.project(self.output, o)
