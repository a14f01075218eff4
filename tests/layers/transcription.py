"""Holds a layer to its paper's equations, written as a loop in float64 NumPy.

    def equations(p, x, carry):    # p['gates/kernel'], x: T of [B, D]
      ...
      return carry, ys             # a tree like the layer's, T of [B, D_out]

    transcription.check(equations, lambda rngs: layers.MinGRU(4, rngs=rngs))
"""

from flax import nnx
import jax
import numpy as np
from rnnzoo import testing
from rnnzoo.layers import base

_BATCH, _TIME = 2, 9


def sigmoid(u):
  return 1 / (1 + np.exp(-u))


def check(equations, make_layer, *, carry_of=None):
  """Raises unless a layer does what `equations` say, to ten digits.

  Args:
    equations: A function `(p, x, carry) -> (carry, ys)`.
    make_layer: Makes the layer from an `nnx.Rngs`.
    carry_of: Makes the carry to start from of the layer's initial one; normal
      numbers if `None`.
  """
  with jax.enable_x64(True):
    layer = make_layer(nnx.Rngs(0))
    random = np.random.default_rng(0)
    # Biases start at zero in places, where they would go untested.
    graph, params, rest = nnx.split(layer, nnx.Param, ...)
    params = jax.tree.map(
        lambda p: p + 0.3 * random.standard_normal(p.shape), params
    )
    layer = nnx.merge(graph, params, rest)
    x = random.standard_normal((_BATCH, _TIME, *base.input_shape(layer)))
    initial = layer.initialize_carry(_BATCH, x.dtype)
    if carry_of is None:
      carry = jax.tree.map(lambda u: _normal(random, u), initial)
    else:
      carry = carry_of(initial)
    got_carry, got = jax.jit(lambda *a: layer(*a))(x, carry)
    p = {
        '/'.join(map(str, path)): np.asarray(value[...], np.float64)
        for path, value in nnx.to_flat_state(params)
    }
    want_carry, want = equations(p, x.swapaxes(0, 1), carry)
    if got.dtype != np.float64:
      raise AssertionError(f'y is {got.dtype}.')
    testing.assert_close(
        (tuple(jax.tree.leaves(got_carry)), got),
        (tuple(jax.tree.leaves(want_carry)), np.stack(want, axis=1)),
        tolerance=1e-10,
    )


def _normal(random, u):
  if u.dtype.kind == 'c':
    return (random.standard_normal(u.shape + (2,)) @ [1, 1j]).astype(u.dtype)
  if u.dtype.kind == 'f':
    return random.standard_normal(u.shape)
  return u
