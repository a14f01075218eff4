"""Compiles every GPU kernel to the machine code of an H200 that is not there.

The CUDA plugin does that on any CPU, with `ptxas` from NVIDIA's wheels. Where
they are missing these tests skip, or fail if `RNNZOO_REQUIRE_AOT=1` says that
they ought to be there. Values are checked in `tests/ops/pallas_gpu_test.py`.
"""

import contextlib
import functools
import importlib.util
import math
import os
import pathlib
import re
import tempfile
from typing import NamedTuple

from absl.testing import parameterized
import jax
from jax.experimental import topologies
from jax.experimental.compilation_cache import compilation_cache
import jax.numpy as jnp
import pytest
from rnnzoo.layers import min_gru
from rnnzoo.layers import min_lstm
from rnnzoo.layers import rg_lru
from rnnzoo.ops.linear_scan import gates
from rnnzoo.ops.linear_scan import pallas_gpu
from rnnzoo.planning import targets
from rnnzoo.training.performance import hardware

pytestmark = pytest.mark.aot

f32, bf16, c64 = jnp.float32, jnp.bfloat16, jnp.complex64

_H200 = targets.gpu_config(hardware.HARDWARE['h200'])

# Bytes of reads under way on a multiprocessor: two thirds of its share of what
# 4.8 TB/s at 0.8 microseconds keep under way are 20 KB; here twice that.
_UNDER_WAY = 40 * 1024

_LARGE, _HALF = (16, 2048, 2048), (32, 1024, 512)
_LONG, _NARROW = (8, 4096, 256), (1, 65536, 64)
_RAGGED, _RAGGED_LONG = (16, 2001, 2040), (8, 4001, 200)

# [B, T, D], shape of `a`, dtypes of `a` and `x`, reverse, flags, kernels: the
# scan, its adjoint (the decay after a step), the gradient, the summary.
_VARIANTS = {
    'large': (_LARGE, _LARGE, (f32, f32), False, '', 'sag'),
    'large_bf16': (_LARGE, _LARGE, (bf16, bf16), True, '', 'sg'),
    'half': (_HALF, _HALF, (f32, f32), True, '', 'sg'),
    'half_bf16': (_HALF, _HALF, (bf16, bf16), False, 'rm', 'sg'),
    'mixed': (_LARGE, (1, *_LARGE[1:]), (f32, bf16), False, 'm', 'sg'),
    'constant': (_LARGE, (1, 1, _LARGE[2]), (f32, f32), False, 'r', 'sg'),
    'one_number': (_LARGE, (1, 1, 1), (f32, f32), True, '', 's'),
    'ragged': (_RAGGED, _RAGGED, (f32, f32), True, '', 'sg'),
    'complex': (_LARGE, _LARGE, (c64, c64), False, 'r', 'sg'),
    'real_a': (_LARGE, (1, 1, _LARGE[2]), (f32, c64), True, '', 'g'),
    'long': (_LONG, _LONG, (f32, f32), False, '', 'sg'),
    'narrow': (_NARROW, _NARROW, (bf16, bf16), True, 'r', 'sg'),
    'ragged_long': (_RAGGED_LONG, _RAGGED_LONG, (f32, f32), True, 'rm', 'gy'),
    'one_step': ((2, 1, 8), (2, 1, 8), (f32, f32), False, '', 'sg'),
}

# The gate, the shapes of its inputs, the dtype, reverse, flags.
_GATES = {
    'min_gru': (min_gru.min_gru_gate(), [_LARGE] * 2, f32, False, ''),
    'min_gru_half': (min_gru.min_gru_gate(), [_HALF] * 2, bf16, True, 'rm'),
    'min_gru_long': (min_gru.min_gru_gate(), [_LONG] * 2, f32, True, 'r'),
    'min_lstm': (min_lstm.min_lstm_gate(), [_LARGE] * 3, f32, True, 'rm'),
    'rg_lru': (
        rg_lru.rg_lru_gate, [(1, 1, _LARGE[2])] + [_LARGE] * 3, f32, False, 'r'
    ),
    'rg_lru_half': (
        rg_lru.rg_lru_gate, [(1, 1, _HALF[2])] + [_HALF] * 3, bf16, True, 'rm'
    ),
}


class Code(NamedTuple):
  """What one kernel was compiled to."""

  programs: int
  memory: int  # Shared, in bytes.
  registers: int  # Of a thread.
  spilled: int  # Bytes of stack, of stores and of loads, all together.
  loads: int  # Bulk copies to shared memory, as they stand in the code.
  stores: int

  @property
  def resident(self):
    """How many programs a multiprocessor holds at a time."""
    return min(
        math.ceil(self.programs / pallas_gpu.PROCESSORS),
        228 * 1024 // (self.memory + 1024),
        65536 // (128 * self.registers),
    )


def _missing():
  """Returns what is missing, or None, and the root of the CUDA wheels."""
  if importlib.util.find_spec('jax_cuda13_plugin') is None:
    return 'jax-cuda13-plugin', None
  nvidia = importlib.util.find_spec('nvidia')
  for place in nvidia.submodule_search_locations if nvidia else ():
    for ptxas in pathlib.Path(place).glob('*/bin/ptxas'):
      return None, ptxas.parents[1]
  return 'nvidia-cuda-nvcc', None


@functools.cache
def _compiler():
  """Returns two devices to compile for, and where the compiler takes notes."""
  missing, root = _missing()
  if missing is not None:
    if os.environ.get('RNNZOO_REQUIRE_AOT') == '1':
      pytest.fail(f'{missing} is not installed, and RNNZOO_REQUIRE_AOT=1.')
    pytest.skip(f'{missing} is not installed; nor need it be.')
  notes = tempfile.TemporaryDirectory()
  os.environ.update(
      CUDA_ROOT=str(root),
      PATH=f'{root}/bin:{os.environ["PATH"]}',
      JAX_SKIP_CUDA_CONSTRAINTS_CHECK='1',  # No driver to compare with.
      CUDA_VISIBLE_DEVICES='-1',
      MOSAIC_GPU_DUMP_PTX='1',
      MOSAIC_GPU_DUMP_PTXAS='1',
      MOSAIC_GPU_DUMP_TO=notes.name,
  )
  topology = topologies.get_topology_desc(
      platform='cuda', target_config=_H200, topology='1x1x2'
  )
  return topology.devices, notes


@contextlib.contextmanager
def _without_cache():
  """What comes from a cache leaves no notes."""
  before = jax.config.jax_enable_compilation_cache
  jax.config.update('jax_enable_compilation_cache', False)
  compilation_cache.reset_cache()
  yield
  jax.config.update('jax_enable_compilation_cache', before)
  compilation_cache.reset_cache()


def _compiled(fn, args):
  """Returns the `Code` of each kernel in `fn`, and XLA's memory analysis."""
  devices, notes = _compiler()
  notes = pathlib.Path(notes.name)
  for path in notes.iterdir():
    path.unlink()
  mesh = jax.sharding.Mesh(devices[:1], ('x',))
  whole = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
  args = jax.tree.map(
      lambda u: jax.ShapeDtypeStruct(u.shape, u.dtype, sharding=whole), args
  )
  compiled = jax.jit(fn).trace(*args).lower().compile()
  codes = []
  for path in sorted(notes.glob('*.ptx')):
    text = path.read_text()
    report = path.with_suffix('.ptxas').read_text()
    passes = path.with_suffix('.mlir-passes.log').read_text()
    *grid, memory = re.search(
        r'blocks in \(%c(\d+), %c(\d+), %c(\d+)\).*'
        r'dynamic_shared_memory_size %c(\d+)_i32',
        passes,
    ).groups()
    copies = re.findall(r'cp\.async\.bulk\.tensor\.\dd\.(\w+)', text)
    assert "'sm_90a'" in report, report
    codes.append(Code(
        programs=math.prod(map(int, grid)),
        memory=int(memory),
        registers=int(re.search(r'Used (\d+) registers', report)[1]),
        spilled=sum(map(int, re.findall(
            r'(\d+) bytes (?:stack|spill)', report
        ))),
        loads=copies.count('shared'),
        stores=copies.count('global'),
    ))
  return codes, compiled.memory_analysis()


def _bytes(tree):
  leaves = jax.tree.leaves(tree)
  return sum(math.prod(u.shape) * u.dtype.itemsize for u in leaves)


def _kernels(gate, inputs, reverse, flags, which):
  """Yields names, functions, their arguments, arrays read, arrays written."""
  like = inputs[-1]
  shape = batch, time, features = like.shape
  wide = jnp.promote_types(f32, jnp.result_type(*inputs))
  struct = jax.ShapeDtypeStruct
  full = struct(shape, like.dtype)
  h0 = struct((batch, features), wide)
  reset, mask = (
      struct((batch, time), jnp.bool_) if name in flags else None
      for name in 'rm'
  )
  moved = lambda us: [u for u in us if u.shape[1] > 1 or u.shape == shape]
  way = dict(gate=gate, reverse=reverse)
  for name, after in (('s', False), ('a', True)):
    if name in which:
      scan = functools.partial(pallas_gpu.scan, decay_after=after, **way)
      yield name, scan, (inputs, h0, reset, mask), moved(inputs), [full]
  if 'y' in which:
    summary = functools.partial(pallas_gpu.summary, decay_after=False, **way)
    yield 'y', summary, (inputs, reset, mask), moved(inputs), []
  if 'g' in which:
    gradient = functools.partial(pallas_gpu.gradient, **way)
    args = inputs, full, h0, reset, mask, h0, full
    # The gradient of `x` needs no `x`.
    read = inputs[:1] if gate is gates.linear else inputs
    yield 'g', gradient, args, [*moved(read), full, full], [
        struct(u.shape, u.dtype if u.shape[0] == batch else f32)
        for u in moved(inputs)
    ]


def _planes(arrays):
  """How many real arrays these are."""
  return sum(2 if jnp.iscomplexobj(u) else 1 for u in arrays)


class CompiledTest(parameterized.TestCase):

  @classmethod
  def setUpClass(cls):
    super().setUpClass()
    _compiler()
    cls.enterClassContext(_without_cache())

  @parameterized.named_parameters((k, *v) for k, v in _VARIANTS.items())
  def test_linear(self, shape, a_shape, dtypes, reverse, flags, which):
    inputs = tuple(map(jax.ShapeDtypeStruct, (a_shape, shape), dtypes))
    self._check(gates.linear, inputs, reverse, flags, which)

  @parameterized.named_parameters((k, *v) for k, v in _GATES.items())
  def test_gates(self, gate, shapes, dtype, reverse, flags):
    inputs = tuple(jax.ShapeDtypeStruct(shape, dtype) for shape in shapes)
    self._check(gate, inputs, reverse, flags, 'sg')

  def _check(self, gate, inputs, reverse, flags, which):
    shape = inputs[-1].shape
    for name, fn, args, read, written in _kernels(
        gate, inputs, reverse, flags, which
    ):
      with self.subTest(name):
        size = lambda us: sum(u.dtype.itemsize for u in us)
        plan = pallas_gpu.plan(*shape, size(read), size(written))
        codes, memory = _compiled(fn, args)
        self.assertLen(codes, 2 if plan.chunks > 1 and written else 1)
        for code in codes:
          self.assertEqual(code.spilled, 0)
          self.assertLessEqual(code.memory, pallas_gpu.SHARED_MEMORY)
          # Two of them fit on a multiprocessor, registers included.
          self.assertLessEqual(2 * (code.memory + 1024), 228 * 1024)
          self.assertLessEqual(2 * 128 * code.registers, 65536)
        if shape[1] > 1:  # Else `h0` looks like one of these arrays.
          self._check_copies(codes[-1], plan, read, written)
        self._check_temporaries(memory, plan, args, fn)

  def _check_copies(self, code, plan, read, written):
    # Each array is copied block by block, and each of its blocks once: in the
    # code, as many at the start as there are stages, and the rest in a loop.
    in_code = plan.stages + (plan.blocks > plan.stages)
    self.assertEqual(code.loads, _planes(read) * in_code)
    self.assertEqual(code.stores, _planes(written))
    batch, time, features = read[-1].shape
    tiles = math.ceil(features / pallas_gpu.LANES)
    self.assertEqual(code.programs, batch * plan.chunks * tiles)
    if (batch, time, features) in (_LARGE, _HALF):
      # So what is moved is what there is, and blocks leave no remainder.
      self.assertEqual(plan.chunks, 1)
      self.assertEqual(plan.rows * plan.blocks, time)
      block = plan.rows * pallas_gpu.LANES * sum(u.dtype.itemsize for u in read)
      under_way = code.resident * (plan.stages - 1) * block
      self.assertGreaterEqual(under_way, _UNDER_WAY)

  def _check_temporaries(self, memory, plan, args, fn):
    results = jax.eval_shape(fn, *args)
    if any(jnp.iscomplexobj(u) for u in jax.tree.leaves(args)):
      # XLA keeps complex arrays whole: their parts, and no more, are copies.
      limit = 1.01 * _bytes((args, results))
    else:
      activation = max(map(_bytes, jax.tree.leaves(args)))
      batch, _, features = args[0][-1].shape
      sums = 16 * batch * plan.chunks * math.ceil(features / 128) * 128
      limit = max(activation // 100, 4096) + sums
    self.assertLessEqual(memory.temp_size_in_bytes, limit)

  def test_vmap_and_shard_map_and_64_bits(self):
    devices, _ = _compiler()
    mesh = jax.sharding.Mesh(devices, ('data',))
    split = jax.sharding.PartitionSpec('data')
    place = lambda u: jax.ShapeDtypeStruct(
        (2 * u.shape[0], *u.shape[1:]), u.dtype,
        sharding=jax.sharding.NamedSharding(mesh, split),
    )
    inputs = (jax.ShapeDtypeStruct((2, 40, 136), f32),) * 2
    for _, fn, args, _, _ in _kernels(gates.linear, inputs, True, 'rm', 'sg'):
      rows = jax.tree.map(
          lambda u: jax.ShapeDtypeStruct((3, *u.shape), u.dtype), args
      )
      codes, _ = _compiled(jax.vmap(fn), rows)
      self.assertEqual([code.programs for code in codes], [3 * 2 * 2])
      with jax.enable_x64(True):
        _compiled(fn, args)
      sharded = jax.shard_map(fn, mesh=mesh, in_specs=split, out_specs=split)
      traced = jax.jit(sharded).trace(*jax.tree.map(place, args))
      self.assertNotIn('all-', traced.lower().compile().as_text())
