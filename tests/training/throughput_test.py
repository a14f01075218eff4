"""Tests of `performance.throughput`, on a clock that is set by hand."""

import doctest
from unittest import mock

from absl.testing import absltest
from absl.testing import parameterized
from experiments.cli import tasks
import jax
import jax.numpy as jnp
from rnnzoo.training.performance import flops
from rnnzoo.training.performance import hardware
from rnnzoo.training.performance import throughput
from tests.experiments import commands
from tests.experiments import tiny


class Clock:
  """Seconds that pass only in `pass_`."""

  now = 0.0

  def __call__(self):
    return self.now

  def pass_(self, seconds):
    self.now += seconds


class Result:
  """Of a step that is still under way, or not."""

  def __init__(self, ready):
    self.is_ready = lambda: ready


class MeterTest(parameterized.TestCase):

  def setUp(self):
    super().setUp()
    self.clock = Clock()

  def make(self, **options):
    return throughput.Meter(
        tokens_per_step=100, devices=2, clock=self.clock, **options
    )

  def run_steps(self, meter, count, *, reading=0.0, computing=1.0, ready=True):
    for _ in range(count):
      with meter.input(Result(ready)):
        self.clock.pass_(reading)
      meter.dispatch(None)
      self.clock.pass_(computing)
      meter.done()

  def test_examples_in_docstrings(self):
    self.assertEqual(doctest.testmod(throughput).failed, 0)

  def test_compilation_does_not_count(self):
    meter = self.make()
    self.assertEmpty(meter.read())
    self.run_steps(meter, 1, computing=99)
    self.assertEmpty(meter.read())
    self.run_steps(meter, 2)
    self.assertEqual(
        meter.read(),
        dict(
            input_wait=0, input_seconds=0, device_seconds=1,
            tokens_per_second_per_device=50,
        ),
    )
    self.assertEmpty(meter.read())

  def test_input_wait_counts_only_while_the_device_is_idle(self):
    meter = self.make()
    self.run_steps(meter, 1)
    for ready, wait in ((True, 0.25), (False, 0)):
      self.run_steps(meter, 4, reading=0.5, computing=1.5, ready=ready)
      found = meter.read()
      self.assertEqual(found['input_wait'], wait)
      self.assertEqual(found['input_seconds'], 0.5)
      self.assertEqual(found['device_seconds'], 1.5)
      self.assertEqual(found['tokens_per_second_per_device'], 25)

  def test_steps_that_overlap_are_not_counted_twice(self):
    meter = self.make()
    meter.dispatch(None)
    for _ in range(5):
      meter.dispatch(None)  # While the one before is under way.
      self.clock.pass_(2)
      meter.done()
    self.assertEqual(meter.read()['device_seconds'], 2)
    meter.all_done()
    meter.all_done()
    self.assertEqual(meter.read(), {})  # No time has passed.

  def test_pauses_do_not_count_in_the_speed(self):
    meter = self.make()
    self.run_steps(meter, 3)
    with meter.pause():
      self.clock.pass_(1000)
    self.run_steps(meter, 2)
    self.assertEqual(meter.read()['tokens_per_second_per_device'], 50)

  def test_model_flops_utilization(self):
    flops_of = mock.Mock(return_value=600)
    meter = self.make(peak=1000.0, flops_of=flops_of, steps_at_once=4)
    self.run_steps(meter, 3)
    found = meter.read()
    # 600 operations a second on two devices that could do 2000.
    self.assertAlmostEqual(found['model_flops_utilization'], 0.3)
    self.assertEqual(found['device_seconds'], 0.25)
    self.assertEqual(found['tokens_per_second_per_device'], 200)
    flops_of.assert_called_once_with(None)

  def test_batches_of_several_lengths(self):
    meter = self.make(peak=100.0, flops_of=lambda batch: 3 * batch)
    for size in (50, 200, 50, 350):
      meter.dispatch(size, size)
      self.clock.pass_(1)
      meter.done()
    found = meter.read()  # Without the first step.
    self.assertEqual(found['tokens_per_second_per_device'], 600 / 3 / 2)
    self.assertEqual(found['model_flops_utilization'], 3 * 600 / 3 / 200)

  @parameterized.parameters(1, 3)
  def test_make_meter_on_known_hardware(self, steps):
    config = tiny.get_config()
    config.data.path = str(commands.ROOT / 'LICENSE')
    config.steps_per_dispatch = steps
    task, dataset = tasks.make_task(config)
    functional = task.functional
    state = dict(params=functional.params, batch_stats=functional.batch_stats)
    one = jax.ShapeDtypeStruct((8, 32), jnp.int32)
    shape = (8, 32) if steps == 1 else (steps, 8, 32)
    needed = flops.of_training_step(task, state, dict(inputs=one, targets=one))
    with mock.patch.object(
        hardware, 'find', return_value=hardware.HARDWARE['v5e']
    ):
      meter = throughput.make_meter(task, dataset, config, state)
    batch = dict.fromkeys(('inputs', 'targets'), jnp.zeros(shape, jnp.int32))
    meter.dispatch(batch)
    self.assertEqual(list(meter._flops.values()), [steps * needed])
    self.assertEqual(meter._peak, 197e12)


if __name__ == '__main__':
  absltest.main()
