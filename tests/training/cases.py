"""What the tests of checkpoints share: states, digests, directories."""

import pathlib
import tempfile

from absl.testing import parameterized
import jax
import jax.numpy as jnp
import numpy as np
import optax
from rnnzoo.training import checkpoint

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
