"""Truncated back-propagation through time, one token at a time."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from rnnzoo.online.rtrl import Tree
from rnnzoo.online.stack import Stack
from rnnzoo.training import state as state_lib


class TruncatedState(NamedTuple):
  """The state between tokens: what the window of the next one starts with.

  `carry` is the state before the tokens `inputs` `[B, steps, ...]`; `seen` and
  `reset` `[B, steps]` are `True` for those that exist, and that start a
  sequence.
  """

  carry: tuple
  inputs: jax.Array
  seen: jax.Array
  reset: jax.Array


class Truncated:
  """The gradient of each token's loss, through the last tokens only.

  It has the interface of `RTRL`, for `learn`, and takes any layer. The state
  before the window is a constant. A token costs `steps` times as much as a step
  and its gradient.

  >>> from flax import nnx
  >>> import jax.numpy as jnp
  >>> from rnnzoo import layers
  >>> model = Stack(layers.LSTM(3, rngs=nnx.Rngs(0)))
  >>> learner = Truncated(
  ...     model, lambda y, target: ((y - target) ** 2).sum(), steps=5,
  ...     input_shape=(3,),
  ... )
  >>> state = learner.initialize(learner.params, batch_size=2)
  >>> x = target = jnp.ones((2, 3))
  >>> state, (loss, y), gradient = learner.step(
  ...     learner.params, state, x, target
  ... )
  >>> y.shape, state.seen[0].tolist()
  ((2, 3), [False, False, False, False, True])

  Attributes:
    params: The parameters of the model, in nested dictionaries, as `step` takes
      and optax updates them.
  """

  def __init__(
      self,
      model: Stack,
      loss_fn: Callable[[jax.Array, Any], jax.Array],
      *,
      steps: int,
      input_shape: tuple[int, ...],
  ):
    """Creates the learner.

    Args:
      model: A stack of causal layers.
      loss_fn: Maps the outputs `[B, D]` of a token and its target to a scalar.
      steps: How many tokens a gradient goes back through; 1 for that of the
        token itself alone.
      input_shape: The sizes of a token, such as `(D,)`.

    Raises:
      ValueError: If `steps` is less than 1, or the model has batch norms.
    """
    if steps < 1:
      raise ValueError(f'`steps` must be at least 1, got {steps}.')
    self.loss_fn = loss_fn
    self._steps, self._shape = steps, input_shape
    self._functional = state_lib.Functional(lambda rngs: model)
    if jax.tree.leaves(self._functional.batch_stats):
      raise ValueError('`model` must not have batch norms.')
    self.params, _ = self._functional.variables(model)

  def merge(self, params: Tree) -> Stack:
    """Returns the model with these parameters."""
    return self._functional.merge(params, {}, rounded=False)

  def initialize(
      self, params: Tree, batch_size: int, dtype=None
  ) -> TruncatedState:
    """Returns the state before the first token, see `RTRL.initialize`."""
    shape = batch_size, self._steps
    return TruncatedState(
        self.merge(params).initialize_carry(batch_size, dtype),
        jnp.zeros((*shape, *self._shape), dtype or jnp.float32),
        jnp.zeros(shape, bool), jnp.zeros(shape, bool),
    )

  def step(
      self,
      params: Tree,
      state: TruncatedState,
      x: jax.Array,
      target: Any,
      *,
      reset: jax.Array | None = None,
      mask: jax.Array | None = None,
  ) -> tuple[TruncatedState, tuple[jax.Array, jax.Array], Tree]:
    """Reads one token, see `RTRL.step`."""
    # The oldest token leaves the window.
    carry, _ = self.merge(params).step(
        state.carry, state.inputs[:, 0],
        mask=state.seen[:, 0], reset=state.reset[:, 0],
    )
    rows = x.shape[:1]
    reset = jnp.zeros(rows, bool) if reset is None else reset
    mask = jnp.ones(rows, bool) if mask is None else mask
    state = TruncatedState(carry, *(
        jnp.concatenate([old[:, 1:], new[:, None].astype(old.dtype)], axis=1)
        for old, new in zip(state[1:], (x, mask, reset))
    ))

    def run(params):
      _, y = self.merge(params)(
          state.inputs, carry, mask=state.seen, reset=state.reset
      )
      return self.loss_fn(y[:, -1], target), y[:, -1]

    (loss, y), gradient = jax.value_and_grad(run, has_aux=True)(params)
    return state, (loss, y), gradient
