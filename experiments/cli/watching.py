"""Replaces methods of data sets and tasks, to observe a run."""

import copy


def replaced(frozen, **methods):
  """Returns a copy of a data set or a task with some methods replaced.

  Args:
    frozen: A `rnnzoo.data.Dataset` or a `rnnzoo.tasks.Task`.
    **methods: Functions by name, such as `train_iterator`, which maps a step to
      an iterator that starts with the step's batch.
  """
  new = copy.copy(frozen)
  for name, method in methods.items():
    object.__setattr__(new, name, method)
  return new
