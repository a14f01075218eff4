"""A training step on eight devices gives the same numbers, without gathers."""

import re

from absl.testing import absltest
from absl.testing import parameterized
from experiments.configs import default
from experiments.meshes import cases
from experiments.meshes import runs
from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np
from rnnzoo import layers
from rnnzoo import models
from rnnzoo.training import optimizers
from rnnzoo.training import sharding
from rnnzoo.training import state as state_lib
from tests import collectives

P = jax.sharding.PartitionSpec


def setUpModule():
  if len(jax.devices()) < 8:
    raise absltest.SkipTest('needs 8 devices')


class MeshTest(parameterized.TestCase):

  def test_losses_are_the_same_and_the_state_is_split(self):
    case = cases.make_case('model mixed')
    batches, state = case.batches(3), runs.first_state(case)
    one = runs.run(case, cases.ONE, state, batches)
    for sizes in ((1, 2, 2, 2), (2, 4, 1, 1)):
      found = runs.run(case, sizes, state, batches)
      np.testing.assert_allclose(found['losses'], one['losses'], rtol=1e-5)
      _, fsdp, model, _ = sizes
      share = one['all_state_bytes'] / (fsdp * model)
      self.assertLess(found['state_bytes'], 1.1 * share, sizes)
      # The only activations that move are the tails of convolutions and, if
      # the mesh splits channels, outputs of layers without a last linear map.
      moved = dict(found['activations_moved'])
      if model > 1:
        moved.pop('all-gather', None)
      biggest = cases.BATCH * cases.TIME * cases.FEATURES // 8
      for kind, size in moved.items():
        self.assertLess(size, biggest // 2, (sizes, kind))

  def test_the_first_state_is_the_same(self):
    case = cases.make_case('model mixed')
    want, got = runs.first_state(case), runs.first_state(case, (2, 2, 2, 1))
    jax.tree.map(np.testing.assert_array_equal, want, got)

  def test_a_cell_gathers_weights_before_its_loop(self):
    mesh = sharding.make_mesh(dict(data=2, fsdp=4, model=1, sequence=1))
    layer = layers.GRU(16, rngs=nnx.Rngs(0))
    graphdef, weights = nnx.split(layer)
    split = lambda w: jax.device_put(
        w, sharding.parameter_sharding(mesh, w.shape, w.get_metadata('axes'))
    )

    def loss(weights, x):
      return (nnx.merge(graphdef, weights)(x)[1] ** 2).sum()

    x = np.random.default_rng(0).standard_normal((8, 7, 16), np.float32)
    want = jax.jit(jax.grad(loss))(weights, x)
    with jax.set_mesh(mesh):
      placed = jax.tree.map(
          split, weights, is_leaf=lambda v: isinstance(v, nnx.Variable)
      )
      rows = jax.device_put(x, jax.NamedSharding(mesh, P(('data', 'fsdp'))))
      step = jax.jit(
          jax.grad(loss), compiler_options=collectives.QUICKLY
      ).lower(placed, rows).compile()
      got = step(placed, rows)
    jax.tree.map(
        lambda w, g: np.testing.assert_allclose(g, w, 1e-4, 1e-5), want, got
    )
    text = step.as_text()
    self.assertIn('all-gather', collectives.counts(text))
    for body in set(re.findall(r'body=%?([\w.\-]+)', text)):
      start = re.search(rf'^%?{re.escape(body)} \(.*$', text, re.MULTILINE)
      loop = text[start.start() : text.index('\n}', start.start())]
      self.assertEqual(collectives.counts(loop), {}, body)

  def test_recurrent_parameters_are_not_decayed(self):
    functional = state_lib.Functional(
        lambda rngs: models.LanguageModel(models.ModelConfig.tiny(), rngs=rngs)
    )
    config = default.get_config().optimizer
    config.warmup_steps = 0
    tx = optimizers.make_optimizer(
        config, 1, axes=functional.axes, recurrent=functional.recurrent
    )
    params, _ = functional.initialize(0)
    zeros = jax.tree.map(jnp.zeros_like, params)
    updates, _ = tx.update(zeros, tx.init(params), params)
    block = updates['backbone']['stacks']['0']
    self.assertEqual(float(jnp.abs(block['layer']['gates']['kernel']).max()), 0)
    self.assertEqual(float(jnp.abs(block['norm']['scale']).max()), 0)
    self.assertGreater(float(jnp.abs(block['mlp_in']['kernel']).max()), 0)


if __name__ == '__main__':
  absltest.main()
