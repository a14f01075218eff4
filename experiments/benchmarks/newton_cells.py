"""The cells of `newton.py` and `newton_depth.py`, and their two solvers."""

from collections.abc import Callable

from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np
from rnnzoo import layers

CELLS = ('elman', 'gru', 'lstm', 'slstm', 'para_gru', 'para_lstm')

# Tried in this order.
_ITERATIONS = (1, 2, 3, 4, 5, 6, 8, 10, 12, 16, 20, 24, 32, 48, 64, 96, 128)


def fresh(name: str, features: int):
  """Makes a cell whose inputs and states have this width."""
  options = dict(recurrent_init='uniform') if name == 'slstm' else {}
  return layers.LAYERS[name](features, features, **options, rngs=nnx.Rngs(0))


def inputs(cell, batch: int, length: int) -> jax.Array:
  """Returns normal numbers `[B, T, D]`, the same ones each time."""
  return jnp.asarray(
      np.random.default_rng(0).standard_normal(
          (batch, length, cell.in_features), np.float32
      )
  )


def iterations(cell, x: jax.Array) -> tuple[int, float]:
  """Returns how many iterations reach the tolerance, and the residual then.

  Sets the solver of the cell to `newton` with that number.
  """
  tolerance = 16 * float(jnp.finfo(jnp.float32).eps)
  for count in _ITERATIONS:
    cell.set_solver('newton', count)
    graph, state = nnx.split(cell)
    residual = jax.jit(
        lambda state, x, graph=graph: nnx.merge(graph, state).residual(x)
    )
    worst = float(residual(state, x).max())
    if worst <= tolerance or count >= x.shape[1]:
      break
  return count, worst


def functions(cell, count: int) -> tuple[dict[str, dict[str, Callable]], dict]:
  """Returns a call and its gradient by each solver, and the cell's state.

  Args:
    cell: The cell, whose solver is `sequential` afterwards.
    count: The number of iterations of Newton's method.

  Returns:
    For `newton` and `sequential`, functions `forward` and `gradient` of the
    state and the inputs; and the state.
  """
  found, state = {}, {}
  for solver, number in (('newton', count), ('sequential', None)):
    cell.set_solver(solver, number)
    graph, state = nnx.split(cell)

    def forward(state, x, graph=graph):
      return nnx.merge(graph, state)(x)[1]

    def gradient(state, x, forward=forward):
      return jax.grad(lambda *u: jnp.sum(forward(*u) ** 2), (0, 1))(state, x)

    found[solver] = dict(forward=forward, gradient=gradient)
  return found, state
