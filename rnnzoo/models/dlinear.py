"""DLinear (Zeng et al. 2022), https://arxiv.org/abs/2205.13504: the baseline.

It has no state: a linear map over time, shared by all columns.
"""

from flax import nnx
import jax
import jax.numpy as jnp
from rnnzoo import errors
from rnnzoo import fields
from rnnzoo.layers import initializers
from rnnzoo.models import forecaster
from rnnzoo.models.building import Layers
from rnnzoo.models.config import ModelConfig


def moving_average(x: jax.Array, kernel: int) -> jax.Array:
  """Returns the mean of `kernel` steps around each step.

  The first and the last step are repeated at the ends.

  >>> moving_average(jnp.array([[[0.0], [3.0], [6.0]]]), 3)[0, :, 0]
  Array([1., 3., 5.], dtype=float32)

  Args:
    x: `[B, T, C]`.
    kernel: An odd number.
  """
  half = kernel // 2
  x = jnp.pad(x, [(0, 0), (half, half), (0, 0)], mode='edge')
  return jax.lax.reduce_window(
      x, jnp.zeros((), x.dtype), jax.lax.add, (1, kernel, 1), (1, 1, 1), 'VALID'
  ) / kernel


class DLinear(nnx.Module):
  r"""Forecasts each column by two linear maps of its own past.

  .. math::
      t &= \mathrm{moving\ average}(x) \\
      y &= W_t t + b_t + W_s (x - t) + b_s

  The maps are `[window, horizon]` and start as PyTorch's linear maps do, as in
  the authors' code. Inputs that are no targets are not read.

  >>> from flax import nnx
  >>> import jax.numpy as jnp
  >>> config = ModelConfig(
  ...     layer='dlinear', in_features=2, out_features=2, window=8, horizon=4
  ... )
  >>> carry, y = DLinear(config, rngs=nnx.Rngs(0))(jnp.ones((5, 8, 2)))
  >>> y.shape
  (5, 4, 2)

  Attributes:
    config: The `ModelConfig`; `layer_options` may set `kernel`, 25 steps.
    trend: The map of the moving average.
    season: The map of the rest.
  """

  causal = False  # A forecast is of a whole window.

  def __init__(
      self, config: ModelConfig, layers: Layers | None = None, *,
      rngs: nnx.Rngs,
  ):
    """Creates the model.

    Args:
      config: See `forecaster.Forecaster`. `distribution` must be `point`.
      layers: Not used.
      rngs: The source of the initial parameters.

    Raises:
      UserValueError: If the config is wrong.
    """
    del layers
    forecaster.check_config(config)
    if config.distribution != 'point':
      raise errors.UserValueError(
          "model.distribution must be 'point' for model.layer dlinear, got "
          f'{config.distribution!r}.'
      )
    options = dict(dict(kernel=25), **config.layer_options)
    self.kernel = options.pop('kernel')
    odd = fields.is_integer(self.kernel) and self.kernel % 2 == 1
    if options or not odd or self.kernel < 1:
      raise errors.UserValueError(
          'model.layer_options of dlinear may have an odd kernel only, 1 or '
          'more, got '
          f'{dict(config.layer_options)}.'
      )
    self.config = config
    self.trend, self.season = (
        nnx.Linear(
            config.window, config.horizon,
            kernel_init=initializers.uniform_fan_in(config.window),
            bias_init=initializers.uniform_fan_in(config.window),
            kernel_metadata=dict(axes=(None, None)),
            bias_metadata=dict(axes=(None,)),
            param_dtype=jnp.dtype(config.param_dtype), rngs=rngs,
        )
        for _ in range(2)
    )

  def __call__(
      self, inputs, carry=None, *, future=None, dt=None, train=False, key=None
  ) -> tuple[None, jax.Array]:
    """Predicts the steps after a window, see `forecaster.Forecaster`."""
    del carry, dt, train, key
    config = self.config
    inputs, _ = forecaster.check_window(config, inputs, future)
    past = inputs[..., : config.out_features]
    norm = forecaster.WindowNorm.of(config.window_norm, past)
    past = norm.forwards(past)
    trend = moving_average(past, self.kernel)
    over_time = lambda linear, x: linear(x.swapaxes(1, 2)).swapaxes(1, 2)
    y = over_time(self.trend, trend) + over_time(self.season, past - trend)
    return None, forecaster.parameters('point', y[..., None], norm)
