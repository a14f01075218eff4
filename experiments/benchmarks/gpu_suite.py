r"""Checks every GPU kernel against float64, then measures all of them.

  python -m experiments.benchmarks.gpu_suite \
      --out=experiments/results/gpu_suite_h200.json

The checks compare every variant, forwards and backwards, with a plain loop in
float64. If all are right, the timings follow: the scans and the fused gates, in
float32 and bfloat16, interleaved with `jax.lax.associative_scan`, with the
gates alone, and with a copy whose bandwidth is the measure for all others. All
takes less than 8 minutes on an H200. JSON is written after each part; the end
prints a table and whatever misses its target. The exit code is 1 if a value is
wrong.

Without a GPU, `--interpret` runs the same checks on a CPU, with small shapes
and very slowly, and leaves out the timings.
"""

import functools
import itertools
import sys
import time
from typing import NamedTuple

from absl import app
from absl import flags
from experiments.benchmarks import baselines
from experiments.benchmarks import timing
from experiments.cli import drivers
import jax
import jax.numpy as jnp
import numpy as np
from rnnzoo import ops
from rnnzoo.layers import min_gru
from rnnzoo.layers import min_lstm
from rnnzoo.layers import rg_lru
from rnnzoo.ops.linear_scan import pallas_gpu

_INTERPRET = flags.DEFINE_bool(
    'interpret', False, 'Check the kernels on a CPU, by interpreting them.'
)
_ONLY = flags.DEFINE_string(
    'only', '', 'Check only the variants with this in their name.'
)
_REPEATS = flags.DEFINE_integer(
    'repeats', 7,
    'The number of times that each timing is repeated.', lower_bound=1,
)
_SHAPES = flags.DEFINE_multi_string(
    'shapes', ['16,2048,2048', '32,1024,512', '8,4096,256', '1,65536,64'],
    'A shape as batch,time,features.',
)
_OUT = drivers.define_path(
    'out', 'experiments/results/gpu_suite.json', 'The JSON file of the results.'
)

_KERNEL = 'pallas_gpu'
_COLUMNS = {
    'op': '{op}',
    'direction': '{direction}',
    'shape': '{shape}',
    'dtype': '{dtype}',
    'ms': '{ms:.3f}',
    'GB/s': '{gb_per_second:.0f}',
    'of copy': '{of_copy:.2f}',
    'x associative': '{speedup:.1f}',
    'x gates apart': '{over_apart}',
    'compile s': '{compile_seconds:.1f}',
}
# The aimed parts of the bandwidth of a copy.
_AIMS = {
    ('16x2048x2048', 'forward'): 0.85,
    ('16x2048x2048', 'backward'): 0.80,
    ('8x4096x256', 'forward'): 0.45,
}


class Variant(NamedTuple):
  """One call that is checked."""

  gate: str | None  # None: `linear_scan`.
  dtype: str = 'float32'
  reverse: bool = False
  flags: str = ''  # `r` for reset, `m` for mask.
  constant: bool = False  # Whether `a` does not change over time.
  shape: tuple[int, int, int] = (2, 300, 256)

  def __str__(self):
    words = [self.gate or 'linear', self.dtype, 'x'.join(map(str, self.shape))]
    words += ['reverse'] * self.reverse + ['constant'] * self.constant
    return ' '.join(words + ['reset'] * ('r' in self.flags)
                    + ['mask'] * ('m' in self.flags))


_GATES = dict(
    min_gru=(min_gru.min_gru_gate(), 2),
    min_lstm=(min_lstm.min_lstm_gate(), 3),
    rg_lru=(rg_lru.rg_lru_gate, 3),
)


def variants(small: bool) -> list[Variant]:
  """Returns all variants: two kinds of kernels, lengths with a remainder."""
  streaming = (2, 70, 128) if small else (64, 501, 256)
  chunked = (1, 200, 128) if small else (2, 5003, 320)
  checked = [
      Variant(None, dtype, reverse, flags_, shape=shape)
      for dtype, shape, reverse, flags_ in itertools.product(
          ('float32', 'bfloat16', 'complex64'), (streaming, chunked),
          (False, True), ('', 'r'),
      )
  ]
  checked += [
      Variant(None, dtype, constant=True, shape=shape)
      for dtype in ('float32', 'complex64') for shape in (streaming, chunked)
  ]
  checked += [
      Variant(gate, dtype, False, flags_, shape=shape)
      for gate, dtype, flags_, shape in itertools.product(
          _GATES, ('float32', 'bfloat16'), ('', 'rm'), (streaming, chunked)
      )
  ]
  return checked


def operands(variant):
  """Returns the inputs, `h0`, `reset` and `mask` of a variant."""
  rng = np.random.default_rng(0)
  batch, length, features = shape = variant.shape

  def normal(shape):
    value = rng.standard_normal(shape)
    if variant.dtype == 'complex64':
      value = value + 1j * rng.standard_normal(shape)
    return jnp.asarray(value, variant.dtype)

  if variant.gate is None:
    a = rng.uniform(0.8, 1, (1, 1, features) if variant.constant else shape)
    if variant.dtype == 'complex64':
      a = a * np.exp(1j * rng.uniform(0, 6, a.shape))
    inputs = jnp.asarray(a, variant.dtype), normal(shape)
  else:
    inputs = [normal(shape) for _ in range(_GATES[variant.gate][1])]
    if variant.gate == 'rg_lru':
      rate = rng.uniform(0.01, 1, (1, 1, features))
      inputs = [jnp.asarray(rate, jnp.float32), *inputs]
  kind = 'complex64' if variant.dtype == 'complex64' else 'float32'
  h0 = normal((batch, features)).astype(kind)
  reset = mask = None
  if 'r' in variant.flags:
    reset = jnp.asarray(rng.random((batch, length)) < 0.05)
  if 'm' in variant.flags:
    mask = jnp.asarray(rng.random((batch, length)) < 0.9)
  return tuple(inputs), h0, reset, mask


def scan_and_gradients(variant, reset, mask):
  """Returns a function of inputs, `h0` and cotangents."""

  def scan(*u):
    options = dict(reverse=variant.reverse, reset=reset)
    if variant.gate is None:
      return ops.linear_scan(*u, **options)
    gate = _GATES[variant.gate][0]
    return ops.gated_scan(gate, u[:-1], u[-1], mask=mask, **options)

  def run(u, cotangents):
    results, vjp = jax.vjp(scan, *u)
    return results, vjp(cotangents)

  return run


def check(variant) -> dict[str, float | str]:
  """Returns the errors of a variant, relative to the largest value of each."""
  inputs, h0, reset, mask = operands(variant)
  run = scan_and_gradients(variant, reset, mask)
  rng = np.random.default_rng(1)
  weights = rng.standard_normal(h0.shape), rng.standard_normal(variant.shape)
  in_dtypes = lambda *dtypes: tuple(
      jnp.asarray(w, d) for w, d in zip(weights, dtypes)
  )
  with ops.implementation(_KERNEL):
    got = jax.jit(run)((*inputs, h0), in_dtypes(h0.dtype, inputs[-1].dtype))
  wide = jnp.complex128 if variant.dtype == 'complex64' else jnp.float64
  with jax.enable_x64(True), ops.implementation('reference'):
    exact = [
        jnp.asarray(np.asarray(u).astype(np.complex128 if jnp.iscomplexobj(u)
                                         else np.float64))
        for u in (*inputs, h0)
    ]
    want = jax.jit(run)(tuple(exact), in_dtypes(wide, wide))
  errors = {}
  names = ['h_last', 'h', *(f'd_{i}' for i in range(len(inputs))), 'd_h0']
  for name, g, w in zip(names, jax.tree.leaves(got), jax.tree.leaves(want)):
    w = np.asarray(w)
    off = np.abs(np.asarray(g).astype(w.dtype) - w).max()
    errors[name] = float(off / np.abs(w).max())
  bound = 2e-2 if variant.dtype == 'bfloat16' else 2e-5
  worst = max(errors.values(), key=lambda e: np.inf if np.isnan(e) else e)
  return dict(
      variant=str(variant),
      worst=worst,
      right=bool(worst < bound),
      errors=errors,
  )


def _forms(op):
  """Returns the forms of an op by name, and the number of its inputs."""
  if op == 'linear_scan':
    ours = lambda *u: ops.linear_scan(*u)[1]
    return dict(kernel=ours, associative=baselines.associative_scan), 2
  gate, count = _GATES[op]
  ours = lambda *u: ops.gated_scan(gate, u)[1]
  apart = lambda *u: ops.linear_scan(*gate(None, *u))[1]
  plain = lambda *u: baselines.associative_scan(*gate(None, *u))
  return dict(kernel=ours, apart=apart, associative=plain), count


def measure(op, shape, dtype):
  """Returns one row for each direction."""
  rng = np.random.default_rng(0)
  draw = lambda: jnp.asarray(rng.uniform(0.5, 1, shape), dtype)
  forms, count = _forms(op)
  inputs, cotangent = [draw() for _ in range(count)], draw()
  nbytes = cotangent.nbytes
  copy, _ = timing.compiled(lambda u: u * 2, cotangent)
  rows = []
  # Arrays that move forwards: inputs and states. Backwards: inputs, states, a
  # cotangent and a gradient for each input (`linear_scan` needs no addend).
  back = 2 * count + 2 - (op == 'linear_scan')
  for direction, moves in (('forward', count + 1), ('backward', back)):
    programs, compile_seconds = {}, {}
    for name, form in forms.items():
      with ops.implementation('associative' if name == 'associative'
                              else _KERNEL):
        if direction == 'forward':
          program, seconds = timing.compiled(form, *inputs)
          run = functools.partial(program, *inputs)
        else:
          # The residuals are arguments, so only the backward pass is timed.
          _, vjp = jax.jit(lambda *u, form=form: jax.vjp(form, *u))(*inputs)
          program, seconds = timing.compiled(lambda f, g: f(g), vjp, cotangent)
          run = functools.partial(program, vjp, cotangent)
      programs[name], compile_seconds[name] = run, seconds
    programs['copy'] = functools.partial(copy, cotangent)
    # Dispatch takes as long as some of these calls, so ten run at a time.
    several = {
        name: functools.partial(lambda run: [run() for _ in range(10)], run)
        for name, run in programs.items()
    }
    durations = timing.interleaved_medians(several, _REPEATS.value)
    seconds = {name: d.seconds / 10 for name, d in durations.items()}
    rate = moves * nbytes / seconds['kernel']
    apart = seconds.get('apart')
    rows.append(dict(
        op=op,
        direction=direction,
        shape='x'.join(map(str, shape)),
        dtype=dtype,
        ms=seconds['kernel'] * 1e3,
        gb_per_second=rate / 1e9,
        copy_gb_per_second=2 * nbytes / seconds['copy'] / 1e9,
        of_copy=rate / (2 * nbytes / seconds['copy']),
        speedup=seconds['associative'] / seconds['kernel'],
        over_apart=apart and round(apart / seconds['kernel'], 2),
        all_ms={name: s * 1e3 for name, s in seconds.items()},
        **compile_seconds['kernel'],
    ))
  return rows


def short_of_aims(rows):
  """Returns a sentence for each row that misses its aim."""
  found = []
  for row in rows:
    what = f"{row['op']} {row['direction']} {row['shape']} {row['dtype']}"
    aim = _AIMS.get((row['shape'], row['direction']), 0)
    if row['op'] == 'linear_scan' and row['of_copy'] < aim:
      found.append(f'{what}: {row["of_copy"]:.2f} of a copy, not {aim}.')
    if row['speedup'] < 5:
      found.append(f'{what}: {row["speedup"]:.1f}x over associative, not 5x.')
    if row['over_apart'] is not None and row['over_apart'] < 1.8:
      found.append(f'{what}: {row["over_apart"]}x over gates apart, not 1.8x.')
  return found


def main(argv):
  drivers.check_usage(argv)
  started = time.perf_counter()
  if not _INTERPRET.value and jax.default_backend() != 'gpu':
    raise app.UsageError(
        'This needs a GPU; --interpret checks the values on a CPU.'
    )
  record = dict(
      timing.environment(), interpreted=_INTERPRET.value, checks=[], rows=[]
  )
  save = lambda: timing.write(record, _OUT.value)
  for variant in variants(_INTERPRET.value):
    if _ONLY.value in str(variant):
      with pallas_gpu.interpret(_INTERPRET.value):
        result = check(variant)
      word = 'right' if result['right'] else 'WRONG'
      print(f'{word} {result["worst"]:.1e} {variant}', file=sys.stderr)
      record['checks'].append(result)
      save()
  wrong = sum(not r['right'] for r in record['checks'])
  print(f'{len(record["checks"]) - wrong} variants right, {wrong} wrong.')
  if wrong or not record['checks']:
    sys.exit(1)
  if not _INTERPRET.value:
    timing.never_cache_compilation()
    shapes = [tuple(map(int, s.split(','))) for s in _SHAPES.value]
    for op, shape, dtype in itertools.product(
        ('linear_scan', 'min_gru', 'min_lstm'), shapes, ('float32', 'bfloat16')
    ):
      print(f'{op} {shape} {dtype}', file=sys.stderr)
      record['rows'] += measure(op, shape, dtype)
      save()
    timing.print_table(record['rows'], _COLUMNS)
    print('\n'.join(short_of_aims(record['rows'])))
  record['seconds'] = time.perf_counter() - started
  save()
  print(f'Wrote {_OUT.value} after {record["seconds"]:.0f} s.')


if __name__ == '__main__':
  drivers.run(main)
