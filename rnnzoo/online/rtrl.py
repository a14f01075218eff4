"""Real-time recurrent learning; `__init__.py` says what it is."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from flax.traverse_util import flatten_dict
from flax.traverse_util import unflatten_dict
import jax
import jax.numpy as jnp
import numpy as np
import optax
from rnnzoo.layers import base
from rnnzoo.online.stack import Stack
from rnnzoo.online.stack import floating_dtype
from rnnzoo.training import state as state_lib

Tree = Mapping[str, Any]  # Nested dictionaries of parameters.


class RTRLState(NamedTuple):
  """What is kept between tokens: the model's carry, and sensitivities.

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
    params: The parameters of the model, nested dictionaries: what `step` takes
      and optax updates.
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
      model: Whose recurrent layers have one array as a state, of which each
        channel depends on its own past and parameters alone: `LRU`, `RGLRU`,
        `CGLRU`, `MinGRU`, `MinLSTM`, `HGRN`, `S5` and their like.
      loss_fn: Maps the outputs `[B, D]` of a token and its target to a scalar.
      exact_before: Whether to keep the sensitivities to what comes before the
        (single) recurrent layer, `H` numbers a parameter.

    Raises:
      ValueError: If a layer is not diagonal, or `exact_before` is asked for
        with more than one.
    """
    self.loss_fn = loss_fn
    self._functional = state_lib.Functional(lambda rngs: model)
    if jax.tree.leaves(self._functional.batch_stats):
      raise ValueError('`model` must not have batch norms: they see no batch.')
    self.params, _ = self._functional.variables(model)
    parts = list(_parts(model, ()))
    self._layers = [
        _Layer(path, part) for path, part in parts
        if isinstance(part, base.RecurrentLayer)
    ]
    self._before = ()  # Parameters whose sensitivity has a row a channel.
    if exact_before:
      if len(self._layers) != 1:
        raise ValueError(
            '`exact_before` needs a model with one recurrent layer, got '
            f'{len(self._layers)}.'
        )
      paths = [path for path, _ in parts]
      at = paths.index(self._layers[0].path)
      self._before = tuple(
          key for key in flatten_dict(self.params)
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
      The carry, and the sensitivities of the layers' initial states.
    """
    carry = self.merge(params).initialize_carry(batch_size, dtype)
    traces = []
    for layer in self._layers:

      def first(values, _, layer=layer):
        merged = layer.merged(params, values)
        return _state(merged.initialize_carry(1, dtype)).ravel()

      trace, _, h = _sensitivities(first, layer.traced(params), ())
      for key in self._before:
        shape = flatten_dict(params)[key].shape
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
    """Reads one token; a pure function, to be jitted or scanned.

    Args:
      params: The parameters.
      state: What the token before left.
      x: The token `[B, ...]`.
      target: Its target, for the loss function.
      reset: Booleans `[B]`, `True` where a sequence starts.
      mask: Booleans `[B]`, `False` where there is no token.

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
    )(params, [_state(c) for c in self._carries(state.carry)])
    flat, traces = flatten_dict(gradient), []
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
    """The sensitivities after a token that is `x`, and `u` for the layer."""
    values, whole = layer.traced(params), flatten_dict(params)
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
        entering = _with_state(carry, h.reshape(_state(carry).shape))
        if before:
          # This run of the model ends at the layer's input.
          merged = self.merge(unflatten_dict(whole | before))
          start = self._with_carries(
              merged.initialize_carry(1, floating_dtype(x)), [entering]
          )
          _, _, (u_now,) = merged.step_with_inputs(start, x[None], **flags)
        else:
          u_now = u[None]
        after, _ = layer.merged(params, values).step(entering, u_now, **flags)
        return _state(after).ravel()

      h = _state(carry).ravel()
      local, decay, _ = _sensitivities(
          lambda own, h: new_state((own, before), h), values, h
      )
      new = {
          key: _scaled(decay[layer.channels[key]], trace[key]) + local[key]
          for key in values
      }
      if before:
        dense = _dense_sensitivities(
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
    """The carries of the recurrent layers."""
    return [_at(carry, layer.index) for layer in self._layers]

  def _with_carries(self, carry, news):
    for layer, new in zip(self._layers, news):
      carry = _replaced(carry, layer.index, new)
    return carry

  def _with_states(self, carry, states):
    olds = self._carries(carry)
    return self._with_carries(carry, map(_with_state, olds, states))


def learn(
    learner: RTRL,
    tx: optax.GradientTransformation,
    params: Tree,
    inputs: jax.Array,
    targets: jax.Array,
    *,
    reset: jax.Array | None = None,
    mask: jax.Array | None = None,
) -> tuple[Tree, jax.Array]:
  """One pass over a stream, with an update after every token.

  While parameters change, the sensitivities are those of the parameters that
  there were: as exact as the rate is small. The docstring of this module has
  an example.

  Args:
    learner: The learner.
    tx: The optimiser.
    params: The parameters to start from.
    inputs: `[B, T, ...]`.
    targets: `[B, T, ...]`.
    reset: Booleans `[B, T]`, or `None`.
    mask: Booleans `[B, T]`, or `None`.

  Returns:
    `(params, losses)`: the parameters after the last token, and the loss of
    each token `[T]` before it was learnt from.
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


def gradient_error(
    learner: RTRL,
    params: Tree,
    inputs: jax.Array,
    targets: jax.Array,
    *,
    reset: jax.Array | None = None,
    mask: jax.Array | None = None,
) -> dict[str, tuple[float, float]]:
  """Compares a learner's gradients with back-propagation through time.

  >>> from flax import nnx
  >>> import jax.numpy as jnp
  >>> from rnnzoo import layers
  >>> model = Stack(layers.MinGRU(3, rngs=nnx.Rngs(0)))
  >>> learner = RTRL(model, lambda y, target: ((y - target) ** 2).sum())
  >>> x = jnp.linspace(-1, 1, 60).reshape(2, 10, 3)
  >>> error, cosine = gradient_error(learner, learner.params, x, x)['']
  >>> error < 1e-5, round(cosine, 4)
  (True, 1.0)

  Args:
    learner: The learner.
    params: The parameters, which do not change meanwhile.
    inputs: `[B, T, ...]`.
    targets: `[B, T, ...]`.
    reset: Booleans `[B, T]`, or `None`.
    mask: Booleans `[B, T]`, or `None`.

  Returns:
    For each part of the model by its path such as `parts.0`, and for all of it
    under `''`: the norm of the difference relative to that of the exact
    gradient, and the cosine of the angle between the two, both summed over all
    tokens.
  """
  got, want = jax.jit(lambda *args: (
      online_gradient(learner, *args), full_gradient(learner, *args)
  ))(params, inputs, targets, reset, mask)
  got, want = (jax.device_get(flatten_dict(u)) for u in (got, want))
  groups = {}
  for key in want:
    path = key
    while path and not path[-1].isdigit():
      path = path[:-1]
    for name in ('', '.'.join(path)):
      groups.setdefault(name, []).append(key)
  result = {}
  for name, keys in groups.items():
    flat = lambda tree: np.concatenate(
        [np.asarray(tree[key], np.float64).ravel() for key in keys]
    )
    g, w = flat(got), flat(want)
    norms = np.linalg.norm(g), np.linalg.norm(w)
    result[name] = (
        float(np.linalg.norm(g - w) / norms[1]),
        float(g @ w / (norms[0] * norms[1])),
    )
  return result


def online_gradient(
    learner: RTRL, params: Tree, inputs, targets, reset=None, mask=None
) -> Tree:
  """The sum of a learner's gradients over `[B, T, ...]`, a token at a time."""
  by_time = lambda u: jnp.moveaxis(u, 1, 0)

  def body(carried, token):
    state, total = carried
    x, target, reset, mask = token
    state, _, gradient = learner.step(
        params, state, x, target, reset=reset, mask=mask
    )
    return (state, jax.tree.map(jnp.add, total, gradient)), None

  start = learner.initialize(params, inputs.shape[0], floating_dtype(inputs))
  carried = start, jax.tree.map(jnp.zeros_like, params)
  tokens = jax.tree.map(by_time, (inputs, targets, reset, mask))
  return jax.lax.scan(body, carried, tokens)[0][1]


def full_gradient(
    learner: RTRL, params: Tree, inputs, targets, reset=None, mask=None
) -> Tree:
  """The same by back-propagation through time."""

  def loss(params):
    _, y = learner.merge(params)(inputs, reset=reset, mask=mask)
    return jax.vmap(learner.loss_fn, 1)(y, targets).sum()

  return jax.grad(loss)(params)


class _Layer:
  """A recurrent layer of a model, and which channel each parameter reaches.

  Attributes:
    path: Where it is among the parameters.
    index: Where it is in the carry.
    channels: For each parameter that reaches the state, by its path, the
      channel that each of its numbers reaches, integers of its shape.
  """

  def __init__(self, path, layer):
    """Examines `layer` with random numbers; raises `ValueError`."""
    self.path, self.name = path, type(layer).__name__
    self.index = tuple(int(key) for key in path if key != 'parts')
    self._functional = state_lib.Functional(lambda rngs: layer)
    if not layer.causal:
      raise ValueError(f'{self.name} looks ahead: it cannot learn online.')
    params, _ = self._functional.variables(layer)
    values = {
        self.path + key: u.astype(jnp.float32)
        for key, u in flatten_dict(params).items()
    }
    size = _state(layer.initialize_carry(1, jnp.float32)).size
    rng = np.random.default_rng(0)
    tokens = rng.standard_normal(
        (3, 1, *base.input_shape(layer)), np.float32
    )
    random = rng.uniform(1, 2, size).astype(np.float32)
    counting = 1 + np.arange(size, dtype=np.float32)
    weights = np.stack([np.ones_like(random), counting, random])
    own, decays = jax.device_get(jax.jit(self._probe)(values, tokens, weights))
    if not _is_proportional(decays[0], decays[2], random):
      raise ValueError(
          f'{self.name} is not diagonal: channels of its state mix.'
      )
    self.channels = {}
    for key, (ones, counted, randomly) in own.items():
      if not ones.any() and not randomly.any():
        continue  # Does not reach the state.
      # Which channel a number reaches shows where it does most.
      best = np.abs(ones).argmax(0)[None]
      take = lambda u, best=best: np.take_along_axis(u, best, 0)[0]
      safe = np.where(take(ones) == 0, 1, take(ones))
      channel = np.rint(take(counted) / safe).astype(int) - 1
      channel = np.clip(channel, 0, size - 1)
      if not _is_proportional(ones, randomly, random[channel]):
        raise ValueError(
            f'{".".join(key)} of {self.name} reaches several channels of the '
            'state: its sensitivity is too large to keep.'
        )
      self.channels[key] = channel

  def traced(self, params):
    """The parameters that reach the state, by path, float32 at least."""
    flat = flatten_dict(params)
    return {
        key: flat[key].astype(base.state_dtype(flat[key].dtype))
        for key in self.channels
    }

  def merged(self, params, values):
    """The layer with the parameters of a model, some of them replaced."""
    n = len(self.path)
    own = {
        key[n:]: values.get(key, u)
        for key, u in flatten_dict(params).items() if key[:n] == self.path
    }
    return self._functional.merge(unflatten_dict(own), {}, rounded=False)

  def _probe(self, values, tokens, weights):
    """Pulls cotangents back through steps from a random state.

    Args:
      values: The parameters by path.
      tokens: `[K + 1, 1, D]`.
      weights: The cotangents `[W, H]`; those of a complex state also have the
        phase that shows imaginary parts.

    Returns:
      `(own, decays)`: the gradients of the parameters `[W, N, ...]` and of the
      entering state `[W, N, H]`; N are tokens, with and without a reset.
    """

    def with_parameters(values):
      layer = self.merged(unflatten_dict(values), values)
      layer.dtype = None  # Of the input: no bfloat16 here.
      return layer

    layer = with_parameters(values)
    carry = layer.initialize_carry(1, tokens.dtype)
    carry, _ = layer.step(carry, tokens[0])  # So that it is not fresh.
    h = _state(carry) + 1

    def pulled(x, start, phase, weight):

      def step(values, h):
        entering = _with_state(carry, h)
        new, _ = with_parameters(values).step(entering, x, reset=start[None])
        return _state(new)

      new, pull = jax.vjp(step, values, h)
      d_values, d_h = pull((phase * weight).reshape(new.shape))
      return d_values, d_h.ravel()

    over = lambda f, i: jax.vmap(f, [0 if j == i else None for j in range(4)])
    for i in (0, 1, 2, 3):
      pulled = over(pulled, i)
    phases = np.array([1, -1j] if jnp.iscomplexobj(h) else [1], h.dtype)
    starts = np.array([False, True])
    results = pulled(tokens[1:], starts, phases, weights)  # [W, phase, ...]
    flat = lambda u: u.reshape(len(weights), -1, *u.shape[4:])
    return jax.tree.map(flat, results)


def _is_proportional(ones, weighted, factor):
  """Whether `weighted` is `factor * ones`, as what one channel gets must be."""
  error = np.abs(weighted - factor * ones).max()
  return error <= 1e-3 * np.abs(ones).max()


def _sensitivities(function, values, h):
  """Of each channel to its own parameters and to its own past.

  Args:
    function: Maps `values` and `h` to a state `[H]`.
    values: Parameters by path.
    h: The state before, `[H]`.

  Returns:
    `(local, decay, new)`: like `values`, like `h`, and the new state.
  """
  new, pull = jax.vjp(function, values, h)
  ones = jnp.ones_like(new)
  local, decay = pull(ones)
  if jnp.iscomplexobj(new):
    imaginary, _ = pull(-1j * ones)
    local = jax.tree.map(jax.lax.complex, local, imaginary)
  return jax.tree.map(lambda u: u.astype(new.dtype), local), decay, new


def _dense_sensitivities(function, values):
  """Of every channel to every parameter: `[H, ...]`."""
  new, pull = jax.vjp(function, values)
  eye = jnp.eye(new.size, dtype=new.dtype)
  (local,) = jax.vmap(pull)(eye)
  if jnp.iscomplexobj(new):
    (imaginary,) = jax.vmap(pull)(-1j * eye)
    local = jax.tree.map(jax.lax.complex, local, imaginary)
  return jax.tree.map(lambda u: u.astype(new.dtype), local)


def _scaled(weight, u):
  """`weight * u`, 0 where the weight is, though `u` be NaN: after a reset."""
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


def _state(carry):
  """The floating array of a carry; there must be just one."""
  floating = [
      u for u in jax.tree.leaves(carry) if jnp.issubdtype(u.dtype, jnp.inexact)
  ]
  if len(floating) != 1:
    raise ValueError(
        'A layer must have one array as a state to learn online, got '
        f'{len(floating)}.'
    )
  return floating[0]


def _with_state(carry, state):
  is_state = lambda u: jnp.issubdtype(u.dtype, jnp.inexact)
  return jax.tree.map(lambda u: state if is_state(u) else u, carry)


def _at(carry, index):
  for i in index:
    carry = carry[i]
  return carry


def _replaced(carry, index, new):
  if not index:
    return new
  i, *rest = index
  return carry[:i] + (_replaced(carry[i], rest, new),) + carry[i + 1 :]
