"""How a training run places its arrays: one mesh, and one table of axes."""

import functools
import math
from typing import Any

import jax
from jax.experimental import mesh_utils
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P
import numpy as np
import optax
from rnnzoo import errors
from rnnzoo import mesh as mesh_lib
from rnnzoo.training import optimizers
from rnnzoo.training.processes import multihost

MESH_AXES = mesh_lib.AXES

# The mesh axis that splits each logical axis of a parameter. If two axes of a
# parameter have the same mesh axis, it splits the first one.
RULES = dict(
    embed='fsdp', state='fsdp', inner='fsdp',
    experts='model', heads='model', hidden='model', mlp='model', vocab='model',
)
# Ranks, states of a channel, inputs of a head: split only if the mesh divides
# them. All others must divide, or be named in `config.whole_axes`.
WHERE_IT_DIVIDES = ('inner',)
# Rows of a bfloat16 tile on a TPU. Parts of another size are padded, and then
# XLA may gather or reduce whole arrays instead of parts.
TILE_ROWS = 16


def make_mesh(sizes, devices=None) -> jax.sharding.Mesh:
  """Builds the mesh `(data, fsdp, model, sequence)`.

  Args:
    sizes: A mapping with these four keys. One value may be -1, for all devices
      that are left.
    devices: The devices to use; all of them if `None`.

  Returns:
    A mesh with Auto axes.

  Raises:
    UserValueError: If the product of the sizes is not the number of devices.
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
  # Unlike `jax.make_mesh`, this accepts all sizes: a mesh axis may be a part of
  # an axis of the torus of a TPU pod.
  placed = mesh_utils.create_device_mesh(
      shape, devices, allow_split_physical_axes=True
  )
  return jax.sharding.Mesh(
      placed, MESH_AXES,
      axis_types=(jax.sharding.AxisType.Auto,) * len(MESH_AXES),
  )


def check_batch_size(batch_size: int, mesh, accumulate: int = 1):
  """Raises `UserValueError` unless all devices get equally many rows."""
  parts = mesh.shape['data'] * mesh.shape['fsdp'] * accumulate
  if batch_size % parts:
    raise errors.UserValueError(
        f'batch_size {batch_size} must be a multiple of {parts} = mesh.data '
        f'{mesh.shape["data"]} x mesh.fsdp {mesh.shape["fsdp"]} x '
        f'accumulate_steps {accumulate}.'
    )


def check_sequence_length(length: int, mesh):
  """Raises `UserValueError` unless all devices get equally long segments."""
  parts = mesh.shape['sequence']
  if parts == 1:  # The common case, checked for every batch.
    return
  if length % parts:
    raise errors.UserValueError(
        f'sequences of {length} tokens (data.sequence_length, data.buckets or '
        f'data.test_lengths) do not split into mesh.sequence={parts} equal '
        'segments.'
    )
  owners = np.vectorize(lambda device: device.process_index)(mesh.devices)
  if (owners != owners[..., :1]).any():  # `sequence` is the last axis.
    # Each process reads its own rows, and it reads whole rows.
    raise errors.UserValueError(
        f'mesh.sequence={parts} must not reach beyond one process.'
    )


def parameter_sharding(mesh, shape, axes, whole=()) -> NamedSharding:
  """The sharding of one parameter.

  Args:
    mesh: The mesh.
    shape: The shape of the parameter.
    axes: Its logical axes.
    whole: Logical axes that no mesh axis splits.

  Returns:
    The sharding. Axes that the mesh does not divide stay whole; see
    `check_parameters`.
  """
  spec, taken = [], set()
  for size, name in zip(shape, axes):
    axis = None if name in whole else RULES.get(name)
    if axis in taken or axis is None or size % mesh.shape[axis]:
      axis = None
    taken.add(axis)
    spec.append(axis)
  return NamedSharding(mesh, P(*spec))


def parameter_shardings(mesh, params, axes, whole=()):
  """`parameter_sharding` of every leaf of a tree of parameters."""
  return jax.tree.map(
      lambda leaf, a: parameter_sharding(mesh, leaf.shape, a, whole),
      params, axes,
  )


def check_parameters(mesh, params, axes, whole=()):
  """Checks that the mesh can split the matrices of a model.

  Vectors, such as biases and scales, stay whole if the mesh does not divide
  them.

  Args:
    mesh: The mesh.
    params: Abstract parameters.
    axes: Logical axes of every parameter.
    whole: Logical axes that no mesh axis splits.

  Raises:
    UserValueError: If the mesh does not divide a size, with the parameter and
      the mesh axis in the message; or if `whole` has an unknown axis.
  """
  for name in whole:
    if name not in RULES:
      raise errors.UserValueError(
          f'whole_axes: there is no axis {name!r}.'
          f'{errors.suggest(name, RULES)} The axes are: {", ".join(RULES)}.'
      )
  bad = {}
  for path, shape, names in _matrices(params, axes):
    for size, name in zip(shape, names):
      axis = RULES.get(name)
      optional = name in WHERE_IT_DIVIDES or name in whole
      if axis and not optional and size % mesh.shape[axis]:
        bad.setdefault((name, size, axis), []).append(f'{path} {shape}')
  if bad:
    lines = [
        f"The size {size} of axis '{name}' does not divide by mesh.{axis}="
        f'{mesh.shape[axis]}: {_some(places)}.'
        for (name, size, axis), places in bad.items()
    ]
    names = tuple(dict.fromkeys(name for name, _, _ in bad))
    raise errors.UserValueError(
        f'{" ".join(lines)} Choose sizes that divide; or, with --config.'
        f'whole_axes="{names}", let every device have all of it.'
    )


def tile_warnings(mesh, params, axes, whole=()) -> list[str]:
  """Returns a warning for each size whose parts are not whole bfloat16 tiles.

  Args:
    mesh: The mesh.
    params: Abstract parameters.
    axes: Logical axes of every parameter.
    whole: Logical axes that no mesh axis splits.

  Returns:
    A line for each size and mesh axis.
  """
  found = {}
  for path, shape, names in _matrices(params, axes):
    spec = parameter_sharding(mesh, shape, names, whole).spec
    for size, name, axis in list(zip(shape, names, spec))[-2:]:
      small = name in WHERE_IT_DIVIDES or name == 'heads'
      if axis and not small and size // mesh.shape[axis] % TILE_ROWS:
        found.setdefault((name, size, axis), []).append(path)
  return [
      f"mesh.{axis}={mesh.shape[axis]} leaves {size // mesh.shape[axis]} of "
      f"the {size} of axis '{name}' on a device ({_some(places)}), not a "
      f'multiple of {TILE_ROWS}, the rows of a bfloat16 tile: TPUs pad it, and '
      'may sum up whole gradients instead of parts. Fewer devices along that '
      'axis, or larger sizes, are quicker.'
      for (name, size, axis), places in found.items()
      if mesh.shape[axis] > 1
  ]


def _matrices(params, axes):
  """Yields the dotted path, the shape and the axes of every matrix."""
  leaves = jax.tree_util.tree_flatten_with_path(params)[0]
  names = jax.tree.leaves(axes, is_leaf=lambda a: isinstance(a, tuple))
  for (path, leaf), axes in zip(leaves, names):
    if optimizers.is_matrix(path, axes):
      yield '.'.join(str(key.key) for key in path), leaf.shape, axes


def _some(places):
  rest = f' and {len(places) - 1} more' if places[1:] else ''
  return f'{places[0]}{rest}'


def state_shardings(mesh, state, tx, axes, whole=()):
  """Returns the shardings of a whole training state.

  Args:
    mesh: The mesh.
    state: The abstract state: `params`, `batch_stats`, `opt_state`, `step`, and
      perhaps `ema` and `carry`.
    tx: The optimiser that made `opt_state`.
    axes: Logical axes of every parameter.
    whole: Logical axes that no mesh axis splits.

  Returns:
    A tree of `NamedSharding` like `state`. Trees like the parameters are
    sharded like them, carries are split along the batch axis (the second one),
    and the rest is replicated.
  """
  everywhere = NamedSharding(mesh, P())
  params = parameter_shardings(mesh, state['params'], axes, whole)
  shardings = jax.tree.map(lambda _: everywhere, dict(state))
  shardings['params'] = params
  if 'ema' in state:
    shardings['ema'] = params
  if 'carry' in state:
    rows = NamedSharding(mesh, P(None, mesh_lib.BATCH_AXES))
    shardings['carry'] = jax.tree.map(lambda _: rows, state['carry'])
  is_none = lambda u: isinstance(u, optax.MaskedNode)  # Of what is frozen.
  shardings['opt_state'] = optax.tree_map_params(
      tx,
      lambda u, sharding: u if is_none(u) else sharding,
      state['opt_state'],
      params,
      transform_non_params=lambda _: everywhere,
      is_leaf=is_none,
  )
  return shardings


def global_batch(mesh, batch, *, stacked=False):
  """Makes global arrays from the rows of a batch that this process has.

  Args:
    mesh: The mesh.
    batch: Arrays `[B, ...]` by name, among them `inputs` `[B, T, ...]`.
    stacked: Whether the batches of several steps are stacked, `[steps, B,
      ...]`.

  Returns:
    `jax.Array`s by name, split along rows. Those as long as `inputs` are split
    along time, too. If the devices cannot share the rows evenly, as the few
    rows of a long evaluation batch, each device has all of them.

  Raises:
    UserValueError: See `check_batch`.
  """
  batch = {name: np.asarray(part) for name, part in batch.items()}
  shapes = tuple((name, part.shape) for name, part in batch.items())
  shardings = batch_shardings(mesh, shapes, stacked)
  if jax.process_count() == 1:
    # One call, because this runs at every step.
    return jax.device_put(batch, shardings)
  return {
      name: jax.make_array_from_process_local_data(shardings[name], part)
      for name, part in batch.items()
  }


def check_batch(mesh, batch):
  """Raises `UserValueError` if a mesh cannot split a batch.

  The segments of time of all devices must have one length. If there are several
  processes, the devices of each must be able to share its rows evenly.

  Args:
    mesh: The mesh.
    batch: Arrays `[b, ...]` by name, among them `inputs`, of this process.
  """
  batch_shardings(
      mesh, tuple((name, np.shape(part)) for name, part in batch.items()), False
  )


@functools.lru_cache
def batch_shardings(mesh, shapes, stacked):
  """Returns the shardings of the arrays of a batch; see `global_batch`.

  Args:
    mesh: The mesh.
    shapes: Pairs of a name and a shape.
    stacked: Whether the batches of several steps are stacked.
  """
  shapes, time_axis = dict(shapes), 2 if stacked else 1
  length = lambda shape: shape[time_axis : time_axis + 1]
  times = length(shapes['inputs'])
  for time in times:
    check_sequence_length(time, mesh)
  row_axes = _row_axes(mesh, shapes['inputs'][time_axis - 1])

  def of(shape):
    spec: list[Any] = [None] * (time_axis - 1) + [row_axes]
    if times and length(shape) == times:
      spec.append('sequence')
    return NamedSharding(mesh, P(*spec))

  return {name: of(shape) for name, shape in shapes.items()}


def _row_axes(mesh, rows):
  """Returns the mesh axes that split the rows of this process, or `None`."""
  parts = mesh.shape['data'] * mesh.shape['fsdp']
  if jax.process_count() == 1:
    return None if rows % parts else mesh_lib.BATCH_AXES
  index, count = multihost.data_shard(mesh)
  mine = parts // count * (len(index) if isinstance(index, tuple) else 1)
  if rows % mine:
    raise errors.UserValueError(
        f'The {mine} devices of a process cannot share the {rows} rows of an '
        'evaluation batch of long sequences: set data.test_lengths=() and '
        'evaluate these splits with one process.'
    )
  return mesh_lib.BATCH_AXES
