"""Diagonal layers: which channel a parameter affects, and sensitivities."""

from flax.traverse_util import unflatten_dict
import jax
import jax.numpy as jnp
import numpy as np
from rnnzoo.layers import base
from rnnzoo.training import state as state_lib


class DiagonalLayer:
  """A recurrent layer, and the channel that each parameter affects.

  Attributes:
    path: Path of the layer in the parameters.
    index: Index of the layer in the carry.
    channels: A dictionary from the path of each parameter that affects the
      state to integers of its shape: the channel that each number affects.
  """

  def __init__(self, path: tuple[str, ...], layer: base.RecurrentLayer):
    """Examines `layer` with random numbers; raises `ValueError`."""
    self.path, self.name = path, type(layer).__name__
    self.index = tuple(int(key) for key in path if key != 'parts')
    self._functional = state_lib.Functional(lambda rngs: layer)
    if not layer.causal:
      raise ValueError(f'{self.name} is not causal: it cannot learn online.')
    params, _ = self._functional.variables(layer)
    values = {
        self.path + key: u.astype(jnp.float32)
        for key, u in state_lib.by_path(params).items()
    }
    size = state_of(layer.initialize_carry(1, jnp.float32)).size
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
        continue  # It does not affect the state.
      # The channel of a number is read off where its effect is largest.
      best = np.abs(ones).argmax(0)[None]
      take = lambda u, best=best: np.take_along_axis(u, best, 0)[0]
      safe = np.where(take(ones) == 0, 1, take(ones))
      channel = np.rint(take(counted) / safe).astype(int) - 1
      channel = np.clip(channel, 0, size - 1)
      if not _is_proportional(ones, randomly, random[channel]):
        raise ValueError(
            f'{".".join(key)} of {self.name} affects several channels of the '
            'state: its sensitivity is too large to store.'
        )
      self.channels[key] = channel

  def traced(self, params):
    """Returns the parameters that affect the state, float32 at least."""
    flat = state_lib.by_path(params)
    return {
        key: flat[key].astype(base.state_dtype(flat[key].dtype))
        for key in self.channels
    }

  def merged(self, params, values):
    """Returns the layer with parameters `params`, some replaced by `values`."""
    n = len(self.path)
    own = {
        key[n:]: values.get(key, u)
        for key, u in state_lib.by_path(params).items() if key[:n] == self.path
    }
    return self._functional.merge(unflatten_dict(own), {}, rounded=False)

  def _probe(self, values, tokens, weights):
    """Pulls cotangents back through steps from a random state.

    Args:
      values: The parameters by path.
      tokens: `[K + 1, 1, D]`.
      weights: The cotangents `[W, H]`. For a complex state they are used with
        two phases, for real and imaginary parts.

    Returns:
      `(own, decays)`: the gradients of the parameters `[W, N, ...]` and of the
      entering state `[W, N, H]`, for N tokens with and without a reset.
    """

    def with_parameters(values):
      layer = self.merged(unflatten_dict(values), values)
      layer.dtype = None  # The dtype of the input, never bfloat16.
      return layer

    layer = with_parameters(values)
    carry = layer.initialize_carry(1, tokens.dtype)
    carry, _ = layer.step(carry, tokens[0])  # Not the first token any more.
    h = state_of(carry) + 1

    def pulled(x, start, phase, weight):

      def step(values, h):
        entering = with_state(carry, h)
        new, _ = with_parameters(values).step(entering, x, reset=start[None])
        return state_of(new)

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
  """Whether `weighted` is `factor * ones`, as for gradients of one channel."""
  error = np.abs(weighted - factor * ones).max()
  return error <= 1e-3 * np.abs(ones).max()


def sensitivities(function, values, h):
  """Returns sensitivities of each channel to its parameters and its past.

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


def dense_sensitivities(function, values):
  """Returns sensitivities of every channel to every parameter `[H, ...]`."""
  new, pull = jax.vjp(function, values)
  eye = jnp.eye(new.size, dtype=new.dtype)
  (local,) = jax.vmap(pull)(eye)
  if jnp.iscomplexobj(new):
    (imaginary,) = jax.vmap(pull)(-1j * eye)
    local = jax.tree.map(jax.lax.complex, local, imaginary)
  return jax.tree.map(lambda u: u.astype(new.dtype), local)


def state_of(carry):
  """Returns the floating array of a carry, or raises if there is not one."""
  floating = [
      u for u in jax.tree.leaves(carry) if jnp.issubdtype(u.dtype, jnp.inexact)
  ]
  if len(floating) != 1:
    raise ValueError(
        'A layer must have one array as a state to learn online, got '
        f'{len(floating)}.'
    )
  return floating[0]


def with_state(carry, state):
  is_state = lambda u: jnp.issubdtype(u.dtype, jnp.inexact)
  return jax.tree.map(lambda u: state if is_state(u) else u, carry)
