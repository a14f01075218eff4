"""Gates in operations that GPU kernels can compute (Pallas, Mosaic GPU).

Mosaic GPU lacks some primitives. A gate and its derivative are traced to a
jaxpr, which is then evaluated inside the kernel with replacements for these.
"""

import functools

import jax
from jax import lax
from jax.extend import core
import jax.numpy as jnp
from rnnzoo.ops.linear_scan import gates


def forward_rule(gate, count: int, lanes: int, reset, decay_after: bool):
  """Returns the function `(now, values) -> (a, x)` of a step.

  Args:
    gate: See `gates.py`.
    count: The number of its inputs.
    lanes: The number of elements of a vector.
    reset: The flags, or None if there are none.
    decay_after: Whether `x` is a cotangent.
  """
  vector = jax.ShapeDtypeStruct((lanes,), jnp.float32)
  if gate is not gates.linear:
    run = _lowered(gate, _start_like(reset, lanes), *(vector,) * count)

  def rule(now, values):
    if gate is gates.linear:
      a, x = values
    else:
      a, x = ((u,) for u in run(now.start_vector(), *(u for (u,) in values)))
    # A masked step passes a cotangent on. Beyond T, the copy has put zeros.
    return now.or_else(a, 1), x if decay_after else now.or_else(x, 0)

  return rule


def backward_rule(gate, count: int, lanes: int, reset):
  """Returns the function `(now, values, da, dx) -> (a, dinputs)` of a step."""
  vector = jax.ShapeDtypeStruct((lanes,), jnp.float32)

  def pull_back(start, values, cotangents):
    (a, _), vjp = jax.vjp(functools.partial(gate, start), *values)
    return a, vjp(cotangents)

  if gate is not gates.linear:
    run = _lowered(
        pull_back, _start_like(reset, lanes), (vector,) * count, (vector,) * 2
    )

  def rule(now, values, da, dx):
    if gate is gates.linear:
      return values[0], (da, dx)
    values, cotangents = (tuple(u for (u,) in v) for v in (values, (da, dx)))
    a, dinputs = run(now.start_vector(), values, cotangents)
    return (a,), [(u,) for u in dinputs]

  return rule


def _start_like(reset, lanes):
  return None if reset is None else jax.ShapeDtypeStruct((lanes,), bool)


def _lowered(fn, *like):
  """Returns `fn` in operations that Mosaic GPU has."""
  jaxpr, out = jax.make_jaxpr(fn, return_shape=True)(*like)
  tree = jax.tree.structure(out)
  return lambda *arguments: tree.unflatten(
      _evaluate(jaxpr, jax.tree.leaves(arguments))
  )


def _evaluate(closed, arguments):
  jaxpr = closed.jaxpr
  values = dict(zip(jaxpr.constvars, closed.consts))
  values.update(zip(jaxpr.invars, arguments))
  for equation in jaxpr.eqns:
    operands = [
        u.val if isinstance(u, core.Literal) else values[u]
        for u in equation.invars
    ]
    name, params = equation.primitive.name, equation.params
    inner = params.get('jaxpr', params.get('call_jaxpr'))
    if inner is not None:
      results = _evaluate(inner, operands)
    elif name in _REPLACEMENTS:
      results = [_REPLACEMENTS[name](*operands, **params)]
    else:
      results = equation.primitive.bind(*operands, **params)
      if not equation.primitive.multiple_results:
        results = [results]
    values.update(zip(equation.outvars, results))
  return [
      u.val if isinstance(u, core.Literal) else values[u] for u in jaxpr.outvars
  ]


def _log1p(u, **_):
  # Both factors have the rounding error of 1 + u, so it cancels.
  v = 1 + u
  return jnp.where(v == 1, u, jnp.log(v) * (u / jnp.where(v == 1, 1, v - 1)))


def _expm1(u, **_):
  v = jnp.exp(u)
  quotient = u / jnp.where(v == 1, 1, jnp.log(v))
  return jnp.where(v == 1, u, jnp.where(u < -20, -1, (v - 1) * quotient))


# By name, the primitives that some version of Mosaic GPU lacks.
_REPLACEMENTS = dict(
    add_any=lambda u, v: u + v,
    expm1=_expm1,
    integer_pow=lambda u, y: u**y if y >= 0 else 1 / u**-y,
    log1p=_log1p,
    sqrt=lambda u, **_: jnp.where(u == 0, 0, u * lax.rsqrt(u)),
    stop_gradient=lambda u, **_: u,
)
