"""Labelled documents in records: what the builders of text sets share.

A record holds the documents of many examples. A record for each would take
seconds to read.
"""

from collections.abc import Iterable, Iterator
import dataclasses
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

CHUNK = 1000  # Examples in a record.

# An example: its documents and its label.
Example = tuple[tuple[str, ...], int]


@dataclasses.dataclass(frozen=True)
class Documents:
  """The documents of `N` examples, `K` for each, and the labels.

  Attributes:
    chunks: Pairs of a text, the documents of some examples one after another in
      UTF-8, and their numbers of characters, `[n, K]` int32. All `n` together
      are `N`.
    labels: `[N]` int32.
  """

  chunks: list[tuple[bytes, np.ndarray]]
  labels: np.ndarray

  def __len__(self) -> int:
    return len(self.labels)


def features() -> tfds.features.FeaturesDict:
  """Returns the features of a record."""
  return tfds.features.FeaturesDict({
      'text': tfds.features.Tensor(
          shape=(None,), dtype=np.uint8, encoding='bytes'
      ),
      'sizes': tfds.features.Tensor(
          shape=(None, None), dtype=np.int32, encoding='bytes'
      ),
      'labels': tfds.features.Tensor(
          shape=(None,), dtype=np.uint8, encoding='bytes'
      ),
  })


def records(examples: Iterable[Example]) -> Iterator[tuple[int, dict]]:
  """Yields keys and records of examples, in their order."""
  chunk, key = [], 0
  for example in examples:
    chunk.append(example)
    if len(chunk) == CHUNK:
      yield key, _record(chunk)
      chunk, key = [], key + CHUNK
  if chunk:
    yield key, _record(chunk)


def _record(examples: list[Example]) -> dict[str, np.ndarray]:
  texts, labels = zip(*examples)
  joined = ''.join(text for documents in texts for text in documents)
  sizes = [[len(text) for text in documents] for documents in texts]
  return dict(
      text=np.frombuffer(joined.encode('utf-8'), np.uint8),
      sizes=np.array(sizes, np.int32),
      labels=np.array(labels, np.uint8),
  )


def of_records(found: list[dict[str, Any]]) -> Documents:
  """Returns the documents of the records of a split."""
  return Documents(
      [(record['text'].tobytes(), record['sizes']) for record in found],
      np.concatenate([record['labels'] for record in found]).astype(np.int32),
  )
