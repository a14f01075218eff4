"""A layer under test, and the ways to run it."""

import functools
from typing import Any, NamedTuple
import zlib

from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np
from rnnzoo.layers import base
from rnnzoo.testing import comparing

BATCH, TIME, PIECE, SLOTS = 3, 12, 4, 4


class Result(NamedTuple):
  """The results of a layer, and its gradients for fixed cotangents."""

  y: jax.Array
  carry: Any
  d_parameters: Any
  d_x: jax.Array
  d_carry: list[jax.Array]


class Case:
  """A layer under test, with inputs, and compiled runs.

  Attributes:
    layer: The layer; its parameters are float64 if the inputs are.
    causal: Whether the layer is causal.
    dtype: Dtype of the inputs.
    compute_dtype: The compute dtype of the layer.
    params: Its parameters.
    x: Inputs `[B, T, D]`.
    initial: `initialize_carry`.
    carry: A state after some tokens.
    d_y: A cotangent of the outputs.
    d_carry: A cotangent of the floating leaves of the final carry.
    not_donated: Descriptions of arrays that share a buffer, which cannot be
      donated. If there are none, carry and parameters are donated before the
      first run.
  """

  def __init__(self, layer, dtype):
    self.causal = getattr(layer, 'causal', True)
    self.dtype = jnp.dtype(dtype)
    self.compute_dtype = jnp.dtype(layer.dtype or dtype)
    self._graph, self.params, self._rest = nnx.split(layer, nnx.Param, ...)
    carry = layer.initialize_carry(BATCH, self.compute_dtype)
    self.not_donated = _shared_buffers((carry, self.params))
    if not self.not_donated:
      # A copy, so that `make_layer` may return a layer that is used elsewhere.
      self.params = _donated((carry, jax.tree.map(jnp.copy, self.params)))[1]
    if self.dtype == jnp.float64:  # So that gradients are float64 too.
      wide = lambda dtype: jnp.promote_types(dtype, jnp.float64)
      self.params = jax.tree.map(  # By NumPy, which compiles nothing.
          lambda p: jax.device_put(np.asarray(p, wide(p.dtype))), self.params
      )
    self.layer = nnx.merge(self._graph, self.params, self._rest)
    self.x = self.draw('x', (BATCH, TIME, *base.input_shape(layer)))
    self.initial = jax.device_get(
        self.layer.initialize_carry(BATCH, self.compute_dtype)
    )
    carry, y = jax.eval_shape(self.layer, self.x, self.initial)
    self.d_y = self.draw('d_y', y.shape, y.dtype)
    self.d_carry = [
        self.draw(f'd_carry {i}', u.shape, u.dtype)
        for i, u in enumerate(floating_leaves(carry))
    ]
    self._compiled = {}
    past = self.draw('past', self.x.shape)
    self.carry = self.run(whole, x=past, carry=self.initial).carry

  def draw(self, name, shape, dtype=None):
    """Normal numbers, the same for the same name."""
    random = np.random.default_rng(zlib.crc32(name.encode()))
    return random.standard_normal(shape).astype(dtype or self.dtype)

  def flag(self, name, probability):
    """Booleans `[B, T]`, the same for the same name."""
    random = np.random.default_rng(zlib.crc32(name.encode()))
    return random.random((BATCH, TIME)) < probability

  def run(
      self,
      form,
      reset=None,
      mask=None,
      *,
      x=None,
      carry=None,
      d_y=None,
      d_carry=None,
      params=None,
  ) -> Result:
    """Runs one of the forms below, and computes its gradients.

    Args:
      form: A function of `(layer, x, carry, reset, mask)` that returns `(carry,
        y)`. It is compiled once a case.
      reset: Passed to it.
      mask: Passed to it.
      x: Inputs; those of the case if `None`, and so on.
      carry: The carry to start from.
      d_y: Cotangent of the outputs.
      d_carry: Cotangent of the final carry.
      params: Parameters.

    Returns:
      The `Result`, as NumPy arrays, so that only forms are compiled.
    """
    if form not in self._compiled:
      self._compiled[form] = jax.jit(
          functools.partial(self._run, form), compiler_options=quick_options()
      )
    return jax.device_get(self._compiled[form](
        self.params if params is None else params,
        self.x if x is None else x,
        self.carry if carry is None else carry,
        reset,
        mask,
        self.d_y if d_y is None else d_y,
        self.d_carry if d_carry is None else d_carry,
    ))

  def _run(self, form, params, x, carry, reset, mask, d_y, d_carry):
    def forward(params, x, floating):
      layer = nnx.merge(self._graph, params, self._rest)
      new, y = form(layer, x, refilled(carry, floating), reset, mask)
      return (y, floating_leaves(new)), new

    (y, _), pull, new = jax.vjp(
        forward, params, x, floating_leaves(carry), has_aux=True
    )
    return Result(y, new, *pull((d_y, d_carry)))


def whole(layer, x, carry, reset, mask):
  """The form under test: a call of the layer."""
  return layer(x, carry, reset=reset, mask=mask)


def in_segments(*operands):
  """`whole` for a mesh that splits time, which needs its own compilation."""
  return whole(*operands)


def steps(layer, x, carry, reset, mask):
  """Token by token."""
  return base.scan_steps(layer, carry, x, reset=reset, mask=mask)


def plain_steps(layer, x, carry, reset, mask):
  """The definition: `step` without flags, which are applied outside."""
  initial = layer.initialize_carry(x.shape[0], layer.dtype or x.dtype)

  def body(carry, inputs):
    x_t, reset_t, mask_t = inputs
    entering = base.select(reset_t & mask_t, initial, carry)
    new, y = layer.step(entering, base.masked(x_t, mask_t))
    return base.select(mask_t, new, carry), base.masked(y, mask_t)

  by_time = lambda u: jnp.moveaxis(u, 1, 0)
  carry, y = jax.lax.scan(
      body, carry, (by_time(x), by_time(reset), by_time(mask))
  )
  return carry, jnp.moveaxis(y, 0, 1)


def chunks(layer, x, carry, reset, mask):
  """Chunk by chunk: none, one token, a random number of tokens, the rest."""
  random = np.random.default_rng(0)
  cut = int(random.integers(2, x.shape[1] - 2))
  lengths = random.permutation([0, 1, cut, x.shape[1] - 1 - cut])
  ys, start = [], 0
  for length in lengths.tolist():
    here = (slice(None), slice(start, start + length))
    carry, y = layer(
        x[here],
        carry,
        reset=None if reset is None else reset[here],
        mask=None if mask is None else mask[here],
    )
    ys, start = ys + [y], start + length
  return carry, jnp.concatenate(ys, axis=1)


def separate(layer, x, carry, index, used):
  """Runs each sequence separately, without padding or flags.

  Args:
    layer: The layer.
    x: `[B, T, D]`.
    carry: Enters the sequence in slot 0; the others start from
      `initialize_carry`.
    index: `[B, S, L]`, the positions of the L tokens of each of S sequences.
    used: `[B, S]`, `False` for slots without a sequence.

  Returns:
    The carry after the last sequence of each row, and outputs `[B, T, D_out]`.
  """
  rows = jnp.arange(x.shape[0])[:, None, None]
  pieces = base.masked(x[rows, index], used)
  initial = layer.initialize_carry(x.shape[0], layer.dtype or x.dtype)
  slots = [base.select(used[:, 0], carry, initial)]
  slots += [initial] * (index.shape[1] - 1)
  flat = lambda u: u.reshape((u.shape[0] * u.shape[1],) + u.shape[2:])
  carries, y = layer(
      flat(pieces), jax.tree.map(lambda *u: flat(jnp.stack(u, axis=1)), *slots)
  )
  y = base.masked(y.reshape(index.shape + y.shape[2:]), used)
  for slot in range(index.shape[1]):
    last = jax.tree.map(lambda u: u[slot :: index.shape[1]], carries)
    carry = base.select(used[:, slot], last, carry)
  out = jnp.zeros(x.shape[:2] + y.shape[3:], y.dtype)
  return carry, out.at[rows, index].add(y)


def vmapped(layer, x, carry, reset, mask):
  """Row by row, under `jax.vmap`."""

  def one(*row):
    x, carry, reset, mask = jax.tree.map(lambda u: u[None], row)
    out = layer(x, carry, reset=reset, mask=mask)
    return jax.tree.map(lambda u: u[0], out)

  return jax.vmap(one)(x, carry, reset, mask)


def sharded(layer, x, carry, reset, mask):
  """On up to eight devices, in a `jax.shard_map` of the user.

  Every device runs the whole batch, and each row is taken from another device.
  """
  n = min(8, jax.device_count())
  mesh = jax.make_mesh(
      (n,), ('data',), axis_types=(jax.sharding.AxisType.Auto,),
      devices=jax.devices()[:n],
  )
  graph, state = nnx.split(layer)

  def local(state, *inputs):
    x, carry, reset, mask = inputs
    return nnx.merge(graph, state)(x, carry, reset=reset, mask=mask)

  inputs = jax.tree.map(
      lambda u: jnp.concatenate([u] * n), (x, carry, reset, mask)
  )
  split = jax.sharding.PartitionSpec('data')
  same = jax.sharding.PartitionSpec()
  out = jax.shard_map(
      local, mesh=mesh, in_specs=(same,) + (split,) * 4, out_specs=split
  )(state, *inputs)
  rows = np.arange(BATCH)
  copies = np.linspace(0, n - 1, BATCH).astype(int)
  return jax.tree.map(lambda u: u[copies * BATCH + rows], out)


@functools.cache
def quick_options():
  """Returns compiler options for programs that run once.

  On CPU they save three quarters of the time. Versions differ in their options,
  so each one is tried.
  """
  options = {}
  if jax.default_backend() == 'cpu':
    for name, value in (
        ('xla_backend_optimization_level', 0),
        ('xla_cpu_use_fusion_emitters', False),
    ):
      try:
        jax.jit(lambda: 0, compiler_options={name: value})()
        options[name] = value
      except jax.errors.JaxRuntimeError:
        pass
  return options


@functools.partial(jax.jit, donate_argnums=0)
def _donated(tree):
  """Returns the tree; its buffers are donated."""
  return tree


def _shared_buffers(tree):
  """Describes the arrays of a tree that share a buffer."""
  names, shared = {}, []
  for path, u in jax.tree_util.tree_flatten_with_path(tree)[0]:
    if not isinstance(u, jax.Array) or not u.size:
      continue
    if len(u.sharding.device_set) == 1 and u.is_fully_addressable:
      name = ('carry', 'parameters')[path[0].idx]
      name += jax.tree_util.keystr(path[1:])
      first = names.setdefault(u.unsafe_buffer_pointer(), name)
      if first != name:
        shared.append(f'{name} shares the buffer of {first}')
  return shared


def floating_leaves(tree):
  """The leaves that can be differentiated."""
  return [u for u in jax.tree.leaves(tree) if comparing.is_floating(u)]


def refilled(tree, floating):
  """`tree` with its floating leaves replaced."""
  floating = iter(floating)
  return jax.tree.map(
      lambda u: next(floating) if comparing.is_floating(u) else u, tree
  )
