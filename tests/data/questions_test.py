"""Passkeys and needles: the text, the answer in it, and its length."""

import re
from unittest import mock

from absl.testing import absltest
from absl.testing import parameterized
import numpy as np
from rnnzoo import data
from rnnzoo import errors
from rnnzoo.data import pipeline
from rnnzoo.data.synthetic import needle
from rnnzoo.data.synthetic import passkey


def texts(dataset, split='test'):
  """Yields each text and its answers, from the arrays of a data set."""
  for batch in dataset.eval_batches(split):
    for inputs, targets, mask in zip(
        batch['inputs'], batch['targets'], batch['mask']
    ):
      if not mask.any():
        continue  # It fills up the last batch.
      last = np.flatnonzero(mask)[-1]
      text = bytes([*inputs[: last + 1].tolist(), targets[last]])
      np.testing.assert_array_equal(
          targets[mask], np.frombuffer(text, np.uint8)[1:][mask[: last + 1]]
      )
      np.testing.assert_array_equal(inputs[last + 1 :], 0)
      np.testing.assert_array_equal(targets[~mask], 0)
      edges = np.flatnonzero(np.diff([0, *mask.astype(int), 0]))
      answers = [
          bytes(targets[a:b].tolist()).decode()
          for a, b in edges.reshape(-1, 2)
      ]
      yield text.decode(), answers


class PasskeyTest(parameterized.TestCase):

  def load(self, **fields):
    config = dict(name='passkey', sequence_length=700, eval_examples=60)
    return data.load(config | fields, batch_size=8, seed=0)

  def test_the_text_of_the_protocol(self):
    self.assertEqual(
        passkey.text(b'00042', 0.5, 450).decode(),
        'There is an important info hidden inside a lot of irrelevant text. '
        'Find it and memorize it.\n\n'
        'The grass is green. The sky is blue. The sun is yellow. Here we go. '
        'There and back again.\n'
        'The passkey is 00042. Remember it. 00042 is the passkey.\n'
        'The grass is green. The sky is blue. The sun is yellow. Here we go. '
        'There and back again.\n'
        '\nWhat is the pass key? The passkey is 00042',
    )
    places = [
        passkey.text(b'11111', depth, 450).index(b'The passkey')
        for depth in (0, 0.49, 0.5, 0.99, 1)
    ]
    self.assertEqual(np.unique(places).size, 3)
    self.assertEqual(places, sorted(places))
    for length in range(230, 700, 7):  # As many blocks as fit.
      whole = len(passkey.text(b'00042', 0, length))
      self.assertBetween(whole, length - len(passkey.FILLER) + 1, length)

  def test_examples(self):
    dataset = self.load(test_lengths=(300, 3000), test_examples=5)
    self.assertEqual(dataset.split_lengths, dict(test_300=299, test_3000=2999))
    for split, count in (('test', 60), ('test_300', 5), ('test_3000', 5)):
      found = list(texts(dataset, split))
      self.assertLen(found, count)
      places = set()
      for text, (answer,) in found:
        self.assertRegex(answer, r'^\d{5}$')
        self.assertEqual(text.count(answer), 3)
        self.assertEndsWith(text, f'The passkey is {answer}')
        places.add(text.index(f'The passkey is {answer}. R'))
      if split != 'test_300':  # Two blocks: the last one is at depth 1 only.
        self.assertGreater(len(places), 1)
    self.assertGreater(len({answer for _, (answer,) in texts(dataset)}), 50)

  def test_too_short(self):
    for fields, message in (
        (dict(sequence_length=100), 'data.sequence_length must be at least'),
        (dict(test_lengths=(300, 9)), 'data.test_lengths must be .* got 9'),
    ):
      with self.assertRaisesRegex(errors.UserValueError, message):
        self.load(**fields)


class NeedleTest(parameterized.TestCase):

  @parameterized.parameters(*needle.FORMS)
  def test_the_answer_is_in_the_text_and_nowhere_else(self, form):
    parts = needle.FORMS[form]
    config = dict(
        name='needle', form=form, sequence_length=2000, eval_examples=12
    )
    dataset = data.load(config, batch_size=8, seed=1)
    found = list(texts(dataset))
    self.assertLen(found, 12)
    depths = []
    for text, answers in found:
      self.assertLessEqual(len(text), 2000)
      # The next line or sentence did not fit.
      self.assertGreater(
          len(text), 2000 - (310 if parts.haystack == 'text' else 150)
      )
      stated = re.findall(
          r'One of the special magic (\w+) for (\S+) is: (\S+)\.', text
      )
      question, said = text.split('\n')[-1].split('? ')
      query = re.search(r'for (.*) mentioned', question)[1]
      asked = re.findall(r'[^,\s]+', query.replace(', and ', ', '))
      self.assertLen(asked, parts.queries)
      wanted = [
          value for name in asked for _, key, value in stated if key == name
      ]
      # Several values of a key come in the order of the text.
      self.assertEqual(answers, wanted)
      self.assertLen(answers, len(asked) * parts.values)
      self.assertEndsWith(said, ' '.join(
          ['are' if len(answers) > 1 else 'is', ', '.join(answers)]
      ))
      if parts.haystack != 'needles':
        self.assertLen(stated, parts.keys * parts.values)
      shape = dict(
          number=r'\d{7}', uuid=r'[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}',
          word='[a-z]+-[a-z]+',
      )
      for key, value in ((k, v) for _, k, v in stated):
        self.assertRegex(value, f'^{shape[parts.value]}$')
        self.assertRegex(key, f'^{shape[parts.key]}$')
      depths.append(text.index(f' for {asked[0]} is: ') / len(text))
    self.assertGreater(np.ptp(depths), 0.2)

  def test_no_line_of_the_haystack_answers_the_question(self):
    with mock.patch.multiple(needle, _ADJECTIVES=['a', 'b'], _NOUNS=['c']):
      for number in range(20):
        rng = pipeline.generator(0, 'train', number)
        made = needle.example(rng, 'multikey_2', 1500)
        text = bytes([*made.inputs, made.targets[-1]]).decode()
        key = re.search(r'magic number for (\S+) mentioned', text)[1]
        self.assertEqual(text.count(f'magic numbers for {key} is'), 1)
        self.assertGreater(text.count('magic numbers for '), 10)

  def test_the_texts_of_ruler(self):
    rng = pipeline.generator(0, 'train', 0)
    made = needle.example(rng, 'single_1', needle.shortest('single_1'))
    text = bytes(made.inputs.tolist()).decode()
    self.assertRegex(
        text,
        r'^A special magic number is hidden within the following text\. Make '
        r'sure to memorize it\. I will quiz you about the number afterwards\.\n'
        r'(The grass is green\..* again\.\n)?'
        r'One of the special magic numbers for \S+ is: \d+\.\n'
        r'What is the special magic number for \S+ mentioned in the provided '
        r'text\? The special magic number for \S+ mentioned in the provided '
        r'text is \d{6}$',
    )

  @parameterized.parameters(*needle.FORMS)
  def test_shortest(self, form):
    length = needle.shortest(form)
    for number in range(50):
      rng = pipeline.generator(0, 'train', number)
      self.assertLess(len(needle.example(rng, form, length).inputs), length)
    with self.assertRaisesRegex(errors.UserValueError, f'at least {length}'):
      data.load(
          dict(name='needle', form=form, sequence_length=length - 1),
          batch_size=1, seed=0,
      )

  def test_chance(self):
    found = {
        form: data.load(
            dict(name='needle', form=form, sequence_length=2000),
            batch_size=1, seed=0,
        ).baselines()['chance_accuracy'] for form in ('single_1', 'single_3')
    }
    self.assertAlmostEqual(found['single_1'], (1 / 9 + 0.6) / 7)
    # Guesses at random: the same share.
    dataset = data.load(
        dict(
            name='needle', form='single_3', sequence_length=700,
            eval_examples=200,
        ), batch_size=50, seed=0,
    )
    values = [answer for _, (answer,) in texts(dataset)]
    right = np.mean([
        [a == b for a, b in zip(one, other)]
        for one, other in zip(values, values[1:])
    ])
    self.assertAlmostEqual(found['single_3'], right, delta=0.02)


if __name__ == '__main__':
  absltest.main()
