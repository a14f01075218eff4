r"""Hopper from our own trajectories: a decision model in MuJoCo.

  pip install -e '.[decisions]'
  python scripts/prepare_datasets.py hopper_ours
  python -m experiments.train \
      --config=experiments/configs/decisions/hopper.py:min_gru \
      --workdir=runs/hopper
  python -m experiments.act --workdir=runs/hopper

The data is not of D4RL: linear policies of all qualities made it, see
`rnnzoo/data/builders/hopper_ours.py`. `:lru`, `:attention` or another layer
takes the place of minGRU; `:behaviour_cloning` is an MLP that sees the
observation only. The window of 20 steps, the scale of 1000, the clipping and
the weight decay are those of the Decision Transformer
(https://arxiv.org/abs/2106.01345); width, depth, rate and the number of steps
are ours and the first that were tried. The best checkpoint on validation acts.

Result (`experiments/results/decisions/hopper`), mean return of 20 episodes with
the state carried, and with the last 20 steps read again: minGRU 2280 and 2356,
with seed 1 2280 and 2508; LRU 1876 and 2462, attention 2089 and 2148, behaviour
cloning 105 both, with seed 0. The data has 533 on average and 2915 at best.
"""

from experiments.configs import default
from rnnzoo import models


def get_config(layer: str = 'min_gru'):
  """Returns the config: two blocks of width 64, 3,000 steps.

  Args:
    layer: The layer of both blocks, or `behaviour_cloning`.
  """
  config = default.get_config()
  config.model = default.model(models.ModelConfig(
      layer=layer, num_layers=2, features=64, mlp='gelu', embed_norm=True,
      dropout=0.1,
  ))
  if layer == 'attention':
    # As published: an embedding of the number of the step, one head, and a
    # memory of as many steps as a window has.
    config.model.max_time = 1000
    config.model.layer_options = dict(num_heads=1, window=20)
  default.use_data(config, 'trajectories')
  config.data.path = 'hopper_ours'
  config.total_steps = 3000
  config.batch_size = 64
  config.log_every = 100
  config.eval_every = 500
  config.save_every = 500
  config.steps_per_dispatch = 10
  config.keep = 1
  config.optimizer.name = 'adamw'
  config.optimizer.learning_rate = 1e-3
  config.optimizer.warmup_steps = 200
  config.optimizer.weight_decay = 1e-4
  config.optimizer.clip = 0.25
  config.smoke_overrides.update(dict(
      total_steps=40, batch_size=16, log_every=5, eval_every=20, save_every=20,
      keep=3, steps_per_dispatch=1, data=dict(sequence_length=10),
      model=dict(num_layers=1, features=16, dropout=0.0),
  ))
  return config
