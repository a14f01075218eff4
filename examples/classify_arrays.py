"""Trains a classifier on NumPy arrays, and asks the restored model.

  python examples/classify_arrays.py --workdir=/tmp/classifier

The sequences have unequal lengths. The label says whether the sum of the first
feature is positive.
"""

from absl import app
from absl import flags
import numpy as np
import rnnzoo
from rnnzoo import data
from rnnzoo import models
from rnnzoo import tasks
from rnnzoo import training

_WORKDIR = flags.DEFINE_string('workdir', None, 'Where to write to.')
_STEPS = flags.DEFINE_integer('steps', 300, 'Training steps.', lower_bound=1)


def make_arrays(count=2000, longest=40):
  """Returns a list of arrays `[T_i, 2]` and their labels `[N]`."""
  rng = np.random.default_rng(0)
  x = [rng.normal(size=(rng.integers(10, longest), 2)) for _ in range(count)]
  y = np.array([int(sequence[:, 0].sum() > 0) for sequence in x])
  return [sequence.astype(np.float32) for sequence in x], y


def main(argv):
  del argv
  x, y = make_arrays()
  dataset = data.from_arrays(
      x, y, batch_size=50, class_names=('negative', 'positive')
  )
  task = tasks.Classification(models.ModelConfig(
      layer='min_gru', num_layers=1, features=32, pooling='last'
  ))
  summary = training.train(
      task, dataset, _WORKDIR.value,
      total_steps=_STEPS.value, eval_every=100, save_every=100,
      optimizer=dict(learning_rate=1e-2, warmup_steps=10),
  )
  print(task.sentence(summary, dataset))

  model = rnnzoo.restore(_WORKDIR.value)
  _, logits = model(x[0][None])  # [1, T, 2] -> [1, 2]
  name = dataset.class_names[int(logits[0].argmax())]
  print(f'The first sequence is {name}; its sum is {x[0][:, 0].sum():.2f}.')


if __name__ == '__main__':
  flags.mark_flag_as_required('workdir')
  app.run(main)
