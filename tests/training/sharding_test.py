"""Tests of `rnnzoo.training.sharding`, on eight devices."""

import types
from unittest import mock

from absl.testing import absltest
from absl.testing import parameterized
import jax
import jax.numpy as jnp
import numpy as np
import optax
from rnnzoo import errors
from rnnzoo.training import sharding

P = jax.sharding.PartitionSpec


def sizes(data=1, fsdp=1, model=1, sequence=1):
  return dict(data=data, fsdp=fsdp, model=model, sequence=sequence)


class ShardingTest(parameterized.TestCase):

  @parameterized.parameters(
      (sizes(data=8), (8, 1, 1, 1)),
      (sizes(data=-1), (8, 1, 1, 1)),
      (sizes(data=-1, fsdp=2, model=2), (2, 2, 2, 1)),
      (sizes(data=2, sequence=-1), (2, 1, 1, 4)),
  )
  def test_mesh(self, mesh, expected):
    mesh = sharding.make_mesh(mesh)
    self.assertEqual(tuple(mesh.shape.values()), expected)
    self.assertEqual(mesh.axis_names, sharding.MESH_AXES)
    self.assertEqual(
        set(mesh.axis_types), {jax.sharding.AxisType.Auto}
    )

  def test_one_device_of_eight(self):
    mesh = sharding.make_mesh(sizes(data=-1), jax.devices()[3:4])
    self.assertEqual(mesh.size, 1)

  @parameterized.parameters(
      (sizes(data=3), 'do not make up the 8 devices'),
      (sizes(data=-1, fsdp=3), 'do not make up the 8 devices'),
      (sizes(data=16), 'data=16.* do not make up'),
      (sizes(data=-1, fsdp=-1), 'one of them may be -1'),
      (sizes(fsdp=0, data=-1), 'must be positive'),
  )
  def test_bad_mesh(self, mesh, message):
    with self.assertRaisesRegex(errors.UserValueError, message):
      sharding.make_mesh(mesh)

  def test_batch_size(self):
    mesh = sharding.make_mesh(sizes(data=2, fsdp=2, model=2))
    sharding.check_batch_size(8, mesh, 2)
    with self.assertRaisesRegex(errors.UserValueError, 'a multiple of 8'):
      sharding.check_batch_size(12, mesh, 2)

  @parameterized.parameters(
      ((6, 8), ('embed', 'hidden'), P('fsdp', 'model')),
      ((6, 8), ('hidden', 'mlp'), P('model', None)),  # One axis, one use.
      ((3, 6, 8), ('layers', 'embed', 'mlp'), P(None, 'fsdp', 'model')),
      ((5, 8), ('embed', 'hidden'), P(None, 'model')),  # 5 does not divide.
      ((8,), (None,), P(None)),
  )
  def test_parameter(self, shape, axes, expected):
    mesh = sharding.make_mesh(sizes(data=2, fsdp=2, model=2))
    found = sharding.parameter_sharding(mesh, shape, axes)
    self.assertEqual(found.spec, expected)

  def test_an_axis_left_whole(self):
    mesh = sharding.make_mesh(sizes(data=2, fsdp=2, model=2))
    found = sharding.parameter_sharding(
        mesh, (8, 6), ('vocab', 'embed'), whole=('vocab',)
    )
    self.assertEqual(found.spec, P(None, 'fsdp'))

  def test_what_does_not_divide_is_an_error(self):
    mesh = sharding.make_mesh(sizes(fsdp=2, model=4))
    shape = lambda *shape: jax.ShapeDtypeStruct(shape, np.float32)
    params = dict(
        embed=dict(embedding=shape(65, 8)),
        head=dict(kernel=shape(8, 65), bias=shape(65)),
        norm=dict(scale=shape(2, 3)),
        layer=dict(low=shape(5, 8)),
    )
    axes = dict(
        embed=dict(embedding=('vocab', 'embed')),
        head=dict(kernel=('embed', 'vocab'), bias=('vocab',)),
        norm=dict(scale=('heads', None)),  # Vectors are not asked.
        layer=dict(low=('inner', 'hidden')),  # Nor are ranks.
    )
    with self.assertRaisesRegex(
        errors.UserValueError,
        r"size 65 of axis 'vocab' does not divide by mesh.model=4: "
        r"embed.embedding \(65, 8\) and 1 more.*\('vocab',\)",
    ):
      sharding.check_parameters(mesh, params, axes)
    sharding.check_parameters(mesh, params, axes, whole=('vocab',))
    with self.assertRaisesRegex(errors.UserValueError, 'Did you mean "vocab"'):
      sharding.check_parameters(mesh, params, axes, whole=('vocabs',))

  def test_parts_that_are_no_tiles(self):
    mesh = sharding.make_mesh(sizes(fsdp=4, model=2))
    params = dict(
        a=jax.ShapeDtypeStruct((96, 64), np.float32),
        b=jax.ShapeDtypeStruct((96, 8), np.float32),
        c=jax.ShapeDtypeStruct((64, 64), np.float32),
    )
    axes = dict(
        a=('embed', 'hidden'), b=('embed', 'heads'), c=('embed', 'hidden')
    )
    line, = sharding.tile_warnings(mesh, params, axes)
    self.assertRegex(
        line, r"mesh.fsdp=4 leaves 24 of the 96 of axis 'embed'.*\(a and 1 more"
    )
    self.assertEqual(
        sharding.tile_warnings(mesh, params, axes, whole=('embed',)), []
    )

  def test_state(self):
    mesh = sharding.make_mesh(sizes(data=2, fsdp=2, model=2))
    params = dict(w=jnp.ones((4, 6)), b=jnp.ones(6))
    tx = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(1e-3))
    state = dict(
        params=params, ema=params, batch_stats=dict(mean=jnp.ones(6)),
        opt_state=tx.init(params), step=jnp.int32(0),
        carry=(jnp.ones((3, 8, 6)),),
    )
    axes = dict(w=('embed', 'hidden'), b=('hidden',))
    found = sharding.state_shardings(mesh, state, tx, axes)
    placed = jax.device_put(state, found)
    specs = jax.tree.map(lambda x: x.sharding.spec, placed)
    like_params = dict(w=P('fsdp', 'model'), b=P('model'))
    self.assertEqual(specs['params'], like_params)
    self.assertEqual(specs['ema'], like_params)
    adam = specs['opt_state'][1][0]
    self.assertEqual((adam.mu, adam.nu), (like_params, like_params))
    self.assertEqual(adam.count, P())
    self.assertEqual(specs['batch_stats'], dict(mean=P()))
    self.assertEqual(specs['carry'], (P(None, ('data', 'fsdp')),))

  def test_batch(self):
    mesh = sharding.make_mesh(sizes(data=2, fsdp=2, model=2))
    rows = np.arange(8 * 3).reshape(8, 3)
    batch = sharding.global_batch(mesh, dict(inputs=rows))['inputs']
    np.testing.assert_array_equal(batch, rows)
    self.assertEqual(batch.addressable_shards[0].data.shape, (2, 3))
    several = sharding.global_batch(
        mesh, dict(inputs=np.stack([rows, rows])), stacked=True
    )['inputs']
    self.assertEqual(several.shape, (2, 8, 3))
    self.assertEqual(several.addressable_shards[0].data.shape, (2, 2, 3))

  def test_rows_that_the_devices_cannot_share(self):
    """Each device has the few rows of a long evaluation batch."""
    mesh = sharding.make_mesh(sizes(data=4, sequence=2))
    rows = np.arange(2 * 6).reshape(2, 6)
    batch = sharding.global_batch(mesh, dict(inputs=rows))['inputs']
    np.testing.assert_array_equal(batch, rows)
    self.assertEqual(batch.addressable_shards[0].data.shape, (2, 3))
    # As if there were two processes, with two of the four parts each.
    with (
        mock.patch.object(jax, 'process_count', lambda: 2),
        mock.patch.object(
            sharding.multihost, 'data_shard', lambda mesh: (0, 2)
        ),
    ):
      sharding.check_batch(mesh, dict(inputs=np.zeros((4, 8))))
      with self.assertRaisesRegex(
          errors.UserValueError, 'The 2 devices .* cannot share the 3 rows'
      ):
        sharding.check_batch(mesh, dict(inputs=np.zeros((3, 8))))

  @parameterized.parameters(False, True)
  def test_batch_over_time(self, stacked):
    mesh = sharding.make_mesh(sizes(data=2, sequence=4))
    front = (2,) if stacked else ()
    batch = dict(
        inputs=np.zeros((*front, 4, 8, 3)),
        reset=np.zeros((*front, 4, 8), bool),
        labels=np.zeros((*front, 4)),
    )
    batch = sharding.global_batch(mesh, batch, stacked=stacked)
    shapes = {k: u.addressable_shards[0].data.shape for k, u in batch.items()}
    want = dict(inputs=(2, 2, 3), reset=(2, 2), labels=(2,))
    self.assertEqual(shapes, {k: (*front, *v) for k, v in want.items()})

  def test_time_must_divide(self):
    mesh = sharding.make_mesh(sizes(data=2, sequence=4))
    with self.assertRaisesRegex(
        errors.UserValueError, '30 tokens .* mesh.sequence=4'
    ):
      sharding.global_batch(mesh, dict(inputs=np.zeros((2, 30), np.int32)))
    # As if half of it were another process's.
    owners = [[types.SimpleNamespace(process_index=i // 2) for i in range(4)]]
    halved = types.SimpleNamespace(
        shape=mesh.shape, devices=np.array(owners * 2)
    )
    with self.assertRaisesRegex(errors.UserValueError, 'beyond one process'):
      sharding.check_sequence_length(32, halved)


if __name__ == '__main__':
  absltest.main()
