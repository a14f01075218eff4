"""sLSTM and its block: equations, initial values, and its stabiliser."""

from absl.testing import parameterized
from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np
from rnnzoo import layers
from rnnzoo import models
from rnnzoo import testing
from tests.layers import transcription
from tests.layers.transcription import sigmoid


def cell(p, inputs, carry, *, exponential=False):
  """Equations 8 to 14 of the paper, gate by gate; nothing is stabilised.

  Args:
    p: `R` `[heads, d, 4, d]` and `b` `[4, H]`, in the order i, f, z, o.
    inputs: `W x` of each token, T of `[B, 4, H]`.
    carry: c, n, m, h.
    exponential: Whether the forget gate is an exponential.

  Returns:
    The last carry, and T of `[B, H]`.
  """
  c, n, m, h = carry
  c, n, ys = c * np.exp(m), n * np.exp(m), []
  heads, size = p['R'].shape[:2]
  for w_x in inputs:
    r_h = np.zeros_like(w_x)
    for k in range(heads):
      head = slice(k * size, (k + 1) * size)
      for gate in range(4):
        r_h[:, gate, head] = h[:, head] @ p['R'][k, :, gate]
    i, f, z, o = (w_x[:, g] + r_h[:, g] + p['b'][g] for g in range(4))
    log_f = f if exponential else np.log(sigmoid(f))
    f, m = np.exp(log_f), np.maximum(log_f + m, i)
    c = f * c + np.exp(i) * np.tanh(z)
    n = f * n + np.exp(i)
    h = sigmoid(o) * c / n
    ys.append(h)
  return (c * np.exp(-m), n * np.exp(-m), m, h), ys


def slstm(p, x, carry, **options):
  """Beck et al. (2024), arXiv 2405.04517, section 2.2."""
  inputs = [np.einsum('bd,dgh->bgh', x_t, p['W']) for x_t in x]
  return cell(p, inputs, carry, **options)


def slstm_exponential(p, x, carry):
  return slstm(p, x, carry, exponential=True)


def slstm_block(p, x, carry, taps=4, epsilon=1e-5):
  """The same, figure 10, without its norm and its MLP."""
  (tail, carry), inputs = carry, []
  w = p['cell/W']
  heads, size = w.shape[1:3]
  for x_t in x:
    u_t = x_t
    if taps:
      tail = np.concatenate([tail, x_t[:, None]], axis=1)
      u_t = p['bias'] + sum(p['kernel'][k] * tail[:, k] for k in range(taps))
      u_t, tail = u_t * sigmoid(u_t), tail[:, 1:]
    rows = []
    for gate, read in enumerate((u_t, u_t, x_t, x_t)):
      rows.append(np.concatenate([
          read[:, k * size : (k + 1) * size] @ w[gate, k] for k in range(heads)
      ], axis=1))
    inputs.append(np.stack(rows, axis=1))
  carry, hs = cell({'R': p['cell/R'], 'b': p['cell/b']}, inputs, carry)
  ys = []
  for h in hs:
    head = h.reshape(-1, heads, size)
    head = head - head.mean(-1, keepdims=True)
    head = head / np.sqrt((head**2).mean(-1, keepdims=True) + epsilon)
    ys.append((p['norm/scale'] * head).reshape(h.shape))
  return layers.SLSTMBlockCarry(tail, carry), ys


def slstm_block_without_convolution(p, x, carry):
  return slstm_block(p, x, carry, taps=0)


def started(initial):
  """A carry some tokens have left behind, whose `n` is positive."""
  random = np.random.default_rng(1)
  carry = jax.tree.map(lambda u: random.standard_normal(u.shape), initial)
  if isinstance(carry, layers.SLSTMCarry):
    return carry._replace(n=np.exp(carry.n))
  return carry._replace(cell=carry.cell._replace(n=np.exp(carry.cell.n)))


class TranscriptionTest(parameterized.TestCase):

  @parameterized.named_parameters(
      ('slstm', slstm, layers.SLSTM, {}),
      ('exponential', slstm_exponential, layers.SLSTM,
       dict(forget_gate='exponential')),
      ('block', slstm_block, layers.SLSTMBlock, {}),
      ('block_without_convolution', slstm_block_without_convolution,
       layers.SLSTMBlock, dict(conv_kernel=0)),
  )
  def test_equals_a_loop_in_numpy(self, equations, layer, options):
    transcription.check(
        equations,
        lambda rngs: layer(6, num_heads=2, **options, rngs=rngs),
        carry_of=started,
    )


class StabiliserTest(parameterized.TestCase):

  def test_large_gates_do_not_overflow(self):
    # exp of 300 is no float32; alone, the first token then weighs nothing.
    layer = layers.SLSTM(1, 2, num_heads=1, rngs=nnx.Rngs(0))
    layer.W[...] = jnp.zeros_like(layer.W[...]).at[0, 0].set([300.0, -300.0])
    layer.W[...] = layer.W[...].at[0, 2].set(jnp.ones(2))
    x = jnp.array([[[-1.0], [1.0], [0.5]]])
    run = lambda x: layer(x)[1]
    y, gradient = run(x)[0], jax.grad(lambda x: run(x).sum())(x)
    want = 0.5 * np.tanh([[-1.0, -1.0], [1.0, -1.0], [1.0, -1.0]])
    np.testing.assert_allclose(y, want, rtol=1e-6)
    self.assertTrue(np.isfinite(gradient).all())

  def test_a_fresh_row_beside_a_started_one(self):
    # The official cell starts a batch as a whole: its rows would differ here.
    layer = layers.SLSTM(3, 4, num_heads=2, rngs=nnx.Rngs(0))
    x = jax.random.normal(jax.random.key(0), (2, 5, 3))
    carry, _ = layer(x)
    mixed = jax.tree.map(
        lambda u, v: u.at[0].set(v[0]), carry, layer.initialize_carry(2)
    )
    testing.assert_close(
        jax.tree.map(lambda u: u[0], layer(x, mixed)),
        jax.tree.map(lambda u: u[0], layer(x)),
    )


class InitializationTest(parameterized.TestCase):

  @parameterized.parameters(
      (layers.SLSTM, 0.0, 0.3), (layers.SLSTMBlock, 1.0, 1.6)
  )
  def test_forget_bias_falls_over_a_head(self, cls, depth, exponent):
    layer = cls(32, num_heads=2, relative_depth=depth, rngs=nnx.Rngs(0))
    bias = np.asarray(getattr(layer, 'cell', layer).b[...])
    want = 5 - 12 * (np.arange(16) / 15) ** exponent
    np.testing.assert_allclose(bias[1], np.tile(want, 2), rtol=1e-5)
    np.testing.assert_array_equal(bias[[0, 2, 3]], np.zeros((3, 32)))

  def test_forget_bias_is_linear_with_linspace(self):
    layer = layers.SLSTM(4, 8, bias_init='linspace', rngs=nnx.Rngs(0))
    np.testing.assert_allclose(layer.b[...][1], [3, 6] * 4)

  def test_a_head_may_have_one_feature(self):
    layer = layers.SLSTM(4, 4, num_heads=4, rngs=nnx.Rngs(0))
    np.testing.assert_array_equal(layer.b[...][1], np.full(4, 5))

  def test_initial_matrices(self):
    for layer, w in (
        (layers.SLSTM(160, 64, rngs=nnx.Rngs(0)), lambda u: u.W),
        (layers.SLSTMBlock(160, rngs=nnx.Rngs(0)), lambda u: u.cell.W),
    ):
      w = np.asarray(w(layer)[...])
      self.assertAlmostEqual(w.std(), (2 / (5 * 160)) ** 0.5, delta=1e-3)
    self.assertFalse(np.any(layer.cell.R[...]))
    for u in (layer.kernel[...], layer.bias[...]):
      self.assertBetween(float(jnp.abs(u).max()), 0.48, 0.5)
    layer = layers.SLSTM(4, 64, recurrent_init='uniform', rngs=nnx.Rngs(0))
    self.assertBetween(float(jnp.abs(layer.R[...]).max()), 0.12, 0.125)

  def test_biases_are_never_stored_below_float32(self):
    layer = layers.SLSTMBlock(8, param_dtype=jnp.bfloat16, rngs=nnx.Rngs(0))
    self.assertEqual(layer.cell.b[...].dtype, jnp.float32)
    self.assertEqual(layer.cell.W[...].dtype, jnp.bfloat16)

  @parameterized.parameters(
      (layers.SLSTM, dict(num_heads=3)),
      (layers.SLSTM, dict(num_heads=0)),
      (layers.SLSTM, dict(forget_gate='tanh')),
      (layers.SLSTM, dict(recurrent_init='ones')),
      (layers.SLSTM, dict(bias_init='zeros')),
      (layers.SLSTM, dict(relative_depth=1.5)),
      (layers.SLSTMBlock, dict(num_heads=8)),
      (layers.SLSTMBlock, dict(conv_kernel=-1)),
  )
  def test_invalid_options_raise(self, cls, option):
    (name, value), = option.items()
    with self.assertRaisesRegex(ValueError, f'`{name}` must.*got.*{value}'):
      cls(8, **option, rngs=nnx.Rngs(0))


class PresetTest(parameterized.TestCase):

  def test_official_parity_model(self):
    config = models.PRESETS['slstm_parity']
    model = nnx.eval_shape(
        lambda: models.LanguageModel(config, rngs=nnx.Rngs(0))
    )
    stack = model.backbone.stacks[0]
    self.assertEqual(stack.layer.cell.R.shape, (2, 1, 64, 4, 64))
    self.assertEqual(stack.mlp_in.kernel.shape, (2, 64, 128))
