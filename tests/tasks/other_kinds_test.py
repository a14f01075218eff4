"""Tests of the kinds of task `autoencoding`, `known_source` and `matching`."""

import types
from unittest import mock

from absl.testing import absltest
from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np
from rnnzoo import data
from rnnzoo import errors
from rnnzoo import models
from rnnzoo import restoring
from rnnzoo import tasks
from rnnzoo import training
from rnnzoo.training import evaluation
from rnnzoo.training import sharding
from rnnzoo.training import step as step_lib
from rnnzoo.training.performance import throughput
from tests.experiments import commands

SMALL = models.ModelConfig(
    layer='min_gru', num_layers=1, features=8, mlp='none', vocab_size=5
)


def train(case, task, dataset):
  """Trains for a few steps; returns the summary and what is restored."""
  workdir = commands.temporary_directory(type(case)) / 'run'
  summary = training.train(
      task, dataset, workdir, total_steps=20, eval_every=10, save_every=10,
      tensorboard=False, optimizer=dict(learning_rate=2e-2, warmup_steps=2),
  )
  run = restoring.restore_run(workdir)
  case.assertIs(type(run.task), type(task))
  mesh = sharding.make_mesh(dict(data=-1, fsdp=1, model=1, sequence=1))
  # In segments, but for autoencoding, whose code needs the whole row.
  with mock.patch.object(step_lib, 'SEGMENT_STEPS', 3):
    means = evaluation.evaluate_model(
        run.task, dataset, run.model, 'test', mesh
    )
  for metric, value in means.items():
    case.assertAlmostEqual(value, summary[f'test_{metric}'], places=5)
  found = evaluation.predict(run.task, dataset, run.model, 'test', mesh)
  right = np.concatenate([
      np.ravel(p == t)
      for p, t in zip(found['prediction'], found['target'], strict=True)
  ])
  case.assertAlmostEqual(right.mean(), means['accuracy'], places=5)
  losses = list(commands.metrics(workdir, 'train_loss').values())
  case.assertLess(losses[-1], losses[0])
  return summary, run, means


class AutoencodingTest(absltest.TestCase):

  def test_decoder_is_what_the_equations_say(self):
    model = models.SequenceAutoencoder(SMALL, rngs=nnx.Rngs(0))
    tokens = jnp.array([[1, 2, 3], [4, 0, 1]])
    x = model.embed(tokens)
    _, x = model.backbone(x)
    code = np.asarray(x[:, -1])
    _, found = model(tokens)
    np.testing.assert_allclose(found, code, rtol=1e-5, atol=1e-6)
    # One position at a time, in NumPy.
    norm = lambda x: x / np.sqrt(np.mean(x**2) + 1e-6)
    weights = lambda m: (np.asarray(m.kernel[...]), np.asarray(m.bias[...]))
    logits = np.asarray(model.decode(found, 3))
    for row in range(2):
      for place in range(3):
        angles = [place * 10_000 ** (-i / 3) for i in range(4)]
        y = code[row] + np.concatenate([np.sin(angles), np.cos(angles)])
        for linear in model.linears:
          w, b = weights(linear)
          y = np.asarray(jax.nn.gelu(norm(y) @ w + b, approximate=False))
        w, b = weights(model.head)
        np.testing.assert_allclose(
            logits[row, place], norm(y) @ w + b, rtol=2e-4, atol=2e-5
        )

  def test_a_code_in_chunks(self):
    model = models.SequenceAutoencoder(SMALL, rngs=nnx.Rngs(0))
    tokens = jnp.array([[1, 2, 3, 4], [4, 0, 1, 1]])
    mask = jnp.array([[True] * 4, [True, True, False, False]])
    _, whole = model(tokens, mask=mask)
    carry, _ = model(tokens[:, :1])
    for step in range(1, 4):
      carry, code = model.step(carry, tokens[:, step], mask=mask[:, step])
    np.testing.assert_allclose(code, whole, rtol=1e-5, atol=1e-6)
    with self.assertRaisesRegex(errors.UserValueError, 'vocab_size must be'):
      models.SequenceAutoencoder(
          SMALL.replace(vocab_size=0, in_features=3), rngs=nnx.Rngs(0)
      )

  def test_it_is_trained_and_restored(self):
    dataset = data.load(
        dict(name='mad', task='compression', sequence_length=4, vocab_size=5,
             train_examples=64, eval_examples=40),
        batch_size=16, seed=0,
    )
    task = tasks.Autoencoding(SMALL)
    summary, _, _ = train(self, task, dataset)
    self.assertRegex(
        task.sentence(summary, dataset), r'accuracy of the tokens: test \d'
    )


class MatchingTest(absltest.TestCase):

  def load(self):
    directory = commands.temporary_directory(self)
    config = dict(name='aan', data_dir=str(directory), sequence_length=40)
    data.find('aan').write_fixture(directory, config)
    return data.load(config, batch_size=16, seed=0)

  def test_it_is_trained_and_restored(self):
    dataset = self.load()
    task = tasks.Matching(SMALL.replace(vocab_size=0))
    summary, run, _ = train(self, task, dataset)
    self.assertIsInstance(run.model, models.PairClassifier)
    self.assertEqual(
        run.data['characters'], dataset.source['characters']
    )
    mesh = sharding.make_mesh(dict(data=-1, fsdp=1, model=1, sequence=1))
    found = evaluation.predict(run.task, dataset, run.model, 'test', mesh)
    self.assertLen(found['target'], 60)
    lengths = [
        int(exists.sum())
        for batch in dataset.eval_batches('test')
        for exists, counts in zip(
            batch['input_mask'], batch['mask'], strict=True
        ) if counts
    ]
    self.assertEqual(found['length'].tolist(), lengths)
    text = '\n'.join(run.task.details(found, dataset))
    self.assertIn('no citation', text)
    self.assertIn('accuracy by length', text)
    self.assertIn('accuracy: validation', task.sentence(summary, dataset))
    self.assertEqual(
        throughput.tokens_per_step(task, dataset, types.SimpleNamespace(
            batch_size=16
        )),
        16 * 2 * 40,
    )

  def test_devices_share_pairs_and_time(self):
    dataset = self.load()
    task = tasks.Matching(SMALL.replace(layer='lru')).bind(dataset)
    model = task.build(nnx.Rngs(0))
    means = [
        evaluation.evaluate_model(
            task, dataset, model, 'test', sharding.make_mesh(
                dict(data=data, fsdp=1, model=1, sequence=sequence),
                jax.devices()[: data * sequence],
            ),
        )
        for data, sequence in ((1, 1), (2, 2))
    ]
    for metric, value in means[0].items():
      self.assertAlmostEqual(means[1][metric], value, places=5)

  def test_pairs_are_for_this_kind_only(self):
    pairs = self.load()
    rows = data.from_arrays(
        np.zeros((40, 5), int), np.arange(40) % 2, batch_size=8
    )
    for kind, dataset in (
        (tasks.Matching, rows), (tasks.Classification, pairs),
        (tasks.LanguageModelling, pairs),
    ):
      with self.assertRaisesRegex(
          errors.UserValueError, f'{kind.name}, but {dataset.name} is a data'
      ):
        kind(SMALL).bind(dataset)


class KnownSourceTest(absltest.TestCase):

  def test_logits_cannot_come_in_parts(self):
    with self.assertRaisesRegex(errors.UserValueError, 'loss_chunk must be 0'):
      tasks.KnownSource(SMALL, loss_chunk=64)

  def test_metrics_of_known_logits(self):
    true = np.array([[[0.5, 0.5, 0], [0, 1, 0], [1, 0, 0]]], np.float32)
    logits = np.log(np.array(
        [[[0.6, 0.3, 0.1], [0.5, 0.25, 0.25], [0.1, 0.1, 0.8]]], np.float32
    ))
    batch = dict(
        inputs=jnp.zeros((1, 3), int), targets=jnp.array([[1, 1, 0]]),
        mask=jnp.array([[True, True, False]]), probabilities=jnp.array(true),
    )
    _, sums = tasks.KnownSource(SMALL).forward(
        lambda *args, **kwargs: (None, jnp.array(logits)), batch, None,
        train=False, key=None,
    )
    self.assertEqual(
        {name: round(float(value), 4) for name, value in sums.items()},
        dict(
            loss=round(-np.log(0.3) - np.log(0.25), 4), accuracy=0.0,
            possible=1.0, total_variation=0.2 + 0.75, weight=2.0,
        ),
    )

  def test_it_is_trained_and_restored(self):
    dataset = data.load(
        dict(name='regbench', max_states=4, letters=4, min_words=2,
             max_words=2, max_word_length=4, train_examples=64,
             eval_examples=40),
        batch_size=16, seed=0,
    )
    task = tasks.KnownSource(SMALL)
    summary, _, means = train(self, task, dataset)
    self.assertGreaterEqual(means['possible'], means['accuracy'])
    self.assertIn('total variation', task.sentence(summary, dataset))
    self.assertIn('possible', task.describe(means, dataset))
    self.assertTrue(task.is_as_good('possible', 0.9, 0.8))


if __name__ == '__main__':
  absltest.main()
