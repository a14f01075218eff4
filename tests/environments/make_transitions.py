"""Writes transitions.npz: what Gymnasium and POPGym do, for comparison.

  pip install gymnasium==1.4.0 popgym==1.0.7
  python tests/environments/make_transitions.py

The two packages need not be installed for anything else.
"""

import pathlib

import gymnasium
import numpy as np
from popgym.envs import autoencode
from popgym.envs import repeat_previous

CLASSIC = dict(cart_pole='CartPole-v1', pendulum='Pendulum-v1')
CARDS = dict(
    repeat_previous_easy=repeat_previous.RepeatPreviousEasy,
    repeat_previous_medium=repeat_previous.RepeatPreviousMedium,
    repeat_previous_hard=repeat_previous.RepeatPreviousHard,
    autoencode_easy=autoencode.AutoencodeEasy,
    autoencode_medium=autoencode.AutoencodeMedium,
    autoencode_hard=autoencode.AutoencodeHard,
)


def classic(name, episodes, choose):
  """Returns the states, actions and results of some episodes, joined.

  Args:
    name: Of the environment.
    episodes: How many.
    choose: Maps a random generator and a state to an action.
  """
  environment = gymnasium.make(name)
  rng, rows = np.random.default_rng(0), []
  for seed in range(episodes):
    environment.reset(seed=seed)
    done = False
    while not done:
      state = np.array(environment.unwrapped.state)
      action = choose(rng, state)
      observation, reward, terminated, truncated, _ = environment.step(action)
      rows.append((
          state, action, observation, reward, terminated, truncated
      ))
      done = terminated or truncated
  names = (
      'state', 'action', 'observation', 'reward', 'terminated', 'truncated'
  )
  return {name: np.stack(u) for name, u in zip(names, zip(*rows))}


def cards(kind):
  """Returns an episode of a game of cards: half of the answers are right."""
  environment = kind()
  rng = np.random.default_rng(0)
  first, _ = environment.reset(seed=0)
  # Cards are dealt from the end of the shuffled deck.
  suits = environment.deck.suits_idx[environment.deck.idx[::-1]]
  observations, rows, done = [first], [], False
  while not done:
    action = answer(environment, rng)
    observation, reward, done, _, _ = environment.step(action)
    observations.append(observation)
    rows.append((action, reward, done))
  action, reward, terminated = map(np.array, zip(*rows))
  return dict(
      suits=suits.astype(np.int8), action=action.astype(np.int8),
      observation=np.array(observations, np.int8), reward=reward,
      terminated=terminated,
  )


def answer(environment, rng):
  """Returns the right answer or a random one."""
  hands = environment.deck.hands
  hand = hands.get('player', hands.get('system'))
  back = getattr(environment, 'k', 1)
  if rng.random() < 0.5 and len(hand) >= back:
    return int(environment.deck.suits_idx[hand[-back]])
  return int(rng.integers(4))


def main():
  found = dict(
      # Mostly to where the pole leans, so that episodes are not too short.
      cart_pole=classic(CLASSIC['cart_pole'], 5, lambda rng, state: (
          int(rng.random() < 0.5) if rng.random() < 0.7
          else int(state[2] + 0.5 * state[3] > 0)
      )),
      pendulum=classic(CLASSIC['pendulum'], 1, lambda rng, state: (
          rng.uniform(-3, 3, (1,)).astype(np.float32)
      )),
      **{name: cards(kind) for name, kind in CARDS.items()},
  )
  path = pathlib.Path(__file__).with_name('transitions.npz')
  np.savez_compressed(path, **{
      f'{name}.{key}': np.float32(u) if u.dtype == np.float64 else u
      for name, one in found.items() for key, u in one.items()
  })
  for name, one in found.items():
    print(name, len(one['reward']), float(one['reward'].sum()))
  print(path.name, path.stat().st_size)


if __name__ == '__main__':
  main()
