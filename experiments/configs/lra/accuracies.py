"""Published accuracies on the Long Range Arena, as rows of `PUBLISHED`.

* https://arxiv.org/abs/2303.06349, the LRU paper. Table 3 has its own models,
  its own runs of S4D and S5, and numbers that it quotes from the papers of S4,
  S4D and S5. Tables 1, 2, 6 and 7 have the ablation, the rows of
  `settings.LRU_ABLATION` but for `lru`. An error is the standard error of three
  seeds; a quoted number has none.
* https://github.com/google-research/long-range-arena: a Transformer.
* https://arxiv.org/abs/2405.04517, table 6, the xLSTM paper: Mamba, trained
  with settings near those of the LRU and S5. It has neither Text nor Path-X.
* Grey images: the updated numbers of S4, and those of the S4D and S5 papers.
  The LRU paper has colour images only.

`None` stands where there is no number, or where the paper says that a model
does not leave chance.
"""

from typing import Any

_PAPER = 'https://arxiv.org/abs/2303.06349'
_ARENA = 'https://github.com/google-research/long-range-arena'
_XLSTM = 'https://arxiv.org/abs/2405.04517, table 6'

COLUMNS = ('scifar', 'listops', 'text', 'retrieval', 'pathfinder', 'pathx')
# Percent, and the standard error.
TABLE_3 = (
    ('lru', '', (
        (89.0, 0.1), (60.2, 0.8), (89.4, 0.1), (89.9, 0.1), (95.1, 0.1),
        (94.2, 0.4),
    )),
    ('s4d', ', their run', (
        (91.5, 0.2), (60.2, 0.3), (86.4, 0.0), (89.5, 0.0), (94.2, 0.3),
        (97.5, 0.0),
    )),
    ('s5', ', their run', (
        (88.8, 0.1), (58.5, 0.3), (86.2, 0.1), (88.9, 0.0), (95.7, 0.1),
        (96.0, 0.1),
    )),
    ('s4', ', quoted', (91.1, 59.6, 86.8, 90.9, 94.2, 96.4)),
    ('s4d', ', quoted', (89.9, 60.5, 86.2, 89.5, 93.1, 91.9)),
    ('s5', ', quoted', (90.1, 62.2, 89.3, 91.4, 95.3, 98.6)),
)
ABLATION = dict(
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
# Of others, by task: the layer, percent, the source.
OTHERS = dict(
    scifar=[('mamba', 76.5, _XLSTM)],
    image=[
        ('s4', 88.65, 'https://arxiv.org/abs/2111.00396, updated'),
        ('s4d', 88.19, 'https://arxiv.org/abs/2206.11893'),
        ('s5', 88.0, 'https://arxiv.org/abs/2208.04933'),
        ('mamba', 68.9, _XLSTM),
        ('attention', 42.44, _ARENA),
    ],
    listops=[('mamba', 32.5, _XLSTM), ('attention', 36.37, _ARENA)],
    text=[('attention', 64.27, f'{_ARENA}, bytes')],
    retrieval=[('mamba', 90.2, _XLSTM), ('attention', 57.46, _ARENA)],
    pathfinder=[('mamba', 99.2, _XLSTM), ('attention', 71.4, _ARENA)],
    pathx=[],
)


def of_task(task: str) -> list[dict[str, Any]]:
  """Returns `PUBLISHED` of the config of a task.

  >>> of_task('pathfinder')[0]['value'], of_task('image')[0]['layer']
  (0.951, 's4')

  Args:
    task: One of `settings.NAMES`.
  """
  rows = []
  if task in COLUMNS:
    column = COLUMNS.index(task)
    # S4 and S5 have no validation part of Text.
    by_test = '; the test split chose it' if task == 'text' else ''
    rows = [
        (
            layer, values[column],
            f'{_PAPER}, table 3{note}{by_test if "quoted" in note else ""}',
        )
        for layer, note, values in TABLE_3
    ] + [
        (layer, values[column], f'{_PAPER}, ablation')
        for layer, values in ABLATION.items() if values[column]
    ]
  return [_row(*row) for row in rows + OTHERS[task]]


def _row(layer, percent, source):
  percent, error = percent if isinstance(percent, tuple) else (percent, None)
  return dict(
      layer=layer, metric='accuracy', value=round(percent / 100, 4),
      error=None if error is None else round(error / 100, 4), split='test',
      source=source,
  )
