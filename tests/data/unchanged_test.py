"""The batches of the first data sets stay bitwise what they were."""

import hashlib
import json
import pathlib
import tempfile

from absl.testing import absltest
from absl.testing import parameterized
import numpy as np
from rnnzoo import data

# Of two training batches, of the evaluation splits, and of `source`: computed
# by the code of July 2026, before data sets had definitions.
DIGESTS = {
    'windows': (
        dict(name='text_file', sequence_length=32),
        '84df41339d6dba89 b4c48e7948715d4c ec5420a4982f8fb7 4ba99aba37627442 '
        '4bb614704816c7ca',
    ),
    'bytes': (
        dict(name='text_file', sequence_length=31, level='byte'),
        '12bcc992edc48c46 b49f379b881d0e3e 920a87cf52174d53 09618211b4ed5ff7 '
        '4bb614704816c7ca',
    ),
    'streams': (
        dict(name='text_file', sequence_length=33, contiguous=True),
        'd0e243bf29bb1f90 bf2e5452d5762a92 d8e33baf276a3bd7 f3545f1f09af8980 '
        '4bb614704816c7ca',
    ),
    'selective_copying': (
        dict(
            name='selective_copying', sequence_length=20, num_tokens=4,
            eval_examples=30,
        ),
        '2331e54d9e8ef0a1 95564ef4546e89bd f73c96e040e99ed3 c99a06314a7d5e21 '
        '9baeaec835d11f6a',
    ),
    'selective_copying_mamba': (
        dict(
            name='selective_copying', variant='mamba', sequence_length=20,
            num_tokens=4, vocab_size=9, eval_examples=30,
        ),
        '341cc1890ff7b749 df334a9c7ae0ec66 22b89d1e718e16cd 11203b898da0b9af '
        '9baeaec835d11f6a',
    ),
    'mqar': (
        dict(name='mqar', eval_examples=30),
        'f2fe82d6ecccb9ef 55b7e21bc39bca8c 8c52798d340fdf7d b9319576d28009c6 '
        'ed6c8ff983e46475',
    ),
    'mqar_noise': (
        dict(
            name='mqar', sequence_length=32, num_pairs=3, vocab_size=50,
            power=0.5, random_non_queries=True, eval_examples=30,
        ),
        '1f6fe3521c8fd014 fba54a3221c61cbf d0d4d16ca7f7d720 f1e9d0f90f33f859 '
        'ed6c8ff983e46475',
    ),
}


def made_up_text():
  rng = np.random.default_rng(0)
  words = [
      ''.join(map(chr, rng.integers(97, 123, rng.integers(1, 9))))
      for _ in range(60)
  ]
  return ' '.join(words[i] for i in rng.integers(60, size=900)) + ' é“'


def digest(batch):
  found = hashlib.sha256()
  for name in sorted(batch):
    array = batch[name]
    found.update(f'{name} {array.dtype.str} {array.shape}'.encode())
    found.update(np.ascontiguousarray(array).tobytes())
  return found.hexdigest()[:16]


class UnchangedTest(parameterized.TestCase):

  @parameterized.named_parameters(
      (name, *case) for name, case in DIGESTS.items()
  )
  def test_digests(self, config, expected):
    path = pathlib.Path(self.enterContext(tempfile.TemporaryDirectory())) / 't'
    path.write_bytes(made_up_text().encode())
    if config['name'] == 'text_file':
      config = config | {'path': path}
    dataset = data.load(config, batch_size=8, seed=3)
    found = [digest(dataset.train_batch(step)) for step in (1, 1001)]
    for split in dataset.eval_splits:
      batches = dataset.eval_batches(split)
      found.append(digest({
          f'{i}{name}': array
          for i, batch in enumerate(batches) for name, array in batch.items()
      }))
    source = json.dumps(dict(dataset.source), sort_keys=True)
    found.append(hashlib.sha256(source.encode()).hexdigest()[:16])
    self.assertEqual(found, expected.split())


if __name__ == '__main__':
  absltest.main()
