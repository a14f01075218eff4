"""Training: `train` for your own data; the modules are its parts.

Loading this package is quick; `train` loads Orbax when it is called.
"""

from typing import Any


def train(
    task, dataset, workdir, *, initial=None, **settings
) -> dict[str, Any]:
  """Trains a model on a data set and keeps everything in a directory.

  The same call again goes on where it stopped. Ctrl-C saves first.

  Example::

    import numpy as np
    import rnnzoo
    from rnnzoo import data, models, tasks, training

    x = np.random.default_rng(0).normal(size=(500, 30, 2))  # [N, T, D]
    y = (x[:, :, 0].sum(1) > 0).astype(int)  # [N]
    dataset = data.from_arrays(x, y, batch_size=50)
    task = tasks.Classification(
        models.ModelConfig(layer='min_gru', num_layers=1, features=32)
    )
    summary = training.train(
        task, dataset, workdir='runs/sums',
        total_steps=200, optimizer=dict(learning_rate=3e-3),
    )
    print(task.sentence(summary, dataset))
    model = rnnzoo.restore('runs/sums')
    carry, logits = model(x[:5])

  Args:
    task: A kind of task with the config of its model, such as
      `rnnzoo.tasks.Classification(models.ModelConfig(layer='lru'))`. The data
      set decides the model's input and output sizes.
    dataset: Such as `rnnzoo.data.from_arrays(x, y, batch_size=50)` or
      `rnnzoo.data.load(dict(name='digits'), batch_size=50, seed=0)`.
    workdir: The directory of the run: `checkpoints/`, `metrics.jsonl`,
      `summary.json` and `curve.png`.
    initial: A function from the mesh of the run to the model whose parameters
      it starts from, such as `lambda mesh: convert.load_pretrained('folder',
      mesh=mesh)`. It is called once: a run that goes on has its own.
    **settings: Fields of `rnnzoo.training.config.defaults`, such as
      `total_steps`; `mesh` and `optimizer` are dictionaries, which may be given
      in part.

  Returns:
    The summary: the best validation result, the test results, the seconds.

  Raises:
    UserError: If the user has to change something. The message says what.
    Interrupted: After a signal such as Ctrl-C, once everything is saved.
  """
  from rnnzoo.training import start

  return start.from_settings(task, dataset, workdir, initial, settings)
