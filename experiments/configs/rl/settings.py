"""What the configs of reinforcement learning share."""

import copy

from experiments.configs import default
from ml_collections import ConfigDict
from rnnzoo import environments
from rnnzoo import models
from rnnzoo.rl import config as rl_config
from rnnzoo.rl import streaming as streaming_lib


def defaults(name: str = 'cart_pole', layer: str = 'min_gru') -> ConfigDict:
  """Returns a config of `experiments.ppo`.

  Args:
    name: The environment.
    layer: A layer of the zoo, several joined by commas, or `none`.
  """
  config = ConfigDict(rl_config.defaults())
  config.environment = environment(name)
  config.model = default.model(models.ModelConfig(
      layer=layer, num_layers=1, features=64, mlp='gelu',
  ))
  config.smoke = False
  config.smoke_overrides = ConfigDict(dict(
      num_seeds=1, total_steps=4, num_environments=4, rollout_length=16,
      epochs=1, minibatches=2, log_every=2, eval_every=4, eval_episodes=4,
      save_every=2, model=dict(num_layers=1, features=8),
  ))
  return config


def streaming(name: str = 'cart_pole', learners: str = '') -> ConfigDict:
  """Returns a config of `experiments.streaming`.

  Args:
    name: The environment.
    learners: The names of learners, joined by commas; the default ones if
      empty.
  """
  config = ConfigDict({
      name: copy.deepcopy(field.default)
      for name, field in streaming_lib.FIELDS.items()
  })
  if learners:
    config.learners = tuple(learners.split(','))
  config.environment = environment(name)
  config.smoke = False
  config.smoke_overrides = ConfigDict(dict(
      num_seeds=2, total_steps=200, features=8,
  ))
  return config


def environment(name: str) -> ConfigDict:
  """Returns the name of an environment and its options, with their defaults."""
  options = environments.fields_of(name)
  return ConfigDict(dict(
      name=name, **{option: field.default for option, field in options.items()}
  ))


def use_environment(config: ConfigDict, name: str) -> ConfigDict:
  """Changes the environment of a config in place.

  An option that both environments have keeps its value where the config had
  changed it from its default.
  """
  old, new = config.environment, environment(name)
  before = environment(old.name)
  for option, value in old.items():
    if option in new and option != 'name' and value != before[option]:
      new[option] = value
  config.environment = new
  return config
