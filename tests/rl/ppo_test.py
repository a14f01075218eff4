"""PPO: actor and learner agree, and each part equals a plain computation."""

import functools

from absl.testing import absltest
from absl.testing import parameterized
from experiments.configs.rl import settings
import jax
import jax.numpy as jnp
import numpy as np
from rnnzoo import environments
from rnnzoo import errors
from rnnzoo.models import actor_critic
from rnnzoo.rl import distributions
from rnnzoo.rl import loop
from rnnzoo.rl import moments as moments_lib
from rnnzoo.rl import ppo
from rnnzoo.rl import saved


def make(name='t_maze', layer='min_gru', **changes):
  """Returns a small learner; `options` are those of the environment."""
  config = settings.defaults(name, layer)
  config.update(config.smoke_overrides)
  options = changes.pop('options', {})
  config.update(changes)
  return ppo.PPO(config, environments.make(name, **options))


@functools.cache
def rolled_out(name, layer, observe_last=False, **options):
  """Returns a learner, and its second rollout with the carry at its start."""
  learner = make(
      name, layer, options=options, observe_last=observe_last,
      num_environments=8,
  )
  state = jax.jit(learner.initial_state)(0)
  # A policy that is not nearly uniform.
  params = dict(state['params'])
  params['head'] = jax.tree.map(lambda u: 30 * u, params['head'])
  collect = jax.jit(lambda actor, key: learner.collect(
      learner.model(params), actor, key
  ))
  actor, *_ = collect(state['actor'], jax.random.key(1))
  after, rollout, episodes = collect(actor, jax.random.key(2))
  _, decision = jax.jit(
      lambda *args, reset: learner.model(params)(*args, reset=reset)
  )(rollout.inputs, actor.carry, reset=rollout.reset)
  return learner, params, actor, after, rollout, episodes, decision


class AgreementTest(parameterized.TestCase):

  @parameterized.product(
      layer=['min_gru', 'lru', 'gru', 'gated_delta_net', 'none'],
  )
  def test_actor_and_learner_agree(self, layer):
    learner, _, actor, _, rollout, _, decision = rolled_out(
        't_maze', layer, length=2
    )
    # The rollout starts in the midst of episodes, and others start in it.
    self.assertFalse(rollout.reset[:, 0].all())
    self.assertTrue(rollout.reset[:, 1:].any(1).all())
    if layer != 'none':
      self.assertNotEmpty(jax.tree.leaves(actor.carry))
    log_prob = learner.distribution.log_prob(decision.policy, rollout.action)
    self.assertGreater(float(jnp.std(log_prob)), 1e-2)
    np.testing.assert_allclose(log_prob, rollout.log_prob, rtol=0, atol=1e-5)
    np.testing.assert_allclose(
        decision.value, rollout.value, rtol=1e-5, atol=1e-5
    )

  def test_the_last_action_and_reward_are_read(self):
    learner, *_, rollout, _, decision = rolled_out(
        'pendulum', 'min_gru', observe_last=True, time_limit=6
    )
    inputs = np.asarray(rollout.inputs)
    self.assertEqual(inputs.shape[-1], 3 + 1 + 1)
    starts = np.asarray(rollout.reset)
    self.assertTrue(starts.any())
    self.assertFalse(inputs[starts][:, 3:].any())
    before = np.roll(np.stack([
        np.clip(rollout.action[..., 0], -1, 1), rollout.reward
    ], -1), 1, axis=1)
    goes_on = ~starts
    goes_on[:, 0] = False  # The step before is in the rollout before.
    np.testing.assert_array_equal(inputs[goes_on][:, 3:], before[goes_on])
    log_prob = learner.distribution.log_prob(decision.policy, rollout.action)
    np.testing.assert_allclose(log_prob, rollout.log_prob, rtol=0, atol=1e-5)

  @parameterized.parameters('min_gru', 'gru')
  def test_next_values(self, layer):
    """Those of final observations are what the next step would have said."""
    learner, params, actor, after, rollout, _, _ = rolled_out(
        'cart_pole', layer, time_limit=5
    )
    truncated, terminated = rollout.truncated, rollout.terminated
    self.assertTrue(truncated[:, :-1].any())
    model = learner.model(params)
    found = jax.jit(functools.partial(ppo.next_values, model))(
        rollout, actor.carry
    )

    def body(carry, t):
      carry, _ = model.step(
          carry, rollout.inputs[:, t], reset=rollout.reset[:, t]
      )
      _, decision = model.step(carry, rollout.next_inputs[:, t])
      return carry, decision.value

    steps = jnp.arange(rollout.reward.shape[1])
    wanted = jax.jit(lambda: jax.lax.scan(body, actor.carry, steps)[1])().T
    used = ~terminated
    np.testing.assert_allclose(found[used], wanted[used], rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(
        after.reset, (terminated | truncated)[:, -1]
    )

  def test_episodes_are_counted(self):
    learner, _, _, _, rollout, episodes, _ = rolled_out(
        'cart_pole', 'min_gru', time_limit=5
    )
    done = rollout.terminated | rollout.truncated
    self.assertEqual(int(episodes.count), int(done.sum()))
    # Every step has a reward of 1.
    self.assertEqual(float(episodes.returns), float(episodes.lengths))


class AdvantagesTest(parameterized.TestCase):

  def test_equals_a_plain_loop(self):
    rng = np.random.default_rng(0)
    shape, discount, mix = (7, 23), 0.9, 0.8
    reward, value, following = rng.normal(size=(3, *shape)).astype(np.float32)
    terminated, truncated = rng.random((2, *shape)) < 0.15
    self.assertTrue((terminated & truncated).any())
    wanted = np.zeros(shape)
    for row in range(shape[0]):
      advantage = 0.0
      for t in reversed(range(shape[1])):
        if terminated[row, t]:
          advantage = reward[row, t] - value[row, t]
        elif truncated[row, t]:
          advantage = (
              reward[row, t] + discount * following[row, t] - value[row, t]
          )
        else:
          delta = reward[row, t] + discount * following[row, t] - value[row, t]
          advantage = delta + discount * mix * advantage
        wanted[row, t] = advantage
    found = ppo.advantages(
        *map(jnp.asarray, (reward, value, following, terminated, truncated)),
        discount=discount, gae_lambda=mix,
    )
    np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-5)


class LossTest(parameterized.TestCase):

  def test_the_policy_of_the_rollout_has_moved_nowhere(self):
    """Parts of a rollout keep whole sequences, each with its own state."""
    learner, params, actor, _, rollout, *_ = rolled_out(
        't_maze', 'min_gru', length=2
    )
    whole = ppo.Batch(
        actor.carry, rollout.inputs, rollout.reset, rollout.action,
        rollout.log_prob, rollout.reward, rollout.value,
    )
    loss = jax.jit(lambda index: learner.loss(params, whole.rows(index))[1])
    for index in ([5, 2, 7, 0], [1, 3, 4, 6]):
      metrics = loss(jnp.array(index))
      self.assertLess(abs(float(metrics['kl'])), 1e-6)
      self.assertEqual(float(metrics['clipped']), 0)
      wanted = 0.5 * float((rollout.reward[jnp.array(index)] ** 2).mean())
      self.assertAlmostEqual(float(metrics['value_loss']), wanted, 4)

  def test_burn_in(self):
    """Its steps move the state, and nothing else in the loss sees them."""
    learner, params, actor, _, rollout, *_ = rolled_out(
        't_maze', 'min_gru', length=2
    )
    whole = ppo.Batch(
        actor.carry, rollout.inputs, rollout.reset, rollout.action,
        rollout.log_prob, rollout.reward, rollout.value,
    )
    steps, changed = 6, whole.action.at[:, :6].set(0)
    burning = make(
        't_maze', 'min_gru', burn_in=steps, num_environments=8,
        options=dict(length=2),
    )
    grad = jax.jit(jax.grad(burning.loss, has_aux=True))
    grads, metrics = grad(params, whole)
    # No step before `steps` counts, except for what it does to the state.
    other, _ = grad(params, whole._replace(
        action=changed, advantage=whole.advantage.at[:, :steps].set(9.0)
    ))
    jax.tree.map(np.testing.assert_array_equal, grads, other)
    # The state at `steps` is the actor's, so that nothing has moved.
    self.assertLess(abs(float(metrics['kl'])), 1e-6)

    # The same as a shorter rollout that starts from that state, which is fixed.
    def shorter(params):
      carry, _ = learner.model(params)(
          whole.inputs[:, :steps], whole.carry, reset=whole.reset[:, :steps]
      )
      return whole.after(steps, carry)

    batch = jax.jit(shorter)(params)
    wanted, _ = jax.jit(jax.grad(learner.loss, has_aux=True))(params, batch)
    jax.tree.map(
        lambda u, v: np.testing.assert_allclose(u, v, rtol=1e-4, atol=1e-6),
        grads, wanted,
    )

  def test_values_are_clipped(self):
    decided = jnp.array([[0.0, 2.0, -2.0, 0.1]])
    before, target = jnp.zeros((1, 4)), jnp.array([[1.0, 1.0, 1.0, 1.0]])
    # Far moves count as moves of 0.5, unless the true error is larger.
    squares = [1.0, max(1.0, 0.25), max(9.0, 2.25), 0.81]
    learner = make(value_clip_range=0.5, normalize_advantage=False)

    class Model:
      def __call__(self, inputs, carry, reset):
        return carry, actor_critic.Decision(jnp.zeros((1, 4, 3)), decided)

    learner.model = lambda params: Model()
    log_prob = jnp.full((1, 4), -np.log(3.0))
    batch = ppo.Batch(
        None, None, None, jnp.zeros((1, 4), jnp.int32), log_prob,
        target - before, before,
    )
    _, metrics = learner.loss(None, batch)
    self.assertAlmostEqual(
        float(metrics['value_loss']), 0.5 * np.mean(squares), 5
    )


class MomentsTest(absltest.TestCase):

  def test_moments_of_several_parts_are_those_of_the_whole(self):
    x = 5 + 2 * np.random.default_rng(0).normal(size=(4, 50, 3))
    moments = moments_lib.Moments.initial(2)
    for part in np.split(jnp.asarray(x, jnp.float32), 2):
      moments = moments.update(part)
    flat = x[..., :2].reshape(-1, 2)
    np.testing.assert_allclose(moments.mean, flat.mean(0), rtol=1e-4)
    np.testing.assert_allclose(moments.variance, flat.var(0), rtol=1e-3)
    y = moments.normalize(jnp.asarray(x, jnp.float32))
    np.testing.assert_allclose(y[..., :2].std((0, 1)), 1, rtol=1e-3)
    np.testing.assert_array_equal(y[..., 2], np.float32(x[..., 2]))


class DistributionsTest(parameterized.TestCase):

  def test_gaussian(self):
    gaussian = distributions.Gaussian(environments.Box((2,), -2.0, 2.0))
    policy = jnp.array([0.3, -0.2, 0.1, -0.5])
    action = jnp.array([0.5, 0.1])
    wanted = jax.scipy.stats.norm.logpdf(
        action, policy[:2], jnp.exp(policy[2:])
    ).sum()
    self.assertAlmostEqual(
        float(gaussian.log_prob(policy, action)), float(wanted), places=5
    )
    draw = jax.vmap(lambda key: gaussian.sample(key, policy))
    samples = draw(jax.random.split(jax.random.key(0), 5000))
    mean = -gaussian.log_prob(policy, samples).mean()
    self.assertAlmostEqual(float(gaussian.entropy(policy)), float(mean), 1)

  def test_categorical(self):
    categorical = distributions.Categorical(environments.Discrete(3))
    policy = jnp.array([0.3, -0.2, 0.1])
    probabilities = np.asarray(jax.nn.softmax(policy))
    logs = [float(categorical.log_prob(policy, jnp.int32(i))) for i in range(3)]
    np.testing.assert_allclose(np.exp(logs), probabilities, rtol=1e-5)
    self.assertAlmostEqual(
        float(categorical.entropy(policy)),
        -float(np.sum(probabilities * np.log(probabilities))), places=5,
    )
    self.assertEqual(int(categorical.mode(policy)), 0)

  def test_spaces_without_a_distribution(self):
    for space in (
        environments.MultiDiscrete((2, 3)), environments.Box((1,)),
        environments.Box((1, 2), -1.0, 1.0),
    ):
      with self.assertRaisesRegex(errors.UserValueError, 'actions of an env'):
        distributions.of_space(space)


class LearningTest(parameterized.TestCase):

  def test_learns_to_remember(self):
    """Without memory the mean return of the T-maze is 0."""
    learner = make(
        total_steps=40, num_environments=32, rollout_length=16, epochs=4,
        minibatches=2, options=dict(length=2), reward_scale=1.0,
        model=dict(features=16), optimizer=dict(learning_rate=1e-2),
    )
    state = jax.jit(jax.vmap(learner.initial_state))(
        jnp.arange(1, dtype=jnp.uint32)
    )
    state, metrics = loop.make_train_steps(learner, 40)(state)
    self.assertTrue(np.isfinite(metrics['loss']).all())
    for mark in (saved.EVALUATION, saved.TEST):
      returns = saved.make_evaluate(learner, 64, mark)(state)
      self.assertGreater(float(returns.mean()), 0.9)

  def test_agents_side_by_side_are_those_alone(self):
    learner = make(options=dict(length=2))
    run = jax.jit(lambda seeds: jax.vmap(learner.update)(
        jax.vmap(learner.initial_state)(seeds)
    ))
    both, _ = run(jnp.array([3, 4], jnp.uint32))

    def one_step(seed):
      state = learner.initial_state(seed)
      first = state['params']['encoder']['kernel']
      return learner.update(state)[0] | dict(first=first)

    alone = jax.jit(one_step)(4)
    # The keys of the first parameters are not those of the environments.
    first, _ = jax.jit(learner.functional.initialize)(jax.random.key(4))
    self.assertGreater(
        float(abs(first['encoder']['kernel'] - alone['first']).max()), 0.01
    )
    for one, two in zip(
        jax.tree.leaves(alone['params']), jax.tree.leaves(both['params'])
    ):
      np.testing.assert_allclose(two[1], one, rtol=1e-4, atol=1e-5)
      self.assertGreater(float(abs(two[0] - two[1]).max()), 0)

  def test_bad_configs(self):
    for changes, message in (
        (dict(minibatches=3), 'num_environments 4 must be a multiple'),
        (dict(total_steps=5), 'total_steps 5 must be a multiple of log_every'),
        (dict(model=dict(dropout=0.1)), 'model.dropout must be 0, got 0.1'),
        (dict(model=dict(norm='batch')), 'model.norm must be rms or layer'),
        (dict(model=dict(bidirectional=True)), 'cannot look ahead'),
        (dict(discount=1.5), r'discount must be in \[0, 1\], got 1.5'),
        (dict(burn_in=16), 'burn_in 16 must be less than rollout_length 16'),
    ):
      with self.assertRaisesRegex(errors.UserValueError, message):
        make(**changes)


if __name__ == '__main__':
  absltest.main()
