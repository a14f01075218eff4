"""Wrong arguments of layers and models raise errors that name them."""

import pickle

from absl.testing import parameterized
from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np
from rnnzoo import layers
from rnnzoo import linen
from rnnzoo import models
from rnnzoo import testing
from rnnzoo.layers import base
from rnnzoo.layers import min_gru

B, T = 2, 5


class LayersTest(parameterized.TestCase):

  def test_every_class_converts_its_arguments(self):
    classes = [
        u for u in vars(layers).values()
        if isinstance(u, type) and issubclass(u, base.RecurrentLayer)
    ]
    self.assertGreater(len(classes), 30)
    for cls in classes:
      for name in ('__call__', 'step', 'first_value'):
        own = getattr(cls, name, None)
        if own is not None and own is not vars(base.RecurrentLayer).get(name):
          self.assertTrue(hasattr(own, '__wrapped__'), f'{cls}.{name}')

  @parameterized.named_parameters(testing.LAYERS.items())
  def test_every_layer_names_a_wrong_argument(self, make_layer):
    """What it does by itself: read bad input, and no rows."""

    def check(layer):
      self.check_bad_input(layer)
      shape = base.input_shape(layer)
      flag = np.ones((0, T), bool)
      _, y = layer(np.zeros((0, T, *shape)), reset=flag, mask=flag)
      self.assertEqual(y.shape, (0, T, *base.output_shape(layer)))
      _, y = layer.step(None, np.zeros((0, *shape)))
      self.assertEqual(y.shape, (0, *base.output_shape(layer)))

    without_computing(lambda: check(make_layer(nnx.Rngs(0))))

  # One of each kind: a cell, linear, gated and timed recurrences, images, and
  # those that have calls of their own.
  @parameterized.parameters(
      'lstm', 'lru', 'min_gru', 's5', 'conv_lstm', 'linear_attention'
  )
  def test_lists_and_numpy_arrays_are_accepted(self, name):

    def check(layer):
      self.check_forms(layer)
      self.check_nothing(layer)

    without_computing(lambda: check(testing.LAYERS[name](nnx.Rngs(0))))

  def check_forms(self, layer):
    """Lists and arrays of NumPy are as good as those of JAX."""
    x = np.zeros((B, T, *base.input_shape(layer)), np.float32)
    reset, mask = np.zeros((2, B, T), bool)
    types = lambda tree: jax.tree.map(lambda u: (u.shape, u.dtype), tree)
    want = types(layer(jnp.asarray(x)))
    for form in (lambda u: u, lambda u: u.tolist()):
      got = layer(form(x), reset=form(reset), mask=form(mask))
      self.assertEqual(types(got), want)
    carry, _ = layer.step(
        None, x[:, 0].tolist(), reset=reset[:, 0].tolist(), mask=mask[:, 0]
    )
    self.assertEqual(types(carry), want[0])

  def check_bad_input(self, layer):
    """The error names the argument, in one line."""
    shape = base.input_shape(layer)
    x, flag = np.zeros((B, T, *shape), np.float32), np.zeros((B, T), bool)
    carry = layer.initialize_carry(B, layer.dtype or jnp.float32)
    other = layer.initialize_carry(B + 1, layer.dtype or jnp.float32)
    cut = jax.tree.map(lambda u: u[..., None], carry)
    halves = jax.tree.map(lambda u: u.real.astype(jnp.float16), carry)
    step = layer.step
    for name, call in (
        ('x', lambda: layer(None)), ('x', lambda: layer(1.0)),
        ('x', lambda: layer('text')), ('x', lambda: layer({'x': x})),
        ('x', lambda: layer([[1.0], [1.0, 2.0]])), ('x', lambda: layer(x[0])),
        ('x', lambda: layer(x.astype(int))), ('x', lambda: step(carry, None)),
        ('x', lambda: step(carry, 1)), ('x', lambda: step(carry, x)),
        ('reset', lambda: layer(x, reset=True)),
        ('reset', lambda: layer(x, reset='no')),
        ('reset', lambda: layer(x, reset=flag[0])),
        ('reset', lambda: layer(x, reset=flag.astype(int).tolist())),
        ('reset', lambda: step(carry, x[:, 0], reset=flag)),
        ('mask', lambda: layer(x, mask=1)),
        ('mask', lambda: layer(x, mask=flag[:, 1:])),
        ('mask', lambda: step(carry, x[:, 0], mask=False)),
        ('carry', lambda: layer(x, 0.0)), ('carry', lambda: layer(x, 'no')),
        ('carry', lambda: layer(x, [carry])), ('carry', lambda: layer(x, ())),
        ('carry', lambda: layer(x, np.zeros((B, 7, 7)))),
        ('carry', lambda: layer(x, other)), ('carry', lambda: layer(x, cut)),
        ('carry', lambda: layer(x, halves)),
        ('carry', lambda: step(other, x[:, 0])),
        ('carry', lambda: step([carry], x[:, 0])),
    ):
      with self.assertRaisesRegex(ValueError, f'^`{name}') as caught:
        call()
      self.assertNotIn('\n', str(caught.exception))

  def check_nothing(self, layer):
    """No rows, or no tokens, are no error."""
    shape = base.input_shape(layer)
    for batch, time in ((0, T), (B, 0), (0, 0)):
      x, flag = jnp.zeros((batch, time, *shape)), jnp.ones((batch, time), bool)
      for flags in ({}, dict(reset=flag, mask=flag)):
        _, y = layer(x, **flags)
        self.assertEqual(y.shape, (batch, time, *base.output_shape(layer)))

  def test_swapped_arguments_of_step_raise(self):

    def check():
      lstm = layers.LSTM(6, 5, rngs=nnx.Rngs(0))
      gru = testing.LAYERS['gru'](nnx.Rngs(0))
      x = jnp.zeros((B, 6))
      with self.assertRaisesRegex(ValueError, 'takes the carry first'):
        lstm.step(x, lstm.initialize_carry(B))
      with self.assertRaisesRegex(ValueError, 'carry is the first argument'):
        gru.step(x, gru.initialize_carry(B))

    without_computing(check)

  def test_a_wrong_signature_names_the_method(self):
    without_computing(self.check_wrong_calls)

  def check_wrong_calls(self):
    layer = layers.MinGRU(3, rngs=nnx.Rngs(0))
    x = np.zeros((B, T, 3), np.float32)
    for call, message in (
        (lambda: layer(), r"__call__\(\) missing 1 .* 'x'"),
        (lambda: layer(x, None, None), r'__call__\(\) takes from 2 to 3 pos'),
        (lambda: layer(x, other=1), r"__call__\(\) got an unex.* 'other'"),
        (lambda: layer(x, x=x), r"__call__\(\) got multiple values .* 'x'"),
        (lambda: layer.step(None), r"step\(\) missing 1 .* 'x'"),
        (lambda: layer.step(x=x), r"step\(\) missing 1 .* 'carry'"),
    ):
      with self.assertRaisesRegex(TypeError, message) as caught:
        call()
      self.assertNotIn('run(', str(caught.exception))

  def test_wrong_side_inputs_raise(self):
    without_computing(self.check_side_inputs)

  def check_side_inputs(self):
    layer = layers.S5(6, 8, rngs=nnx.Rngs(0))
    x = np.zeros((B, T, 6), np.float32)
    layer(x, dt=np.ones((B, T)).tolist())
    for dt in (1.0, 'no', np.ones((B, 1)), np.ones((B, T), int)):
      with self.assertRaisesRegex(ValueError, '^`dt`'):
        layer(x, dt=dt)
    rwkv = testing.LAYERS['rwkv7'](nnx.Rngs(0))
    v = rwkv.first_value(x.tolist())
    rwkv(x, v_first=np.zeros(v.shape).tolist())
    with self.assertRaisesRegex(ValueError, '^`x`'):
      rwkv.first_value(None)
    for v_first in (1.0, 'no', v[0], v.astype(int)):
      with self.assertRaisesRegex(ValueError, '^`v_first`'):
        rwkv(x, v_first=v_first)

  def test_time_major_and_rnn_cell_name_a_wrong_argument(self):
    without_computing(self.check_wrappers)

  def check_wrappers(self):
    layer = layers.LSTM(6, 5, rngs=nnx.Rngs(0))
    x, resets = np.zeros((T, B, 6), np.float32), np.zeros((T, B))
    carry = layer.initialize_carry(B)
    run = layers.time_major(layer)
    _, y = run(carry, (x.tolist(), resets.tolist()))
    self.assertEqual(y.shape, (T, B, 5))
    for given in (x.swapaxes(0, 1), x[0], None, 1.0):
      with self.assertRaisesRegex(ValueError, r'^`x` .*\[T, B, 6\].*B = 2'):
        run(carry, (given, resets))
    with self.assertRaisesRegex(ValueError, r'`resets` must be \[T, B\]'):
      run(carry, (x, resets.T))
    with self.assertRaisesRegex(ValueError, '^`carry` must be'):
      run(0.0, (x, resets))
    cell = layers.as_rnn_cell(layer)
    with self.assertRaisesRegex(ValueError, '^`inputs` must be .* got None'):
      cell(carry, None)
    with self.assertRaisesRegex(
        ValueError, r'`carry.c` must start with the batch'
    ):
      cell(cell.initialize_carry((3, 2, 6)), np.zeros((2, 3, 6), np.float32))
    both = layers.Bidirectional(layer, layers.GRU(6, 5, rngs=nnx.Rngs(0)))
    with self.assertRaisesRegex(ValueError, '`carry`'):
      both(x, (carry, carry))
    twin = linen.LSTM(6, 5)
    variables = linen.to_linen_variables(layer)
    with self.assertRaisesRegex(ValueError, '`carry`'):
      twin.apply(variables, x, [carry])


def without_computing(check):
  """Runs `check` on shapes: nothing in it is computed or compiled."""
  jax.eval_shape(check)


class OnesOwn(base.RecurrentLayer):
  """A layer of a user's that reads its arguments as they come."""

  in_features = out_features = 3

  def initialize_carry(self, batch_size, dtype=None):
    return jnp.zeros((batch_size, 3))

  def __call__(self, x, carry=None, *, reset=None, mask=None):
    return carry, jnp.where(mask[..., None], x, 0) + reset.sum(dtype=x.dtype)


class OnesOwnTest(parameterized.TestCase):

  def test_a_layer_of_a_user_converts_its_arguments(self):
    _, y = OnesOwn()([[[1.0, 2, 3]]], reset=[[True]], mask=[[False]])
    np.testing.assert_array_equal(y, np.ones((1, 1, 3)))
    with self.assertRaisesRegex(ValueError, '^`mask`'):
      OnesOwn()([[[1.0, 2, 3]]], reset=[[True]], mask=[[False], []])


class OnesOwnGate(layers.MinGRU):
  """A layer of a user's that sets its gate."""

  def __init__(self, *args, **options):
    super().__init__(*args, **options)
    self.gate = halving


def halving(start, k, v):
  del start, k
  return jnp.full_like(v, 0.5), v


class OnesOwnGateTest(parameterized.TestCase):

  def test_a_gate_of_a_user_is_used_and_pickled(self):
    layer = OnesOwnGate(2, rngs=nnx.Rngs(0))
    self.assertIs(layer.gate, halving)
    self.assertIs(pickle.loads(pickle.dumps(layer)).gate, halving)
    self.assertIs(nnx.merge(*nnx.split(layer)).gate, halving)
    self.assertIs(
        layers.MinGRU(2, rngs=nnx.Rngs(0)).gate,
        min_gru.min_gru_gate(min_gru.positive),
    )


def make_model(depth=2, layer='min_gru', kind=models.LanguageModel, **changes):
  config = models.ModelConfig(
      layer=layer, num_layers=depth, features=8, vocab_size=16, **changes
  )
  return kind(config, rngs=nnx.Rngs(0))


class ModelsTest(parameterized.TestCase):

  @parameterized.parameters(
      (models.LanguageModel, {}), (models.LanguageModel, dict(conv_kernel=3)),
      (models.SequenceClassifier, dict(num_classes=3)),
  )
  def test_the_carry_of_another_model_raises(self, kind, changes):
    make = lambda **given: make_model(kind=kind, **changes | given)
    model, tokens = make(), jnp.zeros((B, T), jnp.int32)
    run = lambda carry: jax.eval_shape(lambda: model(tokens, carry))
    step = lambda carry: jax.eval_shape(lambda: model.step(carry, tokens[:, 0]))
    good = model.initialize_carry(B)
    self.assertEqual(run(None)[1].shape[:1], (B,))
    self.assertEqual(run(good), run(None))
    self.assertEqual(step(good), step(None))
    halves = jax.tree.map(lambda u: u.astype(jnp.float16), good)
    other = lambda **given: jax.tree.map(
        lambda u: jnp.zeros(u.shape, u.dtype),
        jax.eval_shape(lambda: make(**given).initialize_carry(B)),
    )
    for bad in (
        other(depth=3), other(layer='min_gru,min_gru'), other(layer='lstm'),
        other(conv_kernel=4),
        other(conv_kernel=0 if changes.get('conv_kernel') else 2),
        model.initialize_carry(B + 1), model.initialize_carry(1), halves,
        list(good), (), 0.0, 'no', {'carry': good},
    ):
      for call in (run, step):
        with self.assertRaisesRegex(ValueError, '`carry'):
          call(bad)

  def test_the_carry_of_another_mixed_stack_raises(self):
    without_computing(self.check_mixed_stack)

  def check_mixed_stack(self):
    model = make_model(layer='min_gru,min_gru,lstm', depth=5)
    tokens = jnp.zeros((B, T), jnp.int32)
    for depth in (4, 6):
      bad = make_model(layer='min_gru,min_gru,lstm', depth=depth)
      with self.assertRaisesRegex(ValueError, r'with leading axes \[2, 2, 1\]'):
        model(tokens, bad.initialize_carry(B))

  def test_arguments_of_the_backbone(self):
    without_computing(self.check_backbone)

  def check_backbone(self):
    backbone = make_model().backbone
    x = np.zeros((B, T, 8), np.float32)
    want = backbone(x, backbone.initialize_carry(B))[1]
    for carry in ((), (None,)):
      self.assertEqual(backbone(x.tolist(), *carry)[1].shape, want.shape)
    self.assertEqual(backbone.step(None, x[:, 0])[1].shape, (B, 8))
    for bad in (None, 1.0, x[0], x[..., 1:]):
      with self.assertRaisesRegex(ValueError, '^`x` must be'):
        backbone(bad)
    with self.assertRaisesRegex(ValueError, '^`mask` must be'):
      backbone(x, mask=True)

  @parameterized.parameters(
      models.LanguageModel, models.SequenceClassifier
  )
  def test_tokens_outside_the_vocabulary_raise(self, kind):
    model = make_model(depth=1, kind=kind, num_classes=3)
    carry = model.initialize_carry(1)
    for bad in (99, -1, 16, 2**32 + 3):
      for form in (lambda u: u, np.array, jnp.array):
        if bad > 2**31 and form is jnp.array:
          continue  # JAX refuses it by itself.
        with self.assertRaisesRegex(ValueError, f'0 to 15, got {bad} at'):
          model(form([[3, bad]]))
        with self.assertRaisesRegex(ValueError, f'0 to 15, got {bad} at'):
          model.step(carry, form([bad]))
    # Padding is nobody's token.
    model(np.array([[3, -1, 99]]), mask=[[True, False, False]])
    for bad in (
        None, 1.5, [[1.5]], [[1], [1, 2]], [1], 'no', [['a']],
        np.zeros((1, 0)), jnp.zeros((1, 0)),
    ):
      with self.assertRaisesRegex(ValueError, '^`tokens` must be'):
        model(bad)
    with self.assertRaisesRegex(ValueError, '^`mask` must be'):
      model([[1, 2]], mask=[True, True])

  def test_tokens_of_a_compiled_program_follow_jax(self):
    model = make_model(depth=1)
    run = jax.jit(lambda tokens: model(tokens)[1])
    good = run(jnp.array([[3, 15, 15]]))
    np.testing.assert_array_equal(run(jnp.array([[3, 99, -1]])), good)
