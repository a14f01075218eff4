"""`--plan`: what is printed, and what is said where nothing can be compiled."""

import importlib.util

from absl.testing import absltest
from absl.testing import parameterized
from experiments import plan
from rnnzoo import planning
from rnnzoo.training.performance import hardware
from tests.experiments import commands

_GIB = 2**30


def a_result(**more):
  result = dict(
      config='griffin', layer='griffin,griffin,attention', target='v5e:4x4',
      devices=16, kind='TPU v5 lite', rows_per_device=2, batch=[32, 2048],
      mesh=dict(data=1, fsdp=16, model=1, sequence=1), tokens=32 * 2048,
      parameters=1_300_000_000, dtype='bfloat16', jax='0.10.2',
      compiler='libtpu 1', seconds=70.0, host_memory=int(1.5 * _GIB),
      limit=int(15.75 * _GIB), flops=dict(executed=4e15, needed=3e15),
      memory=dict(
          parameters=_GIB // 2, optimiser=_GIB, rest=0, gradients=_GIB // 2,
          kept=2 * _GIB, logits=_GIB // 4,
      ),
      verdict='does not fit', advice=[],
  )
  return result | more


def compiled(**more):
  result = a_result(
      verdict='fits', bytes_moved=1e12, unknown_loops=[],
      collectives=[
          dict(kind='all-gather', group=16, hosts_apart=False, operations=12,
               times=96.0, bytes=3.5e9),
          dict(kind='all-reduce', group=16, hosts_apart=False, operations=2,
               times=9.0, bytes=2.0e9),
      ],
  )
  result['memory'] |= dict(
      arguments=2 * _GIB, temporaries=4 * _GIB, peak=int(5.5 * _GIB), code=0
  )
  result['roofline'] = planning.roofline(result, hardware.HARDWARE['v5e'])
  return result | more


class ReportTest(parameterized.TestCase):

  def test_what_fits(self):
    text = plan.report(compiled())
    self.assertStartsWith(text, '# griffin on v5e:4x4: fits\n')
    self.assertRegex(text, r'\| parameters +\| +0\.50 \| exact')
    self.assertRegex(text, r'\| \*\*peak\*\* +\| +\*\*5\.50\*\* \|')
    self.assertRegex(text, r'\| all-gather +\| +16 \| +12 \| +96 \| +3\.500 \|')
    # 4e15 / 16 / 197e12, and 1e12 / 819e9.
    self.assertRegex(text, r'products of matrices +\| +1269\.0 \|')
    self.assertRegex(text, r'\| memory +\| +1221\.0 \|')
    self.assertIn('An estimate: nothing was run', text)
    self.assertIn('No reduce-scatter', text)
    self.assertNotIn('What to change', text)

  def test_what_was_refused(self):
    text = plan.report(a_result(
        required=20 * _GIB, advice=['model.remat=full: recompute.', 'Or less.']
    ))
    self.assertRegex(text, r'\*\*needed\*\* +\| +\*\*20\.00\*\* \|')
    self.assertIn('1. model.remat=full: recompute.\n2. Or less.\n', text)
    self.assertNotIn('estimate', text)

  def test_pairs(self):
    self.assertIn('batches of 32 x 2048 tokens', plan.report(compiled()))
    text = plan.report(compiled(batch=[64, 40, 2], tokens=64 * 2 * 40))
    self.assertIn('batches of 64 x 2 x 40 tokens', text)

  @parameterized.parameters(compiled, a_result)
  def test_columns_line_up(self, make):
    lines = plan.report(make(required=20 * _GIB)).splitlines()
    for before, line in zip(lines, lines[1:]):
      if before.startswith('|') and line.startswith('|'):
        self.assertLen(line, len(before))

  def test_beyond_a_host(self):
    row = dict(kind='all-reduce', group=16, hosts_apart=True, operations=1,
               times=1.0, bytes=1e9)
    text = plan.report(compiled(collectives=[row], kind='NVIDIA H200'))
    self.assertIn('16 beyond a host', text)


class CommandTest(absltest.TestCase):

  def plan(self, *words):
    return commands.Command(
        'experiments.train', commands.TINY, *words
    ).wait()

  def test_no_such_target(self):
    command = self.plan('--plan=v5litepod-256')
    self.assertEqual(command.code, 1)
    self.assertStartsWith(command.stderr, 'Error: --plan must be a TPU')
    self.assertLen(command.stderr.splitlines(), 1)

  def test_no_compiler(self):
    if importlib.util.find_spec('libtpu') is not None:
      self.skipTest('libtpu is installed.')
    command = self.plan('--plan=v5e:2x2')
    self.assertEqual(command.code, 1)
    self.assertIn('pip install "jax[tpu]"', command.stderr)
    self.assertLen(command.stderr.splitlines(), 1)


if __name__ == '__main__':
  absltest.main()
