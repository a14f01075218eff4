"""What is to be seen in images of Pathfinder: contours of dashes, and two dots.

The task is that of Linsley et al. (2018), https://arxiv.org/abs/1805.08315, in
the form of the Long Range Arena, https://arxiv.org/abs/2011.04006. Two long
contours of dashes grow side by side, short contours distract, and two dots mark
ends. In a positive image they are the two ends of one contour. In a negative
image the second one is the far end of the other contour.

The numbers in `RULES` are those that the Long Range Arena states for its
images (`lra_benchmarks/data/pathfinder.py` of its repository; a contrast is the
product of two of them), but for the size 16, which is ours.

These rules are ours, as no publication states them:

- There are no single dashes beside the contours.
- A contour bends between two dashes by a whole number of degrees. A bend by `d`
  has the weight `cos(min(continuity * d, 90 degrees))**2`, or 0 if the dash
  would come too close to anything.
- Two dashes that do not follow each other in a contour are at least
  `2 * margin + thickness` apart, from axis to axis, measured at points of the
  later one that are at most a margin apart. Those that do follow each other are
  at most `2 * margin` apart. So distance alone tells contours apart.
- The two long contours start `seed_distance` apart, at a random point that is
  at least `2 * seed_distance` from the border. They grow in turns. If one
  cannot go on, both are drawn anew.
- A short contour has `TRIALS` trials to find room; after that it is left out.

Every image is a function of the seed, its number and its label. Random numbers
become positions by additions, products and square roots of float32, which are
exact everywhere, and by cosines that are rounded.
"""

from collections.abc import Sequence
import dataclasses
from typing import NamedTuple

import numpy as np

# The first dash of a short contour is the first that fits of so many; the whole
# contour is tried so often.
STARTS = 16
TRIALS = 5
# Attempts at a pair of long contours that share a random number generator, and
# attempts that are made at once, at least.
_BLOCK = 8
_ROWS = 512
_TURN = 10  # Degrees between the bends that are tried.
_EXTEND = 5  # Random numbers that a new dash needs.
_FAR = np.float32(1e4)  # Where dashes lie that are not there.
_ANGLES = np.radians(np.arange(360))
# Rounded, they are the same on every machine.
_COS = np.cos(_ANGLES).round(6).astype(np.float32)
_SIN = np.sin(_ANGLES).round(6).astype(np.float32)


@dataclasses.dataclass(frozen=True)
class Rules:
  """The numbers that describe the images of one size, in pixels.

  Attributes:
    size: The height and the width of an image.
    contour_length: Dashes of a long contour.
    distractor_length: Dashes of a short contour.
    distractors: The number of short contours.
    dash_length: The length of a dash ("paddle").
    thickness: Its thickness.
    margins: Half of the gap between dashes; each image has one of them.
    marker_radius: The radius of the dots.
    seed_distance: The distance of the starts of the long contours.
    continuity: How straight contours are.
    contrasts: The brightness of long and of short contours; dots have 1.
    padding: The border that dashes leave empty.
  """

  size: int
  contour_length: int = 14
  distractor_length: int = 14 // 3
  distractors: int = 20 // (14 // 3)
  dash_length: int = 2
  thickness: float = 0.5
  margins: tuple[int, ...] = (1,)
  marker_radius: float = 1.5
  seed_distance: int = 7
  continuity: float = 1.0
  contrasts: tuple[float, float] = (1.5, 2.0)
  padding: int = 1


RULES = {
    # Small and easy, to try out programs.
    16: Rules(16, contour_length=3, distractors=0, seed_distance=4),
    32: Rules(32),
    128: Rules(
        128, distractors=35 // (14 // 3), dash_length=5, thickness=1.5,
        margins=(2, 3), marker_radius=3.0, seed_distance=20, continuity=1.8,
        contrasts=(0.9, 0.9),
    ),
}


class Scene(NamedTuple):
  """What is to be seen in `N` images; points are `(y, x)` in pixels, float32.

  Attributes:
    tails: Where the `E` dashes of each image start, `[N, E, 2]`.
    angles: Their directions in degrees, `[N, E]` int32.
    contours: The number of the contour of each dash, `[N, E]`: 0 and 1 are the
      long ones; -1 where there is no dash.
    margins: The margin of each image, `[N]`.
    markers: The two dots, `[N, 2, 2]`.
  """

  tails: np.ndarray
  angles: np.ndarray
  contours: np.ndarray
  margins: np.ndarray
  markers: np.ndarray

  def take(self, rows) -> 'Scene':
    """Returns the images at `rows`."""
    return Scene(*(array[rows] for array in self))


def compose(
    rules: Rules,
    seed: int,
    numbers: Sequence[int] | np.ndarray,
    labels: np.ndarray,
) -> Scene:
  """Returns what is to be seen in images, see `pathfinder_drawing.draw`."""
  numbers = np.asarray(numbers)
  scene = _long_contours(rules, seed, numbers)
  if rules.distractors:
    scene = _add_distractors(rules, seed, numbers, scene)
  rows = np.arange(len(numbers))
  first = (_uniforms(seed, numbers, 'markers', 0, 1)[:, 0] < 0.5).astype(int)
  second = np.where(labels, first, 1 - first)
  last = 2 * (rules.contour_length - 1) + second
  ends = scene.tails[rows, last] + rules.dash_length * direction(
      scene.angles[rows, last]
  )
  return scene._replace(markers=np.stack([scene.tails[rows, first], ends], 1))


def direction(angles):
  """Unit vectors `(y, x)` of angles in degrees, `[..., 2]` float32."""
  return np.stack([_SIN[angles % 360], _COS[angles % 360]], -1)


def squared_distance(y, x, tail_y, tail_x, unit_y, unit_x, length):
  """The squared distance of points from dashes, broadcast."""
  y, x = y - tail_y, x - tail_x
  along = np.clip(y * unit_y + x * unit_x, 0, length)
  y, x = y - along * unit_y, x - along * unit_x
  return y * y + x * x


_STREAMS = {'contours': 0, 'distractors': 1, 'markers': 2, 'labels': 3}


def generator(
    seed: int, number: int, stream: str, block: int = 0
) -> np.random.Generator:
  """Returns the random number generator of an image, or of a chunk."""
  # Philox is a function of (key, counter), and counts in the first word.
  return np.random.Generator(np.random.Philox(
      key=np.array([seed, number], np.uint64),
      counter=np.array([0, 0, block, _STREAMS[stream]], np.uint64),
  ))


def _uniforms(seed, numbers, stream, blocks, count):
  """Random numbers in [0, 1), `[N, count]` float32, a row for each image."""
  blocks = np.broadcast_to(blocks, len(numbers))
  found = np.empty((len(numbers), count), np.float32)
  for row, (number, block) in enumerate(zip(numbers, blocks, strict=True)):
    rng = generator(seed, number, stream, block)
    rng.random(out=found[row], dtype=np.float32)
  return found


def _pick(uniform, count):
  """Integers in `[0, count)` from numbers in [0, 1)."""
  return np.minimum((uniform * count).astype(np.int32), count - 1)


def _fits(rules, margins, tails, angles, old_tails, old_angles):
  """Which new dashes keep their distance from the border and from old dashes.

  Args:
    rules: The rules.
    margins: `[N]`.
    tails: Of `C` possible dashes, `[N, C, 2]`.
    angles: `[N, C]`.
    old_tails: Of the dashes that are there, `[N, E, 2]`.
    old_angles: `[N, E]`.

  Returns:
    A bool array `[N, C]`.
  """
  length = np.float32(rules.dash_length)
  unit, old_unit = direction(angles), direction(old_angles)
  near = (
      rules.padding + margins + np.float32(rules.thickness / 2)
  )[:, None, None]
  heads = tails + length * unit
  fits = (np.minimum(tails, heads) >= near).all(-1)
  fits &= (np.maximum(tails, heads) <= rules.size - near).all(-1)
  # Dashes whose middles are farther apart than this need no closer look.
  apart = 2 * margins + np.float32(rules.thickness)
  middles, old_middles = tails + length / 2 * unit, old_tails + (
      length / 2 * old_unit
  )
  y = middles[:, :, None, 0] - old_middles[:, None, :, 0]
  x = middles[:, :, None, 1] - old_middles[:, None, :, 1]
  reach = (length + apart)[:, None, None]
  row, new, old = np.nonzero(
      (y * y + x * x < reach * reach) & fits[:, :, None]
  )
  # Points of a dash, so close that none of another can slip between them.
  steps = -(-rules.dash_length // min(rules.margins))
  along = np.arange(steps + 1, dtype=np.float32)
  along *= np.float32(rules.dash_length / steps)
  points = tails[row, new][:, None] + along[:, None] * unit[row, new][:, None]
  start, u = old_tails[row, old, :, None], old_unit[row, old, :, None]
  squared = squared_distance(
      points[..., 0], points[..., 1], start[:, 0], start[:, 1], u[:, 0],
      u[:, 1], length,
  )
  close = (squared < apart[row, None] ** 2).any(1)
  fits[row[close], new[close]] = False
  return fits


def _extend(rules, margins, heads, angles, uniforms, old_tails, old_angles):
  """Returns the next dash of each contour: tail, angle, and whether there is.

  Args:
    rules: The rules.
    margins: `[N]`.
    heads: Where the last dashes end, `[N, 2]`.
    angles: Their angles, `[N]`.
    uniforms: Random numbers, `[N, _EXTEND]`.
    old_tails: The other dashes, `[N, E, 2]`.
    old_angles: `[N, E]`.
  """
  widest = int(90 / rules.continuity) // _TURN * _TURN
  bends = np.arange(-widest, widest, _TURN)
  weights = np.cos(np.radians(rules.continuity * (bends + _TURN / 2)))
  weights = (weights.round(6) ** 2).astype(np.float32)
  within = _pick(uniforms[:, 0], _TURN)

  def dashes(rows, bends):
    """Dashes with these bends, `[n, C]`, and which of them fit."""
    margin = margins[rows, None, None]
    pivots = heads[rows, None] + margin * direction(angles[rows, None])
    turned = (angles + within)[rows, None] + bends
    tails = pivots + margin * direction(turned)
    fits = _fits(
        rules, margins[rows], tails, turned, old_tails[rows], old_angles[rows]
    )
    return tails, turned, fits

  # Some are drawn by their weights; the first that fits is the next dash. If
  # none fits, one of all that fit is drawn, which are more work to find. The
  # probabilities are the same.
  rows = np.arange(len(heads))
  sums = np.cumsum(weights)
  drawn = np.searchsorted(sums, uniforms[:, 1:-1] * sums[-1], side='right')
  tails, turned, fits = dashes(rows, bends[np.minimum(drawn, len(bends) - 1)])
  chosen = fits.argmax(1)
  tail, angle = tails[rows, chosen], turned[rows, chosen]
  found = fits[rows, chosen]
  rest = np.flatnonzero(~found)
  tails, turned, fits = dashes(rest, bends[None])
  sums = np.cumsum(fits * weights, 1, dtype=np.float32)
  chosen = (sums <= uniforms[rest, -1:] * sums[:, -1:]).sum(1)
  chosen = np.minimum(chosen, len(bends) - 1)
  rows = np.arange(len(rest))
  tail[rest], angle[rest] = tails[rows, chosen], turned[rows, chosen]
  found[rest] = fits[rows, chosen]
  return tail, angle, found


def _long_contours(rules, seed, numbers):
  """Returns the scenes with both long contours, without markers."""
  dashes = 2 * rules.contour_length + (
      rules.distractors * rules.distractor_length
  )
  count = len(numbers)
  scene = Scene(
      np.full((count, dashes, 2), _FAR), np.zeros((count, dashes), np.int32),
      np.full((count, dashes), -1, np.int32), np.zeros(count, np.float32),
      np.zeros((count, 2, 2), np.float32),
  )
  done = 2 * rules.contour_length
  each = 6 + 2 * _EXTEND * (rules.contour_length - 1)
  left, block = np.arange(count), 0
  while len(left):
    # The first attempt that succeeds counts, however many are made at once.
    blocks = max(1, _ROWS // (_BLOCK * len(left)))
    uniforms = _uniforms(
        seed, np.repeat(numbers[left], blocks), 'contours',
        np.tile(np.arange(block, block + blocks), len(left)), _BLOCK * each,
    ).reshape(-1, each)
    rows = np.repeat(left, blocks * _BLOCK)
    tails, angles, margins, kept = _attempt(rules, uniforms)
    successes, first = np.unique(rows[kept], return_index=True)
    scene.tails[successes, :done] = tails[first]
    scene.angles[successes, :done] = angles[first]
    scene.margins[successes] = margins[first]
    scene.contours[successes, :done] = np.arange(done) % 2
    left, block = np.setdiff1d(left, successes), block + blocks
  return scene


def _attempt(rules, uniforms):
  """Draws two contours for each row; returns the rows that have both.

  Args:
    rules: The rules.
    uniforms: Random numbers in [0, 1), `[N, ...]`.

  Returns:
    Tails `[n, 2 * contour_length, 2]`, angles, margins `[n]`, and the indices
    `[n]` of these rows, in ascending order. The dashes of the two contours take
    turns.
  """
  margins = np.array(rules.margins, np.float32)[
      _pick(uniforms[:, 0], len(rules.margins))
  ]
  free = rules.size - 4 * rules.seed_distance
  starts = 2 * rules.seed_distance + free * uniforms[:, 1:3]
  around = direction(_pick(uniforms[:, 3], 360))
  starts = np.stack([starts, starts + rules.seed_distance * around], 1)
  angles = _pick(uniforms[:, 4:6], 360)
  kept = np.arange(len(uniforms))
  tails = np.empty((len(uniforms), 0, 2), np.float32)
  found = np.empty((len(uniforms), 0), np.int32)
  for dash in range(2 * rules.contour_length):
    if dash < 2:
      new_tail, new_angle = starts[kept, dash], angles[kept, dash]
      fits = _fits(
          rules, margins[kept], new_tail[:, None], new_angle[:, None], tails,
          found,
      )[:, 0]
    else:
      last = dash - 2
      others = np.delete(np.arange(dash), last)
      heads = tails[:, last] + rules.dash_length * direction(found[:, last])
      at = 6 + _EXTEND * (dash - 2)
      new_tail, new_angle, fits = _extend(
          rules, margins[kept], heads, found[:, last],
          uniforms[kept, at : at + _EXTEND], tails[:, others], found[:, others],
      )
    kept = kept[fits]
    tails = np.concatenate([tails[fits], new_tail[fits, None]], 1)
    found = np.concatenate([found[fits], new_angle[fits, None]], 1)
  return tails, found, margins[kept], kept


def _add_distractors(rules, seed, numbers, scene):
  """Returns the scenes with short contours where they find room."""
  length, margins = rules.distractor_length, scene.margins
  each = 3 * STARTS + _EXTEND * (length - 1)
  uniforms = _uniforms(
      seed, numbers, 'distractors', 0, rules.distractors * TRIALS * each
  ).reshape(len(numbers), rules.distractors, TRIALS, each)
  for contour in range(rules.distractors):
    begin = 2 * rules.contour_length + contour * length
    part = slice(begin, begin + length)
    left = np.arange(len(numbers))
    for trial in range(TRIALS):
      rows, drawn = left, uniforms[left, contour, trial]
      starts = drawn[:, : 3 * STARTS].reshape(-1, STARTS, 3)
      tails, angles = rules.size * starts[..., :2], _pick(starts[..., 2], 360)
      fits = _fits(
          rules, margins[rows], tails, angles, scene.tails[rows, :begin],
          scene.angles[rows, :begin],
      )
      rows, first = np.flatnonzero(fits.any(1)), fits.argmax(1)
      tails = tails[rows, first[rows]][:, None]
      angles = angles[rows, first[rows]][:, None]
      rows, drawn = left[rows], drawn[rows]
      for dash in range(1, length):
        # All dashes but the last one keep their distance.
        known = [
            np.concatenate([whole[rows, :begin], chain[:, :-1]], 1)
            for whole, chain in ((scene.tails, tails), (scene.angles, angles))
        ]
        last = angles[:, -1]
        at = 3 * STARTS + _EXTEND * (dash - 1)
        tail, angle, fits = _extend(
            rules, margins[rows],
            tails[:, -1] + rules.dash_length * direction(last), last,
            drawn[:, at : at + _EXTEND], *known,
        )
        tails = np.concatenate([tails, tail[:, None]], 1)[fits]
        angles = np.concatenate([angles, angle[:, None]], 1)[fits]
        rows, drawn = rows[fits], drawn[fits]
      scene.tails[rows, part], scene.angles[rows, part] = tails, angles
      scene.contours[rows, part] = 2 + contour
      left = np.setdiff1d(left, rows)
  return scene
