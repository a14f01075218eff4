r"""Mamba-3 with 1.5 billion parameters on 256 chips: see first what it needs.

  python -m experiments.train \
      --config=experiments/configs/language/mamba3_1p5b.py \
      --plan=v5e:16x16

A size of ours, with a vocabulary of 50,288 and a million tokens a step: two
sequences a chip. What it needs is in `experiments/results/plans`. Training
reads your own text, `data.path`, as bytes, and then has their vocabulary.
"""

from experiments.configs.language import griffin_1p3b


def get_config():
  """Returns the config: Griffin's, but for the model."""
  config = griffin_1p3b.of_preset('mamba3_1p5b')
  config.smoke_overrides.model = dict(num_layers=2, features=16)
  return config
