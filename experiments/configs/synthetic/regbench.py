r"""RegBench: find out an automaton from 10 to 19 of its words.

  python -m experiments.train \
      --config=experiments/configs/synthetic/regbench.py:gla \
      --workdir=runs/regbench

"In-Context Language Learning" (https://arxiv.org/abs/2401.12973,
`rnnzoo/data/synthetic/regbench.py`): 5000 automata to learn from, 250 others
each for validation and test. The paper reports how often the most probable
letter is possible, here `test_possible`, and the total variation distance,
`test_total_variation`. `best_possible_loss` and `best_possible_accuracy`, which
the run prints below its result, are those of the automata themselves.

The settings are those of GLA in https://github.com/berlino/seq_icl, `configs`:
four blocks of a layer and an MLP of four times the width 128, batches of 32,
200 epochs (31,400 steps), a tenth of them warm-up. Mamba has no MLP there, nor
here; the Transformers there have two or eight blocks. The paper's results are
the best of a search. Different here: dropout 0.1 is in the whole model, not
after the embedding alone, and the checkpoint with the best validation loss is
tested, not that with the best accuracy.

Expected: none known as a number (the paper has figures). Measured: nothing yet.
"""

from experiments.configs import default
from rnnzoo import models

PUBLISHED = []
# Options of the layers, as there.
OPTIONS = dict(
    attention=dict(num_heads=8, window=1024),
    gla=dict(num_heads=1),
)


def get_config(layer: str = 'mamba'):
  """Returns the config."""
  config = default.get_config()
  config.model = default.model(models.ModelConfig(
      layer=layer, num_layers=4, features=128, norm='layer',
      mlp='none' if layer == 'mamba' else 'gelu', mlp_factor=4, dropout=0.1,
      embed_std=0.02, layer_options=OPTIONS.get(layer, {}),
  ))
  default.use_data(config, 'regbench')
  config.total_steps = 31_400
  config.batch_size = 32
  config.log_every = 100
  config.eval_every = 1570
  config.save_every = 1570
  config.keep = 1
  config.optimizer.learning_rate = 5e-4
  config.optimizer.end_learning_rate = 5e-5
  config.optimizer.warmup_steps = 3140
  config.optimizer.weight_decay = 0.1
  config.optimizer.options = dict(b2=0.999)
  config.smoke_overrides.update(dict(
      total_steps=200, batch_size=16, log_every=10, eval_every=100,
      save_every=100, keep=3,
      model=dict(num_layers=1, features=32, dropout=0.0),
      data=dict(
          letters=4, max_states=4, min_words=3, max_words=4, max_word_length=8,
          train_examples=400, eval_examples=32,
      ),
      optimizer=dict(learning_rate=1e-2, warmup_steps=5),
  ))
  return config
