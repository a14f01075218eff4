"""Restores the arrays of a checkpoint and verifies their digests."""

from typing import Any
import warnings

import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp
from rnnzoo.training import memory
from rnnzoo.training.checkpoint import damage
from rnnzoo.training.checkpoint import digests
from rnnzoo.training.checkpoint import orbax_context
from rnnzoo.training.checkpoint import paths
from rnnzoo.training.checkpoint import trees
from rnnzoo.training.processes import multihost


def restore(
    directory, leaves: dict[str, Any], saved: dict[str, Any]
) -> list[jax.Array]:
  """Restores named arrays; all processes call this together.

  Args:
    directory: `state` of a checkpoint, an `epath.Path`.
    leaves: The arrays that are wanted, or their shapes, by name. Their
      `sharding` says where the result goes; without one, to the first device.
    saved: `leaves` of the record, which has all these names.

  Returns:
    The arrays in the order of `leaves`, in the dtypes of `leaves`.

  Raises:
    damage.DamagedError: If an array cannot be read, or is not what was written.
  """
  first = trees.default_sharding()
  targets = {
      name: jax.ShapeDtypeStruct(
          leaf.shape,
          jnp.dtype(saved[name]['dtype']),
          sharding=getattr(leaf, 'sharding', None) or first,
      )
      for name, leaf in leaves.items()
  }
  restored, problem = _read(directory, targets)
  # One exchange shares both who could read and what was read, so that all
  # processes come to the same conclusion.
  values = [0] * (1 + len(leaves))
  if restored is not None:
    values = [1] + [digests.local_digest(x) for x in restored]
  readers, *sums = multihost.sum_over_processes(values)
  if restored is None or readers != jax.process_count():
    raise damage.DamagedError(problem or 'another process cannot read it')
  for name, digest in zip(leaves, sums):
    if saved[name]['digest'] != f'{digest:016x}':
      raise damage.DamagedError(f'{name} is not what was written')
  restored = [
      x.astype(leaf.dtype) for x, leaf in zip(restored, leaves.values())
  ]
  if jax.process_count() > 1:
    restored = [
        x if getattr(leaf, 'sharding', None) else x.addressable_data(0)
        for x, leaf in zip(restored, leaves.values())
    ]
  return restored


def _read(directory, targets):
  """Returns `(arrays, None)`, or `(None, problem)` if they cannot be read."""
  tree = trees.nested(trees.filled(targets))
  args = ocp.args.PyTreeRestore(
      item=tree,
      restore_args=ocp.checkpoint_utils.construct_restore_args(tree),
      partial_restore=True,
  )
  with warnings.catch_warnings():  # See `orbax_context.drop_leftovers`.
    warnings.simplefilter('ignore', RuntimeWarning)
    try:
      paths.check_metadata(directory)
      # Without the manager: where a file is damaged that only some processes
      # read, its barriers would wait for ever, or for those of other calls.
      restored = ocp.PyTreeCheckpointHandler().restore(directory, args=args)
      return trees.with_empty(restored, targets), None
    except Exception as error:  # Orbax reports damage by a dozen types.
      if memory.is_exhausted(error):
        raise
      problem = f'its arrays cannot be read ({damage.reason(error)})'
      orbax_context.drop_leftovers(error)
  return None, problem
