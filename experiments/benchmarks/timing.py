"""Timing that holds on a busy machine, and a table of what it found.

Ratios are what counts: everything to be compared is timed in turn, round after
round, so that a neighbour's load falls on all of it alike.
"""

from collections.abc import Callable, Mapping, Sequence
import datetime
import os
import statistics
import time
from typing import Any

import jax
import jaxlib
from rnnzoo.training import host


def interleaved_medians(
    calls: Mapping[str, Callable[[], Any]], repeats: int
) -> dict[str, float]:
  """Times each call in turn, `repeats` rounds; medians in seconds.

  Each timed call follows an untimed one of the same kind: what another one left
  in the caches, or in malloc's hands, is not its fault.
  """
  seconds = {name: [] for name in calls}
  for _ in range(repeats):
    for name, call in calls.items():
      jax.block_until_ready(call())
      start = time.perf_counter()
      jax.block_until_ready(call())
      seconds[name].append(time.perf_counter() - start)
  return {name: statistics.median(s) for name, s in seconds.items()}


def compiled(function: Callable, *args) -> tuple[Any, dict[str, float]]:
  """Compiles `function` for `args`; call `never_cache_compilation` first.

  Returns:
    The program, and what tracing and compiling it took: `compile_seconds` by
    the clock, and `compile_cpu_seconds`, which a busy machine does not stretch.
  """
  start, cpu_start = time.perf_counter(), time.process_time()
  program = jax.jit(function).lower(*args).compile()
  return program, dict(
      compile_seconds=time.perf_counter() - start,
      compile_cpu_seconds=time.process_time() - cpu_start,
  )


def never_cache_compilation() -> None:
  """Makes every compilation a real one; to be called before the first."""
  jax.config.update('jax_enable_compilation_cache', False)


def temporary_bytes(program) -> int:
  """What a compiled program allocates beside its arguments and results."""
  return program.memory_analysis().temp_size_in_bytes


def environment() -> dict[str, Any]:
  """What a measurement depends on, for the record."""
  return dict(
      device=host.device_description(),
      jax=jax.__version__,
      jaxlib=jaxlib.__version__,
      date=datetime.date.today().isoformat(),
      load_average=[round(n, 2) for n in os.getloadavg()],
  )


def print_table(
    rows: Sequence[Mapping[str, Any]], columns: Mapping[str, str]
) -> None:
  """Prints rows under headings; `columns` is heading -> format of a row.

  >>> rows = [dict(name='scan', ms=1.234), dict(name='loop', ms=12.0)]
  >>> print_table(rows, {'form': '{name}', 'ms': '{ms:.1f}'})
  form    ms
  scan   1.2
  loop  12.0
  """
  cells = [list(columns)]
  cells += [[form.format(**row) for form in columns.values()] for row in rows]
  widths = [max(map(len, column)) for column in zip(*cells)]
  for line in cells:
    first, *others = (c.ljust(w) for c, w in zip(line, widths))
    others = (c.strip().rjust(w) for c, w in zip(others, widths[1:]))
    print('  '.join((first, *others)).rstrip())
