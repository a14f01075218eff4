"""Compiles every TPU kernel for a v5e and a v6e, with neither of them there.

The `libtpu` wheel compiles on any CPU. Where it is missing these tests skip,
or fail if `RNNZOO_REQUIRE_AOT=1` says that it ought to be there.
"""

import functools
import importlib.util
import itertools
import math
import os

from absl.testing import parameterized
import jax
from jax.experimental import layout
from jax.experimental import topologies
from jax.extend import core
import jax.numpy as jnp
import numpy as np
import pytest
from rnnzoo.layers import min_gru
from rnnzoo.layers import min_lstm
from rnnzoo.layers import rg_lru
from rnnzoo.ops.linear_scan import gates
from rnnzoo.ops.linear_scan import pallas_tpu

pytestmark = pytest.mark.aot

_CHIPS = ('v5e:2x2', 'v6e:2x2')

f32, bf16, c64 = jnp.float32, jnp.bfloat16, jnp.complex64

# [B, T, D], beyond what a chip could keep in its on-chip memory and so leave
# out of `temp_size_in_bytes`; no activation is smaller than 128 MiB.
_ALIGNED = (16, 4096, 1024)
_RAGGED = (16, 4100, 1000)

# Shape, shape of `a`, dtypes of `a` and `x`, reverse, flags, kernels: the scan,
# its adjoint (the decay after a step), the gradient, the summary.
_VARIANTS = {
    'plain': (_ALIGNED, _ALIGNED, (f32, f32), False, '', 'sagy'),
    'back': (_ALIGNED, _ALIGNED, (f32, f32), True, '', 'sagy'),
    'flags': (_ALIGNED, _ALIGNED, (f32, f32), False, 'rm', 'sagy'),
    'reset': (_ALIGNED, _ALIGNED, (bf16, bf16), True, 'r', 'sg'),
    'bfloat16': (_ALIGNED, _ALIGNED, (bf16, bf16), False, '', 'sagy'),
    'mixed': (_ALIGNED, _ALIGNED, (f32, bf16), True, 'm', 'sg'),
    'constant': (_ALIGNED, (1, 1, 1024), (f32, f32), False, '', 'sagy'),
    'shared': (_ALIGNED, (1, *_ALIGNED[1:]), (f32, f32), True, '', 'sg'),
    'one_feature': (_ALIGNED, (16, 4096, 1), (f32, f32), False, '', 'sg'),
    'ragged': (_RAGGED, _RAGGED, (f32, f32), True, '', 'sagy'),
    'ragged_bfloat16': (_RAGGED, _RAGGED, (bf16, bf16), False, 'rm', 'sg'),
    'ragged_feature': (_RAGGED, (16, 4100, 1), (f32, bf16), True, '', 'g'),
    'complex': (_ALIGNED, _ALIGNED, (c64, c64), False, '', 'sagy'),
    'real_a': (_ALIGNED, _ALIGNED, (f32, c64), True, 'r', 'sg'),
    'one_step': ((2, 1, 3), (1, 1, 3), (f32, f32), False, 'rm', 'sagy'),
}


# The gate, the shapes of its inputs but the last, the dtype, reverse, flags.
_GATES = {
    'min_gru': (min_gru.min_gru_gate(), [_ALIGNED], f32, False, ''),
    'min_gru_bf16': (min_gru.min_gru_gate(), [_ALIGNED], bf16, True, 'rm'),
    'min_lstm': (min_lstm.min_lstm_gate(), [_ALIGNED] * 2, f32, True, 'r'),
    'rg_lru': (
        rg_lru.rg_lru_gate, [(1, 1, 1024)] + [_ALIGNED] * 2, f32, False, 'r',
    ),
}


@functools.cache
def devices(chip):
  if importlib.util.find_spec('libtpu') is None:
    if os.environ.get('RNNZOO_REQUIRE_AOT') == '1':
      pytest.fail('libtpu is not installed, and RNNZOO_REQUIRE_AOT=1.')
    pytest.skip('libtpu is not installed; it comes with `jax[tpu]`.')
  # There is no TPU to ask for its place among others, or to share.
  os.environ.setdefault('TPU_SKIP_MDS_QUERY', '1')
  os.environ.setdefault('TPU_WORKER_HOSTNAMES', 'localhost')
  os.environ.setdefault('ALLOW_MULTIPLE_LIBTPU_LOAD', '1')
  return topologies.get_topology_desc(
      platform='tpu', topology_name=chip
  ).devices


def _compiled(chip, fn, args):
  """Returns what `fn` compiles to for one chip."""
  mesh = jax.sharding.Mesh(devices(chip)[:1], ('x',))
  whole = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())

  # Row-major, as arrays inside a program are where a kernel wants them so. Left
  # to itself XLA may lay out the arguments of a program for the least padding.
  def placed(u):
    major_to_minor = layout.Layout(tuple(range(len(u.shape))))
    return layout.Format(major_to_minor, whole)

  args = jax.tree.map(
      lambda u: jax.ShapeDtypeStruct(u.shape, u.dtype, sharding=placed(u)), args
  )
  out = jax.tree.map(placed, jax.eval_shape(fn, *args))
  traced = jax.jit(fn, out_shardings=out).trace(*args)
  return traced.lower(lowering_platforms=('tpu',)).compile()


def _kernels(gate, inputs, reverse, flags, which):
  """Yields functions and the abstract arrays that they take."""
  batch, time, features = inputs[-1].shape
  wide = jnp.promote_types(f32, inputs[-1].dtype)
  x = inputs[-1]
  h0 = jax.ShapeDtypeStruct((batch, features), wide)
  flag = jax.ShapeDtypeStruct((batch, time), jnp.bool_)
  reset, mask = (flag if name in flags else None for name in 'rm')
  way = dict(gate=gate, reverse=reverse)
  for after in (False, True):
    if 'sa'[after] in which:
      scan = functools.partial(pallas_tpu.scan, decay_after=after, **way)
      yield scan, (inputs, h0, reset, mask)
  if 'g' in which:
    yield functools.partial(pallas_tpu.gradient, **way), (
        inputs, x, h0, reset, mask, h0, x
    )
  if 'y' in which:
    summary = functools.partial(pallas_tpu.summary, decay_after=False, **way)
    yield summary, (inputs, reset, mask)


def _bytes(tree, tiled):
  """Of all arrays; their last two axes in tiles of 32 bits by 8 by 128."""
  total = 0
  for u in jax.tree.leaves(tree):
    shape = list(u.shape)
    if tiled:
      rows = 8 if len(shape) < 2 else 8 * max(1, 4 // u.dtype.itemsize)
      shape[-1] = -(-shape[-1] // 128) * 128
      shape[-2] = -(-shape[-2] // rows) * rows
    total += math.prod(shape) * u.dtype.itemsize
  return total


def _call(fn, args):
  """Returns the parameters of the one kernel in a function."""
  jaxpr = jax.make_jaxpr(fn)(*args)
  (call,) = (e for e in jaxpr.eqns if e.primitive.name == 'pallas_call')
  return call.params


def _bytes_of_a_walk(mapping):
  """Walks over the grid and adds up the blocks that change on the way."""
  steps = np.array(list(itertools.product(*map(range, mapping.grid))))
  total = 0
  for block in mapping.block_mappings:
    index_map = core.jaxpr_as_fun(block.index_map_jaxpr)
    index = np.stack(jax.vmap(lambda *i: index_map(*i))(*steps.T.astype('i4')))
    changes = 1 + (np.diff(index, axis=1) != 0).any(0).sum()
    size = math.prod(getattr(n, 'block_size', 1) for n in block.block_shape)
    total += changes * size * block.array_aval.dtype.itemsize
  return total


class CompiledTest(parameterized.TestCase):

  def _check(self, chip, gate, inputs, reverse, flags, which):
    self.assertIsNone(
        pallas_tpu.supports(
            inputs, None, None, None, gate=gate, decay_after=False
        )
    )
    x = inputs[-1]
    is_complex = jnp.iscomplexobj(x)
    for fn, args in _kernels(gate, inputs, reverse, flags, which):
      memory = _compiled(chip, fn, args).memory_analysis()
      # XLA keeps complex arrays whole: their parts, and no more, are copies.
      limit = 0
      if is_complex:
        limit = 1.01 * _bytes((args, jax.eval_shape(fn, *args)), tiled=True)
      self.assertLessEqual(memory.temp_size_in_bytes, limit)

  @parameterized.named_parameters(
      (f'{name}_{chip[:3]}', chip, *variant)
      for name, variant in _VARIANTS.items() for chip in _CHIPS
  )
  def test_linear(self, chip, shape, a_shape, dtypes, reverse, flags, which):
    inputs = tuple(map(jax.ShapeDtypeStruct, (a_shape, shape), dtypes))
    self._check(chip, gates.linear, inputs, reverse, flags, which)

  @parameterized.named_parameters(
      (f'{name}_{chip[:3]}', chip, *variant)
      for name, variant in _GATES.items() for chip in _CHIPS
  )
  def test_gated(self, chip, gate, shapes, dtype, reverse, flags):
    inputs = tuple(
        jax.ShapeDtypeStruct(shape, dtype) for shape in (*shapes, _ALIGNED)
    )
    self._check(chip, gate, inputs, reverse, flags, 'sg')

  @parameterized.parameters(*_CHIPS)
  def test_vmap_and_shard_map_and_64_bits(self, chip):
    x = jax.ShapeDtypeStruct((4, 2, 40, 130), f32)
    (scan, args), (gradient, more) = _kernels(
        gates.linear, (jax.ShapeDtypeStruct(x.shape[1:], f32),) * 2, False,
        'rm', 'sg',
    )
    rows = lambda tree: jax.tree.map(
        lambda u: jax.ShapeDtypeStruct((4, *u.shape), u.dtype), tree
    )
    _compiled(chip, jax.vmap(scan), rows(args))
    _compiled(chip, jax.vmap(gradient), rows(more))
    with jax.enable_x64(True):
      _compiled(chip, scan, args)
      _compiled(chip, gradient, more)

    mesh = jax.sharding.Mesh(devices(chip), ('data',))
    split = jax.sharding.PartitionSpec('data')
    place = lambda u: jax.ShapeDtypeStruct(
        (4 * u.shape[0], *u.shape[1:]), u.dtype,
        sharding=jax.sharding.NamedSharding(mesh, split),
    )
    for fn, operands in ((scan, args), (gradient, more)):
      sharded = jax.shard_map(fn, mesh=mesh, in_specs=split, out_specs=split)
      traced = jax.jit(sharded).trace(*jax.tree.map(place, operands))
      text = traced.lower(lowering_platforms=('tpu',)).compile().as_text()
      self.assertNotIn('all-gather', text)


class BytesTest(parameterized.TestCase):
  """What the grid moves. Nothing is compiled for that."""

  @parameterized.named_parameters(
      (name, *variant) for name, variant in _VARIANTS.items()
      if variant[1][0] != 1 or variant[1][1] == 1
  )
  def test_each_array_moves_once(
      self, shape, a_shape, dtypes, reverse, flags, which
  ):
    inputs = tuple(map(jax.ShapeDtypeStruct, (a_shape, shape), dtypes))
    self._check(gates.linear, inputs, reverse, flags, which)

  @parameterized.named_parameters((k, *v) for k, v in _GATES.items())
  def test_gates_move_their_inputs_only(
      self, gate, shapes, dtype, reverse, flags
  ):
    inputs = tuple(
        jax.ShapeDtypeStruct(shape, dtype) for shape in (*shapes, _ALIGNED)
    )
    self._check(gate, inputs, reverse, flags, 'sg')

  def _check(self, gate, inputs, reverse, flags, which):
    aligned = inputs[-1].shape == _ALIGNED
    for fn, args in _kernels(gate, inputs, reverse, flags, which):
      params = _call(fn, args)
      moved = params['cost_estimate'].bytes_accessed
      walked = _bytes_of_a_walk(params['grid_mapping'])
      # It does not see that an index held at an edge stays as it was.
      self.assertBetween(moved, walked, 1.001 * walked)
      floor = _bytes((args, jax.eval_shape(fn, *args)), tiled=not aligned)
      self.assertLessEqual(moved, 1.05 * floor)
