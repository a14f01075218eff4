"""Tests of `performance.flops`: counts that can be done by hand."""

import doctest

from absl.testing import absltest
from absl.testing import parameterized
from experiments.cli import tasks
import jax
from jax import lax
from jax.experimental import pallas as pl
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P
from rnnzoo.training import program
from rnnzoo.training import sharding
from rnnzoo.training.performance import flops
from tests.experiments import commands
from tests.experiments import tiny


def shaped(*shape, dtype=jnp.float32):
  return jax.ShapeDtypeStruct(shape, dtype)


def counted(fn, *args, **options):
  """The kinds that occur, and how often."""
  found = flops.count(jax.make_jaxpr(fn)(*args), **options)
  return {kind: n for kind, n in found.items() if n}


SQUARE = shaped(10, 10)
PRODUCT = 2 * 10**3


class FlopsTest(parameterized.TestCase):

  def test_examples_in_docstrings(self):
    self.assertEqual(doctest.testmod(flops).failed, 0)

  @parameterized.named_parameters(
      ('matrices', lambda a, b: a @ b, (3, 4), (4, 5), 2 * 3 * 4 * 5),
      ('batched', lambda a, b: a @ b, (6, 3, 4), (6, 4, 5), 6 * 2 * 3 * 4 * 5),
      ('inner', jnp.vdot, (7,), (7,), 14),
      ('outer', jnp.outer, (7,), (6,), 0),
      ('gradients', lambda a, b: jax.grad(
          lambda a, b: jnp.sin(a @ b).sum(), argnums=(0, 1)
      )(a, b), (3, 4), (4, 5), 3 * 2 * 3 * 4 * 5),
  )
  def test_products_of_matrices(self, fn, left, right, expected):
    found = counted(fn, shaped(*left), shaped(*right))
    self.assertEqual(found.get('dot', 0), expected)

  def test_complex_products(self):
    z = shaped(3, 3, dtype=jnp.complex64)
    self.assertEqual(counted(lambda a: a @ a, z), dict(dot=8 * 27))

  def test_ragged_products(self):
    rows, weights = shaped(8, 4), shaped(2, 4, 3)
    sizes = shaped(2, dtype=jnp.int32)
    self.assertEqual(
        counted(lax.ragged_dot, rows, weights, sizes), dict(dot=2 * 8 * 4 * 3)
    )
    loss = lambda *args: (lax.ragged_dot(*args) ** 2).sum()
    self.assertEqual(
        counted(jax.grad(loss, argnums=(0, 1)), rows, weights, sizes),
        dict(dot=3 * 2 * 8 * 4 * 3),
    )

  @parameterized.parameters((1, 2 * 3 * 6), (2, 2 * 3 * 3), (6, 2 * 3))
  def test_convolutions(self, groups, each):
    conv = lambda x, w: lax.conv_general_dilated(
        x, w, (1,), 'SAME', feature_group_count=groups,
        dimension_numbers=('NWC', 'WIO', 'NWC'),
    )
    x, w = shaped(2, 8, 6), shaped(3, 6 // groups, 12)
    self.assertEqual(counted(conv, x, w), dict(conv=each * 2 * 8 * 12))

  def test_fourier_transforms(self):
    there_and_back = lambda x: jnp.fft.irfft(jnp.fft.rfft(x))
    real = counted(there_and_back, shaped(5, 16))
    self.assertEqual(real, dict(fft=2 * 5 * 16 * 4 * 5 // 2))
    z = shaped(5, 16, dtype=jnp.complex64)
    self.assertEqual(counted(jnp.fft.fft, z), dict(fft=5 * 16 * 4 * 5))

  def test_loops_count_each_round(self):
    body = lambda h, _: (lax.fori_loop(0, 3, lambda _, h: h @ h, h), None)
    twice = lambda x: lax.scan(body, x, length=5)[0]
    self.assertEqual(counted(twice, SQUARE), dict(dot=15 * PRODUCT))
    until = lambda x: lax.while_loop(lambda x: x.sum() < 9, lambda x: x @ x, x)
    found = counted(lambda x: until(x) @ x, SQUARE)
    self.assertEqual(found, {'while': PRODUCT, 'dot': PRODUCT})

  def test_rematerialization_counts_twice(self):
    loss = jax.checkpoint(lambda x: jnp.sin(x @ x).sum())
    self.assertEqual(counted(loss, SQUARE), dict(dot=PRODUCT))
    both = counted(jax.value_and_grad(loss), SQUARE)
    self.assertEqual(both, dict(dot=4 * PRODUCT))

  def test_the_branch_of_the_platform_counts(self):
    either = lambda x: lax.cond(x[0, 0] > 0, lambda x: x @ x @ x, jnp.sin, x)
    self.assertEqual(counted(either, SQUARE), dict(dot=2 * PRODUCT))
    chosen = lambda x: lax.platform_dependent(
        x, tpu=lambda x: x @ x @ x, cuda=lambda x: x @ x, default=jnp.sin
    )
    for platform, n in (('tpu', 2), ('cuda', 1), ('cpu', 0), (None, 2)):
      found = counted(chosen, SQUARE, platform=platform)
      self.assertEqual(found.get('dot', 0), n * PRODUCT)

  def test_the_devices_of_a_mesh_add_up(self):
    mesh = sharding.make_mesh(dict(data=4, fsdp=1, model=2, sequence=1))
    multiply = lambda a, b: a @ b
    inner = lambda a, b: jax.shard_map(
        multiply, in_specs=(P(), P(None, 'model')), out_specs=P(None, 'model'),
        axis_names={'model'},
    )(a, b)
    a, b = shaped(8, 10), shaped(10, 6)
    for body in (multiply, inner):
      over_rows = jax.shard_map(
          body, in_specs=(P('data'), P()), out_specs=P('data'),
          axis_names={'data'},
      )
      with jax.set_mesh(mesh):
        found = counted(jax.jit(over_rows), a, b)
      self.assertEqual(found, dict(dot=2 * 8 * 10 * 6))

  @parameterized.parameters((None, 4), (pl.CostEstimate(7, 0, 0), None))
  def test_pallas_kernels_count_their_cost_estimate(self, cost, blocks):
    def kernel(x_ref, y_ref):
      y_ref[...] = x_ref[...] @ x_ref[...].T

    call = pl.pallas_call(
        kernel, grid=(4,), cost_estimate=cost, interpret=True,
        in_specs=[pl.BlockSpec((8, 16), lambda i: (i, 0))],
        out_specs=pl.BlockSpec((8, 8), lambda i: (i, 0)),
        out_shape=shaped(32, 8),
    )
    expected = 7 if blocks is None else blocks * 2 * 8 * 16 * 8
    self.assertEqual(counted(call, shaped(32, 16)), dict(kernel=expected))


class TrainingStepTest(parameterized.TestCase):

  @parameterized.parameters('none', 'full')
  def test_a_training_step_needs_three_times_its_forward_pass(self, remat):
    config = tiny.get_config()
    config.data.path = str(commands.ROOT / 'LICENSE')
    config.model.remat = remat
    config.model.scan_layers = True
    task, _ = tasks.make_task(config)
    mesh = sharding.make_mesh(config.mesh)
    state = program.make_program(task, config, mesh).abstract_state
    rows = shaped(8, 32, dtype=jnp.int32)
    batch = dict(inputs=rows, targets=rows)
    with jax.set_mesh(mesh):
      needed = flops.of_training_step(task, state, batch)
      step = program.make_program(task, config, mesh).train_step
      made = flops.count(step.trace(state, batch).jaxpr)
    params = state['params'] | dict(embed={})  # Looked up, not multiplied.
    matrices = sum(
        leaf.size
        for path, leaf in jax.tree_util.tree_leaves_with_path(params)
        if path[-1].key == 'kernel' and path[-2].key != 'conv'
    )
    # A multiplication and an addition, forwards and twice backwards.
    self.assertEqual(needed, 6 * 8 * 32 * matrices)
    self.assertEqual(made['while'], 0)
    if remat == 'none':
      self.assertAlmostEqual(made.total() / needed, 1, delta=0.02)
    else:
      self.assertGreater(made.total(), 1.1 * needed)


if __name__ == '__main__':
  absltest.main()
