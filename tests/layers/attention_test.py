"""Attention: its equations in float64 NumPy, rotations, initial values."""

import fractions

from absl.testing import parameterized
from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np
from rnnzoo import errors
from rnnzoo import generation
from rnnzoo import layers
from rnnzoo import models
from rnnzoo.layers import attention
from rnnzoo.layers import base
from rnnzoo.layers import rotary
from tests.layers import transcription
from tests.layers.transcription import sigmoid

_COUNT = 7  # Tokens before the first one.


def gated(p, x, carry):
  """Qiu et al. (2025), arXiv 2505.06708: a gate after the attention."""
  return equations(p, x, carry, gate=lambda x_t: sigmoid(
      x_t @ p['gate/kernel']
  ))


def equations(p, x, carry, gate=lambda x_t: 1):
  """Su et al. (2021), section 3.2: pairs of features are complex numbers."""
  heads, groups, size, window = 4, 2, 8, 5
  keys, values, _ = carry
  past = [
      (keys[:, t % window], values[:, t % window])
      for t in range(_COUNT - window, _COUNT)
  ]

  def dense(name, u):
    return u @ p[f'{name}/kernel'] + p.get(f'{name}/bias', 0)

  def rotated(u, t):
    turned = u[..., :2] + 1j * u[..., 2:4]  # Half of the features, in pairs.
    turned = turned * np.exp(1j * t / 100.0 ** (np.arange(2) / 2))
    return np.concatenate([turned.real, turned.imag, u[..., 4:]], axis=-1)

  def normalised(u, scale):
    return u / np.sqrt((u**2).mean(-1, keepdims=True) + 1e-6) * scale

  ys = []
  for t, x_t in enumerate(x, start=_COUNT):
    q, k, v = (
        dense(name, x_t).reshape(-1, n, size)
        for name, n in (('query', heads), ('key', groups), ('value', groups))
    )
    q = rotated(normalised(q, p['query_norm/scale']), t)
    k = rotated(normalised(k, p['key_norm/scale']), t)
    past = past[1:] + [(k, v)]
    k, v = (
        np.repeat(np.stack(u, axis=1), heads // groups, axis=2)
        for u in zip(*past)
    )
    scores = (q[:, None] * k).sum(-1) / np.sqrt(size)  # [B, W, H]
    weights = np.exp(scores) / np.exp(scores).sum(1, keepdims=True)
    o = (weights[..., None] * v).sum(1).reshape(len(x_t), -1)
    ys.append(dense('output', gate(x_t) * o))
  count = _COUNT + len(x)
  ring = [past[(slot - count) % window] for slot in range(window)]
  keys, values = (np.stack(u, axis=1) for u in zip(*ring))
  return (keys, values, np.full(x.shape[1], count)), ys


def latent(p, x, carry):
  """DeepSeek-V2 (2024), arXiv 2405.04434, section 2.1 and appendix C."""
  heads, size, shared, window = 3, 4, 2, 5
  keys, latents, _ = carry
  past = [
      (latents[:, t % window, 0], keys[:, t % window, 0])
      for t in range(_COUNT - window, _COUNT)
  ]

  def normalised(u, scale):
    return u / np.sqrt((u**2).mean(-1, keepdims=True) + 1e-3) * scale

  def rotated(u, t):  # Neighbours, as one complex number for two features.
    turned = (u[..., ::2] + 1j * u[..., 1::2]) * np.exp(1j * t)
    return np.concatenate([turned.real, turned.imag], axis=-1)

  ys = []
  for t, x_t in enumerate(x, start=_COUNT):
    q = normalised(x_t @ p['query_in/kernel'], p['query_norm/scale'])
    q = np.einsum('br,rhk->bhk', q, p['query/kernel'])
    q = np.concatenate([q[..., :size], rotated(q[..., size:], t)], axis=-1)
    past = past[1:] + [(
        normalised(x_t @ p['latent/kernel'], p['latent_norm/scale']),
        rotated(x_t @ p['shared/kernel'], t),
    )]
    k, v = [], []
    for c, r in past:
      r = np.broadcast_to(r[:, None], (len(x_t), heads, shared))
      own = np.einsum('br,rhk->bhk', c, p['key/kernel'])
      k.append(np.concatenate([own, r], axis=-1))
      v.append(np.einsum('br,rhv->bhv', c, p['value/kernel']))
    scores = 0.4 * (q[:, None] * np.stack(k, axis=1)).sum(-1)  # [B, W, H]
    weights = np.exp(scores) / np.exp(scores).sum(1, keepdims=True)
    o = (weights[..., None] * np.stack(v, axis=1)).sum(1)
    ys.append(o.reshape(len(x_t), -1) @ p['output/kernel'])
  count = _COUNT + len(x)
  ring = [past[(slot - count) % window] for slot in range(window)]
  latents, keys = (np.stack(u, axis=1)[:, :, None] for u in zip(*ring))
  return (keys, latents, np.full(x.shape[1], count)), ys


def random_carry(initial):
  """Returns a carry of normal numbers after `_COUNT` tokens."""
  random = np.random.default_rng(1)
  normal = lambda u: random.standard_normal(u.shape)
  return attention.AttentionCarry(
      normal(initial.key), normal(initial.value), initial.count + _COUNT
  )


class AttentionTest(parameterized.TestCase):

  @parameterized.parameters(
      (equations, layers.Attention,
       dict(normalize_qk=True, use_bias=True, use_output_bias=True)),
      (gated, layers.GatedAttention, {}),
  )
  def test_equals_the_equations_in_numpy(self, equations, layer, options):
    transcription.check(
        equations,
        lambda rngs: layer(
            6, num_heads=4, num_kv_heads=2, head_features=8, window=5,
            rotary_fraction=0.5, max_wavelength=100.0, chunk_size=2, **options,
            rngs=rngs,
        ),
        carry_of=random_carry,
    )

  def test_latent_attention_equals_its_equations_in_numpy(self):
    transcription.check(
        latent,
        lambda rngs: layers.LatentAttention(
            6, num_heads=3, latent_features=5, key_features=4,
            shared_features=2, value_features=7, query_rank=3, score_scale=0.4,
            window=5, rotation='interleaved', norm_epsilon=1e-3, chunk_size=2,
            rngs=rngs,
        ),
        carry_of=random_carry,
    )

  def test_two_rotations_differ_in_the_order_of_features(self):
    halves, interleaved, none = (
        layers.LatentAttention(
            8, num_heads=2, shared_features=6, rotation=rotation,
            rngs=nnx.Rngs(0),
        )
        for rotation in ('halves', 'interleaved', 'none')
    )
    x = jax.random.normal(jax.random.key(0), (1, 5, 8))
    want, unlike = halves(x)[1], none(x)[1]
    self.assertGreater(np.abs(want - unlike)[:, 1:].max(), 1e-3)
    # Two of a pair are three apart, and then neighbours.
    order = np.argsort([0, 2, 4, 1, 3, 5])
    shared, query = interleaved.shared.kernel, interleaved.query.kernel
    shared[...] = shared[...][:, order]
    query[...] = query[...].at[..., 4:].set(query[..., 4:][..., order])
    np.testing.assert_allclose(interleaved(x)[1], want, atol=1e-6)

  def test_outputs_depend_on_distances_and_rotation_on_the_order(self):
    normal = lambda *shape: np.random.default_rng(0).standard_normal(
        shape
    ).astype(np.float32)
    q, k = normal(2, 5, 2, 6)

    @jax.jit
    def scores(start):
      turned = (
          rotary.rotary(u, start + jnp.arange(5), 4) for u in (q, k)
      )
      return jnp.einsum('thk,shk->hts', *turned)

    np.testing.assert_allclose(scores(0), scores(1000), atol=2e-3)
    x = normal(2, 6, 8)
    x[1] = x[0, [1, 0, 2, 3, 4, 5]]
    for fraction in (0.0, 1.0):
      layer = layers.Attention(
          8, num_heads=2, window=6, rotary_fraction=fraction, rngs=nnx.Rngs(0)
      )
      _, y = jax.jit(lambda x: layer(x))(x)
      gap = np.abs(y[0, 2:] - y[1, 2:]).max()
      self.assertEqual(gap > 1e-3, fraction > 0)

  def test_high_positions_give_the_outputs_of_low_ones(self):
    # Past 2**31 a count has the bits of an unsigned integer.
    counts = [10**6, 10**7, 2**24, 2**30, 2**31 - 3, 3 * 2**30 + 1]
    layer = layers.Attention(
        8, num_heads=2, window=4, chunk_size=2, rngs=nnx.Rngs(0)
    )
    x = np.random.default_rng(0).standard_normal((1, 12, 8)).astype(np.float32)
    x = jnp.asarray(np.repeat(x, len(counts) + 1, axis=0))
    counts = np.array([4, *counts], np.uint32)
    reset = np.zeros(x.shape[:2], bool)
    reset[:, 9] = True

    @jax.jit
    def run(count):
      # A full ring of zeros, whichever slot comes next.
      carry = layer.initialize_carry(len(x))._replace(count=count)
      carry, first = layer(x[:, :4], carry)
      carry, second = layer(x[:, 4:], carry, reset=reset[:, 4:])
      return carry, jnp.concatenate([first, second], axis=1)

    def stepped(count):
      carry = layer.initialize_carry(len(x))._replace(count=count)
      return base.scan_steps(layer, carry, x, reset=reset)

    carry, y = run(counts.view(np.int32))
    np.testing.assert_allclose(y, y[:1].repeat(len(y), 0), atol=1e-6)
    np.testing.assert_array_equal(carry.count, 3)
    carry, steps = jax.jit(stepped)(counts.view(np.int32))
    np.testing.assert_allclose(steps, y, atol=1e-6)
    np.testing.assert_array_equal(carry.count, 3)

  def test_angles_are_those_of_exact_arithmetic(self):
    positions = np.array([0, 1, 10**6, 2**24 + 1, 2**30, -5], np.int32)
    for dtype in (jnp.float32, jnp.float64):
      with jax.enable_x64(dtype == jnp.float64):
        u = jnp.ones((len(positions), 1, 4), dtype)
        got = rotary.rotary(u, jnp.asarray(positions), 4, 100.0)
      for p, row in zip(positions.view(np.uint32).tolist(), got[:, 0]):
        # In whole turns, by fractions of Python: pi to 50 digits.
        pi = fractions.Fraction(
            '3.14159265358979323846264338327950288419716939937510'
        )
        for i, wavelength in enumerate((1, 10)):
          turn = fractions.Fraction(p, wavelength) / (2 * pi)
          angle = 2 * np.pi * float(turn % 1)
          want = [np.cos(angle) - np.sin(angle), np.cos(angle) + np.sin(angle)]
          np.testing.assert_allclose(row[i::2], want, atol=2e-6)

  def test_bfloat16_is_close_to_float32(self):
    layer = layers.Attention(
        4, num_heads=1, window=3, chunk_size=2, rngs=nnx.Rngs(0)
    )
    x = np.random.default_rng(0).standard_normal((1, 4, 4))
    _, y = jax.jit(layer)(jnp.asarray(x, jnp.float16))
    self.assertEqual(y.dtype, jnp.float16)
    _, want = jax.jit(layer)(jnp.asarray(x, jnp.float32))
    np.testing.assert_allclose(y, want, atol=5e-3)

  def test_initial_maps(self):
    layer = layers.Attention(
        400, num_heads=2, num_kv_heads=1, head_features=100, output_scale=0.5,
        use_output_bias=True, rngs=nnx.Rngs(0),
    )
    gpt2 = layers.Attention(
        400, num_heads=2, use_bias=True, init_std=0.02, output_scale=1 / 24,
        rngs=nnx.Rngs(0),
    )
    for kernel, std in (
        (layer.query.kernel, 400**-0.5),
        (layer.key.kernel, 400**-0.5),
        (layer.value.kernel, 400**-0.5),
        (layer.output.kernel, (0.5 / 200) ** 0.5),
        (gpt2.key.kernel, 0.02),
        (gpt2.output.kernel, 0.02 / 24**0.5),
    ):
      values = kernel[...]
      error = std / np.sqrt(values.size)
      self.assertAlmostEqual(values.mean(), 0, delta=4 * error)
      self.assertAlmostEqual(values.std(), std, delta=4 * error)
      # Not a uniform distribution of that width.
      self.assertGreater(np.abs(values).max(), 3 * std)
    gated = layers.GatedAttention(400, num_heads=2, rngs=nnx.Rngs(0)).gate
    self.assertAlmostEqual(gated.kernel[...].std(), 0.05, delta=1e-3)
    self.assertIsNone(layer.query.bias)
    np.testing.assert_array_equal(layer.output.bias[...], 0)
    np.testing.assert_array_equal(gpt2.value.bias[...], 0)

  def test_norms_of_queries_and_keys(self):
    def make(kind):
      layer = layers.Attention(
          8, num_heads=2, num_kv_heads=1, normalize_qk=True, qk_norm=kind,
          rotary_fraction=0.0, rngs=nnx.Rngs(0),
      )
      for norm in (layer.query_norm, layer.key_norm):
        rng = np.random.default_rng(norm.scale.size)
        norm.scale[...] = rng.normal(size=norm.scale.shape)
      return layer

    x = jax.random.normal(jax.random.key(0), (1, 5, 8))
    rms, one, together = map(make, ('rms', 'rms1', 'rms_all'))
    for norm, other in (
        (rms.query_norm, one.query_norm), (rms.key_norm, one.key_norm)
    ):
      norm.scale[...] = 1 + other.scale[...]
    np.testing.assert_allclose(rms(x)[1], one(x)[1], rtol=1e-5, atol=1e-6)
    q, k, _ = together._tokens(x, jnp.zeros((1, 5), jnp.int32))
    for got, linear, norm in (
        (q, together.query, together.query_norm),
        (k, together.key, together.key_norm),
    ):
      u = np.asarray(x @ linear.kernel[...], np.float64)
      u = u / np.sqrt((u**2).mean(-1, keepdims=True) + 1e-6) * norm.scale[...]
      self.assertEqual(norm.scale.shape, u.shape[-1:])
      np.testing.assert_allclose(got.reshape(u.shape), u, rtol=1e-5, atol=1e-6)

  def test_a_full_carry_may_be_an_error(self):
    options = dict(num_heads=2, window=4, rngs=nnx.Rngs(0))
    layer = layers.Attention(8, on_full='error', **options)
    slides = layers.Attention(8, **options | dict(rngs=nnx.Rngs(0)))
    x = jax.random.normal(jax.random.key(0), (2, 6, 8))
    # As long as there is room, nothing changes.
    mask = jnp.arange(6) % jnp.array([[2], [6]]) != 1
    reset = jnp.zeros((2, 6), bool).at[1, 3].set(True)
    for flags in (dict(mask=mask[:1]), dict(reset=reset[1:])):
      row = slice(0, 1) if 'mask' in flags else slice(1, 2)
      carry, y = layer(x[row], **flags)
      np.testing.assert_array_equal(y, slides(x[row], **flags)[1])
    self.assertEqual(carry.count.tolist(), [3])
    carry, y = layer.step(carry, x[1:, 0])
    full = 'room for a context of 4 tokens, and a sequence has more'
    with self.assertRaisesRegex(errors.UserValueError, full):
      layer.step(carry, x[1:, 0])
    with self.assertRaisesRegex(errors.UserValueError, full):
      layer(x)
    absent, first = jnp.array([False]), jnp.array([True])
    layer.step(carry, x[1:, 0], mask=absent)
    layer.step(carry, x[1:, 0], reset=first)
    # Inside of jit the outputs say it, and no other.
    _, y = jax.jit(lambda u: layer(u))(x)
    np.testing.assert_array_equal(
        jnp.isnan(y).all(-1), jnp.broadcast_to(jnp.arange(6) >= 4, (2, 6))
    )
    _, y = jax.jit(layer.step)(carry, x[1:, 0])
    self.assertTrue(jnp.isnan(y).all())
    grad = jax.grad(lambda u: layer(u, mask=mask)[1][:1].sum())
    self.assertTrue(jnp.isfinite(jax.jit(grad)(x)).all())

  def test_a_model_with_a_full_carry_is_an_error(self):
    config = models.ModelConfig.tiny().replace(
        layer='gru,attention', scan_layers=True, num_layers=4,
        layer_options=dict(attention=dict(window=5, on_full='error')),
    )
    model = models.LanguageModel(config, rngs=nnx.Rngs(0))
    self.assertEqual(model.context, 5)
    tokens = np.ones((1, 5), np.int32)
    carry, _ = model(tokens)
    full = 'room for a context of 5 tokens, and a sequence has more'
    with self.assertRaisesRegex(errors.UserValueError, full):
      model.step(carry, tokens[:, 0])
    with self.assertRaisesRegex(errors.UserValueError, full):
      model(np.ones((1, 6), np.int32))
    options = dict(temperature=0)
    tokens, mask = generation.pad([[1, 2, 3], [1]])
    made = generation.generate(model, tokens, mask=mask, length=3, **options)
    stream = generation.stream(model, tokens, mask=mask, **options)
    np.testing.assert_array_equal(
        made, np.stack([next(stream) for _ in range(3)], axis=1)
    )
    full = 'room for 3 tokens after the longest prompt, and 4 are wanted'
    with self.assertRaisesRegex(errors.UserValueError, full):
      next(stream)
    with self.assertRaisesRegex(errors.UserValueError, full):
      generation.generate(model, tokens, mask=mask, length=4, **options)

  def test_invalid_sizes_raise(self):
    for options, message in (
        (dict(num_heads=3), '`num_heads` must divide'),
        (dict(num_kv_heads=3), '`num_kv_heads` must divide'),
        (dict(num_kv_heads=0), '`num_kv_heads` must divide'),
        (dict(window=0), '`window` must be at least 1, got 0'),
        (dict(chunk_size=0), '`chunk_size` must be at least 1, got 0'),
        (dict(qk_norm='all'), "`qk_norm` must be one of rms, rms1, rms_all, "),
        (dict(on_full='stop'), "`on_full` must be 'slide' or 'error', got 's"),
        (dict(head_features=3), '`rotary_fraction` must be'),
        (dict(rotary_fraction=1.5), '`rotary_fraction` must be'),
    ):
      with self.assertRaisesRegex(ValueError, message):
        layers.Attention(8, **options, rngs=nnx.Rngs(0))
    for options, message in (
        (dict(num_heads=3), '`num_heads` must divide 8, got 3; or give `key_f'),
        (dict(latent_features=0), '`latent_features` must be at least 1, got'),
        (dict(query_rank=0), '`query_rank` must be at least 1, got 0'),
        (dict(on_full='stop'), "`on_full` must be 'slide' or 'error', got 's"),
        (dict(rotation='half'), '`rotation` must be one of halves, interlea'),
        (dict(shared_features=3), '`shared_features` must be even .*got 3'),
    ):
      with self.assertRaisesRegex(ValueError, message):
        layers.LatentAttention(8, **options, rngs=nnx.Rngs(0))
    # A quarter of the features of a head is one feature.
    with self.assertRaisesRegex(ValueError, '`rotary_fraction` must be.* of 4'):
      layers.GatedAttention(8, num_heads=2, rngs=nnx.Rngs(0))
