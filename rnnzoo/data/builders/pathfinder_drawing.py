"""Images of Pathfinder: two marked ends, of one dashed contour or of two.

`pathfinder_contours.py` says what is to be seen, and where the numbers of the
rules come from. How it becomes pixels is ours: a pixel has the part of it that
the nearest dash covers, as if the dash were straight and endless, times the
contrast, at most 1. An image is a function of the seed, its number and its
label.
"""

from collections.abc import Sequence

import numpy as np
from rnnzoo.data.builders import pathfinder_contours as contours_lib


def draw(
    rules: contours_lib.Rules,
    seed: int,
    numbers: Sequence[int],
    labels: np.ndarray,
) -> np.ndarray:
  """Returns images `[N, size, size]` uint8.

  >>> draw(contours_lib.RULES[32], 0, [7], np.array([1])).shape
  (1, 32, 32)

  Args:
    rules: How they look.
    seed: An integer in [0, 2**32).
    numbers: The number of each image; with other numbers come other images.
    labels: 1 for a positive image, 0 for a negative one, `[N]`.
  """
  return render(rules, contours_lib.compose(rules, seed, numbers, labels))


def render(rules: contours_lib.Rules, scene: contours_lib.Scene) -> np.ndarray:
  """Returns the images of a scene, `[N, size, size]` uint8."""
  count, size = len(scene.tails), rules.size
  # Rows and columns around the image take what lies outside of it.
  reach = int(np.ceil(
      max(rules.dash_length + rules.thickness / 2, rules.marker_radius) + 0.5
  ))
  canvas = np.zeros((count, size + 2 * reach, size + 2 * reach), np.float32)

  def paint(present, centres, half, value):
    """Brightens the pixels less than `half` from the centres, `[n, 2]`."""
    rows = np.flatnonzero(present)
    corner = np.floor(centres[rows]).astype(int) - half
    offsets = np.arange(2 * half + 1)
    y = corner[:, 0, None, None] + offsets[:, None] + reach
    x = corner[:, 1, None, None] + offsets + reach
    place = rows[:, None, None], y, x
    half_pixel = np.float32(0.5) - reach
    canvas[place] = np.maximum(
        canvas[place],
        value(rows, y.astype(np.float32) + half_pixel,
              x.astype(np.float32) + half_pixel),
    )

  length = np.float32(rules.dash_length)
  half_dash = int(np.ceil(length / 2 + rules.thickness / 2 + 0.5))
  for dash in range(scene.tails.shape[1]):
    tails, angles = scene.tails[:, dash], scene.angles[:, dash]
    contours = scene.contours[:, dash]
    unit = contours_lib.direction(angles)

    def brightness(rows, y, x):
      start, u = tails[rows][:, :, None, None], unit[rows][:, :, None, None]
      distance = np.sqrt(contours_lib.squared_distance(
          y, x, start[:, 0], start[:, 1], u[:, 0], u[:, 1], length
      ))
      short = contours[rows] > 1
      contrast = np.where(short, *rules.contrasts[::-1]).astype(np.float32)
      cover = _cover(distance, rules.thickness / 2)
      return np.minimum(contrast[:, None, None] * cover, np.float32(1))

    paint(contours >= 0, tails + length / 2 * unit, half_dash, brightness)
  half_marker = int(np.ceil(rules.marker_radius + 0.5))
  for marker in range(2):
    centres = scene.markers[:, marker]

    def disc(rows, y, x):
      centre = centres[rows][:, :, None, None]
      distance = np.sqrt((y - centre[:, 0])**2 + (x - centre[:, 1])**2)
      return np.clip(np.float32(rules.marker_radius + 0.5) - distance, 0, 1)

    paint(np.full(count, True), centres, half_marker, disc)
  inner = canvas[:, reach:-reach, reach:-reach]
  return (inner * np.float32(255) + np.float32(0.5)).astype(np.uint8)


def _cover(distance, half):
  """The part of a pixel that a stripe of a half thickness covers."""
  near = np.clip(np.float32(0.5 + half) - distance, 0, 1)
  return near - np.clip(np.float32(0.5 - half) - distance, 0, 1)
