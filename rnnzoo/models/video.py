"""A model that predicts the next frame of a video."""

from typing import Any

from flax import nnx
import jax
import jax.numpy as jnp
from rnnzoo import errors
from rnnzoo.layers import base
from rnnzoo.layers import common
from rnnzoo.layers import images
from rnnzoo.models import blocks
from rnnzoo.models import inputs as inputs_lib
from rnnzoo.models.backbone import Backbone
from rnnzoo.models.backbone import BackboneCarry
from rnnzoo.models.building import Layers
from rnnzoo.models.config import ModelConfig


class VideoPredictor(nnx.Module):
  """Convolutions that make frames small, blocks over time, and the way back.

  The encoder halves height and width `config.halvings` times. Each time, 2 x 2
  pixels become the channels of one, and a convolution of 3 x 3 follows, which
  together is a convolution of 6 x 6 with a stride of 2. The channels double
  each time, up to `config.features`. The blocks, around `conv_s5` or
  `conv_lstm`, read images of that size. The decoder is the encoder in reverse
  order.

  The outputs are the logits of the pixels of the next frame, whose values are
  from 0 to 1: `jax.nn.sigmoid(logits)` is the prediction.

  >>> from flax import nnx
  >>> import jax
  >>> import jax.numpy as jnp
  >>> config = ModelConfig(
  ...     layer='conv_s5', num_layers=1, features=8, image_shape=(16, 16, 1)
  ... )
  >>> def predict(frames):                      # [B, T, H, W, C]
  ...   model = VideoPredictor(config, rngs=nnx.Rngs(0))
  ...   carry, logits = model(frames)           # of frames 1 to T
  ...   first = jax.nn.sigmoid(logits[:, -1])
  ...   carry, later = model.rollout(carry, first, 3)
  ...   return logits, later
  >>> frames = jnp.zeros((2, 5, 16, 16, 1), jnp.uint8)
  >>> logits, later = jax.eval_shape(predict, frames)
  >>> logits.shape, later.shape                 # `later`: frames 6 to 8
  ((2, 5, 16, 16, 1), (2, 3, 16, 16, 1))

  Attributes:
    config: The `ModelConfig`.
    encoder: The convolutions before the blocks.
    backbone: The blocks.
    norm: The norm after the blocks, or `None` with `norm_position='post'`.
    decoder: The convolutions after the blocks.
  """

  takes_dt = False
  causal = True

  def __init__(
      self, config: ModelConfig, layers: Layers | None = None, *,
      rngs: nnx.Rngs,
  ):
    """Creates the model.

    Args:
      config: What to build. `image_shape` must be set.
      layers: More layers by name, in addition to those of the zoo.
      rngs: The source of the initial parameters.

    Raises:
      UserValueError: If a layer reads no images, or a size does not fit.
    """
    config.check_dtypes()
    shape = inner_shape(config)
    channels = _channels(config)
    self.config = config
    self.encoder = nnx.List([
        _Convolution(config, 4 * n, m, rngs)
        for n, m in zip(channels, channels[1:])
    ])
    self.backbone = Backbone(config, layers, image_shape=shape, rngs=rngs)
    self.norm = (
        blocks.make_final_norm(config, rngs)
        if config.norm_position != 'post' else None
    )
    self.decoder = nnx.List([
        _Convolution(config, m, 4 * n, rngs)
        for n, m in reversed([*zip(channels, channels[1:])])
    ])

  def initialize_carry(
      self, batch_size: int, dtype: Any = None
  ) -> BackboneCarry:
    """Returns the carry before the first frame.

    Args:
      batch_size: `B`.
      dtype: The compute dtype; `config.dtype` if `None`.
    """
    return self.backbone.initialize_carry(batch_size, dtype)

  def __call__(
      self,
      inputs: Any,
      carry: BackboneCarry | None = None,
      *,
      reset: Any = None,
      mask: Any = None,
      train: bool = False,
      key: jax.Array | None = None,
  ) -> tuple[BackboneCarry, jax.Array]:
    """Reads frames, and predicts the one after each of them.

    Args:
      inputs: Frames `[B, T, *image_shape]`. Integers are normalised, see
        `inputs.normalize`; floats are from 0 to 1.
      carry: The state after earlier frames; `initialize_carry` if `None`.
      reset: Booleans `[B, T]`, `True` on the first frame of each video.
      mask: Booleans `[B, T]`, `False` on frames to skip.
      train: Whether batch norms use and update the statistics of the batch.
      key: The PRNG key of dropout; `None` means no dropout.

    Returns:
      `(carry, logits)`: `[B, T, *image_shape]`, float32 or wider, 0 at frames
      that are skipped.

    Raises:
      ValueError: If a shape or a dtype is wrong.
    """
    inputs, reset, mask = self._checked(inputs, reset, mask, axes=2)
    key, first_key = (None, None) if key is None else jax.random.split(key)
    x = self._encode(inputs, mask)
    x = inputs_lib.prepare(
        self.config, x, None, mask, train=train, key=first_key
    )
    carry, x = self.backbone(
        x, carry, reset=reset, mask=mask, train=train, key=key
    )
    return carry, self._decode(x, mask, train)

  def step(
      self,
      carry: BackboneCarry | None,
      inputs: Any,
      *,
      reset: Any = None,
      mask: Any = None,
  ) -> tuple[BackboneCarry, jax.Array]:
    """Reads one frame: `inputs` `[B, *image_shape]`, `reset` and `mask` `[B]`.

    Returns:
      `(carry, logits)`: those of the next frame, `[B, *image_shape]`.

    Raises:
      ValueError: If a shape or a dtype is wrong.
    """
    inputs, reset, mask = self._checked(inputs, reset, mask, axes=1)
    x = self._encode(inputs, mask)
    carry, x = self.backbone.step(carry, x, reset=reset, mask=mask)
    return carry, self._decode(x, mask)

  def rollout(
      self, carry: BackboneCarry, frame: jax.Array, count: int
  ) -> tuple[BackboneCarry, jax.Array]:
    """Predicts frames, each from the prediction before it.

    Args:
      carry: The state after all frames before `frame`.
      frame: The frame to start from, itself a prediction or not,
        `[B, *image_shape]`, floating, from 0 to 1.
      count: The number of frames to predict.

    Returns:
      The state after all but the last of the predicted frames, and the frames,
      `[B, count, *image_shape]`, float32 or wider, from 0 to 1.
    """

    def one(state, _):
      carry, frame = state
      carry, logits = self.step(carry, frame)
      frame = jax.nn.sigmoid(logits)
      return (carry, frame), frame

    frame = frame.astype(base.state_dtype(jnp.dtype(self.config.dtype)))
    (carry, _), frames = jax.lax.scan(one, (carry, frame), length=count)
    return carry, jnp.moveaxis(frames, 0, 1)

  def _checked(self, inputs, reset, mask, axes):
    return inputs_lib.check_numbers(
        inputs, reset, mask, shape=self.config.image_shape, axes=axes
    )

  def _encode(self, inputs, mask):
    """Maps frames `[..., H, W, C]` to features `[..., h, w, D]`."""
    x = inputs_lib.normalize(self.config, inputs).astype(self.config.dtype)
    x = base.masked(x, mask)
    for i, convolution in enumerate(self.encoder):
      x = convolution(_halve(jax.nn.gelu(x) if i else x))
    return x

  def _decode(self, x, mask, train=False):
    """Maps features `[..., h, w, D]` to logits `[..., H, W, C]`."""
    if self.norm is not None:
      x = self.norm(base.masked(x, mask), mask=mask, train=train)
    dtype = base.state_dtype(x.dtype)
    for i, convolution in enumerate(self.decoder, 1):
      last = i == len(self.decoder)
      x = _double(convolution(x, dtype if last else None))
      x = x if last else jax.nn.gelu(x)
    return base.masked(x, mask)


class _Convolution(nnx.Module):
  """A convolution of 3 x 3 with a bias."""

  def __init__(self, config, inputs, outputs, rngs):
    dtype = jnp.dtype(config.param_dtype)
    self.kernel = nnx.Param(
        nnx.initializers.he_normal()(
            rngs.params(), (3, 3, inputs, outputs), dtype
        ),
        axes=(None, None, 'embed', 'hidden'),
    )
    self.bias = nnx.Param(jnp.zeros((outputs,), dtype), axes=('hidden',))

  def __call__(self, x, dtype=None):
    y = images.convolve(x, self.kernel[...], dtype)
    return common.add_bias(y, self.bias[...])


def inner_shape(config: ModelConfig) -> tuple[int, int]:
  """Returns the height and the width of the images that the blocks read.

  >>> inner_shape(ModelConfig(image_shape=(64, 32, 1), halvings=2))
  (16, 8)

  Raises:
    UserValueError: If the frames cannot be halved so often, or the config
      describes no model of videos.
  """
  factor = 2**config.halvings
  if not config.image_shape or config.vocab_size or config.in_features:
    raise errors.UserValueError(
        'A model of videos needs model.image_shape, and neither '
        'model.vocab_size nor model.in_features.'
    )
  height, width, _ = config.image_shape
  if height % factor or width % factor:
    raise errors.UserValueError(
        f'model.halvings {config.halvings} needs frames whose height and width '
        f'are multiples of {factor}, got {height} x {width}.'
    )
  for name, wanted in (('conv_kernel', 0), ('bidirectional', False)):
    if getattr(config, name) != wanted:
      raise errors.UserValueError(
          f'model.{name} must be {wanted} in a model of videos, got '
          f'{getattr(config, name)}.'
      )
  return height // factor, width // factor


def _channels(config) -> list[int]:
  """Returns the channels of a frame, and those after each halving."""
  count = config.halvings
  later = [max(1, config.features >> count - k) for k in range(1, count + 1)]
  return [config.image_shape[-1], *later]


def _halve(x):
  """Maps `[..., H, W, C]` to `[..., H/2, W/2, 4C]`."""
  *start, height, width, channels = x.shape
  x = x.reshape(*start, height // 2, 2, width // 2, 2, channels)
  x = jnp.moveaxis(x, -4, -3)
  return x.reshape(*start, height // 2, width // 2, 4 * channels)


def _double(x):
  """Maps `[..., H, W, 4C]` to `[..., 2H, 2W, C]`, the inverse of `_halve`."""
  *start, height, width, channels = x.shape
  x = x.reshape(*start, height, width, 2, 2, channels // 4)
  x = jnp.moveaxis(x, -4, -3)
  return x.reshape(*start, 2 * height, 2 * width, channels // 4)
