"""Linear recurrences with one dense matrix for all steps, and their readout."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from rnnzoo import mesh
from rnnzoo.ops import checking
from rnnzoo.ops import exact
from rnnzoo.ops import split_time
from rnnzoo.ops.fft_conv import fft_conv

# The layouts of `a`, `b`, `c`, `u`, `m0`, `reset` and `mask`, and those of the
# results (see `rnnzoo/mesh.py`).
_LAYOUTS = ('kk', 'k', 'kkk', 'btk', 'bkk', 'bt', 'bt')
_OUT_LAYOUTS = ('bkk', 'btk')


def lti_scan(
    a: jax.Array | np.ndarray,
    b: jax.Array | np.ndarray,
    c: jax.Array,
    u: jax.Array,
    m0: jax.Array | None = None,
    *,
    reset: jax.Array | None = None,
    mask: jax.Array | None = None,
) -> tuple[jax.Array, jax.Array]:
  """Computes `m_t = a m_{t-1} + b u_t` in every channel, and `sum c^T m_t`.

  The states, `M N` numbers per token, are never stored. Time is cut into chunks
  of a few tokens. The effect of the entering state on the outputs of a chunk is
  one product with powers of `a`. It takes `M N H` multiplications per token, as
  many as the readout of known states. Only the last state of each chunk is
  computed one after the other. Powers are computed by squaring, so the n-th
  power has an error of `n` times the precision, as if `a` itself were rounded.

  On other platforms than CPU, a single channel (`M = 1`) without flags is one
  convolution with the impulse response by FFT instead (`fft_conv`).

  Under `jax.set_mesh`, every device computes its own rows and segment of time.
  Devices along time exchange the state that their tokens leave.

  >>> import jax.numpy as jnp
  >>> a, b = jnp.array([[.5, 0.], [1., 0.]]), jnp.array([1., 0.])
  >>> c = jnp.eye(2)[None]                            # [M, N, H]
  >>> m, y = lti_scan(a, b, c, jnp.ones((1, 3, 1)))   # u: [B, T, M]
  >>> y[0]
  Array([[1.  , 0.  ],
         [1.5 , 1.  ],
         [1.75, 1.5 ]], dtype=float32)

  Args:
    a: `[N, N]`.
    b: `[N]`.
    c: Weights of the readout `[M, N, H]`.
    u: Inputs `[B, T, M]`, T >= 0.
    m0: State before the first step `[B, M, N]`; zeros if `None`.
    reset: Booleans `[B, T]`, `True` where a new sequence starts: zero replaces
      the state that enters, and not even a NaN before it reaches a later step.
    mask: Booleans `[B, T]`, `False` where a step, and its reset, is absent: the
      state does not change, and the output is 0.

  Returns:
    `(m_last, y)`: the state after the last step `[B, M, N]` in
    `promote_types(float32, ...)` of `a`, `b` and `u`, which are real; and the
    outputs `[B, T, H]` in the dtype of `c`, which is also that of the products
    of the readout.

  Raises:
    ValueError: If shapes or dtypes disagree.
  """
  a, b, c, u, m0 = _checked(a, b, c, u, m0)
  reset, mask = checking.flags(reset, mask, u.shape)
  # Devices sum the gradients of the readout, in float32 at least.
  wide = c.astype(jnp.promote_types(jnp.float32, c.dtype))
  return mesh.run_per_device(
      functools.partial(_run, dtype=c.dtype),
      u, (a, b, wide, u, m0, reset, mask), _LAYOUTS, _OUT_LAYOUTS,
  )


def _run(a, b, c, u, m0, reset, mask, *, segments, dtype):
  c = c.astype(dtype)
  if segments is not None:
    m0 = _entering(segments, a, b, c, u, m0, reset, mask)
  m, y = _segment(a, b, c, u, m0, reset, mask)
  return m if segments is None else segments.from_last(m), y


def _entering(segments, a, b, c, u, m0, reset, mask):
  """Returns the state `[B, M, N]` that enters the segment of this device."""
  left, _ = _segment(a, b, c, u, None, reset, mask)
  if m0 is None:
    m0 = jnp.zeros_like(left)
  time = u.shape[1]
  powers = [a]  # The exponents are 1, 2, 4 and so on.
  for _ in range((segments.size * time).bit_length() - 1):
    powers.append(exact.einsum('ij,jk->ik', powers[-1], powers[-1]))
  advance = lambda i, m: exact.einsum('bmn,on->bmo', m, powers[i])
  return split_time.entering_state_by_powers(
      segments, advance, left, time, reset, mask, m0
  )


def _segment(a, b, c, u, m0, reset, mask):
  """Runs the segment of one device in the form for its platform."""
  if not u.shape[0] * u.shape[1]:
    if m0 is None:
      m0 = jnp.zeros_like(u, shape=(u.shape[0],) + c.shape[:2])
    return m0, jnp.zeros_like(u, c.dtype, shape=u.shape[:2] + c.shape[2:])
  # They are constants in most models, and XLA would compute their powers at
  # compile time, slowly.
  a, b = jax.lax.optimization_barrier((a, b))
  if reset is not None or mask is not None or u.shape[2] != 1:
    return by_chunks(a, b, c, u, m0, reset, mask)
  return jax.lax.platform_dependent(
      a, b, c, u, m0, cpu=by_chunks, default=by_fft
  )


def by_chunks(a, b, c, u, m0, reset=None, mask=None):
  """The form for any platform; see `lti_scan`."""
  if mask is None:
    return _chunks(a, b, c, u, m0, reset, u.shape[1])
  # The steps that are present move to the front, keeping their order.
  order = jnp.argsort(~mask, axis=1, stable=True)
  u = jnp.where(mask[..., None], u, 0)
  u = jnp.take_along_axis(u, order[..., None], 1)
  if reset is not None:
    reset = jnp.take_along_axis(reset & mask, order, 1)
  m, y = _chunks(a, b, c, u, m0, reset, mask.sum(1))
  y = jnp.take_along_axis(y, jnp.argsort(order, axis=1)[..., None], 1)
  return m, jnp.where(mask[..., None], y, 0)


def _chunks(a, b, c, u, m0, reset, count):
  """Returns the state after `count` (int or `[B]`) steps, and all outputs."""
  (batch, time, channels), features = u.shape, c.shape[2]
  length = min(16 if channels <= 16 else 4, 1 << (time - 1).bit_length())
  padding = -time % length
  chunks = (time + padding) // length
  pad = lambda v: jnp.pad(v, ((0, 0), (0, padding)) + ((0, 0),) * (v.ndim - 2))
  split = lambda v: v.reshape((batch, chunks, length) + v.shape[2:])
  by_chunk = lambda v: jnp.moveaxis(v, 1, 0)
  u, reset = jax.tree.map(pad, (u, reset))
  # The inputs that each token sees within its chunk, and whether it sees the
  # state that enters.
  recent, entering = map(split, _recent(u, reset, length))
  responses, free, power = _powers(a, b, c, length)

  update = exact.einsum('bcsm,sn->bcmn', recent[:, :, -1], responses)
  stays = entering[:, :, -1, None, None]

  def one_chunk(m, inputs):
    update, stays = inputs
    new = exact.einsum('bmn,on->bmo', jnp.where(stays, m, 0), power) + update
    return new, m

  if m0 is None:
    m0 = jnp.zeros_like(update[:, 0])
  after, before = jax.lax.scan(
      one_chunk, m0, (by_chunk(update), by_chunk(stays))
  )

  # As plain matrices, because XLA:CPU is slow at products over several axes.
  times = lambda v, w: jnp.matmul(
      v.astype(c.dtype), w.astype(c.dtype), preferred_element_type=u.dtype
  ).reshape(batch, chunks, length, features)
  weights = exact.einsum('sn,mnh->smh', responses, c.astype(u.dtype))
  from_inputs = times(
      recent.reshape(batch * chunks * length, length * channels),
      weights.reshape(length * channels, features),
  )
  from_state = times(
      before.transpose(1, 0, 3, 2).reshape(
          batch * chunks, before.shape[2] * before.shape[3]
      ),
      free.reshape(-1, length * features),
  )
  y = from_inputs + jnp.where(entering[..., None], from_state, 0)
  y = y.reshape(batch, chunks * length, features)[:, :time].astype(c.dtype)

  # The last steps run one by one, from the state before their chunk.
  u, reset = jax.tree.map(split, (u, reset))
  if not isinstance(count, int):
    rows, chunk = jnp.arange(batch), count // length
    m = jnp.concatenate([before, after[None]])[chunk, rows]
    chunk = jnp.minimum(chunk, chunks - 1)
    rest = jax.tree.map(lambda v: v[rows, chunk], (u, reset))
  elif padding:
    m, rest = before[-1], jax.tree.map(lambda v: v[:, -1], (u, reset))
  else:
    return after, y
  return _few_steps(a, b, m, *rest, count % length), y


def by_fft(a, b, c, u, m0):
  """The form for one channel without flags, where FFTs are fast."""
  time = u.shape[1]
  # An FFT would spread a NaN over all steps. Here it reaches later steps only.
  finite = jnp.isfinite(u)
  is_nan = jnp.cumsum(~finite, axis=1) > 0
  u = jnp.where(finite, u, 0)
  responses = _doubled(a, b, time)
  weights = exact.einsum('tn,nh->th', responses, c[0].astype(u.dtype))
  y = fft_conv(u, weights)
  m = exact.einsum('btm,tn->bmn', u, responses[::-1])
  if m0 is not None:
    states = _doubled(a, exact.einsum('bmn,on->bmo', m0, a), time)
    y = y + exact.einsum('tbmn,mnh->bth', states, c.astype(u.dtype))
    m = m + states[-1]
  m = jnp.where(is_nan[:, -1:], jnp.nan, m)
  return m, jnp.where(is_nan, jnp.nan, y).astype(c.dtype)


def _recent(u, reset, length):
  """Returns the inputs in the chunk and sequence of a token, newest first.

  Args:
    u: `[B, T, M]`.
    reset: `[B, T]` or `None`.
    length: Tokens in a chunk, which divides T.

  Returns:
    `[B, T, length, M]`, 0 where there is no such input; and `[B, T]`, whether
    the state that enters the chunk is of the same sequence.
  """
  time = u.shape[1]
  place = jnp.arange(time) % length
  sequence = jnp.zeros((1, time), jnp.int32)
  entering = jnp.ones_like(u, bool, shape=u.shape[:2])
  if reset is not None:
    sequence = jnp.cumsum(reset, axis=1, dtype=jnp.int32)
    # The number of the sequence of the state that enters each chunk.
    first = sequence[:, ::length] - reset[:, ::length]
    entering = sequence == jnp.repeat(first, length, axis=1)
  back = lambda v, s: jnp.pad(
      v, ((0, 0), (s, 0)) + ((0, 0),) * (v.ndim - 2)
  )[:, :time]
  same = [
      (place >= s) & (back(sequence, s) == sequence) for s in range(length)
  ]
  return jnp.stack(
      [jnp.where(same[s][..., None], back(u, s), 0) for s in range(length)],
      axis=2,
  ), entering


def _powers(a, b, c, length):
  """Returns powers of `a` in a chunk; its `length` is a power of two.

  Returns:
    The states `a^s b` `[length, N]`, the readout of a state 1 to `length` steps
    later `[N, M, length, H]`, and `a^length`.
  """
  free = exact.einsum('jn,mjh->nmh', a, c.astype(a.dtype))[:, :, None]
  responses, power = b[None], a
  while len(responses) < length:
    later = exact.einsum('sn,on->so', responses, power)
    responses = jnp.concatenate([responses, later])
    later = exact.einsum('jn,ji->ni', power, free.reshape(len(a), -1))
    free = jnp.concatenate([free, later.reshape(free.shape)], axis=2)
    power = exact.einsum('ij,jk->ik', power, power)
  return responses, free, power


def _few_steps(a, b, m, u, reset, steps):
  """Returns `m` after the first `steps`, a number or `[B]`, of `u`."""
  if reset is None:
    reset = jnp.zeros_like(u, bool, shape=u.shape[:2])
  present = jnp.arange(u.shape[1]) < jnp.reshape(steps, (-1, 1))
  present = present | jnp.zeros_like(reset)

  def one_step(m, inputs):
    u_t, reset_t, present_t = (
        v.reshape(v.shape[:1] + (-1, 1)) for v in inputs
    )
    new = exact.einsum('bmn,on->bmo', jnp.where(reset_t, 0, m), a) + b * u_t
    return jnp.where(present_t, new, m), None

  by_time = lambda v: jnp.moveaxis(v, 1, 0)
  return jax.lax.scan(
      one_step, m, (by_time(u), by_time(reset), by_time(present))
  )[0]


def _doubled(a, m, time):
  """Returns the states `m`, `a m`, ... of `time` steps: `[T, ..., N]`."""
  states, power = m[None], a
  while len(states) < time:
    later = exact.einsum('...n,on->...o', states, power)
    states = jnp.concatenate([states, later])[:time]
    power = exact.einsum('ij,jk->ik', power, power)
  return states


def _checked(a, b, c, u, m0):
  """Returns the operands as arrays in their dtypes, or raises."""
  a, b, c, u = (jnp.asarray(v) for v in (a, b, c, u))
  checking.has_axes('u', u, 'BTM')
  if a.ndim != 2 or a.shape[0] != a.shape[1]:
    raise ValueError(f'`a` must be [N, N], got shape {a.shape}.')
  size, channels = len(a), u.shape[2]
  checking.has_shape('b', b, 'N', (size,))
  if c.ndim != 3 or c.shape[:2] != (channels, size):
    raise ValueError(
        f'`c` must be [M, N, H] with M, N = {channels}, {size}, got {c.shape}.'
    )
  checking.are_floating(a=a, b=b, c=c, u=u)
  dtype = exact.accumulation_dtype(a, b, u)
  if m0 is not None:
    checking.has_shape('m0', m0, 'BMN', (u.shape[0], channels, size))
    m0 = jnp.asarray(m0).astype(dtype)
  return a.astype(dtype), b.astype(dtype), c, u.astype(dtype), m0
