"""Heads in groups that share queries and keys."""

import jax
import jax.numpy as jnp
from rnnzoo.ops import checking
from rnnzoo.ops import decays
from rnnzoo.ops import exact


def by_group(groups: int, u: jax.Array) -> jax.Array:
  """Reshapes `[B, H, ...]` to `[B, G, H / G, ...]`."""
  return u.reshape(u.shape[0], groups, u.shape[1] // groups, *u.shape[2:])


def checked(q, k, v, S, g, bonus, leading):
  """Returns the operands as arrays, the state `[B, H, K, V]`, or raises."""
  q, k, v = (jnp.asarray(u) for u in (q, k, v))
  names = ', '.join(leading)
  if v.ndim != len(leading) + 2:
    raise ValueError(f'`v` must be [{names}, H, V], got shape {v.shape}.')
  *sizes, heads, _ = v.shape
  shape = tuple(sizes)
  if q.ndim != v.ndim or q.shape[:-2] != shape or heads % max(q.shape[-2], 1):
    raise ValueError(
        f'`q` must be [{names}, G, K] with {names} = {shape} and G a divisor '
        f'of {heads}, got {q.shape}.'
    )
  if k.shape != q.shape:
    raise ValueError(
        f'`k` must have the shape of `q`, {q.shape}, got {k.shape}.'
    )
  features = q.shape[-1]
  operands = dict(q=q, k=k, v=v)
  if g is not None:
    g = operands['log_decay'] = jnp.asarray(g)
    by_feature = shape + (heads, features)
    if g.shape not in ((heads,), shape + (heads,), by_feature):
      raise ValueError(
          f'`log_decay` must be {(heads,)}, {shape + (heads,)} or '
          f'{by_feature}, got {g.shape}.'
      )
    if g.shape == by_feature and q.shape[-2] != heads:
      raise ValueError(
          '`q` must have all heads if decays are per feature: '
          f'{by_feature}, got {q.shape}.'
      )
  if bonus is not None:
    bonus = operands['bonus'] = jnp.asarray(bonus)
    checking.has_shape('bonus', bonus, 'HK', (heads, features))
  checking.are_floating(**operands)
  dtype = exact.accumulation_dtype(*operands.values())
  want = shape[:1] + (heads, features, v.shape[-1])
  if S is None:
    S = jnp.zeros(want, dtype)
  else:
    checking.has_shape('S0' if len(leading) == 2 else 'S', S, 'BHKV', want)
  if g is not None:
    g = decays.finite(g, dtype)
  bonus = None if bonus is None else bonus.astype(dtype)
  return q, k, v, jnp.asarray(S, dtype), g, bonus
