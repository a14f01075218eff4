"""Times functions on a busy machine, and writes and prints the results.

Functions that are compared run in turn, round after round, so that other
programs slow all of them down alike. Their ratios are then reliable.
"""

from collections.abc import Callable, Mapping, Sequence
import datetime
import functools
import json
import os
import pathlib
import time
from typing import Any, NamedTuple

import jax
import jaxlib
import numpy as np
from rnnzoo import errors
from rnnzoo.training import files
from rnnzoo.training import records
from rnnzoo.training.processes import host


class Duration(NamedTuple):
  """The seconds of a call.

  Attributes:
    seconds: The time by the clock.
    cpu_seconds: The CPU time of all threads; on two busy cores twice as much.
  """

  seconds: float
  cpu_seconds: float


def interleaved_medians(
    calls: Mapping[str, Callable[[], Any]], repeats: int
) -> dict[str, Duration]:
  """Times each call in turn, `repeats` rounds, and takes medians.

  Before each timed call the same function runs once untimed, so that no call
  suffers from what another one left in the caches or in malloc.
  """
  durations = {name: [] for name in calls}
  for _ in range(repeats):
    for name, call in calls.items():
      jax.block_until_ready(call())
      start = Duration(time.perf_counter(), time.process_time())
      jax.block_until_ready(call())
      end = Duration(time.perf_counter(), time.process_time())
      durations[name].append(np.subtract(end, start))
  return {
      name: Duration(*np.median(rounds, axis=0).tolist())
      for name, rounds in durations.items()
  }


def compiled(function: Callable, *args) -> tuple[Any, dict[str, float]]:
  """Compiles `function` for `args`; call `never_cache_compilation` first.

  Returns:
    The program, and what tracing and compiling it took: `compile_seconds` by
    the clock, and `compile_cpu_seconds`, which other programs do not change.
  """
  start, cpu_start = time.perf_counter(), time.process_time()
  program = jax.jit(function).lower(*args).compile()
  return program, dict(
      compile_seconds=time.perf_counter() - start,
      compile_cpu_seconds=time.process_time() - cpu_start,
  )


def never_cache_compilation() -> None:
  """Switches the compilation cache off; to be called before any compilation."""
  jax.config.update('jax_enable_compilation_cache', False)


def temporary_bytes(program) -> int:
  """Returns the bytes that a program needs beside its arguments and results."""
  return program.memory_analysis().temp_size_in_bytes


def compare(
    forms: Mapping[str, Callable],
    operands: Sequence[jax.Array],
    *,
    moves: int,
    base: str,
    ceiling: str,
    repeats: int,
) -> list[dict[str, Any]]:
  """Compiles and times several forms of the same function.

  Args:
    forms: The functions by name.
    operands: The arguments of each function.
    moves: The number of arrays, as large as the last operand, that every form
      must at least move.
    base: The form that speed-ups refer to.
    ceiling: The form that is limited only by the memory bandwidth.
    repeats: The number of rounds.

  Returns:
    One row for each form.
  """
  programs = {name: compiled(form, *operands) for name, form in forms.items()}
  durations = interleaved_medians(
      {
          name: functools.partial(program, *operands)
          for name, (program, _) in programs.items()
      },
      repeats,
  )
  seconds = {name: duration.seconds for name, duration in durations.items()}
  return [
      dict(
          form=name,
          shape='x'.join(map(str, operands[-1].shape)),
          dtype=operands[-1].dtype.name,
          ms=seconds[name] * 1e3,
          cpu_ms=durations[name].cpu_seconds * 1e3,
          gb_per_second=moves * operands[-1].nbytes / seconds[name] / 1e9,
          speedup=seconds[base] / seconds[name],
          times_the_ceiling=seconds[name] / seconds[ceiling],
          temporary_mib=temporary_bytes(program) / 2**20,
          **compile_seconds,
      )
      for name, (program, compile_seconds) in programs.items()
  ]


def with_gradient(form: Callable) -> Callable:
  """Returns a function of the operands of `form` and a cotangent.

  It returns the result and the gradients of all operands.
  """

  def run(*operands):
    *operands, cotangent = operands
    result, vjp = jax.vjp(form, *operands)
    return result, *vjp(cotangent)

  return run


def compare_both_ways(
    forms: Mapping[str, Callable],
    operands: Sequence[jax.Array],
    cotangent: jax.Array,
    *,
    moves: tuple[int, int],
    **options,
) -> list[dict[str, Any]]:
  """Runs `compare` forwards and with gradients; `moves` has both numbers."""
  both = {name: with_gradient(form) for name, form in forms.items()}
  cases = [
      ('forward', forms, operands),
      ('forward+backward', both, [*operands, cotangent]),
  ]
  return [
      dict(direction=direction, **row)
      for (direction, *compared), count in zip(cases, moves)
      for row in compare(*compared, moves=count, **options)
  ]


def environment() -> dict[str, Any]:
  """Returns the device, the versions, the date and the load, for a record."""
  return dict(
      device=host.device_description(),
      jax=jax.__version__,
      jaxlib=jaxlib.__version__,
      date=datetime.date.today().isoformat(),
      load_average=[round(n, 2) for n in os.getloadavg()],
  )


def earlier_rows(out: str) -> list[dict[str, Any]]:
  """Returns the rows of a record, each with its device, version and date.

  Args:
    out: The path of the record. If there is none the result is empty.

  Raises:
    UserValueError: If there is a file that holds something else.
  """
  record = read(out)
  return [dict(_measured(record), **row) for row in record['rows']]


def row_of_now(row: Mapping[str, Any]) -> dict[str, Any]:
  """Returns a row with the device, the version and the date of now."""
  return dict(row, **_measured(environment()))


def _measured(record):
  return {key: record[key] for key in ('device', 'jax', 'date')}


def save(record: Mapping[str, Any], out: str) -> None:
  """Writes a record and prints its path; `plots.save` also draws it."""
  print(f'Wrote {write(record, out)}.')


def write(record: Mapping[str, Any], out: str) -> pathlib.Path:
  """Writes a record to `out` as a whole or not at all."""
  path = pathlib.Path(out)
  path.parent.mkdir(parents=True, exist_ok=True)
  files.write_text(path, json.dumps(record, indent=1) + '\n')
  return path


def read(out: str) -> dict[str, Any]:
  """Returns the record that `write` has written; without a file, no rows.

  Raises:
    UserValueError: If there is a file that holds something else.
  """
  path = pathlib.Path(out)
  if not path.exists():
    return {'rows': []}
  try:
    record = records.parse(path.read_bytes())
    records.check_tree(record, {})
    rows = record.get('rows')
    if not isinstance(rows, list):
      raise ValueError('damaged: it has no list of rows')
    for row in rows:
      records.check_tree(row, {}, 'every row')
  except ValueError as error:
    raise errors.UserValueError(
        f'{path} is {error}. Remove it, or name another --out.'
    ) from error
  return record


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
