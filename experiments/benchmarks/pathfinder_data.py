r"""Generates Pathfinder 32 and some of Path-X, and measures what comes of it.

  python -m experiments.benchmarks.pathfinder_data --data_dir=DIRECTORY

The record has the time and the bytes of both, what all 200,000 images of Path-X
would take, the balance of the classes, and what simple classifiers reach on the
test split: 50 % is chance. Beside it lies a contact sheet with images of both
sizes, positive ones on the left, negative ones on the right.

With `--seconds=N` the command ends after about N seconds; the same command goes
on. Times are summed over all parts.
"""

import json
import os
import pathlib
import resource
import signal
import time

from absl import flags
from absl import logging
from experiments.benchmarks import plots
from experiments.benchmarks import timing
from experiments.cli import drivers
import numpy as np
from PIL import Image
from PIL import ImageDraw
from rnnzoo.data import examples
from rnnzoo.data.builders import pathfinder
import tensorflow_datasets as tfds

_DATA_DIR = drivers.define_path(
    'data_dir', '', 'Where to write the data sets.'
)
_PATHFINDER = flags.DEFINE_integer(
    'pathfinder', pathfinder.NUM_IMAGES, 'Images of 32 x 32 pixels.',
    lower_bound=20,
)
_PATHX = flags.DEFINE_integer(
    'pathx', 2000, 'Images of 128 x 128 pixels.', lower_bound=20
)
_WORKERS = flags.DEFINE_integer(
    'workers', 0, 'The processes that draw; 0 means one for each CPU core.',
    lower_bound=0,
)
_SECONDS = flags.DEFINE_integer(
    'seconds', 0, 'End after about so many seconds; 0 means never.',
    lower_bound=0,
)
_OUT = drivers.define_path(
    'out', 'experiments/results/pathfinder_data.json',
    'The JSON file of the results; the contact sheet has the same name.',
)

# Columns for each class, and rows for each size, of the contact sheet.
_COLUMNS, _ROWS = 4, {32: 3, 128: 2}
_TILE = 128
_LINEAR_IMAGES = 20_000  # That the linear classifier is fitted to.


def prepare(
    data_dir: pathlib.Path, size: int, num_images: int, workers: int
) -> dict[str, float]:
  """Generates a data set, or goes on; returns the seconds of all calls."""
  data_dir.mkdir(parents=True, exist_ok=True)
  log = data_dir / f'seconds_of_{pathfinder.full_name(size)}.jsonl'
  done = data_dir / pathfinder.full_name(size) / pathfinder.VERSION
  if not done.exists():
    started, used = time.perf_counter(), _cpu_seconds()
    try:
      pathfinder.prepare(
          data_dir, size=size, num_images=num_images, workers=workers
      )
    finally:
      part = dict(
          seconds=time.perf_counter() - started,
          cpu_seconds=_cpu_seconds() - used,
      )
      with log.open('a') as file:
        file.write(json.dumps(part) + '\n')
  parts = [json.loads(line) for line in log.read_text().splitlines()]
  return dict(
      parts=len(parts),
      seconds=sum(part['seconds'] for part in parts),
      cpu_seconds=sum(part['cpu_seconds'] for part in parts),
  )


def _cpu_seconds():
  """Seconds of computing, of this process and of those that have ended."""
  return sum(
      sum(resource.getrusage(who)[:2])
      for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
  )


def measure(data_dir: pathlib.Path, size: int) -> dict:
  """Returns the bytes, the balance and what simple classifiers reach."""
  read = pathfinder.read(data_dir, size)
  directory = data_dir / pathfinder.full_name(size) / pathfinder.VERSION
  splits = {
      split: examples.Examples(*arrays) for split, arrays in read.items()
  }
  test, labels = read['test']
  intensity = test.mean((1, 2))
  found = examples.label_baselines(
      splits, vectors=lambda images: images.reshape(len(images), -1) / 255
  )
  return dict(
      bytes_on_disk=sum(path.stat().st_size for path in directory.iterdir()),
      bytes_in_memory=sum(images.nbytes for images, _ in read.values()),
      images={split: len(labels) for split, (_, labels) in read.items()},
      positive={
          split: int(labels.sum()) for split, (_, labels) in read.items()
      },
      different_images=len({
          image.tobytes() for images, _ in read.values() for image in images
      }),
      mean_intensity={
          name: float(intensity[labels == label].mean())
          for name, label in (('positive', 1), ('negative', 0))
      },
      intensity_accuracy=_threshold_accuracy(
          read['train'][0].mean((1, 2)), read['train'][1], intensity, labels
      ),
      centroid_accuracy=found['centroid_accuracy'],
      linear_accuracy=_linear_accuracy(*read['train'], test, labels),
  )


def _threshold_accuracy(train, train_labels, test, labels):
  """Of the best threshold of a number."""
  thresholds = np.quantile(train, np.linspace(0.01, 0.99, 99))
  above = [np.mean((train > t) == train_labels) for t in thresholds]
  best = int(np.argmax(np.abs(np.array(above) - 0.5)))
  right = np.mean((test > thresholds[best]) == labels)
  return float(right if above[best] > 0.5 else 1 - right)


def _linear_accuracy(train, train_labels, test, labels):
  """Of least squares with a penalty, on images of 32 x 32 pixels."""

  def vectors(images):
    count, size = images.shape[:2]
    blocks = images.reshape(count, 32, size // 32, 32, size // 32)
    x = blocks.mean((2, 4), dtype=np.float32).reshape(count, -1) / 255
    return np.concatenate([x, np.ones((count, 1), np.float32)], 1)

  x = vectors(train[:_LINEAR_IMAGES])
  y = 2.0 * train_labels[:_LINEAR_IMAGES] - 1
  weights = np.linalg.solve(
      (x.T @ x).astype(np.float64) + 1e-3 * len(x) * np.eye(x.shape[1]),
      x.T @ y,
  )
  return float(np.mean((vectors(test) @ weights > 0) == labels))


def contact_sheet(data_dir: pathlib.Path) -> Image.Image:
  """Returns some training images, positive ones on the left."""
  lines = []
  for size, rows in _ROWS.items():
    images, labels = pathfinder.read(data_dir, size)['train']
    halves = []
    for label in (1, 0):
      tiles = images[labels == label][: rows * _COLUMNS]
      tiles = tiles.repeat(_TILE // size, 1).repeat(_TILE // size, 2)
      tiles = np.pad(tiles, ((0, 0), (2, 2), (2, 2)), constant_values=96)
      tiles = tiles.reshape(rows, _COLUMNS, *tiles.shape[1:])
      tiles = tiles.swapaxes(1, 2).reshape(rows * tiles.shape[2], -1)
      halves.append(np.pad(tiles, ((0, 0), (8, 8)), constant_values=255))
    lines.append(np.concatenate(halves, 1))
  sheet = np.concatenate(lines)
  sheet = np.pad(sheet, ((24, 0), (0, 0)), constant_values=255)
  image = Image.fromarray(sheet)
  write = ImageDraw.Draw(image).text
  write((12, 6), 'positive: two ends of one contour', fill=0)
  write((12 + sheet.shape[1] // 2, 6), 'negative: ends of two contours', fill=0)
  return image


def main(argv):
  drivers.check_usage(argv, data_dir=_DATA_DIR.value)
  logging.set_verbosity(logging.ERROR)
  tfds.disable_progress_bar()
  signal.signal(signal.SIGALRM, signal.default_int_handler)
  signal.alarm(_SECONDS.value)
  data_dir = pathlib.Path(_DATA_DIR.value)
  sizes = {32: _PATHFINDER.value, 128: _PATHX.value}
  workers = _WORKERS.value or os.cpu_count() or 1
  record = dict(timing.environment(), workers=workers)
  for size, num_images in sizes.items():
    times = prepare(data_dir, size, num_images, workers)
    row = dict(times, images_per_cpu_second=num_images / times['cpu_seconds'])
    record[pathfinder.full_name(size)] = row | measure(data_dir, size)
  pathx = record[pathfinder.full_name(128)]
  factor = pathfinder.NUM_IMAGES / sizes[128]
  record['projected_pathfinder128'] = dict(images=pathfinder.NUM_IMAGES, **{
      name: factor * pathx[name]
      for name in ('seconds', 'cpu_seconds', 'bytes_on_disk', 'bytes_in_memory')
  })
  signal.alarm(0)
  path = timing.write(record, _OUT.value)
  sheet = plots.write(contact_sheet(data_dir), path)
  print(f'Wrote {path} and {sheet}.')


if __name__ == '__main__':
  drivers.run(main)
