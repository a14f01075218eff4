"""Mamba-3 (Lahoti et al., 2026), https://arxiv.org/abs/2603.15569."""

import math
from typing import Literal, NamedTuple

from flax import nnx
import jax
import jax.numpy as jnp
from rnnzoo import ops
from rnnzoo.layers import base
from rnnzoo.layers import checking
from rnnzoo.layers import common
from rnnzoo.layers import delta_memory
from rnnzoo.layers import initializers
from rnnzoo.ops import exact


class Mamba3Carry(NamedTuple):
  """State of `Mamba3`.

  Attributes:
    angle: How far keys are turned, `[B, H, M]`, within half a turn of 0;
      float32 at least.
    ssm: The state `[B, H, N, P]`, float32 at least.
    k: The keys of the last token, turned, `[B, H, R, N]`.
    x: Its values `[B, H, R, P]`.
  """

  angle: jax.Array
  ssm: jax.Array
  k: jax.Array
  x: jax.Array


class Mamba3(base.RecurrentLayer):
  r"""`Mamba2` with rotations, a trapezoidal rule and several inputs a head.

  .. math::
      (z_t, x_t, B_t, C_t, \delta_t, a_t, \tau_t, \omega_t) &= W_{in} u_t \\
      \Delta_t = \mathrm{softplus}(\delta_t + b_\delta), \quad
      \lambda_t &= \sigma(\tau_t), \quad \alpha_t = e^{-\Delta_t f(a_t)} \\
      \theta_t &= \theta_{t-1} + \pi \Delta_t \tanh(\omega_t) \\
      k_t = \mathrm{R}_{\theta_t} (\mathrm{norm}(B_t) + b_B), \quad
      q_t &= \mathrm{R}_{\theta_t} (\mathrm{norm}(C_t) + b_C) \\
      S_t &= \alpha_t S_{t-1}
             + (1 - \lambda_t) \Delta_t \alpha_t k_{t-1} x_{t-1}^\top
             + \lambda_t \Delta_t k_t x_t^\top \\
      y_t &= W_{out} \bigl((S_t^\top q_t + D x_t) \odot
             \mathrm{silu}(z_t)\bigr)

  for every head of `P` features. :math:`\mathrm{R}_\theta` rotates `M` pairs of
  features, each by its own angle, which is the same as a state of complex
  numbers. The step also weighs the token before, so there is no convolution.
  :math:`\Delta`, :math:`\lambda`, :math:`\alpha` and D are one number a head;
  B and C are shared by the heads of a group, :math:`\omega` by all heads.
  :math:`f(a)` is `1 + a` if positive and else :math:`1 / (1 - a)`, or a
  softplus (`rate`), and `a_floor` at least.

  With a `rank` of `R` (MIMO), a head has `R` keys and `R` queries. Its values
  and its gates are :math:`x^r = w^r_x \odot x` and :math:`z^r = w^r_z \odot z`;
  the outer products of the ranks are summed, and so are their outputs, times
  :math:`w^r_o`. The state has the same size. Whole sequences are matrix
  products in chunks: `ops.linear_attention`, where the ranks of a token are
  tokens one after the other. A chunk of `Q` is `Q / R` tokens.

  The state is `H (N P + M + R (N + P))` numbers a sequence (196608 + 5376 if
  `D` is 768). A token costs `D (3 H P + 2 R G N + 3 H + M)` multiplications in
  matrices, and `3 R H N P` for the state; in parallel, `2 R H N P` and about
  `R Q H (N + P)` within a chunk.

  The published input map is one matrix with columns for z, x, B, C, step
  sizes, rates, :math:`\tau` and :math:`\omega`, in this order. Here it is four,
  `in_proj`, `bc_proj`, `rates_proj` and `angle_proj`, so that heads can be
  split over devices. There, the state is the transpose, and values are kept
  before they are multiplied by :math:`w_x`. `rotation` is that of the published
  kernels by default. Released code exists with either `rate`: take the one that
  belongs to the weights.

  Example::

    >>> from flax import nnx
    >>> import jax.numpy as jnp
    >>> layer = Mamba3(16, head_features=8, state_features=4, rngs=nnx.Rngs(0))
    >>> x = jnp.ones((2, 10, 16))                     # [B, T, D]
    >>> carry, y = layer(x)                           # [B, T, D]
    >>> carry, y_next = layer.step(carry, x[:, -1])   # [B, D]
    >>> carry.angle.shape, carry.ssm.shape, carry.k.shape, carry.x.shape
    ((2, 4, 1), (2, 4, 4, 8), (2, 4, 1, 4), (2, 4, 1, 8))

  Attributes:
    in_features: Size `D` of an input.
    hidden_features: Number `H P` of channels, `int(D * expansion_factor)`.
    num_heads: `H`.
    head_features: Channels `P` of a head.
    num_groups: `G`.
    state_features: Size `N` of the state of a channel.
    num_angles: Number `M` of rotated pairs of a key.
    rank: `R`.
    out_features: `D`.
  """

  carry_tails = ('k', 'x')

  def __init__(
      self,
      in_features: int,
      *,
      state_features: int = 128,
      expansion_factor: float = 2.0,
      head_features: int | None = None,
      num_groups: int = 1,
      rank: int = 1,
      rotary_fraction: float = 0.5,
      rotation: Literal['neighbors', 'halves'] | None = None,
      rate: Literal['rational', 'softplus'] = 'rational',
      a_floor: float = 1e-4,
      dt_min: float = 1e-3,
      dt_max: float = 0.1,
      dt_floor: float = 1e-4,
      norm_epsilon: float = 1e-5,
      use_output_norm: bool = False,
      num_layers: int = 1,
      chunk_size: int | None = None,
      dtype: jnp.dtype | None = None,
      param_dtype: jnp.dtype = jnp.float32,
      rngs: nnx.Rngs,
  ):
    """Creates the layer.

    Args:
      in_features: Size `D` of an input.
      state_features: Size `N` of the state of a channel.
      expansion_factor: Channels per input feature.
      head_features: Channels `P` of a head; if `None`, the published 64, or all
        channels if there are fewer.
      num_groups: Number `G` of groups of heads that share B and C.
      rank: Number `R` of keys and queries of a head; 1 (SISO), or 4 in the
        published MIMO form.
      rotary_fraction: How much of a key is rotated: the published code allows
        0.5 and 1.
      rotation: Which features form a pair: `neighbors`, or `halves`, feature
        `i` with feature `i + N / 2`. If `None`, `neighbors` with a rank of 1,
        or else `halves`.
      rate: The function `f` of decay rates; both forms have been published.
      a_floor: Smallest rate of decay.
      dt_min: Smallest initial step size.
      dt_max: Largest initial step size.
      dt_floor: Initial step sizes below are raised to it.
      norm_epsilon: Added to the mean squares in the norms.
      use_output_norm: Whether the outputs of each head are divided by the root
        of their mean square, before the gate.
      num_layers: Depth of the model; the initial `out_proj` is divided by its
        square root (twice the depth where there are MLPs).
      chunk_size: Tokens in a chunk times `R`, a power of two; if `None`, the
        default of `ops.linear_attention`. It affects rounding only.
      dtype: Compute dtype; that of the input if `None`.
      param_dtype: Dtype of the parameters, float32 at least for those of the
        state: `D` and `dt_bias`.
      rngs: Source of the initial parameters.

    Raises:
      ValueError: If a size, a rate or a step size is out of range.
    """
    self.in_features = self.out_features = d = in_features
    self.hidden_features = hidden = int(in_features * expansion_factor)
    self.state_features = n = state_features
    self.num_groups, self.rank = num_groups, rank
    self.rate, self.a_floor = rate, a_floor
    self.chunk_size = chunk_size
    self.dtype = dtype
    checking.check_sizes(state_features=n, rank=rank, num_layers=num_layers)
    self.head_features, self.num_heads = checking.channel_heads(
        hidden, head_features, num_groups
    )
    heads = self.num_heads
    if rotation is None:
      rotation = 'neighbors' if rank == 1 else 'halves'
    _check_choice('rotation', rotation, ('neighbors', 'halves'))
    _check_choice('rate', rate, ('rational', 'softplus'))
    self.rotation = rotation
    self.num_angles = _number_of_angles(n, rotary_fraction, rotation)
    if not a_floor >= 0:
      raise ValueError(f'`a_floor` must not be negative, got {a_floor}.')
    step_sizes = initializers.step_size_bias(dt_min, dt_max, dt_floor)

    def linear(fan_in, out, axes, *, scale=1.0):
      init = initializers.uniform_fan_in(fan_in)
      return nnx.LinearGeneral(
          fan_in,
          out,
          use_bias=False,
          kernel_init=lambda *args: init(*args) * scale,
          kernel_metadata=dict(axes=axes),
          param_dtype=param_dtype,
          rngs=rngs,
      )

    # Two maps, [D] -> [2, H P]: the gate and the values.
    self.in_proj = linear(d, (2, hidden), ('embed', None, 'hidden'))
    self.bc_proj = linear(d, 2 * rank * num_groups * n, ('embed', None))
    # Three maps, [D] -> [3, H]: step sizes, rates and weights of the rule.
    self.rates_proj = linear(d, (3, heads), ('embed', None, 'heads'))
    self.angle_proj = linear(d, self.num_angles, ('embed', None))
    # Parameters of the decay are float32 at least, and have no weight decay.
    state_dtype = base.state_dtype(param_dtype)
    per_head = lambda u: nnx.Param(u, axes=('heads',), recurrent=True)
    self.dt_bias = per_head(step_sizes(rngs.params(), (heads,), state_dtype))
    self.D = per_head(jnp.ones((heads,), state_dtype))
    norm = lambda: common.RMSNorm(
        n, epsilon=norm_epsilon, param_dtype=param_dtype
    )
    self.B_norm, self.C_norm = norm(), norm()
    per_rank = lambda features, value: nnx.Param(
        jnp.full((heads, rank, features), value, param_dtype),
        axes=('heads', None, None),
    )
    self.B_bias, self.C_bias = per_rank(n, 1.0), per_rank(n, 1.0)
    if rank == 1:
      self.mimo_x = self.mimo_z = self.mimo_o = None
    else:
      self.mimo_x = per_rank(self.head_features, 1 / rank)
      self.mimo_z = per_rank(self.head_features, 1.0)
      self.mimo_o = per_rank(self.head_features, 1 / rank)
    self.norm = None if not use_output_norm else common.HeadNorm(
        heads, self.head_features, epsilon=norm_epsilon,
        param_dtype=param_dtype,
    )
    self.out_proj = linear(
        hidden, d, ('hidden', 'embed'), scale=1 / math.sqrt(num_layers)
    )

  @property
  def state_shape(self) -> base.StateShape:
    """Sizes of the arrays of the carry of one sequence."""
    heads, n, p = self.num_heads, self.state_features, self.head_features
    return base.carry_shape(
        Mamba3Carry,
        angle=(heads, self.num_angles),
        ssm=(heads, n, p),
        k=(heads, self.rank, n),
        x=(heads, self.rank, p),
    )

  def __call__(self, x, carry=None, *, reset=None, mask=None):
    u, carry, _, reset = base.prepare(self, x, carry, reset, mask)
    z, x, operands = self._tokens(u)
    carry, y = recurrence(
        *operands, carry, rotation=self.rotation, chunk_size=self.chunk_size,
        reset=reset, mask=mask,
    )
    return carry, self._readout(y, x, z, mask)

  def step(self, carry, x, *, reset=None, mask=None):
    u, carry, initial, reset = base.prepare(
        self, x, carry, reset, mask, step=True
    )
    z, x, operands = self._tokens(u)
    old = carry if reset is None else base.select(reset, initial, carry)
    new, y = recurrence_step(*operands, old, rotation=self.rotation)
    if mask is not None:
      new = base.select(mask, new, carry)
    return new, self._readout(y, x, z, mask)

  def _tokens(self, u):
    """Returns the gate `[..., H, P]`, values, and `recurrence`'s operands."""
    dtype = base.state_dtype(u.dtype)
    z, x = (
        v.reshape(*u.shape[:-1], self.num_heads, self.head_features)
        for v in common.project_each(self.in_proj, u)
    )
    x = of_ranks(x, self.mimo_x)
    bc = common.project(self.bc_proj, u)
    bc = bc.reshape(
        *u.shape[:-1], 2, self.rank, self.num_groups, self.state_features
    )
    b = self.B_norm(bc[..., 0, :, :, :])
    c = self.C_norm(bc[..., 1, :, :, :])
    delta, rate, trapezoid = common.project_each(self.rates_proj, u, dtype)
    delta = jax.nn.softplus(delta + self.dt_bias[...].astype(dtype))
    angle = common.project(self.angle_proj, u, dtype)[..., None, :]
    return z, x, (
        of_heads(c, self.C_bias[...]), of_heads(b, self.B_bias[...]), x, delta,
        -delta * self._rate(rate), trapezoid, angle,
    )

  def _rate(self, u):
    """Maps logits to rates of decay."""
    if self.rate == 'softplus':
      rate = jax.nn.softplus(u)
    else:
      rate = jnp.where(u >= 0, 1 + u, 1 / (1 - jnp.minimum(u, 0)))
    return jnp.maximum(rate, self.a_floor)

  def _readout(self, y, x, z, mask):
    """Maps the output of the heads `[..., H, R, P]` to `[..., D]`."""
    y = outputs(
        y, x, z, D=self.D[...], mimo_z=self.mimo_z, mimo_o=self.mimo_o,
        norm=self.norm,
    )
    y = y.reshape(*z.shape[:-2], self.hidden_features).astype(z.dtype)
    return base.masked(common.project(self.out_proj, y), mask)


def recurrence(
    q: jax.Array,
    k: jax.Array,
    x: jax.Array,
    dt: jax.Array,
    log_decay: jax.Array,
    trapezoid: jax.Array,
    angle: jax.Array,
    carry: Mamba3Carry,
    *,
    rotation: str,
    chunk_size: int | None = None,
    reset: jax.Array | None = None,
    mask: jax.Array | None = None,
) -> tuple[Mamba3Carry, jax.Array]:
  """Runs the recurrence of `Mamba3` over time.

  A token writes its own keys only when the next one comes. So the two terms of
  the rule are one, in which keys and values are those of the token before.

  Args:
    q: Queries `[B, T, H, R, N]`, not yet rotated.
    k: Keys `[B, T, H, R, N]`, likewise.
    x: Values `[B, T, H, R, P]`.
    dt: Step sizes `[B, T, H]`.
    log_decay: Logarithms of decays `[B, T, H]`.
    trapezoid: Logits of the weights of the current token `[B, T, H]`.
    angle: Rates of rotation before the tanh `[B, T, H or 1, M]`.
    carry: The state before the first token.
    rotation: See `Mamba3`.
    chunk_size: See `Mamba3`.
    reset: Booleans `[B, T]` or `None`, `False` where masked.
    mask: Booleans `[B, T]` or `None`.

  Returns:
    `(carry, y)`: the state after the last token, and outputs `[B, T, H, R, P]`
    in the dtype of states.
  """
  ranks = x.shape[-2]
  turns = _turns(angle, dt)
  angle, cos, sin = accumulate(turns, carry.angle, reset, mask)
  q, k = (rotate(u, cos, sin, rotation).astype(x.dtype) for u in (q, k))
  weight, weight_before = _weights(dt, trapezoid)
  # The weight of the token before the first one is in the state already.
  nothing = jnp.zeros_like(carry.ssm[..., 0, 0], weight.dtype)
  (last_k, k_before), (last_x, x_before), (last_weight, carried) = (
      _shift(u, edge, reset=reset, mask=mask)
      for u, edge in ((k, carry.k), (x, carry.x), (weight, nothing))
  )
  written = jnp.exp(log_decay) * (weight_before + carried)
  written = written[..., None, None] * x_before
  flags = {}
  if reset is not None:
    flags['reset'] = _first_of_ranks(reset, ranks)
  if mask is not None:
    flags['mask'] = mask.repeat(ranks, axis=1)
  ssm, y = ops.linear_attention(
      _ranks_to_time(q), _ranks_to_time(k_before), _ranks_to_time(written),
      carry.ssm, log_decay=_first_of_ranks(log_decay, ranks),
      chunk_size=chunk_size, **flags,
  )
  y = y.reshape(*x.shape[:2], ranks, *y.shape[2:]).swapaxes(2, 3)
  # A query has met the keys of ranks up to its own, and no current key.
  y = y + _read(q, k, weight[..., None, None] * x)
  if ranks > 1:
    later = jnp.triu(jnp.ones((ranks, ranks), bool), 1)
    y = y + _read(q, k_before, written, later)
  ssm = ssm + _write(last_k, last_weight[..., None, None] * last_x)
  return Mamba3Carry(angle, ssm, last_k, last_x), y


def recurrence_step(
    q: jax.Array,
    k: jax.Array,
    x: jax.Array,
    dt: jax.Array,
    log_decay: jax.Array,
    trapezoid: jax.Array,
    angle: jax.Array,
    carry: Mamba3Carry,
    *,
    rotation: str,
) -> tuple[Mamba3Carry, jax.Array]:
  """Runs `recurrence` for one token, whose arguments have no time."""
  angle = carry.angle + _turns(angle, dt)
  angle = angle - 2 * jnp.pi * jnp.round(angle / (2 * jnp.pi))
  cos, sin = jnp.cos(angle), jnp.sin(angle)
  q, k = (rotate(u, cos, sin, rotation).astype(x.dtype) for u in (q, k))
  weight, before = (u[..., None, None] for u in _weights(dt, trapezoid))
  ssm = carry.ssm + _write(carry.k, before * carry.x)
  ssm = jnp.exp(log_decay)[..., None, None] * ssm + _write(k, weight * x)
  y = exact.einsum('bhrn,bhnp->bhrp', q.astype(ssm.dtype), ssm)
  return Mamba3Carry(angle, ssm, k, x), y


def of_heads(u: jax.Array, bias: jax.Array) -> jax.Array:
  """Gives each head the keys of its group, plus its own bias.

  Args:
    u: `[..., R, G, N]`.
    bias: `[H, R, N]`.

  Returns:
    `[..., H, R, N]`, in the dtype of states.
  """
  u = delta_memory.shared(u, bias.shape[0]).swapaxes(-2, -3)
  return u.astype(base.state_dtype(u.dtype)) + bias


def of_ranks(u: jax.Array, factors: nnx.Param | jax.Array | None) -> jax.Array:
  """Multiplies `[..., H, P]` by `[H, R, P]`, or by 1: `[..., H, R, P]`."""
  u = u[..., None, :]
  return u if factors is None else common.scaled(u, factors[...])


def outputs(y, x, z, *, D=None, mimo_z=None, mimo_o=None, norm=None):
  """Returns the gated outputs of the heads `[..., H, P]`.

  Args:
    y: What queries have read `[..., H, R, P]`, in the dtype of states.
    x: Values `[..., H, R, P]`.
    z: Gates before the silu `[..., H, P]`; no gates if `None`.
    D: Weights of values `[H]`, or `None`.
    mimo_z: Factors of gates `[H, R, P]`; `None` if `R` is 1.
    mimo_o: Factors of outputs `[H, R, P]`, likewise.
    norm: A norm of `[..., H, P]` before the gate, or `None`.
  """
  if D is not None:
    y = y + D.astype(y.dtype)[:, None, None] * x
  if norm is not None:
    y = norm(y.swapaxes(-2, -3)).swapaxes(-2, -3)
  if z is not None:
    y = y * jax.nn.silu(of_ranks(z.astype(y.dtype), mimo_z))
  if mimo_o is not None:
    y = y * mimo_o[...].astype(y.dtype)
  return y.sum(-2)


def rotate(u: jax.Array, cos: jax.Array, sin: jax.Array, rotation: str):
  """Rotates the first `M` pairs of features.

  Args:
    u: `[..., H, R, N]`.
    cos: Cosines of angles `[..., H, M]`.
    sin: Their sines.
    rotation: `neighbors`, pairs of features `2i` and `2i + 1`; or `halves`,
      pairs of `i` and `i + N / 2`.

  Returns:
    An array like `u`.
  """
  pairs, n = cos.shape[-1], u.shape[-1]
  cos, sin = cos[..., None, :], sin[..., None, :]
  turn = lambda a, b: (a * cos - b * sin, a * sin + b * cos)
  if rotation == 'halves':
    half = n // 2
    a, b = turn(u[..., :pairs], u[..., half : half + pairs])
    parts = [a, u[..., pairs:half], b, u[..., half + pairs :]]
    return jnp.concatenate(parts, axis=-1)
  shape = (*u.shape[:-1], 2 * pairs)
  turned = turn(u[..., 0 : 2 * pairs : 2], u[..., 1 : 2 * pairs : 2])
  turned = jnp.stack(turned, axis=-1).reshape(shape)
  return jnp.concatenate([turned, u[..., 2 * pairs :]], axis=-1)


def _turns(angle, dt):
  """How far each pair is rotated by a token, `[..., H, M]`."""
  return jnp.pi * jnp.tanh(angle) * dt[..., None]


def _weights(dt, trapezoid):
  """The weights of a token and of the one before, `[..., H]` each."""
  current = jax.nn.sigmoid(trapezoid)
  return current * dt, (1 - current) * dt


def accumulate(
    turns: jax.Array,
    angle: jax.Array,
    reset: jax.Array | None = None,
    mask: jax.Array | None = None,
) -> tuple[jax.Array, jax.Array, jax.Array]:
  """Sums rotations over time.

  Numbers on the unit circle are multiplied. A sum of angles would lose a digit
  whenever it has grown tenfold.

  Args:
    turns: `[B, T, H, M]`.
    angle: The angles before the first token `[B, H, M]`.
    reset: `[B, T]` or `None`.
    mask: `[B, T]` or `None`.

  Returns:
    The last angles, and all cosines and sines.
  """
  if not turns.size:
    return angle, turns, turns
  flat = lambda u: u.reshape(*u.shape[:-2], u.shape[-2] * u.shape[-1])
  factors = _unit(flat(base.masked(turns, mask)))
  start = jnp.zeros_like(factors)
  if reset is not None:
    start = jnp.where(reset[..., None], factors, start)
  last, at = ops.linear_scan(factors, start, _unit(flat(angle)), reset=reset)
  at = at.reshape(turns.shape)
  return jnp.angle(last).reshape(angle.shape), at.real, at.imag


def _unit(angle):
  """Numbers on the unit circle; the gradient of one that is NaN is 0."""
  good = jnp.isfinite(angle)
  angle = jnp.where(good, angle, 0)
  at = jax.lax.complex(jnp.cos(angle), jnp.sin(angle))
  return jnp.where(good, at, jnp.nan)


def _shift(u, edge, **flags):
  """`common.token_shift` for `[B, T, H, ...]` and the edge `[B, H, ...]`."""
  flat = lambda v, axis: v.reshape(*v.shape[:axis], math.prod(v.shape[axis:]))
  last, before = common.token_shift(flat(u, 2), flat(edge, 1), **flags)
  return last.reshape(edge.shape), before.reshape(u.shape)


def _ranks_to_time(u):
  """Makes ranks tokens one after the other: `[B, T R, H, N]`."""
  batch, time, heads, ranks, features = u.shape
  return u.swapaxes(2, 3).reshape(batch, time * ranks, heads, features)


def _first_of_ranks(u, ranks):
  """Gives `[B, T, ...]` to the first rank of a token, and 0 to the others."""
  others = jnp.zeros_like(u)[:, :, None].repeat(ranks - 1, axis=2)
  u = jnp.concatenate([u[:, :, None], others], axis=2)
  return u.reshape(u.shape[0], u.shape[1] * ranks, *u.shape[3:])


def _read(q, k, x, visible=None):
  """Reads within a token: `[..., H, R, P]` in the dtype of `x`."""
  q, k = q.astype(x.dtype), k.astype(x.dtype)
  scores = exact.einsum('...rn,...sn->...rs', q, k)
  if visible is not None:
    scores = jnp.where(visible, scores, 0)
  return exact.einsum('...rs,...sp->...rp', scores, x)


def _write(k, x):
  """The sum over ranks of the outer products of keys and values."""
  return exact.einsum('bhrn,bhrp->bhnp', k.astype(x.dtype), x)


def _number_of_angles(features, fraction, rotation):
  """Returns `M`, or raises."""
  if not 0 < fraction <= 1:
    raise ValueError(f'`rotary_fraction` must be in (0, 1], got {fraction}.')
  if rotation == 'halves' and features % 2:
    raise ValueError(
        f"`state_features` must be even with `rotation='halves'`, got "
        f'{features}.'
    )
  pairs = int(features * fraction) // 2
  if not pairs:
    raise ValueError(
        f'`state_features` must be at least {math.ceil(2 / fraction)} with a '
        f'`rotary_fraction` of {fraction}, got {features}.'
    )
  return pairs


def _check_choice(name, value, choices):
  if value not in choices:
    raise ValueError(
        f'`{name}` must be {" or ".join(map(repr, choices))}, got {value!r}.'
    )
