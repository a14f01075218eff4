"""Learners by name: `lru` is real-time recurrent learning of a layer, `lstm_10`
back-propagation through the last ten steps."""

from collections.abc import Callable, Iterable
import re
from typing import Any

import jax
from rnnzoo import errors
from rnnzoo import layers as zoo
from rnnzoo.models import building
from rnnzoo.online.rtrl import RTRL
from rnnzoo.online.stack import Stack
from rnnzoo.online.truncated import Truncated


def layers() -> list[str]:
  """Returns the names of the layers that read vectors."""
  return [
      name for name, make in zoo.LAYERS.items()
      if not building.reads_images(make)
  ]


def split(name: str) -> tuple[str, int]:
  """Returns the layer in a name, and the number after it or 0.

  >>> split('lstm_10'), split('lru'), split('rwkv_7')
  (('lstm', 10), ('lru', 0), ('rwkv', 7))
  """
  found = re.fullmatch(r'(.+)_([1-9]\d*)', name)
  if found and name not in zoo.LAYERS:
    return found[1], int(found[2])
  return name, 0


def check(names: Iterable[str], others: dict[str, bool], examples: str) -> None:
  """Checks the names of learners.

  >>> check(['lru_10'], dict(none=False), 'lru and none')
  >>> check(['none_3'], dict(none=False), 'lru and none')
  ... # doctest: +ELLIPSIS
  Traceback (most recent call last):
  rnnzoo.errors.UserValueError: learners: there is no learner 'none_3'; ...

  Args:
    names: What the field `learners` of a config holds.
    others: The learners without a layer, and whether a number follows them.
    examples: Some learners, for the message.

  Raises:
    UserValueError: If there is no name, or no such learner.
  """
  names, known = list(names), [*others, *layers()]
  if not names:
    raise errors.UserValueError('learners must name at least one learner.')
  for name in names:
    layer, steps = split(name)
    if layer not in known or others.get(layer, bool(steps)) != bool(steps):
      raise errors.UserValueError(
          f'learners: there is no learner {name!r}; there are {examples}, for '
          'example, with other layers and numbers above 0.'
          + errors.suggest(layer, known)
      )


def make(
    name: str,
    model: Stack,
    loss_fn: Callable[[jax.Array, Any], jax.Array],
    input_shape: tuple[int, ...],
) -> Any:
  """Returns the learner of a model: an `RTRL`, or a `Truncated`.

  >>> from flax import nnx
  >>> make('lru_5', Stack(nnx.Linear(2, 1, rngs=nnx.Rngs(0))), None, (2,))
  ... # doctest: +ELLIPSIS
  <rnnzoo.online.truncated.Truncated object at 0x...>

  Args:
    name: The name of a layer, alone or with a number of steps.
    model: A stack with that layer.
    loss_fn: Maps the outputs `[B, D]` of a token and its target to a scalar.
    input_shape: The sizes of a token, such as `(D,)`.

  Raises:
    UserValueError: If the layer cannot learn so.
  """
  layer, steps = split(name)
  try:
    if steps:
      return Truncated(model, loss_fn, steps=steps, input_shape=input_shape)
    return RTRL(model, loss_fn)
  except ValueError as error:
    advice = '' if steps else (
        f' Truncated back-propagation takes more layers: {layer}_10.'
    )
    raise errors.UserValueError(
        f'learners: {name} cannot learn so: {error}{advice}'
    ) from error
