"""Tests of `checkpoint.digests`: one bit, any sharding."""


from absl.testing import absltest
from absl.testing import parameterized
import jax
import jax.numpy as jnp
import numpy as np
from rnnzoo.training.checkpoint import digests
from tests.training import cases

P = jax.sharding.PartitionSpec


class DigestTest(parameterized.TestCase):

  @parameterized.parameters(
      'bool', 'int8', 'uint32', 'bfloat16', 'float32', 'complex64'
  )
  def test_digests_are_the_documented_sum_for_any_sharding(self, dtype):
    values = np.random.default_rng(1).integers(0, 2, (8, 3, 4)) * 3
    array = jnp.asarray(values).astype(dtype)
    expected = cases.slow_digest(np.asarray(array))
    mesh = cases.make_mesh()
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
      self.assertEqual(whole, cases.slow_digest(array))

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
        digests.local_digest(scalar),
        cases.slow_digest(np.asarray(scalar)[None]),
    )
    self.assertEqual(digests.local_digest(jnp.zeros((0, 3))), 0)


if __name__ == '__main__':
  absltest.main()
