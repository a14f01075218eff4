"""RegBench: learn the language of a random automaton from a few of its words.

"In-Context Language Learning: Architectures and Algorithms" (Akyurek et al.
2024, https://arxiv.org/abs/2401.12973). Each sequence has an automaton of its
own and words that it made. The model predicts each next letter, and does well
only if it finds out the automaton while it reads. The rules and sizes are those
of https://github.com/berlino/seq_icl, `src/dataloaders/dfa.py` and
`configs/dataset/icl_dfa.yaml`:

- An automaton has 4 to 12 states and an alphabet of 4 to 18 of the 18 letters.
  From each state lead 1 to 3 edges, with different letters and to different
  other states. All edges of a state have the same probability.
- A sequence holds 10 to 19 words with separators between them. A word has 1 to
  49 letters and starts in the first state.
- Ids: 0 is padding, on the right, then come the letters and the separator.
  Targets that are separators or padding do not count.
- 5000 automata train; 250 each are for validation and test.

The file of sizes names 4 edges, 20 words and 50 letters: its program excludes
these upper limits. The program minimises each automaton. This merges states
without changing the probability of any word, so it is left out here.

Each batch also has the true probabilities of the next letter, which the kind of
task `known_source` compares with those of the model.
"""

import functools
from typing import Any

import grain
import numpy as np
from rnnzoo import errors
from rnnzoo import fields
from rnnzoo.data import definition
from rnnzoo.data import pipeline

# Raise it with every change of the examples that a seed gives.
VERSION = 1
MIN_SIZE = 4  # Of the states and of the alphabet.
MAX_EDGES = 3
FIELDS = dict(
    max_states=fields.Field(
        int, low=MIN_SIZE, default=12,
        help='The largest number of states of an automaton.',
    ),
    letters=fields.Field(
        int, low=MIN_SIZE, default=18, help='The number of letters.'
    ),
    # The first letter of the second word is always a target that counts.
    min_words=fields.Field(
        int, low=2, default=10, help='The smallest number of words.'
    ),
    max_words=fields.Field(
        int, low=2, default=19, help='The largest number of words.'
    ),
    max_word_length=fields.Field(
        int, low=1, default=49, help='The length of the longest words.'
    ),
    train_examples=fields.Field(
        int, low=1, default=5000, help='The number of training examples.'
    ),
    eval_examples=fields.Field(
        int, low=1, default=250,
        help='The number of examples in each of validation and test.',
    ),
)


def automaton(
    rng: np.random.Generator, max_states: int, letters: int
) -> np.ndarray:
  """Returns the next state for each state and letter, `[S, letters]`.

  -1 where no edge with that letter leaves the state.
  """
  states = rng.integers(MIN_SIZE, max_states, endpoint=True)
  size = rng.integers(MIN_SIZE, letters, endpoint=True)
  alphabet = rng.permutation(letters)[:size]
  following = np.full((states, letters), -1)
  for state in range(states):
    edges = rng.integers(1, MAX_EDGES, endpoint=True)
    others = np.delete(np.arange(states), state)
    following[state, rng.permutation(alphabet)[:edges]] = (
        rng.permutation(others)[:edges]
    )
  return following


def word(
    rng: np.random.Generator, following: np.ndarray, length: int
) -> tuple[list[int], list[int]]:
  """Returns the letters of a word and the states that they leave."""
  letters, states, state = [], [], 0
  for _ in range(length):
    (possible,) = np.nonzero(following[state] >= 0)
    letter = int(rng.choice(possible))
    letters.append(letter)
    states.append(state)
    state = following[state, letter]
  return letters, states


def example(
    rng: np.random.Generator,
    max_states: int,
    letters: int,
    min_words: int,
    max_words: int,
    max_word_length: int,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
  """Returns the tokens `[n]`, states `[n]` and probabilities `[S, V]`.

  A state is the one that the token leaves, or -1 for a separator.
  """
  following = automaton(rng, max_states, letters)
  tokens, states = [], []
  for number in range(rng.integers(min_words, max_words, endpoint=True)):
    if number:
      tokens.append(letters + 1)
      states.append(-1)
    length = rng.integers(1, max_word_length, endpoint=True)
    new_letters, new_states = word(rng, following, int(length))
    tokens += [1 + letter for letter in new_letters]
    states += new_states
  table = np.zeros((len(following), letters + 2), np.float32)
  table[:, 1:-1] = following >= 0
  table /= table.sum(1, keepdims=True)
  return np.array(tokens), np.array(states), table


def load(config: Any, shard: pipeline.Shard, seed: int) -> pipeline.Dataset:
  """Returns the task as a `Dataset`.

  The baselines are those of a model that knows the automata:
  `best_possible_loss`, the mean of `-log` of the true probabilities of the
  test part, in nats, and `best_possible_accuracy`, the share of right answers
  if it always says a most probable letter.

  Args:
    config: Has the fields in `FIELDS`.
    shard: The rows of this process.
    seed: The seed and the number of an example decide the example.

  Raises:
    UserValueError: If there are fewer words at most than at least.
  """
  if config.min_words > config.max_words:
    raise errors.UserValueError(
        f'data.min_words={config.min_words} is larger than '
        f'data.max_words={config.max_words}.'
    )
  vocab_size = config.letters + 2
  length = config.max_words * (config.max_word_length + 1) - 2

  @functools.cache  # Each epoch asks for the same examples.
  def make(split, number):
    return example(
        pipeline.generator(seed, split, number), config.max_states,
        config.letters, config.min_words, config.max_words,
        config.max_word_length,
    )

  def batches(numbers: grain.MapDataset, split: str, count: int):

    def batch(numbers):
      shape = len(numbers), length + 1
      tokens, counts = np.zeros(shape, np.int32), np.zeros(shape, bool)
      probabilities = np.zeros((*shape, vocab_size), np.float32)
      for row, number in enumerate(numbers):
        found, states, table = make(split, int(number))
        here = slice(len(found))
        is_letter = states >= 0
        tokens[row, here] = found
        counts[row, here] = is_letter & (number < count)
        probabilities[row, here][is_letter] = table[states[is_letter]]
      return dict(
          inputs=tokens[:, :-1], targets=tokens[:, 1:], mask=counts[:, 1:],
          probabilities=probabilities[:, 1:],
      )

    return numbers.map(batch)

  count = config.eval_examples

  def baselines():
    chances = np.concatenate([
        (table[states, found], table[states].max(1)) for found, states, table
        in (_counted(*make('test', number)) for number in range(count))
    ], axis=1)
    return dict(
        best_possible_loss=float(-np.log(chances[0]).mean()),
        best_possible_accuracy=float(chances[1].mean()),
    )

  return pipeline.Dataset(
      name='regbench',
      task='known_source',
      unit='tokens',
      batch_size=shard.batch_size,
      sequence_length=length,
      vocab_size=vocab_size,
      per_step=True,
      forecast=True,
      train=batches(
          shard.shuffled(config.train_examples, seed), 'train',
          config.train_examples,
      ),
      evaluation={
          split: batches(shard.evaluate(count), split, count)
          for split in ('validation', 'test')
      },
      baselines=baselines,
      source=dict(generator='regbench', version=VERSION),
  )


def _counted(tokens, states, table):
  """Returns an example without its first token and its separators."""
  tokens, states = tokens[1:], states[1:]
  return tokens[states >= 0], states[states >= 0], table


DEFINITION = definition.Definition(
    task='known_source', fields=FIELDS, load=load
)
