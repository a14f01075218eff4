"""`from_arrays`: your own arrays as a data set."""

from collections.abc import Mapping, Sequence
import functools
from typing import Any

from rnnzoo import errors
from rnnzoo import fields
from rnnzoo.data import conversion
from rnnzoo.data import examples
from rnnzoo.data import pipeline

TASKS = ('classification', 'regression')
SPLITS = ('train', 'validation', 'test')


def from_arrays(
    x: Any,
    y: Any,
    *,
    lengths: Any = None,
    dt: Any = None,
    batch_size: int,
    seed: int = 0,
    splits: tuple[float, float, float] = (0.8, 0.1, 0.1),
    buckets: int = 1,
    task: str | None = None,
    forecast: bool | None = None,
    process_index: int | tuple[int, ...] = 0,
    process_count: int = 1,
    name: str = 'arrays',
    class_names: Sequence[str] = (),
) -> pipeline.Dataset:
  """Returns a data set of `N` sequences and their targets.

  >>> import numpy as np
  >>> x = np.random.default_rng(0).normal(size=(100, 20, 3))  # [N, T, D]
  >>> y = (x.sum((1, 2)) > 0).astype(int)  # [N]
  >>> dataset = from_arrays(x, y, batch_size=8)
  >>> dataset.task, dataset.num_classes, dataset.in_features
  ('classification', 2, 3)
  >>> dataset.train_batch(1)['inputs'].shape
  (8, 20, 3)

  The targets decide what is learned:

  ========================  ================================================
  `y`                       task
  ========================  ================================================
  `[N]` integers, strings   classification, one label for each sequence
  `[N, T]` integers         classification, one label for each step
  `[N]`, `[N, K]` floats    regression, `K` numbers for each sequence
  `[N, T, K]` floats        regression, `K` numbers for each step
  ========================  ================================================

  Args:
    x: Vectors `[N, T, D]` of any real dtype (integers of one or two bytes
      become floats on the device), series `[N, T]` of floats (`D` is
      1), tokens `[N, T]` of integers, or images `[N, T, H, W, C]`: uint8, whose
      pixels a model divides by 255, or numbers that it takes as they are. Where
      lengths are unequal, a list of `N` arrays `[T_n, D]`, `[T_n]` or
      `[T_n, H, W, C]`; the batches then have an `input_mask`. Ready splits are
      a dictionary `{'train': ..., 'validation': ..., 'test': ...}`; a
      validation or test split that is not there is taken from the train split.
    y: The targets; targets for each step may be a list of `N` arrays. A
      dictionary if `x` is one.
    lengths: The steps of each example that exist, `[N]` integers, as another
      form of unequal lengths; the rest of the row is ignored. A dictionary if
      `x` is one.
    dt: The length of each step, for irregular sampling: `[N, T]` or a list of
      `N` arrays `[T_n]`, 0 or more, as multiples of the usual step (a mean of
      about 1 is best). All layers of the model must take it, as LRU, S4D and S5
      do. A dictionary if `x` is one.
    batch_size: Rows of the global batch, over all processes.
    seed: Fixes the order of the training examples. It does not change which
      examples are in which split.
    splits: The shares of train, validation and test. With one label for each
      sequence, every split has the same share of each class.
    buckets: Where lengths are unequal, the most lengths that batches may have:
      rows of like lengths come together, and a batch is as long as they need.
    task: `'classification'` or `'regression'`, where the dtype of `y` would
      decide otherwise.
    forecast: Whether the targets of steps are inputs of later steps; a model of
      them must be causal. `None` means that they are if a column of `y` is a
      column of `x`, some steps later.
    process_index: Which rows of each batch to give, see `pipeline.Shard`.
    process_count: Number of processes that share a batch.
    name: A name for messages.
    class_names: The names of the classes, for reports. Strings in `y` are
      their own names.

  Raises:
    UserValueError: If an array has a wrong shape, dtype or value.
  """
  if task is not None and task not in TASKS:
    raise errors.UserValueError(
        f'task must be one of {", ".join(TASKS)}, or None, got {task!r}.'
        + errors.suggest(str(task), TASKS)
    )
  fields.check('buckets', buckets, examples.BUCKETS)
  shard = pipeline.Shard(batch_size, process_index, process_count)
  by_split = _by_split(x, y, lengths, dt)
  inputs, steps, gaps = conversion.inputs(
      by_split['x'], by_split['lengths'],
      None if dt is None else by_split['dt'],
  )
  targets, task, class_names = conversion.targets(
      by_split['y'], inputs, steps, task, class_names
  )
  parts = fill_up(
      {
          split: examples.Examples(
              inputs[split], targets[split], steps[split], gaps[split]
          )
          for split in inputs
      },
      splits,
  )
  classes = task == 'classification'
  tokens, images = inputs['train'].ndim == 2, inputs['train'].ndim == 5
  per_step = targets['train'].ndim == (2 if classes else 3)
  if per_step and forecast is None:
    forecast = conversion.is_forecast(
        inputs['train'], targets['train'], steps['train']
    )
  largest = lambda arrays: max(int(array.max()) for array in arrays.values())
  measure = (
      examples.label_baselines if classes else examples.number_baselines
  )
  return examples.dataset(
      parts, shard, pipeline.check_seed(seed),
      name=name,
      task=task,
      unit='tokens' if tokens else 'time steps',
      sequence_length=inputs['train'].shape[1],
      buckets=buckets,
      per_step=per_step,
      forecast=bool(forecast),
      vocab_size=1 + largest(inputs) if tokens else 0,
      in_features=0 if tokens or images else inputs['train'].shape[2],
      image_shape=inputs['train'].shape[2:] if images else (),
      irregular=dt is not None,
      num_classes=max(len(class_names), 1 + largest(targets)) if classes else 0,
      class_names=class_names,
      out_features=0 if classes else targets['train'].shape[-1],
      baselines=functools.partial(measure, parts),
  )


def fill_up(ready: dict, shares: Sequence[float]) -> dict:
  """Takes the splits that are missing from the train split.

  Args:
    ready: `Examples` by split, `train` among them.
    shares: The shares of train, validation and test.

  Returns:
    `Examples` by split: train, validation, test and the others of `ready`.

  Raises:
    UserValueError: If the shares are wrong, or there are too few examples.
  """
  given = shares
  try:
    shares = tuple(map(float, shares))
  except (TypeError, ValueError):
    shares = ()
  if (
      len(shares) != len(SPLITS) or not all(share > 0 for share in shares)
      or abs(sum(shares) - 1) > 1e-6
  ):
    raise errors.UserValueError(
        'splits must be three positive shares that add up to 1 (train, '
        f'validation, test), got {fields.shown(given)}.'
    )
  missing = [split for split in SPLITS[1:] if split not in ready]
  if missing:
    wanted = {
        split: share for split, share in zip(SPLITS, shares, strict=True)
        if split in ('train', *missing)
    }
    whole = sum(wanted.values())
    ready = ready | examples.split(
        ready['train'],
        {split: share / whole for split, share in wanted.items()},
    )
  empty = [split for split in ready if not len(ready[split])]
  if empty:
    raise errors.UserValueError(
        f'There are too few examples: none is left for {empty[0]}; the splits '
        'have '
        + ', '.join(f'{split} {len(u)}' for split, u in ready.items()) + '.'
    )
  rest = [split for split in ready if split not in SPLITS]
  return {split: ready[split] for split in (*SPLITS, *rest)}


def _by_split(x, y, lengths, dt):
  """Returns the arrays by name, as dictionaries of the same splits."""
  if not isinstance(x, Mapping):
    x, y, lengths, dt = ({'train': u} for u in (x, y, lengths, dt))
  lengths, dt = (dict.fromkeys(x) if u is None else u for u in (lengths, dt))
  if 'train' not in x:
    raise errors.UserValueError(
        f'x must have a split "train", got {", ".join(map(str, x))}.'
    )
  for name in x:
    if name in ('val', 'valid', 'dev') and 'validation' not in x:
      raise errors.UserValueError(
          f'x has a split {name!r}; the split that chooses the checkpoint is '
          'called "validation".'
      )
  for name, values in (('y', y), ('lengths', lengths), ('dt', dt)):
    if not isinstance(values, Mapping) or set(values) != set(x):
      raise errors.UserValueError(
          f'{name} must be a dictionary with the splits of x: '
          f'{", ".join(map(str, x))}.'
      )
  return dict(x=x, y=y, lengths=lengths, dt=dt)
