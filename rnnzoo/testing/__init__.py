"""The contract of a layer (`rnnzoo.layers.base`), as a suite anyone can run.

    from rnnzoo import testing

    testing.check_layer(lambda rngs: MyLayer(6, rngs=rngs))

A check computes the same numbers in two ways, and compares values and
gradients. Parallel forms are compared with a scan of `step`. Packed and padded
rows are compared with separate runs of their sequences.
"""

from collections.abc import Callable, Iterable

from flax import nnx
import jax
from rnnzoo.layers import base
from rnnzoo.testing import checks as checks_lib
from rnnzoo.testing import comparing
from rnnzoo.testing.cases import Case as Case
from rnnzoo.testing.checks import CHECKS as CHECKS
from rnnzoo.testing.comparing import TOLERANCES as TOLERANCES
from rnnzoo.testing.comparing import assert_close as assert_close
from rnnzoo.testing.zoo import LAYERS as LAYERS
from rnnzoo.testing.zoo import VARIANTS as VARIANTS

scan_steps = base.scan_steps


def check_layer(
    make_layer: Callable[[nnx.Rngs], base.RecurrentLayer],
    *,
    dtypes: Iterable[str] | None = None,
    checks: Iterable[str] | None = None,
) -> None:
  """Checks that a layer keeps the contract of `rnnzoo.layers.base`.

  It takes seconds, mostly for compilation. All checks run, the most informative
  ones first. Then one table is printed: of the failures, or of all checks if
  none failed. A layer with the attribute `causal = False` skips `steps`,
  `chunks`, `causality` and `export`.

  >>> from flax import nnx
  >>> from rnnzoo import layers
  >>> check_layer(lambda rngs: layers.MinGRU(4, rngs=rngs), checks=['batch'])
  check  input    promise
  batch  float32  A row does not depend on the others.

  Args:
    make_layer: Makes the layer from an `nnx.Rngs`. A small layer is faster to
      check.
    dtypes: Names of input dtypes. If `None`, `float32`, `bfloat16` and, with
      `jax_enable_x64`, `float64`. Checks that do not compare numbers run for
      the first one only.
    checks: Names from `CHECKS`; all if `None`. `stretches` is the former name
      of `segments`.

  Raises:
    AssertionError: Naming the checks that failed.
    ValueError: If a name is unknown, or float64 is given without x64.
  """
  x64 = jax.config.values['jax_enable_x64']
  if dtypes is None:
    dtypes = ['float32', 'bfloat16'] + (['float64'] if x64 else [])
  dtypes, checks = list(dtypes), list(CHECKS if checks is None else checks)
  checks = [checks_lib.FORMER_NAMES.get(name, name) for name in checks]
  for name, known, given in (
      ('dtypes', TOLERANCES, dtypes), ('checks', CHECKS, checks)
  ):
    if not set(given) <= set(known):
      raise ValueError(f'`{name}` must be among {list(known)}, got {given}.')
  if 'float64' in dtypes and not x64:
    raise ValueError(
        '`dtypes` has float64, which needs `with jax.enable_x64(True):`.'
    )
  held, failures = {}, []
  for dtype in dtypes:
    try:
      case = Case(make_layer(nnx.Rngs(0)), dtype)
    except Exception as error:  # pylint: disable=broad-except
      failures.append(('call', dtype, _as_problem(error)))
      continue
    for name in (name for name in CHECKS if name in checks):
      if not case.causal and name in checks_lib.CAUSAL_ONLY:
        continue
      if dtype != dtypes[0] and name not in checks_lib.NUMERIC:
        continue
      try:
        problems = CHECKS[name](case)
      except Exception as error:  # pylint: disable=broad-except
        problems = [_as_problem(error)]
      failures += [(name, dtype, problem) for problem in problems]
      held.setdefault(name, []).append(dtype)
  if failures:
    print(_table(failures))
    names = ', '.join(dict.fromkeys(name for name, _, _ in failures))
    raise AssertionError(f'The layer fails {names}; see the table above.')
  promises = [('check', 'input', 'promise')]
  for name, inputs in held.items():
    promise = str(CHECKS[name].__doc__).splitlines()[0]
    promises.append((name, ', '.join(inputs), promise))
  print(_aligned(promises))


def _as_problem(error):
  lines = str(error).strip().splitlines() or ['']
  return comparing.wrong(f'{type(error).__name__}: {lines[0]}')


def _table(failures):
  rows = [('check', 'input', 'what', 'error', 'tolerance')]
  for name, dtype, problem in failures:
    what, error, tolerance = problem
    rows.append((name, dtype, what, f'{error:.2g}', f'{tolerance:.2g}'))
  return _aligned(rows)


def _aligned(rows):
  widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
  lines = ('  '.join(u.ljust(w) for u, w in zip(r, widths)) for r in rows)
  return '\n'.join(line.rstrip() for line in lines)
