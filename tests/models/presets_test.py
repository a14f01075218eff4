"""Presets have the published sizes and keep the contract of the layers."""

import functools

from absl.testing import absltest
from absl.testing import parameterized
from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np
from rnnzoo import models

# The published number of parameters and the size of the vocabulary, 0 if the
# number does not include the embedding. Strings are numbers from papers, whose
# last digit is rounded. Integers come from files of weights and are exact.
PUBLISHED = dict(
    bamba_9b=('9.78B', 128_256),
    falcon_h1_0p5b=(521_411_104, 32_784),
    falcon_mamba_7b=(7_272_665_088, 65_024),
    gpt2_124m=('123.65M', 50_257),  # As nanoGPT counts, without positions.
    granite_4_h_350m=('340M', 100_352),
    granite_4_h_1b=('1.5B', 100_352),
    granite_4_h_tiny=(6_939_037_248, 100_352),
    granite_4_h_small=('32.2B', 100_352),
    griffin_100m=('100M', 0),
    griffin_200m=('200M', 0),
    griffin_400m=('400M', 0),
    griffin_3b=('3B', 0),
    griffin_7b=('7B', 0),
    griffin_14b=('14B', 0),
    hawk_100m=('100M', 0),
    hawk_200m=('200M', 0),
    hawk_400m=('400M', 0),
    hawk_1p3b=('1.3B', 0),
    hawk_3b=('3B', 0),
    hawk_7b=('7B', 0),
    jamba_52b=(51_570_323_328, 65_536),
    kimi_linear_48b=(49_122_681_728, 163_840),
    lfm2_350m=(354_483_968, 65_536),
    lfm2_700m=(742_489_344, 65_536),
    lfm2_1p2b=(1_170_340_608, 65_536),
    mamba_130m=(129_135_360, 50_280),
    mamba_370m=(371_516_416, 50_280),
    mamba_790m=(793_204_224, 50_280),
    mamba_1p4b=(1_372_178_432, 50_280),
    mamba_2p8b=(2_768_345_600, 50_280),
    mamba2_130m=('130M', 50_288),
    mamba2_370m=('370M', 50_288),
    mamba2_780m=('780M', 50_288),
    mamba2_1p3b=('1.3B', 50_288),
    mamba2_codestral_7b=(7_285_403_648, 32_768),
    mamba2_2p7b=('2.7B', 50_288),
    minimax_text_01_456b=(456_089_655_296, 200_064),
    nano_gpt_shakespeare=('10.65M', 65),
    nemotron_h_8b=('8.1B', 131_072),
    olmo_hybrid_7b=('7B', 100_352),
    qwen3_5_0p8b=(752_393_024, 248_320),
    qwen3_5_2b=(1_881_825_088, 248_320),
    qwen3_5_4b=(4_205_751_296, 248_320),
    qwen3_5_9b=(8_953_803_264, 248_320),
    qwen3_5_27b=(26_895_998_464, 248_320),
    qwen3_next_80b=(79_674_391_296, 151_936),
    recurrentgemma_2b=('2B', 0),
    recurrentgemma_9b=('9B', 256_000),
    rwkv4_169m=(169_342_464, 50_277),
    rwkv4_430m=(430_397_440, 50_277),
    rwkv4_1p5b=(1_515_106_304, 50_277),
    rwkv4_3b=(2_984_627_200, 50_277),
    rwkv4_7b=('7B', 50_277),
    rwkv4_14b=('14B', 50_277),
    rwkv7_0p19b=('0.19B', 65_536),
    # Without the v0, v1 and v2 of the first layer: in the test.
    rwkv7_1p5b=(1_527_404_544, 65_536),
    rwkv7_2p9b=('2.9B', 65_536),
    xlstm_1_0_350m=('409M', 50_304),
    xlstm_7_1_350m=('408M', 50_304),
    xlstm_7b=(6_865_424_896, 50_304),
    zamba2_1p2b=(1_215_064_704, 32_000),
    zamba2_2p7b=('2.7B', 32_000),
    zamba2_7b=(7_356_749_648, 32_000),
)

# The same of presets that are ours: what they are named after.
OURS = dict(
    gated_delta_net_hybrid_390m=(388_480_620, 50_288),
    gated_delta_net_hybrid_1p5b=(1_450_357_464, 50_288),
    kda_hybrid_360m=(360_215_952, 50_288),
    kda_hybrid_1p3b=(1_318_412_832, 50_288),
    mamba3_180m=(180_059_632, 50_288),
    mamba3_440m=(439_760_000, 50_288),
    mamba3_1p5b=(1_516_046_592, 50_288),
    mamba3_mimo_1p5b=('1.5B', 50_288),
)

# Changes that make a preset tiny, with windows and chunks shorter than a
# sequence.
TINY = dict(
    gpt2_124m=dict(num_heads=2, window=4),
    recurrentgemma_2b=dict(
        num_layers=4,
        griffin=dict(hidden_features=8, num_heads=2),
        attention=dict(num_heads=2, window=3),
    ),
    kda_hybrid_360m=dict(
        num_layers=4, kda=dict(num_heads=2, chunk_size=4),
        attention=dict(num_heads=2, num_kv_heads=1, window=3),
    ),
    mamba3_mimo_1p5b=dict(
        state_features=4, head_features=8, rank=2, chunk_size=4
    ),
    mamba2_130m=dict(state_features=4, head_features=8, chunk_size=4),
    rwkv4_169m=dict(num_layers=4),
    rwkv7_0p19b=dict(
        num_layers=6,
        rwkv7=dict(
            head_features=4, decay_rank=2, rate_rank=2, value_rank=2,
            gate_rank=2, chunk_size=4,
        ),
    ),
    xlstm_7_1_350m=dict(
        layer='mlstm_block,slstm_block', num_layers=3,
        mlstm_block=dict(chunk_size=4, num_heads=2),
        slstm_block=dict(num_heads=2),
    ),
    xlstm_7b=dict(num_heads=2, chunk_size=4),
)
B, T, D, V = 2, 9, 8, 16


@functools.cache
def tiny(name):
  """Returns a small model of the family of a preset."""
  config, options = models.PRESETS[name], dict(TINY[name])
  fields = {k: options.pop(k) for k in ('layer', 'num_layers') if k in options}
  layer_options = dict(config.layer_options)
  for key, value in options.items():
    if isinstance(value, dict):
      value = {**layer_options.get(key, {}), **value}
    layer_options[key] = value
  config = config.replace(**dict(
      dict(num_layers=2, features=D, vocab_size=V, mlp_multiple=4), **fields,
      layer_options=layer_options,
  ))
  # Initial values take long to compile, and some of them are zeros.
  graphdef, state = nnx.split(build(config))
  random = np.random.default_rng(0)
  state = jax.tree.map(
      lambda u: jnp.asarray(0.4 * random.standard_normal(u.shape), u.dtype),
      state,
  )
  return nnx.merge(graphdef, state)


def build(config, make=None):
  if not make:
    make = models.LanguageModel
    if config.num_classes:
      make = models.SequenceClassifier
  return nnx.eval_shape(lambda: make(config, rngs=nnx.Rngs(0)))


def size(module):
  return sum(u.size for u in jax.tree.leaves(nnx.state(module, nnx.Param)))


def count_parameters(config):
  """Builds one block for each stack and multiplies."""
  model = build(config.replace(num_layers=len(config.stacks)))
  blocks = sum(
      size(stack) * len(depths)
      for stack, depths in zip(model.backbone.stacks, config.stacks)
  )
  return blocks + size(model) - sum(map(size, model.backbone.stacks))


class PresetsTest(parameterized.TestCase):

  @parameterized.parameters(*models.PRESETS)
  def test_has_the_published_size(self, name):
    config = models.PRESETS[name]
    published, vocab_size = (PUBLISHED | OURS).get(name, (None, 0))
    if not config.in_features:
      config = config.replace(vocab_size=vocab_size or 1)
    count = count_parameters(config)
    if name.startswith('rwkv7'):
      value_rank = config.layer_options['rwkv7']['value_rank']
      count -= (1 + 2 * value_rank) * config.features
    if isinstance(published, int):
      self.assertEqual(count, published)
    elif published:
      number = float(published[:-1]) * dict(M=1e6, B=1e9)[published[-1]]
      digits = published[:-1].replace('.', '').strip('0')
      unit = number / int(digits)
      self.assertLessEqual(abs(count - number), unit / 2, f'{count:,}')
    else:
      self.assertGreater(count, 0)

  @parameterized.parameters(
      ('min_gru_shakespeare', dict(conv_kernel=4, vocab_size=65), 5_821_824),
      # Six blocks of table 9, an encoder, the last norm and a head.
      ('lru_scifar', {}, 6 * 1_314_432 + 4 * 512 + 2 * 512 + 513 * 10),
      ('lru_listops', dict(vocab_size=18),
       6 * 165_248 + 18 * 128 + 2 * 128 + 129 * 10),
      # 98 tokens, and a head for pairs.
      ('lru_retrieval', dict(vocab_size=98),
       6 * 165_248 + 98 * 128 + 2 * 128 + 513 * 128 + 129 * 2,
       models.PairClassifier),
  )
  def test_parameter_counts(self, name, changes, count, make=None):
    model = build(models.PRESETS[name].replace(**changes), make)
    self.assertEqual(size(model), count)

  def test_counting_one_block_for_each_position_is_enough(self):
    config = models.PRESETS['griffin_100m'].replace(vocab_size=7, features=256)
    config = config.replace(num_layers=5)
    self.assertEqual(count_parameters(config), size(build(config)))

  def test_griffin_1p3b_is_smaller_than_its_name(self):
    # The paper names it after the class of models that it compares. Attention
    # has fewer parameters.
    config = models.PRESETS['griffin_1p3b'].replace(vocab_size=1)
    count = count_parameters(config)
    self.assertEqual(round(count / 1e9, 2), 1.24)

  @parameterized.parameters(*TINY)
  def test_whole_sequences_and_steps_agree(self, name):
    model = tiny(name)
    tokens = jax.random.randint(jax.random.key(0), (B, T), 0, V)
    reset = jnp.zeros((B, T), bool).at[:, 4].set(True)
    mask = jnp.ones((B, T), bool).at[0, 5:7].set(False).at[1, :2].set(False)
    carry, logits = jax.jit(
        lambda t, r, m: model(t, reset=r, mask=m)
    )(tokens, reset, mask)

    def step(carry, inputs):
      token, reset, mask = inputs
      return model.step(carry, token, reset=reset, mask=mask)

    by_time = jax.tree.map(lambda u: u.T, (tokens, reset, mask))
    stepped, each = jax.jit(lambda *u: jax.lax.scan(step, *u))(
        model.initialize_carry(B), by_time
    )
    scale = float(np.abs(logits).max())
    np.testing.assert_allclose(
        each.swapaxes(0, 1), logits, rtol=0, atol=1e-5 * max(scale, 1)
    )
    jax.tree.map(
        lambda g, w: np.testing.assert_allclose(g, w, rtol=1e-4, atol=1e-5),
        stepped, carry,
    )

  def test_only_slstm_blocks_of_xlstm_have_an_mlp(self):
    stacks = tiny('xlstm_7_1_350m').backbone.stacks
    self.assertFalse(hasattr(stacks[0], 'mlp_in'))
    # 1.3 * 8 is rounded up to a multiple of 4; there is no bias.
    self.assertEqual(stacks[1].mlp_in.kernel.shape, (1, D, 12))
    self.assertIsNone(stacks[1].mlp_in.bias)

  def test_values_of_the_first_layer_reach_all_others(self):
    model = tiny('rwkv7_0p19b')
    carry = model.initialize_carry(B)
    tokens = jnp.arange(B)

    @jax.jit
    def by_hand(carry):
      x, v_first = model.embed_norm(model.embed.embedding[...][tokens]), None
      for depth in range(model.config.num_layers):
        graphdef, state = nnx.split(model.backbone.stacks[depth % 2])
        here = lambda u: u[depth // 2]
        block = nnx.merge(graphdef, jax.tree.map(here, state))
        old = jax.tree.map(here, carry[depth % 2].layer)
        normed, options = block.norm(x), {}
        if depth % 2 == 0:
          options = dict(v_first=v_first)
        if depth == 0:
          v_first = block.layer.first_value(normed, old)
        x = x + block.layer.step(old, normed, **options)[1]
      return model.head(model.norm(x))

    _, logits = jax.jit(model.step)(carry, tokens)
    np.testing.assert_allclose(logits, by_hand(carry), atol=1e-5)


if __name__ == '__main__':
  absltest.main()
