"""Groups of parameters with a learning rate and a weight decay of their own.

`optimizer.groups` is a dictionary of groups by name. A group has

* `parameters`, patterns such as `nu_log`, `B_*` or `norm`, as of file names. A
  pattern matches a parameter if it matches a part of its path, which is the
  name of the parameter or of a module that it is in. A pattern with a dot, such
  as `*.layer.*kernel`, must match the whole path.
* `rate_factor`, which multiplies the learning rate; 1 if it is left out.
* `decay`, whether `optimizer.weight_decay` holds; `True` if it is left out.

No parameter may be in two groups. All parameters that are in no other group are
in the group `rest`, which has no `parameters`. Where there is no `rest`, they
have the rule of `optimizers.py`. Other names mean nothing.
"""

from collections.abc import Mapping
import fnmatch
from typing import Any

import jax
from rnnzoo import errors
from rnnzoo import fields

REST = 'rest'
FIELDS = dict(
    parameters=fields.Field(tuple),
    rate_factor=fields.Field(float, low=0),
    decay=fields.Field(bool),
)


def check(groups: Mapping[str, Mapping[str, Any]]) -> None:
  """Raises `UserValueError` if `optimizer.groups` is not as described above.

  >>> check(dict(slow=dict(parameters=('B_*',), rate_factor=0.5)))
  >>> check(dict(slow=dict(rate_factor=0.5)))
  Traceback (most recent call last):
  rnnzoo.errors.UserValueError: optimizer.groups.slow has no `parameters`, the \
patterns of their names, such as ('B_*',).
  """
  for name, group in groups.items():
    fields.check(f'optimizer.groups.{name}', group, fields.Field(dict))
    fields.check_all(group, FIELDS, f'optimizer.groups.{name}.')
    if name == REST and 'parameters' in group:
      raise errors.UserValueError(
          f'optimizer.groups.{name} must have no `parameters`: it is the group '
          'of all others. Give it another name.'
      )
    if name != REST and not group.get('parameters'):
      raise errors.UserValueError(
          f'optimizer.groups.{name} has no `parameters`, the patterns of their '
          "names, such as ('B_*',)."
      )


def override(
    groups: Mapping[str, Mapping[str, Any]], decayed: Any, factors: Any
) -> tuple[Any, Any]:
  """Returns the rules of all parameters.

  >>> override(
  ...     dict(slow=dict(parameters=('B',), rate_factor=0.5, decay=False)),
  ...     dict(layer=dict(A=True, B=True)), dict(layer=dict(A=1.0, B=1.0)),
  ... )
  ({'layer': {'A': True, 'B': False}}, {'layer': {'A': 1.0, 'B': 0.5}})

  Args:
    groups: `optimizer.groups`, checked.
    decayed: A bool for each parameter: whether it has weight decay without the
      groups. Nested dictionaries.
    factors: Likewise, what multiplies its learning rate.

  Returns:
    `(decayed, factors)` with the groups.

  Raises:
    UserValueError: If a pattern matches nothing, or a parameter is in two
      groups.
  """
  leaves, tree = jax.tree_util.tree_flatten_with_path(decayed)
  paths = [tuple(str(key.key) for key in path) for path, _ in leaves]
  values = [value for _, value in leaves]
  rules = list(zip(values, jax.tree.leaves(factors), strict=True))
  owners = {}
  for name, group in groups.items():
    for pattern in group.get('parameters', ()):
      for i in _matching(name, pattern, paths):
        if owners.setdefault(i, name) != name:
          raise errors.UserValueError(
              f'optimizer.groups: {".".join(paths[i])} is in {owners[i]} and '
              f'in {name}; it must be in one group.'
          )
  for i in range(len(rules)):
    group = groups.get(owners.get(i, REST))
    if group is not None:
      rules[i] = (
          group.get('decay', True), float(group.get('rate_factor', 1))
      )
  return (
      tree.unflatten([decay for decay, _ in rules]),
      tree.unflatten([factor for _, factor in rules]),
  )


def _matching(name, pattern, paths) -> list[int]:
  """Returns the indices of the paths that match a pattern of a group."""
  whole = '.' in pattern
  names = lambda path: ['.'.join(path)] if whole else path
  found = [
      i for i, path in enumerate(paths) if fnmatch.filter(names(path), pattern)
  ]
  if not found:
    known = sorted({one for path in paths for one in names(path)})
    raise errors.UserValueError(
        f'optimizer.groups.{name}: no parameter matches {pattern!r}.'
        f'{errors.suggest(pattern, known)} The names are {", ".join(known)}.'
    )
  return found
