"""Speech Commands as it is read from a small fixture."""

import pathlib
import tempfile

from absl.testing import absltest
from absl.testing import parameterized
import numpy as np
from rnnzoo import data
from rnnzoo import errors
from rnnzoo.data.builders import speech_commands as builder


class SpeechCommandsTest(parameterized.TestCase):

  @classmethod
  def setUpClass(cls):
    super().setUpClass()
    cls.directory = pathlib.Path(
        cls.enterClassContext(tempfile.TemporaryDirectory())
    )
    data.find('speech_commands').write_fixture(cls.directory, None)

  def load(self, **fields):
    config = dict(name='speech_commands', data_dir=str(self.directory)) | fields
    return data.load(config, batch_size=20, seed=0)

  @parameterized.product(words=(10, 35), rate=(8000, 16_000))
  def test_normalisation(self, words, rate):
    dataset = self.load(words=words, rate=rate)
    content = builder.read(self.directory, builder.WORDS[:words])
    whole = content.clips['train'][np.arange(len(content.clips['train']))]
    whole = whole.astype(np.float64)
    batch = dataset.eval_batches('test')[0]
    clips = content.clips['test'][np.arange(20)]
    if rate == 8000:
      clips = np.stack([clips[:, t] for t in range(0, 16_000, 2)], axis=1)
    np.testing.assert_array_equal(batch['inputs'][..., 0], clips)
    self.assertEqual(batch['inputs'].dtype, np.int16)
    np.testing.assert_allclose(
        dataset.input_offset + dataset.input_scale, (whole.mean(), whole.std()),
        rtol=1e-5,
    )
    self.assertEqual(batch['inputs'].shape, (20, rate, 1))
    self.assertEqual(batch['targets'].tolist(), [n // 2 for n in range(20)])
    self.assertEqual(dataset.sequence_length, rate)
    self.assertEqual(dataset.num_classes, words)
    self.assertEqual(dataset.class_names, builder.WORDS[:words])

  def test_the_ten_words(self):
    self.assertEqual(
        ' '.join(self.load(words=10).class_names),
        'yes no up down left right on off stop go',
    )
    self.assertLen(set(builder.WORDS), 35)
    self.assertEqual(
        self.load(words=10).source['examples'],
        dict(train=80, validation=20, test=20),
    )
    self.assertNotEqual(
        self.load(words=10).source['sha256'], self.load().source['sha256']
    )
    self.assertAlmostEqual(
        self.load(words=10).baselines()['majority_accuracy'], 0.1
    )

  def test_bad_fields(self):
    for fields, message in (
        (dict(words=12), 'data.words must be 10 or 35, got 12'),
        (dict(words=36), 'data.words'),
        (dict(rate=11_025), 'data.rate must be 16000 or 8000, got 11025'),
    ):
      with self.assertRaisesRegex(errors.UserValueError, message):
        self.load(**fields)


if __name__ == '__main__':
  absltest.main()
