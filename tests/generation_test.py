"""Tests of `rnnzoo.generation`."""

import doctest
import itertools

from absl.testing import absltest
from absl.testing import parameterized
from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np
from rnnzoo import errors
from rnnzoo import generation
from rnnzoo import layers
from rnnzoo import models
from rnnzoo.generation import prompts as prompts_lib
from rnnzoo.generation import sampling
from rnnzoo.generation import writing

PROMPTS = ([3, 1, 4, 1, 5], [9, 2], [6, 5, 3, 5])
LENGTH = 12


def make_model(**fields):
  config = models.ModelConfig(
      layer='min_gru,lstm', num_layers=2, features=16, vocab_size=16,
      conv_kernel=3, norm='batch', **fields,
  )
  model = models.LanguageModel(config, rngs=nnx.Rngs(0))
  # Decided logits: a token more or less in the prompt must show.
  model.head.kernel[...] = 4 * model.head.kernel[...]
  return model


class SampleLogitsTest(parameterized.TestCase):

  def sample(self, logits, rows=2000, **options):
    """Frequencies of the tokens in many draws."""
    logits = jnp.tile(jnp.asarray(logits, jnp.float32), (rows, 1))
    tokens = generation.sample_logits(jax.random.key(0), logits, **options)
    self.assertEqual(tokens.dtype, jnp.int32)
    return np.bincount(tokens, minlength=logits.shape[1]) / rows

  def test_probabilities(self):
    p = np.array([0.1, 0.2, 0.3, 0.4])
    np.testing.assert_allclose(self.sample(np.log(p)), p, atol=0.05)
    np.testing.assert_allclose(
        self.sample(np.log(p), temperature=0.5), p**2 / (p**2).sum(), atol=0.05
    )

  @parameterized.named_parameters(
      ('greedy', dict(temperature=0), [0, 0, 0, 1]),
      ('nearly_greedy', dict(temperature=1e-38), [0, 0, 0, 1]),
      # What may count as 0, or as infinity, in float32.
      ('tiny_and_k', dict(temperature=1e-38, top_k=3), [0, 0, 0, 1]),
      ('tiny_both', dict(temperature=1e-320, top_p=1e-50), [0, 0, 0, 1]),
      ('tiny_p', dict(top_k=3, top_p=1e-50), [0, 0, 0, 1]),
      ('huge', dict(temperature=10**400), [0.25, 0.25, 0.25, 0.25]),
      ('top_1', dict(top_k=1), [0, 0, 0, 1]),
      ('top_2', dict(top_k=2), [0, 0, 3 / 7, 4 / 7]),
      ('top_k_of_more', dict(top_k=9), [0.1, 0.2, 0.3, 0.4]),
      ('small_p', dict(top_p=0.1), [0, 0, 0, 1]),
      ('p_below_a_sum', dict(top_p=0.69), [0, 0, 3 / 7, 4 / 7]),
      ('p_above_a_sum', dict(top_p=0.71), [0, 2 / 9, 3 / 9, 4 / 9]),
      ('min_p', dict(min_p=0.6), [0, 0, 3 / 7, 4 / 7]),
      ('min_p_of_one', dict(min_p=1), [0, 0, 0, 1]),
      # Squared, they are as 1, 4, 9 and 16.
      ('min_p_and_temperature', dict(min_p=0.3, temperature=0.5),
       [0, 0, 9 / 25, 16 / 25]),
      ('min_p_after_the_others', dict(top_k=3, top_p=0.8, min_p=0.6),
       [0, 0, 3 / 7, 4 / 7]),
      # Of the two that are left the first alone has 4/7.
      ('k_then_p', dict(top_k=2, top_p=0.5), [0, 0, 0, 1]),
  )
  def test_filters(self, options, expected):
    logits = np.log([0.1, 0.2, 0.3, 0.4])
    found = self.sample(logits, **options)
    np.testing.assert_allclose(found, expected, atol=0.05)
    np.testing.assert_array_equal(found > 0, np.array(expected) > 0)

  def test_rows_do_not_know_of_each_other(self):
    logits = jax.random.normal(jax.random.key(1), (8, 16))
    key = jax.random.key(2)
    for options in ({}, dict(top_k=9, top_p=0.9)):
      tokens = generation.sample_logits(key, logits, **options)
      fewer = generation.sample_logits(key, logits[:3], **options)
      np.testing.assert_array_equal(tokens[:3], fewer)

  @parameterized.parameters(
      ('temperature', -1), ('temperature', float('inf')),
      ('temperature', float('nan')), ('temperature', '1'), ('top_k', -1),
      ('top_k', 1.5), ('top_k', True), ('temperature', jnp.ones(2)),
      ('top_p', 0), ('top_p', 1.01), ('top_p', float('nan')), ('min_p', -0.1),
      ('min_p', 1.1), ('repetition_penalty', 0), ('repetition_penalty', 'a'),
  )
  def test_bad_values(self, name, value):
    with self.assertRaisesRegex(errors.UserValueError, f'`{name}` must'):
      generation.sample_logits(
          jax.random.key(0), jnp.zeros((1, 4)), **{name: value}
      )

  @parameterized.parameters(
      dict(temperature=0), dict(), dict(top_k=2), dict(top_p=0.5),
      dict(temperature=1e38),
  )
  def test_infinities_and_nan(self, **options):
    nan, inf, key = jnp.nan, jnp.inf, jax.random.key(0)
    sample = lambda u: generation.sample_logits(key, u, **options)
    compiled = jax.jit(sample)
    for row in ([nan] * 3, [-inf] * 3, [0, nan, 1], [inf, nan, 0]):
      logits = jnp.array([[0.0, -inf, -inf], row])
      with self.assertRaisesRegex(
          errors.UserValueError, 'logits of row 1 are NaN or all -inf'
      ):
        sample(logits)
      self.assertEqual(compiled(logits).tolist(), [0, -1])
    best = jnp.array([[-inf, 0, -inf], [5, 1, inf], [-inf, inf, 2]])
    self.assertEqual(sample(best).tolist(), [1, 2, 1])

  def test_the_first_of_equals(self):
    logits = [[1.0, 3, 3], [2, 2, 2]]
    found = generation.sample_logits(None, logits, temperature=0)
    self.assertEqual(found.tolist(), [1, 0])

  def test_repetition_penalty(self):
    logits = jnp.array([[4.0, 3.0, -1.0], [-1.0, -1.5, -4.0]])
    seen = jnp.array([[True, False, False], [True, False, True]])
    sample = lambda **options: generation.sample_logits(
        None, logits, temperature=0, seen=seen, **options
    ).tolist()
    # Of the first row 4 becomes 2; of the second -1 becomes -2.
    self.assertEqual(sample(repetition_penalty=2), [1, 1])
    self.assertEqual(sample(repetition_penalty=1.25), [0, 0])
    self.assertEqual(sample(), [0, 0])
    for wrong in (None, seen[:1], seen.astype(int)):
      with self.assertRaisesRegex(errors.UserValueError, '`seen` must be'):
        generation.sample_logits(
            None, logits, temperature=0, seen=wrong, repetition_penalty=2
        )

  def test_bad_logits_and_key(self):
    for logits in (jnp.zeros((1, 0)), jnp.zeros((1, 2), jnp.complex64)):
      with self.assertRaisesRegex(errors.UserValueError, '`logits` must'):
        generation.sample_logits(None, logits, temperature=0)
    with self.assertRaisesRegex(ValueError, '`logits` must'):
      generation.sample_logits(jax.random.key(0), jnp.zeros(4))
    with self.assertRaisesRegex(ValueError, '`key` must'):
      generation.sample_logits(None, jnp.zeros((1, 4)))


class GenerateTest(parameterized.TestCase):

  @classmethod
  def setUpClass(cls):
    super().setUpClass()
    cls.model = make_model()
    tokens, cls.mask = generation.pad(PROMPTS)
    # What lies under the padding must not matter.
    cls.tokens = np.where(cls.mask, tokens, 7)
    cls.greedy = np.asarray(
        generation.generate(
            cls.model, cls.tokens, mask=cls.mask, length=LENGTH, temperature=0
        )
    )

  def test_is_what_the_parallel_model_says(self):
    self.assertEqual(self.greedy.shape, (len(PROMPTS), LENGTH))
    self.assertGreater(len(np.unique(self.greedy)), 3)
    tokens = np.concatenate([self.tokens, self.greedy], 1)
    mask = np.pad(self.mask, ((0, 0), (0, LENGTH)), constant_values=True)
    run = jax.jit(lambda tokens, mask: self.model(tokens, mask=mask)[1])
    logits = run(tokens, mask)
    said = logits.argmax(-1)[:, -LENGTH - 1 : -1]
    np.testing.assert_array_equal(self.greedy, said)

  def test_a_penalty_is_that_of_all_earlier_tokens(self):
    penalty, prompt = 1.7, [3, 1, 4]
    tokens = list(prompt)
    run = jax.jit(lambda tokens: self.model(tokens)[1])
    width = len(prompt) + LENGTH  # One program: the model is causal.
    for _ in range(LENGTH):
      padded = np.array([tokens + [0] * (width - len(tokens))])
      logits = np.asarray(run(padded), np.float64)[0, len(tokens) - 1]
      for token in set(tokens):
        logits[token] *= penalty if logits[token] < 0 else 1 / penalty
      tokens.append(int(logits.argmax()))
    for chunk in (None, 2):
      found = generation.generate(
          self.model, np.array([prompt]), length=LENGTH, temperature=0,
          repetition_penalty=penalty, chunk=chunk,
      )
      self.assertEqual(found[0].tolist(), tokens[len(prompt):])

  def test_chunks_give_the_same(self):
    for chunk in (1, 3, 100):
      found = generation.generate(
          self.model, self.tokens, mask=self.mask, length=LENGTH,
          temperature=0, chunk=chunk,
      )
      np.testing.assert_array_equal(found, self.greedy)

  def test_a_long_prompt_takes_one_program(self):
    """So its memory is that of a chunk."""
    rng, key = np.random.default_rng(0), jax.random.key(1)
    prompts = rng.integers(0, 16, (2, 70))
    run = lambda length, chunk: generation.generate(
        self.model, prompts[:, -length:], length=LENGTH, key=key, chunk=chunk
    )
    whole = run(70, None)
    before = writing._read_compiled._cache_size()
    np.testing.assert_array_equal(run(70, 20), whole)
    run(41, 20)
    self.assertEqual(writing._read_compiled._cache_size(), before + 1)

  def test_a_writer_goes_on(self):
    options = dict(temperature=0, repetition_penalty=1.2)
    for chunk in (None, 2):
      writer = generation.Writer(
          self.model, sampling=generation.Sampling(**options), chunk=chunk
      )
      writer.compile(self.tokens, self.mask)
      writer.read(self.tokens, self.mask)
      first = np.stack([writer.next() for _ in range(3)], 1)
      # The second turns are of unequal length, too.
      more, mask = generation.pad([[7, 8], [5], [1, 2, 3]])
      writer.read(more, mask)
      second = np.stack([writer.next() for _ in range(3)], 1)
      self.assertEqual(writer.count, 5 + 3 + 3 + 3)
      whole = np.concatenate([self.tokens, first, more], 1)
      mask = np.concatenate([self.mask, first >= 0, mask], 1)
      found = generation.generate(
          self.model, whole, mask=mask, length=3, **options
      )
      np.testing.assert_array_equal(second, found)

  def test_bad_use_of_a_writer(self):
    writer = generation.Writer(
        self.model, sampling=generation.Sampling(temperature=0)
    )
    with self.assertRaisesRegex(errors.UserValueError, 'call `read` first'):
      writer.next()
    writer.read(self.tokens, self.mask)
    with self.assertRaisesRegex(errors.UserValueError, '3 rows, as before'):
      writer.read([[1]])
    with self.assertRaisesRegex(errors.UserValueError, '`chunk` must be'):
      generation.Writer(
          self.model, sampling=generation.Sampling(temperature=0), chunk=0
      )

  def test_a_penalty_needs_the_size_of_the_vocabulary(self):
    layer = layers.MinGRU(4, rngs=nnx.Rngs(0))  # It has no `config`.
    with self.assertRaisesRegex(
        errors.UserValueError, 'must be 1 for a model without `config.vocab_si'
    ):
      generation.generate(
          layer, [[1]], length=1, temperature=0, repetition_penalty=2
      )

  def test_a_row_alone(self):
    for prompt, row in zip(PROMPTS[:2], self.greedy):
      alone = generation.generate(
          self.model, np.array([prompt]), length=LENGTH, temperature=0
      )
      np.testing.assert_array_equal(alone[0], row)

  def test_padding_after_the_prompt(self):
    width = self.tokens.shape[1]
    tokens = np.array([p + [7] * (width - len(p)) for p in PROMPTS])
    mask = np.arange(width) < np.array([[len(p)] for p in PROMPTS])
    found = generation.generate(
        self.model, tokens, mask=mask, length=LENGTH, temperature=0
    )
    np.testing.assert_array_equal(found, self.greedy)

  def test_a_model_of_nan(self):
    model = nnx.clone(self.model)
    model.head.kernel[...] = jnp.full_like(model.head.kernel[...], jnp.nan)
    options = dict(mask=self.mask, length=LENGTH, temperature=0)
    with self.assertRaisesRegex(
        errors.UserValueError, 'row 0 for new token 0 are NaN'
    ):
      generation.generate(model, self.tokens, **options)
    with self.assertRaisesRegex(errors.UserValueError, 'row 0 are NaN'):
      next(generation.stream(model, self.tokens, **options))

  def test_streams_the_same(self):
    options = dict(
        mask=self.mask, key=jax.random.key(3), temperature=0.9, top_k=8
    )
    whole = generation.generate(
        self.model, self.tokens, length=LENGTH, **options
    )
    for length in (None, LENGTH):
      columns = generation.stream(
          self.model, self.tokens, length=length, **options
      )
      found = np.stack(list(itertools.islice(columns, LENGTH)), 1)
      np.testing.assert_array_equal(found, whole)
    self.assertEmpty(list(columns))  # No more than asked for.

  def test_docstrings(self):
    for module in (generation, prompts_lib, sampling, writing):
      self.assertEqual(doctest.testmod(module).failed, 0)

  def test_one_token(self):
    found = generation.generate(
        self.model, self.tokens, mask=self.mask, length=1, temperature=0
    )
    np.testing.assert_array_equal(found, self.greedy[:, :1])

  def test_compiles_once(self):
    run = lambda: generation.generate(
        self.model, self.tokens, mask=self.mask, length=LENGTH, temperature=0
    )
    run()
    before = writing._generate._cache_size()
    run()
    self.assertEqual(writing._generate._cache_size(), before)

  def test_ids_outside_the_vocabulary(self):
    """Found before anything is compiled."""
    before = writing._generate._cache_size()
    for bad in (16, -1, 2**32 + 3):
      for function in (generation.generate, generation.stream):
        run = lambda mask=None: function(
            self.model, np.array([[3, bad]]), mask=mask, length=2, temperature=0
        )
        with self.assertRaisesRegex(
            errors.UserValueError, rf'`prompts` .* 0 to 15, got {bad} at'
        ):
          run()
    self.assertEqual(writing._generate._cache_size(), before)
    # Without a vocabulary, only what int32 cannot hold is known to be none.
    for bad in (-1, 2**31):
      with self.assertRaisesRegex(
          errors.UserValueError, rf'`prompts\[1\]` .* got {bad} at'
      ):
        generation.pad([[1], [2, bad]])

  def test_inside_of_jit(self):
    prompts, make = np.ones((2, 2), int), generation.generate
    run = lambda m: make(m, prompts, length=3, temperature=0)
    np.testing.assert_array_equal(nnx.jit(run)(self.model), run(self.model))

  @parameterized.named_parameters(
      ('one_axis', dict(prompts=np.ones(3, int)), '`prompts` must be integers'),
      ('floats', dict(prompts=np.ones((1, 3))), '`prompts` must be integers'),
      ('empty', dict(prompts=np.ones((2, 0), int)), 'at least one token'),
      (
          'nothing_but_padding',
          dict(mask=np.array([[True, False], [False, False]])),
          'at least one token',
      ),
      ('mask_shape', dict(mask=np.ones((2, 3), bool)), '`mask` must be bool'),
      ('mask_dtype', dict(mask=np.ones((2, 2))), '`mask` must be bool'),
      ('length', dict(length=0), '`length` must be'),
      ('chunk', dict(chunk=0), '`chunk` must be'),
      ('temperature', dict(temperature=-1), '`temperature` must'),
      ('no_key', dict(temperature=1), '`key` must'),
  )
  def test_bad_arguments(self, changes, message):
    arguments = dict(prompts=np.ones((2, 2), int), length=3, temperature=0)
    for function in (generation.generate, generation.stream):
      with self.assertRaisesRegex(errors.UserValueError, message):
        function(self.model, **(arguments | changes))


if __name__ == '__main__':
  absltest.main()
