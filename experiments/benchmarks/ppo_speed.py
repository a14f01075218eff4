r"""Times steps of PPO against memorax 1.0.1, on this machine.

  pip install memorax==1.0.1 'gymnax>=1.0'  # In an environment of their own.
  python -m experiments.benchmarks.ppo_speed

Both learn the masked CartPole with the same environment code: that of
`rnnzoo.environments`, which memorax gets through an adapter that starts the
next episode. Both have the config of
`experiments/configs/rl/ppo_cartpole_masked.py`: environments, rollout, epochs,
minibatches, and one block of the layer and an MLP with a hidden layer twice as
wide. Not alike are:

* memorax has two networks, for the policy and for the value, rnnzoo one;
* rnnzoo evaluates the last observations of episodes that were truncated, keeps
  moments of the observations, and its block has a residual connection of its
  own shape.

Calls of both alternate. A call is some rollouts with all updates after them;
the rate counts the steps of all environments.
"""

import functools

from absl import flags
from experiments.benchmarks import timing
from experiments.cli import drivers
from experiments.configs.rl import ppo_cartpole_masked
import jax
import jax.numpy as jnp
from rnnzoo import environments
from rnnzoo import errors
from rnnzoo.layers import base
from rnnzoo.rl import loop
from rnnzoo.rl import ppo
from rnnzoo.rl import saved
from rnnzoo.training import state as state_lib

_LAYERS = flags.DEFINE_multi_enum(
    'layers', ['min_gru', 'lru', 'gru'], ['min_gru', 'lru', 'gru'],
    'The layers to measure.',
)
_ROLLOUTS = flags.DEFINE_integer(
    'rollouts', 4, 'The number of rollouts of a call.', lower_bound=1
)
_REPEATS = flags.DEFINE_integer(
    'repeats', 7, 'The number of rounds.', lower_bound=1
)
_OUT = drivers.define_path(
    'out', 'experiments/results/rl/ppo_speed_cpu.json',
    'The JSON file of the results.',
)

_COLUMNS = {
    'layer': '{layer}',
    'package': '{package}',
    'env. steps/s': '{steps_per_second:,.0f}',
    'per CPU second': '{steps_per_cpu_second:,.0f}',
    'parameters': '{parameters:,}',
    'compile, s': '{compile_seconds:.1f}',
}


class Adapter:
  """An environment of rnnzoo as memorax calls it, one episode after another."""

  def __init__(self, environment: environments.Environment, spaces):
    """Wraps `environment`; `spaces` are the classes of spaces of gymnax."""
    self._environment = environment
    size = environment.observation.num_features
    self._spaces = (
        spaces.Box(-jnp.inf, jnp.inf, (size,)),
        spaces.Discrete(environment.action.num_features),
    )

  def observation_space(self, params):
    del params
    return self._spaces[0]

  def action_space(self, params):
    del params
    return self._spaces[1]

  def reset(self, key, params):
    del params
    state, observation = self._environment.reset(key)
    return self._environment.observation.encode(observation), state

  def step(self, key, state, action, params):
    step_key, start_key = jax.random.split(key)
    state, observation, reward, terminated, truncated = self._environment.step(
        step_key, state, action
    )
    done = terminated | truncated
    now = self._environment.observation.encode(observation), state
    found, state = base.select(done, self.reset(start_key, params), now)
    return found, state, reward, done, {}


def our_call(config):
  """Returns a compiled call, its parameters, and what compiling it took."""
  learner = ppo.PPO(config, saved.make_environment(config))
  state = jax.vmap(learner.initial_state)(jnp.arange(1))
  body = lambda state: jax.lax.scan(
      lambda u, _: jax.vmap(learner.update)(u), state, length=_ROLLOUTS.value
  )
  program, costs = timing.compiled(body, state)
  loop.check_finite(jax.device_get(program(state)[1]), 0)
  count = state_lib.count_parameters(state['params'])
  return functools.partial(program, state), count, costs


def their_call(config):
  """The same of memorax.

  Raises:
    UserError: If memorax is missing.
  """
  try:
    from gymnax.environments import spaces
    from memorax import networks
    from memorax.algorithms import PPO
    from memorax.algorithms import PPOConfig
    from memorax.networks import heads
    from memorax.networks import sequence_models
  except ImportError as error:
    raise errors.UserError(
        f'{error}. This benchmark compares with memorax: pip install '
        "memorax==1.0.1 'gymnax>=1.0'."
    ) from error
  import flax.linen as nn
  import optax

  width, layer = config.model.features, config.model.layer
  environment = Adapter(saved.make_environment(config), spaces)
  sequence = dict(
      min_gru=lambda: sequence_models.Memoroid(
          sequence_models.MinGRUCell(features=width)
      ),
      lru=lambda: sequence_models.Memoroid(
          sequence_models.LRUCell(features=width, hidden_dim=width)
      ),
      gru=lambda: sequence_models.RNN(nn.GRUCell(features=width)),
  )[layer]()
  part = lambda inner: networks.Residual(networks.PreNorm(inner))
  torso = networks.Stack(blocks=(
      part(sequence),
      part(networks.FFN(
          features=width, expansion_factor=int(config.model.mlp_factor)
      )),
  ))
  extractor = networks.FeatureExtractor(
      observation_extractor=networks.MLP(features=(width,))
  )
  tx = optax.chain(
      optax.clip_by_global_norm(config.optimizer.clip),
      optax.adam(config.optimizer.learning_rate),
  )
  actions = environment.action_space(None).n
  agent = PPO(
      PPOConfig(
          name='ppo', num_envs=config.num_environments, num_eval_envs=1,
          num_steps=config.rollout_length, gamma=config.discount,
          gae_lambda=config.gae_lambda, num_minibatches=config.minibatches,
          update_epochs=config.epochs, normalize_advantage=True,
          clip_coef=config.clip_range, clip_vloss=False,
          ent_coef=config.entropy_weight, vf_coef=config.value_weight,
      ),
      environment, None,
      networks.Network(extractor, torso, heads.Categorical(actions)),
      networks.Network(extractor, torso, heads.VNetwork()),
      tx, tx,
  )
  key, state = agent.init(jax.random.key(0))
  steps = steps_of_call(config)
  program, costs = timing.compiled(
      lambda key, state: agent.train(key, state, steps), key, state
  )
  count = state_lib.count_parameters(
      (state.actor_params, state.critic_params)
  )
  return functools.partial(program, key, state), count, costs


def steps_of_call(config) -> int:
  """Returns the steps of all environments in a call."""
  return _ROLLOUTS.value * config.num_environments * config.rollout_length


def main(argv):
  drivers.check_usage(argv)
  timing.never_cache_compilation()
  rows = []
  for layer in _LAYERS.value:
    config = ppo_cartpole_masked.get_config(layer)
    made = dict(rnnzoo=our_call(config), memorax=their_call(config))
    medians = timing.interleaved_medians(
        {name: call for name, (call, *_) in made.items()}, _REPEATS.value
    )
    steps = steps_of_call(config)
    for name, (_, parameters, costs) in made.items():
      duration = medians[name]
      rows.append(dict(
          layer=layer, package=name, parameters=parameters,
          steps_per_second=steps / duration.seconds,
          steps_per_cpu_second=steps / duration.cpu_seconds, **costs,
      ))
  timing.print_table(rows, _COLUMNS)
  timing.save(
      dict(timing.environment(), rollouts=_ROLLOUTS.value, rows=rows),
      _OUT.value,
  )


if __name__ == '__main__':
  drivers.run(main)
