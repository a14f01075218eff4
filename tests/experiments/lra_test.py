"""The configs of the Long Range Arena: every cell builds and is traced."""

from unittest import mock

from absl.testing import absltest
from absl.testing import parameterized
from experiments.benchmarks import lra_plans
from experiments.cli import config_flag
from experiments.configs import default
from experiments.configs.lra import accuracies
from experiments.configs.lra import settings
import jax
import jax.numpy as jnp
import numpy as np
from rnnzoo import data
from rnnzoo import errors
from rnnzoo import tasks
from rnnzoo.training import config as training_config
from rnnzoo.training import groups
from rnnzoo.training import optimizers
from tests.experiments import commands

_CONFIGS = commands.ROOT / 'experiments' / 'configs'
LAYERS = (*settings.LRU_ABLATION, 's5', 's4', 's4d', 'min_gru', 'mamba')
# Alphabets of the data sets whose inputs are tokens.
VOCABULARIES = dict(listops=18, text=135, retrieval=98)
B, T = 2, 8


def cell(task, layer, **fields):
  """Returns a config and its task, without data."""
  directory = dict(scifar='images', speech_commands='audio').get(task, 'lra')
  file = _CONFIGS / directory / f'{task}.py'
  config = config_flag.load_module(str(file)).get_config(layer)
  config.model.vocab_size = VOCABULARIES.get(task, 0)
  config.model.update(fields)
  training_config.check(config)
  kind = tasks.find(data.find(config.data.name).task)
  return config, kind.from_config(config)


def block_size(task):
  """Returns the number of parameters of a block."""
  backbone = jax.tree.leaves(task.functional.params['backbone'])
  return sum(leaf.size for leaf in backbone) // task.model.num_layers


def rules(config, task):
  """Returns rate and decay of the groups, by the name of the parameter."""
  recurrent = task.functional.recurrent
  decayed, factors = map(by_name, groups.override(
      config.optimizer.groups, recurrent,
      jax.tree.map(lambda _: 0.0, recurrent),
  ))
  return {name: (factors[name], decayed[name]) for name in factors}


def by_name(tree):
  """Returns the leaves of a block of a model by the name of the parameter."""
  leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
  return {
      '.'.join(str(key.key) for key in path[-2:]): leaf for path, leaf in leaves
  }


class SettingsTest(parameterized.TestCase):

  @parameterized.parameters(*settings.NAMES)
  def test_every_cell_builds_and_is_traced(self, name):
    for layer in LAYERS:
      with self.subTest(layer):
        config, task = cell(name, layer, num_layers=1)
        functional = task.functional
        optimizers.make_optimizer(
            config.optimizer, config.total_steps, axes=functional.axes,
            recurrent=functional.recurrent,
        )
        of, steps = jax.ShapeDtypeStruct, (B, T) + (2,) * (task.sequences - 1)
        inputs = of(steps, jnp.int32)
        if config.model.in_features:
          inputs = of((*steps, config.model.in_features), jnp.float32)
        batch = dict(
            inputs=inputs, input_mask=of(steps, jnp.bool),
            targets=of((B,), jnp.int32),
        )
        loss, _ = jax.eval_shape(
            task.loss_fn(train=True), functional.params,
            functional.batch_stats, batch, None, jax.random.key(0),
        )
        self.assertEqual((loss.shape, loss.dtype), ((), jnp.float32))
        self.assertGreater(config.total_steps, config.optimizer.warmup_steps)

  @parameterized.parameters(
      ('scifar', 1_314_432), ('listops', 165_248), ('retrieval', 165_248),
      ('text', 329_536), ('pathfinder', 272_064),
  )
  def test_a_block_of_the_lru_has_the_size_of_the_paper(self, name, size):
    config, task = cell(name, 'lru')
    self.assertEqual(config.model.num_layers, 6)
    self.assertEqual(config.model.bidirectional, name == 'pathfinder')
    if config.model.bidirectional:  # The number is of one direction.
      _, task = cell(name, 'lru', bidirectional=False)
    self.assertEqual(block_size(task), size)

  def test_rows_of_the_ablation_differ_in_one_thing(self):
    at = lambda layer: cell('scifar', layer)[0].model
    row = lambda layer: (
        at(layer).layer, at(layer).layer_options.get('parametrization'),
        at(layer).layer_options.get('use_gamma', True),
        at(layer).layer_options.r_min, at(layer).layer_options.r_max,
    )
    self.assertEqual(
        [row(layer) for layer in settings.LRU_ABLATION if 'lru' in layer],
        [
            ('lru', 'cartesian', False, 0.0, 1.0),
            ('lru', 'polar', False, 0.0, 1.0),
            ('lru', None, False, 0.0, 1.0),
            ('lru', None, False, 0.9, 0.99),
            ('lru', None, True, 0.9, 0.999),
        ],
    )
    for layer in settings.LRU_ABLATION:
      self.assertEqual(
          at(layer).to_dict() | dict(layer='', layer_options={}),
          at('lru').to_dict() | dict(layer='', layer_options={}),
      )
    self.assertLess(
        cell('pathx', 'lru')[0].model.layer_options.max_phase, 0.32
    )
    self.assertNotIn(
        'max_phase', cell('pathx', 'lru_ring')[0].model.layer_options
    )

  @parameterized.parameters(
      *(layer for layer in settings.LRU_ABLATION if 'lru' in layer), 's4', 's4d'
  )
  def test_recurrent_parameters_are_slow_and_all_others_decay(self, layer):
    config, task = cell('pathfinder', layer, num_layers=1)
    recurrent = task.functional.recurrent
    decayed, factors = groups.override(
        config.optimizer.groups,
        jax.tree.map(lambda _: False, recurrent),
        jax.tree.map(lambda _: 0.0, recurrent),
    )
    want = jax.tree.map(lambda r: 0.25 if r else 1.0, recurrent)
    self.assertEqual(factors, want)
    self.assertEqual(decayed, jax.tree.map(lambda r: not r, recurrent))

  # Rate and decay of B, C, log_step and D, by the words of S5's scripts.
  @parameterized.parameters(
      ('standard', (0.25, False), (1, True), (0.25, False), (1, True)),
      ('standard, dt_global', (0.25, False), (1, True), (1, True), (1, True)),
      ('BandCdecay', (0.25, True), (1, True), (0.25, False), (1, True)),
      ('BfastandCdecay', (1, True), (1, True), (0.25, False), (1, True)),
      ('noBCdecay', (0.25, False), (0.25, False), (0.25, False),
       (0.25, False)),
  )
  def test_groups_of_s5(self, name, b, c, log_step, d):
    row = (*settings.S5['text'][:5], name, 0)
    with mock.patch.dict(settings.S5, text=row):
      config, task = cell('text', 's5', num_layers=1)
    found = rules(config, task)
    for part in ('re', 'im'):
      self.assertEqual(found[f'layer.Lambda_{part}'], (0.25, False))
      self.assertEqual(found[f'layer.B_{part}'], b)
      self.assertEqual(found[f'layer.C_{part}'], c)
      self.assertEqual(found[f'layer.C2_{part}'], c)
    self.assertEqual(found['layer.log_step'], log_step)
    self.assertEqual(found['layer.D'], d)
    self.assertEqual(found['norm.scale'], (0.25, False))
    self.assertEqual(found['gate.kernel'], (1, True))
    self.assertEqual(found['gate.bias'], (1, True))

  def test_speech_has_the_groups_of_the_script_of_s5(self):
    found = rules(*cell('speech_commands', 's5', num_layers=1))
    for name in ('layer.B_re', 'layer.C_re', 'layer.C2_im', 'layer.D'):
      self.assertEqual(found[name], (0.25, False))
    self.assertEqual(found['gate.kernel'], (1, True))
    config, _ = cell('speech_commands', 'lru', num_layers=1)
    self.assertEqual(config.optimizer.recurrent_rate_factor, 0.25)
    self.assertEmpty(config.optimizer.groups)

  @parameterized.parameters('s4', 's4d')
  def test_s4_trains_its_steps_fast_where_it_reads_text(self, layer):
    found = rules(*cell('listops', layer, num_layers=1))
    steps = {name: u for name, u in found.items() if 'log_dt' in name}
    self.assertEqual(set(steps.values()), {(1, False)})
    found = rules(*cell('image', layer, num_layers=1))
    steps = {name: u for name, u in found.items() if 'log_dt' in name}
    self.assertEqual(set(steps.values()), {(0.1, False)})

  def test_warm_up_of_s4(self):
    steps = lambda task: cell(task, 's4')[0].optimizer.warmup_steps
    self.assertEqual(steps('image'), 18_000)
    self.assertEqual(steps('scifar'), 900)

  def test_speech_commands_has_the_groups_of_s5(self):
    file = _CONFIGS / 'audio' / 'speech_commands.py'
    config = config_flag.load_module(str(file)).get_config('s5')
    config.model.num_layers = 1
    task = tasks.find('classification').from_config(config)
    decayed, factors = map(by_name, groups.override(
        config.optimizer.groups, task.functional.recurrent,
        jax.tree.map(lambda _: 0.0, task.functional.recurrent),
    ))
    for name in ('C_re', 'C2_im', 'B_re', 'D', 'Lambda_re', 'log_step'):
      self.assertEqual(factors[f'layer.{name}'], 0.25)
      self.assertFalse(decayed[f'layer.{name}'])
    self.assertEqual(factors['gate.kernel'], 1)
    self.assertTrue(decayed['gate.kernel'])

  def test_the_rate_of_the_lru_rises_from_1e_7_and_falls_to_it(self):
    config, _ = cell('scifar', 'lru')
    rate = optimizers.make_schedule(config.optimizer, config.total_steps)
    np.testing.assert_allclose(
        [float(rate(step)) for step in (0, 9000, 18_000, 99_000, 180_000)],
        [1e-7, 0.00200005, 0.004, 0.00200005, 1e-7], rtol=2e-3,
    )

  def test_steps_of_s5_are_epochs(self):
    config, _ = cell('image', 's5')
    # 900 batches of 50 in 45,000 images.
    self.assertEqual(config.total_steps, 250 * 900)
    self.assertEqual(config.optimizer.warmup_steps, 900)
    self.assertAlmostEqual(config.optimizer.learning_rate, 0.0045)

  def test_any_layer_stands_in_the_block_of_the_lru(self):
    config, task = cell('listops', 'gru', num_layers=1)
    self.assertEqual((config.model.gate, config.model.norm), ('glu', 'batch'))
    self.assertEqual(config.optimizer.recurrent_rate_factor, 0.5)
    self.assertGreater(block_size(task), 0)
    with self.assertRaisesRegex(errors.UserValueError, 'Did you mean "pathx"'):
      settings.use(default.get_config(), 'path_x', 'lru')

  def test_plans_round_batches_up_and_count_both_documents(self):
    config, shapes = lra_plans.cell('retrieval', 'lru', 8)
    self.assertEqual(config.batch_size, 2 * 64)
    self.assertEqual(shapes['inputs'].shape, (128, 4000))
    config, shapes = lra_plans.cell('scifar', 's5', 8)
    self.assertEqual(shapes['inputs'].shape, (56, 1024, 3))
    self.assertNotIn('input_mask', shapes)
    row = dict(
        task='text', layer='lru', target='h200x1', verdict='fits',
        hours_at_best=1.23, hours_at_worst=2.0,
    )
    refused = dict(
        row, layer='gru', verdict='does not fit', hours_at_best=None
    )
    text = lra_plans.table([row, refused])
    self.assertIn('| `lru` | - | - | 1.2 to 2.0 | - | - | - |', text)
    self.assertIn('| `gru` | - | - | does not fit | - | - | - |', text)

  def test_published_accuracies(self):
    self.assertEqual(
        [*accuracies.ABLATION, 'lru'], [*settings.LRU_ABLATION]
    )
    self.assertEqual([*accuracies.OTHERS], [*settings.NAMES])
    self.assertLen(accuracies.of_task('listops'), 6 + 7 + 2)
    self.assertLen(accuracies.of_task('pathx'), 6)
    self.assertEqual(accuracies.of_task('pathfinder')[0], dict(
        layer='lru', metric='accuracy', value=0.951, error=0.001, split='test',
        source='https://arxiv.org/abs/2303.06349, table 3',
    ))
    for task in settings.NAMES:
      for row in accuracies.of_task(task):
        self.assertBetween(row['value'], 0.3, 1)
        chosen = task == 'text' and 'quoted' in row['source']
        self.assertEqual('test split chose' in row['source'], chosen)


if __name__ == '__main__':
  absltest.main()
