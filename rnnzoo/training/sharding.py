"""Where arrays live: one mesh, and one table from logical axes to its axes."""

import functools
import math

import jax
from jax.experimental import mesh_utils
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P
import numpy as np
import optax
from rnnzoo import errors
from rnnzoo import mesh as mesh_lib
from rnnzoo.training import optimizers

MESH_AXES = mesh_lib.AXES

# Logical axis of a parameter -> mesh axis. A mesh axis that an earlier axis of
# the parameter has taken is not used again.
RULES = dict(
    embed='fsdp', state='fsdp', inner='fsdp',
    heads='model', hidden='model', mlp='model', vocab='model',
)
# Ranks, states of a channel, inputs of a head: shared only where they divide.
# All others must divide, or be named in `config.whole_axes`.
WHERE_IT_DIVIDES = ('inner',)
# Rows of a tile of bfloat16 on a TPU. Parts of another size are padded, and
# their gathers and gradients are no longer those of parts.
TILE_ROWS = 16


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
  # Unlike `jax.make_mesh`, whatever the sizes: an axis may be a part of one of
  # the torus that a pod is.
  placed = mesh_utils.create_device_mesh(
      shape, devices, allow_split_physical_axes=True
  )
  return jax.sharding.Mesh(
      placed, MESH_AXES,
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
  if parts == 1:  # Of every batch of most runs.
    return
  if length % parts:
    raise errors.UserValueError(
        f'sequences of {length} tokens (data.sequence_length) do not split '
        f'into mesh.sequence={parts} equal stretches.'
    )
  owners = np.vectorize(lambda device: device.process_index)(mesh.devices)
  if (owners != owners[..., :1]).any():  # `sequence` is the last axis.
    # Each process reads rows of its own, and whole ones.
    raise errors.UserValueError(
        f'mesh.sequence={parts} must not reach beyond one process.'
    )


def parameter_sharding(mesh, shape, axes, whole=()) -> NamedSharding:
  """The sharding of one parameter.

  Args:
    mesh: The mesh.
    shape: Of the parameter.
    axes: Its logical axes.
    whole: Logical axes that every device is to have all of.

  Returns:
    The sharding; axes that do not divide are whole, see `check_parameters`.
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
  """Checks that the matrices of a model can be shared as the mesh asks.

  Vectors, such as biases and scales, are whole where they do not divide.

  Args:
    mesh: The mesh.
    params: Abstract parameters.
    axes: Logical axes of every parameter.
    whole: Logical axes that every device is to have all of.

  Raises:
    UserValueError: If a size does not divide, naming it, the parameter and the
      mesh axis; or if there is no such axis in `whole`.
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
  """Says which matrices have parts that are no whole tiles of bfloat16.

  Args:
    mesh: The mesh.
    params: Abstract parameters.
    axes: Logical axes of every parameter.
    whole: Logical axes that every device has all of.

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
  """The shardings of a whole training state.

  Args:
    mesh: The mesh.
    state: The abstract state: `params`, `batch_stats`, `opt_state`, `step`, and
      perhaps `ema` and `carry`.
    tx: The optimiser that made `opt_state`.
    axes: Logical axes of every parameter.
    whole: Logical axes that every device is to have all of.

  Returns:
    A tree of `NamedSharding` like `state`: whatever is shaped like the
    parameters is sharded like them, carries over their batch axis (the second),
    the rest is replicated.
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
  batch = {name: np.asarray(part) for name, part in batch.items()}
  shapes = tuple((name, part.shape) for name, part in batch.items())
  shardings = batch_shardings(mesh, shapes, stacked)
  if jax.process_count() == 1:
    return jax.device_put(batch, shardings)  # One call: this is every step.
  return {
      name: jax.make_array_from_process_local_data(shardings[name], part)
      for name, part in batch.items()
  }


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

  def of(shape):
    spec = [None] * (time_axis - 1) + [mesh_lib.BATCH_AXES]
    if times and length(shape) == times:
      spec.append('sequence')
    return NamedSharding(mesh, P(*spec))

  return {name: of(shape) for name, shape in shapes.items()}
