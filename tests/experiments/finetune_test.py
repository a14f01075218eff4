"""Training that starts from a folder of Hugging Face, and the way back."""

import importlib.util
import json

from absl.testing import absltest
from absl.testing import parameterized
from experiments.cli import config_flag
from experiments.cli import tasks
from experiments.configs import default
from flax import nnx
import jax
import numpy as np
from rnnzoo import convert
from rnnzoo import errors
from rnnzoo import models
from rnnzoo import restoring
from rnnzoo.data import bpe
from rnnzoo.training import loop
from tests.experiments import commands

CONFIG = commands.ROOT / 'experiments/configs/language/finetune.py'
FIXTURES = commands.ROOT / 'tests/convert/fixtures'
TEXT = 'to be or not to be that is the question\n' * 60
# More than the tokenizer has, as published models often have.
VOCABULARY = 280


def leaves(model):
  return {
      '.'.join(map(str, path)): np.asarray(variable.get_value())
      for path, variable in nnx.to_flat_state(nnx.state(model, nnx.Param))
  }


@absltest.skipUnless(
    importlib.util.find_spec('safetensors'), 'safetensors is not installed.'
)
class FinetuneTest(parameterized.TestCase):

  @classmethod
  def setUpClass(cls):
    super().setUpClass()
    cls.directory = commands.temporary_directory(cls)
    cls.folder = cls.directory / 'pretrained'
    config = models.PRESETS['mamba_130m'].replace(
        num_layers=2, features=16, vocab_size=VOCABULARY
    )
    model = models.LanguageModel(config, rngs=nnx.Rngs(0))
    convert.save_pretrained(model, cls.folder)
    (cls.folder / 'tokenizer.json').write_text(bpe.train([TEXT], 270))
    cls.text = cls.directory / 'text.txt'
    cls.text.write_text(TEXT)

  def parse(self, *words):
    return config_flag.parse_alone(
        str(CONFIG), f'--config.init_from={self.folder}',
        f'--config.data.path={self.text}', '--config.data.sequence_length=16',
        '--config.total_steps=1', '--config.tensorboard=False', *words,
    ).value

  def train(self, workdir, *words):
    config = tasks.resolve(self.parse(*words))
    task, dataset = tasks.make_task(config)
    initial = tasks.initial(config, dataset)
    return dataset, loop.train(task, dataset, config, workdir, initial)

  def test_there_and_back(self):
    workdir, output = self.directory / 'run', self.directory / 'mine'
    # The rate that warms up is 0 at the first step.
    dataset, _ = self.train(
        workdir, '--config.mesh.fsdp=2', '--config.ema_decay=0.9',
        "--config.optimizer.freeze=('embed',)",
        '--config.optimizer.warmup_steps=0',
    )
    self.assertEqual(dataset.vocab_size, VOCABULARY)
    # The first loss is that of the folder's model.
    before = convert.load_pretrained(self.folder)
    batch = next(dataset.train_iterator(1))
    logits = np.asarray(jax.jit(before)(batch['inputs'])[1], np.float64)
    logits -= np.log(np.exp(logits).sum(-1, keepdims=True))
    nats = -np.take_along_axis(logits, batch['targets'][..., None], -1).mean()
    (loss,) = commands.metrics(workdir, 'train_loss').values()
    self.assertAlmostEqual(loss, nats, places=4)

    done = commands.Command(
        'experiments.convert', f'--workdir={workdir}', f'--output={output}'
    ).wait()
    self.assertEqual(done.code, 0, done)
    self.assertIn('parameters, with a tokenizer', done.stdout)
    found = convert.open_pretrained(output)
    trained = leaves(restoring.restore(workdir))
    changed = []
    for name, value in leaves(found.model).items():
      np.testing.assert_array_equal(value, trained[name], name)
      if not np.array_equal(value, leaves(before)[name]):
        changed.append(name)
    self.assertNotIn('embed.embedding', changed)
    self.assertIn('backbone.stacks.0.layer.in_proj.kernel', changed)
    tokenizer = (self.folder / 'tokenizer.json').read_text()
    self.assertEqual(found.vocabulary.symbols, tokenizer)

  def test_the_config_is_that_of_the_folder(self):
    config = self.parse()
    self.assertEqual((config.model.features, config.model.num_layers), (16, 2))
    self.assertEqual(config.data.level, 'bpe')
    self.assertEqual(
        config.data.tokenizer, str(self.folder / 'tokenizer.json')
    )
    # Another run is no folder: its config is not taken over.
    (self.directory / 'other').mkdir(exist_ok=True)
    (self.directory / 'other' / 'config.json').write_text('{}')
    config = self.parse(f'--config.init_from={self.directory / "other"}')
    self.assertEqual(config.model.features, 256)

  @parameterized.parameters(*sorted(path.name for path in FIXTURES.iterdir()))
  def test_configs_of_all_families(self, family):
    """They come back from the JSON of a run as they were."""
    config = default.get_config()
    default.use_pretrained(config, str(FIXTURES / family))
    found = json.loads(config.to_json())['model']
    self.assertEqual(
        models.ModelConfig.from_dict(found),
        convert.pretrained_config(FIXTURES / family),
    )

  @parameterized.parameters(
      ('model.num_layers=3', 'model.num_layers is 2 there, 3 now'),
      ('model.norm_epsilon=0.1', 'model.norm_epsilon is .* there, 0.1 now'),
      ('data.vocab_size=281', 'model.vocab_size is 280 there, 281 now'),
      ('data.vocab_size=99', 'less than the 270 tokens of the vocabulary'),
      ('data.level=byte', 'data.tokenizer=.* needs data.level=bpe'),
  )
  def test_contradictions(self, word, message):
    with self.assertRaisesRegex(errors.UserValueError, message):
      self.train(self.directory / 'wrong', f'--config.{word}')

  def test_another_tokenizer(self):
    file = self.directory / 'other.json'
    file.write_text(bpe.train([TEXT[::-1]], 270))
    with self.assertRaisesRegex(
        errors.UserValueError, 'init_from=.* have different vocabularies'
    ):
      self.train(self.directory / 'wrong', f'--config.data.tokenizer={file}')


if __name__ == '__main__':
  absltest.main()
