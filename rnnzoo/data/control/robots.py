"""The robots of D4RL, and the qualities of its data."""

from typing import NamedTuple

QUALITIES = ('medium', 'medium-replay', 'medium-expert')


class Robot(NamedTuple):
  """The sizes of an environment.

  Attributes:
    sizes: Those of an observation, an action, `qpos` and `qvel`.
    scores: The returns that count as 0 and 100: of a random policy, and of an
      expert.
    environment: The nearest one in gymnasium. D4RL's `-v2` is of the time
      before; `-v4` has the same rewards and another release of MuJoCo.
  """

  sizes: tuple[int, int, int, int]
  scores: tuple[float, float]
  environment: str


ROBOTS = dict(
    halfcheetah=Robot((17, 6, 9, 9), (-280.178953, 12135.0), 'HalfCheetah-v4'),
    hopper=Robot((11, 3, 6, 6), (-20.272305, 3234.3), 'Hopper-v4'),
    walker2d=Robot((17, 6, 9, 9), (1.629008, 4592.3), 'Walker2d-v4'),
)
