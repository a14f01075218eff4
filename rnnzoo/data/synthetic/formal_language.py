"""Formal languages: read a string, then answer a question about it.

The tasks of "Neural networks and the Chomsky hierarchy" (Deletang et al. 2023,
https://arxiv.org/abs/2207.02098) that xLSTM (Beck et al. 2024,
https://arxiv.org/abs/2405.04517) and version 3 of "Were RNNs All We Needed?"
(Feng et al. 2025, https://arxiv.org/abs/2410.01201v3) use, with the two that
these add (majority). `data.language` is one of

  parity               a b string: whether the number of b is odd
  even_pairs           a b string: whether the number of ab and ba is odd
  cycle_navigation     left, stay, right on a cycle of 5: the last position
  modular_arithmetic   an expression of digits, + - *: its value modulo 5
  majority             63 ids: the most frequent one (the largest of several)
  majority_count       63 ids: how often the most frequent one occurs
  modular_arithmetic_brackets   with brackets and unary minus: its value
  solve_equation       such an expression, without *, with an x: the digit x
  bucket_sort          10 digits: the string in ascending order
  missing_duplicate    9 ids: a string and its beginning again: the next id

The first six are regular (the majorities only as long as lengths are bounded),
the next two are deterministic context-free, and the last two context-sensitive.
All tokens are uniform, except those of the two grammars with brackets.

After the string of `n` tokens come as many question tokens as the answer has
tokens, and the answer is the target there. `n` is uniform from
`data.min_length` to `data.max_length` in training, validation and test. In a
split `test_<length>` it is uniform from `data.max_length` to that length: the
papers train on lengths up to 40, and test on 40 to 256 (`test_256`).
Expressions without brackets have odd lengths, and `n` even gives `n - 1`; an
equation has at least 3 tokens.

The alphabets are those of minRNN where it has the language, and those of
Deletang et al. elsewhere. In their `missing_duplicate` any one token of the two
copies is missing; here it is minRNN's, except that minRNN draws the missing
place once a batch, and here each example has its own. In xLSTM's form there is
no question token: the model predicts the token that follows the string.
"""

from collections.abc import Callable
import dataclasses
from typing import Any

import numpy as np
from rnnzoo import errors
from rnnzoo import fields
from rnnzoo.data import definition
from rnnzoo.data import pipeline
from rnnzoo.data.synthetic import generated

# Raise it with every change of the examples that a seed gives.
VERSION = 1
# An expression is made by recursion, a level for every four tokens.
_MAX_LENGTH = 2048
_MODULUS = 5
_CYCLE = 5
_MAJORITY_IDS = 63
_DIGITS = 10
_DUPLICATE_IDS = 9
_SYMBOLS = '01234+-*()x='

Tokens = np.ndarray


def _parity(rng, n):
  bits = rng.integers(2, size=n)
  return bits, bits.sum() % 2


def _even_pairs(rng, n):
  bits = rng.integers(2, size=n)
  return bits, (bits[1:] != bits[:-1]).sum() % 2


def _cycle_navigation(rng, n):
  moves = rng.integers(3, size=n)
  return moves, (moves - 1).sum() % _CYCLE


def _majority(rng, n):
  ids = rng.integers(_MAJORITY_IDS, size=n)
  counts = np.bincount(ids, minlength=_MAJORITY_IDS)
  return ids, np.flatnonzero(counts == counts.max())[-1]


def _majority_count(rng, n):
  ids = rng.integers(_MAJORITY_IDS, size=n)
  # A count that is no id never occurs in practice.
  return ids, min(np.bincount(ids).max(), _MAJORITY_IDS - 1)


def _bucket_sort(rng, n):
  digits = rng.integers(_DIGITS, size=n)
  return digits, np.sort(digits)


def _missing_duplicate(rng, n):
  ids = rng.integers(_DUPLICATE_IDS, size=n)
  missing = rng.integers(n)
  return np.concatenate([ids, ids[:missing]]), ids[missing]


def _modular_arithmetic(rng, n):
  digits = rng.integers(_MODULUS, size=(n + 1) // 2)
  operators = rng.integers(3, size=len(digits) - 1)
  tokens = np.empty(2 * len(digits) - 1, int)
  tokens[::2], tokens[1::2] = digits, _MODULUS + operators
  # The sum of products: a plus or a minus starts a new term.
  total, term = 0, digits[0]
  for operator, digit in zip(operators, digits[1:], strict=True):
    if operator == 2:
      term = term * digit % _MODULUS
    else:
      total, term = total + term, digit if operator == 0 else -digit
  return tokens, (total + term) % _MODULUS


def _expression(rng, n, operators):
  """Returns an expression of `n` symbols with brackets, and its value."""
  if n <= 4:
    digit = int(rng.integers(_MODULUS))
    text = f'-{digit}' if n in (2, 4) else str(digit)
    value = -digit if n in (2, 4) else digit
    return (f'({text})' if n > 2 else text), value % _MODULUS
  left = int(rng.integers(1, n - 3))
  a, x = _expression(rng, left, operators)
  b, y = _expression(rng, n - 3 - left, operators)
  operator = operators[rng.integers(len(operators))]
  value = x + y if operator == '+' else x - y if operator == '-' else x * y
  return f'({a}{operator}{b})', value % _MODULUS


def _modular_arithmetic_brackets(rng, n):
  text, value = _expression(rng, n, '+-*')
  return _tokens(text), value


def _solve_equation(rng, n):
  text, value = _expression(rng, max(n, 3) - 2, '+-')
  place = int(rng.integers(len(text)))
  while not text[place].isdigit():  # The next digit, from the start if need be.
    place = (place + 1) % len(text)
  unknown = int(text[place])
  return _tokens(f'{text[:place]}x{text[place + 1:]}={value}'), unknown


def _tokens(text):
  return np.array([_SYMBOLS.index(symbol) for symbol in text])


@dataclasses.dataclass(frozen=True)
class Language:
  """How a language is drawn, and its sizes.

  Attributes:
    draw: `(rng, n) -> (tokens, answer)`.
    ids: The number of ids of tokens and of answers; the question is the next.
    answers: The number of possible tokens of an answer.
    steps: `n -> T`, the length of the longest row, questions included.
  """

  draw: Callable[[np.random.Generator, int], tuple[Tokens, Any]]
  ids: int
  answers: int
  steps: Callable[[int], int] = lambda n: n + 1


LANGUAGES = dict(
    parity=Language(_parity, 2, 2),
    even_pairs=Language(_even_pairs, 2, 2),
    cycle_navigation=Language(_cycle_navigation, _CYCLE, _CYCLE),
    modular_arithmetic=Language(_modular_arithmetic, 8, _MODULUS),
    majority=Language(_majority, _MAJORITY_IDS, _MAJORITY_IDS),
    majority_count=Language(_majority_count, _MAJORITY_IDS, _MAJORITY_IDS),
    modular_arithmetic_brackets=Language(
        _modular_arithmetic_brackets, len(_SYMBOLS), _MODULUS
    ),
    solve_equation=Language(
        _solve_equation, len(_SYMBOLS), _MODULUS, lambda n: max(n, 3) + 1
    ),
    bucket_sort=Language(_bucket_sort, _DIGITS, _DIGITS, lambda n: 2 * n),
    missing_duplicate=Language(
        _missing_duplicate, _DUPLICATE_IDS, _DUPLICATE_IDS, lambda n: 2 * n
    ),
)
FIELDS = dict(
    language=fields.Field(
        str, choices=tuple(LANGUAGES), default='parity', help='The language.'
    ),
    min_length=fields.Field(
        int, low=1, high=_MAX_LENGTH, default=1,
        help='The length of the shortest strings.',
    ),
    max_length=fields.Field(
        int, low=1, high=_MAX_LENGTH, default=40,
        help='The length of the longest strings in training.',
    ),
    **generated.FIELDS,
)


def load(config: Any, shard: pipeline.Shard, seed: int) -> pipeline.Dataset:
  """Returns the task as a `Dataset` with endless training examples.

  Only answers count: elsewhere `targets` is 0 and `mask` is False. The only
  baseline is `chance_accuracy`, for a guess among all tokens that an answer can
  have.

  Args:
    config: Has the fields in `FIELDS`.
    shard: The rows of this process.
    seed: Seed, split and number decide an example.

  Raises:
    UserValueError: If the lengths do not fit together.
  """
  language = LANGUAGES[config.language]
  shortest, longest = config.min_length, config.max_length
  if shortest > longest:
    raise errors.UserValueError(
        f'data.min_length={shortest} is larger than data.max_length={longest}.'
    )
  for length in config.test_lengths:
    if not longest <= length <= _MAX_LENGTH:
      raise errors.UserValueError(
          f'data.test_lengths must be from data.max_length={longest} to '
          f'{_MAX_LENGTH}, got {length}.'
      )

  def example(rng, length):
    low, high = (longest, length) if length else (shortest, longest)
    n = int(rng.integers(low, high, endpoint=True))
    tokens, answer = language.draw(rng, n)
    answer = np.atleast_1d(answer)
    inputs = np.full(len(tokens) + len(answer), language.ids, np.int32)
    inputs[: len(tokens)] = tokens
    targets = np.zeros_like(inputs)
    targets[len(tokens) :] = answer
    return generated.Example(
        inputs, targets, np.arange(len(inputs)) >= len(tokens)
    )

  return generated.dataset(
      config, shard, seed, example,
      lambda length: language.steps(length or longest),
      name='formal_language',
      task='language_modelling',
      unit='tokens',
      vocab_size=language.ids + 1,
      ragged=True,
      baselines=lambda: {'chance_accuracy': 1 / language.answers},
      source=dict(generator='formal_language', version=VERSION),
  )


DEFINITION = definition.Definition(
    task='language_modelling', fields=FIELDS, load=load
)
