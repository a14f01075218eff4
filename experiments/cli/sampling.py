"""Samples text from the model of a run, for generate.py and train.py."""

import codecs
from collections.abc import Iterator, Sequence
import itertools

import jax
import numpy as np
from rnnzoo import convert
from rnnzoo import errors
from rnnzoo import generation
from rnnzoo import restoring
from rnnzoo.data import bpe
from rnnzoo.training import files


def check_text(run: restoring.Run):
  """Raises `UserValueError` unless the model was trained on a text."""
  if run.vocabulary is None:
    raise errors.UserValueError(
        f'This run is of {run.config["data"]["name"]}, which has no text: its '
        'model has nothing to write with.'
    )


def open_pretrained(
    path, dtype: str | None
) -> tuple[restoring.Run, tuple[int, ...]]:
  """Returns a pretrained model as a run, and the tokens that end a text.

  Raises:
    UserError: If it cannot be loaded, or has no tokenizer.
  """
  found = convert.open_pretrained(path, dtype=dtype)
  if found.vocabulary is None:
    raise errors.UserFileNotFoundError(
        f'{path} has no tokenizer.json, so text has no meaning for this model. '
        'In Python, rnnzoo.convert.load_pretrained and rnnzoo.generation take '
        'token ids.'
    )
  config = dict(data=dict(name=path))
  run = restoring.Run(found.model, found.vocabulary, config, step=0)
  return run, found.stop_tokens


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


def continuations(
    run: restoring.Run,
    prompts: Sequence[str],
    *,
    seed: int,
    length: int,
    sampling: generation.Sampling,
    stop: Sequence[int] = (),
) -> list[str]:
  """Continues several prompts in one batch.

  Args:
    run: The restored run.
    prompts: The texts to continue.
    seed: The seed of the random choices.
    length: The number of tokens to add.
    sampling: How tokens are chosen.
    stop: Tokens that end a text.

  Returns:
    The continuation of each prompt, without the prompt.
  """
  tokens, mask = encode(run, prompts)
  rows = generation.generate(
      run.model, tokens, mask=mask, length=length, key=jax.random.key(seed),
      **sampling._asdict(),
  )
  ends = [
      np.append(np.isin(row, np.array(stop, int)).nonzero()[0], length)[0]
      for row in rows
  ]
  return [run.vocabulary.decode(row[:end]) for row, end in zip(rows, ends)]


def pieces(
    run: restoring.Run,
    prompt: str,
    *,
    seed: int,
    length: int,
    sampling: generation.Sampling,
    stop: Sequence[int] = (),
) -> Iterator[str]:
  """Continues one prompt; yields each character as soon as it is complete."""
  tokens, mask = encode(run, [prompt])
  rows = generation.stream(
      run.model, tokens, mask=mask, length=length, key=jax.random.key(seed),
      **sampling._asdict(),
  )
  rows = itertools.takewhile(lambda row: row[0] not in stop, rows)
  if run.vocabulary.level == 'char':
    for row in rows:
      yield run.vocabulary.decode(row)
    return
  if run.vocabulary.level == 'bpe':
    decode = bpe.decoder(run.vocabulary.symbols)
    for row in rows:
      yield decode(row[0])
    return
  decoder = codecs.getincrementaldecoder('utf-8')('replace')
  for row in rows:
    yield decoder.decode(bytes(row.tolist()))
  yield decoder.decode(b'', final=True)


def write_sample(
    run: restoring.Run, workdir, characters: int, seed: int
) -> str:
  """Writes a text of `characters` characters to `sample.txt`."""
  # A character has up to four bytes.
  length = characters * (4 if run.vocabulary.level == 'byte' else 1)
  (text,) = continuations(
      run, [start_of_text(run)], seed=seed, length=length,
      sampling=generation.Sampling(temperature=0.8),
  )
  text = text[:characters]
  if jax.process_index() == 0:
    path = files.workdir(workdir) / 'sample.txt'
    files.write_bytes(path, text.encode('utf-8', 'replace'))
  return text
