"""Counts floating-point operations in a jaxpr, where loops have lengths.

Compilers count the body of a loop once, and a kernel not at all. A jaxpr knows
the length of each scan, and what rematerialisation computes twice.

Only those operations count for which an accelerator's peak is quoted: products
of matrices, convolutions and Fourier transforms. A multiplication and an
addition are two operations. Elementwise work does not count: its time depends
on the bytes that it moves.
"""

import collections
from collections.abc import Iterator
import math
from typing import Any

import jax
import jax.numpy as jnp


def count(
    jaxpr, *, platform: str | None = None
) -> collections.Counter[str]:
  """Counts the operations that all devices do together.

  >>> import jax
  >>> import jax.numpy as jnp
  >>> scan = lambda x: jax.lax.scan(lambda h, _: (h @ h, None), x, length=5)[0]
  >>> count(jax.make_jaxpr(scan)(jnp.ones((10, 10))))['dot']
  10000

  Args:
    jaxpr: From `jax.make_jaxpr(f)(...)` or `jax.jit(f).trace(...).jaxpr`.
    platform: `'tpu'`, `'cuda'` or `'cpu'`: the branch of
      `jax.lax.platform_dependent` that counts. Without it, and for every other
      `cond`, the branch with most operations counts.

  Returns:
    A `Counter` of kinds: `dot`, `conv`, `fft`; `kernel`, the cost that Pallas
    kernels state (with elementwise work), or else the products in their bodies;
    and `while`, the operations in loops of unknown length, counted for one
    round. If `while` is not 0, the sum is a lower bound.
  """
  total = collections.Counter()
  for eqn in getattr(jaxpr, 'jaxpr', jaxpr).eqns:
    total += _of_equation(eqn, platform)
  return total


def of_training_step(task, state, batch, *, platform=None) -> int:
  """Counts the operations that one training step needs on all devices.

  They are three times those of the loss, because the gradient of a product is
  two products. Rematerialisation does not count, so that this number divided by
  seconds and peak is the usual model FLOPs utilisation. To count what a step
  really computes, pass its jaxpr to `count`.

  Args:
    task: See `rnnzoo.tasks.Task`.
    state: The training state, or its shapes.
    batch: The global batch of one step, or its shapes.
    platform: See `count`.
  """
  key = jax.eval_shape(lambda: jax.random.key(0, impl='rbg'))
  loss = jax.make_jaxpr(task.loss_fn(train=True))(
      state['params'], state['batch_stats'], batch, state.get('carry'), key
  )
  return 3 * count(loss, platform=platform).total()


def _of_equation(eqn, platform):
  name, params = eqn.primitive.name, eqn.params
  if name in _PRIMITIVES:
    kind, operations = _PRIMITIVES[name]
    return collections.Counter({kind: operations(eqn)})
  if name == 'pallas_call':
    return collections.Counter(kernel=_kernel(params, platform))
  bodies = [count(body, platform=platform) for body in _jaxprs(params)]
  if name == 'cond':
    return _branch(bodies, params.get('branches_platforms'), platform)
  total = sum(bodies, collections.Counter())
  if name == 'while':
    return collections.Counter({'while': total.total()})
  rounds = 1
  if name == 'scan':
    rounds = params['length']
  elif name == 'shard_map':
    # The body has the shapes of one device's shard.
    shape = params['mesh'].shape
    rounds = math.prod(shape[axis] for axis in params['newly_manual_axes'])
  return collections.Counter({k: rounds * n for k, n in total.items()})


def _branch(bodies, platforms, platform):
  for body, names in zip(bodies, platforms or ()):
    if platform is not None and (names is None or platform in names):
      return body
  return max(bodies, key=lambda body: body.total())


def _kernel(params, platform):
  if params.get('cost_estimate') is not None:
    return params['cost_estimate'].flops
  body = count(params['jaxpr'], platform=platform).total()
  return body * math.prod(params['grid_mapping'].grid)


def _jaxprs(value: Any) -> Iterator[Any]:
  """Yields the jaxprs among the parameters of an equation."""
  if hasattr(value, 'eqns') or hasattr(value, 'jaxpr'):
    yield value
  elif isinstance(value, dict):
    for part in value.values():
      yield from _jaxprs(part)
  elif isinstance(value, (tuple, list)):
    for part in value:
      yield from _jaxprs(part)


def _sizes(shape, axes):
  return math.prod(shape[i] for i in axes)


def _multiply_add(*variables):
  """Returns 2; 8 if both are complex, 4 if one is."""
  is_complex = [
      jnp.issubdtype(v.aval.dtype, jnp.complexfloating) for v in variables
  ]
  return 8 if all(is_complex) else 4 if any(is_complex) else 2


def _dot(eqn):
  (contracted, _), _ = eqn.params['dimension_numbers']
  left, right = eqn.invars
  length = _sizes(left.aval.shape, contracted)
  return _multiply_add(left, right) * length * eqn.outvars[0].aval.size


def _ragged_dot(eqn):
  numbers = eqn.params['ragged_dot_dimension_numbers']
  (contracted, _), _ = numbers.dot_dimension_numbers
  left, right = eqn.invars[:2]
  # Each row is multiplied with the matrix of its own group. If the groups lie
  # along the contracted axis, the result has one matrix for each group, with
  # only the terms of that group.
  size = eqn.outvars[0].aval.size
  if set(numbers.lhs_ragged_dimensions) & set(contracted):
    size //= eqn.outvars[0].aval.shape[0]
  return _multiply_add(left, right) * _sizes(left.aval.shape, contracted) * size


def _conv(eqn):
  left, right = eqn.invars
  numbers = eqn.params['dimension_numbers']
  # Each result uses all of the kernel but its axis of output features. The axis
  # of input features has only those of one group.
  taps = right.aval.size // right.aval.shape[numbers.rhs_spec[0]]
  return _multiply_add(left, right) * taps * eqn.outvars[0].aval.size


def _fft(eqn):
  """Returns the usual `5 N log2 N`; half of it if one side is real."""
  points = math.prod(eqn.params['fft_lengths'])
  arrays = [eqn.invars[0].aval, eqn.outvars[0].aval]
  real = [a for a in arrays if jnp.issubdtype(a.dtype, jnp.floating)]
  # Only half of the spectrum of real numbers is stored: count the other side.
  transforms = (real or arrays)[0].size // points
  return round((2.5 if real else 5) * transforms * points * math.log2(points))


_PRIMITIVES = {
    'dot_general': ('dot', _dot),
    'ragged_dot_general': ('dot', _ragged_dot),
    'conv_general_dilated': ('conv', _conv),
    'fft': ('fft', _fft),
}
