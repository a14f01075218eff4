"""Continues prompts, with the model's own carry."""

from collections.abc import Iterator
import functools
import itertools
from typing import Any

import jax
from jax import core
import jax.numpy as jnp
import numpy as np
from rnnzoo import errors
from rnnzoo.generation import prompts as prompts_lib
from rnnzoo.generation import sampling as sampling_lib
from rnnzoo.generation.sampling import Sampling

_PLAIN = Sampling()


def generate(
    model: Any,
    prompts: jax.typing.ArrayLike,
    *,
    length: int,
    key: jax.Array | None = None,
    mask: jax.typing.ArrayLike | None = None,
    chunk: int | None = None,
    temperature: float = 1.0,
    top_k: int = 0,
    top_p: float = 1.0,
    min_p: float = 0.0,
    repetition_penalty: float = 1.0,
) -> jax.Array:
  """Continues prompts: a parallel call, then a scan of `step`, in one program.

  Prompts of different lengths are one batch: `pad` puts padding before them.

  >>> from flax import nnx
  >>> from rnnzoo import generation, models
  >>> model = models.LanguageModel(models.ModelConfig.tiny(), rngs=nnx.Rngs(0))
  >>> prompts, mask = generation.pad([[1, 2, 3], [4]])
  >>> generate(model, prompts, mask=mask, length=5, temperature=0).shape
  (2, 5)

  Args:
    model: See `rnnzoo.generation`.
    prompts: Token ids `[B, P]`, P >= 1; where `mask` is `True` they must be
      less than `model.config.vocab_size`, if the model has one.
    length: How many tokens to add.
    key: A PRNG key; may be `None` if `temperature` is 0.
    mask: Booleans `[B, P]`, `False` on padding, which may be anywhere.
    chunk: How many tokens of the prompts are read at once, so that a prompt of
      any length takes the same memory; all of them if `None`. The numbers are
      the same, but for rounding.
    temperature: See `sample_logits`, like all that follow.
    top_k: 0 for all tokens.
    top_p: 1 for all tokens.
    min_p: 0 for all tokens.
    repetition_penalty: Of tokens in the prompt or in the new text; 1 for none.

  Returns:
    The new token ids `[B, length]`, int32.

  Raises:
    UserValueError: If an argument has another form, a prompt is empty, an id is
      outside the vocabulary, or the model's logits are NaN. Inside `jax.jit` a
      row of NaN gives -1 instead.
  """
  sampling = Sampling(temperature, top_k, top_p, min_p, repetition_penalty)
  key = sampling_lib.check(sampling, key)
  rows = prompts_lib.check_prompts(model, prompts, mask)
  prompts_lib.check_length('length', length)
  _check_room(model, max(map(len, rows)), length)
  *pieces, last = prompts_lib.pieces(rows, chunk)
  carry, seen = _start(model, len(rows), sampling, chunk)
  for piece in pieces:
    carry, _, seen = _read_compiled(
        model, carry, seen, *piece, 0, key, sampling
    )
  tokens = _generate(model, carry, seen, *last, key, length, sampling)
  if not isinstance(tokens, core.Tracer):
    sampling_lib.drawn(tokens)
  return tokens


def stream(
    model: Any,
    prompts: jax.typing.ArrayLike,
    *,
    length: int | None = None,
    key: jax.Array | None = None,
    mask: jax.typing.ArrayLike | None = None,
    chunk: int | None = None,
    temperature: float = 1.0,
    top_k: int = 0,
    top_p: float = 1.0,
    min_p: float = 0.0,
    repetition_penalty: float = 1.0,
) -> Iterator[np.ndarray]:
  """Continues prompts like `generate`, giving each token once it is known.

  Args:
    model: See `generate`, like all the others.
    prompts: Token ids `[B, P]`.
    length: How many tokens to add; endlessly many if `None`.
    key: A PRNG key.
    mask: Booleans `[B, P]`.
    chunk: How many tokens of the prompts are read at once.
    temperature: 0 for the most probable token.
    top_k: 0 for all tokens.
    top_p: 1 for all tokens.
    min_p: 0 for all tokens.
    repetition_penalty: 1 for none.

  Returns:
    An iterator over token ids `[B]`, int32: the columns of `generate`.

  Raises:
    UserValueError: If an argument has another form, a prompt is empty, an id is
      outside the vocabulary, or the logits for the next token are NaN, which is
      raised when that token is drawn.
  """
  sampling = Sampling(temperature, top_k, top_p, min_p, repetition_penalty)
  writer = Writer(model, key=key, sampling=sampling, chunk=chunk)
  rows = prompts_lib.check_prompts(model, prompts, mask)
  if length is not None:
    prompts_lib.check_length('length', length)
    _check_room(model, max(map(len, rows)), length)
  return _stream(writer, prompts, mask, length)


def _stream(writer, prompts, mask, length) -> Iterator[np.ndarray]:
  writer.read(prompts, mask)
  for _ in itertools.count() if length is None else range(length):
    yield writer.next()


class Writer:
  """Reads tokens and draws those that follow, for a batch of texts.

  It may read again after it has written, as in a conversation: the carry of the
  model is kept. A step is one compiled program, which takes the memory of the
  last carry for the next.

  >>> from flax import nnx
  >>> from rnnzoo import models
  >>> model = models.LanguageModel(models.ModelConfig.tiny(), rngs=nnx.Rngs(0))
  >>> writer = Writer(model, sampling=Sampling(temperature=0))
  >>> writer.read([[1, 2, 3], [4, 5, 6]])
  >>> first, second = writer.next(), writer.next()
  >>> writer.read([[7], [8]])  # After `second`.
  >>> writer.next().shape
  (2,)

  Attributes:
    model: The model.
    count: How many tokens the longest text has, read or drawn.
  """

  def __init__(
      self,
      model: Any,
      *,
      key: jax.Array | None = None,
      sampling: Sampling = _PLAIN,
      chunk: int | None = None,
  ):
    """Creates a writer that has read nothing.

    Args:
      model: See `rnnzoo.generation`.
      key: A PRNG key; may be `None` if the temperature is 0.
      sampling: How tokens are drawn.
      chunk: How many tokens are read at once; all of them if `None`.

    Raises:
      UserValueError: If a value is out of range.
    """
    self.model, self.count = model, 0
    self._key, self._sampling = sampling_lib.check(sampling, key), sampling
    if chunk is not None:
      prompts_lib.check_length('chunk', chunk)
    self._chunk = chunk
    # The carry; the tokens that were read; the token that was drawn last, and
    # whether it was handed out.
    self._carry, self._seen, self._tokens = None, None, None
    self._number, self._is_out = 0, False
    self._compiled = set()  # Shapes of prompts.

  def read(
      self,
      prompts: jax.typing.ArrayLike,
      mask: jax.typing.ArrayLike | None = None,
  ):
    """Reads tokens: the prompts, or what follows the last token drawn.

    Args:
      prompts: Token ids `[B, P]`, P >= 1.
      mask: Booleans `[B, P]`, `False` on padding, which may be anywhere.

    Raises:
      UserValueError: If an argument has another form, a row is empty, an id is
        outside the vocabulary, or the model has no room for so many tokens.
    """
    rows = prompts_lib.check_prompts(self.model, prompts, mask)
    longest = max(map(len, rows))
    if self._tokens is None:
      self._carry, self._seen = _start(
          self.model, len(rows), self._sampling, self._chunk
      )
    elif len(rows) != len(self._tokens):
      raise errors.UserValueError(
          f'`prompts` must have {len(self._tokens)} rows, as before, got '
          f'{len(rows)}.'
      )
    context = getattr(self.model, 'context', None)
    if context is not None and self.count + longest > context:
      raise errors.UserValueError(
          f'The attention of this model has room for {context} tokens, and '
          f'with these prompts there are {self.count + longest}. Give a larger '
          '`context` to load_pretrained (--context).'
      )
    if self._is_out:  # The last token was drawn, and not read yet.
      last = np.asarray(self._tokens)[:, None]
      rows = [np.concatenate(pair) for pair in zip(last, rows)]
    self.count += longest
    for piece in prompts_lib.pieces(rows, self._chunk):
      self._carry, self._tokens, self._seen = _read_compiled(
          self.model, self._carry, self._seen, *piece, self._number, self._key,
          self._sampling,
      )
    self._is_out = False

  def next(self) -> np.ndarray:
    """Returns the next token of each text `[B]`, int32.

    Raises:
      UserValueError: If nothing was read, no token can be drawn, or the model
        has no room for one more token.
    """
    if self._tokens is None:
      raise errors.UserValueError('There is no prompt: call `read` first.')
    _check_room(self.model, self.count - self._number, self._number + 1)
    if self._is_out:
      self._carry, self._tokens, self._seen = _step_compiled(
          self.model, self._carry, self._seen, self._tokens, self._number,
          self._key, self._sampling,
      )
    self._number, self._is_out = self._number + 1, True
    self.count += 1
    return sampling_lib.drawn(self._tokens)

  def compile(
      self,
      prompts: jax.typing.ArrayLike,
      mask: jax.typing.ArrayLike | None = None,
  ):
    """Compiles what `read` and `next` will run for these prompts, if need be.

    Args:
      prompts: See `read`, like the next.
      mask: Booleans `[B, P]`.
    """
    rows = prompts_lib.check_prompts(self.model, prompts, mask)
    if self._is_out:
      rows = [np.append(row, 0) for row in rows]
    *_, piece = prompts_lib.pieces(rows, self._chunk)
    if piece[0].shape in self._compiled:
      return
    self._compiled.add(piece[0].shape)
    start = self._carry, self._seen
    if self._tokens is None:
      start = _start(self.model, len(rows), self._sampling, self._chunk)
    rest = self._number, self._key, self._sampling
    args = (self.model, *start, *piece, *rest)
    _read_compiled.lower(*args).compile()
    carry, tokens, seen = jax.eval_shape(
        functools.partial(_read, sampling=self._sampling), *args[:-1]
    )
    _step_compiled.lower(self.model, carry, seen, tokens, *rest).compile()


def room(model: Any, count: int) -> int | None:
  """Returns how many tokens a model can add; `None` for any number.

  Attention without a window has room for `model.context` tokens. The last token
  is not read, so it needs no room.

  >>> from flax import nnx
  >>> from rnnzoo import models
  >>> config = models.ModelConfig.tiny().replace(
  ...     layer='attention', layer_options=dict(window=8, on_full='error')
  ... )
  >>> room(models.LanguageModel(config, rngs=nnx.Rngs(0)), 6)
  3

  Args:
    model: See `rnnzoo.generation`.
    count: The number of tokens in the longest prompt.
  """
  context = getattr(model, 'context', None)
  return None if context is None else max(context - count + 1, 0)


def _check_room(model, count, more):
  """Raises if `more` tokens after `count` are too many for the attention."""
  left = room(model, count)
  if left is None or more <= left:
    return
  raise errors.UserValueError(
      f'The attention of this model has room for {left} tokens after the '
      f'longest prompt, and {more} are wanted. Give a larger `context` to '
      'load_pretrained (--context).'
  )


def _start(model, rows, sampling, chunk):
  """Returns the first carry, `None` if all is read at once, and `seen`."""
  carry = None if chunk is None else _initialize(model, rows)
  if sampling.repetition_penalty == 1:
    return carry, None
  if not hasattr(getattr(model, 'config', None), 'vocab_size'):
    raise errors.UserValueError(
        '`repetition_penalty` must be 1 for a model without '
        f'`config.vocab_size`, got {sampling.repetition_penalty}.'
    )
  return carry, jnp.zeros((rows, model.config.vocab_size), bool)


def _see(seen, tokens, mask):
  """Marks tokens `[B, P]` in `seen` `[B, V]`, but where `mask` is `False`."""
  if seen is None:
    return None
  rows = jnp.arange(seen.shape[0])[:, None]
  return seen.at[rows, tokens].max(True if mask is None else mask)


def _read(model, carry, seen, tokens, mask, number, key, sampling):
  """A part of the prompts `[B, P]`; returns the token `[B]` that follows."""
  if hasattr(model, 'features'):  # The logits of all tokens would be large.
    carry, x = model.features(tokens, carry, mask=mask)
    logits = model.logits(x[:, -1])
  else:
    carry, logits = model(tokens, carry, mask=mask)
    logits = logits[:, -1]
  seen = _see(seen, tokens, mask)
  key = jax.random.fold_in(key, number)
  return carry, sampling_lib.draw(key, logits, seen, sampling), seen


def _step(model, carry, seen, tokens, number, key, sampling):
  """Reads a token `[B]`; returns the next one, the `number`th from 0."""
  carry, logits = model.step(carry, tokens)
  seen = _see(seen, tokens[:, None], None)
  key = jax.random.fold_in(key, number)
  return carry, sampling_lib.draw(key, logits, seen, sampling), seen


# The model is a pytree: a program is compiled once per structure and shapes.
_initialize = jax.jit(
    lambda model, rows: model.initialize_carry(rows), static_argnums=1
)
_read_compiled = jax.jit(
    _read, static_argnames='sampling', donate_argnames=('carry', 'seen')
)
_step_compiled = jax.jit(
    _step, static_argnames='sampling', donate_argnames=('carry', 'seen')
)


@functools.partial(jax.jit, static_argnames=('length', 'sampling'))
def _generate(model, carry, seen, tokens, mask, key, length, sampling):
  first = _read(model, carry, seen, tokens, mask, 0, key, sampling)

  def body(loop, number):
    carry, tokens, seen = loop
    loop = _step(model, carry, seen, tokens, number, key, sampling)
    return loop, loop[1]

  _, rest = jax.lax.scan(body, first, jnp.arange(1, length))
  return jnp.concatenate([first[1][None], rest]).T
