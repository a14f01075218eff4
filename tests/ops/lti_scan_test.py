"""`lti_scan` against a loop over time, in float64."""

from absl.testing import parameterized
import jax
import jax.numpy as jnp
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P
import numpy as np
from rnnzoo import ops
from rnnzoo.ops.lti_scan import by_fft
from tests import collectives
from tests import tolerance

f32, f64 = jnp.float32, jnp.float64


def _operands(batch, time, channels, dtype=f32, size=5, features=4):
  """Returns `a`, `b`, `c`, `u`, `m0`; `a` is far from normal, and stable."""
  random = np.random.default_rng(0)
  normal = lambda *s: random.standard_normal(s).astype(dtype)
  a = np.triu(normal(size, size), 1) + 0.7 * np.eye(size)
  return (
      a.astype(dtype), normal(size), normal(channels, size, features),
      normal(batch, time, channels), normal(batch, channels, size),
  )


def _flags(batch, time):
  random = np.random.default_rng(1)
  return random.random((2, batch, time)) < np.array([0.15, 0.7])[:, None, None]


def _jit(fn):
  return jax.jit(fn, compiler_options=collectives.QUICKLY)


def _loop(a, b, c, u, m0, reset, mask):
  """The definition."""

  def one_step(m, inputs):
    u_t, reset_t, mask_t = inputs
    start, present = (reset_t & mask_t)[:, None, None], mask_t[:, None, None]
    new = jnp.where(start, 0, m) @ a.T + b * u_t[..., None]
    m = jnp.where(present, new, m)
    y = jnp.einsum('bmn,mnh->bh', m, c)
    return m, jnp.where(mask_t[:, None], y, 0)

  by_time = lambda v: jnp.moveaxis(v, 1, 0)
  m, y = jax.lax.scan(one_step, m0, tuple(map(by_time, (u, reset, mask))))
  return m, jnp.moveaxis(y, 0, 1)


def _want(operands, reset=None, mask=None):
  """The loop's results and gradients, in float64."""
  shape = operands[3].shape[:2]
  reset = np.zeros(shape, bool) if reset is None else reset
  mask = np.ones(shape, bool) if mask is None else mask
  with jax.enable_x64(True):
    operands = [np.asarray(v, f64) for v in operands]
    return _jit(
        lambda *v: _pulled(lambda *v: _loop(*v, reset, mask), *v)
    )(*operands)


def _pulled(fn, *operands):
  """Results, and gradients of a loss that weighs all of them."""
  out, vjp = jax.vjp(fn, *operands)
  weigh = lambda v: jnp.cos(jnp.arange(v.size, dtype=v.dtype)).reshape(v.shape)
  return out, vjp(jax.tree.map(weigh, out))


class LTIScanTest(parameterized.TestCase):

  @parameterized.named_parameters(
      ('two_chunks_and_a_bit', (2, 21, 1), f32, None),
      ('double', (2, 21, 1), f64, None),
      ('whole_chunks', (2, 32, 1), f32, None),
      ('one_token', (2, 1, 1), f32, None),
      ('three_tokens', (2, 3, 2), f64, None),
      ('channels', (2, 21, 3), f64, None),
      ('many_channels', (1, 9, 17), f64, None),
      ('reset', (3, 37, 1), f64, 'reset'),
      ('reset_channels', (3, 16, 17), f64, 'reset'),
      ('mask', (3, 37, 1), f64, 'mask'),
      ('both', (3, 37, 2), f64, 'both'),
      ('both_in_one_chunk', (3, 11, 2), f32, 'both'),
      ('empty', (2, 0, 1), f32, None),
      ('empty_flags', (2, 0, 1), f32, 'both'),
      ('no_rows', (0, 4, 1), f32, None),
  )
  def test_matches_loop(self, shape, dtype, flags):
    reset, mask = _flags(*shape[:2])
    flags = {
        None: {}, 'reset': dict(reset=reset), 'mask': dict(mask=mask),
        'both': dict(reset=reset, mask=mask),
    }[flags]
    with jax.enable_x64(dtype == f64):
      operands = _operands(*shape, dtype)
      got = _jit(lambda *v: _pulled(
          lambda *v: ops.lti_scan(*v, **flags), *v
      ))(*operands)
    tolerance.assert_close(got, _want(operands, **flags), dtype)

  @parameterized.parameters(1, 5, 32, 37)
  def test_fft_form_matches_loop(self, time):
    with jax.enable_x64(True):
      operands = _operands(2, time, 1, f64)
      got = _jit(lambda *v: _pulled(by_fft, *v))(*operands)
    tolerance.assert_close(got, _want(operands))

  def test_initial_state_defaults_to_zero(self):
    *operands, _ = _operands(2, 20, 1)
    zero = np.zeros((2, 1, 5), f32)
    want = _jit(ops.lti_scan)(*operands, zero)
    for form in (ops.lti_scan, lambda *v: by_fft(*v, None)):
      tolerance.assert_close(_jit(form)(*operands), want, f32)

  def test_reset_forgets_earlier_sequences(self):
    a, b, c, u, m0 = _operands(2, 37, 1)
    reset = np.arange(37) == np.array([[20], [16]])
    m0[:], u[reset.cumsum(1) == 0] = np.nan, np.nan
    fn = lambda u, m0: ops.lti_scan(a, b, c, u, m0, reset=reset)
    late = reset.cumsum(1) > 0
    (m, y), (du, dm0) = _jit(lambda *v: _pulled_late(fn, *v))(u, m0, late)
    for v in (m, y[late], du, dm0):
      self.assertTrue(np.isfinite(v).all())

  def test_nan_reaches_later_steps_only(self):
    a, b, c, u, m0 = _operands(2, 20, 1)
    clean = _jit(ops.lti_scan)(a, b, c, u, m0)[1]
    u[0, 9] = np.nan
    for form in (ops.lti_scan, by_fft):
      m, y = _jit(form)(a, b, c, u, m0)
      tolerance.assert_close(y[0, :9], clean[0, :9], f32)
      tolerance.assert_close(y[1], clean[1], f32)
      self.assertTrue(np.isnan(y[0, 9:]).all())
      self.assertTrue(np.isnan(m[0]).all())

  def test_dtypes(self):
    a, b, c, u, m0 = _operands(2, 20, 1)
    m, y = _jit(ops.lti_scan)(a, b, c.astype(jnp.bfloat16), u, m0)
    self.assertEqual((m.dtype, y.dtype), (f32, jnp.bfloat16))
    want = _jit(ops.lti_scan)(a, b, c, u, m0)
    tolerance.assert_close((m, y), want, jnp.bfloat16)

  def test_temporaries_do_not_hold_the_states(self):
    time, size = 4096, 64
    shapes = (
        (size, size), (size,), (1, size, 4), (1, time, 1), (1, 1, size),
    )
    operands = [jax.ShapeDtypeStruct(s, f32) for s in shapes]
    loss = lambda *v: (ops.lti_scan(*v)[1] ** 2).sum()
    gradient = jax.jit(jax.grad(loss, argnums=(2, 3)))
    compiled = gradient.lower(*operands).compile()
    bytes_ = compiled.memory_analysis().temp_size_in_bytes
    self.assertLess(bytes_, time * size * 4)
    self.assertNotIn('fft', compiled.as_text())

  @parameterized.parameters(AxisType.Auto, AxisType.Explicit)
  def test_devices_exchange_no_rows(self, kind):
    operands = _operands(8, 20, 1)
    mesh = jax.make_mesh((4, 2), ('data', 'model'), axis_types=(kind,) * 2)
    a, b, c, u, m0 = operands
    rows = jax.NamedSharding(mesh, P('data'))
    u, m0 = jax.device_put((u, m0), rows)
    reset, mask = jax.device_put(tuple(_flags(8, 20)), rows)
    fn = lambda *v: ops.lti_scan(*v[:5], reset=v[5], mask=v[6])
    with jax.set_mesh(mesh):
      run = _jit(fn)
      compiled = run.lower(a, b, c, u, m0, reset, mask).compile()
      got = run(a, b, c, u, m0, reset, mask)
    want = _want(operands, *_flags(8, 20))[0]
    tolerance.assert_close(got, want)
    for moved in ('all-gather', 'all-to-all', 'collective-permute'):
      self.assertNotIn(moved, compiled.as_text())

  @parameterized.named_parameters(
      ('rank', dict(u=(2, 5)), r'`u` must be \[B, T, M\].*\(2, 5\)'),
      ('square', dict(a=(4, 5)), r'`a` must be \[N, N\].*\(4, 5\)'),
      ('b', dict(b=(4,)), r'`b` must be.*\(4,\)'),
      ('c', dict(c=(2, 5, 3)), r'`c` must be.*\(2, 5, 3\)'),
      ('m0', dict(m0=(2, 5)), r'`m0` must be.*\(2, 5\)'),
      ('reset', dict(reset=(2, 5)), r'`reset` must be bool.*float'),
  )
  def test_bad_input_names_the_argument(self, change, message):
    shapes = dict(a=(5, 5), b=(5,), c=(1, 5, 3), u=(2, 5, 1)) | change
    arguments = {name: np.ones(shape, f32) for name, shape in shapes.items()}
    with self.assertRaisesRegex(ValueError, message):
      ops.lti_scan(**arguments)


def _pulled_late(fn, u, m0, late):
  """Results, and gradients of a loss of the late outputs and the last state."""
  (m, y), vjp = jax.vjp(fn, u, m0)
  cotangent = jnp.broadcast_to(late[..., None], y.shape).astype(y.dtype)
  return (m, y), vjp((jnp.ones_like(m), cotangent))
