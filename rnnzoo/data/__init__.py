"""Data: deterministic batches of numpy arrays, without TensorFlow.

>>> from rnnzoo import data
>>> fields = {'name': 'python_docs', 'sequence_length': 64}
>>> dataset = data.load(fields, batch_size=4, seed=0)
>>> dataset.train_batch(1)['inputs'].shape
(4, 64)

Loading this package loads grain; `import rnnzoo` loads neither.
"""

from rnnzoo.data.arrays import from_arrays
from rnnzoo.data.definition import Definition
from rnnzoo.data.loading import DATASETS
from rnnzoo.data.loading import find
from rnnzoo.data.loading import load
from rnnzoo.data.pipeline import Dataset
from rnnzoo.data.vocabulary import Vocabulary

__all__ = [
    'DATASETS', 'Dataset', 'Definition', 'Vocabulary', 'find', 'from_arrays',
    'load',
]
