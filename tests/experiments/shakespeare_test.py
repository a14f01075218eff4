"""The layers that are compared on Tiny Shakespeare are equally large."""

import re

from absl.testing import absltest
from experiments.configs.language import tiny_shakespeare
from flax import nnx
import jax
from rnnzoo import models


class ShakespeareTest(absltest.TestCase):

  def test_parameters(self):
    """Each as the docstring says, and within 5 % of minGRU."""
    said = dict(re.findall(
        r'(\w+) +(\d,\d{3},\d{3})', tiny_shakespeare.__doc__
    ))
    self.assertEqual(said.keys(), tiny_shakespeare.SETTINGS.keys())
    for layer, number in said.items():
      config = models.ModelConfig.from_dict(
          tiny_shakespeare.get_config(layer).model.to_dict()
      )
      self.assertEqual((config.num_layers, config.features), (3, 384))
      model = nnx.eval_shape(lambda: models.LanguageModel(
          config.replace(vocab_size=65), rngs=nnx.Rngs(0)
      ))
      count = sum(u.size for u in jax.tree.leaves(nnx.state(model, nnx.Param)))
      self.assertEqual(f'{count:,}', number)
      self.assertLess(abs(count / 5_821_824 - 1), 0.05)

  def test_published(self):
    for row in tiny_shakespeare.PUBLISHED:
      self.assertIn(row['layer'], tiny_shakespeare.SETTINGS)
      self.assertIn(row['split'], tiny_shakespeare.get_config().eval_splits)


if __name__ == '__main__':
  absltest.main()
