"""Where rows, weights and loops over rows are placed on a mesh.

Layers and models call these functions instead of looking at the mesh. Without a
mesh, each of them changes nothing.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P
from rnnzoo import mesh as mesh_lib


def spread_rows(x: jax.Array) -> jax.Array:
  """Keeps rows split over `data` and `fsdp`, time over `sequence`, no more.

  Without it, where `fsdp` splits a weight, XLA's partitioner would split the
  features of the activations likewise, and every device would compute all rows.

  Args:
    x: `[B, T, D]`, or `[B, D]` for one step; `[B, T, H, W, D]` or
      `[B, H, W, D]` where tokens are images.

  Returns:
    `x`, placed like that, and so is its gradient. An axis that the mesh does
    not divide stays whole.
  """
  mesh = mesh_lib.all_auto()
  ours = mesh_lib.BATCH_AXES + mesh_lib.TIME_AXES
  if mesh is None or not set(ours) & set(mesh.axis_names):
    return x
  spec = [mesh_lib.dividing(mesh, mesh_lib.BATCH_AXES, x.shape[0])]
  if x.ndim in (3, 5):
    spec.append(mesh_lib.dividing(mesh, mesh_lib.TIME_AXES, x.shape[1]))
  return jax.lax.with_sharding_constraint(x, P(*spec))


def whole_rows(table: jax.Array) -> jax.Array:
  """Gathers the features of a table `[V, D]` before its rows are read.

  The rows may stay on different devices. Without it, XLA's partitioner would
  read parts of rows for the whole batch and then exchange activations.
  """
  mesh = mesh_lib.all_auto()
  if mesh is None or 'fsdp' not in mesh.axis_names:
    return table
  return jax.lax.with_sharding_constraint(table, P(P.UNCONSTRAINED, None))


def map_rows(
    fn: Callable[[Any, Any], Any],
    weights: Any,
    rows: Any,
    *,
    split_time: bool = False,
) -> Any:
  """Runs `fn(weights, rows)` on the rows that each device holds.

  In a loop over time that reads weights, XLA's partitioner gathers the weights,
  and sums their gradients over the devices, in every step. Here both happen
  once. XLA's partitioner still decides how to split features.

  Args:
    fn: A function of two trees that is independent per row.
    weights: A tree of arrays that every device needs.
    rows: A tree of arrays `[B, ...]`, or `None`.
    split_time: Whether `fn` is independent per token, too. If so, it gets the
      segment of time of `rows` `[B, T, ...]` that the device holds.

  Returns:
    What `fn` returns, a tree of arrays like `rows`.
  """
  mesh = mesh_lib.all_auto()
  if mesh is None:
    return fn(weights, rows)
  shape = jax.tree.leaves(rows)[0].shape
  batch = mesh_lib.dividing(mesh, mesh_lib.BATCH_AXES, shape[0])
  placed = P(batch)
  if split_time:
    placed = P(*placed, mesh_lib.dividing(mesh, mesh_lib.TIME_AXES, shape[1]))
  # If `fn` needs the whole of time, it is gathered before the loop, too.
  names = batch + tuple(
      n for n in mesh_lib.TIME_AXES if mesh.shape.get(n, 1) > 1
  )
  if not names:
    return fn(weights, rows)

  # Devices sum gradients in float32: bfloat16 loses digits, and XLA:CPU of JAX
  # 0.10.2 crashes on it.
  dtypes = jax.tree.map(lambda u: u.dtype, weights)
  wide = lambda u: (
      u.astype(jnp.promote_types(jnp.float32, u.dtype))
      if jnp.issubdtype(u.dtype, jnp.floating) else u
  )

  def local(weights, rows):
    weights, rows = vary_together((weights, rows))
    return fn(jax.tree.map(lambda u, d: u.astype(d), weights, dtypes), rows)

  return jax.shard_map(
      local, mesh=mesh, in_specs=(P(), placed), out_specs=placed,
      axis_names=set(names),
  )(jax.tree.map(wide, weights), rows)


def vary_together(tree: Any) -> Any:
  """Gives all arrays of a tree one type inside a user's `jax.shard_map`.

  A state made inside it would be the same on every device, but its successor is
  not, and a scan needs one type for both. See `rnnzoo.mesh.same_varying`.
  """
  leaves, structure = jax.tree.flatten(tree)
  return structure.unflatten(mesh_lib.same_varying(*leaves))
