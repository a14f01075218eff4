r"""MAD: copy tokens that stand among blanks.

  python -m experiments.train \
      --config=experiments/configs/synthetic/mad_selective_copying.py \
      --workdir=runs/mad_selective_copying

`mad.py` has the protocol and all changes of difficulty. The sequences are
shorter than those of the Mamba and minRNN papers, whose settings are in
`selective_copying_4096.py`.

Expected: the scores in `PUBLISHED`, see `mad.py`. Measured: nothing yet.
"""

from experiments.configs.synthetic import mad

PUBLISHED = mad.scores(95.4, 96.1, 95.4, 98.8, 95.7, 77.0, 96.0)


def get_config(layer: str = 'mamba'):
  """Returns the config."""
  config = mad.get_config(layer, 'selective_copying')
  config.smoke_overrides.data.update(sequence_length=6, num_tokens=2)
  return config
