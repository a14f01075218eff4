"""Language models that are asked for some tokens only."""

import types

from absl.testing import absltest
import numpy as np
from rnnzoo import tasks


class AnswersTest(absltest.TestCase):

  def test_sequences_with_all_answers_right(self):
    task = tasks.LanguageModelling()
    # The last sequence has fewer answers, as rows of a split may.
    target = np.empty(4, object)
    target[:] = [np.array(u) for u in ([1, 2], [3, 4], [5, 6], [7])]
    prediction = np.empty(4, object)
    prediction[:] = [np.array(u) for u in ([1, 2], [3, 0], [0, 0], [7])]
    for forecast, lines in (
        (False, ['sequences with all answers right: 0.5000']), (True, [])
    ):
      dataset = types.SimpleNamespace(forecast=forecast)
      found = task.details(
          dict(target=target, prediction=prediction), dataset
      )
      self.assertEqual(found, lines)

  def test_bits_per_byte(self):
    dataset = types.SimpleNamespace(bytes_per_token=4.0)
    found = tasks.LanguageModelling().derived(
        dict(loss=2 * np.log(2)), dataset
    )
    self.assertAlmostEqual(found['bits_per_token'], 2)
    self.assertAlmostEqual(found['bits_per_byte'], 0.5)


if __name__ == '__main__':
  absltest.main()
