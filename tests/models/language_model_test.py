"""Language models keep the contract of the layers."""

import pickle

from absl.testing import absltest
from absl.testing import parameterized
from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np
from rnnzoo import errors
from rnnzoo import models
from rnnzoo.models import inputs as inputs_lib
from tests.models import small

B, T, V = small.B, small.T, small.V


class LanguageModelTest(parameterized.TestCase):

  @parameterized.named_parameters(
      (name, changes) for name, changes in small.CONFIGS.items()
  )
  def test_whole_chunks_and_steps_agree(self, changes):
    model = small.make(**changes)
    tokens, flags = small.inputs()
    want = model(tokens, **flags)
    carry, first = model(tokens[:, :5], **small.part(flags, slice(0, 5)))
    carry, empty = model(tokens[:, :0], carry)
    late = small.part(flags, slice(5, None))
    carry, second = model(tokens[:, 5:], carry, **late)
    self.assertEqual(empty.shape, (B, 0, V))
    small.assert_trees_close((carry, jnp.concatenate([first, second], 1)), want)

    step = small.jit(lambda c, t, f: model.step(c, t, **f))
    carry, logits = model.initialize_carry(B), []
    for t in range(T):
      carry, y = step(carry, tokens[:, t], small.part(flags, t))
      logits.append(y)
    small.assert_trees_close((carry, jnp.stack(logits, 1)), want)
    self.assertTrue((want[1][~flags['mask']] == 0).all())

  def test_logits_do_not_depend_on_later_tokens(self):
    model = small.make(**small.CONFIGS['pattern'])
    tokens, _ = small.inputs()
    _, before = model(tokens)
    _, after = model(tokens.at[:, 6:].set(1))
    np.testing.assert_array_equal(before[:, :6], after[:, :6])

  def test_batch_statistics_move_in_training_only_and_skip_padding(self):
    model = small.make(**small.CONFIGS['lru_paper'])
    tokens, flags = small.inputs()
    stats = lambda: jax.tree.map(np.asarray, nnx.state(model, nnx.BatchStat))
    start = stats()
    model(tokens)
    jax.tree.map(np.testing.assert_array_equal, stats(), start)
    model(tokens, mask=flags['mask'], train=True)
    moved = stats()
    with self.assertRaises(AssertionError):
      jax.tree.map(np.testing.assert_array_equal, moved, start)
    again = small.make(**small.CONFIGS['lru_paper'])
    padded = jnp.where(flags['mask'], tokens, 7)
    again(padded, mask=flags['mask'], train=True)
    jax.tree.map(
        np.testing.assert_array_equal, nnx.state(again, nnx.BatchStat), moved
    )

  def test_bfloat16_activations_float32_states_and_logits(self):
    model = small.make(dtype='bfloat16', conv_kernel=3)
    carry, logits = model(small.inputs()[0])
    self.assertEqual(logits.dtype, jnp.float32)
    self.assertEqual(carry[0].layer.dtype, jnp.float32)
    self.assertEqual(carry[0].conv.dtype, jnp.bfloat16)

  def test_a_pickled_model_is_the_same(self):
    model = small.make(layer='min_gru,gru', conv_kernel=3, norm='batch')
    want, got = map(nnx.split, (model, pickle.loads(pickle.dumps(model))))
    self.assertEqual(got[0], want[0])
    for u, w in zip(*map(jax.tree.leaves, (got[1], want[1])), strict=True):
      np.testing.assert_array_equal(u, w)

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
  )
  def test_bad_configs(self, changes, message):
    with self.assertRaisesRegex(errors.UserValueError, message):
      small.make(**changes)

  def test_unknown_fields_and_bad_tokens(self):
    with self.assertRaisesRegex(errors.UserValueError, 'mean "features"'):
      models.ModelConfig.from_dict(dict(feature=3))
    with self.assertRaisesRegex(ValueError, 'must be integers with 2 axes'):
      small.make()(jnp.ones((2, 3)))


class EmbeddingTest(parameterized.TestCase):

  def test_tokens_of_any_integer_dtype(self):
    model = small.make(vocab_size=300)
    tokens = np.array([[0, 7, 127]])
    want = model.embed.embedding[...][tokens]
    for dtype in ('int8', 'uint8', 'int16', 'uint16', 'int32', 'uint32'):
      found = inputs_lib.embed(
          model.config, model.embed, jnp.asarray(tokens, dtype)
      )
      np.testing.assert_array_equal(found, want)

  def test_gradients_of_a_token_are_summed_in_float32(self):
    for dtype in ('float32', 'bfloat16'):
      graph, state = nnx.split(small.make(dtype=dtype))

      def total(state, graph=graph):
        tokens = jnp.full((4, 256), 3)
        model = nnx.merge(graph, state)
        x = inputs_lib.embed(model.config, model.embed, tokens)
        return x.astype(jnp.float32).sum()

      table = small.jit(jax.grad(total))(state).embed.embedding[...]
      np.testing.assert_array_equal(table[3], jnp.full((table.shape[1],), 1024))

  def test_embed_std_scale_embeddings_and_embed_norm(self):
    tokens = jnp.arange(16)[None]
    cheap = dict(layer='elman', num_layers=1, mlp='none')
    model = small.make(**cheap, embed_std=0.02, vocab_size=1000)
    self.assertAlmostEqual(model.embed.embedding[...].std(), 0.02, delta=1e-3)

    model = small.make(**cheap, norm_epsilon=0.1, final_norm_epsilon=0.2)
    self.assertEqual(model.norm.epsilon, 0.2)
    self.assertEqual(model.backbone.stacks[0].norm.epsilon, 0.1)

    logits = {}
    for name, changes in dict(
        plain={}, scaled=dict(scale_embeddings=True),
        factor=dict(embed_scale=8**0.5),
        normed=dict(embed_norm=True),
    ).items():
      model = small.make(**cheap, **changes)
      if name == 'plain':
        model.embed.embedding[...] *= 8**0.5
      logits[name] = model(tokens)[1]
    for name in ('scaled', 'factor'):
      np.testing.assert_allclose(logits[name], logits['plain'], atol=1e-5)
    model.embed.embedding[...] *= 8  # The norm removes it.
    np.testing.assert_allclose(model(tokens)[1], logits['normed'], atol=1e-4)


if __name__ == '__main__':
  absltest.main()
