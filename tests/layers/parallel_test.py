"""Layers in parallel: sums, carries, room, and what does not fit together."""

from absl.testing import absltest
from absl.testing import parameterized
from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np
from rnnzoo import errors
from rnnzoo import layers
from rnnzoo import models
from tests import drawn


class ParallelTest(parameterized.TestCase):

  def test_outputs_are_scaled_and_added(self):
    # Every term alone, from a carry that is not zero.
    layer = drawn.module(lambda rngs: layers.Parallel(
        [layers.LRU(6, 5, rngs=rngs), layers.GRU(6, rngs=rngs)],
        input_scales=(0.5, 2.0), output_scales=(-1.0, 0.3),
    ))
    x = jax.random.normal(jax.random.key(0), (2, 7, 6))
    carry, _ = layer(x[:, :3])
    got, y = layer(x[:, 3:], carry)
    want = 0
    for i, (a, b) in enumerate(((0.5, -1.0), (2.0, 0.3))):
      own, term = layer.branches[i](a * x[:, 3:], carry.branches[i])
      want += b * term
      np.testing.assert_allclose(got.branches[i], own, atol=1e-6)
    np.testing.assert_allclose(y, want, atol=1e-6)

  def test_a_full_carry(self):
    layer = drawn.module(lambda rngs: layers.Parallel([
        layers.MinGRU(4, rngs=rngs),
        layers.Attention(
            4, num_heads=1, window=3, on_full='error', rngs=rngs
        ),
    ]))
    self.assertEqual(layer.context, 3)
    self.assertTrue(layer.causal)
    model = nnx.eval_shape(lambda: models.Backbone(models.ModelConfig(
        layer='min_gru+attention', features=4, layer_options=dict(
            attention=dict(num_heads=1, window=3, on_full='error'),
        ),
    ), rngs=nnx.Rngs(0)))
    self.assertEqual(model.context, 3)
    carry, _ = layer(jnp.ones((1, 3, 4)))
    for check in (
        lambda: layer.step(carry, jnp.ones((1, 4))),
        lambda: layer.check_room(carry, (1, 1)),
    ):
      with self.assertRaisesRegex(errors.UserValueError, 'a context of 3'):
        check()
    layer.check_room(carry, (1, 1), reset=jnp.ones((1, 1), bool))

  @parameterized.parameters(
      (lambda rngs: [], {}, 'at least one layer, got none'),
      (lambda rngs: [layers.LRU(4, 3, rngs=rngs), layers.LRU(5, 3, rngs=rngs)],
       {}, 'the same in_features, got 4, 5'),
      (lambda rngs: [layers.GRU(4, 3, rngs=rngs), layers.GRU(4, rngs=rngs)],
       {}, 'the same out_features, got 3, 4'),
      (lambda rngs: [layers.GRU(4, rngs=rngs)], dict(input_scales=(1.0, 2.0)),
       r'one number for each of the 1 layers, or be empty, got \(1.0, 2.0\)'),
  )
  def test_layers_that_do_not_fit(self, make, options, message):
    with self.assertRaisesRegex(ValueError, message):
      nnx.eval_shape(lambda: layers.Parallel(make(nnx.Rngs(0)), **options))

  def test_a_pattern_of_layers_in_parallel(self):
    config = models.ModelConfig(
        layer='mamba2+attention,gru', num_layers=3, features=8, layer_options={
            'mamba2': dict(state_features=3),
            'attention': dict(num_heads=2, window=4),
            'mamba2+attention': dict(output_scales=(1.0, 0.5)),
        },
    )
    self.assertEqual(config.layers_used, ('mamba2', 'attention', 'gru'))
    backbone = nnx.eval_shape(lambda: models.Backbone(config, rngs=nnx.Rngs(0)))
    layer = backbone.stacks[0].layer
    self.assertEqual(layer.output_scales, (1.0, 0.5))
    self.assertEqual(layer.branches[0].in_proj.kernel.shape, (2, 8, 2, 16))
    self.assertEqual(layer.branches[1].num_heads, 2)

  @parameterized.parameters(
      dict(layer='lru + gru', name='lru+gru'),
      dict(layer='lru+gru', name='lru + gru'),
      dict(layer='a', name='lru+gru', variants=dict(a=dict(layer='lru + gru'))),
  )
  def test_spaces_in_a_pattern(self, layer, name, variants=None):
    config = models.ModelConfig(
        layer=layer, features=8, variants=variants or {},
        layer_options={name: dict(output_scales=(1.0, 0.5))},
    )
    self.assertEqual(config.layer_names[0], 'lru+gru')
    backbone = nnx.eval_shape(lambda: models.Backbone(config, rngs=nnx.Rngs(0)))
    self.assertEqual(backbone.stacks[0].layer.output_scales, (1.0, 0.5))

  @parameterized.parameters(
      (dict(layer='gru+'), 'joined by commas or'),
      (dict(layer='gru+lru', layer_options={'gru+lur': {}}),
       "no layer 'lur'. Did you mean"),
      (dict(layer='gru+lur'), "no layer 'lur'. Did you mean"),
      (dict(layer='gru+rwkv7'), 'does not go with layer rwkv7'),
      (dict(layer='gru+lru', layer_options={'gru+lru': 3}), 'a dictionary'),
      (dict(layer='gru+lru', layer_options={'gru+lru': dict(scale=3)}),
       r"Layer gru\+lru has no option 'scale'.*input_scales, output_scales"),
      (dict(layer='gru+lru', layer_options={
          'gru+lru': dict(input_scales=(1.0,)),
      }), r'gru\+lru cannot be built.*each of the 2 layers'),
      (dict(layer='gru+gru', layer_options=dict(gru=dict(hidden=3))),
       "Layer gru has no option 'hidden'"),
  )
  def test_patterns_that_cannot_be_built(self, changes, message):
    with self.assertRaisesRegex(errors.UserValueError, message):
      config = models.ModelConfig(features=8, **changes)
      nnx.eval_shape(lambda: models.Backbone(config, rngs=nnx.Rngs(0)))


if __name__ == '__main__':
  absltest.main()
