"""The loss in chunks, compiled for sixteen TPUs that are not there."""

from absl.testing import absltest
import jax
import jax.numpy as jnp
import pytest
from rnnzoo.training import losses
from rnnzoo.training import sharding
from tests import collectives
from tests.aot import tpu_test

pytestmark = pytest.mark.aot

B, T, D, V, CHUNK = 16, 2048, 2048, 16384, 1024
DATA, FSDP, MODEL = 2, 4, 2


class LossTest(absltest.TestCase):

  def test_the_head_is_gathered_and_its_gradient_reduced_once(self):
    mesh = sharding.make_mesh(
        dict(data=DATA, fsdp=FSDP, model=MODEL, sequence=1),
        tpu_test.devices('v5e:4x4'),
    )
    rows = jax.NamedSharding(mesh, jax.P(('data', 'fsdp'), 'sequence'))
    head = jax.NamedSharding(mesh, jax.P('model', 'fsdp'))
    tokens = jax.ShapeDtypeStruct((B, T), jnp.int32, sharding=rows)
    loss = lambda x, kernel, targets: losses.chunked_cross_entropy(
        x, kernel, targets, vocab_axis=0, chunk=CHUNK
    )['loss']
    with jax.set_mesh(mesh):
      compiled = jax.jit(
          jax.value_and_grad(loss, (0, 1)), out_shardings=(None, (rows, head))
      ).lower(
          jax.ShapeDtypeStruct((B, T, D), jnp.bfloat16, sharding=rows),
          jax.ShapeDtypeStruct((V, D), jnp.float32, sharding=head),
          tokens,
      ).compile()
    lines = compiled.as_text().splitlines()
    in_loop, once = (
        collectives.sizes('\n'.join(
            line for line in lines if ('/while/' in line) == inside
        ))
        for inside in (True, False)
    )
    # The largest logit of each token; and the sum, the target's, the better.
    self.assertCountEqual(
        in_loop, [('all-reduce', CHUNK), ('all-reduce', 3 * CHUNK)]
    )
    head = V * D // MODEL
    self.assertCountEqual(once, [
        ('all-gather', head),
        ('reduce-scatter', head // FSDP),  # The head's gradient, over `fsdp`,
        ('all-reduce', head // FSDP),  # and then over `data`.
        ('all-reduce', B * T * D // DATA // FSDP),  # That of the features.
        ('all-reduce', 1),
    ])
    tokens = B * T // DATA // FSDP
    self.assertNotIn(f'f32[{tokens},{V // MODEL}]', '\n'.join(lines))


if __name__ == '__main__':
  absltest.main()
