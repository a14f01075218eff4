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

Expected: the scores in `PUBLISHED`, see `mad.py`. Measured: nothing yet.
"""

from experiments.configs.synthetic import mad

PUBLISHED = mad.scores(41.3, 42.3, 43.4, 43.3, 45.0, 47.7, 49.5)


def get_config(layer: str = 'mamba'):
  """Returns the config."""
  config = mad.get_config(layer, 'compression')
  config.task = 'autoencoding'
  config.smoke_overrides.data.sequence_length = 4
  return config
