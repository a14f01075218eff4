"""The promises of a layer, one function for each: from a case to problems."""

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
from rnnzoo.testing.comparing import zero

_SHAPE = cases.BATCH, cases.TIME  # The shape of a flag.


def check_steps(case):
  """One call equals a scan of `step`, with and without flags."""
  nothing = np.zeros(_SHAPE, bool)
  want = case.run(cases.plain_steps, nothing, ~nothing)
  problems = _compare(case, 'call', case.run(cases.whole), want)
  reset, mask = case.flag('reset', 0.3), case.flag('mask', 0.7)
  x = _with_nan(case.x, ~mask)
  want = case.run(cases.plain_steps, reset, mask, x=x)
  for name, form in (('call', cases.whole), ('step', cases.steps)):
    got = case.run(form, reset, mask, x=x)
    problems += _compare(case, f'{name} with flags', got, want)
  return problems


def check_chunks(case):
  """A whole sequence equals its chunks, run one after the other."""
  reset, present = case.flag('reset', 0.3), np.ones(_SHAPE, bool)
  want = case.run(cases.whole, reset, present)
  return _compare(case, 'chunks', case.run(cases.chunks, reset), want)


def check_reset(case):
  """A packed row equals separate runs, even after a NaN."""
  p = np.arange(cases.TIME).reshape(-1, cases.PIECE)
  index, used, reset, present = _layout(
      [[p[0], p[1], p[2]], [None, p[0], p[1], p[2]], [p[0], p[1], p[2]]]
  )
  return _against_separate(case, 'packed', index, used, reset, present) + [
      problem
      for piece in ([0] if case.causal else [0, 2])
      for problem in _against_separate(
          case, f'NaN in sequence {piece}', index, used, reset, present,
          poisoned=p[piece],
      )
  ]


def check_mask(case):
  """Masked steps have no effect, whatever they contain."""
  p = np.arange(cases.TIME)
  inner = np.sort(np.random.default_rng(0).permutation(p)[:cases.PIECE])
  noise = case.flag('noise', 0.5)
  problems = []
  for name, slots in (
      ('padding', [[p[-cases.PIECE:]], [p[:cases.PIECE]], [inner]]),
      ('packed, padding', [[p[2:6], p[7:11]], [None, p[1:8:2], p[8:]], []]),
  ):
    index, used, reset, mask = _layout(slots)
    problems += _against_separate(
        case, name, index, used, reset | (noise & ~mask), mask
    )
  return problems


def check_causality(case):
  """Outputs do not depend on later inputs; gradients say the same."""
  past = np.arange(cases.TIME) < cases.TIME // 2
  d_y = case.d_y * _beside(past, case.d_y)
  d_carry = jax.tree.map(np.zeros_like, case.d_carry)
  x = np.where(_beside(past, case.x), case.x, -case.x)
  want = case.run(cases.whole, d_y=d_y, d_carry=d_carry)
  got = case.run(cases.whole, d_y=d_y, d_carry=d_carry, x=x)
  problems = _compare(
      case, 'other later inputs', got, want, at=past, carry=False
  )
  # Not exactly zero, because a Fourier transform has rounding errors
  # everywhere.
  want = np.where(_beside(past, got.d_x), got.d_x, 0)
  return problems + differences(
      'gradient of later inputs', got.d_x, want, case.compute_dtype
  )


def check_batch(case):
  """A row does not depend on the others."""
  first = lambda u: u[:1]
  other = lambda u: np.concatenate([u[:1], u[:0:-1]])
  sign = np.where(np.arange(cases.BATCH) > 0, -1, 1)[:, None]
  x = other(case.x) * _beside(sign, case.x)
  want, got = case.run(cases.whole), case.run(
      cases.whole, x=x.astype(case.dtype), carry=jax.tree.map(other, case.carry)
  )
  return [
      problem
      for name in ('y', 'carry', 'd_x', 'd_carry')
      for problem in differences(
          f'{name} of row 0',
          jax.tree.map(first, getattr(got, name)),
          jax.tree.map(first, getattr(want, name)),
          case.compute_dtype,
      )
  ]


def check_transforms(case):
  """`jax.vmap` and `jax.shard_map` give the same numbers as `jax.jit`."""
  reset, mask = case.flag('reset', 0.3), case.flag('mask', 0.7)
  want = case.run(cases.whole, reset, mask)
  return [
      problem
      for name, form in (('vmap', cases.vmapped), ('shard_map', cases.sharded))
      for problem in _compare(case, name, case.run(form, reset, mask), want)
  ]


def check_segments(case):
  """Split over time, on several devices, the numbers are the same."""
  reset, mask = case.flag('reset', 0.3), case.flag('mask', 0.7)
  want = case.run(cases.whole, reset, mask)
  count = max(n for n in (4, 3, 2, 1) if n <= jax.device_count())
  mesh = jax.make_mesh(
      (count,), ('sequence',), axis_types=(jax.sharding.AxisType.Auto,),
      devices=jax.devices()[:count],
  )
  with jax.set_mesh(mesh):
    got = case.run(cases.in_segments, reset, mask)
  return _compare(case, f'{count} segments of time', got, want)


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


def check_dtypes(case):
  """Outputs have the compute dtype, states float32 at least."""
  dtypes = ['float32', 'bfloat16']
  dtypes += ['float64'] if jax.config.jax_enable_x64 else []
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
          if not _is_state(u, compute, alone=len(leaves_of(carry)) == 1)
      ]
  return problems


def check_shapes(case):
  """Sizes are those of the attributes; a carry has one shape, batch first."""
  layer, problems = case.layer, []
  types = lambda tree: jax.tree.map(lambda u: (u.shape, u.dtype), tree)
  for batch in (0, 1, cases.BATCH):
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
    for time in (0, 1, 5):
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


# The most informative checks come first.
CHECKS = dict(
    causality=check_causality,
    steps=check_steps,
    chunks=check_chunks,
    reset=check_reset,
    mask=check_mask,
    batch=check_batch,
    lengths=check_lengths,
    grad=check_grad,
    shapes=check_shapes,
    dtypes=check_dtypes,
    errors=check_errors,
    donation=check_donation,
    transforms=check_transforms,
    segments=check_segments,
    eager=check_eager,
    export=check_export,
    long=check_long,
)

FORMER_NAMES = dict(stretches='segments')

NUMERIC = ('steps', 'chunks', 'reset', 'mask')  # Run for every dtype.

CAUSAL_ONLY = ('steps', 'chunks', 'causality', 'export')

_PLATFORMS = ('cpu', 'cuda', 'rocm', 'tpu')


def _layout(rows):
  """Says where sequences lie.

  Args:
    rows: For each row, up to `_SLOTS` arrays of `_PIECE` positions, or `None`;
      that in slot 0 goes on from the given carry, the others start a sequence.

  Returns:
    `(index, used, reset, mask)`: the first two for `separate`, `[B, S, L]` and
    `[B, S]`, and the flags for a packed row, `[B, T]`.
  """
  index = np.zeros((cases.BATCH, cases.SLOTS, cases.PIECE), int)
  used = np.zeros((cases.BATCH, cases.SLOTS), bool)
  reset, mask = np.zeros((2, cases.BATCH, cases.TIME), bool)
  for row, slots in enumerate(rows):
    for slot, positions in enumerate(slots):
      if positions is not None:
        index[row, slot], used[row, slot] = positions, True
        mask[row, positions] = True
        reset[row, positions[0]] = slot > 0
  return index, used, reset, mask


def _against_separate(case, name, index, used, reset, mask, poisoned=None):
  """Compares packed rows with runs of their sequences, NaN wherever it may be.

  Args:
    case: The case.
    name: What to call it.
    index: Where sequences lie.
    used: Which there are.
    reset: Their starts.
    mask: Their tokens.
    poisoned: Positions of a sequence full of NaN, not to be compared.

  Returns:
    The problems.
  """
  x = _with_nan(case.x, ~mask)
  given, d_carry, at = case.carry, case.d_carry, np.ones(cases.TIME, bool)
  # In and out of a non-causal layer, the carry belongs to the first sequence of
  # a row and to its last: with one sequence a row it can be compared.
  carry = case.causal or used.sum(1).max() <= 1
  if not carry:
    given = case.initial
    d_carry = jax.tree.map(np.zeros_like, case.d_carry)
  if poisoned is not None:
    at[poisoned] = False
    x = _with_nan(x, ~at)
    if carry:
      nan = lambda u: np.full_like(u, np.nan) if is_floating(u) else u
      given = jax.tree.map(nan, case.carry)
  want = case.run(
      cases.separate, index, used, x=x, carry=given, d_carry=d_carry
  )
  got = case.run(cases.whole, reset, mask, x=x, carry=given, d_carry=d_carry)
  problems = _compare(
      case, name, got, want, at=at, carry=carry, parameters=poisoned is None
  )
  if poisoned is None:
    problems += zero(f'{name}: outputs of absent steps', got.y[~mask])
    problems += zero(f'{name}: gradient of absent steps', got.d_x[~mask])
  return problems


def _compare(case, name, got, want, *, at=None, carry=True, parameters=True):
  """The differences of two results, at the positions `at` `[T]` if given."""
  at = slice(None) if at is None else at
  pairs = {
      'outputs': (got.y[:, at], want.y[:, at]),
      'gradient of x': (got.d_x[:, at], want.d_x[:, at]),
  }
  if carry:
    pairs['final carry'] = got.carry, want.carry
    pairs['gradient of carry'] = got.d_carry, want.d_carry
  if parameters:
    pairs['gradient of'] = got.d_parameters, want.d_parameters
  return [
      problem
      for what, (g, w) in pairs.items()
      for problem in differences(f'{name}: {what}', g, w, case.compute_dtype)
  ]


def _with_nan(x, where):
  """`x` `[B, T, D]` with NaN at the positions `where` `[B|1, T]` or `[T]`."""
  return np.where(_beside(where, x), np.asarray(np.nan, x.dtype), x)


def _beside(flag, u):
  """`flag` `[B|1, T|1]` or `[T]` with the axes of a token of `u` beside."""
  return flag.reshape(flag.shape + (1,) * (u.ndim - 2))


def _is_state(u, compute, alone):
  """Whether the dtype of a leaf of a carry is one the contract allows.

  States are float32 at least. Tails of convolutions and caches, which have a
  time axis of their own, keep the compute dtype; integers and bools may be.
  """
  if not is_floating(u):
    return True
  if jnp.finfo(u.dtype).dtype == base.state_dtype(compute):
    return True
  return u.dtype == compute and len(u.shape) > 2 and not alone
