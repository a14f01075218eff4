"""The gates of HGRN against a loop in float64."""

from absl.testing import parameterized
import jax
import jax.numpy as jnp
import numpy as np
from rnnzoo import ops
from rnnzoo.layers import hgrn
from tests import tolerance
from tests.ops import oracle


def _sigmoid(u):
  return 1 / (1 + np.exp(-u))


def _log_decay(log_a, x):
  return np.exp(log_a), x


def _hgrn(bound, forget, v):
  a = bound + (1 - bound) * _sigmoid(forget)
  return a, (1 - a) * v * _sigmoid(v)


_GATES = dict(
    log_decay=(ops.log_decay_gate, _log_decay, [(2, 9, 3)] * 2),
    hgrn=(hgrn.hgrn_gate, _hgrn, [(1, 1, 3), (2, 9, 3), (2, 9, 3)]),
)


class HGRNGatesTest(parameterized.TestCase):

  @parameterized.product(name=tuple(_GATES), flags=(False, True))
  def test_values_and_gradients(self, name, flags):
    gate, equations, shapes = _GATES[name]
    random = np.random.default_rng(0)
    inputs = [random.standard_normal(shape) for shape in shapes]
    inputs[0] = -np.abs(inputs[0]) if name == 'log_decay' else _sigmoid(
        inputs[0]
    )
    h0 = random.standard_normal((2, 3))
    w, w_last = (random.standard_normal(u) for u in ((2, 9, 3), (2, 3)))
    reset = mask = None
    if flags:
      mask = random.random((2, 9)) < 0.7
      reset = (random.random((2, 9)) < 0.3) & mask

    def want_states(inputs, h0):
      a, x = equations(*inputs)
      if flags:
        a, x = np.where(mask[..., None], a, 1), np.where(mask[..., None], x, 0)
      return oracle.linear_scan(a, x, h0, reset)

    def want_loss(inputs, h0):
      last, h = want_states(inputs, h0)
      return (w * h).sum() + (w_last * last).sum()

    def run(*inputs_and_h0):
      *inputs, h0 = inputs_and_h0
      return ops.gated_scan(gate, inputs, h0, reset=reset, mask=mask)

    with jax.enable_x64(True):
      got, pull = jax.vjp(jax.jit(run), *inputs, h0)
      gradients = jax.device_get(pull((jnp.asarray(w_last), jnp.asarray(w))))
    tolerance.assert_close(got, want_states(inputs, h0))
    along = [random.standard_normal(u.shape) for u in (*inputs, h0)]

    def moved(s):
      *inputs_, h0_ = (u + s * d for u, d in zip((*inputs, h0), along))
      return want_loss(inputs_, h0_)

    near, far = (moved(s) - moved(-s) for s in (1e-4, 2e-4))
    slope = sum((g * d).sum() for g, d in zip(gradients, along))
    np.testing.assert_allclose(slope, (8 * near - far) / 12e-4, rtol=1e-9)

  def test_decay_and_input_gate_sum_to_one(self):
    forget = np.linspace(-30, 30, 601, dtype='float32')
    a, x = hgrn.hgrn_gate(None, np.float32(0.1), forget, np.float32(1024))
    np.testing.assert_array_equal(a, 1 - x / 1024)
    want = 0.9 * _sigmoid(-np.float64(forget)) * 1024
    np.testing.assert_allclose(x, want, rtol=1e-6)
