"""Environments of gymnax, where it is installed, and the line where it is not.

gymnax 1.0.1 needs JAX below 0.12: `pip install -e '.[rl]'` in an environment
of its own, and there `pytest tests/environments/gymnax_test.py`.
"""

import importlib.util
import unittest
from unittest import mock

from absl.testing import absltest
from absl.testing import parameterized
from experiments.configs.rl import settings
import jax
import jax.numpy as jnp
import numpy as np
from rnnzoo import environments
from rnnzoo import errors
from rnnzoo.environments import cart_pole
from rnnzoo.rl import ppo


class MissingTest(absltest.TestCase):

  def test_the_line_where_it_is_not_installed(self):
    with mock.patch.dict('sys.modules', gymnax=None):
      with self.assertRaisesRegex(
          errors.UserError, r"^The environment CartPole-v1 needs gymnax.*"
          r'pip install gymnax\.$'
      ):
        environments.make('gymnax')
    # Its options are known without it.
    self.assertEqual(list(environments.fields_of('gymnax')), ['id'])


@unittest.skipUnless(importlib.util.find_spec('gymnax'), 'It needs gymnax.')
class GymnaxTest(parameterized.TestCase):

  def test_cart_pole_is_ours(self):
    theirs, ours = environments.make('gymnax'), environments.make('cart_pole')
    self.assertEqual(theirs.action, ours.action)
    self.assertEqual(theirs.observation.shape, ours.observation.shape)
    self.assertEqual(theirs.max_steps, ours.max_steps)
    state, observation = theirs.reset(jax.random.key(0))
    own = cart_pole.CartPoleState(observation, jnp.int32(0))

    def body(now, t):
      state, own = now
      key, action = jax.random.key(t), t % 2
      state, *one = theirs.step(key, state, action)
      own, *two = ours.step(key, own, action)
      return (state, own), (one, two)

    _, (one, two) = jax.jit(
        lambda now: jax.lax.scan(body, now, jnp.arange(60))
    )((state, own))
    end = int(np.argmax(two[2])) + 1
    self.assertGreater(end, 5)
    for u, v in zip(one, two):
      np.testing.assert_allclose(u[:end], v[:end], rtol=1e-4, atol=1e-5)

  def test_the_time_limit_truncates(self):
    environment = environments.make('gymnax')
    state, _ = environment.reset(jax.random.key(0))
    state = state.replace(time=environment.max_steps - 1)
    *_, terminated, truncated = environment.step(jax.random.key(0), state, 0)
    self.assertEqual((bool(terminated), bool(truncated)), (False, True))

  @parameterized.parameters(
      'MemoryChain-bsuite', 'Pendulum-v1', 'Breakout-MinAtar'
  )
  def test_a_step_of_training(self, name):
    config = settings.defaults('gymnax', 'min_gru')
    config.update(config.smoke_overrides)
    learner = ppo.PPO(config, environments.make('gymnax', id=name))
    run = jax.jit(lambda: learner.update(learner.initial_state(0)))
    _, metrics = run()
    self.assertTrue(np.isfinite(metrics['loss']))

  def test_bad_names(self):
    with self.assertRaisesRegex(errors.UserValueError, 'mean "CartPole-v1"'):
      environments.make('gymnax', id='CartPole')


if __name__ == '__main__':
  absltest.main()
