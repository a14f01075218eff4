"""Tests of the kinds of task, and of training and restoring each of them."""

import dataclasses
import json
from unittest import mock

from absl.testing import absltest
from absl.testing import parameterized
from experiments.cli import tasks as cli_tasks
import jax
import jax.numpy as jnp
import numpy as np
import rnnzoo
from rnnzoo import data
from rnnzoo import errors
from rnnzoo import models
from rnnzoo import restoring
from rnnzoo import tasks
from rnnzoo import training
from rnnzoo.data import pipeline
from rnnzoo.training import evaluation
from rnnzoo.training import losses
from rnnzoo.training import sharding
from rnnzoo.training import state as state_lib
from rnnzoo.training import step
from tests.experiments import commands

N, T, D = 64, 9, 2


def arrays(kind, *, per_step=False, lengths=False):
  """Returns `x` and `y` that a small model learns in a few steps."""
  rng = np.random.default_rng(0)
  size = rng.integers(3, T + 1, N) if lengths else np.full(N, T)
  x = rng.normal(size=(N, T, D)).astype(np.float32)
  exists = np.arange(T) < size[:, None]
  sums = np.cumsum(np.where(exists, x[..., 0], 0), axis=1)
  y = sums if per_step else sums[:, -1]
  if kind == 'classification':
    y = (y > 0).astype(np.int32)
  else:
    y = y[..., None].astype(np.float32)
  x = np.where(exists[..., None], x, np.nan) if lengths else x
  return dict(x=x, y=y, lengths=size if lengths else None)


def small(kind, **fields):
  config = models.ModelConfig(**dict(
      dict(layer='min_gru', num_layers=1, features=8, mlp='none'), **fields
  ))
  return tasks.TASKS[kind](config)


class TrainingTest(parameterized.TestCase):

  @parameterized.product(
      kind=('classification', 'regression'), per_step=(False, True),
      lengths=(False, True),
  )
  def test_arrays_are_trained_and_restored(self, kind, per_step, lengths):
    given = arrays(kind, per_step=per_step, lengths=lengths)
    model = self.train_and_restore(
        kind, given, is_pooled=not per_step, lengths=lengths
    )
    # The restored model reads a sequence of any length.
    carry, y = model(jnp.ones((3, 4, D)))
    self.assertEqual(y.shape[0], 3)
    del carry

  def test_images_are_trained_and_restored(self):
    rng = np.random.default_rng(0)
    x = rng.integers(256, size=(N, T, 2, 3, 1), dtype=np.uint8)
    y = (x[:, :, 0].mean((1, 2, 3)) > 127).astype(int)
    model = self.train_and_restore('classification', dict(x=x, y=y))
    self.assertEqual(model.config.image_shape, (2, 3, 1))
    _, y = model(x[:3])
    np.testing.assert_allclose(model(x[:3] / np.float32(255))[1], y, atol=1e-5)

  def test_stored_integers_are_trained_and_restored(self):
    rng = np.random.default_rng(0)
    x = rng.integers(-3000, 3000, size=(N, T, D), dtype=np.int16)
    y = (x[:, :, 0].mean(1) > 0).astype(int)
    given = data.from_arrays(x, y, batch_size=16)
    stored = dataclasses.replace(given, input_scale=(3000.0,))
    floats = data.from_arrays(x / np.float32(3000), y, batch_size=16)
    runs = []
    for name, dataset in (('stored', stored), ('floats', floats)):
      workdir = commands.temporary_directory(type(self)) / name
      training.train(
          small('classification'), dataset, workdir, total_steps=5,
          eval_every=5, save_every=5, log_every=1, tensorboard=False,
      )
      losses_seen = commands.metrics(workdir, 'train_loss')
      runs.append((restoring.restore_run(workdir), losses_seen))
    (run, losses_seen), (older, expected) = runs
    np.testing.assert_allclose(
        list(losses_seen.values()), list(expected.values()), rtol=1e-5
    )
    np.testing.assert_allclose(
        run.model(x[:9])[1], run.model(x[:9] / np.float32(3000))[1], atol=1e-5
    )
    # A run of before, whose data set gave floats, reads what is stored now.
    self.assertEqual(older.task.model.input_scale, ())
    mesh = sharding.make_mesh(dict(data=-1, fsdp=1, model=1, sequence=1))
    for evaluate in (evaluation.evaluate_model, evaluation.predict):
      found, wanted = (
          evaluate(older.task, dataset, older.model, 'test', mesh)
          for dataset in (stored, floats)
      )
      for name, values in wanted.items():
        np.testing.assert_allclose(found[name], values, atol=1e-5)

  def test_steps_of_uneven_length_are_trained_and_restored(self):
    given = arrays('regression', per_step=True, lengths=True)
    x, dt = given['x'], np.random.default_rng(1).exponential(size=(N, T))
    y = np.zeros((N, T, 1))
    for t in range(T):  # A leaky integrator in continuous time.
      y[:, t] = y[:, t - 1] * np.exp(-dt[:, t, None]) + x[:, t, :1]
    model = self.train_and_restore(
        'regression', dict(given, y=y, dt=dt.astype(np.float32)),
        is_pooled=False, lengths=True, layer='lru',
    )
    x, dt = jnp.ones((3, 4, D)), jnp.full((3, 4), 3.0)
    differ = model(x, dt=dt)[1] - model(x)[1]
    self.assertGreater(float(jnp.abs(differ[:, 1:]).min()), 1e-4)

  def train_and_restore(
      self, kind, given, *, is_pooled=True, lengths=False, **fields
  ):
    workdir = commands.temporary_directory(type(self)) / self.id()
    dataset = data.from_arrays(**given, batch_size=16)
    task = small(kind, **fields)
    settings = dict(
        total_steps=40, eval_every=20, save_every=20, tensorboard=False,
        optimizer=dict(learning_rate=2e-2, warmup_steps=2),
    )
    summary = training.train(task, dataset, workdir, **settings)
    losses_seen = list(commands.metrics(workdir, 'train_loss').values())
    self.assertLess(np.mean(losses_seen[-5:]), 0.95 * losses_seen[0])
    self.assertEqual(summary['task'], kind)
    name = 'accuracy' if kind == 'classification' else 'mse'
    self.assertIn(f'test_{name}', summary)
    text = task.sentence(summary, dataset)
    self.assertIn('validation', text)
    # The same call again trains nothing more.
    again = training.train(task, dataset, workdir, **settings)
    self.assertEqual(again, json.loads(json.dumps(summary)))

    run = restoring.restore_run(workdir)
    self.assertIs(type(run.task), type(task))
    mesh = sharding.make_mesh(dict(data=-1, fsdp=1, model=1, sequence=1))
    means = evaluation.evaluate_model(
        run.task, dataset, run.model, 'test', mesh
    )
    for metric, value in means.items():
      self.assertAlmostEqual(value, summary[f'test_{metric}'], places=5)
    found = evaluation.predict(run.task, dataset, run.model, 'test', mesh)
    self.assertLen(found['prediction'], len(found['target']))
    target, prediction = (
        np.concatenate([np.ravel(u) for u in found[key]]).astype(np.float64)
        for key in ('target', 'prediction')
    )
    by_hand = dict(
        accuracy=(target == prediction).mean(),
        mse=np.square(target - prediction).mean(),
        mae=np.abs(target - prediction).mean(),
    )
    for metric in means.keys() & by_hand.keys():
      np.testing.assert_allclose(means[metric], by_hand[metric], rtol=1e-5)
    self.assertEqual(len(set(found['length'])) > 1, lengths)
    if not is_pooled:
      self.assertEqual(
          [len(u) for u in found['target']], found['length'].tolist()
      )
    if kind == 'classification':
      lines = '\n'.join(run.task.details(found, dataset))
      self.assertIn('confusion matrix', lines)
      self.assertEqual('accuracy by length' in lines, lengths)
    return rnnzoo.restore(workdir)

  def test_longer_sequences_than_in_training(self):
    workdir = commands.temporary_directory(type(self)) / 'longer'
    load = lambda *lengths: data.load(
        dict(name='group_word', group='Z2', sequence_length=8,
             eval_examples=16, test_lengths=lengths, test_examples=10),
        batch_size=8, seed=0,
    )
    with mock.patch.object(pipeline, 'LONG_BATCH_TOKENS', 64):
      dataset = load(12, 48)  # In batches of four rows and of one row.
    task = small('language_modelling')
    settings = dict(
        total_steps=2, eval_every=2, save_every=2, tensorboard=False
    )
    with self.assertRaisesRegex(errors.UserValueError, '12 tokens .*mesh'):
      training.train(
          task, dataset, workdir, **settings, mesh=dict(data=1, sequence=8)
      )
    # 48 steps in three segments.
    with mock.patch.object(step, 'SEGMENT_STEPS', 20):
      summary = training.train(task, dataset, workdir, **settings)
    run = restoring.restore_run(workdir)
    # On one device, in one batch of whole rows.
    mesh = sharding.make_mesh(
        dict(data=1, fsdp=1, model=1, sequence=1), jax.devices()[:1]
    )
    for split in ('test', 'test_12', 'test_48'):
      means = evaluation.evaluate_model(
          run.task, load(12, 48), run.model, split, mesh
      )
      for metric, value in means.items():
        self.assertAlmostEqual(value, summary[f'{split}_{metric}'], places=5)
    self.assertIn('test_48_bits_per_token', summary)

  def test_stop_at(self):
    workdir = commands.temporary_directory(type(self)) / 'stop'
    dataset = data.from_arrays(**arrays('classification'), batch_size=16)
    settings = dict(
        total_steps=400, eval_every=10, save_every=10, tensorboard=False,
        stop_at=dict(accuracy=0.6),
        optimizer=dict(learning_rate=2e-2, warmup_steps=2),
    )
    summary = training.train(
        small('classification'), dataset, workdir, **settings
    )
    evals = commands.metrics(workdir, 'eval_accuracy')
    self.assertLess(max(evals), 400)
    self.assertGreaterEqual(evals[max(evals)], 0.6)
    self.assertLess(max(list(evals.values())[:-1], default=0), 0.6)
    again = training.train(
        small('classification'), dataset, workdir, **settings
    )
    self.assertEqual(again['best_step'], summary['best_step'])
    self.assertEqual(commands.metrics(workdir, 'eval_accuracy'), evals)

  def test_bad_arguments(self):
    dataset = data.from_arrays(**arrays('classification'), batch_size=16)
    for task, settings, message in (
        (small('regression'), {}, '`task` is regression, but arrays is'),
        (small('classification'), dict(batch_size=3), 'with batch_size=16'),
        (small('classification'), dict(total_step=3), 'Did you mean'),
        (small('classification'), dict(optimizer=dict(rate=3)), 'rate'),
        (small('classification'), dict(stateful=True), 'contiguous'),
        (small('classification'), dict(eval_splits=('x',)), "no split 'x'"),
        (small('classification', pooling='none'), {}, 'pooling must be mean'),
        (small('classification'), dict(stop_at=dict(acuracy=1)),
         "no metric 'acuracy', only accuracy, loss. Did you mean"),
    ):
      with self.assertRaisesRegex(errors.UserError, message):
        training.train(
            task, dataset,
            commands.temporary_directory(type(self)) / 'bad', **settings,
        )
    task, x = small('classification'), arrays('classification')['x']
    for given, message in (
        ((tasks.Classification, dataset, 'runs/bad'), '`task` must be'),
        ((task, x, 'runs/bad'), '`dataset` must be a data set, such as'),
        ((task, dataset, ''), "`workdir` must be the name of a .*, got ''"),
        ((task, dataset, None), '`workdir` must be the name of a .*, got None'),
    ):
      with self.assertRaisesRegex(errors.UserError, message):
        training.train(*given)

  def test_a_sequence_that_attention_has_no_room_for(self):
    task = small(
        'language_modelling', layer='attention', vocab_size=16,
        layer_options=dict(num_heads=2, window=8, on_full='error'),
    )
    functional = state_lib.Functional(task.build)
    step_shapes = lambda length, **more: jax.eval_shape(
        lambda params, batch: task.forward(
            functional.merge(params, {}), batch, None, train=True, key=None
        ),
        functional.params,
        dict.fromkeys(('inputs', 'targets'), jnp.zeros((2, length), int))
        | more,
    )
    step_shapes(8)
    with self.assertRaisesRegex(
        errors.UserValueError, 'sequence_length must be at most 8, .* got 9'
    ):
      step_shapes(9)
    step_shapes(9, reset=jnp.ones((2, 9), bool))

  def test_a_resumed_run_has_the_same_data_and_kind(self):
    workdir = commands.temporary_directory(type(self)) / 'resumed'
    load = lambda longest: data.load(
        dict(name='adding', min_length=3, max_length=longest, eval_examples=8),
        batch_size=16, seed=0,
    )
    settings = dict(total_steps=2, eval_every=2, tensorboard=False)
    training.train(small('regression'), load(9), workdir, **settings)
    # The command `evaluate` can load the data, because its fields are recorded.
    config = cli_tasks.of_run(restoring.restore_run(workdir).config)
    self.assertEqual((config.data.min_length, config.data.max_length), (3, 9))
    with self.assertRaisesRegex(errors.UserError, 'max_length: 9 there, 8 now'):
      training.train(small('regression'), load(8), workdir, **settings)

    class Mine(tasks.Regression):
      name = 'mine'

    with self.assertRaisesRegex(errors.UserError, 'is mine, but .* regression'):
      training.train(
          Mine(small('regression').model),
          dataclasses.replace(load(9), task='mine'), workdir, **settings,
      )


class BindingTest(parameterized.TestCase):

  def bind(self, kind, x, y, forecast=None, **fields):
    dataset = data.from_arrays(x, y, batch_size=16, forecast=forecast)
    self.assertEqual(dataset.task, kind)
    return small(kind, **fields).bind(dataset)

  @parameterized.named_parameters(
      ('both_directions', dict(bidirectional=True),
       'model.bidirectional must be False, got True: the targets of arrays'),
      ('layer_of_both_directions',
       dict(layer='s5', layer_options=dict(bidirectional=True)),
       "causal, got s5 with model.layer_options={'bidirectional': True}"),
  )
  def test_a_model_that_sees_the_future_is_refused(self, fields, message):
    series = arrays('regression')['x']
    tokens = np.random.default_rng(0).integers(5, size=(N, T))
    for kind, x, y, forecast in (
        ('regression', series[:, :-1], series[:, 1:], None),
        ('regression', series[:, :-2], series[:, 2:, 1:], None),
        ('regression', series[:, :-1], 7 * series[:, 1:], True),
        ('classification', tokens[:, :-1], tokens[:, 1:], None),
    ):
      with self.assertRaisesRegex(errors.UserValueError, message) as caught:
        self.bind(kind, x, y, forecast, **fields)
      self.assertNotIn('\n', str(caught.exception))
      self.assertIn('forecast=False', str(caught.exception))
      # A causal model, and targets that are labels.
      self.bind(kind, x, y, forecast)
      self.bind(kind, x, y, False, **fields)

  @parameterized.named_parameters(
      ('layer', dict(), 'model.layer min_gru does not take. Layers that'),
      ('pattern', dict(layer='lru,gru'), 'lru,gru does not take. Layers'),
      (
          'both_directions', dict(layer='lru', bidirectional=True),
          'lru does not take with model.bidirectional=True. .* lru, s4d, s5',
      ),
  )
  def test_a_model_without_lengths_of_steps_is_refused(self, fields, message):
    given = arrays('classification')
    dataset = data.from_arrays(
        **given, dt=np.ones((N, T)), batch_size=16
    )
    with self.assertRaisesRegex(errors.UserValueError, message) as caught:
      small('classification', num_layers=2, **fields).bind(dataset)
    self.assertNotIn('\n', str(caught.exception))
    both = dict(layer='s5', layer_options=dict(bidirectional=True))
    small('classification', **both).bind(dataset)

  def test_nothing_is_written_for_a_model_that_is_refused(self):
    workdir = commands.temporary_directory(type(self)) / 'refused'
    x = arrays('regression')['x']
    dataset = data.from_arrays(x[:, :-1], x[:, 1:], batch_size=16)
    with self.assertRaisesRegex(errors.UserValueError, 'bidirectional'):
      training.train(small('regression', bidirectional=True), dataset, workdir)
    self.assertFalse(workdir.exists())

  @parameterized.product(
      kind=('classification', 'regression'), per_step=(False, True)
  )
  def test_labels_may_depend_on_later_steps(self, kind, per_step):
    given = arrays(kind, per_step=per_step)
    self.bind(kind, given['x'], given['y'], bidirectional=True)

  def test_forecasts_of_what_follows_a_row_may_use_the_whole_row(self):
    x = arrays('regression')['x']
    for forecast in (None, True):
      self.bind(
          'regression', x[:, :-1], x[:, -1], forecast, bidirectional=True
      )

  @parameterized.parameters(
      (dict(bidirectional=True), 'is for classifiers'),
      (dict(layer='s5', layer_options=dict(bidirectional=True)), 'causal'),
  )
  def test_a_language_model_sees_no_next_token(self, fields, message):
    dataset = data.load(dict(name='python_docs'), batch_size=4, seed=0)
    small('language_modelling').bind(dataset)
    with self.assertRaisesRegex(errors.UserValueError, message):
      small('language_modelling', **fields).bind(dataset)


class KindsTest(parameterized.TestCase):

  def test_no_such_kind(self):
    with self.assertRaisesRegex(errors.UserError, 'Did you mean "regression"'):
      tasks.find('regresion')

  def test_squared_error_of_padding_has_no_gradient(self):
    outputs = jnp.array([[1.0, 2], [jnp.nan, 3]])
    targets = jnp.array([[0.0, 0], [1, jnp.nan]])
    mask = jnp.array([True, False])
    loss = lambda u: losses.squared_error(u, targets, mask)['loss']
    value, grad = jax.value_and_grad(loss)(outputs)
    np.testing.assert_allclose(value, 2.5)
    np.testing.assert_allclose(grad, [[1, 2], [0, 0]])
    sums = losses.squared_error(outputs, targets, mask)
    self.assertEqual(float(sums['weight']), 1)
    self.assertEqual(float(sums['mae']), 1.5)
    with self.assertRaisesRegex(errors.UserError, 'shape of the outputs'):
      losses.squared_error(outputs, targets[:1])

  def test_a_fifth_of_classes_that_are_confused(self):
    target = np.arange(30) % 25
    lines = tasks.classification.confusion_lines(target, target[::-1], 25)
    self.assertLessEqual(len(lines), 21)
    self.assertIn('predicted as', lines[1])


if __name__ == '__main__':
  absltest.main()
