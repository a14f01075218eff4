"""The benchmarks compare what is the same, and print it readably."""

import doctest

from absl.testing import parameterized
from experiments.benchmarks import linear_scan
from experiments.benchmarks import timing
import jax
import numpy as np
from tests import tolerance


class BenchmarksTest(parameterized.TestCase):

  def test_forms_of_the_linear_scan_are_one_function(self):
    operands = np.random.default_rng(0).random((3, 2, 9, 4), np.float32)
    results = {
        name: jax.jit(linear_scan.with_gradient(form))(*operands)
        for name, form in linear_scan._FORMS.items()
    }
    want = results.pop('lax.scan')
    del results[linear_scan._CEILING]  # It only moves as much.
    for got in results.values():
      tolerance.assert_close(got, want)

  def test_table_in_docstring(self):
    self.assertEqual(doctest.testmod(timing).failed, 0)

  def test_interleaved_medians(self):
    order = []
    medians = timing.interleaved_medians(
        {name: lambda name=name: order.append(name) for name in 'ab'}, 2
    )
    self.assertEqual(''.join(order), 'aabb' * 2)
    self.assertCountEqual(medians, 'ab')
