"""A sharded training step, compiled for sixteen TPUs that are not there."""

import collections

from absl.testing import absltest
from experiments.configs import default
import jax
import jax.numpy as jnp
import pytest
from rnnzoo import models
from rnnzoo import tasks
from rnnzoo.training import optimizers
from rnnzoo.training import sharding
from rnnzoo.training import step as step_lib
from tests import collectives
from tests.aot import tpu_test

pytestmark = pytest.mark.aot

B, T, D, LAYERS, TAPS = 8, 1024, 128, 2, 4


def compiled_step(mesh, T=T, **fields):
  """Compiles a training step of a small language model."""
  config = models.ModelConfig(features=D, vocab_size=256, **fields)
  task = tasks.LanguageModelling(config)
  functional = task.functional
  tx = optimizers.make_optimizer(
      default.get_config().optimizer, 10,
      axes=functional.axes, recurrent=functional.recurrent,
  )
  state = jax.eval_shape(lambda: step_lib.initial_state(functional, tx, 0))
  shardings = sharding.state_shardings(mesh, state, tx, functional.axes)
  state = jax.tree.map(
      lambda u, s: jax.ShapeDtypeStruct(u.shape, u.dtype, sharding=s),
      state, shardings,
  )
  with jax.set_mesh(mesh):
    tokens = jax.ShapeDtypeStruct(
        (B, T), jnp.int32,
        sharding=jax.NamedSharding(
            mesh, jax.P(('data', 'fsdp'), 'sequence')
        ),
    )
    step = jax.jit(
        step_lib.make_train_step(
            task.loss_fn(train=True), tx, seed=0
        ),
        donate_argnums=0,
        out_shardings=(shardings, None),
    )
    return step.lower(state, dict(inputs=tokens, targets=tokens)).compile()


class SequenceTest(absltest.TestCase):

  def test_only_the_designed_collectives(self):
    mesh = sharding.make_mesh(
        dict(data=4, fsdp=1, model=1, sequence=4),
        tpu_test.devices('v5e:4x4'),
    )
    compiled = compiled_step(
        mesh, layer='min_gru', num_layers=LAYERS, conv_kernel=TAPS
    )
    text = compiled.as_text()
    self.assertIn('tpu_custom_call', text)
    found = collections.defaultdict(list)
    for kind, size in collectives.sizes(text):
      found[kind].append(size)
    state = B // 4 * D  # On one device, of which four share the batch.
    # Each scan, forwards and back: the maps of all four segments, and flags.
    self.assertLen(found.pop('all-gather'), 2 * LAYERS)
    # To the neighbour: the inputs that its convolution looks back at, in both
    # directions; and the state before its segment, for the gradient.
    self.assertEqual(
        sorted(found.pop('collective-permute')),
        sorted(LAYERS * [state, (TAPS - 1) * state, (TAPS - 1) * state]),
    )
    # And the gradients of the parameters, in one. Nothing else.
    self.assertLen(found.pop('all-reduce'), 1)
    self.assertEqual(dict(found), {})

  def test_no_sequences_of_matrix_states_attention_or_mamba(self):
    mesh = sharding.make_mesh(
        dict(data=4, fsdp=1, model=1, sequence=4),
        tpu_test.devices('v5e:4x4'),
    )
    long = 8 * T
    compiled = compiled_step(
        mesh, long, layer='mamba2,attention,mamba', num_layers=3, mlp='none',
        layer_options=dict(
            mamba2=dict(head_features=64, state_features=32),
            attention=dict(num_heads=4, window=64),
        ),
    )
    text = compiled.as_text()
    self.assertIn('tpu_custom_call', text)  # That of Mamba.
    sizes = collectives.sizes(text, without=('all-reduce',))
    self.assertNotEmpty(sizes)
    # States and windows, less than what one device has of an activation.
    self.assertLess(max(size for _, size in sizes), B // 4 * long // 4 * D)


if __name__ == '__main__':
  absltest.main()
