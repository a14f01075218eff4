r"""Loss and state of a trained language model over a very long text.

  python -m experiments.state_collapse --workdir=runs/shakespeare \
      --length=1048576 --output=collapse.json

A recurrent model may fail beyond the lengths that it was trained on: its state
grows or fills up, and the loss rises. "Stuffed Mamba"
(https://arxiv.org/abs/2410.07145) calls this state collapse. The model reads a
part of its data, again and again without a reset, in chunks that hand on the
carry, so memory does not grow with the length. `--text=` repeats another text
instead, such as that of the paper, new lines: in bash `--text=$'\n'`.

Written are a JSON file and, beside it, a plot: the mean loss by position, and
the mean, the variance and the norm of the states, layer by layer. A bin of
positions is 19 % wider than the one before.
"""

from collections.abc import Iterator, Mapping
import functools
import math
import sys
from typing import Any, NamedTuple

from absl import flags
from absl import logging
from experiments.benchmarks import plots
from experiments.benchmarks import timing
from experiments.cli import config_flag
from experiments.cli import drivers
from experiments.cli import sampling
from experiments.cli import tasks
import jax
import jax.numpy as jnp
import numpy as np
from rnnzoo import errors
from rnnzoo import restoring
from rnnzoo.training.processes import host
import tqdm

_WORKDIR = drivers.define_path('workdir', None, 'The directory of the run.')
_OUTPUT = drivers.define_path(
    'output', None, 'The JSON file to write; the plot has the same name.'
)
_LENGTH = flags.DEFINE_integer(
    'length', 2**20, 'The number of tokens to read.', lower_bound=2,
    upper_bound=2**31 - 1,
)
_ROWS = flags.DEFINE_integer(
    'rows', 1,
    'Read so many texts at once, which start at different places, and average '
    'over them.', lower_bound=1, upper_bound=2**16,
)
_CHUNK = flags.DEFINE_integer(
    'chunk', 1024,
    'The number of tokens that the model reads at once: more is faster and '
    'needs more memory.', lower_bound=1, upper_bound=2**24,
)
_SPLIT = flags.DEFINE_string('split', 'test', 'The part of the data to read.')
_TEXT = flags.DEFINE_string(
    'text', '', 'Read this text again and again, not the data.'
)
_DATA_DIR = drivers.define_data_dir()
_ALLOW_CHANGED = flags.DEFINE_bool(
    'allow_changed', False, 'Read the data even if it has changed.'
)
_LAYERS = drivers.define_layers()
flags.adopt_module_key_flags(plots)
# Bins of positions, and the positions at which states are measured.
_GROWTH = 2**0.25


class Stream(NamedTuple):
  """A text as a model reads it: three arrays `[N]`."""

  inputs: np.ndarray
  targets: np.ndarray
  counted: np.ndarray  # Which targets count.


def edges(length: int) -> list[int]:
  """Returns the ends of the bins of positions, from 1 to `length`.

  >>> edges(8)
  [1, 2, 3, 4, 5, 6, 7, 8]
  """
  found = [1]
  while found[-1] < length:
    found.append(
        min(length, max(found[-1] + 1, round(found[-1] * _GROWTH)))
    )
  return found


def read_stream(dataset, split: str) -> Stream:
  """Returns the rows of an evaluation split one after the other."""
  parts = []
  for batch in dataset.eval_batches(split):
    for row in np.flatnonzero(batch['mask'].any(1)):
      # What follows the last target that counts is padding.
      end = np.flatnonzero(batch['mask'][row])[-1] + 1
      parts.append([
          batch[name][row, :end] for name in ('inputs', 'targets', 'mask')
      ])
  return Stream(*map(np.concatenate, zip(*parts)))


def stream_of_text(vocabulary, text: str) -> Stream:
  """Returns a text that is repeated for ever, as a stream of one period."""
  tokens = vocabulary.encode(text)
  if not len(tokens):
    raise errors.UserValueError(f'--text={text!r} has no token.')
  return Stream(tokens, np.roll(tokens, -1), np.ones(len(tokens), bool))


def measure(
    model: Any, stream: Stream, length: int, *, rows: int = 1, chunk: int = 1024
) -> Iterator[dict[str, Any]]:
  """Reads a stream again and again, and yields what it finds bin by bin.

  Args:
    model: A `LanguageModel`.
    stream: The text.
    length: The number of tokens.
    rows: How many texts are read at once. They start at different places.
    chunk: The number of tokens in a call of the model.

  Yields:
    For each bin: `start` and `end`, the first and last position, from 1;
    `targets`, the number of targets that count; `loss`, their mean loss in
    nats, `None` if there are none; `state`, by the name of each array of the
    carry, its `mean`, `variance` and `norm` after position `end`. A norm is
    that of all numbers in one row; it is a mean over the rows. A value that is
    not finite is `None`.
  """
  starts = np.arange(rows) * len(stream.inputs) // rows
  carry = jax.jit(lambda model: model.initialize_carry(rows))(model)
  stacks = model.config.stacks
  start = 1
  for end in edges(length):
    total, count = 0.0, 0
    for first in range(start, end + 1, chunk):
      # All calls have one shape, so one program does.
      size = min(chunk, end + 1 - first)
      offsets = first - 1 + np.arange(chunk)
      places = (starts[:, None] + offsets) % len(stream.inputs)
      mask = np.broadcast_to(np.arange(chunk) < size, places.shape)
      counted = stream.counted[places] & mask
      carry, loss = _run(
          model, carry, stream.inputs[places], stream.targets[places],
          mask, counted,
      )
      total += float(loss)
      count += int(counted.sum())
    state = {
        name: {key: _finite(value) for key, value in values.items()}
        for name, values in jax.device_get(_statistics(carry, stacks)).items()
    }
    yield dict(
        start=start, end=end, targets=count,
        loss=_finite(total / count) if count else None, state=state,
    )
    start = end + 1


@functools.partial(jax.jit, donate_argnums=1)
def _run(model, carry, inputs, targets, mask, counted):
  """Runs a chunk; returns the carry and the sum of the losses that count."""
  carry, logits = model(inputs, carry, mask=mask)
  chosen = jnp.take_along_axis(
      jax.nn.log_softmax(logits), targets[..., None], axis=-1
  )[..., 0]
  return carry, -jnp.where(counted, chosen, 0).sum()


@functools.partial(jax.jit, static_argnums=1)
def _statistics(carry, stacks):
  """Returns mean, variance and norm of the states of layers, by their names."""
  found = {}
  for depths, block in zip(stacks, carry):
    leaves, _ = jax.tree_util.tree_flatten_with_path(block.layer)
    for path, array in leaves:
      if not jnp.issubdtype(array.dtype, jnp.inexact):
        continue  # A counter or a flag.
      name = jax.tree_util.keystr(path).strip('.') or 'state'
      for i in range(array.shape[0]):
        u = array[i].reshape(array.shape[1], -1)
        if jnp.iscomplexobj(u):
          u = jnp.concatenate([u.real, u.imag], axis=1)
        u = u.astype(jnp.promote_types(jnp.float32, u.dtype))
        found[f'{depths[i]}: {name}'] = dict(
            mean=u.mean(), variance=u.var(1).mean(),
            norm=jnp.sqrt((u * u).sum(1)).mean(), size=u.shape[1],
        )
  return found


def _finite(value) -> float | int | None:
  value = value.item() if hasattr(value, 'item') else value
  return value if math.isfinite(value) else None


def draw(record: Mapping[str, Any]):
  """Draws the loss and the largest state of each layer by position."""
  rows = record['rows']
  figure, panels = plots.subplots(
      4, 1, f'{record["layer"]} on {record["text"]}, read without a reset',
      figsize=(8, 9), sharex=True,
  )
  top, *others = panels[:, 0]
  losses = [row for row in rows if row['loss'] is not None]
  top.plot(
      [row['end'] for row in losses], [row['loss'] for row in losses],
      color='black',
  )
  top.set_ylabel(f'loss, nats per {record["unit"].removesuffix("s")}')
  for depth, name in sorted(_largest(rows[0]['state']).items()):
    for panel, key in zip(others, ('norm', 'variance', 'mean')):
      points = [(row['end'], row['state'][name][key]) for row in rows]
      points = [(x, y) for x, y in points if y is not None]
      panel.plot(
          *zip(*points) if points else ([], []), label=f'layer {depth + 1}',
          color=plots.COLORS[depth % len(plots.COLORS)],
      )
      panel.set_ylabel(f'{key} of the state')
  for panel in others[:2]:
    panel.set_yscale('log')
  for panel in (top, *others):
    panel.set_xscale('log')
    panel.axvline(
        record['trained_length'], color=plots.GRAY, linestyle=':',
        label='length in training' if panel is others[0] else None,
    )
  others[-1].set_xlabel(f'position, {record["unit"]}')
  plots.plain_numbers(others[-1].xaxis)
  plots.legend(figure, others[0])
  return figure


def _largest(state: Mapping[str, Any]) -> dict[int, str]:
  """Returns the name of the largest array of each layer, by its depth."""
  found = {}
  for name, values in state.items():
    depth = int(name.partition(':')[0])
    known = found.get(depth)
    if known is None or values['size'] > state[known]['size']:
      found[depth] = name
  return found


def main(argv):
  drivers.check_usage(argv, output=_OUTPUT.value)
  if not _OUTPUT.value.endswith('.json'):
    raise errors.UserValueError(
        f'--output must end in .json, got {_OUTPUT.value}.'
    )
  if plots.replotted(_OUTPUT.value, draw):
    return
  drivers.check_usage(argv, workdir=_WORKDIR.value)
  host.pin_malloc()
  host.enable_compilation_cache()
  exports = config_flag.exports_of(_LAYERS.value)
  run = restoring.restore_run(
      _WORKDIR.value, layers=exports.layers, tasks=exports.tasks
  )
  if run.task.name != 'language_modelling':
    raise errors.UserValueError(
        f'{_WORKDIR.value} has a run of {run.task.name}; only language models '
        'read a text.'
    )
  config = tasks.of_run(run.config, exports)
  if _TEXT.value:
    sampling.check_text(run)
    stream = stream_of_text(run.vocabulary, _TEXT.value)
    text, unit = f'{_TEXT.value!r} again and again', 'tokens'
  else:
    if _DATA_DIR.value is not None:
      config.data.data_dir = _DATA_DIR.value
    dataset = tasks.load_data_of_run(
        run, config, exports, allow_changed=_ALLOW_CHANGED.value
    )
    stream = read_stream(dataset, _SPLIT.value)
    text, unit = f'{dataset.name}, {_SPLIT.value}', dataset.unit
  if _LENGTH.value > len(stream.inputs):
    logging.info(
        'The text has %d tokens, which are read again and again.',
        len(stream.inputs),
    )
  found = []
  with tqdm.tqdm(
      total=_LENGTH.value, unit='tokens', unit_scale=True, file=sys.stderr
  ) as bar:
    for row in measure(
        run.model, stream, _LENGTH.value, rows=_ROWS.value, chunk=_CHUNK.value
    ):
      found.append(row)
      bar.update(row['end'] - bar.n)
  if any(row['loss'] is None and row['targets'] for row in found):
    logging.warning('Some losses are not finite: they are null in the file.')
  plots.save(
      dict(
          timing.environment(), layer=run.task.model.layer, text=text,
          unit=unit, tokens_of_text=len(stream.inputs), length=_LENGTH.value,
          texts_at_once=_ROWS.value, step=run.step,
          trained_length=config.data.sequence_length, rows=found,
      ),
      _OUTPUT.value, draw,
  )


if __name__ == '__main__':
  drivers.run(main)
