"""S4 (Gu et al., 2021), https://arxiv.org/abs/2111.00396."""

import functools
import math

from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np
from rnnzoo import ops
from rnnzoo.layers import base
from rnnzoo.layers import s4d
from rnnzoo.layers import state_space
from rnnzoo.ops import diagonal_ssm
from rnnzoo.ops import exact
from rnnzoo.ops import split_time

# Frequencies at a time: what is held of the Cauchy matrix `[D, N / 2, T / 2]`.
_FREQUENCIES = 256


class S4(base.RecurrentLayer):
  r"""A state space model for each channel, diagonal plus rank one, then a map.

  .. math::
      A &= \Lambda - P P^*, \qquad \Delta = e^{\Delta^{\log}} \\
      h_t &= (1 - \tfrac\Delta2 A)^{-1} \left(
          (1 + \tfrac\Delta2 A) h_{t-1} + \Delta B x_t \right) \\
      s_t &= 2\,\mathrm{Re}(C h_t) + D x_t \\
      (u_t, v_t) &= W\,\mathrm{gelu}(s_t) + w, \qquad
      y_t = u_t \odot \sigma(v_t)

  for each of `D` channels; of `N` states `N / 2` complex numbers stand for
  themselves and their conjugates. :math:`\Lambda`, `P` and `B` start at
  HiPPO-LegS, in the coordinates in which its normal part is diagonal: a matrix
  that is itself too far from normal to be diagonalised (S4D leaves `P` out).
  Discretised by the bilinear rule. `output_map='none'` gives :math:`s_t`.

  Without flags a sequence is a convolution by FFT. The kernel of `T` steps is
  made in the frequency domain, as in the paper, by Woodbury's identity and
  Cauchy sums of `T D N / 4` complex divisions, for
  :math:`\sum_{l<T} C \bar A^l \bar B z^l = C (1 + \bar A^T) (1 - z \bar A)^{-1}
  \bar B`, `z` the T-th roots of -1. (The paper takes those of 1, where
  :math:`1 - \bar A^T` cancels if `T` is short.) Where the paper learns the
  product with C for one `T`, here C is the parameter, and :math:`\bar A^T` is
  made for the `T` at hand by `log T` squarings of `D` matrices `N x N`: so that
  all lengths, chunks and steps agree to rounding. What an earlier state leaves,
  and the last state, are sums over two tables of about `sqrt(T)` powers.

  With `reset` or `mask` it is a scan of `step`, which costs about `6 D N`
  multiplications a token and is far slower on long sequences. The state is
  `D N / 2` complex numbers. Without `reset` an input that is not finite spoils
  all outputs of its row.

  The paper trains Lambda, P, B and `log_dt` with a smaller rate and without
  decay (`recurrent` metadata). The later code shares all but `log_dt` and C
  among channels; here they only start alike.

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
        those the parameters were trained on.
      dtype: Compute dtype; that of the input if `None`.
      param_dtype: Dtype of the parameters, float32 at least for those that set
        the decays.
      rngs: Source of the initial parameters.

    Raises:
      ValueError: If an option is unknown or a size is out of range.
    """
    state_space.check_choice('output_map', output_map, s4d.OUTPUT_MAPS)
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
    turned = v.conj().T @ np.stack([p, state_space.legs(n)[1]], axis=1)
    p, b = turned[n // 2 :].T  # The positive half of each pair.
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
        s4d.output_glu(d, param_dtype, rngs) if output_map == 'glu' else None
    )

  def initialize_carry(self, batch_size: int, dtype=None) -> jax.Array:
    """Returns the state before the first token: complex `[B, D, N / 2]`."""
    dtype = base.state_dtype(dtype or self.dtype)
    dtype = jnp.promote_types(dtype, jnp.complex64)
    shape = (batch_size, self.in_features, self.state_features // 2)
    return jnp.zeros(shape, dtype)

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
    return s if self.output is None else s4d.glu(self.output, s)


# Below, states and vectors `[.., M]` with M = N / 2 stand for real ones of size
# N = 2 M, their real and imaginary parts side by side. `P^*` sums over both
# numbers of each pair, so it is twice a real part: `A` is linear over the real
# numbers only.


def advance(lambda_, p, step, h, inputs=0):
  """`(1 - step/2 A)^-1 ((1 + step/2 A) h + inputs)`, in O(N).

  Args:
    lambda_: `[D, M]`.
    p: `[D, M]`.
    step: `[D, 1]`.
    h: `[..., D, M]`.
    inputs: Likewise.

  Returns:
    `[..., D, M]`.
  """
  half = 0.5 * step
  project = lambda u: 2 * (p.conj() * u).sum(-1, keepdims=True).real
  right = (1 + half * lambda_) * h - half * p * project(h) + inputs
  # Woodbury: the inverse of a diagonal matrix plus one of rank one.
  inverse = 1 / (1 - half * lambda_)
  solved, turned = inverse * right, inverse * p
  return solved - half * turned * project(solved) / (1 + half * project(turned))


def _advance_present(system, initial, carry, inputs):
  """A step: the next state `[B, D, M]` and `s` `[B, D]`."""
  lambda_, p, b, c, step = system
  x, reset, mask = inputs
  entering = carry if reset is None else base.select(reset, initial, carry)
  h = advance(lambda_, p, step, entering, step * b * x[..., None])
  carry = h if mask is None else base.select(mask, h, carry)
  return carry, 2 * diagonal_ssm.readout(c, h)


def _run(*operands, segments):
  """The last state, and `s` `[B, T, D]`, of what one device has."""
  *system, initial, x, h0, reset, mask = operands
  if segments is not None:
    last, _ = _stretch(system, initial, x, None, reset, mask)
    h0 = initial if h0 is None else h0
    h0 = _entering(segments, system, last, x.shape[1], reset, mask, h0)
  last, s = _stretch(system, initial, x, h0, reset, mask)
  return last if segments is None else segments.from_last(last), s


def _stretch(system, initial, x, h0, reset, mask):
  if x.shape[1] and reset is None and mask is None:
    return convolution(*system, x, h0)
  return diagonal_ssm.scan_chunks(
      functools.partial(_scan, system, initial),
      initial if h0 is None else h0, (x, reset, mask),
  )


def _entering(segments, system, last, time, reset, mask, h0):
  """Returns the state that enters the segment of time of this device."""
  lambda_, p, *_, step = system
  squares = _squares(_dense(lambda_, p, step), segments.size * time)
  advance = lambda i, h: exact.einsum('dnm,bdm->bdn', squares[i], h)
  return _complex(split_time.entering_state_by_powers(
      segments, advance, _parts(last), time, reset, mask, _parts(h0)
  ))


def _scan(system, initial, carry, inputs):
  """All steps: the last state, and `s` `[B, T, D]`."""
  by_time = lambda u: jnp.moveaxis(u, 1, 0)
  carry, s = jax.lax.scan(
      functools.partial(_advance_present, system, initial),
      carry,
      jax.tree.map(by_time, inputs),
  )
  return carry, jnp.moveaxis(s, 0, 1)


def convolution(lambda_, p, b, c, step, x, h0=None):
  """Runs `h_t = advance(h_{t-1}, step b x_t)`, `s_t = 2 Re(c h_t)`.

  Args:
    lambda_: `[D, M]`.
    p: `[D, M]`.
    b: `[D, M]`.
    c: `[D, M]`.
    step: `[D, 1]`.
    x: Inputs `[B, T, D]`, T >= 1, in the dtype of states.
    h0: State before the first step `[B, D, M]`; zeros if `None`.

  Returns:
    `(h_last, s)`: `[B, D, M]` and `[B, T, D]`.
  """
  time = x.shape[1]
  squares = _squares(_dense(lambda_, p, step), time)
  weights = _parts(2 * c.conj())  # So that `s` is a real product with states.
  after = _apply_power(squares, time, weights, transpose=True)
  kernel = _kernel(
      lambda_, p, step * b, _complex(weights + after).conj() / 2, step, time
  )
  s = ops.fft_conv(x, kernel.T)
  size = 2 ** ((time.bit_length() + 1) // 2)  # About the root of T.
  count = time // size + 1
  into = _parts(advance(lambda_, p, step, jnp.zeros_like(b), step * b))
  # The last state: in rows of `size` steps, zeros before the first.
  padding = (0, 0), (count * size - time, 0), (0, 0)
  rows = jnp.pad(x, padding).reshape(x.shape[0], count, size, x.shape[2])
  impulses = _orbit(squares, 0, into, size)[..., ::-1]  # [D, N, size]
  ends = exact.einsum('bijd,dnj->bidn', rows, impulses)
  level = size.bit_length() - 1
  last = _combine(squares[level:], ends)
  if h0 is not None:
    h0 = _parts(h0)
    last += _apply_power(squares, time, h0)
    # Row i starts from the state after `i size` steps.
    starts = _orbit(squares, level, jnp.moveaxis(h0, 0, -1), count)
    first = _apply_power(squares, 1, weights, transpose=True)
    reads = _orbit(squares, 0, first, size, transpose=True)
    trace = exact.einsum('dnib,dnj->bijd', starts, reads)
    s += trace.reshape(x.shape[0], count * size, x.shape[2])[:, :time]
  return _complex(last), s


def _kernel(lambda_, p, b, c, step, time):
  """`2 Re(c A^l (1 - step/2 A)^-1 b)` for l < T, by its Fourier transform.

  `A` stands for its discrete form, and `c` has been multiplied by `1 + A^T`.

  At `z = exp(-2 i phi)` the resolvent `(1 - z - step/2 (1 + z) A)^-1`, which is
  wanted between c and b, is `exp(i phi) / 2` times that of `i sin - k A`, with
  `k = step/2 cos`: no factor is infinite, as it would be if all were divided by
  `1 + z`.

  Returns:
    `[D, T]`.
  """
  pairs = (c * b, c * p, p.conj() * b, p.conj() * p)
  rows = jnp.stack(
      [u.real for u in pairs] + [(u * lambda_.conj()).real for u in pairs],
      axis=1,
  )  # [D, 8, M]

  def spectrum(phi):
    sin, k = jnp.sin(phi), 0.5 * step * jnp.cos(phi)  # [F], [D, F]
    # Of each pair, `i sin - k lambda` times the same with its conjugate.
    alpha, beta = (
        u[..., None] * k[:, None] for u in (-lambda_.real, lambda_.imag)
    )
    real = alpha * alpha - (sin - beta) * (sin + beta)
    imag = 2 * alpha * sin
    scale = 1 / (real * real + imag * imag)
    sums = jax.lax.complex(
        exact.einsum('dkm,dmf->kdf', rows, real * scale),
        -exact.einsum('dkm,dmf->kdf', rows, imag * scale),
    )
    # Half the sums over both numbers of each pair.
    cb, cp, pb, pp = 1j * sin * sums[:4] - k * sums[4:]
    return cb - 2 * k * cp * pb / (1 + 2 * k * pp)

  count = (time + 1) // 2  # The others are their conjugates.
  blocks = -(-count // _FREQUENCIES)
  width = -(-count // blocks)
  order = np.minimum(np.arange(blocks * width), count - 1)
  phi = np.pi * (2 * order + 1) / (2 * time)
  found = jax.lax.map(
      jax.checkpoint(spectrum),
      jnp.asarray(phi, step.dtype).reshape(blocks, width),
  )
  found = jnp.moveaxis(found, 0, 1).reshape(len(step), -1)[:, :count]
  # Both phases at once: of the resolvent, and of roots of -1, not of 1.
  turn = lambda n: jnp.asarray(np.exp(1j * np.pi * n / time), found.dtype)
  found *= turn(np.arange(count) + 0.5)
  both = jnp.concatenate(
      [found, found[:, : time // 2].conj()[:, ::-1]], axis=1
  )
  return (jnp.fft.ifft(both) * turn(np.arange(time))).real


def _dense(lambda_, p, step):
  """The real matrices `[D, N, N]` of `advance`."""
  m = lambda_.shape[1]
  basis = np.concatenate([np.eye(m), 1j * np.eye(m)])[:, None]
  images = advance(lambda_, p, step, jnp.asarray(basis, lambda_.dtype))
  return jnp.moveaxis(_parts(images), 0, 2)


def _squares(matrix, time):
  """`A^1, A^2, A^4, ...`, as many as `time` has binary digits."""
  squares = [matrix]
  while len(squares) < time.bit_length():
    last = squares[-1]
    squares.append(exact.einsum('dnm,dmk->dnk', last, last))
  return squares


def _apply_power(squares, exponent, u, *, transpose=False):
  """`A^exponent u`, or that of the transpose, of vectors `[..., D, N]`."""
  matrix = 'dmn' if transpose else 'dnm'
  for i, square in enumerate(squares):
    if exponent >> i & 1:
      u = exact.einsum(f'{matrix},...dm->...dn', square, u)
  return u


def _orbit(squares, level, start, count, *, transpose=False):
  """`A^(j 2^level) u` for j < count: `[D, N, count, ...]` of `[D, N, ...]`."""
  matrix, table = 'dmn' if transpose else 'dnm', start[:, :, None]
  while table.shape[2] < count:
    moved = exact.einsum(f'{matrix},dm...->dn...', squares[level], table)
    table = jnp.concatenate([table, moved], axis=2)
    level += 1
  return table[:, :, :count]


def _combine(squares, ends):
  """`sum_i A^(I-1-i) u_i` of vectors `[B, I, D, N]`, pair by pair."""
  for square in squares:
    if ends.shape[1] == 1:
      break
    if ends.shape[1] % 2:
      ends = jnp.pad(ends, ((0, 0), (1, 0), (0, 0), (0, 0)))
    earlier, later = ends[:, ::2], ends[:, 1::2]
    ends = exact.einsum('dnm,bidm->bidn', square, earlier) + later
  return ends[:, 0]


def _parts(u):
  return jnp.concatenate([u.real, u.imag], axis=-1)


def _complex(u):
  return jax.lax.complex(*jnp.split(u, 2, axis=-1))
