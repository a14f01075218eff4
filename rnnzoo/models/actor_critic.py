"""The actor-critic: observations in, an action and a value at each step out."""

from typing import Any, NamedTuple

from flax import nnx
import jax
import jax.numpy as jnp
from rnnzoo import errors
from rnnzoo.layers import initializers
from rnnzoo.models.building import Layers
from rnnzoo.models.config import ModelConfig
from rnnzoo.models.sequence_model import SequenceCarry
from rnnzoo.models.sequence_model import SequenceModel

# The first policy is nearly uniform: its outputs are this much smaller.
_SCALE = 0.01


class Decision(NamedTuple):
  """What the model says at a step.

  Attributes:
    policy: The numbers that define the distribution of the action,
      `[..., num_outputs]`.
    value: The expected sum of discounted rewards, `[...]`.
  """

  policy: jax.Array
  value: jax.Array


class ActorCritic(SequenceModel):
  """A policy and the estimate of its value, with one backbone.

  Whole sequences and single steps give the same numbers, so an actor may run
  `step` and a learner the parallel call. `reset` marks the first steps of
  episodes.

  >>> from flax import nnx
  >>> import jax.numpy as jnp
  >>> config = ModelConfig(layer='lru', features=8, in_features=4)
  >>> model = ActorCritic(config, 2, rngs=nnx.Rngs(0))
  >>> x = jnp.ones((3, 5, 4))                        # [B, T, in_features]
  >>> carry, decision = model(x)
  >>> decision.policy.shape, decision.value.shape
  ((3, 5, 2), (3, 5))
  >>> carry, decision = model.step(carry, x[:, 0])   # [B, 2] and [B]

  Attributes:
    log_std: The logarithm of the standard deviation of each action, which
      does not depend on the observation; `None` for discrete actions.
  """

  def __init__(
      self,
      config: ModelConfig,
      num_actions: int,
      layers: Layers | None = None,
      *,
      gaussian: bool = False,
      rngs: nnx.Rngs,
  ):
    """Creates the model.

    Args:
      config: What to build. `in_features` or `vocab_size` must be set; the
        pooling is `none` whatever it says.
      num_actions: The number of discrete actions, or of numbers in an action.
      layers: More layers by name, in addition to those of the zoo.
      gaussian: Whether the actions are real numbers with normal distributions:
        `policy` then holds the means and the logarithms of the standard
        deviations, `2 * num_actions` numbers. Otherwise it holds logits.
      rngs: The source of the initial parameters.

    Raises:
      UserValueError: If no model can be built from the config.
    """
    if config.bidirectional:
      raise errors.UserValueError(
          'model.bidirectional must be False: a policy cannot look ahead.'
      )
    super().__init__(
        config.replace(pooling='none'), num_actions + 1, layers, rngs
    )
    if config.in_features:
      # A norm follows the map of the inputs. With a bias of 0 it would remove
      # the size of an observation, of which control needs more than the sign.
      init = initializers.uniform_fan_in(config.in_features)
      bias = self.encoder.bias
      assert bias is not None  # Flax allows maps without one.
      bias[...] = init(rngs.params(), bias[...].shape, bias[...].dtype)
    # The last output is the value.
    scale = jnp.full((num_actions + 1,), _SCALE).at[-1].set(1)
    assert self.head.bias is not None
    for variable in (self.head.kernel, self.head.bias):
      variable[...] = (variable[...] * scale).astype(variable[...].dtype)
    # One assignment: a module cannot turn a constant into a parameter.
    self.log_std = nnx.Param(
        jnp.zeros((num_actions,), jnp.dtype(config.param_dtype)), axes=(None,)
    ) if gaussian else None

  def __call__(
      self, inputs: Any, carry: SequenceCarry | None = None, **options: Any
  ) -> tuple[SequenceCarry, Decision]:
    """Runs whole sequences; see `SequenceModel.__call__`.

    Returns:
      `(carry, decision)`: policies `[B, T, N]` and values `[B, T]`.
    """
    carry, outputs = super().__call__(inputs, carry, **options)
    return carry, self._decision(outputs)

  def step(
      self, carry: SequenceCarry | None, inputs: Any, **options: Any
  ) -> tuple[SequenceCarry, Decision]:
    """Runs one step; see `SequenceModel.step`.

    Returns:
      `(carry, decision)`: policies `[B, N]` and values `[B]`.
    """
    carry, outputs = super().step(carry, inputs, **options)
    return carry, self._decision(outputs)

  def _decision(self, outputs):
    policy, value = outputs[..., :-1], outputs[..., -1]
    if self.log_std is not None:
      log_std = jnp.broadcast_to(self.log_std[...], policy.shape)
      policy = jnp.concatenate([policy, log_std.astype(policy.dtype)], -1)
    return Decision(policy, value)
