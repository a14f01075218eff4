"""On eight devices, each device scans the data that it holds."""

import contextlib
from unittest import mock

from absl.testing import parameterized
import jax
import jax.numpy as jnp
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P
import numpy as np
from rnnzoo import mesh as mesh_lib
from rnnzoo import ops
from rnnzoo.layers import min_gru
from tests import collectives
from tests import tolerance
from tests.ops import oracle

# On a CPU `None` is `sequential`, chosen by `platform_dependent`.
_ALL = (None, 'reference', 'associative')
_AUTO, _EXPLICIT = AxisType.Auto, AxisType.Explicit
_NAMES = ('data', 'fsdp', 'model')
c64 = np.complex64

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


def _jit(function):
  return jax.jit(function, compiler_options=collectives.QUICKLY)


def _moved(compiled):
  """Returns the number of elements of each collective but reductions."""
  found = collectives.sizes(compiled.as_text(), without=('all-reduce',))
  return [elements for _, elements in found]


def _long_operands(batch, time, dtype=np.float32, constant=False):
  """Returns NumPy `a, x, h0, reset` with few resets, and cotangents."""
  rng = np.random.default_rng(1)

  def normal(*shape):
    value = rng.standard_normal(shape)
    if dtype == c64:
      value = value + 1j * rng.standard_normal(shape)
    return value.astype(dtype)

  shape = batch, time, 4
  a = rng.random((1, 1, 4) if constant else shape).astype(dtype)
  if dtype == c64:
    a = a * np.exp(1j * a)
  reset = rng.random((batch, time)) < 0.1
  operands = a, normal(*shape), normal(batch, 4), reset
  return operands, (normal(batch, 4), normal(*shape))


class AutoMeshTest(parameterized.TestCase):

  @parameterized.product(
      name=_ALL,
      mesh=(
          ((2, 2, 2), _NAMES),
          ((8,), ('data',)),
      ),
  )
  def test_devices_exchange_no_activations(self, name, mesh):
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
    # Each device has computed its own rows and channels only.
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
  def test_sizes_that_do_not_divide(self, sizes, names, batch, features):
    operands, want = _operands(batch, features)
    with jax.set_mesh(_mesh(sizes, names)):
      got = _value_and_grads()(*operands)
    tolerance.assert_close(got, want, np.float32)

  def test_without_jit(self):
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

  def test_training_step_gathers_weights_only(self):
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
  def test_follows_the_sharding_of_x(self, name, kinds):
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

  @parameterized.parameters(
      (('data', 'sequence'), P('data', 'sequence')),
      (('u', 'v'), P(None, ('u', 'v'))),
  )
  def test_time_split_by_explicit_axes(self, names, spec):
    mesh = _mesh((2, 4), names, _EXPLICIT)
    (a, x, h0, reset), want = _operands()
    x = jax.device_put(x, jax.NamedSharding(mesh, spec))
    with jax.set_mesh(mesh):
      step = _value_and_grads()
      compiled = step.lower(a, x, h0, reset).compile()
      got = step(a, x, h0, reset)
    tolerance.assert_close(got, want, np.float32)
    self.assertLen(_moved(compiled), 3)


class SequenceMeshTest(parameterized.TestCase):
  """Each device holds a segment of time."""

  @parameterized.named_parameters(
      ('gather', (8,), ('sequence',), {}),
      ('six_reverse', (6,), ('sequence',), dict(gather=1, reverse=True)),
      ('complex', (2, 4), ('data', 'sequence'), dict(dtype=c64, batch=1)),
      (
          'all_axes', (2, 2, 2), ('data', 'model', 'sequence'),
          dict(dtype=c64, gather=1, constant=True, reverse=True),
      ),
      ('associative', (8,), ('sequence',), dict(name='associative')),
      (
          'reference', (8,), ('sequence',),
          dict(name='reference', gather=1, reverse=True),
      ),
      ('does_not_divide', (8,), ('sequence',), dict(time=12)),
  )
  def test_values_and_gradients(
      self, sizes, names, options, batch=2, time=24
  ):
    options = dict(options)
    batch, time = options.pop('batch', batch), options.pop('time', time)
    gather = options.pop('gather', mesh_lib.GATHER_UP_TO)
    name, reverse = options.pop('name', None), options.pop('reverse', False)
    operands, weights = _long_operands(batch, time, **options)
    a, x, h0, reset = operands
    want = oracle.linear_scan(*operands, reverse), oracle.linear_scan_vjp(
        a, x, h0, *weights, reset, reverse
    )

    def run(a, x, h0, weights):
      scan = lambda *u: ops.linear_scan(*u, reset=reset, reverse=reverse)
      value, vjp = jax.vjp(scan, a, x, h0)
      return value, vjp(weights)

    mesh = jax.make_mesh(
        sizes, names, axis_types=(_AUTO,) * len(names),
        devices=jax.devices()[: int(np.prod(sizes))],
    )
    with (
        jax.set_mesh(mesh), _pinned(name),
        mock.patch.object(mesh_lib, 'GATHER_UP_TO', gather),
    ):
      got = _jit(run)(a, x, h0, weights)
    tolerance.assert_close(got, want)
    segment = time // mesh.shape['sequence']
    if time % mesh.shape['sequence'] == 0:
      self.assertEqual(got[0][1].sharding.shard_shape(x.shape)[1], segment)

  @parameterized.parameters((1, False), (16, True))
  def test_gated_scan_with_a_mask(self, gather, reverse):
    (_, x, h0, reset), weights = _long_operands(2, 24)
    mask = np.random.default_rng(2).random((2, 24)) < 0.6
    mask[:, 6:12] = False  # Whole segments.
    inputs = x[..., ::-1], x

    def run(inputs, h0, weights):
      scan = lambda inputs, h0: ops.gated_scan(
          min_gru.min_gru_gate(), inputs, h0,
          reset=reset, mask=mask, reverse=reverse,
      )
      value, vjp = jax.vjp(scan, inputs, h0)
      return value, vjp(weights)

    want = _jit(run)(inputs, h0, weights)
    with (
        jax.set_mesh(_mesh((8,), ('sequence',))),
        mock.patch.object(mesh_lib, 'GATHER_UP_TO', gather),
    ):
      got = _jit(lambda *u: run(*u))(inputs, h0, weights)
    tolerance.assert_close(got, want)

  @parameterized.named_parameters(
      # One exchange of what each segment does to the state.
      ('forward', 16, False, 'h', {'all-gather': 1}),
      ('h_last', 16, False, 'h last', {'all-gather': 1, 'all-reduce': 1}),
      ('log_steps', 1, False, 'h', {'collective-permute': 4}),
      # And again on the way back, after a state from the neighbour.
      ('gradient', 16, True, 'h', {'all-gather': 2, 'collective-permute': 1}),
      ('log_steps_back', 1, True, 'h', {'collective-permute': 9}),
      (
          'gradient_of_h0', 16, True, 'h h0',
          {'all-gather': 2, 'collective-permute': 1, 'all-reduce': 1},
      ),
  )
  def test_collectives(self, gather, gradient, wanted, counts):
    (a, x, h0, reset), (_, dh) = _long_operands(2, 64)

    def run(a, x, h0):
      last, h = ops.linear_scan(a, x, h0, reset=reset)
      return (h, last) if 'last' in wanted else h

    def back(a, x, h0, dh):
      h, vjp = jax.vjp(run, a, x, h0)
      da, dx, dh0 = vjp(dh)
      return (h, da, dx, dh0) if 'h0' in wanted else (h, da, dx)

    mesh = _mesh((8,), ('sequence',))
    put = lambda u: jax.device_put(
        u, jax.NamedSharding(mesh, P(None, 'sequence'))
    )
    operands = (put(a), put(x), h0)
    with (
        jax.set_mesh(mesh),
        mock.patch.object(mesh_lib, 'GATHER_UP_TO', gather),
    ):
      if gradient:
        lowered = _jit(back).lower(*operands, put(dh))
      else:
        lowered = _jit(run).lower(*operands)
      text = lowered.compile().as_text()
    self.assertEqual(collectives.counts(text), counts)
    batch, _, features = x.shape
    everything = 8 * batch * (2 * features + 1)
    self.assertLessEqual(max(n for _, n in collectives.sizes(text)), everything)

  @parameterized.parameters(
      (None, 16), (None, 1), ('associative', 16)
  )
  def test_nan_before_a_reset_on_another_device(self, name, gather):
    (a, x, h0, _), _ = _long_operands(2, 24)
    reset = np.zeros((2, 24), bool)
    reset[:, 16] = True  # The sixth of eight segments has 15, 16, 17.

    def late(a, x, h0):
      last, h = ops.linear_scan(a, x, h0, reset=reset)
      return jnp.sum(last**2) + jnp.sum(h[:, 16:] ** 2)

    with (
        jax.set_mesh(_mesh((8,), ('sequence',))), _pinned(name),
        mock.patch.object(mesh_lib, 'GATHER_UP_TO', gather),
    ):
      run = _jit(jax.value_and_grad(late, (0, 1)))
      want = run(a, x, h0)
      a[:, 4], x[:, 7], h0[:] = np.nan, np.inf, np.nan
      got = run(a, x, h0)
    cut = lambda value, grads: (value, [u[:, 16:] for u in grads])
    tolerance.assert_close(cut(*got), cut(*want))

  @parameterized.parameters(_AUTO, _EXPLICIT)
  def test_gradients_of_gradients(self, kind):
    (a, x, h0, reset), _ = _long_operands(2, 24)

    def cubed(a, x, h0):
      last, h = ops.linear_scan(a, x, h0, reset=reset)
      return jnp.sum(last**3) + jnp.sum(h**3)

    def curvature(a, x, h0):
      def slope(*u):
        return sum(jnp.sum(v**2) for v in jax.grad(cubed, (0, 1, 2))(*u))
      return jax.grad(slope, (0, 1, 2))(a, x, h0)

    want = _jit(curvature)(a, x, h0)
    mesh = _mesh((2, 4), ('data', 'sequence'), kind)
    placed = jax.NamedSharding(mesh, P('data', 'sequence'))
    a, x = jax.device_put((a, x), placed)
    with jax.set_mesh(mesh):
      step = _jit(lambda *u: curvature(*u))
      text = step.lower(a, x, h0).compile().as_text()
      got = step(a, x, h0)
    tolerance.assert_close(got, want)
    self.assertNotIn('all-to-all', collectives.counts(text))


class ManualMeshTest(parameterized.TestCase):
  """Inside a user's `jax.shard_map`."""

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

  @parameterized.parameters(None, 'associative')
  def test_time_is_split_inside_shard_map(self, name):
    (a, x, h0, reset), want = _operands()
    mesh = _mesh((2, 4), ('data', 'sequence'))
    rows = P('data')

    def loss(a, x, h0, reset):
      scan = jax.shard_map(
          lambda a, x, h0, reset: ops.linear_scan(a, x, h0, reset=reset),
          in_specs=(P(), rows, rows, rows),
          out_specs=rows,
          axis_names={'data'},
      )
      last, h = scan(a, x, h0, reset)
      return jnp.sum(last**2) + jnp.sum(h**2)

    with jax.set_mesh(mesh), _pinned(name):
      step = jax.jit(jax.value_and_grad(loss, (0, 1, 2)))
      text = step.lower(a, x, h0, reset).compile().as_text()
      got = step(a, x, h0, reset)
    tolerance.assert_close(got, want, np.float32)
    if name is None:
      self.assertEqual(collectives.counts(text)['all-gather'], 2)

  @parameterized.product(name=_ALL, check=(True, False))
  def test_one_decay_for_all_devices(self, name, check):
    """Data-parallel training by hand, without a use of `h_last`."""
    mesh = _mesh((8,), ('data',))
    operands, _ = _operands()
    a, x, h0, reset = operands
    _, h = oracle.linear_scan(*operands)
    want_da, *_ = oracle.linear_scan_vjp(a, x, h0, 0 * h0, 2 * h, reset)

    def step(a, x, h0, reset):
      loss = lambda a: jnp.sum(ops.linear_scan(a, x, h0, reset=reset)[1] ** 2)
      da = jax.grad(loss)(a)
      # If JAX knows what varies, it has summed over devices already.
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
