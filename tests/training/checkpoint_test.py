"""Tests of `rnnzoo.training.checkpoint`, on real files."""

import gc
import json
import logging as python_logging
import os
import pathlib
import resource
import shutil
import subprocess
import sys
import tempfile
from unittest import mock

from absl import logging
from absl.testing import absltest
from absl.testing import parameterized
import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
from orbax.checkpoint._src.serialization import tensorstore_utils
from rnnzoo import errors
from rnnzoo.training import checkpoint
from rnnzoo.training.checkpoint import arrays
from rnnzoo.training.checkpoint import digests
from rnnzoo.training.checkpoint import orbax_context

P = jax.sharding.PartitionSpec
META = {'config': {'model': {'layer': 'min_gru'}}, 'vocabulary': 'abcé'}


def make_mesh():
  return jax.make_mesh(
      (4, 2), ('data', 'model'), axis_types=(jax.sharding.AxisType.Auto,) * 2
  )


def make_state(step=0):
  """A state with an optimiser's, every value a function of `step`."""
  w = np.random.default_rng(0).standard_normal((64, 96), np.float32)
  b = jnp.full((96,), step, jnp.bfloat16)
  params = {'w': jnp.asarray(w + step), 'b': b}
  opt_state = optax.chain(
      optax.clip_by_global_norm(1.0), optax.adam(1e-3)
  ).init(params)
  return {'params': params, 'opt_state': opt_state, 'step': jnp.int32(step)}


def abstract(state, sharding=None):
  return jax.tree.map(
      lambda x: jax.ShapeDtypeStruct(
          x.shape, x.dtype, sharding=sharding or x.sharding
      ),
      state,
  )


def slow_digest(array):
  """The documented digest of an array of at most 8-byte elements."""
  total = 0
  words = array.reshape(-1).view(f'u{array.itemsize}')
  for position, bits in enumerate(words.tolist()):
    x = (position * 0x9E3779B97F4A7C15 + bits) % 2**64
    x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9 % 2**64
    x = (x ^ (x >> 27)) * 0x94D049BB133111EB % 2**64
    total += x ^ (x >> 31)
  return total % 2**64


def largest_file(directory):
  files = [path for path in directory.rglob('*') if path.is_file()]
  return max(files, key=lambda path: path.stat().st_size)


def flip_bit(path, position, bit=0):
  data = bytearray(path.read_bytes())
  data[position] ^= 1 << bit
  path.write_bytes(data)


class CheckpointTestCase(parameterized.TestCase):

  def setUp(self):
    super().setUp()
    self.workdir = pathlib.Path(
        self.enter_context(tempfile.TemporaryDirectory())
    )
    self.directory = self.workdir / 'checkpoints'

  def open(self, **options):
    """Opens a checkpointer that is closed at the end of the test."""
    return self.enter_context(
        checkpoint.Checkpointer(self.directory, **options)
    )

  def assert_states_equal(self, actual, expected):
    self.assertEqual(jax.tree.structure(actual), jax.tree.structure(expected))
    for x, y in zip(jax.tree.leaves(actual), jax.tree.leaves(expected)):
      self.assertEqual(x.dtype, y.dtype)
      np.testing.assert_array_equal(np.asarray(x), np.asarray(y))


class DigestTest(parameterized.TestCase):

  @parameterized.parameters(
      'bool', 'int8', 'uint32', 'bfloat16', 'float32', 'complex64'
  )
  def test_digests_are_the_documented_sum_for_any_sharding(self, dtype):
    values = np.random.default_rng(1).integers(0, 2, (8, 3, 4)) * 3
    array = jnp.asarray(values).astype(dtype)
    expected = slow_digest(np.asarray(array))
    mesh = make_mesh()
    for spec in (
        P(), P('data'), P('model', None, 'data'), P(None, None, 'model'),
        P(('data', 'model')),
    ):
      sharded = jax.device_put(array, jax.sharding.NamedSharding(mesh, spec))
      self.assertEqual(digests.local_digest(sharded), expected, spec)

  def test_digests_do_not_depend_on_the_block_size(self):
    rng = np.random.default_rng(2)
    for shape in ((3, digests.BLOCK + 7), (digests.BLOCK // 4, 9)):
      array = rng.integers(0, 256, shape, dtype=np.uint8)
      whole = digests.shard_sum(array, (slice(None),) * 2, shape)
      parts = 0
      for index in np.ndindex(3, 2):
        index = tuple(
            slice(n * i // k, n * (i + 1) // k)
            for i, k, n in zip(index, (3, 2), shape)
        )
        parts += digests.shard_sum(array[index], index, shape)
      self.assertEqual(whole, parts % 2**64)
      self.assertEqual(whole, slow_digest(array))

  def test_digests_depend_on_each_bit_and_on_the_order(self):
    for dtype in (np.float16, np.complex128):
      array = np.arange(6).astype(dtype)
      sums = {digests.shard_sum(array, (slice(None),), (6,))}
      for i in range(array.nbytes * 8):
        flipped = array.copy()
        flipped.view(np.uint8)[i // 8] ^= 1 << (i % 8)
        sums.add(digests.shard_sum(flipped, (slice(None),), (6,)))
      for i in range(5):
        swapped = array.copy()
        swapped[[i, i + 1]] = swapped[[i + 1, i]]
        sums.add(digests.shard_sum(swapped, (slice(None),), (6,)))
      self.assertLen(sums, 1 + array.nbytes * 8 + 5)

  def test_digests_of_scalars_and_empty_arrays(self):
    scalar = jnp.float32(2.5)
    self.assertEqual(
        digests.local_digest(scalar), slow_digest(np.asarray(scalar)[None])
    )
    self.assertEqual(digests.local_digest(jnp.zeros((0, 3))), 0)


class CheckpointerTest(CheckpointTestCase):

  def test_saving_and_restoring_a_state(self):
    state = make_state(3)
    state['odd'] = {
        'bool': jnp.array([True, False]), 'complex': jnp.array([1 + 2j]),
        'half': jnp.ones((2, 2), jnp.float16), 'empty': jnp.zeros((0, 3)),
        'list': [jnp.uint32(7), {1: jnp.int8(-1)}],
    }
    with checkpoint.Checkpointer(self.directory) as checkpoints:
      self.assertTrue(checkpoints.save(3, state, META))
    step, restored, meta = self.open().restore(abstract(state))
    self.assertEqual((step, meta), (3, META))
    self.assert_states_equal(restored, state)
    self.assertEqual(checkpoint.restore_meta(self.directory), (3, META))

  def test_plain_orbax_reads_the_checkpoint(self):
    state = make_state(3)
    with checkpoint.Checkpointer(self.directory) as checkpoints:
      checkpoints.save(3, state, META)
    with ocp.CheckpointManager(self.directory) as manager:
      read = manager.restore(3, args=ocp.args.Composite(
          state=ocp.args.StandardRestore(), meta=ocp.args.JsonRestore()
      ))
    self.assertEqual(read['meta']['meta'], META)
    self.assertEqual(
        read['meta']['leaves']['params/b'],
        {'dtype': 'bfloat16', 'shape': [96],
         'digest': f'{slow_digest(np.asarray(state["params"]["b"])):016x}'},
    )
    self.assert_states_equal(read['state']['params'], state['params'])
    np.testing.assert_array_equal(
        read['state']['opt_state']['1']['0']['mu']['w'],
        state['opt_state'][1][0].mu['w'],
    )

  def test_restoring_to_another_sharding(self):
    mesh = make_mesh()
    spread = jax.sharding.NamedSharding(mesh, P('data', 'model'))
    single = jax.sharding.SingleDeviceSharding(jax.devices()[5])
    w = make_state(1)['params']['w']
    checkpoints = self.open()
    for step, before, after in ((1, spread, single), (2, single, spread)):
      state = {'w': jax.device_put(w + step, before)}
      checkpoints.save(step, state, {})
      _, restored, _ = checkpoints.restore(abstract(state, after))
      self.assertEqual(restored['w'].sharding, after)
      self.assert_states_equal(restored, state)
    # No sharding asked for: one device.
    unplaced = {'w': jax.ShapeDtypeStruct(w.shape, w.dtype)}
    _, restored, _ = checkpoints.restore(unplaced)
    self.assertLen(restored['w'].devices(), 1)

  def test_arrays_may_be_donated_at_once(self):
    @jax.jit
    def start():
      return {'w': jnp.arange(2**20, dtype=jnp.float32)}

    update = jax.jit(
        lambda s: {'w': s['w'] * 1.5 + 1}, donate_argnums=0
    )
    checkpoints = self.open(keep=9)
    state, expected = start(), {}
    for step in range(1, 5):
      state = update(state)
      expected[step] = np.array(state['w'])
      state = update(state)
      expected[step, 'next'] = np.array(state['w'])
    state = start()
    for step in range(1, 5):
      state = update(state)
      checkpoints.save(step, state, {})
      state = update(state)
      np.testing.assert_array_equal(state['w'], expected[step, 'next'])
    for step in range(1, 5):
      _, restored, _ = checkpoints.restore(abstract(state), step=step)
      np.testing.assert_array_equal(restored['w'], expected[step])

  def test_keeps_the_latest_and_the_best(self):
    state = {'w': jnp.ones(3)}
    checkpoints = self.open(keep=2)
    self.assertIsNone(checkpoints.latest_step())
    self.assertIsNone(checkpoints.best_step())
    losses = [3.0, 1.0, 2.0, float('nan'), None, 1.0]
    for step, loss in enumerate(losses, start=1):
      checkpoints.save(step, state, {}, best_metric=loss)
    checkpoints.wait()
    self.assertEqual(checkpoints.all_steps(), [2, 5, 6])
    self.assertEqual(checkpoints.best_step(), 2)  # Not 6, which only equals it.
    checkpoints = self.open(keep=2)
    self.assertEqual(checkpoints.best_step(), 2)
    self.assertEqual(checkpoints.restore(state, best=True)[0], 2)
    self.assertEqual(checkpoints.restore(state)[0], 6)
    checkpoints.save(7, state, {}, best_metric=0.5)
    checkpoints.wait()
    self.assertEqual(checkpoints.all_steps(), [6, 7])
    self.assertEqual(
        sorted(path.name for path in self.directory.iterdir()), ['6', '7']
    )

  def test_max_mode_keeps_the_highest_metric(self):
    state = {'w': jnp.ones(3)}
    checkpoints = self.open(keep=1, best_mode='max')
    accuracies = [0.5, 0.75, float('nan'), None, 0.75, 0.25]
    for step, accuracy in enumerate(accuracies, start=1):
      checkpoints.save(step, state, {}, best_metric=accuracy)
    checkpoints.wait()
    self.assertEqual(checkpoints.all_steps(), [2, 6])
    self.assertEqual(checkpoints.best_step(), 2)  # Not 5, which only equals it.
    self.assertEqual(checkpoints.metrics, {2: 0.75, 6: 0.25})
    # A reader need not know the mode.
    reader = self.open(readonly=True)
    self.assertEqual(reader.restore(state, best=True)[0], 2)
    self.assertEqual(checkpoint.restore_meta(self.directory, best=True)[0], 2)

  def test_metrics_of_the_other_mode_do_not_count(self):
    state = {'w': jnp.ones(3)}
    with checkpoint.Checkpointer(self.directory) as checkpoints:
      checkpoints.save(1, state, {}, best_metric=9.0)  # A loss.
    with checkpoint.Checkpointer(self.directory, best_mode='max') as other:
      self.assertEqual(other.metrics, {})
      self.assertIsNone(other.best_step())
      self.assertEqual(other.restore(state, best=True)[0], 1)
      other.save(1, state, {}, best_metric=0.25)
      other.save(2, state, {}, best_metric=0.5)
      self.assertEqual(other.metrics, {1: 0.25, 2: 0.5})
    self.assertEqual(self.open(readonly=True).best_step(), 2)

  def test_min_mode_is_the_default_and_not_recorded(self):
    records = {}
    for mode in ('min', 'max'):
      directory = self.workdir / mode
      with checkpoint.Checkpointer(directory, best_mode=mode) as checkpoints:
        checkpoints.save(1, {'w': jnp.ones(3)}, META, best_metric=0.5)
      records[mode] = json.loads((directory / '1/meta/metadata').read_text())
    self.assertCountEqual(
        records['min'], ['format', 'step', 'meta', 'metric', 'leaves', 'sha256']
    )
    self.assertEqual(records['max']['best_mode'], 'max')

  def test_a_step_saved_twice_only_notes_its_metric(self):
    state = {'w': jnp.ones(3)}
    checkpoints = self.open(keep=1)
    self.assertTrue(checkpoints.save(1, state, META))
    self.assertFalse(checkpoints.save(1, state, META, best_metric=2.0))
    self.assertFalse(checkpoints.save(1, state, META))
    self.assertEqual(checkpoints.best_step(), 1)
    checkpoints.save(2, state, META)
    checkpoints.wait()
    reopened = self.open(readonly=True)
    self.assertEqual(reopened.all_steps(), [1, 2])
    self.assertEqual(reopened.best_step(), 1)
    self.assertEqual(reopened.restore(state, step=1)[2], META)

  def test_wrong_arguments_raise(self):
    state = {'w': jnp.ones(3)}
    checkpoints = self.open()
    checkpoints.save(5, state, {})
    with self.assertRaisesRegex(ValueError, 'after the latest checkpoint, 5'):
      checkpoints.save(4, state, {})
    with self.assertRaisesRegex(ValueError, '`meta` must be JSON'):
      checkpoints.save(6, state, {'x': object()})
    for bad in (np.ones(3), 2.0, jax.random.key(0)):
      with self.assertRaisesRegex(ValueError, 'at a/b'):
        checkpoints.save(6, {'a': {'b': bad}}, {})
    with self.assertRaisesRegex(ValueError, 'twice'):
      checkpoints.save(6, {'a': {'b': jnp.ones(1)}, 'a/b': jnp.ones(1)}, {})
    with self.assertRaisesRegex(ValueError, 'keep'):
      self.open(keep=0)
    with self.assertRaisesRegex(ValueError, "'min' or 'max', got 'lowest'"):
      self.open(best_mode='lowest')
    with self.assertRaisesRegex(ValueError, 'readonly'):
      self.open(readonly=True).save(7, state, {})
    (self.workdir / 'file').write_text('')
    with self.assertRaisesRegex(errors.UserError, 'file.*: not a directory'):
      checkpoint.Checkpointer(self.workdir / 'file')

  def test_nothing_to_restore(self):
    for readonly in (True, False):
      checkpoints = self.open(readonly=readonly)
      with self.assertRaisesRegex(
          errors.UserFileNotFoundError, 'There is no checkpoint in '
      ):
        checkpoints.restore({'w': jnp.ones(3)})
      self.assertEqual(self.directory.exists(), not readonly)
    checkpoints.save(1, {'w': jnp.ones(3)}, {})
    with self.assertRaisesRegex(
        errors.UserFileNotFoundError, 'no checkpoint 2 '
    ):
      checkpoints.restore({'w': jnp.ones(3)}, step=2)

  def test_restoring_a_part_of_the_state(self):
    state = make_state(3)
    with checkpoint.Checkpointer(self.directory) as checkpoints:
      checkpoints.save(3, state, META)
    wanted = {'params': abstract(state['params'])}
    _, restored, _ = self.open(readonly=True).restore(wanted, partial=True)
    self.assert_states_equal(restored, {'params': state['params']})

  def test_narrow_floats_are_widened_and_other_dtypes_raise(self):
    narrow = {
        'b': jnp.linspace(0, 1, 8, dtype=jnp.bfloat16),
        'h': jnp.ones(2, jnp.float16),
    }
    checkpoints = self.open()
    checkpoints.save(1, narrow, META)
    wide = jax.tree.map(lambda x: x.astype(jnp.float32), narrow)
    _, restored, _ = checkpoints.restore(abstract(wide))
    self.assert_states_equal(restored, wide)
    checkpoints.save(2, wide | {'i': jnp.int16(3)}, META)
    for name, dtype in (('b', 'bfloat16'), ('i', 'float32'), ('h', 'float16')):
      like = {name: jnp.zeros(jnp.shape(wide.get(name, 0)), dtype)}
      with self.assertRaisesRegex(errors.UserError, f'{name} is .* {dtype}'):
        checkpoints.restore(abstract(like), partial=True)

  def test_a_checkpoint_of_another_model_raises_and_is_not_damaged(self):
    state = make_state(3)
    checkpoints = self.open()
    checkpoints.save(3, state, META)
    other = make_state(3)
    other['params']['w'] = jnp.ones((8, 96))
    other['params']['new'] = jnp.ones(2)
    other['step'] = jnp.float32(1)
    with self.assertRaisesRegex(
        errors.UserError,
        r'Checkpoint 3 in .* another model or optimizer: '
        r'params/new \(float32\[2\]\) is not in the checkpoint; params/w is '
        r'float32\[64, 96\] in the checkpoint and float32\[8, 96\] here; '
        r'step is int32\[\] in the checkpoint and float32\[\] here\.$',
    ):
      checkpoints.restore(other)
    with self.assertRaisesRegex(errors.UserError, '/1/0/count is only'):
      checkpoints.restore({'params': state['params'], 'step': state['step']})
    self.assertEqual(checkpoints.all_steps(), [3])
    self.assert_states_equal(checkpoints.restore(state)[1], state)

  def test_leftovers_of_killed_saves_are_removed(self):
    state = {'w': jnp.ones(3)}
    with checkpoint.Checkpointer(self.directory) as checkpoints:
      checkpoints.save(1, state, {})
    for name in ('2.orbax-checkpoint-tmp', '3.orbax-checkpoint-tmp-17'):
      (self.directory / name / 'state').mkdir(parents=True)
      (self.directory / name / 'state' / 'file').write_text('half')
    reader = self.open(readonly=True)
    self.assertEqual(reader.all_steps(), [1])
    self.assertLen(list(self.directory.iterdir()), 3)
    checkpoints = self.open()
    self.assertEqual(checkpoints.restore(state)[0], 1)
    self.assertLen(list(self.directory.iterdir()), 1)
    self.assertTrue(checkpoints.save(2, state, {}))
    self.assertEqual(checkpoints.restore(state)[0], 2)

  def test_a_reader_notices_that_a_run_deletes_checkpoints(self):
    state = {'w': jnp.ones(3)}
    writer = self.open(keep=1)
    writer.save(1, state, {}, best_metric=3.0)
    writer.wait()
    reader = self.open(readonly=True)
    writer.save(2, state, {}, best_metric=2.0)
    writer.wait()
    self.assertEqual(reader.all_steps(), [1])  # It is no longer there.
    with self.assertNoLogs('absl', 'WARNING'):
      self.assertEqual(reader.restore(state, best=True)[0], 2)
    restore = arrays.restore  # And in the midst of reading.

    def late(directory, *args):
      if directory.parent.name == '2':
        writer.save(3, state, {}, best_metric=1.0)
        writer.wait()
      return restore(directory, *args)

    with mock.patch.object(arrays, 'restore', late):
      with self.assertNoLogs('absl', 'WARNING'):
        self.assertEqual(reader.restore(state, best=True)[0], 3)
    with self.assertRaisesRegex(
        errors.UserFileNotFoundError, 'no checkpoint 2 '
    ):
      reader.restore(state, step=2)

  def test_saves_keep_no_memory(self):
    state = {f'w{i}': jnp.ones((2, 2)) for i in range(20)}
    checkpoints = self.open(keep=1)

    def blocks(first, count):
      for step in range(first, first + count):
        checkpoints.save(step, state, META)
        checkpoints.restore(state)
      gc.collect()
      return sys.getallocatedblocks()

    before = blocks(1, 4)  # Caches are full then.
    # Of TensorStore's JSON 4 for each array and 130 for each of four looks at
    # its metrics, without `leaks.avoided`.
    self.assertLess((blocks(5, 4) - before) / 4, 200)


class OrbaxContextTest(CheckpointTestCase):

  def test_nothing_is_changed_at_import(self):
    program = """
import logging, sys, warnings
import orbax.checkpoint
from absl import logging as absl_logging
from orbax.checkpoint._src.serialization import tensorstore_utils
import rnnzoo.training.memory, rnnzoo.training.records
def settings():
  loggers = absl_logging.get_absl_logger(), logging.getLogger('asyncio')
  return (
      sys.unraisablehook, tensorstore_utils.ts, warnings.filters[:],
      [logger.filters[:] for logger in loggers],
  )
before = settings()
import rnnzoo.training.checkpoint
assert settings() == before
"""
    subprocess.run([sys.executable, '-c', program], check=True)

  def test_all_is_restored_when_the_last_checkpointer_closes(self):
    def settings():
      loggers = logging.get_absl_logger(), python_logging.getLogger('asyncio')
      return (
          sys.unraisablehook, tensorstore_utils.ts,
          [logger.filters[:] for logger in loggers],
      )

    # After a failure, of another test here, some of it stays.
    self.enterContext(mock.patch.object(orbax_context, '_has_failed', False))
    before = settings()
    first = checkpoint.Checkpointer(self.directory)
    during = settings()
    self.assertIsNot(during[1], before[1])
    second = checkpoint.Checkpointer(self.directory, readonly=True)
    self.assertEqual(settings(), during)
    first.close()
    self.assertEqual(settings(), during)
    second.close()
    self.assertEqual(settings(), before)
    (self.workdir / 'file').write_text('')
    with self.assertRaises(errors.UserError):
      checkpoint.Checkpointer(self.workdir / 'file')
    self.assertEqual(settings(), before)


class DamageTest(CheckpointTestCase):

  def setUp(self):
    super().setUp()
    self.states = {step: make_state(step) for step in (1, 2)}
    with checkpoint.Checkpointer(self.directory) as checkpoints:
      for step, state in self.states.items():
        checkpoints.save(step, state, META | {'step': step}, best_metric=step)

  def assert_falls_back(self, reason):
    """Restores; checks that 1 came back, 2 was moved, and 2 saves again."""
    checkpoints = self.open()
    with self.assertLogs('absl', 'WARNING') as logs:
      step, state, meta = checkpoints.restore(abstract(self.states[1]))
    self.assertEqual((step, meta['step']), (1, 1))
    self.assert_states_equal(state, self.states[1])
    self.assertLen(logs.records, 1)
    self.assertRegex(
        logs.records[0].getMessage(),
        rf'^Checkpoint 2 is damaged: .*{reason}.*bad_checkpoints/2\S*\. Trying',
    )
    self.assertEqual(checkpoints.all_steps(), [1])
    self.assertTrue(checkpoints.save(2, self.states[2], META, best_metric=2))
    checkpoints.wait()
    step, state, _ = self.open().restore(abstract(self.states[2]))
    self.assertEqual(step, 2)
    self.assert_states_equal(state, self.states[2])

  def test_a_flipped_bit_falls_back_to_the_step_before(self):
    rng = np.random.default_rng(3)
    for i in range(6):
      path = largest_file(self.directory / '2' / 'state')
      # Each is a bit of the weights, which do not compress: none is unused.
      flip_bit(path, rng.integers(100, path.stat().st_size // 2), i)
      self.assert_falls_back('/w is not what was written')
    self.assertLen(list((self.workdir / 'bad_checkpoints').iterdir()), 6)

  def test_no_flipped_bit_anywhere_gives_wrong_values(self):
    rng = np.random.default_rng(4)
    paths = [p for p in (self.directory / '2').rglob('*') if p.is_file()]
    self.assertGreater(len(paths), 5)
    for path in paths:
      whole = path.read_bytes()
      for _ in range(2):
        flip_bit(path, rng.integers(len(whole)), rng.integers(8))
        reader = self.open(readonly=True)
        step, state, meta = reader.restore(abstract(self.states[2]))
        self.assertEqual(meta['step'], step)
        self.assert_states_equal(state, self.states[step])
        path.write_bytes(whole)

  def test_truncated_and_missing_files_fall_back_too(self):
    for name, damage in (
        ('data', lambda path: os.truncate(path, path.stat().st_size // 2)),
        ('data', lambda path: path.unlink()),
        ('meta/metadata', lambda path: os.truncate(path, 40)),
        ('meta/metadata', lambda path: path.unlink()),
        ('meta/metadata', lambda path: flip_bit(path, 30)),
        ('meta/metadata', lambda path: path.write_bytes(b'[' * 100_000)),
        ('meta/metadata', lambda path: path.write_bytes(b'[]')),
        ('meta/metadata', lambda path: (path.unlink(), path.mkdir())),
        ('state/_METADATA', lambda path: path.write_bytes(b'[' * 100_000)),
        ('state/manifest.ocdbt', lambda path: path.unlink()),
    ):
      with self.subTest(name):
        path = self.directory / '2' / name
        path = largest_file(self.directory / '2') if name == 'data' else path
        damage(path)
        self.assert_falls_back('metadata' if 'metadata' in name else 'arrays')

  def test_files_behind_links_are_not_changed(self):
    elsewhere = self.workdir / 'elsewhere'
    (elsewhere / '3.orbax-checkpoint-tmp').mkdir(parents=True)
    state = abstract(self.states[1])
    for path in self.workdir / 'bad_checkpoints', self.directory / '3':
      path.symlink_to(elsewhere)
      with self.subTest(path.name), self.assertRaisesRegex(
          errors.UserError, f'{path} is a symbolic link, and a run'
      ):
        checkpoint.Checkpointer(self.directory)
      path.unlink()
    self.assertTrue((elsewhere / '3.orbax-checkpoint-tmp').exists())
    # Readers may go through links; a workdir and `checkpoints` may be links.
    linked = self.workdir / 'linked'
    linked.symlink_to(self.directory)
    self.assertEqual(checkpoint.restore_meta(linked)[0], 2)
    with checkpoint.Checkpointer(linked) as checkpoints:
      checkpoints.save(3, self.states[1], META)
    self.assertTrue((self.directory / '3').is_dir())
    shutil.rmtree(self.directory / '3')
    linked.unlink()
    linked.symlink_to(self.workdir)
    with checkpoint.Checkpointer(linked / 'checkpoints') as checkpoints:
      self.assertEqual(checkpoints.metrics, {1: 1.0, 2: 2.0})
      # What a damaged record is noted in, as a link, is replaced.
      meta = self.directory / '2' / 'meta'
      (meta / 'metadata.new').symlink_to(elsewhere / 'precious')
      (elsewhere / 'precious').write_text('mine')
      checkpoints.note(2, META)
      self.assertEqual((elsewhere / 'precious').read_text(), 'mine')
      self.assertEqual(checkpoints.restore(state)[2], META)

  def test_readers_move_nothing(self):
    flip_bit(largest_file(self.directory / '2' / 'state'), 300)
    checkpoints = self.open(readonly=True)
    with self.assertLogs('absl', 'WARNING'):
      step, state, _ = checkpoints.restore(abstract(self.states[1]))
    self.assertEqual(step, 1)
    self.assert_states_equal(state, self.states[1])
    self.assertEqual(
        sorted(path.name for path in self.workdir.rglob('[12]')), ['1', '2']
    )
    self.assertFalse((self.workdir / 'bad_checkpoints').exists())

  def test_a_damaged_checkpoint_that_was_asked_for_raises(self):
    flip_bit(largest_file(self.directory / '2' / 'state'), 300)
    checkpoints = self.open()
    with self.assertRaisesRegex(errors.UserError, 'Checkpoint 2 in .* damaged'):
      checkpoints.restore(abstract(self.states[2]), step=2)
    self.assertEqual(checkpoints.all_steps(), [1, 2])

  def test_a_damaged_best_checkpoint_falls_back_to_the_latest(self):
    flip_bit(largest_file(self.directory / '1' / 'state'), 300)
    checkpoints = self.open(readonly=True)
    self.assertEqual(checkpoints.best_step(), 1)
    with self.assertLogs('absl', 'WARNING'):
      self.assertEqual(checkpoints.restore(self.states[1], best=True)[0], 2)

  def test_no_sound_checkpoint_raises(self):
    for step in (1, 2):
      flip_bit(largest_file(self.directory / str(step) / 'state'), 300)
    checkpoints = self.open()
    with self.assertLogs('absl', 'WARNING'):
      with self.assertRaisesRegex(errors.UserError, 'all 2 are damaged, now'):
        checkpoints.restore(abstract(self.states[1]))
    self.assertEqual(checkpoints.all_steps(), [])

  def test_a_save_on_a_full_disk_raises_and_keeps_the_others(self):
    checkpoints = self.open()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (8192, hard))
    try:
      with self.assertRaisesRegex(
          errors.UserError,
          'Cannot save checkpoint 3 in .*: File too large. The latest one kept '
          'is 2.',
      ):
        checkpoints.save(3, self.states[2], META, best_metric=0)
        checkpoints.wait()
    finally:
      resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    self.assertEqual(checkpoints.all_steps(), [1, 2])
    self.assertEqual(checkpoints.best_step(), 1)
    self.assertTrue(checkpoints.save(3, self.states[2], META))
    step, state, _ = checkpoints.restore(abstract(self.states[2]))
    self.assertEqual(step, 3)
    self.assert_states_equal(state, self.states[2])

  def test_failures_print_one_readable_line_each(self):
    """Neither Orbax's logs nor tracebacks of its threads reach the terminal."""
    os.truncate(largest_file(self.directory / '2'), 300)
    program = f"""
import gc, resource
from absl import logging
import jax.numpy as jnp, numpy as np
from rnnzoo import errors
from rnnzoo.training import checkpoint
from rnnzoo.training.checkpoint import digests
logging.use_absl_handler()
logging.set_verbosity(logging.INFO)
noise = np.random.default_rng(0).standard_normal((20, 100, 100), np.float32)
state = {{'w': {{str(i): jnp.asarray(x) for i, x in enumerate(noise)}}}}
with checkpoint.Checkpointer({str(self.directory)!r}) as checkpoints:
  params = {{'params': {{'w': jnp.zeros((64, 96))}}}}
  checkpoints.restore(params, partial=True)
  checkpoints.save(5, state, {{}})
  checkpoints.wait()
  resource.setrlimit(resource.RLIMIT_FSIZE, (8192, 8192))
  try:
    checkpoints.save(6, state, {{}})
    checkpoints.wait()
  except errors.UserError as e:
    print(e)
gc.collect()
"""
    done = subprocess.run(
        [sys.executable, '-c', program], capture_output=True, text=True,
        check=False,
    )
    self.assertEqual(done.returncode, 0, done.stderr)
    self.assertEqual(done.stdout.count('\n'), 1)
    self.assertIn('Cannot save checkpoint 6', done.stdout)
    lines = done.stderr.splitlines()
    lines = [x for x in lines if ' directory.py' in x or x[0] not in 'IW']
    self.assertLen(lines, 1, done.stderr)
    self.assertIn('Checkpoint 2 is damaged: its arrays', lines[0])


if __name__ == '__main__':
  absltest.main()
