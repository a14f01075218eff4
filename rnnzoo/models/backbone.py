"""The blocks of a model, stacked over depth.

`config.layer` is a pattern that repeats over depth. With `rg_lru,attention` and
five blocks, blocks 0, 2 and 4 have position 0 in the pattern, and blocks 1 and
3 have position 1. One run of the pattern is a round. The last round may be
incomplete. With `gru;rg_lru,attention`, block 0 comes before all rounds.

All blocks at one position are one module, a stack: each parameter has a leading
axis `layers`, and so has each array of the carry, so that there the batch is
the second axis. A block before the rounds is a stack alone. A compiled program
runs the rounds in a loop or unrolled; the layout is the same.
"""

from collections.abc import Sequence
from typing import Any

from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np
from rnnzoo import errors
from rnnzoo import layers as zoo
from rnnzoo import ops
from rnnzoo.layers import checking
from rnnzoo.models import building
from rnnzoo.models import shared as shared_lib
from rnnzoo.models.blocks import Block
from rnnzoo.models.blocks import BlockCarry
from rnnzoo.models.building import Layers
from rnnzoo.models.config import ModelConfig

BackboneCarry = tuple[BlockCarry, ...]  # One for each stack.

_REMAT_POLICIES = dict(
    full=None,
    dots=jax.checkpoint_policies.checkpoint_dots,
)


class Backbone(nnx.Module):
  """`config.num_layers` residual blocks, from `[B, T, D]` to `[B, T, D]`.

  >>> from flax import nnx
  >>> import jax.numpy as jnp
  >>> config = ModelConfig(layer='lru,gru', num_layers=3, features=8)
  >>> backbone = Backbone(config, rngs=nnx.Rngs(0))
  >>> x = jnp.ones((2, 5, 8))                        # [B, T, D]
  >>> carry, y = backbone(x)                         # [B, T, D]
  >>> [stack.layer.shape for stack in carry]         # [layers, B, H]
  [(2, 2, 8), (1, 2, 8)]
  >>> carry, y = backbone.step(carry, x[:, 0])       # [B, D]

  Attributes:
    config: The `ModelConfig`.
    stacks: One module for each of `config.stacks`.
    shared: The shared blocks, each a `SharedBlock` that several blocks use.
    takes_dt: Whether all layers take `dt`, the lengths of steps.
  """

  def __init__(
      self, config: ModelConfig, layers: Layers | None = None, *,
      image_shape: tuple[int, ...] = (), rngs: nnx.Rngs,
  ):
    """Creates the blocks.

    Args:
      config: What to build.
      layers: More layers by name, in addition to those of the zoo.
      image_shape: `(H, W)` if the features are images `[B, T, H, W, D]`, which
        all layers then read; empty if they are vectors.
      rngs: The source of the initial parameters.

    Raises:
      UserValueError: If a layer or one of its options does not exist, an
        option or a dtype cannot be used, or the numbers of the shared blocks
        have a gap.
    """
    config.check_dtypes()
    known = {**zoo.LAYERS, **(layers or {})}
    self.config, self.image_shape = config, tuple(image_shape)
    uses = [config.at_depth(of[0]).shared_block for of in config.stacks]
    if unused := set(range(1, max(uses))) - set(uses):
      raise errors.UserValueError(
          f'model.shared_block must be numbers from 1 without a gap: no block '
          f'uses shared block {min(unused)}, and one uses {max(uses)}.'
      )
    self.shared = nnx.List([
        shared_lib.make(config, rngs) for _ in range(max(uses))
    ])
    self.stacks = nnx.List([
        _make_stack(
            config, depths, known, rngs, self.image_shape, self._shared_of(use)
        )
        for depths, use in zip(config.stacks, uses)
    ])

  @property
  def context(self) -> int | None:
    """How many tokens a sequence may have; `None` for any number.

    It is the smallest `window` of attention with `on_full='error'`.
    """
    parts = [stack.layer for stack in self.stacks]
    parts += [block.attention for block in self.shared]
    found = [getattr(part, 'context', None) for part in parts]
    return min((one for one in found if one is not None), default=None)

  @property
  def takes_dt(self) -> bool:
    layers = [stack.layer for stack in self.stacks if stack.layer is not None]
    return all(building.takes_dt(layer) for layer in layers)

  def initialize_carry(
      self, batch_size: int, dtype: Any = None
  ) -> BackboneCarry:
    """Returns the carry before the first token.

    Args:
      batch_size: `B`.
      dtype: The compute dtype; `config.dtype` if `None`.

    Returns:
      A `BlockCarry` of arrays `[layers, B, ...]` for each stack.
    """

    def of_stack(stack):
      graphdef, state = nnx.split(stack)
      shared = self._shared_of(stack.config.shared_block)
      return jax.vmap(
          lambda one: nnx.merge(graphdef, one).initialize_carry(
              batch_size, dtype, shared
          )
      )(state)

    return tuple(of_stack(stack) for stack in self.stacks)

  def __call__(
      self,
      x: Any,
      carry: BackboneCarry | None = None,
      *,
      reset: Any = None,
      mask: Any = None,
      dt: Any = None,
      train: bool = False,
      key: jax.Array | None = None,
  ) -> tuple[BackboneCarry, jax.Array]:
    """Runs whole sequences.

    Args:
      x: Features `[B, T, D]`.
      carry: The state after earlier tokens; `initialize_carry` if `None`.
      reset: Booleans `[B, T]`, `True` on the first token of each sequence.
      mask: Booleans `[B, T]`, `False` on tokens to skip.
      dt: The length of each step `[B, T]`, floating, if all layers take it, see
        `layers.TimedRecurrence`; `None` means 1.
      train: Whether batch norms use and update the statistics of the batch.
      key: The PRNG key of dropout; `None` means no dropout.

    Returns:
      The next carry, and features `[B, T, D]` of `config.dtype`.

    Raises:
      ValueError: If a shape or a dtype is wrong.
    """
    x, carry, flags = self._checked(x, carry, reset, mask, dt, 'BTD')

    def run_block(block, carry, x, v_first, depth):
      block_key = None if key is None else jax.random.fold_in(key, depth)
      return block(
          x, carry, v_first, **flags, train=train, key=block_key,
          shared=shared_input(block),
      )

    shared_input = self._shared_inputs(x)
    return self._run(run_block, carry, x, train)

  def step(
      self,
      carry: BackboneCarry | None,
      x: Any,
      *,
      reset: Any = None,
      mask: Any = None,
      dt: Any = None,
  ) -> tuple[BackboneCarry, jax.Array]:
    """Runs one token: `x` `[B, D]`; `reset`, `mask` and `dt` `[B]`.

    Returns:
      The next carry, and features `[B, D]`.

    Raises:
      ValueError: If a shape or a dtype is wrong, or a layer is not causal.
    """
    x, carry, flags = self._checked(x, carry, reset, mask, dt, 'BD')

    def run_block(block, carry, x, v_first, depth):
      del depth
      return block.step(carry, x, v_first, **flags, shared=shared_input(block))

    shared_input = self._shared_inputs(x)
    return self._run(run_block, carry, x)

  def _shared_of(self, number):
    """Returns the shared block of a number of `ModelConfig.shared_block`."""
    return self.shared[number - 1] if number else None

  def _shared_inputs(self, x):
    """Returns what gives a block its `SharedInput`, if the first reads `x`."""

    def of_block(block):
      shared = self._shared_of(block.config.shared_block)
      return None if shared is None else shared_lib.SharedInput(shared, x)

    return of_block

  def _run(self, run_block, carry, x, train=False):
    """Runs all blocks in order of depth.

    Args:
      run_block: Maps a block, its carry, `x`, `v_first` and the depth to the
        next carry, `x` and `v_first`.
      carry: The carries of all stacks.
      x: What the first block reads.
      train: Whether to keep the new statistics of batch norms.

    Returns:
      The carries of all stacks, and what the last block gives.
    """
    config = self.config
    graphdefs, stats, states = zip(*(
        nnx.split(stack, nnx.BatchStat, ...) for stack in self.stacks
    ))

    def run_one(stack, x, v_first, depth, stats, state, carry):
      block = nnx.merge(graphdefs[stack], stats, state)
      carry, x, v_first = run_block(
          block, carry, ops.spread_rows(x), v_first, depth
      )
      return x, v_first, (carry, nnx.state(block, nnx.BatchStat))

    if config.remat != 'none':
      run_one = jax.checkpoint(
          run_one, static_argnums=0, policy=_REMAT_POLICIES[config.remat]
      )

    def run_several(x, v_first, stacks, depth, blocks):
      results = []
      for i, (stack, block) in enumerate(zip(stacks, blocks)):
        x, v_first, result = run_one(stack, x, v_first, depth + i, *block)
        results.append(result)
      return x, v_first, results

    every = range(len(self.stacks))
    blocks = list(zip(stats, states, carry))
    # By stack: of one block, or of those of a loop, `[blocks, ...]`.
    results = [[] for _ in every]

    def run_single(x, v_first, stacks, i):
      here = jax.tree.map(lambda u: u[i], [blocks[n] for n in stacks])
      depth = config.stacks[stacks[0]][i]
      x, v_first, found = run_several(x, v_first, stacks, depth, here)
      for n, result in zip(stacks, found):
        results[n].append(jax.tree.map(lambda u: u[None], result))
      return x, v_first

    once, repeated = every[: config.num_first], every[config.num_first :]
    v_first = None
    if once:
      x, v_first = run_single(x, v_first, once, 0)
    counts = [len(config.stacks[n]) for n in repeated]
    rounds = min(counts, default=0)  # Of which none is incomplete.
    looped = range(0)
    if config.scan_layers:
      # `v_first` is `None` before the first layer that gives it, and a loop
      # needs one type.
      has_first = any(hasattr(s.layer, 'first_value') for s in self.stacks)
      looped = range(int(has_first and v_first is None), rounds)
    for i in range(looped.start):
      x, v_first = run_single(x, v_first, repeated, i)
    if looped:

      def body(x, inputs):
        x, _, found = run_several(x, v_first, repeated, *inputs)
        return x, found

      here = jax.tree.map(
          lambda u: u[looped.start : looped.stop], [blocks[n] for n in repeated]
      )
      depths = jnp.asarray(config.stacks[repeated[0]])
      x, found = jax.lax.scan(
          body, x, (depths[looped.start : looped.stop], here)
      )
      for n, result in zip(repeated, found):
        results[n].append(result)
    for i in range(looped.stop, max(counts, default=0)):
      here = [n for n, count in zip(repeated, counts) if i < count]
      x, v_first = run_single(x, v_first, here, i)

    next_carry = []
    for stack, own in zip(self.stacks, results):
      one, new_stats = jax.tree.map(lambda *u: jnp.concatenate(u), *own)
      next_carry.append(one)
      if train:  # Otherwise the model may be a constant of a jitted function.
        nnx.update(stack, new_stats)
    return tuple(next_carry), x

  def _checked(self, x, carry, reset, mask, dt, axes):
    """Returns `x`, the carry and `reset`, `mask` and `dt` by name, as arrays.

    Each block checks its carry and `dt` by itself; here only the depth is
    checked, and that all layers take `dt`.
    """
    x = checking.as_array('x', x, required=True)
    reset = checking.as_array('reset', reset)
    mask = checking.as_array('mask', mask)
    flags = dict(reset=reset, mask=mask, dt=checking.as_array('dt', dt))
    if dt is not None and not self.takes_dt:
      raise ValueError(
          f'`dt` must be None for layer {self.config.layer}, which does not '
          f'take it{" in both directions" * self.config.bidirectional}. Layers '
          f'that do: {", ".join(building.timed_layers())}.'
      )
    end = len(axes) - 1
    shape = (*self.image_shape, self.config.features)
    if x.ndim != end + len(shape) or x.shape[end:] != shape:
      names = ', '.join([*axes[:end], *map(str, self.image_shape), 'D'])
      raise ValueError(
          f'`x` must be [{names}] with D = {self.config.features}, got '
          f'{x.shape}.'
      )
    checking.check_flags(x.shape[:end], reset=reset, mask=mask)
    if carry is None:
      carry = self.initialize_carry(x.shape[0])
      self._check_room(carry, x.shape[:end], reset, mask)
      return x, carry, flags
    counts = [len(depths) for depths in self.config.stacks]
    fits = isinstance(carry, tuple) and len(carry) == len(counts) and all(
        isinstance(one, BlockCarry)
        and all(np.shape(u)[:1] == (count,) for u in jax.tree.leaves(one))
        for one, count in zip(carry, counts)
    )
    if not fits:
      raise ValueError(
          '`carry` must come from a model with the same number of layers: a '
          f'tuple of {len(counts)} BlockCarry with leading axes {counts}, got '
          f'{checking.sketch(carry)}; '
          'initialize_carry(batch_size) of the same model makes one.'
      )
    self._check_room(carry, x.shape[:end], reset, mask)
    return x, carry, flags

  def _check_room(self, carry, shape, reset, mask):
    """Raises if a layer has no room in its carry for all tokens."""
    for stack, one in zip(self.stacks, carry):
      shared = self._shared_of(stack.config.shared_block)
      parts = [(stack.layer, one.layer)]
      if shared is not None:
        parts.append((shared.attention, one.shared))
      for layer, own in parts:
        check = getattr(layer, 'check_room', None)
        if check is not None:
          check(own, shape, reset=reset, mask=mask)


def _make_stack(
    config: ModelConfig, depths: Sequence[int], known: Layers, rngs: nnx.Rngs,
    image_shape: tuple[int, ...], shared: shared_lib.SharedBlock | None,
) -> Block:
  """Makes the blocks at `depths` one module with a leading axis `layers`."""

  def block(depth, rngs):
    layer = building.make_layer(config, depth, known, rngs, image_shape)
    return Block(config.at_depth(depth), layer, shared=shared, rngs=rngs)

  options = [
      building.layer_options(config, depth, known, images=bool(image_shape))
      for depth in depths
  ]
  if not config.scan_layers or options.count(options[0]) < len(options):
    graphdefs, states = zip(*(nnx.split(block(i, rngs)) for i in depths))
    states = jax.tree.map(lambda *u: jnp.stack(u), *states)
    return _merge_stack(graphdefs[0], states)

  # The blocks differ in their random numbers only. A loop draws the same
  # numbers in the same order, and its program does not grow with the depth.
  streams, drawn = nnx.split(rngs)
  graphdef = None

  def one(drawn, _):
    nonlocal graphdef
    rngs = nnx.merge(streams, drawn)
    graphdef, state = nnx.split(block(depths[0], rngs))
    return nnx.state(rngs), state

  drawn, states = jax.lax.scan(one, drawn, length=len(depths))
  nnx.update(rngs, drawn)
  return _merge_stack(graphdef, states)


def _merge_stack(graphdef, states) -> Block:
  """Makes a stack of a block's structure and of stacked variables."""
  stack = nnx.merge(graphdef, states)
  for _, variable in nnx.iter_graph(stack):
    if isinstance(variable, nnx.Variable) and variable.has_metadata('axes'):
      variable.set_metadata(axes=('layers', *variable.get_metadata('axes')))
  return stack
