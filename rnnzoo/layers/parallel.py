"""Several layers that read the same input, whose outputs are added."""

from collections.abc import Sequence
from typing import NamedTuple

from flax import nnx
from rnnzoo.layers import base


class ParallelCarry(NamedTuple):
  """State of `Parallel`.

  Attributes:
    branches: The carries of all layers, in their order.
  """

  branches: tuple[base.Carry, ...]


class Parallel(base.RecurrentLayer):
  r"""Runs layers side by side and adds their outputs.

  .. math::
      y_t = \sum_i b_i \, f_i(a_i x_t)

  with a layer :math:`f_i` and two constants, :math:`a_i` and :math:`b_i`, for
  each branch. Falcon-H1 has Mamba-2 and attention in parallel in every block
  (https://arxiv.org/abs/2507.22448), as `mamba2+attention` in the config of a
  model.

  Example::

    >>> from flax import nnx
    >>> import jax.numpy as jnp
    >>> from rnnzoo.layers import lru, min_gru
    >>> rngs = nnx.Rngs(0)
    >>> layer = Parallel(
    ...     [min_gru.MinGRU(16, rngs=rngs), lru.LRU(16, rngs=rngs)],
    ...     output_scales=(1.0, 0.5),
    ... )
    >>> carry, y = layer(jnp.ones((2, 10, 16)))       # [B, T, D]
    >>> carry, y_next = layer.step(carry, jnp.ones((2, 16)))
    >>> [u.shape for u in carry.branches], y.shape
    ([(2, 16), (2, 16)], (2, 10, 16))

  Attributes:
    branches: The layers.
    input_scales: :math:`a`, one number for each layer.
    output_scales: :math:`b`, likewise.
    in_features: Size of an input of each layer.
    out_features: Size of an output of each layer.
  """

  def __init__(
      self,
      branches: Sequence[base.RecurrentLayer],
      *,
      input_scales: tuple[float, ...] = (),
      output_scales: tuple[float, ...] = (),
  ):
    """Wraps layers.

    Args:
      branches: The layers, at least one.
      input_scales: What the input of each layer is multiplied by. Empty means
        1 for all.
      output_scales: What the output of each layer is multiplied by, likewise.

    Raises:
      ValueError: If the layers do not fit together, or the numbers of layers
        and of scales differ.
    """
    if not branches:
      raise ValueError('`branches` must be at least one layer, got none.')
    first = branches[0]
    for name in ('in_features', 'out_features', 'dtype'):
      of = [getattr(layer, name) for layer in branches]
      if len(set(of)) > 1:
        raise ValueError(
            f'`branches` must have the same {name}, got '
            f'{", ".join(map(str, of))}.'
        )
    for name, scales in dict(
        input_scales=input_scales, output_scales=output_scales
    ).items():
      if len(scales) not in (0, len(branches)):
        raise ValueError(
            f'`{name}` must have one number for each of the {len(branches)} '
            f'layers, or be empty, got {tuple(scales)}.'
        )
    self.branches = nnx.List(branches)
    ones = (1.0,) * len(branches)
    self.input_scales = tuple(input_scales) or ones
    self.output_scales = tuple(output_scales) or ones
    self.causal = all(layer.causal for layer in branches)
    self.gathers_time = any(layer.gathers_time for layer in branches)
    self.in_features = first.in_features
    self.out_features = first.out_features
    self.dtype = first.dtype

  @property
  def input_shape(self) -> tuple[int, ...]:
    """Sizes of an input token of all layers."""
    return base.input_shape(self.branches[0])

  @property
  def context(self) -> int | None:
    """How many tokens a sequence may have; `None` for any number."""
    found = [getattr(layer, 'context', None) for layer in self.branches]
    return min((one for one in found if one is not None), default=None)

  def initialize_carry(self, batch_size: int, dtype=None) -> ParallelCarry:
    """Returns the carries of all layers before the first token."""
    return ParallelCarry(tuple(
        layer.initialize_carry(batch_size, dtype) for layer in self.branches
    ))

  def __call__(self, x, carry=None, *, reset=None, mask=None):
    x, carry, _, reset = base.prepare(self, x, carry, reset, mask)
    return self._sum(
        lambda layer, carry, x: layer(x, carry, reset=reset, mask=mask),
        carry, x,
    )

  def step(self, carry, x, *, reset=None, mask=None):
    x, carry, _, reset = base.prepare(self, x, carry, reset, mask, step=True)
    return self._sum(
        lambda layer, carry, x: layer.step(carry, x, reset=reset, mask=mask),
        carry, x,
    )

  def check_room(self, carry, shape, *, reset=None, mask=None):
    """Checks that each layer has room for more tokens, see `Attention`."""
    if isinstance(carry, ParallelCarry):
      for layer, one in zip(self.branches, carry.branches):
        check = getattr(layer, 'check_room', None)
        if check is not None:
          check(one, shape, reset=reset, mask=mask)

  def _sum(self, run, carry, x):
    """Returns the carries after `run`, and the sum of the outputs."""
    carries, total = [], None
    scales = zip(self.input_scales, self.output_scales)
    for layer, one, (a, b) in zip(self.branches, carry.branches, scales):
      one, y = run(layer, one, x if a == 1 else a * x)
      y = y if b == 1 else b * y
      carries.append(one)
      total = y if total is None else total + y
    return ParallelCarry(tuple(carries)), total
