"""Generates ListOps and compares it with what its rules say exactly.

  python -m experiments.benchmarks.listops_data --data_dir=DIR

Generates the data set into DIR, where it must not be yet, and writes how long
that took, its size, the lengths, the share of each label, and the share of the
trees that are kept. Each stands beside its exact value (`listops_exact.py`) and
beside an earlier measurement by the same rules; the differences are in standard
errors.
"""

import math
import pathlib
import resource
import time

from absl import flags
from absl import logging
from experiments.benchmarks import listops_exact
from experiments.benchmarks import timing
from experiments.cli import drivers
import numpy as np
from rnnzoo import errors
from rnnzoo.data.builders import listops
from rnnzoo.data.builders import listops_trees
import tensorflow_datasets as tfds

_DATA_DIR = drivers.define_path(
    'data_dir', None, 'Where to generate the data set; it stays there.'
)
_WORKERS = flags.DEFINE_integer(
    'workers', 0,
    'The number of processes; 0 means one for each CPU core, up to 8.',
    lower_bound=0,
)
_SHORT = flags.DEFINE_bool(
    'short', False, 'Generate a few small trees, as a quick trial.'
)
_OUT = drivers.define_path(
    'out', 'experiments/results/listops_data.json',
    'The JSON file of the results.',
)

# Measured once on 4,000 expressions by another program that follows the rules.
EARLIER_EXPRESSIONS = 4000
EARLIER = {
    'trees kept': 0.082, 'mean length': 1062, 'median length': 991,
    'label 0': 0.172, 'label 9': 0.175,
}
_COLUMNS = {
    'quantity': '{quantity}', 'exact': '{exact:.6g}',
    'generated': '{generated:.6g}', 'standard errors': '{deviation:+.2f}',
    'earlier': '{earlier}', 'standard errors of it': '{earlier_deviation}',
}


class Short(listops.ListOps, skip_registration=True):
  """A few small trees."""

  name = listops.NAME
  rules = listops.FIXTURE_RULES
  sizes = listops.FIXTURE_SIZES


def compare(lengths, labels, origin, rules):
  """Returns a row for each quantity.

  Args:
    lengths: The lengths of all expressions, `[N]`.
    labels: Their values, `[N]`.
    origin: What `listops.origin` returns.
    rules: The rules by which they were generated.
  """
  exact = listops_exact.facts(rules)
  trees, kept = origin['trees_drawn'], origin['trees_kept']

  def row(quantity, known, found, error, drawn):
    """`error` is the standard error of one of the `drawn`."""
    earlier = EARLIER.get(quantity) if rules == listops_trees.Rules() else None
    size = EARLIER_EXPRESSIONS
    if quantity == 'trees kept':
      size /= exact.kept
    return dict(
        quantity=quantity, exact=float(known), generated=float(found),
        standard_error=error / math.sqrt(drawn),
        deviation=float(found - known) / error * math.sqrt(drawn),
        earlier=earlier,
        earlier_standard_error=earlier and error / math.sqrt(size),
        earlier_deviation=earlier and (
            float(earlier - known) / error * math.sqrt(size)
        ),
    )

  binomial = lambda share: math.sqrt(share * (1 - share))
  shares = np.bincount(labels, minlength=len(exact.labels)) / len(labels)
  return [
      row('trees kept', exact.kept, kept / trees, binomial(exact.kept), trees),
      row(
          'mean length', exact.mean, lengths.mean(), exact.deviation,
          len(lengths),
      ),
      row(
          'median length', exact.median, np.median(lengths),
          0.5 / exact.median_density, len(lengths),
      ),
      *(
          row(f'label {label}', known, found, binomial(known), len(labels))
          for label, (known, found) in enumerate(zip(exact.labels, shares))
      ),
  ]


def main(argv):
  drivers.check_usage(argv, data_dir=_DATA_DIR.value)
  logging.set_verbosity(logging.ERROR)
  tfds.disable_progress_bar()
  data_dir = pathlib.Path(_DATA_DIR.value)
  if (data_dir / listops.NAME).exists():
    raise errors.UserValueError(
        f'{data_dir / listops.NAME} is there already; its time is measured '
        'while it is generated. Name another --data_dir.'
    )
  builder_class = Short if _SHORT.value else listops.ListOps
  start, before = time.perf_counter(), _cpu_seconds()
  directory = listops.prepare(
      data_dir, workers=_WORKERS.value, builder_class=builder_class
  )
  seconds, cpu_seconds = time.perf_counter() - start, _cpu_seconds() - before
  splits, origin = listops.read(data_dir), listops.origin(data_dir)
  lengths = np.concatenate([found.lengths for found in splits.values()])
  labels = np.concatenate([found.labels for found in splits.values()])
  rows = compare(lengths, labels, origin, builder_class.rules)
  record = dict(
      timing.environment(), short=_SHORT.value, workers=_WORKERS.value,
      seconds=seconds, cpu_seconds=cpu_seconds,
      trees_per_second=origin['trees_drawn'] / seconds,
      bytes=sum(path.stat().st_size for path in directory.iterdir()),
      bytes_of_tokens=int(lengths.sum()), **origin,
      expressions={split: len(u.labels) for split, u in splits.items()},
      shortest=int(lengths.min()), longest=int(lengths.max()),
      earlier_expressions=EARLIER_EXPRESSIONS, rows=rows,
  )
  print(
      f'{len(labels):,} expressions of {lengths.min()} to {lengths.max()} '
      f'tokens in {seconds:.1f} s, {record["bytes"]:,} bytes.'
  )
  timing.print_table([
      {name: '' if u is None else u for name, u in row.items()}
      | dict(earlier_deviation='' if row['earlier'] is None else
             f'{row["earlier_deviation"]:+.2f}')
      for row in rows
  ], _COLUMNS)
  timing.save(record, _OUT.value)


def _cpu_seconds():
  """Returns the CPU time of this process and of those that it has ended."""
  used = [
      resource.getrusage(who)
      for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
  ]
  return sum(u.ru_utime + u.ru_stime for u in used)


if __name__ == '__main__':
  drivers.run(main)
