"""`fft_conv` against a sum over all earlier tokens, in float64."""

from absl.testing import parameterized
import jax
import jax.numpy as jnp
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P
import numpy as np
from rnnzoo import ops
from rnnzoo.ops.fft_conv import fft_length
from tests import collectives
from tests import tolerance

f32, f64, bf16 = jnp.float32, jnp.float64, jnp.bfloat16


def _operands(shape, dtype=f32, channels=None):
  """Returns `x`, `kernel` and a cotangent of `y`."""
  random = np.random.default_rng(0)
  batch, time, features = shape
  normal = lambda *s: random.standard_normal(s).astype(dtype)
  features = channels or features
  return normal(*shape), normal(time, features), normal(batch, time, features)


def _oracle(x, kernel, weights):
  """`y`, and the gradients of `x` and `kernel`."""
  x, kernel, weights = (np.asarray(u, f64) for u in (x, kernel, weights))
  y, dx, dk = np.zeros(weights.shape), np.zeros_like(x), np.zeros_like(kernel)
  for t in range(x.shape[1]):
    for s in range(t + 1):
      y[:, t] += kernel[s] * x[:, t - s]
      dx_t = kernel[s] * weights[:, t]
      dx[:, t - s] += dx_t if x.shape[2] > 1 else dx_t.sum(1, keepdims=True)
      dk[s] += (x[:, t - s] * weights[:, t]).sum(0)
  return y, (dx, dk)


def _run(x, kernel, weights):
  y, vjp = jax.vjp(ops.fft_conv, x, kernel)
  return y, vjp(weights)


class FFTConvTest(parameterized.TestCase):

  @parameterized.named_parameters(
      ('odd', (2, 7, 3), f32, None),
      ('double', (2, 33, 3), f64, None),
      ('one_token', (2, 1, 3), f32, None),
      ('one_input_for_all', (2, 9, 1), f32, 4),
      ('bfloat16', (2, 9, 3), bf16, None),
      ('empty', (2, 0, 3), f32, None),
      ('no_rows', (0, 4, 3), f32, None),
      ('empty_for_all', (2, 0, 1), f32, 4),
  )
  def test_matches_sum(self, shape, dtype, channels):
    with jax.enable_x64(dtype == f64):
      operands = _operands(shape, dtype, channels)
      got = jax.jit(_run)(*operands)
    want = _oracle(*operands)
    tolerance.assert_close(got, want)
    self.assertEqual(got[0].dtype, dtype)

  def test_convolution_is_causal(self):
    # The last weight meets the first input at the last output, and no other.
    time = 6
    x, kernel = np.zeros((1, time, 1), f32), np.zeros((time, 1), f32)
    x[0, :, 0], kernel[-1] = 1, 1
    y = ops.fft_conv(x, kernel)
    np.testing.assert_allclose(y[0, :, 0], [0, 0, 0, 0, 0, 1], atol=1e-6)

  def test_lengths_have_small_prime_factors(self):
    for time in (*range(1, 300), 4096, 5000):
      length = fft_length(time)
      self.assertBetween(length, 2 * time, max(2.5 * time, 2 * time + 1))
      for prime in (2, 3, 5):
        while length % prime == 0:
          length //= prime
      self.assertEqual(length, 1)

  @parameterized.parameters(AxisType.Auto, AxisType.Explicit)
  def test_devices_exchange_gradients_of_kernels_only(self, kind):
    operands = _operands((8, 9, 6))
    mesh = jax.make_mesh(
        (2, 2, 2), ('data', 'fsdp', 'model'), axis_types=(kind,) * 3
    )
    spec = P(('data', 'fsdp'), None, 'model')
    x, kernel, weights = operands
    x, weights = jax.device_put((x, weights), jax.NamedSharding(mesh, spec))
    with jax.set_mesh(mesh):
      run = jax.jit(_run, compiler_options=collectives.QUICKLY)
      text = run.lower(x, kernel, weights).compile().as_text()
      got = run(x, kernel, weights)
    tolerance.assert_close(got, _oracle(*operands))
    for moved in ('all-gather', 'all-to-all', 'collective-permute'):
      self.assertNotIn(moved, text)

  @parameterized.parameters(AxisType.Auto, AxisType.Explicit)
  def test_split_time_is_gathered(self, kind):
    operands = _operands((2, 16, 4))
    mesh = jax.make_mesh((8,), ('sequence',), axis_types=(kind,))
    x, kernel, weights = operands
    x = jax.device_put(x, jax.NamedSharding(mesh, P(None, 'sequence')))
    with jax.set_mesh(mesh):
      got = jax.jit(_run)(x, kernel, weights)
    tolerance.assert_close(got, _oracle(*operands))

  def test_inside_shard_map(self):
    operands = _operands((8, 9, 6))
    mesh = jax.make_mesh((8,), ('data',), axis_types=(AxisType.Auto,))
    rows = P('data')
    with jax.set_mesh(mesh):
      got = jax.jit(jax.shard_map(
          ops.fft_conv, in_specs=(rows, P()), out_specs=rows
      ))(*operands[:2])
    tolerance.assert_close(got, _oracle(*operands)[0])

  @parameterized.named_parameters(
      ('rank', (5, 3), (5, 3), f32, r'`x` must be \[B, T, D\].*5, 3'),
      ('length', (2, 5, 3), (4, 3), f32, r'`kernel` must be.*\(4, 3\)'),
      ('size', (2, 5, 3), (5, 2), f32, r'`kernel` must be.*\(5, 2\)'),
      ('complex', (2, 5, 3), (5, 3), jnp.complex64, '`x` must be floating'),
  )
  def test_bad_input_names_the_argument(self, x, kernel, dtype, message):
    with self.assertRaisesRegex(ValueError, message):
      ops.fft_conv(np.ones(x, dtype), np.ones(kernel, dtype))
