"""Generating and evaluating with a trained run that has a layer of its own."""

import importlib.util
import json

from absl.testing import absltest
from absl.testing import parameterized
from experiments.cli import config_flag
from experiments.cli import opening
from experiments.cli import perplexity
from experiments.cli import sampling
from flax import nnx
from rnnzoo import convert
from rnnzoo import errors
from rnnzoo import generation
from rnnzoo import models
from rnnzoo import restoring
from rnnzoo.data import vocabulary as vocabularies
from tests.experiments import commands
import tokenizers

LAYERS = 'tests/experiments/tiny.py'
LENGTH = 24


class GenerateTest(parameterized.TestCase):

  @classmethod
  def setUpClass(cls):
    super().setUpClass()
    cls.workdir = commands.temporary_directory(cls) / 'run'
    command = commands.train(
        cls.workdir, '--config.model.layer=mine', '--config.total_steps=4'
    ).wait()
    if command.code:
      raise AssertionError(str(command))
    cls.run_ = restoring.restore_run(
        cls.workdir,
        layers=config_flag.exports_of(str(commands.ROOT / LAYERS)).layers,
    )

  def generate(self, *words, layers=LAYERS):
    return commands.Command(
        'experiments.generate', f'--workdir={self.workdir}',
        f'--layers={layers}', f'--length={LENGTH}', *words,
    ).wait()

  def expected(self, *prompts, seed=0, **options):
    return sampling.continuations(
        self.run_, prompts, seed=seed, length=LENGTH,
        sampling=generation.Sampling(**options),
    )

  def test_streams_one_prompt(self):
    done = self.generate('--prompt=The Work', '--seed=3', '--top_k=20')
    self.assertEqual(done.code, 0, done)
    (text,) = self.expected('The Work', seed=3, temperature=0.8, top_k=20)
    self.assertLen(text, LENGTH)
    self.assertEqual(done.stdout, f'The Work{text}\n')

  def test_several_prompts(self):
    done = self.generate('--prompt=The Work', '--prompt=a', '--temperature=0')
    self.assertEqual(done.code, 0, done)
    first, second = self.expected('The Work', 'a', temperature=0)
    self.assertEqual(
        done.stdout, f'The Work{first}\n{"-" * 20}\na{second}\n'
    )
    self.assertEqual(self.expected('a', temperature=0), [second])

  def test_a_file_of_prompts(self):
    """And stop strings, which are cut, and the speed."""
    file = self.workdir.parent / 'prompts.jsonl'
    file.write_text('"The Work\\nis"\n\n"a"\n')
    prompts, options = ('The Work\nis', 'a'), dict(temperature=0)
    first, second = self.expected(*prompts, **options)
    stop = first[3:6]
    done = self.generate(
        f'--prompts={file}', '--temperature=0', f'--stop={stop}', '--stop=☃',
        '--chunk=4',
    )
    self.assertEqual(done.code, 0, done)
    first, second = (text.partition(stop)[0] for text in (first, second))
    self.assertEqual(
        done.stdout, f'{prompts[0]}{first}\n{"-" * 20}\na{second}\n'
    )
    self.assertRegex(
        done.stderr, r'first token after .* s .*, prefill 12 tokens, \d+ '
        r'tokens/s, decode \d+ tokens, \d+ tokens/s'
    )
    file.write_text('"a\u2028b"\r\n')  # One line, and one unknown character.
    self.assertIn(r"lacks '\u2028'.", self.generate(f'--prompts={file}').stderr)

  def test_without_a_prompt(self):
    done = self.generate('--nostream', '--top_p=0.9')
    self.assertEqual(done.code, 0, done)
    (text,) = self.expected('\n', temperature=0.8, top_p=0.9)
    self.assertEqual(done.stdout, text + '\n')

  def test_pieces_are_the_text(self):
    options = dict(
        seed=1, length=LENGTH, sampling=generation.Sampling(temperature=2.0)
    )
    pieces = list(sampling.pieces(self.run_, 'You', **options))
    self.assertLen(pieces, LENGTH)
    whole = sampling.continuations(self.run_, ['You'], **options)
    self.assertEqual([''.join(pieces)], whole)

  @parameterized.named_parameters(
      ('unknown_character', ['--prompt=naïve ☃'], "lacks 'ï', '☃'"),
      ('empty_prompt', ['--prompt='], 'at least one character'),
      ('temperature', ['--temperature=-1'], '`temperature` must be'),
      ('top_p', ['--top_p=2'], '`top_p` must be'),
      ('min_p', ['--min_p=2'], '`min_p` must be'),
      ('prompts', ['--prompts=nowhere.txt'], 'There is no file'),
      ('no_prompt', ['--prompts=/dev/null'], 'has no prompt'),
      ('chat', ['--chat'], 'no chat template'),
      ('layers', ['--layers='], "a layer of its own, 'mine'"),
      ('layers_file', ['--layers=nothing.py'],
       'nothing.py; configs are Python files'),
  )
  def test_bad_input(self, words, message):
    done = self.generate(*words)
    self.assertEqual((done.code, done.stdout), (1, ''), done)
    (line,) = done.stderr.splitlines()
    self.assertStartsWith(line, 'Error: ')
    self.assertIn(message, line)

  def test_usage(self):
    done = self.generate('--length=0')
    self.assertEqual((done.code, done.stdout), (2, ''), done)
    self.assertIn('--length=0: 0 is not an integer in the range', done.stderr)

  def test_evaluate(self):
    done = commands.Command(
        'experiments.evaluate', f'--workdir={self.workdir}',
        f'--layers={LAYERS}', devices=8,
    ).wait()
    self.assertEqual(done.code, 0, done)
    summary = json.loads((self.workdir / 'summary.json').read_text())
    self.assertIn(
        f'text_file, test, step 4: loss {summary["test_loss"]:.4f} nats, '
        f'{summary["test_bits_per_token"]:.4f} bits per character, '
        f'accuracy {summary["test_accuracy"]:.4f}\n',
        done.stdout,
    )
    self.assertIn('gzip bits: ', done.stdout)

  def test_evaluate_a_text(self):
    text = self.workdir.parent / 'text.txt'
    text.write_text((commands.ROOT / 'LICENSE').read_text()[:2000])
    done = commands.Command(
        'experiments.evaluate', f'--workdir={self.workdir}',
        f'--layers={LAYERS}', f'--text={text}', '--chunk=100',
    ).wait()
    self.assertEqual(done.code, 0, done)
    found = json.loads(done.stdout.splitlines()[-1])
    self.assertEqual((found['tokens'], found['bytes']), (1999, 1999))
    want = perplexity.measure(self.run_, text, 300)
    self.assertAlmostEqual(found['loss'], want['loss'], places=4)

  def test_evaluate_a_split_that_is_not(self):
    done = commands.Command(
        'experiments.evaluate', f'--workdir={self.workdir}',
        f'--layers={LAYERS}', '--split=tset',
    ).wait()
    self.assertEqual(done.code, 1, done)
    self.assertIn('Did you mean "test"?', done.stderr.splitlines()[-1])

  def test_sample_file(self):
    text = sampling.write_sample(self.run_, self.workdir, LENGTH, 7)
    self.assertLen(text, LENGTH)
    written = (self.workdir / 'sample.txt').read_bytes().decode()
    self.assertEqual(written, text)

  def test_bytes(self):
    config = models.ModelConfig.tiny().replace(vocab_size=256)
    run = self.run_._replace(
        model=models.LanguageModel(config, rngs=nnx.Rngs(0)),
        vocabulary=vocabularies.Vocabulary('byte'),
    )
    self.assertEqual(sampling.start_of_text(run), '\n')
    text = 'naïve ☃'
    tokens, mask = sampling.encode(run, [text, 'a'])
    self.assertEqual(tokens.shape, (2, len(text.encode())))
    self.assertEqual(mask.sum(), len(text.encode()) + 1)
    # Random bytes: broken characters too, the last one perhaps.
    options = dict(seed=1, length=40, sampling=generation.Sampling())
    pieces = sampling.pieces(run, text, **options)
    self.assertEqual(
        [''.join(pieces)], sampling.continuations(run, [text], **options)
    )

  def test_a_text_that_attention_has_no_room_for(self):
    config = models.ModelConfig.tiny().replace(
        layer='attention', vocab_size=256,
        layer_options=dict(num_heads=2, window=8, on_full='error'),
    )
    run = self.run_._replace(
        model=models.LanguageModel(config, rngs=nnx.Rngs(0)),
        vocabulary=vocabularies.Vocabulary('byte'),
    )
    options = dict(seed=0, sampling=generation.Sampling())
    for prompt, length, message in (
        ('to', 8, r'--length must be at most 7, got 8: .* prompt of 2 tokens'),
        ('to be or not', 1, r'has room for 8 tokens, .* \(--context\)'),
    ):
      with self.assertRaisesRegex(errors.UserValueError, message):
        next(sampling.pieces(run, prompt, length=length, **options))
    sampling.continuations(run, ['to', 'b'], length=7, **options)
    # The sample of a training is as long as it can be.
    sampling.write_sample(run, self.workdir, 40, 7)

  def test_run_without_text(self):
    run = self.run_._replace(vocabulary=None)
    with self.assertRaisesRegex(errors.UserValueError, 'has no text'):
      sampling.encode(run, ['a'])


class PretrainedTest(parameterized.TestCase):

  @classmethod
  def setUpClass(cls):
    super().setUpClass()
    if not importlib.util.find_spec('safetensors'):
      raise absltest.SkipTest('safetensors is not installed.')
    cls.folder = commands.temporary_directory(cls) / 'pretrained'
    words = ['<s>', 'to', 'be', 'or', 'not', 'that', 'is', 'the', 'question']
    tokenizer = tokenizers.Tokenizer(tokenizers.models.WordLevel(
        {word: i for i, word in enumerate(words)}, '<s>'
    ))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    tokenizer.post_processor = tokenizers.processors.TemplateProcessing(
        single='<s> $A', special_tokens=[('<s>', 0)]
    )
    config = models.PRESETS['mamba2_130m'].replace(
        num_layers=1, features=16, vocab_size=len(words), tie_embeddings=False
    )
    model = models.LanguageModel(config, rngs=nnx.Rngs(0))
    convert.save_pretrained(model, cls.folder)
    tokenizer.save(str(cls.folder / 'tokenizer.json'))

  def test_writes_text(self):
    done = commands.Command(
        'experiments.generate', f'--pretrained={self.folder}',
        f'--length={LENGTH}', '--prompt=to be', '--temperature=0',
    ).wait()
    self.assertEqual(done.code, 0, done)
    run, stop, _ = opening.open_pretrained(self.folder)
    self.assertEqual(stop, ())
    ids = run.vocabulary.encode('to be')
    self.assertEqual(ids.tolist(), [0, 1, 2])
    rows = generation.generate(
        run.model, ids[None], length=LENGTH, temperature=0
    )
    text = run.vocabulary.decode(rows[0])
    self.assertEqual(done.stdout, f'to be{text}\n')

  def test_a_text_ends_at_a_stop_token(self):
    run = opening.open_pretrained(self.folder, 'float32').run
    ids = run.vocabulary.encode('to be')
    row = generation.generate(
        run.model, ids[None], length=LENGTH, temperature=0
    )[0].tolist()
    stop = (row[3],)
    options = dict(
        seed=0, length=LENGTH, stop=stop,
        sampling=generation.Sampling(temperature=0),
    )
    text = run.vocabulary.decode(row[: row.index(row[3])])
    self.assertEqual(sampling.continuations(run, ['to be'], **options), [text])
    self.assertEqual(''.join(sampling.pieces(run, 'to be', **options)), text)

  def test_a_folder_without_a_tokenizer(self):
    folder = commands.ROOT / 'tests/convert/fixtures/mamba'
    with self.assertRaisesRegex(errors.UserError, 'has no tokenizer.json'):
      opening.open_pretrained(folder)


if __name__ == '__main__':
  absltest.main()
