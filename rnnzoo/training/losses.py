"""Losses as sums and weights, so that parts of a batch add up exactly.

Logits are the largest array of a language model: a vocabulary of 32,768 times
four bytes for every token of the batch, and as much again for the gradient.
`chunked_cross_entropy` computes them for a part of the tokens at a time. On a
mesh it uses `jax.shard_map`, because XLA's partitioner would reduce the
gradient of the head over the devices once per chunk.
"""

import functools
import math

import jax
import jax.numpy as jnp
from rnnzoo import errors
from rnnzoo import mesh as mesh_lib
from rnnzoo.training import sharding

AUTOMATIC = -1

# The logits that a device holds at once if `chunk` is AUTOMATIC: 256 MiB.
LOGITS_AT_ONCE = 2**26


def cross_entropy(
    logits: jax.Array,
    targets: jax.Array,
    mask: jax.Array | None = None,
    *,
    split_over: tuple[str, ...] = (),
) -> dict[str, jax.Array]:
  """Cross-entropy of integer targets, in nats, summed.

  >>> import jax.numpy as jnp
  >>> sums = cross_entropy(jnp.zeros((1, 3, 4)), jnp.array([[0, 1, 2]]))
  >>> (sums['loss'] / sums['weight']).round(4)  # log 4
  Array(1.3863, dtype=float32)

  Args:
    logits: `[..., V]`.
    targets: Class or token ids `[...]`, of any integer dtype. If an id is out
      of range, the loss is NaN.
    mask: Booleans `[...]`, `False` on positions that do not count.
    split_over: Inside `jax.shard_map`, the mesh axes whose devices hold `V`
      classes each, in order.

  Returns:
    float32 scalars: `loss`, the sum; `correct`, the number of targets with the
    largest logit, the first one of equals; `weight`, the number of positions
    that count.

  Raises:
    UserValueError: If `targets` are not integers.
  """
  if not jnp.issubdtype(targets.dtype, jnp.integer):
    raise errors.UserValueError(
        f'`targets` must be integers, got {targets.dtype}.'
    )
  logits = logits.astype(jnp.promote_types(jnp.float32, logits.dtype))
  # In int32, because the targets' dtype may be too small for all classes.
  classes = jax.lax.broadcasted_iota(
      jnp.int32, logits.shape, logits.ndim - 1
  )
  count = logits.shape[-1]
  if split_over:
    classes += jax.lax.axis_index(split_over) * count
    count *= jax.lax.psum(1, split_over)
  exists = targets >= 0
  if count <= jnp.iinfo(targets.dtype).max:
    exists &= targets < count
  targets = jnp.where(exists, targets, 0).astype(jnp.int32)
  top = jax.lax.stop_gradient(logits).max(-1)
  top = jax.lax.pmax(top, split_over) if split_over else top
  # The logit of a target is a sum of one number and zeros. So no device needs
  # to know which one holds it, and no gradient is scattered.
  is_target = classes == targets[..., None]
  is_better = (logits == top[..., None]) & (classes < targets[..., None])
  parts = jnp.stack([
      jnp.exp(logits - top[..., None]).sum(-1),
      jnp.where(is_target, logits, 0).sum(-1),
      is_better.sum(-1, dtype=logits.dtype),
  ])
  parts = jax.lax.psum(parts, split_over) if split_over else parts
  normalizer, chosen, better = jnp.log(parts[0]) + top, parts[1], parts[2]
  chosen = jnp.where(exists, chosen, jnp.nan)
  valid = jnp.ones(targets.shape, bool) if mask is None else mask
  total = lambda u: jnp.where(valid, u, 0).sum(dtype=logits.dtype)
  return dict(
      loss=total(normalizer - chosen),
      correct=total((chosen == top) & (better == 0)),
      weight=total(jnp.ones_like(normalizer)),
  )


def chunked_cross_entropy(
    features: jax.Array,
    kernel: jax.Array,
    targets: jax.Array,
    mask: jax.Array | None = None,
    *,
    vocab_axis: int = 1,
    bias: jax.Array | None = None,
    soft_cap: float = 0.0,
    chunk: int = AUTOMATIC,
) -> dict[str, jax.Array]:
  """`cross_entropy` of a linear map of features, without all logits at once.

  If there is more than one chunk, the gradients are computed together with the
  loss, chunk by chunk, so no logits are computed twice. The gradient of the
  kernel is summed over chunks in float32 at least.

  On a mesh (that of `jax.set_mesh`, with Auto axes), each device works on the
  rows, the segment of time and the part of the vocabulary that it holds. It
  gathers its part of the kernel once, and the gradient is reduced once.

  >>> import jax.numpy as jnp
  >>> features, kernel = jnp.zeros((1, 3, 2)), jnp.ones((2, 4))
  >>> sums = chunked_cross_entropy(
  ...     features, kernel, jnp.array([[0, 1, 2]]), chunk=2
  ... )
  >>> (sums['loss'] / sums['weight']).round(4)  # log 4
  Array(1.3863, dtype=float32)

  Args:
    features: `[B, T, D]`.
    kernel: `[D, V]`, or `[V, D]` if `vocab_axis` is 0; cast to `features`'
      dtype.
    targets: Token ids `[B, T]`.
    mask: Booleans `[B, T]`, `False` on positions that do not count.
    vocab_axis: The axis of the kernel that has size `V`.
    bias: `[V]`, or `None`.
    soft_cap: If positive, logits are `soft_cap * tanh(logits / soft_cap)`.
    chunk: The largest number of tokens that a device computes logits of at
      once; 0 for all of its tokens; -1 for about `LOGITS_AT_ONCE` logits.

  Returns:
    See `cross_entropy`.
  """
  batch, time, width = features.shape
  vocab_size = kernel.shape[vocab_axis]
  if mask is None:
    mask = jnp.ones(targets.shape, bool)
  sums = functools.partial(
      _sums, vocab_axis=vocab_axis, soft_cap=soft_cap, chunk=chunk
  )
  operands = features, kernel, bias, targets, mask
  mesh = jax.sharding.get_abstract_mesh()
  rows = mesh_lib.dividing(mesh, mesh_lib.BATCH_AXES, batch)
  times = mesh_lib.dividing(mesh, mesh_lib.TIME_AXES, time)
  vocab = mesh_lib.dividing(mesh, (sharding.RULES['vocab'],), vocab_size)
  # Devices that hold parts of the kernel's other axis must have other rows.
  embed = mesh_lib.dividing(mesh, (sharding.RULES['embed'],), width)
  embed = tuple(name for name in embed if name in rows)
  here = rows + times
  if not here + vocab:
    return sums(*operands, split_over=())

  def local(x, kernel, bias, targets, mask):
    # Marked before the loop; otherwise gradients would be reduced inside it.
    x = mesh_lib.varying_over(x, vocab)
    kernel = mesh_lib.varying_over(kernel.astype(x.dtype), here)
    if embed:
      kernel = jax.lax.all_gather(
          kernel, embed, axis=1 - vocab_axis, tiled=True
      )
    bias = None if bias is None else mesh_lib.varying_over(bias, here)
    found = sums(x, kernel, bias, targets, mask, split_over=vocab)
    return jax.lax.psum(found, here)

  spec = lambda *names: jax.P(*(n or None for n in names))
  by_token = spec(rows, times)
  return jax.shard_map(
      local,
      mesh=mesh,
      in_specs=(
          spec(rows, times, ()),
          spec(embed, vocab) if vocab_axis else spec(vocab, embed),
          jax.P() if bias is None else spec(vocab),
          by_token,
          by_token,
      ),
      out_specs=jax.P(),
      axis_names=mesh_lib.auto_axes(mesh),
  )(*operands)


def squared_error(
    outputs: jax.Array, targets: jax.Array, mask: jax.Array | None = None
) -> dict[str, jax.Array]:
  """Squared and absolute errors, each the mean over the numbers of a target.

  >>> import jax.numpy as jnp
  >>> sums = squared_error(jnp.zeros((3, 2)), jnp.array([[1., 3]] * 3))
  >>> float(sums['loss'] / sums['weight']), float(sums['mae'])
  (5.0, 6.0)

  Args:
    outputs: `[..., K]`.
    targets: `[..., K]`.
    mask: Booleans `[...]`, `False` on targets that do not count. They may hold
      NaN.

  Returns:
    Scalars, float32 at least: `loss`, the sum of squared errors; `mae`, the sum
    of absolute errors; `weight`, the number of targets that count.

  Raises:
    UserValueError: If the shapes differ.
  """
  if outputs.shape != targets.shape:
    raise errors.UserValueError(
        f'`targets` must have the shape of the outputs, {outputs.shape}, got '
        f'{targets.shape}.'
    )
  dtype = jnp.promote_types(jnp.float32, outputs.dtype)
  valid = jnp.ones(targets.shape[:-1], bool) if mask is None else mask
  # Select before subtracting: a NaN must not reach the gradient.
  outputs, targets = (
      jnp.where(valid[..., None], u.astype(dtype), 0)
      for u in (outputs, targets)
  )
  difference = outputs - targets
  return dict(
      loss=jnp.square(difference).mean(-1).sum(),
      mae=jnp.abs(difference).mean(-1).sum(),
      weight=valid.sum(dtype=dtype),
  )


def gaussian(outputs: jax.Array, targets: jax.Array) -> jax.Array:
  """The negative log-likelihood of each target, in nats.

  >>> import jax.numpy as jnp
  >>> found = gaussian(jnp.array([[1.0, 1.0]]), jnp.ones(1))
  >>> round(float(found[0]), 4)  # log(2 pi) / 2
  0.9189

  Args:
    outputs: Means and deviations, `[..., 2]`.
    targets: `[...]`.

  Returns:
    `[...]`, float32 at least.
  """
  outputs = outputs.astype(jnp.promote_types(jnp.float32, outputs.dtype))
  return -jax.scipy.stats.norm.logpdf(targets, outputs[..., 0], outputs[..., 1])


def pinball(
    outputs: jax.Array, targets: jax.Array, levels: tuple[float, ...]
) -> jax.Array:
  """Twice the pinball loss of each target, the mean over all quantiles.

  >>> import jax.numpy as jnp
  >>> found = pinball(jnp.array([[1.0, 3.0]]), jnp.array([2.0]), (0.1, 0.9))
  >>> round(float(found[0]), 4)
  0.2

  Args:
    outputs: Quantiles `[..., Q]`.
    targets: `[...]`.
    levels: The level of each quantile, in (0, 1).

  Returns:
    `[...]`, float32 at least. With the level 0.5 alone it is the absolute
    error.
  """
  outputs = outputs.astype(jnp.promote_types(jnp.float32, outputs.dtype))
  level = jnp.asarray(levels, outputs.dtype)
  above = targets[..., None] - outputs
  return 2 * jnp.maximum(level * above, (level - 1) * above).mean(-1)


def _sums(
    x, kernel, bias, targets, mask, *, vocab_axis, soft_cap, chunk, split_over
):
  """The sums over `[B, T]` tokens, in as many chunks as needed."""
  count = targets.size
  several = 1
  if chunk == AUTOMATIC:
    several = math.ceil(count * kernel.shape[vocab_axis] / LOGITS_AT_ONCE)
  elif chunk:
    several = math.ceil(count / chunk)

  def one(x, kernel, bias, targets, mask):
    logits = jax.lax.dot_general(
        x, kernel.astype(x.dtype), (((1,), (1 - vocab_axis,)), ((), ())),
        preferred_element_type=jnp.promote_types(jnp.float32, x.dtype),
    )
    if bias is not None:
      logits += bias.astype(logits.dtype)
    if soft_cap > 0:
      logits = soft_cap * jnp.tanh(logits / soft_cap)
    return cross_entropy(logits, targets, mask, split_over=split_over)

  tokens = x.reshape(count, x.shape[-1]), targets.reshape(-1), mask.reshape(-1)
  if several <= 1:
    return one(tokens[0], kernel, bias, *tokens[1:])
  size = math.ceil(count / several)
  chunks = [
      jnp.pad(u, [(0, several * size - count)] + [(0, 0)] * (u.ndim - 1))
      .reshape(several, size, *u.shape[1:])
      for u in tokens
  ]
  return _in_chunks(one, chunks[0], (kernel, bias), *chunks[1:])


@lambda fn: jax.custom_vjp(fn, nondiff_argnums=(0,))
def _in_chunks(one, xs, head, targets, masks):
  """Adds up `one(x, *head, target, mask)` over the leading axis."""
  body = lambda x, y, m: one(x, *head, y, m)
  sums = jax.lax.map(lambda chunk: body(*chunk), (xs, targets, masks))
  return jax.tree.map(lambda u: u.sum(0), sums)


def _in_chunks_forwards(one, xs, head, targets, masks):
  """The same, and the gradients of the loss from the same logits."""

  def body(totals, chunk):
    x, target, mask = chunk

    def loss(x, head):
      sums = one(x, *head, target, mask)
      return sums['loss'], sums

    value, pull, sums = jax.vjp(loss, x, head, has_aux=True)
    grad_x, grads = pull(jnp.ones_like(value))
    return jax.tree.map(jnp.add, totals, grads), (sums, grad_x)

  wide = lambda u: jnp.promote_types(jnp.float32, u.dtype)
  zeros = jax.tree.map(
      lambda u: mesh_lib.same_varying(jnp.zeros(u.shape, wide(u)), u)[0],
      head,
  )
  grads, (sums, grad_xs) = jax.lax.scan(body, zeros, (xs, targets, masks))
  return jax.tree.map(lambda u: u.sum(0), sums), (grad_xs, grads, head)


def _in_chunks_backwards(one, saved, cotangents):
  del one
  grad_xs, grads, head = saved
  scaled = lambda u, like: (u * cotangents['loss']).astype(like.dtype)
  return (
      scaled(grad_xs, grad_xs), jax.tree.map(scaled, grads, head), None, None
  )


_in_chunks.defvjp(_in_chunks_forwards, _in_chunks_backwards)
