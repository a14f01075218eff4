"""Checks that all ways to run a sequence give the same numbers."""


import jax
import jax.export
import numpy as np
from rnnzoo.testing import cases
from rnnzoo.testing.comparing import differences
from rnnzoo.testing.comparing import is_floating
from rnnzoo.testing.comparing import zero

_SHAPE = cases.BATCH, cases.TIME  # The shape of a flag.


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
