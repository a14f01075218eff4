"""Tests of the kind of task `decisions`, its models, and how they act."""

import sys
import types
from unittest import mock

from absl.testing import absltest
from absl.testing import parameterized
from experiments.cli import acting
from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np
from rnnzoo import data
from rnnzoo import errors
from rnnzoo import models
from rnnzoo import tasks
from rnnzoo.data.control import trajectories
from tests.experiments import commands

B, T, S, A = 3, 6, 4, 2
CONFIG = models.ModelConfig(
    layer='min_gru', num_layers=1, features=8, in_features=S + A + 2,
    out_features=A,
)
FACTS = acting.Facts(
    'Line-v1', np.full(S, 0.5), np.full(S, 2.0), np.full(A, 1.5), 10.0, 9.0,
    4.0, (-2.0, 8.0), T,
)


def inputs(seed=0):
  x = jax.random.normal(jax.random.key(seed), (B, T, S + A + 2))
  return x.at[..., -1].set(jnp.arange(T))


def build(**fields):
  make = tasks.Decisions(CONFIG.replace(**fields))
  return make.build(nnx.Rngs(0))


class ModelTest(parameterized.TestCase):

  @parameterized.parameters(
      dict(), dict(layer='attention', max_time=4),
      dict(layer='behaviour_cloning', num_layers=2),
  )
  def test_steps_give_what_sequences_give(self, **fields):
    model = build(**fields)
    x = inputs()
    _, actions = jax.jit(lambda x: model(x))(x)
    carry, step = model.initialize_carry(B), jax.jit(model.step)
    for t in range(T):
      carry, action = step(carry, x[:, t])
      np.testing.assert_allclose(action, actions[:, t], rtol=1e-5, atol=1e-5)
    self.assertLessEqual(np.abs(actions).max(), 1)
    # Padding is not read, and gives 0.
    mask = np.arange(T) < np.array([[T], [2], [0]])
    padded = np.where(mask[..., None], x, np.nan)
    _, masked = model(padded, mask=mask)
    np.testing.assert_allclose(
        masked, np.where(mask[..., None], actions, 0), rtol=1e-5, atol=1e-5
    )

  def test_what_each_model_sees(self):
    def changes(model, index):
      other = inputs().at[:, 1, index].add(1)
      difference = model(other)[1] - model(inputs())[1]
      return np.abs(difference).max((0, 2)) > 1e-7

    # The return, an observation, an action and the number of the step.
    places = dict(target=0, observation=1, action=1 + S, time=-1)
    numbered = build(max_time=T)
    unnumbered, cloning = build(), build(layer='behaviour_cloning')
    for name, index in places.items():
      for model in (numbered, unnumbered):
        seen = changes(model, index)
        self.assertFalse(seen[0])
        wanted = name != 'time' or model is numbered
        self.assertEqual(seen[1:].all(), wanted, name)
      np.testing.assert_array_equal(
          changes(cloning, index), (np.arange(T) == 1) & (name == 'observation')
      )

  def test_the_cloning_mlp_is_what_its_sentence_says(self):
    model = build(layer='behaviour_cloning', num_layers=1)
    x = np.asarray(inputs())[..., 1:1 + S]
    weights = lambda m: (np.asarray(m.kernel[...]), np.asarray(m.bias[...]))
    (w1, b1), (w2, b2) = map(weights, (model.hidden[0], model.head))
    expected = np.tanh(np.maximum(x @ w1 + b1, 0) @ w2 + b2)
    np.testing.assert_allclose(
        model(inputs())[1], expected, rtol=1e-5, atol=1e-5
    )

  @parameterized.parameters(
      (dict(in_features=4), 'must be 2 more than an observation'),
      (dict(out_features=0), 'must be 2 more than an observation'),
      (dict(bidirectional=True), 'a policy cannot look ahead'),
  )
  def test_wrong_configs(self, fields, message):
    with self.assertRaisesRegex(errors.UserValueError, message):
      build(**fields)

  def test_the_loss_counts_the_steps_of_the_mask(self):
    task = tasks.Decisions(CONFIG)
    model = task.build(nnx.Rngs(0))
    x, mask = inputs(), np.arange(T) < np.array([[T], [2], [1]])
    targets = np.asarray(jax.random.uniform(jax.random.key(1), (B, T, A)))
    batch = dict(inputs=x, targets=targets, input_mask=mask, mask=mask)
    _, sums = task.forward(model, batch, None, train=False, key=None)
    found = np.asarray(task.predict(model, batch)['prediction'])
    squares = ((found - targets) ** 2).mean(-1)[mask]
    self.assertEqual(float(sums['weight']), T + 3)
    for name in ('loss', 'mse'):
      self.assertAlmostEqual(float(sums[name]), float(squares.sum()), places=4)


class Line:
  """An environment: `length` steps, whose reward is the first number done."""

  observation_space = types.SimpleNamespace(shape=(S,))
  action_space = types.SimpleNamespace(
      shape=(A,), low=np.full(A, -1), high=np.full(A, 1), dtype=np.float32
  )

  def __init__(self):
    self.spec = types.SimpleNamespace(id='Line-v1')
    self.actions, self.seen = [], []

  def reset(self, seed):
    self.rng = np.random.default_rng(seed)
    self.length = 3 + seed % 3
    return self.rng.normal(size=S), {}

  def step(self, action):
    assert action.dtype == np.float32 and np.abs(action).max() <= 1
    self.actions.append(action)
    last = len(self.actions) == self.length
    return self.rng.normal(size=S), float(action[0]), last, False, {}


class Asking:
  """A policy that keeps what it was asked, and does what it is told."""

  def __init__(self, action):
    self.action, self.asked = np.array(action), []

  def start(self, batch_size):
    return batch_size

  def __call__(self, carry, x):
    self.asked.append(x)
    return carry, np.tile(self.action, (carry, 1))


class ActingTest(parameterized.TestCase):

  def gymnasium(self, make=lambda name, **_: Line()):
    error = types.SimpleNamespace(Error=KeyError)
    self.enterContext(mock.patch.dict(sys.modules, gymnasium=(
        types.SimpleNamespace(make=make, error=error)
    )))

  def test_the_state_carried_and_a_window_of_the_episode_do_the_same(self):
    model = build()
    done = {}
    for way in acting.WAYS:
      environments = [Line() for _ in range(B)]
      outcome = acting.play(
          acting.Policy(model, way, T), environments, FACTS, 9.0, seed=0
      )
      np.testing.assert_array_equal(outcome.lengths, [3, 4, 5])
      done[way] = np.concatenate([e.actions for e in environments])
    np.testing.assert_allclose(done['carried'], done['reread'], atol=1e-5)

  def test_what_a_policy_is_asked(self):
    policy, environments = Asking([0.4, 0.9]), [Line(), Line()]
    outcome = acting.play(policy, environments, FACTS, 9.0, seed=0)
    # Actions are multiplied by 1.5, and clipped.
    np.testing.assert_allclose(environments[0].actions[0], [0.6, 1], rtol=1e-6)
    np.testing.assert_allclose(outcome.returns, [0.6 * 3, 0.6 * 4], rtol=1e-6)
    first, second = policy.asked[:2]
    np.testing.assert_allclose(first[:, 0], 0.9)
    np.testing.assert_allclose(second[:, 0], (9 - 0.6) / 10, rtol=1e-6)
    seen = np.random.default_rng(1).normal(size=(2, S))
    np.testing.assert_allclose(first[1, 1:1 + S], (seen[0] - 0.5) / 2, 1e-5)
    np.testing.assert_allclose(second[1, 1:1 + S], (seen[1] - 0.5) / 2, 1e-5)
    np.testing.assert_array_equal(first[:, 1 + S:-1], 0)
    np.testing.assert_allclose(second[:, 1 + S:-1], [[0.4, 0.9]] * 2, 1e-6)
    np.testing.assert_array_equal([x[0, -1] for x in policy.asked], range(4))
    found = acting.summary(outcome, FACTS)
    self.assertAlmostEqual(found['mean_return'], 2.1)
    self.assertAlmostEqual(found['score'], 41.0)  # Of -2 to 8.

  def test_facts_are_those_of_the_data(self):
    directory = commands.temporary_directory(self)
    arrays = trajectories.walks()
    np.savez(directory / 'my.npz', **arrays)
    dataset = data.load(
        dict(name='trajectories', path=str(directory / 'my.npz')),
        batch_size=4, seed=0,
    )
    run = types.SimpleNamespace(
        task=tasks.Decisions(), data=dataset.source,
        config=dict(data=dict(dataset.config)),
    )
    facts = acting.facts_of(run)
    self.assertEqual(facts.environment, 'Hopper-v5')
    self.assertEqual((facts.window, facts.reward_scale), (20, 1000))
    sizes = facts.mean.shape, facts.action_scale.shape
    self.assertEqual(sizes, ((11,), (3,)))
    run.data = dict(dataset.source)
    del run.data['action_scale']
    with self.assertRaisesRegex(errors.UserValueError, 'has no action_scale'):
      acting.facts_of(run)
    run.task = tasks.Regression()
    with self.assertRaisesRegex(
        errors.UserValueError, 'holds a run of regression; only models of dec'
    ):
      acting.facts_of(run)

  def test_a_policy_acts_in_its_own_environment(self):
    self.gymnasium()
    self.assertLen(acting.make_environments('', 2, FACTS), 2)
    acting.make_environments('Line-v2', 1, FACTS)  # Another version will do.
    for name, facts, message in (
        ('Walker2d-v5', FACTS, 'trained on Line-v1, and --environment is Walk'),
        ('Walker', FACTS._replace(environment='Line'), 'is Walker: it can act'),
        ('', FACTS._replace(environment=''), 'which environment it is from'),
        ('', FACTS._replace(mean=np.zeros(9)), r'sizes \(4,\) and \(2,\)'),
    ):
      with self.assertRaisesRegex(errors.UserValueError, message) as caught:
        acting.make_environments(name, 1, facts)
      self.assertNotIn('\n', str(caught.exception))

  def test_an_environment_that_is_not_installed(self):
    with mock.patch.dict(sys.modules, gymnasium=None):
      with self.assertRaisesRegex(
          errors.UserError, r"pip install 'gymnasium\[mujoco\]'"
      ):
        acting.make_environments('', 1, FACTS)

    def make(name, **_):
      raise KeyError(f'{name} needs mujoco\nmore')

    self.gymnasium(make)
    with self.assertRaisesRegex(
        errors.UserError, r"needs mujoco.*pip install 'gymnasium\[mujoco\]'"
    ) as caught:
      acting.make_environments('', 1, FACTS)
    self.assertLen(str(caught.exception).splitlines(), 1)


if __name__ == '__main__':
  absltest.main()
