"""Gradients that never go back through time are those of back-propagation."""

from absl.testing import parameterized
from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np
from rnnzoo import layers
from rnnzoo import online
from rnnzoo import testing
from rnnzoo.layers import base
from rnnzoo.layers import recurrences

_LAYERS = dict(
    cg_lru=lambda **k: layers.CGLRU(4, **k),
    hgrn=lambda **k: layers.HGRN(4, **k),
    lru=lambda **k: layers.LRU(4, 5, **k),
    min_gru=lambda **k: layers.MinGRU(
        4, expansion_factor=1.5, learn_initial_state=True, **k
    ),
    min_lstm=lambda **k: layers.MinLSTM(4, learn_initial_state=True, **k),
    rg_lru=lambda **k: layers.RGLRU(4, num_heads=2, **k),
    s5=lambda **k: layers.S5(4, 6, **k),
)


def square(y, target):
  return ((y - target) ** 2).sum()


def around(*inner, dtype=jnp.float64):
  """A model of some layers, with stateless parts before and after."""
  options = dict(param_dtype=dtype, rngs=nnx.Rngs(0))
  return online.Stack(
      nnx.Linear(3, 4, **options),
      jnp.tanh,
      *inner,
      jnp.tanh,
      nnx.Linear(inner[-1].out_features, 2, **options),
  )


def stream(time, batch=2):
  """Inputs, targets and the two flags."""
  rng = np.random.default_rng(0)
  inputs = rng.standard_normal((batch, time, 3))
  mask = rng.random((batch, time)) < 0.9
  return dict(
      inputs=np.where(mask[..., None], inputs, np.nan),
      targets=rng.standard_normal((batch, time, 2)),
      reset=rng.random((batch, time)) < 0.02,
      mask=mask,
  )


class ExactTest(parameterized.TestCase):

  @parameterized.named_parameters(_LAYERS.items())
  def test_one_layer_is_exact_over_200_steps(self, make):
    with jax.enable_x64(True):
      layer = make(param_dtype=jnp.float64, rngs=nnx.Rngs(1))
      learner = online.RTRL(around(layer), square, exact_before=True)
      errors = online.gradient_error(learner, learner.params, **stream(200))
      self.assertSameElements(errors, ['', 'parts.0', 'parts.2', 'parts.4'])
      for error, _ in errors.values():
        self.assertLess(error, 1e-10)

  def test_without_exact_before_parameters_before_the_layer_are_not_exact(self):
    with jax.enable_x64(True):
      layer = _LAYERS['lru'](param_dtype=jnp.float64, rngs=nnx.Rngs(1))
      learner = online.RTRL(around(layer), square)
      errors = online.gradient_error(learner, learner.params, **stream(200))
      self.assertLess(errors['parts.2'][0], 1e-10)
      self.assertLess(errors['parts.4'][0], 1e-10)
      self.assertBetween(errors['parts.0'][0], 1e-2, 1)
      self.assertGreater(errors['parts.0'][1], 0.5)

  def test_in_a_stack_only_the_last_layer_is_exact(self):
    with jax.enable_x64(True):
      options = dict(param_dtype=jnp.float64, rngs=nnx.Rngs(1))
      first, last = layers.LRU(4, **options), layers.MinGRU(4, **options)
      norm = nnx.RMSNorm(4, **options)
      branch = online.Stack(norm, last, residual=True)
      branch.out_features = 4
      learner = online.RTRL(around(first, branch), square)
      errors = online.gradient_error(learner, learner.params, **stream(100))
      self.assertLess(errors['parts.3.parts.1'][0], 1e-10)
      self.assertBetween(errors['parts.2'][0], 1e-3, 1)
      self.assertGreater(errors['parts.2'][1], 0.5)

  def test_state_is_as_large_as_the_parameters_of_the_gates(self):
    layer = layers.MinGRU(4, expansion_factor=2, rngs=nnx.Rngs(0))
    learner = online.RTRL(around(layer, dtype=jnp.float32), square)
    state = learner.initialize(learner.params, batch_size=3)
    sizes = sum(u.size for u in jax.tree.leaves(state.traces))
    self.assertEqual(sizes, 3 * (4 * 2 * 8 + 2 * 8))
    jax.eval_shape(learner.step, learner.params, state, jnp.ones((3, 3)), 0)

  def test_a_nan_before_a_reset_does_not_reach_later_gradients(self):
    layer = layers.LRU(4, rngs=nnx.Rngs(0))
    learner = online.RTRL(
        around(layer, dtype=jnp.float32), square, exact_before=True
    )
    step = jax.jit(learner.step)
    state = fresh = learner.initialize(learner.params, 2)
    nothing, start = np.zeros(2, bool), np.ones(2, bool)
    x, target = jnp.ones((2, 3)), jnp.ones((2, 2))
    state, _, _ = step(learner.params, state, x * np.nan, target, reset=nothing)
    self.assertTrue(np.isnan(jax.tree.leaves(state.traces)[0]).any())
    for _ in range(2):
      state, _, gradient = step(learner.params, state, x, target, reset=start)
      fresh, _, want = step(learner.params, fresh, x, target, reset=nothing)
      testing.assert_close(gradient, want)
      start = nothing

  def test_integer_tokens_and_bfloat16(self):
    rngs = nnx.Rngs(0)
    model = online.Stack(
        nnx.Embed(7, 4, rngs=rngs),
        layers.MinGRU(
            4, dtype=jnp.bfloat16, param_dtype=jnp.bfloat16, rngs=rngs
        ),
    )
    learner = online.RTRL(model, lambda y, target: (y * target).sum())
    tokens = np.arange(20).reshape(2, 10) % 7
    targets = np.ones((2, 10, 4), np.float32)
    errors = online.gradient_error(learner, learner.params, tokens, targets)
    self.assertLess(errors['parts.1'][0], 3e-2)


class _OneDecay(recurrences.LinearRecurrence):
  """All channels share a parameter."""

  def __init__(self):
    self.in_features = self.out_features = 3
    self.decay = nnx.Param(jnp.array(0.5))

  def initialize_carry(self, batch_size, dtype=None):
    return jnp.zeros((batch_size, 3), base.state_dtype(dtype))

  def recurrence(self, x):
    return jnp.broadcast_to(self.decay[...], x.shape), x

  def readout(self, h, x):
    return h


class RefusalTest(parameterized.TestCase):

  @parameterized.named_parameters(
      ('elman', layers.Elman, 'Elman is not diagonal'),
      ('gru', layers.GRU, 'GRU is not diagonal'),
      ('lstm', layers.LSTM, 'one array as a state'),
  )
  def test_layers_that_are_not_diagonal_raise(self, make, message):
    model = online.Stack(make(3, rngs=nnx.Rngs(0)))
    with self.assertRaisesRegex(ValueError, message):
      online.RTRL(model, square)

  def test_a_parameter_of_several_channels_raises(self):
    with self.assertRaisesRegex(ValueError, 'decay of _OneDecay.*several'):
      online.RTRL(online.Stack(_OneDecay()), square)

  def test_a_layer_that_is_not_causal_raises(self):
    layer = layers.Reverse(layers.MinGRU(3, rngs=nnx.Rngs(0)))
    with self.assertRaisesRegex(ValueError, 'is not causal'):
      online.RTRL(online.Stack(layer), square)

  def test_a_batch_norm_raises(self):
    model = online.Stack(nnx.BatchNorm(3, rngs=nnx.Rngs(0)))
    with self.assertRaisesRegex(ValueError, 'batch norm'):
      online.RTRL(model, square)

  def test_exact_before_with_two_layers_raises(self):
    make = lambda: layers.MinGRU(4, rngs=nnx.Rngs(0))
    with self.assertRaisesRegex(ValueError, '`exact_before`.*got 2'):
      model = around(make(), make(), dtype=jnp.float32)
      online.RTRL(model, square, exact_before=True)


class StackTest(parameterized.TestCase):

  def test_a_call_equals_a_scan_of_step(self):
    options = dict(param_dtype=jnp.float32, rngs=nnx.Rngs(0))
    branch = online.Stack(layers.LSTM(4, **options), residual=True)
    model = online.Stack(
        layers.LRU(3, **options), nnx.Linear(3, 4, **options), branch
    )
    data = stream(12)
    x, reset, mask = (data[name] for name in ('inputs', 'reset', 'mask'))
    x = x.astype(np.float32)
    want = model(x, reset=reset, mask=mask)
    carry, ys = model.initialize_carry(2), []
    for t in range(12):
      carry, y = model.step(carry, x[:, t], reset=reset[:, t], mask=mask[:, t])
      ys.append(y)
    testing.assert_close((carry, np.stack(ys, axis=1)), want)
    self.assertTrue((np.asarray(want[1])[~mask] == 0).all())


class SRNNTest(parameterized.TestCase):

  def test_learns_within_its_bound(self):
    learner = online.SRNN(3, 6, 2, window=4, learning_rate=0.05, bound=0.3)
    data = stream(60)
    inputs = np.nan_to_num(data['inputs']).astype(np.float32)
    targets = data['targets'].astype(np.float32)
    start = learner.initialize(jax.random.key(0), 2)
    state, predictions = learner.run(start, inputs, targets)
    self.assertTrue(np.isfinite(predictions).all())
    for params in (start.params, state.params):
      kernel = np.asarray(params['parts']['0']['hidden']['kernel'])[:, 0]
      sums = np.abs(kernel).sum(0)
      self.assertLessEqual(sums.max(), 0.3 + 1e-5)
    self.assertGreater(sums.max(), 0.29)  # There was something to bound.
    # Whatever was there before is forgotten at that rate.
    step = jax.jit(
        lambda u, x: learner.merge(state.params).step((u, None), x)[0][0]
    )
    states = [np.zeros((1, 6), np.float32), np.ones((1, 6), np.float32)]
    for t in range(10):
      states = [step(u, inputs[:1, t]) for u in states]
      gap = np.abs(states[0] - states[1]).max()
      self.assertLessEqual(gap, 0.3 ** (t + 1) + 1e-6)

  def test_gradient_equals_that_of_the_window(self):
    learner = online.SRNN(3, 5, 2, window=3, learning_rate=0.1, bound=0.99)
    data = stream(5)
    inputs = np.nan_to_num(data['inputs']).astype(np.float32)
    targets = data['targets'].astype(np.float32)
    start = learner.initialize(jax.random.key(0), 2)
    before, _ = learner.run(start, inputs[:, :-1], targets[:, :-1])
    after, prediction = jax.jit(learner.step)(
        before, inputs[:, -1], targets[:, -1]
    )

    def loss(params):
      network = learner.merge(before.params)
      carry, _ = network.step(before.carry, inputs[:, 1])
      _, y = learner.merge(params)(inputs[:, 2:], carry)
      return ((y - targets[:, 2:]) ** 2).sum() / 3, y[:, -1]

    gradient, y = jax.jit(jax.grad(loss, has_aux=True))(before.params)
    testing.assert_close(prediction, y)
    kernel = lambda tree: tree['parts']['1']['kernel']  # Not projected.
    testing.assert_close(
        kernel(after.params), kernel(before.params) - 0.1 * kernel(gradient)
    )

  def test_invalid_options_raise(self):
    with self.assertRaisesRegex(ValueError, '`window`'):
      online.SRNN(1, 2, window=0)
    with self.assertRaisesRegex(ValueError, '`bound`'):
      online.SRNN(1, 2, bound=1.0)
