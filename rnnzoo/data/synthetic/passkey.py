"""Passkey retrieval: five digits hidden in a text that says nothing.

The task of "Stuffed Mamba" (Chen et al. 2024,
https://arxiv.org/abs/2410.07145), with the texts of its repository
(thunlp/stuffed-mamba, passkey-retrieval/passkey.py), read as bytes: an
instruction, then a block of filler again and again, one of them replaced by the
block with the passkey, then the question. The model must answer with the
passkey, a uniform number from 00000 to 99999.

Only the five digits are targets, each after those before it. A model whose most
probable bytes are all right answers the question in greedy decoding, too.

A text has as many blocks as fit into `data.sequence_length` bytes; up to 89
bytes of padding follow it. The passkey is block `int(depth * (blocks - 1))`,
with a uniform depth. The paper spaces the depths of its 200 examples evenly,
and asks for 1,024 to 131,072 tokens, which are several bytes each.
"""

from typing import Any

from rnnzoo import fields
from rnnzoo.data import definition
from rnnzoo.data import pipeline
from rnnzoo.data.synthetic import generated
from rnnzoo.data.synthetic import questions

# Raise it with every change of the examples that a seed gives.
VERSION = 1
INSTRUCTION = (
    b'There is an important info hidden inside a lot of irrelevant text. Find '
    b'it and memorize it.\n\n'
)
FILLER = (
    b'The grass is green. The sky is blue. The sun is yellow. Here we go. '
    b'There and back again.\n'
)
PASSKEY = b'The passkey is %s. Remember it. %s is the passkey.\n'
QUESTION = b'\nWhat is the pass key? The passkey is '
DIGITS = 5
FIELDS = dict(
    sequence_length=fields.Field(
        int, low=1, default=1024,
        help='The number of bytes that a text may have, the answer included.',
    ),
    **generated.FIELDS,
)
_BLOCK = len(PASSKEY % (b'0' * DIGITS, b'0' * DIGITS))


def blocks(length: int) -> int:
  """Returns how many blocks fit into `length` bytes with all else."""
  fixed = len(INSTRUCTION) + len(QUESTION) + DIGITS
  return max(0, length - fixed - _BLOCK) // len(FILLER) + 1


def text(passkey: bytes, depth: float, length: int) -> bytes:
  """Returns a text, with the answer at its end.

  Args:
    passkey: Five digits.
    depth: Where they are, from 0 to 1.
    length: The number of bytes that there may be.
  """
  count = blocks(length)
  filler = [FILLER] * count
  filler[int(depth * (count - 1))] = PASSKEY % (passkey, passkey)
  return INSTRUCTION + b''.join(filler) + QUESTION + passkey


def load(config: Any, shard: pipeline.Shard, seed: int) -> pipeline.Dataset:
  """Returns the task as a `Dataset` with endless training examples.

  The only baseline is `chance_accuracy`, per digit.

  Args:
    config: Has the fields in `FIELDS`.
    shard: The rows of this process.
    seed: Seed, split and number decide an example.

  Raises:
    UserValueError: If a text is too short for the passkey.
  """

  def make(rng, length):
    passkey = b'%05d' % rng.integers(10**DIGITS)
    return questions.example(
        text(passkey, rng.random(), length), [slice(-DIGITS, None)]
    )

  return questions.dataset(
      config, shard, seed, make, shortest=len(text(b'0' * DIGITS, 0, 0)),
      name='passkey',
      baselines=lambda: {'chance_accuracy': 0.1},
      source=dict(generator='passkey', version=VERSION),
  )


DEFINITION = definition.Definition(
    task='language_modelling', fields=FIELDS, load=load
)
