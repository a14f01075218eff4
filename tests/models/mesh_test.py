"""A whole training step on eight devices: sharded, and without big gathers."""

from absl.testing import absltest
from absl.testing import parameterized
import jax
import jax.numpy as jnp
from ml_collections import ConfigDict
import numpy as np
from rnnzoo import models
from rnnzoo.training import losses
from rnnzoo.training import optimizers
from rnnzoo.training import sharding
from rnnzoo.training import state as state_lib
from rnnzoo.training import step as step_lib
from tests import collectives

B, T, D, V = 16, 64, 16, 32
OPTIMIZER = ConfigDict(dict(
    name='adamw', learning_rate=1e-2, end_learning_rate=1e-3, warmup_steps=0,
    schedule='constant', weight_decay=0.1, recurrent_rate_factor=0.5, clip=1.0,
    options={}, freeze=(),
))


def train(mesh_sizes, steps, layer, devices=None):
  """Runs a few steps; returns losses, the state and the compiled text."""
  config = models.ModelConfig.tiny().replace(
      layer=layer, features=D, vocab_size=V, conv_kernel=3, norm='batch'
  )
  functional = state_lib.Functional(
      lambda rngs: models.LanguageModel(config, rngs=rngs)
  )
  tx = optimizers.make_optimizer(
      OPTIMIZER, steps, axes=functional.axes, recurrent=functional.recurrent
  )
  mesh = sharding.make_mesh(
      dict(dict(data=1, fsdp=1, model=1, sequence=1), **mesh_sizes), devices
  )
  with jax.set_mesh(mesh):
    make = lambda: step_lib.initial_state(functional, tx, 0)
    shardings = sharding.state_shardings(
        mesh, jax.eval_shape(make), tx, functional.axes
    )
    state = jax.jit(make, out_shardings=shardings)()
    step = jax.jit(
        step_lib.make_train_step(
            losses.next_token_loss(functional, train=True), tx, seed=0
        ),
        donate_argnums=0,
        out_shardings=(shardings, None),
    )
    rng = np.random.default_rng(0)
    batch = {
        name: rng.integers(0, V, (B, T), dtype=np.int32)
        for name in ('inputs', 'targets')
    }
    batch = sharding.global_batch(mesh, batch)
    compiled = step.lower(state, batch).compile()
    history = []
    for _ in range(steps):
      state, metrics = compiled(state, batch)
      history.append(float(metrics['loss']))
  return history, state, compiled.as_text()


class MeshTest(parameterized.TestCase):

  @parameterized.parameters(
      ('min_gru,lru', dict(data=2, sequence=4)),
      ('gru', dict(data=8)),
  )
  def test_no_gather_as_large_as_an_activation(self, layer, mesh_sizes):
    if len(jax.devices()) < 8:
      self.skipTest('needs 8 devices')
    want, _, _ = train(dict(data=1), 3, layer, jax.devices()[:1])
    got, _, text = train(mesh_sizes, 3, layer)
    np.testing.assert_allclose(got, want, rtol=1e-5)
    # Less than a device's own share of the activations.
    for kind, size in collectives.sizes(text, without=('all-reduce',)):
      self.assertLess(size, B * T * D // 8, kind)

  def test_state_is_sharded_and_the_loss_the_same(self):
    if len(jax.devices()) < 8:
      self.skipTest('needs 8 devices')
    want, whole, _ = train(dict(data=1), 3, 'min_lstm', jax.devices()[:1])
    got, state, _ = train(dict(data=2, fsdp=2, model=2), 3, 'min_lstm')
    np.testing.assert_allclose(got, want, rtol=1e-5)
    on_one_device = lambda tree: sum(
        leaf.addressable_shards[0].data.nbytes for leaf in jax.tree.leaves(tree)
    )
    for part in ('params', 'opt_state'):
      share = on_one_device(state[part]) / on_one_device(whole[part])
      self.assertLess(share, 0.4, part)

  def test_recurrent_parameters_are_not_decayed(self):
    functional = state_lib.Functional(
        lambda rngs: models.LanguageModel(models.ModelConfig.tiny(), rngs=rngs)
    )
    tx = optimizers.make_optimizer(
        OPTIMIZER, 1, axes=functional.axes, recurrent=functional.recurrent
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
