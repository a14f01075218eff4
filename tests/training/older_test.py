"""Runs of older code go on: with a moving average, stateful, in bfloat16.

`older/` holds workdirs that the code before tasks wrote and stopped at step 4,
and the losses and digests that the same code came to at step 8. They are not
written again: a newer format has to read them as they are.
"""

import json
import pathlib
import shutil

from absl.testing import absltest
from absl.testing import parameterized
import numpy as np
from tests.experiments import commands

OLDER = pathlib.Path(__file__).parent / 'older'
STEPS, STOP = 8, 4

_TEXT = (
    '--config.data.path=tests/training/versions/text.txt',
    '--config.data.sequence_length=16',
)
_SMALL = (
    '--config.model.layer=lru,min_gru',
    '--config.model.num_layers=2',
    '--config.model.features=8',
    f'--config.eval_every={STOP}',
    f'--config.save_every={STOP}',
    '--config.ema_decay=0.9',
    f'--config.total_steps={STEPS}',
)
WORDS = dict(
    stateful=_TEXT + (
        '--config.stateful=True', '--config.data.contiguous=True',
    ),
    synthetic=(
        '--config.data.name=selective_copying',
        '--config.data.sequence_length=32',
        '--config.data.num_tokens=4',
        '--config.data.vocab_size=8',
        '--config.data.eval_examples=16',
    ),
    bfloat16=_TEXT + (
        '--config.model.param_dtype=bfloat16', '--config.accumulate_steps=2',
    ),
)
# Of the losses. bfloat16 parameters have had float32 accumulators since.
TOLERANCE = dict(stateful=1e-5, synthetic=1e-5, bfloat16=1e-2)


class OlderTest(parameterized.TestCase):

  @parameterized.parameters(*WORDS)
  def test_goes_on(self, name):
    workdir = commands.temporary_directory(self) / 'run'
    shutil.copytree(OLDER / name, workdir)
    expected = json.loads((workdir / 'expected.json').read_text())
    command = commands.train(workdir, *WORDS[name], *_SMALL).wait()
    self.assertEqual(command.code, 0, command)
    self.assertIn(f'Going on after step {STOP}.', command.stderr)
    self.assertNotIn('damaged', command.stderr)
    for metric in ('train_loss', 'eval_loss'):
      found = commands.metrics(workdir, metric)
      self.assertEqual(sorted(found), sorted(map(int, expected[metric])))
      for step, loss in found.items():
        np.testing.assert_allclose(
            loss, expected[metric][str(step)], rtol=TOLERANCE[name]
        )


if __name__ == '__main__':
  absltest.main()
