"""What a plan is made of: targets, arithmetic, verdicts, advice."""

import pathlib

from absl.testing import absltest
from absl.testing import parameterized
from experiments import plan as plan_lib
from experiments.configs import default
import jax
import jax.numpy as jnp
from rnnzoo import errors
from rnnzoo import models
from rnnzoo import planning
from rnnzoo import tasks
from rnnzoo.planning import compiling
from rnnzoo.planning import targets
from rnnzoo.training import sharding
from rnnzoo.training.performance import hardware

GIB = 2**30

class TargetTest(parameterized.TestCase):

  @parameterized.parameters(
      ('v5e:16x16', 'v5e', 'tpu', 'v5e:16x16'),
      ('v5p:4x4x4', 'v5p', 'tpu', 'v5p:4x4x4'),
      ('h200x8', 'h200', 'cuda', '1x1x8'),
      ('h100x256', 'h100', 'cuda', '1x32x8'),
  )
  def test_targets_are_parsed(self, text, hardware_name, platform, topology):
    target = targets.parse(text)
    self.assertEqual(target.hardware.name, hardware_name)
    self.assertEqual((target.platform, target.topology), (platform, topology))

  @parameterized.parameters(
      'v5litepod-256', 'h200', 'h200x12', 'h200x0', 'v9:2x2', 'v5e:4'
  )
  def test_targets_that_do_not_exist_raise(self, text):
    with self.assertRaisesRegex(errors.UserValueError, '--plan'):
      targets.parse(text)

  @parameterized.parameters(
      ('TPU v5 lite', 'v5e'), ('TPU v5', 'v5p'), ('TPU v6 lite', 'v6e'),
      ('NVIDIA H100 80GB HBM3', 'h100'), ('NVIDIA H200', 'h200'),
      ('NVIDIA A100-SXM4-80GB', 'a100'),
  )
  def test_hardware_is_found_by_its_device_kind(self, kind, name):
    self.assertEqual(hardware.find(kind).name, name)

  def test_unknown_hardware_is_none(self):
    self.assertIsNone(hardware.find('cpu'))
    self.assertIsNone(hardware.find('NVIDIA H2000'))


class KeptTest(absltest.TestCase):

  def test_pairs_keep_as_much_as_twice_the_rows(self):
    config = default.get_config()
    model = models.ModelConfig(
        layer='lru', num_layers=1, features=8, norm='batch', gate='glu',
        mlp='none', vocab_size=5, num_classes=2,
    )
    mesh = sharding.make_mesh(
        dict(data=1, fsdp=1, model=1, sequence=1), jax.devices()[:1]
    )

    def kept(task, rows, shape):
      state = dict(
          params=task.functional.params,
          batch_stats=task.functional.batch_stats,
      )
      batch = dict(
          inputs=jax.ShapeDtypeStruct(shape, jnp.int32),
          input_mask=jax.ShapeDtypeStruct(shape, bool),
          targets=jax.ShapeDtypeStruct((rows,), jnp.int32),
      )
      return compiling._kept(
          task, config, state, compiling._placed(batch, mesh)
      )

    pairs = kept(tasks.Matching(model), 16, (16, 100, 2))
    rows = kept(tasks.Classification(model), 32, (32, 100))
    self.assertGreater(rows, 32 * 100 * 8 * 4)
    self.assertAlmostEqual(pairs / rows, 1, delta=0.05)


def a_result(**memory):
  fields = dict(
      parameters=1 * GIB, optimiser=2 * GIB, rest=0, gradients=1 * GIB,
      kept=4 * GIB, logits=GIB // 4,
  )
  return dict(
      memory=fields | memory, limit=hardware.HARDWARE['v5e'].memory,
      mesh=dict(data=2, fsdp=2, model=1, sequence=1), devices=4,
      rows_per_device=8, kind='TPU v5 lite', verdict='does not fit',
  )


def a_config(**model):
  config = default.get_config()
  config.model.update(model)
  return config


class VerdictTest(parameterized.TestCase):

  @parameterized.parameters(
      ('v5e', 3, 8, 10, 'fits'),
      ('v5e', 3, 12, 14.5, 'tight'),  # Little is left.
      ('v5e', 3, 14, 12, 'tight'),  # Only since memory is used twice.
      ('v5e', 3, 14, 16, 'does not fit'),
      ('h200', 3, 97, 100, 'fits'),
      ('h200', 3, 107, 110, 'tight'),  # JAX takes three quarters.
      ('h200', 3, 150, 153, 'does not fit'),
  )
  def test_verdict_by_memory(self, name, arguments, temporaries, peak, want):
    memory = dict(
        arguments=arguments * GIB, temporaries=temporaries * GIB,
        peak=peak * GIB,
    )
    got = planning.verdict(dict(memory=memory), hardware.HARDWARE[name])
    self.assertEqual(got, want)

  def test_a_refused_program_does_not_fit(self):
    v5e = hardware.HARDWARE['v5e']
    got = planning.verdict(dict(memory={}, required=17 * GIB), v5e)
    self.assertEqual(got, 'does not fit')


class AdviceTest(parameterized.TestCase):

  def test_recomputing_comes_first_where_most_is_kept(self):
    first, *_ = planning.advice(a_result(kept=40 * GIB), a_config())
    self.assertStartsWith(first, 'model.remat=full')

  def test_parts_of_the_batch_come_after_recomputing(self):
    config = a_config(remat='full', dtype='bfloat16')
    first, *_ = planning.advice(a_result(kept=20 * GIB), config)
    self.assertStartsWith(first, 'accumulate_steps=4:')

  def test_one_row_is_split_over_time(self):
    result = dict(a_result(kept=20 * GIB), rows_per_device=1)
    config = a_config(remat='full', dtype='bfloat16')
    first, *_ = planning.advice(result, config)
    self.assertStartsWith(first, 'mesh.sequence=2:')

  def test_large_logits_are_computed_in_chunks(self):
    config = a_config(remat='full', dtype='bfloat16')
    config.loss_chunk = 0
    first, *_ = planning.advice(a_result(kept=1, logits=8 * GIB), config)
    self.assertStartsWith(first, 'loss_chunk=-1:')

  def test_a_large_state_is_split(self):
    result = a_result(parameters=4 * GIB, optimiser=8 * GIB, gradients=4 * GIB)
    config = a_config(remat='full', dtype='bfloat16')
    result['memory']['kept'] = GIB
    first, *_ = planning.advice(result, config)
    self.assertStartsWith(first, 'mesh.fsdp=4:')

  def test_no_advice_if_it_fits(self):
    result = dict(a_result(), verdict='fits')
    self.assertEmpty(planning.advice(result, a_config()))


class RooflineTest(absltest.TestCase):

  def test_the_slowest_part_decides(self):
    result = dict(
        devices=4, dtype='bfloat16', tokens=1000,
        flops=dict(executed=4 * 197e12, needed=3 * 197e12),
        bytes_moved=819e9 / 2,
        collectives=[dict(bytes=1e9, hosts_apart=False)],
    )
    got = planning.roofline(result, hardware.HARDWARE['v5e'])
    self.assertAlmostEqual(got['best'], 1)
    self.assertAlmostEqual(got['worst'], 1 + 0.5 + 0.01)
    self.assertAlmostEqual(got['utilisation'], 0.75)
    self.assertAlmostEqual(got['tokens_per_second'], 1000)

  def test_the_network_is_slower_beyond_a_host(self):
    result = dict(
        devices=16, dtype='bfloat16', tokens=1,
        flops=dict(executed=0, needed=0), bytes_moved=0,
        collectives=[dict(bytes=50e9, hosts_apart=True)],
    )
    got = planning.roofline(result, hardware.HARDWARE['h200'])
    self.assertAlmostEqual(got['network'], 1)


class ShapesTest(absltest.TestCase):

  def test_a_known_vocabulary_needs_no_data(self):
    config = default.get_config()
    config.model.vocab_size = 300
    config.data.data_dir = '/nowhere'
    _, shapes = plan_lib.task_and_shapes(config)
    self.assertEqual(set(shapes), {'inputs', 'targets'})
    self.assertEqual(shapes['inputs'].shape, (64, 256))

  def test_documents_have_resets(self):
    config = default.use_data(default.get_config(), 'text_file')
    config.model.vocab_size = 300
    config.data.path = str(pathlib.Path(__file__).parent)
    _, shapes = plan_lib.task_and_shapes(config)
    self.assertEqual(set(shapes), {'inputs', 'targets', 'reset', 'mask'})

  def test_otherwise_the_data_gives_the_shapes(self):
    config = default.get_config()
    default.use_data(config, 'selective_copying')
    task, shapes = plan_lib.task_and_shapes(config)
    self.assertContainsSubset({'inputs', 'targets', 'mask'}, shapes)
    self.assertGreater(task.model.vocab_size, 0)


if __name__ == '__main__':
  absltest.main()
