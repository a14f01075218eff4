"""Decision models: the return to go and what was seen in, actions out.

A model of sequences learns which action followed, given the return that came
after it (Chen et al. 2021, https://arxiv.org/abs/2106.01345). Asked for a high
return, it acts well.
"""

from typing import Any

from flax import nnx
import jax
import jax.numpy as jnp
from rnnzoo import errors
from rnnzoo.layers import base
from rnnzoo.layers import common
from rnnzoo.layers import initializers
from rnnzoo.models import blocks
from rnnzoo.models import inputs as inputs_lib
from rnnzoo.models.building import Layers
from rnnzoo.models.config import ModelConfig
from rnnzoo.models.sequence_model import SequenceCarry
from rnnzoo.models.sequence_model import SequenceModel


def num_states(config: ModelConfig) -> int:
  """Returns the numbers of an observation: `in_features` without the others.

  >>> num_states(ModelConfig(in_features=16, out_features=3))
  11

  Raises:
    UserValueError: If the sizes do not fit together.
  """
  states = config.in_features - config.out_features - 2
  if config.out_features < 1 or states < 1:
    raise errors.UserValueError(
        'model.in_features must be 2 more than an observation and an action '
        f'together, got {config.in_features} with model.out_features '
        f'{config.out_features}, the numbers of an action.'
    )
  return states


class DecisionModel(SequenceModel):
  """Predicts the action at each step of an episode, in [-1, 1].

  A step is one vector: the return to go, the observation, the action before (0
  at the start), and the number of the step. The published Decision Transformer
  has three tokens for a step, and predicts the action from the second. Here a
  model knows the same when it acts, and takes a third of the steps. A
  recurrent model then has one `step` for each step of the environment.

  With `max_time`, each step has a learned embedding of its number, as in the
  paper. Recurrent layers count by themselves, and attention has rotary
  positions, so 0, no embedding, is the default.

  >>> from flax import nnx
  >>> import jax.numpy as jnp
  >>> config = ModelConfig(
  ...     layer='lru', features=8, in_features=8, out_features=2
  ... )
  >>> model = DecisionModel(config, rngs=nnx.Rngs(0))
  >>> x = jnp.ones((3, 5, 8))  # [B, T, 1 + observation + action + 1]
  >>> carry, actions = model(x)                      # [B, T, A]
  >>> carry, action = model.step(carry, x[:, 0])     # [B, A]
  >>> actions.shape, action.shape
  ((3, 5, 2), (3, 2))

  Attributes:
    time: The table of the embeddings of steps, or `None`.
  """

  def __init__(
      self, config: ModelConfig, layers: Layers | None = None, *,
      rngs: nnx.Rngs,
  ):
    """Creates the model.

    Args:
      config: What to build. `in_features` and `out_features`, the numbers of an
        action, must be set; the pooling is `none` whatever it says.
      layers: More layers by name, in addition to those of the zoo.
      rngs: The source of the initial parameters.

    Raises:
      UserValueError: If no model can be built from the config.
    """
    num_states(config)
    if config.bidirectional:
      raise errors.UserValueError(
          'model.bidirectional must be False: a policy cannot look ahead.'
      )
    read = config.in_features - 1  # The number of the step has a table.
    config = config.replace(pooling='none')
    super().__init__(
        config.replace(in_features=read), config.out_features, layers, rngs
    )
    self.config = config
    # Norms follow this map. With a bias of 0 they would remove the size of a
    # step, and control needs more than its direction.
    init = initializers.uniform_fan_in(read)
    bias = self.encoder.bias
    assert bias is not None  # Flax allows maps without one.
    bias[...] = init(rngs.params(), bias[...].shape, bias[...].dtype)
    self.time = (
        inputs_lib.make_embedding(
            config.replace(
                vocab_size=config.max_time, in_features=0,
                embed_std=config.embed_std or 0.02,
            ), rngs,
        ) if config.max_time else None
    )

  def __call__(
      self, inputs: Any, carry: SequenceCarry | None = None, **options: Any
  ) -> tuple[SequenceCarry, jax.Array]:
    """Runs whole sequences; see `SequenceModel.__call__`.

    Returns:
      `(carry, actions)`: `[B, T, A]` in [-1, 1], 0 at steps that are skipped.
    """
    carry, outputs = super().__call__(inputs, carry, **options)
    return carry, jnp.tanh(outputs)

  def step(
      self, carry: SequenceCarry | None, inputs: Any, **options: Any
  ) -> tuple[SequenceCarry, jax.Array]:
    """Runs one step; see `SequenceModel.step`.

    Returns:
      `(carry, action)`: `[B, A]` in [-1, 1].
    """
    carry, outputs = super().step(carry, inputs, **options)
    return carry, jnp.tanh(outputs)

  def _encode(self, inputs, reset, mask, axes):
    config = self.config
    inputs, reset, mask = inputs_lib.check_numbers(
        inputs, reset, mask, shape=(config.in_features,), axes=len(axes)
    )
    inputs = base.masked(inputs, mask)
    x = common.project(self.encoder, inputs[..., :-1].astype(config.dtype))
    if self.time is not None:
      number = jnp.clip(inputs[..., -1], 0, config.max_time - 1)
      x += inputs_lib.embed(config, self.time, number.astype(jnp.int32))
    return x, reset, mask


class BehaviourCloning(nnx.Module):
  """Imitates: an MLP from the observation to the action, without a memory.

  It reads the vectors of `DecisionModel`, and of these the observation only:
  neither the return to go nor what came before. It has `num_layers` hidden
  layers of `features` with ReLU and dropout; the other fields of the config do
  nothing.

  >>> from flax import nnx
  >>> import jax.numpy as jnp
  >>> config = ModelConfig(
  ...     layer='behaviour_cloning', features=8, in_features=8, out_features=2
  ... )
  >>> model = BehaviourCloning(config, rngs=nnx.Rngs(0))
  >>> carry, actions = model(jnp.ones((3, 5, 8)))
  >>> carry, actions.shape
  ((), (3, 5, 2))

  Attributes:
    config: The `ModelConfig`.
    hidden: The linear maps before a ReLU.
    head: The linear map to the action.
  """

  causal = True

  def __init__(
      self, config: ModelConfig, layers: Layers | None = None, *,
      rngs: nnx.Rngs,
  ):
    """Creates the model; the arguments are those of `DecisionModel`."""
    del layers
    config.check_dtypes()
    sizes = [num_states(config)] + [config.features] * config.num_layers
    self.config = config
    self.hidden = nnx.List([
        inputs_lib.make_encoder(config.replace(in_features=size), rngs)
        for size in sizes[:-1]
    ])
    self.head = blocks.make_head(
        config, config.out_features, rngs, use_bias=True
    )

  def initialize_carry(self, batch_size: int, dtype: Any = None) -> tuple[()]:
    """Returns `()`: nothing is carried."""
    del batch_size, dtype
    return ()

  def __call__(
      self, inputs, carry=None, *, reset=None, mask=None, train=False, key=None
  ) -> tuple[tuple[()], jax.Array]:
    """Runs whole sequences, see `DecisionModel.__call__`."""
    del carry, train
    inputs, _, mask = inputs_lib.check_numbers(
        inputs, reset, mask, shape=(self.config.in_features,), axes=2
    )
    return (), self._act(inputs, mask, key)

  def step(
      self, carry, inputs, *, reset=None, mask=None
  ) -> tuple[tuple[()], jax.Array]:
    """Runs one step, see `DecisionModel.step`."""
    del carry
    inputs, _, mask = inputs_lib.check_numbers(
        inputs, reset, mask, shape=(self.config.in_features,), axes=1
    )
    return (), self._act(inputs, mask, None)

  def _act(self, inputs, mask, key):
    config = self.config
    inputs = base.masked(inputs, mask).astype(config.dtype)
    x = inputs[..., 1:1 + num_states(config)]
    for depth, linear in enumerate(self.hidden):
      own = None if key is None else jax.random.fold_in(key, depth)
      x = jax.nn.relu(common.project(linear, x))
      x = blocks.dropout(x, config.dropout, own)
    y = common.project(self.head, x, base.state_dtype(x.dtype))
    return base.masked(jnp.tanh(y), mask)
