"""A run by byte-pair encoding: text, scores, and another tokenizer.json."""

import json
import types

from absl.testing import absltest
from experiments.cli import sampling
import numpy as np
from rnnzoo import generation
from rnnzoo import restoring
from rnnzoo.data import bpe
from rnnzoo.data import vocabulary as vocabularies
from tests.experiments import commands
import tokenizers


class BPERunTest(absltest.TestCase):

  def test_train_generate_evaluate_resume(self):
    directory = commands.temporary_directory(self)
    workdir, file = directory / 'run', directory / 'tokenizer.json'
    text = (commands.ROOT / 'LICENSE').read_text()
    file.write_text(bpe.train([text], 300))
    train = lambda steps: commands.train(
        workdir, '--config.data.level=bpe', f'--config.data.tokenizer={file}',
        f'--config.total_steps={steps}', '--config.sample_characters=30',
    ).wait()
    done = train(4)
    self.assertEqual(done.code, 0, done)
    self.assertRegex(done.stdout, r'bits per token.*, \d\.\d+ bits per byte')
    summary = json.loads((workdir / 'summary.json').read_text())
    ratio = summary['test_bits_per_token'] / summary['test_bits_per_byte']
    self.assertBetween(ratio, 1.2, 4)
    self.assertAlmostEqual(
        summary['test_loss'] / np.log(2), summary['test_bits_per_token']
    )
    self.assertNotEmpty((workdir / 'sample.txt').read_text())

    run = restoring.restore_run(workdir)
    self.assertEqual(run.vocabulary.symbols, file.read_text())
    options = dict(
        seed=1, length=40, sampling=generation.Sampling(temperature=1.0)
    )
    prompt = 'The “Work” 🙂'
    whole = sampling.continuations(run, [prompt], **options)
    pieces = ''.join(sampling.pieces(run, prompt, **options))
    # The stream holds back bytes that are no character yet.
    self.assertStartsWith(whole[0].rstrip('\ufffd'), pieces.rstrip('\ufffd'))
    self.assertGreater(len(pieces), 20)

    evaluate = commands.Command(
        'experiments.evaluate', f'--workdir={workdir}'
    ).wait()
    self.assertIn(
        f'bits per byte: {summary["test_bits_per_byte"]:.4f}', evaluate.stdout
    )
    file.write_text(bpe.train([text[::-1]], 300))
    for done in (train(8), commands.Command(
        'experiments.evaluate', f'--workdir={workdir}'
    ).wait()):
      self.assertEqual(done.code, 1, done)
      self.assertRegex(
          done.stderr.splitlines()[-1],
          'Error: The text and the model .* different vocabularies: bpe .*',
      )
    generate = commands.Command(
        'experiments.generate', f'--workdir={workdir}', '--prompt=The'
    ).wait()  # It needs no file.
    self.assertEqual(generate.code, 0, generate)

  def test_a_tokenizer_that_drops_new_lines_can_start_a_text(self):
    words = tokenizers.Tokenizer(tokenizers.models.WordLevel({'a': 0, 'b': 1}))
    words.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    run = types.SimpleNamespace(
        vocabulary=vocabularies.Vocabulary('bpe', words.to_str())
    )
    prompt = sampling.start_of_text(run)
    self.assertEqual(prompt, 'a')
    tokens, _ = sampling.encode(run, [prompt])
    self.assertEqual(tokens.tolist(), [[0]])


if __name__ == '__main__':
  absltest.main()
