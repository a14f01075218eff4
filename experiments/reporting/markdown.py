"""The report as a table in Markdown."""

from collections.abc import Iterable
import re

from experiments.reporting import collecting
from experiments.reporting import texts

_HEAD = (
    'Config', 'Layer', 'Measured', 'Ours', 'Published', 'Comparison', 'Source',
    'Seeds', 'Device', 'Time of a run', 'Command',
)


def document(report: collecting.Report) -> str:
  """Returns a table of all results, and lists of what has none."""
  lines = [_line(_HEAD), '|' + '---|' * len(_HEAD)]
  for section in report.sections:
    lines += [_row(section.title, row) for row in section.rows]
    lines += [_row(section.title, row) for row in section.not_run]
  lists = {
      'Configs that nobody has run, without a published number':
          report.unnumbered,
      'Records without `result.json`': report.bare,
      'Left out': report.problems,
  }
  for title, items in lists.items():
    if items:
      lines += ['', f'{title}:', '', *(f'- {_plain(item)}' for item in items)]
  return '\n'.join(lines) + '\n'


def _row(title: str, row: collecting.Row) -> str:
  number = row.published
  return _line([
      title, row.name, texts.measured(row),
      texts.number(row.mean, row.metric, row.error),
      texts.published(number) if number else '',
      texts.comparison(row), number.source if number else '',
      *(
          (
              texts.seeds(row), texts.devices(row), texts.hours(row),
              f'`{row.runs[0]["command"]}`',
          ) if row.runs else [''] * 4
      ),
  ])


def _line(cells: Iterable[str]) -> str:
  return f'| {" | ".join(_plain(cell) for cell in cells)} |'


def _plain(text: str) -> str:
  """Returns text on one line, without HTML, that does not end its cell."""
  text = re.sub(r'[\r\n]+', ' ', text)
  return text.replace('|', '\\|').replace('<', '&lt;')
