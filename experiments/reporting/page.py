"""The report as one HTML page, which needs no other file and no network."""

from collections.abc import Iterable
import html
import pathlib
import re

from experiments.reporting import chart
from experiments.reporting import collecting
from experiments.reporting import texts

_HERE = pathlib.Path(__file__).parent
_COLUMNS = (
    'Layer', 'Measured', 'Ours', 'Published', 'Comparison', 'Seeds', 'Time'
)
_SIGNS = {
    collecting.BETTER: '▲', collecting.WORSE: '▼', collecting.EQUAL: '≈',
    '': '',
}
_escape = html.escape


def document(report: collecting.Report) -> str:
  """Returns the page."""
  lists = {
      'Configs without a run and without a published number':
          report.unnumbered,
      'Records without result.json': report.bare,
      'Left out of this page': report.problems,
  }
  # The policy holds the page to its promise: it loads nothing.
  return ''.join([
      '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
      '<meta http-equiv="Content-Security-Policy" content="default-src '
      "'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'\">"
      '<meta name="viewport" content="width=device-width, initial-scale=1">'
      '<meta name="color-scheme" content="light dark">'
      '<title>rnnzoo: results beside published numbers</title>',
      f'<style>{(_HERE / "page.css").read_text()}</style></head><body>',
      '<header><p class="kicker">rnnzoo</p>'
      '<h1>Results beside published numbers</h1>'
      '<p class="lead">Every row is one setting. Ours is the mean over the '
      'seeds ± the standard error, measured with the checkpoint that '
      'validation chose. “Equal” means that the difference is not larger than '
      'the root of the sum of the squares of both errors.</p>',
      _tiles(report), _filters(report), '</header><main>',
      *map(_section, report.sections),
      *(
          f'<section class="rest"><h2>{_escape(title)}</h2><ul>'
          + ''.join(f'<li>{_escape(item)}</li>' for item in items)
          + '</ul></section>'
          for title, items in lists.items() if items
      ),
      '</main>',
      f'<script>{(_HERE / "page.js").read_text()}</script></body></html>\n',
  ])


def _tiles(report) -> str:
  """Returns the counts of what was compared, and how it came out."""
  verdicts = [row.verdict for row in report.rows]
  counts = (
      ('better', verdicts.count(collecting.BETTER), 'better than published'),
      ('worse', verdicts.count(collecting.WORSE), 'worse than published'),
      ('equal', verdicts.count(collecting.EQUAL), 'equal within the errors'),
      ('none', verdicts.count(''), 'with no published number'),
      ('missing', len(report.not_run), 'published, not run here'),
  )
  return '<ul class="tiles">' + ''.join(
      f'<li class="{kind}"><b>{count}</b> {text}</li>'
      for kind, count, text in counts
  ) + '</ul>'


def _filters(report) -> str:
  """Returns the two filters; page.js shows them, and makes them work."""
  every = [*report.rows, *report.not_run]
  tasks = sorted({section.title for section in report.sections})
  layers = sorted({row.layer for row in every})

  def select(name, label, options):
    return (
        f'<label>{label} <select id="{name}"><option value="">all</option>'
        + ''.join(f'<option>{_escape(o)}</option>' for o in options)
        + '</select></label>'
    )

  return (
      '<form class="filters" hidden>' + select('task', 'Task', tasks)
      + select('layer', 'Layer', layers)
      + '<output id="shown" aria-live="polite"></output></form>'
  )


def _section(section: collecting.Section) -> str:
  """Returns the heading, the curves, the table and the commands of a config."""
  title = _escape(section.title)
  name, curves = collecting.curves(section.rows)
  colors = {row.name: chart.color(i) for i, (row, _) in enumerate(curves)}
  parts = [
      f'<section class="config" data-task="{title}"><h2>{title}</h2>',
      f'<p class="about">{_inline(section.about)}</p>' * bool(section.about),
  ]
  if curves:
    shown = name.replace('_', ' ').removeprefix('eval ')
    caption = f'{shown} on validation against the step of training'
    if row := next(
        (r for r, _ in curves if name == f'eval_{r.split}_{r.metric}'), None
    ):
      caption = f'{row.metric} on {row.split} against the step of training'
    svg = chart.draw(
        [(row.name, points) for row, points in curves], caption,
        percent=name.endswith('accuracy'),
    )
    parts.append(
        f'<figure>{svg}<figcaption>{_escape(_capital(caption))}, one '
        'seed of each row</figcaption></figure>'
    )
  rows = [*section.rows, *section.not_run]
  parts += [
      '<table role="table"><caption class="hidden">Results of '
      f'{title}</caption>',
      '<thead role="rowgroup"><tr role="row">',
      *(
          f'<th role="columnheader" scope="col">{column}</th>'
          for column in _COLUMNS
      ),
      '</tr></thead><tbody role="rowgroup">',
      *(_row(row, colors.get(row.name, '')) for row in rows),
      '</tbody></table>',
  ]
  if any(row.runs for row in section.rows):
    parts += [
        '<details><summary>Commands, seeds and devices</summary><dl>',
        *map(_details, _first_of_each(section.rows)), '</dl></details>',
    ]
  return ''.join([*parts, '</section>'])


def _row(row: collecting.Row, color: str) -> str:
  """Returns a row of the table."""
  number = row.published
  key = f'<i class="key {color}" aria-hidden="true"></i>' if color else ''
  changes = ''.join(
      f'<small>{_escape(name)} = {_escape(value)}</small>'
      for name, value in row.overrides.items()
  )
  published = ''
  if number:
    published = (
        f'{texts.number(number.value, row.metric, number.error)}'
        f'<small>{_linked(number.source)}</small>'
    )
  verdict = row.verdict or ('none' if row.values else 'missing')
  cells = (
      f'<span>{key}<code>{_escape(row.layer)}</code></span>{changes}',
      _escape(texts.measured(row)),
      f'<b>{texts.number(row.mean, row.metric, row.error)}</b>'
      if row.values else '',
      published,
      f'<span class="verdict {verdict}"><i aria-hidden="true">'
      f'{_SIGNS[row.verdict]}</i> {texts.comparison(row)}</span>',
      str(len(row.values) or ''),
      texts.hours(row) if row.runs else '',
  )
  first, *others = (
      f'data-label="{column}"{" class=empty" * (not cell)}>{cell}'
      for column, cell in zip(_COLUMNS, cells)
  )
  return (
      f'<tr role="row" data-layer="{_escape(row.layer)}" class="{verdict}">'
      f'<th role="rowheader" scope="row" {first}</th>'
      + ''.join(f'<td role="cell" {other}</td>' for other in others) + '</tr>'
  )


def _first_of_each(rows: Iterable[collecting.Row]) -> list[collecting.Row]:
  """Returns one row of each setting: others hold numbers of the same runs."""
  return list({row.name: row for row in reversed(list(rows))}.values())[::-1]


def _details(row: collecting.Row) -> str:
  """Returns how the runs of a row were made."""
  runs = ''.join(
      f'<li>seed {run["seed"]}: '
      f'{texts.number(row.values[run["seed"]], row.metric)}, best at step '
      f'{run["best_step"]:,} of {run["steps"]:,}, {_escape(texts.code(run))}'
      '</li>'
      for run in row.runs
  )
  return (
      f'<div data-layer="{_escape(row.layer)}"><dt>{_escape(row.name)}</dt>'
      f'<dd>{row.runs[0]["parameters"]:,} parameters, '
      f'{_escape(texts.devices(row))}</dd>'
      f'<dd><ul>{runs}</ul></dd>'
      f'<dd><pre><code>{_escape(row.runs[0]["command"])}</code></pre></dd>'
      '</div>'
  )


def _linked(text: str) -> str:
  """Returns text with links; a full stop that ends a sentence is in none."""
  parts = re.split(r'(https?://[^\s,;)`]*[^\s,;)`.])', text)
  return ''.join(
      f'<a href="{_escape(part)}">{_escape(_short(part))}</a>' if i % 2
      else _escape(part)
      for i, part in enumerate(parts)
  )


def _short(address: str) -> str:
  found = re.fullmatch(r'https?://arxiv\.org/(?:abs|pdf)/([\d.]+\d)', address)
  if found:
    return f'arXiv\N{NO-BREAK SPACE}{found[1]}'
  return re.sub('^https?://', '', address)


def _inline(text: str) -> str:
  """Returns text of a docstring; code between backquotes is set as code."""
  return re.sub('`+([^`]+)`+', r'<code>\1</code>', _linked(text))


def _capital(text: str) -> str:
  return text[:1].upper() + text[1:]
