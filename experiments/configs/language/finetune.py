r"""Goes on training a pretrained model, on your own text.

  python -m experiments.train \
      --config=experiments/configs/language/finetune.py \
      --config.init_from=DIR --config.data.path=my.txt --workdir=runs/finetune

  python -m experiments.convert --workdir=runs/finetune --output=mine

`DIR` is a folder of Hugging Face of a kind that `docs/pretrained.md` lists. The
model, its config and its tokenizer are those of the folder; the second command
writes such a folder. Without `init_from` a small new Mamba is trained, with a
tokenizer learned from the text, which shows that all works before a large model
is at hand.

Chosen by us: windows of 256 tokens, batches of 8, AdamW with a peak rate of
1e-4, 300 steps. A model of 130 million parameters wants about 16 bytes of
memory for each of them (`--plan` says it exactly); `--config.model.remat=full`
and `--config.accumulate_steps` make the rest smaller, and `--config.mesh.fsdp`
shares it among devices.

Measured (`experiments/results/language/finetune`), both with
`--config.batch_size=4 --config.total_steps=200`, on one CPU core. The small new
Mamba, 2,014,464 parameters, learned from Tiny Shakespeare (a peak rate of 2e-3,
6 minutes) and was written as a folder. From there, on the documentation of this
project (5e-4, 6 minutes): 2.34 bits per byte on the test part, where gzip needs
5.04. `transformers` opened the folder that came out: its logits differ by 8e-7
of the largest, and 64 of 64 greedy tokens are equal, by

  python -m experiments.benchmarks.convert_speed --pretrained=mine \
      --prompt=128 --length=64
"""

from experiments.configs import default
from rnnzoo import models


def get_config():
  """Returns the config: a text file, and a model that `init_from` replaces."""
  config = default.get_config()
  config.model = default.model(models.PRESETS['mamba_130m'].replace(
      num_layers=4, features=256
  ))
  default.use_data(config, 'text_file')
  config.data.level = 'bpe'
  config.data.bpe_size = 1024
  config.total_steps = 300
  config.batch_size = 8
  config.log_every = 10
  config.eval_every = 50
  config.save_every = 50
  config.optimizer.learning_rate = 1e-4
  config.optimizer.end_learning_rate = 1e-5
  config.optimizer.warmup_steps = 20
  config.sample_characters = 400
  return config
