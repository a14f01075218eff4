"""Records of runs, published numbers, and the report on both."""

import json
import pathlib
import types
from unittest import mock

from absl.testing import absltest
from absl.testing import parameterized
from experiments.cli import config_flag
from experiments.cli import published
from experiments.cli import results
from experiments.reporting import collecting
from experiments.reporting import markdown
from experiments.reporting import page
from experiments.reporting import speed
from ml_collections import ConfigDict
from rnnzoo import errors
from rnnzoo import tasks
from tests.experiments import commands

# A repository with one config.
CONFIG = '''
"""Copies <b>bold</b> things, see https://arxiv.org/abs/2410.01201."""

from tests.experiments.tiny import get_config as get_config

PUBLISHED = [
    dict(layer='min_gru', split='test', metric='loss', value=1.5, error=0.01,
         source='https://arxiv.org/abs/2410.01201, table 3'),
    dict(layer='min_gru', split='long', metric='accuracy', value=0.5,
         source='<script>alert(1)</script>'),
    dict(layer='mamba', split='test', metric='loss', value=1.7,
         source='a book'),
]
'''
ROWS = [
    dict(step=1, eval_loss=2.0, eval_accuracy=0.2, eval_long_accuracy=0.1),
    dict(step=2, train_loss=1.8),
    dict(step=2, eval_loss=1.0, eval_accuracy=0.6, eval_long_accuracy=0.4),
]


def summary(**values):
  """Returns a summary like that of a language model."""
  return {
      'best_step': 2, 'best_eval_loss': 1.0, 'test_loss': 1.2,
      'test_accuracy': 0.7, 'test_256_loss': 3.0, 'total_steps': 3,
      'parameters': 10, 'seconds': 1800.0, 'device': 'cpu x 1', 'seed': 0,
      'task': 'language_modelling', 'model.layer': 'min_gru', **values,
  }


class ResultsTest(parameterized.TestCase):

  def setUp(self):
    super().setUp()
    self.root = commands.temporary_directory(self)
    self.config = self.root / 'experiments/configs/copying/one.py'
    self.config.parent.mkdir(parents=True)
    self.config.write_text(CONFIG)
    self.results = self.root / 'results'
    # A repository of its own.
    self.enterContext(
        mock.patch.object(results, 'ROOT', self.root.resolve())
    )

  def make(self, name, *words, rows=ROWS, baselines=(), **values):
    """Writes the record of a run; returns it."""
    folder = self.results / name
    folder.mkdir(parents=True)
    (folder / 'metrics.jsonl').write_text(''.join(
        json.dumps(dict(row, wall_time=1.0)) + '\n' for row in rows
    ))
    flag = config_flag.parse_alone(str(self.config), *words)
    config = ConfigDict(flag.value.to_dict())
    config.eval_splits = ('validation', 'long')
    result = results.make(
        summary(**values), folder, config, tasks.LanguageModelling(),
        types.SimpleNamespace(
            name='copying', unit='tokens', bytes_per_token=0,
            baselines=lambda: dict(baselines),
        ),
        flag,
        ('abc', False),
    )
    results.write(result, folder)
    return result

  def test_what_a_result_holds(self):
    result = self.make(
        'run', '--config.seed=3', '--config.data.path=/home/ada/secret/a.txt',
        '--config.data.data_dir=/home/ada/data', seed=3,
    )
    # The numbers are those of the best step, not the best of all steps.
    self.assertEqual(result['values']['long'], dict(accuracy=0.4))
    self.assertEqual(result['values']['test_256'], dict(loss=3.0))
    # Bits per byte, say, are known of the test split only.
    self.assertEqual(
        result['values']['validation'], dict(loss=1.0, accuracy=0.6)
    )
    self.assertEqual(
        (result['metric'], result['split'], result['value']),
        ('loss', 'test', 1.2),
    )
    self.assertEqual(result['published'], 1.5)
    self.assertEqual(result['hours'], 0.5)
    self.assertEqual(result['overrides'], {'data.path': 'a.txt'})
    self.assertEqual(
        result['command'],
        'python -m experiments.train '
        '--config=experiments/configs/copying/one.py:min_gru '
        '--config.data.path=a.txt --config.seed=3 --workdir=runs/one',
    )
    text = (self.results / 'run/result.json').read_text()
    for secret in ('ada', str(self.root)):
      self.assertNotIn(secret, text)
    self.assertEqual(results.read(self.results / 'run/result.json'), result)

  def test_the_record_of_a_finished_run_stays(self):
    result = self.make('run')
    later = dict(result, commit='def')
    results.write(later, self.results / 'run')
    path = self.results / 'run/result.json'
    self.assertEqual(results.read(path)['commit'], 'abc')
    results.write(dict(later, steps=9), self.results / 'run')
    self.assertEqual(results.read(path)['commit'], 'def')

  def test_another_model_is_not_compared(self):
    result = self.make('run', '--config.model.num_layers=1')
    self.assertIsNone(result['published'])
    rate = self.make('other', '--config.optimizer.learning_rate=0.1')
    self.assertEqual(rate['published'], 1.5)
    short = self.make('short', '--config.total_steps=5')
    self.assertIsNone(short['published'])
    half = self.make('half', '--config.model.dtype=bfloat16')
    self.assertEqual(half['published'], 1.5)
    # `FILE:mamba` may set more than the layer, so this is another model, and
    # its command line must not say `FILE:mamba`.
    layer = self.make(
        'layer', '--config.model.layer=mamba', **{'model.layer': 'mamba'}
    )
    self.assertIsNone(layer['published'])
    self.assertIn('one.py --config.model.layer=mamba', layer['command'])

  def test_a_number_for_other_data(self):
    own = config_flag.parse_alone(str(self.config)).value.data.sequence_length
    self.config.write_text(CONFIG.replace(
        "error=0.01,", "error=0.01, where={'data.sequence_length': 9},"
    ))
    config_flag.load_module.cache_clear()
    for length, published_value, overrides in (
        (9, 1.5, {'data.sequence_length': '9'}),
        (7, None, {'data.sequence_length': '7'}),
        (own, 0.5, {}),  # As in the file: another number is about this one.
    ):
      result = self.make(
          f'run{length}', f'--config.data.sequence_length={length}'
      )
      self.assertEqual(result['published'], published_value)
      self.assertEqual(result['overrides'], overrides)
    report = collecting.collect(self.results, self.root)
    compared = [row for row in report.rows if row.published]
    self.assertEqual(
        [row.name for row in compared if row.metric == 'loss'],
        ['min_gru, data.sequence_length=9'],
    )

  def test_no_finite_number(self):
    with self.assertRaisesRegex(errors.UserError, 'loss on test is not a fin'):
      self.make('run', test_loss=float('nan'), rows=ROWS[1:2])

  def test_a_number_that_was_corrected(self):
    self.assertEqual(self.make('run')['published'], 1.5)
    self.config.write_text(CONFIG.partition('PUBLISHED')[0])
    config_flag.load_module.cache_clear()
    row, _ = collecting.collect(self.results, self.root).rows
    self.assertIsNone(row.published)
    # Only where the file is gone, the record is all that is known.
    self.config.unlink()
    row, _ = collecting.collect(self.results, self.root).rows
    self.assertEqual(row.published.value, 1.5)

  def test_report(self):
    simple = dict(guess_loss=1.6, gzip_bits=3.0)
    self.make('seed_0', test_loss=1.2, baselines=simple)
    self.make(
        'seed_1', '--config.seed=1', seed=1, test_loss=1.4, baselines=simple
    )
    report = collecting.collect(self.results, self.root)
    # A simple predictor has a row, if its metric is the one that is compared.
    [guess] = [row for row in report.rows if not row.runs]
    self.assertEqual(
        (guess.name, guess.metric, guess.mean), ('guess', 'loss', 1.6)
    )
    loss, long, longer = sorted(
        (row for row in report.rows if row.runs),
        key=lambda row: ('test', 'long', 'test_256').index(row.split),
    )
    self.assertAlmostEqual(loss.mean, 1.3)
    self.assertAlmostEqual(loss.error, 0.1)
    self.assertEqual(loss.verdict, collecting.BETTER)  # By 0.2.
    self.assertEqual(long.verdict, collecting.WORSE)  # Larger is better.
    self.assertEqual((longer.mean, longer.verdict), (3.0, ''))
    self.assertEqual([row.layer for row in report.not_run], ['mamba'])
    self.assertEqual(report.problems, ())

    html = page.document(report)
    for text in (
        'better by 0.2', 'worse by 10.0 points', 'not run', '1.3\xa0±\xa00.1',
        'href="https://arxiv.org/abs/2410.01201"', '<svg',
        'data-name="min_gru"', '&lt;b&gt;bold', '&lt;script&gt;alert',
        'not run here: <span>1</span>', '>all of copying</option>',
    ):
      self.assertIn(text, html)
    # Numbers without a run are folded, below what was measured.
    self.assertLess(html.index('<code>min_gru'), html.index('<code>mamba'))
    self.assertLess(html.index('class="missing"'), html.index('<code>mamba'))
    self.assertNotIn('<script>alert', html)
    self.assertNotRegex(html, r'(src|href)="(?!https://arxiv)')
    lines = markdown.document(report).splitlines()
    self.assertLen(lines, 2 + 5)
    self.assertEqual({line.count(' | ') for line in lines if '---' not in line},
                     {10})

  def test_a_loss_that_is_infinite_on_longer_sequences(self):
    for seed, loss in enumerate((3.0, float('inf'))):
      self.make(
          f'seed_{seed}', f'--config.optimizer.learning_rate={seed + 1}',
          test_256_loss=loss, test_256_accuracy=0.5,
      )
    rows = collecting.collect(self.results, self.root).rows
    self.assertEqual([r.mean for r in rows if r.split == 'test_256'], [3.0])

  def test_speed_of_training(self):
    self.make('run')
    rows = [
        dict(layer='nnx.RNN(GRUCell)', length=512, speedup=None),
        dict(layer='MinGRU', length=512, speedup=200.0),
        dict(layer='MinLSTM', length=512, speedup=3.0),
    ]
    record = dict(device='a GPU', jax='1.0', batch=8, features=4, rows=rows)
    (self.results / 'speedup_gpu.json').write_text(json.dumps(record))
    (self.results / 'speedup_old.json').write_text('[]')
    (self.results / 'speedup_short.json').write_text('{"rows": [{}]}')
    report = collecting.collect(self.results, self.root)
    report = speed.added(report, self.results)
    fast, slow = [r for r in report.rows if r.metric == 'speedup']
    self.assertEqual((fast.layer, fast.verdict), ('min_gru', 'better'))
    self.assertEqual((slow.gain, slow.verdict), (-232.0, 'worse'))
    self.assertEqual(
        [r.split for r in report.not_run if r.metric == 'speedup'],
        ['T = 4096'] * 2,
    )
    self.assertEqual(
        [p.split(' is ')[0] for p in report.problems],
        ['speedup_old.json', 'speedup_short.json'],
    )
    html = page.document(report)
    self.assertIn('8, 4 features, one layer, a GPU, JAX 1.0', html)
    self.assertIn('worse by 232', markdown.document(report))

  def test_equal_within_the_errors(self):
    self.make('run', test_loss=1.505)
    row, *_ = collecting.collect(self.results, self.root).rows
    self.assertEqual(row.verdict, collecting.EQUAL)

  def test_what_is_left_out(self):
    """Each bad file is a line that names it; the others are shown."""
    good = self.make('good')
    for name, text in (
        ('cut', '{"task": '), ('list', '[]'),
        ('old', json.dumps({k: v for k, v in good.items() if k != 'values'})),
        ('kind', json.dumps(good | dict(hours='long'))),
        ('empty', json.dumps(good | dict(values={}))),
        ('number', json.dumps(good | dict(values=dict(test=3)))),
        ('override', json.dumps(good | dict(overrides=dict(seed=[3])))),
        ('same', json.dumps(good)),
        ('simple', json.dumps(good | dict(baselines=dict(a_loss='low')))),
        ('steps', json.dumps(good | dict(steps=9, seed=1))),
        ('fixture', json.dumps(good | dict(fixture=True))),
        ('smoke', json.dumps(good | dict(smoke=True))),
    ):
      folder = self.results / name
      folder.mkdir()
      (folder / 'result.json').write_text(text)
    (self.results / 'bare').mkdir()
    (self.results / 'bare/summary.json').write_text(json.dumps(summary()))
    report = collecting.collect(self.results, self.root)
    self.assertLen(report.rows, 2 + 1)  # Those of the good one.
    self.assertLen(report.problems, 12)
    for line, name, said in zip(report.problems, (
        'cut', 'empty', 'fixture', 'kind', 'list', 'number', 'old', 'override',
        'same', 'simple', 'smoke', 'steps',
    ), (
        'not JSON', 'damaged', 'generated data', 'hours must be a number',
        'damaged', 'damaged', 'older form: it lacks values',
        'overrides.seed must be a string', 'with the same seed',
        'baselines.a_loss must be a number', 'a smoke run',
        'with other steps',
    )):
      self.assertStartsWith(line, f'results/{name}/result.json is ')
      self.assertIn(said, line)
      self.assertNotIn('\n', line)
    self.assertLen(report.bare, 1)
    self.assertIn('test loss 1.2', report.bare[0])
    done = commands.Command(
        'experiments.report', f'--results={self.results}',
        f'--output={self.root / "out.html"}',
    ).wait()
    self.assertEqual(done.code, 1, done)
    self.assertIn(report.problems[0], done.stderr)
    self.assertIn('cut/result.json', (self.root / 'out.html').read_text())

  @parameterized.parameters(
      ('3', 'PUBLISHED of .* must be a list of dictionaries, got 3'),
      ('[dict(layer="lru")]', r'PUBLISHED\[0\] .* see metric, source'),
      (
          '[dict(layer="a", metric="accuracy", value=99.5, split="test", '
          'source="")]', r'value must be in \[0, 1\], got 99.5',
      ),
  )
  def test_wrong_published_numbers(self, text, said):
    path = self.root / 'wrong.py'
    path.write_text(f'PUBLISHED = {text}\n')
    with self.assertRaisesRegex(errors.UserValueError, said):
      published.of_file(str(path))

  def test_links_in_text(self):
    html = page._inline('See `https://a.b/c` and https://arxiv.org/abs/12.34.')
    self.assertEqual(html, (
        'See <code><a href="https://a.b/c">a.b/c</a></code> and '
        '<a href="https://arxiv.org/abs/12.34">arXiv\xa012.34</a>.'
    ))
    self.assertEqual(
        page._inline('https://a.b/c: d'), '<a href="https://a.b/c">a.b/c</a>: d'
    )

  def test_commit_of_no_repository(self):
    self.assertEqual(results.commit(), ('', None))


class CommittedTest(absltest.TestCase):

  def test_report_of_the_repository(self):
    """All records that are kept can be read, and are of configs that exist."""
    directory = results.ROOT / 'experiments/results'
    report = speed.added(collecting.collect(directory), directory)
    self.assertEqual(report.problems, ())
    self.assertNotEmpty([r for r in report.rows if r.metric == 'speedup'])
    self.assertNotEmpty(report.rows)
    for row in report.rows:
      self.assertTrue((results.ROOT / row.config).is_file(), row.config)
      for run in row.runs:
        self.assertNotIn(str(pathlib.Path.home()), str(run))


if __name__ == '__main__':
  absltest.main()
