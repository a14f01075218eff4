r"""A hybrid of KDA and attention, 1.3 billion parameters, on 256 chips.

  python -m experiments.train \
      --config=experiments/configs/language/kda_hybrid_1p3b.py \
      --plan=v5e:16x16

A size of ours, with a vocabulary of 50,288 and a million tokens a step: two
sequences a chip. What it needs is in `experiments/results/plans`. Training
reads your own text, `data.path`, as bytes, and then has their vocabulary.
"""

from experiments.configs.language import griffin_1p3b


def get_config():
  """Returns the config: Griffin's, but for the model."""
  config = griffin_1p3b.of_preset('kda_hybrid_1p3b')
  config.smoke_overrides.model = dict(num_layers=4, features=16)
  return config
