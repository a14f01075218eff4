"""Real-time recurrent learning; see `__init__.py` for the method."""

from collections.abc import Callable
from typing import Any, NamedTuple

from flax.traverse_util import unflatten_dict
import jax
import jax.numpy as jnp
import optax
from rnnzoo.layers import base
from rnnzoo.online import diagonal
from rnnzoo.online.stack import Stack
from rnnzoo.online.stack import floating_dtype
from rnnzoo.training import state as state_lib

Tree = state_lib.Tree  # Nested dictionaries of parameters.


class RTRLState(NamedTuple):
  """The state between tokens: the carry of the model, and sensitivities.

  `traces` has a dictionary for each recurrent layer: the sensitivity of its
  state to each parameter, `[B, ...]` for those of the layer and `[B, H, ...]`
  for those before it.
  """

  carry: tuple
  traces: tuple


class RTRL:
  """Real-time recurrent learning of a stack of diagonal layers.

  >>> from flax import nnx
  >>> import jax.numpy as jnp
  >>> from rnnzoo import layers
  >>> model = Stack(layers.MinGRU(3, rngs=nnx.Rngs(0)))
  >>> learner = RTRL(model, lambda y, target: ((y - target) ** 2).sum())
  >>> state = learner.initialize(learner.params, batch_size=2)
  >>> x = target = jnp.ones((2, 3))
  >>> state, (loss, y), gradient = learner.step(
  ...     learner.params, state, x, target
  ... )
  >>> y.shape, gradient['parts']['0']['gates']['kernel'].shape
  ((2, 3), (3, 2, 3))

  Attributes:
    params: The parameters of the model, in nested dictionaries, as `step` takes
      and optax updates them.
  """

  def __init__(
      self,
      model: Stack,
      loss_fn: Callable[[jax.Array, Any], jax.Array],
      *,
      exact_before: bool = False,
  ):
    """Examines the layers of a model.

    Args:
      model: A stack. The state of each recurrent layer must be one array, each
        channel of which depends on its own past and parameters only, as in
        `LRU`, `RGLRU`, `CGLRU`, `MinGRU`, `MinLSTM`, `HGRN` and `S5`.
      loss_fn: Maps the outputs `[B, D]` of a token and its target to a scalar.
      exact_before: Whether to store the sensitivities to the parameters before
        the (single) recurrent layer, `H` numbers a parameter.

    Raises:
      ValueError: If a layer is not diagonal, or `exact_before` is set with more
        than one recurrent layer.
    """
    self.loss_fn = loss_fn
    self._functional = state_lib.Functional(lambda rngs: model)
    if jax.tree.leaves(self._functional.batch_stats):
      raise ValueError('`model` must not have batch norms.')
    self.params, _ = self._functional.variables(model)
    parts = list(_parts(model, ()))
    self._layers = [
        diagonal.DiagonalLayer(path, part) for path, part in parts
        if isinstance(part, base.RecurrentLayer)
    ]
    self._before = ()  # Parameters with a sensitivity for each channel.
    if exact_before:
      if len(self._layers) != 1:
        raise ValueError(
            '`exact_before` needs a model with one recurrent layer, got '
            f'{len(self._layers)}.'
        )
      paths = [path for path, _ in parts]
      at = paths.index(self._layers[0].path)
      self._before = tuple(
          key for key in state_lib.by_path(self.params)
          if any(key[: len(path)] == path for path in paths[:at])
      )

  def merge(self, params: Tree) -> Stack:
    """Returns the model with these parameters."""
    return self._functional.merge(params, {}, rounded=False)

  def initialize(self, params: Tree, batch_size: int, dtype=None) -> RTRLState:
    """Returns the state before the first token.

    Args:
      params: Parameters like `params` of the learner.
      batch_size: `B`.
      dtype: The compute dtype, as for `initialize_carry`.

    Returns:
      The carry, and the sensitivities of the initial states of layers.
    """
    carry = self.merge(params).initialize_carry(batch_size, dtype)
    traces = []
    for layer in self._layers:

      def first(values, _, layer=layer):
        merged = layer.merged(params, values)
        return diagonal.state_of(merged.initialize_carry(1, dtype)).ravel()

      trace, _, h = diagonal.sensitivities(first, layer.traced(params), ())
      for key in self._before:
        shape = state_lib.by_path(params)[key].shape
        trace[key] = jnp.zeros(h.shape + shape, h.dtype)
      traces.append({
          key: jnp.broadcast_to(u, (batch_size, *u.shape))
          for key, u in trace.items()
      })
    return RTRLState(carry, tuple(traces))

  def step(
      self,
      params: Tree,
      state: RTRLState,
      x: jax.Array,
      target: Any,
      *,
      reset: jax.Array | None = None,
      mask: jax.Array | None = None,
  ) -> tuple[RTRLState, tuple[jax.Array, jax.Array], Tree]:
    """Reads one token. It is a pure function, for `jax.jit` or `jax.lax.scan`.

    Args:
      params: The parameters.
      state: The state after the previous token.
      x: The token `[B, ...]`.
      target: Its target, for the loss function.
      reset: Booleans `[B]`, `True` where a sequence starts.
      mask: Booleans `[B]`, `False` for tokens to be skipped.

    Returns:
      `(state, (loss, y), gradient)`: the gradient of this token's loss with
      respect to the parameters, through all tokens since the last reset.
    """

    def run(params, states):
      carry = self._with_states(state.carry, states)
      carry, y, inputs = self.merge(params).step_with_inputs(
          carry, x, reset=reset, mask=mask
      )
      return self.loss_fn(y, target), (carry, y, inputs)

    (loss, (carry, y, inputs)), (gradient, d_states) = jax.value_and_grad(
        run, argnums=(0, 1), has_aux=True
    )(params, [diagonal.state_of(c) for c in self._carries(state.carry)])
    flat, traces = state_lib.by_path(gradient), []
    for layer, trace, d_state, old, u in zip(
        self._layers, state.traces, d_states, self._carries(state.carry), inputs
    ):
      d_state = d_state.reshape(d_state.shape[0], -1)
      for key, sensitivity in trace.items():
        dense = key in self._before
        weight = d_state if dense else d_state[:, layer.channels[key]]
        past = _scaled(weight, sensitivity).real.sum((0, 1) if dense else 0)
        flat[key] += past.astype(flat[key].dtype)
      traces.append(
          self._next_trace(layer, params, trace, old, u, x, reset, mask)
      )
    return RTRLState(carry, tuple(traces)), (loss, y), unflatten_dict(flat)

  def _next_trace(self, layer, params, trace, carry, u, x, reset, mask):
    """Returns the sensitivities after token `x`, with the layer input `u`."""
    values, whole = layer.traced(params), state_lib.by_path(params)
    before = {
        key: whole[key].astype(base.state_dtype(whole[key].dtype))
        for key in self._before
    }

    def one(trace, carry, u, x, reset, mask):
      row = lambda v: None if v is None else v[None]
      flags = dict(reset=row(reset), mask=row(mask))
      carry = jax.tree.map(row, carry)

      def new_state(values, h):
        values, before = values
        shape = diagonal.state_of(carry).shape
        entering = diagonal.with_state(carry, h.reshape(shape))
        if before:
          # This run gives the input of the layer as a function of `before`.
          merged = self.merge(unflatten_dict(whole | before))
          start = self._with_carries(
              merged.initialize_carry(1, floating_dtype(x)), [entering]
          )
          _, _, (u_now,) = merged.step_with_inputs(start, x[None], **flags)
        else:
          u_now = u[None]
        after, _ = layer.merged(params, values).step(entering, u_now, **flags)
        return diagonal.state_of(after).ravel()

      h = diagonal.state_of(carry).ravel()
      local, decay, _ = diagonal.sensitivities(
          lambda own, h: new_state((own, before), h), values, h
      )
      new = {
          key: _scaled(decay[layer.channels[key]], trace[key]) + local[key]
          for key in values
      }
      if before:
        dense = diagonal.dense_sensitivities(
            lambda b: new_state((values, b), h), before
        )
        new |= {
            key: _scaled(decay, trace[key]) + dense[key] for key in before
        }
      return new

    axes = [None if flag is None else 0 for flag in (reset, mask)]
    return jax.vmap(one, in_axes=(0, 0, 0, 0, *axes))(
        trace, carry, u, x, reset, mask
    )

  def _carries(self, carry):
    """Returns the carries of the recurrent layers."""
    return [_at(carry, layer.index) for layer in self._layers]

  def _with_carries(self, carry, news):
    for layer, new in zip(self._layers, news):
      carry = _replaced(carry, layer.index, new)
    return carry

  def _with_states(self, carry, states):
    olds = self._carries(carry)
    return self._with_carries(carry, map(diagonal.with_state, olds, states))


def learn(
    learner: Any,
    tx: optax.GradientTransformation,
    params: Tree,
    inputs: jax.Array,
    targets: jax.Array,
    *,
    reset: jax.Array | None = None,
    mask: jax.Array | None = None,
) -> tuple[Tree, jax.Array]:
  """Runs once over a stream, with an update after every token.

  Sensitivities of earlier tokens belong to earlier parameters, so gradients are
  exact only in the limit of a small learning rate. See `rnnzoo.online` for an
  example.

  Args:
    learner: An `RTRL`, or another one with its interface, such as `Truncated`.
    tx: The optimiser.
    params: The parameters to start from.
    inputs: `[B, T, ...]`.
    targets: `[B, T, ...]`.
    reset: Booleans `[B, T]`, or `None`.
    mask: Booleans `[B, T]`, or `None`.

  Returns:
    `(params, losses)`: the parameters after the last token, and the loss of
    each token `[T]` before its update.
  """
  by_time = lambda u: jnp.moveaxis(u, 1, 0)
  dtype = floating_dtype(inputs)

  def body(carried, token):
    params, opt_state, state = carried
    x, target, reset, mask = token
    state, (loss, _), gradient = learner.step(
        params, state, x, target, reset=reset, mask=mask
    )
    updates, opt_state = tx.update(gradient, opt_state, params)
    return (optax.apply_updates(params, updates), opt_state, state), loss

  carried = (
      params, tx.init(params),
      learner.initialize(params, inputs.shape[0], dtype),
  )
  tokens = jax.tree.map(by_time, (inputs, targets, reset, mask))
  (params, _, _), loss = jax.jit(
      lambda carried, tokens: jax.lax.scan(body, carried, tokens)
  )(carried, tokens)
  return params, loss


def _scaled(weight, u):
  """Returns `weight * u`; 0 for a weight of 0 (a reset), even if `u` is NaN."""
  weight = weight.reshape(weight.shape + (1,) * (u.ndim - weight.ndim))
  return jnp.where(weight == 0, 0, weight * u)


def _parts(model, path):
  """Yields `(path, part)` of all parts, in the order in which they run."""
  for i, part in enumerate(model.parts):
    here = path + ('parts', str(i))
    if isinstance(part, Stack):
      yield from _parts(part, here)
    else:
      yield here, part


def _at(carry, index):
  for i in index:
    carry = carry[i]
  return carry


def _replaced(carry, index, new):
  if not index:
    return new
  i, *rest = index
  return carry[:i] + (_replaced(carry[i], rest, new),) + carry[i + 1 :]
