"""Published accuracies: the ablation in the LRU paper, on all six tasks.

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
      accuracy(
          layer, *(round(number / 100, 4) for number in row[column]),
          'https://arxiv.org/abs/2303.06349, ablation',
      )
      for layer, row in PERCENT.items() if row[column]
  ]


def accuracy(
    layer: str, value: float, error: float | None, source: str
) -> dict[str, Any]:
  """Returns an accuracy on the test split as a row of `PUBLISHED`.

  Args:
    layer: The layer, or a row of the ablation.
    value: A fraction.
    error: The standard error; `None` if the source gives none.
    source: Where it was published.
  """
  return dict(
      layer=layer, metric='accuracy', value=value, error=error, split='test',
      source=source,
  )
