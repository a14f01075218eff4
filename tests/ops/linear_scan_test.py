"""`linear_scan` against a loop in float64, and all that its docstring says."""

import contextlib
import functools
import re

from absl.testing import parameterized
from experiments.benchmarks import baselines
import jax
import jax.numpy as jnp
import numpy as np
from rnnzoo import ops
from rnnzoo.ops.linear_scan import dispatch
from tests import tolerance
from tests.ops import oracle

_ALL = dispatch.portable()
_PLAIN = tuple(filter(dispatch.is_differentiable, _ALL))


def _pinned(name):
  return ops.implementation(name) if name else contextlib.nullcontext()


def _normal(rng, shape, dtype):
  value = rng.standard_normal(shape)
  if jnp.issubdtype(dtype, jnp.complexfloating):
    value = value + 1j * rng.standard_normal(shape)
  return value.astype(dtype)


def _operands(shape, a_shape, dtypes, reset, seed=0):
  """Returns NumPy `a` inside the unit circle, `x`, `h0`, `reset`."""
  rng = np.random.default_rng(seed)
  batch, time, features = shape
  a_dtype, x_dtype, h0_dtype = dtypes
  a = _normal(rng, a_shape, a_dtype)
  a = (np.tanh(np.abs(a)) * a / (np.abs(a) + 0.1)).astype(a_dtype)
  x = _normal(rng, shape, x_dtype)
  h0 = _normal(rng, (batch, features), h0_dtype)
  if not reset:
    return a, x, h0, None
  flags = rng.random((batch, time)) < 0.2
  flags[0, 0] = True  # The first step in one direction, ...
  flags[-1, -1] = True  # ... and in the other.
  return a, x, h0, flags


def _scan_and_vjp(a, x, h0, reset, cotangents, reverse=False):
  scan = functools.partial(ops.linear_scan, reset=reset, reverse=reverse)
  value, vjp = jax.vjp(scan, a, x, h0)
  return value, vjp(cotangents)


_compiled = jax.jit(_scan_and_vjp, static_argnames='reverse')


f32, f64, bf16, f16 = jnp.float32, jnp.float64, jnp.bfloat16, jnp.float16
c64, c128 = jnp.complex64, jnp.complex128

# Every pair of the values in any two columns is somewhere near here.
# [B, T, D], shape of `a`, dtypes of `a`, `x` and `h0`, reverse, reset.
_CASES = {
    'full': ((5, 63, 3), (5, 63, 3), (f32, f32, f32), False, True),
    'full_reverse': ((5, 7, 3), (5, 7, 3), (f32, f32, f32), True, True),
    'constant': ((1, 63, 128), (1, 1, 128), (f32, f32, f32), False, False),
    'vector': ((5, 7, 3), (3,), (c64, c64, c64), True, True),
    'one_number': ((5, 7, 1), (1, 1, 1), (f32, f32, f32), True, False),
    'same_rows': ((5, 7, 1), (1, 7, 1), (f32, c64, f32), False, True),
    'same_steps': ((5, 2, 128), (5, 1, 128), (c64, f32, f32), False, True),
    'same_channels': ((5, 7, 3), (5, 7, 1), (f32, f32, f32), True, True),
    'one_step': ((5, 1, 3), (5, 1, 3), (f32, f32, f32), False, True),
    'one_step_reverse': ((1, 1, 128), (128,), (c64, c64, f32), True, False),
    'two_steps': ((1, 2, 1), (1, 2, 1), (c64, c64, c64), False, False),
    'two_steps_reverse': ((5, 2, 3), (1, 2, 3), (f32, f32, f32), True, True),
    'single': ((1, 1, 1), (1, 1, 1), (f32, f32, f32), True, True),
    'bfloat16': ((5, 63, 3), (5, 63, 3), (bf16, bf16, bf16), False, True),
    'bfloat16_rows': ((5, 7, 3), (1, 7, 3), (bf16, bf16, f32), True, False),
    'bfloat16_a': ((5, 2, 128), (1, 1, 128), (bf16, f32, bf16), True, False),
    'bfloat16_x': ((1, 7, 3), (1, 7, 3), (f32, bf16, f32), False, False),
    'bfloat16_complex': ((5, 2, 3), (3,), (c64, bf16, f32), False, True),
    'float16': ((5, 7, 1), (5, 1, 1), (f16, f16, f16), True, True),
    'float16_bfloat16': ((5, 2, 3), (1, 2, 3), (bf16, f16, f16), False, True),
    'double': ((5, 7, 3), (5, 7, 3), (f64, f64, f64), True, True),
    'double_complex': ((5, 7, 3), (1, 1, 3), (c128, c128, c128), False, True),
    'double_and_single': ((1, 7, 3), (1, 7, 3), (f64, f32, f64), True, True),
}
# The backends that JAX differentiates need not run them all.
_RUNS = tuple(
    (case, name) for case in _CASES for name in _ALL if name not in _PLAIN
)
_RUNS += tuple(
    (case, name)
    for case in (
        'full', 'vector', 'one_number', 'same_rows', 'same_steps', 'one_step',
        'two_steps_reverse', 'bfloat16', 'bfloat16_complex', 'double',
        'double_complex',
    )
    for name in _PLAIN
)


class OracleTest(parameterized.TestCase):

  @parameterized.product(
      dtypes=((f64, f64, f64), (c128, c128, c128), (c128, f64, f64)),
      a_shape=((2, 5, 3), (1, 1, 3), (1, 5, 1), (3,)),
      reverse=(False, True),
  )
  def test_gradient_equals_finite_differences(self, dtypes, a_shape, reverse):
    *operands, reset = _operands((2, 5, 3), a_shape, dtypes, reset=True)
    rng = np.random.default_rng(1)
    last, h = oracle.linear_scan(*operands, reset, reverse)
    weights = [_normal(rng, u.shape, u.dtype) for u in (last, h)]

    def loss(*operands):
      results = oracle.linear_scan(*operands, reset, reverse)
      return sum(np.sum(w * u).real for w, u in zip(weights, results))

    grads = oracle.linear_scan_vjp(*operands, *weights, reset, reverse)
    for i, grad in enumerate(grads):
      step = [np.zeros_like(u) for u in operands]
      step[i] = _normal(rng, operands[i].shape, operands[i].dtype) * 1e-5
      ahead = loss(*(u + s for u, s in zip(operands, step)))
      behind = loss(*(u - s for u, s in zip(operands, step)))
      np.testing.assert_allclose(
          np.sum(grad * step[i]).real, (ahead - behind) / 2, rtol=1e-7
      )


class LinearScanTest(parameterized.TestCase):

  @parameterized.parameters(*_RUNS)
  def test_matches_loop(self, case, name):
    shape, a_shape, dtypes, reverse, has_reset = _CASES[case]
    *operands, reset = _operands(shape, a_shape, dtypes, has_reset)
    want = oracle.linear_scan(*operands, reset, reverse)
    with jax.enable_x64(case.startswith('double')), _pinned(name):
      rng = np.random.default_rng(1)
      outputs = jax.eval_shape(
          lambda *u: ops.linear_scan(*u, reset=reset), *operands
      )
      cotangents = tuple(_normal(rng, u.shape, u.dtype) for u in outputs)
      got, got_grads = _compiled(*operands, reset, cotangents, reverse)
    want_grads = oracle.linear_scan_vjp(*operands, *cotangents, reset, reverse)

    tolerance.assert_close(got, want)
    for u, grad in zip(operands, got_grads):
      self.assertEqual(grad.dtype, u.dtype)
    # As coarse as the coarsest number that went in.
    coarsest = max(
        (u.dtype for u in (*operands, *got)), key=lambda d: jnp.finfo(d).eps
    )
    tolerance.assert_close(got_grads, want_grads, coarsest)

  @parameterized.product(name=(None, *_ALL), reverse=(False, True))
  def test_empty_arrays(self, name, reverse):
    scan = lambda a, x, h0: ops.linear_scan(a, x, h0, reverse=reverse)
    for shape in ((2, 0, 3), (0, 4, 3)):
      x = jnp.ones(shape, bf16)
      h0 = jnp.arange(3 * shape[0], dtype=f32).reshape(shape[0], 3)
      with _pinned(name):
        (last, h), vjp = jax.vjp(scan, jnp.ones((1, 1, 3)), x, h0)
      tolerance.assert_close((last, h), (h0, x))
      self.assertEqual((last.dtype, h.dtype), (f32, bf16))
      grads = vjp((last, h))
      tolerance.assert_close(grads, (jnp.zeros((1, 1, 3)), x, h0))

  def test_without_initial_state(self):
    a, x, _, _ = _operands((2, 4, 3), (3,), (f32,) * 3, False)
    want = oracle.linear_scan(a, x, np.zeros((2, 3)))
    tolerance.assert_close(jax.jit(ops.linear_scan)(a, x), want)

  def test_takes_numpy_arrays_and_scalars(self):
    got = ops.linear_scan(0.5, [[[1.0], [2.0]]], [[4.0]], reset=[[False, True]])
    tolerance.assert_close(got, (np.array([[2.0]]), np.array([[[3.0], [2.0]]])))


class AccuracyTest(parameterized.TestCase):

  @parameterized.product(
      name=_ALL, kind=('near 0', 'near 1', 'mixed'), dtype=(f32, c64)
  )
  def test_error_stays_bounded_over_length(self, name, kind, dtype):
    """experiments/results has the same up to T = 2**20."""
    a, x = baselines.operands(kind, jnp.dtype(dtype).name, 2**13)
    want = baselines.exact(a, x)
    with _pinned(name):
      _, h = jax.jit(ops.linear_scan)(a, x)
    # A rounding a step, of which near 1 about a thousand are remembered.
    bound = 5e-6 if kind == 'near 1' else 3e-7
    error = np.abs(np.asarray(h)[0] - want).max() / np.abs(want).max()
    self.assertLess(error, bound)


class NanTest(parameterized.TestCase):

  @parameterized.product(name=_ALL, reverse=(False, True))
  def test_nan_stays_in_its_sequence(self, name, reverse):
    """This holds for values, gradients, and gradients of gradients."""
    time, starts = 9, 4  # An early sequence, then a late one.
    a, x, h0, _ = _operands((2, time, 3), (2, time, 3), (f32,) * 3, False)
    flip = (lambda u: u[:, ::-1]) if reverse else (lambda u: u)
    reset = np.zeros((2, time), bool)
    reset[:, starts] = True

    @jax.jit
    def late(a, x, h0):
      """The sum over the late sequence, and gradients up to the second."""

      def loss(a, x, h0):
        last, h = ops.linear_scan(
            flip(a), flip(x), h0, reset=flip(reset), reverse=reverse
        )
        return jnp.sum(flip(h)[:, starts:] ** 2) + jnp.sum(last**2)

      grads = jax.grad(loss, (0, 1, 2))
      norm = lambda *u: sum(jnp.sum(g[:, starts:] ** 2) for g in grads(*u)[:2])
      u = a, x, h0
      return loss(*u), grads(*u), jax.grad(norm, (0, 1, 2))(*u)

    def late_part(results):
      value, *grads = results
      return value, [(da[:, starts:], dx[:, starts:]) for da, dx, _ in grads]

    def early(a, x, h0):
      _, h = ops.linear_scan(
          flip(a), flip(x), h0, reset=flip(reset), reverse=reverse
      )
      return jnp.sum(flip(h)[:, :starts] ** 2)

    early = jax.jit(jax.value_and_grad(early, (0, 1, 2)))

    def early_part(results):
      value, (da, dx, dh0) = results
      return value, da[:, :starts], dx[:, :starts], dh0

    with _pinned(name):
      want_late, want_early = late(a, x, h0), early(a, x, h0)
      for bad in (np.nan, np.inf):
        with_nan = [u.copy() for u in (a, x, h0)]
        with_nan[0][:, 2], with_nan[1][:, 1], with_nan[2][:] = bad, bad, bad
        with_nan[0][:, starts] = bad  # This decay meets no state.
        tolerance.assert_close(late_part(late(*with_nan)), late_part(want_late))
        # Backwards, too: the late sequence does not affect the early one.
        with_nan = [u.copy() for u in (a, x, h0)]
        with_nan[0][:, starts:], with_nan[1][:, starts + 1] = bad, bad
        got_early = early(*with_nan)
        tolerance.assert_close(early_part(got_early), early_part(want_early))

  @parameterized.product(name=_ALL, reverse=(False, True))
  def test_reset_at_the_first_step_ignores_h0(self, name, reverse):
    a, x, h0, _ = _operands((2, 5, 3), (3,), (f32,) * 3, False)
    reset = np.zeros((2, 5), bool)
    reset[:, -1 if reverse else 0] = True
    cotangents = (np.ones((2, 3), f32), np.ones_like(x))
    with _pinned(name):
      got, (_, _, dh0) = _compiled(
          a, x, np.full_like(h0, np.nan), reset, cotangents, reverse
      )
    np.testing.assert_array_equal(dh0, 0)
    tolerance.assert_close(
        got, oracle.linear_scan(a, x, np.zeros_like(h0), None, reverse)
    )


class ReproducibleTest(parameterized.TestCase):

  @parameterized.parameters(None, 'associative')
  def test_results_are_bitwise_reproducible(self, name):
    """On CPU, results do not depend on the other rows of the batch."""
    a, x, h0, reset = _operands((5, 37, 16), (5, 37, 16), (f32,) * 3, True)
    run = lambda a, x, h0, reset: _compiled(
        a, x, h0, reset, (jnp.ones_like(h0), jnp.ones_like(x))
    )
    with _pinned(name):
      first, again = run(a, x, h0, reset), run(a, x, h0, reset)
      alone = [run(*(u[i : i + 1] for u in (a, x, h0, reset))) for i in (0, 3)]
    jax.tree.map(np.testing.assert_array_equal, again, first)
    for i, row in zip((0, 3), alone):
      jax.tree.map(
          lambda u, v, i=i: np.testing.assert_array_equal(u, v[i : i + 1]),
          row,
          first,
      )


class DerivativesTest(parameterized.TestCase):

  @parameterized.product(name=_ALL, reverse=(False, True))
  def test_second_order_gradients(self, name, reverse):
    a_shape = (1, 4, 2) if reverse else (2, 4, 1)
    dtypes = (c128, f64, c128) if reverse else (f64, f64, f64)
    *operands, reset = _operands((2, 4, 2), a_shape, dtypes, True)
    rng = np.random.default_rng(1)
    w, v = ([_normal(rng, u.shape, u.dtype) for u in operands] for _ in '12')
    along = lambda grads, w: sum(
        np.sum(np.asarray(g) * u).real for g, u in zip(grads, w)
    )

    def loss(*operands):
      last, h = ops.linear_scan(*operands, reset=reset, reverse=reverse)
      return (jnp.sum(last**2) + jnp.sum(h**2)).real

    def want_slope(*operands):
      last, h = oracle.linear_scan(*operands, reset, reverse)
      return along(
          oracle.linear_scan_vjp(*operands, 2 * last, 2 * h, reset, reverse), w
      )

    def slope(*operands):
      grads = jax.grad(loss, (0, 1, 2))(*operands)
      return sum(jnp.sum(g * u).real for g, u in zip(grads, w))

    def forward_slope(*operands):
      return jax.jvp(loss, operands, tuple(w))[1]

    @jax.jit
    def run(*operands):
      got = [jax.value_and_grad(slope, (0, 1, 2))(*operands)]
      if name in _PLAIN:
        got += [jax.jvp(f, operands, tuple(v)) for f in (forward_slope, slope)]
      return got

    with jax.enable_x64(True), _pinned(name):
      first, *forward = run(*operands)
    step = lambda sign: (u + sign * 1e-5 * d for u, d in zip(operands, v))
    want = (want_slope(*step(1)) - want_slope(*step(-1))) / 2e-5
    for got in ((first[0], along(first[1], v)), *forward):
      np.testing.assert_allclose(got, (want_slope(*operands), want), rtol=1e-7)

  def test_hessian_equals_reverse_over_reverse(self):
    a, x, h0, reset = _operands((2, 4, 2), (2, 4, 2), (f32,) * 3, True)
    loss = lambda a: jnp.sum(ops.linear_scan(a, x, h0, reset=reset)[1] ** 3)
    want = jax.jit(jax.jacrev(jax.grad(loss)))(a)
    for name in _PLAIN:
      with _pinned(name):
        got = jax.jit(jax.hessian(loss))(a)
      tolerance.assert_close(got, want)

  @parameterized.parameters(None, 'sequential')
  def test_forward_mode_error_names_the_backends(self, name):
    x = jnp.ones((1, 2, 1))
    with _pinned(name), self.assertRaisesRegex(TypeError, "'associative'"):
      jax.jvp(lambda x: ops.linear_scan(0.5, x), (x,), (x,))

  @parameterized.parameters(*_ALL)
  def test_under_remat(self, name):
    a, x, h0, _ = _operands((2, 5, 3), (3,), (f32,) * 3, False)
    loss = lambda a: jnp.sum(ops.linear_scan(a, x, h0)[1] ** 2)
    with _pinned(name):
      got, want = jax.jit(
          lambda a: (jax.grad(jax.checkpoint(loss))(a), jax.grad(loss)(a))
      )(a)
    tolerance.assert_close(got, want)


class VmapTest(parameterized.TestCase):

  @parameterized.parameters(
      *(('sequential', which) for which in ('a', 'x', 'h0', 'reset', 'all')),
      *((name, which) for name in _PLAIN for which in ('a', 'all')),
  )
  def test_over_one_operand(self, name, which):
    *operands, reset = _operands((2, 7, 3), (1, 7, 3), (f32,) * 3, True)
    *others, other_reset = _operands((2, 7, 3), (1, 7, 3), (f32,) * 3, True, 1)
    operands, others = (*operands, reset), (*others, other_reset)
    mapped = [which in (name, 'all') for name in ('a', 'x', 'h0', 'reset')]
    stacked = [
        np.stack([u, v], 1) if m else u
        for u, v, m in zip(operands, others, mapped)
    ]
    axes = [1 if m else None for m in mapped]
    rng = np.random.default_rng(2)
    weights = _normal(rng, (2, 3), f32), _normal(rng, (2, 7, 3), f32)

    with _pinned(name):
      run = jax.vmap(_scan_and_vjp, (*axes, None))
      got = jax.jit(run)(*stacked, weights)
    for i, row in enumerate((operands, others)):
      row = [v if m else u for u, v, m in zip(operands, row, mapped)]
      want = (
          oracle.linear_scan(*row),
          oracle.linear_scan_vjp(*row[:3], *weights, row[3]),
      )
      tolerance.assert_close(jax.tree.map(lambda u: u[i], got), want)


class DtypeTest(parameterized.TestCase):

  @parameterized.parameters(
      # a, x, h0, then h_last and h.
      (f32, f32, f32, f32, f32),
      (bf16, bf16, bf16, f32, bf16),
      (f16, f16, None, f32, f16),
      (f32, bf16, f32, f32, bf16),
      (bf16, f32, bf16, f32, f32),
      (bf16, f16, None, f32, f16),
      (c64, f32, f32, c64, c64),
      (c64, bf16, c64, c64, c64),
      (f32, c64, f32, c64, c64),
      (f64, f64, f32, f64, f64),
      (f64, f32, f32, f64, f32),
      (f32, f32, f64, f32, f32),
      (c64, f64, None, c128, c128),
      (c128, bf16, f32, c128, c64),
      (0.5, f32, None, f32, f32),
      (0.5, bf16, None, f32, bf16),
      (0.5j, f32, None, c64, c64),
  )
  def test_dtypes_of_results_and_gradients(self, a, x, h0, want_last, want_h):
    with jax.enable_x64(True):
      if not isinstance(a, (float, complex)):
        a = jnp.zeros((1, 3, 1), a)
      x = jnp.zeros((2, 3, 4), x)
      h0 = None if h0 is None else jnp.zeros((2, 4), h0)
      for name in (None, *_ALL):
        with _pinned(name):
          last, h = jax.eval_shape(lambda: ops.linear_scan(a, x, h0))
          grads = jax.eval_shape(
              lambda a, x, h0: jax.vjp(ops.linear_scan, a, x, h0)[1]((
                  jnp.zeros((2, 4), want_last), jnp.zeros((2, 3, 4), want_h)
              )),
              a, x, h0,
          )
        self.assertEqual((last.dtype, h.dtype), (want_last, want_h))
        self.assertFalse(last.weak_type or h.weak_type)
        self.assertEqual(
            [g.dtype for g in jax.tree.leaves(grads)],
            [jnp.asarray(u).dtype for u in (a, x, h0) if u is not None],
        )


class BadInputTest(parameterized.TestCase):

  @parameterized.named_parameters(
      ('x_rank', {'x': np.ones((3, 4), f32)}, r'`x` must be \[B, T, D\].*3, 4'),
      ('x_int', {'x': np.ones((2, 3, 4), int)}, '`x` must be floating.*int'),
      ('a_int', {'a': 1}, '`a` must be floating.*int'),
      ('a_shape', {'a': np.ones((2, 2, 4), f32)}, '`a` must broad.*2, 2, 4'),
      ('a_rank', {'a': np.ones((1, 1, 1, 4), f32)}, '`a` must broadcast'),
      ('a_larger', {'a': np.ones((2, 3, 8), f32)}, '`a` must broadcast'),
      ('h0_shape', {'h0': np.ones((4, 2), f32)}, r'`h0` must be.*2, 4.*4, 2'),
      ('h0_complex', {'h0': np.ones((2, 4), c64)}, '`h0` is complex64.*real'),
      ('reset_int', {'reset': np.ones((2, 3), int)}, '`reset` must be bool'),
      ('reset_shape', {'reset': np.ones((3, 2), bool)}, '`reset` must.*3, 2'),
  )
  def test_bad_input_names_the_argument(self, changed, message):
    operands = dict(
        a=np.ones((4,), f32), x=np.ones((2, 3, 4), f32), h0=None, reset=None
    )
    operands.update(changed)
    with self.assertRaisesRegex(ValueError, message):
      ops.linear_scan(**operands)

  @parameterized.parameters(
      ('pallas_tpu', f64, 'pallas_tpu: input 0 is float64; the TPU kernel'),
      ('pallas_gpu', f64, 'pallas_gpu: input 0 is float64; the kernel takes'),
      ('pallas_gpu', f32, 'pallas_gpu: D = 3 is not a multiple of 8'),
  )
  def test_pinned_kernel_gives_its_reason(self, name, dtype, message):
    with jax.enable_x64(True), ops.implementation(name):
      x = jnp.ones((2, 4, 3), dtype)
      with self.assertRaisesRegex(NotImplementedError, message):
        ops.linear_scan(x, x)

  def test_unknown_implementation_is_rejected(self):
    with self.assertRaisesRegex(ValueError, "sequential.*got 'fast'"):
      ops.implementation('fast')


class DispatchTest(parameterized.TestCase):

  def setUp(self):
    super().setUp()
    self.spec = jax.ShapeDtypeStruct((2, 64, 8), f32)

  def _lowered(self, platform, name=None):
    with _pinned(name):
      traced = jax.jit(ops.linear_scan).trace(self.spec, self.spec)
      return traced.lower(lowering_platforms=(platform,)).as_text()

  def test_follows_the_platform_it_is_lowered_for(self):
    for platform in ('tpu', 'cuda'):
      text = self._lowered(platform)
      self.assertNotIn('stablehlo.while', text)
      self.assertEqual(text.count('case'), self._lowered('cpu').count('case'))
    self.assertIn('stablehlo.while', self._lowered('cpu'))
    self.assertNotIn('stablehlo.pad', self._lowered('cpu'))

  def test_the_compiled_program_has_no_branch(self):
    compiled = jax.jit(ops.linear_scan).lower(self.spec, self.spec).compile()
    self.assertNotIn('conditional', compiled.as_text())

  def test_pinned_backend_runs_on_every_platform(self):
    for platform in ('cpu', 'tpu'):
      loops = {
          name: self._lowered(platform, name).count('stablehlo.while')
          for name in ('reference', 'associative', 'sequential')
      }
      self.assertEqual(
          loops, dict(reference=1, associative=0, sequential=2)
      )

  def test_pin_is_part_of_the_cache_key(self):
    traces = []

    @jax.jit
    def scan(x):
      traces.append(None)
      return ops.linear_scan(0.5, x)[1]

    x = jnp.ones((1, 2, 1))
    for name in (None, 'reference', 'sequential', None, 'reference'):
      with _pinned(name):
        scan(x)
    self.assertLen(traces, 3)

  def test_backward_uses_the_pin_of_the_forward(self):
    x = jnp.ones((1, 2, 1))
    with _pinned('sequential'):
      _, vjp = jax.vjp(lambda x: ops.linear_scan(0.5, x)[1], x)
    text = jax.jit(vjp).lower(x).as_text()
    self.assertEqual(text.count('stablehlo.while'), 2)


class MemoryTest(parameterized.TestCase):
  """What XLA:CPU allocates and copies beside arguments and results."""

  SHAPE = (4, 512, 128)

  def _specs(self, a_shape, dtype=f32):
    return [
        jax.ShapeDtypeStruct(*spec) for spec in (
            (a_shape, dtype), (self.SHAPE, dtype), ((4, 128), f32)
        )
    ]

  def _temporaries(self, compiled):
    """In units of `x`."""
    memory = compiled.memory_analysis()
    return memory.temp_size_in_bytes / (4 * np.prod(self.SHAPE))

  @parameterized.parameters(
      ((1, 1, 128),), ((4, 1, 128),), ((1, 512, 1),), ((4, 512, 128),)
  )
  def test_forward_needs_no_temporaries(self, a_shape):
    compiled = jax.jit(ops.linear_scan).lower(*self._specs(a_shape)).compile()
    self.assertLess(self._temporaries(compiled), 0.01)

  @parameterized.product(
      dtype=(f32, bf16), reset=(False, True), reverse=(False, True)
  )
  def test_forward_and_backward(self, dtype, reset, reverse):
    a, x, h0 = self._specs(self.SHAPE, dtype)
    reset = jax.ShapeDtypeStruct((4, 512), bool) if reset else None
    lowered = _compiled.lower(a, x, h0, reset, (h0, x), reverse=reverse)
    compiled = lowered.compile()
    if dtype == f32:
      self.assertLess(self._temporaries(compiled), 0.01)
    # Now and then XLA takes it into its head to copy, or to widen, a whole
    # array for every row of it: a thousand times slower.
    loops = _inside_loops(compiled.as_text())
    self.assertIn('dynamic-update-slice', loops)
    whole = r'\w+\[4,512,128\]\S* (?:copy|convert)\('
    self.assertEqual(re.findall(whole, loops), [])

  def test_gradient_of_a_broadcast_decay_is_summed_from_one_array(self):
    a, x, h0 = self._specs((1, 1, 128))
    compiled = _compiled.lower(a, x, h0, None, (h0, x)).compile()
    self.assertLess(self._temporaries(compiled), 1.01)


def _inside_loops(text):
  """The computations of a compiled program that a `while` runs."""
  computations = {
      re.match(r'(?:ENTRY )?(%\S+) \(', part)[1]: part
      for part in re.split(r'\n\n+', text)
      if re.match(r'(?:ENTRY )?%\S+ \(', part)
  }
  wanted, found = re.findall(r'body=(%[\w.-]+)', text), {}
  while wanted:
    name = wanted.pop()
    if name not in found:
      found[name] = computations[name]
      wanted += re.findall(r'(?:calls|to_apply)=(%[\w.-]+)', found[name])
  return '\n'.join(found.values())
