"""Blocks are stacked over depth, in one layout, around every layer."""

import functools

from absl.testing import absltest
from absl.testing import parameterized
from flax import nnx
import jax
import numpy as np
from rnnzoo import errors
from rnnzoo import layers
from rnnzoo import models
from tests.models import small

B, T, V = small.B, small.T, small.V


class DepthTest(parameterized.TestCase):

  def test_a_loop_over_depth_gives_the_same_numbers(self):
    tokens, flags = small.inputs()
    for changes in (small.CONFIGS['pattern'], small.CONFIGS['lru_paper']):
      results = []
      _, params, rest = nnx.split(small.make(**changes), nnx.Param, ...)
      for scan in (False, True):
        graphdef = nnx.graphdef(nnx.eval_shape(
            lambda: small.make(**changes, scan_layers=scan, dropout=0.2)
        ))

        def loss(params):
          model = nnx.merge(graphdef, params, rest, copy=True)
          carry, y = model(
              tokens, **flags, train=True, key=jax.random.key(3)
          )
          return (y**2).sum(), (carry, nnx.state(model, nnx.BatchStat))

        grad = jax.value_and_grad(loss, has_aux=True)
        results.append(small.jit(grad)(params))
      small.assert_trees_close(results[0], results[1], atol=3e-5)

  def test_remat_changes_neither_values_nor_gradients(self):
    tokens, flags = small.inputs()
    results, state = [], None
    for remat in ('none', 'full', 'dots'):
      graphdef, shapes = nnx.split(nnx.eval_shape(lambda: small.make(
          layer='elman', num_layers=3, scan_layers=True, remat=remat
      )))
      if state is None:
        random = np.random.default_rng(0)
        state = jax.tree.map(
            lambda u: 0.3 * random.standard_normal(u.shape, u.dtype), shapes
        )

      def loss(state):
        return (nnx.merge(graphdef, state)(tokens, **flags)[1] ** 2).sum()

      results.append(small.jit(jax.value_and_grad(loss))(state))
    small.assert_trees_close(results[1], results[0], atol=1e-5)
    small.assert_trees_close(results[2], results[0], atol=1e-5)

  @parameterized.parameters('none', 'full')
  def test_programs_do_not_grow_with_depth(self, remat):

    def lines(num_layers):
      build = lambda: small.make(
          layer='gru,min_gru', num_layers=num_layers, remat=remat,
          scan_layers=True,
      )
      graphdef, state = nnx.split(nnx.eval_shape(build))
      tokens, flags = small.inputs()

      def loss(state):
        _, y = nnx.merge(graphdef, state)(tokens, **flags)
        return (y**2).sum()

      step = jax.jit(jax.grad(loss)).lower(state).as_text()
      start = jax.jit(lambda: nnx.state(build())).lower().as_text()
      return step.count('\n'), start.count('\n')

    self.assertEqual(lines(20), lines(6))

  def test_a_loop_over_depth_gives_the_same_initial_values(self):

    @functools.partial(small.jit, static_argnums=0)
    def start(scan):
      rngs = nnx.Rngs(jax.random.key(0, impl='unsafe_rbg'))  # Quick to compile.
      config = models.ModelConfig.tiny().replace(
          layer='elman,slstm_block', num_layers=5, scan_layers=scan, mlp='none',
          layer_options=dict(slstm_block=dict(num_heads=2)),
      )
      state = nnx.state(models.LanguageModel(config, rngs=rngs))
      return jax.tree.leaves(state), rngs.default.count[...]

    small.assert_trees_close(start(True), start(False), atol=1e-6)


class LayersTest(parameterized.TestCase):

  @parameterized.parameters(sorted(layers.LAYERS))
  def test_every_layer_works_in_a_model(self, name):
    config = models.ModelConfig.tiny().replace(layer=name)
    if name in ('gated_attention', 'mlstm_large'):  # Made for large ones.
      config = config.replace(layer_options=dict(num_heads=1))
    if name.startswith('conv_'):
      with self.assertRaisesRegex(errors.UserValueError, 'reads images'):
        models.LanguageModel(config, rngs=nnx.Rngs(0))
      return
    make_model = lambda: models.LanguageModel(config, rngs=nnx.Rngs(0))
    model = nnx.eval_shape(make_model)
    for path, leaf in nnx.to_flat_state(nnx.state(model, nnx.Param)):
      axes = leaf.get_metadata('axes')
      self.assertLen(axes, len(leaf.get_value().shape), path)
      self.assertEqual(axes[0] == 'layers', 'stacks' in path, path)

    def run():
      model, (tokens, flags) = make_model(), small.inputs()
      carry, logits = model(tokens, **flags)
      return logits, model.step(carry, tokens[:, 0])[1]

    logits, logits_t = jax.eval_shape(run)
    self.assertEqual(logits.shape, (B, T, V))
    self.assertEqual(logits_t.shape, (B, V))

  def test_every_parameter_names_its_axes(self):
    for changes in small.CONFIGS.values():
      model = small.make(**changes)
      for path, leaf in nnx.to_flat_state(nnx.state(model, nnx.Param)):
        axes = leaf.get_metadata('axes')
        self.assertLen(axes, leaf.get_value().ndim, path)
        self.assertEqual(axes[0] == 'layers', 'stacks' in path, path)

  def test_initial_values_depend_on_the_place_in_the_model(self):
    model = small.make(
        layer='rwkv4,slstm_block', num_layers=5, mlp='none',
        layer_options=dict(slstm_block=dict(num_heads=1)),
    )
    time_mix, slstm = (stack.layer for stack in model.backbone.stacks)
    channel = np.arange(8) / 8
    for i in range(3):
      np.testing.assert_allclose(
          time_mix.mu_k[i], channel ** (1 - i / 3), rtol=1e-5
      )
    for i in range(2):
      np.testing.assert_allclose(
          slstm.cell.b[i, 1], 5 - 12 * (np.arange(8) / 7) ** (0.3 + 1.3 * i),
          rtol=1e-5,
      )

  def test_a_custom_layer(self):

    class Mine(layers.MinGRU):
      pass

    config = models.ModelConfig.tiny().replace(layer='mine')
    model = models.LanguageModel(config, dict(mine=Mine), rngs=nnx.Rngs(0))
    self.assertEqual(model(small.inputs()[0])[1].shape, (B, T, V))


if __name__ == '__main__':
  absltest.main()
