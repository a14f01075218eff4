"""Draws rollouts of the model of a run, for rollout.py and train.py."""

from collections.abc import Sequence
import pathlib
from typing import Any, NamedTuple

import jax
import numpy as np
from rnnzoo import errors
from rnnzoo import restoring

# Pixels between panels and for a line of text, colours of seen and predicted.
_GAP, _LINE, _LABELS = 4, 14, 64
_SEEN, _PREDICTED, _PAPER = (120, 120, 120), (238, 102, 119), (24, 24, 28)
_PANELS = ('truth', 'prediction', 'difference')
_FRAME_MS = 200


class Rollout(NamedTuple):
  """Some videos, float32 with values from 0 to 1.

  Attributes:
    seen: The frames that the model reads, `[N, T, H, W, C]`.
    truth: The frames after them, `[N, F, H, W, C]`.
    prediction: What the model predicts, each frame from its prediction before
      it, `[N, F, H, W, C]`.
  """

  seen: np.ndarray
  truth: np.ndarray
  prediction: np.ndarray


def make(
    run: restoring.Run, dataset: Any, split: str, numbers: Sequence[int]
) -> Rollout:
  """Returns the rollouts of some sequences.

  Args:
    run: The restored run.
    dataset: Its data set, all rows of each batch.
    split: The part of the data.
    numbers: The numbers of the sequences in this part.

  Raises:
    UserValueError: If the run predicts no frames, or there is no such sequence.
  """
  if not (dataset.horizon and dataset.image_shape):
    raise errors.UserValueError(
        f'This run is of {dataset.name}, a data set for {dataset.task}: there '
        'are no frames to draw.'
    )
  batches = dataset.eval_batches(split)
  last = int(batches[-1]['mask'].sum())
  count = (len(batches) - 1) * dataset.batch_size + last
  for number in numbers:
    if not 0 <= number < count:
      raise errors.UserValueError(
          f'--examples must be in [0, {count}), the sequences of {split}, got '
          f'{number}.'
      )
  predict, found = jax.jit(run.task.predict), {}
  for index in sorted({number // dataset.batch_size for number in numbers}):
    batch = batches[index]
    found[index] = Rollout(
        _from_0_to_1(batch['inputs']), _from_0_to_1(batch['targets']),
        np.asarray(predict(run.model, batch)['prediction'], np.float32),
    )
  places = [divmod(number, dataset.batch_size) for number in numbers]
  return Rollout(*(
      np.stack([found[index][part][row] for index, row in places])
      for part in range(3)
  ))


def draw(rollout: Rollout, path: pathlib.Path, scale: int) -> None:
  """Writes `path`, an animation, and beside it all its frames as a PNG.

  A row of the animation is a video: the truth, the prediction and their
  difference, red where the prediction is too bright and blue where it is too
  dark. The bar above is grey while frames are seen. A row of the PNG is one of
  the three panels, over time.

  Args:
    rollout: The videos.
    path: The GIF; the PNG has the same name.
    scale: How many pixels of the animation a pixel of a frame is wide.
  """
  from PIL import Image

  path.parent.mkdir(parents=True, exist_ok=True)
  steps = range(rollout.seen.shape[1] + rollout.truth.shape[1])
  panels = [_panels(rollout, step) for step in steps]  # [step][panel][video]
  first, *others = (
      _image(one, step, rollout.seen.shape[1], scale)
      for step, one in enumerate(panels)
  )
  first.save(
      path, 'GIF', save_all=True, append_images=others, duration=_FRAME_MS,
      loop=0,
  )
  height, width = rollout.seen.shape[2:4]
  videos = range(len(rollout.seen))
  strip = Image.new('RGB', (
      _LABELS + len(steps) * (width + _GAP),
      _LINE + len(videos) * (3 * (height + 1) + _GAP),
  ), _PAPER)
  for step, one in enumerate(panels):
    left = _LABELS + step * (width + _GAP)
    _write(strip, (left, 1), f'{step + 1}', _color(step, rollout))
    for video in videos:
      top = _LINE + video * (3 * (height + 1) + _GAP)
      for panel, images in enumerate(one):
        strip.paste(
            Image.fromarray(images[video]), (left, top + panel * (height + 1))
        )
        if not step:
          _write(strip, (2, top + panel * (height + 1) + 2), _PANELS[panel])
  strip.save(path.with_suffix('.png'), 'PNG', optimize=True)


def _from_0_to_1(frames):
  if np.issubdtype(frames.dtype, np.floating):
    return np.asarray(frames, np.float32)
  return frames.astype(np.float32) / 255


def _panels(rollout, step):
  """Returns three lists of images `[H, W, 3]` uint8, one of each video."""
  seen = rollout.seen.shape[1]
  if step < seen:
    truth = prediction = rollout.seen[:, step]
  else:
    truth, prediction = (
        u[:, step - seen] for u in (rollout.truth, rollout.prediction)
    )
  wrong = (prediction - truth).mean(-1, keepdims=True)
  red, blue = wrong.clip(0, 1), (-wrong).clip(0, 1)
  difference = np.concatenate([red, 0.4 * np.maximum(red, blue), blue], -1)
  return [_rgb(u) for u in (truth, prediction, difference)]


def _rgb(frames):
  """Returns frames `[N, H, W, C]` as `[N, H, W, 3]` uint8."""
  if frames.shape[-1] != 3:
    frames = np.repeat(frames.mean(-1, keepdims=True), 3, -1)
  return (255 * frames.clip(0, 1) + 0.5).astype(np.uint8)


def _image(panels, step, seen, scale):
  """Returns one frame of the animation."""
  from PIL import Image

  count, height, width, _ = panels[0].shape
  height, width = scale * height, scale * width
  image = Image.new('RGB', (
      3 * width + 4 * _GAP, 2 * _LINE + count * (height + _GAP)
  ), _PAPER)
  color = _SEEN if step < seen else _PREDICTED
  word = 'seen' if step < seen else 'predicted'
  _write(image, (_GAP, 1), f'frame {step + 1}: {word}', color)
  image.paste(color, (_GAP, _LINE, 3 * width + 3 * _GAP, _LINE + 1))
  for panel, images in enumerate(panels):
    left = _GAP + panel * (width + _GAP)
    _write(image, (left, _LINE + 1), _PANELS[panel])
    for video, pixels in enumerate(images):
      part = Image.fromarray(pixels).resize(
          (width, height), Image.Resampling.NEAREST
      )
      image.paste(part, (left, 2 * _LINE + video * (height + _GAP)))
  return image.quantize(64)


def _write(image, place, text, color=(220, 220, 220)):
  from PIL import ImageDraw

  ImageDraw.Draw(image).text(place, text, color)


def _color(step, rollout):
  return _SEEN if step < rollout.seen.shape[1] else _PREDICTED
