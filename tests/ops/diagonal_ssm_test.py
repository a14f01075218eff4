"""Diagonal systems as convolution and as scan, against a loop in float64."""

from absl.testing import parameterized
import jax
import jax.numpy as jnp
import numpy as np
from rnnzoo.ops import diagonal_ssm
from tests import tolerance


def _operands(batch, time, features, n, is_complex):
  random = np.random.default_rng(0)

  def normal(*shape):
    u = random.standard_normal(shape)
    return u + 1j * random.standard_normal(shape) if is_complex else u

  radius = random.uniform(0.5, 1, (features, n))
  turn = random.uniform(-3, 3, (features, n)) if is_complex else 0
  a = radius * np.exp(1j * turn) if is_complex else radius
  x = random.standard_normal((batch, time, features))
  return a, normal(features, n), normal(features, n), x, normal(
      batch, features, n
  )


def _oracle(a, b, c, x, h, dt=None, reset=None, mask=None):
  ys = []
  for t in range(x.shape[1]):
    entering = h
    if reset is not None:
      entering = np.where(reset[:, t, None, None], 0, h)
    power = 1 if dt is None else dt[:, t, None, None]
    new = a**power * entering + b * x[:, t, :, None]
    y = (c * new).sum(-1).real
    if mask is not None:
      new = np.where(mask[:, t, None, None], new, h)
    h = new
    ys.append(y)
  return h, np.stack(ys, axis=1)


class DiagonalSSMTest(parameterized.TestCase):

  @parameterized.product(time=(1, 2, 3, 4, 16, 37), is_complex=(True, False))
  def test_convolution_is_the_recurrence(self, time, is_complex):
    operands = _operands(2, time, 3, 4, is_complex)
    with jax.enable_x64(True):
      got = jax.jit(diagonal_ssm.diagonal_convolution)(*operands)
      from_zero = jax.jit(diagonal_ssm.diagonal_convolution)(*operands[:4])
    tolerance.assert_close(got, _oracle(*operands))
    zero = np.zeros_like(operands[4])
    tolerance.assert_close(from_zero, _oracle(*operands[:4], zero))

  @parameterized.product(chunk=(5, 7, 21, 64), is_complex=(True, False))
  def test_chunks_of_any_length(self, chunk, is_complex):
    a, b, c, x, h = _operands(2, 21, 3, 4, is_complex)
    random = np.random.default_rng(1)
    dt = random.uniform(0, 2, (2, 21))
    reset, mask = random.random((2, 21)) < 0.2, random.random((2, 21)) < 0.7

    def system(parameters, dt):
      a, b = parameters
      if dt is None:
        return a, b
      return a ** dt[..., None, None], jnp.broadcast_to(b, dt.shape + b.shape)

    for flags in ({}, dict(dt=dt), dict(reset=reset & mask, mask=mask)):
      with jax.enable_x64(True):
        run = jax.jit(lambda x, h, flags: diagonal_ssm.diagonal_scan(
            system, (a, b), c, x, h, **flags, chunk=chunk
        ))
        got = run(x, h, flags)
      last, y = _oracle(a, b, c, x, h, **flags)
      present = flags.get('mask', np.ones((2, 21), bool))
      tolerance.assert_close((got[0], got[1][present]), (last, y[present]))

  def test_convolution_and_scan_have_equal_gradients(self):
    operands = _operands(2, 21, 3, 4, True)
    weights = _operands(2, 21, 3, 4, True)[3:]

    def scan(a, b, c, x, h):
      return diagonal_ssm.diagonal_scan(
          lambda system, dt: system, (a, b), c, x, h, chunk=8
      )

    def gradients(run):
      def loss(*operands):
        last, y = run(*operands)
        return (y * weights[0]).sum() + (last * weights[1]).sum().real

      return jax.jit(jax.grad(loss, range(5)))(*operands)

    with jax.enable_x64(True):
      got, want = map(gradients, (diagonal_ssm.diagonal_convolution, scan))
    tolerance.assert_close(got, jax.tree.map(np.asarray, want))

  def test_temporaries_do_not_hold_all_states(self):
    time, features, n = 2048, 8, 16
    a, b, c, x, h = _operands(1, time, features, n, True)
    reset = np.zeros((1, time), bool)

    def loss(a, x):
      _, y = diagonal_ssm.diagonal_scan(
          lambda system, dt: system, (a, b), c, x, h, reset=reset
      )
      return (y**2).sum()

    compiled = jax.jit(jax.grad(loss, (0, 1))).lower(
        jnp.asarray(a, jnp.complex64), jnp.asarray(x, jnp.float32)
    ).compile()
    temporaries = compiled.memory_analysis().temp_size_in_bytes
    states = time * features * n * 8
    self.assertLess(temporaries, 0.75 * states)

  def test_powers(self):
    a = np.array([0.5, -1.0, 0.0])
    got = diagonal_ssm.powers(jnp.asarray(a), 5)
    np.testing.assert_allclose(got, a[:, None] ** np.arange(5))
