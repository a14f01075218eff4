"""Aaren: its equations in float64 NumPy, many to one, its initialisation."""

import functools

from absl.testing import parameterized
from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np
from rnnzoo import layers
from rnnzoo import testing
from tests.layers import transcription


def aaren(p, x, carry):
  """Feng et al. (2024), head by head."""
  m, u, w = (np.array(part) for part in carry)
  heads, d = p['query'].shape
  ys = []
  for x_t in x:
    out = np.zeros_like(w)
    for i in range(heads):
      k = x_t @ p['key/kernel'][:, i]
      v = x_t @ p['value/kernel'][:, i] + p['value/bias'][i]
      s = k @ p['query'][i] / np.sqrt(d)
      m_new = np.maximum(m[:, i], s)
      fade, new = np.exp(m[:, i] - m_new), np.exp(s - m_new)
      u[:, i] = u[:, i] * fade + new
      w[:, i] = w[:, i] * fade[:, None] + v * new[:, None]
      m[:, i], out[:, i] = m_new, w[:, i] / u[:, i, None]
    out = out.reshape(len(out), -1)
    ys.append(out @ p['output/kernel'] + p['output/bias'])
  return (m, u, w), ys


def as_attention(p, x, carry):
  """The same as a softmax over all tokens so far, after none."""
  s = np.einsum('tbd,dhk,hk->tbh', x, p['key/kernel'], p['query'])
  s = np.exp(s / np.sqrt(p['query'].shape[1]))
  v = np.einsum('tbd,dhk->tbhk', x, p['value/kernel'])
  total = np.cumsum(s, 0)
  o = np.cumsum(s[..., None] * v, 0) / total[..., None]
  m = np.log(s.max(0))
  last = total[-1] / s.max(0)
  carry = m, last, last[..., None] * o[-1]
  return carry, o.reshape(*o.shape[:2], -1) @ p['output/kernel']


class AarenTest(parameterized.TestCase):

  def test_equals_the_equations_in_numpy(self):
    transcription.check(
        aaren,
        lambda rngs: layers.Aaren(6, num_heads=2, use_bias=True, rngs=rngs),
    )

  def test_equals_softmax_attention(self):
    transcription.check(
        as_attention,
        lambda rngs: layers.Aaren(6, num_heads=3, head_features=4, rngs=rngs),
        carry_of=lambda initial: initial,
    )

  @parameterized.parameters(False, True)
  def test_last_equals_the_last_output(self, flags):
    random = np.random.default_rng(0)
    x = random.standard_normal((4, 9, 6)).astype(np.float32)
    reset = random.random((4, 9)) < 0.3
    mask = random.random((4, 9)) < 0.7
    mask[:, -1], reset[0], mask[1] = True, False, False
    flags = dict(reset=reset, mask=mask) if flags else {}
    layer = layers.Aaren(6, num_heads=2, rngs=nnx.Rngs(0))
    carry, _ = layer(x[:, ::-1])

    def run(form, layer, x, carry):
      carry, y = form(layer)(x, carry, **flags)
      y = y[:, -1] if y.ndim == 3 else y
      return carry, jnp.where(mask[:, -1:], y, 0)

    @jax.jit
    def both(layer, x, carry):
      results = []
      for form in (lambda u: u, lambda u: u.last):
        out, pull = jax.vjp(
            functools.partial(run, form), layer, x, carry
        )
        results.append((out, pull(jax.tree.map(jnp.cos, out))))
      return results

    want, got = both(layer, x, carry)
    testing.assert_close(got, want)

  def test_last_without_tokens_is_zero(self):
    layer = layers.Aaren(6, num_heads=2, rngs=nnx.Rngs(0))
    x = np.full((2, 3, 6), np.nan, np.float32)
    carry, y = layer.last(x, mask=np.zeros((2, 3), bool))
    np.testing.assert_array_equal(y, 0)
    testing.assert_close(carry, layer.initialize_carry(2), tolerance=0)

  def test_large_scores_do_not_overflow(self):
    layer = layers.Aaren(6, num_heads=2, rngs=nnx.Rngs(0))
    layer.query[...] *= 1e6
    random = np.random.default_rng(0)
    x = random.standard_normal((2, 40, 6)).astype(np.float32)
    carry, y = layer(x)
    self.assertTrue(np.isfinite(y).all())
    self.assertGreater(np.abs(carry.m).min(), 1e3)  # Its exponential is not.

  def test_initial_parameters(self):
    layer = layers.Aaren(64, num_heads=4, head_features=500, rngs=nnx.Rngs(0))
    query = np.asarray(layer.query[...])
    self.assertBetween(query.std(), 0.95, 1.05)
    for kernel, bound in (
        (layer.key.kernel, 1 / 8),
        (layer.value.kernel, 1 / 8),
        (layer.output.kernel, 2000**-0.5),
    ):
      u = np.abs(kernel[...]) / bound
      self.assertBetween(u.max(), 0.999, 1)
      self.assertBetween(u.mean(), 0.49, 0.51)

  @parameterized.parameters(0, 4)
  def test_heads_must_divide_the_features(self, num_heads):
    with self.assertRaisesRegex(ValueError, f'num_heads.*got {num_heads}'):
      layers.Aaren(6, num_heads=num_heads, rngs=nnx.Rngs(0))
