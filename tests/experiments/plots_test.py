"""Plots show what was measured, and can be read."""

import shutil
from unittest import mock

from absl.testing import absltest
from absl.testing import parameterized
from experiments.benchmarks import plots
from experiments.benchmarks import readme
from PIL import Image
from rnnzoo import layers
from tests.experiments import commands

# What draws, and one record of each.
_PLOTS = (
    ('benchmarks.abilities', 'abilities'),
    ('benchmarks.accuracy', 'accuracy'),
    ('benchmarks.context', 'context_cpu'),
    ('benchmarks.gated_scan', 'gated_scan_cpu_jax0.10.2'),
    ('benchmarks.layers', 'layers_cpu'),
    ('benchmarks.linear_scan', 'linear_scan_cpu_jax0.10.2'),
    ('benchmarks.recall', 'recall'),
    ('benchmarks.speedup', 'speedup_cpu_jax0.12.0.1'),
    ('soak', 'soak'),
)


def drawn(name, result):
  """Draws a record that is kept; returns the figure, its record, the module."""
  module = commands.imported(f'experiments.{name}')
  record = readme.record(f'{result}.json')
  return module.draw(record), record, module


class PlotsTest(parameterized.TestCase):

  def test_all_are_of_the_records_that_are_kept(self):
    images = sorted(readme.RESULTS.glob('*.png'))
    self.assertNotEmpty(images)
    for image in images:
      said = Image.open(image).text.get(plots.RECORD)
      self.assertEqual(
          said, plots.digest(image.with_suffix('.json')),
          f'{image.name} is older than its record: --replot --out=...',
      )
      self.assertLess(image.stat().st_size, 100_000)

  @parameterized.parameters(*_PLOTS)
  def test_they_say_what_they_show(self, name, result):
    figure, record, _ = drawn(name, result)
    title = figure.get_suptitle()
    self.assertNotIn(record['device'], title)
    self.assertGreater(len(title.split()), 4)
    panels = [panel for panel in figure.axes if panel.lines]
    columns = {}
    for panel in panels:
      column = panel.get_subplotspec().colspan.start
      columns.setdefault(column, []).append(panel)
    for column in columns.values():  # Its panels share the axis.
      self.assertTrue(column[-1].get_xlabel(), title)
    # A legend lies in no panel, so it covers nothing, and is not cut.
    self.assertEqual([p for p in panels if p.get_legend()], [])
    figure.draw_without_rendering()
    for legend in figure.legends:
      box = legend.get_window_extent()
      for panel in panels:
        self.assertFalse(box.overlaps(panel.get_window_extent()), title)
      self.assertGreaterEqual(box.x0, figure.bbox.x0 - 1)
      self.assertLessEqual(box.x1, figure.bbox.x1 + 1)
    # No line looks like another.
    looks = [
        (line.get_color(), line.get_linestyle(), line.get_marker())
        for line in panels[0].lines if not line.get_label().startswith('_')
    ]
    self.assertLen(set(looks), len(looks))

  def test_the_threshold_of_recall_is_drawn(self):
    figure, _, recall = drawn('benchmarks.recall', 'recall')
    lines = [line for line in figure.axes[0].lines
             if line.get_linestyle() == ':']
    self.assertEqual([line.get_ydata()[0] for line in lines],
                     [100 * recall._ENOUGH])
    self.assertIn(f'{100 * recall._ENOUGH:.0f} %',
                  [t.get_text().split(': ')[-1] for t in figure.axes[0].texts])
    self.assertIn(f'when {100 * recall._ENOUGH:.0f} % of validation answers',
                  ' '.join(readme.page('docs/layers.md').split()))

  def test_the_legend_of_accuracy_is_what_is_drawn(self):
    figure, record, _ = drawn('benchmarks.accuracy', 'accuracy')
    styles = {
        text.get_text(): (line.get_color(), line.get_linestyle())
        for text, line in zip(figure.legends[0].texts,
                              figure.legends[0].get_lines())
    }
    self.assertSameElements(
        styles, {row['implementation'] for row in record['rows']}
    )
    for panel in figure.axes:
      self.assertEqual(styles, {
          line.get_label(): (line.get_color(), line.get_linestyle())
          for line in panel.lines
      })

  def test_a_family_has_layers_that_exist(self):
    names = [name for family in plots.FAMILIES.values() for name in family]
    self.assertLen(set(names), len(names))
    self.assertEqual(set(names) - set(layers.LAYERS), set())

  def test_every_measured_layer_has_a_row_in_the_plot_of_costs(self):
    figure, record, _ = drawn('benchmarks.layers', 'layers_cpu')
    names = [label.get_text() for label in figure.axes[0].get_yticklabels()]
    self.assertCountEqual(names, {row['layer'] for row in record['rows']})

  def test_a_layer_of_no_family_is_drawn_too(self):
    figure, panels = plots.subplots(1, 1, 'A layer', figsize=(4, 3))
    heights = plots.layers_axis(panels[0], dict(lru=1.0, mine=2.0))
    self.assertCountEqual(heights, ['lru', 'mine'])

  def test_replot(self):
    """Of whatever draws a record: nothing is measured."""
    out = commands.temporary_directory(self) / 'again.json'
    shutil.copy(readme.RESULTS / 'recall.json', out)
    before = out.read_bytes()
    module = commands.imported('experiments.benchmarks.recall')
    with mock.patch.object(plots, '_REPLOT', mock.Mock(value=True)):
      with mock.patch.object(module, '_OUT', mock.Mock(value=str(out))):
        module.main([''])
    self.assertEqual(out.read_bytes(), before)
    again = Image.open(out.with_suffix('.png'))
    self.assertEqual(again.text[plots.RECORD], plots.digest(out))
    for path in (commands.ROOT / 'experiments').rglob('*.py'):
      if 'plots.save(' in path.read_text():
        self.assertIn('  if plots.replotted(', path.read_text(), path)


if __name__ == '__main__':
  absltest.main()
