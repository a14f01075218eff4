r"""MAD: compress 32 tokens into one vector.

  python -m experiments.train \
      --config=experiments/configs/synthetic/mad_compression.py \
      --workdir=runs/mad_compression

`mad.py` has the protocol and all changes of difficulty. The model is
`models.SequenceAutoencoder`: the features of the last step, plus the vector of
a position, go through the suite's MLP of width 128, which says the token at
that position. As in the suite, the mark at the end counts as a token.
Different here: the initial linear maps are PyTorch's, not normal with standard
deviation 0.02.

Expected: none known as a number. Measured: nothing yet.
"""

from experiments.configs.synthetic import mad

PUBLISHED = []


def get_config(layer: str = 'mamba'):
  """Returns the config."""
  config = mad.get_config(layer, 'compression')
  config.task = 'autoencoding'
  config.smoke_overrides.data.sequence_length = 4
  return config
