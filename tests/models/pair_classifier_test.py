"""The classifier of pairs: its formula, its padding, its chunks."""

from absl.testing import absltest
from absl.testing import parameterized
from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np
from rnnzoo import errors
from rnnzoo import models
from tests.models import small

B, T, V, N = 3, 7, small.V, 4


def make(**changes):
  changes = dict(num_classes=N, num_layers=1) | changes
  return small.make(models.PairClassifier, **changes)


def pairs():
  """Returns tokens `[B, T, 2]` and a mask of unequal lengths."""
  tokens = np.random.default_rng(0).integers(0, V, (B, T, 2), np.int32)
  lengths = np.array([[7, 3], [2, 7], [5, 5]])
  mask = np.arange(T)[:, None] < lengths[:, None]
  return tokens, mask, lengths


class PairClassifierTest(parameterized.TestCase):

  @parameterized.parameters(False, True)
  def test_the_head_is_what_the_formula_says(self, bidirectional):
    model = make(layer='lru', bidirectional=bidirectional)
    tokens, mask, lengths = pairs()
    carry, logits = model(tokens, mask=mask)
    # The mean of the features of each sequence by itself, cut to its length.
    def features(row, which):
      tokens_of_one = tokens[row : row + 1, : lengths[row, which], which]
      _, x = model.backbone(model.embed(tokens_of_one))
      return np.asarray(model.norm(x))[0].mean(0)

    weights = lambda m: (np.asarray(m.kernel[...]), np.asarray(m.bias[...]))
    (w1, b1), (w2, b2) = weights(model.hidden), weights(model.head)
    self.assertEqual(w1.shape, (4 * 8, 8))
    for row in range(B):
      u, v = features(row, 0), features(row, 1)
      x = np.concatenate([u, v, u - v, u * v]) @ w1 + b1
      x = x / 2 * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))
      np.testing.assert_allclose(
          logits[row], x @ w2 + b2, rtol=2e-4, atol=2e-5
      )
    self.assertEqual(carry.count.tolist(), lengths.reshape(-1).tolist())

  def test_padding_of_either_sequence_changes_nothing(self):
    graphdef, params = nnx.split(make(norm='batch', gate='glu'))
    tokens, mask, _ = pairs()

    def run(params, tokens, mask):
      model = nnx.merge(graphdef, params)
      _, logits = model(tokens, mask=mask, train=True)
      return (logits**2).sum(), (logits, nnx.state(model, nnx.BatchStat))

    run = small.jit(jax.value_and_grad(run, has_aux=True))
    expected = run(params, tokens, mask)
    other = np.where(mask, tokens, (tokens + 1) % V)
    self.assertTrue((other != tokens).any((0, 1)).all())
    small.assert_trees_close(run(params, other, mask), expected, 1e-6)
    # Exchanging the two sequences exchanges u and v, no more.
    swapped = nnx.merge(graphdef, jax.tree.map(lambda u: u, params))
    kernel = swapped.hidden.kernel[...].reshape(4, 8, 8)
    swapped.hidden.kernel[...] = jnp.concatenate(
        [kernel[1], kernel[0], -kernel[2], kernel[3]]
    )
    _, logits = swapped(tokens[..., ::-1], mask=mask[..., ::-1], train=True)
    np.testing.assert_allclose(logits, expected[0][1][0], atol=2e-5)

  def test_whole_chunks_and_steps_agree(self):
    model = make(pooling='last')
    tokens, mask, _ = pairs()
    carry, want = model(tokens, mask=mask)
    half, _ = model(tokens[:, :3], mask=mask[:, :3])
    half, got = model(tokens[:, 3:], half, mask=mask[:, 3:])
    step = small.jit(lambda c, u, m: model.step(c, u, mask=m))
    stepped = model.initialize_carry(B)
    self.assertLen(stepped.count, 2 * B)
    for t in range(T):
      stepped, each = step(stepped, tokens[:, t], mask[:, t])
    small.assert_trees_close((got, each), (want, want))
    small.assert_trees_close((half, stepped), (carry, carry))

  def test_lengths_of_steps_and_vectors(self):
    model = make(layer='lru', vocab_size=0, in_features=3)
    x = np.random.default_rng(0).normal(size=(B, T, 2, 3))
    _, plain = model(x)
    _, ones = model(x, dt=np.ones((B, T, 2), np.float32))
    _, twos = model(x, dt=np.full((B, T, 2), 2, np.float32))
    small.assert_trees_close(ones, plain)
    self.assertGreater(abs(twos - plain).max(), 1e-4)

  def test_errors(self):
    for changes, message in (
        (dict(num_classes=0), 'num_classes must be set'),
        (dict(pooling='none'), 'must be mean, last or first'),
    ):
      with self.assertRaisesRegex(errors.UserValueError, message):
        make(**changes)
    model = make()
    tokens, mask, _ = pairs()
    with self.assertRaisesRegex(
        ValueError, r'`inputs` must be pairs \[B, T, 2, ...\], got \(3, 7\)'
    ):
      model(tokens[..., 0])
    with self.assertRaisesRegex(ValueError, r'`inputs` must be pairs \[B, 2'):
      model.step(None, tokens[:, :, 0])
    with self.assertRaisesRegex(ValueError, '`mask` must be pairs'):
      model(tokens, mask=mask[..., 0])
    with self.assertRaisesRegex(ValueError, 'ids from 0 to 15, got'):
      model(tokens + V)


if __name__ == '__main__':
  absltest.main()
