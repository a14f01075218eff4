"""M2RNN: equations in float64 NumPy, clipped gradients, start, bad options."""

from absl.testing import parameterized
from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np
from rnnzoo import layers
from tests.layers import transcription
from tests.layers.transcription import sigmoid


def m2rnn(p, x, carry, counts=(2, 2, 2, 2), gate=lambda f: f):
  """arXiv 2603.14360: H (K, V) per head, tanh(H W + k v^T)."""
  (tail, H), ys = carry, []
  _, heads, keys, values = H.shape
  W = np.repeat(p['cell/W'], heads // len(p['cell/W']), axis=0)
  sizes = keys, keys, values, 1
  for x_t in x:
    u = x_t @ p['input/kernel'] + p.get('input/bias', 0)
    if 'conv' in p:
      channels = p['conv'].shape[1]
      window = np.concatenate([tail, u[:, None, :channels]], axis=1)
      tail, read = window[:, 1:], (window * p['conv']).sum(1)
      u = np.concatenate([read * sigmoid(read), u[:, channels:]], axis=1)
    parts = []
    for count, size in zip(counts, sizes):
      part, u = u[:, : count * size], u[:, count * size :]
      part = part.reshape(-1, count, size)
      parts.append(np.repeat(part, heads // count, axis=1))
    q, k, v, f = parts
    f = gate(f)[..., None]
    Z = np.tanh(H @ W + k[..., None] * v[:, :, None])
    H = f * H + (1 - f) * Z
    y = np.einsum('bnkv,bnk->bnv', H, q)
    ys.append(y.reshape(len(y), -1) @ p['output/kernel'])
  return (H,) if tail is None else (tail, H), ys


def with_sigmoid(p, x, carry):
  """As another published implementation has it."""
  return m2rnn(p, x, carry, gate=sigmoid)


def shared(p, x, carry):
  """Heads that share queries, keys, gates and matrices, and a convolution."""
  return m2rnn(p, x, carry, counts=(1, 2, 4, 2))


class M2RNNTest(parameterized.TestCase):

  @parameterized.parameters(
      (m2rnn, dict(num_heads=2, key_features=3, value_features=2)),
      (with_sigmoid,
       dict(num_heads=2, forget_gate='sigmoid', state_init='identity')),
      (shared,
       dict(num_heads=4, num_query_heads=1, num_key_heads=2, num_forget_heads=2,
            num_weight_heads=2, value_features=2, conv_kernel=3,
            use_bias=True)),
  )
  def test_equals_the_equations_in_numpy(self, equations, options):
    transcription.check(
        equations, lambda rngs: layers.M2RNN(4, **options, rngs=rngs)
    )

  def test_gradients_of_states_are_clipped_at_every_token(self):
    limit, time = 0.01, 4
    make = lambda **options: layers.M2RNN(
        4, num_heads=2, forget_gate='sigmoid', **options, rngs=nnx.Rngs(0)
    )
    layer, clipped = make(), make(gradient_clip=limit)
    x = jax.random.normal(jax.random.key(0), (2, time, 4))
    carry = jax.tree.map(
        lambda u: u + 0.3, layer.initialize_carry(2)
    )
    loss = lambda layer, carry, x: (layer(x, carry)[1] ** 2).sum()
    self.assertEqual(loss(layer, carry, x), loss(clipped, carry, x))
    want, states = jnp.zeros_like(carry.H), [carry]
    for t in range(time):
      states.append(layer.step(states[-1], x[:, t])[0])
    for t in reversed(range(time)):
      # What the output adds to the gradient of the state of this token ...
      advance = lambda H, t=t: layer.step(states[t]._replace(H=H), x[:, t])
      (new, _), pull = jax.vjp(advance, states[t].H)
      of_output = jax.grad(lambda H, t=t: _read(layer, H, x[:, t]))(new.H)
      # ... and this gradient, clipped, one token further back.
      want = jnp.clip(want + of_output, -limit, limit)
      zeros = jnp.zeros((2, 4))
      want, = pull((layers.M2RNNCarry(None, want), zeros))
    got = jax.grad(loss, 1)(clipped, carry, x).H
    np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-7)
    free = jax.grad(loss, 1)(layer, carry, x).H
    self.assertGreater(np.abs(free - got).max(), 1e-3)

  def test_initial_values(self):
    make = lambda **options: layers.M2RNN(
        64, key_features=16, num_heads=4, value_features=32, **options,
        rngs=nnx.Rngs(0),
    )
    W = np.asarray(make().cell.W[...])
    self.assertEqual(W.shape, (4, 32, 32))
    self.assertAlmostEqual(W.std(), 1, delta=0.05)
    W = make(state_init='identity', num_weight_heads=2).cell.W[...]
    np.testing.assert_array_equal(W, [np.eye(32)] * 2)

  @parameterized.parameters(
      (dict(num_heads=3), '`num_heads` must divide 4, got 3'),
      (dict(num_heads=2, num_query_heads=3),
       '`num_query_heads` must divide `num_heads` = 2, got 3'),
      (dict(num_heads=2, num_weight_heads=0), '`num_weight_heads`.*got 0'),
      (dict(value_features=0), '`value_features` must be at least 1, got 0'),
      (dict(conv_kernel=-1), '`conv_kernel` must be 0 or more, got -1'),
      (dict(gradient_clip=0.0), '`gradient_clip` must be positive, got 0'),
      (dict(forget_gate='tanh'), "`forget_gate` must be one of.*'tanh'"),
      (dict(state_init='zeros'), "`state_init` must be one of.*'zeros'"),
      (dict(activation='tanh'), "`activation` must be one of.*'tanh'"),
  )
  def test_invalid_options_raise(self, options, message):
    with self.assertRaisesRegex(ValueError, message) as caught:
      layers.M2RNN(4, **options, rngs=nnx.Rngs(0))
    self.assertNotIn('\n', str(caught.exception))


def _read(layer, H, x_t):
  """The loss of the output of one token, as a function of its state."""
  q = (x_t @ layer.input.kernel[...])[:, : layer.num_heads * H.shape[2]]
  y = jnp.einsum('bnk,bnkv->bnv', q.reshape(H.shape[:3]), H)
  return ((y.reshape(len(y), -1) @ layer.output.kernel[...]) ** 2).sum()
