"""One chunk of linear attention, as products of matrices."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from rnnzoo.ops import chunkwise
from rnnzoo.ops import decays
from rnnzoo.ops import exact


class Decays(NamedTuple):
  """Decays, with the shapes of `chunkwise.Visibility`."""

  pairs: jax.Array
  state: jax.Array
  last: jax.Array
  through: jax.Array


def per_head(S, q, k, v, weights, bonus, visible):
  """Runs a chunk with one decay per head.

  The steps are those of Mamba-2 (Dao & Gu 2024, https://arxiv.org/abs/2405.21060,
  listing 1): 1. outputs within the chunk (the diagonal blocks); 2. the state
  that the chunk leaves by itself; 3. the recurrence between chunks; 4. outputs
  from the state that enters the chunk.

  Args:
    S: State `[B, H, K, V]`.
    q: `[B, G, Q, K]`.
    k: `[B, G, Q, K]`.
    v: `[B, H, Q, V]`.
    weights: `Decays` or `None`.
    bonus: `[H, K]` or `None`.
    visible: `chunkwise.Visibility`.

  Returns:
    The next state, and outputs `[B, H, Q, V]`.
  """
  groups = q.shape[1]
  # [., H, ...] -> [., G, H / G, ...], or [., 1, ...] -> [., 1, 1, ...]. Sizes
  # are explicit, because JAX cannot infer one of an empty array.
  def split(u):
    some = min(groups, u.shape[1])
    return u.reshape(u.shape[0], some, u.shape[1] // some, *u.shape[2:])

  together = lambda u: u.reshape(
      u.shape[0], u.shape[1] * u.shape[2], *u.shape[3:]
  )
  shape = v.shape
  S, v = split(S), split(v)
  if bonus is not None:
    visible, weights = _without_itself(visible, weights)
  visible = chunkwise.Visibility(*map(split, visible))

  products = exact.einsum('bgik,bgjk->bgij', q, k)[:, :, None]
  from_state = exact.einsum('bgik,bgrkv->bgriv', q, S)
  kept = v
  if weights is None:
    products = jnp.broadcast_to(products, v.shape[:4] + products.shape[4:])
  else:
    weights = Decays(*map(split, weights))
    products = products * weights.pairs
    from_state = from_state * weights.state[..., None]
    kept = v * weights.last[..., None]
    S = S * weights.through[..., None, None]
  # 1. Outputs within the chunk.
  products = jnp.where(visible.pairs, products, 0)
  y = exact.einsum('bgrij,bgrjv->bgriv', products, v)
  # 4. Outputs from the state that enters.
  y = y + jnp.where(visible.state[..., None], from_state, 0)
  if bonus is not None:
    itself = exact.einsum('bgik,grk->bgri', q * k, split(bonus[None])[0])
    y = y + itself[..., None] * v
  # 2 and 3. The state that leaves: the one that entered and what is added.
  kept = jnp.where(visible.last[..., None], kept, 0)
  S = jnp.where(visible.through[..., None, None], S, 0)
  S = S + exact.einsum('bgjk,bgrjv->bgrkv', k, kept)
  return together(S), y.reshape(shape)


def per_feature(S, q, k, v, g, bonus, visible):
  """Runs a chunk with log decays `[B, H, Q, K]`; see `per_head`.

  Gated linear attention (Yang et al. 2023, https://arxiv.org/abs/2312.06635)
  in its chunkwise form, with the same four steps. The paper divides keys by
  decays; `decays.scores` does not.
  """
  before = decays.until(g, -2)
  # 1. Outputs within the chunk.
  if bonus is None:
    products = decays.scores(q, k, g)
  else:
    # A token reads what the token before it would read with the same query.
    earlier = jnp.concatenate([q[..., 1:, :], q[..., :1, :]], axis=-2)
    products = decays.delayed(decays.scores(earlier, k, g), -2)
    before = decays.delayed(before, -2)
    visible, _ = _without_itself(visible, None)
  products = jnp.where(visible.pairs, products, 0)
  faded = q * jnp.where(visible.state[..., None], jnp.exp(before), 0)
  y = exact.einsum('bhij,bhjv->bhiv', products, v)
  # 4. Outputs from the state that enters.
  y = y + exact.einsum('bhik,bhkv->bhiv', faded, S)
  if bonus is not None:
    y = y + exact.einsum('bhik,hk->bhi', q * k, bonus)[..., None] * v
  # 2 and 3. The state that leaves: the one that entered and what is added.
  left = jnp.exp(decays.after(g, -2))
  kept = k * jnp.where(visible.last[..., None], left, 0)
  through = jnp.exp(g.sum(-2))
  S = S * jnp.where(visible.through[..., None], through, 0)[..., None]
  return S + exact.einsum('bhjk,bhjv->bhkv', kept, v), y


def changing(g):
  """The decays of a chunk with logarithms `[B, H, Q]`."""
  return Decays(
      jnp.exp(decays.between(g)),
      jnp.exp(decays.until(g, -1)),
      jnp.exp(decays.after(g, -1)),
      jnp.exp(g.sum(-1)),
  )


def constant(g, number, same_always):
  """The decays of a chunk where every step has the same `g` `[H]`.

  Args:
    g: Log decays.
    number: The number of each step among those that are present, `[B, 1, Q]`,
      from 1 on.
    same_always: Decays between tokens `[H, Q, Q]` if no step is absent, or else
      `None`.
  """
  last = number[..., -1:]
  if same_always is None:
    pairs = constant_between(g, number)
  else:
    pairs = same_always[None]
  over = lambda count: jnp.exp(g[:, None] * count)  # [B, 1, n] -> [B, H, n]
  return Decays(
      pairs, over(number), over(last - number), over(last)[..., 0]
  )


def constant_between(g, number):
  """Constant decays from step to step, `[..., H, Q, Q]`; 1 from a later one."""
  distance = number[..., None] - number[..., None, :]
  return jnp.exp(g[:, None, None] * jnp.maximum(distance, 0))


def summary(tokens, g, reset, dtype):
  """How a segment of time changes a state, and the state that it leaves.

  Args:
    tokens: Arrays `[B, T, ...]` by name: `k`, `v`, and `g` or, for constant
      decays, `count`, which is 0 for an absent token.
    g: Log decays. If they depend on the token, those in `tokens` are used.
    reset: `[B, T]` or `None`.
    dtype: The dtype of states.

  Returns:
    The factor of a state that enters, `[B, H, K, 1]` or with sizes of 1 for `H`
    and `K`; and the state `[B, H, K, V]`.
  """
  k, v = tokens['k'].astype(dtype), tokens['v'].astype(dtype)
  groups = k.shape[2]
  last, through = chunkwise.visible_at_end(reset, v)
  if g is None:
    total = jnp.zeros_like(v, shape=(v.shape[0], 1, 1))
  elif g.ndim == 1:
    number = jnp.cumsum(tokens['count'], axis=1)
    v = v * jnp.exp(g * (number[:, -1:] - number))[..., None]
    total = (g * number[:, -1])[..., None]
  elif g.ndim == 3:
    v = v * jnp.exp(decays.after(tokens['g'], 1))[..., None]
    total = tokens['g'].sum(1)[..., None]
  else:
    k = k * jnp.exp(decays.after(tokens['g'], 1))
    total = tokens['g'].sum(1)
  v = jnp.where(last[..., None, None], v, 0)
  v = v.reshape(*v.shape[:2], groups, v.shape[2] // groups, v.shape[-1])
  S = exact.einsum('btgk,btgrv->bgrkv', k, v)
  kept = jnp.where(through[:, None, None], jnp.exp(total), 0)
  S = S.reshape(S.shape[0], S.shape[1] * S.shape[2], *S.shape[3:])
  return kept[..., None], S


def combine(earlier, later):
  """Merges summaries of adjacent segments of time; states may be trees."""
  kept, S = later
  return kept * earlier[0], jax.tree.map(
      lambda before, left: kept * before + left, earlier[1], S
  )


def _without_itself(visible, weights):
  """Excludes each token from its own view, and its decay, too."""
  length = visible.pairs.shape[-1]
  strictly = jnp.tri(length, k=-1, dtype=bool)
  visible = visible._replace(pairs=visible.pairs & strictly)
  if weights is not None:
    weights = weights._replace(
        pairs=decays.delayed(weights.pairs, -2),
        state=decays.delayed(weights.state, -1, first=1),
    )
  return visible, weights
