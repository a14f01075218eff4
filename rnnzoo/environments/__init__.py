"""Environments in pure JAX: a policy and many of them are one program.

`make(name)` builds one; `base.Environment` has the contract.

>>> import jax
>>> environment = make('cart_pole', masked=True)
>>> keys = jax.random.split(jax.random.key(0), 8)
>>> state, observation = jax.vmap(environment.reset)(keys)
>>> observation.shape
(8, 2)
"""

import dataclasses
from typing import Any

from rnnzoo import errors
from rnnzoo import fields as fields_lib
from rnnzoo.environments.autoencode import Autoencode as Autoencode
from rnnzoo.environments.base import Box as Box
from rnnzoo.environments.base import Discrete as Discrete
from rnnzoo.environments.base import Environment as Environment
from rnnzoo.environments.base import MultiDiscrete as MultiDiscrete
from rnnzoo.environments.base import Space as Space
from rnnzoo.environments.cart_pole import CartPole as CartPole
from rnnzoo.environments.from_gymnax import Gymnax as Gymnax
from rnnzoo.environments.pendulum import Pendulum as Pendulum
from rnnzoo.environments.repeat_previous import RepeatPrevious as RepeatPrevious
from rnnzoo.environments.t_maze import TMaze as TMaze

ENVIRONMENTS: dict[str, type[Environment]] = dict(
    autoencode=Autoencode,
    cart_pole=CartPole,
    gymnax=Gymnax,
    pendulum=Pendulum,
    repeat_previous=RepeatPrevious,
    t_maze=TMaze,
)


def find(name: str) -> type[Environment]:
  """Returns the class of an environment.

  Raises:
    UserValueError: If there is none of that name.
  """
  if name not in ENVIRONMENTS:
    raise errors.UserValueError(
        f'There is no environment {name!r}.'
        f'{errors.suggest(name, ENVIRONMENTS)} The environments are '
        f'{", ".join(sorted(ENVIRONMENTS))}.'
    )
  return ENVIRONMENTS[name]


def fields_of(name: str) -> dict[str, fields_lib.Field]:
  """Returns what the options of an environment may be, by name.

  >>> list(fields_of('cart_pole'))
  ['masked', 'time_limit']
  """
  kind = find(name)
  texts = fields_lib.explanations(kind.__doc__, 'Attributes')
  found = {}
  for option in dataclasses.fields(kind):
    field = fields_lib.of_annotation(option.type)
    assert field, option  # The options are plain values.
    # All numbers are counts of steps.
    low = 1 if field.kind is int else None
    found[option.name] = dataclasses.replace(
        field, low=low, default=option.default, help=texts[option.name]
    )
  return found


def make(name: str, **options: Any) -> Environment:
  """Builds an environment.

  Args:
    name: A key of `ENVIRONMENTS`.
    **options: Its fields; the others have their defaults.

  Raises:
    UserValueError: If there is no such environment or option, or a value is
      wrong.
  """
  fields_lib.check_all(options, fields_of(name), 'environment.')
  return ENVIRONMENTS[name](**options)
