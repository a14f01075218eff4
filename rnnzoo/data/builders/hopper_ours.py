"""Generates trajectories of Hopper: policies of all qualities, our own data.

A linear policy is trained by augmented random search (Mania et al. 2018,
https://arxiv.org/abs/1803.07055, the variant V2-t) in MuJoCo, as gymnasium has
it. The policies at ten points of the training, and the one before the first
step, then act with noise, each for the same number of steps. So the data holds
falls as well as good hops. It is not of D4RL, and no result on it can be
compared with theirs.

The search does not depend on the number of processes. The physics may differ in
the last bits between machines and releases of MuJoCo, and then everything does;
`ours.json` says which release it was.
"""

from concurrent import futures
from concurrent.futures import process
import contextlib
import functools
import json
import multiprocessing
import os
import pathlib
from typing import Any, NamedTuple

import numpy as np
from rnnzoo import errors
from rnnzoo.data.builders import chunks

NAME = 'hopper_ours'
ENVIRONMENT = 'Hopper-v5'
FILE = 'trajectories.npz'
RECORD = 'ours.json'

# What the paper calls N, b, alpha and nu; a step of Hopper is worth 1 for
# standing, which the search does not see.
DIRECTIONS, BEST = 8, 4
STEP_SIZE, RADIUS, SHIFT = 0.01, 0.025, 1.0
POLICIES = 10
# Steps of the environment: of the training, and of the data.
TRAINING_STEPS, DATA_STEPS = 200_000, 66_000
NOISE = 0.1


class Policy(NamedTuple):
  """`clip(weights @ (observation - mean) / deviation)`, in `[-1, 1]`.

  Attributes:
    weights: `[A, D]` float64.
    mean: `[D]`.
    deviation: `[D]`.
  """

  weights: np.ndarray
  mean: np.ndarray
  deviation: np.ndarray

  def act(self, observation: np.ndarray) -> np.ndarray:
    """Returns an action `[A]`."""
    x = (observation - self.mean) / self.deviation
    return np.clip(self.weights @ x, -1, 1)


class Episode(NamedTuple):
  """An episode of `n` steps; `terminal` tells a fall from the time limit."""

  observations: np.ndarray  # [n, D]
  actions: np.ndarray  # [n, A]
  rewards: np.ndarray  # [n]
  terminal: bool


def prepare(
    data_dir: pathlib.Path,
    manual_dir: pathlib.Path | None = None,
    *,
    seed: int = 0,
    workers: int = 0,
) -> pathlib.Path:
  """Generates the data set under `data_dir`, unless it is there already.

  Args:
    data_dir: Where data sets lie; made if missing.
    manual_dir: Must be None: no files are read.
    seed: Decides everything.
    workers: The number of processes; 0 means one for each CPU core.

  Returns:
    The directory of the data set.

  Raises:
    UserError: If an argument is wrong, the environment is not installed, or the
      data set cannot be written or is there with another seed.
  """
  if manual_dir is not None:
    raise errors.UserValueError(
        f'{NAME} is generated and takes no --manual_dir.'
    )
  directory = data_dir / NAME
  if (directory / RECORD).exists():
    old = json.loads((directory / RECORD).read_text())
    if old['seed'] != seed:
      raise errors.UserValueError(
          f'{directory} holds the data of --seed={old["seed"]}, not of {seed}. '
          'Move it away, or name another --data_dir.'
      )
    return directory
  mujoco()
  try:
    directory.mkdir(parents=True, exist_ok=True)
    arrays, record = generate(seed, workers or os.cpu_count() or 1)
    with (directory / FILE).open('wb') as file:
      np.savez_compressed(file, **arrays)  # pyright: ignore[reportArgumentType]
    # Written last: without it, the data set is not there.
    (directory / RECORD).write_text(json.dumps(record, indent=2) + '\n')
  except process.BrokenProcessPool as error:
    raise errors.UserError(
        'A process that generates data has ended, perhaps because memory was '
        'short. Try fewer --workers.'
    ) from error
  except OSError as error:
    raise errors.UserError(
        f'{NAME} cannot be written to {directory}: {error.strerror}.'
    ) from error
  return directory


def generate(
    seed: int, workers: int, *, training_steps: int = TRAINING_STEPS,
    data_steps: int = DATA_STEPS,
) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
  """Returns the arrays of the file, and what is to be recorded of them.

  Args:
    seed: Decides everything.
    workers: The number of processes.
    training_steps: Steps of the environment in the search.
    data_steps: Steps of the environment in the data, about.
  """
  module = mujoco()
  with contextlib.ExitStack() as stack:
    run = map
    if workers > 1:
      pool = stack.enter_context(futures.ProcessPoolExecutor(
          workers, multiprocessing.get_context('spawn'), chunks.start_worker
      ))
      run = pool.map
    policies = search(run, seed, training_steps)
    each = -(-data_steps // len(policies))
    jobs = [
        (policy, each, np.random.SeedSequence([seed, 1, i]))
        for i, policy in enumerate(policies)
    ]
    groups = list(run(collect, jobs))
  episodes = [episode for group in groups for episode in group]
  arrays = to_arrays(episodes)
  returns = [[e.rewards.sum() for e in group] for group in groups]
  every = np.concatenate(returns)
  return arrays, dict(
      environment=ENVIRONMENT,
      seed=seed,
      mujoco=module.__version__,
      training_steps=training_steps,
      steps=len(arrays['rewards']),
      episodes=len(episodes),
      best_return=round(float(every.max()), 2),
      mean_return=round(float(every.mean()), 2),
      mean_return_of_policies=[round(float(np.mean(r)), 2) for r in returns],
  )


def to_arrays(episodes: list[Episode]) -> dict[str, np.ndarray]:
  """Returns episodes as the arrays of `data.control.trajectories`."""
  ends = np.cumsum([len(e.rewards) for e in episodes]) - 1
  terminals = np.zeros(ends[-1] + 1, bool)
  truncations = terminals.copy()
  fell = np.array([e.terminal for e in episodes])
  terminals[ends[fell]] = True
  truncations[ends[~fell]] = True
  join = lambda name: np.concatenate(
      [getattr(e, name) for e in episodes]
  ).astype(np.float32)
  return dict(
      observations=join('observations'), actions=join('actions'),
      rewards=join('rewards'), terminals=terminals, truncations=truncations,
      environment=np.array(ENVIRONMENT),
  )


def search(run, seed: int, steps: int) -> list[Policy]:
  """Returns the policies at equal distances of the training, the first too.

  Args:
    run: `map`, or that of a pool of processes.
    seed: Decides everything.
    steps: Steps of the environment, about.
  """
  environment = make()
  shape = environment.action_space.shape + environment.observation_space.shape
  weights = np.zeros(shape)
  total, squares, count = np.zeros(shape[1]), np.zeros(shape[1]), 0
  mean, deviation = np.zeros(shape[1]), np.ones(shape[1])
  policies, done, iteration = [Policy(weights, mean, deviation)], 0, 0
  while len(policies) <= POLICIES:
    rng = np.random.default_rng([seed, 0, iteration])
    deltas = rng.normal(size=(DIRECTIONS, *shape))
    seeds = rng.integers(2**31, size=DIRECTIONS).tolist()
    jobs = [
        (Policy(weights + sign * RADIUS * delta, mean, deviation), number)
        for delta, number in zip(deltas, seeds) for sign in (1, -1)
    ]
    found = list(run(measure, jobs))
    scores = np.array([score for score, *_ in found]).reshape(-1, 2)
    best = np.argsort(-scores.max(1), kind='stable')[:BEST]
    spread = max(scores[best].std(), 1e-6)
    change = scores[best, 0] - scores[best, 1]
    weights = weights + STEP_SIZE / (BEST * spread) * np.tensordot(
        change, deltas[best], 1
    )
    for _, number, of_sum, of_squares in found:
      done, count = done + number, count + number
      total, squares = total + of_sum, squares + of_squares
    mean = total / count
    # A column that never moves is left as it is.
    deviation = np.sqrt(np.maximum(squares / count - mean**2, 0))
    deviation = np.where(deviation < 1e-7, np.inf, deviation)
    iteration += 1
    if done >= steps * len(policies) / POLICIES:
      policies.append(Policy(weights, mean, deviation))
      returns = [score + SHIFT * number for score, number, *_ in found]
      print(
          f'{NAME}: {done:,} of {steps:,} steps of the search, mean return '
          f'{np.mean(returns):.0f}', flush=True,
      )
  return policies


def measure(job) -> tuple[float, int, np.ndarray, np.ndarray]:
  """Runs a policy for an episode.

  Returns:
    The return without the reward for standing, the number of steps, and the
    sums of the observations and of their squares.
  """
  policy, seed = job
  episode = play(make(), policy, seed)
  x = episode.observations
  score = float(np.sum(episode.rewards - SHIFT))
  return score, len(x), x.sum(0), (x**2).sum(0)


def collect(job) -> list[Episode]:
  """Runs a policy with noise for some steps; the last episode ends, too."""
  policy, steps, sequence = job
  rng = np.random.default_rng(sequence)
  found, count = [], 0
  while count < steps:
    found.append(play(make(), policy, int(rng.integers(2**31)), rng))
    count += len(found[-1].rewards)
  return found


def play(environment, policy: Policy, seed: int, rng=None) -> Episode:
  """Runs a policy for an episode; `rng` adds noise to the actions."""
  observation, _ = environment.reset(seed=seed)
  rows = []
  while True:
    action = policy.act(observation)
    if rng is not None:
      action = np.clip(action + NOISE * rng.normal(size=action.shape), -1, 1)
    following, reward, terminal, truncated, _ = environment.step(action)
    rows.append((observation, action, reward))
    observation = following
    if terminal or truncated:
      observations, actions, rewards = map(np.array, zip(*rows))
      return Episode(observations, actions, rewards, bool(terminal))


def mujoco():
  """Returns the module mujoco.

  Raises:
    UserError: If it or gymnasium is not installed.
  """
  try:
    import gymnasium  # noqa: F401  # pyright: ignore
    import mujoco as module  # pyright: ignore
  except ImportError as error:
    raise errors.UserError(
        f'{NAME} is generated in MuJoCo, which is not installed '
        f"({error}): pip install 'gymnasium[mujoco]'."
    ) from error
  return module


@functools.cache
def make():
  """Returns the environment of this process."""
  import gymnasium  # pyright: ignore

  return gymnasium.make(ENVIRONMENT, disable_env_checker=True)


def describe(data_dir: pathlib.Path) -> dict[str, str]:
  """Returns what the data set holds, for people."""
  record = json.loads((data_dir / NAME / RECORD).read_text())
  return dict(train=(
      f'{record["episodes"]:,} episodes, {record["steps"]:,} steps; return '
      f'{record["mean_return"]:,} on average, {record["best_return"]:,} at best'
  ))
