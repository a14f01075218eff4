"""A stack of blocks, whose parameters and carries are stacked over depth.

The layers of a pattern such as `rg_lru,rg_lru,attention` repeat. All blocks at
one position of the pattern are one module whose parameters have a leading axis
`layers`, and so do their carries (batch second). Whether depth is then a loop
in the compiled program or unrolled changes neither.
"""

import functools
import inspect

from flax import nnx
import jax
import jax.numpy as jnp
from rnnzoo import errors
from rnnzoo import layers as zoo
from rnnzoo.models import blocks
from rnnzoo.models.config import ModelConfig

_REMAT_POLICIES = dict(
    full=None,
    dots=jax.checkpoint_policies.checkpoint_dots,
)


class Backbone(nnx.Module):
  """`config.num_layers` residual blocks, from `[B, T, D]` to `[B, T, D]`."""

  def __init__(self, config: ModelConfig, layers=None, *, rngs: nnx.Rngs):
    """Creates the blocks.

    Args:
      config: What to build.
      layers: Layers by name, beside those of the zoo.
      rngs: Source of the initial parameters.

    Raises:
      UserValueError: If a layer or one of its options does not exist.
    """
    known = dict(zoo.LAYERS, **(layers or {}))
    period = min(config.layer.count(',') + 1, config.num_layers)
    self.config = config
    self.stacks = nnx.List([
        _stack([
            blocks.Block(config, make_layer(config, d, known, rngs), rngs=rngs)
            for d in range(position, config.num_layers, period)
        ])
        for position in range(period)
    ])

  def initialize_carry(self, batch_size: int, dtype=None) -> tuple:
    """Returns a stacked carry `[layers, B, ...]` per pattern position."""

    def one(stack):
      graphdef, state = nnx.split(stack)
      make = lambda s: nnx.merge(graphdef, s).initialize_carry(
          batch_size, dtype
      )
      return jax.vmap(make)(state)

    return tuple(one(stack) for stack in self.stacks)

  def __call__(
      self, x, carry, *, reset=None, mask=None, train=False, key=None
  ):
    """Maps `[B, T, D]` to the next carry and `[B, T, D]`."""

    def run(block, carry, x, depth):
      layer_key = None if key is None else jax.random.fold_in(key, depth)
      return block(
          x, carry, reset=reset, mask=mask, train=train, key=layer_key
      )

    return self._run(run, carry, x, train)

  def step(self, carry, x, *, reset=None, mask=None):
    """Maps `[B, D]` to the next carry and `[B, D]`."""
    run = lambda block, carry, x, _: block.step(
        carry, x, reset=reset, mask=mask
    )
    return self._run(run, carry, x)

  def _run(self, run, carry, x, train=False):
    """Runs the blocks in order of depth, in a loop or unrolled."""
    split = [nnx.split(s, nnx.BatchStat, ...) for s in self.stacks]
    graphdefs = [s[0] for s in split]
    stats, states = [s[1] for s in split], [s[2] for s in split]
    period, depth = len(split), self.config.num_layers

    def one_block(position, x, index, stats, state, carry):
      block = nnx.merge(graphdefs[position], stats, state)
      carry, x = run(block, carry, x, index)
      return x, carry, nnx.state(block, nnx.BatchStat)

    if self.config.remat != 'none':
      one_block = jax.checkpoint(
          one_block,
          static_argnums=0,
          policy=_REMAT_POLICIES[self.config.remat],
      )

    def one_period(x, inputs):
      start, parts = inputs
      outputs = []
      for position, part in enumerate(parts):
        x, *out = one_block(position, x, start + position, *part)
        outputs.append(tuple(out))
      return x, tuple(outputs)

    parts = tuple(zip(stats, states, carry))
    at = lambda i, tree: jax.tree.map(lambda u: u[i], tree)
    rounds, rest = divmod(depth, period)
    if self.config.scan_layers and rounds > 1:
      whole = jax.tree.map(lambda u: u[:rounds], parts)
      x, outputs = jax.lax.scan(
          one_period, x, (jnp.arange(rounds) * period, whole)
      )
      done = [[o] for o in outputs]
    else:
      done = [[] for _ in range(period)]
      for i in range(rounds):
        x, outputs = one_period(x, (i * period, at(i, parts)))
        for position, out in enumerate(outputs):
          done[position].append(jax.tree.map(lambda u: u[None], out))
    if rest:
      x, outputs = one_period(x, (rounds * period, at(rounds, parts[:rest])))
      for position, out in enumerate(outputs):
        done[position].append(jax.tree.map(lambda u: u[None], out))

    new_carry = []
    for stack, outs in zip(self.stacks, done):
      carry, new_stats = jax.tree.map(lambda *u: jnp.concatenate(u), *outs)
      if train:  # Otherwise a jitted closure over the model may be read only.
        nnx.update(stack, new_stats)
      new_carry.append(carry)
    return tuple(new_carry), x


def make_layer(config: ModelConfig, depth: int, known, rngs: nnx.Rngs):
  """Builds the layer of the block at `depth` with its options out of `config`.

  Raises:
    UserValueError: If the layer or an option does not exist.
  """
  name = config.layer_names[depth]
  if name not in known:
    raise errors.UserValueError(
        f'There is no layer {name!r}.{errors.suggest(name, known)} The layers '
        f'are: {", ".join(sorted(known))}.'
    )
  make, options = known[name], dict(config.layer_options)
  options = {k: v for k, v in options.items() if k not in known} | dict(
      options.get(name, {})
  )
  # Flax hides the signature of a module class behind its metaclass.
  signature = inspect.signature(
      make.__init__ if inspect.isclass(make) else make
  )
  if 'input_shape' in signature.parameters:
    raise errors.UserValueError(
        f'Layer {name} reads images [H, W, C]; the blocks of a model are made '
        'of vectors. Use it by itself.'
    )
  allowed = set(signature.parameters) - {
      'self', 'in_features', 'rngs', 'dtype', 'param_dtype',
  }
  for option in options:
    if option not in allowed:
      raise errors.UserValueError(
          f'Layer {name} has no option {option!r} (config field '
          f'model.layer_options).{errors.suggest(option, allowed)} Its options '
          f'are: {", ".join(sorted(allowed))}.'
      )
  # What some start from depends on which of their kind they are.
  index = config.layer_names[:depth].count(name)
  count = config.layer_names.count(name)
  place = dict(
      layer_index=index, num_layers=count,
      relative_depth=index / max(count - 1, 1),
  )
  options = {k: v for k, v in place.items() if k in allowed} | options
  build = functools.partial(
      make,
      config.features,
      param_dtype=jnp.dtype(config.param_dtype),
      dtype=jnp.dtype(config.dtype),
      rngs=rngs,
      **options,
  )
  if config.bidirectional:
    return zoo.Bidirectional(build(), build())
  return build()


def _stack(modules):
  """Makes one module of equal ones; its variables get an axis `layers`."""
  graphdef = nnx.graphdef(modules[0])
  state = jax.tree.map(
      lambda *leaves: jnp.stack(leaves), *(nnx.state(m) for m in modules)
  )
  stacked = nnx.merge(graphdef, state)
  for _, variable in nnx.iter_graph(stacked):
    if isinstance(variable, nnx.Variable) and variable.has_metadata('axes'):
      variable.set_metadata(axes=('layers', *variable.get_metadata('axes')))
  return stacked
