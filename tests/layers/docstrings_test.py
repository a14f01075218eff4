"""Every example in the docstrings of layers and of `rnnzoo.testing` is true."""

import doctest
import importlib
import pkgutil

from absl.testing import parameterized
from rnnzoo import layers

_MODULES = ['rnnzoo.testing'] + [
    module.name
    for module in pkgutil.walk_packages(layers.__path__, f'{layers.__name__}.')
]


class DocstringsTest(parameterized.TestCase):

  @parameterized.parameters(*_MODULES)
  def test_examples(self, name):
    self.assertEqual(doctest.testmod(importlib.import_module(name)).failed, 0)

  def test_every_layer_has_one(self):
    finder = doctest.DocTestFinder(exclude_empty=True, recurse=False)
    for layer in layers.LAYERS.values():
      self.assertNotEmpty(finder.find(layer), layer.__name__)
