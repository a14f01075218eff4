"""Folders of pretrained weights: numbers, round trips, memory, errors."""

import importlib.util
import json
import os
import pathlib
import shutil
import subprocess
import sys
import tempfile

from absl.testing import absltest
from absl.testing import parameterized
from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np
from rnnzoo import convert
from rnnzoo import errors
from rnnzoo import generation
from rnnzoo import models
from rnnzoo.convert import loading
from rnnzoo.convert import saving
from rnnzoo.convert import settings
from rnnzoo.convert import tables
from rnnzoo.convert import weights
from rnnzoo.models import patterns
from rnnzoo.training import sharding
import tokenizers

FIXTURES = pathlib.Path(__file__).parent / 'fixtures'
FAMILIES = tuple(convert.FAMILIES)
TOLERANCE = 2e-5  # As in transformers_test.py.


def setUpModule():
  if not importlib.util.find_spec('safetensors'):
    raise absltest.SkipTest('safetensors is not installed.')


def expected(family):
  found = np.load(FIXTURES / family / 'expected.npz')
  return found['ids'], found['logits']


def parameters(model, make=np.asarray):
  return {
      '.'.join(map(str, path)): make(variable.get_value())
      for path, variable in nnx.to_flat_state(nnx.state(model, nnx.Param))
  }


class ConvertTest(parameterized.TestCase):

  def setUp(self):
    super().setUp()
    self.folder = pathlib.Path(
        self.enterContext(tempfile.TemporaryDirectory())
    )

  def copy(self, family='mamba', remove=(), **values):
    """Copies a fixture, with some values of its config changed."""
    folder = self.folder / 'copy'
    shutil.copytree(FIXTURES / family, folder, dirs_exist_ok=True)
    path = folder / 'config.json'
    config = json.loads(path.read_text()) | values
    path.write_text(json.dumps({
        k: v for k, v in config.items() if k not in remove
    }))
    return folder

  def rewrite(self, folder, change):
    """Changes the tensors of a folder."""
    from safetensors import numpy as files

    path = folder / 'model.safetensors'
    tensors = files.load_file(path)
    change(tensors)
    files.save_file(tensors, path)

  def assert_close(self, got, want):
    size = np.abs(want).max()
    np.testing.assert_allclose(got, want, atol=TOLERANCE * size, rtol=0)

  @parameterized.parameters(*FAMILIES)
  def test_a_family(self, family):
    model = convert.load_pretrained(FIXTURES / family)
    self.assertEqual(model.config.param_dtype, 'float32')  # Of float16.
    ids, want = expected(family)
    carry, logits = model(ids)
    self.assert_close(logits, want)
    # Chunks, steps and padding before a row.
    early, _ = model(ids[:, :4])
    late, _ = model(ids[:, 4:-1], early)
    _, last = model.step(late, ids[:, -1])
    self.assert_close(last, want[:, -1])
    tokens, mask = generation.pad([ids[0], ids[0, :3]])
    both, logits = model(tokens, mask=mask)
    self.assert_close(logits[:1], want)
    self.assert_close(logits[1:, -3:], want[:, :3])
    jax.tree.map(
        lambda u, v: self.assert_close(u[:, :1], v), both, carry
    )

    convert.save_pretrained(model, self.folder, shard_bytes=2**10)
    self.assertGreater(len(list(self.folder.glob('*.safetensors'))), 1)
    values = settings.read(self.folder)
    given = settings.read(FIXTURES / family)
    for name in values.keys() - {'dtype'}:
      self.assertEqual(values[name], given.get(name, values[name]), name)
    again = parameters(convert.load_pretrained(self.folder))
    for name, value in parameters(model).items():
      np.testing.assert_array_equal(again[name], value, name)

  @parameterized.parameters(*FAMILIES)
  def test_a_table_names_every_element_once(self, family):
    values = settings.Settings(settings.read(FIXTURES / family))
    config = convert.FAMILIES[family].read(values)
    model = nnx.eval_shape(
        lambda: models.LanguageModel(config, rngs=nnx.Rngs(0))
    )
    counts = parameters(model, make=lambda u: np.zeros(u.shape, int))
    for row in convert.FAMILIES[family].full_table(config).values():
      for part in row:
        count = counts[part.path]
        view = part.view(count if part.index is None else count[part.index])
        self.assertTrue(np.shares_memory(view, count))
        self.assertEqual(view.shape, tables.shape_of(part, counts))
        view += 1
    for name, count in counts.items():
      self.assertTrue((count == 1).all(), name)

  def test_bfloat16(self):
    model = convert.load_pretrained(FIXTURES / 'mamba', dtype=jnp.bfloat16)
    layer = model.backbone.stacks[0].layer
    self.assertEqual(layer.in_proj.kernel.dtype, jnp.bfloat16)
    self.assertEqual(layer.A_log.dtype, jnp.float32)
    ids, want = expected('mamba')
    _, logits = model(ids)
    np.testing.assert_allclose(logits, want, atol=0.05 * np.abs(want).max())
    # A file of bfloat16 stays that.
    convert.save_pretrained(model, self.folder)
    again = convert.load_pretrained(self.folder)
    self.assertEqual(again.config.dtype, 'bfloat16')
    for name, value in parameters(again).items():
      np.testing.assert_array_equal(value, parameters(model)[name], name)

  def test_a_tied_head_may_be_in_the_file(self):
    folder = self.copy()
    name = 'backbone.embeddings.weight'
    self.rewrite(folder, lambda t: t.update({'lm_head.weight': t[name]}))
    ids, want = expected('mamba')
    self.assert_close(convert.load_pretrained(folder)(ids)[1], want)
    self.rewrite(folder, lambda t: t.update({'lm_head.weight': t[name] + 1}))
    with self.assertRaisesRegex(errors.UserValueError, 'is not backbone.emb'):
      convert.load_pretrained(folder)

  def test_an_old_name_of_the_embedding(self):
    folder = self.copy()
    self.rewrite(folder, lambda t: t.update({
        'backbone.embedding.weight': t.pop('backbone.embeddings.weight')
    }))
    ids, want = expected('mamba')
    self.assert_close(convert.load_pretrained(folder)(ids)[1], want)

  def test_mlps_that_are_named_like_experts(self):
    # As transformers 5.23.0 saves those of blocks without experts.
    folder = self.copy('kimi_linear')

    def change(tensors):
      for name in [*tensors]:
        new = name.replace('.mlp.', '.block_sparse_moe.')
        tensors[new] = tensors.pop(name)

    self.rewrite(folder, change)
    ids, want = expected('kimi_linear')
    self.assert_close(convert.load_pretrained(folder)(ids)[1], want)

  def test_old_configs(self):
    folder = self.copy(
        'recurrent_gemma', remove=('rope_parameters', 'lru_width', 'head_dim'),
        rope_theta=10_000, partial_rotary_factor=0.5, lru_width=None,
        embeddings_scale_by_sqrt_dim=True, torch_dtype='float16',
    )
    ids, want = expected('recurrent_gemma')
    self.assert_close(convert.load_pretrained(folder)(ids)[1], want)

  def test_values_of_released_models(self):
    # Those of mamba-130m-hf, xLSTM-7b and recurrentgemma-2b that newer files
    # of `transformers` lack.
    for family, remove, values in (
        ('mamba', (), dict(
            d_inner=16, d_model=8, fused_add_norm=True, n_layer=2,
            pad_vocab_size_multiple=8, rms_norm=True, ssm_cfg={},
            torch_dtype='float32',
        )),
        ('xlstm', ('num_hidden_layers', 'hidden_size'), dict(
            add_embedding_dropout=False, add_forward_backend_padding=False,
            add_post_blocks_norm=True, add_post_norm=False, add_qk_norm=False,
            cell_norm_eps=1e-6, chunkwise_kernel='chunkwise--triton_xl_chunk',
            force_bos_token_insert=True, head_dim=4, step_kernel='triton',
            igate_bias_init_range=-10.0, mlstm_round_up_to_multiple_of=64,
            sequence_kernel='native_sequence__triton',
        )),
        ('recurrent_gemma', ('block_types', 'rope_parameters'), dict(
            _block_types=['recurrent', 'recurrent', 'attention'],
            embeddings_scale_by_sqrt_dim=True, partial_rotary_factor=0.5,
            rope_theta=10_000.0,
        )),
        ('lfm2', ('layer_types', 'rope_parameters'), dict(
            block_dim=8, block_ff_dim=12, block_mlp_init_scale=1.0,
            block_norm_eps=1e-5, block_out_init_scale=1.0,
            block_use_swiglu=True, block_use_xavier_init=True, conv_dim=8,
            conv_dim_out=8, conv_use_xavier_init=True, full_attn_idxs=[1],
            intermediate_size=None, num_heads=2, rope_theta=1e6, theta=1e6,
            tie_embedding=True, use_pos_enc=True,
        )),
        ('qwen3_5_text', ('layer_types', 'rope_parameters'), dict(
            attn_output_gate=True, full_attention_interval=2,
            mamba_ssm_dtype='float32', mlp_only_layers=[],
            mtp_num_hidden_layers=1, mtp_use_dedicated_embeddings=False,
            partial_rotary_factor=0.25, rope_parameters=dict(
                mrope_interleaved=True, mrope_section=[1, 0, 0],
                partial_rotary_factor=0.25, rope_theta=1e4,
                rope_type='default',
            ),
        )),
        ('kimi_linear', (
            'layer_types', 'linear_conv_kernel_dim', 'linear_head_dim',
            'linear_num_heads', 'mlp_layer_types',
        ), dict(
            auto_map={}, first_k_dense_replace=1, head_dim=72,
            linear_attn_config=dict(
                full_attn_layers=[2], head_dim=4, kda_layers=[1], num_heads=1,
                short_conv_kernel_size=4,
            ),
            mla_use_nope=True, moe_layer_freq=1,
            moe_router_activation_func='sigmoid', num_nextn_predict_layers=0,
            rope_scaling=None, rope_theta=1e4, use_grouped_topk=True,
        )),
        ('falcon_h1', ('rope_parameters',), dict(
            attn_layer_indices=None, mamba_use_mlp=True, rope_theta=10_000.0,
            mlp_expansion_factor=8, rope_scaling=None, time_step_floor=1e-4,
            time_step_max=0.1, time_step_min=0.001, time_step_rank='auto',
        )),
        ('nemotron_h', ('layers_block_type',), dict(
            hybrid_override_pattern='ME*-', num_hidden_layers=4,
            mtp_hybrid_override_pattern='*E', num_nextn_predict_layers=1,
            attention_head_dim=4, auto_map={'AutoConfig': 'a.B'}, head_dim=None,
            norm_eps=1e-5, rms_norm_eps=1e-5, time_step_rank=256,
        )),
        ('qwen3_next', (), dict(use_sliding_window=False)),
        ('zamba2', ('rope_parameters',), dict(
            layers_block_type=['mamba', 'hybrid', 'hybrid', 'hybrid'],
            rope_theta=10_000, calc_logits_for_entire_prompt=False,
        )),
        ('mamba2', (), dict(
            time_step_limit=[0.0, 'Infinity'], rms_norm=True,
            norm_before_gate=True, is_encoder_decoder=False,
        )),
    ):
      with self.subTest(family):
        folder = self.copy(family, remove=remove, **values)
        ids, want = expected(family)
        self.assert_close(convert.load_pretrained(folder)(ids)[1], want)

  def test_a_text_may_have_to_start_with_a_token(self):
    tokenizer = tokenizers.Tokenizer(
        tokenizers.models.WordLevel({'<s>': 0, 'a': 1}, '<s>')
    )
    folder = self.copy('xlstm', force_bos_token_insert=True, bos_token_id=0)
    tokenizer.save(str(folder / 'tokenizer.json'))
    found = convert.open_pretrained(folder)
    self.assertEqual(found.vocabulary.encode('a').tolist(), [0, 1])
    self.assertEqual(found.vocabulary.encode('<s>').tolist(), [0])
    # A byte of a command line that is no UTF-8, and what JSON may have.
    for text in ('\udcff', '\ud800'):
      self.assertEqual(found.vocabulary.encode(text).tolist(), [0])
    self.assertEqual(found.stop_tokens, (2,))
    (folder / 'generation_config.json').write_text('{"eos_token_id": [3, 4]}')
    found = convert.open_pretrained(self.copy('xlstm'))
    self.assertEqual(found.stop_tokens, (3, 4))
    self.assertEqual(found.vocabulary.encode('a').tolist(), [1])

  @parameterized.parameters(
      ('mamba', dict(hidden_act='gelu'), "hidden_act = 'gelu' is not impl"),
      ('mamba', dict(foo=1, bar=[2]), r'family: foo \(1\), bar \(\[2\]\)\.'),
      ('mamba', dict(state_size='8'), 'state_size must be an integer, got'),
      ('mamba', dict(hidden_size=0), 'hidden_size must be at least 1, got 0'),
      ('mamba', dict(layer_norm_epsilon=0), 'layer_norm_epsilon must be pos'),
      ('mamba', dict(quantization_config={}), 'quantization_config'),
      ('mamba', dict(model_type='mamba1'), 'Did you mean "mamba'),
      ('mamba', dict(model_type=None), 'model_type None is not implemented'),
      ('mamba', dict(model_type=['mamba']), r"model_type \['mamba'\] is not"),
      ('mamba', dict(architectures=['MambaModel']), 'must be MambaForCausalLM'),
      ('mamba', dict(architectures=3), 'must be MambaForCausalLM, .* got 3'),
      ('mamba2', dict(use_bias=True), 'use_bias = True is not implemented'),
      ('mamba2', dict(num_heads=3), 'num_heads 3 x head_dim 4 must be'),
      ('mamba2', dict(time_step_limit=[2, 1]), 'two numbers in order'),
      ('mamba2', dict(time_step_limit=[0, 'a']), 'must be a list of numbers'),
      ('rwkv', dict(attention_hidden_size=4), 'attention_hidden_size = 4'),
      ('xlstm', dict(weight_mode='fused'), "weight_mode = 'fused'"),
      ('xlstm', dict(use_bias=True), 'use_bias = True'),
      ('xlstm', dict(cell_norm_eps=1e-5), 'cell_norm_eps = 1e-05'),
      ('rwkv', dict(is_encoder_decoder=True), 'is_encoder_decoder = True'),
      ('recurrent_gemma', dict(rope_scaling={'type': 'linear'}), 'rope_scalin'),
      ('recurrent_gemma', dict(rope_parameters={'rope_type': 'yarn'}),
       "rope_parameters: rope_type = 'yarn'"),
      ('qwen3_5_text', dict(attention_bias=True), 'attention_bias = True is'),
      ('kimi_linear', dict(mla_use_nope=False), 'mla_use_nope = False is not'),
      ('kimi_linear', dict(num_key_value_heads=1), 'value_heads = 1 is'),
      ('kimi_linear', dict(mlp_layer_types=['dense']), 'must be 2 kinds, each'),
      ('kimi_linear', dict(linear_attn_config=dict(heads=1)),
       r'linear_attn_config has values .*: heads \(1\)'),
      ('bamba', dict(mamba_proj_bias=True), 'mamba_proj_bias = True is'),
      ('bamba', dict(mamba_n_heads=3), 'mamba_n_heads 3 x mamba_d_head 4 must'),
      ('bamba', dict(partial_rotary_factor=1.0), 'partial_rotary_factor = 1.0'),
      ('bamba', dict(attn_layer_indices=[-1]), 'attn_layer_indices must not'),
      ('olmo_hybrid', dict(hidden_act='gelu'), "hidden_act = 'gelu' is not"),
      ('falcon_h1', dict(projectors_bias=True), 'projectors_bias = True is'),
      ('falcon_h1', dict(mlp_multipliers=[1]), r'must be 2 numbers, got \[1.0'),
      ('falcon_h1', dict(mamba_n_heads=5), 'd_head 4 must be mamba_d_ssm = 12'),
      ('falcon_h1', dict(mamba_d_ssm=None), 'must be mamba_d_ssm = 16'),
      ('nemotron_h', dict(mlp_hidden_act='silu'), "mlp_hidden_act = 'silu'"),
      ('nemotron_h', dict(num_hidden_layers=3), 'num_hidden_layers = 3 is not'),
      ('nemotron_h', dict(layers_block_type=['m']), 'must be 1 kinds, each l'),
      ('nemotron_h', dict(layers_block_type=[]), 'must be 1 kinds, each l'),
      ('nemotron_h', dict(tie_word_embeddings=True), 'word_embeddings = True'),
      ('nemotron_h', dict(norm_eps=1e-6), 'norm_eps = 1e-06 is not implement'),
      ('nemotron_h', dict(n_group=3), 'model.experts: `num_groups` must be'),
      ('zamba2', dict(tie_word_embeddings=False), 'word_embeddings = False is'),
      ('zamba2', dict(use_long_context=True), 'use_long_context = True is not'),
      ('zamba2', dict(hybrid_layer_ids=[1]), r'must be \[1, 2, 3\]'),
      ('zamba2', dict(n_mamba_heads=3), '3 must divide mamba_expand x hidden'),
      ('recurrent_gemma', dict(rope_parameters={'factor': 2}),
       r'rope_parameters has values .*: factor \(2\)'),
      ('recurrent_gemma', dict(block_types=['full']), 'block_types must be'),
      ('recurrent_gemma', dict(hidden_activation='relu'), 'hidden_activation'),
      ('lfm2', dict(layer_types=['conv', 'x']), 'must be 2 kinds, each conv'),
      ('lfm2', dict(layer_types=['conv']), r"must be 2 kinds.* \['conv'\]"),
      ('lfm2', dict(use_pos_enc=False), 'use_pos_enc = False is not implem'),
      ('lfm2', dict(rope_parameters={'rope_type': 'yarn'}), "type = 'yarn'"),
  )
  def test_values_that_are_not_implemented(self, family, values, message):
    with self.assertRaisesRegex(errors.UserValueError, message):
      convert.load_pretrained(self.copy(family, **values))

  def test_values_to_leave_out(self):
    folder = self.copy(foo=1)
    ids, want = expected('mamba')
    model = convert.load_pretrained(folder, ignore=('foo',))
    self.assert_close(model(ids)[1], want)

  def test_context(self):
    with self.assertRaisesRegex(errors.UserValueError, '`context` must be No'):
      convert.load_pretrained(FIXTURES / 'recurrent_gemma', context=100)
    with self.assertRaisesRegex(errors.UserValueError, '`context` must be at'):
      convert.load_pretrained(FIXTURES / 'lfm2', context=0)
    self.assertEqual(convert.load_pretrained(FIXTURES / 'lfm2').context, 4096)
    folder = self.copy('lfm2', max_position_embeddings=100)
    self.assertEqual(convert.load_pretrained(folder).context, 100)
    model = convert.load_pretrained(folder, context=8)
    ids, want = expected('lfm2')
    carry, logits = model(ids[:, :8])
    self.assert_close(logits, want[:, :8])
    with self.assertRaisesRegex(errors.UserValueError, 'a context of 8 tokens'):
      model.step(carry, ids[:, 8])
    # The folder of a model does not depend on how it was loaded.
    convert.save_pretrained(model, self.folder / 'new', like=folder)
    self.assertEqual(
        settings.read(self.folder / 'new')['max_position_embeddings'], 100
    )
    self.assertEqual(convert.load_pretrained(self.folder / 'new').context, 100)

  def test_the_part_of_a_model_of_images_that_reads_text(self):
    text = settings.read(FIXTURES / 'qwen3_5_text')
    del text['architectures']
    outer = dict(
        model_type='qwen3_5', text_config=text, vision_config={'depth': 1},
        architectures=['Qwen3_5ForConditionalGeneration'], image_token_id=5,
        tie_word_embeddings=False,
    )
    folder = self.copy('qwen3_5_text')
    (folder / 'config.json').write_text(settings.text(outer))

    def change(tensors):
      for name in [*tensors]:
        tensors[name.replace('model.', 'model.language_model.')] = (
            tensors.pop(name)
        )
      tensors['model.visual.x'] = tensors['mtp.x'] = np.zeros(3, np.float32)

    self.rewrite(folder, change)
    ids, want = expected('qwen3_5_text')
    found = convert.open_pretrained(folder)
    self.assertEqual(found.family, 'qwen3_5_text')
    self.assert_close(found.model(ids)[1], want)
    for values, message in (
        (dict(text_config=None), 'text_config must be an object with model'),
        (dict(text_config=dict(model_type='qwen3')), 'object with model_type'),
        (dict(tie_word_embeddings=True), 'must be True in text_config too'),
    ):
      (folder / 'config.json').write_text(settings.text(outer | values))
      with self.assertRaisesRegex(errors.UserValueError, message):
        convert.load_pretrained(folder)

  def test_positions_that_are_null(self):
    for values, rotates in (
        (dict(rope_parameters=None, rope_theta=None), False),
        (dict(rope_parameters=dict(rope_type=None, rope_theta=None)), False),
        (dict(rope_parameters=None), True),  # As `transformers` has it.
        (dict(rope_parameters=dict(rope_theta=500.0)), True),
    ):
      folder = self.copy('olmo_hybrid', **values)
      layer = convert.load_pretrained(folder).backbone.stacks[1].layer
      self.assertEqual(layer.rotary_features, 4 * rotates)
    # What transformers 5.23.0 writes: three equal parts, and a wrong name.
    folder = self.copy('olmo_hybrid')
    old = 'model.layers.1.post_attention_layernorm.weight'
    new = 'model.layers.1.feedforward_layer_norm.weight'
    self.rewrite(folder, lambda t: t.update({new: t.pop(old)}))
    with self.assertRaisesRegex(errors.UserValueError, f'{old}.*{new}'):
      convert.load_pretrained(folder)

  def test_granite_without_experts(self):
    config = convert.pretrained_config(self.copy(
        'granitemoehybrid', num_local_experts=0, num_experts_per_tok=0
    ))
    self.assertEqual((config.experts, config.mlp_factor), ({}, 6 / 8))

  def test_a_pattern_is_as_short_as_can_be(self):
    for names, want in (
        ('aaaa', 'a'), ('aabaa', 'a,a,b'), ('ab', 'a,b'), ('aab', 'a,a,b'),
        ('aabaab', 'a,a,b'), ('aababa', 'a;a,b'), ('abbb', 'a;b'),
    ):
      self.assertEqual(patterns.pattern(names), want)
      config = models.ModelConfig(layer=want, num_layers=len(names))
      self.assertEqual(config.layer_names, tuple(names))
      self.assertLen(tables.blocks(config), len(names))

  @parameterized.parameters('float16', 'half a float', 3)
  def test_other_dtypes(self, dtype):
    with self.assertRaisesRegex(errors.UserValueError, 'dtype`? must be.*got'):
      convert.load_pretrained(FIXTURES / 'mamba', dtype=dtype)

  def test_missing_unknown_and_misshapen_tensors(self):
    folder = self.copy()

    def change(tensors):
      del tensors['backbone.norm_f.weight']
      tensors['extra'] = np.zeros(3, np.float32)
      tensors['backbone.layers.1.norm.weight'] = np.zeros(9, np.float32)

    self.rewrite(folder, change)
    with self.assertRaises(errors.UserValueError) as caught:
      convert.load_pretrained(folder)
    self.assertEqual(str(caught.exception), (
        'The weights do not fit config.json: it lacks the tensors '
        'backbone.norm_f.weight; it has the unknown tensors extra; '
        'backbone.layers.1.norm.weight must be [8], got [9].'
    ))

  def test_folders_that_hold_no_model(self):
    with self.assertRaisesRegex(FileNotFoundError, 'it has no config.json'):
      convert.load_pretrained(self.folder / 'none')
    folder = self.copy()
    file = folder / 'model.safetensors'
    file.write_bytes(file.read_bytes()[:-7])
    with self.assertRaisesRegex(errors.UserValueError, 'is damaged or incomp'):
      convert.load_pretrained(folder)
    file.unlink()
    with self.assertRaisesRegex(FileNotFoundError, 'There are no weights in'):
      convert.load_pretrained(folder)
    (folder / 'pytorch_model.bin').write_bytes(b'anything')
    with self.assertRaisesRegex(FileNotFoundError, 'pickled.*from_pretrained'):
      convert.load_pretrained(folder)
    index = folder / weights.INDEX
    for text, message in (
        ('{}', 'with "weight_map"'),
        ('{"weight_map": {"a": "../a"}}', 'files of its own folder'),
        ('{"weight_map": {"a": "b.safetensors"}}', 'lacks b.safetensors'),
    ):
      index.write_text(text)
      with self.assertRaisesRegex(errors.UserError, message):
        convert.load_pretrained(folder)
    (folder / 'config.json').write_text('{')
    with self.assertRaisesRegex(errors.UserValueError, 'is not JSON'):
      convert.load_pretrained(folder)

  def test_integers_are_no_weights(self):
    folder = self.copy()
    self.rewrite(folder, lambda t: t.update(extra=np.zeros(3, np.int8)))
    with self.assertRaisesRegex(errors.UserValueError, 'extra is I8.*quantis'):
      convert.load_pretrained(folder)

  @parameterized.parameters(
      (dict(layer='lru'), 'none has the layers lru'),
      (dict(mlp='gelu'), 'mamba: model.mlp must be'),
      (dict(
          layer='short_conv,attention', mlp='swiglu', use_bias=False,
          layer_options=dict(attention=dict(normalize_qk=True)),
      ), "lfm2: .*on_full must be 'error', got 'slide'"),
      (dict(norm='layer'), 'mamba: .*norm.bias must be None, got'),
      (dict(norm='rms1'), "must be 'RMSNorm', got 'OneRMSNorm'"),
      (dict(conv_kernel=3), r'conv.*must be None, got'),
      (dict(soft_cap=3.0), 'model.soft_cap must be 0.0, got 3.0'),
      (dict(layer='mamba2+attention', mlp='swiglu', use_bias=False,
            layer_options={'attention': dict(num_heads=2),
                           'mamba2': dict(output_norm='none')}),
       "falcon_h1: .*on_full must be 'error', got 'slide'"),
      (dict(layer='mamba2', shared_block=1, tie_embeddings=True,
            layer_options=dict(dt_low=0.1)),
       'zamba2: config.json: adapter_rank must be at least 1, got 0'),
      (dict(layer='attention'), "recurrent_gemma: .*no attribute 'mlp_in'"),
      (dict(layer='mlstm_large', layer_options=dict(num_heads=2)),
       'xlstm: config.json: output_logit_soft_cap must be positive, got 0.0'),
      (dict(layer='mamba2', layer_options=dict(expansion_factor=1.5)),
       'mamba2 needs an integer as the expansion factor, got 12 channels'),
  )
  def test_models_of_no_family(self, changes, message):
    config = models.ModelConfig(
        **dict(layer='mamba', mlp='none', features=8, num_layers=2) | changes,
        vocab_size=5,
    )
    model = models.LanguageModel(config, rngs=nnx.Rngs(0))
    with self.assertRaisesRegex(errors.UserValueError, message):
      convert.save_pretrained(model, self.folder / 'new')
    self.assertFalse((self.folder / 'new').exists())

  @parameterized.parameters(
      ('bamba_9b', 'bamba'), ('falcon_h1_0p5b', 'falcon_h1'),
      ('granite_4_h_350m', 'granitemoehybrid'),
      ('granite_4_h_tiny', 'granitemoehybrid'), ('jamba_52b', 'jamba'),
      ('kimi_linear_48b', 'kimi_linear'), ('lfm2_350m', 'lfm2'),
      ('olmo_hybrid_7b', 'olmo_hybrid'), ('qwen3_5_0p8b', 'qwen3_5_text'),
      ('qwen3_next_80b', 'qwen3_next'), ('nemotron_h_8b', 'nemotron_h'),
      ('recurrentgemma_2b', 'recurrent_gemma'), ('xlstm_7b', 'xlstm'),
      ('zamba2_1p2b', 'zamba2'), ('zamba2_2p7b', 'zamba2'),
  )
  def test_a_preset_is_of_its_family(self, preset, family):
    config = models.PRESETS[preset]
    model = nnx.eval_shape(
        lambda: models.LanguageModel(config, rngs=nnx.Rngs(0))
    )
    self.assertEqual(saving._describe(model)[0], family)

  @parameterized.parameters(
      ('bamba_9b', 'bamba'), ('granite_4_h_350m', 'granitemoehybrid')
  )
  def test_a_hybrid_of_attention_only(self, preset, family):
    config = models.PRESETS[preset]
    options = dict(config.layer_options['attention'], num_heads=2)
    config = config.replace(
        layer='attention', num_layers=2, features=8, vocab_size=5,
        layer_options=dict(attention=options | dict(num_kv_heads=1, window=9)),
    )
    model = models.LanguageModel(config, rngs=nnx.Rngs(0))
    convert.save_pretrained(model, self.folder)
    self.assertEqual(settings.read(self.folder)['model_type'], family)
    tokens = jnp.array([[1, 2, 3, 0]])
    again = convert.load_pretrained(self.folder, context=9)
    np.testing.assert_array_equal(again(tokens)[1], model(tokens)[1])

  def test_saving_keeps_what_is_there(self):
    model = convert.load_pretrained(FIXTURES / 'mamba')
    folder = self.copy()
    with self.assertRaisesRegex(errors.UserValueError, 'has weights already'):
      convert.save_pretrained(model, folder)
    (folder / 'tokenizer.json').write_text('{}')
    new = self.folder / 'new'
    convert.save_pretrained(model, new, like=folder)
    self.assertEqual((new / 'tokenizer.json').read_text(), '{}')
    self.assertEqual(settings.read(new)['eos_token_id'], 0)
    # The weights of a folder may be replaced.
    (new / 'model.safetensors').unlink()
    convert.save_pretrained(model, new, like=new)
    self.assertEqual((new / 'tokenizer.json').read_text(), '{}')
    self.assertEqual(settings.read(new)['eos_token_id'], 0)

  def test_a_mesh(self):
    mesh = sharding.make_mesh(dict(data=1, fsdp=2, model=4, sequence=1))
    piece = loading._PIECE
    try:  # Row by row, as large tensors are.
      loading._PIECE = 0
      model = convert.load_pretrained(FIXTURES / 'mamba2', mesh=mesh)
    finally:
      loading._PIECE = piece
    kernel = model.backbone.stacks[0].layer.in_proj.kernel.get_value()
    self.assertEqual(
        kernel.sharding.spec, jax.P(None, 'fsdp', None, 'model')
    )
    self.assertEqual(kernel.addressable_shards[0].data.shape, (2, 4, 2, 4))
    ids, want = expected('mamba2')
    with jax.set_mesh(mesh):
      _, logits = jax.jit(lambda m, t: m(t))(model, ids)
    self.assert_close(logits, want)
    convert.save_pretrained(model, self.folder)
    self.assert_close(convert.load_pretrained(self.folder)(ids)[1], want)
    with self.assertRaisesRegex(errors.UserValueError, 'it lacks fsdp, model'):
      convert.load_pretrained(
          FIXTURES / 'mamba2', mesh=jax.make_mesh((8,), ('data',))
      )

  def test_memory(self):
    values = settings.read(FIXTURES / 'mamba') | dict(
        hidden_size=512, intermediate_size=1024, num_hidden_layers=12,
        state_size=16, time_step_rank=32, vocab_size=16_000,
    )
    config = convert.FAMILIES['mamba'].read(settings.Settings(values))
    params = parameters(nnx.eval_shape(
        lambda: models.LanguageModel(config, rngs=nnx.Rngs(0))
    ), make=lambda u: u)
    shapes = {
        name: sum(np.array(tables.shape_of(part, params)) for part in row)
        for name, row in convert.FAMILIES['mamba'].full_table(config).items()
    }
    (self.folder / 'big').mkdir()
    (self.folder / 'big' / 'config.json').write_text(settings.text(values))
    weights.write(
        self.folder / 'big', dict.fromkeys(shapes, 0),
        ((name, np.zeros(shape, np.float32)) for name, shape in shapes.items()),
        2**30,
    )
    done = subprocess.run(
        [sys.executable, '-c', _MEASURE, FIXTURES / 'mamba',
         self.folder / 'big'],
        capture_output=True, text=True, check=True,
        env=dict(_environment(), XLA_FLAGS=''),
    )
    held, peak = map(int, done.stdout.split())
    size = (self.folder / 'big' / weights.FILE).stat().st_size
    self.assertGreater(held, 0.95 * size)  # That something was measured.
    self.assertLess(peak, 1.2 * size)


def _environment():
  return os.environ | dict(
      PYTHONPATH=str(pathlib.Path(__file__).parents[2]),
      MALLOC_ARENA_MAX='1',
  )


# Prints the memory that a model takes, and the most while it is loaded.
_MEASURE = '''
import sys
from rnnzoo import convert

def memory(name):
  for line in open('/proc/self/status'):
    if line.startswith(name):
      return 1024 * int(line.split()[1])

small = convert.load_pretrained(sys.argv[1])
start = memory('VmRSS')
open('/proc/self/clear_refs', 'w').write('5')  # Forgets the peak.
big = convert.load_pretrained(sys.argv[2])
print(memory('VmRSS') - start, memory('VmHWM') - start)
'''


class ImportTest(absltest.TestCase):

  def test_nothing_loads_safetensors_until_it_is_used(self):
    script = 'import sys, rnnzoo.convert; print("safetensors" in sys.modules)'
    done = subprocess.run(
        [sys.executable, '-c', script], capture_output=True, text=True,
        check=True, env=_environment(),
    )
    self.assertEqual(done.stdout, 'False\n')


if __name__ == '__main__':
  absltest.main()
