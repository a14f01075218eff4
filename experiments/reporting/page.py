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
_NOT_RUN = ('Layer', 'Measured', 'Published', 'Source')
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
      *map(_section, sorted(report.sections, key=lambda one: not one.rows)),
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
  folders = sorted({one.partition('/')[0] for one in tasks if '/' in one})
  tasks = sorted([*tasks, *(f'{folder}/' for folder in folders)])
  layers = sorted({row.layer for row in every})

  def select(name, label, options):
    return (
        f'<label>{label} <select id="{name}"><option value="">all</option>'
        + ''.join(
            f'<option value="{_escape(one)}">{_escape(shown(one))}</option>'
            for one in options
        )
        + '</select></label>'
    )

  def shown(one):
    return f'all of {one[:-1]}' if one.endswith('/') else one

  return (
      '<form class="filters" hidden>' + select('task', 'Task', tasks)
      + select('layer', 'Layer', layers)
      + '<output id="shown" aria-live="polite"></output></form>'
  )


def _section(section: collecting.Section) -> str:
  """Returns the heading, the curves, the table and the commands of a config."""
  title = _escape(section.title)
  name, curves = collecting.curves(section.rows)
  if all(len(points) < 2 for _, points in curves):
    curves = []  # Points alone are no curves.
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
  if section.rows:
    parts.append(_table(f'Results of {title}', _COLUMNS, [
        _row(row, colors.get(row.name, '')) for row in section.rows
    ]))
  if any(row.runs for row in section.rows):
    parts += [
        '<details><summary>Commands, seeds and devices</summary><dl>',
        *map(_details, _first_of_each(section.rows)), '</dl></details>',
    ]
  if section.not_run:
    parts += [
        '<details class="missing"><summary>Published, not run here: <span>'
        f'{len(section.not_run)}</span></summary>'
        f'<p>See <code>{_escape(section.config)}</code>.</p>',
        _table(
            f'Published for {title}, not run', _NOT_RUN,
            [_not_run(row) for row in section.not_run],
        ),
        '</details>',
    ]
  return ''.join([*parts, '</section>'])


def _table(caption: str, columns: tuple[str, ...], rows: list[str]) -> str:
  """Returns a table; it keeps its roles where the style makes it no table."""
  return ''.join([
      f'<table role="table" class="of-{len(columns)}">'
      f'<caption class="hidden">{caption}</caption>',
      '<thead role="rowgroup"><tr role="row">',
      *(
          f'<th role="columnheader" scope="col">{column}</th>'
          for column in columns
      ),
      '</tr></thead><tbody role="rowgroup">', *rows, '</tbody></table>',
  ])


def _not_run(row: collecting.Row) -> str:
  """Returns a row of the table of published numbers that were not run."""
  number = row.published
  return _cells(row, 'missing', _NOT_RUN, (
      f'<code>{_escape(row.layer)}</code>',
      _escape(texts.measured(row)),
      texts.published(number) if number else '',
      f'<span>{_linked(number.source)}</span>' if number else '',
  ))


def _row(row: collecting.Row, color: str) -> str:
  """Returns a row of the table of results."""
  number = row.published
  key = f'<i class="key {color}" aria-hidden="true"></i>' if color else ''
  changes = ''.join(
      f'<small>{_escape(name)} = {_escape(value)}</small>'
      for name, value in row.overrides.items()
  )
  published = ''
  if number:
    published = (
        f'{texts.published(number)}<small>{_linked(number.source)}</small>'
    )
  verdict = row.verdict or 'none'
  return _cells(row, verdict, _COLUMNS, (
      f'<span>{key}<code>{_escape(row.layer)}</code></span>{changes}',
      _escape(texts.measured(row)),
      f'<b>{texts.number(row.mean, row.metric, row.error)}</b>',
      published,
      f'<span class="verdict {verdict}"><i aria-hidden="true">'
      f'{_SIGNS[row.verdict]}</i> {texts.comparison(row)}</span>',
      str(len(row.values)) if row.runs else '',
      texts.hours(row) if row.runs else '',
  ))


def _cells(row, kind, columns, cells) -> str:
  """Returns a row of a table of these columns."""
  first, *others = (
      f'data-label="{column}"{" class=empty" * (not cell)}>{cell}'
      for column, cell in zip(columns, cells, strict=True)
  )
  return (
      f'<tr role="row" data-layer="{_escape(row.layer)}" class="{kind}">'
      f'<th role="rowheader" scope="row" {first}</th>'
      + ''.join(f'<td role="cell" {other}</td>' for other in others) + '</tr>'
  )


def _first_of_each(rows: Iterable[collecting.Row]) -> list[collecting.Row]:
  """Returns one row of each setting: others hold numbers of the same runs."""
  return list({
      row.name: row for row in reversed(list(rows)) if row.runs
  }.values())[::-1]


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
  """Returns text with links; a full stop or a colon after one is in none."""
  parts = re.split(r'(https?://[^\s,;)`]*[^\s,;)`.:])', text)
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
