"""The loss and the state by position, against one call for the whole text."""

import json

from absl.testing import absltest
from absl.testing import parameterized
from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np
from rnnzoo import data
from rnnzoo import errors
from rnnzoo import models
from rnnzoo.data import vocabulary as vocabularies
from tests.experiments import commands

state_collapse = commands.imported('experiments.state_collapse')


class StateCollapseTest(parameterized.TestCase):

  def test_edges(self):
    for length in (1, 2, 100, 2**20):
      found = state_collapse.edges(length)
      self.assertEqual((found[0], found[-1]), (1, length))
      self.assertTrue((np.diff([0, *found]) > 0).all())
    self.assertLess(len(found), 90)

  @parameterized.parameters('min_gru', 'mamba,lru', 'attention')
  def test_one_call_for_the_whole_text_finds_the_same(self, layer):
    options = dict(attention=dict(window=8)) if layer == 'attention' else {}
    model = models.LanguageModel(
        models.ModelConfig.tiny().replace(layer=layer, layer_options=options),
        rngs=nnx.Rngs(0),
    )
    rng = np.random.default_rng(0)
    tokens = rng.integers(16, size=31)
    stream = state_collapse.Stream(
        tokens[:-1], tokens[1:], rng.random(30) < 0.7
    )
    rows = list(state_collapse.measure(model, stream, 70, rows=2, chunk=16))
    places = (np.array([[0], [15]]) + np.arange(70)) % 30
    carry, logits = model(stream.inputs[places])
    losses = -np.take_along_axis(
        np.asarray(jax.nn.log_softmax(logits)),
        stream.targets[places][..., None], -1,
    )[..., 0]
    counted = stream.counted[places]
    for row in rows:
      here = slice(row['start'] - 1, row['end'])
      self.assertEqual(row['targets'], counted[:, here].sum())
      if row['targets']:
        self.assertAlmostEqual(
            row['loss'], losses[:, here][counted[:, here]].mean(), places=4
        )
      else:
        self.assertIsNone(row['loss'])
    self.assertEqual(rows[-1]['end'], 70)
    state = rows[-1]['state']
    self.assertEqual(
        {name.partition(':')[0] for name in state}, {'0', '1'}
    )
    if layer == 'min_gru':  # One array `[layers, B, D]`.
      for depth in range(2):
        h = np.asarray(carry[0].layer[depth])
        found = state[f'{depth}: state']
        self.assertEqual(found['size'], h.shape[1])
        for name, value in dict(
            mean=h.mean(), variance=h.var(1).mean(),
            norm=np.linalg.norm(h, axis=1).mean(),
        ).items():
          self.assertAlmostEqual(found[name], float(value), places=4)

  def test_what_is_not_finite_is_null(self):
    class Broken(models.LanguageModel):
      def __call__(self, *args, **kwargs):
        carry, logits = super().__call__(*args, **kwargs)
        return carry, logits + jnp.nan

    model = Broken(models.ModelConfig.tiny(), rngs=nnx.Rngs(0))
    stream = state_collapse.Stream(*np.ones((2, 3), int), np.ones(3, bool))
    (*_, last) = state_collapse.measure(model, stream, 4)
    self.assertIsNone(last['loss'])
    json.dumps(last, allow_nan=False)

  def test_streams(self):
    path = commands.temporary_directory(self) / 'text'
    path.write_text('abcdefghi|' * 60)
    for separator in ('', '|'):
      dataset = data.load(
          dict(
              name='text_file', path=path, sequence_length=7,
              separator=separator,
          ),
          batch_size=4, seed=0,
      )
      stream = state_collapse.read_stream(dataset, 'test')
      decode = dataset.vocabulary.decode
      self.assertEqual(decode(stream.inputs), ('abcdefghi|' * 3)[:-1])
      self.assertEqual(
          decode(stream.targets[stream.counted]),
          ('abcdefghi|' * 3)[1:] if not separator else 'bcdefghi|' * 3,
      )
    dataset = data.load(
        dict(name='mqar', eval_examples=5), batch_size=4, seed=0
    )
    stream = state_collapse.read_stream(dataset, 'test')
    self.assertEqual(stream.counted.sum(), 20)
    dataset = data.load(
        dict(
            name='passkey', sequence_length=200, eval_examples=9,
            test_lengths=(),
        ),
        batch_size=4, seed=0,
    )
    stream = state_collapse.read_stream(dataset, 'test')
    self.assertEqual(stream.counted.sum(), 9 * 5)
    self.assertTrue(stream.inputs.all())  # No padding, which is token 0.
    stream = state_collapse.stream_of_text(
        vocabularies.Vocabulary('byte'), 'ab'
    )
    self.assertEqual(stream.targets.tolist(), [98, 97])
    with self.assertRaisesRegex(errors.UserValueError, '--text='):
      state_collapse.stream_of_text(vocabularies.Vocabulary('byte'), '')

  def test_command(self):
    directory = commands.temporary_directory(self)
    done = commands.train(
        directory / 'run', '--config.total_steps=4', '--config.eval_every=4'
    ).wait()
    self.assertEqual(done.code, 0, done)
    run = lambda *words: commands.Command(
        'experiments.state_collapse', f'--workdir={directory / "run"}',
        *words,
    ).wait()
    out = directory / 'collapse.json'
    for text in ('', '\n'):
      done = run(f'--output={out}', '--length=2000', f'--text={text}')
      self.assertEqual(done.code, 0, done)
      record = json.loads(out.read_text())
      self.assertEqual(record['rows'][-1]['end'], 2000)
      self.assertEqual(record['trained_length'], 32)
      self.assertNotIn(str(directory), out.read_text())
      image = out.with_suffix('.png').read_bytes()
      self.assertStartsWith(image, b'\x89PNG')
    for words, message in (
        (['--output=a.txt'], 'must end in .json'),
        (['--output=a.json', '--split=no'], "no evaluation split 'no'"),
        (['--output=a.json', '--text=~'], 'lacks .~'),
        ([], '--output is required'),
    ):
      done = run(*words)
      self.assertRegex(done.stderr.splitlines()[-1], message)
      self.assertNotEqual(done.code, 0)


if __name__ == '__main__':
  absltest.main()
