"""Needles in a haystack: RULER's eight synthetic forms, as bytes.

The tasks `niah_*` of RULER (Hsieh et al. 2024,
https://arxiv.org/abs/2404.06654), with the texts and parameters of its copy in
lm-eval 0.4.13. Sentences, the needles, give keys their "special magic" values.
They stand anywhere in a long text, the haystack. At its end the model is asked
for the values of some keys:

  form        haystack  keys, values      needles
  single_1    noise     words, numbers    1
  single_2    text      words, numbers    1
  single_3    text      words, UUIDs      1
  multikey_1  text      words, numbers    4 keys, one is asked for
  multikey_2  needles   words, numbers    the haystack is of other needles
  multikey_3  needles   UUIDs, UUIDs      the haystack is of other needles
  multivalue  text      words, numbers    1 key with 4 values
  multiquery  text      words, numbers    4 keys, all are asked for

Numbers have 7 digits, words are an adjective and a noun. Noise is one line
again and again. In a text, the needles stand between sentences, at different
ones of 40 depths from 0 to 100 %; in the other haystacks, between lines, at
uniform places.

What differs from RULER: lengths are in bytes; the haystack is as long as fits
(there it grows in steps of 5 or 25 lines, or of 500 words, and 128 tokens stay
free); the text is the documentation of Python from a random sentence on, not
Paul Graham's essays; the words are 1,600 pairs, not all of the library
wonderwords, so no other needle may have a key that is asked for; the answer
follows the question and is scored byte by byte, the values alone. A model whose
most probable bytes are all right answers in greedy decoding, too; several
values then come in the order of the needles in the text.
"""

import functools
import re
from typing import Any, NamedTuple
import uuid

import numpy as np
from rnnzoo import fields
from rnnzoo.data import definition
from rnnzoo.data import pipeline
from rnnzoo.data.synthetic import generated
from rnnzoo.data.synthetic import questions
from rnnzoo.data.text import python_docs

# Raise it with every change of the examples that a seed gives.
VERSION = 2


class Form(NamedTuple):
  """A form of the task."""

  haystack: str = 'text'  # 'noise', 'text' or 'needles'.
  key: str = 'word'  # 'word' or 'uuid'.
  value: str = 'number'  # 'number' or 'uuid'.
  keys: int = 1
  values: int = 1  # Of each key.
  queries: int = 1  # Keys that are asked for.


FORMS = dict(
    single_1=Form('noise'),
    single_2=Form(),
    single_3=Form(value='uuid'),
    multikey_1=Form(keys=4),
    multikey_2=Form('needles'),
    multikey_3=Form('needles', 'uuid', 'uuid'),
    multivalue=Form(values=4),
    multiquery=Form(keys=4, queries=4),
)
FIELDS = dict(
    form=fields.Field(
        str, choices=tuple(FORMS), default='single_1',
        help="The task, one of RULER's without `niah_`.",
    ),
    sequence_length=fields.Field(
        int, low=1, default=1024,
        help='The number of bytes that a text may have, the answer included.',
    ),
    **generated.FIELDS,
)
_NOISE = (
    'The grass is green. The sky is blue. The sun is yellow. Here we go. There '
    'and back again.'
)
_NEEDLE = 'One of the special magic {kind}s for {key} is: {value}.'
_TASK = (
    '{some} special magic {kind} {are} hidden within the following text. Make '
    'sure to memorize it. I will quiz you about the {kind} afterwards.\n'
)
_QUESTION = (
    '\nWhat {all} the special magic {kind} for {query} mentioned in the '
    'provided text? The special magic {kind} for {query} mentioned in the '
    'provided text {are} '
)
_LONGEST = 300  # Bytes of a sentence of the haystack.
_ADJECTIVES = (
    'able aged bold brave brief bright calm clean clever cold cool curly dark '
    'deep eager early fair fancy fast fierce fresh gentle glad grand great '
    'happy heavy huge jolly kind late light lucky mild neat proud quick quiet '
    'shy warm'
).split()
_NOUNS = (
    'apple arrow badge basket bell bird boat bottle bridge brush candle carpet '
    'castle chair clock cloud coin door drum feather field flag forest garden '
    'hammer island jacket kettle ladder lamp mirror needle ocean pencil planet '
    'river shovel table tower window'
).split()


def _draw(rng: np.random.Generator, kind: str) -> str:
  if kind == 'number':
    return str(rng.integers(10**6, 10**7))
  if kind == 'word':
    return f'{rng.choice(_ADJECTIVES)}-{rng.choice(_NOUNS)}'
  return str(uuid.UUID(bytes=rng.bytes(16), version=4))


@functools.cache
def _sentences() -> tuple[str, ...]:
  """Returns the haystack of the forms with a text, sentence by sentence."""
  text = ' '.join(' '.join(python_docs.read().values()).split())
  sentences = re.split(r'(?<=[.!?]) ', text)
  # What is longer is a table or a program, and leaves no text to fit in.
  return tuple(
      one for one in sentences if one.isascii() and len(one) <= _LONGEST
  )


def example(
    rng: np.random.Generator, form: str, length: int
) -> generated.Example:
  """Draws a text of at most `length` bytes, the answer included.

  Args:
    rng: Decides everything.
    form: A key of `FORMS`.
    length: At least `shortest(form)`.
  """
  return questions.example(*_text(rng, length, *FORMS[form]))


def _text(rng, length, haystack, key, value, keys, values, queries):
  """Returns the text, and where the values of the answer are."""
  needle = lambda name, found: _NEEDLE.format(
      kind=value, key=name, value=found
  )
  names = []
  while len(names) < keys:  # Otherwise a question could have two answers.
    name = _draw(rng, key)
    if name not in names:
      names.append(name)
  found = {name: [_draw(rng, value) for _ in range(values)] for name in names}
  hidden = [needle(name, one) for name in names for one in found[name]]
  order = rng.permutation(len(hidden))
  asked = [names[i] for i in rng.choice(keys, queries, replace=False)]
  several = queries * values > 1
  words = dict(
      some='Some' if several else 'A', are='are' if several else 'is',
      all='are all' if several else 'is', kind=value + 's' * several,
      query=', and '.join(filter(None, (', '.join(asked[:-1]), asked[-1]))),
  )
  # In the order in which the needles stand in the text.
  rank = {hidden[i]: at for at, i in enumerate(order)}
  answers = [
      one for name in asked
      for one in sorted(found[name], key=lambda u: rank[needle(name, u)])
  ]
  start, end = _TASK.format(**words), _QUESTION.format(**words)
  hidden = [hidden[i] for i in order]
  # Each needle is followed by a space or by a line break.
  room = length - len(start) - len(end) - len(', '.join(answers))
  room -= sum(len(one) + 1 for one in hidden) - 1
  if haystack == 'text':
    context = _in_text(rng, hidden, room)
  else:
    def line():
      if haystack == 'noise':
        return _NOISE
      while (name := _draw(rng, key)) in names:
        pass  # A question has one answer.
      return needle(name, _draw(rng, value))

    context = _in_lines(rng, hidden, line, room)
  text = start + context + end
  places = []
  for i, one in enumerate(answers):
    text += ', ' * (i > 0)
    places.append(slice(len(text), len(text) + len(one)))
    text += one
  return text.encode(), places


def _in_text(rng, hidden, room) -> str:
  """Puts needles between sentences, at different ones of 40 depths."""
  sentences, chosen = _sentences(), []
  at = rng.integers(len(sentences))
  while len(sentences[at]) + 1 <= room:
    chosen.append(sentences[at])
    room -= len(sentences[at]) + 1
    at = (at + 1) % len(sentences)
  depths = np.round(np.linspace(0, 100, 40)).astype(int)
  depths = np.sort(rng.choice(depths, len(hidden), replace=False))
  places = (len(chosen) * (depths / 100)).astype(int)
  for place, one in reversed(list(zip(places, hidden))):
    chosen.insert(place, one)
  return ' '.join(chosen)


def _in_lines(rng, hidden, line, room) -> str:
  """Puts needles between lines, at uniform places."""
  lines = []
  while len(one := line()) + 1 <= room:
    lines.append(one)
    room -= len(one) + 1
  places = np.sort(rng.integers(len(lines) + 1, size=len(hidden)))
  for place, one in reversed(list(zip(places, hidden))):
    lines.insert(place, one)
  return '\n'.join(lines)


def shortest(form: str) -> int:
  """Returns the number of bytes of the longest text without a haystack."""
  # Words are up to seven letters long, on both sides of a hyphen.
  sizes = dict(number=7, word=15, uuid=36)
  _, key, value, keys, values, queries = FORMS[form]
  name, one = sizes[key], sizes[value]
  hidden = keys * values * (len(_NEEDLE) + name + one)
  return (
      len(_TASK) + len(_QUESTION) + hidden + queries * (2 * (name + 6))
      + queries * values * (one + 2)
  )


def load(config: Any, shard: pipeline.Shard, seed: int) -> pipeline.Dataset:
  """Returns the task as a `Dataset` with endless training examples.

  The only baseline is `chance_accuracy`, per byte of a value.

  Args:
    config: Has the fields in `FIELDS`.
    shard: The rows of this process.
    seed: Seed, split and number decide an example.

  Raises:
    UserValueError: If a length is too small for needles and question.
  """
  # A number does not start with 0. A UUID has 4 hyphens and the digit 4, and a
  # digit that is one of four.
  chances = dict(number=[1 / 9] + 6 * [1 / 10], uuid=(
      5 * [1.0] + [1 / 4] + 30 * [1 / 16]
  ))
  chance = float(np.mean(chances[FORMS[config.form].value]))
  return questions.dataset(
      config, shard, seed,
      lambda rng, length: example(rng, config.form, length),
      shortest(config.form),
      name='needle',
      baselines=lambda: {'chance_accuracy': chance},
      source=dict(generator='needle', form=config.form, version=VERSION),
  )


DEFINITION = definition.Definition(
    task='language_modelling', fields=FIELDS, load=load
)
