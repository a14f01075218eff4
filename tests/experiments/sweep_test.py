"""Sweeps: which runs, what is left of them, and comparisons of runs."""

import contextlib
import io
import json
import pathlib
import signal
import subprocess
import types
from unittest import mock

from absl.testing import absltest
from absl.testing import parameterized
from experiments.cli import config_flag
from experiments.cli import ppo_results
from experiments.cli import results
from experiments.reporting import collecting
from experiments.sweeping import choosing
from experiments.sweeping import points
from experiments.sweeping import rates
from experiments.sweeping import running
from rnnzoo import errors
from tests.experiments import commands

TINY = 'tests/experiments/tiny.py'
DIGITS = 'experiments/configs/images/digits.py'
PPO = 'experiments/configs/rl/ppo_t_maze.py'
# What a run of a language model records, but for its numbers.
RESULT = dict(
    task='language_modelling', data='text_file', config=TINY, layer='min_gru',
    commit='', dirty=None, device='CPU', hours=0.1, parameters=1, best_step=1,
    metric='loss', value=1.0, unit='nats', split='test', published=None,
    published_error=None, source=None, larger_is_better=[], command='',
)


def ppo_summary(**values):
  """Returns what `rl.train` returns of a run on the T-maze."""
  return {
      'task': 'ppo', 'data.name': 't_maze', 'model.layer': 'min_gru',
      'parameters': 9, 'best_step': 20, 'total_steps': 100, 'seconds': 36.0,
      'device': 'cpu', **values,
  }


def write_ppo(directory, point, value):
  """Writes the records of a run of PPO with one agent."""
  directory.mkdir(parents=True)
  flag = config_flag.parse_alone(
      point.config, f'--config.seed={point.seed}', '--config.num_seeds=1',
      *point.words,
  )
  ppo_results.write(
      ppo_summary(
          seed=point.seed, eval_returns=[value], returns=[value],
          deviations=[0.0],
      ), directory, flag, ('abc', False),
  )


class PointsTest(parameterized.TestCase):

  def test_directories_and_commands(self):
    found = points.make(
        f'{DIGITS}:lru,min_gru', [
            'optimizer.learning_rate=1e-3,3e-3', 'eval_splits=("test",)',
        ], 2,
    )
    self.assertEqual(
        [str(p.directory) for p in found],
        [
            f'images/digits/{layer}/learning_rate={rate}/seed_{seed}'
            for layer in ('lru', 'min_gru') for rate in ('1e-3', '3e-3')
            for seed in (0, 1)
        ],
    )
    self.assertEqual(found[1].command, (
        f'--config={DIGITS}:lru', '--config.seed=1',
        '--config.optimizer.learning_rate=1e-3',
        '--config.eval_splits=("test",)',
    ))
    self.assertEqual(found[0].total_steps, 1500)

  def test_runs_of_ppo(self):
    found = points.make(
        f'{PPO}:min_gru,none', ['optimizer.learning_rate=1e-3,3e-3'], 2
    )
    self.assertEqual(
        [str(p.directory) for p in found[:5]],
        [
            f'rl/ppo_t_maze/min_gru/learning_rate={rate}/seed_{seed}'
            for rate in ('1e-3', '3e-3') for seed in (0, 1)
        ] + ['rl/ppo_t_maze/none/learning_rate=1e-3/seed_0'],
    )
    self.assertEqual({p.program for p in found}, {'experiments.ppo'})
    self.assertEqual(found[1].command, (
        f'--config={PPO}:min_gru', '--config.seed=1', '--config.num_seeds=1',
        '--config.optimizer.learning_rate=1e-3',
    ))
    self.assertEqual(points.make(TINY, [], 1)[0].program, 'experiments.train')
    with self.assertRaisesRegex(errors.UserValueError, 'set num_seeds; --seed'):
      points.make(PPO, ['num_seeds=2'], 1)
    with self.assertRaisesRegex(errors.UserValueError, 'is of experiments.ppo'):
      rates.check_configs(f'{TINY},{PPO}:lru')

    # The records of a run, whose returns choose the rate.
    workdir = commands.temporary_directory(self)
    self.assertFalse(running.is_done(found[0], workdir))
    for point, value in zip(found, (0.5, 0.2, 0.7, 0.1)):
      write_ppo(workdir / point.directory, point, value)
      self.assertTrue(running.is_done(point, workdir))
    _, chosen = choosing.with_chosen(
        found[:4], 'optimizer.learning_rate', workdir
    )
    self.assertEqual([p.setting.name for p in chosen], ['learning_rate=3e-3'])

    # The report has them, and the curves of one of several agents, too.
    report = collecting.collect(workdir)
    self.assertEmpty(report.problems)
    rows = {row.name: row for row in report.rows}
    row = rows['min_gru, optimizer.learning_rate=0.003']
    self.assertEqual(row.values, {0: 0.7, 1: 0.1})
    self.assertTrue(row.larger_is_better)
    self.assertEqual((row.metric, row.split), ('return', 'test'))

  def test_several_agents_leave_a_record_each(self):
    workdir = commands.temporary_directory(self)
    flag = config_flag.parse_alone(
        PPO, '--config.seed=5', '--config.num_seeds=2'
    )
    (workdir / 'metrics.jsonl').write_text(''.join(
        json.dumps(dict(
            step=step, environment_steps=8 * step, wall_time=1.0,
            eval_return=step, eval_return_seed_0=step - 1,
            eval_return_seed_1=step + 1,
        )) + '\n' for step in (10, 20)
    ))
    ppo_results.write(
        ppo_summary(
            seed=5, eval_returns=[0.5, 0.25], returns=[0.75, 0.5],
            deviations=[0.1, 0.2],
        ), workdir, flag, ('abc', False),
    )
    found = [
        results.read(workdir / f'seed_{seed}' / results.FILE)
        for seed in (5, 6)
    ]
    self.assertEqual([one['value'] for one in found], [0.75, 0.5])
    self.assertEqual([one['seed'] for one in found], [5, 6])
    self.assertEqual(found[1]['values']['validation'], {'return': 0.25})
    self.assertEqual(found[0]['overrides'], {})
    self.assertIn('experiments.ppo', found[0]['command'])
    self.assertIn('--config.num_seeds=2', found[0]['command'])
    (row,) = collecting.collect(workdir).rows
    self.assertEqual(row.values, {5: 0.75, 6: 0.5})
    self.assertEqual(
        collecting.curves([row]), ('eval_return', [(row, [(10, 9), (20, 19)])])
    )

  def test_policies_are_compared_over_environment_steps(self):
    directory = commands.temporary_directory(self)
    for name, size in (('a', 8), ('b', 16)):
      (directory / name).mkdir()
      (directory / name / 'metrics.jsonl').write_text(json.dumps(dict(
          step=2, eval_return=1.5, environment_steps=2 * size, wall_time=1.0
      )) + '\n')
    done = commands.Command(
        'experiments.compare', directory / 'a', directory / 'b',
        f'--output={directory / "plot.png"}',
    ).wait()
    self.assertEqual(done.code, 0, done)
    lines = done.stdout.splitlines()
    self.assertRegex(lines[0], 'eval_return  environment steps')
    self.assertRegex(lines[1], r'1\.5 +16\b')
    self.assertRegex(lines[2], r'1\.5 +32\b')
    self.assertTrue((directory / 'plot.png').exists())

  def test_a_model_without_layers(self):
    [point] = points.make(
        'experiments/configs/forecasting/etth1.py:dlinear',
        ['data.horizon=192'], 1,
    )
    self.assertEqual(point.overrides, (('data.horizon', '192'),))

  @parameterized.parameters(
      (['optimizer.learning_rat=1'], 'Did you mean "optimizer.learning_rate"'),
      (['total_steps=many'], 'total_steps=many'),
      (['total_steps=0'], 'total_steps must be at least 1'),
      (['total_steps'], '--grid must be FIELD=VALUE'),
      (['total_steps=3,3'], 'two runs for the directory'),
      (['model.layer=lrx'], 'Did you mean "lru"'),
  )
  def test_a_mistake_is_a_line_before_anything_runs(self, grid, said):
    words = [f'--grid={word}' for word in grid]
    workdir = commands.temporary_directory(self) / 'sweep'
    done = commands.Command(
        'experiments.sweep', f'--configs={TINY}', f'--workdir={workdir}', *words
    ).wait()
    self.assertIn(done.code, (1, 2), done)
    self.assertLen(done.stderr.splitlines(), 1)
    self.assertIn(said, done.stderr)
    self.assertFalse(workdir.exists())

  def test_a_comma_in_brackets(self):
    grid = ['model.layer_options={"a": {"b": 1}, "c": (2, 3)},{"d": [4]}']
    self.assertEqual(
        points._axis(grid[0])[1],
        ['{"a": {"b": 1}, "c": (2, 3)}', '{"d": [4]}'],
    )
    with self.assertRaisesRegex(errors.UserValueError, 'keep twice'):
      points.make(TINY, ['keep=1', 'keep=2,3'], 1)

  def test_records_of_other_runs_are_not_replaced(self):
    sweep = commands.imported('experiments.sweep')
    kept = commands.temporary_directory(self) / 'kept'
    found = points.make(TINY, [], 1)
    sweep.check_kept(found, kept)  # Nothing is there yet.
    path = kept / found[0].directory / results.FILE
    path.parent.mkdir(parents=True)
    path.write_text('{')
    with self.assertRaisesRegex(errors.UserValueError, 'use another --results'):
      sweep.check_kept(found, kept)
    with self.assertRaises(OSError):
      sweep.check_kept(found, path)

  def test_a_range_test_of_other_rates(self):
    """The losses of the first must not be drawn against the second's rates."""
    workdir = commands.temporary_directory(self)
    make = lambda *grid, high=1.0: points.make(
        TINY, [*grid, *rates.grid(0.1, high, 30)], 1
    )
    for _ in range(2):  # The same command goes on.
      rates.claim(make(), workdir)
      (workdir / make()[0].directory / 'config.json').write_text('{}')
    for other in (make(high=2.0), make('batch_size=16')):
      with self.assertRaisesRegex(errors.UserValueError, 'another --workdir'):
        rates.claim(other, workdir)
    with self.assertRaisesRegex(errors.UserValueError, 'smoke=True'):
      rates.claim(make('smoke=True'), workdir)

  def test_an_error_of_the_sweep_stops_the_runs(self):
    started = []

    def start(point, workdir):
      seconds = '0' if point.seed == 0 else '60'
      started.append(subprocess.Popen(['sleep', seconds]))
      return started[-1]

    def ended():
      raise OSError('The disk is full.')

    with mock.patch.object(running, 'start', start):
      with self.assertRaisesRegex(OSError, 'full'):
        running.run(points.make(TINY, [], 2), '', 2, str, ended)
    self.assertEqual(
        [process.returncode for process in started], [0, -signal.SIGTERM]
    )

  def test_the_best_value_of_a_metric_that_grows(self):
    compare = commands.imported('experiments.compare')
    run = compare.Run('run', {}, dict(seconds=1), [])
    cells = compare.line(run, 'eval_possible', [(1, 0.25), (2, 0.5)])
    self.assertEqual(cells[3:5], ('0.5', '2'))

  def test_runs_are_compared_over_the_lengths_of_test_sequences(self):
    compare = commands.imported('experiments.compare')
    run = compare.Run('run', dict(sequence_length=32), dict(
        test_accuracy=1.0, test_64_accuracy=0.5, test_64_loss=2.0, seconds=1,
    ), [])
    points = compare.by_length(run, 'accuracy')
    self.assertEqual(points, [(32, 1.0), (64, 0.5)])
    self.assertEqual(compare.line(run, 'test_accuracy', points)[3], '1')
    with self.assertRaisesRegex(errors.UserValueError, 'no loss of several'):
      compare.by_length(run, 'loss')
    path = commands.temporary_directory(self) / 'plot.png'
    compare.draw([run], [points], 'test_accuracy', path, 'length', True)
    self.assertTrue(path.exists())

  def test_wrong_rates(self):
    for text in ('1e-3', '1,1e-3', '0,1', '1e-3,inf', 'low,high'):
      with self.assertRaisesRegex(errors.UserValueError, '--lr_range must be'):
        rates.parse(text)


class ChoosingTest(parameterized.TestCase):

  def choose(self, measured, grid=('keep=1,2,3',)):
    """Returns what is left of a sweep of two layers and two seeds.

    Args:
      measured: For each run of the first seed its accuracy and loss on
        validation, or `None` if it has no result.
      grid: As for `points.make`.
    """
    found = points.make(f'{DIGITS}:lru,gru', grid, 2)
    first = [point for point in found if point.seed == 0]
    by_file = {
        f'workdir/{point.directory}/result.json': (point, numbers)
        for point, numbers in zip(first, measured, strict=True)
    }

    def read(path):
      point, numbers = by_file[str(path)]
      if not numbers:
        raise errors.UserFileNotFoundError('There is none.')
      return dict(
          task='classification', steps=point.total_steps,
          overrides=dict(point.overrides), values=dict(
              validation=dict(zip(('accuracy', 'loss'), numbers)),
              test=dict(accuracy=1 - numbers[0], loss=0.0),
          ),
      )

    with mock.patch.object(results, 'read', read):
      left, chosen = choosing.with_chosen(
          found, 'keep', pathlib.Path('workdir')
      )
    self.assertContainsSubset(first, left)
    return [str(p.directory) for p in left if p.seed], [
        str(p.setting) for p in chosen
    ]

  def test_the_best_on_validation(self):
    later, chosen = self.choose(
        # The highest accuracy; of equal ones the lower loss, then the first.
        [(0.5, 0.1), (0.7, 0.9), (0.6, 0.2), (0.5, 0.3), (0.5, 0.2), (0.5, 0.2)]
    )
    best = [f'images/digits/{layer}/keep=2' for layer in ('lru', 'gru')]
    self.assertSameElements(chosen, best)
    self.assertEqual(later, [f'{setting}/seed_1' for setting in best])

  def test_nothing_is_chosen_where_a_run_is_missing(self):
    later, _ = self.choose([None, (0.9, 0), (0.9, 0), *3 * [(0.5, 0)]])
    self.assertEqual(later, ['images/digits/gru/keep=1/seed_1'])

  def test_another_field_has_choices_of_its_own(self):
    later, _ = self.choose(
        [(0.1, 0), (0.2, 0), (0.4, 0), (0.3, 0)] * 2,
        ['log_every=1,2', 'keep=1,2'],
    )
    place = 'images/digits/lru/log_every='
    self.assertEqual(
        later[:2], [f'{place}1,keep=2/seed_1', f'{place}2,keep=1/seed_1']
    )

  def test_a_field_without_several_values(self):
    for grid in ([], ['keep=1']):
      with self.assertRaisesRegex(errors.UserValueError, 'keep=VALUE,VALUE'):
        choosing.check(points.make(DIGITS, grid, 2), 'keep')
    found = points.make(DIGITS, ['keep=1,2'], 2)
    self.assertEqual(choosing.check(found, 'config.keep'), 'keep')

  def test_the_other_seeds_run_with_the_chosen_value(self):
    sweep = commands.imported('experiments.sweep')
    workdir = commands.temporary_directory(self)
    found = points.make(f'{TINY}:min_gru', ['keep=1,2'], 3)
    started = []

    def start(point, workdir):
      """Writes a result: `keep=2` is better on validation."""
      keep = int(dict(point.overrides)['keep'])
      path = workdir / point.directory / results.FILE
      path.parent.mkdir(parents=True, exist_ok=True)
      path.write_text(json.dumps(RESULT | dict(
          seed=point.seed, steps=point.total_steps,
          overrides=dict(point.overrides),
          values=dict(validation=dict(loss=1 / keep), test=dict(loss=keep)),
      )))
      started.append(f'{point.setting.name}/{point.seed}')
      return subprocess.Popen(['true'])

    settings = dict(
        configs=f'{TINY}:min_gru', seeds=3, grid=['keep=1,2'], jobs=1,
        workdir=str(workdir), results=None, lr_range=None, select='keep',
    )
    for name, value in settings.items():
      holder = types.SimpleNamespace(value=value)
      self.enter_context(
          mock.patch.object(sweep, f'_{name.upper()}', holder)
      )
    self.enter_context(mock.patch.object(running, 'start', start))
    for _ in range(2):  # The second time there is nothing to do.
      with contextlib.redirect_stderr(io.StringIO()) as said:
        sweep.main(['sweep'])
      self.assertIn(f'chosen: {found[-1].setting}\n', said.getvalue())
      self.assertEqual(
          started, ['keep=1/0', 'keep=2/0', 'keep=2/1', 'keep=2/2']
      )
    rows = json.loads((workdir / 'sweep.json').read_text())['rows']
    self.assertEqual(
        [(row.get('chosen', False), row['runs']) for row in rows],
        [(False, 1), (True, 3)],
    )


class SweepTest(absltest.TestCase):

  def sweep(self, *words, layer='min_gru'):
    return commands.Command(
        'experiments.sweep', f'--configs={TINY}:{layer}',
        f'--workdir={self.workdir}', *words,
    )

  def setUp(self):
    super().setUp()
    self.directory = commands.temporary_directory(self)
    self.workdir = self.directory / 'sweep'

  def test_from_a_stop_to_the_comparison(self):
    runs = [
        self.workdir / f'tests/experiments/tiny/min_gru/seed_{i}'
        for i in (0, 1)
    ]
    words = ['--seeds=2', '--grid=eval_every=8']
    # Ctrl-C stops the run, which saves.
    stopped = self.sweep(*words, '--grid=total_steps=5000')
    stopped.wait_for_step(runs[0], 3)
    stopped.send(signal.SIGINT)
    stopped.wait()
    self.assertEqual(stopped.code, 130, stopped)
    self.assertIn('the runs have saved', stopped.stderr)
    *_, last = commands.saved_steps(runs[0])
    self.assertFalse((runs[0] / results.FILE).exists())
    # The same command would go on; so does one with fewer steps. Both runs at a
    # time.
    words.append(f'--grid=total_steps={last + 8}')
    done = self.sweep(
        *words, '--jobs=2', f'--results={self.directory / "kept"}'
    ).wait()
    self.assertEqual(done.code, 0, done)
    self.assertIn('Going on after step', (runs[0] / 'log.txt').read_text())
    record = json.loads((self.workdir / 'sweep.json').read_text())
    [row] = record['rows']
    one, two = (
        results.read(run / results.FILE)['value'] for run in runs
    )
    self.assertNotEqual(one, two)
    self.assertAlmostEqual(row['mean'], (one + two) / 2)
    self.assertAlmostEqual(row['standard_error'], abs(one - two) / 2)
    self.assertRegex(done.stdout, r'tiny/min_gru  loss on test, .*  2  ')
    kept = self.directory / 'kept/tests/experiments/tiny/min_gru'
    names = lambda seed: {p.name for p in (kept / f'seed_{seed}').iterdir()}
    self.assertEqual(names(1), {'result.json', 'summary.json'})
    self.assertEqual(names(0), names(1) | {'metrics.jsonl', 'curve.png'})
    # What is done is skipped.
    again = self.sweep(*words).wait()
    self.assertIn('2 of them done before', again.stderr)
    self.assertNotIn('started', again.stderr)
    self.assertEqual(again.stdout, done.stdout)
    # With other fields it is another run.
    for grid, is_done in ((words[1:], True), ([*words[1:], 'keep=9'], False)):
      grid = [word.removeprefix('--grid=') for word in grid]
      [point] = points.make(f'{TINY}:min_gru', grid, 1)
      self.assertEqual(running.is_done(point, self.workdir), is_done)
    # So it is elsewhere, where its records are known.
    self.workdir = self.directory / 'elsewhere'
    words.append(f'--results={self.directory / "kept"}')
    elsewhere = self.sweep(*words).wait()
    self.assertIn('2 of them done before', elsewhere.stderr)
    self.assertEqual(elsewhere.stdout, done.stdout)

    image = self.directory / 'compare.png'
    compared = commands.Command(
        'experiments.compare', *runs, f'--output={image}'
    ).wait()
    self.assertEqual(compared.code, 0, compared)
    head, *lines, _ = compared.stdout.splitlines()
    self.assertEqual(
        head.split(),
        'run layer data eval_loss step parameters seconds'.split(),
    )
    best = json.loads((runs[1] / 'summary.json').read_text())
    self.assertEqual(lines[1].split()[:5], [
        str(runs[1]), 'min_gru', 'text_file',
        f'{best["best_eval_loss"]:.4g}', str(best['best_step']),
    ])
    self.assertStartsWith(image.read_bytes(), b'\x89PNG')
    wrong = commands.Command(
        'experiments.compare', runs[0], '--metric=eval_lss'
    ).wait()
    self.assertEqual(wrong.code, 1)
    self.assertIn('has no eval_lss, only ', wrong.stderr)

  def test_a_failed_run_and_a_range_of_rates(self):
    failed = self.sweep('--grid=data.path=none.txt').wait()
    self.assertEqual(failed.code, 1, failed)
    self.assertIn('1 of 1 runs failed', failed.stderr.splitlines()[-1])
    self.assertIn('There is no file', failed.stderr.splitlines()[-1])
    ranged = self.sweep('--lr_range=1e-4,1e2', '--lr_steps=30', layer='lru')
    self.assertEqual(ranged.wait().code, 0, ranged)
    self.assertRegex(ranged.stdout, r'tiny/lru: lowest loss .* at a rate of ')
    plot = 'tests/experiments/tiny/lru/seed_0/learning_rate.png'
    image = (self.workdir / plot).read_bytes()
    self.assertStartsWith(image, b'\x89PNG')


if __name__ == '__main__':
  absltest.main()
