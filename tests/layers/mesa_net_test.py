"""MesaNet: equations in float64 NumPy, both solvers, start, memory, errors."""

from absl.testing import parameterized
from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np
from rnnzoo import layers
from rnnzoo import ops
from rnnzoo import testing
from rnnzoo.layers import base
from tests.layers import modules
from tests.layers import transcription
from tests.layers.transcription import sigmoid


def silu(u):
  return u * sigmoid(u)


def unit(u):
  return u / np.sqrt((u**2).sum(-1, keepdims=True) + 1e-6)


def solve(A, q):
  return np.linalg.solve(A, q[..., None])[..., 0]


def two_steps(A, q):
  """Conjugate gradients, as in a textbook."""
  x, r = np.zeros_like(q), q
  p = r
  for _ in range(2):
    Ap = np.einsum('bhij,bhj->bhi', A, p)
    alpha = (r * r).sum(-1, keepdims=True) / (p * Ap).sum(-1, keepdims=True)
    x, old, r = x + alpha * p, r, r - alpha * Ap
    beta = (r * r).sum(-1, keepdims=True) / (old * old).sum(-1, keepdims=True)
    p = r + beta * p
  return x


def mesa_net(p, x, carry, solve=solve, gated=False):
  """von Oswald et al. (2025), arXiv 2506.05233, section 3."""
  (tail, G, M), ys = carry, []
  _, heads, keys, values = M.shape
  ridge = np.logaddexp(0, p['ridge'])[..., None] * np.eye(keys)
  ridge = ridge + 0.25 * np.eye(keys)
  for x_t in x:
    u = (x_t @ p['query_key/kernel'])[:, None]
    window = np.concatenate([tail, u], axis=1)
    tail, u = window[:, 1:], silu((window * p['conv']).sum(1))
    q, k = unit(u.reshape(-1, 2, heads, keys)).swapaxes(0, 1)
    v = np.einsum('bd,dhv->bhv', x_t, p['value/kernel'])
    beta, decay = sigmoid(
        np.einsum('bd,dgh->gbh', x_t, p['gates/kernel'])
        + p['gates/bias'][:, None]
    )[..., None, None]
    write = beta * k[..., None]
    G, M = decay * G + write * k[:, :, None], decay * M + write * v[:, :, None]
    y = np.einsum('bhk,bhkv->bhv', solve(G + ridge, q), M)
    y = y / np.sqrt((y**2).mean(-1, keepdims=True) + 1e-5) * p['norm/scale']
    if gated:
      y = y * silu(np.einsum('bd,dhv->bhv', x_t, p['gate/kernel']))
    ys.append(y.reshape(len(y), -1) @ p['output/kernel'])
  return (tail, G, M), ys


def gated(p, x, carry):
  """With the output gate of published code."""
  return mesa_net(p, x, carry, gated=True)


def stopped(p, x, carry):
  """The solution after two steps of conjugate gradients."""
  return mesa_net(p, x, carry, solve=two_steps)


def carry_of(initial):
  """A state that tokens can leave: no eigenvalue of G is negative."""
  random = np.random.default_rng(1)
  conv, G, M = (random.standard_normal(u.shape) for u in initial)
  return layers.MesaNetCarry(conv, G @ G.swapaxes(-1, -2), M)


class MesaNetTest(parameterized.TestCase):

  @parameterized.parameters(
      (mesa_net, dict(num_heads=2)),
      (mesa_net, dict(num_heads=2, solver='exact')),
      (gated, dict(num_heads=1, value_features=3, use_output_gate=True)),
      (stopped, dict(num_heads=1, num_iterations=2)),
  )
  def test_equals_the_equations_in_numpy(self, equations, options):
    make = lambda rngs: layers.MesaNet(4, chunk_size=4, **options, rngs=rngs)
    transcription.check(equations, make, carry_of=carry_of)

  def test_few_steps_are_the_same_in_both_forms(self):
    layer = layers.MesaNet(
        8, num_heads=1, num_iterations=3, chunk_size=4, rngs=nnx.Rngs(0)
    )
    graph, params = nnx.split(layer)
    x = jax.random.normal(jax.random.key(0), (2, 10, 8))
    forms = (
        lambda layer, x: layer(x), lambda layer, x: base.scan_steps(
            layer, None, x
        ),
    )

    def results(params, x, run):
      def loss(params, x):
        y = run(nnx.merge(graph, params), x)[1]
        return (y**2).sum(), y

      return jax.grad(loss, (0, 1), has_aux=True)(params, x)

    parallel, steps = (
        jax.jit(lambda *a, run=run: results(*a, run))(params, x)
        for run in forms
    )
    testing.assert_close(parallel, steps)
    exact = layers.MesaNet(8, num_heads=1, solver='exact', rngs=nnx.Rngs(0))
    self.assertGreater(np.abs(exact(x)[1] - parallel[1]).max(), 1e-5)

  def test_the_published_number_of_steps_is_almost_exact(self):
    """With heads of 128 features, which need up to 128 steps in theory."""
    random = np.random.default_rng(0)
    q, k, v = random.standard_normal((3, 1, 256, 1, 128), np.float32)
    q, k = (u / np.linalg.norm(u, axis=-1, keepdims=True) for u in (q, k))
    ones = np.ones((1, 256, 1), np.float32)
    run = lambda **options: jax.jit(lambda: ops.mesa_scan(
        q, k, v, ones, np.ones((1, 128), np.float32), log_decay=-1e-3 * ones,
        **options,
    )[1])()
    want = run(solver='exact')
    errors = [
        np.abs(run(num_iterations=n) - want).max() / np.abs(want).max()
        for n in (5, 30)
    ]
    self.assertGreater(errors[0], 1e-3)
    self.assertLess(errors[1], 1e-5)

  def test_initial_values_and_sizes(self):
    layer = nnx.eval_shape(lambda: layers.MesaNet(2048, rngs=nnx.Rngs(0)))
    self.assertEqual(layer.state_shape.M, (16, 128, 128))
    layer = layers.MesaNet(
        4, min_ridge=0.5, param_dtype=jnp.bfloat16, rngs=nnx.Rngs(0)
    )
    np.testing.assert_allclose(jax.nn.softplus(layer.ridge[...]), 0.5, 1e-6)
    for u in (layer.ridge, layer.gates.bias):
      self.assertEqual(u.dtype, jnp.float32)
    self.assertEqual(layer.query_key.kernel.dtype, jnp.bfloat16)

  @parameterized.parameters('cg', 'exact')
  def test_a_training_step_does_not_store_all_states(self, solver):
    time, features = 4096, 64
    layer = layers.MesaNet(
        features, num_heads=1, solver=solver, rngs=nnx.Rngs(0)
    )
    temporaries = modules.training_memory(layer, time)
    states = 4 * time * sum(u.size for u in layer.initialize_carry(1)[1:])
    self.assertLess(temporaries, 0.3 * states)

  @parameterized.parameters(
      (dict(num_heads=3), '`num_heads` must divide 4, got 3'),
      (dict(value_features=0), '`value_features` must be.*1, got 0'),
      (dict(conv_kernel=0), '`conv_kernel` must be at least 1, got 0'),
      (dict(min_ridge=1.0), r'`min_ridge` must be in \[0, 1\), got 1'),
      (dict(solver='qr'), "`solver` must be one of cg, exact, got 'qr'"),
      (dict(num_iterations=0), '`num_iterations` must be at least 1, got 0'),
  )
  def test_invalid_options_raise(self, options, message):
    with self.assertRaisesRegex(ValueError, message) as caught:
      layers.MesaNet(4, **options, rngs=nnx.Rngs(0))
    self.assertNotIn('\n', str(caught.exception))

  @parameterized.parameters(
      ('k', (1, 2, 1, 2), r'`k` must be \[B, T, H, K\] = \(1, 2, 1, 3\)'),
      ('v', (1, 2, 2), r'`v` must be \[B, T, H, V\]'),
      ('beta', (1, 2), r'`beta` must be \[B, T, H\] = \(1, 2, 1\)'),
      ('log_decay', (1, 1, 1), '`log_decay` must be .B, T, H.'),
      ('ridge', (3,), r'`ridge` must be \[H, K\] = \(1, 3\)'),
  )
  def test_wrong_shapes_raise(self, name, shape, message):
    vector, number = (1, 2, 1, 3), (1, 2, 1)
    shapes = dict(
        q=vector, k=vector, v=vector, beta=number, log_decay=number,
        ridge=(1, 3),
    )
    with self.assertRaisesRegex(ValueError, message):
      ops.mesa_scan(**jax.tree.map(
          jnp.ones, shapes | {name: shape},
          is_leaf=lambda u: isinstance(u, tuple),
      ))
