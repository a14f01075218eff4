"""Linear attention with decays: a matrix for a state, in chunks of tokens."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from rnnzoo import mesh
from rnnzoo.ops import checking
from rnnzoo.ops import chunkwise
from rnnzoo.ops import exact


def linear_attention(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    S0: jax.Array | None = None,
    *,
    log_decay: jax.Array | None = None,
    bonus: jax.Array | None = None,
    scale: float = 1.0,
    reset: jax.Array | None = None,
    mask: jax.Array | None = None,
    chunk_size: int | None = None,
) -> tuple[jax.Array, jax.Array]:
  r"""Computes `S_t = diag(e^{g_t}) S_{t-1} + k_t v_t^T`, read by `S_t^T q_t`.

  With :math:`g` the `log_decay`, one a head or one a key feature. In chunks of
  `Q` tokens: what they read of each other is a matrix of weights `[Q, Q]`, what
  they read of earlier chunks a product with one state, and only states between
  chunks come one after the other. No decay is ever divided by, so they may be
  as strong as they like. Cost a token and head: about `(Q + 2 K) V + Q K`
  multiplications in matrices, and `Q` exponentials where there are decays. The
  step of the recurrence has `3 K V`, but no product of two matrices.

  Heads may share queries and keys, as those of Mamba-2 do: their products are
  made once for all heads of a group. With a `bonus` :math:`u` a token reads the
  state before it, and itself by that weight (RWKV-6):

  .. math::
      y_t = (S_{t-1} + \mathrm{diag}(u) k_t v_t^T)^T q_t

  Under `jax.set_mesh` every device computes its own rows, heads and stretch of
  time; devices along time tell each other what their tokens leave, one state.

  >>> import jax.numpy as jnp
  >>> ones, v = jnp.ones((1, 4, 1, 1)), jnp.arange(4.).reshape(1, 4, 1, 1)
  >>> S, y = linear_attention(ones, ones, v, log_decay=jnp.log(jnp.array([.5])))
  >>> y.ravel()
  Array([0.  , 1.  , 2.5 , 4.25], dtype=float32)

  Args:
    q: Queries `[B, T, G, K]`, `G` groups of heads; T >= 0.
    k: Keys `[B, T, G, K]`.
    v: Values `[B, T, H, V]`, `H` a multiple of `G`; the first `H / G` heads are
      the first group.
    S0: State before the first token `[B, H, K, V]`; zeros if `None`.
    log_decay: `None` for none; `[H]`, the same at all times; `[B, T, H]`; or
      `[B, T, H, K]`, and then `G = H`. At most 0; minus infinity forgets all.
    bonus: `[H, K]`, or `None`.
    scale: Queries are multiplied by it.
    reset: Booleans `[B, T]`, `True` where a new sequence starts: by selection,
      so that a NaN before it reaches nothing after it.
    mask: Booleans `[B, T]`; a `False` token is absent: its output is 0, and
      nothing fades.
    chunk_size: `Q`, a power of two; if `None` 64, or 32 for decays of a key
      feature each.

  Returns:
    `(S, y)`: the state after the last token `[B, H, K, V]`, in
    `promote_types(float32, ...)` of the operands, and `[B, T, H, V]` in the
    dtype of `v`.

  Raises:
    ValueError: If shapes or dtypes disagree.
  """
  q, k, v, S0, g, bonus = _checked(q, k, v, S0, log_decay, bonus, ('B', 'T'))
  reset, mask = checking.flags(reset, mask, v.shape)
  if chunk_size is None:
    chunk_size = 32 if g is not None and g.ndim == 4 else 64
  decay_layout = '' if g is None else {1: 'd', 3: 'btd', 4: 'btdk'}[g.ndim]
  return mesh.run_per_device(
      functools.partial(_run, scale=scale, chunk_size=chunk_size),
      # Groups are not taken apart, unless there is one, which all devices have.
      v if q.shape[2] == 1 else q,
      (q, k, v, S0, g, bonus, reset, mask),
      ('btdk',) * 3 + ('bdkk', decay_layout, 'dk', 'bt', 'bt'),
      ('bdkk', 'btdk'),
  )


def linear_attention_step(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    S: jax.Array,
    *,
    log_decay: jax.Array | None = None,
    bonus: jax.Array | None = None,
    scale: float = 1.0,
) -> tuple[jax.Array, jax.Array]:
  """`linear_attention` of one token, as it is written.

  >>> import jax.numpy as jnp
  >>> one, S = jnp.ones((1, 1, 1)), jnp.full((1, 1, 1, 1), 4.)
  >>> linear_attention_step(one, one, one, S, log_decay=jnp.log(one[0, 0] / 2))
  (Array([[[[3.]]]], dtype=float32), Array([[[3.]]], dtype=float32))

  Args:
    q: `[B, G, K]`.
    k: `[B, G, K]`.
    v: `[B, H, V]`.
    S: `[B, H, K, V]`.
    log_decay: `None`, `[H]`, `[B, H]` or `[B, H, K]`.
    bonus: `[H, K]`, or `None`.
    scale: Queries are multiplied by it.

  Returns:
    `(S, y)`: the next state, and `[B, H, V]` in the dtype of `v`.

  Raises:
    ValueError: If shapes or dtypes disagree.
  """
  q, k, v, S, g, bonus = _checked(q, k, v, S, log_decay, bonus, ('B',))
  out_dtype = v.dtype
  q, k, v = (u.astype(S.dtype) for u in (q * scale, k, v))
  heads = v.shape[1] // q.shape[1]
  q, k = (jnp.repeat(u, heads, axis=1) for u in (q, k))
  new = k[..., None] * v[..., None, :]
  before = S
  if g is not None:
    g = g if g.ndim == 3 else g[..., None]
    S = jnp.exp(g)[..., None] * S
  S = S + new
  if bonus is None:
    read = S
  else:
    read = before + bonus[..., None] * new
  return S, (q[..., None] * read).sum(-2).astype(out_dtype)


class _Decays(NamedTuple):
  """How much is left of what `chunkwise.Sight` sees, of the same shapes."""

  pairs: jax.Array
  state: jax.Array
  last: jax.Array
  through: jax.Array


def _run(q, k, v, S0, g, bonus, reset, mask, *, segments, scale, chunk_size):
  tokens, usual = dict(q=q, k=k, v=v), None
  if g is not None and g.ndim == 1:
    # Of tokens that are there; where all are, chunks have the same weights.
    tokens['count'] = jnp.ones_like(S0, shape=v.shape[:2] + (1,))
    if mask is None:
      length = chunkwise.chunk_length(v.shape[1], chunk_size)
      usual = _over(g, jnp.arange(length, dtype=g.dtype))
  elif g is not None:
    tokens['g'] = g

  def one_chunk(S, chunk, sight):
    chunk = {name: u.astype(S.dtype) for name, u in chunk.items()}
    q, k, v = chunk['q'] * scale, chunk['k'], chunk['v']
    if g is not None and g.ndim == 4:
      S, y = _features_fade(S, q, k, v, chunk['g'], bonus, sight)
    elif g is None:
      S, y = _heads_fade(S, q, k, v, None, bonus, sight)
    elif g.ndim == 3:
      decays = _changing(chunk['g'])
      S, y = _heads_fade(S, q, k, v, decays, bonus, sight)
    else:
      decays = _constant(g, jnp.cumsum(chunk['count'], axis=-1), usual)
      S, y = _heads_fade(S, q, k, v, decays, bonus, sight)
    return S, y.astype(tokens['v'].dtype)

  by_itself = lambda tokens, reset: _by_itself(tokens, g, reset, S0.dtype)
  S0 = chunkwise.entering(
      segments, by_itself, _both, S0, tokens, reset, mask
  )
  S, y = chunkwise.scan_chunks(one_chunk, S0, tokens, reset, mask, chunk_size)
  return chunkwise.leaving(segments, S), y


def _by_itself(tokens, g, reset, dtype):
  """What a stretch of time does to a state, and what it leaves by itself.

  Args:
    tokens: See `_run`.
    g: Log decays, of which those of tokens are not looked at.
    reset: `[B, T]` or `None`.
    dtype: Of states.

  Returns:
    What is left of a state, `[B, H, K, 1]` or with ones for `H` and `K`; and
    the state `[B, H, K, V]`.
  """
  k, v = tokens['k'].astype(dtype), tokens['v'].astype(dtype)
  groups = k.shape[2]
  last, through = chunkwise.seen_last(reset, v)
  if g is None:
    total = jnp.zeros_like(v, shape=(v.shape[0], 1, 1))
  elif g.ndim == 1:
    number = jnp.cumsum(tokens['count'], axis=1)
    v = v * jnp.exp(g * (number[:, -1:] - number))[..., None]
    total = (g * number[:, -1])[..., None]
  elif g.ndim == 3:
    v = v * jnp.exp(chunkwise.after(tokens['g'], 1))[..., None]
    total = tokens['g'].sum(1)[..., None]
  else:
    k = k * jnp.exp(chunkwise.after(tokens['g'], 1))
    total = tokens['g'].sum(1)
  v = jnp.where(last[..., None, None], v, 0)
  v = v.reshape(*v.shape[:2], groups, v.shape[2] // groups, v.shape[-1])
  S = exact.einsum('btgk,btgrv->bgrkv', k, v)
  kept = jnp.where(through[:, None, None], jnp.exp(total), 0)
  S = S.reshape(S.shape[0], S.shape[1] * S.shape[2], *S.shape[3:])
  return kept[..., None], S


def _both(earlier, later):
  """Of two stretches of time after each other what `_by_itself` is of one."""
  kept, S = later
  return kept * earlier[0], kept * earlier[1] + S


def _heads_fade(S, q, k, v, decays, bonus, sight):
  """A chunk whose decays are those of heads.

  Args:
    S: State `[B, H, K, V]`.
    q: `[B, G, Q, K]`.
    k: `[B, G, Q, K]`.
    v: `[B, H, Q, V]`.
    decays: `_Decays` or `None`.
    bonus: `[H, K]` or `None`.
    sight: `chunkwise.Sight`.

  Returns:
    The next state, and outputs `[B, H, Q, V]`.
  """
  groups = q.shape[1]
  # [., H, ...] -> [., G, H / G, ...]; where there is 1 for all heads, [., 1, 1.
  # Sizes are spelt out: JAX cannot infer one of an empty array.
  def split(u):
    some = min(groups, u.shape[1])
    return u.reshape(u.shape[0], some, u.shape[1] // some, *u.shape[2:])

  together = lambda u: u.reshape(
      u.shape[0], u.shape[1] * u.shape[2], *u.shape[3:]
  )
  shape = v.shape
  S, v = split(S), split(v)
  if bonus is not None:
    sight, decays = _of_those_before(sight, decays)
  sight = chunkwise.Sight(*map(split, sight))

  weights = exact.einsum('bgik,bgjk->bgij', q, k)[:, :, None]
  of_state = exact.einsum('bgik,bgrkv->bgriv', q, S)
  kept = v
  if decays is None:
    weights = jnp.broadcast_to(weights, v.shape[:4] + weights.shape[4:])
  else:
    decays = _Decays(*map(split, decays))
    weights = weights * decays.pairs
    of_state = of_state * decays.state[..., None]
    kept = v * decays.last[..., None]
    S = S * decays.through[..., None, None]
  weights = jnp.where(sight.pairs, weights, 0)
  y = exact.einsum('bgrij,bgrjv->bgriv', weights, v)
  y = y + jnp.where(sight.state[..., None], of_state, 0)
  if bonus is not None:
    itself = exact.einsum('bgik,grk->bgri', q * k, split(bonus[None])[0])
    y = y + itself[..., None] * v
  kept = jnp.where(sight.last[..., None], kept, 0)
  S = jnp.where(sight.through[..., None, None], S, 0)
  S = S + exact.einsum('bgjk,bgrjv->bgrkv', k, kept)
  return together(S), y.reshape(shape)


def _features_fade(S, q, k, v, g, bonus, sight):
  """A chunk with log decays `[B, H, Q, K]`, else as `_heads_fade`."""
  before = chunkwise.up_to(g, -2)
  if bonus is None:
    weights = chunkwise.scores(q, k, g)
  else:
    # A token reads what the one before it would with this query.
    earlier = jnp.concatenate([q[..., 1:, :], q[..., :1, :]], axis=-2)
    weights = chunkwise.delayed(chunkwise.scores(earlier, k, g), -2)
    before = chunkwise.delayed(before, -2)
    sight, _ = _of_those_before(sight, None)
  weights = jnp.where(sight.pairs, weights, 0)
  faded = q * jnp.where(sight.state[..., None], jnp.exp(before), 0)
  y = exact.einsum('bhij,bhjv->bhiv', weights, v)
  y = y + exact.einsum('bhik,bhkv->bhiv', faded, S)
  if bonus is not None:
    y = y + exact.einsum('bhik,hk->bhi', q * k, bonus)[..., None] * v
  left = jnp.exp(chunkwise.after(g, -2))
  kept = k * jnp.where(sight.last[..., None], left, 0)
  through = jnp.exp(g.sum(-2))
  S = S * jnp.where(sight.through[..., None], through, 0)[..., None]
  return S + exact.einsum('bhjk,bhjv->bhkv', kept, v), y


def _changing(g):
  """Decays of a chunk from their logarithms `[B, H, Q]`."""
  return _Decays(
      jnp.exp(chunkwise.pairs(g)),
      jnp.exp(chunkwise.up_to(g, -1)),
      jnp.exp(chunkwise.after(g, -1)),
      jnp.exp(g.sum(-1)),
  )


def _constant(g, number, usual):
  """Decays of a chunk where each step fades by the same `g` `[H]`.

  Args:
    g: Log decays.
    number: Of each step among those that are there, `[B, 1, Q]`, from 1 on.
    usual: Decays of pairs `[H, Q, Q]` if no step is absent, or else `None`.
  """
  last = number[..., -1:]
  pairs = _over(g, number) if usual is None else usual[None]
  over = lambda count: jnp.exp(g[:, None] * count)  # [B, 1, n] -> [B, H, n]
  return _Decays(
      pairs, over(number), over(last - number), over(last)[..., 0]
  )


def _over(g, number):
  """Decays from step to step, `[..., H, Q, Q]`; 1 from a later one."""
  distance = number[..., None] - number[..., None, :]
  return jnp.exp(g[:, None, None] * jnp.maximum(distance, 0))


def _of_those_before(sight, decays):
  """What a token sees that does not see itself, and what is left of that."""
  length = sight.pairs.shape[-1]
  strictly = jnp.tri(length, k=-1, dtype=bool)
  sight = sight._replace(pairs=sight.pairs & strictly)
  if decays is not None:
    decays = decays._replace(
        pairs=chunkwise.delayed(decays.pairs, -2),
        state=chunkwise.delayed(decays.state, -1, first=1),
    )
  return sight, decays


def _checked(q, k, v, S, g, bonus, leading):
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
          '`q` must be of all heads where decays are of features: '
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
    g = chunkwise.log_decay(g, dtype)
  bonus = None if bonus is None else bonus.astype(dtype)
  return q, k, v, jnp.asarray(S, dtype), g, bonus
