"""Every example in a docstring of `rnnzoo.ops` is true."""

import doctest
import importlib
import pkgutil

from absl.testing import parameterized
from rnnzoo import ops

_MODULES = [
    module.name
    for module in pkgutil.walk_packages(ops.__path__, f'{ops.__name__}.')
]


class DocstringsTest(parameterized.TestCase):

  @parameterized.parameters(*_MODULES)
  def test_examples(self, name):
    self.assertEqual(doctest.testmod(importlib.import_module(name)).failed, 0)

  def test_there_are_examples(self):
    finder = doctest.DocTestFinder(exclude_empty=True)
    tests = finder.find(importlib.import_module('rnnzoo.ops.linear_scan.api'))
    self.assertGreater(sum(len(t.examples) for t in tests), 2)
