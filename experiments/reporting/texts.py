"""How numbers are written, in the page and in the Markdown table alike."""

from experiments.cli import published as published_lib
from experiments.reporting import collecting

MINUS = '\N{MINUS SIGN}'
PLUS_MINUS = '\N{PLUS-MINUS SIGN}'


def number(value: float | None, metric: str, error: float | None = None) -> str:
  """Returns a number with its error; accuracies are in percent.

  >>> number(0.9851, 'accuracy').split(), number(1.4968, 'loss', 0.004).split()
  (['98.5', '%'], ['1.497', '±', '0.004'])
  """
  if value is None:
    return '\N{EN DASH}'
  percent = metric == 'accuracy'
  plain = (lambda u: f'{100 * u:.1f}') if percent else (lambda u: f'{u:.4g}')
  text = plain(value)
  if error is not None:
    small = f'{100 * error:.1f}' if percent else f'{error:.2g}'
    text += f' {PLUS_MINUS} {small}'
  text = text.replace('-', MINUS)
  return (f'{text} %' if percent else text).replace(' ', '\N{NO-BREAK SPACE}')


def published(found: published_lib.Number) -> str:
  """Returns a published number, with the digits that its source has.

  >>> number = published_lib.Number('s4', 'accuracy', 0.8865, None, 'test', '')
  >>> published(number).split()
  ['88.65', '%']
  """
  percent = round(100 * found.value, 2)
  if found.metric != 'accuracy' or found.error or percent == round(percent, 1):
    return number(found.value, found.metric, found.error)
  return f'{percent:.2f}\N{NO-BREAK SPACE}%'


def measured(row: collecting.Row) -> str:
  """Returns what a row measures: the metric, its unit and the part."""
  part = f', {row.split}' if ' ' in row.split else f' on {row.split}'
  unit = f', {row.unit}' if row.unit else ''
  return f'{row.metric.replace("_", " ")}{part}{unit}'


def comparison(row: collecting.Row) -> str:
  """Returns how far a row is from the published number, in words."""
  if not row.verdict:
    return 'none known' if row.values else 'not run'
  if row.verdict == collecting.EQUAL:
    return 'equal within the errors'
  gap = abs(row.gain)
  if row.metric == 'accuracy':
    return f'{row.verdict} by {100 * gap:.1f} points'
  return f'{row.verdict} by ' + (f'{gap:,.0f}' if gap >= 100 else f'{gap:.2g}')


def hours(row: collecting.Row) -> str:
  """Returns the mean time of a run."""
  mean = sum(run['hours'] for run in row.runs) / len(row.runs)
  if mean >= 1:
    return f'{mean:.1f} h'
  if 60 * mean >= 1:
    return f'{60 * mean:.2g} min'
  return f'{3600 * mean:.2g} s' if 3600 * mean >= 0.1 else 'below 0.1 s'


def seeds(row: collecting.Row) -> str:
  """Returns the number of seeds."""
  count = len(row.values)
  return '1 seed' if count == 1 else f'{count} seeds'


def devices(row: collecting.Row) -> str:
  """Returns the devices of the runs."""
  return '; '.join(dict.fromkeys(run['device'] for run in row.runs))


def code(run) -> str:
  """Returns the commit of a run."""
  if not run['commit']:
    return 'commit not recorded'
  return f'commit {run["commit"][:10]}{", changed" if run["dirty"] else ""}'
