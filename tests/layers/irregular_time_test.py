"""Steps of uneven length: `dt` of the layers that take it."""

from absl.testing import parameterized
from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np
from rnnzoo import layers
from rnnzoo import testing

_TIMED = dict(
    lru=lambda **k: layers.LRU(4, 5, **k, rngs=nnx.Rngs(0)),
    lru_cartesian=lambda **k: layers.LRU(
        4, 5, parametrization='cartesian', **k, rngs=nnx.Rngs(0)
    ),
    s4d=lambda **k: layers.S4D(4, 6, **k, rngs=nnx.Rngs(0)),
    s4d_bilinear=lambda **k: layers.S4D(
        4, 6, init='real', discretization='bilinear', **k, rngs=nnx.Rngs(0)
    ),
    s5=lambda **k: layers.S5(4, 6, **k, rngs=nnx.Rngs(0)),
    s5_bidirectional=lambda **k: layers.S5(
        4, 6, bidirectional=True, **k, rngs=nnx.Rngs(0)
    ),
)
_BATCH, _TIME = 2, 6


def _draw(seed, *shape):
  return np.random.default_rng(seed).standard_normal(shape)


def _lengths():
  return np.random.default_rng(2).uniform(0.1, 3, (_BATCH, _TIME))


@jax.jit
def _call(layer, x, carry=None, flags=None):
  graph, state = layer
  return nnx.merge(graph, state)(x, carry, **(flags or {}))


class IrregularTimeTest(parameterized.TestCase):

  @parameterized.parameters(*_TIMED)
  def test_no_dt_equals_a_dt_of_one(self, name):
    x = _draw(0, _BATCH, _TIME, 4)
    with jax.enable_x64(True):
      layer = nnx.split(_TIMED[name]())
      dt = np.ones((_BATCH, _TIME))
      got = _call(layer, x, flags=dict(dt=dt))
      testing.assert_close(got, _call(layer, x), tolerance=1e-6)

  @parameterized.parameters('lru', 's4d', 's4d_bilinear', 's5')
  def test_a_call_equals_a_scan_of_step(self, name):
    x, dt = _draw(0, _BATCH, _TIME, 4), _lengths()
    reset = np.random.default_rng(3).random((_BATCH, _TIME)) < 0.3
    mask = np.random.default_rng(4).random((_BATCH, _TIME)) < 0.7
    dt[~mask] = np.nan
    flags = dict(dt=dt, reset=reset, mask=mask)
    with jax.enable_x64(True):
      layer = _TIMED[name](param_dtype=jnp.float64)
      graph, state = nnx.split(layer)
      carry = layer.initialize_carry(_BATCH, jnp.float64) + 0.3

      def whole(dt, state):
        carry_, y = nnx.merge(graph, state)(x, carry, **{**flags, 'dt': dt})
        return (y**2).sum() + jnp.abs(carry_).sum(), (carry_, y)

      def steps(dt, state):
        layer, h, ys = nnx.merge(graph, state), carry, []
        for t in range(_TIME):
          now = {k: u[:, t] for k, u in {**flags, 'dt': dt}.items()}
          h, y = layer.step(h, x[:, t], **now)
          ys.append(y)
        y = jnp.stack(ys, axis=1)
        return (y**2).sum() + jnp.abs(h).sum(), (h, y)

      run = lambda f: jax.jit(jax.grad(f, (0, 1), has_aux=True))(dt, state)
      (d_dt, d_state), got = run(whole)
      (want_dt, want_state), want = run(steps)
      testing.assert_close(got, want, tolerance=1e-10)
      testing.assert_close(d_state, want_state, tolerance=1e-10)
      testing.assert_close(d_dt, want_dt, tolerance=1e-10)
      self.assertTrue((np.asarray(d_dt)[~mask] == 0).all())
      used = mask & ~reset  # After a reset LRU has nothing to decay.
      self.assertGreater(np.abs(np.asarray(d_dt)[used]).min(), 0)

  @parameterized.named_parameters(
      ('lru', 'lru', 0), ('lru_cartesian', 'lru_cartesian', 0),
      ('s4d', 's4d', 1), ('s5', 's5', 1)
  )
  def test_a_step_of_two_equals_two_steps(self, name, held):
    # A hold: of zero before the token (LRU), or of the token (ZOH).
    x = _draw(0, 1, 3, 4)
    before = held * x[:, 1:2]
    longer = np.concatenate([x[:, :1], before, x[:, 1:]], axis=1)
    dt = np.array([[1.0, 2.0, 1.0]])
    with jax.enable_x64(True):
      layer = nnx.split(_TIMED[name](param_dtype=jnp.float64))
      got, y = _call(layer, x, flags=dict(dt=dt))
      want, z = _call(layer, longer)
      testing.assert_close((got, y), (want, z[:, [0, 2, 3]]), tolerance=1e-12)

  @parameterized.parameters('s4d', 's4d_bilinear', 's5')
  def test_a_dt_of_zero_keeps_the_state(self, name):
    x, dt = _draw(0, _BATCH, _TIME, 4), np.zeros((_BATCH, _TIME))
    with jax.enable_x64(True):
      layer = _TIMED[name]()
      carry = layer.initialize_carry(_BATCH, jnp.float64) + 0.3
      got, _ = _call(nnx.split(layer), x, carry, dict(dt=dt))
      testing.assert_close(got, carry, tolerance=1e-12)

  @parameterized.parameters('s4d', 's4d_bilinear', 's5', 's5_bidirectional')
  def test_step_rescale_equals_a_constant_dt(self, name):
    x = _draw(0, _BATCH, _TIME, 4)
    with jax.enable_x64(True):
      make = _TIMED[name]
      dt = np.full((_BATCH, _TIME), 2.5)
      got = _call(nnx.split(make(step_rescale=2.5)), x)
      want = _call(nnx.split(make()), x, flags=dict(dt=dt))
      testing.assert_close(got, want, tolerance=1e-6)

  @parameterized.parameters(*_TIMED)
  def test_an_invalid_dt_raises(self, name):
    layer, x = _TIMED[name](), np.ones((2, 3, 4), np.float32)
    for dt in (np.ones((2, 4), np.float32), np.ones((2, 3), int)):
      with self.assertRaisesRegex(ValueError, '`dt` must be floating'):
        layer(x, dt=dt)

  @parameterized.parameters('gru', 'min_gru')
  def test_other_layers_have_no_dt(self, name):
    layer = testing.LAYERS[name](nnx.Rngs(0))
    x = np.ones((2, 3, layer.in_features), np.float32)
    with self.assertRaisesRegex(TypeError, 'dt'):
      layer(x, dt=np.ones((2, 3), np.float32))
