"""Where arrays live: one mesh, and one table from logical axes to its axes."""

import math

import jax
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P
import numpy as np
import optax
from rnnzoo import errors

MESH_AXES = ('data', 'fsdp', 'model', 'sequence')

# Logical axis of a parameter -> mesh axis. An axis that does not divide stays
# whole, and so does one whose mesh axis an earlier axis has taken.
RULES = dict(
    embed='fsdp', heads='model', hidden='model', mlp='model', vocab='model'
)


def make_mesh(sizes, devices=None) -> jax.sharding.Mesh:
  """Builds the mesh `(data, fsdp, model, sequence)`.

  Args:
    sizes: A mapping with these four keys; one value may be -1, all that is
      left.
    devices: The devices to use; all of them if `None`.

  Returns:
    A mesh with Auto axes.

  Raises:
    UserValueError: If the sizes do not make up the number of devices.
  """
  devices = jax.devices() if devices is None else devices
  shape = [sizes[name] for name in MESH_AXES]
  text = ', '.join(f'{n}={s}' for n, s in zip(MESH_AXES, shape))
  if shape.count(-1) > 1 or any(s < 1 and s != -1 for s in shape):
    raise errors.UserValueError(
        f'mesh sizes must be positive, one of them may be -1, got {text}.'
    )
  known = math.prod(s for s in shape if s != -1)
  if -1 in shape and len(devices) % known == 0:
    shape[shape.index(-1)] = len(devices) // known
  if math.prod(shape) != len(devices):
    raise errors.UserValueError(
        f'mesh sizes {text} do not make up the {len(devices)} devices there '
        'are.'
    )
  return jax.make_mesh(
      tuple(shape), MESH_AXES, devices=devices,
      axis_types=(jax.sharding.AxisType.Auto,) * len(MESH_AXES),
  )


def check_batch_size(batch_size: int, mesh, accumulate: int = 1):
  """Raises `UserValueError` unless the rows spread evenly over the devices."""
  parts = mesh.shape['data'] * mesh.shape['fsdp'] * accumulate
  if batch_size % parts:
    raise errors.UserValueError(
        f'batch_size {batch_size} must be a multiple of {parts} = mesh.data '
        f'{mesh.shape["data"]} x mesh.fsdp {mesh.shape["fsdp"]} x '
        f'accumulate_steps {accumulate}.'
    )


def check_sequence_length(length: int, mesh):
  """Raises `UserValueError` unless time splits evenly over the devices."""
  parts = mesh.shape['sequence']
  if length % parts:
    raise errors.UserValueError(
        f'sequences of {length} tokens (data.sequence_length) do not split '
        f'into mesh.sequence={parts} equal stretches.'
    )
  if mesh.local_mesh.shape['sequence'] != parts:
    # Each process reads rows of its own, and whole ones.
    raise errors.UserValueError(
        f'mesh.sequence={parts} must not reach beyond one process.'
    )


def parameter_sharding(mesh, shape, axes) -> NamedSharding:
  """The sharding of one parameter, from its logical `axes`."""
  spec, taken = [], set()
  for size, name in zip(shape, axes):
    axis = RULES.get(name)
    if axis in taken or axis is None or size % mesh.shape[axis]:
      axis = None
    taken.add(axis)
    spec.append(axis)
  return NamedSharding(mesh, P(*spec))


def state_shardings(mesh, state, tx, axes):
  """The shardings of a whole training state.

  Args:
    mesh: The mesh.
    state: The abstract state: `params`, `batch_stats`, `opt_state`, `step`, and
      perhaps `ema` and `carry`.
    tx: The optimiser that made `opt_state`.
    axes: Logical axes of every parameter.

  Returns:
    A tree of `NamedSharding` like `state`: whatever is shaped like the
    parameters is sharded like them, carries over their batch axis (the second),
    the rest is replicated.
  """
  everywhere = NamedSharding(mesh, P())
  params = jax.tree.map(
      lambda leaf, a: parameter_sharding(mesh, leaf.shape, a),
      state['params'], axes,
  )
  shardings = jax.tree.map(lambda _: everywhere, dict(state))
  shardings['params'] = params
  if 'ema' in state:
    shardings['ema'] = params
  if 'carry' in state:
    rows = NamedSharding(mesh, P(None, ('data', 'fsdp')))
    shardings['carry'] = jax.tree.map(lambda _: rows, state['carry'])
  shardings['opt_state'] = optax.tree_map_params(
      tx,
      lambda _, sharding: sharding,
      state['opt_state'],
      params,
      transform_non_params=lambda _: everywhere,
  )
  return shardings


def global_batch(mesh, batch, *, stacked=False):
  """Makes global arrays of this process's rows of a batch.

  Args:
    mesh: The mesh.
    batch: Arrays `[B, ...]` by name, among them `inputs` `[B, T, ...]`.
    stacked: Whether the batches of several steps are stacked, `[steps, B,
      ...]`.

  Returns:
    `jax.Array`s by name, sharded over rows; those as long as `inputs` over time
    too.

  Raises:
    UserValueError: If time does not split evenly over the devices.
  """
  time_axis = 2 if stacked else 1
  length = lambda part: part.shape[time_axis : time_axis + 1]
  batch = {name: np.asarray(part) for name, part in batch.items()}
  times = length(batch['inputs'])
  for time in times:
    check_sequence_length(time, mesh)

  def place(part):
    spec = [None] * (time_axis - 1) + [('data', 'fsdp')]
    if times and length(part) == times:
      spec.append('sequence')
    return jax.make_array_from_process_local_data(
        NamedSharding(mesh, P(*spec)), part
    )

  return {name: place(part) for name, part in batch.items()}
