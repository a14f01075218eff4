r"""Mamba-2 of 1.3 billion parameters on 256 chips: see first what it needs.

  python -m experiments.train \
      --config=experiments/configs/language/mamba2_1p3b.py \
      --plan=v5e:16x16

The published model (arXiv 2405.21060) with its vocabulary of 50,288, and a
million tokens a step: two sequences a chip. What it needs is in
`experiments/results/plans`. Training reads your own text, `data.path`, as
bytes, and then has their vocabulary.
"""

from experiments.configs.language import griffin_1p3b


def get_config():
  """Returns the config: Griffin's, but for the model."""
  config = griffin_1p3b.of_preset('mamba2_1p3b')
  config.smoke_overrides.model = dict(num_layers=2, features=16)
  return config
