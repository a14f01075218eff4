"""Moving MNIST: digits that move through a frame and bounce off its edges.

The rules are those of Srivastava et al. (2015),
https://arxiv.org/abs/1502.04681, with the numbers of their generator: two
digits of 28 x 28 pixels in frames of 64 x 64, 20 frames of which the first 10
are seen, a speed of a tenth of the free space (3.6 pixels) a frame in a random
direction. A digit that reaches an edge stops there, and the next frame takes it
back. Where digits overlap, the brighter pixel counts.

Frames are drawn when a batch is made, from the digits of MNIST that
`rnnzoo/data/builders/smnist.py` prepares once. Training draws from the first
55,000 training images, validation from the last 5,000, as in `smnist.py`, and
test from the test images only. The sequences of validation and test are always
the same. They are ours: others have published a file of test sequences.
"""

import functools
import hashlib
import pathlib
from typing import Any

import numpy as np
from rnnzoo import errors
from rnnzoo import fields
from rnnzoo.data import definition
from rnnzoo.data import pipeline
from rnnzoo.data import settings
from rnnzoo.data.images import smnist

NAME = 'moving_mnist'
SPEED = 0.1  # Of the free space, a frame.
_EVAL_SEED = 0


def load(config: Any, shard: pipeline.Shard, seed: int) -> pipeline.Dataset:
  """Returns the data set; see the module for the rules.

  The batches hold `inputs`, the frames that are seen, `[b, T, size, size, 1]`
  uint8, and `targets`, the next `data.horizon` frames.

  Raises:
    UserError: If MNIST was never prepared, or the digits do not fit.
  """
  _check_fits(config)
  # TFDS is slow to load, and few data sets need it.
  from rnnzoo.data.builders import smnist as builder

  read = builder.read(settings.data_directory(config))
  images, test_images = (
      shrink(read[split][0], config.digit_size) for split in ('train', 'test')
  )
  count = len(images) - len(images) // smnist.VALIDATION
  parts = dict(
      train=images[:count], validation=images[count:], test=test_images
  )

  def batch(split, numbers):
    stream = seed if split == 'train' else _EVAL_SEED
    frames = np.stack([
        draw(pipeline.generator(stream, split, number), parts[split], config)
        for number in numbers
    ])
    seen, targets = np.split(frames, [config.sequence_length], axis=1)
    if split == 'train':
      return dict(inputs=seen, targets=targets)
    counted = np.asarray(numbers) < config.eval_examples
    return dict(inputs=seen, targets=targets, mask=counted)

  def baselines():
    """Returns `black_mse`: the error of predicting black frames on test."""
    energies = [
        np.square(batch('test', [number])['targets'] / 255).sum((2, 3, 4))
        for number in range(config.eval_examples)
    ]
    return dict(black_mse=float(np.mean(energies)))

  digest = hashlib.sha256(images.tobytes() + test_images.tobytes())
  return pipeline.Dataset(
      name=NAME,
      task='video',
      batch_size=shard.batch_size,
      sequence_length=config.sequence_length,
      horizon=config.horizon,
      image_shape=(config.size, config.size, 1),
      unit='frames',
      train=shard.train().map(functools.partial(batch, 'train')),
      evaluation={
          split: shard.evaluate(config.eval_examples).map(
              functools.partial(batch, split)
          )
          for split in ('validation', 'test')
      },
      baselines=baselines,
      source=dict(rules=1, sha256=digest.hexdigest()),
  )


def draw(
    rng: np.random.Generator, images: np.ndarray, config: Any
) -> np.ndarray:
  """Draws one sequence.

  >>> import types
  >>> config = types.SimpleNamespace(
  ...     digits=2, size=64, digit_size=28, sequence_length=10, horizon=10
  ... )
  >>> images = np.full((5, 28, 28), 255, np.uint8)
  >>> frames = draw(np.random.default_rng(0), images, config)
  >>> frames.shape, frames.dtype
  ((20, 64, 64, 1), dtype('uint8'))

  Args:
    rng: The source of the digits, the places and the directions.
    images: The digits to choose from, `[N, digit_size, digit_size]` uint8.
    config: Has the fields of the data set.

  Returns:
    `[sequence_length + horizon, size, size, 1]` uint8.
  """
  digits = images[rng.integers(len(images), size=config.digits)]
  place = rng.random((config.digits, 2))  # 0 and 1 are the edges.
  angle = 2 * np.pi * rng.random(config.digits)
  velocity = SPEED * np.stack([np.sin(angle), np.cos(angle)], axis=1)
  steps, width = config.sequence_length + config.horizon, config.digit_size
  frames = np.zeros((steps, config.size, config.size, 1), np.uint8)
  for frame in frames[..., 0]:
    place += velocity
    outside = (place <= 0) | (place >= 1)
    place = place.clip(0, 1)
    velocity = np.where(outside, -velocity, velocity)
    corners = ((config.size - width) * place).astype(int)
    for digit, (top, left) in zip(digits, corners):
      part = frame[top : top + width, left : left + width]
      np.maximum(part, digit, out=part)
  return frames


def shrink(images: np.ndarray, size: int) -> np.ndarray:
  """Returns images `[N, 28, 28]` as `[N, size, size]`: means of whole pixels.

  >>> shrink(np.full((1, 28, 28), 7, np.uint8), 14).shape
  (1, 14, 14)
  """
  factor = images.shape[1] // size
  if factor == 1:
    return images
  parts = images.reshape(len(images), size, factor, size, factor)
  # An integer sum is many times faster than a mean in floats.
  total = parts.sum((2, 4), dtype=np.uint16)
  return ((total + factor**2 // 2) // factor**2).astype(np.uint8)


def write_fixture(directory: pathlib.Path, config: Any):
  """Prepares a few images of bars, see `Definition.write_fixture`."""
  smnist.write_fixture(directory, config)


def _check_fits(config):
  """Raises `UserValueError` unless the digits have room."""
  width, size = config.digit_size, config.size
  if width not in (28, 14, 7):
    raise errors.UserValueError(
        'data.digit_size must be 28, 14 or 7, so that 28 is a multiple of it, '
        f'got {width}.'
    )
  if size <= width:
    raise errors.UserValueError(
        f'data.size must be larger than data.digit_size {width}, so that '
        f'digits can move, got {size}.'
    )
  most = size**2 // width**2
  if config.digits > most:
    raise errors.UserValueError(
        f'data.digits must be at most {most}: more digits of {width} x {width} '
        f'pixels do not fit into frames of {size} x {size}, got '
        f'{config.digits}.'
    )


DEFINITION = definition.Definition(
    task='video',
    fields=dict(
        sequence_length=fields.Field(
            int, low=1, high=2**16, default=10,
            help='The number of frames that are seen.',
        ),
        horizon=fields.Field(
            int, low=1, high=2**16, default=10,
            help='The number of frames to predict.',
        ),
        size=fields.Field(
            int, low=1, high=2**12, default=64,
            help='The height and the width of a frame.',
        ),
        digits=fields.Field(
            int, low=1, default=2, help='The number of digits in a frame.'
        ),
        digit_size=fields.Field(
            int, low=1, default=28,
            help='The height and the width of a digit: 28, 14 or 7.',
        ),
        eval_examples=fields.Field(
            int, low=1, default=1000,
            help='The number of sequences in each of validation and test.',
        ),
    ),
    load=load,
    write_fixture=write_fixture,
)
