"""Cells solved by Newton's method, against the scan of the same cell."""

import warnings

from absl.testing import parameterized
from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np
from rnnzoo import layers
from rnnzoo import testing

_B, _T, _D = 2, 150, 8


def _make(name, solver, **options):
  if name == 'slstm':
    options |= dict(recurrent_init='uniform')
  return layers.LAYERS[name](
      _D, 16, solver=solver, **options, rngs=nnx.Rngs(0)
  )


class SolverTest(parameterized.TestCase):

  @parameterized.parameters(
      'elman', 'gru', 'lstm', 'slstm', 'para_gru', 'para_lstm'
  )
  def test_newton_equals_the_scan_in_float32(self, name):
    rng = np.random.default_rng(0)
    x = np.float32(2 * rng.standard_normal((_B, _T, _D)))
    reset, mask = rng.random((2, _B, _T)) < np.array([0.02, 0.9])[:, None, None]
    mask[0, :3] = False
    graphs, state = {}, None
    for solver in ('newton', 'sequential'):
      graphs[solver], state = nnx.split(_make(name, solver))

    def run(solver, state, x):
      layer = nnx.merge(graphs[solver], state)
      carry, y = layer(x, reset=reset, mask=mask)
      return jnp.sum(y**2) + jnp.sum(jnp.sin(y)), (carry, y)

    got, want = (
        jax.jit(jax.value_and_grad(
            lambda *u, solver=solver: run(solver, *u), (0, 1), has_aux=True
        ))(state, x)
        for solver in ('newton', 'sequential')
    )
    testing.assert_close(got[0][1], want[0][1], tolerance=1e-5)
    testing.assert_close(got[1], want[1], tolerance=1e-4)

  def test_residual_says_whether_the_iterations_suffice(self):
    x = jax.random.normal(jax.random.key(0), (_B, _T, _D))
    few, many = (
        _make('para_gru', 'newton', newton_iterations=n) for n in (1, 8)
    )
    with warnings.catch_warnings():
      warnings.simplefilter('error')
      self.assertGreater(few.residual(x).max(), 1e-3)
    self.assertLess(many.residual(x).max(), 1e-6)
    exact = _make('para_gru', 'sequential')(x)
    testing.assert_close(many(x), exact, tolerance=1e-5)
    self.assertEqual(few.residual(x).shape, (_B,))
    with self.assertWarnsRegex(UserWarning, '`newton_max_slope` of a layer'):
      few(x)
    few.set_solver('newton', 1, newton_strict=True)
    with self.assertRaisesRegex(FloatingPointError, 'a residual of'):
      few(x)
    self.assertGreater(few.residual(x).max(), 1e-3)  # No error.
    # The slopes of 8 iterations cut to nothing: the 8th is like the first.
    many.set_solver('newton', 8, newton_max_slope=1e-9)
    self.assertGreater(many.residual(x).max(), 1e-4)

  def test_bad_options(self):
    for message, options in {
        '`solver` must be one of': dict(solver='picard'),
        "`newton_iterations` needs solver='newton'": dict(
            solver='sequential', newton_iterations=3
        ),
        '`newton_iterations` must be at least 1': dict(
            solver='newton', newton_iterations=0
        ),
        '`newton_max_slope` must be above 0': dict(
            solver='newton', newton_max_slope=0.0
        ),
        "`newton_strict` needs solver='newton'": dict(
            solver='sequential', newton_strict=True
        ),
        'need `reset_after=True`': dict(solver='newton', reset_after=False),
    }.items():
      with self.assertRaisesRegex(ValueError, message):
        _make('gru', **options)
    cell = _make('gru', 'sequential', reset_after=False)
    with self.assertRaisesRegex(ValueError, 'need `reset_after=True`'):
      cell.residual(jnp.ones((1, 2, _D)))
    for heads in (0, 3):
      with self.assertRaisesRegex(ValueError, '`num_heads` must divide'):
        _make('para_gru', 'newton', num_heads=heads)
    with self.assertRaisesRegex(ValueError, 'the -4 units'):
      layers.ParaGRU(8, -4, rngs=nnx.Rngs(0))
