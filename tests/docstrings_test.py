"""Every example in a docstring is true."""

import doctest
import importlib
import pkgutil

from absl.testing import absltest
from absl.testing import parameterized
import rnnzoo
from rnnzoo import layers

_MODULES = [
    module.name
    for module in pkgutil.walk_packages(rnnzoo.__path__, 'rnnzoo.')
]


class DocstringsTest(parameterized.TestCase):

  @parameterized.parameters(*_MODULES)
  def test_examples(self, name):
    self.assertEqual(doctest.testmod(importlib.import_module(name)).failed, 0)

  def test_every_layer_and_op_has_one(self):
    finder = doctest.DocTestFinder(exclude_empty=True, recurse=False)
    for name, public in (*layers.LAYERS.items(), *vars(rnnzoo.ops).items()):
      if name[0].islower() and not name.endswith('_step') and callable(public):
        self.assertNotEmpty(finder.find(public, name), name)


if __name__ == '__main__':
  absltest.main()
