"""Samples text from the model of a run, for generate.py and train.py."""

from collections.abc import Iterator, Sequence
import time

from experiments.cli import texts
import jax
from rnnzoo import errors
from rnnzoo import generation
from rnnzoo import restoring
from rnnzoo.training import files


def check_text(run: restoring.Run):
  """Raises `UserValueError` unless the model was trained on a text."""
  if run.vocabulary is None:
    raise errors.UserValueError(
        f'This run is of {run.config["data"]["name"]}, which has no text: its '
        'model has nothing to write with.'
    )


def start_of_text(run: restoring.Run) -> str:
  """Returns the default prompt: a new line, if the vocabulary has it."""
  vocabulary = run.vocabulary
  if vocabulary.level == 'char' and '\n' not in vocabulary.symbols:
    return vocabulary.symbols[0]
  if vocabulary.level == 'bpe' and not len(vocabulary.encode('\n')):
    return vocabulary.decode([0])  # The tokenizer drops white space.
  return '\n'


def encode(run: restoring.Run, prompts: Sequence[str]):
  """Returns prompts `[B, P]` and their mask `[B, P]`.

  Raises:
    UserValueError: If one is empty or has characters that the model lacks.
  """
  check_text(run)
  if not all(prompts):
    raise errors.UserValueError('A prompt must have at least one character.')
  rows = [run.vocabulary.encode(prompt) for prompt in prompts]
  if not all(map(len, rows)):  # A tokenizer may drop white space.
    raise errors.UserValueError('A prompt must have at least one token.')
  return generation.pad(rows)


def written(
    run: restoring.Run,
    prompts: Sequence[str],
    *,
    seed: int,
    length: int,
    sampling: generation.Sampling,
    stop: Sequence[int] = (),
    stop_strings: Sequence[str] = (),
    chunk: int | None = None,
    clock: 'Clock | None' = None,
) -> Iterator[list[str]]:
  """Continues several prompts in one batch, token by token.

  Args:
    run: The restored run.
    prompts: The texts to continue.
    seed: The seed of the random choices.
    length: The number of tokens to add.
    sampling: How tokens are chosen.
    stop: Tokens that end a text.
    stop_strings: Strings that end a text; they are no part of it.
    chunk: How many tokens of the prompts are read at once; all if `None`.
    clock: Is told when tokens come.

  Yields:
    The next characters of each text, until all texts have ended.

  Raises:
    UserValueError: If a prompt is empty, or the model has no room for `length`
      more tokens.
  """
  tokens, mask = encode(run, prompts)
  room = generation.room(run.model, mask.sum(1).max())
  if room is not None and 0 < room < length:
    raise errors.UserValueError(
        f'--length must be at most {room}, got {length}: the attention of this '
        f'model has no room for more after a prompt of {mask.sum(1).max()} '
        'tokens. Give a smaller --length or a larger --context.'
    )
  writer = generation.Writer(
      run.model, key=jax.random.key(seed), sampling=sampling, chunk=chunk
  )
  if clock:
    writer.compile(tokens, mask)
    clock.start(mask.sum())
  writer.read(tokens, mask)
  yield from continued(
      writer, [texts.Text(run.vocabulary, stop, stop_strings) for _ in prompts],
      length, clock,
  )


def continued(
    writer: generation.Writer,
    parts: Sequence[texts.Text],
    length: int,
    clock: 'Clock | None' = None,
) -> Iterator[list[str]]:
  """Yields the next characters of each text, after its prompt was read.

  Args:
    writer: Has read the prompts.
    parts: What becomes of the texts.
    length: The number of tokens to add.
    clock: Is told when tokens come.
  """
  for _ in range(length):
    if all(part.ended for part in parts):
      return
    going = sum(not part.ended for part in parts)
    row = writer.next()
    if clock:
      clock.tick(going)
    yield [part.add(token) for part, token in zip(parts, row, strict=True)]
  yield [part.finish() for part in parts]


def continuations(
    run: restoring.Run, prompts: Sequence[str], **options
) -> list[str]:
  """Continues several prompts in one batch.

  Args:
    run: The restored run.
    prompts: The texts to continue.
    **options: See `written`.

  Returns:
    The continuation of each prompt, without the prompt.
  """
  columns = zip(*written(run, prompts, **options))
  return [''.join(column) for column in columns]


def pieces(run: restoring.Run, prompt: str, **options) -> Iterator[str]:
  """Continues one prompt; yields each character as soon as it is certain."""
  for (piece,) in written(run, [prompt], **options):
    if piece:
      yield piece


class Clock:
  """When tokens came, for one line about the speed.

  >>> clock = Clock()
  >>> clock.start(10)
  >>> clock.tick(1), clock.tick(1)
  (None, None)
  >>> str(clock).startswith('first token after ')
  True
  """

  def __init__(self):
    self._created = time.perf_counter()

  def start(self, tokens: int):
    """Notes that programs are compiled and `tokens` are to be read."""
    self._start, self._read = time.perf_counter(), int(tokens)
    self._first = self._last = None
    self._drawn = 0

  def tick(self, tokens: int):
    """Notes that so many tokens have come at once."""
    self._last = time.perf_counter()
    if self._first is None:
      self._first = self._last
    else:
      self._drawn += tokens

  def __str__(self):
    if self._first is None:
      return 'no tokens'
    seconds = self._first - self._start
    text = (
        f'first token after {seconds:.3f} s ({self._start - self._created:.1f} '
        f's to start), prefill {self._read} tokens, '
        f'{self._read / seconds:.0f} tokens/s'
    )
    if self._drawn:
      speed = self._drawn / (self._last - self._first)
      text += f', decode {self._drawn} tokens, {speed:.0f} tokens/s'
    return text


def write_sample(
    run: restoring.Run, workdir, characters: int, seed: int
) -> str:
  """Writes a text of at most `characters` characters to `sample.txt`."""
  # A character has up to four bytes.
  length = characters * (4 if run.vocabulary.level == 'byte' else 1)
  start = [start_of_text(run)]
  room = generation.room(run.model, encode(run, start)[1].sum(1).max())
  (text,) = continuations(
      run, start, seed=seed,
      length=length if room is None else min(length, room),
      sampling=generation.Sampling(temperature=0.8),
  )
  text = text[:characters]
  if jax.process_index() == 0:
    path = files.workdir(workdir) / 'sample.txt'
    files.write_bytes(path, text.encode('utf-8', 'replace'))
  return text
