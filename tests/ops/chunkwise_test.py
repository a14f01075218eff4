"""Decays inside a chunk, and recurrences in chunks, match plain loops."""

from absl.testing import parameterized
import jax
import jax.numpy as jnp
import numpy as np
from rnnzoo.ops import chunkwise
from rnnzoo.ops import decays


def sums(g):
  """`[i, j]`: the sum of `g` `[Q, ...]` over j < l <= i, in float64."""
  length = len(g)
  out = np.zeros((length, *g.shape), np.float64)
  for i in range(length):
    for j in range(i):
      out[i, j] = np.sum(g[j + 1 : i + 1], axis=0, dtype=np.float64)
  return out


def totals(state, inputs, visible):
  """A recurrence whose state and outputs are sums of all that is visible."""
  (x,) = inputs
  y = jnp.where(visible.pairs[..., None], x[:, :, None], 0).sum(3)
  y = y + jnp.where(visible.state[..., None], state[:, :, None], 0)
  kept = jnp.where(visible.through[..., None], state, 0)
  return kept + jnp.where(visible.last[..., None], x, 0).sum(2), y


class WeightsTest(parameterized.TestCase):

  def test_log_decays_between_tokens(self):
    # Strong decays before a weak one would cost a difference of sums its
    # digits.
    g = -np.random.default_rng(0).uniform(size=16).astype(np.float32)
    g[[2, 9]] = -3e4
    got = np.asarray(jax.jit(decays.between)(g))
    later = np.tri(16, dtype=bool)
    np.testing.assert_allclose(got[later], sums(g)[later], rtol=1e-6)

  def test_scores_with_decays(self):
    random = np.random.default_rng(1)
    q, k = random.standard_normal((2, 3, 8, 5)).astype(np.float32)
    g = -random.uniform(size=(3, 8, 5)).astype(np.float32) ** 2
    g[:, 3] *= 200
    g[0, 5, 2] = -np.inf
    g[1, 6] = -3e38
    g = np.asarray(decays.finite(jnp.asarray(g), jnp.float32))
    got = np.asarray(jax.jit(decays.scores)(q, k, g))
    for row in range(3):
      weights = np.exp(sums(g[row]))
      want = np.einsum('ik,jk,ijk->ij', q[row], k[row], weights)
      np.testing.assert_allclose(
          got[row], np.tril(want), rtol=1e-5, atol=1e-6
      )

  def test_gradients_are_finite_where_a_decay_is_zero(self):
    g = jnp.array([[-1.0], [-jnp.inf], [-2.0], [-jnp.inf]])
    q = jnp.ones((4, 1))

    def total(q, k, g):
      g = decays.finite(g, jnp.float32)
      return decays.scores(q, k, g).sum() + jnp.exp(
          jnp.where(jnp.tri(4, dtype=bool), decays.between(g[:, 0]), -jnp.inf)
      ).sum()

    for gradient in jax.grad(total, argnums=(0, 1, 2))(q, q, g):
      self.assertTrue(np.isfinite(gradient).all())


class ScanTest(parameterized.TestCase):

  @parameterized.parameters(1, 4, 8)
  def test_packed_sequences_match_loop(self, chunk_size):
    random = np.random.default_rng(chunk_size)
    x = random.standard_normal((2, 7, 3, 2))
    state = random.standard_normal((2, 3, 2))
    reset, mask = random.random((2, 2, 7)) < [[[0.3]], [[0.8]]]
    with jax.enable_x64(True):
      got_state, got = chunkwise.scan_chunks(
          totals, jnp.asarray(state), (jnp.asarray(x),), reset, mask, chunk_size
      )
    want = np.zeros_like(x)
    for b in range(2):
      for t in range(7):
        if mask[b, t]:
          state[b] = (0 if reset[b, t] else state[b]) + x[b, t]
          want[b, t] = state[b]
    np.testing.assert_allclose(got, want, rtol=1e-12)
    np.testing.assert_allclose(got_state, state, rtol=1e-12)

  def test_a_nan_stays_in_its_own_sequence(self):
    x = np.ones((3, 8, 1, 1), np.float32)
    x[0, 2], x[1, 5] = np.nan, np.inf
    state = np.array([0.0, 0.0, np.nan], np.float32)[:, None, None]
    reset = np.zeros((3, 8), bool)
    reset[:, 4] = True

    def run(state, x):
      return chunkwise.scan_chunks(totals, state, (x,), reset, None, 4)

    last, y = run(jnp.asarray(state), jnp.asarray(x))
    is_nan = np.zeros((3, 8), bool)
    is_nan[0, 2:4] = is_nan[1, 5:] = is_nan[2, :4] = True
    np.testing.assert_array_equal(np.isnan(y[..., 0, 0]), is_nan)
    np.testing.assert_array_equal(np.isnan(last[:, 0, 0]), is_nan[:, -1])
    # Gradients of the other outputs are finite, too.
    right = lambda *a: jnp.where(is_nan, 0, run(*a)[1][..., 0, 0]).sum()
    d_state, d_x = jax.grad(right, argnums=(0, 1))(
        jnp.asarray(state), jnp.asarray(x)
    )
    self.assertTrue(np.isfinite(d_state).all())
    self.assertTrue(np.isfinite(d_x).all())

  def test_no_tokens_keep_the_state(self):
    state = jnp.ones((2, 3, 4))
    last, y = chunkwise.scan_chunks(
        totals, state, (jnp.zeros((2, 0, 3, 4)),), None, None, 4
    )
    self.assertEqual(y.shape, (2, 0, 3, 4))
    np.testing.assert_array_equal(last, state)

  def test_chunk_size_must_be_a_power_of_two(self):
    with self.assertRaisesRegex(ValueError, 'chunk_size.*power of two, got 6'):
      chunkwise.scan_chunks(
          totals, jnp.ones((1, 1, 1)), (jnp.ones((1, 5, 1, 1)),), None, None, 6
      )
