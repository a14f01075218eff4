"""Draws an episode of a policy as a GIF, without a display."""

from collections.abc import Callable
import pathlib
from typing import Any, NamedTuple

import jax
import numpy as np
from PIL import Image
from rnnzoo import errors
from rnnzoo.rl import saved as saved_lib
from rnnzoo.training import memory

_FRAMES = 250  # Of a GIF, at most; of longer episodes it skips some steps.
_DARK, _BLUE, _RED, _GREEN = '#333333', '#4477aa', '#ee6677', '#228833'
_SUITS = '♠♥♦♣'


class Moment(NamedTuple):
  """A step of an episode.

  Attributes:
    state: Of the environment, before the action.
    action: What the policy does.
    reward: What it gets for that.
  """

  state: Any
  action: np.ndarray
  reward: float


class Scene(NamedTuple):
  """How to draw an environment.

  Attributes:
    draw: Draws `(axes, environment, moment)`.
    milliseconds: The time between two steps.
  """

  draw: Callable[..., None]
  milliseconds: int


def draw(
    saved: saved_lib.Saved, number: int, path: pathlib.Path
) -> tuple[int, float]:
  """Writes a GIF of an episode of the most probable actions.

  Args:
    saved: The policy; of several agents, the first one acts.
    number: Which episode. Equal numbers are equal episodes.
    path: The file.

  Returns:
    The steps of the episode, and its return.

  Raises:
    UserValueError: If nobody has said how to draw the environment.
  """
  from matplotlib import figure
  from matplotlib.backends import backend_agg

  name, environment = saved.config.environment.name, saved.learner.environment
  if name not in SCENES:
    raise errors.UserValueError(
        f'There is no drawing of {name}, only of {", ".join(sorted(SCENES))}.'
    )
  scene, moments = SCENES[name], play(saved, number)
  canvas = backend_agg.FigureCanvasAgg(
      figure.Figure(figsize=(4, 2.6), dpi=80, layout='constrained')
  )
  axes = canvas.figure.subplots()
  total, images = 0.0, []
  stride = -(-len(moments) // _FRAMES)
  for t, moment in enumerate(moments):
    total += moment.reward
    if t % stride and t < len(moments) - 1:
      continue
    axes.clear()
    axes.set_axis_off()
    axes.set_aspect('equal')
    scene.draw(axes, environment, moment)
    axes.set_title(
        f'{name}, {saved.config.model.layer}: step {t + 1}, return '
        f'{total:.3g}', fontsize=9,
    )
    canvas.draw()
    image = Image.fromarray(np.asarray(canvas.buffer_rgba())).convert('RGB')
    images.append(image.quantize(32))
  path.parent.mkdir(parents=True, exist_ok=True)
  first, *others = images
  first.save(
      path, format='GIF', save_all=True, append_images=others, loop=0,
      duration=[*[scene.milliseconds * stride] * len(others), 1500],
  )
  return len(moments), total


def play(saved: saved_lib.Saved, number: int) -> list[Moment]:
  """Returns the steps of an episode, see `draw`."""
  state = jax.tree.map(lambda u: u[0], saved.state)

  def run(state):
    key = jax.random.fold_in(
        jax.random.key(state['seed']), saved_lib.TEST
    )
    return saved.learner.episode(state, jax.random.fold_in(key, number))

  found = memory.fetch(jax.jit(run)(state))
  return [
      Moment(
          jax.tree.map(lambda u: u[t], found.environment),
          found.action[t], float(found.reward[t]),
      )
      for t in range(int(found.running.sum()))
  ]


def _cart_pole(axes, environment, moment):
  del environment
  x, _, angle, _ = moment.state.motion
  axes.set(xlim=(-2.6, 2.6), ylim=(-0.6, 1.6))
  axes.plot([-2.4, 2.4], [0, 0], color=_DARK, linewidth=1)
  axes.fill([x - 0.3, x + 0.3, x + 0.3, x - 0.3], [-0.1, -0.1, 0.1, 0.1],
            color=_BLUE)
  axes.plot([x, x + np.sin(angle)], [0.1, 0.1 + np.cos(angle)], color=_RED,
            linewidth=5, solid_capstyle='round')
  push = 0.4 if moment.action else -0.4
  axes.annotate('', (x + push, -0.35), (x, -0.35),
                arrowprops=dict(arrowstyle='->', color=_DARK))


def _pendulum(axes, environment, moment):
  del environment
  angle = moment.state.angle
  axes.set(xlim=(-1.4, 1.4), ylim=(-1.4, 1.2))
  axes.plot([0, np.sin(angle)], [0, np.cos(angle)], color=_BLUE, linewidth=7,
            solid_capstyle='round')
  axes.plot(0, 0, 'o', color=_DARK)
  torque = float(moment.action[0])
  axes.plot([0, torque / 2], [-1.25, -1.25], color=_RED, linewidth=4)
  axes.text(0, -1.15, 'torque', ha='center', fontsize=8)


def _cards(axes, suits, place, asked, moment):
  """Draws some cards, the one that is seen and the one that is asked for."""
  axes.set(xlim=(-5, 5), ylim=(-2.2, 2))
  for offset in range(-4, 5):
    if 0 <= place + offset < len(suits):
      suit = suits[place + offset]
      axes.text(
          offset, 0.6, _SUITS[suit], ha='center', va='center', fontsize=20,
          color=_RED if suit in (1, 2) else _DARK,
          alpha=1 if offset == 0 else 0.35,
      )
  axes.plot([-0.5, 0.5, 0.5, -0.5, -0.5], [1.3, 1.3, -0.1, -0.1, 1.3],
            color=_BLUE)
  if asked is None:
    axes.text(0, -1.3, 'nothing to name yet', ha='center', fontsize=10)
    return
  right = moment.reward > 0
  axes.text(
      0, -1.3, f'asked for {_SUITS[suits[asked]]}, named '
      f'{_SUITS[int(moment.action)]}: {"right" if right else "wrong"}',
      ha='center', fontsize=12, color=_GREEN if right else _RED,
  )


def _repeat_previous(axes, environment, moment):
  seen = int(moment.state.shown) - 1
  asked = seen + 1 - environment.back
  _cards(axes, moment.state.suits, seen, asked if asked >= 0 else None, moment)


def _autoencode(axes, environment, moment):
  del environment
  time, last = int(moment.state.time), len(moment.state.suits) - 1
  asked = None if time < last else 2 * last - time
  place = time if asked is None else asked
  _cards(axes, moment.state.suits, place, asked, moment)


def _t_maze(axes, environment, moment):
  length, place = environment.length, int(moment.state.place)
  goal = 1 - 2 * int(moment.state.goal)  # Side 0 is up.
  axes.set(xlim=(-1, length + 1), ylim=(-2.2, 2.2), aspect='auto')
  axes.plot([0, length], [0, 0], color=_DARK, linewidth=10, alpha=0.2)
  axes.plot([length, length], [-1.4, 1.4], color=_DARK, linewidth=10, alpha=0.2)
  axes.plot(length, 1.4 * goal, '*', color=_GREEN, markersize=14)
  sign = '▲' if goal > 0 else '▼'
  axes.text(0, 0.7, sign, ha='center', fontsize=14,
            color=_GREEN if int(moment.state.time) == 0 else 'lightgrey')
  axes.plot(place, 0, 'o', color=_BLUE, markersize=12)
  axes.text(place, -0.9, '▲▼▶'[int(moment.action)], ha='center', fontsize=12,
            color=_RED)


SCENES = dict(
    autoencode=Scene(_autoencode, 300),
    cart_pole=Scene(_cart_pole, 40),
    pendulum=Scene(_pendulum, 50),
    repeat_previous=Scene(_repeat_previous, 500),
    t_maze=Scene(_t_maze, 400),
)
