"""MLPs of which each token runs through a few of many."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P
from rnnzoo import mesh as mesh_lib
from rnnzoo.ops import checking
from rnnzoo.ops import exact
from rnnzoo.ops.group_products import grouped_product
from rnnzoo.ops.rows import vary_together


def expert_mlp(
    x: jax.Array,
    chosen: jax.Array,
    weights: jax.Array,
    inner: jax.Array,
    outer: jax.Array,
    nonlinearity: Callable[[jax.Array], jax.Array],
) -> jax.Array:
  """Sums what the chosen experts make of each token, by weight.

  An expert computes `outer f(inner x)`, or with two inner matrices
  `outer (f(inner_0 x) * inner_1 x)`. Tokens are sorted by expert, so that an
  expert is two products. No token is dropped, however many choose the same
  expert.

  On a mesh whose axis `model` divides the experts, each of its devices runs
  some of them, and the sums of the devices are added.

  >>> import jax.numpy as jnp
  >>> x, chosen = jnp.array([[1.], [2.]]), jnp.array([[0, 1], [1, 2]])
  >>> inner = outer = jnp.array([[[1.]], [[2.]]])
  >>> expert_mlp(
  ...     x, chosen, jnp.ones((2, 2)), inner[:, None], outer, lambda u: u
  ... )
  Array([[5.],
         [8.]], dtype=float32)

  Args:
    x: Tokens `[B, D]` or `[B, T, D]`, or with further axes before `D`.
    chosen: The experts of each token, integers `[..., K]`. Those outside of
      `[0, E)` give 0 and cost nothing.
    weights: What their outputs are multiplied by, `[..., K]`.
    inner: The matrices to hidden features, `[E, D, 1, F]` or `[E, D, 2, F]`.
    outer: `[E, F, D]`.
    nonlinearity: `f`, with `f(0) = 0`.

  Returns:
    An array like `x`, float32 or wider.

  Raises:
    ValueError: If shapes or dtypes disagree.
  """
  checking.are_floating(x=x, weights=weights, inner=inner, outer=outer)
  checking.has_axes('inner', inner, 'EDGF')
  experts, features, gates, hidden = inner.shape
  if gates not in (1, 2) or features != x.shape[-1]:
    raise ValueError(
        f'`inner` must be [E, D, G, F] with D = {x.shape[-1]} and G = 1 or 2, '
        f'got {inner.shape}.'
    )
  checking.has_shape('outer', outer, 'EFD', (experts, hidden, features))
  places = (*x.shape[:-1], *chosen.shape[-1:])
  checking.has_shape('chosen', chosen, '.K', places)
  checking.has_shape('weights', weights, '.K', places)

  mesh = mesh_lib.all_auto()
  if mesh is None:
    return _sum_of_experts(x, chosen, weights, (inner, outer), nonlinearity)
  rows = [mesh_lib.dividing(mesh, mesh_lib.BATCH_AXES, x.shape[0])]
  if x.ndim in (3, 5):
    rows.append(mesh_lib.dividing(mesh, mesh_lib.TIME_AXES, x.shape[1]))
  model = mesh_lib.dividing(mesh, mesh_lib.FEATURE_AXES, experts)
  # Devices sum in float32 what they send, as in `map_rows`.
  dtype, wide = x.dtype, exact.accumulation_dtype(x)
  kernels = tuple(
      u.astype(jnp.promote_types(u.dtype, wide)) for u in (inner, outer)
  )

  def local(x, chosen, weights, kernels):
    x, weights, kernels = vary_together((x, weights, kernels))
    if model:
      chosen -= jax.lax.axis_index(model) * kernels[0].shape[0]
    y = _sum_of_experts(
        x.astype(dtype), chosen, weights, kernels, nonlinearity
    )
    return jax.lax.psum(y, model) if model else y

  names = {*sum(rows, ()), *model}
  if not names:
    return local(x, chosen, weights, kernels)
  return jax.shard_map(
      local, mesh=mesh, in_specs=(P(*rows),) * 3 + (P(model),),
      out_specs=P(*rows), axis_names=names,
  )(x.astype(wide), chosen, weights.astype(wide), kernels)


def _sum_of_experts(x, chosen, weights, kernels, nonlinearity):
  """`expert_mlp` on one device."""
  inner, outer = kernels
  experts, shape, choices = inner.shape[0], x.shape, chosen.shape[-1]
  chosen = chosen.reshape(-1)
  chosen = jnp.where((chosen >= 0) & (chosen < experts), chosen, experts)
  order = jnp.argsort(chosen)
  sizes = jnp.zeros(experts, jnp.int32).at[chosen].add(1, mode='drop')
  # With indices that are unique, gradients need no sums.
  take = lambda u, places: u.at[places].get(unique_indices=True)
  rows = jnp.repeat(x.reshape(-1, shape[-1]), choices, axis=0)
  rows = take(rows, order)
  y = grouped_product(rows, inner.reshape(*inner.shape[:2], -1), sizes)
  first, *second = jnp.split(y, inner.shape[2], axis=-1)
  y = nonlinearity(first) * second[0] if second else nonlinearity(first)
  y = take(grouped_product(y, outer, sizes), jnp.argsort(order))
  dtype = exact.accumulation_dtype(x)
  weights = jnp.where(chosen < experts, weights.reshape(-1).astype(dtype), 0)
  y = (y.astype(dtype) * weights[:, None]).reshape(-1, choices, shape[-1])
  return y.sum(1).reshape(shape)
