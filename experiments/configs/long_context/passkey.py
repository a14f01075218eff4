r"""Passkey retrieval: five digits, hidden in a text that says nothing.

  python -m experiments.train \
      --config=experiments/configs/long_context/passkey.py:mamba2 \
      --workdir=runs/passkey

The protocol of "Stuffed Mamba" (https://arxiv.org/abs/2410.07145), on bytes
(`rnnzoo/data/synthetic/passkey.py`). The paper finetunes language models of up
to 370M parameters on documents and reports "near-perfect" retrieval at 256K
tokens; its accuracy by length is not known to us. Here a small model learns the
task alone, from texts of 1,024 bytes, and is tested at up to 16 times that:
`test_4096_accuracy` is the accuracy per digit at 4,096 bytes.
`python -m experiments.evaluate --workdir=runs/passkey --split=test_4096` says
how many passkeys are right as a whole, which is what the paper counts.

A smaller form, for a CPU: texts of 384 bytes, width 64, 4,000 steps.

  python -m experiments.train --workdir=runs/passkey/min_gru \
      --config=experiments/configs/long_context/passkey.py:min_gru \
      --config.model.features=64 --config.batch_size=16 \
      --config.data.sequence_length=384 --config.total_steps=4000 \
      --config.data.test_lengths="(768, 1536, 3072, 6144)"

Measured so, one seed, on one CPU core (`experiments/results/long_context`),
percent of the digits that are right in texts of so many bytes:

             384   768  1,536  3,072  6,144  parameters  minutes
  minGRU    99.9  99.7   99.2   97.7   91.7     141,632      6.6
  Mamba-2   99.9  99.8   98.8   92.8   61.1     151,896     13.6

`passkey_lengths.png` there is the plot of `experiments.compare
runs/passkey/min_gru runs/passkey/mamba2 --lengths --metric=accuracy`.

`state_collapse_min_gru.png` and `state_collapse_mamba2.png` are of
`experiments.state_collapse --workdir=runs/passkey/min_gru --length=262144
--rows=8`: the states while the model reads one text after the other and is
never reset. They keep their size over 262,144 bytes, in both models. The loss
is small for the first text only: no model has learned to replace a passkey by
the next one.

Chance is 10 %. The gate of minGRU starts almost closed (`update_bias`): between
the passkey and the answer there are 50 bytes or more, and half open gates have
forgotten the passkey by then. A trial without it, and with half as many hidden
features, stayed at chance for 1,700 steps.
"""

from experiments.configs import default
from rnnzoo import models

PUBLISHED = []
# Options of the layers.
OPTIONS = dict(
    mamba2=dict(state_features=32, head_features=32),
    # Its own initial value forgets in two tokens what it has read.
    min_gru=dict(expansion_factor=2.0, update_bias=-5.0),
)


def get_config(layer: str = 'min_gru'):
  """Returns the config: two layers of width 128, at most 5,000 steps."""
  config = default.get_config()
  config.model = default.model(models.ModelConfig(
      layer=layer, num_layers=2, features=128, conv_kernel=4,
      layer_options=OPTIONS.get(layer, {}),
  ))
  default.use_data(config, 'passkey')
  config.data.sequence_length = 1024
  config.data.eval_examples = 200
  config.data.test_lengths = (2048, 4096, 8192, 16_384)
  config.data.test_examples = 200
  config.total_steps = 5000
  config.batch_size = 32
  config.log_every = 50
  config.eval_every = 250
  config.save_every = 250
  config.stop_at = dict(accuracy=0.999)
  config.optimizer.learning_rate = 2e-3
  config.optimizer.end_learning_rate = 1e-4
  config.smoke_overrides.data = dict(
      sequence_length=200, eval_examples=16, test_lengths=()
  )
  return config
