"""Draws curves as SVG, whose colours the style sheet of the page chooses."""

from collections.abc import Sequence
import html
import math

# How many colours page.css has; more curves are dashed.
COLORS = 8
_WIDTH, _HEIGHT = 720, 220
_LEFT, _RIGHT, _TOP, _BOTTOM = 60, 10, 10, 26
_POINTS = 300  # Of each curve, at most.


def draw(
    curves: Sequence[tuple[str, Sequence[tuple[float, float]]]],
    title: str,
    percent: bool = False,
) -> str:
  """Returns an SVG element with a line for each curve.

  Args:
    curves: Names, and points `(x, y)` by rising x.
    title: What is shown, for readers who do not see it.
    percent: Whether to write the values as percentages.
  """
  xs = [x for _, points in curves for x, _ in points]
  ys = [y for _, points in curves for _, y in points]
  low, high = min(ys), max(ys)
  log = low > 0 and high > 30 * low
  scale = math.log10 if log else float
  bottom, top = scale(low), scale(high)
  margin = 0.04 * (top - bottom) or abs(top) or 1.0
  bottom, top = bottom - margin, top + margin
  last = max(xs)
  shown = lambda u: f'{100 * u:.4g} %' if percent else f'{u:.6g}'

  def place(x, y):
    across = _LEFT + (_WIDTH - _LEFT - _RIGHT) * x / (last or 1)
    up = (scale(y) - bottom) / (top - bottom)
    return across, _TOP + (_HEIGHT - _TOP - _BOTTOM) * (1 - up)

  parts = [
      f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" '
      f'aria-label="{html.escape(title)}">'
  ]
  for value in log_ticks(low, high) if log else ticks(low, high):
    _, y = place(0, value)
    parts.append(
        f'<line class="grid" x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" '
        f'y1="{y:.1f}" y2="{y:.1f}"/>'
        f'<text class="tick" x="{_LEFT - 8}" y="{y + 4:.1f}" '
        f'text-anchor="end">{shown(value)}</text>'
    )
  for value in ticks(0, last, 6):
    x, _ = place(value, low)
    parts.append(
        f'<text class="tick" x="{x:.1f}" y="{_HEIGHT - 6}" '
        f'text-anchor="{"end" if x > _WIDTH - 30 else "middle"}">'
        f'{value:,.0f}</text>'
    )
  for i, (name, points) in enumerate(curves):
    stride = math.ceil(len(points) / _POINTS)
    kept = [*points[::stride], points[-1]]
    path = ' '.join('{:.1f},{:.1f}'.format(*place(x, y)) for x, y in kept)
    parts.append(
        f'<g class="curve {color(i)}" data-name="{html.escape(name)}">'
        f'<title>{html.escape(name)}</title><polyline points="{path}"/>'
        '<circle cx="{:.1f}" cy="{:.1f}" r="3"/></g>'.format(*place(*kept[-1]))
    )
  return ''.join([*parts, '</svg>'])


def color(i: int) -> str:
  """Returns the classes of the i-th curve."""
  return f'c{i % COLORS}' + (' dashed' if i >= COLORS else '')


def ticks(low: float, high: float, count: int = 5) -> list[float]:
  """Returns round numbers between two numbers.

  >>> ticks(0, 1000)
  [0.0, 200.0, 400.0, 600.0, 800.0, 1000.0]
  """
  if not high > low:
    return [low]
  rough = (high - low) / count
  power = 10.0 ** math.floor(math.log10(rough))
  step = next(power * m for m in (1, 2, 5, 10) if power * m >= rough * 0.999)
  first = math.ceil(low / step - 1e-9)
  last = math.floor(high / step + 1e-9)
  return [round(i * step, 12) for i in range(first, last + 1)]


def log_ticks(low: float, high: float) -> list[float]:
  """Returns powers of ten between two numbers; all of them, if few."""
  powers = range(math.ceil(math.log10(low)), math.floor(math.log10(high)) + 1)
  stride = max(1, len(powers) // 5)
  return [10.0**power for power in powers[::stride]]
