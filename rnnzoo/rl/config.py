"""Every field of a run of PPO: its default, its limits, its meaning."""

import copy
import functools
from typing import Any

from rnnzoo import errors
from rnnzoo import fields
from rnnzoo.training import optimizers

_count = functools.partial(fields.Field, int, low=1)
_positive = functools.partial(fields.Field, float, low=0, above_low=True)

# All fields but those of the optimiser, the model and the environment.
FIELDS = dict(
    seed=fields.Field(
        int, low=0, high=2**31 - 1, default=0,
        help='The seed of the first agent; the next ones have the next seeds.',
    ),
    num_seeds=_count(
        default=1, help='The number of agents, which are trained at once.'
    ),
    total_steps=_count(
        default=200,
        help='The number of training steps. A step is a rollout of all '
        'environments and all the updates of the parameters that follow it.',
    ),
    num_environments=_count(
        default=16, help='The number of environments of an agent.'
    ),
    rollout_length=_count(
        default=128, help='The steps of each environment in a rollout.'
    ),
    burn_in=fields.Field(
        int, low=0, default=0,
        help='The steps at the start of a rollout that bring the stored state '
        'to the parameters of now, and have no part in the loss.',
    ),
    epochs=_count(default=4, help='How often each rollout is learned from.'),
    minibatches=_count(
        default=4,
        help='The number of parts of a rollout, each of some environments and '
        'all of their steps. The parameters are updated after each part.',
    ),
    discount=fields.Field(
        float, low=0, high=1, default=0.99,
        help='What a reward is worth one step earlier.',
    ),
    gae_lambda=fields.Field(
        float, low=0, high=1, default=0.95,
        help='The lambda of generalised advantage estimation: 0 trusts the '
        'values, 1 the rewards.',
    ),
    clip_range=_positive(
        default=0.2,
        help='How far the probability of an action may move from that of the '
        'rollout, relative to it, before its gradient is 0.',
    ),
    value_clip_range=fields.Field(
        float, low=0, default=0.0,
        help='How far a value may move from that of the rollout before its '
        'gradient is 0; 0 for no limit.',
    ),
    value_weight=fields.Field(
        float, low=0, default=0.5, help='The weight of the loss of the values.'
    ),
    entropy_weight=fields.Field(
        float, low=0, default=0.01,
        help='The weight of the entropy of the policy, which is maximised.',
    ),
    normalize_advantage=fields.Field(
        bool, default=True,
        help='Whether the advantages of a part of a rollout get mean 0 and '
        'standard deviation 1.',
    ),
    normalize_observations=fields.Field(
        bool, default=True,
        help='Whether observations that are real numbers get mean 0 and '
        'standard deviation 1, by the moments of all that were seen.',
    ),
    observe_last=fields.Field(
        bool, default=False,
        help='Whether the policy also reads its last action and reward.',
    ),
    reward_scale=_positive(
        default=1.0,
        help='Multiplies the rewards that are learned from, not those that '
        'are reported.',
    ),
    log_every=_count(
        default=10,
        help='The steps between two log lines, which are one compiled program.',
    ),
    eval_every=_count(
        default=50, help='The steps between two evaluations.'
    ),
    eval_episodes=_count(
        default=64,
        help='The episodes of an evaluation, in which the policy takes the '
        'most probable action. The best checkpoint is tested in as many '
        'others.',
    ),
    save_every=_count(
        default=50, help='The steps between two checkpoints.'
    ),
    keep=_count(
        default=1,
        help='The number of latest checkpoints to keep, beside the best one.',
    ),
    tensorboard=fields.Field(
        bool, default=True,
        help='Write event files for TensorBoard too, if tensorboardX is '
        'installed.',
    ),
)


def defaults() -> dict[str, Any]:
  """Returns all fields but those of the model and of the environment.

  The steps of the optimiser are updates of the parameters, of which a step of
  training has `epochs * minibatches`.
  """
  values = {name: copy.deepcopy(f.default) for name, f in FIELDS.items()}
  optimizer = optimizers.defaults() | dict(
      name='adam', learning_rate=1e-3, end_learning_rate=0.0, warmup_steps=0,
      schedule='linear', weight_decay=0.0, clip=0.5, options=dict(eps=1e-5),
  )
  return values | dict(optimizer=optimizer)


def check(config) -> None:
  """Checks the values that `FIELDS` describes, and those of the optimiser.

  Args:
    config: A config that has all of these fields, and `model`.

  Raises:
    UserValueError: If a value is wrong, or some values contradict each other.
  """
  for name, field in FIELDS.items():
    fields.check(name, config[name], field)
  optimizers.check(config.optimizer)
  for name in ('total_steps', 'eval_every', 'save_every'):
    if config[name] % config.log_every:
      raise errors.UserValueError(
          f'{name} {config[name]} must be a multiple of log_every '
          f'{config.log_every}.'
      )
  if config.num_environments % config.minibatches:
    raise errors.UserValueError(
        f'num_environments {config.num_environments} must be a multiple of '
        f'minibatches {config.minibatches}.'
    )
  if config.burn_in >= config.rollout_length:
    raise errors.UserValueError(
        f'burn_in {config.burn_in} must be less than rollout_length '
        f'{config.rollout_length}: the other steps are learned from.'
    )
  for name, wanted in (('dropout', 0), ('norm', 'rms or layer')):
    value = config.model[name]
    if value == 'batch' or name == 'dropout' and value:
      raise errors.UserValueError(
          f'model.{name} must be {wanted}, got {value}: a policy must give the '
          'same probabilities in a rollout and when it learns from it.'
      )
