r"""What each layer can learn: to remember a token, and the parity of a string.

  python -m experiments.benchmarks.abilities \
      --out=experiments/results/abilities.json

One block of one layer, asked at every step and judged at the last one:

* `remember`: which of eight symbols came first, after 128 distractors;
* `parity`: whether the ones among 40 bits were odd, and, with the same weights,
  among 256. A recurrence whose decays are positive and do not look at the state
  cannot do that (https://arxiv.org/abs/2411.12537): it may count as far as it
  was trained, but not further.

Each trains until 99.5 % of the answers are right, or until `--steps`. The JSON
is written after each layer. What it holds is not trained again unless its
settings changed, so the same command resumes a benchmark that was stopped.
"""

from absl import flags
from absl import logging
from experiments.benchmarks import learning
from experiments.benchmarks import plots
from experiments.benchmarks import timing
from experiments.cli import drivers
import grain
import numpy as np
from rnnzoo import data
from rnnzoo import layers
from rnnzoo import models
from rnnzoo import tasks
from rnnzoo.data import pipeline

_TASKS = ('remember', 'parity')
_LAYERS = flags.DEFINE_multi_string(
    'layers', None,
    'The layers to train; the default is all layers that read vectors.',
)
_TASK = flags.DEFINE_multi_enum(
    'tasks', list(_TASKS), _TASKS, 'The tasks to train on.'
)
_STEPS = flags.DEFINE_integer(
    'steps', 1500, 'The largest number of training steps.', lower_bound=1
)
_BATCH = flags.DEFINE_integer(
    'batch', 32, 'The number of sequences in a batch.', lower_bound=1
)
_FEATURES = flags.DEFINE_integer(
    'features', 32, 'The number of features of the model.', lower_bound=1
)
_GAP = flags.DEFINE_integer(
    'gap', 128, 'The number of distractors in the task remember.', lower_bound=1
)
_BITS = flags.DEFINE_integer(
    'bits', 40,
    'The number of bits of a training sequence in the task parity.',
    lower_bound=1,
)
_MORE_BITS = flags.DEFINE_integer(
    'more_bits', 256,
    'The number of bits of a longer test sequence in the task parity.',
    lower_bound=1,
)
_SEED = flags.DEFINE_integer(
    'seed', 0,
    'The seed of the parameters and the data.',
    lower_bound=0, upper_bound=2**32 - 1,
)
_OUT = drivers.define_path(
    'out', 'experiments/results/abilities.json',
    'The JSON file of the results; the plot is written beside it.',
)
flags.adopt_module_key_flags(plots)

_SYMBOLS = _DISTRACTORS = 8
_ENOUGH = 0.995
_EVAL_EVERY, _EVAL_SEQUENCES = 50, 512

# The settings of layers that need others than Adam at 3e-3, the defaults of the
# layer and `--steps`; `patience` multiplies the number of steps.
_SETTINGS = dict(
    remember=dict(
        # In a plain tanh network the gradient is tiny after 128 steps, and a
        # larger learning rate makes its orthogonal matrix chaotic. It learns
        # the task slowly (64 % after 1500 steps, and rising).
        elman=dict(learning_rate=1e-3, patience=4),
        # Its decays do not depend on the input, so they must start near 1.
        lru=dict(layer_options=dict(r_min=0.99, r_max=0.9999)),
        # Its authors say that runs of the paper often start like this.
        m2rnn=dict(
            layer_options=dict(forget_gate='sigmoid', state_init='identity')
        ),
        # Its default window is 784 tokens of one number each.
        parallel_lmu=dict(layer_options=dict(theta=160.0, memory_features=8)),
        # Products of cores change slowly.
        tt_lstm=dict(learning_rate=1e-2),
    ),
    # Layers learn parity suddenly, and earlier with a larger rate.
    parity=dict(
        gated_delta_product=dict(learning_rate=1e-2),
        gru=dict(learning_rate=1e-2),
        lstm=dict(learning_rate=1e-2),
        # To turn by half a turn takes a step size of 1 at least.
        mamba3=dict(
            learning_rate=1e-2,
            layer_options=dict(
                head_features=8, state_features=16, rotary_fraction=1.0,
                dt_min=0.1, dt_max=1.0, rate='softplus',
            ),
        ),
        slstm=dict(learning_rate=1e-2),
    ),
)

# The first two read images. The others are parts of a model and read only one
# token of the past, or two.
NOT_ASKED = (
    'conv_lstm', 'conv_s5', 'rwkv4_channel_mix', 'rwkv7_channel_mix',
    'short_conv',
)

# Whether a layer can learn parity at any length, if theory has an answer.
_PARITY = dict(
    # Their update depends on the state.
    elman='can', gru='can', lmu='can', lstm='can', sgru='can', slstm='can',
    slstm_block='can', m2rnn='can', tfc_sgru='can', tt_gru='can', tt_lstm='can',
    # Their decays in (0, 1) depend on the input alone, or they take means.
    aaren='cannot', griffin='cannot', hgrn='cannot', mamba='cannot',
    min_gru='cannot', min_lstm='cannot', rg_lru='cannot', rwkv4='cannot',
    delta_net='cannot', gated_delta_net='cannot', gla='cannot',
    mamba2='cannot', mlstm='cannot', mlstm_block='cannot',
    mlstm_large='cannot', rwkv6='cannot', hgrn2='cannot',
    # Like those of `delta_net`, their transitions have no negative eigenvalues.
    kda='cannot',
    # Both of its sums decay by numbers in (0, 1).
    mesa_net='cannot',
    # Its transitions have some by default.
    gated_delta_product='can',
    # It rotates its state by angles that depend on the input.
    mamba3='can',
    # A softmax is a mean too, of more and more bits.
    attention='cannot', gated_attention='cannot', latent_attention='cannot',
    # Their decays are constant.
    lightning_attention='cannot', linear_attention='cannot', lru='cannot',
    parallel_lmu='cannot', ret_net='cannot', s4='cannot', s4d='cannot',
    s5='cannot',
)
_COLUMNS = {
    'layer': '{layer}',
    'task': '{task}',
    'theory': '{theory}',
    'accuracy %': '{shown_accuracy}',
    'longer %': '{shown_longer}',
    'steps': '{steps}',
    's': '{seconds:.0f}',
    'parameters': '{parameters}',
}

# The markers of the two accuracies in the plot. The first one is larger, so
# that both are visible if they are equal.
_DRAWN = dict(
    accuracy=dict(
        marker='o', markersize=7, color=plots.COLORS[0],
        label='at the training length',
    ),
    longer=dict(
        marker='s', markersize=3.5, color=plots.COLORS[1],
        label='on 256 bits (parity only)',
    ),
)


def batch_of(task, rng, count, length):
  """Draws inputs and targets `[B, T]` of a task.

  Args:
    task: A name in `_TASKS`.
    rng: A NumPy generator.
    count: `B`.
    length: Distractors, or bits.

  Returns:
    What a language model is trained on: `inputs` and `targets`, int32.
  """
  if task == 'parity':
    inputs = rng.integers(2, size=(count, length))
    targets = np.cumsum(inputs, axis=1) % 2
  else:
    symbols = rng.integers(_SYMBOLS, size=(count, 1))
    others = rng.integers(_DISTRACTORS, size=(count, length)) + _SYMBOLS
    inputs = np.concatenate([symbols, others], axis=1)
    targets = np.broadcast_to(symbols, inputs.shape)
  return dict(
      inputs=inputs.astype(np.int32), targets=targets.astype(np.int32)
  )


def lengths_of(task):
  """Returns the training length of a task, and the longer one or `None`."""
  return (_GAP.value, None) if task == 'remember' else (
      _BITS.value, _MORE_BITS.value
  )


def settings_of(layer, task):
  """Returns the settings of a layer."""
  common = dict(learning_rate=3e-3, patience=1, layer_options={})
  return dict(common, **_SETTINGS[task].get(layer, {}))


def is_done(row):
  """Returns whether a row is complete and has the current settings."""
  settings = settings_of(row['layer'], row['task'])
  if any(row[name] != value for name, value in settings.items()):
    return False
  right = [u for u in (row['accuracy'], row['longer']) if u is not None]
  last = _STEPS.value * settings['patience']
  return min(right) >= _ENOUGH or row['steps'] >= last


def train(layer, task):
  """Trains one layer on one task; returns its row."""
  settings = settings_of(layer, task)
  last = _STEPS.value * settings['patience']
  length, longer = lengths_of(task)
  summary, history = learning.train(
      tasks.LanguageModelling(models.ModelConfig(
          layer=layer, num_layers=1, features=_FEATURES.value,
          layer_options=settings['layer_options'],
      )),
      dataset_of(task, length, longer),
      learning_rate=settings['learning_rate'],
      warmup_steps=20,
      seed=_SEED.value,
      total_steps=last,
      eval_every=_EVAL_EVERY,
      eval_splits=('validation', 'longer') if longer else ('validation',),
      stop_at=dict(accuracy=_ENOUGH),
  )
  accuracies = lambda row: [
      row[name] for name in ('eval_accuracy', 'eval_longer_accuracy')
      if name in row
  ]
  end = history[-1]
  return dict(
      layer=layer, task=task, theory=_theory(layer, task),
      accuracy=end['eval_accuracy'], longer=end.get('eval_longer_accuracy'),
      steps=end['step'], seconds=end['seconds'],
      parameters=summary['parameters'], features=_FEATURES.value,
      length=length, longer_length=longer,
      history=[
          [row['step'], row['train_loss'], *accuracies(row)] for row in history
      ],
      **settings,
  )


def dataset_of(task, length, longer):
  """Returns a task as a data set.

  In training every answer counts, in evaluation the last one of a sequence.

  Args:
    task: A name in `_TASKS`.
    length: Distractors or bits of the splits `train`, `validation` and `test`.
    longer: Those of a split `longer`, or `None` for no such split.
  """
  shard = pipeline.Shard(_BATCH.value)
  draw = lambda count, length, *seed: batch_of(
      task, np.random.default_rng((_SEED.value, *seed)), count, length
  )

  def evaluation(length, stream):
    examples = draw(_EVAL_SEQUENCES, length, stream)

    def batch(numbers):
      rows = np.minimum(numbers, _EVAL_SEQUENCES - 1)
      arrays = {name: array[rows] for name, array in examples.items()}
      mask = np.zeros(arrays['targets'].shape, bool)
      mask[:, -1] = numbers < _EVAL_SEQUENCES
      return arrays | dict(mask=mask)

    return shard.evaluate(_EVAL_SEQUENCES).map(batch)

  splits = dict(validation=evaluation(length, 1), test=evaluation(length, 2))
  if longer:
    splits['longer'] = evaluation(longer, 1)
  return data.Dataset(
      name=task,
      task='language_modelling',
      batch_size=_BATCH.value,
      sequence_length=length + (task == 'remember'),
      vocab_size=_SYMBOLS + _DISTRACTORS,
      per_step=True,
      train=grain.MapDataset.range(pipeline.ENDLESS).map(
          lambda number: draw(_BATCH.value, length, 0, number + 1)
      ),
      evaluation=splits,
  )


def _theory(layer, task):
  return 'can' if task == 'remember' else _PARITY.get(layer, '')


def trainable():
  """Returns the names of the layers that are trained by default."""
  return [name for name in layers.LAYERS if name not in NOT_ASKED]


def draw(record):
  """Draws the accuracies of all layers, one panel per task."""
  rows = record['rows']
  names = sorted({row['layer'] for row in rows})
  done = [task for task in _TASKS if task in {row['task'] for row in rows}]
  figure, panels = plots.subplots(
      1, len(done), 'Right answers of one block of each layer, after training '
      'on two tasks',
      figsize=(11, 2.5 + 0.2 * len(names)), sharey=True,
  )
  heights = plots.layers_axis(panels[0], dict.fromkeys(names, 0))
  for panel, task in zip(panels[0], done):
    of_task = [row for row in rows if row['task'] == task]
    for row in of_task:
      ends = [100 * row[key] for key in _DRAWN if row[key] is not None]
      height = heights[row['layer']]
      panel.plot(ends, [height] * len(ends), color=plots.LIGHT, zorder=1)
      panel.text(
          1.07, height, f'{row["steps"]:,}', ha='right', va='center',
          fontsize='x-small', transform=panel.get_yaxis_transform(),
      )
    panel.text(
        1.07, -0.3, 'steps', ha='right', fontsize='x-small',
        transform=panel.get_yaxis_transform(),
    )
    for key, style in _DRAWN.items():
      shown = [row for row in of_task if row[key] is not None]
      panel.plot(
          [100 * row[key] for row in shown],
          [heights[row['layer']] for row in shown], linestyle='none', **style,
      )
    chance = 100 / (2 if task == 'parity' else _SYMBOLS)
    panel.axvline(chance, color=plots.GRAY, linestyle=':', label='chance')
    one = of_task[0]
    panel.set(
        title=f'parity of {one["length"]} bits, trained and tested, and of '
        f'{one["longer_length"]}' if task == 'parity' else
        f'which of {_SYMBOLS} symbols came first, {one["length"]} tokens ago',
        xlabel='right answers, %', xlim=(0, 103),
    )
  plots.legend(figure, panels[0, -1])
  return figure


def main(argv):
  drivers.check_usage(argv)
  if plots.replotted(_OUT.value, draw):
    return
  logging.set_verbosity(logging.INFO)
  earlier = timing.earlier_rows(_OUT.value)
  key = lambda row: (row['layer'], row['task'])
  rows = {key(row): row for row in earlier if is_done(row)}

  def record():
    order = lambda row: (_TASKS.index(row['task']), row['layer'])
    return dict(
        timing.environment(), batch=_BATCH.value, seed=_SEED.value,
        rows=sorted(rows.values(), key=order),
    )

  def save(row):
    rows[key(row)] = timing.row_of_now(row)
    timing.write(record(), _OUT.value)

  for task in _TASK.value:
    for layer in _LAYERS.value or trainable():
      if (layer, task) in rows:
        continue
      logging.info('%s: %s', layer, task)
      row = train(layer, task)
      save(row)
      longer = row['longer'] is not None
      logging.info(
          '%s: %s: %s %% of the answers right after %d steps%s', layer, task,
          _percent(row['accuracy']), row['steps'],
          f', {_percent(row["longer"])} % if longer' if longer else '',
      )
  done = record()
  timing.print_table(
      [
          dict(
              row, shown_accuracy=_percent(row['accuracy']),
              shown_longer=_percent(row['longer']),
          )
          for row in done['rows']
      ],
      _COLUMNS,
  )
  plots.save(done, _OUT.value, draw)


def _percent(share):
  return '' if share is None else f'{100 * share:.1f}'


if __name__ == '__main__':
  drivers.run(main)
