"""Names, definitions, and the fields that a data set has or has not."""

import dataclasses
import types

from absl.testing import absltest
from absl.testing import parameterized
from rnnzoo import data
from rnnzoo import errors
from rnnzoo import fields
from rnnzoo import tasks
from rnnzoo.data import definition
from rnnzoo.data import pipeline


def load(**config):
  return data.load(config, batch_size=4, seed=0)


class DefinitionTest(parameterized.TestCase):

  @parameterized.parameters(*data.DATASETS)
  def test_defaults_pass_their_own_check(self, name):
    found = data.find(name)
    self.assertIn(found.task, tasks.TASKS)
    self.assertNoCommonElements(found.fields, definition.COMMON)
    for field, value in found.defaults().items():
      fields.check(field, value, found.fields[field])
      if value is None:
        self.assertTrue(found.fields[field].optional, field)

  def test_defaults_fill_in_what_is_missing_or_none(self):
    found = data.find('mqar').checked('mqar', dict(num_pairs=2, power=None))
    self.assertEqual((found.num_pairs, found.power), (2, 0.01))
    self.assertEqual(found.vocab_size, 8192)
    self.assertEqual(found.data_dir, '')

  def test_a_config_file_brings_its_own(self):

    def load_mine(config, shard, seed):
      mqar = data.find('mqar')
      values = mqar.checked('mqar', dict(sequence_length=config.size))
      return dataclasses.replace(mqar.load(values, shard, seed), name='mine')

    mine = data.Definition(
        task='language_modelling',
        fields=dict(size=fields.Field(int, low=16, default=32)),
        load=load_mine,
    )
    dataset = data.load(
        dict(name='mine'), batch_size=4, seed=0, datasets={'mine': mine}
    )
    self.assertEqual(dataset.train_batch(1)['inputs'].shape, (4, 32))
    with self.assertRaisesRegex(errors.UserValueError, 'data.size must be at'):
      data.load(
          dict(name='mine', size=2), batch_size=4, seed=0,
          datasets={'mine': mine},
      )
    with self.assertRaisesRegex(errors.UserValueError, "no data set 'mine'"):
      load(name='mine')
    self.assertIs(data.find('mine', {'mine': mine}), mine)


class FieldsTest(parameterized.TestCase):

  @parameterized.parameters(
      (dict(name='mqar', num_pair=2), 'Did you mean "num_pairs"'),
      (dict(name='mqar', variant='mamba'), 'mqar has no field data.variant'),
      (dict(name='digits', level='char'), 'it has name, .*, sequence'),
      (dict(name='smnist', permutations='x'), 'Did you mean "permutation"'),
      (types.SimpleNamespace(name='adding', length=3), 'data.length'),
  )
  def test_fields_of_other_sets_are_an_error(self, config, message):
    with self.assertRaisesRegex(errors.UserValueError, message) as caught:
      data.load(config, batch_size=4, seed=0)
    self.assertNotIn('\n', str(caught.exception))

  def test_none_of_another_set_is_no_value(self):
    config = dict(
        name='selective_copying', level=None, sequence_length=20, num_tokens=2
    )
    self.assertEqual(load(**config).sequence_length, 22)

  @parameterized.parameters(
      ('tiny_shakespear', 'Did you mean "tiny_shakespeare"'),
      ('mnist', 'Did you mean "smnist"'),
      (3, 'data.name must be a string, got 3'),
      ('', 'data.name must be one of aan, '),
  )
  def test_unknown_names(self, name, message):
    with self.assertRaisesRegex(errors.UserValueError, message):
      data.find(name)
    with self.assertRaisesRegex(errors.UserValueError, message):
      load(name=name)

  def test_a_definition_that_is_wrong(self):
    arrays = [[1.0], [2]], [0, 1]
    mine = definition.Definition(
        task='classification', fields={}, load=lambda *_: arrays
    )
    with self.assertRaisesRegex(
        errors.UserError, 'mine must return a rnnzoo.data.Dataset'
    ):
      data.load(
          dict(name='mine'), batch_size=1, seed=0, datasets=dict(mine=mine)
      )
    with self.assertRaisesRegex(errors.UserError, "got 3 at 'length'"):
      definition.Definition(
          task='classification', fields=dict(length=3), load=lambda *_: arrays
      )

  def test_a_seed_is_checked_for_every_set(self):
    with self.assertRaisesRegex(errors.UserValueError, 'seed must be'):
      data.load(dict(name='adding'), batch_size=4, seed=-1)

  def test_a_dataset_says_what_it_is(self):
    dataset = load(name='mqar')
    self.assertIsInstance(dataset, pipeline.Dataset)
    self.assertEqual(
        (dataset.task, dataset.unit, dataset.batch_size, dataset.per_step),
        ('language_modelling', 'tokens', 4, True),
    )
    self.assertFalse(dataset.contiguous or dataset.fixture)
    dataset = load(name='python_docs', level='byte', contiguous=True)
    self.assertEqual((dataset.unit, dataset.contiguous), ('bytes', True))
    self.assertEqual(load(name='python_docs').unit, 'characters')


if __name__ == '__main__':
  absltest.main()
