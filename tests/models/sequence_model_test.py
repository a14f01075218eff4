"""Classifiers and regressors of sequences keep the contract of the layers."""

import itertools

from absl.testing import absltest
from absl.testing import parameterized
from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np
from rnnzoo import errors
from rnnzoo import models
from tests.models import small

B, T, V, N = small.B, small.T, small.V, 4
POOLINGS = ('mean', 'last', 'first', 'none')
KINDS = (models.SequenceClassifier, models.SequenceRegressor)


IMAGE = (2, 3, 1)


def make(
    kind=models.SequenceRegressor, *, vectors=False, images=False, **changes
):
  sizes = dict(num_classes=N, out_features=N)
  if vectors:
    sizes.update(vocab_size=0, in_features=3)
  if images:
    sizes.update(vocab_size=0, image_shape=IMAGE)
  return small.make(kind, **sizes | changes)


def timed_images():
  """Returns images and flags, `dt` among them; padding is NaN."""
  x, flags = small.inputs(6)
  dt = np.random.default_rng(1).uniform(0.1, 3, (B, T)).astype(np.float32)
  x = jnp.where(flags['mask'][..., None], x, jnp.nan).reshape(B, T, *IMAGE)
  return x, dict(flags, dt=jnp.where(flags['mask'], dt, jnp.nan))


class ContractTest(parameterized.TestCase):

  @parameterized.parameters(
      *itertools.product(POOLINGS, ('tokens', 'vectors')),
      ('mean', 'images'), ('none', 'images'),
  )
  def test_whole_chunks_and_steps_agree(self, pooling, form):
    if form == 'images':
      model = make(
          models.SequenceClassifier, images=True, pooling=pooling, layer='lru'
      )
      x, flags = timed_images()
    else:
      vectors = form == 'vectors'
      model = make(models.SequenceClassifier, vectors=vectors, pooling=pooling)
      x, flags = small.inputs(3 if vectors else 0)
    carry, want = model(x, **flags)
    self.assertEqual(want.shape, (B, T, N) if pooling == 'none' else (B, N))
    half, first = model(x[:, :6], **small.part(flags, slice(0, 6)))
    half, empty = model(x[:, :0], half)
    got, second = model(x[:, 6:], half, **small.part(flags, slice(6, None)))
    step = small.jit(lambda c, u, f: model.step(c, u, **f))
    stepped, each = model.initialize_carry(B), []
    for t in range(T):
      stepped, y = step(stepped, x[:, t], small.part(flags, t))
      each.append(y)
    if pooling == 'none':
      self.assertEqual(empty.shape, (B, 0, N))
      small.assert_trees_close(jnp.concatenate([first, second], 1), want)
      small.assert_trees_close(jnp.stack(each, 1), want)
      self.assertTrue((want[~flags['mask']] == 0).all())
      self.assertIsNone(carry.pooled)
      self.assertIsNone(carry.count)
    else:
      small.assert_trees_close(second, want)
      small.assert_trees_close(each[-1], want)
      small.assert_trees_close(empty, first)
    small.assert_trees_close((got, stepped), (carry, carry))
    # Only the sequence since the last reset counts.
    del flags['reset']
    _, alone = model(x[:, 4:], **small.part(flags, slice(4, None)))
    small.assert_trees_close(want[:, 4:] if pooling == 'none' else want, alone)

  @parameterized.parameters(*POOLINGS)
  def test_a_regressor_and_a_classifier_compute_the_same(self, pooling):
    x, flags = small.inputs(3)
    results = [
        make(kind, vectors=True, pooling=pooling)(x, **flags) for kind in KINDS
    ]
    jax.tree.map(np.testing.assert_array_equal, *results)

  @parameterized.parameters(
      ('mean', 'min_gru', 'pre'), ('last', 'gru', 'post'),
      ('first', 'min_gru', 'out'), ('none', 'gru', 'pre'),
      ('none', 'min_gru', 'post'),
  )
  def test_padding_changes_neither_outputs_nor_gradients(
      self, pooling, layer, norm_position
  ):
    graphdef, params = nnx.split(make(
        vectors=True, pooling=pooling, layer=layer, embed_norm=True,
        norm_position=norm_position,
    ))
    x, _ = small.inputs(3)
    x = x[:1, :6]

    def run(params, x, mask):
      _, y = nnx.merge(graphdef, params)(x, mask=mask)
      return (y**2).sum(), y

    grad = small.jit(jax.value_and_grad(run, argnums=(0, 1), has_aux=True))
    (_, want), (want_params, want_x) = grad(params, x, None)
    # Left of the sequence, in it, and right of it.
    at = np.array([1, 2, 4, 5, 6, 8])
    padded = jnp.full((1, T + 2, 3), jnp.nan).at[:, at].set(x)
    mask = jnp.zeros((1, T + 2), bool).at[:, at].set(True)
    (_, got), (got_params, got_x) = grad(params, padded, mask)
    if pooling == 'none':
      self.assertTrue((got[~mask] == 0).all())
      got = got[:, at]
    small.assert_trees_close(got, want)
    small.assert_trees_close(got_params, want_params, atol=1e-5)
    small.assert_trees_close(got_x[:, at], want_x, atol=1e-5)
    self.assertTrue((got_x[~mask] == 0).all())

  @parameterized.parameters('mean', 'none')
  def test_steps_and_the_whole_have_the_same_gradients(self, pooling):
    graphdef, params = nnx.split(make(vectors=True, pooling=pooling))
    x, flags = small.inputs(3)

    def whole(params, x):
      _, y = nnx.merge(graphdef, params)(x, **flags)
      return (y**2).sum()

    def steps(params, x):
      model = nnx.merge(graphdef, params)
      body = lambda carry, u: model.step(carry, u[0], **u[1])
      by_time = jax.tree.map(lambda u: u.swapaxes(0, 1), (x, flags))
      _, y = jax.lax.scan(body, model.initialize_carry(B), by_time)
      return ((y if pooling == 'none' else y[-1]) ** 2).sum()

    want = small.jit(jax.grad(whole, (0, 1)))(params, x)
    got = small.jit(jax.grad(steps, (0, 1)))(params, x)
    small.assert_trees_close(got, want, atol=1e-5)

  @parameterized.parameters(*POOLINGS)
  def test_nothing_passes_a_reset(self, pooling):
    model = make(vectors=True, pooling=pooling)
    x, _ = small.inputs(3)
    reset = jnp.zeros((B, T), bool).at[:, 4].set(True)
    late = lambda y: y[:, 4:] if pooling == 'none' else y
    run = lambda x: late(model(x, reset=reset)[1])
    with_nan = x.at[:, :4].set(jnp.nan)
    np.testing.assert_array_equal(run(with_nan), run(x))
    gradient = jax.grad(lambda x: (run(x) ** 2).sum())(with_nan)[:, 4:]
    small.assert_trees_close(
        gradient, jax.grad(lambda x: (run(x) ** 2).sum())(x)[:, 4:]
    )

  def test_outputs_of_steps_do_not_see_later_steps(self):
    model = make(vectors=True, pooling='none')
    self.assertTrue(model.causal)
    x, _ = small.inputs(3)
    _, before = model(x)
    _, after = model(x.at[:, 6:].add(1.0))
    np.testing.assert_array_equal(before[:, :6], after[:, :6])

  @parameterized.product(pooling=('mean', 'none'), kind=KINDS)
  def test_bfloat16_activations_float32_outputs(self, pooling, kind):
    model = make(kind, vectors=True, pooling=pooling, dtype='bfloat16')
    want = make(kind, vectors=True, pooling=pooling)
    x, flags = small.inputs(3)
    carry, y = model(x, **flags)
    self.assertEqual(y.dtype, jnp.float32)
    self.assertEqual(
        jax.tree.leaves(carry.layers)[0].dtype, jnp.float32
    )
    np.testing.assert_allclose(y, want(x, **flags)[1], atol=0.05)
    if pooling == 'mean':
      self.assertEqual(carry.pooled.dtype, jnp.float32)
    _, y = model.step(None, x[:, 0])
    self.assertEqual(y.dtype, jnp.float32)

  def test_integer_vectors_are_numbers(self):
    model = make(vectors=True)
    x = np.arange(B * T * 3).reshape(B, T, 3) % 5
    np.testing.assert_array_equal(
        model(x)[1], model(x.astype(np.float32))[1]
    )

  def test_images_are_vectors_of_their_pixels(self):
    images = np.random.default_rng(0).integers(256, size=(B, T, *IMAGE))
    model = make(images=True)
    want = make(vectors=True, in_features=6)(images.reshape(B, T, 6) / 255)[1]
    for x in (images.astype(np.uint8), images / 255):
      small.assert_trees_close(model(x)[1], want)
    # Without a scale in the config, only bytes are divided.
    self.assertGreater(float(jnp.abs(model(images)[1] - want).max()), 0.1)
    self.assertEqual(model(images[:, :0])[1].shape, (B, N))

  @parameterized.parameters(
      ('vectors', 'uint8', (), (16.0,)), ('vectors', 'int16', (), ()),
      ('vectors', 'int16', (-5.0, 2.5, 0.0), (3.0, 100.0, 0.1)),
      ('images', 'uint8', (122.6,), (61.0,)), ('images', 'int32', (), (9.0,)),
  )
  def test_integers_are_normalized(self, form, dtype, offset, scale):
    shape = (3,) if form == 'vectors' else IMAGE
    x = np.random.default_rng(0).integers(100, size=(B, T, *shape))
    plain = make(**{form: True})
    model = make(**{form: True}, input_offset=offset, input_scale=scale)
    numbers = (x - np.array(offset or 0)) / np.array(scale or 1)
    for reads in (plain, model):  # Both take floats as they are.
      want = reads(numbers.astype(np.float32))[1]
    small.assert_trees_close(small.jit(model)(x.astype(dtype))[1], want)
    carry = None
    for t in range(T):
      carry, y = model.step(carry, x[:, t].astype(dtype))
    small.assert_trees_close(y, want)

  def test_bad_normalization(self):
    for changes, message in (
        (dict(input_scale=(0,)), 'scale must be positive in every place'),
        (dict(input_scale='1'), "scale must be a tuple of numbers, got '1"),
        (dict(input_offset=(1, 2)), 'offset must be .* of the 3 channels'),
    ):
      with self.assertRaisesRegex(errors.UserValueError, message):
        make(vectors=True, **changes)

  def test_dt_has_the_same_gradient_in_a_loop_over_depth(self):
    x, flags = timed_images()
    dt = flags.pop('dt')

    def run(**changes):
      graphdef, params = nnx.split(make(
          images=True, layer='lru', num_layers=2, **changes
      ))

      def call(params, dt):
        _, y = nnx.merge(graphdef, params)(x, dt=dt, **flags)
        return (y**2).sum()

      return small.jit(jax.value_and_grad(call, (0, 1)))(params, dt)

    value, (params, dt_gradient) = run()
    small.assert_trees_close(
        run(scan_layers=True, remat='full'), (value, (params, dt_gradient)),
        atol=1e-4,
    )
    self.assertGreater(float(jnp.abs(dt_gradient).max()), 1e-3)
    self.assertTrue((dt_gradient[~flags['mask']] == 0).all())

  def test_embed_norm_of_vectors(self):
    model = make(
        models.SequenceClassifier, vectors=True, layer='elman', num_layers=1,
        mlp='none', embed_norm=True,
    )
    x, _ = small.inputs(3)
    want = model(x)[1]
    model.encoder.kernel[...] *= 2  # The norm removes it.
    model.encoder.bias[...] *= 2
    np.testing.assert_allclose(model(x)[1], want, atol=1e-4)

  def test_dropout_needs_a_key(self):
    model = make(vectors=True, pooling='none', dropout=0.5)
    x, _ = small.inputs(3)
    want = model(x)[1]
    np.testing.assert_array_equal(model(x, train=True)[1], want)
    dropped = model(x, key=jax.random.key(0))[1]
    self.assertGreater(float(jnp.abs(dropped - want).max()), 0)


class BidirectionalTest(parameterized.TestCase):

  @parameterized.parameters('mean', 'none')
  def test_a_label_may_depend_on_later_steps(self, pooling):
    model = make(
        models.SequenceClassifier, layer='lru', bidirectional=True,
        pooling=pooling,
    )
    self.assertFalse(model.causal)
    x, flags = small.inputs()
    _, y = model(x, **flags)
    self.assertEqual(y.shape, (B, T, N) if pooling == 'none' else (B, N))
    changed = model(x.at[:, 8].set((x[:, 8] + 1) % V), **flags)[1]
    # The second sequence starts at step 4. The first one does not change.
    if pooling == 'none':
      np.testing.assert_array_equal(changed[:, :4], y[:, :4])
      self.assertGreater(float(jnp.abs(changed - y)[:, 4].max()), 0)
    with self.assertRaisesRegex(ValueError, 'step'):
      model.step(None, x[:, 0])


class BadInputTest(parameterized.TestCase):

  @parameterized.parameters(
      (dict(out_features=0), 'model.out_features must be set'),
      (dict(out_features=-1), 'model.out_features must not be negative'),
      (dict(out_features=1.5), 'model.out_features must be an integer'),
      (dict(pooling='nome'), 'Did you mean "none"'),
      (dict(in_features=3), r'One of model.vocab_size .* got 16, 3, \(\)'),
      (dict(vocab_size=0), r'One of model.vocab_size .* got 0, 0, \(\)'),
      (dict(image_shape=IMAGE), r'image_shape .* got 16, 0, \(2, 3, 1\)'),
      (dict(layer='rwkv7', bidirectional=True), 'the first of its kind'),
  )
  def test_configs(self, changes, message):
    with self.assertRaisesRegex(errors.UserValueError, message):
      make(**changes)
    if 'out_features' not in changes:
      with self.assertRaisesRegex(errors.UserValueError, message):
        make(models.SequenceClassifier, **changes)

  def test_a_classifier_needs_classes(self):
    with self.assertRaisesRegex(errors.UserValueError, 'num_classes must be'):
      make(models.SequenceClassifier, num_classes=0)

  @parameterized.product(kind=KINDS, pooling=('mean', 'none'))
  def test_inputs(self, kind, pooling):
    model = make(kind, vectors=True, pooling=pooling)
    x = np.zeros((B, T, 3), np.float32)
    for bad in (
        None, 1.0, x[0], x[..., 1:], x[..., None], 'no', [[1.0], [1.0, 2.0]],
        x.astype(np.complex64), dict(x=x),
    ):
      with self.assertRaisesRegex(ValueError, '^`inputs` must be'):
        model(bad)
    with self.assertRaisesRegex(ValueError, r'must be \[B, 3\], got \(2, 9, 3'):
      model.step(None, x)
    with self.assertRaisesRegex(ValueError, '^`mask` must be bool'):
      model(x, mask=np.ones((B, T)))
    with self.assertRaisesRegex(ValueError, '^`reset` must be bool'):
      model(x, reset=np.ones((B, T - 1), bool))
    with self.assertRaisesRegex(ValueError, '`tokens` must be integers'):
      make(kind, pooling=pooling)(x)

  def test_images_and_dt(self):
    model = make(images=True, layer='lru')
    x, flags = timed_images()
    dt = flags['dt']
    for bad in (x[0], x[..., 0], x.swapaxes(2, 3), x.reshape(B, T, -1)):
      with self.assertRaisesRegex(ValueError, r'be \[B, T, 2, 3, 1\], got'):
        model(bad)
    with self.assertRaisesRegex(ValueError, r'must be \[B, 2, 3, 1\], got'):
      model.step(None, x)
    for bad in (dt[0], dt[:, 1:], dt > 1, dt[..., None]):
      with self.assertRaisesRegex(ValueError, r'^`dt` must be floating \(2, 9'):
        model(x, dt=bad)
    for changes in (
        dict(layer='gru'), dict(layer='lru,gru'), dict(bidirectional=True)
    ):
      model = make(images=True, **dict(dict(layer='lru'), **changes))
      self.assertFalse(model.takes_dt)
      with self.assertRaisesRegex(ValueError, 'that do: lru, s4d, s5'):
        model(x, dt=dt)

  @parameterized.parameters(*POOLINGS)
  def test_carries(self, pooling):
    model = make(vectors=True, pooling=pooling)
    other = 'mean' if pooling == 'none' else 'none'
    x = np.zeros((B, T, 3), np.float32)
    good = model.initialize_carry(B)
    for carry in (
        model.initialize_carry(B + 1), good.layers, tuple(good), 0.0,
        make(vectors=True, pooling=other).initialize_carry(B),
    ):
      with self.assertRaisesRegex(ValueError, '`carry'):
        model(x, carry)
      with self.assertRaisesRegex(ValueError, '`carry'):
        model.step(carry, x[:, 0])


class NamesTest(parameterized.TestCase):

  @parameterized.parameters(*KINDS)
  def test_parameters_have_the_names_of_checkpoints(self, kind):
    names = lambda **changes: set(
        nnx.state(nnx.eval_shape(lambda: make(kind, **changes)), nnx.Param)
    )
    self.assertEqual(names(), {'embed', 'backbone', 'norm', 'head'})
    self.assertEqual(
        names(vectors=True, embed_norm=True, norm_position='post'),
        {'encoder', 'embed_norm', 'backbone', 'head'},
    )

  def test_a_config_older_than_a_field_is_read(self):
    old = dict(vars(models.ModelConfig.tiny()))
    del old['out_features']
    self.assertEqual(
        models.ModelConfig.from_dict(old), models.ModelConfig.tiny()
    )


if __name__ == '__main__':
  absltest.main()
