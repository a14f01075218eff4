r"""Stream AC(lambda): an update after every step, and nothing is kept.

Elsayed, Vasan & Mahmood (2024), https://arxiv.org/abs/2410.14606. One
environment, a policy and a value, each a network of its own. After step `t`

.. math::
    \delta_t &= r_t + \gamma V(x_{t+1}) - V(x_t) \\
    z^V_t &= \gamma \lambda z^V_{t-1} + \nabla V(x_t) \\
    z^\pi_t &= \gamma \lambda z^\pi_{t-1} + \nabla (\log \pi(a_t | x_t)
        + \tau \, \mathrm{sign}(\delta_t) \, H(\pi(\cdot | x_t))) \\
    \theta &\leftarrow \theta + \alpha_t \delta_t z_t, \qquad
    \alpha_t = \alpha / \max(1,
        \alpha \kappa \max(1, |\delta_t|) \, \|z_t\|_1),

where the step size is so bounded that an update cannot change an output by much
more than :math:`\delta_t`. Traces are cleared where an episode ends.

The networks of the paper have no memory. Here they start with a recurrent layer
that reads the observation, and the gradients go through the past of the episode
(https://arxiv.org/abs/2605.24709 has the idea; what follows is ours). The name
of a learner says how:

* a diagonal layer such as `lru`: real-time recurrent learning, exact as far as
  the parameters change slowly;
* any layer and a number such as `lru_10`: back-propagation through the last 10
  steps;
* `none`: no layer, so no memory.
"""

import math
import time
from typing import Any, NamedTuple

from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np
from rnnzoo import errors
from rnnzoo import fields
from rnnzoo import layers as zoo
from rnnzoo.layers import base
from rnnzoo.models import building
from rnnzoo.online import by_name
from rnnzoo.online.stack import Stack
from rnnzoo.rl import distributions
from rnnzoo.rl import moments as moments_lib
from rnnzoo.training import state as state_lib

State = dict[str, Any]  # Of one agent: `initial_state` has its entries.

NONE = 'none'  # The learner without memory.

_rate = lambda **kwargs: fields.Field(float, low=0, **kwargs)
# The fields of a config, but those of the environment.
FIELDS = dict(
    seed=fields.Field(
        int, low=0, high=2**31 - 1, default=0,
        help='The seed of the first agent; the next ones have the next seeds.',
    ),
    num_seeds=fields.Field(
        int, low=1, default=3,
        help='The number of agents, which learn at once.',
    ),
    total_steps=fields.Field(
        int, low=1, default=100_000, help='The steps of each agent.'
    ),
    learners=fields.Field(
        tuple, default=('lru', 'lru_1', NONE),
        help='The learners: a diagonal layer such as lru for real-time '
        'recurrent learning; lru_10 for a layer and the steps of truncated '
        'back-propagation; none for no memory.',
    ),
    layer_options=fields.Field(
        dict, default={},
        help='The options of each layer by its name, such as '
        '{"lru": {"state_features": 32}}.',
    ),
    features=fields.Field(
        int, low=2, high=2**16, default=32,  # One alone is 0, normalised.
        help='The number of features of the hidden layers.',
    ),
    learning_rate=_rate(
        above_low=True, default=1.0,
        help='The step size, before its bound.',
    ),
    policy_bound=_rate(
        above_low=True, default=3.0,
        help='How strictly the steps of the policy are bounded: kappa.',
    ),
    value_bound=_rate(
        above_low=True, default=2.0, help='The same for the value.'
    ),
    trace_decay=_rate(
        high=1, default=0.8,
        help='Lambda: how much of the traces a step leaves, beside the '
        'discount.',
    ),
    discount=_rate(
        high=1, default=0.99, help='What a reward is worth one step earlier.'
    ),
    entropy_weight=_rate(
        default=0.01, help='The weight of the entropy of the policy.'
    ),
)
_SPARSITY = 0.9  # The part of the initial weights that are 0.


class Result(NamedTuple):
  """What the agents of a learner reached.

  Attributes:
    returns: The return of each episode at its last step and NaN elsewhere,
      `[num_seeds, T]`.
    seconds: The time that the processors worked, compilation apart.
    parameters: How many an agent has.
  """

  returns: np.ndarray
  seconds: float
  parameters: int


class StreamAC:
  """The learner of a config: pure functions of the state of one agent.

  >>> import types
  >>> from rnnzoo import environments
  >>> config = types.SimpleNamespace(
  ...     **{name: field.default for name, field in FIELDS.items()}
  ... )
  >>> learner = StreamAC('lru', config, environments.make('cart_pole'))
  >>> state = learner.initial_state(0)
  >>> state, episode_return = learner.step(state, 0)
  >>> bool(jnp.isnan(episode_return))       # The episode goes on.
  True

  Attributes:
    name: That of the learner.
    policy: The learner of the policy, see `rnnzoo.online`.
    value: That of the value.
    parameters: The number of their parameters.
  """

  def __init__(self, name: str, config, environment):
    """Builds the networks.

    Args:
      name: That of the learner, see above.
      config: Has the fields in `FIELDS`.
      environment: See `rnnzoo.environments`.

    Raises:
      UserError: If there is no such learner.
    """
    self.name, self.config, self.environment = name, config, environment
    self.distribution = distributions.of_space(environment.action)
    features = environment.observation.num_features
    outputs = environment.action.num_features
    if isinstance(self.distribution, distributions.Gaussian):
      outputs *= 2  # Means and logarithms of deviations.
    _check_names([name])
    self._build = [
        lambda rngs, count=count: _network(name, config, features, count, rngs)
        for count in (outputs, 1)
    ]
    self.policy, self.value = (
        by_name.make(name, build(nnx.Rngs(0)), loss_fn, (features,))
        for build, loss_fn in zip(
            self._build, (self._objective, lambda y, _: y.sum())
        )
    )
    self.parameters = sum(
        state_lib.count_parameters(learner.params)
        for learner in (self.policy, self.value)
    )

  def _objective(self, y, target):
    """What the policy's trace holds the gradient of."""
    action, sign = target
    entropy = self.distribution.entropy(y)
    weight = self.config.entropy_weight * sign
    return (self.distribution.log_prob(y, action) + weight * entropy).sum()

  def initial_state(self, seed: jax.Array | int) -> State:
    """Returns the state of an agent before its first step.

    Args:
      seed: An integer, which decides everything that is random.
    """
    key = jax.random.key(seed)
    *keys, start_key, key = jax.random.split(key, 4)
    params = [
        state_lib.Functional(build).initialize(k)[0]
        for build, k in zip(self._build, keys)
    ]
    environment, inputs = self._start(start_key)
    moments = moments_lib.Moments.initial(inputs.size).update(inputs)
    return dict(
        key=key,
        environment=environment,
        inputs=inputs,
        reset=jnp.array([True]),
        params=params,
        states=[
            learner.initialize(p, 1, inputs.dtype)
            for learner, p in zip((self.policy, self.value), params)
        ],
        traces=jax.tree.map(jnp.zeros_like, params),
        moments=moments,
        discounted=jnp.float32(0),
        reward_moments=moments_lib.Moments(*jnp.ones((3, 1))),
        episode_return=jnp.float32(0),
    )

  def step(
      self, state: State, index: jax.Array | int
  ) -> tuple[State, jax.Array]:
    """Acts once and learns from it.

    Args:
      state: From `initial_state` or the step before.
      index: The number of the step, for its random numbers.

    Returns:
      `(state, episode_return)`: the return of the episode that ended in this
      step, or NaN.
    """
    config = self.config
    (policy, value), reset = state['params'], state['reset']
    policy_state, value_state = state['states']
    x = state['moments'].normalize(state['inputs'])[None]
    act_key, step_key, start_key = jax.random.split(
        jax.random.fold_in(state['key'], index), 3
    )

    # ---- Act. What is not used of `step`, its gradient, is not computed. ----
    flags = dict(reset=reset)
    unknown = jax.tree.map(
        lambda u: jnp.zeros((1, *u.shape), u.dtype),
        jax.eval_shape(self.environment.action.sample, act_key),
    )
    _, (_, y), _ = self.policy.step(
        policy, policy_state, x, (unknown, 0.0), **flags
    )
    action = self.distribution.sample(act_key, y)
    environment, observation, reward, terminated, truncated = (
        self.environment.step(
            step_key, state['environment'],
            self.distribution.to_environment(action)[0],
        )
    )
    done = terminated | truncated
    inputs = self.environment.observation.encode(observation)

    # ---- Judge. Rewards are in deviations of the discounted return. ----
    moments = state['moments'].update(inputs)
    discounted = config.discount * state['discounted'] + reward
    reward_moments = state['reward_moments'].update(discounted[None])
    scale = jnp.sqrt(reward_moments.variance[0] + 1e-8)
    value_state, (_, now), value_gradient = self.value.step(
        value, value_state, x, None, **flags
    )
    _, (_, after), _ = self.value.step(
        value, value_state, moments.normalize(inputs)[None], None
    )
    after = jnp.where(terminated, 0, after[0, 0])
    delta = reward / scale + config.discount * after - now[0, 0]

    # ---- Learn. ----
    policy_state, _, policy_gradient = self.policy.step(
        policy, policy_state, x, (action, jnp.sign(delta)), **flags
    )
    decay = config.discount * config.trace_decay
    traces = jax.tree.map(
        lambda z, gradient: decay * z + gradient,
        state['traces'], [policy_gradient, value_gradient],
    )
    params = [
        bounded_step(p, z, delta, config.learning_rate, bound)
        for p, z, bound in zip(
            (policy, value), traces, (config.policy_bound, config.value_bound)
        )
    ]

    # ---- An episode that has ended is followed by another one. ----
    new_environment, first = self._start(start_key)
    started = lambda new, old: base.select(done, new, old)
    environment, inputs, moments, traces, discounted = started(
        (
            new_environment, first, moments.update(first),
            jax.tree.map(jnp.zeros_like, traces), jnp.zeros_like(discounted),
        ),
        (environment, inputs, moments, traces, discounted),
    )
    episode_return = state['episode_return'] + reward
    state = dict(
        key=state['key'], environment=environment, inputs=inputs,
        reset=done[None], params=params, states=[policy_state, value_state],
        traces=traces, moments=moments, discounted=discounted,
        reward_moments=reward_moments,
        episode_return=jnp.where(done, 0, episode_return),
    )
    return state, jnp.where(done, episode_return, jnp.nan)

  def _start(self, key):
    environment, observation = self.environment.reset(key)
    return environment, self.environment.observation.encode(observation)


def bounded_step(
    params: Any, traces: Any, delta: jax.Array, learning_rate: float,
    bound: float,
) -> Any:
  r"""Returns `params` after a step along `traces`, see the top of this file.

  >>> bounded_step(jnp.zeros(2), jnp.array([0.1, 0]), 1.0, 1.0, bound=2.0)
  Array([0.1, 0. ], dtype=float32)
  >>> bounded_step(jnp.zeros(2), jnp.array([10.0, 0]), 1.0, 1.0, bound=2.0)
  Array([0.5, 0. ], dtype=float32)

  Args:
    params: The parameters.
    traces: Their traces :math:`z`.
    delta: The error :math:`\delta` of the value.
    learning_rate: The step size :math:`\alpha`, before its bound.
    bound: How strict the bound is, :math:`\kappa`.
  """
  size = sum(abs(z).sum() for z in jax.tree.leaves(traces))
  excess = learning_rate * bound * jnp.maximum(1, abs(delta)) * size
  rate = learning_rate / jnp.maximum(1, excess)
  return jax.tree.map(lambda p, z: p + rate * delta * z, params, traces)


def run(learner: StreamAC, seed: int, count: int, steps: int) -> Result:
  """Lets some agents learn side by side.

  Args:
    learner: The learner.
    seed: The seed of the first agent; the next ones have the next seeds.
    count: The number of agents.
    steps: The steps of each.

  Raises:
    UserError: If a parameter is not finite at the end.
  """

  def learn(state):
    state, returns = jax.lax.scan(
        jax.vmap(learner.step, in_axes=(0, None)), state, jnp.arange(steps)
    )
    finite = [jnp.isfinite(p).all() for p in jax.tree.leaves(state['params'])]
    return returns.T, jnp.array(finite).all()

  start = jax.vmap(learner.initial_state)(seed + jnp.arange(count))
  program = jax.jit(learn).lower(start).compile()
  begin = time.process_time()
  returns, finite = jax.block_until_ready(program(start))
  seconds = time.process_time() - begin
  if not finite:
    raise errors.UserError(
        f'{learner.name}: a parameter is not finite at the end. Try a smaller '
        'learning_rate.'
    )
  return Result(np.asarray(returns), seconds, learner.parameters)


def check(config: Any) -> None:
  """Raises `UserValueError` if a field is wrong or a learner unknown.

  Args:
    config: A mapping.
  """
  for name, field in FIELDS.items():
    fields.check(name, config[name], field)
  _check_names(config['learners'])
  for layer, options in config['layer_options'].items():
    field, known = f'layer_options.{layer}', by_name.layers()
    if layer not in known:
      raise errors.UserValueError(
          f'layer_options: there is no layer {layer!r} that reads vectors.'
          + errors.suggest(layer, known)
      )
    fields.check(field, options, fields.Field(dict))
    building.check_options(layer, zoo.LAYERS[layer], options, field)


def _check_names(names):
  by_name.check(names, {NONE: False}, 'lru, lru_10 and none')


def _network(name, config, features, outputs, rngs):
  """The layer on the observations, and an MLP whose weights are sparse."""
  layer, hidden = by_name.split(name)[0], config.features
  activate = lambda x: jax.nn.leaky_relu(_normalized(x))
  if layer == NONE:
    first = [_sparse(features, hidden, rngs)]
  else:
    options = dict(config.layer_options.get(layer, {}))
    inner = building.build(
        layer, zoo.LAYERS[layer], features, options,
        f'{features} inputs and layer_options.{layer} {fields.shown(options)}',
        rngs=rngs,
    )
    first = [inner, nnx.Linear(inner.out_features, hidden, rngs=rngs)]
  return Stack(
      *first, activate, _sparse(hidden, hidden, rngs), activate,
      _sparse(hidden, outputs, rngs),
  )


def _normalized(x):
  return jax.nn.standardize(x, axis=-1, epsilon=1e-5)


def _sparse(features, outputs, rngs):
  """A linear map; each output reads a tenth of the inputs at the start."""
  linear = nnx.Linear(features, outputs, rngs=rngs)
  shape, limit = (features, outputs), 1 / math.sqrt(features)
  values = jax.random.uniform(rngs.params(), shape, minval=-limit, maxval=limit)
  order = jax.random.uniform(rngs.params(), shape).argsort(axis=0)
  linear.kernel[...] = jnp.where(
      order < math.floor(_SPARSITY * features), 0, values
  )
  return linear
