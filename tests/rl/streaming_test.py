"""Stream AC(lambda): against a loop, through the past, and as a command."""

import json
import types

from absl.testing import absltest
from absl.testing import parameterized
from experiments.cli import config_flag
from experiments.cli import online_results
from experiments.cli import results
from experiments.cli import schema
from experiments.cli import tasks
from experiments.configs.rl import settings
from experiments.reporting import collecting
import jax
from jax import flatten_util
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


class Network:
  """A network in an episode, and gradients through what it has read.

  Those through `window` tokens are found by back-propagation from the state
  before them. Those through all (0) need the whole Jacobian of the state, which
  knows nothing of channels.
  """

  def __init__(self, learner, loss, window):
    self.window = window
    self.first, unravel = flatten_util.ravel_pytree(
        learner.merge(learner.params).initialize_carry(1)
    )

    def run(params, state, xs):
      model, carry = learner.merge(params), unravel(state)
      for x in xs:
        carry, y = model.step(carry, x[None])
      return flatten_util.ravel_pytree(carry)[0], y[0]

    self.run = jax.jit(run)
    self._gradients = jax.jit(jax.grad(
        lambda params, state, xs, *target: loss(
            run(params, state, xs)[1], *target
        ), (0, 1),
    ))
    self._jacobians = jax.jit(jax.jacrev(lambda *args: run(*args)[0], (0, 1)))

  def start(self, params):
    self.state, self.xs = self.first, []
    self._past = jax.tree.map(
        lambda p: jnp.zeros((*self.first.shape, *p.shape)), params
    )

  def output(self, params, x):
    """Returns the output for `x`, which is not read."""
    return self.run(params, self.state, [*self.xs, x])[1]

  def read(self, params, x, *target):
    """Returns the gradient of the loss of a token, which becomes the last."""
    if self.window:
      self.xs.append(x)
      if len(self.xs) > self.window:
        self.state, _ = self.run(params, self.state, [self.xs.pop(0)])
      return self._gradients(params, self.state, self.xs, *target)[0]
    direct, d_state = self._gradients(params, self.state, [x], *target)
    own, through = self._jacobians(params, self.state, [x])
    add = lambda u, weight, past: u + jnp.tensordot(weight, past, 1)
    gradient = jax.tree.map(
        lambda u, past: add(u, d_state, past), direct, self._past
    )
    self._past = jax.tree.map(
        lambda u, past: add(u, through, past), own, self._past
    )
    self.state, _ = self.run(params, self.state, [x])
    return gradient


class StreamingTest(parameterized.TestCase):

  @parameterized.parameters(('none', 1), ('min_gru', 0), ('min_gru_2', 2))
  def test_equals_the_equations(self, name, window):
    """Episodes end within the steps, by their rules."""
    learner = make(name, trace_decay=0.7, entropy_weight=0.1)
    config, environment = learner.config, learner.environment
    states, returns = steps(learner, 60)
    self.assertBetween(np.isfinite(returns).sum(), 2, 10)

    def objective(logits, action, sign):
      logs = jax.nn.log_softmax(logits)
      entropy = -(jnp.exp(logs) * logs).sum()
      return logs[action] + 0.1 * sign * entropy

    actor = Network(learner.policy, objective, window)
    critic = Network(learner.value, lambda y: y[0], window)
    reward_sum, length = 0.0, 0
    count, mean, square = 1.0, 1.0, 1.0  # Of discounted returns.
    for time, (old, new) in enumerate(zip(states, states[1:])):
      policy, value = old['params']
      if not length:
        actor.start(policy)
        critic.start(value)
        traces = jax.tree.map(jnp.zeros_like, old['params'])
      # What was done: the action that leads to this state, and its reward of 1.
      key = jax.random.fold_in(old['key'], time)
      act_key, step_key, _ = jax.random.split(key, 3)
      x = old['moments'].normalize(old['inputs'])
      logits = actor.output(policy, x)
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
      now = critic.output(value, x)[0]
      gradients = [None, critic.read(value, x)]
      later = old['moments'].update(after).normalize(after)
      next_value = 0 if ended else critic.output(value, later)[0]
      delta = reward / scale + config.discount * next_value - now
      gradients[0] = actor.read(policy, x, action, jnp.sign(delta))
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
        reward_sum, length = 0.0, 0
      self.assertEqual(bool(ended), bool(new['reset'][0]))

  def test_rtrl_is_a_window_over_the_whole_episode(self):
    """With parameters that hardly change, and with real numbers as actions."""
    found = []
    for name in ('min_gru', 'min_gru_20'):
      learner = make(name, 'pendulum', learning_rate=1e-9)
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
    # Other learners may join them, but not with other settings.
    online_results.start(directory, config)
    with self.assertRaisesRegex(
        errors.UserError, 'another config: discount: 0.99 there, 0.9 now. Use '
        'another workdir, or the old values.$'
    ):
      config.discount = 0.9
      online_results.start(directory, config)
    (directory / 'config.json').write_text('{"data": {"name": "text8"}}')
    with self.assertRaisesRegex(errors.UserError, 'of another program'):
      online_results.start(directory, config)

  def test_episodes_that_do_not_end(self):
    """Neither a mean of nothing nor half a record is written."""
    directory = commands.temporary_directory(self)
    flag = config_flag.parse_alone(
        f'{commands.ROOT / MASKED}:none', '--config.environment.name=pendulum',
        '--config.total_steps=300', '--config.num_seeds=2',
        '--config.features=2',
    )
    config = tasks.resolve(flag.value, flag.exports, source='streaming')
    with self.assertRaisesRegex(
        errors.UserError,
        'none, seed 0: no episode ends in the last tenth of the 300 steps.*'
        'at most 200 steps: set total_steps to 2,000 or more',
    ):
      command.run_all(flag, config, directory, ('', None))
    self.assertEqual([p.name for p in directory.iterdir()], ['config.json'])
    # A learner that cannot be stops the others before they run.
    config.learners = ('none', 'gru')
    with self.assertRaisesRegex(
        errors.UserError, 'gru cannot learn so: GRU is not diagonal'
    ):
      command.run_all(flag, config, directory / 'other', ('', None))
    self.assertFalse((directory / 'other').exists())

  def test_means(self):
    """Those of a curve are of agents, not of all their episodes."""
    returns = np.full(100, np.nan)
    returns[[0, 1, 3, 99]] = 1, 3, 5, 7
    ends, means = command.by_part(returns)
    self.assertEqual(ends.tolist(), list(range(2, 101, 2)))
    np.testing.assert_array_equal(means[[0, 1, 2, 49]], [2, 5, np.nan, 7])
    self.assertEqual(command.of_last_tenth(returns, '', None), 7)

  @parameterized.parameters(
      (dict(learners=('lrux',)), 'no learner .lrux.; .* Did you mean "lru"'),
      (dict(learners=('none_3',)), 'no learner .none_3.'),
      (dict(learners=()), 'at least one learner'),
      (dict(trace_decay=1.5), 'trace_decay must be in'),
      (dict(stepz=1), 'no config field stepz'),
      (dict(features=1), 'features must be at least 2'),
      (dict(layer_options=dict(lur={})), 'no layer .lur. .* mean "lru"'),
      (dict(layer_options=dict(lru=3)), 'layer_options.lru must be a dict'),
      (
          dict(layer_options=dict(lru=dict(states=3))),
          'Layer lru has no option .states. .config field layer_options.lru',
      ),
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
    with self.assertRaisesRegex(
        errors.UserError, 'para_gru cannot be built of 4 .*`num_heads` must div'
    ):
      make('para_gru', layer_options=dict(para_gru=dict(num_heads=3)))


if __name__ == '__main__':
  absltest.main()
