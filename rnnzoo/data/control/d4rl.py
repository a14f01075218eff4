"""D4RL's trajectories of MuJoCo: HalfCheetah, Hopper and Walker2d, `-v2`.

TFDS knows them as `d4rl_mujoco_hopper/v2-medium` and so on; `data.robot` and
`data.quality` name one. They are read from array_record without TensorFlow.
Returns count on the scale of D4RL: 0 is a random policy, 100 an expert.
"""

from typing import Any

import numpy as np
from rnnzoo import fields
from rnnzoo.data import definition
from rnnzoo.data import pipeline
from rnnzoo.data import settings
from rnnzoo.data.control import episodes as episodes_lib
from rnnzoo.data.control import robots

NAME = 'd4rl'


def load(config: Any, shard: pipeline.Shard, seed: int) -> pipeline.Dataset:
  """Returns windows of the episodes, see `episodes.dataset`."""
  from rnnzoo.data.builders import d4rl  # TFDS is slow to load.

  robot = robots.ROBOTS[config.robot]
  found = d4rl.Source(config.robot, config.quality).read(
      settings.data_directory(config)
  )
  join = lambda name: np.concatenate([episode[name] for episode in found])
  return episodes_lib.dataset(
      episodes_lib.Episodes(
          join('observation'), join('action'), join('reward'),
          np.cumsum([len(episode['reward']) for episode in found]),
          robot.environment,
      ),
      config, shard, seed, name=NAME, unit_scores=robot.scores,
  )


def write_fixture(directory, config: Any):
  """Prepares short episodes, see `Definition.write_fixture`."""
  from rnnzoo.data.builders import d4rl

  settings.mark_fixture(directory)
  d4rl.prepare_fixture(directory, d4rl.Source(
      settings.field(config, 'robot', 'hopper'),
      settings.field(config, 'quality', 'medium'),
  ))


DEFINITION = definition.Definition(
    task='decisions',
    fields=dict(
        robot=fields.Field(
            str, choices=tuple(robots.ROBOTS), default='hopper',
            help='What acts.',
        ),
        quality=fields.Field(
            str, choices=robots.QUALITIES, default='medium',
            help='Which policies made the data.',
        ),
        **episodes_lib.FIELDS,
    ),
    load=load,
    write_fixture=write_fixture,
)
