"""`experiments.ppo` from end to end, and a smoke run of each of its configs."""

import importlib.util
import pathlib
import signal
from unittest import mock

from absl.testing import absltest
from absl.testing import parameterized
from experiments.cli import config_flag
from experiments.cli import episodes
from experiments.cli import help_text
from experiments.cli import schema
from experiments.cli import tasks
from experiments.configs import default
from experiments.configs.rl import settings
from experiments.reporting import collecting
import jax
from matplotlib import figure
import numpy as np
from PIL import Image
from rnnzoo import environments
from rnnzoo import errors
from rnnzoo import rl
from rnnzoo.rl import saved
from tests.experiments import commands

ppo_speed = commands.imported('experiments.benchmarks.ppo_speed')

CONFIGS = [
    file for file in collecting.config_files()
    if pathlib.PurePosixPath(file).match('rl/ppo_*')
]
MASKED = 'experiments/configs/rl/ppo_cartpole_masked.py'


def parse(file, *words):
  return config_flag.parse_alone(f'{commands.ROOT / file}', *words)


class SpeedTest(absltest.TestCase):

  def test_the_adapter_starts_the_next_episode(self):
    """What memorax gets of an environment, without memorax."""
    spaces = mock.Mock()
    adapter = ppo_speed.Adapter(
        environments.make('cart_pole', time_limit=3), spaces
    )
    spaces.Discrete.assert_called_once_with(2)
    x, state = adapter.reset(jax.random.key(0), None)
    done = []
    for i in range(7):
      x, state, reward, ended, info = adapter.step(
          jax.random.key(i), state, i % 2, None
      )
      done.append(bool(ended))
      self.assertEqual((x.shape, float(reward), info), ((4,), 1, {}))
    self.assertEqual(done, [False, False, True] * 2 + [False])


class ConfigTest(parameterized.TestCase):

  def test_there_is_a_config_of_every_environment(self):
    names = {parse(file).value.environment.name for file in CONFIGS}
    self.assertEqual(names, {*environments.ENVIRONMENTS})

  @parameterized.parameters(*CONFIGS)
  def test_smoke_run(self, file):
    if 'gymnax' in file and not importlib.util.find_spec('gymnax'):
      self.skipTest('It needs gymnax.')
    workdir = commands.temporary_directory(self)
    flag = parse(file, '--config.smoke=True', '--config.tensorboard=False')
    config = tasks.resolve(flag.value, flag.exports, source='environment')
    self.assertLessEqual(config.total_steps, 10)
    result = rl.train(config, workdir)
    self.assertTrue(np.isfinite(result['test_return']))
    self.assertEqual(list(commands.metrics(workdir, 'loss')), [2, 4])
    self.assertTrue((workdir / 'curve.png').exists())

  def test_another_environment_brings_its_options(self):
    config = parse(
        MASKED, '--config.environment.name=pendulum',
    ).value
    self.assertEqual(
        config.environment.to_dict(),
        dict(name='pendulum', masked=True, time_limit=200),
    )
    config = parse(
        MASKED, '--config.environment.length=7',
        '--config.environment.name=t_maze',
    ).value
    self.assertEqual(
        config.environment.to_dict(), dict(name='t_maze', length=7)
    )

  def test_bad_fields(self):
    for change, message in (
        (lambda c: c.update(epochz=3), 'no config field epochz. Did you mean'),
        (lambda c: c.update(epochs=0), 'epochs must be at least 1, got 0'),
        (lambda c: c.environment.update(time_limit=0), 'environment.time_lim'),
        (lambda c: c.environment.update(lenth=3), 'no config field environm'),
        (lambda c: c.environment.update(name='pole'), 'no environment .pole'),
    ):
      config = settings.defaults()
      change(config)
      with self.assertRaisesRegex(errors.UserValueError, message):
        schema.check(config)

  def test_each_command_names_the_other(self):
    with self.assertRaisesRegex(errors.UserError, 'train it by experiments.pp'):
      tasks.resolve(settings.defaults())
    with self.assertRaisesRegex(errors.UserError, 'train it by experiments.tr'):
      tasks.resolve(default.get_config(), source='environment')

  def test_help(self):
    for name, field in schema.RL_FIELDS.items():
      self.assertEndsWith(field.help, '.', name)
    flag = config_flag.ConfigFlag(settings.defaults)
    text = help_text.of_command('It.\n', [], flag)
    self.assertRegex(text, r'\n  rollout_length=128 +The steps of each env')
    self.assertRegex(text, r'\n  environment\.masked=False +Whether the obs')
    self.assertIn('\nOptions of min_gru, ', text)
    self.assertNotIn('data.', text)


class EpisodeTest(parameterized.TestCase):

  def test_a_gif_of_an_episode(self):
    config = settings.defaults('t_maze')
    config.update(config.smoke_overrides)
    learner = rl.PPO(config, environments.make('t_maze', length=5))
    state = jax.jit(jax.vmap(learner.initial_state))(np.arange(1))
    policy = saved.Saved(learner, config, 0, state, 1)
    moments = episodes.play(policy, 0)
    total = sum(moment.reward for moment in moments)
    path = commands.temporary_directory(self) / 'deep/episode.gif'
    # Some frames of a long episode.
    with mock.patch.object(episodes, '_FRAMES', 4):
      steps, drawn = episodes.draw(policy, 0, path)
    self.assertEqual((steps, drawn), (len(moments), total))
    self.assertBetween(steps, 1, learner.environment.max_steps)
    with Image.open(path) as image:
      self.assertBetween(image.n_frames, 2, 5)
      image.seek(image.n_frames - 1)
      self.assertGreater(len(image.convert('RGB').getcolors(10**6)), 3)

  @parameterized.parameters(
      ('autoencode', 60), ('pendulum', 0), ('repeat_previous', 5),
      ('repeat_previous', 1),
  )
  def test_scenes(self, name, time):
    """Each draws something, before a policy has to answer and after."""
    environment = environments.make(name)
    state, _ = environment.reset(jax.random.key(0))
    (last,) = set(state._fields) & {'time', 'shown'}
    state = jax.tree.map(np.asarray, state._replace(**{last: time}))
    action = np.ones(1) if name == 'pendulum' else np.int32(2)
    axes = figure.Figure().subplots()
    episodes.SCENES[name].draw(
        axes, environment, episodes.Moment(state, action, 0.5)
    )
    texts = ' '.join(text.get_text() for text in axes.texts)
    wanted = dict(
        autoencode='asked for .*: right', pendulum='torque',
        repeat_previous='asked for' if time > 3 else 'nothing to name yet',
    )
    self.assertRegex(texts, wanted[name])

  def test_an_environment_that_nobody_draws(self):
    policy = mock.Mock()
    policy.config.environment.name = 'other'
    with self.assertRaisesRegex(errors.UserValueError, 'no drawing of other'):
      episodes.draw(policy, 0, pathlib.Path('never.gif'))


class CommandTest(absltest.TestCase):

  def run_command(self, *words):
    return commands.Command('experiments.ppo', *words)

  def test_stop_resume_and_evaluate(self):
    workdir = commands.temporary_directory(self) / 'run'
    words = (
        f'--config={MASKED}:lru', f'--workdir={workdir}',
        '--config.smoke=True', '--config.environment.time_limit=30',
    )
    # Long enough to be stopped: smoke overrides win over other flags.
    more = '--config.smoke_overrides.total_steps=2000'
    stopped = self.run_command(*words, more)
    while not commands.metrics(workdir, 'loss'):
      if not stopped.process.is_alive():
        raise AssertionError(str(stopped.wait()))
    stopped.send(signal.SIGINT)
    stopped.wait()
    self.assertEqual(stopped.code, 130, stopped)
    self.assertRegex(stopped.stderr, r'Stopped by SIGINT; step \d+ is saved')
    (*_, step) = commands.saved_steps(workdir)

    other = self.run_command(*words).wait()
    self.assertEqual(other.code, 1, other)
    self.assertIn('belongs to a run of another config: total', other.stderr)

    # Another length of an episode is all right, another observation is not.
    path = workdir / 'episode.gif'
    found = self.run_command(
        f'--workdir={workdir}', '--evaluate=3', f'--gif={path}',
        f'--config={MASKED}', '--config.environment.time_limit=7',
    ).wait()
    self.assertEqual(found.code, 0, found)
    self.assertRegex(
        found.stdout, r'cart_pole \(masked=True, time_limit=7\), lru, '
        r'[\d,]+ parameters, step \d+: mean return 7 of 3 new episodes'
    )
    self.assertGreaterEqual(step, 2)
    self.assertRegex(found.stdout, r'episode.gif, 7 steps, return 7')
    with Image.open(path) as image:
      self.assertEqual(image.n_frames, 7)
    other = self.run_command(
        f'--workdir={workdir}', '--evaluate=3', f'--config={MASKED}',
        '--config.environment.masked=False',
    ).wait()
    self.assertEqual(other.code, 1, other)
    self.assertRegex(other.stderr, r'^Error: The policy in .* cannot act in')
    self.assertLen(other.stderr.splitlines(), 1)


if __name__ == '__main__':
  absltest.main()
