"""Tests of `rnnzoo.restoring`, on checkpoints that no training made."""

import dataclasses
import pathlib
import tempfile

from absl.testing import absltest
from absl.testing import parameterized
import jax
import jax.numpy as jnp
import numpy as np
import rnnzoo
from rnnzoo import errors
from rnnzoo import layers
from rnnzoo import models
from rnnzoo import restoring
from rnnzoo.tasks import base
from rnnzoo.training import checkpoint
from rnnzoo.training import state as state_lib

CONFIG = models.ModelConfig.tiny().replace(norm='batch', num_layers=1)
VOCABULARY = {'level': 'char', 'symbols': 'abcdefghijklmnop'}
TOKENS = jnp.array([[1, 5, 2, 7]])


class Mine(layers.MinGRU):
  """A layer of the user's own."""


class RestoringTest(parameterized.TestCase):

  @classmethod
  def setUpClass(cls):
    super().setUpClass()
    cls.functional = state_lib.Functional(
        lambda rngs: models.LanguageModel(CONFIG, rngs=rngs)
    )
    both = jax.jit(lambda: [cls.functional.initialize(s) for s in range(2)])()
    cls.states = [dict(zip(('params', 'batch_stats'), v)) for v in both]
    for i, state in enumerate(cls.states):  # Untrained ones are all the same.
      state['batch_stats'] = jax.tree.map(
          lambda u: u + i + 1, state['batch_stats']
      )
      state['step'] = jnp.int32(i)

  def setUp(self):
    super().setUp()
    self.workdir = pathlib.Path(
        self.enterContext(tempfile.TemporaryDirectory())
    )

  def write(self, *states, losses=(1.0,), ema_decay=0.0, own=None, **changes):
    """Writes checkpoints of steps 1, 2, ..., as a run would."""
    meta = dict(
        config=dict(ema_decay=ema_decay, seed=5),
        model=dataclasses.asdict(CONFIG.replace(**changes)),
        vocabulary=VOCABULARY,
    )
    if own is not None:
      meta['layers'] = own
    with checkpoint.Checkpointer(self.workdir / 'checkpoints') as saver:
      for i, (state, loss) in enumerate(zip(states, losses)):
        saver.save(i + 1, state, meta, best_metric=loss)

  def check(self, model, state, name='params'):
    expected = self.functional.merge(state[name], state['batch_stats'])
    np.testing.assert_array_equal(model(TOKENS)[1], expected(TOKENS)[1])

  def test_three_lines(self):
    self.write(self.states[0])
    before = sorted(self.workdir.rglob('*'))
    model = rnnzoo.restore(self.workdir)
    carry, logits = model(TOKENS)
    carry, logits = model.step(carry, TOKENS[:, 0])
    self.assertEqual(logits.shape, (1, 16))
    self.assertIsInstance(model, models.LanguageModel)
    self.check(model, self.states[0])
    self.assertEqual(sorted(self.workdir.rglob('*')), before)

  def test_best_latest_and_any_other(self):
    self.write(*self.states, losses=(1.0, 2.0))
    for options, step in (
        (dict(), 1), (dict(best=False), 2), (dict(step=2), 2),
    ):
      run = restoring.restore_run(self.workdir, **options)
      self.assertEqual(run.step, step)
      self.check(run.model, self.states[step - 1])
    self.assertEqual(run.config['seed'], 5)
    self.assertEqual(run.vocabulary.to_json(), VOCABULARY)

  def test_moving_average(self):
    state = self.states[0] | dict(ema=self.states[1]['params'])
    self.write(state, ema_decay=0.9)
    self.check(rnnzoo.restore(self.workdir), state, 'ema')

  def test_own_layer(self):
    own = base.describe_layers(('mine', 'lru'), {'mine': Mine, 'no': Mine})
    self.assertEqual(list(own), ['mine'])
    self.assertLen(own['mine'], 64)
    self.write(self.states[0], layer='mine', own=own)
    with self.assertNoLogs('absl', 'WARNING'):
      model = rnnzoo.restore(self.workdir, layers={'mine': Mine})
    self.check(model, self.states[0])  # Mine is a MinGRU.
    with self.assertLogs('absl', 'WARNING') as logs:
      rnnzoo.restore(self.workdir, layers={'mine': layers.MinGRU})
    self.assertIn("source of layer 'mine' is not what it was", logs.output[0])
    with self.assertRaisesRegex(errors.UserValueError, "layers={'mine'"):
      rnnzoo.restore(self.workdir)

  def test_own_layer_without_source(self):
    layer = lambda *args, **kwargs: layers.MinGRU(*args, **kwargs)
    made = eval('lambda f: lambda *args, **kwargs: f(*args, **kwargs)')(layer)
    self.assertEqual(
        base.describe_layers(['mine'], {'mine': made}), {'mine': None}
    )

  def test_layers_the_run_did_not_have_are_not_used(self):
    self.write(self.states[0])
    model = rnnzoo.restore(self.workdir, layers={'min_gru': layers.LRU})
    self.check(model, self.states[0])

  def test_no_run(self):
    for name in ('nowhere', '.'):
      with self.assertRaisesRegex(
          errors.UserFileNotFoundError, 'There is no run in'
      ):
        rnnzoo.restore(self.workdir / name)

  def test_a_checkpoint_of_something_else(self):
    for i, (meta, said) in enumerate((
        ({}, "lacks 'model'"),
        ({'model': {}}, "lacks 'config'"),
        ({'model': 3, 'config': {}, 'vocabulary': None}, "'model' .*got 3"),
    )):
      with checkpoint.Checkpointer(self.workdir / 'checkpoints') as saver:
        saver.save(i, {'w': jnp.ones(1)}, meta)
      with self.assertRaisesRegex(
          errors.UserValueError,
          f'^Checkpoint {i} in .* was not written by experiments.train.*{said}',
      ):
        rnnzoo.restore(self.workdir)

  def test_no_checkpoint(self):
    (self.workdir / 'checkpoints').mkdir()
    with self.assertRaisesRegex(
        errors.UserFileNotFoundError, 'There is no checkpoint in'
    ):
      rnnzoo.restore(self.workdir)
    self.write(self.states[0])
    with self.assertRaisesRegex(
        errors.UserFileNotFoundError, 'There is no checkpoint 7 in'
    ):
      rnnzoo.restore(self.workdir, step=7)


if __name__ == '__main__':
  absltest.main()
