"""Models of `transformers` give the same numbers here, and the way back.

They run in an environment of their own, with PyTorch. With RNNZOO_RECORD=FILE
in the environment, what was compared for each family is written to this file:

  RNNZOO_RECORD=experiments/results/convert.json \
      pytest tests/convert/transformers_test.py -k test_family
"""

import importlib.metadata
import importlib.util
import json
import os
import pathlib
import tempfile

from absl.testing import absltest
from absl.testing import parameterized
from flax import nnx
import jax
import numpy as np
from rnnzoo import convert
from rnnzoo import generation
from rnnzoo import layers as layers_lib
from rnnzoo import models
from rnnzoo.models import config as config_lib
from rnnzoo.models import patterns
from tests.convert import chat_test
from tests.convert import reference
from tests.experiments import commands

# Of the largest logit or state: eager PyTorch sums in another order.
TOLERANCE = 5e-5
# In float64 the logits of OLMo Hybrid and Zamba2 are the same to 3e-6 and
# 1.3e-5, those of float32 in norms, and those of Qwen3-Next to 5e-8, where
# norms are float64 too. In float32 the random weights of Qwen3-Next and Zamba2
# make much of rounding: the order of sums, which threads change from run to
# run, moves their logits by up to 1e-4.
TOLERANCES = dict(olmo_hybrid=1e-4, qwen3_next=5e-4, zamba2=5e-4)
PROMPT, LENGTH = 11, 32

# What `test_family` found, a row for each family.
_rows = []

# Families whose cache has a layer for each block.
HYBRIDS = (
    'bamba', 'falcon_h1', 'granitemoehybrid', 'jamba', 'kimi_linear', 'lfm2',
    'minimax', 'nemotron_h', 'olmo_hybrid', 'qwen3_5_text', 'qwen3_next',
    'zamba2',
)

# Values of configs that are not the defaults.
VARIANTS = dict(
    mamba_all_biases_untied=('mamba', dict(
        use_bias=True, use_conv_bias=False, tie_word_embeddings=False, expand=3,
        conv_kernel=3, layer_norm_epsilon=1e-3,
    )),
    falcon_mamba_biases=('falcon_mamba', dict(
        use_bias=True, tie_word_embeddings=False, mixer_rms_eps=1e-2,
    )),
    # The file of the released model: the second value wins.
    falcon_mamba_released=('falcon_mamba', dict(
        expand=16, intermediate_size=64,
    )),
    mamba2_limits=('mamba2', dict(
        time_step_limit=(0.3, 0.8), use_conv_bias=False,
        tie_word_embeddings=True,
    )),
    rwkv_epsilon_tied=('rwkv', dict(
        layer_norm_epsilon=1e-2, tie_word_embeddings=True, rescale_every=0,
    )),
    # Halved after two of three blocks: epsilon then weighs four times as much.
    rwkv_rescaled=('rwkv', dict(rescale_every=2, layer_norm_epsilon=1e-6)),
    xlstm_caps=('xlstm', dict(
        gate_soft_cap=2.0, output_logit_soft_cap=3.0, norm_eps=1e-3, eps=1e-2,
        v_dim_factor=2.0,
    )),
    recurrent_gemma_attention=('recurrent_gemma', dict(
        attention_bias=True, num_key_value_heads=2, conv1d_width=2,
        rms_norm_eps=1e-3, logits_soft_cap=5.0, tie_word_embeddings=False,
        block_types=('attention', 'recurrent'), rope_parameters=dict(
            rope_type='default', rope_theta=100.0, partial_rotary_factor=1.0
        ),
    )),
    lfm2_biases_and_sizes=('lfm2', dict(
        conv_bias=True, conv_L_cache=4, norm_eps=1e-3, intermediate_size=100,
        block_auto_adjust_ff_dim=True, block_multiple_of=16,
        block_ffn_dim_multiplier=1.3, tie_word_embeddings=False,
        rope_parameters=dict(rope_type='default', rope_theta=100.0),
    )),
    bamba_limits_tied=('bamba', dict(
        time_step_limit=(0.3, 0.8), mamba_conv_bias=False, mamba_d_conv=3,
        tie_word_embeddings=True, rms_norm_eps=1e-3, attn_layer_indices=[2],
        rope_parameters=dict(rope_type='default', rope_theta=100.0),
    )),
    kimi_linear_groups=('kimi_linear', dict(
        q_lora_rank=10, num_experts=8, num_experts_per_token=3, n_group=4,
        topk_group=2, num_shared_experts=2, moe_renormalize=False,
        routed_scaling_factor=0.7, rms_norm_eps=1e-3, linear_conv_kernel_dim=3,
    )),
    kimi_linear_dense=('kimi_linear', dict(
        mlp_layer_types=['dense'] * 5, layer_types=['full_attention'] * 5,
    )),
    falcon_h1_norm=('falcon_h1', dict(
        mamba_rms_norm=True, mamba_norm_before_gate=False, mamba_d_ssm=None,
        mamba_n_heads=8, tie_word_embeddings=True, rms_norm_eps=1e-3,
        time_step_limit=(0.3, 0.8), mamba_conv_bias=False, rope_parameters=dict(
            rope_type='default', rope_theta=1e11
        ),
    )),
    falcon_h1_norm_before_gate=('falcon_h1', dict(
        mamba_rms_norm=True, mamba_norm_before_gate=True, mamba_d_conv=3,
        mlp_multipliers=None, ssm_multipliers=None, key_multiplier=1.0,
    )),
    nemotron_h_latent=('nemotron_h', dict(
        moe_latent_size=12, norm_topk_prob=False, n_group=1, topk_group=1,
        use_conv_bias=False, conv_kernel=3, time_step_min=0.4,
        layer_norm_epsilon=1e-3,
    )),
    nemotron_h_no_experts=('nemotron_h', dict(layers_block_type=[
        'linear_attention', 'mlp', 'full_attention', 'mlp'
    ])),
    olmo_hybrid_rotated=('olmo_hybrid', dict(
        linear_num_key_heads=2, linear_allow_neg_eigval=False,
        linear_conv_kernel_dim=3, rms_norm_eps=1e-3, tie_word_embeddings=True,
        rope_parameters=dict(rope_type='default', rope_theta=100.0),
    )),
    qwen3_5_tied_all_heads_alike=('qwen3_5_text', dict(
        linear_num_key_heads=4, linear_conv_kernel_dim=3, rms_norm_eps=1e-3,
        tie_word_embeddings=True, rope_parameters=dict(
            rope_type='default', rope_theta=100.0, partial_rotary_factor=0.25,
            mrope_section=[2, 1, 1], mrope_interleaved=True,
        ),
    )),
    qwen3_next_every_second=('qwen3_next', dict(
        mlp_only_layers=None, decoder_sparse_step=2, norm_topk_prob=False,
        tie_word_embeddings=True, rms_norm_eps=1e-3,
    )),
    qwen3_next_experts_everywhere=('qwen3_next', dict(mlp_only_layers=[])),
    granitemoehybrid_dense=('granitemoehybrid', dict(
        num_local_experts=0, tie_word_embeddings=True, mamba_conv_bias=False,
    )),
    granitemoehybrid_rotated=('granitemoehybrid', dict(
        position_embedding_type='rope', rms_norm_eps=1e-3, rope_parameters=dict(
            rope_type='default', rope_theta=100.0
        ),
    )),
    jamba_dense=('jamba', dict(
        num_experts=1, num_experts_per_tok=1, tie_word_embeddings=True,
        attn_layer_period=8, attn_layer_offset=7, mamba_conv_bias=False,
    )),
    jamba_experts_everywhere=('jamba', dict(
        expert_layer_period=1, expert_layer_offset=0, rms_norm_eps=1e-3,
    )),
    minimax_full_first=('minimax', dict(
        layer_types=None, tie_word_embeddings=True, rms_norm_eps=1e-3,
    )),
    zamba2_plain=('zamba2', dict(
        use_shared_attention_adapter=False, use_mem_rope=False,
        num_mem_blocks=1, num_key_value_heads=2, rms_norm_eps=1e-3,
        mamba_d_conv=3, time_step_min=0.4,
        rope_parameters=dict(rope_type='default', rope_theta=100.0),
    )),
)


def numpy(tensor):
  return tensor.detach().numpy()


def dummy():
  import torch
  return torch.zeros((1, 1), dtype=torch.int64)


def mamba_states(model, cache, carry):
  """Pairs of our states and of those of `transformers`, by block."""
  for i, layer in enumerate(cache.layers):
    own = jax.tree.map(lambda u: np.asarray(u)[i], carry[0].layer)
    tail = numpy(layer.conv_states[0])[..., 1:].swapaxes(1, 2)
    convs = [own.conv]
    ssm = numpy(layer.recurrent_states[0])
    if model.config.layer == 'mamba2':
      convs.append(own.conv_bc)
      ssm = ssm.swapaxes(2, 3)
    yield np.concatenate(convs, axis=-1), tail
    yield own.ssm, ssm


def rwkv_states(model, state, carry):
  del model
  mlp, previous, aa, bb, pp = map(numpy, state)
  for i in range(pp.shape[-1]):
    own = jax.tree.map(lambda u: np.asarray(u)[i], carry[0].layer)
    yield own.previous, previous[..., i]
    # Two sums with a common exponent.
    yield own.aa / own.bb, aa[..., i] / bb[..., i]
    yield np.log(own.bb) + own.pp, np.log(bb[..., i]) + pp[..., i]
    yield np.asarray(carry[1].layer)[i], mlp[..., i]


def xlstm_states(model, cache, carry):
  del model
  for i, (c, n, m) in cache.rnn_state.items():
    own = jax.tree.map(lambda u: np.asarray(u)[i], carry[0].layer)
    yield own.C, numpy(c)
    yield own.n, numpy(n)
    yield own.m, numpy(m)[..., 0]


def recurrent_gemma_states(model, cache, carry, theirs):
  places = [0, 0, 0]
  for i, block in enumerate(theirs.model.layers):
    position = i % len(model.backbone.stacks)
    own = jax.tree.map(
        lambda u: np.asarray(u)[places[position]], carry[position].layer
    )
    places[position] += 1
    part = block.temporal_block
    if model.config.layer_names[i] == 'griffin':
      yield own.conv, numpy(part.conv1d_state).swapaxes(1, 2)
      yield own.recurrent.h, numpy(part.rg_lru.recurrent_states)
    else:
      window = own.key.shape[1]
      keys = numpy(cache.layers[i].keys)[:, :, -(window - 1):]
      slots = np.arange(PROMPT - keys.shape[2], PROMPT) % window
      yield own.key[:, slots], keys.swapaxes(1, 2)


def hybrid_states(model, cache, carry, key_scale):
  """Of attention, keys and values; of other layers, tails and memories."""
  config = model.config
  for depths, of_stack in zip(config.stacks, carry):
    for index, depth in enumerate(depths):
      own = jax.tree.map(lambda u: np.asarray(u)[index], of_stack)
      names, states = [config.layer_names[depth]], [own.layer]
      if isinstance(own.layer, layers_lib.ParallelCarry):
        names, states = patterns.parts_of(names[0]), own.layer.branches
      if own.shared is not None:
        names, states = [*names, 'attention'], [*states, own.shared]
      for name, own in zip(names, states):
        if name == 'lightning_attention':
          yield own, numpy(cache.linear_cache[depth])
        elif name != config_lib.NO_LAYER:
          yield from states_of_layer(
              name, own, cache.layers[depth], key_scale
          )


def states_of_layer(name, own, theirs, key_scale):
  """Pairs of the states of one layer."""
  if name == 'latent_attention':
    yield own.value[:, :PROMPT], numpy(theirs.keys).swapaxes(1, 2)
    yield own.key[:, :PROMPT], numpy(theirs.values).swapaxes(1, 2)
    return
  if 'attention' in name:
    yield own.key[:, :PROMPT] * key_scale, numpy(theirs.keys).swapaxes(1, 2)
    yield own.value[:, :PROMPT], numpy(theirs.values).swapaxes(1, 2)
    return
  convs = [own.conv]
  if name == 'mamba':
    yield own.ssm, numpy(theirs.recurrent_states[0])
  if name == 'mamba2':
    convs.append(own.conv_bc)
    yield own.ssm, numpy(theirs.recurrent_states[0]).swapaxes(2, 3)
  if name in ('gated_delta_net', 'kda'):
    yield own.S, numpy(theirs.recurrent_states[0])
  tail = numpy(theirs.conv_states[0]).swapaxes(1, 2)
  yield np.concatenate(convs, axis=-1), tail[:, -own.conv.shape[1]:]


def states_of(family, model, theirs, ids):
  """Pairs of our states and theirs after the same tokens."""
  import torch

  carry, _ = model(ids)
  options, cache = {}, None
  if family in ('recurrent_gemma', *HYBRIDS):
    cache = reference.library().DynamicCache(config=theirs.config)
    if family == 'minimax':
      from transformers.models.minimax import modeling_minimax
      cache = modeling_minimax.MiniMaxCache()
    options['past_key_values'] = cache
  with torch.no_grad():
    out = theirs(torch.tensor(ids.astype(np.int64)), use_cache=True, **options)
  if family == 'rwkv':
    return rwkv_states(model, out.state, carry)
  if family == 'xlstm':
    return xlstm_states(model, out.cache_params, carry)
  if family == 'recurrent_gemma':
    return recurrent_gemma_states(model, cache, carry, theirs)
  if family in HYBRIDS:
    # Falcon-H1 scales keys, and we scale their products with queries.
    key_scale = getattr(theirs.config, 'key_multiplier', 1.0)
    return hybrid_states(model, cache, carry, key_scale)
  return mamba_states(model, out.cache_params, carry)


def tearDownModule():
  if path := os.environ.get('RNNZOO_RECORD'):
    versions = {
        name: importlib.metadata.version(name)
        for name in ('jax', 'torch', 'transformers')
    }
    rows = sorted(_rows, key=lambda row: row['family'])
    pathlib.Path(path).write_text(
        json.dumps(versions | dict(rows=rows), indent=1) + '\n'
    )


@absltest.skipUnless(
    importlib.util.find_spec('transformers')
    or os.environ.get('RNNZOO_REQUIRE_PEER'),
    'transformers is not installed.',
)
class TransformersTest(parameterized.TestCase):

  def setUp(self):
    super().setUp()
    self.folder = pathlib.Path(
        self.enterContext(tempfile.TemporaryDirectory())
    )

  def assert_close(self, got, want, family=None):
    self.assertEqual(got.shape, want.shape)
    size = np.abs(want).max()
    self.assertGreater(size, 1e-3)
    error = np.abs(np.asarray(got, np.float64) - want).max() / size
    self.assertLess(error, TOLERANCES.get(family, TOLERANCE))
    return error

  def open(self, family, folder):
    """What `transformers` reads, if no tensor is missing or left over."""
    kind = getattr(
        reference.library(), convert.FAMILIES[family].architecture
    )
    model, info = kind.from_pretrained(folder, output_loading_info=True)
    derived = convert.FAMILIES[family].derived
    missing = [u for u in info.pop('missing_keys') if not u.endswith(derived)]
    self.assertFalse(missing or any(info.values()), (missing, info))
    return model.eval()

  def assert_opens(self, family, folder, theirs, want):
    """What we wrote is what we read: the same bits, and the same logits."""
    again = self.open(family, folder)
    self.assert_close(
        reference.logits(again, reference.tokens()), want, family
    )
    again.train()  # RWKV rescales some parameters, but not in training.
    theirs.train()
    if family == 'rwkv':
      again(dummy())
      theirs(dummy())
    own = dict(again.named_parameters())
    for name, value in theirs.named_parameters():
      np.testing.assert_array_equal(numpy(own[name]), numpy(value), name)

  @parameterized.parameters(*reference.SIZES)
  def test_family(self, family):
    theirs = reference.build(family, **reference.SIZES[family])
    reference.save(theirs, self.folder / 'theirs')
    model = convert.load_pretrained(self.folder / 'theirs')
    ids = reference.tokens()
    want = reference.logits(theirs, ids)
    error = self.assert_close(model(ids)[1], want, family)

    prompts = ids[:, :PROMPT]
    errors = [
        self.assert_close(own, other, family)
        for own, other in states_of(family, model, theirs, prompts)
    ]
    self.assertNotEmpty(errors)
    got = generation.generate(model, prompts, length=LENGTH, temperature=0)
    np.testing.assert_array_equal(
        got, reference.greedy(theirs, prompts, LENGTH)
    )

    convert.save_pretrained(model, self.folder / 'ours', shard_bytes=2**14)
    self.assert_opens(family, self.folder / 'ours', theirs, want)
    _rows.append(dict(
        family=family, parameters=sum(p.numel() for p in theirs.parameters()),
        logits=float(error), states=float(max(errors)), tokens=got.size,
    ))

  @parameterized.named_parameters(
      (name, *variant) for name, variant in VARIANTS.items()
  )
  def test_options(self, family, options):
    theirs = reference.build(family, **{**reference.SIZES[family], **options})
    reference.save(theirs, self.folder / 'theirs')
    model = convert.load_pretrained(self.folder / 'theirs')
    ids = reference.tokens()
    want = reference.logits(theirs, ids)
    self.assert_close(model(ids)[1], want, family)
    convert.save_pretrained(model, self.folder / 'ours')
    self.assert_opens(family, self.folder / 'ours', theirs, want)

  def test_a_model_of_images_too(self):
    library = reference.library()
    sizes = reference.SIZES['qwen3_5_text']
    theirs = library.Qwen3_5ForConditionalGeneration(library.Qwen3_5Config(
        text_config=dict(sizes, vocab_size=reference.VOCABULARY),
        vision_config=dict(
            depth=1, hidden_size=16, num_heads=2, intermediate_size=16,
            out_hidden_size=32, num_position_embeddings=16,
        ),
    )).float().eval()
    theirs.save_pretrained(self.folder / 'theirs')
    model = convert.load_pretrained(self.folder / 'theirs')
    ids = reference.tokens()
    self.assert_close(model(ids)[1], reference.logits(theirs, ids))

  @parameterized.parameters('mamba_130m', 'mamba2_130m', 'rwkv4_169m')
  def test_a_preset_opens_in_transformers(self, preset):
    config = models.PRESETS[preset].replace(
        num_layers=4, features=64, vocab_size=reference.VOCABULARY
    )
    model = models.LanguageModel(config, rngs=nnx.Rngs(0))
    convert.save_pretrained(model, self.folder / 'ours')
    family = preset.split('_')[0].removesuffix('4')
    ids = reference.tokens()
    self.assert_close(
        model(ids)[1],
        reference.logits(self.open(family, self.folder / 'ours'), ids),
    )

  def test_chat_templates(self):
    import tokenizers

    library = reference.library()
    theirs = library.PreTrainedTokenizerFast(
        tokenizer_object=tokenizers.Tokenizer(tokenizers.models.BPE()),
        bos_token='<s>', chat_template=chat_test.CHATML,
    )
    own = convert.ChatTemplate(chat_test.CHATML, dict(bos_token='<s>'))
    messages = [
        chat_test.USER, dict(role='fool', content='?'),
        dict(role='assistant', content=' Ho \n'), chat_test.USER,
    ]
    for add in (False, True):
      self.assertEqual(
          own.render(messages, add_generation_prompt=add),
          theirs.apply_chat_template(
              messages, tokenize=False, add_generation_prompt=add
          ),
      )

  def test_the_benchmark_of_speed(self):
    out = self.folder / 'speed.json'
    done = commands.Command(
        'experiments.benchmarks.convert_speed', '--prompt=9', '--length=8',
        '--layers=2', '--features=32', '--vocab=50', '--repeats=1',
        f'--out={out}',
    ).wait()
    self.assertEqual(done.code, 0, done)
    record = json.loads(out.read_text())
    self.assertLess(record['logits_difference'], TOLERANCE)
    self.assertLen(record['rows'], 4)


if __name__ == '__main__':
  absltest.main()
