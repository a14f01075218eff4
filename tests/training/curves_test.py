"""Tests of `metrics.curves`, on images and their axes."""

import math
import pathlib
import tempfile
from unittest import mock

from absl.testing import absltest
from absl.testing import parameterized
import matplotlib.figure
import matplotlib.image
import numpy as np
from rnnzoo.training import metrics
from rnnzoo.training.metrics import curves


class PlotCurvesTest(parameterized.TestCase):

  def setUp(self):
    super().setUp()
    self.workdir = pathlib.Path(
        self.enter_context(tempfile.TemporaryDirectory())
    )

  def draw(self):
    path = metrics.plot_curves(self.workdir)
    self.assertEqual(path, self.workdir / 'curve.png')
    image = matplotlib.image.imread(path)
    self.assertEqual(image.shape[:2], (675, 1200))
    return image

  def test_images_of_no_point_one_point_and_many(self):
    images = [self.draw()]
    with metrics.MetricsWriter(self.workdir, tensorboard=False) as writer:
      writer.write(1, {'train_loss': 4.0, 'eval_loss': math.nan})
      images.append(self.draw())
      for step in range(2, 300):
        row = {'train_loss': 1.5 + 3 / step}
        if step % 50 == 0:
          row['eval_loss'] = 1.6 + abs(step - 200) / 500
        writer.write(step, row)
      images.append(self.draw())
      writer.write(300, {'eval_ema_loss': 2.0})
    (self.workdir / 'config.json').write_text(
        '{"model": {"layer": "min_gru"}, "data": {"name": "python_docs"}}'
    )
    (self.workdir / 'summary.json').write_text('{"parameters": 651264}')
    images.append(self.draw())
    with metrics.MetricsWriter(self.workdir, tensorboard=False) as writer:
      speed = {'tokens_per_second_per_device': 1e5, 'input_wait': 0.01}
      writer.write(301, speed)
      writer.write(302, speed)
    images.append(self.draw())
    for before, after in zip(images, images[1:]):
      self.assertFalse(np.array_equal(before, after))
    self.assertEqual(
        curves._title(self.workdir),
        'min_gru on python_docs, 651k parameters',
    )
    self.assertLen(list(self.workdir.glob('curve*')), 1)

  def test_points_are_drawn_in_the_order_of_steps(self):
    rows = [dict(step=s, eval_loss=x) for s, x in ((3, 1), (1, 3), (2, 2))]
    steps, losses = curves.column(rows, 'eval_loss')
    np.testing.assert_array_equal([steps, losses], [[1, 2, 3], [3, 2, 1]])

  def test_axes_and_legend_name_what_is_drawn(self):
    with metrics.MetricsWriter(self.workdir, tensorboard=False) as writer:
      for step in (1, 2, 3):
        writer.write(step, {
            'train_loss': 4.0, 'eval_loss': 0.0002, 'eval_other_split_loss': 4,
            'tokens_per_second_per_device': 1e5, 'input_wait': 0.01,
        })
    with mock.patch.object(
        matplotlib.figure.Figure, 'savefig', autospec=True
    ) as savefig:
      metrics.plot_curves(self.workdir, loss_unit='nats per character')
    figure = savefig.call_args.args[0]
    losses, speed, wait = figure.axes
    self.assertEqual(losses.get_ylabel(), 'loss, nats per character')
    (bits,) = losses.child_axes
    self.assertEqual(bits.get_ylabel(), 'loss, bits per character')
    self.assertEqual(speed.get_xlabel(), 'step')
    for tick in speed.get_xticks():
      self.assertEqual(tick, round(tick))
    labels = losses.get_legend_handles_labels()[1]
    self.assertEqual(labels[:3], ['training', 'validation', 'other split'])
    # Four digits of a small number, too.
    self.assertIn('0.0002 nats, 0.0002885 bits', labels[3])
    for axes in (speed, wait):
      (line,) = axes.lines
      self.assertEqual(axes.yaxis.label.get_color(), line.get_color())
      self.assertEqual(
          axes.yaxis.get_tick_params()['labelcolor'], line.get_color()
      )
    self.assertNotEqual(speed.lines[0].get_color(), wait.lines[0].get_color())

  def test_another_metric_has_a_panel_and_its_best_value_a_star(self):
    with metrics.MetricsWriter(self.workdir, tensorboard=False) as writer:
      for step, accuracy in ((1, 0.5), (2, 0.875), (3, 0.875), (4, 0.25)):
        writer.write(step, {
            'train_loss': 4.0, 'eval_loss': 0.2, 'eval_other_loss': 0.3,
            'train_accuracy': 0.5, 'eval_accuracy': accuracy,
            'tokens_per_second_per_device': 1e5, 'input_wait': 0.01,
        })
    with mock.patch.object(
        matplotlib.figure.Figure, 'savefig', autospec=True
    ) as savefig:
      metrics.plot_curves(
          self.workdir, loss_unit='mean squared error', unit='pixels',
          metric='accuracy', best_mode='max',
      )
    accuracy, loss, speed, _ = savefig.call_args.args[0].axes
    self.assertEqual(accuracy.get_ylabel(), 'accuracy')
    self.assertEqual(
        accuracy.get_legend_handles_labels()[1],
        ['training', 'validation', 'best: 0.875 at step 2'],
    )
    self.assertEqual(loss.get_ylabel(), 'loss, mean squared error')
    self.assertEqual(
        loss.get_legend_handles_labels()[1], ['training', 'validation', 'other']
    )
    self.assertEmpty(loss.child_axes)  # No bits.
    self.assertEqual(speed.get_ylabel(), 'pixels/s\nper device')

  def test_the_title_can_come_from_the_summary(self):
    (self.workdir / 'summary.json').write_text(
        '{"model.layer": "lru", "data.name": "mqar", "parameters": 1000}'
    )
    self.assertEqual(
        curves._title(self.workdir), 'lru on mqar, 1.00k parameters'
    )

  def test_smoothing_follows_a_line_and_removes_noise(self):
    line = np.linspace(4.0, 1.0, 500)
    np.testing.assert_allclose(curves.smooth(line)[:-10], line[:-10])
    np.testing.assert_allclose(curves.smooth(line), line, atol=0.03)
    rough = np.random.default_rng(0).standard_normal(500)
    self.assertLess(np.std(curves.smooth(rough)), 0.4)


if __name__ == '__main__':
  absltest.main()
