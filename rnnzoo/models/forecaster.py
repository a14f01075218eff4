"""The forecaster: the last steps of some columns in, their next steps out.

What comes before and after the recurrent model is the same for every
forecaster: `check_window`, `WindowNorm` and `parameters`.
"""

from typing import NamedTuple

from flax import nnx
import jax
import jax.numpy as jnp
from rnnzoo import errors
from rnnzoo.layers import base
from rnnzoo.layers import checking
from rnnzoo.layers import common
from rnnzoo.models import blocks
from rnnzoo.models.building import Layers
from rnnzoo.models.config import ModelConfig
from rnnzoo.models.regressor import SequenceRegressor

# The levels of `distribution='quantile'`.
QUANTILES = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
# How many numbers describe the forecast of one number.
_PARAMETERS = dict(point=1, gaussian=2, quantile=len(QUANTILES))
# Added to the deviations of windows and forecasts, so that none is 0.
_SMALL = 1e-3


class WindowNorm(NamedTuple):
  """What is subtracted from the columns of a window, and what divides them.

  Subtracted from the past and added to the forecast, it spares a model to learn
  where a series has drifted to since the training part: reversible instance
  normalisation (Kim et al. 2022), or NLinear's last value (Zeng et al. 2022,
  https://arxiv.org/abs/2205.13504).

  Attributes:
    offset: `[B, 1, C]`, float32 or wider.
    scale: `[B, 1, C]`.
  """

  offset: jax.Array
  scale: jax.Array

  @classmethod
  def of(cls, kind: str, columns: jax.Array) -> 'WindowNorm':
    """Returns that of the columns `[B, T, C]` of a window.

    >>> norm = WindowNorm.of('last', jnp.array([[[1.0], [3.0]]]))
    >>> float(norm.offset[0, 0, 0]), float(norm.scale[0, 0, 0])
    (3.0, 1.0)

    Args:
      kind: `model.window_norm`.
      columns: The columns to forecast.
    """
    columns = columns.astype(base.state_dtype(columns.dtype))
    offset = jnp.zeros_like(columns[:, :1])
    scale = jnp.ones_like(offset)
    if kind == 'last':
      offset = columns[:, -1:]
    elif kind != 'none':
      offset = columns.mean(1, keepdims=True)
    if kind == 'standard':
      scale = columns.std(1, keepdims=True) + _SMALL
    return cls(offset, scale)

  def forwards(self, columns: jax.Array) -> jax.Array:
    """Returns the normalised columns."""
    return (columns - self.offset) / self.scale


class Forecaster(nnx.Module):
  """Predicts the next steps of some columns from a window of the last ones.

  A model as in `SequenceRegressor` reads the window. A linear map makes all
  steps of the horizon from its features after the last step at once, and
  another one adds what is known of each of these steps, if anything is.

  >>> from flax import nnx
  >>> import jax.numpy as jnp
  >>> config = ModelConfig.tiny().replace(
  ...     vocab_size=0, in_features=3, out_features=2, window=8, horizon=4
  ... )
  >>> model = Forecaster(config, rngs=nnx.Rngs(0))
  >>> x = jnp.ones((5, 8, 3))                        # [B, window, in_features]
  >>> carry, y = model(x)                            # [B, horizon, C]
  >>> y.shape, carry is None
  ((5, 4, 2), True)

  Attributes:
    config: The `ModelConfig`.
    reader: The recurrent model.
    future: The linear map of what is known ahead, or `None`.
  """

  # A forecast is of a whole window: there is no state to go on with.
  causal = False

  def __init__(
      self, config: ModelConfig, layers: Layers | None = None, *,
      rngs: nnx.Rngs,
  ):
    """Creates the model.

    Args:
      config: What to build. `in_features`, `out_features`, `window` and
        `horizon` must be set. The first `out_features` inputs are the columns
        to forecast.
      layers: More layers by name, in addition to those of the zoo.
      rngs: The source of the initial parameters.

    Raises:
      UserValueError: If no forecaster can be built from the config.
    """
    check_config(config)
    if config.window % config.patch:
      raise errors.UserValueError(
          f'model.patch must divide the window of {config.window} steps, got '
          f'{config.patch}.'
      )
    self.config = config
    columns, others = config.out_features, config.in_features
    others -= columns
    if config.separate_columns:
      columns = 1
    numbers = _PARAMETERS[config.distribution]
    self.reader = SequenceRegressor(
        config.replace(
            in_features=(columns + others) * config.patch,
            out_features=config.horizon * columns * numbers,
            pooling='last' if config.pooling == 'none' else config.pooling,
        ),
        layers, rngs=rngs,
    )
    self.future = (
        blocks.make_map(
            config, config.future_features, config.out_features * numbers, rngs
        ) if config.future_features else None
    )

  @property
  def takes_dt(self) -> bool:
    """Whether the layers take `dt`, the lengths of steps."""
    return self.reader.takes_dt

  def __call__(
      self,
      inputs: jax.Array,
      carry: None = None,
      *,
      future: jax.Array | None = None,
      dt: jax.Array | None = None,
      train: bool = False,
      key: jax.Array | None = None,
  ) -> tuple[None, jax.Array]:
    """Predicts the steps after a window.

    Args:
      inputs: Vectors `[B, window, in_features]`, the columns to forecast first.
      carry: `None`: a forecast is of a whole window.
      future: What is known of the steps to forecast, `[B, horizon,
        future_features]`; `None` if `future_features` is 0.
      dt: The length of each step `[B, window]`, for layers that take it; `None`
        means 1. That of a patch is the mean over its steps.
      train: Whether batch norms use and update the statistics of the batch.
      key: The PRNG key of dropout; `None` means no dropout.

    Returns:
      `(None, forecast)`: `[B, horizon, C]`, float32 or wider. With
      `distribution='gaussian'` it is `[B, horizon, C, 2]`, means and
      deviations; with `quantile` `[B, horizon, C, Q]`, one number for each
      level of `QUANTILES`, in ascending order.

    Raises:
      ValueError: If a shape is wrong, or a layer does not take `dt`.
    """
    del carry
    config = self.config
    inputs, future = check_window(config, inputs, future)
    dt = checking.as_array('dt', dt)
    if dt is not None and dt.shape != inputs.shape[:2]:
      raise ValueError(f'`dt` must be {inputs.shape[:2]}, got {dt.shape}.')
    columns = config.out_features
    norm = WindowNorm.of(config.window_norm, inputs[..., :columns])
    past = norm.forwards(inputs[..., :columns])
    others = inputs[..., columns:].astype(past.dtype)
    batch = len(inputs)
    if config.separate_columns:  # Each column is a row of its own.
      past = past.swapaxes(1, 2).reshape(batch * columns, config.window, 1)
      others = jnp.repeat(others, columns, axis=0)
      dt = None if dt is None else jnp.repeat(dt, columns, axis=0)
    x = jnp.concatenate([past, others], axis=-1)
    x = x.reshape(len(x), config.window // config.patch, -1)
    if dt is not None:
      dt = dt.reshape(*x.shape[:2], config.patch).mean(-1)
    _, y = self.reader(x, dt=dt, train=train, key=key)
    numbers = _PARAMETERS[config.distribution]
    if config.separate_columns:
      y = y.reshape(batch, columns, config.horizon, numbers).swapaxes(1, 2)
    else:
      y = y.reshape(batch, config.horizon, columns, numbers)
    if self.future is not None and future is not None:
      known = common.project(self.future, future.astype(config.dtype), y.dtype)
      y += known.reshape(y.shape)
    return None, parameters(config.distribution, y, norm)


def check_config(config: ModelConfig) -> None:
  """Raises `UserValueError` if a size of a forecaster is missing."""
  config.check_dtypes()
  for name in ('in_features', 'out_features', 'window', 'horizon'):
    if not getattr(config, name):
      raise errors.UserValueError(f'model.{name} must be set.')
  if config.in_features < config.out_features:
    raise errors.UserValueError(
        f'model.in_features {config.in_features} must hold the columns to '
        f'forecast, model.out_features {config.out_features}.'
    )


def check_window(
    config: ModelConfig, inputs, future
) -> tuple[jax.Array, jax.Array | None]:
  """Returns a window and what is known ahead as arrays.

  Raises:
    ValueError: If a shape is wrong, or `future` is missing.
  """
  inputs = checking.as_array('inputs', inputs, required=True)
  wanted = config.window, config.in_features
  if inputs.ndim != 3 or inputs.shape[1:] != wanted:
    raise ValueError(
        f'`inputs` must be [B, {wanted[0]}, {wanted[1]}], got {inputs.shape}.'
    )
  if not config.future_features:
    return inputs, None
  future = checking.as_array('future', future, required=True)
  wanted = len(inputs), config.horizon, config.future_features
  if future.shape != wanted:
    raise ValueError(f'`future` must be {wanted}, got {future.shape}.')
  return inputs, future


def parameters(
    distribution: str, y: jax.Array, norm: WindowNorm
) -> jax.Array:
  """Returns the forecast in the units of the inputs.

  Args:
    distribution: `model.distribution`.
    y: What the model gives for normalised columns, `[B, H, C, numbers]`.
    norm: That of the window.

  Returns:
    See `Forecaster.__call__`.
  """
  if distribution == 'gaussian':
    mean, deviation = y[..., 0], jax.nn.softplus(y[..., 1]) + _SMALL
    return jnp.stack([
        mean * norm.scale + norm.offset, deviation * norm.scale
    ], axis=-1)
  if distribution == 'quantile':
    y = jnp.sort(y, axis=-1)  # A quantile is never below one of a lower level.
    return y * norm.scale[..., None] + norm.offset[..., None]
  return y[..., 0] * norm.scale + norm.offset
