"""The recurrence on TPU: each array is read or written once.

A Pallas (Mosaic) kernel walks over time in blocks, one row of the batch and one
block of features at a time. The state stays on chip. Inside a block, it goes
from one native tile of the chip to the next: 8 steps by 128 lanes, or 16 steps
if an array is bfloat16. The steps of a tile lie on the sublanes of vector
registers, so 3 (or 4) shifted multiply-adds compose each step with all those
before it, and one more brings in the state:

    h = A * state + X,     A = a_1 ... a_t,     X = the scan of x from 0

All arithmetic is float32. A complex array is two real ones, split and joined
outside the kernel. Flags are the bits of one integer per tile, in scalar
memory; as `[B, T, 1]` arrays they would be padded to as many bytes as `x`. If T
is not a multiple of the block, the rows beyond T hold arbitrary values. They
become `a = 1, x = 0` by selection, as masked steps do. Lanes beyond D never mix
with others. So no operand is ever padded or copied.

The kernel should be bound by memory. This is from the compiled code; no TPU has
run it. A float32 tile of 8 by 512 takes 36 instruction bundles forward and 51
backward on a v5e, while its arrays need about 90 and 150 cycles to arrive. A
bfloat16 tile of 16 by 512, which is as large, takes 73 and 101. Only bfloat16
with flags and fused gates computes for longer (minGRU with both: 179 and 242).

`tpu_blocks.py` cuts arrays into blocks, and `tpu_tiles.py` computes on tiles.
"""

import functools

import jax
from jax.experimental import pallas as pl
import jax.numpy as jnp
from rnnzoo.ops.linear_scan import backend
from rnnzoo.ops.linear_scan import complex_parts
from rnnzoo.ops.linear_scan import gates
from rnnzoo.ops.linear_scan import tpu_blocks
from rnnzoo.ops.linear_scan import tpu_tiles

_DTYPES = (jnp.float32, jnp.bfloat16, jnp.complex64)

# The primitives that a gate and its derivative may consist of. All of these
# compile on the oldest and the newest jax; expm1, sign, erf and cbrt do not.
_PRIMITIVES = frozenset("""
    abs add add_any and broadcast_in_dim clamp convert_element_type cos
    custom_jvp_call custom_vjp_call div eq exp exp2 ge gt integer_pow is_finite
    jit le log log1p logistic lt max min mul ne neg not one_minus_square or pow
    rsqrt select_n sin sqrt square stop_gradient sub tanh xor
""".split())

interpreted = tpu_blocks.interpreted


def scan(inputs, h0, reset, mask, *, gate, reverse, decay_after):
  """Returns `(last, h)`; see `backend.py`."""
  sweep = tpu_blocks.plan_sweep(
      inputs, inputs[-1:], reset, mask, gate, backwards=reverse
  )
  operands = tpu_blocks.shared_operands(sweep, inputs, reset, mask, h0=h0)
  x = complex_parts.split(inputs[-1])
  results = dict(
      last=sweep.rows_of_batch(len(x)),
      h=tuple(
          tpu_blocks.Operand(
              sweep.wide(), jax.ShapeDtypeStruct(u.shape, u.dtype)
          )
          for u in x
      ),
  )
  kernel = functools.partial(_scan_kernel, sweep, decay_after)
  out = tpu_blocks.launch(
      kernel, sweep, operands, results, scratch=len(x), name='scan'
  )
  return _row(out['last']), complex_parts.join(out['h'])


def summary(inputs, reset, mask, *, gate, reverse, decay_after):
  """Returns `(product, last)`; see `backend.py`."""
  sweep = tpu_blocks.plan_sweep(
      inputs, (), reset, mask, gate, backwards=reverse
  )
  operands = tpu_blocks.shared_operands(sweep, inputs, reset, mask)
  n = len(complex_parts.split(inputs[-1]))
  m = len(complex_parts.split(inputs[0])) if gate is gates.linear else 1
  results = dict(
      product=sweep.rows_of_batch(m), last=sweep.rows_of_batch(n)
  )
  kernel = functools.partial(_summary_kernel, sweep, decay_after)
  out = tpu_blocks.launch(
      kernel, sweep, operands, results, scratch=m + n, name='summary'
  )
  product = _row(out['product'])
  last = _row(out['last'])
  return product.astype(last.dtype), last


def gradient(inputs, h, h0, reset, mask, dlast, dh, *, gate, reverse):
  """Returns `(dinputs, dh0)` in one pass; see `backend.py`.

  The gradient of an input `[B, T, D]` has the dtype of the input. That of an
  input that is constant in time is `[B, 1, D]`. That of an input with one
  feature is `[B, T, n]`, a sum for each block of features. Both are float32.
  """
  sweep = tpu_blocks.plan_sweep(
      inputs, (h, dh, *inputs), reset, mask, gate, backwards=not reverse
  )
  operands = tpu_blocks.shared_operands(
      sweep, inputs, reset, mask, h0=h0, dlast=dlast
  )
  wide = sweep.wide()
  for name, u in (('h', h), ('dh', dh)):
    operands[name] = tuple(
        tpu_blocks.Operand(wide, v) for v in complex_parts.split(u)
    )
  operands['beside'] = tuple(
      tpu_blocks.Operand(sweep.beside(), v) for v in complex_parts.split(h)
  )
  results = dict(
      dinputs=tuple(
          tuple(sweep.gradient_of(kind, v) for v in complex_parts.split(u))
          for kind, u in zip(sweep.kinds, inputs)
      ),
      dh0=sweep.rows_of_batch(len(complex_parts.split(h0))),
  )
  kernel = functools.partial(_gradient_kernel, sweep)
  out = tpu_blocks.launch(
      kernel, sweep, operands, results, scratch=len(results['dh0']),
      name='gradient',
  )
  dinputs = []
  for kind, parts in zip(sweep.kinds, out['dinputs']):
    u = complex_parts.join(parts)
    dinputs.append(sweep.columns(u) if kind == 'column' else u)
  return tuple(dinputs), _row(out['dh0'])


def supports(inputs, h0, reset, mask, *, gate, decay_after) -> str | None:
  """Returns why the kernels cannot take these inputs, or None if they can."""
  del h0, reset, mask, decay_after
  for i, u in enumerate(inputs):
    if u.dtype not in _DTYPES:
      return (
          f'input {i} is {u.dtype}; the TPU kernel takes float32, bfloat16 and '
          'complex64.'
      )
  if any(jnp.iscomplexobj(u) for u in inputs):
    if gate is not gates.linear:
      return 'the TPU kernel takes complex inputs only without a fused gate.'
    if not jnp.iscomplexobj(inputs[-1]):
      return 'the TPU kernel takes complex `a` only with complex `x`.'
  unknown = _primitives(gate, len(inputs)) - _PRIMITIVES
  if unknown:
    return f'the TPU kernel cannot compute {sorted(unknown)} inside the gate.'
  return None


@functools.lru_cache(maxsize=256)
def _primitives(gate, n):
  """The names of the primitives in a gate and in its derivative."""
  one = jax.ShapeDtypeStruct((8, tpu_blocks.LANES), jnp.float32)
  flag = jax.ShapeDtypeStruct((8, tpu_blocks.LANES), jnp.bool_)

  def both(start, *inputs):
    out, vjp = jax.vjp(functools.partial(gate, start), *inputs)
    return out, vjp(out)

  traced = jax.make_jaxpr(both)(flag, *(one,) * n)
  names = {'a captured array'} if traced.consts else set()
  unread = [traced.jaxpr]
  while unread:
    for equation in unread.pop().eqns:
      names.add(equation.primitive.name)
      unread += [u for u in equation.params.values() if hasattr(u, 'eqns')]
  return names


# --- Inside the kernels ------------------------------------------------------


def _scan_kernel(sweep, decay_after, refs, out, *carry):
  t = pl.program_id(2)

  @pl.when(t == 0)
  def _():
    tpu_tiles.store(carry, tpu_tiles.load(refs['h0']))

  block = tpu_tiles.Block(sweep, refs, t)

  def step(i, state):
    tile = block.tile(i)
    a, x = tpu_tiles.elements(sweep, tile, decay_after)
    if decay_after:
      state, h = tpu_tiles.decayed_after(sweep, tile, a, x, state)
    else:
      product, x = tpu_tiles.composed(sweep, tile, a, x)
      h = tpu_tiles.entered(tile, product, x, state)
      state = tpu_tiles.final(sweep, h)
    tpu_tiles.store(out['h'], h, tile.rows)
    return state

  state = tpu_tiles.for_each_tile(sweep, step, tpu_tiles.load(carry))
  tpu_tiles.store(carry, state)

  @pl.when(t == sweep.time_blocks - 1)
  def _():
    tpu_tiles.store(out['last'], state)


def _summary_kernel(sweep, decay_after, refs, out, *carry):
  t = pl.program_id(2)
  m = len(out['product'])

  @pl.when(t == 0)
  def _():
    for i, ref in enumerate(carry):
      ref[...] = jnp.full_like(ref, 1 if i == 0 else 0)

  block = tpu_tiles.Block(sweep, refs, t)

  def step(i, state):
    before, last = state
    tile = block.tile(i)
    a, x = tpu_tiles.elements(sweep, tile, decay_after)
    if decay_after:
      x = tpu_tiles.zero_where(tile.start, complex_parts.multiply(a, x))
    product, x = tpu_tiles.composed(sweep, tile, a, x)
    last = tpu_tiles.final(sweep, tpu_tiles.entered(tile, product, x, last))
    zero = tuple(jnp.zeros_like(u) for u in product)
    before = tpu_tiles.entered(tile, product, zero, before)
    return tpu_tiles.final(sweep, before), last

  state = tpu_tiles.load(carry)
  state = tpu_tiles.for_each_tile(sweep, step, (state[:m], state[m:]))
  tpu_tiles.store(carry, sum(state, ()))

  @pl.when(t == sweep.time_blocks - 1)
  def _():
    tpu_tiles.store(out['product'], state[0])
    tpu_tiles.store(out['last'], state[1])


def _gradient_kernel(sweep, refs, out, *carry):
  t = pl.program_id(2)
  dinputs = out['dinputs']

  @pl.when(t == 0)
  def _():
    tpu_tiles.store(carry, tpu_tiles.load(refs['dlast']))
    for kind, parts in zip(sweep.kinds, dinputs):
      if kind == 'row':
        tpu_tiles.store(parts, tuple(jnp.zeros_like(ref) for ref in parts))

  for kind, parts in zip(sweep.kinds, dinputs):
    if kind == 'column':
      tpu_tiles.store(parts, tuple(jnp.zeros_like(ref) for ref in parts))

  block = tpu_tiles.Block(sweep, refs, t)
  h0 = tpu_tiles.load(refs['h0'])

  def step(i, state):
    state, sums = state
    tile = block.tile(i)
    # Values beyond T are arbitrary, and would be added to those before.
    dh = tpu_tiles.load(refs['dh'], tile.rows)
    dh = tpu_tiles.zero_unless(tile.inside, dh)
    a, pull_back = tpu_tiles.linearized(sweep, tile)
    state, dx = tpu_tiles.decayed_after(sweep, tile, a, dh, state)
    da = complex_parts.multiply(dx, block.before(tile, h0))
    da = tpu_tiles.zero_where(tile.start, da)
    new = []
    for kind, parts, ref, total in zip(
        sweep.kinds, pull_back(da, dx), dinputs, sums
    ):
      parts = tpu_tiles.zero_unless(tile.live, parts)
      if kind == 'wide':
        tpu_tiles.store(ref, parts, tile.rows)
      elif kind == 'row':
        total = complex_parts.add(total, parts)
      else:
        for column, part in zip(ref, parts):
          block.add_to_column(column, tile, part)
      new.append(total)
    return state, tuple(new)

  zero = jnp.zeros((sweep.tile, sweep.block_features), jnp.float32)
  sums = tuple(
      (zero,) * len(parts) if kind == 'row' else ()
      for kind, parts in zip(sweep.kinds, dinputs)
  )
  state = tpu_tiles.load(carry)
  state, sums = tpu_tiles.for_each_tile(sweep, step, (state, sums))
  tpu_tiles.store(carry, state)
  for total, parts in zip(sums, dinputs):
    for u, ref in zip(total, parts):
      ref[...] += u.sum(0, keepdims=True)

  @pl.when(t == sweep.time_blocks - 1)
  def _():
    tpu_tiles.store(out['dh0'], state)


def _row(parts):
  """`[B, 1, D]` parts as one array `[B, D]`."""
  return complex_parts.join(parts)[:, 0]


BACKEND = backend.Backend(scan, summary, gradient, supports)
