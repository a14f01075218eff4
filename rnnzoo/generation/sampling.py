"""How a token is drawn from logits."""

import math
import numbers
from typing import Any, NamedTuple

import jax
from jax import core
import jax.numpy as jnp
import numpy as np
from rnnzoo import errors
from rnnzoo import fields


class Sampling(NamedTuple):
  """How a token is drawn: see `sample_logits`."""

  temperature: float = 1.0
  top_k: int = 0
  top_p: float = 1.0
  min_p: float = 0.0
  repetition_penalty: float = 1.0


def sample_logits(
    key: jax.Array | None,
    logits: jax.Array,
    *,
    temperature: float = 1.0,
    top_k: int = 0,
    top_p: float = 1.0,
    min_p: float = 0.0,
    repetition_penalty: float = 1.0,
    seen: jax.Array | None = None,
) -> jax.Array:
  """Draws a token for each row of logits.

  The penalty comes first (Keskar et al., 2019, https://arxiv.org/abs/1909.05858,
  in the form of `transformers`), then the temperature, then the filters in the
  order of the arguments: `top_p` and `min_p` (Nguyen et al., 2024,
  https://arxiv.org/abs/2407.01082) apply to what is left, normalised. What a
  row gets depends on its logits, its number and the key, not on how many rows
  there are.

  No token can be drawn from a row with NaN, or with only -inf. Outside
  `jax.jit` and `jax.vmap` that raises an error; inside them such a row gets -1.
  `generate` and `stream` raise the same error for it.

  >>> import jax.numpy as jnp
  >>> logits = jnp.array([[0.0, 2.0, 1.5]])
  >>> sample_logits(None, logits, temperature=0)
  Array([1], dtype=int32)
  >>> sample_logits(
  ...     None, logits, temperature=0, repetition_penalty=2.0,
  ...     seen=jnp.array([[False, True, False]]),
  ... )
  Array([2], dtype=int32)

  Args:
    key: A PRNG key; may be `None` if `temperature` is 0.
    logits: `[B, V]`.
    temperature: Divides the logits; 0 takes the largest, of equal ones the
      lowest index. A static Python number, like the next four: a new value
      triggers recompilation.
    top_k: Only the k most probable tokens; 0 for all.
    top_p: Only the smallest set of the most probable tokens whose probabilities
      add up to this much; 1 for all.
    min_p: Only tokens that are at least this many times as probable as the most
      probable one; 0 for all.
    repetition_penalty: Divides the logits of tokens in `seen` that are
      positive, and multiplies those that are negative; 1 for no change.
    seen: Booleans `[B, V]`; needed if there is a penalty.

  Returns:
    Token ids `[B]`, int32.

  Raises:
    UserValueError: If an argument is out of range, or a row gives no token.
  """
  sampling = Sampling(temperature, top_k, top_p, min_p, repetition_penalty)
  key = check(sampling, key)
  logits = jnp.asarray(logits)
  if logits.ndim != 2 or not logits.shape[1]:
    raise errors.UserValueError(
        f'`logits` must be [B, V] with V >= 1, got {logits.shape}.'
    )
  if jnp.iscomplexobj(logits):
    raise errors.UserValueError(
        f'`logits` must be real numbers, got {logits.dtype}.'
    )
  if repetition_penalty != 1:
    seen = None if seen is None else jnp.asarray(seen)
    if seen is None or seen.shape != logits.shape or seen.dtype != bool:
      got = 'None' if seen is None else f'{seen.dtype} {seen.shape}'
      raise errors.UserValueError(
          f'`seen` must be bool {logits.shape} for repetition_penalty '
          f'{repetition_penalty}, got {got}.'
      )
  tokens = draw(key, logits, seen, sampling)
  if not isinstance(tokens, core.Tracer):
    drawn(tokens)
  return tokens


def check(sampling: Sampling, key: jax.Array | None) -> jax.Array:
  """Raises `UserValueError` on bad values; returns a key."""
  temperature, top_k, top_p, min_p, penalty = sampling
  if not (_is_number(temperature) and 0 <= temperature < math.inf):
    raise errors.UserValueError(
        f'`temperature` must be a number of at least 0, got {temperature!r}.'
    )
  if not fields.is_integer(top_k) or top_k < 0:
    raise errors.UserValueError(
        f'`top_k` must be an integer of at least 0 (all), got {top_k!r}.'
    )
  if not (_is_number(top_p) and 0 < top_p <= 1):
    raise errors.UserValueError(
        f'`top_p` must be in (0, 1], got {top_p!r}.'
    )
  if not (_is_number(min_p) and 0 <= min_p <= 1):
    raise errors.UserValueError(
        f'`min_p` must be in [0, 1], got {min_p!r}.'
    )
  if not (_is_number(penalty) and 0 < penalty < math.inf):
    raise errors.UserValueError(
        f'`repetition_penalty` must be a number above 0, got {penalty!r}.'
    )
  if key is None:
    if temperature:
      raise errors.UserValueError(
          f'`key` must be given for temperature {temperature}.'
      )
    key = jax.random.key(0)  # Has no say.
  return key


def draw(
    key: jax.Array,
    logits: jax.Array,
    seen: jax.Array | None,
    sampling: Sampling,
) -> jax.Array:
  """`sample_logits` without checks, -1 for no token; `sampling` is static."""
  wide = logits.astype(jnp.promote_types(jnp.float32, logits.dtype))
  if sampling.repetition_penalty != 1 and seen is not None:
    penalty = sampling.repetition_penalty
    wide = jnp.where(
        seen, jnp.where(wide > 0, wide / penalty, wide * penalty), wide
    )
  largest = wide.max(-1, keepdims=True)  # NaN, if there is NaN.
  if sampling.temperature == 0:
    choice = wide.argmax(-1)
  else:
    choice = _draw(key, wide, largest, sampling)
  return jnp.where(largest[:, 0] > -jnp.inf, choice, -1).astype(jnp.int32)


def drawn(tokens: Any) -> np.ndarray:
  """Returns tokens `[B]` or `[B, length]` as NumPy has them.

  Raises:
    UserValueError: If a row has no token.
  """
  # What ran out of memory raises here; `np.asarray` waits for ever.
  found = np.asarray(jax.block_until_ready(tokens))
  if not (found < 0).any():
    return found
  row, *number = np.argwhere(found < 0)[0]
  where = f' for new token {number[0]}' if number else ''
  raise errors.UserValueError(
      f'The logits of row {row}{where} are NaN or all -inf: no token can be '
      'drawn from them. Look for NaN in the parameters and the inputs.'
  )


def _is_number(value) -> bool:
  return isinstance(value, numbers.Real) and not isinstance(value, bool)


def _draw(key, logits, largest, sampling: Sampling):
  """A token for each row of logits, at a temperature that is not 0."""
  # The largest is 0 before the division, which must not overflow. Infinities
  # have no difference; numbers so small that they may count as 0 divide none.
  logits = jnp.where(logits == largest, 0, logits - largest)
  smallest = float(jnp.finfo(logits.dtype).tiny)
  logits /= min(max(sampling.temperature, smallest), 1 / smallest)
  order = None
  if sampling.top_k or sampling.top_p < 1:
    size = logits.shape[-1]
    logits, order = jax.lax.top_k(logits, min(sampling.top_k or size, size))
    probabilities = jax.nn.softmax(logits)
    before = jnp.cumsum(probabilities, -1) - probabilities
    # The first has 0 before it.
    logits = jnp.where(
        before < max(sampling.top_p, smallest), logits, -jnp.inf
    )
  if sampling.min_p:
    # The most probable token has logit 0.
    logits = jnp.where(
        logits >= math.log(max(sampling.min_p, smallest)), logits, -jnp.inf
    )
  rows = jnp.arange(logits.shape[0])
  keys = jax.vmap(jax.random.fold_in, (None, 0))(key, rows)
  choice = jax.vmap(jax.random.categorical)(keys, logits)
  if order is not None:
    choice = jnp.take_along_axis(order, choice[:, None], 1)[:, 0]
  return choice
