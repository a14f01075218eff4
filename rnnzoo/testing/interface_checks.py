"""Checks of shapes, dtypes, errors, gradients and exports."""

import importlib.util

from flax import nnx
import jax
import jax.export
import jax.numpy as jnp
import numpy as np
from rnnzoo.layers import base
from rnnzoo.testing import cases
from rnnzoo.testing.comparing import Problem
from rnnzoo.testing.comparing import differences
from rnnzoo.testing.comparing import is_floating
from rnnzoo.testing.comparing import leaves_of
from rnnzoo.testing.comparing import numbers
from rnnzoo.testing.comparing import path_of
from rnnzoo.testing.comparing import wrong

_PLATFORMS = ('cpu', 'cuda', 'rocm', 'tpu')


def check_lengths(case):
  """Zero tokens leave the carry unchanged; one token equals a step."""
  layer, x, carry = case.layer, case.x, case.carry

  def run(x, carry):
    none, flag = x[:, :0], jnp.ones((cases.BATCH, 0), bool)
    empty = [layer(none, carry), layer(none, carry, reset=flag, mask=flag)]
    step = layer.step(carry, x[:, 0]) if case.causal else None
    return empty, layer(x[:, :1], carry), step

  run = jax.jit(run, compiler_options=cases.quick_options())
  empty, (last, y), step = run(x, carry)
  problems = []
  for new, nothing in empty:
    problems += differences('carry after T = 0', new, carry, tolerance=0)
    if nothing.shape != (cases.BATCH, 0, *base.output_shape(layer)):
      problems.append(wrong(f'outputs {nothing.shape} for T = 0'))
  if step is not None:
    problems += differences(
        'T = 1', (last, y[:, 0]), step, case.compute_dtype
    )
  return problems


def check_long(case):
  """Values and gradients are finite over 512 tokens."""
  x = case.draw('long', (cases.BATCH, 512, *case.x.shape[2:]))
  d_y = case.draw(
      'd_long', (cases.BATCH, 512, *case.d_y.shape[2:]), case.d_y.dtype
  )
  result = case.run(cases.whole, x=x, d_y=d_y)
  return [
      wrong(f'{name}{path_of(path)} not finite over 512 tokens')
      for name in cases.Result._fields
      for path, u in leaves_of(getattr(result, name))
      if not np.isfinite(numbers(u)).all()
  ]


def check_eager(case):
  """Without `jax.jit` results are the same; `jax.eval_shape` predicts types."""
  if case.causal:
    name, call, x = 'step', case.layer.step, case.x[:, 0]
    args, token = (case.carry, x), 0
  else:
    name, call, x = 'call', case.layer, case.x
    args, token = (x, case.carry), slice(None)
  announced = jax.eval_shape(call, *args)
  got = call(*args)
  types = lambda tree: jax.tree.map(lambda u: (u.shape, u.dtype), tree)
  if types(announced) != types(got):
    return [wrong(f'{name} {types(got)}, announced {types(announced)}')]
  want = case.run(cases.whole).y[:, token]
  return differences(f'{name}: outputs', got[1], want, case.compute_dtype)


def check_grad(case):
  """Gradients agree with finite differences in parameters, inputs and carry."""
  at = jax.device_get((case.params, case.x, cases.floating_leaves(case.carry)))
  leaves, structure = jax.tree.flatten(at)
  dtypes = [case.compute_dtype, *(u.dtype for u in leaves)]
  if min(jnp.finfo(dtype).bits for dtype in dtypes) < 32:
    return []  # Rounding errors would be larger than the differences.
  direction = jax.tree.unflatten(structure, [
      case.draw(f'direction {i}', u.shape, u.dtype)
      for i, u in enumerate(leaves)
  ])
  result = case.run(cases.whole)
  gradient = result.d_parameters, result.d_x, result.d_carry
  parts = np.concatenate([
      (numbers(u) * numbers(v)).real.ravel()
      for u, v in zip(jax.tree.leaves(gradient), jax.tree.leaves(direction))
  ])
  # Errors of the difference: a third derivative, rounding, and kinks.
  size, tolerance = (3e-4, 3e-2) if case.dtype == jnp.float32 else (1e-5, 1e-5)
  ends = []
  for sign in (1, -1):
    params, x, carry = jax.tree.map(
        lambda u, v: (u + sign * size * v).astype(u.dtype), at, direction
    )
    carry = cases.refilled(case.carry, carry)
    end = case.run(cases.whole, x=x, params=params, carry=carry)
    ends.append((end.y, *cases.floating_leaves(end.carry)))
  rise = sum(
      ((numbers(a) - numbers(b)) * numbers(w)).real.sum()
      for a, b, w in zip(*ends, (case.d_y, *case.d_carry))
  )
  error = abs(rise / (2 * size) - parts.sum()) / np.linalg.norm(parts)
  return [Problem('slope', error, tolerance)] if not error < tolerance else []


def check_export(case):
  """`jax.export` of `step` works for every platform, through bytes."""
  graph, state = nnx.split(case.layer)
  leaves, structure = jax.tree.flatten((state, case.carry))

  def step(leaves, x):
    state, carry = jax.tree.unflatten(structure, leaves)
    carry, y = nnx.merge(graph, state).step(carry, x)
    return jax.tree.leaves(carry), y

  exported = jax.export.export(jax.jit(step), platforms=_PLATFORMS)(
      leaves, case.x[:, 0]
  )
  if importlib.util.find_spec('flatbuffers'):  # An optional dependency.
    exported = jax.export.deserialize(exported.serialize())
  serve = jax.jit(exported.call, compiler_options=cases.quick_options())
  fixed = leaves[: len(leaves) - len(jax.tree.leaves(case.carry))]
  carry, ys = jax.tree.leaves(case.carry), []
  for t in range(cases.TIME):
    carry, y = serve(fixed + carry, case.x[:, t])
    ys.append(y)
  want = case.run(cases.whole)
  return differences(
      'outputs', np.stack(ys, axis=1), want.y, case.compute_dtype
  ) + differences(
      'final carry', carry, jax.tree.leaves(want.carry), case.compute_dtype
  )


def check_dtypes(case):
  """Outputs have the compute dtype, states float32 at least."""
  dtypes = ['float32', 'bfloat16']
  dtypes += ['float64'] if jax.config.values['jax_enable_x64'] else []
  problems = []
  for dtype in dtypes:
    compute = jnp.dtype(case.layer.dtype or dtype)
    x = jax.ShapeDtypeStruct(case.x.shape, dtype)
    calls = {'call': jax.eval_shape(case.layer, x)}
    if case.causal:
      carry = calls['call'][0]
      calls['step'] = jax.eval_shape(
          case.layer.step,
          carry,
          jax.ShapeDtypeStruct(x.shape[:1] + x.shape[2:], dtype),
      )
    initial = jax.eval_shape(
        lambda: case.layer.initialize_carry(cases.BATCH, compute)
    )
    calls['initialize_carry'] = initial, None
    for name, (carry, y) in calls.items():
      if y is not None and y.dtype != compute:
        problems.append(wrong(f'{name}: {dtype} in, {y.dtype} out'))
      problems += [
          wrong(f'{name}: carry{path_of(path)} {u.dtype} for {dtype}')
          for path, u in leaves_of(carry)
          if not _is_state(u, compute, may_be_tail=(
              len(leaves_of(carry)) > 1 or bool(case.layer.carry_tails)
          ))
      ]
  return problems


def _is_state(u, compute, may_be_tail):
  """Whether the dtype of a leaf of a carry is one the contract allows.

  States are float32 at least. Tails of convolutions and caches, which have a
  time axis of their own, keep the compute dtype; integers and bools may be. An
  array that is the whole carry is a state, unless the layer names it a tail.
  """
  if not is_floating(u):
    return True
  if jnp.finfo(u.dtype).dtype == base.state_dtype(compute):
    return True
  return u.dtype == compute and len(u.shape) > 2 and may_be_tail


def check_shapes(case):
  """Sizes are those of the attributes; a carry has one shape, batch first."""
  layer, problems = case.layer, []
  types = lambda tree: jax.tree.map(lambda u: (u.shape, u.dtype), tree)
  for batch, time in ((0, 1), (1, 5), (cases.BATCH, 0)):
    want = jax.eval_shape(
        lambda: layer.initialize_carry(batch, case.compute_dtype)
    )
    for path, u in leaves_of(want):
      if u.shape[:1] != (batch,):
        problems.append(wrong(
            f'carry{path_of(path)} {u.shape} for B = {batch}'
        ))
    if len(leaves_of(want)) > 1 and not hasattr(want, '_fields'):
      problems.append(wrong('a carry of several arrays is a NamedTuple'))
    carry, y = jax.eval_shape(layer, case.x[:batch, :time])
    if types(carry) != types(want):
      problems.append(wrong(f'carry {types(carry)}, want {types(want)}'))
    if y.shape != (batch, time, *base.output_shape(layer)):
      problems.append(wrong(f'outputs {y.shape} for B, T = {batch}, {time}'))
  return problems


def check_donation(case):
  """Carry and parameters can be donated: no two arrays share a buffer."""
  return [wrong(what) for what in case.not_donated]


def check_errors(case):
  """Wrong arguments raise `ValueError`."""
  layer, x, carry = case.layer, case.x, case.carry
  flag = np.zeros(x.shape[:2], bool)
  step = (carry, x[:, 0])
  calls = {
      'x that is None': lambda: layer(None),
      'x that is a number': lambda: layer(1.0),
      'x of rank 2': lambda: layer(x[0]),
      'x of another size': lambda: layer(x[..., 1:]),
      'integer x': lambda: layer(x.astype(np.int32)),
      'carry of another batch': lambda: layer(
          x, jax.tree.map(lambda u: u[1:], carry)
      ),
      'carry of another dtype': lambda: layer(
          x, jax.tree.map(lambda u: u.real.astype(jnp.float16), carry)
      ),
      'carry of another structure': lambda: layer(x, {'carry': carry}),
      'carry that is a list': lambda: layer(x, [carry]),
      'carry that is a number': lambda: layer(x, 1.0),
      'reset that is True': lambda: layer(x, reset=True),
      'mask that is True': lambda: layer(x, mask=True),
      'reset of another length': lambda: layer(x, reset=flag[:, 1:]),
      'integer reset': lambda: layer(x, reset=flag.astype(int)),
      'mask of another length': lambda: layer(x, mask=flag[:, 1:]),
      'integer mask': lambda: layer(x, mask=flag.astype(int)),
  }
  if case.causal:
    calls |= {
        'step: x of rank 3': lambda: layer.step(carry, x),
        'step: x of another size': lambda: layer.step(carry, x[:, 0, 1:]),
        'step: reset of rank 2': lambda: layer.step(*step, reset=flag),
        'step: mask of rank 2': lambda: layer.step(*step, mask=flag),
    }
  else:
    calls |= {'step of a non-causal layer': lambda: layer.step(*step)}
  problems = []
  for name, call in calls.items():
    try:
      jax.eval_shape(call)
      problems.append(wrong(f'{name}: no error'))
    except ValueError:
      pass
    except Exception as error:  # pylint: disable=broad-except
      problems.append(wrong(f'{name}: {type(error).__name__}'))
  return problems
