"""Trees of arrays as dictionaries of named arrays, and what differs in two."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from rnnzoo.training.checkpoint import paths


def named_leaves(tree: Any) -> dict[str, Any]:
  """Flattens a tree to `{'params/w': leaf}`.

  Raises:
    ValueError: If two leaves have the same name, a name leads out of the
      checkpoint when taken for a path, or a leaf is not an array of numbers.
  """
  leaves = {}
  for path, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]:
    name = jax.tree_util.keystr(path, simple=True, separator='/')
    if not name or name in leaves:
      raise ValueError(
          '`state` must be a dictionary whose paths, joined by "/", are all '
          f'different; got {name!r} ' + ('twice.' if name else 'as a path.')
      )
    if paths.leads_out(name):
      raise ValueError(f'`state` has a path that leads out of it: {name!r}.')
    if not isinstance(getattr(leaf, 'dtype', None), np.dtype):
      raise ValueError(
          f'`state` must hold arrays of numbers, got {leaf!r} at {name}.'
      )
    leaves[name] = leaf
  return leaves


def nested(leaves: dict[str, Any]) -> dict[str, Any]:
  """Turns `{'params/w': leaf}` into `{'params': {'w': leaf}}`."""
  tree = {}
  for name, leaf in leaves.items():
    *parents, last = name.split('/')
    node = tree
    for parent in parents:
      node = node.setdefault(parent, {})
    node[last] = leaf
  return tree


def filled(leaves: dict[str, Any]) -> dict[str, Any]:
  """Returns the leaves that have elements, because Orbax refuses the others.

  The record of the checkpoint knows dtype and shape of the others.
  """
  return {name: leaf for name, leaf in leaves.items() if leaf.size}


def differences(
    leaves: dict[str, Any], saved: dict[str, Any], *, partial: bool
) -> list[str]:
  """Returns where a tree and a saved one differ, one line for each leaf.

  Args:
    leaves: The arrays that are wanted, by name.
    saved: `leaves` of a record.
    partial: Whether the saved tree may have leaves that are not wanted.
  """
  found = []
  for name, leaf in leaves.items():
    here = f'{leaf.dtype.name}{list(leaf.shape)}'
    there = saved.get(name)
    if there is None:
      found.append(f'{name} ({here}) is not in the checkpoint')
    elif there['shape'] != [*leaf.shape] or not _can_hold(leaf, there['dtype']):
      there = f'{there["dtype"]}{there["shape"]}'
      found.append(f'{name} is {there} in the checkpoint and {here} here')
  if not partial:
    found += [
        f'{name} is only in the checkpoint' for name in saved
        if name not in leaves
    ]
  return found


def _can_hold(leaf, saved: str) -> bool:
  """Returns whether an array like `leaf` can hold all values of dtype `saved`.

  A moving average or a moment that was once kept in bfloat16 becomes float32.
  """
  if leaf.dtype.name == saved:
    return True
  narrow = saved in ('bfloat16', 'float16')
  return narrow and leaf.dtype == np.float32


def default_sharding() -> jax.sharding.Sharding:
  """Returns where an array goes if the caller does not say where.

  That is the first device. In a run of several processes, each of them gets the
  array on its own first device; while it is restored it is one array of all
  processes, on one device of each.
  """
  if jax.process_count() == 1:
    return jax.sharding.SingleDeviceSharding(jax.devices()[0])
  first = {}
  for device in jax.devices():
    first.setdefault(device.process_index, device)
  mesh = jax.sharding.Mesh(np.array(list(first.values())), ('process',))
  return jax.NamedSharding(mesh, jax.P())


def with_empty(restored: Any, targets: dict[str, Any]) -> list[jax.Array]:
  """Returns the leaves that Orbax restored, in the order of `targets`.

  Args:
    restored: The nested dictionary that Orbax returned.
    targets: The `jax.ShapeDtypeStruct`s by name, with those that have no
      elements, which `restored` lacks.

  Raises:
    ValueError: If Orbax has left out an array, as after damage to `_METADATA`.
  """
  found, leaves = named_leaves(restored), []
  for name, target in targets.items():
    if not target.size:
      found[name] = jnp.zeros(
          target.shape, target.dtype, device=target.sharding
      )
    if not isinstance(found[name], jax.Array):
      raise ValueError(f'{name} is left out')
    leaves.append(found[name])
  return leaves
