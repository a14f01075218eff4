r"""The config that all others change: a language model of Tiny Shakespeare.

  python -m experiments.train --config=experiments/configs/default.py \
      --workdir=runs/default --config.model.layer=min_lstm

The fields of the training are in `rnnzoo/training/config.py`, those of the
model in `rnnzoo/models/config.py`, those of a data set in the file of the data
set; `--help` lists all of them.
"""

import dataclasses
import pathlib

from ml_collections import ConfigDict
from ml_collections import config_dict
from rnnzoo import convert
from rnnzoo import data as data_lib
from rnnzoo import errors
from rnnzoo import models
from rnnzoo.training import config as training_config


def get_config():
  """Returns the defaults."""
  config = ConfigDict(training_config.defaults())
  config.task = ''  # The kind of task; that of the data set if empty.
  config.preset = ''  # A published model, such as mamba_130m.
  config.model = model(models.ModelConfig())
  config.data = data('tiny_shakespeare')
  config.smoke = False
  # What --config.smoke=True changes, after all other overrides. The loss falls
  # by a fifth, see tests/experiments/smoke_test.py.
  config.smoke_overrides = ConfigDict(dict(
      total_steps=60,
      batch_size=8,
      log_every=1,
      eval_every=30,
      save_every=30,
      steps_per_dispatch=1,
      must_beat_gzip=False,
      model=dict(num_layers=2, features=16),
      data=dict(sequence_length=32),
      optimizer=dict(learning_rate=1e-2, warmup_steps=1),
  ))
  return config


def model(config: models.ModelConfig) -> ConfigDict:
  """Returns a model's config as a `ConfigDict`."""
  fields = dataclasses.asdict(config)
  fields['layer_options'] = dict(config.layer_options)
  return ConfigDict(fields)


def data(name: str, datasets=None) -> ConfigDict:
  """Returns the fields of a data set with their defaults.

  Args:
    name: A key of `rnnzoo.data.DATASETS` or of `datasets`.
    datasets: More data sets by name.
  """
  definition = data_lib.find(name, datasets)
  return ConfigDict(dict(
      name=name,
      data_dir='',  # If empty, $RNNZOO_DATA_DIR or else the user's cache.
      allow_changed=False,  # Resume with data that has changed.
      **{
          # A flag gets its type from the value, and `None` says too little.
          field: config_dict.placeholder(definition.fields[field].kind)
          if value is None else value
          for field, value in definition.defaults().items()
      },
  ))


def use_data(config: ConfigDict, name: str, datasets=None) -> ConfigDict:
  """Changes the data set of a config in place.

  A field that both data sets have keeps its value where the config had changed
  it from its default.

  Args:
    config: The config.
    name: The new data set.
    datasets: More data sets by name.

  Returns:
    `config`.
  """
  old, new = config.data.to_dict(), data(name, datasets)
  before = data(old['name'], datasets).to_dict()
  for field, value in old.items():
    if field in new and field != 'name' and value != before.get(field):
      new[field] = value
  config.data = new
  smoke = config.get('smoke_overrides', {}).get('data', {})
  for field in [field for field in smoke if field not in new]:
    del smoke[field]
  return config


def use_layer(config: ConfigDict, layer: str, **options) -> ConfigDict:
  """Changes the layer of a config in place.

  The options of the old layer go, and so do the groups of parameters, which
  have the names of its parameters.

  Args:
    config: The config.
    layer: A name in `rnnzoo.layers.LAYERS`, or several, joined by commas.
    **options: Keyword arguments of the layer.

  Returns:
    `config`.
  """
  if layer != config.model.layer or options:
    config.model.layer = layer
    config.model.layer_options = ConfigDict(options)
    config.optimizer.groups = ConfigDict()
  return config


def use_pretrained(config: ConfigDict, folder: str) -> ConfigDict:
  """Changes a config in place to the model of a folder of Hugging Face.

  The tokenizer of the folder becomes that of the data, if the data is a text.

  Args:
    config: The config.
    folder: A folder with `config.json` and `*.safetensors`.

  Returns:
    `config`.

  Raises:
    UserError: If the model is not implemented, or something is missing.
  """
  found = convert.pretrained_config(folder)
  config.init_from = folder
  config.model = model(found)
  if 'tokenizer' in config.data:
    config.data.level = 'bpe'
    config.data.tokenizer = str(
        pathlib.Path(folder, convert.loading.TOKENIZER)
    )
    config.data.vocab_size = found.vocab_size
  config.optimizer.groups = ConfigDict()
  return config


def use_preset(config: ConfigDict, name: str) -> ConfigDict:
  """Changes the model of a config in place to a published one.

  Args:
    config: The config.
    name: A key of `rnnzoo.models.PRESETS`.

  Returns:
    `config`.

  Raises:
    UserValueError: If there is no such preset.
  """
  if name not in models.PRESETS:
    raise errors.UserValueError(
        f'There is no preset {name!r}.{errors.suggest(name, models.PRESETS)} '
        f'The presets are {", ".join(sorted(models.PRESETS))}.'
    )
  config.preset = name
  config.model = model(models.PRESETS[name])
  return config
