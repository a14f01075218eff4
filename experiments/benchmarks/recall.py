r"""Which layers recall: multi-query associative recall, layer after layer.

  python -m experiments.benchmarks.recall \
      --out=experiments/results/recall.json

A sequence of 64 tokens holds four pairs of a key and a value, then four keys
whose values are the answers (`rnnzoo/data/synthetic/mqar.py`). The model has
two blocks of a short causal convolution and the layer, no MLP, and one table
for embedding and head, as in "Zoology" (https://arxiv.org/abs/2312.04927). The
paper has 8192 token ids. Here there are 64, which two cores learn in minutes: a
guess among all values is right once in 32 times, a guess among the four of the
sequence once in four. The convolution puts a key beside its value. Without it,
a layer has to do that too.

A layer whose state is a matrix, or attention, can store a value under its key.
A layer whose state is a vector has to find room for all pairs. Each layer
trains until 97 % of the validation answers are right, or until `--steps`.
`accuracy` is that of the checkpoint with the lowest validation loss, on test
sequences. Nobody searched the learning rates, so the steps say little about
which layer is better. The JSON is written after each layer. What it holds is
not trained again unless its settings changed.
"""

import math

from absl import flags
from absl import logging
from experiments.benchmarks import learning
from experiments.benchmarks import plots
from experiments.benchmarks import timing
from experiments.cli import drivers
import jax
import jax.numpy as jnp
import numpy as np
from rnnzoo import data
from rnnzoo import models
from rnnzoo import tasks

# The state of each layer.
_MEMORY = dict(
    attention='all tokens',
    comba='matrix',
    delta_net='matrix',
    gated_attention='all tokens',
    gated_delta_net='matrix',
    gated_delta_net2='matrix',
    gated_delta_product='matrix',
    gla='matrix',
    hgrn2='matrix',
    kda='matrix',
    latent_attention='all tokens',
    lightning_attention='matrix',
    linear_attention='matrix',
    m2rnn='matrix',
    mamba2='matrix',
    mamba3='matrix',
    mesa_net='matrix',
    mlstm='matrix',
    ret_net='matrix',
    rwkv6='matrix',
    rwkv7='matrix',
    mamba='vector a channel',
    linoss='vector',
    min_gru='vector',
    rg_lru='vector',
    signed_min_gru='vector',
)
_LAYERS = flags.DEFINE_multi_enum(
    'layers', list(_MEMORY), list(_MEMORY), 'The layers to train.'
)
_STEPS = flags.DEFINE_integer(
    'steps', 2000, 'The largest number of training steps.', lower_bound=1
)
_BATCH = flags.DEFINE_integer(
    'batch', 64, 'The number of sequences in a batch.', lower_bound=1
)
_FEATURES = flags.DEFINE_integer(
    'features', 64, 'The number of features of the model.', lower_bound=1
)
_LENGTH = flags.DEFINE_integer(
    'length', 64, 'The number of tokens in a sequence.', lower_bound=4
)
_PAIRS = flags.DEFINE_integer(
    'pairs', 4, 'The number of pairs of a key and a value.', lower_bound=1
)
_VOCAB = flags.DEFINE_integer(
    'vocab', 64, 'The number of token ids.', lower_bound=4
)
_SEED = flags.DEFINE_integer(
    'seed', 0,
    'The seed of the parameters and the data.',
    lower_bound=0, upper_bound=2**32 - 1,
)
_OUT = drivers.define_path(
    'out', 'experiments/results/recall.json',
    'The JSON file of the results; the plot is written beside it.',
)
flags.adopt_module_key_flags(plots)

_ENOUGH = 0.97
_EVAL_EVERY, _EVAL_SEQUENCES = 50, 512

# The settings of layers that need others than the common ones.
_COMMON = dict(learning_rate=3e-3, layer_options={})
_SETTINGS = dict(
    attention=dict(learning_rate=1e-2),
    delta_net=dict(learning_rate=1e-2),
    linear_attention=dict(learning_rate=1e-2),
    # Its states are chaotic with the defaults, and gradients become NaN.
    m2rnn=dict(layer_options=dict(
        forget_gate='sigmoid', state_init='identity'
    )),
    # The default states would be four times as large as any other.
    mamba2=dict(layer_options=dict(state_features=32, head_features=32)),
    mamba3=dict(layer_options=dict(state_features=32, head_features=32)),
)

_COLUMNS = {
    'layer': '{layer}',
    'remembers in': '{memory}',
    'state': '{state}',
    'accuracy %': '{percent:.1f}',
    'steps': '{steps}',
    's': '{seconds:.0f}',
    'parameters': '{parameters}',
}


def settings_of(layer):
  """Returns the settings of a layer."""
  settings = _COMMON | _SETTINGS.get(layer, {})
  if _MEMORY[layer] == 'all tokens':
    settings = settings | dict(layer_options=dict(window=_LENGTH.value))
  return settings | dict(
      batch=_BATCH.value, features=_FEATURES.value, length=_LENGTH.value,
      pairs=_PAIRS.value, vocab=_VOCAB.value, seed=_SEED.value,
  )


def is_done(row):
  """Returns whether a row is complete and has the current settings."""
  settings = settings_of(row['layer'])
  if any(row.get(name) != value for name, value in settings.items()):
    return False
  return row['validation'] >= _ENOUGH or row['steps'] >= _STEPS.value


def train(layer):
  """Trains one layer; returns its row."""
  settings = settings_of(layer)
  dataset = data.load(
      dict(
          name='mqar', sequence_length=_LENGTH.value, num_pairs=_PAIRS.value,
          vocab_size=_VOCAB.value, eval_examples=_EVAL_SEQUENCES,
      ),
      batch_size=_BATCH.value, seed=_SEED.value,
  )
  task = tasks.LanguageModelling(models.ModelConfig(
      layer=layer, num_layers=2, features=_FEATURES.value, conv_kernel=3,
      mlp='none', tie_embeddings=True, layer_options=settings['layer_options'],
  ))
  summary, history = learning.train(
      task, dataset,
      learning_rate=settings['learning_rate'],
      warmup_steps=50,
      seed=_SEED.value,
      total_steps=_STEPS.value,
      eval_every=_EVAL_EVERY,
      stop_at=dict(accuracy=_ENOUGH),
  )
  return dict(
      layer=layer, memory=_MEMORY[layer],
      validation=history[-1]['eval_accuracy'],
      accuracy=summary['test_accuracy'], steps=history[-1]['step'],
      seconds=history[-1]['seconds'], parameters=summary['parameters'],
      state=numbers_in_state(task.bind(dataset).functional),
      history=[
          [row['step'], row['train_loss'], row['eval_accuracy']]
          for row in history
      ],
      **settings,
  )


def numbers_in_state(functional):
  """Returns the number of floating-point numbers in the state of a model."""
  carry = jax.eval_shape(
      lambda params, stats: functional.merge(params, stats).initialize_carry(1),
      functional.params, functional.batch_stats,
  )
  return sum(
      math.prod(u.shape)
      for u in jax.tree.leaves(carry)
      if jnp.issubdtype(u.dtype, jnp.inexact)
  )


def draw(record):
  """Draws accuracy over steps, one panel for each layer."""
  some = record['rows'][0]
  # In the order in which they reach the end of training.
  rows = sorted(record['rows'], key=lambda row: row['steps'])
  columns = min(6, len(rows))
  figure, panels = plots.subplots(
      -(-len(rows) // columns), columns,
      'Right validation answers while a layer learns to recall '
      f'{some["pairs"]} key-value pairs in {some["length"]} tokens (MQAR)',
      figsize=(11, 1 + 1.6 * -(-len(rows) // columns)), sharex=True,
      sharey=True,
  )
  for panel, row in zip(panels.flat, rows):
    steps, _, accuracies = zip(*row['history'])
    panel.plot(
        steps, 100 * np.array(accuracies), linewidth=2, color=plots.COLORS[0],
        label=row['layer'],
    )
    panel.axhline(100 * _ENOUGH, color=plots.GRAY, linestyle=':')
    panel.set_title(f'{row["layer"]}: {row["steps"]} steps', fontsize='small')
    panel.set(xlim=(0, 1.02 * rows[-1]['steps']), ylim=(0, 103))
  panels[0, 0].text(
      0.98, 0.04, f'dotted, the end\nof training: {100 * _ENOUGH:.0f} %',
      ha='right', fontsize='x-small', color=plots.GRAY,
      transform=panels[0, 0].transAxes,
  )
  for panel in panels.flat[len(rows):]:
    panel.remove()
  for panel in panels[:, 0]:
    panel.set_ylabel('right, %')
  for column in panels.T:
    [panel for panel in column if panel.figure][-1].set_xlabel('step')
  return figure


def main(argv):
  drivers.check_usage(argv)
  if plots.replotted(_OUT.value, draw):
    return
  logging.set_verbosity(logging.INFO)
  rows = timing.earlier_rows(_OUT.value)
  rows = {row['layer']: row for row in rows if is_done(row)}

  def record():
    order = list(_MEMORY)
    return dict(
        timing.environment(),
        rows=sorted(rows.values(), key=lambda row: order.index(row['layer'])),
    )

  def save(row):
    rows[row['layer']] = timing.row_of_now(row)
    timing.write(record(), _OUT.value)

  for layer in _LAYERS.value:
    if layer in rows:
      continue
    logging.info('%s', layer)
    row = train(layer)
    save(row)
    logging.info(
        '%s: %.1f %% of the answers right after %d steps, %.0f s',
        layer, 100 * row['accuracy'], row['steps'], row['seconds'],
    )
  done = record()
  timing.print_table(
      [dict(row, percent=100 * row['accuracy']) for row in done['rows']],
      _COLUMNS,
  )
  plots.save(done, _OUT.value, draw)


if __name__ == '__main__':
  drivers.run(main)
