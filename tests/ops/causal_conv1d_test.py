"""`causal_conv1d`: sequence, chunks and steps against a loop in float64."""

from unittest import mock

from absl.testing import parameterized
import jax
import jax.numpy as jnp
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P
import numpy as np
from rnnzoo import mesh as mesh_lib
from rnnzoo import ops
from tests import collectives
from tests import tolerance
from tests.ops import oracle

f32, f64, bf16, c64 = jnp.float32, jnp.float64, jnp.bfloat16, jnp.complex64


def _operands(shape, taps, dtype=f32, flags='', seed=0):
  """Returns NumPy `x, kernel, bias, tail` and a dict of the named flags."""
  rng = np.random.default_rng(seed)
  batch, time, features = shape

  def normal(*shape):
    value = rng.standard_normal(shape)
    if dtype == c64:
      value = value + 1j * rng.standard_normal(shape)
    return value.astype(dtype)

  operands = (
      normal(*shape),
      normal(taps, features),
      normal(features),
      normal(batch, taps - 1, features),
  )
  chances = dict(reset=0.2, mask=0.7)
  flags = {k: rng.random((batch, time)) < chances[k] for k in flags.split()}
  return operands, flags


def _jit(function):
  return jax.jit(function, compiler_options=collectives.QUICKLY)


def _convolve(x, kernel, bias, tail, flags):
  return ops.causal_conv1d(x, kernel, bias, tail, **flags)


class CausalConv1dTest(parameterized.TestCase):

  @parameterized.named_parameters(
      ('plain', (2, 9, 3), 4, f32, ''),
      ('reset', (2, 9, 3), 4, f32, 'reset'),
      ('mask', (1, 9, 3), 3, f32, 'mask'),
      ('two_taps', (2, 9, 3), 2, f32, 'reset mask'),
      ('one_tap', (2, 9, 3), 1, f32, 'reset mask'),
      ('one_token', (2, 1, 3), 4, f32, 'reset mask'),
      ('shorter_than_kernel', (2, 2, 3), 4, f32, 'reset mask'),
      ('empty', (2, 0, 3), 4, f32, ''),
      ('empty_with_flags', (2, 0, 3), 4, f32, 'reset mask'),
      ('empty_one_tap', (2, 0, 3), 1, f32, 'reset mask'),
      ('no_rows', (0, 4, 3), 3, f32, 'reset mask'),
      ('bfloat16', (2, 9, 3), 4, bf16, 'reset mask'),
      ('complex', (2, 9, 3), 4, c64, 'reset'),
      ('double', (2, 9, 3), 4, f64, 'reset mask'),
  )
  def test_matches_loop(self, shape, taps, dtype, flags):
    operands, flags = _operands(shape, taps, dtype, flags)
    want = oracle.causal_conv1d(*operands, **flags)
    weights = oracle.causal_conv1d(*_operands(shape, taps, dtype, '', 1)[0])
    weights = tuple(w.astype(dtype) for w in weights)

    @jax.jit
    def run(operands, flags, weights):
      value, vjp = jax.vjp(lambda *u: _convolve(*u, flags), *operands)
      return value, vjp(weights)

    with jax.enable_x64(dtype == f64):
      got, grads = run(operands, flags, weights)
    tolerance.assert_close(got, want)
    self.assertEqual({u.dtype for u in got}, {jnp.dtype(dtype)})

    # Linear in each operand, so that a difference is the slope.
    wide = np.complex128 if dtype == c64 else np.float64
    operands, weights, grads = jax.tree.map(
        lambda u: np.asarray(u, wide), (operands, weights, grads)
    )
    directions, _ = _operands(shape, taps, dtype, '', 2)
    for i, (grad, direction) in enumerate(zip(grads, directions)):
      direction = direction.astype(wide)
      moved = list(operands)
      moved[i] = moved[i] + direction
      moved = oracle.causal_conv1d(*moved, **flags)
      slope = sum(np.sum(w * (v - u)) for w, u, v in zip(weights, want, moved))
      np.testing.assert_allclose(
          np.sum(grad * direction), slope, rtol=0,
          atol=tolerance.TOLERANCE[jnp.dtype(dtype).name]
          * max(1, np.abs(grad * direction).sum()),
      )

  @parameterized.product(flags=('', 'reset mask'), dtype=(f32, bf16))
  def test_chunks_and_steps_equal_the_whole(self, flags, dtype):
    (x, kernel, bias, tail), flags = _operands((2, 11, 3), 4, dtype, flags)
    whole = jax.jit(_convolve)(x, kernel, bias, tail, flags)

    @jax.jit
    def chunks(tail):
      outputs = []
      for start, stop in ((0, 2), (2, 2), (2, 3), (3, 9), (9, 11)):
        part = {k: u[:, start:stop] for k, u in flags.items()}
        tail, y = _convolve(x[:, start:stop], kernel, bias, tail, part)
        outputs.append(y)
      return tail, jnp.concatenate(outputs, axis=1)

    @jax.jit
    def steps(tail):
      outputs = []
      for t in range(x.shape[1]):
        part = {k: u[:, t] for k, u in flags.items()}
        tail, y = ops.causal_conv1d_step(x[:, t], kernel, bias, tail, **part)
        outputs.append(y)
      return tail, jnp.stack(outputs, axis=1)

    for got in (chunks(tail), steps(tail)):
      # The tail holds inputs: it is the same to the last bit.
      np.testing.assert_array_equal(
          np.asarray(got[0], f32), np.asarray(whole[0], f32)
      )
      tolerance.assert_close(got[1], whole[1])
      self.assertEqual(got[1].dtype, dtype)

  def test_without_bias_and_tail(self):
    (x, kernel, _, _), _ = _operands((2, 5, 3), 3)
    nothing = np.zeros(3), np.zeros((2, 2, 3))
    want = oracle.causal_conv1d(x, kernel, *nothing)
    tolerance.assert_close(jax.jit(ops.causal_conv1d)(x, kernel), want)
    got = jax.jit(ops.causal_conv1d_step)(x[:, 0], kernel)
    want = oracle.causal_conv1d(x[:, :1], kernel, *nothing)
    tolerance.assert_close(got, (want[0], want[1][:, 0]))

  def test_nan_stays_within_its_sequence_and_behind_the_mask(self):
    (x, kernel, bias, tail), _ = _operands((2, 9, 3), 4)
    reset, mask = np.zeros((2, 9), bool), np.ones((2, 9), bool)
    reset[:, 4], mask[:, 6] = True, False

    @jax.jit
    def late(x, tail, kernel):

      def loss(x, tail, kernel):
        tail, y = ops.causal_conv1d(
            x, kernel, bias, tail, reset=reset, mask=mask
        )
        return jnp.sum(y[:, 4:] ** 2) + jnp.sum(tail**2)

      return jax.value_and_grad(loss, (0, 1, 2))(x, tail, kernel)

    want, grads = late(x, tail, kernel)
    x, tail = x.copy(), tail.copy()
    x[:, 6] = np.inf  # Nothing at all comes of what is masked.
    tolerance.assert_close(late(x, tail, kernel), (want, grads))
    # Of an earlier sequence only gradients of weights do.
    x[:, 2:4], tail[:] = np.nan, np.nan
    got, got_grads = late(x, tail, kernel)
    tolerance.assert_close((got, got_grads[:2]), (want, grads[:2]))

  def test_vmap_over_kernels(self):
    (x, kernel, bias, tail), flags = _operands((2, 5, 3), 3, f32, 'reset mask')
    run = jax.vmap(lambda k: _convolve(x, k, bias, tail, flags))
    got = jax.jit(run)(np.stack([kernel, -kernel]))
    for i, k in enumerate((kernel, -kernel)):
      want = oracle.causal_conv1d(x, k, bias, tail, **flags)
      tolerance.assert_close([u[i] for u in got], list(want))

  @parameterized.named_parameters(
      ('x_rank', {'x': np.ones((5, 3), f32)}, r'`x` must be \[B, T, D\].*5, 3'),
      ('x_int', {'x': np.ones((2, 5, 3), int)}, '`x` must be floating.*int'),
      ('kernel_rank', {'kernel': np.ones(3, f32)}, r'`kernel`.* \[K, 3\].*3,'),
      ('kernel_scalar', {'kernel': 1.0}, r'`kernel` must be \[K, 3\]'),
      ('kernel_size', {'kernel': np.ones((4, 2), f32)}, '`kernel`.*4, 2'),
      ('no_taps', {'kernel': np.ones((0, 3), f32)}, '`kernel`.*0, 3'),
      ('complex', {'kernel': np.ones((4, 3), c64)}, '`kernel` is complex64'),
      ('bias', {'bias': np.ones(2, f32)}, r'`bias` must be \[3\].*2'),
      ('tail', {'tail': np.ones((2, 4, 3), f32)}, r'`tail` must be.*2, 3, 3'),
      ('reset', {'reset': np.ones((2, 5), int)}, '`reset` must be bool'),
      ('mask', {'mask': np.ones((5, 2), bool)}, '`mask` must be bool.*5, 2'),
  )
  def test_bad_input_names_the_argument(self, changed, message):
    good = dict(x=np.ones((2, 5, 3), f32), kernel=np.ones((4, 3), f32))
    with self.assertRaisesRegex(ValueError, message):
      ops.causal_conv1d(**{**good, **changed})
    if 'reset' not in changed and 'mask' not in changed:
      good['x'] = good['x'][:, 0]
      if 'x' in changed:
        changed['x'] = changed['x'][0]
        message = message.replace('B, T, D', 'B, D').replace('5, 3', '3,')
      with self.assertRaisesRegex(ValueError, message):
        ops.causal_conv1d_step(**{**good, **changed})


class MeshTest(parameterized.TestCase):

  @parameterized.parameters(AxisType.Auto, AxisType.Explicit)
  def test_devices_exchange_gradients_of_weights_only(self, kind):
    operands, flags = _operands((8, 9, 6), 4, f32, 'reset mask')
    mesh = jax.make_mesh(
        (2, 2, 2), ('data', 'fsdp', 'model'), axis_types=(kind,) * 3
    )
    spec = P(('data', 'fsdp'), None, 'model')

    def run(x, kernel, bias, tail, flags):
      loss = lambda *u: sum(jnp.sum(v**2) for v in _convolve(*u, flags))
      return jax.value_and_grad(loss, (0, 1, 2, 3))(x, kernel, bias, tail)

    want = jax.jit(run)(*operands, flags)
    x, *others = operands
    x = jax.device_put(x, jax.NamedSharding(mesh, spec))
    with jax.set_mesh(mesh):
      step = jax.jit(run)
      text = step.lower(x, *others, flags).compile().as_text()
      got = step(x, *others, flags)
    tolerance.assert_close(got, want)
    for moved in ('all-gather', 'all-to-all', 'collective-permute'):
      self.assertNotIn(moved, text)

  @parameterized.named_parameters(
      ('plain', (8,), '', {}),
      # Most segments have too few steps to fill a tail.
      ('mask_log_steps', (8,), 'reset mask', dict(gather=1, present=0.2)),
      ('short_log_steps', (8,), 'reset', dict(time=16, taps=6, gather=1)),
      ('one_tap', (8,), 'reset mask', dict(taps=1)),
      ('one_row', (2, 4, 1), 'reset', dict(batch=1)),
      ('all_axes', (2, 2, 2), 'reset mask', {}),
      ('explicit', (2, 2, 2), 'reset', dict(kind=AxisType.Explicit)),
  )
  def test_time_split_equals_one_device(self, sizes, flags, options):
    options = dict(dict(
        batch=2, time=32, taps=4, gather=mesh_lib.GATHER_UP_TO, present=0.7,
        kind=AxisType.Auto,
    ), **options)
    sizes = sizes if len(sizes) == 3 else (1, *sizes, 1)
    shape = options['batch'], options['time'], 4
    operands, flags = _operands(shape, options['taps'], f32, flags)
    if 'mask' in flags:
      flags['mask'] = np.random.default_rng(5).random(shape[:2]) < (
          options['present']
      )

    def run(x, kernel, bias, tail, flags):
      loss = lambda *u: sum(jnp.sum(v**2) for v in _convolve(*u, flags))
      grads = jax.grad(loss, (0, 1, 2, 3))(x, kernel, bias, tail)
      return _convolve(x, kernel, bias, tail, flags), grads

    want = _jit(run)(*operands, flags)
    tolerance.assert_close(want[0], oracle.causal_conv1d(*operands, **flags))
    names = 'data', 'sequence', 'model'
    mesh = jax.make_mesh(sizes, names, axis_types=(options['kind'],) * 3)
    rows = 'data' if options['batch'] > 1 else None
    spec = P(rows, 'sequence', 'model' if sizes[2] > 1 else None)
    x, *others = operands
    x = jax.device_put(x, jax.NamedSharding(mesh, spec))
    with (
        jax.set_mesh(mesh),
        mock.patch.object(mesh_lib, 'GATHER_UP_TO', options['gather']),
    ):
      step = _jit(lambda *u: run(*u))
      text = step.lower(x, *others, flags).compile().as_text()
      got = step(x, *others, flags)
    tolerance.assert_close(got, want)
    self.assertEqual(
        got[0][1].sharding.shard_shape(shape)[1], shape[1] // sizes[1]
    )
    tail = sizes[1] * shape[0] * (options['taps'] - 1) * (shape[2] + 1)
    for kind, size in collectives.sizes(text, without=('all-reduce',)):
      self.assertLessEqual(size, tail, kind)
      self.assertNotEqual(kind, 'all-to-all')
    if not flags and options['gather'] > 1:
      self.assertEqual(  # The neighbour's tail, and back its gradient.
          collectives.counts(text)['collective-permute'], 2
      )

  def test_nan_before_a_reset_on_another_device(self):
    (x, kernel, bias, tail), _ = _operands((2, 32, 3), 4)
    reset, mask = np.zeros((2, 32), bool), np.ones((2, 32), bool)
    reset[:, 15], mask[:, 12:15], mask[:, 17:25] = True, False, False

    def late(x, tail):
      tail, y = ops.causal_conv1d(
          x, kernel, bias, tail, reset=reset, mask=mask
      )
      return jnp.sum(y[:, 15:] ** 2) + jnp.sum(tail**2)

    mesh = jax.make_mesh((8,), ('sequence',), axis_types=(AxisType.Auto,))
    with jax.set_mesh(mesh):
      run = _jit(jax.value_and_grad(late, (0, 1)))
      want = run(x, tail)
      x, tail = x.copy(), tail.copy()
      x[:, 10], x[:, 20], tail[:] = np.nan, np.inf, np.nan
      tolerance.assert_close(run(x, tail), want)

  def test_inside_shard_map(self):
    operands, flags = _operands((8, 9, 6), 4, f32, 'reset mask')
    want = oracle.causal_conv1d(*operands, **flags)
    mesh = jax.make_mesh((8,), ('data',), axis_types=(AxisType.Auto,))
    rows = P('data')
    with jax.set_mesh(mesh):
      got = jax.jit(jax.shard_map(
          _convolve, in_specs=(rows, P(), P(), rows, rows), out_specs=rows
      ))(*operands, flags)
    tolerance.assert_close(got, want)
