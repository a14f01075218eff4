"""MesaNet (von Oswald et al., 2025), https://arxiv.org/abs/2506.05233."""

import math
from typing import Any, NamedTuple

from flax import nnx
import jax
import jax.numpy as jnp
from rnnzoo import ops
from rnnzoo.layers import base
from rnnzoo.layers import checking
from rnnzoo.layers import common
from rnnzoo.layers import delta_memory
from rnnzoo.layers import initializers
from rnnzoo.layers import linear_maps
from rnnzoo.ops import mesa as mesa_lib


class MesaNetCarry(NamedTuple):
  """State of `MesaNet`, the same for both solvers.

  Attributes:
    conv: Last inputs of the convolutions of queries and keys, `[B, C-1, 2 H K]`
      in the compute dtype.
    G: The weighted sum of `k k^T`, `[B, H, K, K]`.
    M: The weighted sum of `k v^T`, `[B, H, K, V]`.
  """

  conv: jax.Array
  G: jax.Array
  M: jax.Array


class MesaNet(base.RecurrentLayer):
  r"""Linear attention that answers with a ridge regression over its past.

  Queries and keys pass a short causal convolution, SiLU, and are normalised to
  length 1 for each of `H` heads. With values :math:`v_t = W_v x_t`,

  .. math::
      \beta_t &= \sigma(W_\beta x_t + b_\beta), \quad
      \gamma_t = \sigma(W_\gamma x_t + b_\gamma) \\
      G_t &= \gamma_t G_{t-1} + \beta_t k_t k_t^\top, \quad
      M_t = \gamma_t M_{t-1} + \beta_t k_t v_t^\top \\
      y_t &= W_o \, \mathrm{norm} \bigl(
          M_t^\top (G_t + \mathrm{diag}(\lambda))^{-1} q_t \bigr)

  The matrix that is applied to a query minimises the squared errors of all
  values so far, weighted by :math:`\beta` and the decays :math:`\gamma`, plus a
  penalty :math:`\lambda = \mathrm{softplus}(\ell) + \lambda_{\min}`.

  `cg` solves the equations with conjugate gradients, and `exact` with a
  Cholesky factor (`ops.mesa_scan`). The published layer takes 30 steps of `cg`;
  up to `K = 30` they are the exact solution, but for rounding. Published code
  adds 1e-5 to the divisors of these steps, which limits its accuracy to about
  5e-4. Here a divisor of 0 ends the steps instead. Published code starts a
  single token from another guess than a whole sequence; here both start from 0,
  so that they agree after any number of steps. Gradients are those of the exact
  solution, and solve its equations once more, with the same number of steps.

  The state is `H K (K + V)` numbers a sequence, and `2 (C - 1) H K` for the
  convolutions (65536 + 1536 if `D` is 256). A token costs `2 D H (K + V + 1)`
  multiplications in maps. For the state, a token and head costs a step `K (K +
  V) + N K^2` with `N` steps of `cg`. In parallel, in chunks of `Q` tokens, it
  is `(Q + 2 K) (K + V) + N (2 Q + K) K`. `exact` costs `K^3 / 6` in place of
  the terms with `N`, and in parallel `Q K^2` more to build its matrices.

  The defaults are those of flash-linear-attention, where a layer of 2048
  features has 16 heads. :math:`\lambda` starts at 1; all else starts as in
  PyTorch.

  Example::

    >>> from flax import nnx
    >>> import jax.numpy as jnp
    >>> layer = MesaNet(16, num_heads=2, rngs=nnx.Rngs(0))
    >>> x = jnp.ones((2, 10, 16))                     # [B, T, D]
    >>> carry, y = layer(x)                           # [B, T, D]
    >>> carry, y_next = layer.step(carry, x[:, -1])   # [B, D]
    >>> carry.conv.shape, carry.G.shape, y.shape
    ((2, 3, 32), (2, 2, 8, 8), (2, 10, 16))

  Attributes:
    in_features: Size `D` of an input and of an output.
    out_features: `D`.
    num_heads: Number `H` of heads.
    key_features: Features `K` of a query and of a key of a head.
    value_features: Features `V` of a value of a head.
    solver: `cg` or `exact`.
    num_iterations: Steps of `cg`.
  """

  carry_tails = ('conv',)

  def __init__(
      self,
      in_features: int,
      *,
      num_heads: int | None = None,
      key_features: int | None = None,
      value_features: int | None = None,
      conv_kernel: int = 4,
      solver: mesa_lib.Solver = 'cg',
      num_iterations: int = 30,
      min_ridge: float = 0.25,
      use_output_gate: bool = False,
      norm_epsilon: float = 1e-5,
      chunk_size: int | None = None,
      dtype: jnp.dtype | None = None,
      param_dtype: jnp.dtype = jnp.float32,
      rngs: nnx.Rngs,
  ):
    r"""Creates the layer.

    Args:
      in_features: Size `D` of an input.
      num_heads: Number `H` of heads; `D / K` if `None`.
      key_features: Features `K` of a key. If `None`, `D / H`; if `num_heads` is
        `None` too, the largest divisor of 128 that divides `D`.
      value_features: Features `V` of a value; `K` if `None`.
      conv_kernel: Taps `C` of the convolutions.
      solver: `cg`, or `exact`.
      num_iterations: Steps of `cg`, in training and after it.
      min_ridge: :math:`\lambda_{\min}`, at least 0 and below 1.
      use_output_gate: Whether `norm` is multiplied by `SiLU(W_g x)`.
      norm_epsilon: Added to the mean square in the norm.
      chunk_size: Tokens in a chunk, a power of two; if `None`, the default of
        `ops.mesa_scan`. It affects rounding only.
      dtype: Compute dtype; that of the input if `None`.
      param_dtype: Dtype of the parameters, float32 at least for those of the
        gates and :math:`\lambda`.
      rngs: Source of the initial parameters.

    Raises:
      ValueError: If the heads do not divide the features, or a number is out of
        range.
    """
    heads, keys = delta_memory.heads_of(
        in_features, 128, num_heads, key_features
    )
    values = keys if value_features is None else value_features
    checking.check_sizes(
        num_heads=heads, key_features=keys, value_features=values,
        conv_kernel=conv_kernel,
    )
    if not 0 <= min_ridge < 1:
      raise ValueError(f'`min_ridge` must be in [0, 1), got {min_ridge}.')
    mesa_lib.check_solver(solver, num_iterations)
    self.in_features = self.out_features = d = in_features
    self.num_heads = heads
    self.key_features, self.value_features = keys, values
    self.conv_kernel = conv_kernel
    self.solver, self.num_iterations = solver, num_iterations
    self.min_ridge = min_ridge
    self.chunk_size = chunk_size
    self.dtype = dtype
    options: dict[str, Any] = dict(param_dtype=param_dtype, rngs=rngs)
    usual = initializers.uniform_fan_in
    # One map and one convolution for queries and keys together.
    self.query_key = delta_memory.linear(
        d, 2 * heads * keys, ('embed', 'hidden'), **options
    )
    self.conv = nnx.Param(
        usual(conv_kernel)(
            rngs.params(), (conv_kernel, 2 * heads * keys), param_dtype
        ),
        axes=(None, 'hidden'),
    )
    self.value = linear_maps.into_heads(d, heads, values, usual(d), **options)
    # Parameters of the decay are float32 at least.
    wide = base.state_dtype(param_dtype)
    self.gates = nnx.LinearGeneral(
        d,
        (2, heads),
        kernel_init=usual(d),
        bias_init=usual(d),
        kernel_metadata=dict(axes=('embed', None, 'heads')),
        bias_metadata=dict(axes=(None, 'heads')),
        param_dtype=wide,
        rngs=rngs,
    )
    self.ridge = nnx.Param(
        jnp.full((heads, keys), math.log(math.expm1(1 - min_ridge)), wide),
        axes=('heads', None), recurrent=True,
    )
    if use_output_gate:
      self.gate = linear_maps.into_heads(d, heads, values, usual(d), **options)
    else:
      self.gate = None
    self.norm = common.HeadNorm(
        heads, values, epsilon=norm_epsilon, share=True, param_dtype=param_dtype
    )
    self.output = delta_memory.linear(
        heads * values, d, ('hidden', 'embed'), **options
    )

  @property
  def state_shape(self) -> base.StateShape:
    """Sizes of the arrays of the carry of one sequence."""
    heads, keys = self.num_heads, self.key_features
    return base.carry_shape(
        MesaNetCarry,
        conv=(self.conv_kernel - 1, 2 * heads * keys),
        G=(heads, keys, keys),
        M=(heads, keys, self.value_features),
    )

  def __call__(self, x, carry=None, *, reset=None, mask=None):
    x, carry, _, reset = base.prepare(self, x, carry, reset, mask)
    flags = dict(reset=reset, mask=mask)
    tail, operands = self._operands(ops.causal_conv1d, x, carry, flags)
    state, y = ops.mesa_scan(
        **operands, **self._solving(), state=ops.MesaState(*carry[1:]),
        chunk_size=self.chunk_size, **flags,
    )
    return MesaNetCarry(tail, *state), self._readout(y, x, mask)

  def step(self, carry, x, *, reset=None, mask=None):
    x, carry, initial, reset = base.prepare(
        self, x, carry, reset, mask, step=True
    )
    flags = dict(reset=reset, mask=mask)
    tail, operands = self._operands(ops.causal_conv1d_step, x, carry, flags)
    old = ops.MesaState(*carry[1:])
    entering = old
    if reset is not None:
      entering = base.select(reset, ops.MesaState(*initial[1:]), old)
    state, y = ops.mesa_step(**operands, **self._solving(), state=entering)
    if mask is not None:
      state = base.select(mask, state, old)
    return MesaNetCarry(tail, *state), self._readout(y, x, mask)

  def _operands(self, convolve, x, carry, flags):
    """Returns the tail, and the operands of the recurrence but for the state.
    """
    tail, u = convolve(
        common.project(self.query_key, x), self.conv[...], None, carry.conv,
        **flags,
    )
    u = delta_memory.unit(jax.nn.silu(u).reshape(
        *x.shape[:-1], 2, self.num_heads, self.key_features
    ))
    q, k = u[..., 0, :, :], u[..., 1, :, :]
    dtype = base.state_dtype(x.dtype)
    beta, decay = common.project_each(self.gates, x, dtype)
    ridge = jax.nn.softplus(self.ridge[...].astype(dtype)) + self.min_ridge
    return tail, dict(
        q=q, k=k, v=common.project(self.value, x), beta=jax.nn.sigmoid(beta),
        ridge=ridge, log_decay=jax.nn.log_sigmoid(decay),
    )

  def _solving(self) -> dict[str, Any]:
    """Returns the options of the recurrence."""
    return dict(solver=self.solver, num_iterations=self.num_iterations)

  def _readout(self, y, x, mask):
    """Maps the output of the heads `[..., H, V]` to `[..., D]`."""
    y = self.norm(y)
    if self.gate is not None:
      y = y * jax.nn.silu(common.project(self.gate, x))
    y = y.reshape(*x.shape[:-1], self.num_heads * self.value_features)
    return base.masked(common.project(self.output, y.astype(x.dtype)), mask)
