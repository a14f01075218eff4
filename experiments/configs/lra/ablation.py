"""The accuracies of the ablation in the LRU paper, on all six tasks.

https://arxiv.org/abs/2303.06349, tables 1, 2, 6 and 7: percent on the test
split, and the standard error of three seeds. The rows are the layers of
`settings.LRU_ABLATION` but for `lru`, which has the numbers of table 3. `None`
stands where the paper says that a row does not leave chance.
"""

from typing import Any

COLUMNS = ('scifar', 'listops', 'text', 'retrieval', 'pathfinder', 'pathx')
PERCENT = dict(
    dense_relu=(
        (69.7, 0.2), (37.6, 8.0), (88.0, 0.1), (88.5, 0.1), None, None
    ),
    dense_tanh=(
        (69.9, 0.3), (43.9, 0.1), (87.2, 0.1), (88.9, 0.2), None, None
    ),
    dense_linear=(
        (72.2, 0.2), (50.4, 0.2), (89.1, 0.1), (89.1, 0.1), None, None
    ),
    lru_real_imaginary=(
        (86.5, 0.1), (58.8, 0.3), (87.4, 0.3), (87.8, 0.5), None, None
    ),
    lru_polar=(
        (85.4, 0.7), (60.5, 0.3), (86.5, 0.4), (89.4, 0.1), (65.4, 9.0), None
    ),
    lru_stable=(
        (87.2, 0.4), (59.4, 0.3), (87.6, 0.3), (89.1, 0.2), (93.5, 0.5), None
    ),
    lru_ring=(
        (88.1, 0.0), (59.4, 0.3), (89.4, 0.1), (90.1, 0.1), (94.4, 0.3), None
    ),
)


def numbers(task: str) -> list[dict[str, Any]]:
  """Returns the rows of `PUBLISHED` of a config.

  >>> numbers('pathfinder')[0]['layer']
  'lru_polar'

  Args:
    task: One of `COLUMNS`.
  """
  column = COLUMNS.index(task)
  return [
      dict(
          layer=layer, metric='accuracy', value=round(row[column][0] / 100, 4),
          error=round(row[column][1] / 100, 4), split='test',
          source='https://arxiv.org/abs/2303.06349, ablation',
      )
      for layer, row in PERCENT.items() if row[column]
  ]
