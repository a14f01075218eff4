r"""Word problems of groups, the test of state tracking: parity, Z60, A5, S5.

  python -m experiments.train \
      --config=experiments/configs/synthetic/group_word.py:gated_delta_net \
      --config.data.group=A5 --workdir=runs/a5

Source: "The illusion of state in state-space models" (Merrill et al. 2024,
https://arxiv.org/abs/2404.08819); the task is defined in
`rnnzoo/data/synthetic/group_word.py`. Training sequences have 32 steps, and
`test_128` and `test_256` show whether a layer goes on: there only the steps
beyond the 32nd count. `--config.data.group=Z2` is parity.

Two blocks of width 128, each the layer without an MLP: what tracks the state is
the layer. The run ends early once 99.9 % of the validation targets are right.
DeltaNet, Gated DeltaNet, Gated DeltaProduct and KDA have eigenvalues in (-1,
1); for (0, 1), `--config.model.layer_options.allow_negative_eigenvalues=False`.

Expected: no number is known for this setting. The paper has plots: a linear RNN
or Mamba needs more layers for longer words of A5, one layer of an RNN does not.
mingru-scans 0.2.0 reports how many of 36 runs reach 99 % on S5 at 128 steps:
minGRU 0, DeltaNet 0, GRU 0.

Measured (`experiments/results/synthetic/group_word`), three seeds, percent of
the targets that are right, on one CPU core:

  parity (Z2)                                 32 steps       128        256
  GRU, LSTM, sLSTM                                 100       100        100
  SignedMinGRU                                     100 99.7 to 100  98 to 100
  Gated DeltaProduct, two steps a token            100   90 to 99   68 to 91
  Gated DeltaNet, eigenvalues in (-1, 1)           100   86 to 93   68 to 76
  KDA, eigenvalues in (-1, 1)                      100   79 to 91   64 to 71
  Mamba-3                                          100   64 to 73   56 to 61
  RWKV-7 (one seed)                                100         59         53
  Gated DeltaNet, eigenvalues in (0, 1)       94 to 99   51 to 57   51 to 52
  Mamba-2                                     93 to 98   51 to 54         51
  minGRU                                      71 to 75   49 to 50         50
  LRU                                         60 to 91   50 to 54   50 to 52
  LinOSS                                            59         50         50

GRU, LSTM, sLSTM and Gated DeltaNet end within 250 steps, a minute; SignedMinGRU
does in 7 s, KDA in 50 s, Gated DeltaProduct and Mamba-3 in 70 s; RWKV-7 takes
2,250 steps, ten minutes; LinOSS all 3,000, two minutes. In
`experiments/benchmarks/abilities.py`, with one smaller block, 40 bits and a
rate of 1e-2, Gated DeltaProduct and Mamba-3 have the parity of 256 bits right
in 99.6 to 100 % of the sequences.

On Z60 SignedMinGRU reaches 8 and 12 % (two seeds) at 32 steps, and 3 % beyond,
where chance is 1.7 %. On A5 minGRU and LRU learn the first element only (5 % at
32 steps, chance beyond), and so do GRU (one seed) and, on S5, minGRU: 3,000
steps show each pair of elements about 50 times.

The other layers and groups have not been run yet. A command makes the rows of
some layers and groups, or goes on with those that were stopped:

  python -m experiments.sweep --seeds=3 --workdir=runs/tracking \
      --configs=experiments/configs/synthetic/group_word.py:mamba3,kda,rwkv7 \
      --grid=data.group=A5,S5 --results=experiments/results

LinOSS, like the LRU, multiplies its state by the same numbers whatever the
token is, so it is a comparison from which nothing is expected.
"""

from experiments.configs import default
from rnnzoo import models

# No number was published for this setting.
PUBLISHED = []
# Options of the layers.
OPTIONS = dict(
    delta_net=dict(allow_negative_eigenvalues=True),
    gated_delta_net=dict(allow_negative_eigenvalues=True),
    # Its eigenvalues are in (-1, 1) by default, and a token corrects twice.
    gated_delta_product=dict(num_householder=2),
    # Heads as large as those of Gated DeltaNet.
    kda=dict(allow_negative_eigenvalues=True, key_features=32),
    linoss=dict(state_features=128, discretization='imex'),  # It keeps volumes.
    lru=dict(r_min=0.9, r_max=0.999),
    # Rotations start with up to half a turn a token, not with a twentieth.
    mamba3=dict(
        state_features=32, head_features=32, rotary_fraction=1.0, dt_min=0.1,
        dt_max=1.0,
    ),
    rwkv7=dict(head_features=32),
)


def get_config(layer: str = 'gated_delta_net'):
  """Returns the config: two layers of width 128."""
  config = default.get_config()
  config.model = default.model(models.ModelConfig(
      layer=layer, num_layers=2, features=128, mlp='none',
      layer_options=OPTIONS.get(layer, {}),
  ))
  default.use_data(config, 'group_word')
  config.data.group = 'A5'
  config.data.sequence_length = 32
  config.data.test_lengths = (128, 256)
  config.total_steps = 3000
  config.batch_size = 64
  config.log_every = 50
  config.eval_every = 250
  config.save_every = 250
  config.keep = 1
  config.stop_at = dict(accuracy=0.999)
  config.optimizer.learning_rate = 1e-3
  config.optimizer.end_learning_rate = 1e-5
  config.optimizer.warmup_steps = 100
  config.optimizer.weight_decay = 0.01
  config.smoke_overrides.update(dict(
      total_steps=40, batch_size=32, log_every=5, eval_every=40, save_every=40,
      model=dict(num_layers=1, features=32),
      data=dict(
          group='S3', sequence_length=4, eval_examples=64,
          test_lengths=(128,), test_examples=16,
      ),
      optimizer=dict(learning_rate=1e-2, warmup_steps=5),
  ))
  return config
