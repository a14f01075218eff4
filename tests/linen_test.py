"""Linen twins: the variables, numbers and manners of the nnx modules."""

import inspect
import pickle
from unittest import mock

from absl.testing import parameterized
import flax
from flax import linen as nn
from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np
from rnnzoo import layers
from rnnzoo import linen
from rnnzoo import models
from rnnzoo import testing
from rnnzoo.layers import base
from tests import drawn

B, T = 2, 4
_KEY = jax.random.key(0)
# Twins inside, a learned start, and an option named as a method of Linen's.
_CALLED = ('bidirectional', 'min_gru_expanded', 's4d_legs')
_MODEL = models.ModelConfig.tiny().replace(norm='batch', dropout=0.5)


class _TwinsForLayers:
  """Stands for `rnnzoo.layers` where instances are made: gives their twins."""

  def __getattr__(self, name):
    twin = getattr(linen, name)
    return lambda *args, rngs=None, **options: twin(*args, **options)


def twin_of(make):
  with mock.patch('rnnzoo.testing.zoo.layers', _TwinsForLayers()):
    return make(None)


def draw(*shape):
  return np.random.default_rng(0).standard_normal(shape).astype(np.float32)


def filled(make):
  """Makes a module, and gives its variables as well."""
  module = drawn.module(make)
  return module, linen.to_linen_variables(module)


def shapes(tree):
  return jax.tree.map(lambda u: (u.shape, u.dtype.name), tree)


def split(module):
  """An nnx module as variables and a function of them, method and arguments."""
  graphdef, state = nnx.split(module)
  return state, lambda state, name, *args, **options: getattr(
      nnx.merge(graphdef, state), name
  )(*args, **options)


class LayersTest(parameterized.TestCase):

  def test_there_is_a_twin_of_every_layer_and_model(self):
    for nnx_class in (
        *layers.LAYERS.values(), layers.Bidirectional, layers.Reverse,
        models.LanguageModel, models.SequenceClassifier,
        models.SequenceRegressor,
    ):
      twin = getattr(linen, nnx_class.__name__)
      self.assertIs(twin.nnx_class, nnx_class)
      self.assertTrue(issubclass(twin, nn.Module))

  @parameterized.named_parameters(testing.LAYERS.items())
  def test_same_variables_and_steps(self, make):
    layer = twin_of(make)
    module, variables = filled(make)
    x = draw(B, *base.input_shape(module))
    self.assertEqual(
        shapes(variables), shapes(jax.eval_shape(layer.init, _KEY, x[:, None]))
    )
    carry = module.initialize_carry(B)
    testing.assert_close(layer.initialize_carry(B), carry)
    state, run = split(module)

    @jax.jit
    def both(variables, state, carry, x):
      return (
          layer.apply(variables, carry, x, method='step'),
          run(state, 'step', carry, x),
      )

    got, want = both(variables, state, carry, x)
    testing.assert_close(got, want)
    self.assertTrue(np.isfinite(got[1]).all() and np.asarray(got[1]).any())

  @parameterized.named_parameters(
      (name, (testing.LAYERS | testing.VARIANTS)[name]) for name in _CALLED
  )
  def test_same_numbers_of_sequences(self, make):
    layer = twin_of(make)
    module, variables = filled(make)
    x = draw(B, T, *base.input_shape(module))
    flags = dict(
        reset=np.arange(T) == np.array([[1], [2]]),
        mask=np.arange(T) < np.array([[4], [3]]),
    )
    state, run = split(module)

    @jax.jit
    def both(variables, state, x, flags):
      carry = layer.apply(variables, B, method='initialize_carry')
      return (
          layer.apply(variables, x, carry, **flags),
          run(state, '__call__', x, **flags),
      )

    testing.assert_close(*both(variables, state, x, flags))

  def test_a_layer_of_a_user(self):

    class Gain(nnx.Module):

      def __init__(self, start, *, offset=0.0):
        self.gain, self.offset = nnx.Param(jnp.asarray(start)), offset

      def __call__(self, x):
        return self.gain[...] * x + self.offset

      def twice(self, x):
        return self(self(x))

    layer = linen.to_linen_class(Gain)(2.0, offset=1.0)
    variables = layer.init(_KEY, 3.0)
    self.assertEqual(variables, {'params': {'gain': 2.0}})
    self.assertEqual(layer.apply(variables, 3.0, method='twice'), 15.0)


class ManyModulesTest(parameterized.TestCase):
  """Twins as parts of modules, and under the transformations of Linen."""

  def setUp(self):
    super().setUp()
    self.layer, self.x = linen.MinGRU(6), draw(B, T, 6)
    _, self.variables = filled(lambda rngs: layers.MinGRU(6, rngs=rngs))
    self.want = self.layer.apply(self.variables, self.x)

  def test_setup_and_scan_over_time(self):

    class Stepper(nn.Module):

      def setup(self):
        self.cell = linen.MinGRU(6)

      def __call__(self, x):
        scan = nn.scan(
            lambda cell, carry, x: cell.step(carry, x),
            variable_broadcast='params', split_rngs=dict(params=False),
            in_axes=1, out_axes=1,
        )
        return scan(self.cell, self.cell.initialize_carry(x.shape[0]), x)

    stepper = Stepper()
    variables = stepper.init(_KEY, self.x)
    self.assertEqual(
        shapes(variables['params']), dict(cell=shapes(self.variables['params']))
    )
    got = stepper.apply({'params': {'cell': self.variables['params']}}, self.x)
    testing.assert_close(got, self.want)

  def test_compact_and_scan_over_depth(self):

    class Block(nn.Module):

      @nn.compact
      def __call__(self, x, _):
        return x + nn.remat(linen.MinGRU)(6, name='rnn')(x)[1], None

    class Stack(nn.Module):

      @nn.compact
      def __call__(self, x):
        deep = nn.scan(
            Block, variable_axes=dict(params=0), split_rngs=dict(params=True),
            length=2,
        )
        return deep(name='blocks')(x, None)[0]

    stack = Stack()
    variables = jax.jit(stack.init)(_KEY, self.x)
    kernel = variables['params']['blocks']['rnn']['gates']['kernel']
    self.assertEqual(kernel.shape, (2, 6, 2, 6))
    self.assertLen(np.unique(kernel), kernel.size)  # No two blocks alike.

    def loss(variables, apply):
      return (apply(variables, self.x) ** 2).sum()

    def unrolled(variables, x):
      for i in range(2):
        params = jax.tree.map(
            lambda u, i=i: u[i], variables['params']['blocks']['rnn']
        )
        x += linen.MinGRU(6).apply({'params': params}, x)[1]
      return x

    grad = jax.jit(jax.grad(loss), static_argnums=1)
    testing.assert_close(
        grad(variables, stack.apply), grad(variables, unrolled)
    )

  @parameterized.parameters(nn.jit, nn.remat)
  def test_transformed_classes(self, transform):

    class Outer(nn.Module):

      @nn.compact
      def __call__(self, x):
        return transform(linen.MinGRU)(6, name='rnn')(x)

    got = Outer().apply({'params': {'rnn': self.variables['params']}}, self.x)
    testing.assert_close(got, self.want)

  def test_names_are_those_of_linen(self):

    class Two(nn.Module):

      @nn.compact
      def __call__(self, x):
        return linen.MinGRU(6)(linen.MinGRU(6)(x)[1])

    found = jax.eval_shape(Two().init, _KEY, self.x)['params']
    self.assertEqual(set(found), {'MinGRU_0', 'MinGRU_1'})

  def test_rnn_of_linen(self):
    rnn = nn.RNN(linen.as_rnn_cell(self.layer), return_carry=True)
    variables = {'params': {'cell': {'layer': self.variables['params']}}}
    self.assertEqual(
        shapes(jax.eval_shape(rnn.init, _KEY, self.x)), shapes(variables)
    )
    testing.assert_close(rnn.apply(variables, self.x), self.want)
    lengths = np.array([4, 2])
    mask = layers.mask_from_lengths(lengths, T)
    carry, _ = self.layer.apply(self.variables, self.x, mask=mask)
    got, _ = rnn.apply(variables, self.x, seq_lengths=lengths)
    testing.assert_close(got, carry)

  def test_modules_with_equal_arguments_are_equal(self):
    other = linen.MinGRU(in_features=6)
    self.assertEqual((self.layer, hash(self.layer)), (other, hash(other)))
    for unequal in (linen.MinGRU(7), linen.MinGRU(6, use_bias=False)):
      self.assertNotEqual(self.layer, unequal)
    self.assertEqual(pickle.loads(pickle.dumps(self.layer)), self.layer)
    self.assertEqual(self.layer.clone(name='a').name, 'a')

  def test_attributes_without_variables(self):
    self.assertEqual(self.layer.abstract.out_features, 6)
    made = jax.jit(lambda: self.layer.initialize_carry(3, jnp.bfloat16))()
    self.assertEqual((made.shape, made.dtype), ((3, 6), np.float32))

  def test_a_learned_initial_state_is_a_variable(self):
    layer = linen.MinGRU(6, learn_initial_state=True)
    with self.assertRaisesRegex(ValueError, 'state of MinGRU is a parameter'):
      layer.initialize_carry(2)


class ModelsTest(parameterized.TestCase):

  def setUp(self):
    super().setUp()
    self.twin = linen.LanguageModel(_MODEL)
    self.module, self.variables = filled(
        lambda rngs: models.LanguageModel(_MODEL, rngs=rngs)
    )
    self.tokens = np.arange(B * T).reshape(B, T)

  def test_training_moves_the_statistics_of_batch_norms(self):
    key = jax.random.key(1)
    self.assertEqual(
        shapes(self.variables),
        shapes(jax.eval_shape(self.twin.init, _KEY, self.tokens)),
    )

    @jax.jit
    def apply(variables, tokens):
      return self.twin.apply(
          variables, tokens, train=True, key=key, mutable=['batch_stats']
      )

    graphdef, state = nnx.split(self.module)

    @jax.jit
    def apply_nnx(state, tokens):
      module = nnx.merge(graphdef, state)
      out = module(tokens, train=True, key=key)
      return out, linen.to_linen_variables(module)['batch_stats']

    out, updates = apply(self.variables, self.tokens)
    want, stats = apply_nnx(state, self.tokens)
    testing.assert_close(out, want)
    testing.assert_close(updates, {'batch_stats': stats})
    moved = jax.tree.map(
        lambda a, b: np.any(a != b), stats, self.variables['batch_stats']
    )
    self.assertTrue(all(jax.tree.leaves(moved)))

  def test_immutable_statistics_raise_in_training(self):
    with self.assertRaisesRegex(flax.errors.ModifyScopeVariableError, 'immut'):
      jax.eval_shape(
          lambda: self.twin.apply(self.variables, self.tokens, train=True)
      )

  def test_dropout_draws_from_its_stream(self):

    class Dropped(nnx.Module):

      def __call__(self, *, key=None):
        return None if key is None else jax.random.key_data(key)

    class Outer(nn.Module):

      @nn.compact
      def __call__(self):
        twin = linen.to_linen_class(Dropped)
        return twin()(), twin()(), twin()(key=jax.random.key(7))

    self.assertEqual(Outer().apply({})[:2], (None, None))
    one, other, given = Outer().apply({}, rngs=dict(dropout=_KEY))
    self.assertNotEqual(one.tolist(), other.tolist())
    self.assertEqual(given.tolist(), [0, 7])
    self.assertIn('key', inspect.signature(self.twin.__call__).parameters)

  def test_a_classifier(self):
    config = _MODEL.replace(vocab_size=0, in_features=3, num_classes=5)
    twin, x = linen.SequenceClassifier(config), draw(B, T, 3)
    variables = jax.eval_shape(twin.init, _KEY, x)
    _, logits = jax.eval_shape(twin.apply, variables, x)
    self.assertEqual(logits.shape, (B, 5))
    carry = jax.eval_shape(lambda: twin.initialize_carry(B))
    self.assertEqual(carry.pooled.shape, (B, 8))


class ConversionTest(parameterized.TestCase):

  def test_variables_convert_in_both_directions(self):
    module, variables = filled(testing.LAYERS['lmu'])
    other = testing.LAYERS['lmu'](nnx.Rngs(1))
    before = jax.tree.map(np.asarray, linen.to_linen_variables(other))
    # What Flax reads from a file: NumPy's arrays.
    saved = flax.serialization.to_bytes(variables)
    read = flax.serialization.msgpack_restore(saved)
    got = linen.from_linen_variables(other, read)
    testing.assert_close(linen.to_linen_variables(got), variables)
    # Its constants are in none of them.
    x, carry = draw(B, 6), module.initialize_carry(B)
    testing.assert_close(got.step(carry, x), module.step(carry, x))
    # The module that was given is as it was.
    testing.assert_close(linen.to_linen_variables(other), before)
    self.assertEqual(
        jax.tree.structure(nnx.state(got)), jax.tree.structure(nnx.state(other))
    )

  def test_boxes_are_unboxed(self):
    module = layers.MinGRU(6, rngs=nnx.Rngs(0))
    variables = linen.to_linen_variables(module)
    boxed = jax.tree.map(
        lambda u: nn.Partitioned(u, (None,) * u.ndim), variables
    )
    x = draw(B, T, 6)
    want = module(x)
    testing.assert_close(linen.MinGRU(6).apply(boxed, x), want)
    testing.assert_close(linen.from_linen_variables(module, boxed)(x), want)

  @parameterized.named_parameters(
      ('missing', 'gates/bias', None, 'params/gates/bias is missing'),
      ('unknown', 'gate', 1.0, 'params/gate is unknown'),
      (
          'shape', 'gates/bias', np.zeros(3),
          r'params/gates/bias must be \(2, 6\), got \(3,\)',
      ),
  )
  def test_variables_of_another_module_raise(self, path, value, message):
    module = layers.MinGRU(6, rngs=nnx.Rngs(0))
    flat = flax.traverse_util.flatten_dict(
        linen.to_linen_variables(module)['params'], sep='/'
    )
    flat[path] = value
    flat = {k: v for k, v in flat.items() if v is not None}
    variables = {'params': flax.traverse_util.unflatten_dict(flat, sep='/')}
    message = f'must be those of MinGRU: {message}'
    with self.assertRaisesRegex(ValueError, f'{message}.$'):
      linen.from_linen_variables(module, variables)
    with self.assertRaisesRegex(ValueError, f'{message}.$'):
      linen.MinGRU(6).apply(variables, draw(B, T, 6))

  def test_names_the_first_of_many_problems(self):
    layer, x = linen.LanguageModel(_MODEL), np.zeros((B, T), int)
    with self.assertRaisesRegex(ValueError, r'missing; .* more\.$'):
      layer.apply({}, x)

  def test_unknown_options_raise(self):
    with self.assertRaisesRegex(TypeError, 'spam'):
      linen.MinGRU(6, spam=1)
    with self.assertRaisesRegex(TypeError, 'in_features'):
      linen.MinGRU()
