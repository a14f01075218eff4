"""The block of Griffin and Hawk: its equations, start, and published sizes."""

from absl.testing import parameterized
from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np
from rnnzoo import layers
from rnnzoo import models
from tests.layers import cg_lru_test
from tests.layers import rg_lru_test
from tests.layers import transcription

# The forms of the paper's table 2 that need no attention: width, width of the
# recurrence, depth.
_SIZES = dict(
    hawk_100m=(768, 1024, 12), hawk_200m=(1024, 1536, 12),
    hawk_400m=(1536, 2048, 12), hawk_1p3b=(2048, 2560, 24),
    hawk_3b=(3072, 4096, 24), hawk_7b=(4096, 5632, 32),
)


def gelu(u):
  cubic = u + 0.044715 * u**3
  return 0.5 * u * (1 + np.tanh(np.sqrt(2 / np.pi) * cubic))


def equations(recurrence, p, x, carry):
  """De et al. (2024), arXiv 2402.19427, figure 2 and section 2.3."""
  dense = lambda name, u: u @ p[f'{name}/kernel'] + p[f'{name}/bias']
  past = list(np.moveaxis(np.array(carry.conv), 1, 0))
  us = []
  for x_t in x:
    past.append(dense('linear_x', x_t))
    taps = zip(p['conv_kernel'], past[-len(p['conv_kernel']) :], strict=True)
    us.append(p['conv_bias'] + sum(w * u for w, u in taps))
  inner = {
      name[len('recurrent/') :]: value
      for name, value in p.items()
      if name.startswith('recurrent/')
  }
  recurrent, hs = recurrence(inner, us, carry.recurrent)
  ys = [
      dense('linear_out', h * gelu(dense('linear_y', x_t)))
      for h, x_t in zip(hs, x)
  ]
  return (np.stack(past[len(x) :], axis=1), recurrent), ys


class GriffinBlockTest(parameterized.TestCase):

  @parameterized.named_parameters(
      ('rg_lru', rg_lru_test.equations, rg_lru_test.some_fresh),
      ('cg_lru', cg_lru_test.equations, cg_lru_test.some_fresh),
  )
  def test_equals_the_equations_of_the_paper(self, inner, some_fresh):
    def carry_of(initial):
      conv = np.random.default_rng(4).standard_normal(initial.conv.shape)
      return initial._replace(
          conv=conv, recurrent=some_fresh(initial.recurrent)
      )

    name = 'rg_lru' if inner is rg_lru_test.equations else 'cg_lru'
    transcription.check(
        lambda *arguments: equations(inner, *arguments),
        lambda rngs: layers.GriffinBlock(
            5, 8, recurrence=name, num_heads=2, rngs=rngs
        ),
        carry_of=carry_of,
    )

  def test_initial_values(self):
    layer = layers.GriffinBlock(300, 400, output_scale=0.1, rngs=nnx.Rngs(0))
    for value, variance in (
        (layer.linear_x.kernel, 1 / 300), (layer.linear_y.kernel, 1 / 300),
        (layer.linear_out.kernel, 0.1 / 400), (layer.conv_kernel, 0.01 / 4),
    ):
      value = np.asarray(value[...])
      self.assertAlmostEqual(value.var() / variance, 1, delta=0.1)
      # Not truncated, as those of Flax are by default.
      self.assertGreater(np.abs(value).max(), 2.5 * variance**0.5)
    for name in ('linear_x', 'linear_y', 'linear_out'):
      self.assertFalse(getattr(layer, name).bias[...].any())
    self.assertFalse(layer.conv_bias[...].any())

  def test_default_sizes(self):
    for features, hidden in ((768, 1024), (1536, 2048), (8, 16), (256, 352)):
      layer = nnx.eval_shape(
          lambda: layers.GriffinBlock(features, rngs=nnx.Rngs(0))
      )
      self.assertEqual(layer.hidden_features, hidden)
      self.assertEqual(layer.recurrent.num_heads, 16)

  def test_invalid_options_raise(self):
    make = lambda **k: layers.GriffinBlock(6, 8, **k, rngs=nnx.Rngs(0))
    with self.assertRaisesRegex(ValueError, "cg_lru.*'lru'"):
      make(recurrence='lru')
    with self.assertRaisesRegex(ValueError, 'positive, got 0'):
      make(conv_kernel=0)
    with self.assertRaisesRegex(ValueError, 'divide 8, got 3'):
      make(num_heads=3)


class HawkTest(parameterized.TestCase):

  @parameterized.parameters(*_SIZES)
  def test_presets_have_the_published_sizes(self, name):
    d, h, depth = _SIZES[name]
    config = models.PRESETS[name]
    self.assertEqual(config.num_layers, depth)
    # One block of each is enough: they are stacked.
    shapes = nnx.eval_shape(lambda: models.LanguageModel(
        config.replace(num_layers=1, vocab_size=32), rngs=nnx.Rngs(0)
    ))
    leaves = jax.tree.leaves(nnx.state(shapes, nnx.Param))
    recurrence = h + 2 * (h * h // 16 + h)
    mixing = 2 * (d + 1) * h + (4 + 1) * h + recurrence + (h + 1) * d
    mlp = 2 * (d + 1) * 3 * d + (3 * d + 1) * d
    # The embedding is the head, too; a scale for each of three norms.
    self.assertEqual(
        sum(leaf.size for leaf in leaves), mixing + mlp + 3 * d + 32 * d
    )
    in_name = float(name[5:-1].replace('p', '.')) * dict(m=1e6, b=1e9)[name[-1]]
    self.assertAlmostEqual(depth * (mixing + mlp) / in_name, 1, delta=0.15)

  def test_output_variance_falls_with_depth(self):
    options = models.PRESETS['hawk_100m'].layer_options
    self.assertEqual(options['output_scale'], 2 / 12)

  def test_a_model_in_parallel_equals_its_steps(self):
    config = models.ModelConfig.tiny().replace(
        layer='griffin,rg_lru,cg_lru', num_layers=3
    )
    model = models.LanguageModel(config, rngs=nnx.Rngs(0))
    tokens = np.arange(10, dtype='int32').reshape(2, 5)
    _, want = jax.jit(lambda tokens: model(tokens))(tokens)
    step = jax.jit(lambda carry, token: model.step(carry, token))
    carry = model.initialize_carry(2)
    for t in range(5):
      carry, logits = step(carry, tokens[:, t])
      np.testing.assert_allclose(logits, want[:, t], atol=2e-6)
    self.assertEqual(logits.dtype, jnp.float32)
