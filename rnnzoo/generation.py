"""More tokens from a model: the prompt in parallel, then one step a token.

A model has `model(tokens, mask=) -> (carry, logits)` and `model.step(carry,
tokens) -> (carry, logits)`, and is a pytree, as all Flax NNX modules are:
`rnnzoo.models.LanguageModel`, for one.
"""

from collections.abc import Iterator, Sequence
import functools
import itertools
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


def sample_logits(
    key: jax.Array | None,
    logits: jax.Array,
    *,
    temperature: float = 1.0,
    top_k: int = 0,
    top_p: float = 1.0,
) -> jax.Array:
  """Draws a token for each row of logits.

  The filters apply in the order of the arguments: the temperature first, and
  `top_p` to what `top_k` has left, normalised. What a row gets depends on its
  logits, its number and the key, not on how many rows there are.

  No token can be drawn from a row with NaN, or with only -inf. Outside
  `jax.jit` and `jax.vmap` that raises an error; inside them such a row gets -1.
  `generate` and `stream` raise the same error for it.

  >>> import jax.numpy as jnp
  >>> sample_logits(None, jnp.array([[0.0, 2.0, 1.0]]), temperature=0)
  Array([1], dtype=int32)

  Args:
    key: A PRNG key; may be `None` if `temperature` is 0.
    logits: `[B, V]`.
    temperature: Divides the logits; 0 takes the largest, of equal ones the
      lowest index. A static Python number, like the next two: a new value
      triggers recompilation.
    top_k: Only the k most probable tokens; 0 for all.
    top_p: Only the smallest set of the most probable tokens whose probabilities
      add up to this much; 1 for all.

  Returns:
    Token ids `[B]`, int32.

  Raises:
    UserValueError: If an argument is out of range, or a row gives no token.
  """
  sampling = Sampling(temperature, top_k, top_p)
  key = _check_sampling(sampling, key)
  logits = jnp.asarray(logits)
  if logits.ndim != 2 or not logits.shape[1]:
    raise errors.UserValueError(
        f'`logits` must be [B, V] with V >= 1, got {logits.shape}.'
    )
  if jnp.iscomplexobj(logits):
    raise errors.UserValueError(
        f'`logits` must be real numbers, got {logits.dtype}.'
    )
  tokens = _sample(key, logits, sampling)
  if not isinstance(tokens, core.Tracer):
    _drawn(tokens)
  return tokens


def generate(
    model: Any,
    prompts: jax.typing.ArrayLike,
    *,
    length: int,
    key: jax.Array | None = None,
    mask: jax.typing.ArrayLike | None = None,
    temperature: float = 1.0,
    top_k: int = 0,
    top_p: float = 1.0,
) -> jax.Array:
  """Continues prompts: a parallel call, then a scan of `step`, in one program.

  Prompts of different lengths are one batch: `pad` puts padding before them.

  >>> from flax import nnx
  >>> from rnnzoo import models
  >>> model = models.LanguageModel(models.ModelConfig.tiny(), rngs=nnx.Rngs(0))
  >>> prompts, mask = pad([[1, 2, 3], [4]])
  >>> generate(model, prompts, mask=mask, length=5, temperature=0).shape
  (2, 5)

  Args:
    model: Returns logits `[B, T, V]`, and `[B, V]` from `step`.
    prompts: Token ids `[B, P]`, P >= 1; where `mask` is `True` they must be
      less than `model.config.vocab_size`, if the model has one.
    length: How many tokens to add.
    key: A PRNG key; may be `None` if `temperature` is 0.
    mask: Booleans `[B, P]`, `False` on padding, which may be anywhere.
    temperature: See `sample_logits`, like the next two.
    top_k: 0 for all tokens.
    top_p: 1 for all tokens.

  Returns:
    The new token ids `[B, length]`, int32.

  Raises:
    UserValueError: If an argument has another form, a prompt is empty, an id is
      outside the vocabulary, or the model's logits are NaN. Inside `jax.jit` a
      row of NaN gives -1 instead.
  """
  sampling = Sampling(temperature, top_k, top_p)
  key = _check_sampling(sampling, key)
  prompts, mask = _check_prompts(model, prompts, mask)
  _check_length(length)
  _check_room(_room(model, prompts, mask), length)
  tokens = _generate(model, prompts, mask, key, length, sampling)
  if not isinstance(tokens, core.Tracer):
    _drawn(tokens)
  return tokens


def stream(
    model: Any,
    prompts: jax.typing.ArrayLike,
    *,
    length: int | None = None,
    key: jax.Array | None = None,
    mask: jax.typing.ArrayLike | None = None,
    temperature: float = 1.0,
    top_k: int = 0,
    top_p: float = 1.0,
) -> Iterator[np.ndarray]:
  """Continues prompts like `generate`, giving each token once it is known.

  Args:
    model: See `generate`, like all the others.
    prompts: Token ids `[B, P]`.
    length: How many tokens to add; endlessly many if `None`.
    key: A PRNG key.
    mask: Booleans `[B, P]`.
    temperature: 0 for the most probable token.
    top_k: 0 for all tokens.
    top_p: 1 for all tokens.

  Returns:
    An iterator over token ids `[B]`, int32: the columns of `generate`.

  Raises:
    UserValueError: If an argument has another form, a prompt is empty, an id is
      outside the vocabulary, or the logits for the next token are NaN, which is
      raised when that token is drawn.
  """
  sampling = Sampling(temperature, top_k, top_p)
  key = _check_sampling(sampling, key)
  prompts, mask = _check_prompts(model, prompts, mask)
  if length is not None:
    _check_length(length)
    _check_room(_room(model, prompts, mask), length)
  return _stream(model, prompts, mask, key, length, sampling)


def pad(prompts: Sequence[Sequence[int]]) -> tuple[np.ndarray, np.ndarray]:
  """Makes one array of prompts of different lengths, with padding before them.

  >>> pad([[1, 2], [3]])[0]
  array([[1, 2],
         [0, 3]], dtype=int32)

  Args:
    prompts: Token ids, a sequence a prompt.

  Returns:
    Token ids `[B, P]`, int32, and a mask `[B, P]` that is `False` on padding.

  Raises:
    UserValueError: If an id does not fit into int32.
  """
  width = max((len(prompt) for prompt in prompts), default=0)
  tokens = np.zeros((len(prompts), width), np.int32)
  mask = np.zeros((len(prompts), width), bool)
  for row, prompt in enumerate(prompts):
    start = width - len(prompt)
    errors.check_token_ids(f'prompts[{row}]', prompt)
    tokens[row, start:] = prompt
    mask[row, start:] = True
  return tokens, mask


def _check_sampling(sampling: Sampling, key) -> jax.Array:
  """Raises on bad values; returns a key."""
  temperature, top_k, top_p = sampling
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
  if key is None:
    if temperature:
      raise errors.UserValueError(
          f'`key` must be given for temperature {temperature}.'
      )
    key = jax.random.key(0)  # Has no say.
  return key


def _check_prompts(model, prompts, mask):
  """Raises on other forms; returns arrays."""
  prompts = np.asarray(prompts)
  if prompts.ndim != 2 or not np.issubdtype(prompts.dtype, np.integer):
    raise errors.UserValueError(
        '`prompts` must be integers [B, P], got '
        f'{prompts.dtype} {prompts.shape}.'
    )
  if mask is not None:
    mask = np.asarray(mask)
    if mask.shape != prompts.shape or mask.dtype != bool:
      raise errors.UserValueError(
          f'`mask` must be bool {prompts.shape}, got {mask.dtype} {mask.shape}.'
      )
  if not prompts.shape[1] or mask is not None and not mask.any(1).all():
    raise errors.UserValueError('A prompt must have at least one token.')
  present = prompts if mask is None else np.where(mask, prompts, 0)
  config = getattr(model, 'config', None)
  errors.check_token_ids(
      'prompts', present, getattr(config, 'vocab_size', None)
  )
  return present.astype(np.int32), mask


def _check_length(length):
  if not fields.is_integer(length) or length < 1:
    raise errors.UserValueError(
        f'`length` must be an integer of at least 1, got {length!r}.'
    )


def _room(model, prompts, mask) -> float:
  """Returns how many tokens fit after the longest prompt.

  The last new token is not read, so it needs no room.
  """
  context = getattr(model, 'context', None)
  if context is None:
    return math.inf
  longest = prompts.shape[1] if mask is None else int(mask.sum(1).max())
  return context - longest + 1


def _check_room(room, length):
  if length > room:
    raise errors.UserValueError(
        f'The attention of this model has room for {max(room, 0)} tokens after '
        f'the longest prompt, and {length} are wanted. Give a larger `context` '
        'to load_pretrained.'
    )


def _drawn(tokens: jax.Array) -> np.ndarray:
  """Returns tokens `[B]` or `[B, length]` as NumPy has them.

  Raises:
    UserValueError: If a row has no token.
  """
  # What ran out of memory raises here; `np.asarray` waits for ever.
  drawn = np.asarray(jax.block_until_ready(tokens))
  if not (drawn < 0).any():
    return drawn
  row, *number = np.argwhere(drawn < 0)[0]
  where = f' for new token {number[0]}' if number else ''
  raise errors.UserValueError(
      f'The logits of row {row}{where} are NaN or all -inf: no token can be '
      'drawn from them. Look for NaN in the parameters and the inputs.'
  )


def _is_number(value) -> bool:
  return isinstance(value, numbers.Real) and not isinstance(value, bool)


def _sample(key, logits, sampling: Sampling):
  """`sample_logits` without checks, -1 for no token; `sampling` is static."""
  wide = logits.astype(jnp.promote_types(jnp.float32, logits.dtype))
  largest = wide.max(-1, keepdims=True)  # NaN, if there is NaN.
  if sampling.temperature == 0:
    choice = logits.argmax(-1)
  else:
    choice = _draw(key, wide, largest, sampling)
  return jnp.where(largest[:, 0] > -jnp.inf, choice, -1).astype(jnp.int32)


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
  rows = jnp.arange(logits.shape[0])
  keys = jax.vmap(jax.random.fold_in, (None, 0))(key, rows)
  choice = jax.vmap(jax.random.categorical)(keys, logits)
  if order is not None:
    choice = jnp.take_along_axis(order, choice[:, None], 1)[:, 0]
  return choice


def _read(model, prompts, mask, key, sampling):
  """The prompt, all at once: returns the carry and the first token `[B]`."""
  carry, logits = model(prompts, mask=mask)
  if mask is None:
    logits = logits[:, -1]
  else:
    last = prompts.shape[1] - 1 - jnp.argmax(jnp.flip(mask, 1), 1)
    logits = jnp.take_along_axis(logits, last[:, None, None], 1)[:, 0]
  return carry, _sample(jax.random.fold_in(key, 0), logits, sampling)


def _write(model, carry, tokens, number, key, sampling):
  """One more token `[B]`, the `number`th from 0."""
  carry, logits = model.step(carry, tokens)
  return carry, _sample(jax.random.fold_in(key, number), logits, sampling)


# The model is a pytree: a program is compiled once per structure and shapes.
_read_compiled = jax.jit(_read, static_argnames='sampling')
_write_compiled = jax.jit(_write, static_argnames='sampling')


@functools.partial(jax.jit, static_argnames=('length', 'sampling'))
def _generate(model, prompts, mask, key, length, sampling):
  carry, tokens = _read(model, prompts, mask, key, sampling)

  def body(loop, number):
    carry, tokens = loop
    loop = _write(model, carry, tokens, number, key, sampling)
    return loop, loop[1]

  _, rest = jax.lax.scan(body, (carry, tokens), jnp.arange(1, length))
  return jnp.concatenate([tokens[None], rest]).T


def _stream(model, prompts, mask, key, length, sampling) -> Iterator[Any]:
  carry, tokens = _read_compiled(model, prompts, mask, key, sampling)
  yield _drawn(tokens)
  room = _room(model, prompts, mask)
  for number in itertools.count(1) if length is None else range(1, length):
    _check_room(room, number + 1)
    carry, tokens = _write_compiled(
        model, carry, tokens, number, key, sampling
    )
    yield _drawn(tokens)
