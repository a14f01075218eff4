r"""MAD: in-context recall, and what the configs of its other tasks share.

  python -m experiments.train --config=experiments/configs/synthetic/mad.py \
      --workdir=runs/mad

MAD (https://arxiv.org/abs/2403.17844) averages six tasks
(`rnnzoo/data/synthetic/mad.py`): this one and `mad_noisy_recall.py`,
`mad_fuzzy_recall.py`, `mad_selective_copying.py`, `mad_memorization.py` and
`mad_compression.py`. Write `:gla` or another layer after the file. In each task
the suite changes one size at a time:

- data.vocab_size: 32, 64, 128 (noisy recall: 48, 80, 144; memorization: 512,
  1024, 2048, 4096, 8192).
- data.sequence_length: 256, 512, 1024 (selective copying: 512, 1024;
  compression: 64, 128, 256; memorization: none).
- data.train_examples: 6400, 3200, 1600, 800 (memorization: none).
- data.noise_fraction: 0.4, 0.6, 0.8 (noisy recall).
- data.num_tokens: 32, 64, 96 (selective copying).

For each it takes the best test accuracy over learning rates 1e-4, 5e-4 and 1e-3
and weight decays 0 and 0.1; the score of a task is the mean. A run has at most
200 epochs of batches of 128, which are 20,000 steps for 12,800 examples; change
`--config.total_steps` with `data.train_examples`. It ends early once 99.9 % of
the targets of validation (in the suite, of the test) are right.

The model is that of https://github.com/athms/mad-lab: two blocks of a layer and
a SwiGLU, width 128, states of equal size. Different here: float32, a learning
rate that falls at each step and not at each epoch, no bias in the last map of a
language model, and the checkpoint with the best validation loss is tested.

Expected: `PUBLISHED` holds the scores in table 9 of MesaNet
(https://arxiv.org/abs/2506.05233), whose layers have one common design and so
differ from ours a little. It gives one number for recall and noisy recall
together. No single run is compared with a score: a run of this config has the
first sizes alone, which are the easiest. Measured: nothing yet.
"""

from experiments.configs import default
from rnnzoo import models

# The layers in table 9 of MesaNet: Mamba2, GLA, xLSTM, DeltaNet, Gated
# DeltaNet, Hawk and the Transformer.
_LAYERS = (
    'mamba2', 'gla', 'mlstm', 'delta_net', 'gated_delta_net', 'rg_lru',
    'attention',
)


def scores(*percent: float) -> list[dict]:
  """Returns the published scores of a task; one percentage for each layer.

  They are of no split of a run, so that no run is compared with them.
  """
  return [
      dict(
          layer=layer, metric='accuracy', value=round(value / 100, 4),
          error=None, split='mean over sizes',
          source='https://arxiv.org/abs/2506.05233, table 9',
      )
      for layer, value in zip(_LAYERS, percent, strict=True)
  ]


PUBLISHED = scores(100, 100, 100, 100, 100, 93.0, 100)
# Options of the layers in the suite.
OPTIONS = dict(
    attention=dict(num_heads=16, window=1024),
    gla=dict(num_heads=8, key_features=16, value_features=16),
    mamba=dict(state_features=4),
)


def get_config(layer: str = 'mamba', task: str = 'in_context_recall'):
  """Returns the config of a task of the suite.

  Args:
    layer: The layer of both blocks.
    task: A key of `rnnzoo.data.synthetic.mad.SIZES`.
  """
  config = default.get_config()
  config.model = default.model(models.ModelConfig(
      layer=layer, num_layers=2, features=128, mlp='swiglu', mlp_factor=8 / 3,
      mlp_multiple=16, use_bias=False, embed_std=0.02,
      layer_options=OPTIONS.get(layer, {}),
  ))
  default.use_data(config, 'mad')
  config.data.task = task
  config.total_steps = 20_000
  config.batch_size = 128
  config.log_every = 100
  config.eval_every = 1000
  config.save_every = 1000
  config.keep = 1
  config.stop_at = dict(accuracy=0.999)
  config.optimizer.learning_rate = 5e-4
  config.optimizer.end_learning_rate = 1e-6
  config.optimizer.warmup_steps = 0
  config.optimizer.weight_decay = 0.0
  config.optimizer.clip = 0.0
  config.optimizer.options = dict(b2=0.999)
  config.smoke_overrides.update(dict(
      total_steps=60, batch_size=32, log_every=5, eval_every=30, save_every=30,
      keep=3,
      model=dict(num_layers=1),
      data=dict(
          sequence_length=16, vocab_size=6, train_examples=800,
          eval_examples=64,
      ),
      optimizer=dict(learning_rate=1e-2, warmup_steps=5),
  ))
  return config
