"""Models obey the contract of layers, and depth is laid out in one way only."""

import functools
import pickle

from absl.testing import absltest
from absl.testing import parameterized
from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np
from rnnzoo import errors
from rnnzoo import layers
from rnnzoo import models
from rnnzoo.layers import base
from rnnzoo.models import blocks
from rnnzoo.models import inputs as inputs_lib
from tests import collectives

B, T, V = 2, 9, 16
_jit = functools.partial(jax.jit, compiler_options=collectives.QUICKLY)
CONFIGS = dict(
    min_gru=dict(layer='min_gru', conv_kernel=3),
    lru_paper=dict(layer='lru', norm='batch', gate='glu', mlp='none'),
    pattern=dict(
        layer='min_gru,lru,gru', num_layers=5, norm='layer',
        norm_position='post', mlp='swiglu', tie_embeddings=True, soft_cap=5.0,
    ),
    remat=dict(layer='min_lstm', num_layers=3, remat='dots', gate='half_glu'),
)


def make(**changes):
  config = models.ModelConfig.tiny().replace(**changes)
  if config.num_classes:
    return models.SequenceClassifier(config, rngs=nnx.Rngs(0))
  return models.LanguageModel(config, rngs=nnx.Rngs(0))


def inputs():
  tokens = jax.random.randint(jax.random.key(0), (B, T), 0, V)
  reset = jnp.zeros((B, T), bool).at[:, 4].set(True)
  mask = jnp.ones((B, T), bool).at[0, 5:7].set(False).at[1, :2].set(False)
  return tokens, dict(reset=reset, mask=mask)


def assert_trees_close(got, want, atol=2e-6):
  jax.tree.map(
      lambda g, w: np.testing.assert_allclose(g, w, atol=atol), got, want
  )


def part(tree, *index):
  return {k: v[(slice(None), *index)] for k, v in tree.items()}


class PickleTest(parameterized.TestCase):

  def test_a_model_comes_back_as_it_was(self):
    model = make(layer='min_gru,gru', conv_kernel=3, norm='batch')
    want, got = map(nnx.split, (model, pickle.loads(pickle.dumps(model))))
    self.assertEqual(got[0], want[0])
    for u, w in zip(*map(jax.tree.leaves, (got[1], want[1])), strict=True):
      np.testing.assert_array_equal(u, w)


class EmbeddingTest(parameterized.TestCase):

  def test_tokens_of_any_integer_dtype(self):
    model = make(vocab_size=300)
    tokens = np.array([[0, 7, 127]])
    want = model.embed.embedding[...][tokens]
    for dtype in ('int8', 'uint8', 'int16', 'uint16', 'int32', 'uint32'):
      found = inputs_lib.embed(
          model.config, model.embed, jnp.asarray(tokens, dtype)
      )
      np.testing.assert_array_equal(found, want)

  def test_gradients_of_one_token_are_added_up_in_float32(self):
    for dtype in ('float32', 'bfloat16'):
      graph, state = nnx.split(make(dtype=dtype))

      def total(state, graph=graph):
        tokens = jnp.full((4, 256), 3)
        model = nnx.merge(graph, state)
        x = inputs_lib.embed(model.config, model.embed, tokens)
        return x.astype(jnp.float32).sum()

      table = _jit(jax.grad(total))(state).embed.embedding[...]
      np.testing.assert_array_equal(table[3], jnp.full((table.shape[1],), 1024))


class LanguageModelTest(parameterized.TestCase):

  @parameterized.named_parameters(
      (name, changes) for name, changes in CONFIGS.items()
  )
  def test_whole_chunks_and_steps_agree(self, changes):
    model = make(**changes)
    tokens, flags = inputs()
    want = model(tokens, **flags)
    carry, first = model(tokens[:, :5], **part(flags, slice(0, 5)))
    carry, empty = model(tokens[:, :0], carry)
    carry, second = model(tokens[:, 5:], carry, **part(flags, slice(5, None)))
    self.assertEqual(empty.shape, (B, 0, V))
    assert_trees_close((carry, jnp.concatenate([first, second], 1)), want)

    step = _jit(lambda c, t, f: model.step(c, t, **f))
    carry, logits = model.initialize_carry(B), []
    for t in range(T):
      carry, y = step(carry, tokens[:, t], part(flags, t))
      logits.append(y)
    assert_trees_close((carry, jnp.stack(logits, 1)), want)
    self.assertTrue((want[1][~flags['mask']] == 0).all())

  def test_scanning_depth_changes_nothing_but_the_program(self):
    tokens, flags = inputs()
    for changes in (CONFIGS['pattern'], CONFIGS['lru_paper']):
      results = []
      _, params, rest = nnx.split(make(**changes), nnx.Param, ...)
      for scan in (False, True):
        graphdef = nnx.graphdef(nnx.eval_shape(
            lambda: make(**changes, scan_layers=scan, dropout=0.2)
        ))

        def loss(params):
          model = nnx.merge(graphdef, params, rest, copy=True)
          carry, y = model(
              tokens, **flags, train=True, key=jax.random.key(3)
          )
          return (y**2).sum(), (carry, nnx.state(model, nnx.BatchStat))

        results.append(_jit(jax.value_and_grad(loss, has_aux=True))(params))
      assert_trees_close(results[0], results[1], atol=3e-5)

  def test_recomputing_changes_neither_values_nor_gradients(self):
    tokens, flags = inputs()
    results, state = [], None
    for remat in ('none', 'full', 'dots'):
      graphdef, shapes = nnx.split(nnx.eval_shape(lambda: make(
          layer='elman', num_layers=3, scan_layers=True, remat=remat
      )))
      if state is None:
        random = np.random.default_rng(0)
        state = jax.tree.map(
            lambda u: 0.3 * random.standard_normal(u.shape, u.dtype), shapes
        )

      def loss(state):
        return (nnx.merge(graphdef, state)(tokens, **flags)[1] ** 2).sum()

      results.append(_jit(jax.value_and_grad(loss))(state))
    assert_trees_close(results[1], results[0], atol=1e-5)
    assert_trees_close(results[2], results[0], atol=1e-5)

  @parameterized.parameters('none', 'full')
  def test_programs_do_not_grow_with_depth(self, remat):

    def lines(num_layers):
      build = lambda: make(
          layer='gru,min_gru', num_layers=num_layers, remat=remat,
          scan_layers=True,
      )
      graphdef, state = nnx.split(nnx.eval_shape(build))
      tokens, flags = inputs()

      def loss(state):
        _, y = nnx.merge(graphdef, state)(tokens, **flags)
        return (y**2).sum()

      step = jax.jit(jax.grad(loss)).lower(state).as_text()
      start = jax.jit(lambda: nnx.state(build())).lower().as_text()
      return step.count('\n'), start.count('\n')

    self.assertEqual(lines(20), lines(6))

  def test_scanning_depth_starts_from_the_same_numbers(self):

    @functools.partial(_jit, static_argnums=0)
    def start(scan):
      rngs = nnx.Rngs(jax.random.key(0, impl='unsafe_rbg'))  # Quick to compile.
      config = models.ModelConfig.tiny().replace(
          layer='elman,slstm_block', num_layers=5, scan_layers=scan, mlp='none',
          layer_options=dict(slstm_block=dict(num_heads=2)),
      )
      state = nnx.state(models.LanguageModel(config, rngs=rngs))
      return jax.tree.leaves(state), rngs.default.count[...]

    assert_trees_close(start(True), start(False), atol=1e-6)

  def test_later_tokens_do_not_matter(self):
    model = make(**CONFIGS['pattern'])
    tokens, _ = inputs()
    _, before = model(tokens)
    _, after = model(tokens.at[:, 6:].set(1))
    np.testing.assert_array_equal(before[:, :6], after[:, :6])

  def test_batch_statistics_move_in_training_only_and_skip_padding(self):
    model = make(**CONFIGS['lru_paper'])
    tokens, flags = inputs()
    stats = lambda: jax.tree.map(np.asarray, nnx.state(model, nnx.BatchStat))
    start = stats()
    model(tokens)
    jax.tree.map(np.testing.assert_array_equal, stats(), start)
    model(tokens, mask=flags['mask'], train=True)
    moved = stats()
    with self.assertRaises(AssertionError):
      jax.tree.map(np.testing.assert_array_equal, moved, start)
    again = make(**CONFIGS['lru_paper'])
    padded = jnp.where(flags['mask'], tokens, 7)
    again(padded, mask=flags['mask'], train=True)
    jax.tree.map(
        np.testing.assert_array_equal, nnx.state(again, nnx.BatchStat), moved
    )

  def test_dropout_has_its_rate_and_one_mask_over_time(self):
    x = jnp.ones((4, 50, 64))
    y = blocks.dropout(x, 0.25, jax.random.key(0))
    self.assertAlmostEqual(float((y == 0).mean()), 0.25, delta=0.02)
    self.assertAlmostEqual(float(y.mean()), 1.0, delta=0.03)
    y = blocks.dropout(x, 0.25, jax.random.key(0), over_time=True)
    np.testing.assert_array_equal(y, jnp.broadcast_to(y[:, :1], y.shape))
    np.testing.assert_array_equal(blocks.dropout(x, 0.25, None), x)

  def test_bfloat16_activations_float32_states_and_logits(self):
    model = make(dtype='bfloat16', conv_kernel=3)
    carry, logits = model(inputs()[0])
    self.assertEqual(logits.dtype, jnp.float32)
    self.assertEqual(carry[0].layer.dtype, jnp.float32)
    self.assertEqual(carry[0].conv.dtype, jnp.bfloat16)

  def test_every_parameter_names_its_axes(self):
    for changes in CONFIGS.values():
      model = make(**changes)
      for path, leaf in nnx.to_flat_state(nnx.state(model, nnx.Param)):
        axes = leaf.get_metadata('axes')
        self.assertLen(axes, leaf.get_value().ndim, path)
        self.assertEqual(axes[0] == 'layers', 'stacks' in path, path)

  @parameterized.parameters(sorted(layers.LAYERS))
  def test_every_layer_fits(self, name):
    config = models.ModelConfig.tiny().replace(layer=name)
    if name == 'mlstm_large':  # Made for large ones.
      config = config.replace(layer_options=dict(num_heads=2))
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
      model, (tokens, flags) = make_model(), inputs()
      carry, logits = model(tokens, **flags)
      return logits, model.step(carry, tokens[:, 0])[1]

    logits, logits_t = jax.eval_shape(run)
    self.assertEqual(logits.shape, (B, T, V))
    self.assertEqual(logits_t.shape, (B, V))

  def test_a_layer_knows_how_deep_it_is(self):
    model = make(
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

  def test_a_layer_of_ones_own(self):

    class Mine(layers.MinGRU):
      pass

    config = models.ModelConfig.tiny().replace(layer='mine')
    model = models.LanguageModel(config, dict(mine=Mine), rngs=nnx.Rngs(0))
    self.assertEqual(model(inputs()[0])[1].shape, (B, T, V))

  @parameterized.parameters(
      (dict(layer='min_gro'), 'Did you mean "min_gru"'),
      (dict(norm='rsm'), 'Did you mean "rms"'),
      (dict(layer_options=dict(expansion=2)), '"expansion_factor"'),
      (dict(vocab_size=0), 'vocab_size must be set'),
      (dict(bidirectional=True), 'for classifiers'),
      (dict(dropout=1.5), r'dropout must be in \[0, 1\)'),
      (dict(mlp_multiple=0), 'mlp_multiple must be at least 1'),
      (dict(norm_epsilon=-1.0), 'norm_epsilon must not be negative'),
      (dict(mlp_layers='min_gro'), 'not in model.layer.*"min_gru"'),
      (dict(layer='rwkv7', num_classes=2, bidirectional=True), 'first of its'),
  )
  def test_errors_say_what_to_do(self, changes, message):
    with self.assertRaisesRegex(errors.UserValueError, message):
      make(**changes)

  def test_unknown_fields_and_wrong_tokens(self):
    with self.assertRaisesRegex(errors.UserValueError, 'mean "features"'):
      models.ModelConfig.from_dict(dict(feature=3))
    with self.assertRaisesRegex(ValueError, 'must be integers with 2 axes'):
      make()(jnp.ones((2, 3)))


class BlockTest(parameterized.TestCase):

  def test_an_mlp_follows_the_layers_that_are_named(self):
    model = nnx.eval_shape(lambda: make(
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

  @parameterized.parameters('glu', 'half_glu', 'half_glu2')
  def test_gates(self, gate):

    class Same(base.RecurrentLayer):
      in_features = out_features = 8

      def __call__(self, x, carry=None, *, reset=None, mask=None):
        return carry, x

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

  def test_embeddings(self):
    tokens = jnp.arange(16)[None]
    small = dict(layer='elman', num_layers=1, mlp='none')
    model = make(**small, embed_std=0.02, vocab_size=1000)
    self.assertAlmostEqual(model.embed.embedding[...].std(), 0.02, delta=1e-3)

    logits = {}
    for name, changes in dict(
        plain={}, scaled=dict(scale_embeddings=True),
        normed=dict(embed_norm=True),
    ).items():
      model = make(**small, **changes)
      if name == 'plain':
        model.embed.embedding[...] *= 8**0.5
      logits[name] = model(tokens)[1]
    np.testing.assert_allclose(logits['scaled'], logits['plain'], atol=1e-5)
    model.embed.embedding[...] *= 8  # A norm does not care.
    np.testing.assert_allclose(model(tokens)[1], logits['normed'], atol=1e-4)

    vectors = make(
        **small, in_features=3, vocab_size=0, num_classes=2, embed_norm=True
    )
    x = jax.random.normal(jax.random.key(0), (1, 5, 3))
    want = vectors(x)[1]
    vectors.encoder.kernel[...] *= 2
    vectors.encoder.bias[...] *= 2
    np.testing.assert_allclose(vectors(x)[1], want, atol=1e-4)


class PresetsTest(parameterized.TestCase):

  @parameterized.parameters(
      ('min_gru_shakespeare', dict(conv_kernel=4, vocab_size=65), 5_821_824),
      # Six blocks of table 9, an encoder, the last norm and a head.
      ('lru_scifar', {}, 6 * 1_314_432 + 4 * 512 + 2 * 512 + 513 * 10),
      ('lru_listops', dict(vocab_size=18),
       6 * 165_248 + 18 * 128 + 2 * 128 + 129 * 10),
  )
  def test_parameter_counts(self, name, changes, count):
    config = models.PRESETS[name].replace(**changes)
    make_model = models.LanguageModel
    if config.num_classes:
      make_model = models.SequenceClassifier
    model = nnx.eval_shape(lambda: make_model(config, rngs=nnx.Rngs(0)))
    leaves = jax.tree.leaves(nnx.state(model, nnx.Param))
    self.assertEqual(sum(leaf.size for leaf in leaves), count)


if __name__ == '__main__':
  absltest.main()
