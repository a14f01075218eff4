"""Draws the plots of the benchmarks, in one style.

A benchmark gives `save` its record and a function that draws it. With
`--replot` it measures nothing and draws the record in `--out` again.
"""

from collections.abc import Callable, Mapping, Sequence
import hashlib
import json
import pathlib
from typing import Any

from absl import flags
from experiments.benchmarks import timing
import matplotlib
from matplotlib import figure as figures
from matplotlib import ticker
from matplotlib.backends import backend_agg
import numpy as np
from PIL import Image
from PIL import PngImagePlugin

_REPLOT = flags.DEFINE_bool(
    'replot', False,
    'Measure nothing; draw the plot of the results in --out again.',
)

# The name of the digest of the record in the metadata of a plot.
RECORD = 'Record'

# Colour-blind people can distinguish them (Paul Tol's bright and muted ones).
COLORS = (
    '#4477aa', '#ee6677', '#228833', '#aa3377', '#ccbb44', '#66ccee', '#882255',
    '#44aa99', '#999933', '#332288',
)
MARKERS = 'os^Dv'
GRAY, LIGHT = '#666666', '#cccccc'
_STYLE = {
    'axes.axisbelow': True,
    'axes.grid': True,
    'axes.labelsize': 'small',
    'axes.spines.right': False,
    'axes.spines.top': False,
    'axes.titlesize': 'medium',
    'grid.alpha': 0.25,
    'xtick.labelsize': 'small',
    'ytick.labelsize': 'small',
}

# Layers by the kind of their state, and cells.
FAMILIES = {
    'state: one vector, or one per channel': (
        'aaren', 'cg_lru', 'conv_s5', 'd_linoss', 'griffin', 'hgrn', 'linoss',
        'lru', 'mamba', 'min_gru', 'min_lstm', 'parallel_lmu', 'rg_lru',
        'rwkv4', 's4', 's4d', 's5', 'signed_min_gru',
    ),
    'state: one matrix per head': (
        'comba', 'delta_net', 'gated_delta_net', 'gated_delta_net2',
        'gated_delta_product', 'gla', 'hgrn2', 'kda', 'lightning_attention',
        'linear_attention', 'log_linear_gated_delta_net', 'log_linear_mamba2',
        'mamba2', 'mamba3', 'mesa_net', 'mlstm', 'mlstm_block', 'mlstm_large',
        'ret_net', 'rwkv6', 'rwkv7',
    ),
    'state: the last keys and values': (
        'attention', 'gated_attention', 'latent_attention',
    ),
    'state: the last token or two': (
        'rwkv4_channel_mix', 'rwkv7_channel_mix', 'short_conv',
    ),
    'cells, solved for all steps at once': ('para_gru', 'para_lstm'),
    'cells, one step after the other': (
        'conv_lstm', 'elman', 'gru', 'lmu', 'lstm', 'm2rnn', 'sgru', 'slstm',
        'slstm_block', 'tfc_sgru', 'tt_gru', 'tt_lstm',
    ),
}


def subplots(rows: int, columns: int, title: str, *, figsize, **options):
  """Makes a figure with a title that says what is shown.

  Args:
    rows: The number of rows of panels.
    columns: The number of columns of panels.
    title: The title of the figure.
    figsize: Width and height, in inches.
    **options: For `Figure.subplots`.

  Returns:
    `(figure, panels)`, panels as an array `[rows, columns]`.
  """
  figure = figures.Figure(figsize=figsize, dpi=120, layout='constrained')
  height = figsize[1]
  figure.suptitle(
      title, x=0.1 / figsize[0], y=1 - 0.1 / height, ha='left', va='top',
      fontweight='bold',
  ).set_in_layout(False)
  _leave_above(figure, 0.4)
  return figure, figure.subplots(rows, columns, squeeze=False, **options)


def legend(figure, panel) -> None:
  """Puts the legend of a panel under the title, where it covers nothing."""
  handles, labels = panel.get_legend_handles_labels()
  figure.legend(
      handles, labels, ncols=len(labels), loc='upper left', frameon=False,
      bbox_to_anchor=(
          0.1 / figure.get_figwidth(), 1 - 0.35 / figure.get_figheight()
      ),
      fontsize='small', borderaxespad=0,
  )
  _leave_above(figure, 0.75)


def _leave_above(figure, inches):
  part = inches / figure.get_figheight()
  figure.get_layout_engine().set(rect=(0, 0, 1, 1 - part))


def layers_axis(panels, keys: Mapping[str, float]) -> dict[str, float]:
  """Gives each layer a row, family by family, the smallest key at the top.

  Args:
    panels: That share the axis; each is written on between the families.
    keys: Of each layer, what to sort it by.

  Returns:
    The height of each layer.
  """
  heights, names, headings = {}, [], {}
  at = 0.0
  known = {name for members in FAMILIES.values() for name in members}
  families = FAMILIES | {'other layers': set(keys) - known}
  for family, members in families.items():
    present = sorted((n for n in keys if n in members), key=keys.get)
    if not present:
      continue
    headings[family] = at
    for name in present:
      at += 1
      heights[name] = at
      names.append(name)
    at += 1.2
  panels[0].set_yticks(list(heights.values()), names)
  panels[0].set_ylim(at - 0.4, -0.9)
  for panel in panels:
    panel.tick_params(axis='y', length=0)
  for family, height in headings.items():
    # The position across is relative to the panel, the other one to the data.
    panels[0].text(
        0.012, height, family, fontsize='small', color=GRAY, va='center',
        style='italic', transform=panels[0].get_yaxis_transform(),
        bbox=dict(facecolor='white', edgecolor='none', pad=0.5),
    )
  return heights


def dots(
    panel, rows, case_names: Sequence[str], labels: Mapping[str, str], **options
) -> None:
  """Draws the milliseconds of every form, a line of dots a case.

  Args:
    panel: The axes to draw in.
    rows: With `form`, `ms` and the fields that make up a case.
    case_names: Those fields.
    labels: What the legend says of each form. A form has the same colour in
      every plot with the same labels.
    **options: For `panel.set`.
  """
  case = lambda row: ', '.join(
      str(row[name]).replace('x', ' x ') if name == 'shape' else str(row[name])
      for name in case_names
  )
  cases = list(dict.fromkeys(map(case, rows)))
  for k, (form, label) in enumerate(labels.items()):
    ms = {case(row): row['ms'] for row in rows if row['form'] == form}
    if ms:
      panel.plot(
          list(ms.values()), [cases.index(c) for c in ms], MARKERS[k],
          color=COLORS[k], label=label,
      )
  panel.set(xscale='log', ylim=(len(cases) - 0.5, -0.5), **options)
  panel.set_yticks(range(len(cases)), cases)
  plain_numbers(panel.xaxis)


def plain_numbers(axis) -> None:
  """Writes 1,000 or 0.1 on a logarithmic axis instead of powers."""
  low, high = axis.get_data_interval()
  wide = high > 50 * low
  axis.set_major_locator(ticker.LogLocator(subs=(1,) if wide else (1, 2, 5)))
  axis.set_major_formatter(lambda value, _: f'{value:,g}')
  axis.set_minor_formatter(ticker.NullFormatter())


def digest(path: pathlib.Path) -> str:
  """Returns the digest of a record, which is stored in its plot."""
  return hashlib.sha256(path.read_bytes()).hexdigest()


def write(image: Image.Image, path: pathlib.Path) -> pathlib.Path:
  """Writes the image of a record beside it, with the digest of the record."""
  text = PngImagePlugin.PngInfo()
  text.add_text(RECORD, digest(path))
  out = path.with_suffix('.png')
  image.save(out, optimize=True, pnginfo=text)
  return out


def save(
    record: Mapping[str, Any], out: str, draw: Callable[[Any], Any]
) -> None:
  """Writes a record, and its plot beside it.

  Args:
    record: What was measured, and `timing.environment()`.
    out: A path that ends in `.json`.
    draw: A function of the record that gives a figure.
  """
  path = timing.write(record, out)
  print(f'Wrote {path} and {_plot(path, draw)}.')


def replotted(out: str, draw: Callable[[Any], Any]) -> bool:
  """Draws what is in `out` again, if `--replot` asks for that.

  Returns:
    Whether it does, so that nothing is to be measured.
  """
  if _REPLOT.value:
    print(f'Wrote {_plot(pathlib.Path(out), draw)}.')
  return _REPLOT.value


def _plot(path, draw):
  record = json.loads(path.read_text())
  with matplotlib.rc_context(_STYLE):
    figure = draw(record)
  # Rows that were measured on several devices have fields of their own.
  measured = [row for row in record['rows'] if 'device' in row] or [record]
  places = dict.fromkeys(f'{u["device"]}, jax {u["jax"]}' for u in measured)
  figure.supxlabel(
      '; '.join(places), x=0.99, ha='right', fontsize='x-small', color=GRAY
  )
  canvas = backend_agg.FigureCanvasAgg(figure)
  canvas.draw()
  # With a palette of few colours the file is a quarter as large.
  image = Image.fromarray(np.asarray(canvas.buffer_rgba())).convert('RGB')
  return write(image.quantize(200), path)
