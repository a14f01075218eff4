"""Documents in rows: where they start, and that nothing passes over."""

import pathlib
import tempfile

from absl.testing import absltest
from absl.testing import parameterized
from flax import nnx
import numpy as np
from rnnzoo import data
from rnnzoo import errors
from rnnzoo import models
from rnnzoo.data.text import corpus

# Of many lengths, one of them longer than a row.
DOCUMENTS = [chr(97 + i % 26) * (1 + 7 * i % 11) + '|' for i in range(300)]
DOCUMENTS[7] = 'long' * 10 + '|'


class DocumentsTest(parameterized.TestCase):

  def setUp(self):
    super().setUp()
    self.path = pathlib.Path(
        self.enterContext(tempfile.TemporaryDirectory())
    ) / 'text'

  def load(self, **fields):
    config = dict(name='text_file', path=str(self.path), sequence_length=16)
    return data.load(config | fields, batch_size=4, seed=0)

  @parameterized.parameters('char', 'byte')
  def test_resets_and_targets(self, level):
    self.path.write_text(''.join(DOCUMENTS))
    dataset = self.load(separator='|', level=level)
    bar = dataset.vocabulary.encode('|')[0]
    split = corpus.split_documents(DOCUMENTS)
    self.assertEqual(sum(split.values(), []), DOCUMENTS)
    for name in ('validation', 'test'):
      inputs, targets, resets = [], [], 0
      for batch in dataset.eval_batches(name):
        inputs.append(batch['inputs'][:, 0])
        targets.extend(batch['targets'][batch['mask']])
        resets += batch['reset'].sum()
        # A document starts after a bar, and nowhere else.
        after = batch['inputs'][:, :-1] == bar
        exists = batch['mask'][:, 1:] | batch['reset'][:, 1:]
        np.testing.assert_array_equal(
            batch['reset'][:, 1:] & exists, after & exists
        )
      # All but the first letters, each once.
      expected = ''.join(document[1:] for document in split[name])
      self.assertEqual(dataset.vocabulary.decode(targets), expected)
      self.assertEqual(resets, len(split[name]))
    for batch in [dataset.train_batch(step) for step in range(1, 20)]:
      np.testing.assert_array_equal(
          batch['reset'][:, 1:], batch['inputs'][:, :-1] == bar
      )
      np.testing.assert_array_equal(batch['mask'], batch['inputs'] != bar)

  def test_streams(self):
    self.path.write_text(''.join(DOCUMENTS))
    dataset = self.load(separator='|', contiguous=True)
    bar = dataset.vocabulary.encode('|')[0]
    first, second = dataset.train_batch(1), dataset.train_batch(2)
    self.assertTrue(first['reset'][:, 0].all())
    np.testing.assert_array_equal(
        second['reset'][:, 0], first['inputs'][:, -1] == bar
    )
    for batch in (first, second):
      np.testing.assert_array_equal(
          batch['reset'][:, 1:], batch['inputs'][:, :-1] == bar
      )
      np.testing.assert_array_equal(batch['mask'], batch['inputs'] != bar)

  def test_a_model_sees_each_document_alone(self):
    self.path.write_text(''.join(DOCUMENTS))
    dataset = self.load(separator='|')
    model = models.LanguageModel(
        models.ModelConfig.tiny().replace(
            vocab_size=dataset.vocab_size, conv_kernel=4
        ),
        rngs=nnx.Rngs(0),
    )
    batch = dataset.train_batch(3)
    _, logits = model(batch['inputs'], reset=batch['reset'])
    starts = np.flatnonzero(batch['reset'][0, 1:]) + 1
    self.assertGreater(len(starts), 1)
    alone = slice(starts[0], starts[1])
    _, expected = model(batch['inputs'][:1, alone])
    np.testing.assert_allclose(logits[:1, alone], expected, atol=1e-5)
    _, leaked = model(batch['inputs'])
    self.assertGreater(np.abs(leaked[:1, alone] - expected).max(), 1e-3)

  def test_a_folder(self):
    for i in range(40):
      file = self.path / f'{i // 10}' / f'{i:02}.txt'
      file.parent.mkdir(parents=True, exist_ok=True)
      file.write_text('\ufeff' * (i == 0) + 'ab' * (i % 5))  # Some are empty.
    (self.path / '.hidden').write_bytes(b'\xff')
    dataset = self.load(sequence_length=8)
    self.assertEqual(dataset.vocabulary.symbols, 'ab')
    resets = sum(
        int(batch['reset'].sum()) for batch in dataset.eval_batches('test')
    )
    self.assertEqual(resets, 1)
    # Each file may hold several.
    many = self.load(sequence_length=8, separator='b')
    resets = sum(
        int(batch['reset'].sum()) for batch in many.eval_batches('test')
    )
    self.assertEqual(resets, 4)
    (self.path / 'bad').write_bytes(b'ab\xff')
    with self.assertRaisesRegex(errors.UserValueError, 'bad .*byte 2'):
      self.load()

  def test_one_document_leaves_nothing_to_evaluate(self):
    self.path.write_text('abc' * 100)
    with self.assertRaisesRegex(errors.UserValueError, 'validation 0, test 0'):
      self.load(separator='|')


if __name__ == '__main__':
  absltest.main()
