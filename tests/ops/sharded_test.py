"""The mesh rule: on eight devices each scan stays where its data is."""

import contextlib
import re

from absl.testing import parameterized
import jax
import jax.numpy as jnp
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P
import numpy as np
from rnnzoo import ops
from tests import tolerance
from tests.ops import oracle

# On a CPU `None` is `sequential`, chosen by `platform_dependent`.
_ALL = (None, 'reference', 'associative')
_AUTO, _EXPLICIT = AxisType.Auto, AxisType.Explicit
_NAMES = ('data', 'fsdp', 'model')

_BATCH, _TIME, _FEATURES = 8, 16, 6


def _pinned(name):
  return ops.implementation(name) if name else contextlib.nullcontext()


def _mesh(sizes, names, kinds=_AUTO):
  if isinstance(kinds, AxisType):
    kinds = (kinds,) * len(names)
  return jax.make_mesh(sizes, names, axis_types=kinds)


def _operands(batch=_BATCH, features=_FEATURES):
  """Returns NumPy `a`, `x`, `h0`, `reset`, and what a scan makes of them."""
  rng = np.random.default_rng(0)
  normal = lambda *shape: rng.standard_normal(shape).astype(np.float32)
  a = rng.random((1, 1, features), np.float32)
  x, h0 = normal(batch, _TIME, features), normal(batch, features)
  reset = rng.random((batch, _TIME)) < 0.2
  last, h = oracle.linear_scan(a, x, h0, reset)
  grads = oracle.linear_scan_vjp(a, x, h0, 2 * last, 2 * h, reset)
  return (a, x, h0, reset), (np.sum(last**2) + np.sum(h**2), grads)


def _loss(a, x, h0, reset):
  last, h = ops.linear_scan(a, x, h0, reset=reset)
  return jnp.sum(last**2) + jnp.sum(h**2)


def _value_and_grads():
  return jax.jit(jax.value_and_grad(_loss, (0, 1, 2)))


def _moved(compiled):
  """Returns the number of elements of each collective but reductions."""
  text = compiled.as_text()
  found = re.findall(
      r' (\(?\w+\[[^=]*) (?:all-gather|all-to-all|collective-permute)[\w-]*\(',
      text,
  )
  return [
      max(
          int(np.prod([int(n) for n in shape.split(',') if n]))
          for shape in re.findall(r'\w+\[([\d,]*)\]', result)
      )
      for result in found
  ]


class AutoMeshTest(parameterized.TestCase):

  @parameterized.product(
      name=_ALL,
      mesh=(
          ((2, 2, 2), _NAMES),
          ((8,), ('data',)),
      ),
  )
  def test_no_activation_moves(self, name, mesh):
    mesh = _mesh(*mesh)
    operands, want = _operands()
    a, x, h0, reset = operands
    batch = tuple(n for n in ('data', 'fsdp') if n in mesh.axis_names)
    features = 'model' if 'model' in mesh.axis_names else None
    put = lambda u, *spec: jax.device_put(u, jax.NamedSharding(mesh, P(*spec)))
    with jax.set_mesh(mesh), _pinned(name):
      step = _value_and_grads()
      placed = put(a), put(x, batch, None, features), h0, reset
      compiled = step.lower(*placed).compile()
      got = step(*placed)
    self.assertEqual(_moved(compiled), [])
    tolerance.assert_close(got, want, np.float32)
    # Each device has made its own rows and channels, and nothing else.
    self.assertEqual(got[1][1].sharding.shard_shape(x.shape),
                     placed[1].sharding.shard_shape(x.shape))

  @parameterized.parameters(*_ALL)
  def test_without_set_mesh(self, name):
    mesh = _mesh((8,), ('data',))
    (a, x, h0, reset), want = _operands()
    x = jax.device_put(x, jax.NamedSharding(mesh, P('data')))
    with _pinned(name):
      step = _value_and_grads()
      compiled = step.lower(a, x, h0, reset).compile()
      got = step(a, x, h0, reset)
    self.assertEqual(_moved(compiled), [])
    tolerance.assert_close(got, want, np.float32)

  @parameterized.named_parameters(
      ('other_names', (4, 2), ('rows', 'columns'), 8, 6),
      ('some_names', (4, 2), ('rows', 'model'), 8, 6),
      ('one_row', (4, 2), ('data', 'model'), 1, 6),
      ('odd_features', (4, 2), ('data', 'model'), 8, 3),
      ('nothing_divides', (4, 2), ('data', 'model'), 3, 3),
      ('only_data_divides', (2, 4), ('data', 'fsdp'), 6, 3),
      ('sequence', (2, 4), ('data', 'sequence'), 2, 3),
  )
  def test_odd_meshes(self, sizes, names, batch, features):
    operands, want = _operands(batch, features)
    with jax.set_mesh(_mesh(sizes, names)):
      got = _value_and_grads()(*operands)
    tolerance.assert_close(got, want, np.float32)

  def test_eager(self):
    operands, want = _operands()
    mesh = _mesh((2, 2, 2), _NAMES)
    with jax.set_mesh(mesh):
      tolerance.assert_close(_loss(*operands), want[0], np.float32)
      a, x, h0, reset = operands
      x = jax.device_put(x, jax.NamedSharding(mesh, P('data')))
      tolerance.assert_close(_loss(a, x, h0, reset), want[0], np.float32)

  @parameterized.parameters(*_ALL)
  def test_vmap(self, name):
    operands, (want, _) = _operands()
    with jax.set_mesh(_mesh((2, 2, 2), _NAMES)), _pinned(name):
      got = jax.jit(jax.vmap(_loss, (None, 0, None, None)))(
          operands[0], np.stack([operands[1]] * 3), *operands[2:]
      )
    tolerance.assert_close(got, np.full(3, want))

  def test_a_training_step_gathers_weights_only(self):
    mesh = _mesh((2, 4), ('data', 'fsdp'))
    width, batch, time = 16, 8, 64
    spec = lambda shape, *axes: jax.ShapeDtypeStruct(
        shape, np.float32, sharding=jax.NamedSharding(mesh, P(*axes))
    )

    def loss(weights, x):
      x = ops.causal_conv1d(x, weights['kernel'])[1]
      gate = jax.nn.sigmoid(x @ weights['gate'])
      _, h = ops.linear_scan(1 - gate, gate * (x @ weights['value']))
      return jnp.mean((h @ weights['out']) ** 2)

    square = spec((width, width), 'fsdp')
    weights = dict(gate=square, value=square, out=square)
    weights['kernel'] = spec((4, width), None, 'fsdp')
    x = spec((batch, time, width), ('data', 'fsdp'))
    with jax.set_mesh(mesh):
      compiled = jax.jit(jax.grad(loss)).lower(weights, x).compile()
    moved = _moved(compiled)
    self.assertNotEmpty(moved)
    # Less than a device's own share of the activations.
    self.assertLess(max(moved), batch * time * width // 8)


class ExplicitMeshTest(parameterized.TestCase):

  @parameterized.product(
      name=_ALL,
      kinds=(
          (_EXPLICIT, _EXPLICIT, _EXPLICIT),
          (_EXPLICIT, _AUTO, _AUTO),
          (_AUTO, _AUTO, _EXPLICIT),
      ),
  )
  def test_follows_the_specs(self, name, kinds):
    mesh = _mesh((2, 2, 2), _NAMES, kinds)
    (a, x, h0, reset), want = _operands()
    explicit = [n for n, k in zip(_NAMES, kinds) if k == _EXPLICIT]
    batch = tuple(n for n in ('data', 'fsdp') if n in explicit)
    features = 'model' if 'model' in explicit else None
    x = jax.device_put(x, jax.NamedSharding(mesh, P(batch, None, features)))
    with jax.set_mesh(mesh), _pinned(name):
      got = _value_and_grads()(a, x, h0, reset)
    tolerance.assert_close(got, want, np.float32)

  @parameterized.parameters(*_ALL)
  def test_without_set_mesh(self, name):
    mesh = _mesh((4, 2), ('rows', 'columns'), _EXPLICIT)
    (a, x, h0, reset), want = _operands()
    x = jax.device_put(x, jax.NamedSharding(mesh, P('rows', None, 'columns')))
    with _pinned(name):
      got = _value_and_grads()(a, x, h0, reset)
    tolerance.assert_close(got, want, np.float32)

  @parameterized.parameters(ops.linear_scan, ops.causal_conv1d)
  def test_sharded_over_time(self, op):
    mesh = _mesh((2, 4), ('data', 'sequence'), _EXPLICIT)
    _, x, _, _ = _operands()[0]
    x = jax.device_put(x, jax.NamedSharding(mesh, P('data', 'sequence')))
    with jax.set_mesh(mesh), self.assertRaisesRegex(
        ValueError, "`x` .*over time by the Explicit mesh axes .*'sequence'"
    ):
      if op is ops.linear_scan:
        op(np.float32(0.5), x)
      else:
        op(x, np.ones((2, _FEATURES), np.float32))


class ManualMeshTest(parameterized.TestCase):
  """Inside a `jax.shard_map` of the user's."""

  @parameterized.product(
      name=_ALL,
      manual=(('data', 'model'), _NAMES),
      check=(True, False),
  )
  def test_inside_shard_map(self, name, manual, check):
    mesh = _mesh((2, 2, 2), _NAMES)
    operands, want = _operands()
    batch = tuple(n for n in ('data', 'fsdp') if n in manual)
    features = 'model' if 'model' in manual else None
    state, states = P(batch, features), P(batch, None, features)

    def loss(a, x, h0, reset):
      last, h = jax.shard_map(
          lambda a, x, h0, reset: ops.linear_scan(a, x, h0, reset=reset),
          in_specs=(P(None, None, features), states, state, P(batch)),
          out_specs=(state, states),
          axis_names=set(manual),
          check_vma=check,
      )(a, x, h0, reset)
      return jnp.sum(last**2) + jnp.sum(h**2)

    with jax.set_mesh(mesh), _pinned(name):
      got = jax.jit(jax.value_and_grad(loss, (0, 1, 2)))(*operands)
    tolerance.assert_close(got, want, np.float32)

  @parameterized.product(name=_ALL, check=(True, False))
  def test_one_decay_for_all_devices(self, name, check):
    """Data-parallel training by hand; and `h_last` is not asked for."""
    mesh = _mesh((8,), ('data',))
    operands, _ = _operands()
    a, x, h0, reset = operands
    _, h = oracle.linear_scan(*operands)
    want_da, *_ = oracle.linear_scan_vjp(a, x, h0, 0 * h0, 2 * h, reset)

    def step(a, x, h0, reset):
      loss = lambda a: jnp.sum(ops.linear_scan(a, x, h0, reset=reset)[1] ** 2)
      da = jax.grad(loss)(a)
      # Where JAX knows what varies it has taken the sum already.
      return da if check else jax.lax.psum(da, 'data')

    step = jax.shard_map(
        step,
        in_specs=(P(), P('data'), P('data'), P('data')),
        out_specs=P(),
        check_vma=check,
    )
    with jax.set_mesh(mesh), _pinned(name):
      got = jax.jit(step)(*operands)
    tolerance.assert_close(got, want_da)
