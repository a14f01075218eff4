r"""Proximal policy optimisation (Schulman et al., 2017) for recurrent policies.

https://arxiv.org/abs/1707.06347. Environments and learner are one compiled
program. A step of training, `PPO.update`, reads from top to bottom:

1. `collect`: the policy acts for `rollout_length` steps in every environment,
   one `model.step` at a time. The carry at the start of the rollout is kept.
2. `next_values` and `advantages`: what each action was worth.
3. `loss`: some epochs of gradient steps. The model runs over the whole rollout
   in parallel, from the carry that was kept. Where an episode ends inside the
   rollout the state is reset, so the learner sees what the actor saw.

Axes: `B` environments, `T` steps of a rollout, `D` input features.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from rnnzoo import environments
from rnnzoo import models
from rnnzoo import ops
from rnnzoo.layers import base
from rnnzoo.models.actor_critic import ActorCritic
from rnnzoo.rl import config as config_lib
from rnnzoo.rl import distributions
from rnnzoo.rl import moments as moments_lib
from rnnzoo.rl.memoryless import Memoryless
from rnnzoo.training import optimizers
from rnnzoo.training import state as state_lib

State = dict[str, Any]  # Of one agent: `PPO.initial_state` has its entries.

# Marks the key of the first parameters among those that are made of a seed and
# a step: Flax numbers its keys from 0 on, too.
_PARAMETERS = 2**32 - 2


class Actor(NamedTuple):
  """Where the environments and the policy stand between two rollouts.

  Observations are not normalised in it.
  """

  environment: Any  # Its states, every array `[B, ...]`.
  inputs: jax.Array  # What the policy reads next, `[B, D]`.
  reset: jax.Array  # Whether that is the first step of an episode, `[B]`.
  carry: models.SequenceCarry  # Every array `[layers, B, ...]`.
  episode_return: jax.Array  # The rewards of the episode so far, `[B]`.
  episode_length: jax.Array  # `[B]`.


class Rollout(NamedTuple):
  """What happened in a rollout, every array `[B, T, ...]`.

  `next_inputs` is what the policy would read after the step, also at the last
  step of an episode, where the next step of the rollout starts another one.
  """

  inputs: jax.Array
  reset: jax.Array
  action: jax.Array
  log_prob: jax.Array
  value: jax.Array
  reward: jax.Array
  terminated: jax.Array
  truncated: jax.Array
  next_inputs: jax.Array


class Episodes(NamedTuple):
  """Sums over the episodes that ended in a rollout."""

  returns: jax.Array
  lengths: jax.Array
  count: jax.Array


class Episode(NamedTuple):
  """An episode, every array `[T, ...]` with the largest possible length `T`."""

  environment: Any  # Its states before each step.
  action: jax.Array  # As the environment takes it.
  reward: jax.Array
  running: jax.Array  # False after the end of the episode.


class Batch(NamedTuple):
  """What the learner reads: a part of a rollout."""

  carry: models.SequenceCarry  # At the start of the rollout.
  inputs: jax.Array
  reset: jax.Array
  action: jax.Array
  log_prob: jax.Array
  advantage: jax.Array
  value: jax.Array  # In the rollout.

  @property
  def target(self) -> jax.Array:
    """What the value should have been."""
    return self.advantage + self.value

  def rows(self, index: jax.Array) -> 'Batch':
    """Returns some of the environments; the batch is axis 1 of carries."""
    part = jax.tree.map(lambda u: u[index], self._replace(carry=None))
    return part._replace(carry=jax.tree.map(lambda u: u[:, index], self.carry))

  def after(self, steps: int, carry: models.SequenceCarry) -> 'Batch':
    """Returns what follows the first steps, and starts with this carry."""
    part = jax.tree.map(lambda u: u[:, steps:], self._replace(carry=None))
    return part._replace(carry=carry)


def next_values(
    model: ActorCritic, rollout: Rollout, carry: models.SequenceCarry
) -> jax.Array:
  """Returns the value of what follows each step, `[B, T]`.

  Inside an episode it is the value at the next step. The last observations of
  truncated episodes, and those after the rollout, were never acted on: each of
  them follows its step as one more token. Where there is no such observation
  the token is masked, and so does not exist for the model. After the end of an
  episode the state is reset, so the token changes no other output.

  Args:
    model: The policy that acted.
    rollout: What happened.
    carry: The carry at the start of the rollout.
  """
  batch, time = rollout.reward.shape
  ends = rollout.truncated.at[:, -1].set(True)

  def alternating(now, after):
    pairs = jnp.stack([now, after], 2)
    return pairs.reshape(batch, 2 * time, *pairs.shape[3:])

  _, decision = model(
      alternating(rollout.inputs, rollout.next_inputs), carry,
      reset=alternating(rollout.reset, jnp.zeros_like(ends)),
      mask=alternating(jnp.ones_like(ends), ends),
  )
  after = decision.value.reshape(batch, time, 2)[..., 1]
  following = jnp.roll(rollout.value, -1, axis=1)
  return jnp.where(ends, after, following)


def advantages(
    reward: jax.Array,
    value: jax.Array,
    next_value: jax.Array,
    terminated: jax.Array,
    truncated: jax.Array,
    *,
    discount: float,
    gae_lambda: float,
) -> jax.Array:
  r"""Generalised advantage estimation (Schulman et al., 2016).

  https://arxiv.org/abs/1506.02438. With the discount `g` and lambda `l`

  .. math::
      \delta_t &= r_t + g V_{t+1} - V_t \\
      A_t &= \delta_t + g l A_{t+1},

  where `V_{t+1}` is 0 after the last step of an episode that has terminated,
  and `A_{t+1}` is 0 after the last step of every episode. This is a linear
  recurrence from the last step to the first.

  >>> one = jnp.ones((1, 3))
  >>> never = jnp.zeros((1, 3), bool)
  >>> advantages(
  ...     one, 0 * one, 0 * one, never, never, discount=0.5, gae_lambda=1.0
  ... )
  Array([[1.75, 1.5 , 1.  ]], dtype=float32)

  Args:
    reward: `[B, T]`.
    value: The value before each step `[B, T]`.
    next_value: The value after each step `[B, T]`.
    terminated: Whether the episode ended by its rules at this step `[B, T]`.
    truncated: Whether it ended by its time limit at this step `[B, T]`.
    discount: What a reward is worth one step earlier.
    gae_lambda: 0 trusts the values, 1 the rewards.

  Returns:
    The advantages `[B, T]`.
  """
  delta = reward + discount * jnp.where(terminated, 0, next_value) - value
  decay = jnp.where(terminated | truncated, 0, discount * gae_lambda)
  _, found = ops.linear_scan(
      decay[..., None].astype(delta.dtype), delta[..., None], reverse=True
  )
  return found[..., 0]


def _normalized(inputs, moments):
  return inputs if moments is None else moments.normalize(inputs)


class PPO:
  """The learner of a config: pure functions of the state of one agent.

  Under `jax.vmap` the functions serve several agents.

  Attributes:
    config: See `rl.config.FIELDS`; `model` and `optimizer`.
    environment: The environment.
    distribution: Of the actions.
    functional: The model as functions of its parameters.
    tx: The optimiser.
  """

  def __init__(self, config, environment, layers=None):
    """Builds model and optimiser; nothing is computed yet.

    Args:
      config: The config, a `ConfigDict`.
      environment: See `rnnzoo.environments`.
      layers: More layers by name, in addition to those of the zoo and `none`.

    Raises:
      UserError: If the config is wrong.
    """
    config_lib.check(config)
    self.config, self.environment = config, environment
    self.distribution = distributions.of_space(environment.action)
    num_actions = environment.action.num_features
    features = environment.observation.num_features
    if config.observe_last:
      features += num_actions + 1
    model = models.ModelConfig.from_dict(config.model.to_dict()).replace(
        in_features=features, vocab_size=0, image_shape=()
    )
    known = {'none': Memoryless, **(layers or {})}
    is_gaussian = isinstance(self.distribution, distributions.Gaussian)
    self.functional = state_lib.Functional(lambda rngs: ActorCritic(
        model, num_actions, known, gaussian=is_gaussian, rngs=rngs
    ))
    self.tx = optimizers.make_optimizer(
        config.optimizer,
        config.total_steps * config.epochs * config.minibatches,
        axes=self.functional.axes, recurrent=self.functional.recurrent,
    )

  def initial_state(self, seed: jax.Array) -> State:
    """Returns the state of an agent before its first step.

    Args:
      seed: An integer, which decides everything that is random.
    """
    key = jax.random.key(seed)
    params, _ = self.functional.initialize(
        jax.random.fold_in(key, _PARAMETERS)
    )
    params = state_lib.at_least_float32(params)
    key = jax.random.fold_in(key, 0)
    count = self.config.num_environments
    environment, inputs = self._start(key, count)
    actor = Actor(
        environment, inputs, jnp.ones(count, bool),
        self.model(params).initialize_carry(count),
        jnp.zeros(count), jnp.zeros(count, jnp.int32),
    )
    space = self.environment.observation
    moments = None
    if self.config.normalize_observations and isinstance(
        space, environments.Box
    ):
      moments = moments_lib.Moments.initial(space.num_features)
    return dict(
        seed=jnp.asarray(seed, jnp.uint32), step=jnp.int32(0), params=params,
        opt_state=self.tx.init(params), moments=moments, actor=actor,
    )

  def model(self, params) -> ActorCritic:
    """Returns the model with these parameters."""
    return self.functional.merge(params, {})

  def update(self, state: State) -> tuple[State, dict[str, Any]]:
    """A step of training: a rollout, and all updates of the parameters.

    Args:
      state: From `initial_state` or an earlier step.

    Returns:
      `(state, metrics)`. `episodes` of the metrics holds sums.
    """
    config = self.config
    # The step comes after 0, which is the key of the initial state.
    key = jax.random.fold_in(jax.random.key(state['seed']), state['step'] + 1)
    act_key, learn_key = jax.random.split(key)

    # ---- Act. ----
    model, start = self.model(state['params']), state['actor'].carry
    actor, rollout, episodes = self.collect(
        model, state['actor'], act_key, state['moments']
    )
    moments = state['moments']
    if moments is not None:
      seen = rollout.inputs
      rollout = rollout._replace(
          inputs=moments.normalize(seen),
          next_inputs=moments.normalize(rollout.next_inputs),
      )
      moments = moments.update(seen)

    # ---- Judge. ----
    advantage = advantages(
        rollout.reward * config.reward_scale, rollout.value,
        next_values(model, rollout, start),
        rollout.terminated, rollout.truncated,
        discount=config.discount, gae_lambda=config.gae_lambda,
    )
    whole = Batch(
        start, rollout.inputs, rollout.reset, rollout.action, rollout.log_prob,
        advantage, rollout.value,
    )

    # ---- Learn. ----
    def learn(carry, index):
      params, opt_state = carry
      grads, metrics = jax.grad(self.loss, has_aux=True)(
          params, whole.rows(index)
      )
      updates, opt_state = self.tx.update(grads, opt_state, params)
      params = optax.apply_updates(params, updates)
      metrics['grad_norm'] = optax.tree.norm(grads)
      metrics['param_norm'] = optax.tree.norm(params)
      return (params, opt_state), metrics

    def shuffled(key):
      order = jax.random.permutation(key, config.num_environments)
      return order.reshape(config.minibatches, -1)

    keys = jax.random.split(learn_key, config.epochs)
    order = jax.vmap(shuffled)(keys).reshape(
        config.epochs * config.minibatches, -1
    )
    (params, opt_state), metrics = jax.lax.scan(
        learn, (state['params'], state['opt_state']), order
    )
    metrics = {name: value.mean() for name, value in metrics.items()}
    state = state | dict(
        step=state['step'] + 1, params=params, opt_state=opt_state,
        moments=moments, actor=actor,
    )
    return state, metrics | dict(episodes=episodes)

  def collect(
      self, model: ActorCritic, actor: Actor, key: jax.Array,
      moments: moments_lib.Moments | None = None,
  ) -> tuple[Actor, Rollout, Episodes]:
    """Lets the policy act for `rollout_length` steps in every environment.

    Args:
      model: The policy.
      actor: Where the last rollout ended.
      key: The source of actions and of what happens in the environments.
      moments: Those by which the observations are normalised, if they are.
    """
    count = self.config.num_environments

    def act(actor, key):
      action_key, step_key, start_key = jax.random.split(key, 3)
      carry, decision = model.step(
          actor.carry, _normalized(actor.inputs, moments), reset=actor.reset
      )
      action = self.distribution.sample(action_key, decision.policy)
      environment, observation, reward, terminated, truncated = jax.vmap(
          self.environment.step
      )(
          jax.random.split(step_key, count), actor.environment,
          self.distribution.to_environment(action),
      )
      next_inputs = self._read(observation, action, reward)
      rollout = Rollout(
          actor.inputs, actor.reset, action,
          self.distribution.log_prob(decision.policy, action), decision.value,
          reward, terminated, truncated, next_inputs,
      )

      # An episode that has ended is followed by another one.
      done = terminated | truncated
      returns = actor.episode_return + reward
      lengths = actor.episode_length + 1
      ended = Episodes(*(
          jnp.where(done, u, 0).sum() for u in (returns, lengths, 1)
      ))
      environment, inputs = base.select(
          done, self._start(start_key, count), (environment, next_inputs)
      )
      actor = Actor(
          environment, inputs, done, carry, jnp.where(done, 0, returns),
          jnp.where(done, 0, lengths),
      )
      return actor, (rollout, ended)

    keys = jax.random.split(key, self.config.rollout_length)
    actor, (rollout, ended) = jax.lax.scan(act, actor, keys)
    return (
        actor,
        jax.tree.map(lambda u: jnp.moveaxis(u, 0, 1), rollout),
        jax.tree.map(lambda u: u.sum(0), ended),
    )

  def loss(self, params, batch: Batch) -> tuple[jax.Array, dict[str, Any]]:
    """Returns the clipped objective, to be minimised, and metrics."""
    config, model = self.config, self.model(params)
    if steps := config.burn_in:
      # They bring the state of before to the parameters of now.
      carry, _ = model(
          batch.inputs[:, :steps], batch.carry, reset=batch.reset[:, :steps]
      )
      batch = batch.after(steps, jax.lax.stop_gradient(carry))
    _, decision = model(batch.inputs, batch.carry, reset=batch.reset)
    advantage = batch.advantage
    if config.normalize_advantage:
      advantage = advantage - advantage.mean()
      advantage = advantage / (advantage.std() + 1e-8)
    log_prob = self.distribution.log_prob(decision.policy, batch.action)
    log_ratio = log_prob - batch.log_prob
    ratio, reach = jnp.exp(log_ratio), config.clip_range
    clipped = jnp.clip(ratio, 1 - reach, 1 + reach)
    policy_loss = -jnp.minimum(ratio * advantage, clipped * advantage).mean()
    squares = (decision.value - batch.target) ** 2
    if limit := config.value_clip_range:
      near = jnp.clip(decision.value - batch.value, -limit, limit)
      squares = jnp.maximum(squares, (batch.value + near - batch.target) ** 2)
    value_loss = 0.5 * squares.mean()
    entropy = self.distribution.entropy(decision.policy).mean()
    loss = (
        policy_loss + config.value_weight * value_loss
        - config.entropy_weight * entropy
    )
    return loss, dict(
        loss=loss,
        policy_loss=policy_loss,
        value_loss=value_loss,
        entropy=entropy,
        kl=(ratio - 1 - log_ratio).mean(),  # Of the old policy from the new.
        clipped=(abs(ratio - 1) > reach).mean(),
    )

  def evaluate(self, state: State, key: jax.Array, episodes: int) -> jax.Array:
    """Returns the returns `[episodes]` of the most probable actions.

    Args:
      state: The state of an agent, or its `params` and `moments` alone.
      key: The source of what happens in the environments.
      episodes: How many; they run side by side.
    """
    return self._play(state, key, episodes, lambda *_: None)[0]

  def episode(self, state: State, key: jax.Array) -> Episode:
    """Returns an episode of the most probable actions.

    It is the first of those of `evaluate` with one episode.

    Args:
      state: As for `evaluate`.
      key: Likewise.
    """
    _, episode = self._play(state, key, 1, Episode)
    return jax.tree.map(lambda u: u[:, 0], episode)

  def _play(self, state, key, episodes, record):
    """Returns the returns, and `record` of each step, `[T, B, ...]`."""
    model, moments = self.model(state['params']), state['moments']
    start_key, key = jax.random.split(key)
    environment, inputs = self._start(start_key, episodes)

    def act(now, key):
      environment, inputs, carry, returns, running = now
      carry, decision = model.step(carry, _normalized(inputs, moments))
      chosen = self.distribution.mode(decision.policy)
      action = self.distribution.to_environment(chosen)
      after, observation, reward, terminated, truncated = jax.vmap(
          self.environment.step
      )(jax.random.split(key, episodes), environment, action)
      returns = returns + jnp.where(running, reward, 0)
      seen = record(environment, action, reward, running)
      running = running & ~(terminated | truncated)
      inputs = self._read(observation, chosen, reward)
      return (after, inputs, carry, returns, running), seen

    (_, _, _, returns, _), seen = jax.lax.scan(
        act,
        (
            environment, inputs, model.initialize_carry(episodes),
            jnp.zeros(episodes), jnp.ones(episodes, bool),
        ),
        jax.random.split(key, self.environment.max_steps),
    )
    return returns, seen

  def _start(self, key, count):
    """Starts episodes; returns the states and what the policy reads."""
    environment, observation = jax.vmap(self.environment.reset)(
        jax.random.split(key, count)
    )
    inputs = self.environment.observation.encode(observation)
    if self.config.observe_last:  # There was no action and no reward.
      nothing = jnp.zeros((count, self.environment.action.num_features + 1))
      inputs = jnp.concatenate([inputs, nothing], -1)
    return environment, inputs

  def _read(self, observation, action, reward):
    """Returns what the policy reads after a step, `[B, D]`."""
    inputs = self.environment.observation.encode(observation)
    if not self.config.observe_last:
      return inputs
    last = self.distribution.encode(action)
    return jnp.concatenate([inputs, last, reward[:, None]], -1)
