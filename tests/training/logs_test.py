"""Tests of `training.logs`: what a person sees of a program's log."""

import subprocess
import sys

from absl.testing import absltest
from absl.testing import parameterized

_PROGRAM = """
import logging as python_logging
from absl import app
from absl import logging
from absl.testing import absltest  # As a library that logs.
from orbax.checkpoint import checkpoint_manager
from rnnzoo.training import logs

exec(compile('''
from absl import logging
def say():
  logging.info('of a library')
  logging.warning('a warning of a library')
  logging.error('an error of a library')
''', checkpoint_manager.__file__, 'exec'))

def main(_):
  logging.info('the batch has %d rows', 3)
  logging.warning('a checkpoint is damaged')
  python_logging.getLogger('mine').info('of a user')
  python_logging.getLogger('jax').info('of JAX')
  say()
  try:
    raise ValueError('a bad value')
  except ValueError:
    logging.exception('it failed')

logs.set_up()
app.run(main)
"""


class LogsTest(parameterized.TestCase):

  def lines(self, *flags):
    done = subprocess.run(
        [sys.executable, '-c', _PROGRAM, *flags], capture_output=True,
        text=True, check=True,
    )
    self.assertEmpty(done.stdout)
    return done.stderr.splitlines()

  def test_lines_have_the_time_of_day_and_nothing_else_in_front(self):
    lines = self.lines()
    expected = [
        'the batch has 3 rows', 'Warning: a checkpoint is damaged', 'of a user',
        'Error: an error of a library', 'Error: it failed',
    ]
    self.assertEqual([line[10:] for line in lines[:5]], expected)
    for line in lines[:5]:
      self.assertRegex(line, r'^\d\d:\d\d:\d\d  \S')
    self.assertStartsWith(lines[5], 'Traceback')

  def test_verbosity_1_shows_the_long_form_and_other_libraries(self):
    lines = self.lines('--verbosity=1')
    self.assertRegex(
        lines[0], r'^I\d{4} [\d:.]+ +\d+ \S+:\d+\] the batch has 3 rows$'
    )
    text = '\n'.join(lines)
    self.assertIn('] of a library', text)
    self.assertIn('] a warning of a library', text)
    self.assertNotIn('of JAX', text)


if __name__ == '__main__':
  absltest.main()
