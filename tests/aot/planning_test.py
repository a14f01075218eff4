"""Plans for an H200 and a v5e that are not there."""


from absl.testing import absltest
from absl.testing import parameterized
from experiments.configs import default
import jax
import jax.numpy as jnp
import pytest
from rnnzoo import models
from rnnzoo import planning
from rnnzoo import tasks
from rnnzoo.planning import targets
from tests.aot import gpu_test
from tests.aot import tpu_test

pytestmark = pytest.mark.aot


def a_plan(target, *, batch_size=32, length=256, mesh=None, **model):
  """Plans the training of a minGRU; skips where there is no compiler."""
  target = targets.parse(target)
  if target.platform == 'tpu':
    tpu_test.devices('v5e:2x2')
  else:
    gpu_test._compiler()
  config = default.get_config()
  fields = dict(
      layer='min_gru', num_layers=2, features=128, vocab_size=256,
      scan_layers=True,
  )
  model = models.ModelConfig(**fields | model)
  config.model = default.model(model)
  config.mesh.update(mesh or {})
  config.batch_size = batch_size
  task = tasks.LanguageModelling(model, loss_chunk=config.loss_chunk)
  tokens = jax.ShapeDtypeStruct((batch_size, length), jnp.int32)
  batch = dict(inputs=tokens, targets=tokens)
  return planning.plan(task, config, target, batch)


class PlanningTest(parameterized.TestCase):

  def check(self, result, devices):
    self.assertEqual(result['verdict'], 'fits')
    self.assertEqual(result['devices'], devices)
    self.assertEmpty(result['advice'])
    self.assertEmpty(result['unknown_loops'])
    memory = result['memory']
    # Parameters and their two moments, split among all but for small ones.
    share = 4 * result['parameters'] / devices
    self.assertBetween(memory['parameters'], share, 1.05 * share)
    self.assertBetween(memory['optimiser'], 2 * share, 2.1 * share)
    known = sum(memory[k] for k in ('parameters', 'optimiser', 'rest'))
    self.assertBetween(memory['arguments'], known, 1.05 * known + 2**16)
    # A TPU's has the program in it, twice as it seems.
    self.assertLessEqual(
        memory['peak'],
        memory['arguments'] + memory['temporaries'] + 2.1 * memory['code'],
    )
    # Blocks twice: once more for the backward pass.
    ratio = result['flops']['executed'] / result['flops']['needed']
    self.assertBetween(ratio, 1.1, 4 / 3)
    sent = {row['kind']: row for row in result['collectives']}
    # The weights of the blocks are gathered in every round, forwards and back.
    self.assertGreaterEqual(sent['all-gather']['times'], 4)
    self.assertGreater(
        sent['all-gather']['bytes'], result['parameters'] * 4 * 0.5
    )

  def test_for_gpus_once_the_advice_is_taken(self):
    large = dict(
        batch_size=256, length=2048, num_layers=8, features=1024,
        mesh=dict(data=1, fsdp=2),
    )
    result = a_plan('h100x2', **large)
    self.assertEqual(result['verdict'], 'does not fit')
    self.assertStartsWith(result['advice'][0], 'model.remat=full')
    # Most of what the compiler wants is what arithmetic says is kept.
    memory = result['memory']
    self.assertBetween(memory['kept'] / memory['temporaries'], 0.8, 1)
    self.check(a_plan('h100x2', **large, remat='full'), 2)

  def test_what_a_tpu_refuses(self):
    result = a_plan(
        'v5e:2x2', batch_size=256, length=2048, num_layers=8, features=1024
    )
    self.assertEqual(result['verdict'], 'does not fit')
    self.assertGreater(result['required'], result['limit'])
    self.assertAlmostEqual(result['limit'] / 2**30, 15.75)
    self.assertStartsWith(result['advice'][0], 'model.remat=full')

  @pytest.mark.slow
  def test_for_tpus(self):
    result = a_plan('v5e:2x2', mesh=dict(data=1, fsdp=4), remat='full')
    self.check(result, 4)


if __name__ == '__main__':
  absltest.main()
