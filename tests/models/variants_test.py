"""Blocks that differ by depth: variants, and blocks that stand once."""

from absl.testing import absltest
from absl.testing import parameterized
from flax import nnx
import jax
import numpy as np
from rnnzoo import errors
from rnnzoo import models
from tests.models import small

VARIANTS = dict(
    layer='wide;sparse,lru,sparse', num_layers=7, mlp='swiglu', use_bias=False,
    variants=dict(
        wide=dict(layer='min_gru', mlp_factor=3.0, conv_kernel=3),
        sparse=dict(
            layer='min_gru', experts=dict(num_experts=4),
            layer_options=dict(expansion_factor=2.0), mlp_scales=(0.5, 2.0),
        ),
        lru=dict(norm_position='both', layer_scales=[1.5, 0.5]),
    ),
    layer_options=dict(min_gru=dict(expansion_factor=1.5)),
)


class VariantsTest(parameterized.TestCase):

  def test_the_blocks_of_a_model(self):
    model = nnx.eval_shape(lambda: small.make(**VARIANTS))
    config = model.config
    self.assertEqual(config.layer_names, (
        'min_gru', 'min_gru', 'lru', 'min_gru', 'min_gru', 'lru', 'min_gru'
    ))
    self.assertEqual(
        [[*depths] for depths in config.stacks], [[0], [1, 4], [2, 5], [3, 6]]
    )
    wide, sparse, lru, _ = model.backbone.stacks
    self.assertEqual(wide.mlp_in.kernel.shape, (1, 8, 24))
    self.assertEqual(sparse.experts.mlp_in.shape, (2, 4, 8, 2, 16))
    self.assertEqual(lru.mlp_in.kernel.shape, (2, 8, 16))
    self.assertEqual(
        [stack.layer.hidden_features for stack in model.backbone.stacks[:2]],
        [12, 16],
    )
    self.assertEqual(lru.config.layer_scales, (1.5, 0.5))
    # A config in a file.
    values = vars(config) | dict(layer=config.layer)
    self.assertEqual(models.ModelConfig.from_dict(values), config)

  def test_a_loop_over_depth_gives_the_same_numbers(self):
    tokens, flags = small.inputs()
    _, state = nnx.split(small.make(**VARIANTS))
    results = []
    for scan in (False, True):
      graphdef = nnx.graphdef(nnx.eval_shape(
          lambda: small.make(**VARIANTS, scan_layers=scan, remat='full')
      ))

      def loss(state):
        model = nnx.merge(graphdef, state)
        carry, y = model(tokens[:, :-1], **small.part(flags, slice(-1)))
        carry, last = model.step(carry, tokens[:, -1], **small.part(flags, -1))
        return (y**2).sum() + (last**2).sum(), (carry, y, last)

      grad = small.jit(jax.value_and_grad(loss, has_aux=True))
      results.append(grad(state))
    small.assert_trees_close(results[1], results[0], atol=3e-5)
    model = small.make(**VARIANTS)
    carry, y = model(tokens, **flags)
    (_, (stepped, early, last)), _ = results[0]
    np.testing.assert_allclose(y[:, :-1], early, atol=1e-5)
    np.testing.assert_allclose(y[:, -1], last, atol=1e-5)
    small.assert_trees_close(carry, stepped, atol=1e-5)

  def test_a_shallow_model_has_the_first_blocks(self):
    for depth in (1, 2):
      model = nnx.eval_shape(lambda: small.make(
          layer='gru,lru;min_gru', num_layers=depth, scan_layers=True
      ))
      self.assertEqual(model.config.layer_names, ('gru', 'lru')[:depth])
      self.assertLen(model.backbone.stacks, depth)
      jax.eval_shape(lambda m: m(small.inputs()[0]), model)

  @parameterized.parameters(
      (dict(layer='lru;'), 'one semicolon after those that do not repeat'),
      (dict(layer='lru;gru;lru'), "one semicolon.*got 'lru;gru;lru'"),
      (dict(variants=dict(lrru={})), "names 'lrru'.*Did you mean"),
      (dict(variants=dict(lru=3)), 'model.variants.lru must be a dictionary'),
      (dict(variants=dict(lru=dict(mpl='none'))),
       'no config field model.variants.lru.mpl.*"mlp"'),
      (dict(variants=dict(lru=dict(features=3))), 'no config field .*features'),
      (dict(variants=dict(lru=dict(mlp='x'))), 'model.variants.lru.mlp must'),
      (dict(layer_scales=(1.0,)), 'model.layer_scales must be two numbers'),
  )
  def test_errors(self, changes, message):
    with self.assertRaisesRegex(errors.UserValueError, message):
      models.ModelConfig(**dict(layer='lru') | changes)


if __name__ == '__main__':
  absltest.main()
