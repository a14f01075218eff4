"""`experiments.train` with batches that the last process alone finds bad.

  python -m tests.experiments.bad_numbers --bad=6 ...

A program for bad_numbers_test.py.
"""

from absl import flags
from experiments import train
from experiments.cli import drivers
from experiments.cli import tasks
from tests.training import poison

_BAD = flags.DEFINE_list('bad', [], 'Numbers of batches with a row of NaN.')


def main(argv):
  make_task = tasks.make_task

  def make_bad_task(*args, process_index, process_count):
    task, dataset = make_task(
        *args, process_index=process_index, process_count=process_count
    )
    last = process_index == process_count - 1
    bad = {int(number): 'row' for number in _BAD.value if last}
    return poison.poisoned(task, dataset, bad)[:2]

  tasks.make_task = make_bad_task
  train.main(argv)


if __name__ == '__main__':
  drivers.run(main)
