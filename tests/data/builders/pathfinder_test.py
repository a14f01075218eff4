"""Generated images of Pathfinder, and those in the layout of the release."""

import functools
import os
import pathlib
import subprocess
import sys
import tempfile
from unittest import mock
import zlib

from absl.testing import absltest
from absl.testing import parameterized
import numpy as np
from PIL import Image
from rnnzoo import data
from rnnzoo import errors
from rnnzoo.data.builders import pathfinder
from rnnzoo.data.builders import pathfinder_contours as contours
from rnnzoo.data.builders import pathfinder_drawing as drawing
from rnnzoo.data.builders import pathfinder_release as release

EASY = contours.RULES[16]


def dots(scene, rules, image):
  """The points of the dashes of one image, `[E, 21, 2]`, ends included."""
  there = scene.contours[image] >= 0
  radians = np.radians(scene.angles[image, there])
  unit = np.stack([np.sin(radians), np.cos(radians)], -1)
  steps = np.linspace(0, rules.dash_length, 21)
  return scene.tails[image, there][:, None] + steps[:, None] * unit[:, None]


def reached(start, neighbours):
  """All that a walk from `start` over neighbours comes to."""
  found, todo = set(), [start]
  while todo:
    at = todo.pop()
    if at not in found:
      found.add(at)
      todo.extend(np.flatnonzero(neighbours[at]).tolist())
  return found


class DrawingTest(parameterized.TestCase):

  @parameterized.parameters((16, 40), (32, 12), (128, 6))
  def test_a_walk_over_dashes_leads_from_dot_to_dot_or_not(self, size, count):
    rules, labels = contours.RULES[size], np.arange(count) % 2
    scene = contours.compose(rules, 0, range(count), labels)
    for image in range(count):
      points = dots(scene, rules, image)
      shift = points[:, None, :, None] - points[None, :, None]
      distance = np.sqrt((shift**2).sum(-1)).min((2, 3))  # [E, E]
      gap = 2 * scene.margins[image]
      # Distances are those of neighbours, or clearly larger.
      neighbours = distance < gap + 1e-3
      self.assertGreater(
          distance[~neighbours].min(), gap + 0.8 * rules.thickness
      )
      ends = []
      for marker in scene.markers[image]:
        to_ends = np.abs(points[:, [0, -1]] - marker).max(-1).min(-1)
        self.assertLess(to_ends.min(), 1e-4)
        ends.append(int(to_ends.argmin()))
      walk = reached(ends[0], neighbours)
      self.assertLen(walk, rules.contour_length)
      self.assertEqual(ends[1] in walk, bool(labels[image]))
      edge = rules.padding + scene.margins[image]
      self.assertGreater(points.min(), edge)
      self.assertLess(points.max(), size - edge)

  def test_the_published_numbers(self):
    rules = contours.RULES[32]
    self.assertEqual(
        (rules.dash_length, rules.marker_radius, rules.contour_length,
         rules.distractor_length, rules.distractors, rules.padding),
        (2, 1.5, 14, 4, 5, 1),
    )
    scene = contours.compose(rules, 0, range(20), np.zeros(20, int))
    counts = np.stack([np.bincount(u[u >= 0], minlength=7)
                       for u in scene.contours])
    self.assertTrue((counts[:, :2] == 14).all())
    self.assertEqual(set(counts[:, 2:].ravel()), {0, 4})
    self.assertGreater((counts[:, 2:] == 4).mean(), 0.4)

  def test_images(self):
    labels = np.arange(20) % 2
    images = drawing.draw(EASY, 3, range(20), labels)
    self.assertEqual((images.shape, images.dtype), ((20, 16, 16), np.uint8))
    scene = contours.compose(EASY, 3, range(20), labels)
    dashes = drawing.render(EASY, scene._replace(
        markers=np.full_like(scene.markers, 8)
    ))
    border = np.ones((16, 16), bool)
    border[1:-1, 1:-1] = False
    self.assertTrue((dashes[:, border] == 0).all())
    y = np.arange(16)[:, None] + 0.5
    x = np.arange(16) + 0.5
    for image, markers in zip(images, scene.markers):
      disc = np.min([np.hypot(y - v, x - u) for v, u in markers], 0)
      self.assertTrue((image[disc < 1] == 255).all())  # Radius 1.5, less 0.5.
    # One long dash on a row of pixels: it covers half of each of them.
    scene = contours.Scene(
        np.array([[[8.5, 4.0]]], np.float32), np.zeros((1, 1), np.int32),
        np.zeros((1, 1), np.int32), np.ones(1, np.float32),
        np.full((1, 2, 2), 2, np.float32),
    )
    rules = contours.Rules(
        16, dash_length=8, contrasts=(1.5, 2), marker_radius=0.5
    )
    image = drawing.render(rules, scene)[0]
    self.assertTrue((image[8, 4:12] == round(255 * 1.5 / 2)).all())
    self.assertFalse(image[[6, 10]].any())

  def test_an_image_depends_on_seed_number_and_label_alone(self):
    labels = np.array([1, 0, 1])
    together = drawing.draw(EASY, 7, [5, 900, 6], labels)
    for row, number in enumerate((5, 900, 6)):
      alone = drawing.draw(EASY, 7, [number], labels[row : row + 1])
      np.testing.assert_array_equal(alone[0], together[row])
    for seed, label in ((8, 1), (7, 0)):
      other = drawing.draw(EASY, seed, [5], np.array([label]))
      self.assertTrue((other[0] != together[0]).any())

  def test_no_class_is_brighter(self):
    labels = np.arange(1000) % 2
    means = drawing.draw(EASY, 0, range(1000), labels).mean((1, 2))
    classes = means[labels == 1], means[labels == 0]
    error = np.sqrt(sum(u.var() / len(u) for u in classes))
    self.assertLess(abs(classes[0].mean() - classes[1].mean()), 4 * error)


class BuilderTest(parameterized.TestCase):

  def setUp(self):
    super().setUp()
    self.place = pathlib.Path(self.enterContext(tempfile.TemporaryDirectory()))
    self.data_dir = self.place / 'data'
    self.prepare = functools.partial(
        pathfinder.prepare, size=16, num_images=1240, workers=1
    )
    # Bars would hide the failures.
    self.enterContext(mock.patch('tqdm.tqdm', self.bar))
    self.shown = []

  def bar(self, *, total, **unused):
    self.shown.append(shown := mock.MagicMock(total=total, n=0))
    shown.update.side_effect = lambda n: setattr(shown, 'n', shown.n + n)
    return shown

  def assert_same(self, found, expected):
    self.assertEqual(found.keys(), expected.keys())
    for split, arrays in expected.items():
      for array, other in zip(found[split], arrays, strict=True):
        np.testing.assert_array_equal(array, other)

  def test_splits_are_balanced_and_workers_do_not_matter(self):
    directory = self.prepare(self.data_dir)
    self.assertEqual(directory, self.data_dir / 'pathfinder16' / '1.0.0')
    self.assertEqual(list(directory.parent.iterdir()), [directory])
    self.assertEqual([bar.n for bar in self.shown], [1240])
    self.assertEqual(self.prepare(self.data_dir), directory)  # There already.
    found = pathfinder.read(self.data_dir, 16)
    self.assertEqual(
        {split: len(labels) for split, (_, labels) in found.items()},
        dict(train=992, validation=124, test=124),
    )
    for images, labels in found.values():
      self.assertEqual(labels.mean(), 0.5)
      self.assertEqual((images.dtype, labels.dtype), (np.uint8, np.int32))
    images, labels = map(np.concatenate, zip(*found.values()))
    np.testing.assert_array_equal(
        images, drawing.draw(EASY, 0, range(1240), labels)
    )
    self.assertEqual(
        pathfinder.origin(self.data_dir, 16),
        dict(seed=0, num_images=1240, generator=1),
    )
    self.prepare(self.place / 'two', workers=2)
    self.assert_same(pathfinder.read(self.place / 'two', 16), found)

  def test_it_goes_on_after_a_stop(self):
    draw, drawn = pathfinder.draw_chunk, []

    def stop(rules, seed, num_images, number):
      if number == 2:
        raise KeyboardInterrupt
      drawn.append(number)
      return draw(rules, seed, num_images, number)

    def count(*args):
      drawn.append(args[-1])
      return draw(*args)

    with (
        mock.patch.object(pathfinder, 'draw_chunk', stop),
        self.assertRaises(KeyboardInterrupt),
    ):
      self.prepare(self.data_dir)
    directory = self.data_dir / 'pathfinder16'
    self.assertFalse((directory / '1.0.0').exists())
    self.assertLen(list(directory.glob('chunks*/*.npz')), 2)
    with mock.patch.object(pathfinder, 'draw_chunk', count):
      self.prepare(self.data_dir)
    self.assertEqual(drawn, [0, 1, 2])
    images, labels = map(
        np.concatenate, zip(*pathfinder.read(self.data_dir, 16).values())
    )
    np.testing.assert_array_equal(
        images, drawing.draw(EASY, 0, range(1240), labels)
    )

  def test_fewer_images_are_the_first_ones(self):
    few, many = (
        pathfinder.draw_chunk(EASY, 0, count, 1) for count in (520, 540)
    )
    for name, array in few.items():
      self.assertLen(array, 20)
      np.testing.assert_array_equal(array, many[name][:20])

  def test_errors(self):
    self.prepare(self.data_dir, num_images=20)
    for fields, message in (
        (dict(size=64), '--size must be one of 16, 32, 128, got 64'),
        (dict(num_images=30), 'must be a positive multiple of 20.*got 30'),
        (dict(num_images=0), 'must be a positive multiple of 20'),
        (dict(manual_dir=self.place), 'no --manual_dir.*pathfinder_release'),
        (dict(num_images=40), '--num_images=20, not with --num_images=40'),
        (
            dict(num_images=20, seed=1),
            'pathfinder16 was prepared with --seed=0, not with --seed=1',
        ),
    ):
      with self.assertRaisesRegex(errors.UserValueError, message) as caught:
        self.prepare(self.data_dir, **fields)
      self.assertNotIn('\n', str(caught.exception))
    (self.place / 'file').write_text('')
    with self.assertRaisesRegex(errors.UserError, 'could not be prepared'):
      self.prepare(self.place / 'file')

  @parameterized.parameters(
      ('generated', 'To generate it: python scripts/prepare_datasets.py '
       'pathfinder --size=128 --data_dir='),
      ('release', 'scripts/prepare_datasets.py pathfinder_release --size=128 '
       '--data_dir=.* --manual_dir=DIR, where DIR has the folder '
       'pathfinder128/curv_contour_length_14 of https://'),
  )
  def test_never_prepared(self, source, message):
    with self.assertRaisesRegex(errors.UserFileNotFoundError, message):
      data.load(
          dict(name='pathfinder', size=128, source=source,
               data_dir=str(self.data_dir)),
          batch_size=4, seed=0,
      )

  def test_the_command(self):
    root = pathlib.Path(__file__).parents[3]
    ended = subprocess.run(
        [sys.executable, root / 'scripts/prepare_datasets.py', 'pathfinder',
         '--size=16', '--num_images=40', '--workers=1', '--seed=3',
         f'--data_dir={self.data_dir}'],
        env=os.environ | {'PYTHONPATH': str(root)},
        capture_output=True, text=True, timeout=120,
    )
    self.assertEqual(ended.returncode, 0, ended.stderr)
    self.assertIn('40/40', ended.stderr)  # The bar, with the images a second.
    self.assertIn(
        'pathfinder train: 32 images of 16 x 16 pixels, 16 of them positive\n',
        ended.stdout,
    )
    self.assertEqual(pathfinder.origin(self.data_dir, 16)['seed'], 3)


class ReleaseTest(parameterized.TestCase):

  def setUp(self):
    super().setUp()
    place = pathlib.Path(self.enterContext(tempfile.TemporaryDirectory()))
    self.data_dir, self.manual_dir = place / 'data', place / 'release'
    self.folder = self.manual_dir / 'pathfinder16' / release.LEVEL
    release.write_fixture_files(self.manual_dir, 16, 60)
    self.enterContext(mock.patch('tqdm.tqdm'))

  def prepare(self, **fields):
    return release.prepare(
        self.data_dir, self.manual_dir, **dict(size=16, num_images=60) | fields
    )

  def test_the_layout_of_the_release(self):
    self.assertTrue((self.folder / 'imgs/1/sample_29.png').is_file())
    lines = (self.folder / 'metadata/1.npy').read_text().splitlines()
    self.assertLen(lines, 30)
    self.assertRegex(
        lines[4], r'^imgs/1 sample_4\.png 4 [01] 1\.0 3 4 2 0\.5 1 1$'
    )

  def test_roundtrip(self):
    expected = pathfinder.draw_chunk(EASY, 1, 60, 0)
    items = release.find_items(self.manual_dir, 16)
    self.assertEqual([u.label for u in items], expected['labels'].tolist())
    for item, image in zip(items, expected['images'], strict=True):
      np.testing.assert_array_equal(release.read_image(item.path, 16), image)
    directory = self.prepare()
    self.assertEqual(
        directory, self.data_dir / 'pathfinder16_release' / '1.0.0'
    )
    found = release.read(self.data_dir, 16)
    self.assertEqual(
        [len(labels) for _, labels in found.values()], [48, 6, 6]
    )
    label_of = {
        image.tobytes(): label
        for image, label in zip(expected['images'], expected['labels'])
    }
    seen = {
        image.tobytes(): label for images, labels in found.values()
        for image, label in zip(images, labels)
    }
    self.assertEqual(seen, label_of)  # Each image once, with its label.
    self.assertIn('48 images of 16 x 16', release.describe(
        self.data_dir, 16)['train'])

  def test_files_are_in_the_order_of_their_numbers(self):
    lines = (self.folder / 'metadata/1.npy').read_text()
    (self.folder / 'metadata/10.npy').write_text(lines)
    (self.folder / 'metadata/1.npy').rename(self.folder / 'metadata/9.npy')
    items = release.find_items(self.manual_dir, 16)
    self.assertLen(items, 90)
    self.assertEqual(items[30:60], items[60:])
    (self.folder / 'metadata/._0.npy').write_bytes(b'\0\xff')
    self.assertEqual(release.find_items(self.manual_dir, 16), items)

  def test_the_corrupt_file_is_left_out(self):
    name = 'sample_172.png'
    folder = self.manual_dir / 'pathfinder32' / 'curv_baseline'
    (folder / 'metadata').mkdir(parents=True)
    (folder / 'metadata/0.npy').write_text(
        f'imgs/0 {name} 172 1\nimgs/0 sample_173.png 173 0\n'
    )
    items = release.find_items(self.manual_dir, 32, 'curv_baseline')
    self.assertEqual(
        items, [release.Item(folder / 'imgs/0/sample_173.png', 0)]
    )

  @parameterized.parameters(
      'imgs/0 sample_1.png 1', 'imgs/0 sample_1.png 1 2 1.0', '',
      'imgs/../x sample_1.png 1 1', 'imgs/0 ../sample_1.png 1 1',
  )
  def test_damaged_lines(self, line):
    path = self.folder / 'metadata/1.npy'
    path.write_text(f'imgs/1 sample_0.png 0 1 1.0 3 4 2 0.5 1 1\n{line}\n')
    with self.assertRaisesRegex(
        errors.UserValueError, f'^Line 2 of {path} is damaged: it must start'
    ):
      self.prepare()

  def test_damaged_images(self):
    path = self.folder / 'imgs/0/sample_7.png'
    content = path.read_bytes()
    # The width, after the name of the part that has it.
    wide = content[:16] + b'\x7f\xff\xff\xff' + content[20:29]
    wide += zlib.crc32(wide[12:29]).to_bytes(4, 'big') + content[33:]
    for damaged in (
        b'', b'text', content[: len(content) // 2], content[:20], wide
    ):
      path.write_bytes(damaged)
      with self.assertRaisesRegex(
          errors.UserError, f'^{path} cannot be read: .*unpack https://'
      ) as caught:
        self.prepare()
      self.assertNotIn('\n', str(caught.exception))
    Image.fromarray(np.zeros((16, 17), np.uint8)).save(path)
    with self.assertRaisesRegex(errors.UserValueError, '16 x 16.*got 16 x 17'):
      self.prepare()
    path.unlink()
    with self.assertRaisesRegex(errors.UserError, f'{path} cannot be read'):
      self.prepare()
    self.assertFalse((self.data_dir / 'pathfinder16_release/1.0.0').exists())

  def test_what_is_not_there(self):
    with self.assertRaisesRegex(
        errors.UserValueError, 'must have 200,000 images, got 60. It is not'
    ):
      self.prepare(num_images=release.NUM_IMAGES)
    with self.assertRaisesRegex(
        errors.UserFileNotFoundError,
        f'in {self.manual_dir}/pathfinder32/curv_contour_length_14. '
        '--manual_dir must name .*https://',
    ):
      self.prepare(size=32)
    with self.assertRaisesRegex(
        errors.UserValueError, 'needs --manual_dir=DIR.*https://'
    ):
      release.prepare(self.data_dir)


class DataSetTest(absltest.TestCase):

  def test_pixels_and_fields(self):
    directory = self.enterContext(tempfile.TemporaryDirectory())
    definition = data.find('pathfinder')
    definition.write_fixture(pathlib.Path(directory), dict(size=16))
    load = functools.partial(data.load, batch_size=40, seed=0)
    config = dict(name='pathfinder', size=16, data_dir=directory)
    dataset = load(config)
    images, labels = pathfinder.read(pathlib.Path(directory), 16)['test']
    (batch,) = dataset.eval_batches('test')
    self.assertEqual(
        (dataset.sequence_length, dataset.in_features, dataset.num_classes),
        (256, 1, 2),
    )
    self.assertEqual(batch['inputs'].dtype, np.uint8)
    np.testing.assert_array_equal(
        batch['inputs'], images.reshape(40, 256, 1)
    )
    # The model makes 0 and 255 to -1 and 1.
    scale, offset = dataset.input_scale, dataset.input_offset
    self.assertEqual((scale, offset), ((127.5,), (127.5,)))
    np.testing.assert_array_equal(batch['targets'], labels)
    baselines = dataset.baselines()
    self.assertEqual(baselines['majority_accuracy'], 0.5)
    other = load(config | dict(source='release'))
    self.assertNotEqual(other.source['sha256'], dataset.source['sha256'])
    self.assertTrue(dataset.fixture)
    with self.assertRaisesRegex(
        errors.UserValueError, 'data.size must be one of 16, 32, 128, got 64'
    ):
      load(config | dict(size=64))


if __name__ == '__main__':
  absltest.main()
