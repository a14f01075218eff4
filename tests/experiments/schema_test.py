"""Whatever stands in a config is accepted, or refused by name in one line."""

import inspect
import math

from absl.testing import absltest
from absl.testing import parameterized
from experiments.cli import schema
from experiments.cli import tasks
from experiments.configs import default
from flax import nnx
import jax
import jax.numpy as jnp
from ml_collections import ConfigDict
from rnnzoo import data
from rnnzoo import errors
from rnnzoo import fields
from rnnzoo import models
from rnnzoo.training import optimizers

ALL_FIELDS = schema.FIELDS | {
    f'data.{name}': field
    for definition in data.DATASETS.values()
    for name, field in definition.all_fields.items()
}
NEVER_NUMBERS = (
    None, math.nan, math.inf, -math.inf, True, 'x', '', (), [1], {},
    10**23, -(10**23), 10**5000, 1e300,
)
OTHERS = (
    0, -1, 1, 1.5, 2**31, 2**63, '\0', ('',), 'cosine', 1 + 2j, b'x',
)
# Field, value, and what is said of it.
REFUSED = (
    ('optimizer.clip', -1, 'optimizer.clip must not be negative, got -1. With'),
    ('optimizer.learning_rate', -1, 'must not be negative, got -1'),
    ('optimizer.weight_decay', -1, 'must not be negative'),
    ('optimizer.recurrent_rate_factor', -1, 'must not be negative'),
    ('optimizer.warmup_steps', -1, 'must not be negative'),
    ('optimizer.options', {'b1': -1}, r'options.b1 must be in \[0, 1\), got'),
    ('optimizer.options', {'b2': 2}, r'optimizer.options.b2 must be in \[0, 1'),
    ('optimizer.options', {'b2': 'x'}, "b2 must be a number, got 'x'"),
    ('optimizer.options', {'nesterov': 3}, 'nesterov must be True or False'),
    ('optimizer.options', {'mu_dtype': 'int8'}, 'mu_dtype must be one of bfl'),
    ('ema_decay', 1.5, r'ema_decay must be in \[0, 1\), got 1.5'),
    ('steps_per_dispatch', 0, 'must be at least 1, got 0'),
    ('batch_size', 10**23, 'batch_size must be at most 2147483647, got 1000'),
    ('eval_splits', (), 'must name at least one split'),
    ('eval_splits', 'validation', 'must be a tuple of strings'),
    ('sample_characters', -5, 'must not be negative'),
    ('data.path', 'a\0b', 'must have no NUL character'),
    ('data.power', math.nan, r'must be in \[-10, 10\]'),
    ('model', 3, 'model must be a dictionary'),
    ('model.layer', '', 'model.layer must be the name of a layer'),
    ('model.layer', ',', 'must be the name of a layer'),
    ('model.layer', 'lru,,gru', 'must be the name of a layer'),
    ('model.layer', 3, 'must be a string'),
    ('model.image_shape', (8, 8), r'\(height, width, channels\)'),
    ('model.image_shape', (8, 0, 1), 'all positive, or empty, got'),
    ('model.image_shape', (8, 8, 1.5), 'image_shape must be a tuple of integ'),
    ('model.mlp_factor', 0, 'must be in .0, 1024.'),
    ('model.mlp_factor', -1, 'must be in'),
    ('model.mlp_factor', math.nan, 'must be in'),
    ('model.mlp_factor', 1e-9, 'leaves the MLP no hidden features'),
    ('model.conv_kernel', 1_000_000, 'must be at most 1024'),
    ('model.num_layers', 10**6, 'must be at most 10000'),
    ('model.feature', 3, 'no config field model.feature. Did .* "model.featu'),
    ('batchsize', 3, 'no config field batchsize. Did you mean "batch_size"'),
)
# Layer, its options, and what is said of them.
OPTIONS = (
    ('min_gru', {'expansion_factor': 'x'}, 'expansion_factor must be a number'),
    ('min_gru', {'expansion_factor': -1}, 'min_gru cannot be built'),
    ('min_gru', {'expansion_factor': 0}, 'min_gru cannot be built'),
    ('min_gru', {'expansion_factor': math.nan}, 'must be a finite number'),
    ('min_gru', {'lru': 3}, 'layer_options.lru must be a dictionary'),
    ('attention', {'num_heads': 0}, 'attention cannot be built'),
    ('attention', {'num_heads': 3}, 'num_heads'),
    ('attention', {'num_heads': True}, 'num_heads must be an integer'),
    ('attention', {'window': -1}, 'window must not be negative'),
    ('mamba', {'conv_kernel': 10**6}, 'conv_kernel must be at most 1024'),
    ('mamba', {'use_bias': 'no'}, 'use_bias|no option'),
    ('gla', {'norm': 'batch'}, 'norm must be one of layer, rms'),
    ('lru', {'window': 3}, r"with --config.model.layer_options='\{\}'"),
    ('lru', {'r_min': None}, 'r_min must be a number, got None'),
)


def set_of(field) -> str:
  """Returns the name of a data set that has a field."""
  return next(
      name for name, definition in data.DATASETS.items()
      if field in definition.all_fields
  )


def changed(name, value) -> ConfigDict:
  """Returns the config of a set that has this field, with one value changed."""
  config = default.get_config()
  if name.startswith('data.'):
    default.use_data(config, set_of(name.removeprefix('data.')))
  values = config.to_dict()
  *parts, last = name.split('.')
  place = values
  for part in parts:
    place = place[part]
  place[last] = value
  return ConfigDict(values)


def is_accepted(name, value) -> bool:
  """Whether a value is; `AssertionError` if it is refused for another."""
  try:
    tasks.resolve(changed(name, value))
  except errors.UserValueError as error:
    if name not in str(error):
      shown = fields.shown(value)
      raise AssertionError(f'{name}={shown}: {error}') from error
    return False
  return True


def build(**values):
  """Builds a model without making its arrays."""
  config = models.ModelConfig.tiny().replace(**values)
  return nnx.eval_shape(
      lambda: models.LanguageModel(config, rngs=nnx.Rngs(0))
  )


class SchemaTest(parameterized.TestCase):

  def test_every_field_is_described_and_has_a_default(self):
    values = schema.flatten(default.get_config().to_dict())
    self.assertEqual(
        set(schema.FIELDS), {n for n in values if not n.startswith('data.')}
    )
    schema.check(default.get_config())
    for name in data.DATASETS:
      schema.check(default.use_data(default.get_config(), name))

  @parameterized.parameters(*sorted(ALL_FIELDS))
  def test_odd_values(self, name):
    numeric = ALL_FIELDS[name].kind in (int, float)
    for value in NEVER_NUMBERS:
      accepted = is_accepted(name, value)
      if not (value is None and name.startswith('data.')):
        self.assertFalse(accepted and numeric, f'{name}={fields.shown(value)}')
    for value in OTHERS:
      is_accepted(name, value)

  @parameterized.parameters(*REFUSED)
  def test_refused(self, name, value, message):
    with self.assertRaisesRegex(errors.UserValueError, message):
      tasks.resolve(changed(name, value))

  def test_none_in_data_is_the_default(self):
    for name in ('path', 'data_dir', 'eval_examples'):
      self.assertTrue(is_accepted(f'data.{name}', None), name)
    for name in ('name', 'sequence_length'):
      self.assertFalse(is_accepted(f'data.{name}', None), name)

  def test_a_field_is_missing(self):
    config = default.get_config()
    del config.batch_size
    with self.assertRaisesRegex(errors.UserValueError, 'has no field batch_si'):
      tasks.resolve(config)

  def test_smoke_overrides(self):
    config = default.get_config()
    config.smoke = True
    for overrides, message in (
        ({'total_steps': 0}, 'total_steps must be at least 1'),
        ({'model': 3}, 'smoke_overrides|model must be'),
        ({'total_stepz': 1}, 'smoke_overrides.*total_stepz'),
    ):
      config.smoke_overrides = ConfigDict(overrides)
      with self.assertRaisesRegex(errors.UserValueError, message):
        tasks.resolve(config)

  @parameterized.parameters(
      n for n, f in models.config.FIELDS.items() if f.kind in (int, float)
  )
  def test_the_ends_of_a_range_can_be_built(self, name):
    field = models.config.FIELDS[name]
    for end in (field.low, field.high):
      if end is not None and name != 'num_layers':
        with self.subTest(end=end):
          try:
            build(scan_layers=True, **{name: end})
          except errors.UserValueError as error:
            self.assertIn(f'model.{name}', str(error))


class OptionsTest(parameterized.TestCase):

  def test_every_option_of_an_optimizer_is_described(self):
    known = {
        option for make in optimizers.OPTIMIZERS.values()
        for option in inspect.signature(make).parameters
    }
    self.assertEqual(
        known, set(optimizers.OPTIONS) | set(optimizers._OWN)
    )

  @parameterized.parameters(*optimizers.OPTIMIZERS)
  def test_odd_options_of_an_optimizer(self, name):
    params = dict(w=jnp.ones((2, 2)))
    known = inspect.signature(optimizers.OPTIMIZERS[name]).parameters
    for option in set(optimizers.OPTIONS) & set(known):
      for value in NEVER_NUMBERS + OTHERS:
        config = changed('optimizer.options', {option: value}).optimizer
        config.name, config.weight_decay = name, 0
        try:
          tx = optimizers.make_optimizer(
              config, 10, axes=dict(w=('embed', 'mlp')), recurrent=dict(w=False)
          )
        except errors.UserValueError as error:
          self.assertIn(f'optimizer.options.{option}', str(error))
          continue
        jax.eval_shape(lambda: tx.update(params, tx.init(params), params))

  @parameterized.parameters(*OPTIONS)
  def test_options_of_a_layer(self, layer, options, message):
    with self.assertRaisesRegex(errors.UserValueError, message):
      build(layer=layer, layer_options=options)

  def test_float64_needs_64_bits(self):
    for name in ('dtype', 'param_dtype'):
      with self.assertRaisesRegex(errors.UserValueError, f'model.{name} float'):
        build(**{name: 'float64'})
    with jax.enable_x64(True):
      build(dtype='float64', param_dtype='float64')


if __name__ == '__main__':
  absltest.main()
