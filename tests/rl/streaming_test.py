"""Stream AC(lambda): against a loop, through the past, and as a command."""

import json
import types

from absl.testing import absltest
from absl.testing import parameterized
from experiments.cli import config_flag
from experiments.cli import results
from experiments.cli import schema
from experiments.cli import tasks
from experiments.configs.rl import settings
from experiments.reporting import collecting
import jax
import jax.numpy as jnp
import numpy as np
from rnnzoo import environments
from rnnzoo import errors
from rnnzoo.rl import streaming
from tests.experiments import commands

command = commands.imported('experiments.streaming')

MASKED = 'experiments/configs/rl/streaming_cartpole_masked.py'


def make(name, environment='cart_pole', **changes):
  config = {n: field.default for n, field in streaming.FIELDS.items()}
  config |= dict(features=6) | changes
  return streaming.StreamAC(
      name, types.SimpleNamespace(**config), environments.make(environment)
  )


def steps(learner, count, seed=0):
  """Returns all states, and the returns of episodes."""
  states, found = [learner.initial_state(seed)], []
  step = jax.jit(learner.step)
  for time in range(count):
    state, value = step(states[-1], time)
    states.append(state)
    found.append(float(value))
  return states, np.array(found)


class StreamingTest(parameterized.TestCase):

  def test_equals_the_equations(self):
    """Episodes end within the steps, by their rules."""
    learner = make('none', trace_decay=0.7, entropy_weight=0.1)
    config, environment = learner.config, learner.environment
    states, returns = steps(learner, 60)
    self.assertBetween(np.isfinite(returns).sum(), 2, 10)

    def outputs(learner, params, x):
      return learner.merge(params)(x[None, None])[1][0, 0]

    @jax.jit
    def value_of(params, x):
      return outputs(learner.value, params, x)[0]

    @jax.jit
    def objective(params, x, action, sign):
      logs = jax.nn.log_softmax(outputs(learner.policy, params, x))
      entropy = -(jnp.exp(logs) * logs).sum()
      return logs[action] + 0.1 * sign * entropy

    logits_of = jax.jit(lambda p, x: outputs(learner.policy, p, x))
    gradients_of = jax.jit(jax.grad(objective)), jax.jit(jax.grad(value_of))
    traces = jax.tree.map(jnp.zeros_like, states[0]['params'])
    reward_sum, length = 0.0, 0
    count, mean, square = 1.0, 1.0, 1.0  # Of discounted returns.
    for time, (old, new) in enumerate(zip(states, states[1:])):
      policy, value = old['params']
      # What was done: the action that leads to this state, and its reward of 1.
      key = jax.random.fold_in(old['key'], time)
      act_key, step_key, _ = jax.random.split(key, 3)
      x = old['moments'].normalize(old['inputs'])
      logits = logits_of(policy, x)
      action = jax.random.categorical(act_key, logits[None])[0]
      _, after, reward, ended, _ = environment.step(
          step_key, old['environment'], action
      )
      reward_sum = config.discount * reward_sum + float(reward)
      count += 1
      difference = reward_sum - mean
      square += difference**2 * (count - 1) / count
      mean += difference / count
      scale = np.sqrt(square / count)
      later = old['moments'].update(after).normalize(after)
      next_value = 0 if ended else value_of(value, later)
      delta = reward / scale + config.discount * next_value - value_of(value, x)
      gradients = [
          gradients_of[0](policy, x, action, jnp.sign(delta)),
          gradients_of[1](value, x),
      ]
      traces = jax.tree.map(
          lambda z, g: config.discount * 0.7 * z + g, traces, gradients
      )
      for i, bound in enumerate((3.0, 2.0)):
        size = sum(np.abs(z).sum() for z in jax.tree.leaves(traces[i]))
        rate = 1 / max(1, bound * max(1, abs(float(delta))) * size)
        jax.tree.map(
            lambda new, old, z: np.testing.assert_allclose(
                new, old + rate * delta * z, rtol=2e-3, atol=2e-4
            ),
            new['params'][i], old['params'][i], traces[i],
        )
      length += 1
      if ended:
        self.assertEqual(returns[time], length)
        traces = jax.tree.map(jnp.zeros_like, traces)
        reward_sum, length = 0.0, 0
      self.assertEqual(bool(ended), bool(new['reset'][0]))

  @parameterized.parameters('cart_pole', 'pendulum')
  def test_rtrl_is_a_window_over_the_whole_episode(self, environment):
    """With parameters that hardly change, and with real numbers as actions."""
    found = []
    for name in ('min_gru', 'min_gru_20'):
      learner = make(name, environment, learning_rate=1e-9)
      states, _ = steps(learner, 20)
      found.append(states[-1]['traces'])
    self.assertGreater(np.abs(jax.tree.leaves(found[0])[0]).max(), 1e-4)
    jax.tree.map(
        lambda u, w: np.testing.assert_allclose(u, w, rtol=1e-3, atol=1e-4),
        *found,
    )

  def test_command(self):
    directory = commands.temporary_directory(self)
    flag = config_flag.parse_alone(
        f'{commands.ROOT / MASKED}:lru,none', '--config.smoke=True'
    )
    config = tasks.resolve(flag.value, flag.exports, source='streaming')
    command.run_all(flag, config, directory, ('', None))
    self.assertTrue((directory / 'curve.png').exists())
    saved = json.loads((directory / 'config.json').read_text())
    self.assertTrue(saved['smoke'])
    record = results.read(directory / 'lru' / 'seed_1' / 'result.json')
    self.assertIn('masked.py:lru ', record['command'])
    self.assertIn('--config.seed=1', record['command'])
    self.assertBetween(record['value'], 5, 200)
    lines = commands.metrics(directory / 'none' / 'seed_0', 'return')
    self.assertGreater(len(lines), 5)
    self.assertLen([
        problem for problem in collecting.collect(directory).problems
        if 'a smoke run' in problem
    ], 4)

  @parameterized.parameters(
      (dict(learners=('lrux',)), 'no learner .lrux.; .* Did you mean "lru"'),
      (dict(learners=('none_3',)), 'no learner .none_3.'),
      (dict(learners=()), 'at least one learner'),
      (dict(trace_decay=1.5), 'trace_decay must be in'),
      (dict(stepz=1), 'no config field stepz'),
  )
  def test_bad_fields(self, changes, message):
    config = settings.streaming()
    with config.unlocked():
      config.update(changes)
    with self.assertRaisesRegex(errors.UserValueError, message):
      schema.check(config)

  def test_bad_programs(self):
    with self.assertRaisesRegex(errors.UserError, 'by experiments.streaming'):
      tasks.resolve(settings.streaming(), source='environment')
    with self.assertRaisesRegex(errors.UserError, 'gru cannot learn so'):
      make('gru')


if __name__ == '__main__':
  absltest.main()
