"""Losses as sums and weights, so that parts of a batch add up exactly."""

import jax
import jax.numpy as jnp


def cross_entropy(
    logits: jax.Array, targets: jax.Array, mask: jax.Array | None = None
) -> dict[str, jax.Array]:
  """Cross-entropy of integer targets, in nats, summed.

  >>> import jax.numpy as jnp
  >>> sums = cross_entropy(jnp.zeros((1, 3, 4)), jnp.array([[0, 1, 2]]))
  >>> (sums['loss'] / sums['weight']).round(4)  # log 4
  Array(1.3863, dtype=float32)

  Args:
    logits: `[..., V]`.
    targets: Class or token ids `[...]`.
    mask: Booleans `[...]`, `False` on positions that do not count.

  Returns:
    float32 scalars: `loss`, the sum; `correct`, the number of targets with the
    largest logit; `weight`, the number of positions that count.
  """
  logits = logits.astype(jnp.promote_types(jnp.float32, logits.dtype))
  normalizer = jax.nn.logsumexp(logits, axis=-1)
  chosen = jnp.take_along_axis(logits, targets[..., None], axis=-1)[..., 0]
  valid = jnp.ones(targets.shape, bool) if mask is None else mask
  total = lambda u: jnp.where(valid, u, 0).sum(dtype=logits.dtype)
  return dict(
      loss=total(normalizer - chosen),
      correct=total(logits.argmax(-1) == targets),
      weight=total(jnp.ones_like(normalizer)),
  )


def next_token_loss(functional, *, train: bool):
  """Builds the loss function of models that map tokens to logits.

  Args:
    functional: The model, as `training.state.Functional`; called as
      `model(inputs, carry, reset=, train=, key=) -> (carry, logits)`.
    train: Whether batch norms use the batch's statistics.

  Returns:
    A function `(params, batch_stats, batch, carry, key) -> (loss, (sums,
    batch_stats, carry))`, see `training.step`. `carry` `None` starts anew and
    gives `None`.
  """

  def loss_fn(params, batch_stats, batch, carry, key):
    model = functional.merge(params, batch_stats)
    new_carry, logits = model(
        batch['inputs'], carry, reset=batch.get('reset'), train=train, key=key
    )
    sums = cross_entropy(logits, batch['targets'], batch.get('mask'))
    _, batch_stats = functional.variables(model)
    carry = None if carry is None else new_carry
    return sums['loss'], (sums, batch_stats, carry)

  return loss_fn
