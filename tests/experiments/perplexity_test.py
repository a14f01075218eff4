"""The perplexity of a text in chunks is that of the whole text at once."""

import importlib.util
import json

from absl.testing import absltest
from absl.testing import parameterized
from experiments.cli import opening
from experiments.cli import perplexity
from flax import nnx
import jax
import numpy as np
from rnnzoo import errors
from rnnzoo import models
from rnnzoo import restoring
from rnnzoo.convert import loading
from rnnzoo.data import bpe
from rnnzoo.data import vocabulary as vocabularies
from tests.experiments import chat_test
from tests.experiments import commands

TEXT = 'A naïve ☃ said:\r\nto be or not to be.\n' * 4
LEARNED = bpe.train([TEXT], 280)


def make_run(vocabulary, **changes):
  config = models.ModelConfig.tiny().replace(
      vocab_size=len(vocabulary), **changes
  )
  model = models.LanguageModel(config, rngs=nnx.Rngs(0))
  return restoring.Run(model, vocabulary, {}, 0)


def expected(run, ids, starts=()):
  """In float64, from the logits of one call: the sum of nats, and hits."""
  reset = np.isin(np.arange(len(ids)), starts)[None]
  _, logits = jax.jit(lambda ids: run.model(ids, reset=reset))(ids[None])
  logits = np.asarray(logits, np.float64)[0, :-1]
  top = logits.max(-1)
  log_sums = top + np.log(np.exp(logits - top[:, None]).sum(-1))
  nats = log_sums - logits[np.arange(len(ids) - 1), ids[1:]]
  return nats.sum(), (logits.argmax(-1) == ids[1:]).sum()


class _StartsTwice(vocabularies.Vocabulary):

  def encode(self, text):
    return np.concatenate([[7, 9], super().encode(text)]).astype(np.int32)


class PerplexityTest(parameterized.TestCase):

  def setUp(self):
    super().setUp()
    self.path = commands.temporary_directory(self) / 'text.txt'
    self.path.write_bytes(TEXT.encode())

  @parameterized.named_parameters(
      ('char', vocabularies.Vocabulary.of_text(TEXT), 1),
      ('byte', vocabularies.Vocabulary('byte'), 1),
      ('bpe', vocabularies.Vocabulary('bpe', LEARNED), None),
      ('bpe_with_a_start', loading.Tokenizer('bpe', LEARNED, 7), 0),
  )
  def test_chunks(self, vocabulary, first_bytes):
    run = make_run(vocabulary)
    ids = vocabulary.encode(TEXT)
    nats, hits = expected(run, ids)
    if first_bytes is None:
      first_bytes = len(bpe.decode(LEARNED, ids[:1]).encode())
    size = len(TEXT.encode()) - first_bytes
    for chunk in (7, 1000):
      found = perplexity.measure(run, self.path, chunk)
      self.assertEqual(found['tokens'], len(ids) - 1)
      self.assertEqual(found['bytes'], size)
      self.assertEqual(found['starts'], 1)
      bits = nats / np.log(2)
      for name, value in dict(
          loss=nats / (len(ids) - 1), bits_per_token=bits / (len(ids) - 1),
          bits_per_byte=bits / size, accuracy=hits / (len(ids) - 1),
          perplexity=np.exp(nats / (len(ids) - 1)),
      ).items():
        np.testing.assert_allclose(found[name], value, rtol=1e-5, err_msg=name)

  def test_a_tokenizer_that_starts_with_two_tokens(self):
    vocabulary = _StartsTwice('bpe', LEARNED)
    run = make_run(vocabulary)
    ids = vocabulary.encode(TEXT)
    given, _ = expected(run, ids[:2])
    nats, _ = expected(run, ids)
    for chunk in (1, 7, 1000):
      found = perplexity.measure(run, self.path, chunk)
      self.assertEqual(found['tokens'], len(ids) - 2)
      np.testing.assert_allclose(
          found['loss'], (nats - given) / (len(ids) - 2), rtol=1e-5
      )
    self.path.write_bytes(b'')
    with self.assertRaisesRegex(errors.UserValueError, 'two tokens'):
      perplexity.measure(run, self.path, 7)

  def test_attention_starts_anew_when_it_is_full(self):
    options = dict(on_full='error', num_heads=2)
    run, larger = (
        make_run(
            vocabularies.Vocabulary('byte'), layer='attention',
            layer_options=dict(window=window, **options),
        ) for window in (30, 1000)
    )
    ids = run.vocabulary.encode(TEXT)
    starts = range(0, len(ids) - 1, 30)
    nats, _ = expected(larger, ids, starts)
    for chunk in (10, 4096):
      found = perplexity.measure(run, self.path, chunk)
      self.assertEqual(found['starts'], len(starts))
      np.testing.assert_allclose(
          found['loss'], nats / (len(ids) - 1), rtol=1e-5
      )

  def test_a_tokenizer_with_more_ids_than_the_model(self):
    vocabulary = vocabularies.Vocabulary('bpe', LEARNED)
    run = make_run(vocabulary)._replace(model=make_run(range(99)).model)
    for chunk in (7, 1000):
      with self.assertRaisesRegex(
          errors.UserValueError, r'has the token \d+ of .* from 0 to 98\.'
      ):
        perplexity.measure(run, self.path, chunk)

  def test_a_model_whose_logits_are_nan(self):
    run = make_run(vocabularies.Vocabulary('byte'))
    run.model.norm.scale[...] *= np.nan
    found = perplexity.measure(run, self.path, 8)
    np.testing.assert_array_equal(
        [found['loss'], found['perplexity']], np.nan
    )

  def test_bad_input(self):
    run = make_run(vocabularies.Vocabulary('byte'))
    for content, message in ((b'a', 'two tokens'), (b'a\xff', 'not UTF-8')):
      self.path.write_bytes(content)
      with self.assertRaisesRegex(errors.UserValueError, message):
        perplexity.measure(run, self.path, 8)
    with self.assertRaisesRegex(errors.UserError, 'There is no file'):
      perplexity.measure(run, self.path.with_name('nothing'), 8)

  @absltest.skipUnless(
      importlib.util.find_spec('safetensors'), 'safetensors is not installed.'
  )
  def test_command(self):
    folder = self.path.parent / 'pretrained'
    chat_test.make_folder(folder)
    evaluate = lambda *words: commands.Command(
        'experiments.evaluate', f'--pretrained={folder}', *words
    ).wait()
    done = evaluate(f'--text={self.path}', '--chunk=16')
    self.assertEqual(done.code, 0, done)
    found = json.loads(done.stdout.splitlines()[-1])
    run = opening.open_pretrained(folder).run
    want = perplexity.measure(run, self.path, 16)
    self.assertEqual(found | want, found)
    self.assertIn(f'{found["bits_per_byte"]:.4f} bits per byte', done.stdout)
    done = evaluate()
    self.assertEqual(done.code, 2, done)
    self.assertIn('--pretrained has no data of its own', done.stderr)


if __name__ == '__main__':
  absltest.main()
