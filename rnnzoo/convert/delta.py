"""Layers with a delta rule whose queries, keys and values are one map here."""

from rnnzoo.convert import tables


def separate(
    block: tables.Block, name: str, *, keys: int, values: int
) -> tables.Table:
  """Returns the tensors of maps and convolutions, which files have apart.

  Args:
    block: The block.
    name: What the names of all tensors start with.
    keys: The number of features of all queries, and of all keys.
    values: That of all values.
  """
  rows, start = {}, 0
  for part, size in dict(q=keys, k=keys, v=values).items():
    span = start, start + size
    rows |= {
        f'{name}.{part}_proj.weight': block.row(
            'layer.qkv.kernel', tables.transposed_rows(*span)
        ),
        f'{name}.{part}_conv1d.weight': block.row(
            'layer.conv', tables.taps_rows(*span)
        ),
    }
    start += size
  return rows
