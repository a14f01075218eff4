"""Gated DeltaNet, as hybrid families have it."""

from collections.abc import Mapping
from typing import Any

from rnnzoo.convert import tables
from rnnzoo.convert.settings import Settings


def options(settings: Settings, epsilon: float) -> dict[str, Any]:
  """Returns options of `GatedDeltaNet`, with the defaults of Qwen.

  Args:
    settings: The `config.json`.
    epsilon: That of its norm.
  """
  return dict(
      num_heads=settings.size('linear_num_key_heads', 16),
      num_value_heads=settings.size('linear_num_value_heads', 32),
      key_features=settings.size('linear_key_head_dim', 128),
      value_features=settings.size('linear_value_head_dim', 128),
      conv_kernel=settings.size('linear_conv_kernel_dim', 4),
      norm_epsilon=epsilon,
  )


def values(layer: Any) -> dict[str, Any]:
  """Returns the values of `config.json` for the sizes of a layer."""
  return dict(
      linear_num_key_heads=layer.num_heads,
      linear_num_value_heads=layer.num_value_heads,
      linear_key_head_dim=layer.key_features,
      linear_value_head_dim=layer.value_features,
      linear_conv_kernel_dim=layer.conv_kernel,
  )


def rows(
    block: tables.Block, name: str, names: Mapping[str, str], norm: str
) -> tables.Table:
  """Returns the tensors that are whole parameters.

  Args:
    block: The block.
    name: What the names of all tensors start with.
    names: Our names of maps, by the last part of theirs.
    norm: The last part of the name of the norm.
  """
  table = {
      f'{name}.A_log': block.row('layer.A_log'),
      f'{name}.dt_bias': block.row('layer.dt_bias'),
      **block.norm(f'{name}.{norm}', 'layer.norm'),
  }
  for part, path in names.items():
    table |= block.linear(f'{name}.{part}', f'layer.{path}')
  return table
