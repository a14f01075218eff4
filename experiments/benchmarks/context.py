r"""What a token costs after a long context: recurrent layers and attention.

  python -m experiments.benchmarks.context

Three models write tokens one by one: Mamba-2, a hybrid with attention in every
fourth block, and attention in every block, which keeps the keys and values of
all tokens. All have the same width and the same MLP. A step of attention reads
its whole carry, which has the size of the context, however much of it is
filled; so the steps start from an empty carry of that size, and nothing is read
before. The step is one compiled program that takes the memory of the last carry
for the next, as `generation.Writer` does it.

For each length of context there are the tokens per second of one sequence, and
the bytes of the carry. Models alternate.
"""

from absl import flags
from experiments.benchmarks import plots
from experiments.benchmarks import timing
from experiments.cli import drivers
from flax import nnx
import jax
from rnnzoo import generation
from rnnzoo import models
from rnnzoo.training.processes import host

_PATTERNS = dict(
    recurrent='mamba2',
    hybrid='mamba2,mamba2,mamba2,attention',
    attention='attention',
)
_LABELS = dict(
    recurrent='Mamba-2', hybrid='hybrid: one block in four is attention',
    attention='attention',
)
_LENGTHS = flags.DEFINE_multi_integer(
    'lengths', [1024, 2048, 4096, 8192, 16384, 32768],
    'The lengths of the context.', lower_bound=64,
)
_DEPTH = flags.DEFINE_integer(
    'depth', 8, 'The number of blocks.', lower_bound=4
)
_FEATURES = flags.DEFINE_integer(
    'features', 256, 'The number of features.', lower_bound=64
)
_TOKENS = flags.DEFINE_integer(
    'tokens', 8, 'The number of tokens of a call.', lower_bound=1
)
_REPEATS = flags.DEFINE_integer(
    'repeats', 3, 'The number of rounds.', lower_bound=1
)
_OUT = drivers.define_path(
    'out', 'experiments/results/context_cpu.json',
    'The JSON file of the results; the plot is written beside it.',
)
flags.adopt_module_key_flags(plots)

_COLUMNS = {
    'model': '{model}',
    'context': '{context:,}',
    'tokens/s': '{tokens_per_second:,.1f}',
    'ms': '{ms:.2f}',
    'carry, MiB': '{mebibytes:.2f}',
}


def make_model(name, length):
  """Returns a model whose attention keeps `length` tokens."""
  config = models.ModelConfig(
      layer=_PATTERNS[name], num_layers=_DEPTH.value,
      features=_FEATURES.value, vocab_size=1024, tie_embeddings=True,
      layer_options={
          layer: options for layer, options in dict(
              mamba2=dict(head_features=64),
              attention=dict(num_heads=8, window=length, on_full='error'),
          ).items() if layer in _PATTERNS[name]
      },
  )
  return models.LanguageModel(config, rngs=nnx.Rngs(0))


def make_call(name, length):
  """Returns a function that writes tokens, and the bytes of the carry."""
  model = make_model(name, length)
  carry = jax.eval_shape(lambda model: model.initialize_carry(1), model)
  size = sum(u.size * u.dtype.itemsize for u in jax.tree.leaves(carry))

  def start():
    writer = generation.Writer(
        model, sampling=generation.Sampling(temperature=0)
    )
    writer.read([[0]])
    return writer

  state = dict(writer=start())

  def write():
    if state['writer'].count + _TOKENS.value > length:
      state['writer'] = start()
    for _ in range(_TOKENS.value):
      token = state['writer'].next()
    return token

  return write, size


def measure(length):
  """Returns one row for each model."""
  made = {name: make_call(name, length) for name in _PATTERNS}
  medians = timing.interleaved_medians(
      {name: call for name, (call, _) in made.items()}, _REPEATS.value
  )
  return [
      dict(
          model=name, context=length,
          ms=medians[name].seconds / _TOKENS.value * 1e3,
          tokens_per_second=_TOKENS.value / medians[name].seconds,
          cpu_ms=medians[name].cpu_seconds / _TOKENS.value * 1e3,
          carry_bytes=size,
      )
      for name, (_, size) in made.items()
  ]


def draw(record):
  """Draws tokens per second and the size of the carry over the context."""
  figure, panels = plots.subplots(
      1, 2,
      f'One more token after a context: {record["depth"]} blocks of '
      f'{record["features"]} features, one sequence',
      figsize=(10, 4.2),
  )
  lengths = sorted({row['context'] for row in record['rows']})
  for panel, (label, value) in zip(panels[0], {
      'tokens per second': lambda row: row['tokens_per_second'],
      'carry, MiB': lambda row: row['carry_bytes'] / 2**20,
  }.items()):
    for number, (name, text) in enumerate(_LABELS.items()):
      rows = [row for row in record['rows'] if row['model'] == name]
      panel.plot(
          [row['context'] for row in rows], [value(row) for row in rows],
          plots.MARKERS[number] + '-', color=plots.COLORS[number],
          markersize=5, label=text,
      )
    panel.set_xscale('log', base=2)
    panel.set_xticks(lengths, [f'{n:,}' for n in lengths], rotation=45)
    panel.minorticks_off()
    panel.set_yscale('log')
    plots.plain_numbers(panel.yaxis)
    panel.set(xlabel='tokens of context', ylabel=label)
  plots.legend(figure, panels[0, 0])
  return figure


def main(argv):
  drivers.check_usage(argv)
  if plots.replotted(_OUT.value, draw):
    return
  host.pin_malloc()
  record = dict(
      timing.environment(), depth=_DEPTH.value, features=_FEATURES.value,
      rows=[],
  )
  for length in _LENGTHS.value:
    record['rows'] += measure(length)
  timing.print_table(
      [
          dict(row, mebibytes=row['carry_bytes'] / 2**20)
          for row in record['rows']
      ],
      _COLUMNS,
  )
  plots.save(record, _OUT.value, draw)


if __name__ == '__main__':
  drivers.run(main)
