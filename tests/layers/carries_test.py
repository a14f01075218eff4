"""Rows of carries and carries on disk, of every layer and of models."""

import io
import json
import os
import pathlib
import tempfile
from unittest import mock
import zipfile

from absl.testing import parameterized
from flax import nnx
import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
from rnnzoo import errors
from rnnzoo import layers
from rnnzoo import models
from rnnzoo import testing
from rnnzoo.layers import base
from tests import drawn

B, T = 3, 3
_CONFIG = models.ModelConfig.tiny().replace(
    layer='rg_lru,gru', num_layers=3, conv_kernel=3, mlp='none'
)
MODELS = dict(
    language_model=lambda rngs: models.LanguageModel(_CONFIG, rngs=rngs),
    # Its carry has no one batch axis: what it has pooled has no depth.
    classifier=lambda rngs: models.SequenceClassifier(
        _CONFIG.replace(
            layer='gru', num_layers=2, num_classes=3, vocab_size=0,
            in_features=2,
        ),
        rngs=rngs,
    ),
    forecaster=lambda rngs: models.SequenceRegressor(
        _CONFIG.replace(
            layer='gru', num_layers=2, out_features=3, vocab_size=0,
            in_features=2, pooling='none',
        ),
        rngs=rngs,
    ),
)


def draw(*shape, seed=0):
  draws = np.random.default_rng(seed).standard_normal(shape)
  return draws.astype(np.float32)


def tokens_for(module, seed):
  """Tokens `[T, B, ...]` that `module.step` reads."""
  if isinstance(module, base.RecurrentLayer):
    return draw(T, B, *base.input_shape(module), seed=seed)
  if module.config.vocab_size:
    return np.random.default_rng(seed).integers(0, 16, (T, B))
  return draw(T, B, module.config.in_features, seed=seed)


def stepper(module):
  """Returns a function from a carry and tokens to the last carry and output."""
  graph, state = nnx.split(module)
  step = jax.jit(lambda state, *args: nnx.merge(graph, state).step(*args))

  def run(carry, tokens):
    for token in tokens:
      carry, y = step(state, carry, token)
    return carry, y

  return run


def assert_same_bits(got, want):
  assert jax.tree.structure(got) == jax.tree.structure(want)
  for g, w in zip(jax.tree.leaves(got), jax.tree.leaves(want)):
    assert isinstance(g, jax.Array)
    assert g.dtype == w.dtype and g.shape == w.shape
    assert np.asarray(g).tobytes() == np.asarray(w).tobytes()


class CarriesTest(parameterized.TestCase):

  def setUp(self):
    super().setUp()
    self.directory = pathlib.Path(
        self.enterContext(tempfile.TemporaryDirectory())
    )

  @parameterized.named_parameters((testing.LAYERS | MODELS).items())
  def test_rows_are_replaced_taken_saved_and_loaded(self, make):
    module = drawn.module(make)
    run, axis = stepper(module), layers.batch_axes(module)
    initial = module.initialize_carry(B)
    x, z, more = (tokens_for(module, seed) for seed in range(3))
    carry, _ = run(initial, x)
    other, y = run(initial, z)
    self.assertTrue(np.isfinite(y).all() and np.asarray(y).any())

    # The last row of the others takes the place of the second, which has ended.
    @jax.jit
    def swap(carry, other):
      new = layers.take_rows(other, np.array([2]), axis=axis)
      carry = layers.put_rows(carry, np.array([1]), new, axis=axis)
      return layers.take_rows(carry, np.array([1, 0, 2]), axis=axis)

    mixed = swap(carry, other)
    rows = np.stack([z[:, 2], x[:, 0], x[:, 2]], 1)
    want, _ = run(initial, rows)
    testing.assert_close(mixed, want)
    testing.assert_close(run(mixed, more), run(want, more))

    path = self.directory / 'carry.npz'
    layers.save_carry(path, mixed)
    like = jax.eval_shape(lambda: module.initialize_carry(B))
    loaded = layers.load_carry(path, like)
    assert_same_bits(loaded, mixed)
    assert_same_bits(run(loaded, more), run(mixed, more))

  def test_batch_axes_of_models(self):
    axes = lambda name: layers.batch_axes(
        nnx.eval_shape(lambda: MODELS[name](nnx.Rngs(0)))
    )
    self.assertEqual(set(jax.tree.leaves(axes('language_model'))), {1})
    classifier = axes('classifier')
    self.assertEqual(set(jax.tree.leaves(classifier.layers)), {1})
    self.assertEqual((classifier.pooled, classifier.count), (0, 0))

  def test_axis_may_be_the_upper_part_of_a_tree(self):
    carry = dict(deep=[jnp.zeros((2, 3)), jnp.zeros((2, 3, 1))], flat=draw(3))
    got = layers.take_rows(carry, [1, 2], axis=dict(deep=1, flat=0))
    self.assertEqual(
        jax.tree.map(jnp.shape, got),
        dict(deep=[(2, 2), (2, 2, 1)], flat=(2,)),
    )

  def test_a_state_without_a_batch_axis_raises(self):
    module = mock.Mock(initialize_carry=lambda n: {'t': jnp.zeros(())})
    with self.assertRaisesRegex(ValueError, r"carry\['t'\]` has no batch axis"):
      layers.batch_axes(module)

  @parameterized.named_parameters(
      ('bools', [True, False, True], 0, r'integers \[K\], got bool \(3,\)'),
      ('scalar', 1, 0, r'integers \[K\], got int64 \(\)'),
      ('outside', [0, 3], 0, r'within a batch of 3, got \[0, 3\]'),
      ('negative', [-1], 0, r'within a batch of 3, got \[-1\]'),
      ('axis', [0], 2, r"one of `carry\['h'\]` \(3, 2\), got 2"),
      ('layers', [0], 1, r"2 of carry\['h'\], 4 of carry\['s'\]"),
  )
  def test_invalid_rows_raise(self, rows, axis, message):
    carry = dict(h=jnp.zeros((3, 2)), s=jnp.zeros((3, 4, 1)))
    with self.assertRaisesRegex(ValueError, message):
      layers.take_rows(carry, rows, axis=axis)
    with self.assertRaisesRegex(ValueError, message):
      layers.put_rows(carry, rows, carry, axis=axis)

  @parameterized.named_parameters(
      ('rank', [1], jnp.ones(2), r'float32 \(1, 2\), got .*\(2,\)'),
      ('dtype', [1], jnp.ones((1, 2), jnp.bfloat16), 'bfloat16'),
      ('number', [1, 0], jnp.ones((1, 2)), r'\(2, 2\), got .*\(1, 2\)'),
      ('twice', [1, 1], jnp.ones((2, 2)), r'different, got \[1, 1\]'),
  )
  def test_new_rows_of_another_shape_raise(self, rows, new, message):
    with self.assertRaisesRegex(ValueError, message):
      layers.put_rows(jnp.zeros((3, 2)), rows, new, axis=0)

  def test_files_keep_every_bit_of_every_dtype(self):
    bits = np.random.default_rng(0).integers(0, 256, (64,), np.uint8)
    names = (
        'float32', 'complex64', 'bfloat16', 'float16', 'int8', 'uint32',
        'float8_e4m3fn',
    )
    # NaNs with all their payloads are among them.
    carry = {n: jnp.asarray(bits.view(jnp.dtype(n))) for n in names}
    carry |= dict(
        bool=jnp.asarray(bits > 99), scalar=jnp.int32(7),
        empty=jnp.zeros((2, 0)), none=None, int4=jnp.arange(3, dtype='int4'),
    )
    path = self.directory / 'carry.npz'
    layers.save_carry(path, carry)
    assert_same_bits(layers.load_carry(path, carry), carry)
    with np.load(path, allow_pickle=False) as entries:
      np.testing.assert_array_equal(
          entries["carry['bfloat16']"].view(ml_dtypes.bfloat16),
          carry['bfloat16'],
      )

  def test_files_keep_float64(self):
    with jax.enable_x64(True):
      carry = jnp.asarray(np.pi + 1j * np.e)
      path = self.directory / 'carry.npz'
      layers.save_carry(path, carry)
      assert_same_bits(layers.load_carry(path, carry), carry)

  @parameterized.named_parameters(
      (
          'other_layer', 'lstm', 'gru',
          'different carry: it has carry.c, carry.h',
      ),
      ('other_order', 'gru', 'lstm', 'it has carry, expected carry.c, carry.h'),
  )
  def test_the_carry_of_another_layer_raises(self, saved, wanted, message):
    path = self.directory / 'carry.npz'
    carry = lambda name: jax.eval_shape(
        lambda: testing.LAYERS[name](nnx.Rngs(0)).initialize_carry(2)
    )
    zeros = jax.tree.map(lambda s: np.zeros(s.shape, s.dtype), carry(saved))
    layers.save_carry(path, zeros)
    with self.assertRaisesRegex(errors.UserValueError, message):
      layers.load_carry(path, carry(wanted))

  @parameterized.parameters(((3, 5), 'float32'), ((2, 5), 'bfloat16'))
  def test_another_size_or_dtype_raises(self, shape, dtype):
    path = self.directory / 'carry.npz'
    layers.save_carry(path, {'h': draw(2, 5)})
    with self.assertRaises(errors.UserValueError) as raised:
      layers.load_carry(path, {'h': jax.ShapeDtypeStruct(shape, dtype)})
    self.assertEqual(
        str(raised.exception),
        f"`carry['h']` must be {dtype} {shape}, got float32 (2, 5) in {path}.",
    )

  def test_a_changed_byte_raises_or_changes_nothing(self):
    path, want = self.directory / 'carry.npz', {'h': draw(2, 3), 'n': draw(0)}
    layers.save_carry(path, want)
    good = path.read_bytes()
    refused, places = 0, range(0, len(good), 3)
    for i in places:
      for bad in (good[:i], good[:i] + bytes([good[i] ^ 4]) + good[i + 1:]):
        path.write_bytes(bad)
        try:
          got = layers.load_carry(path, want)
        except errors.UserError as e:
          refused += 1
          self.assertLen(str(e).splitlines(), 1)
        else:
          assert_same_bits(got, want)  # A date, say.
    self.assertGreater(refused, 1.5 * len(places))

  def test_files_of_other_formats_raise(self):
    path = self.directory / 'other'
    array, archive, newer = io.BytesIO(), io.BytesIO(), io.BytesIO()
    np.save(array, draw(3))
    np.savez(archive, h=draw(3))
    record = json.dumps(dict(format=2, dtypes={}))
    np.savez(newer, rnnzoo_carry=np.array(record))
    for content in (
        b'', b'carry', array.getvalue(), archive.getvalue()
    ):
      path.write_bytes(content)
      with self.assertRaisesRegex(errors.UserValueError, 'not a file of save_'):
        layers.load_carry(path, draw(3))
    path.write_bytes(newer.getvalue())
    with self.assertRaisesRegex(errors.UserValueError, 'format 2, expected 1'):
      layers.load_carry(path, draw(3))
    with self.assertRaisesRegex(errors.UserFileNotFoundError, 'does not exist'):
      layers.load_carry(self.directory / 'nothing', draw(3))
    with self.assertRaisesRegex(errors.UserError, 'Cannot read .*directory'):
      layers.load_carry(self.directory, draw(3))

  def test_a_wrong_record_raises(self):
    path, like = self.directory / 'carry.npz', {'h': draw(1, 8)}
    name = "carry['h']"
    good = dict(format=1, dtypes={name: 'float32'})
    for record in (
        dict(dtypes=good['dtypes']), dict(format=1), [], 3, None, 'text',
        good | dict(dtypes=[name]), good | dict(dtypes={name: ['float32']}),
        good | dict(dtypes={name: 'float32', 'more': 'int8'}),
        good | dict(dtypes={}),
    ):
      entries = {'rnnzoo_carry': np.array(json.dumps(record)), name: like['h']}
      np.savez(path, **entries)
      with self.assertRaisesRegex(errors.UserValueError, 'not a file of save_'):
        layers.load_carry(path, like)

  @parameterized.parameters('ZIP_DEFLATED', 'ZIP_BZIP2', 'ZIP_LZMA')
  def test_compressed_entries_raise_before_they_are_read(self, method):
    """Before any is read: they may unpack to whatever size."""
    path, packed = self.directory / 'carry.npz', self.directory / 'packed.npz'
    like = {'h': draw(1, 8)}
    layers.save_carry(path, like)
    for chosen in ("carry['h'].npy", 'rnnzoo_carry.npy'):
      with zipfile.ZipFile(path) as old, zipfile.ZipFile(packed, 'w') as new:
        for name in old.namelist():
          how = getattr(zipfile, method) if name == chosen else 0
          new.writestr(name, old.read(name), how)
      with self.assertRaisesRegex(
          errors.UserValueError, 'packed.npz is not a file .*compressed entries'
      ), mock.patch.object(zipfile.ZipFile, 'open', side_effect=MemoryError):
        layers.load_carry(packed, like)

  def test_an_array_with_another_dtype_than_its_record_raises(self):
    path, name = self.directory / 'carry.npz', "carry['h']"
    like = {'h': draw(1, 8)}

    def load(stored, recorded='float32', like=like):
      record = json.dumps(dict(format=1, dtypes={name: recorded}))
      np.savez(path, **{'rnnzoo_carry': np.array(record), name: stored})
      return layers.load_carry(path, like)

    for wrong in (
        np.zeros((1, 8), np.int32), np.zeros((1, 8), np.float64),
        np.zeros((1, 4), np.float64), np.zeros((1, 8), 'S4'),
    ):
      with self.assertRaisesRegex(errors.UserValueError, 'is stored as .*flo'):
        load(wrong)
    with self.assertRaisesRegex(
        errors.UserValueError, 'float32.* got complex64'
    ):
      load(np.zeros((1, 8), np.complex64), 'complex64')
    # Whatever the order of its bytes, a number is that number.
    swapped = np.asarray(like['h']).astype('>f4')
    assert_same_bits(load(swapped), like)
    layers.save_carry(path, {'h': swapped})
    assert_same_bits(layers.load_carry(path, like), like)

  def test_saving_anything_but_numbers_raises(self):
    for carry in ({'h': 1.0}, {'h': jax.random.key(0)}):
      with self.assertRaisesRegex(ValueError, r"carry\['h'\]` must be an arr"):
        layers.save_carry(self.directory / 'carry.npz', carry)
    self.assertEmpty(os.listdir(self.directory))

  def test_a_failed_write_leaves_the_old_file(self):
    path = self.directory / 'carry.npz'
    layers.save_carry(path, {'h': draw(2)})
    with mock.patch.object(os, 'fsync', side_effect=OSError(28, 'No space')):
      with self.assertRaisesRegex(errors.UserError, f'{path}: No space'):
        layers.save_carry(path, {'h': draw(3)})
    self.assertEqual(os.listdir(self.directory), ['carry.npz'])
    layers.load_carry(path, {'h': draw(2)})
    with self.assertRaisesRegex(errors.UserError, 'Cannot write .*directory'):
      layers.save_carry(self.directory / 'none' / 'carry.npz', draw(1))
