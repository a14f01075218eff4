"""Recursive least squares on the last inputs: no state, no learning rate."""

import jax
import jax.numpy as jnp


def least_squares(
    inputs: jax.Array,
    targets: jax.Array,
    *,
    lags: int = 1,
    forgetting: float = 1.0,
    regularization: float = 1.0,
) -> jax.Array:
  """Predicts each target by the linear map that fits the targets before best.

  After each token the map minimises the sum of squared errors so far, the
  errors of `s` tokens ago weighted by `forgetting**s`, plus `regularization`
  times the sum of the squares of the map, which after `n` tokens is weighted by
  `forgetting**n`.

  With `forgetting` below 1, what the inputs do not show for long is forgotten:
  on a stream without noise numbers may then grow until they are not finite.

  >>> import jax.numpy as jnp
  >>> wave = jnp.sin(0.3 * jnp.arange(101))[None, :, None]
  >>> y = least_squares(
  ...     wave[:, :-1], wave[:, 1:], lags=2, regularization=1e-3
  ... )
  >>> bool(jnp.abs(y - wave[:, 1:])[:, 50:].max() < 1e-2)
  True

  Args:
    inputs: `[B, T, D]`.
    targets: `[B, T, D_out]`, each unknown to the predictions up to its own.
    lags: How many of the last inputs the map reads; 1 for the current one.
    forgetting: In (0, 1].
    regularization: Above 0.

  Returns:
    The predictions `[B, T, D_out]`.

  Raises:
    ValueError: If an option is out of range.
  """
  if lags < 1 or not 0 < forgetting <= 1 or not regularization > 0:
    raise ValueError(
        '`lags` must be at least 1, `forgetting` in (0, 1] and '
        f'`regularization` above 0, got {lags}, {forgetting} and '
        f'{regularization}.'
    )
  time = inputs.shape[1]
  padded = jnp.pad(inputs, ((0, 0), (lags - 1, 0), (0, 0)))
  rows = [padded[:, lag : lag + time] for lag in range(lags)]
  ones = jnp.ones_like(inputs[..., :1])
  read = jnp.concatenate([ones, *rows], axis=-1)
  size = read.shape[-1]

  def step(carried, token):
    weights, inverse = carried  # [F, D_out] and [F, F], symmetric.
    x, target = token
    y = x @ weights
    towards = inverse @ x
    gain = towards / (forgetting + x @ towards)
    weights = weights + jnp.outer(gain, target - y)
    inverse = (inverse - jnp.outer(gain, towards)) / forgetting
    return (weights, (inverse + inverse.T) / 2), y

  def run(x, target):
    start = (
        jnp.zeros((size, target.shape[-1]), x.dtype),
        jnp.eye(size, dtype=x.dtype) / regularization,
    )
    return jax.lax.scan(step, start, (x, target))[1]

  return jax.vmap(run)(read, targets)
