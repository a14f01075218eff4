"""Environments: their contract, and equality with Gymnasium and POPGym."""

import pathlib

from absl.testing import absltest
from absl.testing import parameterized
import jax
import jax.numpy as jnp
import numpy as np
from rnnzoo import environments
from rnnzoo import errors
from rnnzoo.environments import autoencode
from rnnzoo.environments import cart_pole
from rnnzoo.environments import pendulum
from rnnzoo.environments import repeat_previous
from rnnzoo.environments import t_maze

ALL = [
    ('autoencode', {}), ('cart_pole', {}), ('cart_pole', dict(masked=True)),
    ('pendulum', {}), ('pendulum', dict(masked=True)), ('repeat_previous', {}),
    ('t_maze', {}),
]


def transitions(name):
  """Returns what make_transitions.py has written of an environment."""
  path = pathlib.Path(__file__).with_name('transitions.npz')
  with np.load(path, allow_pickle=False) as found:
    return {
        key.removeprefix(f'{name}.'): found[key]
        for key in found.files if key.startswith(f'{name}.')
    }


def play(environment, state, actions):
  """Runs actions `[T]`; returns what `step` returns at each of them."""

  def body(state, action):
    state, *results = environment.step(jax.random.key(0), state, action)
    return state, results

  _, results = jax.jit(
      lambda state, actions: jax.lax.scan(body, state, actions)
  )(state, jnp.asarray(actions))
  return [np.asarray(one) for one in results]


class ContractTest(parameterized.TestCase):

  @parameterized.parameters(*ALL)
  def test_shapes_and_ends(self, name, options):
    environment = environments.make(name, **options)
    space = environment.observation

    def episode(key):
      state, first = environment.reset(key)

      def body(state, key):
        action = environment.action.sample(key)
        state, *results = environment.step(key, state, action)
        return state, (action, *results)

      keys = jax.random.split(key, environment.max_steps)
      return first, jax.lax.scan(body, state, keys)[1]

    keys = jax.random.split(jax.random.key(0), 8)
    first, results = jax.jit(jax.vmap(episode))(keys)
    action, observation, reward, terminated, truncated = results
    self.assertEqual(first.shape, observation[:, 0].shape)
    self.assertEqual(first.dtype, observation.dtype)
    for one, value in ((space, observation), (environment.action, action)):
      encoded = one.encode(value)
      self.assertEqual(
          encoded.shape, (8, environment.max_steps, one.num_features)
      )
    self.assertEqual(reward.dtype, jnp.float32)
    self.assertEqual(terminated.dtype, bool)
    self.assertEqual(truncated.dtype, bool)
    self.assertTrue((terminated | truncated).any(1).all())
    # Other seeds have other episodes.
    self.assertGreater(len(np.unique(np.asarray(first), axis=0)), 1)

  def test_bad_arguments(self):
    for name, options, message in (
        ('cart_poll', {}, 'Did you mean "cart_pole"'),
        ('t_maze', dict(lenth=3), 'no config field environment.lenth.*length'),
        ('t_maze', dict(length=0), 'environment.length must be at least 1'),
        ('autoencode', dict(level='eas'), 'environment.level must be one of'),
    ):
      with self.assertRaisesRegex(errors.UserValueError, message):
        environments.make(name, **options)


class ReferenceTest(parameterized.TestCase):

  def test_cart_pole(self):
    known, environment = transitions('cart_pole'), cart_pole.CartPole()
    count = len(known['reward'])
    state = cart_pole.CartPoleState(
        jnp.asarray(known['state']), jnp.zeros(count, jnp.int32)
    )
    step = jax.jit(jax.vmap(environment.step, (None, 0, 0)))
    state, observation, reward, terminated, truncated = step(
        jax.random.key(0), state, known['action']
    )
    np.testing.assert_allclose(
        observation, known['observation'], rtol=1e-6, atol=1e-6
    )
    np.testing.assert_array_equal(reward, known['reward'])
    np.testing.assert_array_equal(terminated, known['terminated'])
    self.assertFalse(truncated.any())
    # From its first state on, a whole episode.
    length = int(np.argmax(known['terminated'])) + 1
    first = cart_pole.CartPoleState(
        jnp.asarray(known['state'][0]), jnp.int32(0)
    )
    observation, reward, terminated, _ = play(
        environment, first, known['action'][:length]
    )
    np.testing.assert_allclose(
        observation, known['observation'][:length], rtol=1e-4, atol=1e-4
    )
    self.assertEqual(int(np.argmax(terminated)) + 1, length)

  def test_the_time_limit_of_cart_pole(self):
    environment = cart_pole.CartPole()
    state = cart_pole.CartPoleState(jnp.zeros(4), jnp.int32(498))
    *_, terminated, truncated = play(environment, state, [0, 1])
    self.assertEqual(truncated.tolist(), [False, True])
    self.assertFalse(terminated.any())

  def test_pendulum(self):
    known, environment = transitions('pendulum'), pendulum.Pendulum()
    angle, speed = known['state'].T
    count = len(known['reward'])
    state = pendulum.PendulumState(angle, speed, jnp.arange(count))
    step = jax.jit(jax.vmap(environment.step, (None, 0, 0)))
    _, observation, reward, terminated, truncated = step(
        jax.random.key(0), state, known['action']
    )
    np.testing.assert_allclose(
        observation, known['observation'], rtol=1e-5, atol=1e-5
    )
    np.testing.assert_allclose(reward, known['reward'], rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(truncated, known['truncated'])
    self.assertFalse(terminated.any())

  @parameterized.product(
      name=['repeat_previous', 'autoencode'], level=['easy', 'medium', 'hard']
  )
  def test_games_of_cards(self, name, level):
    known = transitions(f'{name}_{level}')
    environment = environments.make(name, level=level)
    first, _ = environment.reset(jax.random.key(0))
    self.assertEqual(first.suits.shape, known['suits'].shape)
    state = first._replace(suits=jnp.asarray(known['suits'], jnp.int32))
    observation, reward, terminated, truncated = play(
        environment, state, known['action']
    )
    self.assertLen(reward, environment.max_steps)
    np.testing.assert_array_equal(observation, known['observation'][1:])
    np.testing.assert_allclose(reward, known['reward'], rtol=1e-6)
    np.testing.assert_array_equal(terminated, known['terminated'])
    self.assertFalse(truncated.any())

  def test_the_first_observation_of_games_of_cards(self):
    for kind, mode in (
        (repeat_previous.RepeatPrevious, ()), (autoencode.Autoencode, (1,))
    ):
      state, observation = kind().reset(jax.random.key(3))
      self.assertEqual(
          np.ravel(observation).tolist(), [*mode, int(state.suits[0])]
      )

  def test_masks_leave_out_velocities(self):
    for kind, kept in (
        (cart_pole.CartPole, [0, 2]), (pendulum.Pendulum, [0, 1])
    ):
      _, whole = kind().reset(jax.random.key(0))
      _, part = kind(masked=True).reset(jax.random.key(0))
      np.testing.assert_array_equal(part, whole[np.array(kept)])


class TMazeTest(parameterized.TestCase):

  @parameterized.parameters(0, 1)
  def test_right_and_wrong_turns(self, goal):
    environment = t_maze.TMaze(length=3)
    state = t_maze.TMazeState(jnp.int32(goal), jnp.int32(0), jnp.int32(0))
    walk = [2, 2, 2]
    for turn, reward in ((goal, 1), (1 - goal, -1)):
      seen, rewards, terminated, _ = play(environment, state, [*walk, turn])
      self.assertEqual(seen[:3].tolist(), [2, 2, 3])
      self.assertEqual(rewards.tolist(), [0, 0, 0, reward])
      self.assertEqual(terminated.tolist(), [False, False, False, True])

  def test_what_costs(self):
    environment = t_maze.TMaze(length=3)
    state = t_maze.TMazeState(jnp.int32(0), jnp.int32(0), jnp.int32(0))
    _, rewards, terminated, _ = play(environment, state, [0, 2, 2, 2, 2, 2])
    np.testing.assert_allclose(rewards, [-0.1, 0, 0, 0, -0.1, -1], rtol=1e-6)
    self.assertEqual(terminated.tolist(), [False] * 5 + [True])


if __name__ == '__main__':
  absltest.main()
