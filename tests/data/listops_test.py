"""ListOps as batches: padding, cutting, both sources, the baseline."""

import pathlib
import tempfile

from absl.testing import absltest
from absl.testing import parameterized
import numpy as np
from rnnzoo import data
from rnnzoo.data.builders import listops as generated
from rnnzoo.data.builders import listops_release as release
from rnnzoo.data.text import listops


class ListOpsTest(parameterized.TestCase):

  @classmethod
  def setUpClass(cls):
    super().setUpClass()
    cls.directory = pathlib.Path(
        cls.enterClassContext(tempfile.TemporaryDirectory())
    )
    listops.write_fixture(cls.directory, None)

  def load(self, **fields):
    config = dict(name='listops', data_dir=str(self.directory)) | fields
    return data.load(config, batch_size=30, seed=0)

  @parameterized.parameters(
      (generated, dict(max_length=30)),
      (generated, dict(max_length=10)),
      (release, dict(max_length=30, source='release')),
  )
  def test_rows(self, builder, fields):
    dataset = self.load(**fields)
    length = fields['max_length']
    self.assertEqual(
        (dataset.sequence_length, dataset.vocab_size, dataset.num_classes),
        (length, 15, 10),
    )
    found = builder.read(self.directory)['test']
    batches = list(dataset.eval_batches('test'))
    x, labels, exists, counts = (
        np.concatenate([batch[name] for batch in batches])
        for name in ('inputs', 'targets', 'input_mask', 'mask')
    )
    self.assertEqual(counts.sum(), 100)
    np.testing.assert_array_equal(labels[:100], found.labels)
    start = 0
    for i, size in enumerate(found.lengths):
      tokens = found.tokens[start : start + size]
      kept = min(size, length)
      np.testing.assert_array_equal(x[i, :kept], tokens[:kept])
      self.assertFalse(x[i, kept:].any())
      self.assertEqual(exists[i].tolist(), [t < kept for t in range(length)])
      start += size

  def test_the_usual_length_and_the_baseline(self):
    dataset = self.load()
    self.assertEqual(dataset.train_batch(1)['inputs'].shape, (30, 2000))
    found = generated.read(self.directory)
    frequent = np.bincount(found['train'].labels).argmax()
    self.assertEqual(
        dataset.baselines(),
        dict(majority_accuracy=np.mean(found['test'].labels == frequent)),
    )
    self.assertEqual(dataset.class_names, tuple('0123456789'))
    self.assertNotEqual(
        dataset.source, self.load(source='release').source
    )


if __name__ == '__main__':
  absltest.main()
