"""Attention that sees every token, as hybrid families have it."""

from collections.abc import Mapping, Sequence
from typing import Any

from rnnzoo.convert import tables
from rnnzoo.convert.settings import Settings

# The number of tokens that a carry keeps if `context` is not given. A step
# reads all of them, and a model may say that it was trained on 262,144.
CONTEXT = 4096

# The maps by our names, as most files call them.
MAPS = dict(query='q_proj', key='k_proj', value='v_proj', output='o_proj')


def options(
    settings: Settings, features: int, *, heads: int, kv_heads: int | None,
    head_features: int | None = None, longest: int, theta: float = 10_000.0,
    fraction: float = 1.0, no_effect: Sequence[str] = (),
) -> dict[str, Any]:
  """Returns options of `Attention` or `GatedAttention`.

  Args:
    settings: The `config.json`.
    features: The number of features of the model.
    heads: The number of heads, if the file does not say; like all below.
    kv_heads: That of keys and values; `None` for as many.
    head_features: The size of a head; `None` for `features / heads`.
    longest: The number of tokens of a sequence.
    theta: The longest wavelength of rotations.
    fraction: The fraction of a head that is rotated.
    no_effect: Names in `rope_parameters` to leave out of account.
  """
  settings.no_effect('attention_dropout')
  heads = settings.size('num_attention_heads', heads)
  groups = settings.size('num_key_value_heads', kv_heads or heads)
  size = head_features or features // heads
  if head_features is not None:
    size = settings.size('head_dim', head_features)
  else:
    settings.must_be('head_dim', size)
  longest = settings.size('max_position_embeddings', longest)
  theta, fraction = settings.rotary(fraction, theta, no_effect)
  return dict(
      num_heads=heads, num_kv_heads=groups, head_features=size,
      window=settings.context_size(min(longest, CONTEXT)), on_full='error',
      rotary_fraction=fraction, max_wavelength=theta,
  )


def values(layer: Any, *, with_fraction: bool = False) -> dict[str, Any]:
  """Returns the values of `config.json` for a layer, but for `head_dim`.

  Args:
    layer: The layer.
    with_fraction: Whether to say which fraction of a head is rotated.
  """
  rotary = dict(rope_type='default', rope_theta=layer.max_wavelength)
  if with_fraction:
    rotary['partial_rotary_factor'] = (
        layer.rotary_features / layer.head_features
    )
  return dict(
      num_attention_heads=layer.num_heads,
      num_key_value_heads=layer.num_kv_heads, rope_parameters=rotary,
  )


def rows(
    block: tables.Block, name: str, names: Mapping[str, str], *,
    bias: bool = False, layer: str = 'layer',
) -> tables.Table:
  """Returns the tensors of maps and norms.

  Args:
    block: The block.
    name: What the names of all tensors start with.
    names: The last part of their names, by our names.
    bias: Whether the maps have biases.
    layer: Where in the block the layer is.
  """
  table = {}
  for path, part in names.items():
    if path.endswith('_norm'):
      table |= block.norm(f'{name}.{part}', f'{layer}.{path}')
    else:
      table |= block.linear(f'{name}.{part}', f'{layer}.{path}', bias=bias)
  return table
