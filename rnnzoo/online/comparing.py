"""Compares online gradients with back-propagation through time."""

import jax
import jax.numpy as jnp
import numpy as np
from rnnzoo.online.rtrl import RTRL
from rnnzoo.online.rtrl import Tree
from rnnzoo.online.stack import floating_dtype
from rnnzoo.training import state as state_lib


def gradient_error(
    learner: RTRL,
    params: Tree,
    inputs: jax.Array,
    targets: jax.Array,
    *,
    reset: jax.Array | None = None,
    mask: jax.Array | None = None,
) -> dict[str, tuple[float, float]]:
  """Compares the gradients with back-propagation through time.

  >>> from flax import nnx
  >>> import jax.numpy as jnp
  >>> from rnnzoo import layers
  >>> from rnnzoo.online.stack import Stack
  >>> model = Stack(layers.MinGRU(3, rngs=nnx.Rngs(0)))
  >>> learner = RTRL(model, lambda y, target: ((y - target) ** 2).sum())
  >>> x = jnp.linspace(-1, 1, 60).reshape(2, 10, 3)
  >>> error, cosine = gradient_error(learner, learner.params, x, x)['']
  >>> error < 1e-5, round(cosine, 4)
  (True, 1.0)

  Args:
    learner: The learner.
    params: The parameters, which stay constant.
    inputs: `[B, T, ...]`.
    targets: `[B, T, ...]`.
    reset: Booleans `[B, T]`, or `None`.
    mask: Booleans `[B, T]`, or `None`.

  Returns:
    A dictionary from the path of each part, such as `parts.0`, and from `''`
    for the whole model, to `(error, cosine)`: the norm of the difference
    relative to that of the exact gradient, and the cosine of the angle between
    both. Both gradients are sums over all tokens.
  """
  got, want = jax.jit(lambda *args: (
      online_gradient(learner, *args), full_gradient(learner, *args)
  ))(params, inputs, targets, reset, mask)
  got, want = (jax.device_get(state_lib.by_path(u)) for u in (got, want))
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
  """Returns the sum of the online gradients over `[B, T, ...]`."""
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
  """Returns the gradient by back-propagation through time."""

  def loss(params):
    _, y = learner.merge(params)(inputs, reset=reset, mask=mask)
    return jax.vmap(learner.loss_fn, 1)(y, targets).sum()

  return jax.grad(loss)(params)
