"""Every field of a config, with its default; the other configs change a few.

What each value may be is described in `experiments/schema.py` and beside the
code that reads it.

  python -m experiments.train --config=experiments/configs/default.py \
      --workdir=runs/default --config.model.layer=min_lstm
"""

import dataclasses

from ml_collections import ConfigDict
from rnnzoo import models


def get_config():
  """Returns the defaults."""
  return ConfigDict(dict(
      seed=0,
      total_steps=1000,
      batch_size=64,  # Global: over all devices and processes.
      log_every=10,
      eval_every=100,
      save_every=100,
      keep=3,  # Latest checkpoints kept, beside the best.
      eval_splits=('validation',),  # The first one chooses the best checkpoint.
      accumulate_steps=1,  # Parts a batch is run in, one after another.
      steps_per_dispatch=1,  # Steps in one compiled program: for tiny models.
      # Tokens whose logits a device holds at once; 0 for all of its tokens. -1:
      # all if the logits take up to 256 MiB, else as many as take that much.
      loss_chunk=-1,
      stateful=False,  # Carry the state across windows (data.contiguous).
      ema_decay=0.0,  # If positive, a moving average is evaluated.
      init_from='',  # A workdir whose best parameters to start from.
      # At a loss or gradient that is not finite: 'stop'; 'skip' the update; or
      # 'rollback' to the last checkpoint and go on after the bad batch.
      on_nan='stop',
      nan_limit=10,  # Skips in a row, or rollbacks to one step, and it is over.
      nan_rate_factor=0.5,  # Of the learning rate, at each rollback.
      profile_steps='',  # Such as '10:15': a trace for a profiler.
      tensorboard=True,  # Event files too, where tensorboardX is installed.
      sample_characters=0,  # Text to generate at the end, into sample.txt.
      must_beat_gzip=False,  # Fail if the test loss does not.
      mesh=dict(data=-1, fsdp=1, model=1, sequence=1),
      # Axes of parameters, such as 'vocab', that are whole on every device.
      whole_axes=(),
      model=model(models.ModelConfig()),
      data=dict(
          name='tiny_shakespeare',
          data_dir='',  # Else $RNNZOO_DATA_DIR, else the user's cache.
          path='',  # Of a text_file.
          allow_changed=False,  # Resume though the data is not what it was.
          level='char',
          sequence_length=256,
          contiguous=False,
          # Of selective_copying.
          variant='min_rnn',
          num_tokens=16,
          vocab_size=16,  # Of mqar, too.
          # Of mqar.
          num_pairs=4,
          power=0.01,
          random_non_queries=False,
          # Of both.
          eval_examples=1024,
      ),
      optimizer=dict(
          name='adamw',
          learning_rate=1e-3,
          end_learning_rate=1e-4,
          warmup_steps=100,
          schedule='cosine',
          weight_decay=0.1,  # Not on vectors and recurrent parameters.
          recurrent_rate_factor=1.0,
          clip=1.0,
          options=dict(b2=0.99),  # Keyword arguments of the optax function.
          freeze=(),  # Groups of parameters to leave alone, such as 'embed'.
      ),
      smoke=False,
      # What --config.smoke=True changes, after all other overrides.
      smoke_overrides=dict(
          total_steps=4,
          batch_size=8,
          log_every=1,
          eval_every=2,
          save_every=2,
          steps_per_dispatch=1,
          must_beat_gzip=False,
          model=dict(num_layers=2, features=16),
          data=dict(sequence_length=32),
          optimizer=dict(warmup_steps=1),
      ),
  ))


def model(config: models.ModelConfig):
  """Returns a model's config as a `ConfigDict`."""
  fields = dataclasses.asdict(config)
  fields['layer_options'] = dict(config.layer_options)
  return ConfigDict(fields)
