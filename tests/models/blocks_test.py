"""The parts of a block: gates, MLPs, norms and dropout."""

from absl.testing import absltest
from absl.testing import parameterized
from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np
from rnnzoo import models
from rnnzoo.layers import base
from rnnzoo.models import blocks
from tests.models import small


class Same(base.RecurrentLayer):
  in_features = out_features = 8

  def __call__(self, x, carry=None, *, reset=None, mask=None):
    return carry, x


class BlockTest(parameterized.TestCase):

  def test_mlp_layers_names_the_layers_with_an_mlp(self):
    model = nnx.eval_shape(lambda: small.make(
        layer=('min_gru', 'lru', 'gru'), num_layers=5, mlp_layers=('lru',),
        mlp_factor=1.3, mlp_multiple=8, use_bias=False,
    ))
    self.assertEqual(model.config.layer, 'min_gru,lru,gru')
    self.assertEqual(model.config.mlp_layers, 'lru')
    widths = [
        stack.mlp_in.kernel.shape if hasattr(stack, 'mlp_in') else None
        for stack in model.backbone.stacks
    ]
    self.assertEqual(widths, [None, (2, 8, 16), None])
    self.assertIsNone(model.backbone.stacks[1].mlp_gate.bias)

  @parameterized.parameters('pre', 'post', 'out', 'both')
  def test_norm_positions(self, position):
    config = models.ModelConfig.tiny().replace(layer='gru,lru')
    if position == 'out':
      config = config.replace(out_norm_layers=('lru',))
      self.assertEqual(config.at_depth(0).norm_position, 'pre')
      config = config.at_depth(1)
    else:
      config = config.replace(norm_position=position)
    if position == 'both':
      config = config.replace(layer_scales=(2.0, 0.5), mlp_scales=(0.5, 3.0))
    self.assertEqual(config.norm_position, position)
    block = blocks.Block(config, Same(), rngs=nnx.Rngs(0))
    for i, norm in enumerate((block.norm, block.mlp_norm), start=2):
      norm.scale[...] = jnp.linspace(0.5, i, 8)
    x = jax.random.normal(jax.random.key(0), (2, 3, 8))
    want = x
    for norm, branch, (a, b) in (
        (block.norm, lambda u: u, config.layer_scales),
        (block.mlp_norm, block._mlp, config.mlp_scales),
    ):
      want = dict(
          pre=lambda u: u + branch(norm(u)), post=lambda u: norm(u + branch(u)),
          out=lambda u: u + norm(branch(u)),
          both=lambda u: a * norm(u) + b * branch(norm(u)),
      )[position](want)
    _, y, _ = block(x, blocks.BlockCarry(None, None))
    np.testing.assert_allclose(y, want, rtol=1e-5, atol=1e-6)

  @parameterized.parameters('glu', 'half_glu', 'half_glu2')
  def test_gates(self, gate):
    config = models.ModelConfig.tiny().replace(gate=gate, mlp='none')
    block = blocks.Block(config, Same(), rngs=nnx.Rngs(0))
    x = jax.random.normal(jax.random.key(0), (2, 3, 8))
    _, y, _ = block(x, blocks.BlockCarry(None, None))
    normed = block.norm(x)
    active = jax.nn.gelu(normed)
    value = dict(half_glu=active, half_glu2=normed)
    if gate == 'glu':
      value['glu'] = block.value(active)
    want = x + value[gate] * jax.nn.sigmoid(block.gate(active))
    np.testing.assert_allclose(y, want, atol=1e-6)

  def test_epsilon_of_norms(self):
    config = models.ModelConfig.tiny()
    for epsilon, value in ((0.0, 1.0), (3.0, 0.5)):
      norm = blocks.make_norm(
          config.replace(norm_epsilon=epsilon), nnx.Rngs(0)
      )
      np.testing.assert_allclose(norm(jnp.ones((1, 8))), value, atol=1e-6)

  def test_rms1_is_rms_with_a_factor_around_1(self):
    make = lambda kind: blocks.make_norm(
        models.ModelConfig.tiny().replace(norm=kind), nnx.Rngs(0)
    )
    rms, rms1 = make('rms'), make('rms1')
    x = jax.random.normal(jax.random.key(0), (2, 8))
    np.testing.assert_array_equal(rms1(x), rms(x))
    # In bfloat16 the sum would be rounded.
    small = jax.random.normal(jax.random.key(1), (8,), jnp.bfloat16) / 64
    rms1.scale[...] = small
    rms.scale[...] = 1 + small.astype(jnp.float32)
    np.testing.assert_array_equal(rms1(x), rms(x))

  def test_dropout_has_its_rate_and_may_have_one_mask_over_time(self):
    x = jnp.ones((4, 50, 64))
    y = blocks.dropout(x, 0.25, jax.random.key(0))
    self.assertAlmostEqual(float((y == 0).mean()), 0.25, delta=0.02)
    self.assertAlmostEqual(float(y.mean()), 1.0, delta=0.03)
    y = blocks.dropout(x, 0.25, jax.random.key(0), over_time=True)
    np.testing.assert_array_equal(y, jnp.broadcast_to(y[:, :1], y.shape))
    np.testing.assert_array_equal(blocks.dropout(x, 0.25, None), x)


if __name__ == '__main__':
  absltest.main()
