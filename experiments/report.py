r"""Writes all results beside the published numbers, as one HTML page.

  python -m experiments.report --output=results.html --markdown=results.md

It reads every `result.json` below `--results`, draws the curves from
`metrics.jsonl` beside it, and takes the published numbers from the config
files. Published numbers without a run are listed as not run. The speed of
training comes from `speedup_*.json`, see `experiments.benchmarks.speedup`.

Left out are files that are damaged or of an older form, smoke runs, runs on
generated data, and a second record of the same setting and seed. Each is named
in a line on stderr and on the page, and the exit code is then 1. The others are
shown.
"""

import pathlib
import sys

from absl import logging
from experiments.cli import drivers
from experiments.cli import results
from experiments.reporting import collecting
from experiments.reporting import markdown
from experiments.reporting import page
from experiments.reporting import speed
from rnnzoo.training import files

_RESULTS = drivers.define_path(
    'results', str(results.ROOT / 'experiments/results'),
    'The directory of the results.',
)
_OUTPUT = drivers.define_path(
    'output', None, 'Write the HTML page to this file.'
)
_MARKDOWN = drivers.define_path(
    'markdown', None, 'Write a table in Markdown to this file.'
)


def main(argv):
  drivers.check_usage(argv)
  if not (_OUTPUT.value or _MARKDOWN.value):
    drivers.check_usage(argv, output=_OUTPUT.value)
  directory = pathlib.Path(_RESULTS.value)
  logging.info('Reading the results in %s.', directory)
  report = speed.added(collecting.collect(directory), directory)
  for name, write in (
      (_OUTPUT.value, page.document), (_MARKDOWN.value, markdown.document)
  ):
    if name:
      path = pathlib.Path(name)
      path.parent.mkdir(parents=True, exist_ok=True)
      files.write_text(path, write(report))
      logging.info('Written: %s', path)
  print(
      f'{len(report.rows)} results, {len(report.not_run)} published numbers '
      'that were not run.'
  )
  for problem in report.problems:
    print(problem, file=sys.stderr)
  if report.problems:
    sys.exit(1)


if __name__ == '__main__':
  drivers.run(main)
