"""S4 (Gu et al., 2021), https://arxiv.org/abs/2111.00396."""

import functools
import math

from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np
from rnnzoo import ops
from rnnzoo.layers import base
from rnnzoo.layers import glu
from rnnzoo.layers import s4_convolution
from rnnzoo.layers import state_space
from rnnzoo.ops import diagonal_ssm
from rnnzoo.ops import exact
from rnnzoo.ops import split_time


class S4(base.RecurrentLayer):
  r"""A state space model for each channel, diagonal plus rank one, then a map.

  .. math::
      A &= \Lambda - P P^*, \qquad \Delta = e^{\Delta^{\log}} \\
      h_t &= (1 - \tfrac\Delta2 A)^{-1} \left(
          (1 + \tfrac\Delta2 A) h_{t-1} + \Delta B x_t \right) \\
      s_t &= 2\,\mathrm{Re}(C h_t) + D x_t \\
      (u_t, v_t) &= W\,\mathrm{gelu}(s_t) + w, \qquad
      y_t = u_t \odot \sigma(v_t)

  for each of `D` channels. The `N` states of a channel are `N / 2` complex
  numbers and their conjugates. :math:`\Lambda`, `P` and `B` start at
  HiPPO-LegS, in the coordinates in which its normal part is diagonal. The whole
  matrix is too far from normal to be diagonalised (S4D leaves `P` out). It is
  discretised by the bilinear rule. `output_map='none'` gives :math:`s_t`.

  Without flags a sequence is a convolution by FFT (`s4_convolution.py`). As in
  the paper, its kernel of `T` steps is computed in the frequency domain, by
  Woodbury's identity and Cauchy sums of `T D N / 4` complex divisions, from
  :math:`\sum_{l<T} C \bar A^l \bar B z^l = C (1 + \bar A^T) (1 - z \bar A)^{-1}
  \bar B`, where `z` are the T-th roots of -1. (The paper takes the roots of 1,
  for which :math:`1 - \bar A^T` cancels if `T` is short.) The paper learns the
  product with C for one `T`. Here C is the parameter, and :math:`\bar A^T` is
  computed for each `T` by `log T` squarings of `D` matrices `N x N`, so that
  all lengths, chunks and steps agree to rounding. The outputs due to an earlier
  state, and the last state, are sums over two tables of about `sqrt(T)` powers.

  With `reset` or `mask` the layer scans `step`, which costs about `6 D N`
  multiplications a token and is much slower on long sequences. The state is
  `D N / 2` complex numbers. Without `reset`, an input that is not finite makes
  all outputs of its row NaN.

  The paper trains Lambda, P, B and `log_dt` with a smaller rate and without
  decay (`recurrent` metadata). The later code shares all parameters but
  `log_dt` and C among channels; here only their initial values are the same.

  Example::

    >>> from flax import nnx
    >>> import jax.numpy as jnp
    >>> layer = S4(16, 8, rngs=nnx.Rngs(0))
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

  complex_state = True

  def __init__(
      self,
      in_features: int,
      state_features: int = 64,
      *,
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
      output_map: `glu` or `none`.
      dt_min: Smallest initial step, in units of the time of HiPPO.
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
    state_space.check_choice('output_map', output_map, glu.OUTPUT_MAPS)
    if state_features < 2 or state_features % 2:
      raise ValueError(
          f'`state_features` must be even and positive, got {state_features}.'
      )
    self.in_features = self.out_features = d = in_features
    self.state_features = n = state_features
    self.step_rescale = step_rescale
    self.dtype = dtype
    decay_dtype = base.state_dtype(param_dtype)
    log_dt = state_space.log_uniform(dt_min, dt_max)
    lambda_, v, p = state_space.normal_legs(n)
    rotated = v.conj().T @ np.stack([p, state_space.legs(n)[1]], axis=1)
    p, b = rotated[n // 2 :].T  # The positive half of each pair.
    system = lambda u: nnx.Param(
        jnp.tile(jnp.asarray(u, decay_dtype), (d, 1)),
        axes=('hidden', 'inner'), recurrent=True,
    )
    self.log_dt = nnx.Param(
        log_dt(rngs.params(), (d,), decay_dtype), axes=('hidden',),
        recurrent=True,
    )
    self.log_A_real = system(np.log(-lambda_.real[n // 2 :]))
    self.A_imag = system(lambda_.imag[n // 2 :])
    self.P_re, self.P_im = system(p.real), system(p.imag)
    self.B_re, self.B_im = system(b.real), system(b.imag)
    normal = lambda *shape: jax.random.normal(rngs.params(), shape, param_dtype)
    # Complex normal: each part has half the variance.
    self.C_re, self.C_im = (
        nnx.Param(math.sqrt(0.5) * normal(d, n // 2), axes=('hidden', 'inner'))
        for _ in range(2)
    )
    self.D = nnx.Param(normal(d), axes=(None,))
    self.output = (
        glu.output_glu(d, param_dtype, rngs) if output_map == 'glu' else None
    )

  @property
  def state_shape(self) -> tuple[int, ...]:
    """Sizes `(D, N / 2)` of the state of one sequence."""
    return (self.in_features, self.state_features // 2)

  def __call__(self, x, carry=None, *, reset=None, mask=None):
    from_zero = carry is None
    x, carry, initial, reset = base.prepare(self, x, carry, reset, mask)
    dtype = base.state_dtype(x.dtype)
    wide = x.astype(dtype)
    carry, s = ops.run_per_device(
        _run,
        wide,
        (
            *self._system(dtype), initial, wide, None if from_zero else carry,
            reset, mask,
        ),
        ('dk',) * 5 + ('bdk', 'btd', 'bdk', 'bt', 'bt'),
        ('bdk', 'btd'),
    )
    return carry, base.masked(self._out(s, wide, x.dtype), mask)

  def step(self, carry, x, *, reset=None, mask=None):
    x, carry, initial, reset = base.prepare(
        self, x, carry, reset, mask, step=True
    )
    dtype = base.state_dtype(x.dtype)
    wide = x.astype(dtype)
    carry, s = _advance_present(
        self._system(dtype), initial, carry, (wide, reset, mask)
    )
    return carry, base.masked(self._out(s, wide, x.dtype), mask)

  def _system(self, dtype):
    """Lambda, P, B, C `[D, N / 2]` and the steps `[D, 1]`."""
    of = lambda re, im: jax.lax.complex(
        re.astype(dtype), im[...].astype(dtype)
    )
    steps = self.step_rescale * jnp.exp(self.log_dt[...].astype(dtype))
    return (
        of(-jnp.exp(self.log_A_real[...].astype(dtype)), self.A_imag),
        of(self.P_re[...], self.P_im),
        of(self.B_re[...], self.B_im),
        of(self.C_re[...], self.C_im),
        steps[:, None],
    )

  def _out(self, s, x, dtype):
    s = (s + self.D[...].astype(s.dtype) * x).astype(dtype)
    return s if self.output is None else glu.glu(self.output, s)


def _advance_present(system, initial, carry, inputs):
  """Runs a step: returns the next state `[B, D, M]` and `s` `[B, D]`."""
  lambda_, p, b, c, step = system
  x, reset, mask = inputs
  entering = carry if reset is None else base.select(reset, initial, carry)
  inputs = step * b * x[..., None]
  h = s4_convolution.advance(lambda_, p, step, entering, inputs)
  carry = h if mask is None else base.select(mask, h, carry)
  return carry, 2 * diagonal_ssm.readout(c, h)


def _run(*operands, segments):
  """Returns the last state and `s` `[B, T, D]` of the segment of one device."""
  *system, initial, x, h0, reset, mask = operands
  if segments is not None:
    last, _ = _segment(system, initial, x, None, reset, mask)
    h0 = initial if h0 is None else h0
    h0 = _entering(segments, system, last, x.shape[1], reset, mask, h0)
  last, s = _segment(system, initial, x, h0, reset, mask)
  return last if segments is None else segments.from_last(last), s


def _segment(system, initial, x, h0, reset, mask):
  """Returns the last state and `s` `[B, T, D]`; by FFT without flags."""
  if x.shape[1] and reset is None and mask is None:
    return s4_convolution.convolution(*system, x=x, h0=h0)
  return diagonal_ssm.scan_chunks(
      functools.partial(_scan, system, initial),
      initial if h0 is None else h0, (x, reset, mask),
  )


def _entering(segments, system, last, time, reset, mask, h0):
  """Returns the state that enters the segment of time of this device."""
  lambda_, p, *_, step = system
  squares = s4_convolution.repeated_squares(
      s4_convolution.dense(lambda_, p, step), segments.size * time
  )
  advance = lambda i, h: exact.einsum('dnm,bdm->bdn', squares[i], h)
  last, h0 = (s4_convolution.to_real(h) for h in (last, h0))
  return s4_convolution.to_complex(split_time.entering_state_by_powers(
      segments, advance, last, time, reset, mask, h0
  ))


def _scan(system, initial, carry, inputs):
  """Scans all steps: returns the last state and `s` `[B, T, D]`."""
  by_time = lambda u: jnp.moveaxis(u, 1, 0)
  carry, s = jax.lax.scan(
      functools.partial(_advance_present, system, initial),
      carry,
      jax.tree.map(by_time, inputs),
  )
  return carry, jnp.moveaxis(s, 0, 1)
